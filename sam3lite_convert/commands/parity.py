"""Original and candidate side by side, and the comparison tried on itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from sam3lite_convert.commands.onnx_candidate import exported_folder
from sam3lite_convert.commands.sources import Source
from sam3lite_convert.commands.verify import read_with_weights
from sam3lite_convert.errors import CannotRun, UnsoundPlan
from sam3lite_convert.opened import read_stream, text_of
from sam3lite_convert.plan.architecture import TEXT
from sam3lite_convert.plan.plan import Options, Plan, make_plan
from sam3lite_convert.plan.tables import Mappings
from sam3lite_convert.progress import bar
from sam3lite_convert.quoting import shell_path
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
    from torch import Tensor

    from sam3lite_convert.parity.checkout.original_repo import OriginalRepo
    from sam3lite_convert.parity.setup import ParityOptions, Setup
    from sam3lite_convert.records.fingerprint import ReleasedCheck


_MOST_PROMPTS = 100_000
_LARGEST_FILE = 4 << 20  # bytes of prompts


@dataclass(frozen=True)
class Looks:
    """What is compared beside the weights. ``as_used``: the behaviour too; ``report``: also what a page shows;
    ``command``: as it was typed; ``not_read_allowed``: text tensors that no module of the reference reads do not fail
    the run."""

    as_used: bool = False
    report: bool = False
    command: str = ""
    not_read_allowed: bool = False


def read_prompts(prompts: list[str], file: Path | None = None) -> tuple[str, ...]:
    """The prompts given, and those of a text file with one prompt on each line; empty lines are skipped. A pipe is read
    to its end; one that nothing writes to is empty, in place of waiting.

    Raises CannotRun if the file cannot be read, holds no prompt, or more than 100,000.
    """
    if file is None:
        return tuple(prompts)
    lines = text_of(file, read_stream(file, _LARGEST_FILE), "utf-8-sig").split("\n")
    found = [line for line in lines if line.strip()]
    if not found:
        raise CannotRun(f"{file}: no prompts in it", "usage")
    if len(found) > _MOST_PROMPTS:
        raise CannotRun(
            f"{file}: holds {len(found):,} prompts; at most {_MOST_PROMPTS:,} are compared in one run: split the file",
            "too_large",
        )
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
    from sam3lite_convert.parity.activations import SavedActivations, replaceable, save_activations
    from sam3lite_convert.parity.heat_map import heat_map
    from sam3lite_convert.parity.run import compare_encoders, diagnosis, measured_floors, notes
    from sam3lite_convert.parity.setup import chosen_layout, set_up
    from sam3lite_convert.parity.sweep import focus, over_all, ranking_tap, sweep, worst_prompts

    earlier = replaceable(save) if save is not None else None
    if looks.as_used:
        options = as_used_options(options, converted, mappings)
    source = source if converted is None else source.as_stated(read_with_weights(converted).receipt)
    with ExitStack() as stack:
        stack.enter_context(source.trusted())
        checkpoint = source.read(mappings)
        # The hash of a file from the Hub is compared with the one that the Hub states; a local file has none.
        hashing = stack.enter_context(source.hashing()) if checkpoint.hub and not checkpoint.partial else None
        if hashing is not None:
            stack.enter_context(hashing.shown())
        folder = converted
        if options.runtime is not None and folder is None:
            layout = chosen_layout(checkpoint, mappings, options.candidate)
            asked = Options(layout.name, "text", options.dtype or "float32", options.context, options.causal)
            folder = stack.enter_context(exported_folder(source, checkpoint, mappings, asked, "text"))
        setup = set_up(checkpoint, mappings, options, folder)
        if looks.as_used:
            from sam3lite_convert.parity.as_used.behaviour import behaviour, load_stock

            stock = load_stock(setup)
        candidate = setup.compared()
        if save is not None and set(candidate.taps) != set(setup.recorded):
            raise CannotRun(
                "--save-activations writes all taps, and the graph does not name "
                + ", ".join(tap for tap in setup.recorded if tap not in candidate.taps),
                "usage",
            )
        swept = None
        if len(setup.every.ids) > len(setup.inputs.ids):
            with bar("comparing weights", len(setup.every.ids)) as advance:
                swept = sweep(setup, candidate, advance)
            setup = focus(setup, swept)
        # The last bits follow from how many rows run at once: what differed among all may be equal among these.
        outcome = compare_encoders(setup, candidate, closely=swept is not None and bool(swept.worst()))
        if swept is not None:
            outcome = replace(outcome, judgement=over_all(outcome.judgement, swept))
        cause = diagnosis(setup, outcome)
        used = None
        if looks.as_used:
            with bar("comparing behaviour", len(options.prompts)) as advance:
                verdict = outcome.judgement.verdict
                used = behaviour(setup, stock, options.prompts, outcome.floors, advance=advance, weights=verdict)
        said = notes(setup, outcome) + list(used.notes if used else ())
        if converted is None and checkpoint.turned_back:
            command = f"sam3lite parity CHECKPOINT --converted {shell_path(source.name)}"
            said.append(
                f"both sides are made of {source.name}; to compare it with what it was converted from: {command}"
            )
        if hashing is not None:
            hashing.check(replace(checkpoint, records=()))
            hashing.result()
    inputs, judgement = setup.inputs, outcome.judgement
    sides = ComparedSides(
        checkpoint=source.name,
        converted=(called or str(converted)) if converted else None,
        option=source.option,
        reference=_reference_name(setup),
        candidate=setup.layout,
        candidate_encoder=outcome.candidate.name,
        attention="graph" if setup.graph else setup.attention,
        dtype=str(setup.dtype).removeprefix("torch."),
    )
    prompts_total = len(options.prompts)
    if save is not None and earlier is not None:
        # The floors go with the file even where nothing differs: another candidate may be put into it.
        floors = outcome.floors or measured_floors(setup)
        columns = (outcome.recorded, outcome.propagated, outcome.isolated)
        made = SavedActivations(sides, inputs, prompts_total, *columns, floors, not_read=setup.plan.not_read)
        save_activations(save, earlier, made)
    rows = (swept.worst() if swept is not None else None) or range(len(inputs.prompts))
    tap = ranking_tap({t.name: t.difference.max_abs for t in judgement.taps})
    if swept is not None:
        which = f"{len(inputs.ids)} furthest off" if swept.worst() else f"first {len(inputs.ids)}, as no row differs"
        said.append(
            f"both encoders ran on all {len(setup.every.ids):,} rows; isolated activations, noise floors"
            f"{', activations in the file' if save else ''} and causes are from the {which}"
        )
    page = None
    if looks.report:
        page = provenance(
            setup.conversion if converted else _whole_plan(setup.plan, mappings),
            setup.folder if converted else None,
            looks.command,
        )
    return ParityDocument(
        sides=sides,
        inputs=inputs.record(prompts_total, len(setup.every.ids)),
        judgement=judgement.record(sides.dtype),
        values=first_values(outcome.recorded, outcome.propagated),
        diagnosis=cause,
        notes=tuple(said),
        verdicts=Verdicts(weights=judgement.verdict, behaviour=used.verdict if used else None),
        behaviour=used,
        worst_prompts=worst_prompts(tap, rows, inputs, outcome.recorded, outcome.propagated),
        not_compared=_beside_text(setup.conversion) if converted else 0,
        not_read_allowed=looks.not_read_allowed,
        released=_released(setup),
        original_repo=_checkout(options.original, setup) if options.original else None,
        saved_activations=str(save) if save else None,
        judged=None,
        graph=setup.graph.record(converted is not None) if setup.graph else None,
        source=source.provenance(),
        fetched=source.fetched(),
        heat_map=heat_map(judgement, outcome.recorded, outcome.propagated, outcome.isolated, inputs.prompts)
        if looks.report
        else None,
        page=page,
    )


def _released(setup: Setup) -> ReleasedCheck | None:
    """The reference beside what was recorded of the released weights, if the file could be one of them."""
    import torch

    from original_ref import TextStudentEncoder
    from sam3lite_convert.parity.released import check_released, could_be_released

    model, table = setup.evidence.model, setup.evidence.full_table
    # Nothing was recorded of SAM3's own text encoder.
    if table is None or setup.dtype is not torch.float32 or not isinstance(model, TextStudentEncoder):
        return None
    found = could_be_released(setup.plan.architecture, table.shape[2])
    return check_released(model, found) if found else None


def _reference_name(setup: Setup) -> str:
    """What was run as the original. It is only the architecture that is known here if the file holds more."""
    name = setup.reference.name
    return f"{name}, the architecture that is known here; the file holds more" if setup.plan.not_read else name


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


def _beside_text(plan: Plan) -> int:
    """How many targets are not the text encoder's; verify checks them, parity does not."""
    return sum(not m.canonical.startswith(TEXT) for m in plan.mapped.values())


