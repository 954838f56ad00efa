"""How one tensor of a checkpoint is converted."""

from __future__ import annotations

import difflib
from typing import Any

from sam3lite_convert.commands.inspect import Record
from sam3lite_convert.commands.sources import Source
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.plan.plan import Dropped, Mapped, Options, make_plan
from sam3lite_convert.plan.tables import Mappings


def explain_key(source: Source, key: str, mappings: Mappings, options: Options) -> Record:
    """How one tensor is converted. ``key``: a source key in any spelling, or a target key.

    Raises CannotRun, with the nearest names, if ``key`` is neither.
    """
    with source.trusted():
        plan = make_plan(source.read(), mappings, options)
    canonical = {m.canonical: m.source.key for m in plan.mapped.values()}
    canonical |= {d.canonical: d.source.key for d in plan.dropped.values() if d.label != "twin"}
    found = key if key in plan.checkpoint.tensors else canonical.get(key)
    if found is None and key in plan.mapped:
        found = plan.mapped[key].source.key
    if found is None:
        found = next((m.source.key for m in plan.mapped.values() if m.target == key), None)
    if found is None:
        near = difflib.get_close_matches(key, [*plan.checkpoint.tensors, *canonical, *plan.mapped], 4, 0.6)
        hint = "\nNearest names:\n  " + "\n  ".join(near) if near else ""
        message = f"{key} is not a tensor of the checkpoint, nor of its conversion.{hint}"
        raise CannotRun(message, "unknown_key", {"near": near})
    record: Record = {"key": key, "layout": plan.layout.name, "fetched": source.fetched()}
    if found in plan.dropped:
        return record | _explain_dropped(plan.dropped[found])
    pieces = [m for m in plan.mapped.values() if m.source.key == found]
    return record | _explain_mapped(pieces)


def _tensor(key: str, dtype: str, shape: tuple[int, ...], **more: Any) -> Record:
    return {"key": key, "dtype": dtype, "shape": list(shape), **{k: v for k, v in more.items() if v is not None}}


def _explain_dropped(dropped: Dropped) -> Record:
    s, rule = dropped.source, dropped.rule
    return {
        "outcome": "dropped",
        "source": _tensor(s.key, s.dtype, s.shape, canonical=dropped.canonical),
        "reason": dropped.reason,
        "rule": {"name": rule.name, "table": rule.table, "pattern": rule.pattern} if rule else None,
        "targets": [],
    }


def _explain_mapped(pieces: list[Mapped]) -> Record:
    first = pieces[0]
    s, rule = first.source, first.rule
    return {
        "outcome": "mapped",
        "source": _tensor(s.key, s.dtype, s.shape, canonical=first.canonical),
        "operation": first.operation,
        "rule": {"name": rule.name, "table": rule.table, "pattern": rule.pattern, "targets": list(rule.targets)},
        "targets": [_tensor(p.key, p.dtype, p.shape, part=p.part) for p in pieces],
    }
