"""Original and candidate side by side, the same judged from a file, and the comparison tried on itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from sam3lite_convert.commands.sources import Source
from sam3lite_convert.errors import CannotRun, UnsoundPlan, Untrusted, in_short
from sam3lite_convert.plan.architecture import TEXT
from sam3lite_convert.plan.plan import Options, Plan, make_plan
from sam3lite_convert.plan.tables import Mappings
from sam3lite_convert.records.parity import (
    CheckoutRecord,
    ComparedSides,
    ParityDocument,
    SelfTestDocument,
    SelfTestInputs,
    Sides,
    TrialOutcome,
    TrialRecord,
    Verdicts,
)

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from sam3lite_convert.parity.checkout.original_repo import OriginalRepo
    from sam3lite_convert.parity.setup import ParityOptions, Setup


@dataclass(frozen=True)
class Looks:
    """What is compared beside the weights. ``as_used``: the behaviour too; ``report``: also what a page shows;
    ``command``: as it was typed; ``progress(label, total)``: a bar over prompts."""

    as_used: bool = False
    report: bool = False
    command: str = ""
    progress: Callable[[str, int], AbstractContextManager[Callable[[int], None]]] = lambda label, total: nullcontext(
        lambda n: None
    )


def read_prompts(prompts: list[str], file: Path | None = None) -> tuple[str, ...]:
    """The prompts given, and those of a text file with one prompt on each line; empty lines are skipped.

    Raises CannotRun if the file cannot be read or holds no prompt.
    """
    if file is None:
        return tuple(prompts)
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as fault:
        raise CannotRun(f"{file}: cannot be read as UTF-8 text ({in_short(fault)})", "cannot_open") from fault
    found = [line for line in lines if line.strip()]
    if not found:
        raise CannotRun(f"{file}: no prompts in it", "usage")
    return (*prompts, *found)


def run_parity(
    source: Source,
    mappings: Mappings,
    options: ParityOptions,
    converted: Path | None = None,
    save: Path | None = None,
    looks: Looks = Looks(),
    called: str | None = None,
) -> ParityDocument:
    """Original and candidate side by side; ``save``: a file for the activations of both. Many prompts run
    in batches, and the worst of them are compared closely. ``called``: what the user calls the folder, if it was
    downloaded.

    Raises CannotRun if options do not go together or a package is missing, UnsoundPlan if an encoder does not get its
    weights, Untrusted if the checkpoint or the folder contradicts itself.
    """
    from sam3lite_convert.commands.provenance import provenance
    from sam3lite_convert.parity.activations import SavedActivations, check_place, save_activations
    from sam3lite_convert.parity.heat_map import heat_map
    from sam3lite_convert.parity.run import compare_encoders, diagnose, measured_floors, notes
    from sam3lite_convert.parity.setup import set_up
    from sam3lite_convert.parity.sweep import focus, over_all, ranking_tap, sweep, worst_prompts

    if save is not None:
        check_place(save)
    if looks.as_used:
        options = _as_used(options, converted, mappings)
    with ExitStack() as stack:
        stack.enter_context(source.trusted())
        checkpoint = source.read()
        # The hash of a file from the Hub is compared with the one that the Hub states; a local file has none.
        hashing = stack.enter_context(source.hashing()) if checkpoint.hub and not checkpoint.partial else None
        setup = set_up(checkpoint, mappings, options, converted)
        if looks.as_used:
            from sam3lite_convert.parity.as_used.behaviour import behaviour, load_stock

            stock = load_stock(setup)
        candidate = setup.candidate()
        swept = None
        if len(setup.every.ids) > len(setup.inputs.ids):
            with looks.progress("comparing weights", len(setup.every.ids)) as advance:
                swept = sweep(setup, candidate, advance)
            setup = focus(setup, swept)
        # The last bits follow from how many rows run at once: what differed among all may be equal among these.
        outcome = compare_encoders(setup, candidate, closely=swept is not None and bool(swept.worst()))
        if swept is not None:
            outcome = replace(outcome, judgement=over_all(outcome.judgement, swept))
        diagnosis = diagnose(setup, outcome)
        used = None
        if looks.as_used:
            with looks.progress("comparing behaviour", len(options.prompts)) as advance:
                verdict = outcome.judgement.verdict
                used = behaviour(setup, stock, options.prompts, outcome.floors, advance=advance, weights=verdict)
        if hashing is not None:
            hashing.check(replace(checkpoint, records=()))
            hashing.result()
    inputs, judgement = setup.inputs, outcome.judgement
    sides = ComparedSides(
        checkpoint=source.name,
        converted=(called or str(converted)) if converted else None,
        reference=setup.reference.name,
        candidate=setup.layout,
        candidate_encoder=outcome.candidate.name,
        attention=setup.attention,
        dtype=str(setup.dtype).removeprefix("torch."),
    )
    prompts_total = len(options.prompts)
    if save is not None:
        # The floors go with the file even where nothing differs: another candidate may be put into it.
        floors = outcome.floors or measured_floors(setup)
        columns = (setup.recorded, outcome.propagated, outcome.isolated)
        save_activations(save, SavedActivations(sides, inputs, prompts_total, *columns, floors))
    rows = (swept.worst() if swept is not None else None) or range(len(inputs.prompts))
    tap = ranking_tap({t.name: t.difference.max_abs for t in judgement.taps})
    said = notes(setup, outcome) + list(used.notes if used else ())
    if swept is not None:
        which = f"{len(inputs.ids)} furthest off" if swept.worst() else f"first {len(inputs.ids)}, as no row differs"
        said.append(
            f"both encoders ran on all {len(setup.every.ids):,} rows; isolated activations, noise floors"
            f"{', activations in the file' if save else ''} and causes are from the {which}"
        )
    page = None
    if looks.report:
        page = provenance(setup.plan if converted else _whole_plan(setup.plan, mappings), setup.folder, looks.command)
    return ParityDocument(
        sides=sides,
        inputs=inputs.record(prompts_total, len(setup.every.ids)),
        judgement=judgement.record(sides.dtype),
        values=_values(setup.recorded, outcome.propagated),
        diagnosis=diagnosis.record() if diagnosis else None,
        notes=tuple(said),
        verdicts=Verdicts(weights=judgement.verdict, behaviour=used.verdict if used else None),
        behaviour=used,
        worst_prompts=worst_prompts(tap, rows, inputs, setup.recorded, outcome.propagated),
        not_compared=len(_beside_text(setup.plan)) if converted else 0,
        original_repo=_checkout(options.original, setup) if options.original else None,
        saved_activations=str(save) if save else None,
        judged=None,
        source=source.provenance(),
        fetched=source.fetched(),
        heat_map=heat_map(setup, outcome) if looks.report else None,
        page=page,
    )


def _checkout(repo: OriginalRepo, setup: Setup) -> CheckoutRecord:
    """What was run of the user's checkout, and how our own reference compares with it."""
    from sam3lite_convert.parity.run import against_own_reference

    return CheckoutRecord(
        path=str(repo.path),
        commit=repo.commit,
        files=tuple(str(file) for file in repo.files),
        stood_in=repo.stood_in,
        against_original_ref=against_own_reference(setup),
    )


