"""Verdict 2: does the stock call give the original's text features, and if not, which setting is the cause?

The original's call and the stock call differ in a few settings. Each setting is first changed alone in the candidate,
then all of them together. Text features are compared at the valid tokens (start, words, end) that both sides have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby

import torch
from torch import Tensor

from sam3lite_convert.convert.calling_recipe import PLACEHOLDER, recipe, run_recipe
from sam3lite_convert.convert.clip_ids import PAD
from sam3lite_convert.convert.prompts import cut, words_of
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

# The default prompts: one for each cause.
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
    """How a prompt is turned into the text encoder's input. A field that differs between two calls is a cause.

    ``text_cleaning``: the tokenizer that makes the ids, a key of ``Prompts.words``.
    ``truncation``: whether ids are cut to the context, with the end id last.
    ``table_rows``: rows of the position table that the encoder has, and may resize to the length of a call.
    ``sequence_length``: minimum length that ids are padded to.
    ``pad_id``: the padding id.
    ``mask``: whether padding is masked in attention.
    ``attention``: the attention implementation.
    """

    text_cleaning: str
    truncation: bool
    table_rows: int
    sequence_length: int
    pad_id: int
    mask: bool
    attention: str


@dataclass(frozen=True)
class Call:
    """The encoder's input for one prompt.

    ``ids``: token ids, padded.
    ``words``: for each id, 1 for a valid token and 0 for padding.
    ``masked``: whether padding is masked in attention.
    ``table_rows``: rows of the position table that the encoder has.
    """

    ids: tuple[int, ...]
    words: tuple[int, ...]
    masked: bool
    table_rows: int

    def valid(self, features: Tensor) -> Tensor:
        """The rows of the valid tokens. ``features``: (sequence, width)."""
        return features[torch.tensor(self.words, dtype=torch.bool)]


@dataclass(frozen=True)
class Prompts:
    """Prompts and their ids.

    ``texts``: the prompts.
    ``words``: tokenizer ("original" or "stock") -> ids of each prompt, neither cut nor padded.
    ``context``: what the original is called with, in tokens.
    """

    texts: tuple[str, ...]
    words: dict[str, list[list[int]]]
    context: int

    def calls(self, settings: CallSettings, rows: range) -> list[Call]:
        """The encoder's inputs for the prompts in ``rows``."""
        out = []
        for words in self.words[settings.text_cleaning][rows.start : rows.stop]:
            words = cut(words, self.context) if settings.truncation else words
            behind = max(settings.sequence_length - len(words), 0)
            ids = (*words, *[settings.pad_id] * behind)
            out.append(Call(ids, (1,) * len(words) + (0,) * behind, settings.mask, settings.table_rows))
        return out


class Moved:
    """The difference between two sides' text features, at the valid tokens that both have."""

    def __init__(self) -> None:
        self.running = Running()
        self.prompts: list[Difference] = []
        self.moved = self.only_one_side = self.failed = 0

    def add(self, reference: Tensor, candidate: Tensor | None) -> None:
        """Add one prompt's valid tokens, (tokens, output_dim) on each side; None if the candidate's call failed."""
        if candidate is None:
            one = Running()
            one.add(reference, torch.full_like(reference, torch.nan))
            self.prompts.append(one.difference())
            self.failed += 1
            self.moved += 1
            return
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
            calls_failed=self.failed,
        )


@dataclass(frozen=True)
class Stock:
    """The stock tokenizer and model, loaded."""

    tokenizer: Tokenizer
    model: StockModel