def _whole_plan(text: Plan, mappings: Mappings) -> Plan:
    """The plan of the whole file; that of its text encoder if the rest cannot be converted."""
    try:
        return make_plan(text.checkpoint, mappings, replace(text.options, component="all"))
    except UnsoundPlan:
        return text


def as_used_options(options: ParityOptions, converted: Path | None, mappings: Mappings) -> ParityOptions:
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
    called = next(layout.name for layout in mappings.of_family() if layout.loader.library)
    candidate = options.candidate if converted or options.candidate else called
    return replace(options, prompts=options.prompts or PROMPTS, candidate=candidate)


def first_values(reference: Mapping[str, Tensor], candidate: Mapping[str, Tensor]) -> dict[str, Sides]:
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
    looks: Looks = Looks(),
) -> SelfTestDocument:
    """Every known fault made in a copy of the candidate; ``tried`` is told of each. ``verdict`` is
    ``passed`` if each was found in its place, or is one that these inputs reveal to nobody. ``looks``: its bar.

    Raises CannotRun if the candidate differs before any fault is made.
    """
    from sam3lite_convert.parity.run import compare_encoders
    from sam3lite_convert.parity.self_test import count_faults, run_self_test
    from sam3lite_convert.parity.setup import set_up

    source = source if converted is None else source.as_stated(read_with_weights(converted).receipt)
    with source.trusted():
        setup = set_up(source.read(mappings), mappings, options, converted)
    before = compare_encoders(setup, setup.candidate()).judgement
    if before.verdict == "differs":
        raise CannotRun(
            "--self-test needs a candidate that matches the original, and this one differs; run parity without "
            "--self-test to see where",
            "differs_already",
        )
    trials = []
    with bar("making faults", count_faults(setup)) as advance:
        for trial in run_self_test(setup):
            trials.append(trial.record())
            tried(trials[-1])
            advance()
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
