"""Judges activations: a port's against the original, or those that ``parity`` saved, from their file alone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sam3lite_convert.commands.parity import first_values
from sam3lite_convert.commands.sources import Source
from sam3lite_convert.errors import CannotRun, Untrusted
from sam3lite_convert.plan.plan import Options, Plan, make_plan
from sam3lite_convert.plan.tables import Mappings
from sam3lite_convert.records.parity import ComparedSides, ParityDocument, PortRecord, Verdicts

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from sam3lite_convert.parity.inputs import Inputs
    from sam3lite_convert.parity.port_files import PortFile

UNNAMED = "activations in memory"


def judge_saved(path: Path, tolerance: float | None = None, name: str | None = None) -> ParityDocument:
    """The verdict of a parity run again, from its saved activations; no model is needed.

    ``name``: of the candidate, if a port's tensors were put in the place of those that were saved.

    Raises CannotRun if there is no such file, it holds no activations or the tolerance is not a number from 0 on;
    Untrusted if it is damaged or not complete.
    """
    from sam3lite_convert.parity.activations import load_activations
    from sam3lite_convert.parity.judgement import check_tolerance, isolated_belongs, judge, require_finite

    check_tolerance(tolerance)
    saved = load_activations(path)
    require_finite(saved.reference)
    isolated, notes = saved.isolated, list[str]()
    if not isolated or not isolated_belongs(saved.reference, saved.candidate, isolated):
        which = "do not belong to this candidate" if isolated else "are missing from the file"
        notes = [f"isolated activations {which}: whether a later layer is wrong by itself is unknown"]
        isolated = {}
    try:
        judgement = judge(saved.reference, saved.candidate, isolated, saved.floors, saved.inputs.padded, tolerance)
    except ValueError as fault:
        raise Untrusted(f"{path}: {fault}", "corrupt_file") from fault
    judgement = replace(judgement, not_read=saved.not_read)
    sides, port = saved.sides, None
    if saved.foreign or name is not None:
        called = name or path.name
        sides = replace(sides, candidate=called, candidate_encoder=called, converted=None, attention="unknown")
        dtypes = [str(value.dtype).removeprefix("torch.") for value in saved.candidate.values()]
        port = PortRecord(
            file=str(path),
            format="safetensors",
            dtypes={dtype: dtypes.count(dtype) for dtype in dict.fromkeys(dtypes)},
            reference_dtype=saved.sides.dtype,
            isolated=len(isolated),
            ids="those of the file, as its activations of the original",
            checkpoint_sha256=None,
        )
    return ParityDocument(
        sides=sides,
        inputs=saved.inputs.record(saved.prompts_total),
        judgement=judgement.record(saved.sides.dtype),
        values=first_values(saved.reference, saved.candidate),
        notes=tuple(notes),
        verdicts=Verdicts(weights=judgement.verdict, behaviour=None),
        judged=str(path),
        port=port,
    )


def judge_port(
    source: Source,
    mappings: Mappings,
    port: PortFile,
    file: Path | None = None,
    *,
    ids: Tensor | np.ndarray | Sequence[Sequence[int]] | None = None,
    ids_from: str = "ids given by the caller",
    name: str | None = None,
    tolerance: float | None = None,
    context: int | None = None,
    causal: bool = False,
    report_of: str | None = None,
) -> ParityDocument:
    """The verdict on what a port computed, against the reference on the same ids.

    ``port``: its activations.
    ``file``: what they were read from; None for activations in memory.
    ``ids``: (batch, sequence), integers; None: those of the file, or else the default input of ``parity``.
    ``ids_from``: where ``ids`` come from, in words.
    ``name``: of the port. None: the name of the file.
    ``context``: what the model is called with, in tokens. None: what the checkpoint states.
    ``report_of``: the command as it was typed, if a page is wanted.

    Raises CannotRun for ids that the encoder does not take or that are not known, an unknown tap, or if no tap has the
    reference's shape; UnsoundPlan and Untrusted as a conversion does.
    """
    from sam3lite_convert.commands.provenance import provenance
    from sam3lite_convert.parity.heat_map import heat_map
    from sam3lite_convert.parity.judgement import check_tolerance
    from sam3lite_convert.parity.port import judge_port_file
    from sam3lite_convert.parity.setup import told
    from sam3lite_convert.parity.taps import point_of

    check_tolerance(tolerance)
    called = name or (file.name if file else UNNAMED)
    with ExitStack() as stack:
        stack.enter_context(source.trusted())
        # In a thread of its own, while the original runs.
        hashing = stack.enter_context(source.hashing()) if source.path.is_file() else None
        if hashing is not None:
            stack.enter_context(hashing.shown())
        checkpoint = source.read(mappings)
        plan = make_plan(checkpoint, mappings, Options(component="text", context=context, causal=causal))
        inputs, notes = _inputs(plan, port, ids, ids_from, called)
        try:
            judged = judge_port_file(plan, port, inputs, tolerance)
            odd = judged.judgement.misshapen
            if notes and odd and not any(point_of(tap).has_positions for tap in judged.given):
                raise CannotRun(odd[0].words, "other_shape")
        except CannotRun as fault:
            if not notes or fault.code != "other_shape":
                raise
            raise CannotRun(
                f"{called} comes without ids and is not of the shape of the default input, {inputs.what} "
                f"({fault.message}); give its ids as input_ids beside the taps, or with --ids FILE",
                "no_ids",
            ) from fault
        digest = None
        if hashing is not None:
            hashing.check(replace(checkpoint, records=()))
            digest = hashing.result()[0]
    ran_in = str(judged.ran_in).removeprefix("torch.")
    judgement = replace(judged.judgement, not_read=plan.not_read)
    return ParityDocument(
        sides=ComparedSides(
            checkpoint=source.name,
            converted=None,
            reference=judged.reference,
            candidate=called,
            candidate_encoder=called,
            attention="unknown",
            dtype=" and ".join(judged.dtypes),
        ),
        inputs=inputs.record(0),
        judgement=judgement.record(ran_in, "both sides" if set(judged.dtypes) == {ran_in} else "the original"),
        values=first_values(judged.recorded, judged.given),
        diagnosis=judged.diagnosis,
        notes=(*told(checkpoint), *notes, *_other_padding(inputs), *judged.notes),
        verdicts=Verdicts(weights=judgement.verdict, behaviour=None),
        judged=str(file) if file else None,
        source=source.provenance(),
        fetched=source.fetched(),
        heat_map=heat_map(judgement, judged.recorded, judged.given, judged.isolated) if report_of else None,
        page=provenance(None, None, report_of) if report_of else None,
        port=PortRecord(
            file=str(file) if file else None,
            format=port.kind,
            dtypes=judged.dtypes,
            reference_dtype=ran_in,
            isolated=len(judged.isolated),
            ids=inputs.what,
            checkpoint_sha256=digest,
            names=port.names,
        ),
    )


def _other_padding(inputs: Inputs) -> list[str]:
    """A note if prompts are padded with another id than the original's, as CLIP's tokenizer pads."""
    pads = set(inputs.ids[inputs.padded].tolist())
    if len(pads) != 1 or pads == {0}:
        return []
    return [
        f"the prompts are padded with id {pads.pop()}; the original pads with 0 and attends to it, so that with these "
        "ids it gives other features too: this verdict is on the weights and layers, not on how prompts become ids"
    ]


def _inputs(
    plan: Plan, port: PortFile, ids: Tensor | np.ndarray | Sequence[Sequence[int]] | None, ids_from: str, called: str
) -> tuple[Inputs, list[str]]:
    """The ids that the port ran on, and a note where nobody said which.

    Raises CannotRun if they are not ids of this encoder, or if the file holds others than were given.
    """
    import torch

    from sam3lite_convert.parity.inputs import given_ids, make_inputs

    sizes = plan.architecture.sizes
    held = port.ids.unsqueeze(0) if port.ids is not None and port.ids.dim() == 1 else port.ids
    if ids is not None:
        inputs = replace(given_ids(ids, sizes["vocab"]), what=ids_from)
        if held is not None and (held.shape != inputs.ids.shape or not torch.equal(held.long(), inputs.ids)):
            raise CannotRun(f"{called} holds other ids than were given; leave them out, or correct the file", "bad_ids")
        return inputs, []
    if held is not None:
        return replace(given_ids(held, sizes["vocab"]), what="the ids of the file"), []
    inputs = make_inputs(plan.architecture.called, sizes["vocab"])
    return inputs, [
        f"no ids were given: {called} is taken to be computed from the default input, {inputs.what}; if it is not, "
        "this verdict says nothing: give its ids with --ids FILE"
    ]
