"""The released library's whole detector around given weights, against what the real code computed."""

from __future__ import annotations

import sys

import pytest
import torch
import transformers
from packaging.version import Version
from support.detector_goldens import CASES, Case, case, distance
from support.tiny_stock import Converted, converted, outputs

from sam3lite_convert.errors import CannotRun, UnsoundPlan
from sam3lite_convert.parity.detector.stock import text_argument


@pytest.fixture(scope="module")
def text() -> Converted:
    return converted(case("text"))


# Of each kind of input one pass in the suite, and one of them with either attention.
QUICK = {(name, "sdpa") for name in ("text", "box", "batch2", "prompts2", "loud")} | {("box", "eager")}


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        pytest.param(name, attention, marks=() if (name, attention) in QUICK else pytest.mark.stress)
        for name in CASES
        for attention in ("sdpa", "eager")
    ],
)
def test_with_matched_settings_it_gives_the_originals_result(name: str, attention: str) -> None:
    golden = case(name)
    model = converted(golden).model(attention=attention)
    assert model.text_encoder.config._attn_implementation == "eager"
    for part in (model.vision_encoder.backbone, model.detr_encoder, model.detr_decoder, model.mask_decoder):
        assert part.config._attn_implementation == attention
    found = outputs(model, golden)
    off = {tap: distance(tap, golden.taps[tap], value) for tap, value in found.items()}
    if name == "loud":  # the library clamps the presence logit at 10
        assert off.pop("output.presence_logit_dec") > 1
        assert found["output.presence_logit_dec"].max() == 10
    assert max(off.values()) <= 1, off


def test_another_size_is_the_original_at_that_size(text: Converted) -> None:
    """126 pixels are 9 patches: the windows of 4 are padded, positions tiled, rotary positions scaled anew."""
    from original_ref import load_detector

    golden = case("text")
    image = golden.inputs()["image"][:, :, :126, :126]
    ids = golden.inputs()["input_ids"]
    resized = Case(golden.tensors | {"input.image": image}, golden.taps, golden.context, golden.metadata)
    found = outputs(text.model(image_size=126), resized)
    with torch.inference_mode():
        wanted = load_detector(golden.weights(), {"geometry": 2, "encoder": 4, "mask": 8}, image_size=126)(image, ids)
    for name in ("pred_logits", "pred_boxes_xyxy", "pred_masks"):
        torch.testing.assert_close(found[f"output.{name}"], wanted[name], rtol=1e-4, atol=2e-4)  # type: ignore[literal-required]


def test_weights_are_not_copied_and_everything_is_there(text: Converted) -> None:
    model = text.model()
    held = model.state_dict()
    assert {k: held[k].data_ptr() for k in text.weights} == {k: t.data_ptr() for k, t in text.weights.items()}
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))
    assert not any(m.training for m in model.modules()) and not any(p.requires_grad for p in model.parameters())


def test_a_weight_that_is_not_there_is_named(text: Converted) -> None:
    key = "detr_decoder.box_head.layer3.bias"
    less = text._replace(weights={k: t for k, t in text.weights.items() if k != key})
    with pytest.raises(UnsoundPlan, match=f"missing: {key}"):
        less.model()


def test_a_config_that_the_library_refuses(text: Converted) -> None:
    with pytest.raises(CannotRun, match=r"Sam3LiteTextModel cannot be built from this config\.json"):
        text._replace(config=text.config | {"geometry_encoder_config": {"hidden_size": "wide"}}).model()


def test_the_default_dtype_is_left_as_it_was(text: Converted) -> None:
    text.model()
    assert torch.get_default_dtype() == torch.float32


def test_without_the_library_it_says_what_to_install(text: Converted, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CannotRun, match=r"needs transformers 5\.6 or later"):
        text.model()


def test_text_features_are_given_whole_from_5_9_on(text: Converted) -> None:
    ids = case("text").inputs()["input_ids"]
    features = text.model().get_text_features(input_ids=ids)
    whole = Version(transformers.__version__) >= Version("5.9")
    assert text_argument(features) is (features if whole else features.pooler_output)
