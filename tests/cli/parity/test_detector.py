"""sam3lite parity --component detector, on the tiny detector of the real code's recordings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.detector_goldens import case, tiny_weights
from support.folders import convert, edit, edit_config, sam3lite, tensors
from support.parity_runs import errors, strict

from sam3lite_convert.parity.detector.taps import STAGES

RIGHT = {"exact", "within_tolerance"}


@pytest.fixture(scope="module")
def tiny(root):
    """The tiny detector as a checkpoint; its attention has as many heads everywhere as its decoder."""
    path = root / "tiny-detector.pt"
    torch.save({"model": tiny_weights()}, path)
    return path


@pytest.fixture(scope="module")
def folders(tiny, root):
    """layout -> the converted folder; read only."""
    return {
        layout: convert(tiny, root / f"detector-{layout}", "--layout", layout) for layout in ("packed", "transformers")
    }


@pytest.fixture
def bad(folders, tmp_path):
    """layout -> a copy for a test to spoil."""
    return lambda layout: Path(shutil.copytree(folders[layout], tmp_path / f"bad-{layout}"))


def detector(checkpoint: Path, *options: object, code: int = 0) -> Any:
    done = sam3lite("parity", checkpoint, "--component", "detector", "--json", *options)
    assert done.code == code, done
    return strict(done.out)


@pytest.mark.parametrize("layout", ["packed", "transformers"])
@pytest.mark.parametrize("box", [pytest.param((), marks=pytest.mark.stress), ("--box", "20,30,60,50")])
def test_a_right_conversion_is_within_its_noise(tiny, layout, box):
    record = detector(tiny, "--candidate", layout, *box)
    assert record["verdict"] in RIGHT
    assert record["first_divergence"] is None and record["diagnosis"] is None
    assert [s["name"] for s in record["stages"]] == list(STAGES.values())
    assert [t for s in record["stages"] for t in s["taps"]] == [t["name"] for t in record["layers"]]
    assert max(s["floors"] for s in record["stages"]) <= 4
    boxed = {t["name"] for t in record["layers"]} & {"geometry.box_direct", "geometry.box_pooled"}
    assert bool(boxed) == bool(box)
    assert record["inputs"]["size"] == 140 and record["inputs"]["image"] == "built-in picture"
    # The text encoder is equal to the bit, as alone.
    assert all(t["max_abs_diff"] == 0 for t in record["layers"] if t["name"].startswith("text.") and layout == "packed")


def test_a_folder_is_compared(tiny, folders):
    record = detector(tiny, "--converted", folders["packed"])
    assert record["verdict"] in RIGHT and record["candidate"] == "packed"
    assert record["converted"] == str(folders["packed"])


def swapped(held: dict[str, torch.Tensor], start: str) -> dict[str, torch.Tensor]:
    """q and k of an attention exchanged."""
    return {
        f"{start}.{a}_proj.{leaf}": held[f"{start}.{b}_proj.{leaf}"]
        for a, b in (("q", "k"), ("k", "q"))
        for leaf in ("weight", "bias")
    }


ATTENTIONS = {
    "vision_encoder.backbone.layers.2.attention": "trunk.blocks.2",
    "geometry_encoder.layers.1.cross_attn": "geometry.layers.1",
    "detr_encoder.layers.1.self_attn": "encoder.layers.1",
    "detr_decoder.layers.2.vision_cross_attn": "decoder.queries.2",
    "mask_decoder.prompt_cross_attn": "masks.prompt_attention",
}
# In the suite one before the text and the picture meet, and one after.
QUICK = ("vision_encoder.backbone.layers.2.attention", "detr_encoder.layers.1.self_attn")


@pytest.mark.parametrize(
    "start", [start if start in QUICK else pytest.param(start, marks=pytest.mark.stress) for start in ATTENTIONS]
)
def test_swapped_q_and_k_are_found_at_their_layer(start, tiny, bad):
    folder = bad("packed")
    edit(folder, swapped(tensors(folder), start))
    record = detector(tiny, "--converted", folder, code=1)
    assert record["verdict"] == "differs" and record["first_divergence"] == ATTENTIONS[start]
    faulty = {t["target"] for t in record["diagnosis"]["tensors"] if t["fault"]}
    assert {f"{start}.q_proj.weight", f"{start}.k_proj.weight"} <= faulty
    first = next(t for t in record["layers"] if t["name"] == ATTENTIONS[start])
    assert first["isolated_max_abs_diff"] == pytest.approx(first["max_abs_diff"], rel=0.5)


def test_debug_intermediates_shows_every_tap(tiny):
    done = sam3lite("parity", tiny, "--component", "detector", "--debug-intermediates")
    assert done.code == 0
    for words in ("vision trunk", "trunk.blocks.3", "decoder.presence_logit.2", "outputs.pred_masks", "verdict: "):
        assert words in done.out


def test_a_picture_of_ones_own(tiny, tmp_path):
    pixels = np.random.Generator(np.random.PCG64(1)).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    np.save(tmp_path / "mine.npy", pixels)
    record = detector(tiny, "--image", tmp_path / "mine.npy", "--size", 56, "--seed", 3)
    assert record["verdict"] in RIGHT
    assert (record["inputs"]["image"], record["inputs"]["size"]) == ("mine.npy", 56)


def test_the_page(tiny, tmp_path):
    page = tmp_path / "page.html"
    record = detector(tiny, "--report", page)
    assert "pictures" not in record or record["pictures"] is None
    text = page.read_text()
    assert "data:image/png;base64," in text and "vision trunk" in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--size", 100], "multiple of 14"),
        (["--size", 14], "from 28 on"),
        (["--box", "1,2,3"], "a box is four numbers"),
        (["--box", "1,2,0,3"], "must be greater than 0"),
        (["--box", "9000,2,1,3"], "outside the picture"),
        (["--prompt", "a", "--prompt", "b"], "takes one --prompt"),
        (["--save-activations", "x.st"], "--save-activations compares the text encoder alone"),
        (["--as-used", "--box", "1,2,3,4"], "leave out --box"),
        (["--dtype", "float16"], "--dtype compares the text encoder alone"),
        (["--device", "mps"], "no such device"),
        (["--candidate", "original"], "no encoder for the layout"),
        (["--image", "no.png"], "no.png"),
    ],
)
def test_what_does_not_go_together_is_refused(tiny, options, words):
    done = sam3lite("parity", tiny, "--component", "detector", *options)
    assert words in errors(done, 2)


@pytest.mark.stress
def test_the_self_test_finds_every_fault_that_these_inputs_show(tiny):
    record = strict(sam3lite("parity", tiny, "--component", "detector", "--self-test", "--json").out)
    assert record["verdict"] == "passed" and record["counts"]["missed"] == 0
    assert record["counts"]["found"] > 300


def test_options_of_the_detector_need_it(tiny):
    assert "--size needs --component detector" in errors(sam3lite("parity", tiny, "--size", 56), 2)


def test_a_text_encoder_alone_has_no_detector(s0, good):
    assert "holds the text encoder alone" in errors(
        sam3lite("parity", s0, "--component", "detector", "--converted", good["packed"]), 2
    )
    assert "6 components missing from the file" in errors(sam3lite("parity", s0, "--component", "detector"), 3)


def test_an_original_with_nan_is_refused(tiny, tmp_path):
    weights = dict(tiny_weights())
    key = "detector.transformer.encoder.layers.0.linear1.bias"
    weights[key] = torch.full_like(weights[key], torch.nan)
    torch.save(weights, tmp_path / "nan.pt")
    done = sam3lite("parity", tmp_path / "nan.pt", "--component", "detector", "--json")
    assert done.code == 2
    assert json.loads(done.out)["error"]["details"]["tap"] == "encoder.layers.0"


def test_a_config_of_another_detector_is_refused_in_words(tiny, bad):
    folder = bad("packed")
    edit_config(folder, "detr_decoder_config", "num_queries", value=5)
    assert "query" in errors(sam3lite("parity", tiny, "--component", "detector", "--converted", folder), 3)


# ---- the four faults that ports of this model really had


def test_eps_of_the_librarys_default_is_named(root, tmp_path):
    """The ViT's LayerNorms at 1e-6, on the real code's weights with small variances."""
    checkpoint = tmp_path / "small.pt"
    torch.save(case("small").weights(), checkpoint)
    folder = convert(checkpoint, tmp_path / "folder", "--layout", "transformers")
    edit_config(folder, "vision_config", "backbone_config", "layer_norm_eps", value=1e-6)
    record = detector(checkpoint, "--converted", folder, code=1)
    assert record["first_divergence"] == "trunk.ln_pre"
    assert "eps 1e-06" in record["diagnosis"]["cause"]


@pytest.mark.parametrize("layout", ["packed", "transformers"])
def test_a_neck_level_too_few_is_named(layout, tiny, bad):
    """Three levels of which the reader drops the last, as of SAM3.1: the next finer one reaches the encoder."""
    folder = bad(layout)
    edit(folder, {key: None for key in tensors(folder) if ".fpn_layers.3." in key})
    edit_config(folder, "vision_config", "scale_factors", value=[4.0, 2.0, 1.0])
    edit_config(folder, "vision_config", "backbone_feature_sizes", value=[[40, 40], [20, 20], [10, 10]])
    if layout == "packed":  # our own reader drops the fourth level, not the last
        assert detector(tiny, "--converted", folder)["verdict"] in RIGHT
        return
    done = sam3lite("parity", tiny, "--component", "detector", "--converted", folder)
    assert "another level of the neck reaches it" in errors(done, 3)


def test_a_mask_into_the_text_encoder_is_named(tiny, monkeypatch):
    from sam3lite_convert.packed_encoder import PackedAttention

    forward = PackedAttention.forward

    def masked(self: PackedAttention, x: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        padding = torch.zeros(x.shape[1]).masked_fill(torch.arange(x.shape[1]) > 2, -torch.inf)  # start, a word, end
        return forward(self, x, padding)

    monkeypatch.setattr(PackedAttention, "forward", masked)
    record = detector(tiny, code=1)
    assert record["first_divergence"] == "text.layers.1"
    assert "padding" in record["diagnosis"]["cause"]


def test_points_renamed_onto_boxes_are_named(tiny, bad):
    folder = bad("packed")
    weights = tiny_weights()
    start = "geometry_encoder.{}_direct_project.bias"
    edit(folder, {start.format("boxes"): weights["detector." + start.format("points")]})
    record = detector(tiny, "--converted", folder, "--box", "20,30,60,50", code=1)
    assert record["first_divergence"] == "geometry.box_direct"
    assert "points_direct_project" in record["diagnosis"]["cause"]
