"""Verdict 2: does the model, as it is called, do what the original does, and if not, by which cause.

The original's call and the stock call differ in a few settings. Each is switched on alone
in the candidate, then all together; compared are the text features at the valid tokens (those of
words, with start and end), where both sides have one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby

import torch
from torch import Tensor

from sam3lite_convert.convert.calling_recipe import PLACEHOLDER, recipe, run_recipe
from sam3lite_convert.convert.clip_ids import PAD
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.figures import number
from sam3lite_convert.parity.as_used.stock_model import (
    STOCK_LENGTH,
    StockModel,
    Tokenizer,
    own_tokenizer,
    stock_model,
    stock_tokenizer,
)
from sam3lite_convert.parity.compare import Difference, Running
from sam3lite_convert.parity.inputs import BATCH
from sam3lite_convert.parity.judgement import FLOORS, Floor
from sam3lite_convert.parity.prompts import cut, words_of
from sam3lite_convert.parity.run import measured_floors
from sam3lite_convert.parity.setup import Setup
from sam3lite_convert.parity.taps import PROJECTED
from sam3lite_convert.records.parity import (
    BehaviourRecord,
    Cause,
    FeatureError,
    NoCause,
    RecipeRecord,
    UsedPrompt,
    ValidTokens,
    Verdict,
)

# One for each cause, where nobody gives prompts.
PROMPTS = (
    "a dog",
    "person in a red coat!",
    "a yellow school bus that is parked in front of the old brick house across the street",
    "the quick brown fox jumps over the lazy dog while the small grey cat sleeps on the warm windowsill of the "
    "house at the end of the long road by the sea",
    "salt &amp; pepper shaker",
    "\uff33\uff34\uff2f\uff30 sign",  # full-width letters
    "\ufb01re hydrant",  # a ligature
)
_LISTED = 20
Advance = Callable[[int], None]


@dataclass(frozen=True)
class CallSettings:
    """How a prompt reaches the text encoder; a field that differs between two calls is a cause. ``text_cleaning``:
    whose ids, a key of ``Prompts.words``; ``truncation``: whether they are cut to the context, with the end id
    last; ``sequence_length``: what they are padded to at least; ``pad_id``: with what; ``mask``: whether padding
    is masked; ``attention``: the implementation."""

    text_cleaning: str
    truncation: bool
    sequence_length: int
    pad_id: int
    mask: bool
    attention: str


@dataclass(frozen=True)
class Call:
    """One prompt on its way: ``ids``, and for each 1 where it is a word and 0 where it is padding; ``masked``:
    whether padding is hidden from attention."""

    ids: tuple[int, ...]
    words: tuple[int, ...]
    masked: bool

    def valid(self, features: Tensor) -> Tensor:
        """The rows of words, of (sequence, width)."""
        return features[torch.tensor(self.words, dtype=torch.bool)]


@dataclass(frozen=True)
class Prompts:
    """Prompts with their ids by either tokenizer, neither cut nor padded; ``context`` is the checkpoint's."""

    texts: tuple[str, ...]
    words: dict[str, list[list[int]]]
    context: int

    def calls(self, settings: CallSettings, rows: range) -> list[Call]:
        """What reaches the encoder for these prompts."""
        out = []
        for words in self.words[settings.text_cleaning][rows.start : rows.stop]:
            words = cut(words, self.context) if settings.truncation else words
            behind = max(settings.sequence_length - len(words), 0)
            ids = (*words, *[settings.pad_id] * behind)
            out.append(Call(ids, (1,) * len(words) + (0,) * behind, settings.mask))
        return out


