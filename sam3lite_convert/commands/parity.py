"""Original and candidate side by side: runs both encoders and returns one record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam3lite_convert.commands.sources import Source
from sam3lite_convert.errors import CannotRun, UnsoundPlan, Untrusted, in_short
from sam3lite_convert.plan.plan import Plan, make_plan
from sam3lite_convert.plan.tables import Mappings
from sam3lite_convert.plan.targets import TEXT_TARGETS

if TYPE_CHECKING:
    from torch import Tensor

    from sam3lite_convert.parity.checkout.original_repo import OriginalRepo
    from sam3lite_convert.parity.judgement import Judgement
    from sam3lite_convert.parity.setup import ParityOptions, Setup

Record = dict[str, Any]


@dataclass(frozen=True)
class Looks:
    """What a run compares and records beyond the weights.

    ``as_used``: also compare the behaviour of the model as it is called.
    ``report``: also record what an HTML report shows.
    ``command``: the command line as typed.
    ``progress(label, total)``: returns a context whose function is called with the number of prompts done.
    """

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
) -> Record:
    """Run original and candidate side by side. ``save``: a file for the activations of both.

    Many prompts are run in batches; isolated activations and causes are computed for the worst of them.
    """
    from sam3lite_convert.commands.provenance import heat_map, provenance
    from sam3lite_convert.parity.activations import Saved, check_place, save_activations
    from sam3lite_convert.parity.run import compare_encoders, diagnose, measured_floors, notes
    from sam3lite_convert.parity.setup import set_up
    from sam3lite_convert.parity.sweep import focus, over_all, ranking_tap, sweep, worst_prompts

    if save is not None:
        check_place(save)
    if looks.as_used:
        options = _as_used(options, converted)
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
                used = behaviour(setup, stock, options.prompts, outcome.floors, advance=advance)
        if hashing is not None:
            hashing.check(replace(checkpoint, records=()))
            hashing.result()
    inputs = setup.inputs
    about: Record = {
        "checkpoint": source.name,
        "converted": str(converted) if converted else None,
        "reference": setup.reference.name,
        "candidate": setup.layout,
        "candidate_encoder": outcome.candidate.name,
        "attention": setup.attention,
        "dtype": str(setup.dtype).removeprefix("torch."),
        "inputs": {"what": inputs.what, "prompts": list(inputs.prompts), "prompts_total": len(options.prompts)},
    }
    if save is not None:
        # The floors go with the file even where nothing differs: another candidate may be put into it.
        floors = outcome.floors or measured_floors(setup)
        saved = Saved(inputs.ids, setup.recorded, outcome.propagated, outcome.isolated, floors, about)
        save_activations(save, saved)
    record = _parity_record(about, outcome.judgement, inputs.ids, setup.recorded, outcome.propagated)
    rows = (swept.worst() if swept is not None else None) or range(len(inputs.prompts))
    tap = ranking_tap({t.name: t.difference.max_abs for t in outcome.judgement.taps})
    record["inputs"]["shape"] = list(setup.every.ids.shape)
    said = notes(setup, outcome) + (used["notes"] if used else [])
    if swept is not None:
        which = f"{len(inputs.ids)} furthest off" if swept.worst() else f"first {len(inputs.ids)}, as no row differs"
        said.append(
            f"both encoders ran on all {len(setup.every.ids):,} rows; isolated activations, noise floors"
            f"{', activations in the file' if save else ''} and causes are from the {which}"
        )
    record |= {
        "diagnosis": diagnosis.record() if diagnosis else None,
        "notes": said,
        "worst_prompts": worst_prompts(tap, rows, inputs, setup.recorded, outcome.propagated),
        "not_compared": len(_beside_text(setup.plan)) if converted else 0,
        "verdicts": {"weights": record["verdict"], "behaviour": used["verdict"] if used else None},
        "behaviour": used,
        "original_repo": _checkout(options.original, setup) if options.original else None,
        "saved_activations": str(save) if save else None,
        "source": source.provenance(),
        "fetched": source.fetched(),
    }
    if looks.report:
        plan = setup.plan if converted else _whole_plan(setup.plan, mappings)
        record |= provenance(plan, setup.folder, looks.command) | {"heat_map": heat_map(setup, outcome)}
    return record


def _checkout(repo: OriginalRepo, setup: Setup) -> Record:
    """The files of the user's checkout that were run, and how the shipped reference compares with it."""
    from sam3lite_convert.parity.run import against_own_reference

    return {
        "path": str(repo.path),
        "commit": repo.commit,
        "files": [str(file) for file in repo.files],
        "stood_in": list(repo.stood_in),
        "against_original_ref": against_own_reference(setup),
    }


