"""What the parts after the neck are made of: attention, the MLP, the feed-forward half of a layer.

Everything is batch first: (prompts, tokens, width).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """Multi-head attention with the keys of torch's MultiheadAttention: rows of q, k and v in one ``in_proj``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """``query`` (n, L, d); ``key``, ``value`` (n, S, d); returns (n, L, d).

        ``mask``: bool (n, S), True where a key is padding; or added to the scores, (n, heads, L, S).
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            functional.linear(x, w, b).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        if mask is not None and mask.dtype == torch.bool:
            mask = ~mask[:, None, None]
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


class MLP(nn.Module):
    """Linear layers with ReLU between them. ``widths``: from the input to the output."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            x = layer(x).relu()
        out: Tensor = last(x)
        return out


class FeedForward(nn.Module):
    """The half of a layer that ``linear1`` and ``linear2`` make; a base class, since its keys are the layer's own."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)

    def feed_forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear2(self.linear1(x).relu())
        return out
