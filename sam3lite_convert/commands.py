"""What each command does, as functions that return the record which text and JSON are made from."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam3lite_convert import convert as conversion
from sam3lite_convert.architecture import SAM3_TEXT_PARAMETERS, TEXT, infer_architecture, relatives
from sam3lite_convert.checkpoint import read_checkpoint
from sam3lite_convert.errors import CannotRun, UnsoundPlan, Untrusted
from sam3lite_convert.hashing import SourceHash
from sam3lite_convert.names import canonical_names
from sam3lite_convert.output import leftovers
from sam3lite_convert.plan import Dropped, Mapped, Options, Plan, make_plan
from sam3lite_convert.streams import Advance
from sam3lite_convert.summary import components, dtype_counts, parameters, text_parameters
from sam3lite_convert.tables import Mappings

if TYPE_CHECKING:
    from torch import Tensor

    from sam3lite_convert.judgement import Judgement
    from sam3lite_convert.parity_setup import ParityOptions

ALIASES = ("s0", "s1", "l", "s0-32", "s1-32", "l-32")

Record = dict[str, Any]
Progress = Callable[[str], Advance]


def local_checkpoint(name: str) -> Path:
    """The file that CHECKPOINT names. Raises CannotRun for one that is not on this machine."""
    path = Path(name)
    if path.exists():
        return path
    if name in ALIASES:
        raise CannotRun(
            f"{name} is a checkpoint on the Hub, and this version does not download yet: pass the path of a local "
            "file. 'sam3lite demo' runs without one.",
            "no_hub_yet",
        )
    raise CannotRun(
        f"{name}: no such file. (Names of files on the Hub are not looked up by this version.) Aliases that will be: "
        + ", ".join(ALIASES),
        "no_such_file",
    )


def inspect_checkpoint(path: Path, mappings: Mappings, causal: bool = False) -> Record:
    """What a file is. Reads no tensor data.

    Raises CannotRun and Untrusted for files that cannot be read; a file that can be read but not
    converted is described all the same, with the reason under ``convert``.
    """
    checkpoint = read_checkpoint(path)
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
        "checkpoint": str(path),
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


def plan_record(plan: Plan) -> Record:
    """The summary of a planned conversion, by component."""
    checkpoint = plan.checkpoint
    return {
        "checkpoint": str(checkpoint.path),
        "size": checkpoint.size,
        "format": checkpoint.format,
        "wrapper": checkpoint.wrapper,
        "prefix": plan.names.prefix,
        "dtypes": dtype_counts(checkpoint),
        "layout": plan.layout.name,
        "component": plan.options.component,
        "dtype": plan.floating_dtype,
        "architecture": plan.architecture.record(),
        "text_parameters": text_parameters(plan),
        "sam3_text_parameters": int(SAM3_TEXT_PARAMETERS),
        "components": {k: c.record() for k, c in components(checkpoint, plan.names, plan).items()},
        "counts": plan.counts,
        "dropped": {d.label: d.reason for d in plan.dropped.values()},
        "bytes": plan.out_nbytes,
        "notes": conversion.plan_notes(plan),
    }


def convert_checkpoint(
    path: Path,
    mappings: Mappings,
    options: Options,
    output: Path | None = None,
    overwrite: bool = False,
    max_shard_size: int | None = None,
    dry_run: bool = False,
    planned: Callable[[Record], None] = lambda record: None,
    progress: Progress | None = None,
    hashing: SourceHash | None = None,
) -> Record:
    """Plan and, unless ``dry_run``, write. ``planned`` is told the plan before the first byte moves.

    ``hashing``: one that has begun with this file already, not for a ``dry_run``.
    """
    with ExitStack() as stack:
        if not dry_run:
            hashing = stack.enter_context(hashing or SourceHash(path))
        checkpoint = read_checkpoint(path)
        if hashing is not None:
            hashing.check(checkpoint)
        folder = output or conversion.default_output(path, options)
        plan = make_plan(checkpoint, mappings, options)
        record = plan_record(plan) | {"output": str(folder), "dry_run": dry_run}
        record["notes"] += [f"left over from an interrupted run, delete it: {p}" for p in leftovers(folder)]
        if folder.exists() and not overwrite:
            record["notes"].append(f"{folder} exists; without --overwrite it is kept")
        planned(record)
        if hashing is None:
            return record
        done = conversion.convert(plan, hashing, folder, overwrite, max_shard_size, progress)
    sizes = {name: (folder / name).stat().st_size for name in done.files}
    notes = [n for n in done.receipt["notes"] if n not in record["notes"]]
    record["notes"] += notes
    return record | {
        "files": sizes,
        "source": done.receipt["source"],
        "lost": done.receipt["lost"],
        "late_notes": notes,
    }


def verify_folder(
    folder: Path, checkpoint: Path, mappings: Mappings, causal: bool = False, progress: Progress | None = None
) -> Record:
    """Prove a folder; the record's ``verdict`` says whether it is."""
    from sam3lite_convert.folder import read_folder
    from sam3lite_convert.verify import recognise, verify  # loads numpy; convert starts without

    found = read_folder(folder)
    receipt = found.receipt.get("options") if found.receipt else None
    causal = causal or bool(isinstance(receipt, dict) and receipt.get("causal"))
    plan = recognise(found, read_checkpoint(checkpoint), mappings, causal)
    record = verify(found, plan, progress).record()
    return {"folder": str(folder), "checkpoint": str(checkpoint), "targets": plan.counts["target"], **record}


