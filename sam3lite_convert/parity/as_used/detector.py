"""Verdict 2 for the whole detector: does the stock call find what the original finds, and if not, why?

As for text features (``behaviour``): the settings in which the original's call and the stock call differ are changed
in the library's model one at a time, then all together. What is compared is what people use: objects, their masks,
boxes and scores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from original_ref import Detector
from original_ref.detector import Found, found, prepare
from sam3lite_convert.convert.calling_recipe import PLACEHOLDER, Detecting, detector_recipe
from sam3lite_convert.convert.clip_ids import PAD
from sam3lite_convert.convert.config import EPS
from sam3lite_convert.convert.folder import Folder
from sam3lite_convert.convert.prompts import words_of
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.figures import number
from sam3lite_convert.parity.as_used.behaviour import (
    Call,
    CallSettings,
    Prompts,
    words_of_causal,
    words_of_cause,
    words_of_same,
)
from sam3lite_convert.parity.as_used.stock_model import STOCK_LENGTH, Positions, Tokenizer, own_tokenizer
from sam3lite_convert.parity.compare import max_abs
from sam3lite_convert.parity.detector.stock import stands_in_for_torchvision, stock_detector, text_argument
from sam3lite_convert.parity.judgement import FLOORS
from sam3lite_convert.plan.plan import Plan
from sam3lite_convert.records.detector import (
    DetectionCause,
    DetectionError,
    DetectionLimits,
    DetectionRecipe,
    DetectorBehaviour,
)
from sam3lite_convert.records.parity import NoCause, Verdict
from sam3lite_convert.records.record import JsonValue

THRESHOLD, STOCK_THRESHOLD = 0.5, 0.3  # of a score: the original's default and the library's
CLAMP = 10.0  # of the library's presence logit
_UNIT = 2.0**-23  # rounding of a float32 near one
_LIBRARY_EPS = 1e-6  # of the ViT's norms where config.json does not say
Advance = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """How the detector is called. A field that differs between two calls is a cause; so are the fields of ``text``.

    ``vit_eps``: of the norms of the vision trunk.
    ``normalisation``: whose arithmetic makes pixels of bytes, "original" or "stock".
    ``class_token``: whether the geometry encoder adds its class token to a prompt without a box.
    ``detector_attention``: attention implementation of all parts but the text encoder.
    ``presence_clamp``: whether the presence logit is clamped to +-10.
    ``mask_resize``: what is resized to the picture, "logits" or "probabilities".
    ``threshold``: score above which an object counts as found.
    """

    text: CallSettings
    vit_eps: float
    normalisation: str
    class_token: bool
    detector_attention: str
    presence_clamp: bool
    mask_resize: str
    threshold: float

    def as_called(self) -> Settings:
        """The same call of the model, with the original's post-processing."""
        return replace(self, presence_clamp=False, mask_resize="logits", threshold=THRESHOLD)


@dataclass(frozen=True)
class Detected:
    """The result for one prompt, Q queries.

    ``scores``: (Q).  ``boxes``: (Q, 4), x0 y0 x1 y1 as shares of the picture.  ``masks``: (Q, h, w), logits.
    ``kept``: numbers of the queries that count as found.  ``shapes``: (kept, H, W), bool, in the picture's pixels.
    """

    scores: Tensor
    boxes: Tensor
    masks: Tensor
    kept: tuple[int, ...]
    shapes: Tensor


