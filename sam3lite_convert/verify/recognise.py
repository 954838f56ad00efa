"""Recognises from a folder's keys and tensors which conversion it is."""

from __future__ import annotations

import contextlib
from collections import Counter

from sam3lite_convert.checkpoint import dtypes
from sam3lite_convert.checkpoint.index import Checkpoint
from sam3lite_convert.convert.folder import Folder
from sam3lite_convert.errors import CannotRun, UnsoundPlan
from sam3lite_convert.plan.architecture import Architecture
from sam3lite_convert.plan.families import family_of
from sam3lite_convert.plan.infer import infer_architecture, with_levels
from sam3lite_convert.plan.names import canonical_names
from sam3lite_convert.plan.operations import positions
from sam3lite_convert.plan.plan import Options, Plan, make_plan
from sam3lite_convert.plan.tables import Layout, Mappings
from sam3lite_convert.plan.targets import expected_targets, written_name


def recognise(folder: Folder, checkpoint: Checkpoint, mappings: Mappings, causal: bool = False) -> Plan:
    """The plan of the conversion that the folder seems to be, recognised from its keys and tensors.

    Raises CannotRun if its keys belong to no known layout or the layout's mapping tables were not given, UnsoundPlan
    if no plan fits the checkpoint.
    """
    receipt = folder.receipt or {}
    said = receipt.get("layout")
    if receipt.get("own_tables") is True and said not in list(mappings.layouts):
        raise CannotRun(
            f"{folder.path} was converted to the layout {said} with other mapping tables; pass their folder with "
            "--mapping DIR",
            "unknown_layout",
        )
    names = canonical_names(checkpoint, mappings.spellings)
    try:
        architecture = infer_architecture({n: checkpoint.tensors[k[0]].shape for n, k in names.sources.items()}, causal)
    except UnsoundPlan:
        make_plan(checkpoint, mappings, Options(causal=causal))  # says what it is, if it is known
        raise
    keys = set(folder.tensors) | folder.listed
    # First criterion: how many of the folder's keys a layout explains, since a folder that lost tensors still has its
    # layout. Second: how many of the layout's keys the folder holds. Third, if two layouts have the same keys: which
    # of them the receipt names.
    scores: dict[tuple[str, str], tuple[float, float, bool]] = {}
    family = family_of(names.sources)
    variants = [variant.name for variant in family.variants_in(names.sources)]
    for layout, component in mappings.fitting(family, variants):
        targets = expected_targets(layout, _with_levels(architecture, layout, component), component)
        wanted = {written_name(target, layout, component)[1] for target, _ in targets}
        if component != "text" and layout.open:  # it takes whatever the file has there
            wanted |= {key for key in keys if key.startswith(layout.open)}
        common = len(keys & wanted)
        if common:
            scores[layout.name, component] = (common / len(keys), common / len(wanted), layout.name == said)
    if not scores:
        raise CannotRun(
            f"{folder.path}: its keys match no layout of {family.name} ({', '.join(mappings.names)}); the first are "
            + ", ".join(sorted(keys)[:3]),
            "unknown_layout",
        )
    best = max(scores, key=lambda k: scores[k])
    # A dtype that no converted folder can hold was cast by whoever wrote this one.
    floating = {t.dtype for t in checkpoint.tensors.values() if dtypes.is_floating(t.dtype)}
    cast = None
    if not all(map(dtypes.safetensors_code, floating)):
        cast = next((t.dtype for _, t in folder.tensors.values() if dtypes.is_floating(t.dtype)), None)
    plan = make_plan(checkpoint, mappings, Options(*best, dtype=cast, causal=causal))
    options = Options(*best, _cast_to(folder, plan), _context(folder, plan), causal)
    return plan if options == plan.options else make_plan(checkpoint, mappings, options)


def _with_levels(architecture: Architecture, layout: Layout, component: str) -> Architecture:
    """The architecture with the neck that the layout has; as it is, if the layout has no such neck."""
    if layout.neck_levels and component != "text" and architecture.vision is not None:
        with contextlib.suppress(UnsoundPlan):
            return with_levels(architecture, layout.neck_levels)
    return architecture


def _cast_to(folder: Folder, plan: Plan) -> str | None:
    """The dtype that the folder's floating tensors were cast to; None if they have the dtypes of the source."""
    pairs = [
        (piece.source.dtype, folder.tensors[key][1].dtype)
        for key, piece in plan.mapped.items()
        if key in folder.tensors and dtypes.is_floating(piece.source.dtype)
    ]
    kept = sum(source == found for source, found in pairs)
    common = Counter(found for _, found in pairs if dtypes.is_floating(found)).most_common(1)
    if not common or kept == len(pairs) or kept > common[0][1]:
        return None
    # A single wrong tensor is not a cast: either all tensors have one dtype, or most did not keep their own.
    return common[0][0] if common[0][1] == len(pairs) or kept < len(pairs) / 2 else None


def _context(folder: Folder, plan: Plan) -> int | None:
    """The ``--context`` that gives the rows that the folder holds; None if the checkpoint's own statement gives them,
    or if nothing does because they are more than the checkpoint has."""
    source = plan.context
    options = (folder.receipt or {}).get("options")
    stated = options.get("context") if isinstance(options, dict) else None
    for key, piece in plan.mapped.items():
        if not piece.position_table or key not in folder.tensors:
            continue
        found = positions(folder.tensors[key][1].shape)
        if not found or found > source.rows:
            return None
        if type(stated) is int and stated == found:
            return stated  # given though it made no difference: the receipt says so
        return None if found == source.held else found
    return None
