"""The faults of a plan, and the message that lists them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from sam3lite_convert.errors import UnsoundPlan
from sam3lite_convert.records.record import Json, json_value

Expected = tuple[int | None, ...]  # a shape; None for a side that the file does not show
_LISTED = 100  # faults of one kind that a message spells out; --json lists all


@dataclass(frozen=True)
class PlanFault:
    """One reason why a plan is not sound. ``kind`` is stable; ``near`` are known names like it,
    ``sources`` the source keys that would mend it."""

    kind: str
    key: str
    detail: str
    near: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    def record(self) -> Json:
        """The fault as JSON, for the details of an error."""
        return {"kind": self.kind, "key": self.key, "detail": self.detail, "near": json_value(self.near)}


_TITLES = {
    "unmatched": "source keys without a rule",
    "overlap": "source keys with more than one rule",
    "collision": "targets with two sources",
    "unknown_target": "targets that the layout does not have",
    "wrong_shape": "tensors of the wrong shape",
    "wrong_dtype": "tensors of the wrong dtype",
    "missing_component": "components missing from the file",
    "unfilled": "targets without a source",
}


def unsound(faults: Sequence[PlanFault], file: str, known: Iterable[str], way: str) -> UnsoundPlan:
    """The error that lists ``faults`` of the plan for ``file``, by kind, in full under ``details``.

    ``known``: names to suggest for a key without a rule. ``way``: the last line, what to do.
    """
    names = dict.fromkeys([*known, *(name for f in faults for name in f.sources)])
    named = []
    for n, fault in enumerate(faults):
        if fault.kind == "unmatched" and n < _LISTED:
            fault = replace(fault, near=tuple(difflib.get_close_matches(fault.key, names, 2, 0.75)))
        named.append(fault)
    lines = [f"{file}: the plan is not sound, so nothing was written."]
    for kind, title in _TITLES.items():
        some = [f for f in named if f.kind == kind]
        if some:
            lines.append(f"{len(some)} {title}:")
        for fault in some[:_LISTED]:
            near = f"\n      similar names: {', '.join(fault.near)}" if fault.near else ""
            lines.append(f"  {fault.key}\n      {fault.detail}{near}")
        if len(some) > _LISTED:
            lines.append(f"  ... and {len(some) - _LISTED} more; --json lists all")
    lines.append(way)
    return UnsoundPlan("\n".join(lines), "unsound_plan", {"faults": [f.record() for f in named]})


def shape_text(shape: Expected) -> str:
    """``3x4``; ``?`` for a side that is not known; ``scalar`` without sides."""
    return "x".join("?" if n is None else str(n) for n in shape) or "scalar"