def load_stock(setup: Setup) -> Stock:
    """Load the stock tokenizer and model.

    Raises CannotRun if the layout is not transformers', or if the library is not installed.
    """
    if setup.plan.layout.loader.library is None:
        instead = "Use --candidate transformers"
        if setup.folder is not None:
            instead = "Convert with --layout transformers and give that folder"
        raise CannotRun(
            f"--as-used compares the call of the released transformers model, which does not exist for the layout "
            f"{setup.layout}. {instead}, or leave --as-used out",
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
    """Verdict 2 over these prompts, in batches.

    ``floors``: noise floors of this reference if they were measured already.
    ``advance``: called with the number of prompts after each batch.
    ``weights``: verdict 1, on which the suggested remedy depends.

    Raises CannotRun if the tokenizer makes ids outside the model's vocabulary.
    """
    context, vocab = setup.context, setup.plan.architecture.sizes["vocab"]
    prompts = Prompts(tuple(texts), {"original": words_of(texts), "stock": stock.tokenizer.words(texts)}, context)
    greatest = max(stock.tokenizer.pad, *(max(ids, default=0) for ids in prompts.words["stock"]))
    if greatest >= vocab:
        raise CannotRun(
            f"{stock.tokenizer.name}: it makes the id {greatest:,}, but the model's vocabulary ends at {vocab - 1:,}",
            "other_tokenizer",
        )
    table_rows, there = _rows_of_the_original(setup, stock.model.positions.rows), stock.model.positions.rows
    cut = table_rows if table_rows != there else None
    original = CallSettings("original", True, table_rows, context, PAD, False, "eager")
    used = CallSettings("stock", False, there, STOCK_LENGTH, stock.tokenizer.pad, True, stock.model.default_attention)
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
        now = [Call(tuple(i), tuple(m), True, there) for i, m in stock.tokenizer.stock(texts[first : rows.stop])]
        as_used += now
        others += sum(a != b for a, b in zip(now, prompts.calls(used, rows), strict=True))
        for ours, theirs in zip(reference, _features(stock.model, now, used.attention), strict=True):
            together.add(ours, theirs)
        stock.model.use(original.attention, there)
        ids, features = run_recipe(context, stock.tokenizer.made, stock.model.model, texts[first : rows.stop], cut)
        for text, call, ours, row, theirs in zip(
            texts[first : rows.stop], calls, reference, ids, features, strict=True
        ):
            by_recipe.add(ours, theirs[: _valid(row)])
            if tuple(row.tolist()) != call.ids:
                elsewhere.append(text)
        advance(len(rows))
    zero = together.zero and by_recipe.zero
    # The recipe loads the whole model, which a folder of the text encoder alone does not hold.
    place = setup.folder.path if setup.folder and setup.plan.options.component != "text" else None
    code = recipe(
        setup.plan.layout.family, context, str(place or PLACEHOLDER), place is not None and own_tokenizer(place), cut
    )
    limit = 0.0 if zero else _limit(setup, floors)
    notes = []
    if elsewhere:
        notes.append(
            f"the recipe's ids differ from the original's for {len(elsewhere)} prompts, such as "
            f"{elsewhere[0][:60]!r}: it cannot be exact if a prompt spells out a special token, or if the tokenizer is "
            "not CLIP's or does not pad on the right"
        )
    if others:
        notes.append(f"for {others} prompts the processor's ids are not what these causes together would give")
    dtype = str(setup.dtype).removeprefix("torch.")
    asked = prompts.calls(original, range(len(texts)))
    longer = sum(len(words) > STOCK_LENGTH for words in prompts.words["stock"])
    verdict, recipe_verdict = (_capped(verdict_of(moved, limit), weights) for moved in (together, by_recipe))
    words = words_of_cause if stock.model.positions.resizes else words_of_causal
    return BehaviourRecord(
        verdict=verdict,
        summary=_summary(verdict, together.record(), dtype),
        remedy=_remedy(verdict, recipe_verdict, weights, cut),
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
            Cause(name=name, words=words(name, original, used, longer), error=m.record()) for name, m in moved.items()
        ),
        absent=tuple(
            NoCause(name=f.name, words=words_of_same(f.name, original))
            for f in fields(CallSettings)
            if f.name not in moved
        ),
        together=together.record(),
        recipe=RecipeRecord(
            code=code,
            verdict=recipe_verdict,
            summary=_summary(recipe_verdict, by_recipe.record(), dtype),
            error=by_recipe.record(),
        ),
    )


