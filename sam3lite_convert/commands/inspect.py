"""Describes a checkpoint from its index."""

from __future__ import annotations

from pathlib import Path

from sam3lite_convert.checkpoint.index import Checkpoint
from sam3lite_convert.commands.sources import Source
from sam3lite_convert.errors import Sam3LiteError, UnsoundPlan
from sam3lite_convert.plan.architecture import TEXT, Architecture, Shapes
from sam3lite_convert.plan.context import called_context
from sam3lite_convert.plan.counts import accounting, parameters
from sam3lite_convert.plan.families import family_of
from sam3lite_convert.plan.infer import infer_architecture
from sam3lite_convert.plan.kinds import kind_of_names
from sam3lite_convert.plan.names import canonical_names
from sam3lite_convert.plan.plan import Options, Plan, make_plan
from sam3lite_convert.plan.stated import stated_vision
from sam3lite_convert.plan.tables import Mappings
from sam3lite_convert.records.inspect import InspectDocument

_COMPONENTS = ("all", "text")  # what convert can be asked for


def inspect_checkpoint(
    source: Source,
    mappings: Mappings,
    causal: bool = False,
    mapping: Path | None = None,
    context: int | None = None,
) -> InspectDocument:
    """What a file is. Reads no tensor data.

    mapping: the folder of the user's that ``mappings`` were read from.
    context: what the model is called with, where the file does not say it.

    Raises CannotRun if the position table has fewer rows than ``context``, CannotRun and Untrusted if the file cannot
    be read. A file that can be read but not converted is described all the same, with the reason under ``convert``.
    """
    with source.trusted():
        checkpoint = source.read(mappings)
    names = canonical_names(checkpoint, mappings.spellings)
    shapes = {name: checkpoint.tensors[keys[0]].shape for name, keys in names.sources.items()}
    family = family_of(shapes)
    found, variants = family.relatives_in(shapes), family.variants_in(shapes)
    plans: dict[str, Plan] = {}
    refusals: dict[str, Sam3LiteError] = {}
    for component in _COMPONENTS:
        try:
            plans[component] = make_plan(
                checkpoint, mappings, Options(family.layout, component, context=context, causal=causal)
            )
        except UnsoundPlan as fault:
            refusals[component] = fault
    plan = plans.get("all") or plans.get("text")
    try:
        architecture = plan.architecture if plan else _inferred(checkpoint, shapes, context, causal)
    except UnsoundPlan:
        architecture = None
    # A file that converts is what it converts as, whatever its tensors are called.
    named = None if plan else kind_of_names(checkpoint.tensors, checkpoint.metadata)
    if named:
        kind = named.what
    elif found:
        kind = " and ".join(r.kind for r in found)
    elif architecture is None:
        kind = "not a SAM3-LiteText checkpoint"
    else:
        kind = family.described(shapes)
        if checkpoint.turned_back:
            kind += f" in the names of {checkpoint.turned_back.names}"
    text = [checkpoint.tensors[keys[0]] for name, keys in names.sources.items() if name.startswith(TEXT)]
    notes = [*checkpoint.notes, *(family.doubts(architecture, variants=variants) if architecture else ())]
    if names.twins:
        notes.append(f"{len(names.twins)} tensors have two spellings; they are compared on conversion")
    return InspectDocument(
        file=source.facts(checkpoint, names, parameters(text)),
        kind=kind,
        prefixes=names.prefixes,
        spellings=names.spellings,
        twins=len(names.twins),
        architecture=architecture.record() if architecture else None,
        context=architecture.context.record() if architecture and architecture.context else None,
        accounting=accounting(checkpoint, names, plan),
        counts=plan.counts if plan else None,
        converts_to=family.layout,
        convert={c: "yes" if c in plans else refusals[c].message for c in _COMPONENTS},
        notes=tuple(notes),
        mapping=str(mapping) if mapping else None,
    )


def _inferred(checkpoint: Checkpoint, shapes: Shapes, context: int | None, causal: bool) -> Architecture:
    """The architecture of a file that cannot be converted, with the context that it is called with."""
    found = infer_architecture(shapes, causal, stated_vision(checkpoint.config))
    return found.with_context(called_context(checkpoint, found.sizes["context"], context))
