"""Describes a checkpoint from its index."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sam3lite_convert.commands.sources import Source
from sam3lite_convert.errors import UnsoundPlan
from sam3lite_convert.plan.architecture import SAM3_TEXT_PARAMETERS, TEXT
from sam3lite_convert.plan.counts import components, dtype_counts, parameters
from sam3lite_convert.plan.infer import infer_architecture
from sam3lite_convert.plan.names import canonical_names
from sam3lite_convert.plan.plan import Options, Plan, make_plan
from sam3lite_convert.plan.relatives import relatives
from sam3lite_convert.plan.tables import Mappings
from sam3lite_convert.workers import Advance

Record = dict[str, Any]
Progress = Callable[[str], Advance]


def inspect_checkpoint(source: Source, mappings: Mappings, causal: bool = False) -> Record:
    """Describe a file. Reads no tensor data.

    A file that cannot be converted is described too, with the reason under ``convert``. Raises CannotRun or
    Untrusted if the file cannot be read.
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
        kind = "not a SAM3-LiteText checkpoint"
    else:
        kind = "SAM3-LiteText text encoder without a detector" if only_text else "SAM3-LiteText detector"
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
        "sam3_text_parameters": int(SAM3_TEXT_PARAMETERS),
        "components": {k: c.record() for k, c in components(checkpoint, names, plan).items()},
        "counts": plan.counts if plan else {"source": len(checkpoint.tensors)},
        "dropped": {d.label: d.reason for d in plan.dropped.values()} if plan else {},
        "convert": {c: "yes" if c in plans else refusals[c].message for c in ("all", "text")},
        "notes": list(checkpoint.notes)
        + (architecture.doubts if architecture else [])
        + ([f"{len(names.twins)} tensors are stored under two names; convert compares them"] if names.twins else []),
    }