@dataclass
class Moved:
    """The difference between two sides' detections."""

    prompts: int = 0
    original: int = 0
    here: int = 0
    one_side: int = 0
    failed: int = 0
    unsure: float = 0.0  # how far from the threshold the scores of objects of one side are, at most
    ious: list[float] = field(default_factory=list)
    l1: list[float] = field(default_factory=list)
    score: float = 0.0
    box: float = 0.0
    mask: float = 0.0
    largest: float = 0.0  # mask logit of the reference

    def add(self, reference: Detected, candidate: Detected | None) -> None:
        """Add one prompt; None if the candidate's call failed."""
        if candidate is None:
            self.failed, self.prompts = self.failed + 1, self.prompts + 1
            self.original, self.one_side = self.original + len(reference.kept), self.one_side + len(reference.kept)
            return
        score, box = max_abs(reference.scores, candidate.scores), max_abs(reference.boxes, candidate.boxes)
        mask = max_abs(reference.masks, candidate.masks)
        self.score, self.box, self.mask = max(self.score, score), max(self.box, box), max(self.mask, mask)
        self.largest = max(self.largest, float(reference.masks.abs().max()))
        ours, theirs = set(reference.kept), set(candidate.kept)
        self.original, self.here = self.original + len(ours), self.here + len(theirs)
        self.one_side += len(ours ^ theirs)
        for n in ours ^ theirs:
            self.unsure = max(self.unsure, abs(float(reference.scores[n]) - THRESHOLD))
        shapes = True
        for n in sorted(ours & theirs):
            a, b = reference.shapes[reference.kept.index(n)], candidate.shapes[candidate.kept.index(n)]
            either = int((a | b).sum())
            self.ious.append(int((a & b).sum()) / either if either else 1.0)
            self.l1.append(float((reference.boxes[n] - candidate.boxes[n]).abs().sum()))
            shapes = shapes and torch.equal(a, b)
        self.prompts += bool(score or box or mask or ours ^ theirs or not shapes)

    def record(self) -> DetectionError:
        return DetectionError(
            objects_original=self.original,
            objects=self.here,
            objects_on_one_side=self.one_side,
            mask_iou=sum(self.ious) / len(self.ious) if self.ious else None,
            box_l1=sum(self.l1) / len(self.l1) if self.l1 else None,
            max_score_diff=self.score,
            max_box_diff=self.box,
            max_mask_logit_diff=self.mask,
            prompts=self.prompts,
            calls_failed=self.failed,
        )

    def limits(self) -> DetectionLimits:
        """What may pass, if this is the rounding of both sides; not less than that of one value."""
        score, box, mask = max(self.score, _UNIT), max(self.box, _UNIT), max(self.mask, _UNIT * self.largest)
        return DetectionLimits(score=FLOORS * score, box=FLOORS * box, mask_logit=FLOORS * mask)

    def verdict(self, limits: DetectionLimits) -> Verdict:
        """The verdict. An object that one side alone has passes if its score is at the threshold, within the limit."""
        if not self.prompts:
            return "exact"
        near = self.score <= limits.score and self.box <= limits.box and self.mask <= limits.mask_logit
        near = near and not self.failed
        return "within_tolerance" if near and self.unsure <= limits.score else "differs"


@dataclass(frozen=True)
class StockDetector:
    """The library's detector, called with given settings."""

    model: Any
    positions: Positions
    presence: list[Tensor]
    picture: Tensor
    size: int

    @classmethod
    def around(cls, model: Any, picture: Tensor, size: int) -> StockDetector:
        """``picture``: (3, H, W), uint8."""
        presence: list[Tensor] = []
        # The clamped logit is all that the model returns; its head's last call, of the last layer, has the other.
        model.detr_decoder.presence_head.register_forward_hook(lambda _m, _args, out: presence.append(out))
        return cls(model, Positions(model), presence, picture, size)

    def norms(self, eps: float) -> None:
        """Set the eps of the vision trunk."""
        for module in self.model.vision_encoder.backbone.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = eps

    def vision(self, settings: Settings) -> Any:
        """The picture's features, which all prompts share."""
        self.norms(settings.vit_eps)
        pixels = prepare(self.picture, self.size)
        if settings.normalisation == "stock":
            resized = functional.interpolate(
                self.picture[None], (self.size, self.size), mode="bilinear", antialias=True, align_corners=False
            )
            pixels = (resized.float() - 127.5) / 127.5
        self.attention(settings)
        return self.model.get_vision_features(pixels)

    def attention(self, settings: Settings) -> None:
        """Use these attention implementations from now on."""
        self.model.set_attn_implementation(settings.detector_attention)
        self.model.text_encoder.set_attn_implementation(settings.text.attention)

    def call(self, vision: Any, call: Call, settings: Settings) -> tuple[Any, Tensor] | None:
        """The model's output for one prompt, and the presence logit before its clamp, (1, 1); None if the library
        fails because there are more ids than its position table has rows."""
        self.attention(settings)
        self.positions.use(call.table_rows)
        ids, words = torch.tensor([call.ids]), torch.tensor([call.words])
        try:
            text = self.model.get_text_features(input_ids=ids, attention_mask=words if call.masked else None)
        except (ValueError, IndexError, RuntimeError):
            if self.positions.hold(len(call.ids)):
                raise
            return None
        box: dict[str, Tensor] = {}
        if settings.class_token:
            box = {"input_boxes": torch.zeros(1, 1, 4), "input_boxes_labels": torch.full((1, 1), -10)}
        self.presence.clear()
        out = self.model(vision_embeds=vision, text_embeds=text_argument(text), attention_mask=words, **box)
        return out, self.presence[-1].reshape(1, 1)

    def read(self, out: Any, presence: Tensor, settings: Settings) -> Detected:
        """The one prompt's objects, post-processed by these settings."""
        presence = out.presence_logits if settings.presence_clamp else presence
        scores = (out.pred_logits.sigmoid() * presence.sigmoid())[0]
        masks, kept = out.pred_masks[0], (scores > settings.threshold).nonzero().flatten()
        chosen = masks[kept]
        shapes = torch.zeros(0, *self.picture.shape[1:], dtype=torch.bool)
        if len(chosen):
            chosen = chosen.sigmoid() if settings.mask_resize == "probabilities" else chosen
            chosen = functional.interpolate(chosen[None], self.picture.shape[1:], mode="bilinear")[0]
            chosen = chosen if settings.mask_resize == "probabilities" else chosen.sigmoid()
            shapes = chosen > 0.5
        return Detected(scores, out.pred_boxes[0], masks, tuple(kept.tolist()), shapes)


