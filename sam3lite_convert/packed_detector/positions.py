"""Codes of positions: sines of the DETR parts, rotary tables of the ViT. Computed in float32, whatever the weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sam3lite_convert.plan.detector_constants import ROTARY_BASE, SINE_BASE, SINE_EPS


def sine_code(value: Tensor, channels: int) -> Tensor:
    """Sines (even channels) and cosines (odd) of 2 pi ``value`` at falling frequencies: (..., channels)."""
    pair = torch.arange(channels, device=value.device) // 2
    wavelengths = SINE_BASE ** (2 * pair.float() / channels)
    angles = (value * (2 * math.pi))[..., None] / wavelengths
    even = torch.arange(channels, device=value.device) % 2 == 0
    return torch.where(even, angles.sin(), angles.cos())


class PositionEncoding(nn.Module):
    """The position map of a feature map: rows in the first half of the channels, columns in the second."""

    def forward(self, features: Tensor) -> Tensor:
        """``features`` (B, d, h, w); the map has the same shape."""
        batch, width, rows, columns = features.shape
        y, x = (
            sine_code(torch.arange(1, n + 1, device=features.device, dtype=torch.float32) / (n + SINE_EPS), width // 2)
            for n in (rows, columns)
        )
        code = torch.cat([y[:, None].expand(-1, columns, -1), x[None].expand(rows, -1, -1)], -1)
        return code.to(features.dtype).permute(2, 0, 1).expand(batch, -1, -1, -1)


def rotary_table(side: int, scale: float, head: int, device: torch.device) -> Tensor:
    """Rotations of a ``side`` x ``side`` grid: (side * side, head / 2), complex64.

    The first half of the columns turns with a token's column, the second with its row, both times ``scale``.
    """
    frequencies = 1 / ROTARY_BASE ** (torch.arange(0, head, 4, device=device).float() / head)
    angles = torch.outer(torch.arange(side, device=device).float() * scale, frequencies)
    angles = torch.cat([angles.repeat(side, 1), angles.repeat_interleave(side, 0)], -1)
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate neighbouring channels, as complex numbers, in float32 or wider. ``x``: (batch, heads, tokens, head)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    pairs = torch.view_as_complex(wide.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * table).flatten(-2).to(x.dtype)
