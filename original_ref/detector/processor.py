"""Before and after the detector: the original's processor (section 9)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

from original_ref.detector.constants import MEAN, STD, THRESHOLD
from original_ref.detector.model import Detections


class Found(NamedTuple):
    """The objects of one prompt.

    scores: (k).
    boxes: (k, 4), x0 y0 x1 y1 in pixels of the picture.
    masks: (k, H, W), bool.
    probabilities: (k, H, W), which the masks are cut from.
    """

    scores: Tensor
    boxes: Tensor
    masks: Tensor
    probabilities: Tensor


def prepare(picture: Tensor, size: int) -> Tensor:
    """A picture (3, H, W), RGB in uint8, as the detector reads it: (1, 3, size, size). Its aspect is not kept."""
    return (squared(picture, size)[None] * (1 / 255) - MEAN) / STD


def squared(picture: Tensor, size: int) -> Tensor:
    """The picture in uint8, (3, size, size); one that has this size stays as it is."""
    # Resized in uint8: in float32 and then rounded, a fifth of the pixels are one level off.
    return functional.interpolate(picture[None], (size, size), mode="bilinear", antialias=True, align_corners=False)[0]


def found(detections: Detections, height: int, width: int, threshold: float = THRESHOLD, prompt: int = 0) -> Found:
    """The objects of one prompt in a picture of ``height`` x ``width`` pixels whose score is above ``threshold``.

    They stand in the order of the queries; nothing is sorted or suppressed.
    """
    presence = detections["presence_logit_dec"][prompt].sigmoid()
    scores = detections["pred_logits"][prompt, :, 0].sigmoid() * presence
    kept = scores > threshold
    boxes = detections["pred_boxes_xyxy"][prompt][kept]
    boxes = boxes * boxes.new_tensor([width, height, width, height])
    masks = detections["pred_masks"][prompt][kept][:, None]
    if len(masks):
        masks = functional.interpolate(masks, (height, width), mode="bilinear", align_corners=False)
    else:
        masks = masks.new_zeros(0, 1, height, width)
    probabilities = masks[:, 0].sigmoid()
    return Found(scores[kept], boxes, probabilities > 0.5, probabilities)
