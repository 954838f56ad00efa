"""Reads what a port of the whole detector dumped, and the inputs that it ran on, from the formats of ``port_files``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from original_ref.detector import prepare
from original_ref.detector.constants import MEAN, STD
from sam3lite_convert.errors import CannotRun, Untrusted
from sam3lite_convert.parity import taps as text_taps
from sam3lite_convert.parity.detector.inputs import DetectorCall
from sam3lite_convert.parity.detector.taps import OUTPUTS, ROWS
from sam3lite_convert.parity.inputs import given_ids
from sam3lite_convert.parity.port_files import SIDES, names_in, own_names, read_arrays, some, tap_of
from sam3lite_convert.plan.architecture import Architecture

_UNREAD = "neck.3"  # a level that modules may compute and nothing reads
_SEPARATORS = re.compile(r"[._/-]+")
# Name in a file -> argument of the detector.
_INPUTS = {
    "input_ids": "input_ids", "ids": "input_ids", "image": "image", "pixel_values": "image", "picture": "picture",
    "boxes": "boxes", "box_labels": "box_labels", "box_mask": "box_mask",
}  # fmt: skip
_PICTURES = ("image", "picture")
_TEXT = "text."  # the stage of the text encoder, in the names of taps
_WHERE = (
    "give those of the file that sam3lite record CHECKPOINT --component detector wrote, beside the taps or with --ids "
    "FILE; or judge the text encoder alone with --component text"
)


def _words(name: str) -> str:
    return _SEPARATORS.sub(".", name)


_PATTERNS = [
    (re.compile(re.escape(_words(name)).replace(re.escape("{i}"), r"(\d{1,4})")), name)
    for name in (*(row.name for row in ROWS), *(f"outputs.{name}" for name in OUTPUTS))
]


@dataclass(frozen=True)
class DetectorPortFile:
    """What a file of a port of the whole detector holds.

    ``kind``: the format, in words.
    ``propagated``: the port's activations by tap, in the shape and dtype of the file.
    ``isolated``: those computed from the original's recorded inputs, by tap.
    ``inputs``: the detector's arguments that are in it, by name, and ``picture``.
    ``notes``: what was left out.
    ``names``: by tap, what the file calls it, where that is spelled otherwise.
    """

    kind: str
    propagated: dict[str, Tensor]
    isolated: dict[str, Tensor]
    inputs: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    names: dict[str, str] = field(default_factory=dict)


def spelled(name: str) -> str | None:
    """The tap of the detector that a name stands for, which may have any of ``. _ - /`` between its words; None if it
    stands for none."""
    words = _words(name)
    for pattern, tap in _PATTERNS:
        if match := pattern.fullmatch(words):
            found = tap.replace("{i}", str(int(match[1]))) if "{i}" in tap else tap
            return None if found == _UNREAD else found
    return None


def _in_detector(name: str) -> str | None:
    """``spelled``, in a file of a whole detector, where a tap of the text encoder may stand under its own name."""
    text = text_taps.spelled(name)
    return spelled(name) or (f"text.{text}" if text and text != text_taps.POOLED.name else None)


def _plain(name: str) -> bool:
    """Whether it is a tap of the text encoder under its own name, without the stage."""
    return tap_of(name, spelled) is None


def is_detector(path: Path) -> bool:
    """Whether a file or folder holds taps of a whole detector, by the names in it.

    The script of record writes a text tap of a whole detector twice, as ``text.layers.0`` and ``layers.0``. A file of
    such pairs alone, without a picture, is of a run of the text encoder.
    """
    names = names_in(path)
    taps = {place[1] for name in names if (place := tap_of(name, spelled, (*SIDES, "sampled")))}
    if any(not tap.startswith(_TEXT) for tap in taps) or any(_INPUTS.get(name) in _PICTURES for name in names):
        return bool(taps)
    return bool(taps) and not any(map(tap_of, names))


def read_detector_port(path: Path) -> DetectorPortFile:
    """Read a port's activations. Raises CannotRun if there are none in it, Untrusted if it is damaged."""
    kind, found, names = read_arrays(path, lambda name: name in _INPUTS or tap_of(name, _in_detector) is not None)
    sides: dict[str, dict[str, Tensor]] = {side: {} for side in SIDES}
    owner: dict[tuple[str, str], str] = {}
    for name, tensor in found.items():
        place = tap_of(name, _in_detector)
        if name in _INPUTS or place is None:
            continue
        if place in owner:
            if _plain(name) == _plain(owner[place]):
                raise Untrusted(f"{path}: {owner[place]} and {name} are both {place[1]}", "corrupt_file")
            if _plain(name):
                continue  # the script of record writes both
        owner[place] = name
        sides[place[0]][place[1]] = tensor
    if not sides["candidate"]:
        raise CannotRun(
            f"{path} holds the original's side alone; save your port's activations under the names of the taps, such "
            "as trunk.blocks.0",
            "no_activations",
        )
    others = [name for name in names if name not in found]
    notes = (f"not taps, and so not read: {some(others)}",) if others else ()
    return DetectorPortFile(kind, sides["candidate"], sides["isolated"], _inputs(path, found), notes, own_names(owner))