class Moved:
    """How far text features are from others, at the valid tokens that both have."""

    def __init__(self) -> None:
        self.running = Running()
        self.prompts: list[Difference] = []
        self.moved = self.only_one_side = 0

    def add(self, reference: Tensor, candidate: Tensor) -> None:
        """One prompt's valid tokens, (tokens, output_dim) each."""
        common = min(len(reference), len(candidate))
        one = Running()
        one.add(reference[:common], candidate[:common])
        self.prompts.append(one.difference())
        beyond = abs(len(reference) - len(candidate))
        self.only_one_side += beyond
        self.moved += bool(beyond or self.prompts[-1].max_abs)
        self.running.add(reference[:common], candidate[:common])

    @property
    def zero(self) -> bool:
        return not self.moved

    def record(self) -> FeatureError:
        d = self.running.difference()
        return FeatureError(
            relative_l2=d.relative_l2,
            cosine=d.cosine,
            max_abs_diff=d.max_abs,
            prompts=self.moved,
            tokens_without_counterpart=self.only_one_side,
        )


@dataclass(frozen=True)
class Stock:
    """The stock side of a comparison, loaded."""

    tokenizer: Tokenizer
    model: StockModel


def load_stock(setup: Setup) -> Stock:
    """Raises CannotRun for another layout than transformers', and where its library is missing."""
    if setup.plan.layout.loader.library is None:
        instead = "Use --candidate transformers"
        if setup.folder is not None:
            instead = "Convert with --layout transformers and give that folder"
        raise CannotRun(
            f"--as-used asks how the released transformers model is called; nothing calls the layout {setup.layout} "
            f"that way. {instead}, or leave --as-used out",
            "usage",
        )
    model = stock_model(setup.plan.layout.family, setup.config, setup.weights, setup.dtype)
    return Stock(stock_tokenizer(setup.folder), model)


def behaviour(
    setup: Setup,
    stock: Stock,
    texts: Sequence[str],
    floors: Mapping[str, Floor] | None = None,
    batch: int = BATCH,
    advance: Advance = lambda n: None,
    weights: Verdict = "exact",
) -> BehaviourRecord:
    """Verdict 2 over these prompts, in batches. ``floors``: of this reference, where they are measured already;
    ``advance`` is told how many prompts are done; ``weights``: verdict 1, which decides what to do about this one.

    Raises CannotRun if the tokenizer makes ids that the model's vocabulary does not have.
    """
    context, vocab = (setup.plan.architecture.sizes[name] for name in ("context", "vocab"))
    prompts = Prompts(tuple(texts), {"original": words_of(texts), "stock": stock.tokenizer.words(texts)}, context)
    greatest = max(stock.tokenizer.pad, *(max(ids, default=0) for ids in prompts.words["stock"]))
    if greatest >= vocab:
        raise CannotRun(
            f"{stock.tokenizer.name}: it makes the id {greatest:,}, and the model's vocabulary ends at {vocab - 1:,}",
            "other_tokenizer",
        )
    original = CallSettings("original", True, context, PAD, False, "eager")
    used = CallSettings("stock", False, STOCK_LENGTH, stock.tokenizer.pad, True, stock.model.default_attention)
    causes = {
        f.name: replace(original, **{f.name: getattr(used, f.name)})
        for f in fields(CallSettings)
        if getattr(original, f.name) != getattr(used, f.name)
    }
    moved = {name: Moved() for name in causes}
    together, by_recipe, others = Moved(), Moved(), 0
    as_used: list[Call] = []
    elsewhere: list[str] = []
    for first in range(0, len(texts), batch):
        rows = range(first, min(first + batch, len(texts)))
        calls = prompts.calls(original, rows)
        reference = _reference(setup, calls)
        alone = _features(stock.model, calls, original.attention)
        for name, changed in causes.items():
            _move(moved[name], stock.model, calls, alone, prompts.calls(changed, rows), changed.attention)
        now = [Call(tuple(i), tuple(m), True) for i, m in stock.tokenizer.stock(texts[first : rows.stop])]
        as_used += now
        others += sum(a != b for a, b in zip(now, prompts.calls(used, rows), strict=True))
        for ours, theirs in zip(reference, _features(stock.model, now, used.attention), strict=True):
            together.add(ours, theirs)
        stock.model.use(original.attention)
        ids, features = run_recipe(context, stock.tokenizer.made, stock.model.model, texts[first : rows.stop])
        for text, call, ours, row, theirs in zip(
            texts[first : rows.stop], calls, reference, ids, features, strict=True
        ):
            by_recipe.add(ours, theirs[: _valid(row)])
            if tuple(row.tolist()) != call.ids:
                elsewhere.append(text)
        advance(len(rows))
    zero = together.zero and by_recipe.zero
    # A folder of the text encoder alone holds no model that the recipe could load.
    place = setup.folder.path if setup.folder and setup.plan.options.component == "all" else None
    code = recipe(
        setup.plan.layout.family, context, str(place or PLACEHOLDER), place is not None and own_tokenizer(place)
    )
    limit = 0.0 if zero else _limit(setup, floors)
    notes = []
    if elsewhere:
        notes.append(
            f"the recipe's ids are not the original's for {len(elsewhere)} prompts, as {elsewhere[0][:60]!r}: it "
            "cannot be exact where a prompt spells out a special token, or with a tokenizer that is not CLIP's or that "
            "pads elsewhere"
        )
    if others:
        notes.append(f"{others} prompts get other ids from the processor than these causes add up to")
    dtype = str(setup.dtype).removeprefix("torch.")
    asked = prompts.calls(original, range(len(texts)))
    longer = sum(len(words) > STOCK_LENGTH for words in prompts.words["stock"])
    verdict, recipe_verdict = verdict_of(together, limit), verdict_of(by_recipe, limit)
    return BehaviourRecord(
        verdict=verdict,
        summary=_summary(verdict, together.record(), dtype),
        remedy=_remedy(verdict, recipe_verdict, weights),
        notes=tuple(notes),
        tolerance=limit,
        candidate=f"{stock.model.name}, {used.attention} attention",
        tokenizer=stock.tokenizer.name,
        context=context,
        prompts_total=len(texts),
        built_in=prompts.texts == PROMPTS,
        longer_than_the_processor_pads=longer,
        prompts=_worst(prompts, asked, as_used, together),
        causes=tuple(
            Cause(name=name, words=_words(name, original, used, longer), error=m.record()) for name, m in moved.items()
        ),
        absent=tuple(
            NoCause(name=f.name, words=_same(f.name, original)) for f in fields(CallSettings) if f.name not in moved
        ),
        together=together.record(),
        recipe=RecipeRecord(
            code=code,
            verdict=recipe_verdict,
            summary=_summary(recipe_verdict, by_recipe.record(), dtype),
            error=by_recipe.record(),
        ),
    )