def read_prompts(prompts: list[str], file: Path | None = None) -> tuple[str, ...]:
    """The prompts given, and those of a text file, one a line; empty lines are none."""
    if file is None:
        return tuple(prompts)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as fault:
        raise CannotRun(f"{file}: cannot be read as text ({fault})", "cannot_open") from fault
    found = [line for line in lines if line.strip()]
    if not found:
        raise CannotRun(f"{file} holds no prompt", "usage")
    return (*prompts, *found)


def run_parity(
    checkpoint: Path,
    mappings: Mappings,
    options: ParityOptions,
    converted: Path | None = None,
    save: Path | None = None,
) -> Record:
    """Original and candidate side by side; ``save``: a file for the activations of both."""
    from sam3lite_convert.activations import Saved, check_place, save_activations
    from sam3lite_convert.parity import compare_encoders, diagnose, measured_floors, notes
    from sam3lite_convert.parity_setup import set_up

    if save is not None:
        check_place(save)
    setup = set_up(checkpoint, mappings, options, converted)
    outcome = compare_encoders(setup, setup.candidate())
    diagnosis = diagnose(setup, outcome)
    inputs = setup.inputs
    about: Record = {
        "checkpoint": str(checkpoint),
        "converted": str(converted) if converted else None,
        "reference": setup.reference.name,
        "candidate": setup.layout,
        "candidate_encoder": outcome.candidate.name,
        "attention": setup.attention,
        "dtype": str(setup.dtype).removeprefix("torch."),
        "inputs": {"what": inputs.what, "prompts": list(inputs.prompts)},
    }
    if save is not None:
        # The floors go with the file even where nothing differs: another candidate may be put into it.
        floors = outcome.floors or measured_floors(setup)
        saved = Saved(inputs.ids, setup.recorded, outcome.propagated, outcome.isolated, floors, about)
        save_activations(save, saved)
    record = _parity_record(about, outcome.judgement, inputs.ids, setup.recorded, outcome.propagated)
    return record | {
        "diagnosis": diagnosis.record() if diagnosis else None,
        "notes": notes(setup, outcome),
        "saved_activations": str(save) if save else None,
    }


