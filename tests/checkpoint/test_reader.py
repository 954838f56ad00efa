"""The index of a file against what torch itself reads."""

from __future__ import annotations

import argparse
import collections
import datetime
import pathlib
import random
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.checkpoints import (
    as_bytes,
    assert_index_is,
    assert_reads_as_torch,
    either_format,
    saved,
    stored_bytes,
    tensors,
)
from support.rows import read_member

from sam3lite_convert.checkpoint.reader import read_checkpoint
from sam3lite_convert.errors import Sam3LiteError

DTYPES = (
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int64", "int32", "int16", "int8",
    "uint8", "uint16", "uint32", "uint64", "bool", "complex64", "complex128",
)  # fmt: skip


# ---- what torch sees ----------------------------------------------------------------------


def test_a_whole_small_checkpoint_is_indexed_as_torch_reads_it(small_file):
    assert_reads_as_torch(small_file, "model")


@either_format
@pytest.mark.parametrize("wrapper", ["model", "state_dict", None])
def test_a_state_dict_is_found_wrapped_or_bare(tmp_path, legacy, wrapper):
    path = saved(tmp_path, {wrapper: tensors()} if wrapper else tensors(), legacy)
    assert_reads_as_torch(path, wrapper)
    assert read_checkpoint(path).format == ("legacy" if legacy else "zip")
    assert read_checkpoint(path).size == path.stat().st_size


@either_format
def test_what_stands_beside_the_state_dict_is_left_and_noted(tmp_path, legacy):
    path = saved(
        tmp_path,
        {"model": tensors(), "meta": {"epoch": 3, "lr": 1e-4, "name": "x"}, "ema": {"x": torch.ones(2)}, "best": 0.5},
        legacy,
    )
    assert_reads_as_torch(path, "model")
    found = read_checkpoint(path)
    assert found.left == {"ema": 1}
    assert "not read, beside the state dict: best, meta (but for its whole numbers)" in found.notes


@either_format
def test_a_state_dict_of_a_module_is_read(tmp_path, legacy):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    assert isinstance(module.state_dict(), OrderedDict)
    assert hasattr(module.state_dict(), "_metadata")
    assert_reads_as_torch(saved(tmp_path, module.state_dict(), legacy))


@either_format
def test_parameters_are_read(tmp_path, legacy):
    assert_reads_as_torch(saved(tmp_path, {"model": dict(torch.nn.Linear(3, 4).named_parameters())}, legacy), "model")


@either_format
def test_parameters_with_attributes_are_read(tmp_path, legacy):
    weight = torch.nn.Parameter(torch.ones(2, 3))
    weight.no_decay = True
    assert_reads_as_torch(saved(tmp_path, {"model": {"w": weight}}, legacy), "model")


@either_format
def test_tensors_with_attributes_are_read(tmp_path, legacy):
    weight = torch.ones(2, 3)
    weight.note = "frozen"
    assert_reads_as_torch(saved(tmp_path, {"model": {"w": weight}}, legacy), "model")


@either_format
def test_tensors_that_are_not_contiguous_keep_their_stride(tmp_path, legacy):
    base = torch.arange(24.0).reshape(2, 3, 4)
    odd = {"t": base[0].T, "permuted": base.permute(2, 0, 1), "step": base[:, ::2, 1:], "column": base[:, 1, 2]}
    assert_reads_as_torch(saved(tmp_path, {"model": odd}, legacy), "model")


@either_format
def test_views_share_one_storage(tmp_path, legacy):
    base = torch.arange(30.0).reshape(5, 6)
    path = saved(tmp_path, {"all": base, "rows": base[2:4], "row": base[4], "same": base}, legacy)
    assert_reads_as_torch(path)
    index = read_checkpoint(path).tensors
    assert index["rows"].offset - index["all"].offset == 2 * 6 * 4
    assert index["same"].offset == index["all"].offset


@either_format
def test_zero_size_and_scalar_tensors_are_read(tmp_path, legacy):
    assert_reads_as_torch(
        saved(
            tmp_path,
            {"none": torch.zeros(0), "rows": torch.zeros(0, 5), "one": torch.tensor(1.5), "flag": torch.tensor(True)},
            legacy,
        )
    )


# What torch itself cannot read back from its older format.
NOT_IN_LEGACY = ("float8_e4m3fn", "float8_e5m2", "uint16", "uint32", "uint64")


@pytest.mark.parametrize(
    ("name", "legacy"), [(n, old) for n in DTYPES for old in (False, True) if not (old and n in NOT_IN_LEGACY)]
)
def test_each_dtype_is_read(tmp_path, legacy, name):
    dtype = getattr(torch, name)
    values = torch.arange(12) % 2 if name == "bool" else torch.arange(12)
    assert_reads_as_torch(
        saved(tmp_path, {"model": {"x": values.to(dtype).reshape(3, 4), "y": torch.ones(2)}}, legacy), "model"
    )


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_each_pickle_protocol_is_read(tmp_path, protocol):
    assert_reads_as_torch(saved(tmp_path, {"model": tensors()}, pickle_protocol=protocol), "model", weights_only=False)


