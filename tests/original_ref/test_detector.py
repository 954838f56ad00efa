"""The reference detector against what the real code computed, and what those recordings do not tell apart."""

from __future__ import annotations

import json
import math
import zlib

import numpy as np
import pytest
import torch
from safetensors import safe_open
from support.detector_goldens import (
    CASES,
    GOLDENS,
    HEADS,
    activations,
    allowed,
    case,
    distance,
    sample,
    tiny_weights,
)
from support.recipe import draw
from support.rows import source_rows
from torch import Tensor

from original_ref import load_detector, rotary_table
from original_ref.detector import found, prepare
from original_ref.detector.decoder import Distances, RelativeBias
from original_ref.detector.geometry import RoiAlign
from original_ref.detector.positions import PositionMap
from original_ref.detector.trunk import TiledPositions, Windows

BLOCK = "detector.backbone.vision_backbone.trunk.blocks"


@pytest.mark.parametrize("name", CASES)
def test_every_boundary_tap_is_the_real_codes(name: str) -> None:
    golden = case(name)
    ours = activations(golden.detector(), golden.inputs())
    assert len(golden.taps) > 95
    off = {tap: distance(tap, value, ours[tap]) for tap, value in golden.taps.items()}
    assert max(off.values()) <= 1, {tap: d for tap, d in off.items() if d > 1}


