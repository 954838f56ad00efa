"""From a picture to the detector's input, and from its output to objects in the picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sam3lite_convert.errors import CannotRun
from sam3lite_convert.packed_detector.outputs import PackedOutput
from sam3lite_convert.plan.detector_constants import PIXEL_MEAN, PIXEL_STD

if TYPE_CHECKING:
    from numpy.typing import NDArray


class PillowImage(Protocol):
    """What is used of Pillow's ``Image``."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""

    def convert(self, mode: str) -> PillowImage:
        """The picture in another mode."""

    def tobytes(self) -> bytes:
        """Its pixels, row by row."""


class Objects(NamedTuple):
    """What was found in a picture.

    scores: (k), from 0 to 1.
    boxes: (k, 4), x0, y0, x1, y1 in pixels; not clipped to the picture, as the original's are not.
    masks: (k, height, width), bool.
    """

    scores: Tensor
    boxes: Tensor
    masks: Tensor


def pixels_of(picture: Tensor | NDArray[np.uint8] | PillowImage) -> Tensor:
    """The picture as a uint8 tensor (3, H, W).

    picture: RGB, a uint8 array (H, W, 3) or tensor (3, H, W), or an image of Pillow.

    Raises CannotRun if it has another shape or dtype.
    """
    if isinstance(picture, Tensor):
        pixels = picture
    elif isinstance(picture, np.ndarray):
        pixels = torch.from_numpy(np.ascontiguousarray(picture))
        pixels = pixels.permute(2, 0, 1) if pixels.dim() == 3 else pixels
    elif not hasattr(picture, "convert"):
        raise CannotRun(
            "a picture is an RGB array (height, width, 3), a tensor (3, height, width), both uint8, or Pillow's; this "
            f"is of type {type(picture).__name__}. PIL.Image.open(FILE) opens a file",
            "bad_picture",
        )
    else:
        picture = picture.convert("RGB")
        width, height = picture.size
        rows = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        pixels = rows.view(height, width, 3).permute(2, 0, 1)
    if pixels.dtype != torch.uint8 or pixels.dim() != 3 or pixels.size(0) != 3 or not pixels.numel():
        raise CannotRun(
            "a picture is an RGB array (height, width, 3), a tensor (3, height, width), both uint8, or Pillow's; "
            f"this one, channels first, is {str(pixels.dtype).removeprefix('torch.')} {tuple(pixels.shape)}",
            "bad_picture",
        )
    return pixels


def prepare_image(picture: Tensor | NDArray[np.uint8] | PillowImage, size: int) -> Tensor:
    """The detector's input (1, 3, size, size), float32: resized in uint8 without keeping its aspect, then normalised.

    Raises CannotRun if the picture is not one that ``pixels_of`` takes.
    """
    pixels = pixels_of(picture)[None]
    resized = functional.interpolate(pixels, (size, size), mode="bilinear", align_corners=False, antialias=True)
    # The original multiplies by 1/255; a division differs in the last bit.
    return (resized.float() * (1 / 255) - PIXEL_MEAN) / PIXEL_STD


def find_objects(output: PackedOutput, height: int, width: int, threshold: float = 0.5, prompt: int = 0) -> Objects:
    """The objects that one prompt found in its picture of ``height`` x ``width`` pixels, in the order of the queries.

    threshold: a score has to be greater. It is that of the query times that of the presence of the object at all.
    prompt: which of the prompts.
    """
    scores = (output.pred_logits[prompt, :, 0].sigmoid() * output.presence_logit_dec[prompt].sigmoid()).float()
    kept = scores > threshold
    boxes = output.pred_boxes_xyxy[prompt][kept].float()
    logits = output.pred_masks[prompt][kept, None].float()
    masks = functional.interpolate(logits, (height, width), mode="bilinear", align_corners=False)[:, 0].sigmoid() > 0.5
    return Objects(scores[kept], boxes * boxes.new_tensor([width, height, width, height]), masks)
