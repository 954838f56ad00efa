"""An index of shards and its shards as one checkpoint, folders, and one shard alone."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file
from support.checkpoints import as_bytes, tensors, write_shards

from sam3lite_convert.checkpoint.file_set import is_index, shard_of, stem_of
from sam3lite_convert.checkpoint.hashing import SourceHash, damaged_records, sha256_of_checkpoint
from sam3lite_convert.checkpoint.nonfinite import not_finite
from sam3lite_convert.checkpoint.reader import open_source, read_checkpoint
from sam3lite_convert.checkpoint.tensor_reader import read_tensor
from sam3lite_convert.errors import CannotRun, Sam3LiteError, UnsoundPlan, Untrusted

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
FORMS = {"safetensors": ("safetensors", False), "bin": ("bin", False), "bin of old": ("bin", True)}


@pytest.fixture
def index(tmp_path) -> Path:
    return write_shards(tmp_path / "set", tensors())


def read_all(path: Path) -> dict[str, bytes]:
    found = read_checkpoint(path)
    with open_source(found) as file:
        return {key: read_tensor(file, tensor) for key, tensor in found.tensors.items()}


# ---- read as one ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_shards_are_read_as_torch_reads_them(form, tmp_path):
    kind, legacy = FORMS[form]
    index = write_shards(tmp_path / "set", tensors(), kind, legacy)
    truth = {key: as_bytes(tensor) for key, tensor in tensors().items()}
    assert read_all(index) == read_all(index.parent) == truth
    found = read_checkpoint(index)
    assert found.path == index and len(found.shards) == 2
    assert found.size == sum(path.stat().st_size for path in index.parent.iterdir())
    assert {(k, t.dtype, t.shape) for k, t in found.tensors.items()} == {
        (k, str(t.dtype).removeprefix("torch."), tuple(t.shape)) for k, t in tensors().items()
    }


def test_no_shard_is_read_into_memory(tmp_path):
    """Shards of 2 GiB, which hold nothing on the disk."""
    places, size = {}, 2 << 30
    for n, name in enumerate((FIRST, SECOND)):
        header = json.dumps({f"t{n}": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
        with (tmp_path / name).open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + size)
            file.seek(-1, 2)
            file.write(bytes([n + 1]))
        places[f"t{n}"] = name
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    tracemalloc.start()
    found = read_checkpoint(tmp_path)
    with open_source(found) as file:
        for n in (0, 1):
            file.seek(found.tensors[f"t{n}"].extent[1] - 1)
            assert file.read(1) == bytes([n + 1])
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_values_that_are_not_finite_are_found_in_the_second_shard(tmp_path):
    for kind in ("safetensors", "bin"):
        index = write_shards(tmp_path / kind, tensors() | {"z": torch.tensor([1.0, float("nan")])}, kind)
        found = read_checkpoint(index)
        assert list(not_finite(found, found.tensors.values())) == ["z"]


def test_a_damaged_entry_is_named_with_its_shard(tmp_path):
    state = tensors() | {"z": torch.full((64,), 1.5)}
    index = write_shards(tmp_path / "set", state, "bin")
    shard = index.parent / "pytorch_model-00002-of-00002.bin"
    data = bytearray(shard.read_bytes())
    data[data.index(as_bytes(state["z"]))] ^= 1
    shard.write_bytes(data)
    found = read_checkpoint(index)
    (damaged,) = damaged_records(found, found.records)
    assert damaged.startswith(shard.name + ": ")


def test_a_shard_that_changes_while_it_is_read_is_noticed(index):
    found = read_checkpoint(index)
    with pytest.raises(Untrusted, match=SECOND), open_source(found):
        save_file({"n": torch.tensor(8)}, index.parent / SECOND)


# ---- the hash ---------------------------------------------------------------------------------------


def test_the_hash_is_that_of_what_sha256sum_prints(index):
    lines = [f"{hashlib.sha256((index.parent / n).read_bytes()).hexdigest()}  {n}" for n in (FIRST, SECOND, index.name)]
    truth = hashlib.sha256(("\n".join(lines) + "\n").encode()).hexdigest()
    assert sha256_of_checkpoint(index) == sha256_of_checkpoint(index.parent) == truth
    with SourceHash(index.parent) as hashing:
        hashing.check(read_checkpoint(index))
        assert hashing.result()[0] == truth
    assert [f"{digest}  {name}" for name, digest in sorted(hashing.files.items())] == lines


# ---- what is refused --------------------------------------------------------------------------------


def change(index: Path, **fields: object) -> None:
    found = json.loads(index.read_text())
    index.write_text(json.dumps(found | fields))


def places(index: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads(index.read_text())["weight_map"]
    return found


def put(index: Path, shard: str, key: str | None = None, **more: torch.Tensor) -> None:
    state = {k: t.clone() for k, t in load((index.parent / shard).read_bytes()).items() if k != key}
    save_file(state | more, index.parent / shard)


def link_out(index: Path) -> None:
    (index.parent / SECOND).rename(index.parent.parent / "elsewhere.safetensors")
    (index.parent / SECOND).symlink_to(index.parent.parent / "elsewhere.safetensors")


def name_shard(name: str) -> Callable[[Path], None]:
    def made(index: Path) -> None:
        (index.parent / SECOND).rename(index.parent.parent / "outside.safetensors")
        change(index, weight_map=places(index) | {"n": name.format(index.parent.parent)})

    return made


REFUSED: dict[str, tuple[Callable[[Path], object], type[Sam3LiteError], str]] = {
    "a shard is missing": (lambda i: (i.parent / SECOND).unlink(), CannotRun, f"{SECOND}, of 2, which is not there"),
    "a shard lacks a tensor": (lambda i: put(i, SECOND, "n"), Untrusted, f"n the index says {SECOND}, but it is not"),
    "two shards hold one": (
        lambda i: put(i, FIRST, n=torch.tensor(7)), Untrusted, f"n is in {FIRST} and also in {SECOND}"),
    "the index omits one": (
        lambda i: put(i, SECOND, further=torch.ones(2)), Untrusted, f"further is in {SECOND} but not in the index"),
    "the index names the other shard": (
        lambda i: change(i, weight_map=places(i) | {"n": FIRST}), Untrusted, f"says {FIRST}, but it is in {SECOND}"),
    "a shard above": (name_shard("../outside.safetensors"), Untrusted, "lies outside of its folder; it was not read"),
    "an absolute path": (name_shard("{}/outside.safetensors"), Untrusted, "lies outside of its folder"),
    "a link out": (link_out, Untrusted, f"{SECOND}, a link to a file outside"),
    "no JSON": (lambda i: i.write_text("{"), Untrusted, "cannot be read as JSON"),
    "no object": (lambda i: i.write_text("[]"), Untrusted, "is not a JSON object"),
    "no weight_map": (lambda i: i.write_text("{}"), Untrusted, "names no tensors"),
    "numbers for names": (lambda i: change(i, weight_map={"n": 7}), Untrusted, "weight_map cannot be read"),
    "a name of two lines": (lambda i: change(i, weight_map={"a\nb": FIRST}), Untrusted, "invalid name"),
    "too large": (lambda i: i.write_text(" " * (9 << 20)), Untrusted, "too large for an index"),
    "two formats": (
        lambda i: torch.save(load((i.parent / SECOND).read_bytes()), i.parent / SECOND), UnsoundPlan,
        "several formats: safetensors, zip"),
    "entries that differ": (
        lambda i: [
            torch.save({w: load((i.parent / n).read_bytes())}, i.parent / n)
            for n, w in ((FIRST, "model"), (SECOND, "ema"))
        ], UnsoundPlan, "several entries: ema, model"),
    "an LFS pointer for a shard": (
        lambda i: (i.parent / SECOND).write_text("version https://git-lfs.github.com/spec/v1\n"), Untrusted,
        f"{SECOND}: this is a Git LFS pointer"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_an_index_and_shards_that_do_not_go_together_are_refused(name, index):
    spoil, kind, says = REFUSED[name]
    read_checkpoint(index)
    spoil(index)
    for path in (index, index.parent):
        with pytest.raises(kind) as fault:
            read_checkpoint(path)
        assert says in fault.value.message and fault.value.message.count("\n") == 0
        assert fault.value.exit_code == {CannotRun: 2, UnsoundPlan: 3, Untrusted: 4}[kind]


def test_a_link_into_the_blobs_of_the_hubs_cache_is_no_way_out(tmp_path):
    snapshot, blobs = tmp_path / "models--a--b/snapshots/abc", tmp_path / "models--a--b/blobs"
    snapshot.parent.mkdir(parents=True)
    index = write_shards(snapshot, tensors())
    blobs.mkdir()
    for n, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(blobs / str(n))
        path.symlink_to(f"../../blobs/{n}")
    assert len(read_all(index)) == len(read_all(snapshot)) == len(tensors())


def test_a_hostile_shard_runs_nothing(tmp_path):
    index = write_shards(tmp_path / "set", tensors(), "bin")

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/evil",)

    torch.save({"n": Evil()}, index.parent / "pytorch_model-00002-of-00002.bin")
    with pytest.raises(Untrusted) as fault:
        read_checkpoint(index)
    assert re.match(r"pytorch_model-00002-of-00002\.bin: .*posix\.system", fault.value.message)
    assert not (tmp_path / "evil").exists()


# ---- one shard --------------------------------------------------------------------------------------


def test_one_shard_is_named_with_its_index(index):
    with pytest.raises(UnsoundPlan, match=f"one of 2 shards of a checkpoint. Give their index: {index}"):
        read_checkpoint(index.parent / FIRST)
    index.unlink()
    for path in (index.parent / SECOND, index.parent):
        with pytest.raises(UnsoundPlan, match=r"one of 2 shards.*model\.safetensors\.index\.json.* is not beside it"):
            read_checkpoint(path)


def test_the_only_shard_of_one_is_a_file(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model-00001-of-00001.safetensors")
    assert list(read_all(tmp_path / "model-00001-of-00001.safetensors")) == list(read_all(tmp_path)) == ["a"]


@pytest.mark.parametrize(
    ("name", "total", "index"),
    [
        ("pytorch_model-00002-of-00007.bin", 7, "pytorch_model.bin.index.json"),
        ("checkpoint-3-of-12.pt", 12, "checkpoint.pt.index.json"),
        ("model-00001-of-00002.fp16.safetensors", 2, "model.safetensors.index.fp16.json"),
        ("model.fp16-00001-of-00002.safetensors", 2, "model.fp16.safetensors.index.json"),
    ],
)
def test_what_the_name_of_a_shard_says(name, total, index):
    assert shard_of(name) == (total, index) and is_index(index)


def test_what_is_no_shard_and_no_index():
    for name in ("model.safetensors", "a-1-of-2.json", "1-of-2.pt", "epoch-1-of-x.pt"):
        assert shard_of(name) is None
    assert not is_index("index.json") and not is_index("config.json")
    assert stem_of("model.safetensors.index.json") == stem_of("model.safetensors") == "model"
    assert stem_of("s0.v2.pt") == "s0.v2"


# ---- folders ----------------------------------------------------------------------------------------


def test_a_folder_of_one_file_is_that_file(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    for beside in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "README.md", "._model.pt"):
        (tmp_path / beside).write_bytes(b"")
    (tmp_path / "config.json").write_text('{"embed_dim": 8}')  # as PyTorchModelHubMixin writes it
    assert read_checkpoint(tmp_path).path == tmp_path / "model.safetensors"
    assert sha256_of_checkpoint(tmp_path) == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()


FOLDERS: dict[str, tuple[dict[str, bytes], type[Sam3LiteError], str]] = {
    "two files": ({"a.pt": b"", "model.safetensors": b""}, CannotRun, r"holds 2 checkpoints: a\.pt, model\.safetens"),
    "index and file": (
        {"model.safetensors": b"", "model.safetensors.index.json": b'{"weight_map": {"a": "part"}}'}, CannotRun,
        r"2 checkpoints: model\.safetensors\.index\.json, model\.safetensors\. Give one"),
    "nothing": ({}, CannotRun, "is a folder, not a checkpoint file"),
    "text alone": ({"README.md": b""}, CannotRun, "is a folder, not a checkpoint file, and holds none"),
    "state of a run alone": ({"optimizer.pt": b""}, Untrusted, "the file is empty"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_without_one_checkpoint_is_refused(name, tmp_path):
    files, kind, says = FOLDERS[name]
    for file, data in files.items():
        (tmp_path / file).write_bytes(data)
    with pytest.raises(kind) as fault:
        read_checkpoint(tmp_path)
    assert re.search(says, fault.value.message)


def test_shards_under_names_of_their_own_are_those_of_the_index(tmp_path):
    index = write_shards(tmp_path / "set", tensors())
    for name in (FIRST, SECOND):
        (index.parent / name).rename(index.parent / name.replace("-of-", "_"))
    change(index, weight_map={k: n.replace("-of-", "_") for k, n in places(index).items()})
    assert len(read_all(index.parent)) == len(tensors())


def test_a_folder_of_the_layout_original_is_a_source(index):
    (index.parent / "conversion.json").write_text('{"layout": "original"}')
    (index.parent / "config.json").write_text('{"model_type": "sam3lite_original"}')
    assert len(read_all(index.parent)) == len(tensors())