@torch.inference_mode()
def detector_behaviour(
    plan: Plan,
    config: Mapping[str, JsonValue],
    load_original: Callable[[], Detector],
    load_weights: Callable[[], Mapping[str, Tensor]],
    tokenizer: Tokenizer,
    picture: Tensor,
    texts: Sequence[str],
    size: int,
    context: int,
    folder: Folder | None = None,
    weights: Verdict = "exact",
    advance: Advance = lambda what: None,
) -> DetectorBehaviour:
    """Verdict 2 on the whole detector, in float32 on the CPU. The original runs first and is let go of.

    ``config``: config.json of the transformers layout. ``load_original``: gives the reference at ``size`` and
    ``context``. ``load_weights``: the candidate's, by target key. ``picture``: (3, H, W), uint8. ``texts``: prompts.
    ``size``: side of the square that both sides see, in pixels. ``context``: what the original is called with.
    ``weights``: verdict 1. ``advance``: called before each step with what it does, in words.

    Raises CannotRun if transformers or the extra ``prompts`` is not installed, or if the tokenizer makes ids outside
    the model's vocabulary; UnsoundPlan if the model does not get all of its weights.
    """
    began = time.monotonic()
    prompts = Prompts(tuple(texts), {"original": words_of(texts), "stock": tokenizer.words(texts)}, context)
    vocab = plan.architecture.sizes["vocab"]
    if (greatest := max(tokenizer.pad, *(max(ids) for ids in prompts.words["stock"]))) >= vocab:
        raise CannotRun(
            f"{tokenizer.name}: it makes the id {greatest:,}, but the model's vocabulary ends at {vocab - 1:,}",
            "other_tokenizer",
        )
    advance("the original")
    reference = _originals(load_original(), prompts, picture, size)
    advance("loading the library's model")
    model = stock_detector(plan.layout.family, config, load_weights(), torch.float32, image_size=size)
    stock = StockDetector.around(model, picture, size)
    there = stock.positions.rows
    rows = min(context, there) if stock.positions.resizes else there
    table = rows if rows < there else None  # what the recipe cuts it to
    original = Settings(
        CallSettings("original", True, rows, context, PAD, False, "eager"),
        EPS, "original", True, "sdpa", False, "logits", THRESHOLD,
    )  # fmt: skip
    used = Settings(
        CallSettings("stock", False, there, STOCK_LENGTH, tokenizer.pad, True, "sdpa"),
        _eps(config), "stock", False, "sdpa", True, "probabilities", STOCK_THRESHOLD,
    )  # fmt: skip
    seen: dict[tuple[float, str, str], Any] = {}

    outputs: dict[Settings, list[tuple[Any, Tensor] | None]] = {}

    def run(settings: Settings) -> list[Detected | None]:
        called = settings.as_called()
        if called != original:  # of which the causes behind the model are read again
            return [out and stock.read(*out, settings) for out in call(settings)]
        if called not in outputs:
            outputs[called] = call(called)
        return [out and stock.read(*out, settings) for out in outputs[called]]

    def call(settings: Settings) -> list[tuple[Any, Tensor] | None]:
        key = (settings.vit_eps, settings.normalisation, settings.detector_attention)
        if key not in seen:
            seen[key] = stock.vision(settings)
        calls = prompts.calls(settings.text, range(len(texts)))
        return [stock.call(seen[key], c, settings) for c in calls]

    advance("the library's model, settings matched")
    matched = run(original)
    causes, absent = _causes(original, used)
    found_causes = []
    for name, changed in causes.items():
        advance(f"cause: {name}")
        moved = _moved(matched, run(changed))
        found_causes.append(
            DetectionCause(name=name, words=_words(name, original, used, stock.positions.resizes), error=moved.record())
        )
    advance("as used")
    together = _moved(reference, run(used))
    advance("the recipe")
    seen.clear()
    by_recipe = _moved(reference, _by_recipe(stock, tokenizer, texts, context, original, table, used.vit_eps))
    baseline = _moved(reference, matched)
    limits = baseline.limits()
    verdict, recipe_verdict = (_capped(m.verdict(limits), weights) for m in (together, by_recipe))
    place = folder.path if folder and plan.options.component != "text" else None
    code = detector_recipe(
        plan.layout.family, context, str(place or PLACEHOLDER), place is not None and own_tokenizer(place),
        table, used.vit_eps != EPS,
    )  # fmt: skip
    return DetectorBehaviour(
        verdict=verdict,
        summary=_summary(verdict, together),
        emulated=_emulated(),
        limits=limits,
        candidate=_candidate(plan),
        size=size,
        prompts=tuple(texts),
        matched=baseline.record(),
        causes=tuple(found_causes),
        absent=tuple(NoCause(name=name, words=_same(name, original)) for name in absent),
        together=together.record(),
        recipe=DetectionRecipe(
            code=code, verdict=recipe_verdict, summary=_summary(recipe_verdict, by_recipe), error=by_recipe.record()
        ),
        seconds=time.monotonic() - began,
    )


