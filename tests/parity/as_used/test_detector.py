"""The whole detector as people call it: causes one at a time, all together, and the recipe, on masks and boxes."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from support.folders import tiny_architecture, write_safetensors
from torch.nn import functional

from original_ref import Detector, load_detector
from original_ref.detector import Detections, prepare
from sam3lite_convert.checkpoint.reader import read_checkpoint
from sam3lite_convert.convert.config import make_config
from sam3lite_convert.convert.prompts import cut, tokenize, words_of
from sam3lite_convert.convert.text_weights import planned_tensors
from sam3lite_convert.parity.as_used.detector import Detected, Moved, detector_behaviour
from sam3lite_convert.parity.as_used.stock_model import stock_tokenizer
from sam3lite_convert.plan import synthetic
from sam3lite_convert.plan.plan import Options, make_plan
from sam3lite_convert.plan.tables import load_mappings
from sam3lite_convert.records.detector import DetectionError, DetectorBehaviour
from sam3lite_convert.report.as_used import detections

pytest.importorskip("instant_clip_tokenizer")
pytest.importorskip("ftfy")

SMALL = {"vocab": 49408, "text_hidden": 64, "text_heads": 1, "projection_dim": 64}
TEXTS = [
    "a dog",
    "a yellow school bus that is parked in front of the old brick house across the street",
    "salt &amp; pepper",
]
SIZE = 112


SCORING = "detector.dot_prod_scoring.hs_proj."
MASKS = "detector.segmentation_head.mask_predictor.mask_embed.layers.2.weight"
PRESENCE = "detector.transformer.decoder.presence_token_head.layers.2.bias"


class Side:
    """A small detector, and everything that its behaviour is compared by."""

    def __init__(self, place) -> None:
        self.state = synthetic.state_dict(tiny_architecture(**SMALL))
        # Untouched, the scores of random weights are all alike, and masks are flat.
        self.state[MASKS] = self.state[MASKS] * 20
        self.state[PRESENCE] = self.state[PRESENCE] + 12  # beyond the library's clamp
        self.picture = torch.randint(0, 256, (3, 150, 200), generator=torch.Generator().manual_seed(0)).byte()
        self.spread()
        self.plan = make_plan(
            read_checkpoint(write_safetensors(place, self.state)), load_mappings(), Options(layout="transformers")
        )
        self.config: Any = make_config(self.plan)
        self.weights = planned_tensors(self.plan)

    def original(self) -> Detector:
        heads = self.state["detector.transformer.decoder.boxRPB_embed_x.layers.1.weight"].shape[0]
        return load_detector(self.state, {"geometry": heads, "encoder": heads, "mask": heads}, 16, SIZE)

    @torch.no_grad()
    def spread(self) -> None:
        """Centre the logits of the queries at 0 and spread them, so that some are objects and some are not."""
        model, seen = self.original(), []
        model.dot_prod_scoring.hs_proj.register_forward_hook(lambda m, args, out: seen.append(args[0][-1, 0]))
        ids = torch.tensor([[49406, 320, 1929, 49407] + [0] * 12])
        logits = model(prepare(self.picture, SIZE), ids)["pred_logits"]
        weight = self.state[SCORING + "weight"] * (2.0 / float(logits.std()))
        self.state[SCORING + "weight"] = weight.clone()
        self.state[SCORING + "bias"] = -(weight @ seen[0].mean(0))

    def behaviour(self, **changed: Any) -> DetectorBehaviour:
        given: dict[str, Any] = {
            "plan": self.plan,
            "config": self.config,
            "load_original": self.original,
            "load_weights": lambda: self.weights,
            "tokenizer": stock_tokenizer(),
            "picture": self.picture,
            "texts": TEXTS,
            "size": SIZE,
            "context": 16,
        }
        return detector_behaviour(**(given | changed))


@pytest.fixture(scope="module")
def side(tmp_path_factory) -> Side:
    return Side(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def good(side: Side) -> DetectorBehaviour:
    return side.behaviour()


CAUSES = [
    "text_cleaning", "truncation", "sequence_length", "pad_id", "text_mask", "text_attention", "normalisation",
    "class_token", "presence_clamp", "mask_resize", "threshold",
]  # fmt: skip


def error(behaviour: DetectorBehaviour, name: str) -> DetectionError:
    (cause,) = [c for c in behaviour.causes if c.name == name]
    return cause.error


def test_the_stock_call_differs_and_the_recipe_is_the_original(good: DetectorBehaviour) -> None:
    assert good.verdict == "differs" and good.recipe.verdict in ("exact", "within_tolerance")
    assert [c.name for c in good.causes] == CAUSES
    assert [a.name for a in good.absent] == ["table_rows", "vit_eps", "detector_attention"]
    assert good.matched.objects_original == good.matched.objects > 10
    assert good.matched.max_score_diff < 1e-3 and good.matched.max_mask_logit_diff < 1e-4
    for same in (good.matched, good.recipe.error):
        assert same.mask_iou is not None and same.mask_iou > 0.999 and same.objects_on_one_side == 0
    for name in ("text_cleaning", "truncation", "sequence_length", "pad_id", "text_mask", "class_token"):
        assert error(good, name).max_mask_logit_diff > 100 * good.limits.mask_logit, name
    assert good.together.max_mask_logit_diff > 100 * good.limits.mask_logit
    assert error(good, "text_cleaning").prompts == error(good, "truncation").prompts == 1


@pytest.fixture(scope="module")
def outputs(side: Side) -> list[Detections]:
    """The reference's, for TEXTS."""
    model = side.original()
    with torch.inference_mode():
        return [model(prepare(side.picture, SIZE), ids[None]) for ids in tokenize(TEXTS, 16)]


