"""The DETR encoder, which mixes the prompt into the map, and the decoder, which finds boxes in it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from sam3lite_convert.convert.packed_config import PackedDecoderConfig, PackedLayersConfig
from sam3lite_convert.packed_detector.boxes import corners, logit
from sam3lite_convert.packed_detector.layers import Attention, FeedForward, Perceptron, PreNormLayer, norm, valid_keys
from sam3lite_convert.packed_detector.positions import sine_code
from sam3lite_convert.packed_encoder import embedding
from sam3lite_convert.plan.detector_constants import BIAS_SCALE


class DetrEncoder(nn.Module):
    """The modules whose keys start with ``detr_encoder.``. There is no last norm."""

    def __init__(self, config: PackedLayersConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PreNormLayer(config) for _ in range(config.num_layers))

    def forward(self, x: Tensor, position: Tensor, prompt: Tensor, padding: Tensor) -> Tensor:
        """``x`` and ``position``: (n, cells, d); ``prompt`` (n, P, d), ``padding`` (n, P)."""
        for layer in self.layers:
            x = layer(x, prompt, prompt, position, cross_mask=valid_keys(padding))
        return x


class DecoderLayer(nn.Module):
    """A post-norm layer over the presence token and the queries, in this order."""

    def __init__(self, config: PackedDecoderConfig) -> None:
        super().__init__()
        width, heads = config.hidden_size, config.num_attention_heads
        self.self_attn = Attention(width, heads)
        self.self_attn_layer_norm = norm(width)
        self.text_cross_attn = Attention(width, heads)
        self.text_cross_attn_layer_norm = norm(width)
        self.vision_cross_attn = Attention(width, heads)
        self.vision_cross_attn_layer_norm = norm(width)
        self.mlp = FeedForward(width, config.intermediate_size)
        self.mlp_layer_norm = norm(width)

    def forward(
        self, z: Tensor, position: Tensor, prompt: Tensor, padding: Tensor, key: Tensor, memory: Tensor, bias: Tensor
    ) -> Tensor:
        """``z`` and ``position``: (n, 1 + Q, d).

        prompt, padding: (n, P, d) and (n, P).
        key, memory: (n, cells, d), with and without positions.
        bias: (n, heads, 1 + Q, cells), added to the scores of the attention to the memory.
        """
        placed = z + position
        z = self.self_attn_layer_norm(z + self.self_attn(placed, placed, z))
        attended = self.text_cross_attn(z + position, prompt, prompt, valid_keys(padding))
        z = self.text_cross_attn_layer_norm(z + attended)
        z = self.vision_cross_attn_layer_norm(z + self.vision_cross_attn(z + position, key, memory, bias))
        out: Tensor = self.mlp_layer_norm(z + self.mlp(z))
        return out


class DecoderOutput(NamedTuple):
    """What the decoder found.

    queries: (layers, n, Q, d), normed.
    boxes: (n, Q, 4), cxcywh, refined by every layer.
    presence: (n, 1), a logit, of the last layer.
    """

    queries: Tensor
    boxes: Tensor
    presence: Tensor


class DetrDecoder(nn.Module):
    """The modules whose keys start with ``detr_decoder.``."""

    def __init__(self, config: PackedDecoderConfig) -> None:
        super().__init__()
        width, heads = config.hidden_size, config.num_attention_heads
        self.query_embed = embedding(config.num_queries, width)
        self.reference_points = embedding(config.num_queries, 4)
        self.presence_token = embedding(1, width)
        self.ref_point_head = Perceptron(2 * width, width, width)
        self.box_rpb_embed_x = Perceptron(2, width, heads)
        self.box_rpb_embed_y = Perceptron(2, width, heads)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.output_layer_norm = norm(width)
        self.box_head = Perceptron(width, width, width, 4)
        self.presence_layer_norm = norm(width)
        self.presence_head = Perceptron(width, width, width, 1)

    def forward(
        self, memory: Tensor, position: Tensor, grid: tuple[int, int], prompt: Tensor, padding: Tensor
    ) -> DecoderOutput:
        """``memory`` and ``position``: (n, cells, d) of a ``grid`` (rows, columns); ``prompt``, ``padding``: (n, P)."""
        start = torch.cat([self.presence_token.weight, self.query_embed.weight])
        z = start.expand(memory.size(0), -1, -1)
        boxes = self.reference_points.weight.sigmoid().expand(memory.size(0), -1, -1)
        key = memory + position
        queries = []
        for layer in self.layers:
            # The presence token has no position and no bias: a row of zeros before those of the queries.
            placed = functional.pad(self.ref_point_head(_box_code(boxes, memory.size(-1) // 2)), (0, 0, 1, 0))
            bias = functional.pad(self._bias(boxes, grid), (0, 0, 1, 0))
            z = layer(z, placed, prompt, padding, key, memory, bias)
            boxes = (self.box_head(self.output_layer_norm(z[:, 1:])) + logit(boxes)).sigmoid()
            # Normed again, as the original does: calls of this norm are counted where models are compared.
            queries.append(self.output_layer_norm(z[:, 1:]))
            presence = self.presence_head(self.presence_layer_norm(z[:, :1]))[:, 0]
        return DecoderOutput(torch.stack(queries), boxes, presence)

    def _bias(self, boxes: Tensor, grid: tuple[int, int]) -> Tensor:
        """What the place of a cell, seen from the edges of a box, adds to its score: (n, heads, Q, cells)."""
        x0, y0, x1, y1 = corners(boxes).unbind(-1)
        across = self.box_rpb_embed_x(_distances(grid[1], x0, x1))
        down = self.box_rpb_embed_y(_distances(grid[0], y0, y1))
        out: Tensor = (down[:, :, :, None] + across[:, :, None]).flatten(2, 3).permute(0, 3, 1, 2)
        return out


def _box_code(boxes: Tensor, channels: int) -> Tensor:
    """Sine codes of cy, cx, w and h, in this order: (n, Q, 4 * channels)."""
    cx, cy, w, h = boxes.unbind(-1)
    return torch.cat([sine_code(value, channels) for value in (cy, cx, w, h)], -1).to(boxes.dtype)


def _distances(cells: int, start: Tensor, end: Tensor) -> Tensor:
    """From the two edges of each box (n, Q) to the cells of an axis, on a logarithmic scale: (n, Q, cells, 2)."""
    at = torch.arange(cells, device=start.device, dtype=start.dtype) / cells
    distance = (at[:, None] - torch.stack([start, end], -1)[:, :, None]) * BIAS_SCALE
    return distance.sign() * (distance.abs() + 1).log2() / math.log2(BIAS_SCALE)
