"""The writer of torch files: torch and this tool's own reader have to read in them what was written."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoints import as_bytes, assert_index_is

from sam3lite_convert.checkpoint import dtypes
from sam3lite_convert.checkpoint.index import StoredTensor, contiguous_stride, joined, zeros
from sam3lite_convert.checkpoint.one_file import open_file
from sam3lite_convert.checkpoint.reader import read_checkpoint
from sam3lite_convert.convert.assembled import Assembled, Stretch
from sam3lite_convert.convert.torch_writer import write_torch_file
from sam3lite_convert.errors import Untrusted
from sam3lite_convert.files import whole_file

PLACE = Path("values.bin")


def written(folder, state, wrapper=(), meta=None, name="out.pt"):
    """The file that the writer makes of these tensors, whose bytes lie in a file beside it."""
    tensors, position = [], 0
    with open(folder / PLACE, "wb") as values:
        for key, tensor in state.items():
            dtype, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
            stored = StoredTensor(key, dtype, shape, position, contiguous_stride(shape))
            position += values.write(as_bytes(tensor))
            stretch = Stretch(folder / PLACE, stored, 0, stored.numel)
            tensors.append(Assembled(key, dtype, shape, (stretch,)))
    done = []
    with open_file(folder / PLACE) as file, whole_file(folder / name) as out:
        write_torch_file(out, wrapper, tensors, {folder / PLACE: file}, done.append, meta)
    assert sum(done) == sum(t.out_nbytes for t in tensors)
    return folder / name


def every_dtype():
    out = {}
    for name in sorted(dtypes.NAMES):
        dtype = getattr(torch, name)
        values = torch.arange(6 * dtype.itemsize, dtype=torch.uint8)
        values = (values % 2 if name == "bool" else values).view(dtype)
        out |= {f"k.{name}": values.reshape(2, 3), f"k.{name}.scalar": values[1], f"k.{name}.empty": values[:0]}
    return out


def equal(found, wanted):
    assert list(found) == list(wanted)
    for key, tensor in wanted.items():
        assert (found[key].dtype, found[key].shape) == (tensor.dtype, tensor.shape), key
        assert as_bytes(found[key]) == as_bytes(tensor), key


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("mmap", [False, True])
def test_torch_reads_every_dtype(tmp_path, mmap):
    state = every_dtype()
    path = written(tmp_path, state, ("model",))
    equal(torch.load(path, weights_only=True, mmap=mmap)["model"], state)
    assert zipfile.ZipFile(path).testzip() is None
    assert_index_is(path, state)
    assert read_checkpoint(path).wrapper == "model"


@pytest.mark.parametrize("wrapper", [(), ("model",), ("state", "ema", "model"), ("meta",)])
def test_the_state_dict_stands_where_it_stood(tmp_path, wrapper):
    state = {"a.weight": torch.randn(3, 5), "a.n": torch.tensor(7), "ü.\ud800.x": torch.ones(1)}
    meta = {"text_context_length": 16, "big": 1 << 40, "minus": -3} if wrapper else None
    path = written(tmp_path, state, wrapper, meta)
    found = torch.load(path, weights_only=True)
    if wrapper and wrapper != ("meta",):
        assert found.pop("meta") == meta
    for name in wrapper:
        assert list(found) == [name]
        found = found[name]
    equal(found, state)
    index = read_checkpoint(path)
    assert index.wrapper == (".".join(wrapper) or None)
    if wrapper and wrapper != ("meta",):
        assert index.meta == meta


def test_the_same_tensors_give_the_same_bytes(tmp_path):
    state = {"a.weight": torch.randn(30, 50), "b.weight": torch.randn(3)}
    one, other = written(tmp_path, state, name="one.pt"), written(tmp_path, state, name="two.pt")
    assert one.read_bytes() == other.read_bytes()


def test_tensors_begin_at_multiples_of_64_bytes(tmp_path):
    state = {f"a.{n}": torch.randn(n) for n in range(1, 40)}
    path = written(tmp_path, state)
    assert [t.offset % 64 for t in read_checkpoint(path).tensors.values()] == [0] * 39


def test_an_entry_above_the_limit_of_a_plain_zip(tmp_path, monkeypatch):
    """The limit is lowered, as in a file of more than 2 GB in one tensor, and behind as many bytes."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 40_000)
    state = {"a.weight": torch.randn(100, 100), "b.weight": torch.randn(100), "c.weight": torch.randn(100, 101)}
    path = written(tmp_path, state)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {e.extract_version for e in archive.infolist() if e.file_size > 20_000} == {45}
    equal(torch.load(path, weights_only=True), state)
    assert_index_is(path, state)
    assert [t.offset % 64 for t in read_checkpoint(path).tensors.values()] == [0] * 3