def test_a_zip_with_another_root_folder_is_read(tmp_path):
    path = tmp_path / "very_special name.ckpt"
    torch.save({"model": tensors()}, path)
    assert_reads_as_torch(path, "model")


@pytest.mark.parametrize(
    ("name", "compression"),
    [
        ("file/about/model.json", zipfile.ZIP_STORED),
        ("file/about/model.json", zipfile.ZIP_DEFLATED),
        ("training_config.yaml", zipfile.ZIP_STORED),
        ("__MACOSX/file/._data.pkl", zipfile.ZIP_DEFLATED),
        ("file/.DS_Store", zipfile.ZIP_STORED),
        ("file/", zipfile.ZIP_STORED),
    ],
)
def test_what_others_put_into_the_archive_is_passed_over(tmp_path, name, compression):
    path = saved(tmp_path, {"model": tensors()})
    with zipfile.ZipFile(path, "a", compression) as archive:
        archive.writestr(name, "" if name.endswith("/") else '{"a": 1}' * 100)
    assert_index_is(path, tensors())


def test_zip_records_are_the_bytes_of_the_archive(tmp_path):
    path = saved(tmp_path, tensors())
    record = next(r for r in read_checkpoint(path).records if r.name.endswith("data.pkl"))
    assert path.read_bytes()[record.offset : record.offset + record.nbytes] == read_member(path, "data.pkl")


def test_safetensors_are_read(tmp_path):
    path = tmp_path / "file.safetensors"
    everything = {n: torch.arange(6).to(getattr(torch, n)).reshape(2, 3) for n in DTYPES if n not in ("complex128",)}
    everything |= {"scalar": torch.tensor(2.5), "none": torch.zeros(0, 4)}
    save_file(everything, path, metadata={"format": "pt"})
    index = read_checkpoint(path)
    assert set(index.tensors) == set(everything)
    assert (index.format, index.metadata) == ("safetensors", {"format": "pt"})
    for key, tensor in everything.items():
        assert index.tensors[key].dtype == str(tensor.dtype).removeprefix("torch.")
        assert index.tensors[key].shape == tuple(tensor.shape)
        assert stored_bytes(path, index.tensors[key]) == as_bytes(tensor)


LEFTOVERS = {
    "args": argparse.Namespace(lr=1e-4, data="x"),
    "path": pathlib.Path("runs/1"),
    "numpy": {"loss": np.float64(0.5), "step": np.int64(3), "curve": np.arange(3.0)},
    "defaults": collections.defaultdict(list, {"lr": [0.1], "step": [1, 2]}),
    "queues": [collections.deque([1]), collections.deque([1, 2], maxlen=3)],
    "containers": [{"a", "b"}, (1, 2.5, None, True), b"bytes", torch.Size([2, 3]), torch.float16, torch.device("cpu")],
}


@either_format
@pytest.mark.parametrize("kind", LEFTOVERS)
def test_leftovers_of_a_training_run_do_no_harm(tmp_path, legacy, kind):
    path = saved(tmp_path, {"model": tensors(), "meta": LEFTOVERS[kind]}, legacy)
    assert_reads_as_torch(path, "model", weights_only=False)


@either_format
def test_the_optimizer_and_the_scheduler_do_no_harm(tmp_path, legacy):
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
    content = {
        "model": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
    }
    assert_reads_as_torch(saved(tmp_path, content, legacy), "model")


def test_entries_of_the_state_dict_that_are_no_tensors_are_left_and_noted(tmp_path):
    path = saved(tmp_path, {"model": tensors() | {"epoch": 3}})
    assert_index_is(path, tensors())
    assert any("epoch" in note for note in read_checkpoint(path).notes)


def test_a_negated_view_is_not_read_with_the_wrong_sign(tmp_path):
    # torch keeps the sign of such a view beside its bytes.
    negated = torch.complex(torch.ones(3), torch.ones(3)).conj().imag
    assert negated.is_neg()
    path = saved(tmp_path, {"x": negated})
    try:
        entry = read_checkpoint(path).tensors["x"]
    except Sam3LiteError:
        return
    assert stored_bytes(path, entry) == as_bytes(negated.resolve_neg())


@either_format
def test_what_training_leaves_beside_the_weights_is_passed_over(tmp_path, legacy):
    beside = {
        "when": datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc),
        "took": datetime.timedelta(hours=3),
        "torch": torch.__version__,
        "last": collections.deque([1.0, 2.0], 5),
        "rows": slice(0, 4),
        "seed": 2**100,
        "generator": random.Random(1).getstate(),
    }
    found = read_checkpoint(saved(tmp_path, {"model": tensors(), "meta": beside}, legacy))
    assert found.tensors.keys() == tensors().keys()
