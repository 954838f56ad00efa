"""What the detector returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class PackedOutput(NamedTuple):
    """The outputs of the detector, for n prompts and Q queries.

    pred_logits: (n, Q, 1), how well each query fits the prompt; without the presence logit.
    pred_boxes: (n, Q, 4), cx, cy, w, h, relative to the image.
    pred_boxes_xyxy: (n, Q, 4), the same as corners.
    pred_masks: (n, Q, h, w), logits, at the finest map's size.
    presence_logit_dec: (n, 1), whether there is such an object at all.
    semantic_seg: (n, 1, h, w), logits.
    """

    pred_logits: Tensor
    pred_boxes: Tensor
    pred_boxes_xyxy: Tensor
    pred_masks: Tensor
    presence_logit_dec: Tensor
    semantic_seg: Tensor
