"""Layers that several parts of the detector are made of. All tensors are batch-first."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from sam3lite_convert.convert.packed_config import PackedLayersConfig
from sam3lite_convert.plan.detector_constants import NORM_EPS


def norm(width: int) -> nn.LayerNorm:
    """A layer norm with the detector's eps."""
    return nn.LayerNorm(width, NORM_EPS)


class Attention(nn.Module):
    """Multi-head attention, by ``functional.scaled_dot_product_attention``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """``query`` (n, L, width); ``key`` and ``value`` (n, S, width).

        mask: what is added to the scores, or True where they count; broadcast to (n, heads, L, S).
        """
        q, k, v = (
            projected.reshape(*projected.shape[:2], self.num_heads, -1).transpose(1, 2)
            for projected in (self.q_proj(query), self.k_proj(key), self.v_proj(value))
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out


def valid_keys(padding: Tensor) -> Tensor:
    """The mask of an attention to a padded sequence. ``padding``: (n, S), True where it is padded."""
    return ~padding[:, None, None, :]


class FeedForward(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, hidden: int, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.activation = activation or nn.ReLU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.activation(self.fc1(x)))
        return out


class Perceptron(nn.Module):
    """``layer1``, ``layer2``, ...: linear layers with ReLU between them."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        for i, (before, after) in enumerate(pairwise(widths), 1):
            self.add_module(f"layer{i}", nn.Linear(before, after))

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.children()):
            x = layer(x.relu() if i else x)
        return x


class PreNormLayer(nn.Module):
    """A layer of the geometry encoder and of the DETR encoder: attention to itself, to another sequence, an MLP."""

    def __init__(self, config: PackedLayersConfig) -> None:
        super().__init__()
        width, heads = config.hidden_size, config.num_attention_heads
        self.layer_norm1 = norm(width)
        self.self_attn = Attention(width, heads)
        self.layer_norm2 = norm(width)
        self.cross_attn = Attention(width, heads)
        self.layer_norm3 = norm(width)
        self.mlp = FeedForward(width, config.intermediate_size)

    def forward(
        self,
        x: Tensor,
        key: Tensor,
        value: Tensor,
        position: Tensor | None = None,
        self_mask: Tensor | None = None,
        cross_mask: Tensor | None = None,
    ) -> Tensor:
        """``x`` (n, L, width); ``key`` and ``value`` (n, S, width): the other sequence.

        position: added to the query and key of the attention to itself, (n, L, width).
        """
        t = self.layer_norm1(x)
        placed = t if position is None else t + position
        x = x + self.self_attn(placed, placed, t, self_mask)
        x = x + self.cross_attn(self.layer_norm2(x), key, value, cross_mask)
        out: Tensor = x + self.mlp(self.layer_norm3(x))
        return out
