"""The whole detector of both sides, stage by stage."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from sam3lite_convert.checkpoint.index import Checkpoint
from sam3lite_convert.commands.onnx_candidate import exported_folder
from sam3lite_convert.commands.sources import Source
from sam3lite_convert.commands.verify import read_with_weights
from sam3lite_convert.convert.folder import Folder
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.plan.plan import Options, Plan, make_plan
from sam3lite_convert.plan.tables import Mappings
from sam3lite_convert.progress import bar
from sam3lite_convert.records.detector import DetectorBehaviour, DetectorDocument, OutputRecord, Picture, StageRecord
from sam3lite_convert.records.parity import (
    ComparedSides,
    DiagnosisRecord,
    PortRecord,
    SelfTestDocument,
    SelfTestInputs,
    TrialOutcome,
    TrialRecord,
    Verdict,
)

if TYPE_CHECKING:
    from torch import Tensor

    from sam3lite_convert.parity.detector.compared_graphs import ComparedGraphs
    from sam3lite_convert.parity.detector.inputs import DetectorCall, DetectorOptions
    from sam3lite_convert.parity.detector.port_files import DetectorPortFile
    from sam3lite_convert.parity.detector.run import DetectorOutcome, DetectorRun
    from sam3lite_convert.parity.detector.setup import DetectorSetup
    from sam3lite_convert.parity.setup import ParityOptions
    from sam3lite_convert.plan.architecture import Architecture

_LISTED = 8  # taps that are named in a sentence
_STEPS = 18  # that --as-used tells of, about
THRESHOLD = 0.5  # a score above it is an object, as in the original's processor


@dataclass(frozen=True)
class DetectorLooks:
    """What is shown beside the comparison.

    ``as_used``: the behaviour too; ``report``: also what a page shows; ``command``: as it was typed;
    ``not_read_allowed``: text tensors that no module of the reference reads do not fail the run.
    """

    as_used: bool = False
    report: bool = False
    command: str = ""
    not_read_allowed: bool = False


def run_detector_parity(
    source: Source,
    mappings: Mappings,
    options: ParityOptions,
    inputs: DetectorOptions,
    converted: Path | None = None,
    looks: DetectorLooks = DetectorLooks(),
    called: str | None = None,
    device: str | None = None,
) -> DetectorDocument:
    """The original's detector beside a converted one, tap by tap. ``called``: what the user calls the folder.

    With ``options.runtime`` the candidate is the folder's graphs, by default at the size that they are for; without a
    folder, those of a conversion that is deleted at the end.

    Raises CannotRun for options that do not go together, a missing package or no room for activations, UnsoundPlan if
    a side does not get its weights, Untrusted if the checkpoint or the folder contradicts itself.
    """
    from sam3lite_convert.commands.provenance import provenance
    from sam3lite_convert.parity.detector.setup import set_up_detector

    texts: tuple[str, ...] = ()
    if looks.as_used:
        options, texts = _as_used(options, inputs, converted, mappings)
    source = source if converted is None else source.as_stated(read_with_weights(converted).receipt)
    with ExitStack() as stack:
        stack.enter_context(source.trusted())
        checkpoint = source.read(mappings)
        hashing = stack.enter_context(source.hashing()) if checkpoint.hub and not checkpoint.partial else None
        if hashing is not None:
            stack.enter_context(hashing.shown())
        place = stack.enter_context(activations_place())
        at, graphs = converted, None
        if options.runtime is not None:
            at, inputs, graphs = _graphs(stack, source, checkpoint, mappings, options, inputs, converted)
        setup = set_up_detector(checkpoint, mappings, options, inputs, place, at, device, graphs)
        plan, folder, run, call = setup.plan, setup.folder, setup.run, setup.run.call
        outcome = run.compare()
        if folder is not None:
            folder.check_unchanged()
        outcome = replace(outcome, judgement=replace(outcome.judgement, not_read=plan.not_read))
        diagnosis = _diagnosis(run, outcome, plan, folder)
        if graphs is not None:
            diagnosis = graphs.diagnosed(diagnosis, outcome.judgement)
        used = _behaviour(setup, texts, outcome.judgement.verdict, looks) if looks.as_used else None
        if hashing is not None:
            hashing.check(replace(checkpoint, records=()))
            hashing.result()
        judgement, stages, outputs = outcome.judgement, _stages(outcome), _outputs(outcome)
        pictures, said = _pictures(call, outcome) if looks.report else (None, [])
    return DetectorDocument(
        sides=ComparedSides(
            checkpoint=source.name,
            converted=(called or str(converted)) if converted else None,
            option=source.option,
            reference="original detector" + ("; the file holds more" if plan.not_read else ""),
            candidate=options.runtime.name if options.runtime else plan.layout.name,
            candidate_encoder=run.name,
            attention="graph" if graphs else options.attention,
            dtype=graphs.dtype if graphs else "float32",
        ),
        inputs=call.record(),
        judgement=judgement.record("float32"),
        stages=stages,
        outputs=outputs,
        diagnosis=diagnosis,
        notes=(*setup.notes, *(graphs.said(judgement) if graphs else ()), *said),
        not_read_allowed=looks.not_read_allowed,
        behaviour=used,
        source=source.provenance(),
        fetched=source.fetched(),
        pictures=pictures,
        page=provenance(setup.conversion, folder if converted else None, looks.command) if looks.report else None,
        graphs=graphs.record(converted is not None) if graphs else None,
    )


def _graphs(
    stack: ExitStack,
    source: Source,
    checkpoint: Checkpoint,
    mappings: Mappings,
    options: ParityOptions,
    inputs: DetectorOptions,
    converted: Path | None,
) -> tuple[Path, DetectorOptions, ComparedGraphs]:
    """The folder with the graphs, the inputs with the size that they are for, and what makes a candidate of them."""
    from sam3lite_convert.parity.detector.inputs import check_size
    from sam3lite_convert.parity.setup import chosen_layout

    assert options.runtime is not None
    runtime = options.runtime.open()
    from sam3lite_convert.parity.detector.compared_graphs import ComparedGraphs
    from sam3lite_convert.parity.detector.graphs import size_of

    if converted is not None:
        folder, size = converted, inputs.size or size_of(converted)
    else:
        layout = chosen_layout(checkpoint, mappings, options.candidate)
        asked = Options(layout.name, context=options.context, causal=options.causal)
        size = check_size(inputs.size, make_plan(checkpoint, mappings, asked).architecture)
        folder = stack.enter_context(exported_folder(source, checkpoint, mappings, asked, "detector", size))
    return folder, replace(inputs, size=size), ComparedGraphs(runtime, mappings)


def _as_used(
    options: ParityOptions, inputs: DetectorOptions, converted: Path | None, mappings: Mappings
) -> tuple[ParityOptions, tuple[str, ...]]:
    """The options completed with the defaults of ``--as-used``, and the prompts that the model is called with.

    Raises CannotRun if ids or boxes are given.
    """
    from sam3lite_convert.commands.parity import as_used_options

    if inputs.boxes:
        raise CannotRun("--as-used with --component detector compares calls without boxes: leave out --box", "usage")
    texts = (inputs.prompt,) if inputs.prompt is not None else ()
    completed = as_used_options(replace(options, prompts=texts, seed=inputs.seed), converted, mappings)
    return replace(completed, prompts=(), seed=None), completed.prompts


def _behaviour(
    setup: DetectorSetup, texts: tuple[str, ...], weights: Verdict, looks: DetectorLooks
) -> DetectorBehaviour:
    """The second verdict. ``weights``: the first."""
    from original_ref import Detector
    from sam3lite_convert.parity.as_used.detector import detector_behaviour
    from sam3lite_convert.parity.as_used.stock_model import stock_tokenizer

    def original() -> Detector:
        model = setup.run.reference().model
        assert isinstance(model, Detector)
        return model

    with bar("as used", _STEPS) as advance:
        return detector_behaviour(
            setup.plan, setup.config, original, setup.weights, stock_tokenizer(setup.folder), setup.run.call.picture,
            texts, setup.run.call.size, setup.context, setup.folder, weights, lambda stage: advance(stage=stage),
        )  # fmt: skip


def self_test_detector(
    source: Source,
    mappings: Mappings,
    options: ParityOptions,
    inputs: DetectorOptions,
    tried: Callable[[TrialRecord], None] = lambda trial: None,
) -> SelfTestDocument:
    """Make every known fault of a detector in the original, and see whether each is found and named. ``tried``: called
    after every fault.

    Raises what ``run_detector_parity`` raises.
    """
    from sam3lite_convert.parity.detector.self_test import try_faults
    from sam3lite_convert.parity.detector.setup import set_up_detector
    from sam3lite_convert.parity.detector.store import TapStore

    with ExitStack() as stack:
        stack.enter_context(source.trusted())
        place = stack.enter_context(activations_place())
        setup = set_up_detector(source.read(mappings), mappings, options, inputs, place)
        run, store = setup.run, TapStore(place)
        side = run.reference()
        run.record(side, store)
        floors = run.floors(side, store, [], store.taps, {tap: store.read(tap).numel() for tap in store.taps})
        trials = []
        for trial in try_faults(run, store, side, floors):
            trials.append(trial.record())
            tried(trials[-1])
    counts = Counter(trial.outcome for trial in trials)
    return SelfTestDocument(
        checkpoint=source.name,
        converted=None,
        candidate="the original with the fault",
        inputs=SelfTestInputs(
            what=f"{run.call.image_name}, {run.call.size} x {run.call.size}; {run.call.text.what}",
            shape=tuple(run.call.input_ids.shape),
        ),
        verdict="failed" if counts["missed"] else "passed",
        counts={name: counts[name] for name in get_args(TrialOutcome)},
        faults=tuple(trials),
    )


def judge_detector(
    source: Source,
    mappings: Mappings,
    port: DetectorPortFile,
    file: Path,
    inputs: Mapping[str, Tensor] | None = None,
    inputs_file: Path | None = None,
    name: str | None = None,
    tolerance: float | None = None,
    context: int | None = None,
    looks: DetectorLooks = DetectorLooks(),
) -> DetectorDocument:
    """The verdict on what a port of the whole detector computed, against the original on the same inputs.

    ``port``, ``file``: its activations, and what they were read from.
    ``inputs``, ``inputs_file``: what it ran on, by name, and the file that they are from; None: what ``file`` holds.
    ``name``: of the port. None: the name of the file.
    ``context``: tokens that the original is called with. None: what the checkpoint states.

    Raises CannotRun for inputs that are missing, differ from those in the file or are not this detector's, an unknown
    tap, a shape that is not the original's, or no room; UnsoundPlan and Untrusted as a conversion does.
    """
    from sam3lite_convert.commands.provenance import provenance
    from sam3lite_convert.parity.detector.port_files import call_of
    from sam3lite_convert.parity.detector.setup import set_up_original
    from sam3lite_convert.parity.detector.taps import OUTPUTS
    from sam3lite_convert.parity.judgement import check_tolerance
    from sam3lite_convert.parity.port import dtypes_of

    check_tolerance(tolerance)
    called = name or file.name
    dtypes = dtypes_of(port.propagated)[1]
    dtypes_of(port.isolated)
    used = _same_inputs(port.inputs, inputs, called)

    def make(architecture: Architecture, context: int) -> DetectorCall:
        return call_of(used, architecture, str(inputs_file or file))

    with ExitStack() as stack:
        stack.enter_context(source.trusted())
        hashing = stack.enter_context(source.hashing()) if source.path.is_file() else None
        if hashing is not None:
            stack.enter_context(hashing.shown())
        checkpoint = source.read(mappings)
        place = stack.enter_context(activations_place())
        setup = set_up_original(checkpoint, mappings, make, place, context, tolerance)
        plan, run, call = setup.plan, setup.run, setup.run.call
        outcome, said = run.judge(port.propagated, port.isolated, port.names)
        outcome = replace(outcome, judgement=replace(outcome.judgement, not_read=plan.not_read))
        if set(dtypes) != {"float32"}:
            said.append(
                f"the port's values are {' and '.join(dtypes)}; the original ran in float32, and the noise floors are "
                "those of float32: values in half precision differ by more, so record float32 or give --tolerance"
            )
        diagnosis = _port_diagnosis(run, outcome, plan)
        digest = None
        if hashing is not None:
            hashing.check(replace(checkpoint, records=()))
            digest = hashing.result()[0]
        judgement, stages, outputs = outcome.judgement, _stages(outcome), _outputs(outcome)
        pictures: tuple[Picture, ...] | None = None
        if looks.report:
            complete = len(outcome.outputs) == len(OUTPUTS)
            pictures, more = _pictures(call, outcome) if complete else ((), ["no pictures: not all results were given"])
            said += more
    return DetectorDocument(
        sides=ComparedSides(
            checkpoint=source.name,
            converted=None,
            reference="original detector" + ("; the file holds more" if plan.not_read else ""),
            candidate=called,
            candidate_encoder=called,
            attention="unknown",
            dtype=" and ".join(dtypes),
        ),
        inputs=call.record(),
        judgement=judgement.record("float32"),
        stages=stages,
        outputs=outputs,
        diagnosis=diagnosis,
        notes=(*setup.notes, *port.notes, *said),
        not_read_allowed=looks.not_read_allowed,
        source=source.provenance(),
        fetched=source.fetched(),
        pictures=pictures,
        page=provenance(None, None, looks.command) if looks.report else None,
        port=PortRecord(
            file=str(file),
            format=port.kind,
            dtypes=dtypes,
            reference_dtype="float32",
            isolated=sum(t.isolated is not None for t in judgement.taps),
            ids=f"the inputs of {inputs_file}" if inputs_file else "the inputs of the file",
            checkpoint_sha256=digest,
            names=port.names,
        ),
    )


def _same_inputs(held: Mapping[str, Tensor], given: Mapping[str, Tensor] | None, called: str) -> Mapping[str, Tensor]:
    """The inputs that were given, or else those of the file. Raises CannotRun if the file holds others."""
    import torch

    if given is None:
        return held
    for name, value in held.items():
        other = given.get(name, value)
        if value.numel() != other.numel() or not torch.equal(value.flatten().double(), other.flatten().double()):
            raise CannotRun(
                f"{called} holds another {name} than was given; leave it out, or correct the file",
                "bad_ids" if name == "input_ids" else "other_inputs",
            )
    return given


def _port_diagnosis(run: DetectorRun, outcome: DetectorOutcome, plan: Plan) -> DiagnosisRecord | None:
    """Why the first divergence of a port diverges; where the fault may lie before it, only that is said."""
    judgement = outcome.judgement
    if judgement.first is None:
        return None
    tap, unseen = judgement.first.name, judgement.unseen
    value = outcome.isolated.read(tap)
    if count := int((~value.isfinite()).sum()):
        holds = "value that is" if count == 1 else "values that are"
        cause = f"{tap} holds {count:,} {holds} NaN or infinite, of {value.numel():,}"
        return DiagnosisRecord(tap=tap, cause=cause, fits=(), tensors=())
    if not unseen:
        return _diagnosis(run, outcome, plan, None)
    listed = ", ".join(unseen) if len(unseen) <= _LISTED else f"one of {len(unseen)} taps before it"
    cause = (
        f"not found: the fault was made in {listed} or {tap}; give those taps too, and its place and cause can be told"
    )
    return DiagnosisRecord(tap=tap, cause=cause, fits=(), tensors=())


@contextmanager
def activations_place() -> Iterator[Path]:
    """A folder for activations, which is deleted at the end."""
    with tempfile.TemporaryDirectory(prefix="sam3lite-") as place:
        yield Path(place)


def _stages(outcome: DetectorOutcome) -> tuple[StageRecord, ...]:
    from sam3lite_convert.parity.detector.taps import STAGES

    took, taken = outcome.seconds
    found = []
    for stage, name in STAGES.items():
        taps = [t for t in outcome.judgement.taps if outcome.taps[t.name].stage == stage]
        if not taps:
            continue
        worst = max(taps, key=lambda t: (t.floors, t.difference.max_abs))
        found.append(
            StageRecord(
                name=name,
                taps=tuple(t.name for t in taps),
                max_abs_diff=max(t.difference.max_abs for t in taps),
                relative_l2=max(t.difference.relative_l2 for t in taps),
                floors=worst.floors,
                worst_tap=worst.name,
                diverges=any(t.diverges for t in taps),
                seconds_reference=took.get(stage, 0.0),
                seconds_candidate=taken.get(stage, 0.0) if taken else None,
            )
        )
    return tuple(found)


def _outputs(outcome: DetectorOutcome) -> tuple[OutputRecord, ...]:
    found = [t for t in outcome.judgement.taps if t.name.startswith("outputs.")]
    return tuple(
        OutputRecord(
            name=t.name.removeprefix("outputs."),
            max_abs_diff=t.difference.max_abs,
            relative_l2=t.difference.relative_l2,
        )
        for t in found
    )


def _diagnosis(run: DetectorRun, outcome: DetectorOutcome, plan: Plan, folder: Folder | None) -> DiagnosisRecord | None:
    """Why the first divergence diverges, and the tensors behind it."""
    from sam3lite_convert.parity.detector.diagnosis import explain
    from sam3lite_convert.parity.run import Diagnosis
    from sam3lite_convert.verify.verify import tensor_faults

    tap = outcome.judgement.first_divergence
    if tap is None:
        return None
    side = run.reference()
    fits = explain(run, outcome, side)
    starts = outcome.taps[tap].tensors
    tensors = tuple(m for m in plan.mapped.values() if starts and m.canonical.startswith(starts))
    wrong: dict[str, str] = {}
    if folder is not None and tensors:
        targets = {m.key: m.target for m in tensors}
        wrong = {targets[key]: why for key, why in tensor_faults(folder, plan, targets).items()}
    return Diagnosis(tap, tuple(fits), tensors, wrong).record()


def _pictures(call: DetectorCall, outcome: DetectorOutcome) -> tuple[tuple[Picture, ...], list[str]]:
    """The page's pictures, and what is to be said if there are none."""
    from original_ref.detector import found
    from sam3lite_convert.parity.pictures import NO_PICTURES, Objects, can_draw, pictures_of

    if not can_draw():
        return (), [NO_PICTURES]
    height, width = call.picture.shape[1:]
    sides = []
    for n in (0, 1):
        # The library's scores lack the original's last axis, of one element.
        results = {name: pair[n].reshape(pair[0].shape) for name, pair in outcome.outputs.items()}
        result = found(results, height, width, THRESHOLD)  # type: ignore[arg-type]
        sides.append(Objects(result.masks, result.boxes, result.scores))
    return pictures_of(call.picture.permute(1, 2, 0), sides[0], sides[1], THRESHOLD), []