def _rows_of_the_original(setup: Setup, there: int) -> int:
    """Rows of the candidate's position table that the original reads: the first ones, if they are the original's and
    more follow; else all that are there, since then the table itself is wrong or shorter.

    ``there``: rows of the candidate's table.
    """
    if not setup.evidence.model.resizes_positions:
        return there  # rows behind those of a call change nothing
    source = setup.evidence.full_table
    held = next(setup.weights[m.target] for m in setup.plan.mapped.values() if m.position_table)
    if source is None:
        return there
    own = min(setup.context, source.shape[2])
    # Both as the candidate holds them: after a cast, neither side keeps what the cast rounded off.
    mine, theirs = held[:, :, :own].to(setup.dtype), source[:, :, :own].to(held.dtype).to(setup.dtype)
    return own if own < there and torch.equal(mine, theirs) else there


def _limit(setup: Setup, floors: Mapping[str, Floor] | None) -> float:
    """The largest max abs diff of the text features that passes: the user's tolerance, or the measured one."""
    if setup.tolerance is not None:
        return setup.tolerance
    return FLOORS * (floors or measured_floors(setup))[PROJECTED.name].propagated


def _valid(ids: Tensor) -> int:
    """The number of tokens up to and including the end id, which is the greatest id."""
    return int(ids.argmax()) + 1


def _reference(setup: Setup, calls: Sequence[Call]) -> list[Tensor]:
    """The original's text features at each call's valid tokens, in one batch."""
    with torch.inference_mode():
        out = setup.reference.run(torch.tensor([c.ids for c in calls]))[0]
    return [c.valid(row) for row, c in zip(out, calls, strict=True)]


def _features(model: StockModel, calls: Sequence[Call], attention: str) -> list[Tensor | None]:
    """The candidate's text features at each call's valid tokens; calls of the same length share a batch. None for a
    call on which the library fails."""
    out: dict[int, Tensor | None] = {}
    order = sorted(range(len(calls)), key=lambda n: (len(calls[n].ids), n))
    for _, rows in groupby(order, key=lambda n: len(calls[n].ids)):
        group = list(rows)
        ids = torch.tensor([calls[n].ids for n in group])
        # Calls with the same settings either all have a mask or all have none, and the same table.
        mask = torch.tensor([calls[n].words for n in group]) if calls[group[0]].masked else None
        found = model.features(ids, mask, attention, calls[group[0]].table_rows)
        for n, row in zip(group, [None] * len(group) if found is None else found, strict=True):
            out[n] = None if row is None else calls[n].valid(row)
    return [out[n] for n in range(len(calls))]


def _move(
    moved: Moved,
    model: StockModel,
    before: Sequence[Call],
    alone: Sequence[Tensor | None],
    after: Sequence[Call],
    attention: str,
) -> None:
    """Add the difference that the changed calls make; unchanged calls are not run again."""
    changed = [n for n, (a, b) in enumerate(zip(before, after, strict=True)) if a != b or attention != "eager"]
    features = dict(zip(changed, _features(model, [after[n] for n in changed], attention), strict=True))
    for n, ours in enumerate(alone):
        assert ours is not None  # the call of the original is never longer than the table
        moved.add(ours, features.get(n, ours))


def _worst(prompts: Prompts, ours: Sequence[Call], theirs: Sequence[Call], moved: Moved) -> tuple[UsedPrompt, ...]:
    """The prompts with the largest differences, the worst first."""
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
    """The verdict. ``exact``: no value and no number of tokens differs. ``limit``: largest max abs diff that passes."""
    if moved.zero:
        return "exact"
    worst = moved.running.difference()
    compared = not moved.only_one_side and not moved.failed
    return "within_tolerance" if compared and worst.max_abs <= limit else "differs"


def _capped(verdict: Verdict, weights: Verdict) -> Verdict:
    """A verdict on features that says no more than the one on the weights: what the reference does not read is not
    compared here either."""
    return "incomplete" if weights == "incomplete" and verdict != "differs" else verdict


