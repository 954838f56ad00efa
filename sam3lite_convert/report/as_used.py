"""Shows verdict 2: ids on both sides, how far each cause changes the text features, and the recipe."""

from __future__ import annotations

import math

from rich.table import Table

from sam3lite_convert.figures import VERDICTS, ids_shown, number
from sam3lite_convert.records.detector import DetectionError, DetectorBehaviour
from sam3lite_convert.records.parity import BehaviourRecord, FeatureError
from sam3lite_convert.report.terminal import conclude, say, show, width

_LISTED = 10
_NAME = "verdict 2, behaviour: "


def behaved(b: BehaviourRecord) -> None:
    """The evidence for the second verdict."""
    say()
    say(f"as used    {b.candidate}")
    say(f"           {b.tokenizer}")
    for p in b.prompts[:_LISTED]:
        say(f"  {p.prompt!r}: rel. L2 {number(p.relative_l2)}")
        say(f"    original  {ids_shown(p.original, p.valid.original)}")
        say(f"    as used   {ids_shown(p.as_used, p.valid.as_used)}")
    if b.built_in:
        say("  (built-in prompts, one for each cause; for your own use --prompt TEXT or --prompts-file FILE)")
    if b.prompts_total > _LISTED:
        say(f"  ... the {_LISTED} that changed most, of {b.prompts_total:,}")
    say()
    _causes(b)
    say()
    say("The recipe, the shortest code that reproduces the original's text features:", "bold")
    for line in b.recipe.code.splitlines():
        say(f"    {line}")
    say(f"with the recipe: {_named(b.recipe.verdict, b.recipe.summary)}", VERDICTS[b.recipe.verdict])


def verdict(b: BehaviourRecord | None) -> None:
    """The second verdict in one line, or that it was not asked for, and what to do about it."""
    if b is None:
        say(f"{_NAME}not compared; --as-used also calls the model through transformers")
        return
    conclude(_NAME + _named(b.verdict, b.summary), VERDICTS[b.verdict])
    if b.remedy:
        say(f"  {b.remedy}")


def detections(b: DetectorBehaviour) -> None:
    """The evidence for the second verdict on the whole detector, and the verdict."""
    say()
    say(f"as used    {b.candidate}, pictures of {b.size} x {b.size}")
    for prompt in b.prompts[:_LISTED]:
        say(f"  {prompt!r}")
    for part in b.emulated:
        say(f"  {part}")
    say()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("cause, alone", no_wrap=True)
    names = ["objects", "mask IoU", "box L1", "score", "mask logit"]
    shown = len(names) if width() >= 80 else 2
    for name in names[:shown]:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("none: settings matched", *_detection(b.matched)[:shown])
    for cause in b.causes:
        table.add_row(cause.name.replace("_", " "), *_detection(cause.error)[:shown])
    for same in b.absent:
        table.add_row(same.name.replace("_", " "), *["-"] * shown)
    table.add_section()
    table.add_row("all together", *_detection(b.together)[:shown], style="bold")
    table.add_row("with the recipe", *_detection(b.recipe.error)[:shown])
    show(table)
    say("  objects: here / original's; IoU and L1 of those that both have; score and mask logit: largest difference")
    for name, words in [(c.name, c.words) for c in b.causes if c.error.prompts] + [(a.name, a.words) for a in b.absent]:
        say(f"  {name.replace('_', ' ')}: {words}")
    say()
    say("The recipe, the code that finds what the original finds:", "bold")
    for line in b.recipe.code.splitlines():
        say(f"    {line}")
    say(f"with the recipe: {_named(b.recipe.verdict, b.recipe.summary)}", VERDICTS[b.recipe.verdict])
    conclude(_NAME + _named(b.verdict, b.summary), VERDICTS[b.verdict])


def _detection(error: DetectionError) -> list[str]:
    """The figures of a row of the table."""
    return [
        f"{error.objects:,} / {error.objects_original:,}",
        "-" if error.mask_iou is None else f"{error.mask_iou:.4f}",
        "-" if error.box_l1 is None else number(error.box_l1),
        number(error.max_score_diff),
        number(error.max_mask_logit_diff),
    ]


def _named(verdict: str, summary: str) -> str:
    return f"{verdict.replace('_', ' ')}: {summary}"


def _causes(b: BehaviourRecord) -> None:
    """The error of each cause alone, and of all causes together."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("cause, alone", no_wrap=True)
    names = ["rel. L2", "cosine", "max abs", "prompts"]
    shown = len(names) if width() >= 60 else 1
    for name in names[:shown]:
        table.add_column(name, justify="right", no_wrap=True)
    for cause in b.causes:
        table.add_row(cause.name.replace("_", " "), *_figures(cause.error)[:shown])
    for same in b.absent:
        table.add_row(same.name.replace("_", " "), *["-", "-", "-", "0"][:shown])
    table.add_section()
    table.add_row("all together", *_figures(b.together)[:shown], style="bold")
    show(table)
    for name, words in [(c.name, c.words) for c in b.causes if c.error.prompts] + [(a.name, a.words) for a in b.absent]:
        say(f"  {name.replace('_', ' ')}: {words}")


def _figures(error: FeatureError) -> list[str]:
    return [number(error.relative_l2), cosine(error.cosine), number(error.max_abs_diff), f"{error.prompts:,}"]


def cosine(value: float) -> str:
    """A cosine, or a dash if it is undefined because a side is zero or not finite."""
    return f"{value:.6f}" if math.isfinite(value) else "-"