def _limit(setup: Setup, floors: Mapping[str, Floor] | None) -> float:
    """Of the text features' max abs difference: the user's tolerance, or the noise floor's."""
    if setup.tolerance is not None:
        return setup.tolerance
    return FLOORS * (floors or measured_floors(setup))[PROJECTED.name].propagated


def _valid(ids: Tensor) -> int:
    """Tokens up to the end id, which is the greatest."""
    return int(ids.argmax()) + 1


def _reference(setup: Setup, calls: Sequence[Call]) -> list[Tensor]:
    """The original's text features of each call's valid tokens, all in one batch."""
    with torch.inference_mode():
        out = setup.reference.run(torch.tensor([c.ids for c in calls]))[0]
    return [c.valid(row) for row, c in zip(out, calls, strict=True)]


def _features(model: StockModel, calls: Sequence[Call], attention: str) -> list[Tensor]:
    """The candidate's text features of each call's valid tokens; calls of one length go together."""
    out: dict[int, Tensor] = {}
    order = sorted(range(len(calls)), key=lambda n: (len(calls[n].ids), n))
    for _, rows in groupby(order, key=lambda n: len(calls[n].ids)):
        group = list(rows)
        ids = torch.tensor([calls[n].ids for n in group])
        # All calls of the same settings have a mask or none has.
        mask = torch.tensor([calls[n].words for n in group]) if calls[group[0]].masked else None
        for n, row in zip(group, model.features(ids, mask, attention), strict=True):
            out[n] = calls[n].valid(row)
    return [out[n] for n in range(len(calls))]