def _beside_text(plan: Plan) -> list[str]:
    """The target keys outside the text encoder; verify checks them, parity does not."""
    return [m.target for m in plan.mapped.values() if not m.canonical.startswith(TEXT)]


def _whole_plan(text: Plan, mappings: Mappings) -> Plan:
    """The plan of the whole file; that of its text encoder if the rest cannot be converted."""
    try:
        return make_plan(text.checkpoint, mappings, replace(text.options, component="all"))
    except UnsoundPlan:
        return text


def _as_used(options: ParityOptions, converted: Path | None, mappings: Mappings) -> ParityOptions:
    """The options completed with the defaults of ``--as-used``: built-in prompts, the layout that a library loads.

    Raises CannotRun if options for token ids are given.
    """
    from sam3lite_convert.parity.as_used.behaviour import PROMPTS

    if options.seed is not None or options.batch != 1 or options.length is not None:
        raise CannotRun(
            "--as-used runs on prompts (--prompt, --prompts-file): it cannot be combined with --seed, --batch or "
            "--length",
            "usage",
        )
    called = next(name for name, layout in mappings.layouts.items() if layout.loader.library)
    candidate = options.candidate if converted or options.candidate else called
    return replace(options, prompts=options.prompts or PROMPTS, candidate=candidate)


