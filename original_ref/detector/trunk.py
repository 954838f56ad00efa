"""The vision trunk: a ViT with attention in windows, in some blocks over the whole picture (section 1).

Inside, a map is (B, H, W, C).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from original_ref.detector.constants import EPS, ROTARY_BASE


def rotary_table(grid: int, window: int, head_dim: int, base: float = ROTARY_BASE) -> Tensor:
    """The rotary table of a block that attends to ``grid`` x ``grid`` tokens: complex64 (grid * grid, head_dim / 2).

    ``window``: side of the windows, which the positions of a larger grid are scaled to.
    """
    frequency = base ** (-4 * torch.arange(head_dim // 4, dtype=torch.float32) / head_dim)
    token = torch.arange(grid * grid)
    scale = window / grid
    x, y = (scale * axis.float()[:, None] * frequency for axis in (token % grid, token // grid))
    angle = torch.cat((x, y), 1)  # x first
    return torch.polar(torch.ones_like(angle), angle)


class PatchEmbed(nn.Module):
    """Cuts the picture into patches: one convolution without a bias."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.proj(image).permute(0, 2, 3, 1)
        return out


class TiledPositions(nn.Module):
    """The position table of a small grid, repeated over a large one and never interpolated. It has no weights."""

    def forward(self, table: Tensor, height: int, width: int) -> Tensor:
        """``table`` (1, 1 + s * s, C), the class token's position first; returns (1, height, width, C)."""
        rows = table[:, 1:]
        side = math.isqrt(rows.shape[1])
        rows = rows.unflatten(1, (side, side))
        tiled: Tensor = rows.repeat(1, -(-height // side), -(-width // side), 1)
        return tiled[:, :height, :width]


class TrunkAttention(nn.Module):
    """Attention among the tokens of a window or of the whole map, with rotated queries and keys."""

    freqs_cis: Tensor

    def __init__(self, width: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.register_buffer("freqs_cis", torch.zeros(tokens, width // heads // 2, dtype=torch.complex64))

    def rotated(self, x: Tensor) -> Tensor:
        """Neighbouring channels are a complex number, which is turned by the table's. (B, heads, tokens, head size)."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        turned = torch.view_as_complex(wide.unflatten(-1, (-1, 2)).contiguous()) * self.freqs_cis
        return torch.view_as_real(turned).flatten(-2).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens, C) -> (B, tokens, C)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(self.rotated(q), self.rotated(k), v)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class TrunkMLP(nn.Module):
    """Two linear layers with an exact (erf) GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class Windows(nn.Module):
    """Cuts a map into windows and puts it together again. It has no weights."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B * windows, side * side, C), row by row. Zeros fill up the last ones, unmasked."""
        side, (_, height, width, _) = self.side, x.shape
        x = functional.pad(x, (0, 0, 0, -width % side, 0, -height % side))
        x = x.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3)
        return x.flatten(0, 2).flatten(1, 2)

    def joined(self, x: Tensor, height: int, width: int) -> Tensor:
        """The reverse: (B * windows, side * side, C) -> (B, height, width, C)."""
        rows, columns = -(-height // self.side), -(-width // self.side)
        x = x.unflatten(1, (self.side, self.side)).unflatten(0, (-1, rows, columns)).transpose(2, 3)
        return x.flatten(3, 4).flatten(1, 2)[:, :height, :width]


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). ``window``: side of the windows; None to attend to all tokens."""

    def __init__(self, width: int, heads: int, hidden: int, window: int | None, tokens: int) -> None:
        super().__init__()
        self.windows = None if window is None else Windows(window)
        self.norm1 = nn.LayerNorm(width, EPS)
        self.attn = TrunkAttention(width, heads, tokens)
        self.norm2 = nn.LayerNorm(width, EPS)
        self.mlp = TrunkMLP(width, hidden)

    def attend(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> the same."""
        height, width = x.shape[1:3]
        if self.windows is None:
            out: Tensor = self.attn(x.flatten(1, 2)).unflatten(1, (height, width))
            return out
        return self.windows.joined(self.attn(self.windows(x)), height, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Trunk(nn.Module):
    """The ViT. ``windows``: for each block the side of its windows, None for a global one; ``tokens``: of its table.

    No class token, no norm at the end; the output is that of the last block.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        patch: int,
        positions: int,
        heads: int,
        hidden: int,
        windows: Sequence[int | None],
        tokens: Sequence[int],
    ) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, width))
        self.patch_embed = PatchEmbed(channels, width, patch)
        self.abs_pos = TiledPositions()
        self.ln_pre = nn.LayerNorm(width, EPS)
        self.blocks = nn.ModuleList(
            Block(width, heads, hidden, window, count) for window, count in zip(windows, tokens, strict=True)
        )

    def forward(self, image: Tensor) -> Tensor:
        """(B, channels, S, S) -> (B, width, h, w)."""
        x = self.patch_embed(image)
        x = self.ln_pre(x + self.abs_pos(self.pos_embed, *x.shape[1:3]))
        for block in self.blocks:
            x = block(x)
        out: Tensor = x.permute(0, 3, 1, 2)
        return out
