"""sam3lite record --component detector, and sam3lite judge of what a port of the whole detector computed."""

from __future__ import annotations

import functools
import json
import math
import shlex
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from safetensors import safe_open
from safetensors.torch import load_file
from support.detector_goldens import activations, tiny_weights
from support.folders import sam3lite

from original_ref import load_detector
from original_ref.detector import prepare
from sam3lite_convert.checkpoint.hashing import sha256_of
from sam3lite_convert.parity.detector.taps import STAGES, ordered

Side = dict[str, torch.Tensor]
BOX = ("--box", "20,30,60,50")
# A few taps, and what the recordings of the real code call them. The original is sequence first at some.
THEIRS = {
    "trunk.blocks.3": "backbone.vision_backbone.trunk.blocks.3",
    "neck.0": "backbone.vision_backbone.convs.0",
    "text.layers.1": "backbone.language_backbone.encoder.transformer.1",
    "geometry.box_pooled": "geometry_encoder.boxes_pool_project",
    "geometry.output": "geometry_encoder.encode_norm",
    "encoder.layers.1": "transformer.encoder.layers.1",
    "decoder.rpb_x.1": "transformer.decoder.boxRPB_embed_x@1",
    "decoder.queries.2": "transformer.decoder.layers.2.0",
    "masks.pixel_decoder": "segmentation_head.pixel_decoder",
    "outputs.pred_masks": "output.pred_masks",
    "outputs.pred_boxes_xyxy": "output.pred_boxes_xyxy",
}


@pytest.fixture(scope="module", autouse=True)
def one_command_line():
    """Typer makes the command line anew for every call; once is enough for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", functools.cache(typer.main.get_command))
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("port") / "tiny-detector.pt"
    torch.save({"model": tiny_weights()}, path)
    return path


def record(checkpoint: Path, output: Path, *options: object):
    done = sam3lite("record", checkpoint, "--component", "detector", "--output", output, "--json", *options)
    assert (done.code, done.err) == (0, ""), done
    return done.json


@pytest.fixture(scope="module")
def recorded(tiny):
    """The file with a box, and its document; read only."""
    path = tiny.parent / "r.safetensors"
    return path, record(tiny, path, *BOX)


def about(path: Path):
    with safe_open(path, "pt") as opened:
        return json.loads(opened.metadata()["sam3lite_reference"])


def test_the_file_holds_the_inputs_and_what_the_original_computes_from_them(tiny, recorded):
    path, document = recorded
    held = load_file(path)
    taps = [tap["name"] for tap in document["taps"]]
    inputs = {"input_ids", "image", "picture", "boxes", "box_labels"}
    assert held.keys() == inputs | {f"reference.{tap}" for tap in taps}
    assert held["picture"].dtype == torch.uint8 and torch.equal(prepare(held["picture"], 140), held["image"])
    model = load_detector(tiny_weights(), {"geometry": 4, "encoder": 4, "mask": 4}, None, 140)
    wanted = activations(model, {name: held[name] for name in inputs - {"picture"}})
    for ours, theirs in THEIRS.items():
        assert torch.equal(held[f"reference.{ours}"].flatten(), wanted[theirs].flatten()), ours
    assert {t["name"]: t["shape"] for t in document["taps"]} == {t: [*held[f"reference.{t}"].shape] for t in taps}
    assert document["inputs"]["boxes"] == held["boxes"][0].tolist()
    assert document["size"] == path.stat().st_size and document["checkpoint_sha256"] == sha256_of(tiny)
    said = about(path)
    assert said["component"] == "detector" and list(said["taps"]) == taps
    assert shlex.split(document["next"])[-3:] == [str(tiny), "--name", "my port"]


def test_the_compact_form_is_small_and_says_where_its_values_stand(tiny, recorded, tmp_path):
    document = record(tiny, tmp_path / "c.safetensors", "--compact", *BOX)
    small, whole, said = (
        load_file(tmp_path / "c.safetensors"),
        load_file(recorded[0]),
        about(tmp_path / "c.safetensors"),
    )
    assert {name for name in small if "." not in name} == {"input_ids", "picture", "boxes", "box_labels"}
    assert torch.equal(prepare(small["picture"], 140), whole["image"])
    assert document["compact"] and document["size"] < recorded[1]["size"] / 2
    assert "crc32" in said["positions"]
    for tap, figures in said["taps"].items():
        flat = whole[f"reference.{tap}"].numpy().reshape(-1)
        seed = zlib.crc32(f"{said['variant']}.{tap}".encode())
        where = np.random.Generator(np.random.PCG64(seed)).integers(0, flat.size, 4096)
        values = flat[where] if flat.size > 4096 else flat
        assert np.array_equal(small[f"sampled.{tap}"].numpy(), values), tap
        wide = flat.astype("f8")
        assert figures["l2"] == pytest.approx(float(np.linalg.norm(wide)), rel=1e-12)
        assert (figures["max_abs"], figures["shape"]) == (np.abs(wide).max(), [*whole[f"reference.{tap}"].shape])
        assert figures["mean"] == pytest.approx(wide.mean(), rel=1e-9, abs=1e-12)
        assert figures["std"] == pytest.approx(wide.std(), rel=1e-9)
    # At 1008 pixels, with the layers of the largest released detector, only the picture is larger.
    sizes = {"trunk": 32, "neck": 3, "text": 12, "geometry": 3, "encoder": 6, "decoder": 6}
    assert len(ordered(dict.fromkeys(STAGES, 0) | sizes)) * 4096 * 4 + 3 * 1008**2 + 200_000 < 20e6


def test_without_boxes_their_taps_are_not_there(tiny, tmp_path):
    document = record(tiny, tmp_path / "r.safetensors", "--size", 56, "--seed", 3)
    held = load_file(tmp_path / "r.safetensors")
    assert (
        not {name for name in held if "box" in name}
        - {f"reference.decoder.box_delta.{i}" for i in range(3)}
        - {"reference.outputs.pred_boxes_xyxy"}
    )
    assert document["inputs"]["boxes"] == [] and held["image"].shape == (1, 3, 56, 56)
    assert all(math.prod(tap["shape"]) for tap in document["taps"])


def test_the_text_says_what_each_tap_is_and_what_comes_next(tiny, tmp_path):
    done = sam3lite("record", tiny, "--component", "detector", "--output", tmp_path / "r.safetensors", *BOX)
    assert done.code == 0
    for words in ("seen as 140 x 140", "box        centre", "trunk.blocks.3", "what block 3 returns", "reference.TAP"):
        assert words in done.out
    assert f'sam3lite judge mine.safetensors --checkpoint {shlex.quote(str(tiny))} --name "my port"' in done.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--output", "r.npz"], "must end in .safetensors"),
        (["--fingerprint"], "--fingerprint is of the text encoder alone"),
        (["--batch", 2], "--batch is of the text encoder alone"),
        (["--causal"], "--causal is of the text encoder alone"),
        (["--size", 100], "multiple of 14"),
    ],
)
def test_what_does_not_go_together_is_refused(tiny, options, words):
    done = sam3lite("record", tiny, "--component", "detector", *options)
    assert done.code == 2 and words in done.err


def test_options_of_the_detector_need_it_and_other_files_are_kept(tiny, tmp_path):
    done = sam3lite("record", tiny, "--box", "1,2,3,4", "--output", tmp_path / "r.safetensors")
    assert done.code == 2 and "--box needs --component detector" in done.err
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"mine")
    done = sam3lite("record", tiny, "--component", "detector", "--output", path)
    assert done.code == 2 and "was not overwritten" in done.err and path.read_bytes() == b"mine"