def _summary(verdict: Verdict, error: FeatureError, dtype: str) -> str:
    """A verdict on text features in one sentence. ``dtype``: what both sides ran in."""
    run = "" if dtype == "float32" else f", both in {dtype}"
    if verdict == "exact":
        return f"the text features of every valid token equal the original's bit for bit{run}"
    if verdict == "incomplete":
        return (
            f"nothing differs beyond the tolerance{run}, but the reference does not read all text tensors of the file"
        )
    missing = error.tokens_without_counterpart
    lost = f"; {missing:,} tokens exist on one side only and were not compared" if missing else ""
    if error.calls_failed:
        prompts = "a prompt, which has" if error.calls_failed == 1 else f"{error.calls_failed:,} prompts, which have"
        lost += f"; the call fails on {prompts} more ids than the position table has rows"
    figures = f"relative L2 {number(error.relative_l2)}, max abs diff {number(error.max_abs_diff)}"
    return f"the text features of valid tokens differ from the original's{run}: {figures}{lost}"


def _remedy(verdict: Verdict, recipe_verdict: Verdict, weights: Verdict, cut: int | None) -> str | None:
    """What to do if the stock call differs; None if it does not. ``cut``: rows that the table is to be cut to."""
    if verdict != "differs":
        return None
    if cut is not None and recipe_verdict != "differs":
        return (
            f"The tensors are the original's, but the original reads only the first {cut} rows of the position table. "
            "Call the model as in the recipe, which cuts it, or convert the checkpoint again."
        )
    if weights == "differs":
        return "Fix the weights first: as long as they differ, no call gives the original's features."
    if recipe_verdict != "differs":
        return "The weights are not the cause. Call the model as in the recipe."
    return "It still differs when called as in the recipe."


def words_of_cause(name: str, original: CallSettings, used: CallSettings, longer: int = 0) -> str:
    """What the stock call does differently, in a sentence. ``longer``: prompts of more tokens than it pads to."""
    beyond = (
        f"; {longer} of these have more than {used.sequence_length}, and the processor fails on a batch with one"
        if longer
        else ""
    )
    return {
        "text_cleaning": "the library's tokenizer makes different ids: it handles HTML entities, full-width letters, "
        "ligatures and the names of special tokens differently",
        "truncation": f"a prompt longer than {original.sequence_length} tokens is not cut{beyond}",
        "table_rows": f"the folder's position table has {used.table_rows} rows, all of which are resized to the length "
        f"of a call; the original reads the first {original.table_rows} alone",
        "sequence_length": f"padded to {used.sequence_length}, not {original.sequence_length}: the position table is "
        "resized",
        "pad_id": f"padded with id {used.pad_id}, not {original.pad_id}, and attention reads the padding",
        "mask": "padding is masked in the text encoder; the original attends to it",
        "attention": f"{used.attention} attention, not eager: different rounding",
    }[name]


def words_of_causal(name: str, original: CallSettings, used: CallSettings, longer: int = 0) -> str:
    """The same for an encoder that masks causally and never resizes its table."""
    rows, length = used.table_rows, used.sequence_length
    fails = f": more than the {rows} rows of the position table, and the model fails" if length > rows else ""
    words = {
        "truncation": f"a prompt longer than {original.sequence_length} tokens is not cut, and the model fails on more "
        f"than {rows}",
        "sequence_length": f"padded to {length}, not {original.sequence_length}{fails}",
        "pad_id": f"padded with id {used.pad_id}, not {original.pad_id}; padding stands behind the words, which do not "
        "read it",
        "mask": "padding is masked in the text encoder, but not in the original; no word reads what is behind it",
    }
    return words[name] if name in words else words_of_cause(name, original, used, longer)


def words_of_same(name: str, original: CallSettings) -> str:
    """In what both calls agree, in one sentence."""
    return {
        "table_rows": f"both have a position table of {original.table_rows} rows",
        "sequence_length": f"both pad to {original.sequence_length}",
        "pad_id": f"both pad with id {original.pad_id}",
        "attention": f"both use {original.attention} attention",
    }[name]
