"""Formats numbers, token ids and names of components for people, the same way everywhere."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

VERDICTS = {  # verdict -> style
    "exact": "bold green",
    "within_tolerance": "bold green",
    "incomplete": "bold yellow",
    "differs": "bold red",
}


def number(value: float | None) -> str:
    """A number in a table: 0.0, 4.38e-01, or inf if it is not finite. None stands for NaN or infinity in JSON."""
    if value is None or not math.isfinite(value):
        return "inf"
    return "0.0" if value == 0 else f"{value:.2e}"


def ids_shown(ids: Sequence[int], valid: int | None = None) -> str:
    """Token ids, with the padding as counts: 49406 1929 49407 0 x13.

    valid: the number of ids before the padding; if None, it ends after the first of the greatest ids.
    """
    valid = list(ids).index(max(ids)) + 1 if valid is None else valid
    words, behind = list(map(str, ids[:valid])), ids[valid:]
    for pad, run in itertools.groupby(behind):
        n = len(list(run))
        words.append(f"{pad} x{n}" if n > 1 else str(pad))
    return " ".join(words)


def human_bytes(n: float) -> str:
    """2,205,231,568 -> 2.21 GB (decimal units)."""
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.2f} GB"


def human_count(n: int) -> str:
    """42,540,000 -> 42.54 M."""
    return f"{n / 1e6:.2f} M" if n >= 100_000 else f"{n:,}"


def component_words(component: str) -> str:
    """detr_encoder -> DETR encoder, text_encoder -> text encoder."""
    return component.replace("_", " ").replace("detr", "DETR")


def in_sentence(words: Sequence[str], last: str = "and") -> str:
    """a, b and c."""
    return f"{', '.join(words[:-1])} {last} {words[-1]}" if len(words) > 1 else "".join(words)


def only_compared(names: Sequence[str], every: int) -> str:
    """Which taps were compared, where not all were: a verdict on few of them must not read as one on the whole."""
    if len(names) > 4:
        return f"only {len(names)} of {every} taps were compared"
    verb = "was" if len(names) == 1 else "were"
    return f"only {in_sentence(names)} {verb} compared ({len(names)} of {every} taps)"


def plural(n: int, noun: str) -> str:
    """1 head, 2 heads."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
