"""Keys as patterns: ``text_encoder.layers.{0..11}.self_attn.{q,k}_proj.weight`` stands for 24 keys."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_Key = tuple[tuple[str, ...], ...]  # one entry a part of the key: the values that it takes


class KeyPattern(NamedTuple):
    """A pattern that stands for keys.

    text: the pattern, with the number of keys if that is more than one. first: the first of the keys.
    expression: a regular expression for them, with any number where they have several.
    """

    text: str
    first: str
    expression: str


def grouped(keys: Iterable[str]) -> tuple[KeyPattern, ...]:
    """Patterns that together stand for exactly these keys."""
    return tuple(
        KeyPattern(_shown(box), ".".join(values[0] for values in box), r"\.".join(map(_expression, box)))
        for box in _boxes(keys)
    )


def key_patterns(keys: Iterable[str]) -> tuple[str, ...]:
    """Patterns that stand for exactly these keys, each with its number of keys if that is more than one."""
    return tuple(map(_shown, _boxes(keys)))


def listed(keys: Iterable[str], most: int = 8) -> str:
    """The patterns of these keys on one line: so many of them, and the number of the others."""
    patterns = key_patterns(keys)
    more = f" and {len(patterns) - most:,} more groups of keys" if len(patterns) > most else ""
    return ", ".join(patterns[:most]) + more


def _expression(values: Sequence[str]) -> str:
    if len(values) > 1 and all(map(_is_number, values)):
        return r"\d+"
    return re.escape(values[0]) if len(values) == 1 else f"(?:{'|'.join(map(re.escape, values))})"


def _boxes(keys: Iterable[str]) -> list[_Key]:
    boxes: list[_Key] = [tuple((part,) for part in key.split(".")) for key in dict.fromkeys(keys)]
    merged = True
    while merged:
        merged = False
        # Numbers of layers first: a pattern over layers is what people look for.
        for numeric in (True, False):
            for place in range(max(map(len, boxes), default=0)):
                fewer = _merged(boxes, place, numeric)
                merged |= len(fewer) < len(boxes)
                boxes = fewer
    return boxes


def _merged(boxes: Sequence[_Key], place: int, numeric: bool) -> list[_Key]:
    """The boxes, with those merged that differ at one place only."""
    groups: dict[tuple[_Key, _Key, bool], list[str]] = {}
    out: dict[object, _Key] = {}
    for box in boxes:
        if place >= len(box) or all(map(_is_number, box[place])) is not numeric:
            out[box] = box
            continue
        name = (box[:place], box[place + 1 :], numeric)
        values = groups.setdefault(name, [])
        values += [v for v in box[place] if v not in values]
        out[name] = (*name[0], tuple(values), *name[1])
    return list(out.values())


def _shown(box: _Key) -> str:
    count = 1
    for values in box:
        count *= len(values)
    text = ".".join(map(_part, box))
    return f"{text} ({count:,})" if count > 1 else text


def _part(values: Sequence[str]) -> str:
    if len(values) == 1:
        return values[0]
    if all(map(_is_number, values)):
        return "{" + number_ranges(map(int, values)) + "}"
    start = _common_start(values)
    # A name is cut between its words only.
    start = start[: max(map(start.rfind, "_ ")) + 1]
    rest = [v[len(start) :] for v in values]
    end = _common_start([v[::-1] for v in rest])[::-1]
    end = end[end.find("_") :] if "_" in end else ""
    return start + "{" + ",".join(v[: len(v) - len(end)] for v in rest) + "}" + end


def _common_start(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)
    return first[: next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]


def _is_number(part: str) -> bool:
    return part.isdecimal() and str(int(part)) == part


def number_ranges(numbers: Iterable[int]) -> str:
    """Numbers in short, in order: 0..5,7,9."""
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and runs[-1][-1] == n - 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ",".join(f"{run[0]}..{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)