def judge_activations(path: Path, tolerance: float | None = None) -> Record:
    """The verdict of a parity run again, from its saved activations; no model is needed."""
    from sam3lite_convert.activations import load_activations
    from sam3lite_convert.inputs import Inputs
    from sam3lite_convert.judgement import check_tolerance, isolated_belongs, judge, require_finite

    check_tolerance(tolerance)
    saved = load_activations(path)
    require_finite(saved.reference)
    padded = Inputs(saved.input_ids, "").padded
    isolated, floors, notes = saved.isolated, saved.floors, list[str]()
    try:
        if not isolated or not isolated_belongs(saved.reference, saved.candidate, isolated):
            which = "are not this candidate's and were left out" if isolated else "are not in the file"
            notes = [f"isolated activations {which}: an error that was carried to a layer counts as made there"]
            isolated = saved.candidate
            # What is carried to a layer is held to the floor of what is carried.
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
        # The first token of the first row; a few numbers say more than any statistic.
        ours, theirs = (side[name][0].reshape(-1)[:5].double().tolist() for side in (reference, candidate))
        values[name] = {"reference": ours, "candidate": theirs}
    inputs = dict(about.get("inputs") or {}) | {"shape": list(input_ids.shape), "ids": input_ids.tolist()}
    return about | {"inputs": inputs} | judgement.record() | {"values": values}


def self_test_parity(
    checkpoint: Path,
    mappings: Mappings,
    options: ParityOptions,
    converted: Path | None = None,
    tried: Callable[[Record], None] = lambda record: None,
) -> Record:
    """Every known fault made in a copy of the candidate; ``tried`` is told of each. ``verdict`` is
    ``passed`` where each was found in its place, or is one that these inputs reveal to nobody.

    Raises CannotRun where the candidate differs before any fault is made.
    """
    from sam3lite_convert.parity import compare_encoders
    from sam3lite_convert.parity_setup import set_up
    from sam3lite_convert.self_test import run_self_test

    setup = set_up(checkpoint, mappings, options, converted)
    before = compare_encoders(setup, setup.candidate()).judgement
    if before.verdict == "differs":
        raise CannotRun(
            "the candidate differs from the original already, so faults made on purpose would hide behind that; run "
            "parity without --self-test first",
            "differs_already",
        )
    trials = []
    for trial in run_self_test(setup):
        trials.append(trial.record())
        tried(trials[-1])
    counts = Counter(trial["outcome"] for trial in trials)
    return {
        "checkpoint": str(checkpoint),
        "converted": str(converted) if converted else None,
        "candidate": setup.layout,
        "inputs": {"what": setup.inputs.what, "shape": list(setup.inputs.ids.shape)},
        "verdict": "failed" if counts["missed"] else "passed",
        "counts": {name: counts[name] for name in ("found", "missed", "not revealed")},
        "faults": trials,
    }


def explain_key(path: Path, key: str, mappings: Mappings, options: Options) -> Record:
    """What happens to one key; ``key`` is a source key in any spelling, or a target key.

    Raises CannotRun, with the nearest names, for a key that is neither.
    """
    plan = make_plan(read_checkpoint(path), mappings, options)
    canonical = {m.canonical: m.source.key for m in plan.mapped.values()}
    canonical |= {d.canonical: d.source.key for d in plan.dropped.values() if d.label != "twin"}
    source = key if key in plan.checkpoint.tensors else canonical.get(key)
    if source is None and key in plan.mapped:
        source = plan.mapped[key].source.key
    if source is None:
        source = next((m.source.key for m in plan.mapped.values() if m.target == key), None)
    if source is None:
        near = difflib.get_close_matches(key, [*plan.checkpoint.tensors, *canonical, *plan.mapped], 4, 0.6)
        hint = "\nThe nearest names:\n  " + "\n  ".join(near) if near else ""
        message = f"{key} is neither a source key nor a target key of this conversion.{hint}"
        raise CannotRun(message, "unknown_key", {"near": near})
    record: Record = {"key": key, "layout": plan.layout.name}
    if source in plan.dropped:
        return record | _explain_dropped(plan.dropped[source])
    pieces = [m for m in plan.mapped.values() if m.source.key == source]
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