@pytest.mark.parametrize("name", ["text", "box"])
def test_the_processor_gives_what_the_real_one_gave(name: str) -> None:
    golden = case(name)
    made = prepare(golden.tensors["pre.picture"], 140)
    assert torch.equal(made, golden.tensors["pre.pixel_values"])
    with torch.inference_mode():
        output = golden.detector()(**golden.inputs())
    said = {k.removeprefix("post_"): v for k, v in golden.metadata.items()}
    ours = found(output, int(said["height"]), int(said["width"]), float(said["threshold"]))
    close = {"rtol": 1e-5, "atol": 1e-4}  # mask logits of about 20 differ by 1e-4 where kernels do
    torch.testing.assert_close(ours.scores, golden.tensors["post.scores"], **close)
    torch.testing.assert_close(ours.boxes, golden.tensors["post.boxes"], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(ours.probabilities, golden.tensors["post.masks_logits"][:, 0], **close)
    edge = (golden.tensors["post.masks_logits"][:, 0] - 0.5).abs() < 1e-4
    assert torch.equal(ours.masks | edge, golden.tensors["post.masks"][:, 0] | edge)
    nothing = found(output, 37, 53, 1.0)
    assert nothing.masks.shape == (0, 37, 53) and nothing.boxes.shape == (0, 4)


def full_size_image(size: int) -> Tensor:
    """The picture of the full-size goldens, by the recipe of the reference data."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(f"image-{size}".encode())))
    cells = rng.standard_normal((1, 3, size // 14, size // 14), dtype=np.float32)
    noise = rng.standard_normal((1, 3, size, size), dtype=np.float32)
    return torch.from_numpy(np.kron(cells, np.ones((1, 1, 14, 14), np.float32)) + np.float32(0.3) * noise)


@pytest.mark.full_size
@pytest.mark.parametrize("size", [336, 1008])
def test_the_full_size_detector_is_the_real_one(size: int) -> None:
    state = {k: draw(k, d, s) for k, (d, s) in source_rows("s0").items() if k.startswith("detector.")}
    model = load_detector(state, image_size=size)  # the stored rotary tables are random numbers
    with safe_open(GOLDENS / f"detector_s0_{size}.safetensors", "pt") as held:
        golden = {key: held.get_tensor(key) for key in held.keys()}  # noqa: SIM118
        shapes = {k.removeprefix("shape."): json.loads(v) for k, v in held.metadata().items() if "shape." in k}
    inputs = {"image": full_size_image(size), "input_ids": golden["input.ids"]}
    boxes = {"boxes": golden["input.box.boxes"], "box_labels": golden["input.box.labels"]}
    for run, given in (("text", inputs), ("box", inputs | boxes)):
        taps = [key.removeprefix(f"{run}.values.") for key in golden if key.startswith(f"{run}.values.")]
        ours = activations(model, given, taps)
        for key, values in golden.items():
            if key.startswith(f"{run}.values."):
                tap = key.removeprefix(f"{run}.values.")
                if tap.endswith("position_encoding@3"):
                    continue  # the real code computes a fourth level for nothing
                flat = ours[tap].double().flatten()
                at = np.random.Generator(np.random.PCG64(zlib.crc32(tap.encode()))).integers(0, flat.numel(), 64)
                off = float((flat[torch.from_numpy(at)] - values.double()).norm())
                assert off <= allowed(float(values.double().norm()), 64), (run, tap, off)
                norm = float(golden[f"{run}.stats.{tap}"][2])
                assert abs(float(flat.norm()) - norm) <= allowed(norm, flat.numel()), (run, tap)
            elif key.startswith(f"{run}.output."):
                name, _, thinned = key.removeprefix(f"{run}.output.").partition("[")
                value = ours[f"output.{name}"].double()
                value = value[..., ::16, ::16] if thinned else value
                if key in shapes:
                    assert list(value.shape) == shapes[key]
                    value = value.flatten()[torch.from_numpy(sample(key, 4096, value.numel()))]
                off = float((value - golden[key].double()).norm())
                assert off <= allowed(float(golden[key].double().norm()), value.numel()), (run, key, off)


# ---- what the recordings do not tell apart


def test_a_map_need_not_be_square() -> None:
    """Rows and columns of every map by the formulas of the specification, on 3 x 5 cells."""
    h, w, d = 3, 5, 8
    made = PositionMap(d)(torch.zeros(1, d, h, w))[0]
    rpb = RelativeBias()(torch.arange(5.0).view(1, 1, w, 1), 10 * torch.arange(3.0).view(1, 1, h, 1))
    for r in range(h):
        for c in range(w):
            y, x = (r + 1) / (h + 1e-6) * 2 * math.pi, (c + 1) / (w + 1e-6) * 2 * math.pi
            code = [
                (math.cos if i % 2 else math.sin)(v / 10000 ** (2 * (i // 2) / (d // 2)))
                for v in (y, x)
                for i in range(d // 2)
            ]
            torch.testing.assert_close(made[:, r, c], torch.tensor(code), rtol=1e-5, atol=1e-6)
            assert float(rpb[0, 0, 0, r * w + c]) == 10 * r + c
    far = Distances()(torch.tensor([[[0.25, 1.5]]]), w)[0, 0]
    for c in range(w):
        for n, edge in enumerate((0.25, 1.5)):
            away = 8 * (c / w - edge)
            assert float(far[c, n]) == pytest.approx(math.copysign(math.log2(abs(away) + 1) / 3, away), abs=1e-6)


def test_windows_of_a_map_that_is_not_square_come_back() -> None:
    cells = torch.arange(1.0, 1 + 5 * 7).view(1, 5, 7, 1)
    windows = Windows(4)
    cut = windows(cells)
    assert cut.shape == (4, 16, 1)
    assert cut[1, :, 0].tolist() == [5, 6, 7, 0, 12, 13, 14, 0, 19, 20, 21, 0, 26, 27, 28, 0]
    assert torch.equal(windows.joined(cut, 5, 7), cells)
    table = torch.arange(5.0).view(1, 5, 1)  # a class position, and 2 x 2
    assert TiledPositions()(table, 3, 5)[0, :, :, 0].tolist() == [[1, 2, 1, 2, 1], [3, 4, 3, 4, 3], [1, 2, 1, 2, 1]]


def test_roi_align_on_a_map_that_is_not_square() -> None:
    """Bins of a linear ramp are the ramp's value at their centre; the ramp tells rows from columns."""
    h, w = 6, 14
    ramp = torch.stack(
        (torch.arange(w, dtype=torch.float32).expand(h, w), torch.arange(h).float()[:, None].expand(h, w))
    )
    boxes = torch.tensor([[[2.0, 1.0, 9.0, 4.5]]])
    made = RoiAlign(7)(ramp[None], boxes)[0, 0]
    torch.testing.assert_close(made[0], (2 + torch.arange(7) + 0.5).expand(7, 7))
    torch.testing.assert_close(made[1], (1 + (torch.arange(7) + 0.5) / 2)[:, None].expand(7, 7))
    beyond = RoiAlign(7)(torch.ones(1, 1, h, w), torch.tensor([[[-7.0, -7.0, 0.0, 0.0]]]))[0, 0, 0]
    assert beyond[0, 0] == 0 and beyond[6, 6] == 1  # more than a cell outside, and half a cell


def test_decoder_attention_has_the_heads_that_the_relative_bias_shows() -> None:
    model = case("text").detector()
    for layer in model.transformer.decoder.layers:
        assert {layer.self_attn.heads, layer.ca_text.heads, layer.cross_attn.heads} == {4}
    assert {a.heads for a in model.geometry_encoder.modules() if hasattr(a, "in_proj_bias")} == {2}
    assert model.segmentation_head.cross_attend_prompt.heads == 8


def test_image_ids_default_to_one_picture_each() -> None:
    golden = case("batch2")
    inputs = golden.inputs()
    model = golden.detector()
    with torch.inference_mode():
        stated = model(**inputs)
        inputs.pop("image_ids")
        assert torch.equal(model(**inputs)["pred_masks"], stated["pred_masks"])


# ---- loading


def test_keys_may_have_no_prefix_and_a_tracker_is_not_read() -> None:
    weights = tiny_weights()
    bare = {key.removeprefix("detector."): tensor for key, tensor in weights.items()}
    inputs = case("text").inputs()
    with torch.inference_mode():
        first = load_detector(weights | {"tracker.maskmem_tpos_enc": torch.zeros(3)}, HEADS)(**inputs)
        assert torch.equal(load_detector(bare, HEADS)(**inputs)["pred_masks"], first["pred_masks"])


def test_a_neck_of_three_levels_gives_the_same() -> None:
    """SAM3.1's files have no fourth level, which the original throws away."""
    weights = {key: t for key, t in tiny_weights().items() if ".convs.3." not in key and ".sam2_convs." not in key}
    inputs = case("box").inputs()
    with torch.inference_mode():
        wanted = load_detector(tiny_weights(), HEADS)(**inputs)
        made = load_detector(weights, HEADS)(**inputs)
    assert all(torch.equal(made[name], wanted[name]) for name in wanted)


def test_the_stored_rotary_tables_are_the_computed_ones() -> None:
    weights = tiny_weights()
    for block, grid in enumerate((4, 10, 4, 10)):
        made = rotary_table(grid, 4, 16)
        torch.testing.assert_close(made, weights[f"{BLOCK}.{block}.attn.freqs_cis"], rtol=0, atol=1e-6)
    small = load_detector(weights, HEADS, image_size=56)
    image = torch.zeros(1, 3, 56, 56)
    with torch.inference_mode():
        assert small(image, torch.ones(1, 8, dtype=torch.int64))["pred_masks"].shape == (1, 7, 16, 16)
    with pytest.raises(ValueError, match="pictures of 140 x 140, but the rotary tables are for 56 x 56"):
        small(torch.zeros(1, 3, 140, 140), torch.ones(1, 8, dtype=torch.int64))


def test_the_text_table_is_cut() -> None:
    model = load_detector(tiny_weights(), HEADS, context_length=5)
    assert model.backbone.language_backbone.encoder.positional_embedding.pos_embed.pos_embed.shape[2] == 5


REFUSED = {
    "heads": ({}, {"heads": HEADS | {"encoder": 5}}, "5 heads in the encoder do not divide a width of 32"),
    "patches": ({}, {"image_size": 100}, "pictures of 100 cannot be cut into patches of 14"),
    "one patch": ({}, {"image_size": 14}, "pictures of 14 are one patch"),
    "no tables": ({f"{BLOCK}.{i}.attn.freqs_cis": None for i in range(4)}, {}, "no rotary tables"),
    "three sizes": ({f"{BLOCK}.2.attn.freqs_cis": torch.zeros(25, 8)}, {}, "rotary tables of 3 sizes"),
    "no square": ({f"{BLOCK}.2.attn.freqs_cis": torch.zeros(17, 8)}, {}, "rotary tables must be"),
    "columns": ({f"{BLOCK}.{i}.attn.freqs_cis": torch.zeros(16, 7) for i in range(4)}, {}, "table of 7 columns"),
    "one size": (
        {f"{BLOCK}.{i}.attn.freqs_cis": torch.zeros(16, 8) for i in range(4)},
        {"image_size": 140},
        "only pictures of 56",
    ),
    "levels": (
        {k: None for k in tiny_weights() if ".convs.2." in k or ".convs.3." in k}, {}, "the neck has 2 levels",
    ),
    "class row": (
        {"detector.backbone.vision_backbone.trunk.pos_embed": torch.zeros(1, 9, 48)}, {}, "pos_embed has 9 rows",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_in_words(name: str) -> None:
    changed, options, words = REFUSED[name]
    weights = {key: t for key, t in (tiny_weights() | changed).items() if t is not None}
    with pytest.raises(ValueError, match=words):
        load_detector(weights, **({"heads": HEADS} | options))


def test_a_missing_or_unexpected_key_is_refused() -> None:
    weights = tiny_weights()
    short = {k: t for k, t in weights.items() if not k.endswith("catext_norm.bias")}
    with pytest.raises(RuntimeError, match=r"catext_norm\.bias"):
        load_detector(short, HEADS)
    with pytest.raises(RuntimeError, match="Unexpected"):
        load_detector(weights | {"detector.backbone.vision_backbone.extra": torch.zeros(1)}, HEADS)
    with pytest.raises(RuntimeError, match=r"missing from the state dict: backbone\.vision_backbone\.trunk"):
        load_detector({}, HEADS)
