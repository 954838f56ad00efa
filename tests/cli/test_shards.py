"""Every command on a checkpoint in shards: its index, or its folder, in place of one file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save_file
from support.checkpoints import write_shards
from support.folders import PROJECTION, QKV, flip_bit, receipt, sam3lite, same, tiny_state, write

import sam3lite_convert as s3

TEXT = ("--component", "text")
SECOND = "model-00002-of-00002.safetensors"


@pytest.fixture(scope="module")
def state():
    """The text encoder alone, with a table that is dropped."""
    text = {k: t for k, t in tiny_state().items() if "language_backbone" in k}
    return {**text, "tracker.dropped": torch.zeros(3)}


@pytest.fixture(scope="module")
def plain(state, tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("plain"), state, wrapper=None)


@pytest.fixture(scope="module")
def made(plain, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "out"
    assert sam3lite("convert", plain, "--output", folder, *TEXT).code == 0
    return folder


@pytest.fixture(params=["safetensors", "bin"])
def index(request, state, tmp_path) -> Path:
    return write_shards(tmp_path / "set", state, request.param)


@pytest.fixture
def shards(state, tmp_path) -> Path:
    """The folder of shards of safetensors."""
    return write_shards(tmp_path / "set", state).parent


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {key: t for path in folder.glob("*.safetensors") for key, t in load_file(path).items()}


def change(shards: Path, begin: str) -> None:
    """Flip a bit of the first tensor of the second shard whose key begins so."""
    held = load((shards / SECOND).read_bytes())
    key = min(key for key in held if key.startswith(begin))
    save_file(held | {key: flip_bit(held[key])}, shards / SECOND)


def test_shards_are_converted_to_the_bytes_of_the_plain_file(index, made, tmp_path):
    for name, checkpoint in (("of-index", index), ("of-folder", index.parent)):
        done = sam3lite("convert", "--checkpoint", checkpoint, "--output", tmp_path / name, *TEXT, "--json")
        assert done.code == 0, done
        assert (tmp_path / name / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()
        proof = sam3lite("verify", tmp_path / name, checkpoint, "--json")
        assert proof.json["verdict"] == "proven" and not [n for n in proof.json["notes"] if "another source" in n]
        again = sam3lite("convert", checkpoint, "--output", tmp_path / name, *TEXT, "--json")
        assert again.json["state"] == "current", again
    assert receipt(tmp_path / "of-index")["source"] == receipt(tmp_path / "of-folder")["source"]


def test_the_receipt_names_every_file(shards, tmp_path):
    sam3lite("convert", shards, "--output", tmp_path / "out", *TEXT)
    source = receipt(tmp_path / "out")["source"]
    digests = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in shards.iterdir()}
    assert source["files"] == digests and source["name"] == "model.safetensors.index.json"
    assert source["size"] == sum(p.stat().st_size for p in shards.iterdir())
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    assert source["sha256"] == hashlib.sha256(lines.encode()).hexdigest()


@pytest.mark.parametrize(("begin", "verdict"), [("detector.", "mismatch"), ("tracker.", "proven")])
def test_a_shard_that_was_changed_since_is_noticed(begin, verdict, shards, tmp_path):
    sam3lite("convert", shards, "--output", tmp_path / "out", *TEXT)
    change(shards, begin)
    proof = sam3lite("verify", tmp_path / "out", shards, "--json").json
    assert proof["verdict"] == verdict
    assert [n for n in proof["notes"] if "names another source file" in n and n.endswith(f"; {SECOND} differs")]
    again = sam3lite("convert", shards, "--output", tmp_path / "out", *TEXT)
    assert again.code == 2 and "it was converted from another file" in again.err


def test_a_missing_shard_is_said_before_what_an_earlier_run_left(shards, tmp_path):
    sam3lite("convert", shards, "--output", tmp_path / "out", *TEXT)
    (shards / SECOND).unlink()
    done = sam3lite("convert", shards, "--output", tmp_path / "out", *TEXT)
    assert done.code == 2 and f"names the shard {SECOND}, of 2, which is not there" in done.err


def test_another_set_of_the_same_tensors_is_another_source(shards, state, tmp_path):
    sam3lite("convert", shards, "--output", tmp_path / "out", *TEXT)
    other = write_shards(tmp_path / "other", dict(reversed(state.items())))
    proof = sam3lite("verify", tmp_path / "out", other, "--json").json
    assert proof["verdict"] == "proven" and any("names another source file" in note for note in proof["notes"])


def test_inspect_says_how_many_shards(index, plain):
    one, other = (sam3lite("inspect", name, "--json").json for name in (plain, index))
    assert (one["shards"], other["shards"]) == (1, 2)
    for field in ("architecture", "components", "counts", "dtypes", "prefix"):
        assert one[field] == other[field]
    assert " in 2 shards, " in sam3lite("inspect", index.parent).out


def test_explain_parity_and_record_read_the_shards(index, made, plain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sam3lite("explain", index, QKV, *TEXT).out == sam3lite("explain", plain, QKV, *TEXT).out
    done = sam3lite("parity", index, "--converted", made, "--json")
    assert done.json["verdict"] == "exact" and done.code == 0
    assert sam3lite("record", index.parent, "--output", "reference.safetensors").code == 0
    taps = {name.removeprefix("reference."): value for name, value in load_file("reference.safetensors").items()}
    save_file(taps, "mine.safetensors")  # as a port would dump them
    judged = sam3lite("judge", "mine.safetensors", index, "--json")
    assert judged.code == 0 and judged.json["verdict"] == "exact"
    for checkpoint, name in (
        (index.parent, "set-fingerprint.json"),
        (index, f"{index.name.split('.')[0]}-fingerprint.json"),
    ):
        assert sam3lite("record", checkpoint, "--fingerprint").code == 0 and Path(name).exists()


def test_the_library_reads_them(index, state):
    found = s3.open_checkpoint(index.parent)
    assert found.tensors.keys() == state.keys()
    assert same(found.read(PROJECTION), state[PROJECTION])
    assert len(s3.make_plan(found, component="text").state_dict()) > 100


def test_the_default_output_is_named_after_the_folder(shards, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sam3lite("convert", "set", *TEXT, "--json").json["output"] == "converted/set-packed-text"
    monkeypatch.chdir(shards)
    assert sam3lite("convert", ".", *TEXT, "--dry-run", "--json").json["output"] == "converted/set-packed-text"


def test_a_cast_and_a_renamed_wrapper(state, made, tmp_path):
    """What does not copy bytes, and names that a spelling takes off."""
    index = write_shards(tmp_path / "set", {f"module.{k}": t for k, t in state.items()})
    done = sam3lite("convert", index, "--output", tmp_path / "out", *TEXT, "--dtype", "bfloat16", "--verify", "--json")
    assert done.code == 0 and done.json["verification"]["verdict"] == "proven"


def test_one_shard_is_refused_and_a_converted_folder_in_shards_is_a_checkpoint(shards, plain, tmp_path):
    done = sam3lite("convert", shards / SECOND, "--output", tmp_path / "out")
    assert done.code == 3 and "one of 2 shards" in done.err and "model.safetensors.index.json" in done.err
    small = ("--max-shard-size", "200kB")
    ours, again = tmp_path / "ours", tmp_path / "again"
    sam3lite("convert", plain, "--output", ours, "--layout", "transformers", *TEXT, *small)
    assert sam3lite("parity", ours, "--json").json["verdict"] == "exact"
    done = sam3lite("inspect", min(ours.glob("model-00001-of-*.safetensors")))
    assert done.code == 3 and f"Give their index: {ours / 'model.safetensors.index.json'}" in done.err
    for name in (ours, ours / "model.safetensors.index.json"):
        done = sam3lite("convert", name, "--output", again, "--layout", "transformers", *TEXT, *small, "--overwrite")
        assert done.code == 0, done
        assert tensors_of(again).keys() == tensors_of(ours).keys()
        assert all(same(tensor, tensors_of(again)[key]) for key, tensor in tensors_of(ours).items())
    held = hashlib.sha256((ours / "text_projection.safetensors").read_bytes()).hexdigest()
    assert receipt(again)["source"]["files"]["text_projection.safetensors"] == held
