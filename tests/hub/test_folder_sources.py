"""A converted folder on the Hub as a checkpoint: whole, by ranges, and offline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.folders import PROJECTION as PROJECTION_LAYER
from support.folders import QKV, assert_proven, config, convert, receipt, sam3lite, same, snapshot, tiny_state, write
from support.hub_files import one_line

import sam3lite_convert as s3

REPO = "someone/converted"
MINE = f"hf://{REPO}"
TEXT = ("--component", "text")
PROJECTION = "text_projection.safetensors"
MODEL = "model.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("original"), tiny_state())


@pytest.fixture(scope="module")
def text(original, tmp_path_factory) -> Path:
    return convert(original, tmp_path_factory.mktemp("text") / "t", "--layout", "transformers", *TEXT)


@pytest.fixture(scope="module")
def folder(original, tmp_path_factory) -> Path:
    return convert(original, tmp_path_factory.mktemp("whole") / "w", "--layout", "transformers")


def upload(hub, folder: Path) -> None:
    hub.add_repo(REPO, {path.name: path for path in folder.iterdir()})


def test_a_repository_is_a_checkpoint(original, folder, hub, tmp_path):
    upload(hub, folder)
    found = sam3lite("inspect", MINE, "--json").json
    assert found["layout"] == "transformers" and found["fetched"]["bytes"] < 400_000
    assert "as in SAM3" not in str(found["notes"])  # config.json was read
    packed = convert(original, tmp_path / "packed")
    theirs = convert(MINE, tmp_path / "theirs", "--verify")
    assert (theirs / MODEL).read_bytes() == (packed / MODEL).read_bytes() and config(theirs) == config(packed)
    source = receipt(theirs)["source"]
    assert (source["repo"], source["file"], source["layout"]) == (REPO, MODEL, "transformers")
    assert source["sha256"] == source["etag"] == snapshot(folder)[MODEL]
    again = sam3lite("convert", MINE, "--output", tmp_path / "theirs", "--json")
    assert again.json["state"] == "current"


def test_one_tensor_is_read_by_ranges(folder, hub):
    upload(hub, folder)
    assert same(s3.open_checkpoint(MINE).read(QKV), tiny_state()[QKV])
    assert hub.sent("/cdn/") < (folder / MODEL).stat().st_size / 4


def test_the_text_encoder_is_read_by_ranges_with_its_projection(original, text, hub, tmp_path):
    upload(hub, text)
    found = sam3lite("inspect", MINE, "--json").json
    assert found["kind"].startswith("SAM3-LiteText text encoder") and found["shards"] == 2
    assert sam3lite("parity", MINE, "--partial", "--json").json["verdict"] == "exact"
    theirs = convert(MINE, tmp_path / "theirs", "--layout", "original", *TEXT)
    held = tiny_state()
    found = load_file(theirs / MODEL)
    assert len(found) > 50 and all(same(tensor, held[key]) for key, tensor in found.items())
    assert set(receipt(theirs)["source"]["files"]) == {MODEL, PROJECTION}
    assert_proven(theirs, text)


def test_a_text_encoder_whose_projection_is_gone_is_refused(text, hub):
    hub.add_repo(REPO, {path.name: path for path in text.iterdir() if path.name != PROJECTION})
    done = sam3lite("convert", MINE, "--output", "out", *TEXT)
    assert PROJECTION in one_line(done, 3)


def test_a_pickle_of_its_tensors_is_read_by_ranges_too(folder, hub, tmp_path):
    """Where its tensors lie in the file is known only when the bytes around them are here."""
    state = load_file(folder / MODEL)
    torch.save(state, tmp_path / "pytorch_model.bin")
    hub.add_repo(REPO, {name.name: name for name in (folder / "config.json", tmp_path / "pytorch_model.bin")})
    held = tiny_state()
    opened = s3.open_checkpoint(MINE)
    for key in (QKV, PROJECTION_LAYER, "detector.backbone.language_backbone.projector.weight"):
        assert same(opened.read(key), held[key].contiguous())
    assert sam3lite("parity", MINE, "--partial", "--json").json["verdict"] == "exact"
    assert hub.sent("/cdn/") < (tmp_path / "pytorch_model.bin").stat().st_size
