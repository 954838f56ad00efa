"""What both detectors run on: a picture, the ids of a prompt, boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from original_ref.detector import prepare, squared
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.parity.inputs import Inputs, make_inputs
from sam3lite_convert.parity.picture_files import read_picture, synthetic_picture
from sam3lite_convert.plan.architecture import Architecture
from sam3lite_convert.records.detector import DetectorInputs

DEFAULT_SIZE = 336  # pixels; the real one is 1008
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class DetectorOptions:
    """The user's choice of inputs.

    ``size``: side of the square that the detector sees, in pixels. None: DEFAULT_SIZE, or less for a small detector.
    ``image``: a file with the picture. None: the built-in one.
    ``prompt``: a text. None: the dummy ids "a photo", or random ones with ``seed``.
    ``boxes``: box prompts, x, y, width and height in pixels of the picture; x, y is the top left corner.
    """

    size: int | None = None
    image: Path | None = None
    prompt: str | None = None
    seed: int | None = None
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True)
class DetectorCall:
    """The arguments of one call of a detector, for one picture and one prompt.

    ``picture``: RGB, (3, H, W), uint8, as it was given.
    ``image``: (1, 3, size, size), as the detector reads it.
    ``input_ids``: (1, T).
    ``boxes``: (1, K, 4), cx cy w h relative to the picture; K may be 0.
    ``box_mask``: (1, K), True at a box that is padding.
    """

    picture: Tensor
    image: Tensor
    input_ids: Tensor
    boxes: Tensor
    box_labels: Tensor
    box_mask: Tensor
    text: Inputs
    image_name: str

    @property
    def size(self) -> int:
        """Side of the square that the detector sees, in pixels."""
        return int(self.image.shape[-1])

    @property
    def squared(self) -> Tensor:
        """The picture in uint8, (3, size, size), before it is normalised: all that ``image`` is made from."""
        return squared(self.picture, self.size)

    def arguments(self, device: torch.device, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """The arguments by name, floating ones in ``dtype``."""
        own = {name: getattr(self, name) for name in ("image", "input_ids", "boxes", "box_labels", "box_mask")}
        return {k: t.to(device, dtype if t.is_floating_point() else t.dtype) for k, t in own.items()}

    def with_padded_box(self) -> DetectorCall:
        """The same call with one box that is padding, if there is none: the original's result does not depend on it,
        and transformers' detector only then computes the class token."""
        if self.boxes.shape[1]:
            return self
        boxes = torch.full((1, 1, 4), 0.5)
        label, mask = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool)
        return replace(self, boxes=boxes, box_labels=label, box_mask=mask)

    @property
    def valid(self) -> dict[str, Tensor]:
        """Kind of rows -> which hold something, (1, rows): see ``taps.Row``."""
        boxes = ~self.box_mask
        geometry = torch.arange(boxes.shape[1] + 1) <= boxes.sum(1, keepdim=True)
        return {"boxes": boxes, "geometry": geometry, "prompt": torch.cat((self.input_ids != 0, geometry), 1)}

    def record(self) -> DetectorInputs:
        """The inputs for the JSON."""
        kept = ~self.box_mask[0]
        return DetectorInputs(
            what=self.text.what,
            size=self.size,
            image=self.image_name,
            prompt=self.text.prompts[0] if self.text.prompts else None,
            ids=tuple(tuple(row) for row in self.input_ids.tolist()),
            boxes=tuple(tuple(box) for box in self.boxes[0][kept].tolist()),
            box_labels=tuple(bool(label) for label in self.box_labels[0][kept].tolist()),
        )


def make_call(options: DetectorOptions, architecture: Architecture, context: int) -> DetectorCall:
    """The call for an architecture. ``context``: tokens that the text encoder is called with.

    Raises CannotRun if a value is out of range, the picture cannot be read or the prompt cannot be tokenized.
    """
    size = check_size(options.size, architecture)
    picture = read_picture(options.image) if options.image else synthetic_picture(max(size, 224))
    picture = picture.permute(2, 0, 1)
    prompts = (options.prompt,) if options.prompt is not None else ()
    text = make_inputs(context, architecture.sizes["vocab"], options.seed, prompts=prompts)
    boxes = relative(options.boxes, *picture.shape[1:])
    return DetectorCall(
        picture,
        prepare(picture, size),
        text.ids,
        boxes,
        torch.ones(boxes.shape[:2], dtype=torch.int64),
        torch.zeros(boxes.shape[:2], dtype=torch.bool),
        text,
        options.image.name if options.image else "built-in picture",
    )


def check_size(size: int | None, architecture: Architecture) -> int:
    """The side of the square in pixels.

    Raises CannotRun if the detector's patches do not divide it, or if it is larger than the detector's own.
    """
    vision = architecture.vision
    assert vision is not None
    patch, whole = architecture.sizes["patch"], vision.image_size
    if size is None:
        return min(DEFAULT_SIZE // patch * patch, whole)
    if size < 2 * patch or size % patch:
        raise CannotRun(f"--size must be a multiple of {patch}, the detector's patches, from {2 * patch} on", "usage")
    return size


def relative(boxes: Sequence[Box], height: int, width: int) -> Tensor:
    """Boxes x y w h in pixels -> (1, K, 4), cx cy w h relative to the picture.

    Raises CannotRun if a box is not finite, is empty, or lies wholly outside the picture.
    """
    found = []
    for x, y, w, h in boxes:
        if not all(map(math.isfinite, (x, y, w, h))) or w <= 0 or h <= 0:
            raise CannotRun(f"--box {x:g},{y:g},{w:g},{h:g}: width and height must be greater than 0", "usage")
        if x >= width or y >= height or x + w <= 0 or y + h <= 0:
            raise CannotRun(f"--box {x:g},{y:g},{w:g},{h:g} lies outside the picture of {width} x {height}", "usage")
        found.append([(x + w / 2) / width, (y + h / 2) / height, w / width, h / height])
    return torch.tensor(found, dtype=torch.float32).reshape(1, len(found), 4)
