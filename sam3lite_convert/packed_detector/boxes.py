"""Arithmetic of boxes: (cx, cy, w, h) relative to the image, unless it says otherwise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sam3lite_convert.plan.detector_constants import LOGIT_EPS


def corners(boxes: Tensor) -> Tensor:
    """(x0, y0, x1, y1) of boxes (..., 4)."""
    center, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([center - size / 2, center + size / 2], -1)


def logit(x: Tensor) -> Tensor:
    """The inverse of the sigmoid, cut near 0 and 1."""
    x = x.clamp(0, 1)
    return (x.clamp(min=LOGIT_EPS) / (1 - x).clamp(min=LOGIT_EPS)).log()


def roi_align(features: Tensor, box: Tensor, bins: int) -> Tensor:
    """Means of the map (d, h, w) over ``bins`` x ``bins`` parts of a box (x0, y0, x1, y1) in cells: (d, bins, bins).

    Each part is sampled bilinearly about once a cell. As the samples form a grid and bilinear weights are products,
    the mean is the map times a matrix for the rows and one for the columns.
    """
    x0, y0, x1, y1 = box.unbind()
    down = _bin_weights(y0, y1, features.size(1), bins)
    across = _bin_weights(x0, x1, features.size(2), bins)
    return down.to(features.dtype) @ features @ across.to(features.dtype).transpose(-1, -2)


def _bin_weights(start: Tensor, end: Tensor, cells: int, bins: int) -> Tensor:
    """How much each cell of an axis counts in each bin: (bins, cells).

    No half cell is taken off the start; a box is at least one cell long. A sample more than a cell outside the map
    counts as 0, one nearer to it as the cell at the edge.
    """
    length = (end - start).clamp(min=1)
    samples = math.ceil(float(length / bins))
    part = torch.arange(bins, device=start.device)[:, None]
    within = (torch.arange(samples, device=start.device) + 0.5) / samples
    at = start + part * (length / bins) + within * (length / bins)
    inside = (at >= -1) & (at <= cells)
    distance = at.clamp(0, cells - 1)[..., None] - torch.arange(cells, device=start.device)
    weights = (1 - distance.abs()).clamp(min=0) * inside[..., None]
    return weights.mean(1)
