"""Boxes: formats, and the logit that refines them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from original_ref.detector.constants import LOGIT_EPS


def corners(boxes: Tensor) -> Tensor:
    """cx cy w h -> x0 y0 x1 y1, on the last axis."""
    centre, size = boxes.split(2, -1)
    return torch.cat((centre - size / 2, centre + size / 2), -1)


class InverseSigmoid(nn.Module):
    """The logit of numbers from 0 to 1, kept finite at both ends. It has no weights."""

    def __init__(self) -> None:
        super().__init__()
        self.eps = LOGIT_EPS

    def forward(self, x: Tensor) -> Tensor:
        x = x.clamp(0, 1)
        return (x.clamp(min=self.eps) / (1 - x).clamp(min=self.eps)).log()
