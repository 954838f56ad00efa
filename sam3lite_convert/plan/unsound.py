"""The faults of a plan, and the message that tells them: grouped by cause, at most a screen."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sam3lite_convert.plan.key_patterns import grouped
from sam3lite_convert.quoting import visible
from sam3lite_convert.records.record import Json, json_value

Expected = tuple[int | None, ...]  # a shape; None for a side that the file does not show
ROWS, COLUMNS = 24, 80  # of a terminal: what a message takes at most
_UNTOLD = 3  # rows for the causes that there is no room for
_GROUPED = 5000  # keys of one kind that are looked through for patterns
_LONGEST = 200  # characters of a key or a detail; a key in a file may be a million long


@dataclass(frozen=True)
class PlanFault:
    """One reason why a plan is not sound. ``kind`` is stable; ``near`` are known names like it, ``sources`` the source
    keys that it is about where ``key`` is a target: those that are missing, or the one that a rule writes to it."""

    kind: str
    key: str
    detail: str
    near: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    def record(self) -> Json:
        """The fault as JSON, for the details of an error."""
        return {"kind": self.kind, "key": self.key, "detail": self.detail, "near": json_value(self.near)}


@dataclass(frozen=True)
class Group:
    """Faults of one kind and one cause, as one pattern of keys.

    pattern: of the keys; for targets without a source, of the source keys. first: one of these keys.
    detail: of the first fault.
    """

    kind: str
    pattern: str
    first: str
    detail: str

    def record(self) -> Json:
        """The group as JSON, for the details of an error."""
        return {"kind": self.kind, "pattern": self.pattern, "detail": self.detail}


@dataclass(frozen=True)
class Cause:
    """One cause in a message.

    title: what it is.
    groups: a text for each group of keys, of one or more lines; as many are shown as there is room for.
    way: what to do about it, line by line.
    """

    title: str
    groups: Sequence[str] = ()
    way: Sequence[str] = ()


_TITLES = {  # kind -> of one, of several
    "unmatched": ("source key without a rule", "source keys without a rule"),
    "not_turned_back": ("tensor that is not turned back", "tensors that are not turned back"),
    "overlap": ("source key with more than one rule", "source keys with more than one rule"),
    "collision": ("target with two sources", "targets with two sources"),
    "unknown_target": ("target that the layout does not have", "targets that the layout does not have"),
    "wrong_shape": ("tensor of the wrong shape", "tensors of the wrong shape"),
    "not_joined": ("target whose sources do not fit each other", "targets whose sources do not fit each other"),
    "wrong_dtype": ("tensor of the wrong dtype", "tensors of the wrong dtype"),
    "missing_component": ("component missing from the file", "components missing from the file"),
    "unfilled": ("target without a source", "targets without a source"),
}


def title(kind: str, faults: Iterable[PlanFault]) -> str:
    """What faults of this kind are, with their number: ``3 tensors of the wrong shape``."""
    count = len({fault.key for fault in faults})
    return f"{count:,} {_TITLES[kind][count != 1]}"


def fault_groups(faults: Iterable[PlanFault]) -> list[Group]:
    """The faults as groups, by kind and by cause."""
    by_cause: dict[tuple[str, str], list[PlanFault]] = {}
    first: dict[tuple[str, str], PlanFault] = {}
    for fault in faults:
        first.setdefault((fault.kind, fault.key), fault)
    for fault in first.values():
        by_cause.setdefault((fault.kind, _cause(fault)), []).append(fault)
    out = []
    order = list(_TITLES)
    for (kind, _), some in sorted(by_cause.items(), key=lambda item: order.index(item[0][0])):
        # A target that the layout does not have is itself what is wrong; its source is in the file.
        of_sources = kind != "unknown_target"
        names = (fault.sources if of_sources and fault.sources else (fault.key,) for fault in some[:_GROUPED])
        keys = dict.fromkeys(name for each in names for name in each)
        more = f" and {len(some) - _GROUPED:,} more" if len(some) > _GROUPED else ""
        out += [Group(kind, pattern.text + more, pattern.first, some[0].detail) for pattern in grouped(keys)]
    return out


def _cause(fault: PlanFault) -> str:
    """The detail of a fault without what differs between the layers of a stack."""
    detail = fault.detail
    for source in fault.sources:
        detail = detail.replace(source, "*")
    return re.sub(r"(?<=\.)\d+(?=\.)", "#", detail)


def shown(text: str) -> str:
    """A key or a detail as one line that is not too long; names come from files that may hold anything."""
    plain = visible(text)
    return plain if len(plain) <= _LONGEST else f"{plain[: _LONGEST // 2]} [...] {plain[-_LONGEST // 3 :]}"


def on_a_screen(first: str, causes: Sequence[Cause], last: Sequence[str], most: int = ROWS) -> str:
    """A message of at most ``most`` rows: the first line, the causes, and the last lines, which say what to do.

    Where there is no room, groups are left out, and then whole causes; both are counted.
    """
    least = [rows(c.title) + sum(map(rows, c.way)) + sum(map(rows, c.groups[:1])) + 1 for c in causes]
    room = most - rows(first) - sum(map(rows, last)) - 1
    if sum(least) > room:
        room -= _UNTOLD
    kept: list[Cause] = []
    for cause, needed in zip(causes, least, strict=True):
        if not kept or needed <= room:
            kept.append(cause)
            room -= needed
    # The room that is left goes to the causes in turn, a group at a time.
    counts = [min(1, len(cause.groups)) for cause in kept]
    waiting = True
    while waiting:
        waiting = False
        for n, cause in enumerate(kept):
            if counts[n] < len(cause.groups) and rows(cause.groups[counts[n]]) <= room:
                room -= rows(cause.groups[counts[n]])
                counts[n] += 1
                waiting = True
    lines = [first]
    for cause, count in zip(kept, counts, strict=True):
        lines += [cause.title, *cause.groups[:count]]
        if left := len(cause.groups) - count:
            lines.append(f"  ... and {left:,} more {'group' if left == 1 else 'groups'} of keys: --json")
        lines += cause.way
    if untold := [cause.title.removesuffix(":") for cause in causes if cause not in kept]:
        lines.append(shown(f"and {'; '.join(untold)}: --json"))
    return "\n".join([*lines, *last])


def rows(text: str) -> int:
    """The rows that a text takes in a terminal."""
    return sum(max(1, math.ceil(len(line) / COLUMNS)) for line in text.split("\n"))


def shape_text(shape: Expected) -> str:
    """``3x4``; ``?`` for a side that is not known; ``scalar`` without sides."""
    return "x".join("?" if n is None else str(n) for n in shape) or "scalar"


def listed(faults: Sequence[str], shown: int = 5) -> str:
    """The first faults in one line, and how many more there are."""
    more = f" (and {len(faults) - shown:,} more)" if len(faults) > shown else ""
    return "; ".join(faults[:shown]) + more