def scores(result: Detections) -> torch.Tensor:
    return (result["pred_logits"][..., 0].sigmoid() * result["presence_logit_dec"].sigmoid())[0]


def test_post_processing_moves_objects_as_worked_out_by_hand(good: DetectorBehaviour, side, outputs) -> None:
    kept = [int((scores(o) > 0.5).sum()) for o in outputs]
    assert good.together.objects_original == good.matched.objects_original == sum(kept)
    more = error(good, "threshold")
    assert more.objects == sum(int((scores(o) > 0.3).sum()) for o in outputs)
    assert more.objects_on_one_side == more.objects - sum(kept) > 0
    clamped = [o["pred_logits"][..., 0].sigmoid() * o["presence_logit_dec"].clamp(-10, 10).sigmoid() for o in outputs]
    moved = max(float((c[0] - scores(o)).abs().max()) for c, o in zip(clamped, outputs, strict=True))
    assert error(good, "presence_clamp").max_score_diff == pytest.approx(moved, rel=1e-2) and moved > 1e-5
    ious = []
    for o in outputs:
        masks = o["pred_masks"][:, scores(o) > 0.5]
        ours, theirs = (
            functional.interpolate(m, side.picture.shape[1:], mode="bilinear")[0] > cut
            for m, cut in ((masks, 0.0), (masks.sigmoid(), 0.5))
        )
        ious += [float((a & b).sum() / (a | b).sum()) for a, b in zip(ours, theirs, strict=True)]
    assert error(good, "mask_resize").mask_iou == pytest.approx(sum(ious) / len(ious), abs=1e-3)
    assert sum(ious) / len(ious) < 0.999


def changed(side: Side, ids: list[list[int]], words: list[int], class_token: bool = True) -> list[Detections]:
    """The reference's results for other ids, the first ``words`` of which are no padding."""
    model = side.original()
    if not class_token:
        geometry = model.geometry_encoder.forward
        model.geometry_encoder.forward = lambda *a: tuple(t[:, :0] for t in geometry(*a))  # type: ignore[method-assign]
    out = []
    for row, valid in zip(ids, words, strict=True):
        text = model.backbone.language_backbone
        given = torch.tensor([row])
        mask = torch.arange(len(row))[None] >= valid
        model.encode_text = lambda x, text=text, mask=mask: (  # type: ignore[method-assign,misc]
            text.projector(text.encoder(x, return_all_tokens=True)), mask,
        )  # fmt: skip
        with torch.inference_mode():
            out.append(model(prepare(side.picture, SIZE), given))
    return out