def _originals(original: Detector, prompts: Prompts, picture: Tensor, size: int) -> list[Detected]:
    """What the original finds, for each prompt."""
    maps, positions = original.encode_image(prepare(picture, size))
    height, width = picture.shape[1:]
    out = []
    settings = CallSettings("original", True, 0, prompts.context, PAD, False, "eager")
    for call in prompts.calls(settings, range(len(prompts.texts))):
        result = original.detect(maps, positions, torch.tensor([call.ids]))
        shown: Found = found(result, height, width)
        scores = (result["pred_logits"][..., 0].sigmoid() * result["presence_logit_dec"].sigmoid())[0]
        kept = tuple((scores > THRESHOLD).nonzero().flatten().tolist())
        out.append(Detected(scores, result["pred_boxes_xyxy"][0], result["pred_masks"][0], kept, shown.masks))
    return out


def _by_recipe(
    stock: StockDetector,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    context: int,
    original: Settings,
    rows: int | None,
    eps: float,
) -> list[Detected]:
    """What the printed lines find, for each prompt. Post-processing is theirs."""
    stock.positions.use(stock.positions.rows)
    stock.attention(original)
    stock.norms(eps)  # as in the folder: the lines set it if they have to
    picture = stock.picture.permute(1, 2, 0).contiguous().numpy()
    detecting = Detecting(context, tokenizer.made, stock.model, picture, rows, eps != EPS)
    out = []
    for text in texts:
        names = detecting(text)
        result, kept = names["found"], tuple(names["kept"].nonzero().flatten().tolist())
        shapes = names["masks"] if kept else torch.zeros(0, *stock.picture.shape[1:], dtype=torch.bool)
        out.append(Detected(names["scores"], result.pred_boxes[0], result.pred_masks[0], kept, shapes))
    return out


def _moved(reference: Sequence[Detected | None], candidate: Sequence[Detected | None]) -> Moved:
    out = Moved()
    for ours, theirs in zip(reference, candidate, strict=True):
        assert ours is not None  # the call of the original is never longer than the table
        out.add(ours, theirs)
    return out