def _move(
    moved: Moved,
    model: StockModel,
    before: Sequence[Call],
    alone: Sequence[Tensor],
    after: Sequence[Call],
    attention: str,
) -> None:
    """Add how far these calls' features are from those before; equal calls are not made again."""
    changed = [n for n, (a, b) in enumerate(zip(before, after, strict=True)) if a != b or attention != "eager"]
    features = dict(zip(changed, _features(model, [after[n] for n in changed], attention), strict=True))
    for n, ours in enumerate(alone):
        moved.add(ours, features.get(n, ours))


def _worst(prompts: Prompts, ours: Sequence[Call], theirs: Sequence[Call], moved: Moved) -> tuple[UsedPrompt, ...]:
    """The prompts that moved most, the worst first."""
    order = sorted(range(len(prompts.texts)), key=lambda n: -_badness(moved.prompts[n]))
    return tuple(
        UsedPrompt(
            prompt=prompts.texts[n],
            original=ours[n].ids,
            as_used=theirs[n].ids,
            valid=ValidTokens(original=sum(ours[n].words), as_used=sum(theirs[n].words)),
            relative_l2=moved.prompts[n].relative_l2,
            cosine=moved.prompts[n].cosine,
            max_abs_diff=moved.prompts[n].max_abs,
        )
        for n in order[:_LISTED]
    )


def _badness(d: Difference) -> float:
    return d.relative_l2 if d.relative_l2 == d.relative_l2 else float("inf")


def verdict_of(moved: Moved, limit: float) -> Verdict:
    """``exact``: not a bit and not a token differs; ``limit``: of the max abs difference."""
    if moved.zero:
        return "exact"
    worst = moved.running.difference()
    return "within_tolerance" if not moved.only_one_side and worst.max_abs <= limit else "differs"


def _summary(verdict: Verdict, error: FeatureError, dtype: str) -> str:
    """What stands behind the name of a verdict on text features. ``dtype``: both sides ran in it."""
    run = "" if dtype == "float32" else f", run in {dtype} as well,"
    if verdict == "exact":
        return f"the text features of every word are the original's{run} to the bit"
    missing = error.tokens_without_counterpart
    lost = f"; {missing:,} tokens exist on one side only and are not compared" if missing else ""
    figures = f"relative L2 {number(error.relative_l2)}, max abs diff {number(error.max_abs_diff)}"
    return f"the text features of words are off the original's{run} by {figures}{lost}"


def _remedy(verdict: Verdict, recipe_verdict: Verdict, weights: Verdict) -> str | None:
    """What to do about a call that differs."""
    if verdict != "differs":
        return None
    if weights == "differs":
        return "Settle the weights first: with other weights no call gives the original's features."
    if recipe_verdict != "differs":
        return "The weights are not the reason: call the model as the recipe does."
    return "Called as the recipe does, it still differs."


def _words(name: str, original: CallSettings, used: CallSettings, longer: int) -> str:
    """What the stock call does otherwise, in one sentence."""
    beyond = (
        f"; {longer} of these have more than {used.sequence_length}, and a batch with one of them fails there"
        if longer
        else ""
    )
    return {
        "text_cleaning": "the library's tokenizer makes other ids of the text: HTML entities, full-width letters, "
        "ligatures and the names of special tokens are taken otherwise",
        "truncation": f"a prompt longer than {original.sequence_length} tokens is not cut{beyond}",
        "sequence_length": f"padded to {used.sequence_length}, not {original.sequence_length}: the position table is "
        "resized",
        "pad_id": f"padded with id {used.pad_id}, not {original.pad_id}, and padding is attended to",
        "mask": "padding is masked in the text encoder; the original attends to it",
        "attention": f"{used.attention} attention, not eager: other rounding",
    }[name]


def _same(name: str, original: CallSettings) -> str:
    return {
        "sequence_length": f"both pad to {original.sequence_length}",
        "pad_id": f"both pad with id {original.pad_id}",
        "attention": f"both use {original.attention} attention",
    }[name]
