"""Judges what a port computed elsewhere: brings shapes and dtypes together, compares, and looks for the cause."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from original_ref import TextReference
from sam3lite_convert.convert.text_weights import source_weights
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.parity.compare import max_abs
from sam3lite_convert.parity.encoders import Activations
from sam3lite_convert.parity.faults.evidence import Evidence, few_threads
from sam3lite_convert.parity.faults.hypotheses import Fit, distance, explain, hypotheses, in_words, ranked, tried
from sam3lite_convert.parity.inputs import Inputs
from sam3lite_convert.parity.judgement import JudgedTap, Judgement, isolated_belongs, judge, require_finite
from sam3lite_convert.parity.noise_floor import noise_floor
from sam3lite_convert.parity.original import position_table, reference_encoder
from sam3lite_convert.parity.port_files import PortFile
from sam3lite_convert.parity.taps import LAYER, POOLED, PROJECTED, layer_of, point_of, tensors_behind
from sam3lite_convert.plan.architecture import TEXT
from sam3lite_convert.plan.plan import Plan
from sam3lite_convert.records.parity import DiagnosisRecord, MisshapenTap, SuspectTensor

# Modules of a gap that are searched: all of an S0, in seconds. Each hypothesis in one is a run of those behind it.
_SEARCHED = 9
_HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class JudgedPort:
    """A port's activations beside the reference's.

    ``judgement``: the verdict.
    ``reference``: name of the reference.
    ``recorded``: its activations at the taps that were given.
    ``given``: the port's, in the reference's shapes.
    ``isolated``: its isolated activations, likewise; those that cannot be its own are left out.
    ``ran_in``: dtype of the reference.
    ``dtypes``: number of taps by dtype of the port's tensors.
    ``diagnosis``: why the first divergence differs; None if nothing does.
    ``notes``: how the activations were read.
    """

    judgement: Judgement
    reference: str
    recorded: Activations
    given: Activations
    isolated: Activations
    ran_in: torch.dtype
    dtypes: dict[str, int]
    diagnosis: DiagnosisRecord | None
    notes: tuple[str, ...]


def judge_port_file(plan: Plan, port: PortFile, inputs: Inputs, tolerance: float | None = None) -> JudgedPort:
    """Run the reference on the ids, in the dtype of the port's tensors, and judge the port.

    ``plan``: of the checkpoint's text encoder, in any layout.

    Raises CannotRun for a tap that this encoder does not have, if no tap has the reference's shape, or for numbers that
    are not floating-point; UnsoundPlan if the reference does not get its weights.
    """
    ran_in, dtypes = dtypes_of(port.propagated)
    weights = source_weights(plan)
    reference = reference_encoder(plan.architecture, weights, ran_in)
    recorded = reference.record(inputs.ids)
    require_finite(recorded)
    given, notes, misshapen = _arranged(port.propagated, recorded, port.names)
    if not given:
        raise CannotRun("; ".join(tap.words for tap in misshapen), "other_shape")
    alone, more, odd = _arranged(port.isolated, recorded, {})
    more += [f"{tap.words}: left out" for tap in odd]
    alone = {tap: value for tap, value in alone.items() if tap in given}
    notes += [f"isolated, {note}" for note in more if note not in notes]
    ours = {tap: recorded[tap] for tap in given}
    if alone and not isolated_belongs(ours, given, alone):
        notes.append("isolated activations do not belong to this candidate, and were left out")
        alone = {}
    model = reference.model
    assert isinstance(model, TextReference)
    floors = noise_floor(model, recorded, inputs.ids)
    every = list(recorded)
    judgement = judge(ours, given, alone, {tap: floors[tap] for tap in given}, inputs.padded, tolerance, every)
    judgement = replace(judgement, misshapen=tuple(misshapen))
    name = str(ran_in).removeprefix("torch.")
    if set(dtypes) != {name}:
        finer = f", and every tap is held to the rounding of {name}" if ran_in in _HALVES else ""
        notes.append(f"the port's values are {' and '.join(dtypes)}; the original ran in {name}{finer}")
    if ran_in in _HALVES and judgement.max_abs:
        notes.append("half precision hides faults smaller than its rounding: compare in float32 too")
    table = position_table(weights).to(ran_in)
    evidence = Evidence(model, recorded, inputs.ids, table)
    first = judgement.first
    diagnosis = likely_cause(plan, evidence, judgement, given | alone)
    if first is not None and (swapped := _swapped(given, ours)):
        notes.append(swapped)
    return JudgedPort(judgement, reference.name, ours, given, alone, ran_in, dtypes, diagnosis, (*port.notes, *notes))


# ---- dtypes and shapes


def dtypes_of(given: Mapping[str, Tensor]) -> tuple[torch.dtype, dict[str, int]]:
    """The dtype that the reference has to run in, and how many taps there are of each dtype.

    Half precision if any tensor is: its noise is then in all that follows.
    Raises CannotRun for numbers that are not floating-point.
    """
    count: dict[str, int] = {}
    for tap, value in given.items():
        name = str(value.dtype).removeprefix("torch.")
        if value.dtype not in (*_HALVES, torch.float32, torch.float64):
            raise CannotRun(f"{tap} is {name}; activations are floating-point numbers", "other_shape")
        count[name] = count.get(name, 0) + 1
    kinds = {value.dtype for value in given.values()}
    return next((half for half in _HALVES if half in kinds), torch.float32), count


def _arranged(
    given: Mapping[str, Tensor], recorded: Activations, names: Mapping[str, str]
) -> tuple[Activations, list[str], list[MisshapenTap]]:
    """The activations in the order of the taps and in the reference's shapes, how other shapes were read, and the taps
    of a shape that cannot be read so.

    ``names``: by tap, what the port calls it, where that is spelled otherwise.

    Raises CannotRun for an unknown tap.
    """
    if unknown := [tap for tap in given if tap not in recorded]:
        raise CannotRun(
            f"no such tap: {', '.join(unknown)}; the taps of this encoder are {', '.join(recorded)}", "unknown_tap"
        )
    out: Activations = {}
    read: dict[str, list[str]] = {}
    misshapen = []
    for tap, ours in recorded.items():
        if tap not in given:
            continue
        value, how = fitted(given[tap], ours.shape, point_of(tap).has_positions)
        if value is None:
            shapes = tuple(given[tap].shape), tuple(ours.shape)
            misshapen.append(
                MisshapenTap(name=tap, called=names.get(tap, tap), shape=shapes[0], reference_shape=shapes[1])
            )
            continue
        out[tap] = value
        if how:
            read.setdefault(how, []).append(tap)
    notes = [f"{'every tap' if len(taps) == len(out) else ', '.join(taps)}: {how}" for how, taps in read.items()]
    return out, notes, misshapen


def fitted(value: Tensor, wanted: torch.Size, has_positions: bool) -> tuple[Tensor | None, str]:
    """The value in the reference's shape (None if it is of another), and how it was read if that is not plain.

    Where batch and sequence are equally long, it is always read as (batch, sequence, width).
    """
    if value.shape == wanted:
        return value, ""
    if has_positions and value.dim() == 3 and (value.shape[1], value.shape[0], value.shape[2]) == wanted:
        return value.transpose(0, 1), "read as (sequence, batch, width)"
    if [n for n in value.shape if n != 1] == [n for n in wanted if n != 1]:
        return value.reshape(wanted), f"shape {tuple(value.shape)} was read as {tuple(wanted)}"
    return None, ""


def _swapped(given: Activations, ours: Activations) -> str | None:
    """A warning, where batch and sequence are equally long and the other order would be nearer to the original."""
    cubes = [
        tap for tap, value in given.items() if point_of(tap).has_positions and value.shape[0] == value.shape[1] > 1
    ]
    if not cubes:
        return None
    tap = cubes[-1]
    if max_abs(ours[tap], given[tap].transpose(0, 1)) >= max_abs(ours[tap], given[tap]):
        return None
    n = given[tap].shape[0]
    return (
        f"batch and sequence are both {n}, so that the tensors were read as (batch, sequence, width); read as "
        f"(sequence, batch, width), {tap} would be nearer to the original: judge a batch of another size"
    )


# ---- the cause


def likely_cause(plan: Plan, evidence: Evidence, judgement: Judgement, values: Activations) -> DiagnosisRecord | None:
    """The likely cause of the first divergence, where taps or isolated activations may be missing.

    ``values``: isolated where given, else propagated.

    The input of the first tap that is off agrees with the reference's, so that its own output is the evidence.
    """
    first = judgement.first
    if first is None:
        return None
    suspects: tuple[SuspectTensor, ...] = ()
    if judgement.unseen:
        places = (*judgement.unseen, first.name)
        with few_threads(evidence.ids.numel(), evidence.recorded[places[0]].shape[-1]):
            fits = list(_fits_between(evidence, first, places, values[first.name]))
        listed = f"{', '.join(places[:-1])} or {places[-1]}"
        cause = f"not found: the fault was made in {listed}; give those taps too, and its place and cause can be told"
        likely = [fit for fit in fits if fit.likely]
        if len({fit.key.partition(":")[0] for fit in likely}) > 1:
            cause = f"one of these, which explain {first.name} alike: {'; '.join(fit.words for fit in likely[:4])}"
        elif fits:
            cause = in_words(fits)
    else:
        propagated = first.isolated is None
        fits = explain(evidence, first.name, values[first.name], *first.own_tolerances, propagated)
        cause = in_words(fits)
        suspects = tuple(_suspects(plan, first.name))
    value = values[first.name]
    if count := int((~value.isfinite()).sum()):
        holds = "value that is" if count == 1 else "values that are"
        cause, fits = f"{first.name} holds {count:,} {holds} NaN or infinite, of {value.numel():,}", []
    return DiagnosisRecord(
        tap=first.name,
        cause=cause,
        fits=tuple(fit.record() for fit in fits),
        tensors=suspects,
    )


def _suspects(plan: Plan, tap: str) -> Iterator[SuspectTensor]:
    """The tensors that a tap's module uses, as this plan maps them."""
    behind = tuple(TEXT + start for start in tensors_behind(tap))
    for piece in plan.mapped.values():
        if piece.canonical.startswith(behind):
            yield SuspectTensor(
                target=piece.target,
                source=piece.source.key,
                rule=piece.rule.name,
                table=piece.rule.table,
                operation=piece.operation.name,
                fault=None,
            )