def judge_activations(path: Path, tolerance: float | None = None) -> ParityDocument:
    """The verdict of a parity run again, from its saved activations; no model is needed.

    Raises CannotRun if there is no such file, it holds no activations or the tolerance is not a number from 0 on;
    Untrusted if it is damaged or not complete.
    """
    from sam3lite_convert.parity.activations import load_activations
    from sam3lite_convert.parity.judgement import check_tolerance, isolated_belongs, judge, require_finite

    check_tolerance(tolerance)
    saved = load_activations(path)
    require_finite(saved.reference)
    isolated, floors, notes = saved.isolated, saved.floors, list[str]()
    try:
        if not isolated or not isolated_belongs(saved.reference, saved.candidate, isolated):
            which = "do not belong to this candidate" if isolated else "are missing from the file"
            notes = [f"isolated activations {which}: errors passed on from earlier layers count at each layer"]
            isolated = saved.candidate
            # Differences that earlier layers pass on are compared with the noise that earlier layers pass on.
            floors = floors and {tap: floor.without_isolated() for tap, floor in floors.items()}
        judgement = judge(saved.reference, saved.candidate, isolated, floors, saved.inputs.padded, tolerance)
    except ValueError as fault:
        raise Untrusted(f"{path}: {fault}", "corrupt_file") from fault
    return ParityDocument(
        sides=saved.sides,
        inputs=saved.inputs.record(saved.prompts_total),
        judgement=judgement.record(saved.sides.dtype),
        values=_values(saved.reference, saved.candidate),
        diagnosis=None,
        notes=tuple(notes),
        verdicts=Verdicts(weights=judgement.verdict, behaviour=None),
        behaviour=None,
        worst_prompts=(),
        not_compared=0,
        original_repo=None,
        saved_activations=None,
        judged=str(path),
        source=None,
        fetched=None,
    )


def judge_port(
    source: Source,
    mappings: Mappings,
    activations: Mapping[str, Tensor | np.ndarray],
    ids: Tensor | np.ndarray | Sequence[Sequence[int]],
    name: str = "candidate",
    tolerance: float | None = None,
    causal: bool = False,
) -> ParityDocument:
    """The verdict on what a port computed, against the reference on the same ids.

    activations: by tap, (batch, sequence, width) or (batch, width) as the reference has it; any of the taps.
    ids: (batch, sequence), whole numbers.

    Raises CannotRun for ids that the encoder does not take, an unknown tap, a shape that is not the reference's, or no
    tap at all.
    """
    import torch

    from original_ref import TextStudentEncoder
    from sam3lite_convert.convert.text_weights import source_weights
    from sam3lite_convert.parity.encoders import record
    from sam3lite_convert.parity.inputs import given_ids
    from sam3lite_convert.parity.judgement import check_tolerance, judge, require_finite
    from sam3lite_convert.parity.noise_floor import noise_floor
    from sam3lite_convert.parity.original import reference_encoder

    check_tolerance(tolerance)
    with source.trusted():
        plan = make_plan(source.read(), mappings, Options(component="text", causal=causal))
        inputs = given_ids(ids, plan.architecture.sizes["vocab"])
        reference = reference_encoder(plan.architecture, source_weights(plan), torch.float32)
    recorded = record(reference, inputs.ids)
    require_finite(recorded)
    theirs = _port_activations(activations, recorded)
    ours = {tap: recorded[tap] for tap in theirs}
    assert isinstance(reference.model, TextStudentEncoder)
    floors = noise_floor(reference.model, recorded, inputs.ids)
    # Without isolated activations, an error that was carried is held to the floor of what is carried.
    limits = {tap: floors[tap].without_isolated() for tap in theirs}
    judgement = judge(ours, theirs, theirs, limits, inputs.padded, tolerance)
    notes = ["isolated activations were not given: an error that was carried to a layer counts as made there"]
    if missing := [tap for tap in recorded if tap not in theirs]:
        notes.append(f"not given, and so not compared: {', '.join(missing)}")
    return ParityDocument(
        sides=ComparedSides(
            checkpoint=source.name,
            converted=None,
            reference=reference.name,
            candidate=name,
            candidate_encoder=name,
            attention="unknown",
            dtype="float32",
        ),
        inputs=inputs.record(0),
        judgement=judgement.record("float32"),
        values=_values(ours, theirs),
        diagnosis=None,
        notes=tuple(notes),
        verdicts=Verdicts(weights=judgement.verdict, behaviour=None),
        behaviour=None,
        worst_prompts=(),
        not_compared=0,
        original_repo=None,
        saved_activations=None,
        judged=name,
        source=source.provenance(),
        fetched=source.fetched(),
    )


