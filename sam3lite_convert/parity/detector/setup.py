"""Sets up a comparison of whole detectors: the plan, the folder, what both run on, and how each side is built."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sam3lite_convert.checkpoint.index import Checkpoint
from sam3lite_convert.convert.config import make_config
from sam3lite_convert.convert.folder import Folder, read_folder
from sam3lite_convert.convert.text_weights import folder_tensors, planned_tensors
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.parity.candidates import check_candidate
from sam3lite_convert.parity.detector.inputs import DetectorCall, DetectorOptions, make_call
from sam3lite_convert.parity.detector.models import DETECTORS, reference_detector, the_device
from sam3lite_convert.parity.detector.run import DetectorRun, Progress, no_progress
from sam3lite_convert.parity.detector.stock import stands_in_for_torchvision
from sam3lite_convert.parity.setup import (
    ParityOptions,
    check_settings,
    check_source,
    context_notes,
    recognised,
    whole,
)
from sam3lite_convert.plan.context import called_context
from sam3lite_convert.plan.operations import positions
from sam3lite_convert.plan.plan import Options, Plan, make_plan
from sam3lite_convert.plan.tables import Mappings
from sam3lite_convert.records.record import Json

_BYTES_A_PIXEL = 1200  # of all taps, per pixel of the picture: 1.2 GB at 1008


@dataclass(frozen=True)
class DetectorSetup:
    """Everything that a comparison needs.

    ``plan``: the conversion plan.
    ``folder``: the converted folder; None for a conversion in memory.
    ``context``: the context that the original is called with, in tokens.
    ``config``: the candidate's config.json.
    ``weights``: reads the candidate's state dict by target key.
    ``notes``: notes on the verdict.
    ``run``: the comparison, not yet run.
    """

    plan: Plan
    folder: Folder | None
    context: int
    config: Json
    weights: Callable[[], Mapping[str, Tensor]]
    notes: tuple[str, ...]
    run: DetectorRun


def set_up_detector(
    source: Checkpoint,
    mappings: Mappings,
    options: ParityOptions,
    inputs: DetectorOptions,
    place: Path,
    converted: Path | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> DetectorSetup:
    """Set up a comparison. ``place``: an empty folder for activations.

    Raises CannotRun for options that do not go together, a missing package or no room for activations, UnsoundPlan
    and Untrusted as a conversion does, and Untrusted if the folder contradicts itself.
    """
    where = the_device(device)
    notes: list[str] = []
    folder: Folder | None = None
    if converted is not None:
        folder = whole(read_folder(converted))
        notes += folder.notes
        plan = recognised(folder, source, mappings, options, notes)
        check_settings(folder, plan, options)
    else:
        layout = mappings.layout(options.candidate or Options().layout)
        check_candidate(layout, mappings)
        plan = make_plan(source, mappings, Options(layout.name, context=options.context, causal=options.causal))
    check_candidate(plan.layout, mappings)
    _whole_detector(plan)
    check_source(source, plan, list(plan.mapped.values()))
    config = _config(folder) if folder else make_config(plan)
    stated = called_context(source, plan.context.rows, options.context)
    notes += context_notes(stated, plan, _rows(plan, folder))
    context = plan.architecture.called if stated.origin == "unknown" else stated.called
    call = make_call(inputs, plan.architecture, context)
    if plan.layout.loader.library is not None:
        call = call.with_padded_box()  # transformers computes the class token only if there is a box
        if stands_in_for_torchvision():
            notes.append(
                "torchvision is not installed, so transformers runs with a stand-in for its roi_align, which computes "
                "what the compiled operator does"
            )
    notes += _notes(plan, call)
    check_room(place, call.size)
    build = DETECTORS[plan.layout.loader.name]

    def weights() -> Mapping[str, Tensor]:
        return dict(folder_tensors(folder, folder.tensors)) if folder else planned_tensors(plan)

    run = DetectorRun(
        lambda: reference_detector(plan, context, call.size, where),
        lambda: build(plan.layout.family, config, weights(), options.attention, call.size, where),
        call,
        place,
        where,
        options.tolerance,
        progress or no_progress,
    )
    return DetectorSetup(plan, folder, context, config, weights, tuple(notes), run)


def original_detector(source: Checkpoint, mappings: Mappings, context: int | None) -> tuple[Plan, int, list[str]]:
    """The plan of a checkpoint's whole detector, the tokens that it is called with, and what is to be said of them.

    Raises UnsoundPlan if it holds no whole detector, Untrusted if it is damaged.
    """
    plan = make_plan(source, mappings, Options(context=context))
    check_source(source, plan, list(plan.mapped.values()))
    stated = called_context(source, plan.context.rows, context)
    note = stated.note(plan.layout.family.contexts)
    called = plan.architecture.called if stated.origin == "unknown" else stated.called
    return plan, called, [*([note] if note else []), *heads_notes(plan)]


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
    return said + heads_notes(plan)


def heads_notes(plan: Plan) -> list[str]:
    """What is taken for the attention heads, which no weight tells."""
    heads = plan.architecture.assumed.get("attention heads")
    return [f"attention heads: {heads}"] if heads else []


def check_room(place: Path, size: int) -> None:
    """Raises CannotRun if the disk has no room for the original's activations."""
    needed = _BYTES_A_PIXEL * size * size
    free = shutil.disk_usage(place).free
    if free < needed:
        raise CannotRun(
            f"the activations need {needed / 1e9:.1f} GB in {tempfile.gettempdir()}, which has {free / 1e9:.1f} GB "
            "free; set TMPDIR to another place, or give a smaller --size",
            "no_space",
        )