def test_changes_of_the_text_and_the_class_token_move_it_as_far_as_in_the_original(good, side, outputs) -> None:
    words = [cut(ids, 16) for ids in words_of(TEXTS)]
    counts = list(map(len, words))

    def padded(length: int, pad: int) -> list[list[int]]:
        return [[*w, *[pad] * (length - len(w))] for w in words]

    tried = {
        "sequence_length": changed(side, padded(32, 0), counts),
        "pad_id": changed(side, padded(16, 49407), counts),
        "class_token": changed(side, padded(16, 0), counts, class_token=False),
    }
    for name, results in tried.items():
        found = error(good, name)
        pairs = list(zip(outputs, results, strict=True))
        moved = max(float((a["pred_masks"] - b["pred_masks"]).abs().max()) for a, b in pairs)
        assert found.max_mask_logit_diff == pytest.approx(moved, rel=0.02), name
        boxes = max(float((a["pred_boxes_xyxy"] - b["pred_boxes_xyxy"]).abs().max()) for a, b in pairs)
        assert found.max_box_diff == pytest.approx(boxes, rel=0.02), name
        assert found.max_score_diff == pytest.approx(
            max(float((scores(a) - scores(b)).abs().max()) for a, b in pairs), rel=0.02
        )


def test_a_folder_whose_config_leaves_the_eps_to_the_library_has_that_cause(side: Side) -> None:
    config = copy.deepcopy(side.config)
    del config["vision_config"]["backbone_config"]["layer_norm_eps"]
    said = side.behaviour(config=config, texts=TEXTS[:1])
    assert "vit_eps" in [c.name for c in said.causes] and error(said, "vit_eps").prompts == 1
    assert said.recipe.verdict in ("exact", "within_tolerance")
    assert "1e-06 in the norms" in next(c.words for c in said.causes if c.name == "vit_eps")


def test_no_verdict_says_more_than_that_on_the_weights(side: Side) -> None:
    """Limits come from the distance of the matched call, which faulty weights make large."""
    key = "detr_encoder.layers.0.mlp.fc1.bias"
    faulty = side.weights | {key: side.weights[key] + 1}
    said = side.behaviour(load_weights=lambda: faulty, weights="differs", texts=TEXTS[:1])
    assert said.matched.max_mask_logit_diff > 1e-3
    assert said.verdict == said.recipe.verdict == "differs"


def test_an_object_on_one_side_passes_only_at_the_threshold() -> None:
    def side(*values: float) -> Detected:
        kept = tuple(n for n, v in enumerate(values) if v > 0.5)
        shapes = torch.ones(len(kept), 2, 2, dtype=torch.bool)
        return Detected(torch.tensor(values), torch.zeros(len(values), 4), torch.ones(len(values), 2, 2), kept, shapes)

    def moved(ours: Detected, theirs: Detected) -> Moved:
        out = Moved()
        out.add(ours, theirs)
        return out

    limits = moved(side(0.9, 0.1), side(0.9, 0.1001)).limits()
    assert limits.score == pytest.approx(4e-4, rel=1e-3)
    assert moved(side(0.9, 0.5001), side(0.9, 0.4999)).verdict(limits) == "within_tolerance"
    assert moved(side(0.9, 0.1), side(0.9, 0.1)).verdict(limits) == "exact"
    lower = dataclasses.replace(side(0.9, 0.4), kept=(0, 1), shapes=torch.ones(2, 2, 2, dtype=torch.bool))
    assert moved(side(0.9, 0.4), lower).verdict(limits) == "differs"
    assert moved(side(0.9, 0.1), lower).record().objects_on_one_side == 1


def test_the_table_has_a_row_for_each_cause_and_the_recipe_as_it_was_run(good: DetectorBehaviour, capsys) -> None:
    detections(good)
    out = capsys.readouterr().out
    rows = {
        name: next(line for line in out.splitlines() if line.startswith(name)) for name in ("class token", "vit eps")
    }
    moved = error(good, "class_token")
    assert f"{moved.objects} / {moved.objects_original}" in rows["class token"] and rows["vit eps"].split()[-1] == "-"
    assert "with the recipe: within tolerance" in out or "with the recipe: exact" in out
    assert "verdict 2, behaviour: differs: " in out and "the geometry encoder is skipped" in out
    assert good.recipe.code.splitlines()[-1] in out


def test_a_table_with_more_rows_is_cut_and_its_recipe_cuts_it(side: Side) -> None:
    key = "text_encoder.embeddings.position_embedding.position_embedding"
    longer = side.weights | {key: torch.cat((side.weights[key], torch.ones(1, 1, 4, 64)), 2)}
    config = copy.deepcopy(side.config)
    config["text_config"]["max_position_embeddings"] = 20
    said = side.behaviour(config=config, load_weights=lambda: longer, texts=TEXTS[:1])
    assert error(said, "table_rows").prompts == 1
    assert said.recipe.verdict in ("exact", "within_tolerance") and "[:, :, :16]" in said.recipe.code
