"""The streaming comparison of two detectors: its arithmetic, its taps, its floors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from support.detector_goldens import HEADS, activations, case, distance, tiny_weights
from torch import Tensor, nn

from original_ref import Detector, load_detector
from sam3lite_convert.errors import CannotRun, UnsoundPlan
from sam3lite_convert.parity.compare import compare, compare_large, greatest_and_row_mean_large
from sam3lite_convert.parity.detector.inputs import DetectorCall, relative
from sam3lite_convert.parity.detector.models import DetectorSide, wrap_detector
from sam3lite_convert.parity.detector.run import DetectorOutcome, DetectorRun
from sam3lite_convert.parity.detector.store import TapStore
from sam3lite_convert.parity.detector.taps import STAGES, Place, taps_of
from sam3lite_convert.parity.inputs import Inputs
from sam3lite_convert.parity.noise_floor import in_float64

CPU = torch.device("cpu")


def call(name: str = "box") -> DetectorCall:
    """The inputs of a pass of the real code."""
    given = case(name).inputs()
    ids, none = given["input_ids"], torch.zeros(1, 0, dtype=torch.int64)
    boxes = given.get("boxes", torch.zeros(1, 0, 4))
    labels = given.get("box_labels", none)
    mask = torch.zeros(labels.shape, dtype=torch.bool)
    picture = torch.zeros(3, 20, 20, dtype=torch.uint8)
    return DetectorCall(picture, given["image"], ids, boxes, labels, mask, Inputs(ids, "golden"), "golden")


def reference() -> DetectorSide:
    return wrap_detector(load_detector(tiny_weights(), HEADS), CPU)


def run(place: Path, candidate: DetectorSide, tolerance: float | None = None, name: str = "box") -> DetectorOutcome:
    return DetectorRun(reference, lambda: candidate, call(name), place, CPU, tolerance).compare()


def test_the_reference_against_itself_is_exact(tmp_path):
    outcome = run(tmp_path, reference())
    assert outcome.judgement.verdict == "exact"
    assert list(outcome.taps) == list(taps_of(load_detector(tiny_weights(), HEADS)))
    assert set(outcome.seconds[0]) <= set(STAGES) and sum(outcome.seconds[0].values()) > 0


def test_what_is_streamed_is_what_the_real_code_computed(tmp_path):
    golden = case("box")
    stored = run(tmp_path, reference()).store
    found = activations(golden.detector(), golden.inputs())
    for tap, theirs in {
        "trunk.blocks.2": "backbone.vision_backbone.trunk.blocks.2",
        "encoder.layers.1": "transformer.encoder.layers.1",
        "masks.pixel_decoder": "segmentation_head.pixel_decoder",
    }.items():
        torch.testing.assert_close(stored.read(tap), found[theirs], rtol=0, atol=0)
        assert distance(theirs, golden.taps[theirs], stored.read(tap)) <= 1


def test_a_fault_is_isolated_from_what_it_is_carried_to(tmp_path):
    side = reference()
    assert isinstance(side.model, Detector)
    side.model.transformer.encoder.layers[1].norm2.eps = 0.1
    outcome = run(tmp_path, side)
    judged = {t.name: t for t in outcome.judgement.taps}
    assert outcome.judgement.first_divergence == "encoder.layers.1"
    assert outcome.judgement.also_diverging == []
    assert judged["encoder.layers.0"].equal
    assert judged["outputs.pred_masks"].status == "carried" and judged["outputs.pred_masks"].isolated == 0


def test_two_faults_are_told_apart(tmp_path):
    side = reference()
    assert isinstance(side.model, Detector)
    side.model.backbone.vision_backbone.trunk.blocks[1].norm1.eps = 0.1
    side.model.transformer.decoder.layers[2].norm1.eps = 0.1
    outcome = run(tmp_path, side)
    assert outcome.judgement.first_divergence == "trunk.blocks.1"
    assert {"decoder.queries.2", "decoder.presence.2"} >= set(outcome.judgement.also_diverging) != set()


def test_a_given_tolerance_takes_the_place_of_floors(tmp_path):
    side = reference()
    assert isinstance(side.model, Detector)
    side.model.transformer.encoder.layers[1].norm2.eps = 1e-4
    (tmp_path / "wide").mkdir()
    assert run(tmp_path / "wide", side, 10.0).judgement.verdict == "within_tolerance"


def test_nan_of_the_candidate_differs_and_of_the_original_is_refused(tmp_path):
    side = reference()
    assert isinstance(side.model, Detector)
    side.model.dot_prod_scoring.scale = torch.nan
    outcome = run(tmp_path, side)
    assert outcome.judgement.first_divergence == "scoring.logits"
    (tmp_path / "other").mkdir()
    with pytest.raises(CannotRun, match=r"NaN or infinity at scoring\.logits"):
        DetectorRun(lambda: side, reference, call(), tmp_path / "other", CPU).compare()


def test_a_candidate_that_fails_is_refused_in_words(tmp_path):
    side = reference()
    assert isinstance(side.model, Detector)
    side.model.backbone.vision_backbone.trunk.blocks[1].attn.heads = 1
    failing = DetectorSide("mine", side.model, "original", side.run)
    with pytest.raises(UnsoundPlan, match=r"mine fails on these inputs: The size of tensor"):
        run(tmp_path, failing)


def test_another_number_of_cells_names_the_neck(tmp_path):
    side = reference()
    assert isinstance(side.model, Detector)
    convs = side.model.backbone.vision_backbone.convs
    convs[2] = convs[1]
    with pytest.raises(UnsoundPlan, match=r"at neck\.2 .* another level of the neck reaches it"):
        run(tmp_path, side)


def test_padded_rows_are_not_compared(tmp_path):
    """A padded box changes nothing that is read, so its rows may hold anything."""
    side = reference()
    assert isinstance(side.model, Detector)
    padded = call("text").with_padded_box()
    assert padded.box_mask.all() and padded.valid["geometry"].tolist() == [[True, False]]
    side.model.geometry_encoder.label_embed.weight = nn.Parameter(torch.full((2, 32), 50.0))
    outcome = DetectorRun(reference, lambda: side, padded, tmp_path, CPU).compare()
    assert outcome.judgement.verdict == "exact"
    assert not {"geometry.box_direct", "geometry.box_label"} & set(outcome.taps)


def test_modules_are_hooked_in_the_candidates_own_shape():
    """Queries and presence token of transformers' decoder are two parts of one tensor."""
    from sam3lite_convert.parity.detector.recording import _part, _with_part

    whole = torch.arange(8.0).view(1, 4, 2)
    queries, presence = Place("", part="queries"), Place("", part="presence")
    assert torch.equal(_part(whole, queries), whole[:, 1:]) and torch.equal(_part((whole, 1), presence), whole[:, :1])
    made = _with_part(whole, presence, torch.full((1, 1, 2), 9.0))
    assert isinstance(made, Tensor) and made[0, 0].tolist() == [9, 9] and torch.equal(made[:, 1:], whole[:, 1:])
    pair = _with_part((whole, "rest"), Place("", part=1), torch.ones(1))
    assert isinstance(pair, tuple) and torch.equal(pair[1], torch.ones(1))