def _fits_between(evidence: Evidence, first: JudgedTap, places: Sequence[str], candidate: Tensor) -> Iterable[Fit]:
    """Known faults of the modules of a gap that explain the tap behind it, the closest first.

    Each is made in its module, and the reference runs on from there.
    ``places``: the modules by tap, in the order of execution, the last one being that of ``first``.
    """
    if len(places) > _SEARCHED:
        return []
    limit, mean_limit = first.own_tolerances
    fits = []
    for n, place in enumerate(places):
        for hypothesis, made in tried(lambda at=place: hypotheses(evidence, at), place):  # type: ignore[misc]
            if place != first.name:
                if made.shape != evidence.recorded[place].shape or bool(made.isnan().any()):
                    continue
                made = _run_on(evidence.model, evidence.ids, places[n + 1 :], made)
            if made.shape != candidate.shape:
                continue
            error, mean = distance(made, candidate)
            if error <= limit and mean <= mean_limit:
                fits.append(Fit(f"{place}:{hypothesis.key}", f"in {place}: {hypothesis.words}", error))
    return ranked(fits, limit)


def _run_on(model: TextReference, ids: Tensor, taps: Sequence[str], made: Tensor) -> Tensor:
    """What the reference gives at the last of these taps if the module before the first of them gave ``made``."""
    parts = model.parts
    with torch.inference_mode():
        for tap in taps:
            point = point_of(tap)
            if point is LAYER:
                made = parts.layers[layer_of(tap)](made, model.causal_mask(made))
            elif point is POOLED:
                made = model.pool(made, ids)
            else:
                made = (parts.projector if point is PROJECTED else parts.norm)(made)
    return made