def read_detector_inputs(path: Path) -> dict[str, Tensor]:
    """The detector's arguments that a file holds, by name. Raises CannotRun if there are none, Untrusted if it is
    damaged."""
    found = _inputs(path, read_arrays(path, _INPUTS.__contains__)[1])
    if not found:
        raise CannotRun(f"{path}: no inputs in it; {_WHERE}", "no_inputs")
    return found


def _inputs(path: Path, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name, argument in _INPUTS.items():
        if name in found:
            if argument in out and not torch.equal(out[argument], found[name]):
                raise Untrusted(f"{path}: two different {argument}", "corrupt_file")
            out[argument] = found[name]
    return out


def call_of(inputs: Mapping[str, Tensor], architecture: Architecture, called: str) -> DetectorCall:
    """The call that inputs of a file stand for, of one picture and one prompt.

    ``called``: what the file is called.

    Raises CannotRun if ids or picture are missing, or if one of them is not what this detector takes.
    """
    missing = [] if "input_ids" in inputs else ["input_ids"]
    if inputs.keys().isdisjoint(_PICTURES):
        missing.append("image")
    if missing:
        raise CannotRun(f"{called} holds no {' and no '.join(missing)}; {_WHERE}", "no_inputs")
    ids = inputs["input_ids"]
    text = given_ids(ids[None] if ids.dim() == 1 else ids, architecture.sizes["vocab"])
    text = replace(text, what=f"the ids of {called}")
    if len(text.ids) != 1:
        raise CannotRun(f"{called} holds {len(text.ids)} prompts; a whole detector is judged on one", "bad_ids")
    image, picture = _image(inputs, architecture.sizes["patch"])
    boxes = inputs.get("boxes", torch.zeros(1, 0, 4)).float()
    boxes = boxes[None] if boxes.dim() == 2 else boxes
    if boxes.dim() == 3 and len(boxes) != 1 and boxes.shape[1] == 1:
        boxes = boxes.transpose(0, 1)  # as the original's modules have them
    if boxes.dim() != 3 or boxes.shape[::2] != (1, 4) or not bool(boxes.isfinite().all()):
        raise CannotRun(
            f"boxes are {tuple(boxes.shape)}; they are finite numbers of shape (1, boxes, 4): centre, width and height "
            "as shares of the picture",
            "bad_boxes",
        )
    flags = {}
    for name, usual in (("box_labels", 1), ("box_mask", 0)):
        flag = inputs.get(name, torch.full(boxes.shape[:2], usual)).reshape(1, -1)
        if flag.shape != boxes.shape[:2] or flag.is_floating_point() or not bool(((flag == 0) | (flag == 1)).all()):
            raise CannotRun(f"{name} must be 0 or 1 for each of the {boxes.shape[1]} boxes", "bad_boxes")
        flags[name] = flag
    return DetectorCall(
        picture, image, text.ids, boxes, flags["box_labels"].long(), flags["box_mask"].bool(), text, called
    )


def _image(inputs: Mapping[str, Tensor], patch: int) -> tuple[Tensor, Tensor]:
    """The normalised picture (1, 3, S, S), and the same in uint8 (3, S, S)."""
    name = "image" if "image" in inputs else "picture"
    given = inputs[name]
    whole = given[None] if given.dim() == 3 else given
    size = whole.shape[-1] if whole.dim() else 0
    if tuple(whole.shape) != (1, 3, size, size) or size < 2 * patch or size % patch:
        raise CannotRun(
            f"{name} is {tuple(given.shape)}, not (1, 3, S, S) with S a multiple of {patch} from {2 * patch} on",
            "other_shape",
        )
    if name == "picture":
        if given.is_floating_point() or int(whole.min()) < 0 or int(whole.max()) > 255:
            raise CannotRun("picture must hold whole numbers from 0 to 255", "other_shape")
        picture = whole[0].to(torch.uint8)
        return prepare(picture, size), picture
    if not whole.is_floating_point() or not bool(whole.isfinite().all()):
        raise CannotRun("image must hold finite floating-point numbers, normalised", "other_shape")
    return whole.float(), _levels(whole[0].float())


def _levels(image: Tensor) -> Tensor:
    """A normalised picture (3, S, S) back in uint8."""
    return ((image * STD + MEAN) * 255).round().clamp(0, 255).byte()