def test_what_fails_leaves_the_earlier_file(tmp_path):
    path = written(tmp_path, {"a.weight": torch.randn(3)})
    before = path.read_bytes()
    stored = StoredTensor("b.w", "float32", (1 << 20,), 0, (1,))
    short = Assembled("b.w", "float32", stored.shape, (Stretch(PLACE, stored, 0, stored.numel),))
    with (
        pytest.raises(Untrusted, match="became shorter"),
        open_file(tmp_path / PLACE) as file,
        whole_file(path) as out,
    ):
        write_torch_file(out, (), [short], {PLACE: file}, lambda n: None)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.pt", str(PLACE)]


def put_together(folder, dtype, shape, *stretches):
    """What a tensor that is assembled holds, read by torch from a file of its own."""
    with open_file(folder / PLACE) as file, whole_file(folder / "one.pt") as out:
        tensor = Assembled("a.weight", dtype, shape, stretches)
        write_torch_file(out, (), [tensor], {folder / PLACE: file}, lambda n: None)
    return torch.load(folder / "one.pt", weights_only=True)["a.weight"]


def test_a_tensor_of_several_stretches(tmp_path):
    values = torch.arange(12, dtype=torch.float32)
    (tmp_path / PLACE).write_bytes(as_bytes(values))
    row = zeros("z", "float32", (1, 4))
    whole = StoredTensor("v", "float32", (3, 4), 0, (4, 1))
    strided = StoredTensor("s", "float32", (4, 3), 0, (1, 4))
    parts = joined("p", (2, 4), (zeros("z", "float32", (4,)), replace(whole, shape=(4,), stride=(1,), offset=32)))
    found = put_together(
        tmp_path,
        "float32",
        (5, 4),
        Stretch(PLACE, row, 0, 4),
        Stretch(tmp_path / PLACE, whole, 4, 4),
        Stretch(tmp_path / PLACE, strided, 3, 4),
        Stretch(tmp_path / PLACE, parts, 2, 4),
        Stretch(tmp_path / PLACE, whole, 0, 4),
    )
    matrix = values.reshape(3, 4)
    rows = [torch.zeros(4), matrix[1], matrix.T.flatten()[3:7], torch.tensor([0, 0, 8.0, 9.0]), matrix[0]]
    assert torch.equal(found, torch.stack(rows))


def test_stretches_are_cast_to_the_tensor_s_dtype(tmp_path):
    values = torch.tensor([1.5, -2.0, 0.25, 3.0])
    (tmp_path / PLACE).write_bytes(as_bytes(values.bfloat16()) + as_bytes(values))
    half = StoredTensor("h", "bfloat16", (4,), 0, (1,))
    full = StoredTensor("f", "float32", (4,), 8, (1,))
    stretches = [Stretch(tmp_path / PLACE, t, 0, 4) for t in (half, full)]
    assert torch.equal(put_together(tmp_path, "float32", (2, 4), *stretches), torch.stack([values, values]))


def test_stretches_that_do_not_fill_a_tensor(tmp_path):
    with pytest.raises(ValueError, match=r"a\.weight: 4 elements"):
        Assembled("a.weight", "float32", (2, 3), (Stretch(PLACE, zeros("z", "float32", (4,)), 0, 4),))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.integers(0, 5), max_size=3), max_size=8), st.integers(0, 3))
def test_any_shapes(tmp_path_factory, shapes, depth):
    state = {f"layer.{n}": torch.randn(shape).half() for n, shape in enumerate(shapes)}
    path = written(tmp_path_factory.mktemp("any"), state, tuple("abc"[:depth]))
    found = torch.load(path, weights_only=True, mmap=True)
    for name in "abc"[:depth]:
        found = found[name]
    equal(found, state)
