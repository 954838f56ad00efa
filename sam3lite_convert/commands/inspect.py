"""What a checkpoint is, from its index alone."""

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
from sam3lite_convert.plan.tables import Mappings
from sam3lite_convert.workers import Advance

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
    family = mappings.layout(Options().layout).family
    found = family.relatives_in(shapes)
    plans: dict[str, Plan] = {}
    refusals: dict[str, UnsoundPlan] = {}
    for component in ("all", "text"):
        try:
            plans[component] = make_plan(checkpoint, mappings, Options(component=component, causal=causal))
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
        kind = f"{family.name} {'text encoder alone' if only_text else 'detector'}"
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
        + (family.doubts(architecture) if architecture else [])
        + ([f"{len(names.twins)} tensors have two spellings; they are compared on conversion"] if names.twins else []),
    }