# ---- arithmetic


def test_the_floor_of_a_single_number_is_not_nothing_by_chance():
    """It is the greatest of its row, no less than its isolated floor, and no less than its own rounding."""
    from sam3lite_convert.parity.detector.run import _of_few_values
    from sam3lite_convert.parity.judgement import Floor

    lucky, other, big = Floor(0.0, 3.0, 0.0, 3.0), Floor(2.0, 1.0, 2.0, 1.0), Floor(0.0, 0.0, 0.0, 0.0)
    found = _of_few_values(
        {
            "decoder.presence_logit.0": lucky,
            "outputs.presence_logit_dec": other,
            "scoring.prompt": big,
            "neck.0": lucky,
        },
        {"decoder.presence_logit.0": 0.5, "outputs.presence_logit_dec": 0.5, "scoring.prompt": 2.0},
        {"decoder.presence_logit.0": 1.0, "outputs.presence_logit_dec": 0.0, "scoring.prompt": 0.25},
    )
    assert found["decoder.presence_logit.0"] == found["outputs.presence_logit_dec"] == Floor(3.0, 3.0, 3.0, 3.0)
    assert found["scoring.prompt"] == Floor(0.5, 2.0**-21, 0.5, 2.0**-21)
    assert found["neck.0"] is lucky


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4, 5)])
def test_large_activations_are_compared_as_small_ones(shape, monkeypatch):
    monkeypatch.setattr("sam3lite_convert.parity.compare._STRETCH", 8)
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(rng.standard_normal(shape).astype(np.float32)) for _ in range(2))
    b[..., :1] = a[..., :1]
    large, small = compare_large(a, b), compare(a, b)
    assert (large.max_abs, large.position, large.reference) == (small.max_abs, small.position, small.reference)
    assert large.shape == shape and large.relative_l2 == pytest.approx(small.relative_l2)
    assert large.mean_abs == pytest.approx(small.mean_abs) and large.cosine == pytest.approx(small.cosine)
    rows = (a.double() - b.double()).abs().reshape(-1, shape[-1] if len(shape) > 1 else 1).mean(1)
    assert greatest_and_row_mean_large(a, b) == pytest.approx((large.max_abs, float(rows.max())))
    assert compare_large(a, a).max_abs == 0


def test_float64_takes_convolutions_in_strips(monkeypatch):
    monkeypatch.setattr("sam3lite_convert.parity.noise_floor._LARGE", 40)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 1))
    x = torch.randn(1, 2, 9, 7, dtype=torch.float64)
    with torch.inference_mode():
        with in_float64(model):
            made = model(x)
        torch.testing.assert_close(made, model.double()(x))


@contextmanager
def folder(place: Path) -> Iterator[TapStore]:
    place.mkdir()
    yield TapStore(place)


def test_a_store_gives_back_what_was_written(tmp_path):
    with folder(tmp_path / "taps") as store:
        first = torch.arange(4.0)
        store.write("a.0", first)
        held = store.read("a.0")
        store.write("a.0", first * 2)
        store.write("b", first.bfloat16())
        assert torch.equal(held, first) and torch.equal(store.read("a.0"), first * 2)
        assert store.taps == ("a.0", "b") and "c" not in store and store.read("b").dtype is torch.bfloat16


def test_boxes_in_pixels_become_shares_of_the_picture():
    made = relative([(10, 20, 30, 40)], 100, 200)
    assert made.tolist()[0][0] == pytest.approx([0.125, 0.4, 0.15, 0.4])
