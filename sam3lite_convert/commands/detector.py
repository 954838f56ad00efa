"""The whole detector of both sides, stage by stage."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sam3lite_convert.commands.sources import Source
from sam3lite_convert.convert.folder import Folder, read_folder
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.plan.plan import Options, Plan, make_plan
from sam3lite_convert.plan.tables import Mappings
from sam3lite_convert.records.detector import DetectorDocument, OutputRecord, Picture, StageRecord
from sam3lite_convert.records.parity import ComparedSides, DiagnosisRecord

if TYPE_CHECKING:
    from torch import Tensor

    from sam3lite_convert.parity.detector.inputs import DetectorCall, DetectorOptions
    from sam3lite_convert.parity.detector.run import DetectorOutcome, DetectorRun, Progress
    from sam3lite_convert.parity.setup import ParityOptions
    from sam3lite_convert.records.record import Json

_BYTES_A_PIXEL = 1200  # of all taps, per pixel of the picture: 1.2 GB at 1008
THRESHOLD = 0.5  # a score above it is an object, as in the original's processor


@dataclass(frozen=True)
class DetectorLooks:
    """What is shown beside the comparison.

    ``report``: also what a page shows; ``command``: as it was typed; ``not_read_allowed``: text tensors that no module
    of the reference reads do not fail the run; ``progress``: a bar over the taps of a pass.
    """

    report: bool = False
    command: str = ""
    not_read_allowed: bool = False
    progress: Progress | None = None


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

    Raises CannotRun for options that do not go together, a missing package or no room for activations, UnsoundPlan if
    a side does not get its weights, Untrusted if the checkpoint or the folder contradicts itself.
    """
    from sam3lite_convert.commands.provenance import provenance
    from sam3lite_convert.convert.config import make_config
    from sam3lite_convert.convert.text_weights import folder_tensors, planned_tensors
    from sam3lite_convert.parity.candidates import check_candidate
    from sam3lite_convert.parity.detector.inputs import make_call
    from sam3lite_convert.parity.detector.models import DETECTORS, reference_detector, the_device
    from sam3lite_convert.parity.detector.run import DetectorRun, no_progress
    from sam3lite_convert.parity.detector.stock import stands_in_for_torchvision
    from sam3lite_convert.parity.setup import check_settings, check_source, context_notes, recognised, whole
    from sam3lite_convert.plan.context import called_context

    where = the_device(device)
    source = source if converted is None else source.as_stated(read_folder(converted).receipt)
    notes: list[str] = []
    folder: Folder | None = None
    with ExitStack() as stack:
        stack.enter_context(source.trusted())
        checkpoint = source.read()
        hashing = stack.enter_context(source.hashing()) if checkpoint.hub and not checkpoint.partial else None
        if converted is not None:
            folder = whole(read_folder(converted))
            notes += folder.notes
            plan = recognised(folder, checkpoint, mappings, options, notes)
            check_settings(folder, plan, options)
        else:
            layout = mappings.layout(options.candidate or Options().layout)
            plan = make_plan(checkpoint, mappings, Options(layout.name, context=options.context, causal=options.causal))
        check_candidate(plan.layout, mappings)
        _whole_detector(plan)
        check_source(checkpoint, plan, list(plan.mapped.values()))
        config = _config(folder) if folder else make_config(plan)
        stated = called_context(checkpoint, plan.context.rows, options.context)
        notes += context_notes(stated, plan, _rows(plan, folder))
        context = plan.architecture.called if stated.origin == "unknown" else stated.called
        call = make_call(inputs, plan.architecture, context)
        if plan.layout.loader.library is not None and stands_in_for_torchvision():
            notes.append(
                "torchvision is not installed, so transformers runs with a stand-in for its roi_align, which computes "
                "what the compiled operator does"
            )
        notes += _notes(plan, call)

        def weights() -> Mapping[str, Tensor]:
            return dict(folder_tensors(folder, folder.tensors)) if folder else planned_tensors(plan)

        build = DETECTORS[plan.layout.loader.name]
        if plan.layout.loader.library is not None:
            call = call.with_padded_box()  # transformers computes the class token only if there is a box
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sam3lite-")))
        _check_room(place, call.size)
        run = DetectorRun(
            lambda: reference_detector(plan, context, call.size, where),
            lambda: build(plan.layout.family, config, weights(), options.attention, call.size, where),
            call,
            place,
            where,
            options.tolerance,
            looks.progress or no_progress,
        )
        outcome = run.compare()
        if folder is not None:
            folder.check_unchanged()
        outcome = replace(outcome, judgement=replace(outcome.judgement, not_read=plan.not_read))
        diagnosis = _diagnosis(run, outcome, plan, folder)
        if hashing is not None:
            hashing.check(replace(checkpoint, records=()))
            hashing.result()
        judgement, stages, outputs = outcome.judgement, _stages(outcome), _outputs(outcome)
        pictures, said = _pictures(call, outcome) if looks.report else (None, [])
    return DetectorDocument(
        sides=ComparedSides(
            checkpoint=source.name,
            converted=(called or str(converted)) if converted else None,
            reference="original detector" + ("; the file holds more" if plan.not_read else ""),
            candidate=plan.layout.name,
            candidate_encoder=run.name,
            attention=options.attention,
            dtype="float32",
        ),
        inputs=call.record(),
        judgement=judgement.record("float32"),
        stages=stages,
        outputs=outputs,
        diagnosis=diagnosis,
        notes=(*notes, *said),
        not_read_allowed=looks.not_read_allowed,
        source=source.provenance(),
        fetched=source.fetched(),
        pictures=pictures,
        page=provenance(plan, folder, looks.command) if looks.report else None,
    )