def _causes(original: Settings, used: Settings) -> tuple[dict[str, Settings], list[str]]:
    """Name of each cause -> the original's settings with it alone; and the names of settings that agree."""
    out, absent = {}, []
    for f in fields(CallSettings):
        ours, theirs = getattr(original.text, f.name), getattr(used.text, f.name)
        name = {"attention": "text_attention", "mask": "text_mask"}.get(f.name, f.name)
        if ours == theirs:
            absent.append(name)
        else:
            out[name] = replace(original, text=replace(original.text, **{f.name: theirs}))
    for f in fields(Settings):
        if f.name == "text":
            continue
        theirs = getattr(used, f.name)
        if getattr(original, f.name) == theirs:
            absent.append(f.name)
        else:
            out[f.name] = replace(original, **{f.name: theirs})
    return out, absent


def _eps(config: Mapping[str, JsonValue]) -> float:
    """Of the vision trunk's norms, as the library takes it from this config.json."""
    vision = config.get("vision_config")
    trunk = vision.get("backbone_config") if isinstance(vision, dict) else None
    eps = trunk.get("layer_norm_eps") if isinstance(trunk, dict) else None
    return float(eps) if isinstance(eps, (int, float)) else _LIBRARY_EPS


def _capped(verdict: Verdict, weights: Verdict) -> Verdict:
    """No verdict says more than the one on the weights, whose distance the limits come from."""
    if verdict == "differs" or weights == "differs":
        return "differs"
    return "incomplete" if weights == "incomplete" else verdict


def _candidate(plan: Plan) -> str:
    import transformers

    return f"{plan.layout.family.library.model} (transformers {transformers.__version__})"


def _emulated() -> tuple[str, ...]:
    out = [
        "the library's image processor was not run: resizing in uint8, bilinear with antialias, and its fused "
        "normalisation (x - 127.5) / 127.5 are computed here as its source says",
        "its post-processing was not run: threshold 0.3, masks resized as probabilities, as its source says",
    ]
    if stands_in_for_torchvision():
        out.append("torchvision is not installed: roi_align is the reference's")
    return tuple(out)


def _summary(verdict: Verdict, moved: Moved) -> str:
    """A verdict on detections in one sentence."""
    if verdict == "exact":
        return "objects, masks, boxes and scores equal the original's bit for bit"
    error = moved.record()
    iou = "" if error.mask_iou is None else f", mean IoU of masks {error.mask_iou:.4f}"
    failed = ""
    if error.calls_failed:
        prompts = "a prompt" if error.calls_failed == 1 else f"{error.calls_failed:,} prompts"
        failed = f"; the call fails on {prompts} of more ids than the position table has rows"
    return (
        f"{error.objects:,} objects where the original finds {error.objects_original:,}{iou}; largest score difference "
        f"{number(error.max_score_diff)}, mask logit difference {number(error.max_mask_logit_diff)}{failed}"
    )


# Causes that the text encoder alone has too -> their names there.
_OF_TEXT = {
    "text_cleaning": "text_cleaning",
    "truncation": "truncation",
    "table_rows": "table_rows",
    "sequence_length": "sequence_length",
    "pad_id": "pad_id",
    "text_mask": "mask",
    "text_attention": "attention",
}


def _words(name: str, original: Settings, used: Settings, resizes: bool) -> str:
    """What the stock call does differently, in one sentence. ``resizes``: whether it resizes the position table."""
    if name in _OF_TEXT:
        in_words = words_of_cause if resizes else words_of_causal
        return in_words(_OF_TEXT[name], original.text, used.text)
    return {
        "vit_eps": f"{used.vit_eps:g} in the norms of the vision trunk, not {original.vit_eps:g}",
        "normalisation": "bytes become pixels in one step, (x - 127.5) / 127.5, not in two: different rounding",
        "class_token": "without a box the geometry encoder is skipped; the original always adds its class token",
        "detector_attention": f"{used.detector_attention} attention, not {original.detector_attention}",
        "presence_clamp": f"the presence logit is clamped to +-{CLAMP:g}; the original's is not",
        "mask_resize": "masks are resized as probabilities; the original resizes logits",
        "threshold": f"objects count from a score of {used.threshold:g}, not {original.threshold:g}",
    }[name]


def _same(name: str, original: Settings) -> str:
    if name in _OF_TEXT:
        return words_of_same(_OF_TEXT[name], original.text)
    return {
        "vit_eps": f"config.json says {original.vit_eps:g}, the original's; the library's default is {_LIBRARY_EPS:g}",
        "detector_attention": f"both use {original.detector_attention} attention",
    }[name]
