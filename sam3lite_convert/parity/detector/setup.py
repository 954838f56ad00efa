"""Sets up a run of the original's detector, or a comparison with a converted one: the plan, what runs, and on what."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sam3lite_convert.checkpoint.index import Checkpoint
from sam3lite_convert.convert.config import make_config
from sam3lite_convert.convert.folder import Folder, read_folder
from sam3lite_convert.convert.text_weights import folder_tensors, planned_tensors
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.parity.candidates import check_candidate
from sam3lite_convert.parity.detector.inputs import DetectorCall, DetectorOptions, make_call
from sam3lite_convert.parity.detector.models import DETECTORS, Candidate, reference_detector, the_device
from sam3lite_convert.parity.detector.run import DetectorRun
from sam3lite_convert.parity.detector.stock import stands_in_for_torchvision
from sam3lite_convert.parity.setup import (
    ParityOptions,
    check_settings,
    check_source,
    chosen_layout,
    context_notes,
    detector_config,
    detector_of,
    recognised,
    told,
    whole,
)
from sam3lite_convert.plan.architecture import Architecture
from sam3lite_convert.plan.context import CalledContext, called_context
from sam3lite_convert.plan.operations import positions
from sam3lite_convert.plan.plan import Options, Plan, make_plan
from sam3lite_convert.plan.tables import Mappings
from sam3lite_convert.records.record import Json

_BYTES_A_PIXEL = 1200  # of all taps, per pixel of the picture: 1.2 GB at 1008

# (architecture, tokens that the text encoder is called with) -> what the detector runs on.
MakeCall = Callable[[Architecture, int], DetectorCall]
# (folder, what both sides run on) -> what runs in place of the folder's own detector.
MakeCandidate = Callable[[Folder, DetectorCall], Candidate]


@dataclass(frozen=True)
class OriginalSetup:
    """Everything that a run of the original needs.

    ``plan``: the conversion plan, of the detector alone where another model holds it.
    ``context``: the context that the original is called with, in tokens.
    ``notes``: notes on the verdict.
    ``run``: not yet run; it has no candidate that can be built.
    """

    plan: Plan
    context: int
    notes: tuple[str, ...]
    run: DetectorRun


@dataclass(frozen=True)
class DetectorSetup(OriginalSetup):
    """Everything that a comparison with a converted detector needs; its run can build both sides.

    ``conversion``: the plan of the whole folder, the same but for a folder of another model.
    ``folder``: the converted folder; None for a conversion in memory.
    ``config``: the candidate's config.json.
    ``weights``: reads the candidate's state dict by target key.
    """

    conversion: Plan
    folder: Folder | None
    config: Json
    weights: Callable[[], Mapping[str, Tensor]]


def set_up_original(
    source: Checkpoint,
    mappings: Mappings,
    make: MakeCall,
    place: Path,
    context: int | None = None,
    tolerance: float | None = None,
) -> OriginalSetup:
    """Set up a run of the original alone, on the CPU.

    ``make``: makes what it runs on.
    ``place``: an empty folder for activations.
    ``context``: tokens that the text encoder is called with; None: what the checkpoint states.

    Raises CannotRun for inputs that are not this detector's or no room for activations, UnsoundPlan and Untrusted as a
    conversion does.
    """
    plan = make_plan(source, mappings, Options(context=context))
    setup, stated = _original(source, plan, context, make, place, the_device(None), tolerance)
    note = stated.note(plan.layout.family.contexts)
    said = [*told(source), *([note] if note else [])]
    return replace(setup, notes=(*said, *_notes(plan, setup.run.call, "the original")))


def set_up_detector(
    source: Checkpoint,
    mappings: Mappings,
    options: ParityOptions,
    inputs: DetectorOptions,
    place: Path,
    converted: Path | None = None,
    device: str | None = None,
    instead: MakeCandidate | None = None,
) -> DetectorSetup:
    """Set up a comparison.

    ``place``: an empty folder for activations.
    ``instead``: makes what runs in place of the detector that loads the folder, which then has to be given.

    Raises CannotRun for options that do not go together, a missing package or no room for activations, UnsoundPlan
    and Untrusted as a conversion does, and Untrusted if the folder contradicts itself.
    """
    where = the_device(device)
    notes = told(source)
    folder: Folder | None = None
    if converted is not None:
        folder = whole(read_folder(converted))
        notes += folder.notes
        plan = recognised(folder, source, mappings, options, notes)
        if instead is None:  # a graph does not read config.json
            check_settings(folder, plan, options)
    else:
        layout = chosen_layout(source, mappings, options.candidate)
        check_candidate(layout, mappings)
        plan = make_plan(source, mappings, Options(layout.name, context=options.context, causal=options.causal))
    conversion, plan = plan, detector_of(plan)
    if instead is None:  # graphs take the place of what loads the folder
        check_candidate(plan.layout, mappings)
    _whole_detector(plan)
    config = detector_config(plan, _config(folder)) if folder else make_config(plan)
    library = instead is None and plan.layout.loader.library is not None

    def make(architecture: Architecture, context: int) -> DetectorCall:
        call = make_call(inputs, architecture, context)
        # transformers computes the class token only if there is a box.
        return call.with_padded_box() if library else call

    setup, stated = _original(source, plan, options.context, make, place, where, options.tolerance)
    notes += context_notes(stated, plan, _rows(plan, folder))
    if library and stands_in_for_torchvision():
        notes.append(
            "torchvision is not installed, so transformers runs with a stand-in for its roi_align, which computes what "
            "the compiled operator does"
        )
    call = setup.run.call
    notes += _notes(plan, call, "both sides", instead is None)
    # Before anything runs: graphs may be for other pictures.
    other = instead(folder, call) if instead is not None and folder is not None else None
    inside = plan.layout.inside

    def weights() -> Mapping[str, Tensor]:
        if folder is None:
            return planned_tensors(plan)
        own = (key for key in folder.tensors if key.startswith(inside))
        return {key.removeprefix(inside): tensor for key, tensor in folder_tensors(folder, own)}

    def candidate() -> Candidate:
        if other is not None:
            return other
        build = DETECTORS[plan.layout.loader.name]
        return build(plan.layout.family, config, weights(), options.attention, call.size, where)

    run = replace(setup.run, candidate=candidate)
    return DetectorSetup(plan, setup.context, tuple(notes), run, conversion, folder, config, weights)


def _original(
    source: Checkpoint,
    plan: Plan,
    given: int | None,
    make: MakeCall,
    place: Path,
    where: torch.device,
    tolerance: float | None,
) -> tuple[OriginalSetup, CalledContext]:
    """The original's side of a plan, without notes, and what is known of its context. ``given``: the user's context.

    Raises Untrusted if the checkpoint is damaged, CannotRun for what ``make`` refuses, or no room.
    """
    check_source(source, plan, list(plan.mapped.values()))
    stated = called_context(source, plan.context.rows, given)
    context = plan.architecture.called if stated.origin == "unknown" else stated.called
    call = make(plan.architecture, context)
    _check_room(place, call.size)
    run = DetectorRun(
        lambda: reference_detector(plan, context, call.size, where),
        None,
        call,
        place,
        where,
        tolerance,
    )
    return OriginalSetup(plan, context, (), run), stated


def _whole_detector(plan: Plan) -> None:
    """Raises CannotRun if the folder holds the text encoder alone, or an image encoder that the original is not known
    for."""
    if plan.options.component == "text":
        raise CannotRun(
            "the folder holds the text encoder alone, so there is no detector to compare; leave out --component",
            "text_only",
        )
    if plan.architecture.vision is None:
        raise CannotRun(
            "the image encoder is not SAM3's ViT, and no other is known here to compare with; leave out --component",
            "no_candidate",
        )


def _config(folder: Folder) -> Json:
    if folder.config is None:
        raise CannotRun(f"{folder.path} has no config.json, so no detector can be built", "no_config")
    return folder.config


def _rows(plan: Plan, folder: Folder | None) -> int:
    """Rows of the candidate's text position table."""
    piece = next(m for m in plan.mapped.values() if m.position_table)
    shape = folder.tensors[piece.key][1].shape if folder and piece.key in folder.tensors else piece.shape
    return positions(tuple(shape)) or plan.context.held


def _notes(plan: Plan, call: DetectorCall, who: str, in_float32: bool = True) -> list[str]:
    """What is taken as given. ``who``: which sides run here. ``in_float32``: whether all do that in float32."""
    vision = plan.architecture.vision
    said = []
    if vision is not None and call.size != vision.image_size:
        said.append(
            f"{who} ran on {call.size} x {call.size} pixels, with rotary tables computed for that size; "
            f"the detector's own is {vision.image_size} x {vision.image_size}"
        )
    if plan.options.dtype not in (None, "float32") and in_float32:
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