def _whole_detector(plan: Plan) -> None:
    """Raises CannotRun if the folder holds the text encoder alone."""
    if plan.options.component == "text":
        raise CannotRun(
            "the folder holds the text encoder alone, so there is no detector to compare; leave out --component",
            "text_only",
        )


def _config(folder: Folder) -> Json:
    if folder.config is None:
        raise CannotRun(f"{folder.path} has no config.json, so no detector can be built", "no_config")
    return folder.config


def _rows(plan: Plan, folder: Folder | None) -> int:
    """Rows of the candidate's text position table."""
    from sam3lite_convert.plan.operations import positions

    piece = next(m for m in plan.mapped.values() if m.position_table)
    shape = folder.tensors[piece.key][1].shape if folder and piece.key in folder.tensors else piece.shape
    return positions(tuple(shape)) or plan.context.held


def _notes(plan: Plan, call: DetectorCall) -> list[str]:
    """What the comparison takes as given."""
    vision = plan.architecture.vision
    said = []
    if vision is not None and call.size != vision.image_size:
        said.append(
            f"both sides ran on {call.size} x {call.size} pixels, with rotary tables computed for that size; "
            f"--size {vision.image_size} runs the detector's own"
        )
    if plan.options.dtype not in (None, "float32"):
        said.append(f"the folder was cast to {plan.options.dtype}; both sides run in float32, so the cast shows")
    heads = plan.architecture.assumed.get("attention heads")
    return [*said, f"attention heads: {heads}"] if heads else said


def _check_room(place: Path, size: int) -> None:
    """Raises CannotRun if the disk has no room for the original's activations."""
    needed = _BYTES_A_PIXEL * size * size
    free = shutil.disk_usage(place).free
    if free < needed:
        raise CannotRun(
            f"the activations need {needed / 1e9:.1f} GB in {tempfile.gettempdir()}, which has {free / 1e9:.1f} GB "
            "free; set TMPDIR to another place, or give a smaller --size",
            "no_space",
        )


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
                seconds_candidate=taken.get(stage, 0.0),
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
    from sam3lite_convert.parity.detector.faults import faults_at
    from sam3lite_convert.parity.run import Diagnosis
    from sam3lite_convert.verify.verify import tensor_faults

    tap = outcome.judgement.first_divergence
    if tap is None:
        return None
    side = run.reference()
    fits = explain(run, outcome, side, faults_at)
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
        result = found({name: pair[n] for name, pair in outcome.outputs.items()}, height, width, THRESHOLD)  # type: ignore[arg-type]
        sides.append(Objects(result.masks, result.boxes, result.scores))
    return pictures_of(call.picture.permute(1, 2, 0), sides[0], sides[1], THRESHOLD), []
