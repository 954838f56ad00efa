"""Sine codes of positions and boxes (section 2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from original_ref.detector.constants import SINE_EPS, TEMPERATURE


class SineCode(nn.Module):
    """The code of a number: the sines and cosines of ``2 pi`` times it at falling frequencies. It has no weights."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.temperature = TEMPERATURE

    def forward(self, value: Tensor) -> Tensor:
        """(...) -> (..., channels): sine at even channels, cosine at odd ones."""
        # In float32 and in this order: another loses 1e-6 at high frequencies (section 12, trap 6).
        index = torch.arange(self.channels, dtype=value.dtype, device=value.device)
        period = self.temperature ** (2 * index.div(2, rounding_mode="floor") / self.channels)
        angle = (value * (2 * math.pi)).unsqueeze(-1) / period
        return torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), -1).flatten(-2)


class PositionMap(nn.Module):
    """The position map of a level: half of the channels tell the row, half the column."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.code = SineCode(width // 2)
        self.eps = SINE_EPS

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (B, C, h, w); returns (1, width, h, w). Rows and columns count from 1."""
        rows, columns = (
            torch.arange(1, size + 1, dtype=x.dtype, device=x.device) / (size + self.eps) for size in x.shape[-2:]
        )
        y = self.code(rows)[:, None].expand(-1, len(columns), -1)
        x = self.code(columns)[None].expand(len(rows), -1, -1)
        return torch.cat((y, x), -1).permute(2, 0, 1)[None]
