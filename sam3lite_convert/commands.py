"""What each command does, as functions that return the record which text and JSON are made from."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sam3lite_convert.architecture import TEXT, infer_architecture, relatives
from sam3lite_convert.errors import CannotRun, UnsoundPlan
from sam3lite_convert.names import canonical_names
from sam3lite_convert.plan import Dropped, Mapped, Options, Plan, make_plan
from sam3lite_convert.sources import Source
from sam3lite_convert.streams import Advance
from sam3lite_convert.summary import components, dtype_counts, parameters
from sam3lite_convert.tables import Mappings

Record = dict[str, Any]
Progress = Callable[[str], Advance]


def inspect_checkpoint(source: Source, mappings: Mappings, causal: bool = False) -> Record:
    """What a file is. Reads no tensor data.

    Raises CannotRun and Untrusted for files that cannot be read; a file that can be read but not
    converted is described all the same, with the reason under ``convert``.
    """
    with source.trusted():
        checkpoint = source.read()
    names = canonical_names(checkpoint, mappings.spellings)
    shapes = {name: checkpoint.tensors[keys[0]].shape for name, keys in names.sources.items()}
    found = relatives(shapes)
    plans: dict[str, Plan] = {}
    refusals: dict[str, UnsoundPlan] = {}
    for component in ("all", "text"):
        try:
            plans[component] = make_plan(checkpoint, mappings, Options("packed", component, causal=causal))
        except UnsoundPlan as fault:
            refusals[component] = fault
    plan = plans.get("all") or plans.get("text")
    try:
        architecture = plan.architecture if plan else infer_architecture(shapes, causal)
    except UnsoundPlan:
        architecture = None
    only_text = all(name.startswith(TEXT) for name in names.sources)
    if found:
        kind = " and ".join(r.kind for r in found)
    elif architecture is None:
        kind = "not a checkpoint of this family"
    else:
        kind = "SAM3-LiteText text encoder alone" if only_text else "SAM3-LiteText detector"
    text = [checkpoint.tensors[keys[0]] for name, keys in names.sources.items() if name.startswith(TEXT)]
    return {
        "checkpoint": source.name,
        "option": source.option,
        "source": source.provenance(),
        "fetched": source.fetched(),
        "kind": kind,
        "size": checkpoint.size,
        "format": checkpoint.format,
        "wrapper": checkpoint.wrapper,
        "prefix": names.prefix,
        "prefixes": names.prefixes,
        "spellings": names.spellings,
        "twins": len(names.twins),
        "dtypes": dtype_counts(checkpoint),
        "architecture": architecture.record() if architecture else None,
        "text_parameters": parameters(text),
        "components": {k: c.record() for k, c in components(checkpoint, names, plan).items()},
        "counts": plan.counts if plan else {"source": len(checkpoint.tensors)},
        "dropped": {d.label: d.reason for d in plan.dropped.values()} if plan else {},
        "convert": {c: "yes" if c in plans else refusals[c].message for c in ("all", "text")},
        "notes": list(checkpoint.notes)
        + (architecture.doubts if architecture else [])
        + ([f"{len(names.twins)} tensors have two spellings; they are compared on conversion"] if names.twins else []),
    }


def verify_folder(
    folder: Path,
    source: Source,
    mappings: Mappings,
    causal: bool = False,
    progress: Progress | None = None,
    report_of: str | None = None,
) -> Record:
    """Prove a folder; the record's ``verdict`` says whether it is. ``report_of``: the command as it was typed,
    where the record also has to hold what a report shows."""
    from sam3lite_convert.folder import read_folder
    from sam3lite_convert.report_data import provenance
    from sam3lite_convert.verify import recognise, verify  # loads numpy; convert starts without

    found = read_folder(folder)
    receipt = found.receipt.get("options") if found.receipt else None
    causal = causal or bool(isinstance(receipt, dict) and receipt.get("causal"))
    with source.trusted():
        plan = recognise(found, source.read(), mappings, causal)
        record = verify(found, plan, progress).record()
    return {
        "folder": str(folder),
        "checkpoint": source.name,
        "option": source.option,
        "source": source.provenance(),
        "targets": plan.counts["target"],
        **record,
        **(provenance(plan, found, report_of) if report_of is not None else {}),
    }


def explain_key(source: Source, key: str, mappings: Mappings, options: Options) -> Record:
    """What happens to one key; ``key`` is a source key in any spelling, or a target key.

    Raises CannotRun, with the nearest names, for a key that is neither.
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
        hint = "\nThe nearest names:\n  " + "\n  ".join(near) if near else ""
        message = f"{key} is neither a source key nor a target key of this conversion.{hint}"
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


def parse_size(text: str) -> int:
    """``500MB``, ``2GB``, ``1.5GiB`` or plain bytes, to bytes. Raises CannotRun for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMG]?)(i?)B?\s*", text, re.IGNORECASE)
    if not match or float(match[1]) <= 0:
        raise CannotRun(f"--max-shard-size {text!r}: write it like 500MB, 2GB or 1GiB", "bad_size")
    base = 1024 if match[3] else 1000
    size = int(float(match[1]) * base ** " kmg".index(match[2].lower() or " "))
    if size < 1:
        raise CannotRun(f"--max-shard-size {text!r}: less than a byte", "bad_size")
    return size