def _port_activations(given: Mapping[str, Tensor | np.ndarray], recorded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The given activations in the order of the taps. Raises CannotRun if they are not of this encoder."""
    import torch

    unknown = [tap for tap in given if tap not in recorded]
    if unknown or not given:
        what = f"no such tap: {', '.join(unknown)}" if unknown else "no activations were given"
        raise CannotRun(f"{what}; the taps of this encoder are {', '.join(recorded)}", "unknown_tap")
    found = {tap: torch.as_tensor(given[tap]) for tap in recorded if tap in given}
    for tap, value in found.items():
        if value.shape != recorded[tap].shape or not value.is_floating_point():
            raise CannotRun(
                f"{tap} is {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}; the original's is "
                f"{tuple(recorded[tap].shape)}, floating-point",
                "other_shape",
            )
    return found


def _values(reference: Mapping[str, Tensor], candidate: Mapping[str, Tensor]) -> dict[str, Sides]:
    """A few values of both outputs: of the first token of the first row."""
    from sam3lite_convert.parity.taps import OUTPUTS

    values = {}
    for name in (point.name for point in OUTPUTS if point.name in reference):
        ours, theirs = (side[name][0].reshape(-1)[:5].double().tolist() for side in (reference, candidate))
        values[name] = Sides(reference=tuple(ours), candidate=tuple(theirs))
    return values


def self_test_parity(
    source: Source,
    mappings: Mappings,
    options: ParityOptions,
    converted: Path | None = None,
    tried: Callable[[TrialRecord], None] = lambda trial: None,
) -> SelfTestDocument:
    """Every known fault made in a copy of the candidate; ``tried`` is told of each. ``verdict`` is
    ``passed`` if each was found in its place, or is one that these inputs reveal to nobody.

    Raises CannotRun if the candidate differs before any fault is made.
    """
    from sam3lite_convert.parity.run import compare_encoders
    from sam3lite_convert.parity.self_test import run_self_test
    from sam3lite_convert.parity.setup import set_up

    with source.trusted():
        setup = set_up(source.read(), mappings, options, converted)
    before = compare_encoders(setup, setup.candidate()).judgement
    if before.verdict == "differs":
        raise CannotRun(
            "--self-test needs a candidate that matches the original, and this one differs; run parity without "
            "--self-test to see where",
            "differs_already",
        )
    trials = []
    for trial in run_self_test(setup):
        trials.append(trial.record())
        tried(trials[-1])
    counts = Counter(trial.outcome for trial in trials)
    return SelfTestDocument(
        checkpoint=source.name,
        converted=str(converted) if converted else None,
        candidate=setup.layout,
        inputs=SelfTestInputs(what=setup.inputs.what, shape=tuple(setup.inputs.ids.shape)),
        verdict="failed" if counts["missed"] else "passed",
        counts={name: counts[name] for name in get_args(TrialOutcome)},
        faults=tuple(trials),
    )