def _beside_text(plan: Plan) -> list[str]:
    """The target keys outside the text encoder; verify checks them, parity does not."""
    return [m.target for m in plan.mapped.values() if not m.target.startswith(TEXT_TARGETS)]


def _whole_plan(text: Plan, mappings: Mappings) -> Plan:
    """The plan of the whole file; that of its text encoder if the rest cannot be converted."""
    try:
        return make_plan(text.checkpoint, mappings, replace(text.options, component="all"))
    except UnsoundPlan:
        return text


def _as_used(options: ParityOptions, converted: Path | None) -> ParityOptions:
    """The options completed with the defaults of ``--as-used``: built-in prompts, layout transformers.

    Raises CannotRun if options for token ids are given.
    """
    from sam3lite_convert.parity.as_used.behaviour import PROMPTS

    if options.seed is not None or options.batch != 1 or options.length is not None:
        raise CannotRun(
            "--as-used runs on prompts (--prompt, --prompts-file): it cannot be combined with --seed, --batch or "
            "--length",
            "usage",
        )
    candidate = options.candidate if converted or options.candidate else "transformers"
    return replace(options, prompts=options.prompts or PROMPTS, candidate=candidate)


def judge_activations(path: Path, tolerance: float | None = None) -> Record:
    """Compute the verdict of a parity run from its saved activations; no model is run.

    Raises CannotRun if the file is missing or is not one of ``--save-activations``, Untrusted if it is damaged.
    """
    from sam3lite_convert.parity.activations import load_activations
    from sam3lite_convert.parity.inputs import Inputs
    from sam3lite_convert.parity.judgement import check_tolerance, isolated_belongs, judge, require_finite

    check_tolerance(tolerance)
    saved = load_activations(path)
    require_finite(saved.reference)
    padded = Inputs(saved.input_ids, "").padded
    isolated, floors, notes = saved.isolated, saved.floors, list[str]()
    try:
        if not isolated or not isolated_belongs(saved.reference, saved.candidate, isolated):
            which = "do not belong to this candidate" if isolated else "are missing from the file"
            notes = [f"isolated activations {which}: errors passed on from earlier layers count at each layer"]
            isolated = saved.candidate
            # Differences that earlier layers pass on are compared with the noise that earlier layers pass on.
            floors = floors and {tap: floor.without_isolated() for tap, floor in floors.items()}
        judgement = judge(saved.reference, saved.candidate, isolated, floors, padded, tolerance)
    except ValueError as fault:
        raise Untrusted(f"{path}: {fault}", "corrupt_file") from fault
    record = _parity_record(saved.about, judgement, saved.input_ids, saved.reference, saved.candidate)
    return record | {"judged": str(path), "diagnosis": None, "notes": notes}


def _parity_record(
    about: Record,
    judgement: Judgement,
    input_ids: Tensor,
    reference: Mapping[str, Tensor],
    candidate: Mapping[str, Tensor],
) -> Record:
    values = {}
    for name in ("projected", "pooled"):
        # The first numbers of the first token of the first row, for the eye.
        ours, theirs = (side[name][0].reshape(-1)[:5].double().tolist() for side in (reference, candidate))
        values[name] = {"reference": ours, "candidate": theirs}
    inputs = dict(about.get("inputs") or {}) | {"shape": list(input_ids.shape), "ids": input_ids.tolist()}
    return about | {"inputs": inputs} | judgement.record() | {"values": values}


def self_test_parity(
    source: Source,
    mappings: Mappings,
    options: ParityOptions,
    converted: Path | None = None,
    tried: Callable[[Record], None] = lambda record: None,
) -> Record:
    """Inject every known fault into a copy of the candidate; ``tried`` is called with the record of each.

    ``verdict`` is ``passed`` if each fault was found at its place or cannot show on these inputs.
    Raises CannotRun if the candidate differs from the original without an injected fault.
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
    counts = Counter(trial["outcome"] for trial in trials)
    return {
        "checkpoint": source.name,
        "converted": str(converted) if converted else None,
        "candidate": setup.layout,
        "inputs": {"what": setup.inputs.what, "shape": list(setup.inputs.ids.shape)},
        "verdict": "failed" if counts["missed"] else "passed",
        "counts": {name: counts[name] for name in ("found", "missed", "not revealed")},
        "faults": trials,
    }
