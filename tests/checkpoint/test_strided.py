"""Tensors that do not lie in one piece: read right, and in memory that follows what is read."""

from __future__ import annotations

import io
import random
import tracemalloc

import pytest
import torch
from support.checkpoints import either_format
from support.folders import tiny_state
from support.peak import run
from support.sparse import Wide, write_sparse

from sam3lite_convert.checkpoint import strided
from sam3lite_convert.checkpoint.index import StoredTensor
from sam3lite_convert.checkpoint.nonfinite import not_finite
from sam3lite_convert.checkpoint.reader import open_source, read_checkpoint
from sam3lite_convert.checkpoint.tensor_reader import read_pieces, read_range, read_tensor, same_bytes
from sam3lite_convert.convert.assembled import Assembled, Stretch
from sam3lite_convert.convert.text_weights import read_stored
from sam3lite_convert.errors import UnsoundPlan

GIGABYTE = 1 << 30
DTYPES = ("uint8", "int16", "float32", "int64", "complex128")


def view(generator: random.Random) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A shape and a stride: of a permuted tensor, or any, so that elements may lie apart, in another order, or share
    bytes."""
    dims = generator.randint(0, 5)
    shape = tuple(generator.choice([1, 1, 2, 3, 5]) for _ in range(dims))
    if generator.random() < 0.3:
        turned = torch.empty(shape).permute(generator.sample(range(dims), dims))
        return tuple(turned.shape), tuple(turned.stride())
    return shape, tuple(generator.choice([0, 1, 2, 3, 5, 7, 15, 40]) for _ in range(dims))


def assert_read_as_torch_reads(generator: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    """One tensor, with small limits so that it is read in several blocks, windows and runs."""
    monkeypatch.setattr(strided, "_BLOCK", generator.choice([16, 64, 256, 1 << 20]))
    monkeypatch.setattr(strided, "_WINDOW", generator.choice([16, 32, 128, 1 << 20]))
    monkeypatch.setattr(strided, "_GAP", generator.choice([0, 3, 16, 200]))
    name, offset, (shape, stride) = generator.choice(DTYPES), generator.randint(0, 9), view(generator)
    dtype = getattr(torch, name)
    stored = StoredTensor("w", name, shape, offset, stride)
    data = generator.randbytes(offset + stored.span * dtype.itemsize)
    file = io.BytesIO(data)
    held = torch.frombuffer(bytearray(data[offset:]), dtype=dtype).as_strided(shape, stride)
    truth = held.numpy().tobytes()
    assert read_tensor(file, stored) == truth, stored
    step = generator.randint(1, 50)
    begin, end = sorted(generator.randint(0, len(truth)) for _ in range(2))
    pieces = list(read_pieces(file, stored, step, begin, end))
    assert b"".join(pieces) == read_range(file, stored, begin, end) == truth[begin:end], stored
    assert all(len(piece) == step for piece in pieces[:-1])


@pytest.mark.parametrize(
    ("seed", "count"), [(0, 200), *(pytest.param(n, 3000, marks=pytest.mark.stress) for n in range(1, 11))]
)
def test_any_stride_is_read_as_torch_reads_it(seed, count, monkeypatch):
    generator = random.Random(seed)
    for _ in range(count):
        assert_read_as_torch_reads(generator, monkeypatch)


def test_more_axes_than_an_array_may_have(tmp_path):
    shape, stride = (2, *[1] * 40, 3, *[1] * 40), (1, *[7] * 40, 2, *[9] * 40)
    path = write_sparse(tmp_path / "a.pt", {"w": Wide(torch.arange(6.0).reshape(shape), stride)})
    index = read_checkpoint(path)
    with open_source(index) as file:
        assert torch.frombuffer(bytearray(read_tensor(file, index.tensors["w"])), dtype=torch.float32).tolist() == [
            0, 1, 2, 3, 4, 5,
        ]  # fmt: skip


def memory_of(act) -> int:
    """The most bytes that were held at once meanwhile, of Python and of numpy."""
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


APART = {
    "32 numbers": Wide(torch.arange(32.0), (GIGABYTE // 64,)),
    "a matrix": Wide(torch.arange(32.0).reshape(4, 8), (GIGABYTE // 8, GIGABYTE // 64)),
    "a transposed matrix": Wide(torch.arange(32.0).reshape(4, 8), (GIGABYTE // 64, GIGABYTE // 16)),
    "pairs": Wide(torch.arange(32.0).reshape(16, 2), (GIGABYTE // 32, 1)),
}


@either_format
def test_the_stand_in_is_what_torch_reads(tmp_path, legacy):
    values = torch.arange(32.0).reshape(4, 8)
    tensors = {"a": Wide(values, (80, 9)), "b": values.half(), "n": torch.tensor(7)}
    made = torch.load(write_sparse(tmp_path / "a.pt", tensors, legacy))["model"]
    assert made["a"].stride() == (80, 9) and made["a"].equal(values)
    assert made["b"].equal(values.half()) and made["n"] == 7


@either_format
@pytest.mark.parametrize("kind", APART)
def test_memory_follows_what_is_read_and_not_what_a_stride_spans(kind, legacy, tmp_path):
    wide = APART[kind]
    path = write_sparse(tmp_path / "a.pt", {"w": wide}, legacy)
    assert path.stat().st_size > 1.8 * GIGABYTE
    index = read_checkpoint(path)
    (stored,) = index.tensors.values()
    truth = wide.values.numpy().tobytes()
    with open_source(index) as file:
        assert read_tensor(file, stored) == truth
        assert memory_of(lambda: read_tensor(file, stored)) < 1 << 20
        assert memory_of(lambda: list(read_pieces(file, stored, 8))) < 1 << 20
    assert memory_of(lambda: not_finite(index, [stored])) < 2 << 20


def test_the_library_and_an_assembled_tensor_read_no_more(tmp_path):
    wide = APART["a matrix"]
    path = write_sparse(tmp_path / "a.pt", {"a.w": wide})
    index = read_checkpoint(path)
    (stored,) = index.tensors.values()
    with open_source(index) as file:
        tensor = read_stored(file, stored)
        assert tensor.equal(wide.values)
        assert memory_of(lambda: read_stored(file, stored)) < 1 << 20
        made = Assembled("a.w", "float32", (2, 8), (Stretch(path, stored, 8, 16),))
        assert b"".join(made.chunks({path: file})) == wide.values[1:3].numpy().tobytes()
        assert memory_of(lambda: list(made.chunks({path: file}))) < 1 << 20


def test_two_large_tensors_are_compared_in_pieces():
    data = bytes(range(256)) * (160 << 10)  # 40 MiB
    whole = StoredTensor("w", "uint8", (1 << 20, 40), 0, (40, 1))
    file, other = io.BytesIO(data), io.BytesIO(data[:-1] + b"\0")
    assert same_bytes(file, whole, file, StoredTensor("v", "uint8", (len(data),), 0, (1,)))
    assert not same_bytes(file, whole, other, whole)
    assert memory_of(lambda: same_bytes(file, whole, file, whole)) < 20 << 20


def test_the_indexes_of_many_single_numbers_take_no_memory(monkeypatch):
    monkeypatch.setattr(strided, "_GAP", 0)
    data = bytes(range(251)) * 200
    stored = StoredTensor("w", "uint8", (20_000,), 0, (2,))
    assert read_tensor(io.BytesIO(data), stored) == data[:40_000:2]
    assert memory_of(lambda: read_tensor(io.BytesIO(data), stored)) < 300_000


def test_an_expanded_tensor_of_many_elements_is_refused():
    stored = StoredTensor("w", "float32", (1 << 20, 1 << 10), 0, (0, 0))
    with pytest.raises(UnsoundPlan) as fault:
        read_tensor(io.BytesIO(bytes(4)), stored)
    assert fault.value.code == "overlapping_view"


@pytest.mark.stress
@pytest.mark.parametrize(
    ("shape", "stride"), [((1 << 28,), (2,)), ((4, 1 << 26), (1, 4)), ((1 << 26, 4), (1, 1 << 26))]
)
def test_a_gigabyte_with_a_stride_is_read_in_bounded_memory(shape, stride, tmp_path):
    path = write_sparse(tmp_path / "a.pt", {"w": Wide(torch.ones(1), (0,)), "v": Wide(torch.ones(2), (GIGABYTE // 2,))})
    index = read_checkpoint(path)
    stored = StoredTensor("v", "float32", shape, index.tensors["v"].offset, stride)
    with open_source(index) as file:
        peak = memory_of(lambda: [None for _ in read_pieces(file, stored, 4 << 20)])
    assert peak < 100 << 20, f"{peak / 2**20:.0f} MB"


KEY = "backbone.language_backbone.encoder.transformer.1.pre_norm_mha.1.out_proj.weight"


@pytest.mark.stress
@either_format
def test_a_command_takes_no_more_memory_for_a_wide_stride(legacy, tmp_path):
    tensors = tiny_state()
    key = next(k for k in tensors if k.endswith(KEY))
    rows, columns = tensors[key].shape
    wide = Wide(tensors[key], (columns, 1))
    step = GIGABYTE // 2 // 4 // (rows - 1)
    plain = write_sparse(tmp_path / "plain.pt", tensors | {key: wide}, legacy)
    apart = write_sparse(tmp_path / "apart.pt", tensors | {key: Wide(tensors[key], (step, 1))}, legacy)
    assert apart.stat().st_size > plain.stat().st_size + GIGABYTE // 3
    commands: list[tuple[str, ...]] = [
        ("inspect", "{}.pt"),
        ("convert", "--checkpoint", "{}.pt", "--output", "{}"),
        ("verify", "{}", "--checkpoint", "{}.pt"),
    ]
    # What the others read a tensor with does not know the format of the file.
    more = [
        ("convert", "--checkpoint", "{}.pt", "--dry-run"),
        ("convert", "--checkpoint", "{}.pt", "--output", "{}-half", "--dtype", "float16"),
        ("parity", "--checkpoint", "{}.pt", "--converted", "{}"),
        ("restore", "{}", "--checkpoint", "{}.pt", "--output", "{}-back.pt"),
        ("diff", "{}.pt", "{}"),
    ]
    for command in commands if legacy else commands + more:
        ended = []
        for name in ("plain", "apart"):
            ended.append(run(tmp_path, *(part.format(name) for part in command), seconds=120))
            assert ended[-1].code == 0, (command, ended[-1].err)
        assert ended[1].peak < ended[0].peak + (48 << 20), (command, [e.peak >> 20 for e in ended])
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "apart" / name).read_bytes()
