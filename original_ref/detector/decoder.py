"""The DETR decoder: queries become objects, layer by layer (section 6)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from original_ref.detector.attention import MLP, Attention, FeedForward
from original_ref.detector.boxes import InverseSigmoid, corners
from original_ref.detector.constants import EPS, RPB_SCALE
from original_ref.detector.positions import SineCode


class QuerySine(nn.Module):
    """The sine code of the queries' boxes, in the order centre y, centre x, width, height. It has no weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.code = SineCode(width // 2)

    def forward(self, boxes: Tensor) -> Tensor:
        """(n, Q, 4), cx cy w h -> (n, Q, 2 * width)."""
        x, y, w, h = boxes.unbind(-1)
        return torch.cat([self.code(value) for value in (y, x, w, h)], -1)


class Distances(nn.Module):
    """How far rows or columns of the map are from a box's two edges, on a log scale. It has no weights."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = RPB_SCALE

    def forward(self, edges: Tensor, size: int) -> Tensor:
        """``edges`` (n, Q, 2), relative to the picture; returns (n, Q, size, 2). A cell stands at its first edge."""
        cells = torch.arange(size, dtype=edges.dtype, device=edges.device) / size
        far = (cells[:, None] - edges[:, :, None]) * self.scale
        return far.sign() * (far.abs() + 1).log2() / math.log2(self.scale)


class RelativeBias(nn.Module):
    """What a column and a row add to a query's score for a cell. It has no weights."""

    def forward(self, columns: Tensor, rows: Tensor) -> Tensor:
        """``columns`` (n, Q, w, heads), ``rows`` (n, Q, h, heads) -> (n, heads, Q, h * w), row by row."""
        bias = rows[:, :, :, None] + columns[:, :, None]
        return bias.flatten(2, 3).permute(0, 3, 1, 2)


class DecoderLayer(FeedForward):
    """A post-norm layer on the presence token and the queries. Mind the norms' numbers."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__(width, hidden)
        self.norm1, self.catext_norm, self.norm2, self.norm3 = (nn.LayerNorm(width, EPS) for _ in range(4))
        self.self_attn = Attention(width, heads)
        self.ca_text = Attention(width, heads)
        self.cross_attn = Attention(width, heads)

    def forward(
        self,
        queries: Tensor,
        presence: Tensor,
        positions: Tensor,
        prompt: Tensor,
        mask: Tensor,
        memory: Tensor,
        where: Tensor,
        bias: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Queries (n, Q, d) and presence token (n, 1, d) of the next layer.

        ``positions`` (n, Q, d), of the queries; ``prompt`` (n, P, d) and its ``mask`` (n, P); ``memory`` and ``where``
        (n, h * w, d); ``bias`` (n, heads, Q, h * w), added to the scores of the last attention.
        """
        z = torch.cat((presence, queries), 1)
        u = torch.cat((torch.zeros_like(presence), positions), 1)
        # The presence token attends to all cells alike.
        bias = torch.cat((torch.zeros_like(bias[:, :, :1]), bias), 2)
        z = self.norm2(z + self.self_attn(z + u, z + u, z))
        z = self.catext_norm(z + self.ca_text(z + u, prompt, prompt, mask))
        z = self.norm1(z + self.cross_attn(z + u, memory + where, memory, bias))
        z = self.norm3(z + self.feed_forward(z))
        return z[:, 1:], z[:, :1]


class Decoded(NamedTuple):
    """What the decoder gives.

    queries: normed, of every layer, (L, n, Q, d).
    references: the boxes that went into every layer, (L, n, Q, 4), cx cy w h.
    presence: logits of every layer, (L, n, 1); not clamped.
    """

    queries: Tensor
    references: Tensor
    presence: Tensor


class Decoder(nn.Module):
    """The layers, each of which also refines the boxes."""

    def __init__(self, width: int, heads: int, hidden: int, layers: int, queries: int) -> None:
        super().__init__()
        self.query_embed = nn.Embedding(queries, width)
        self.reference_points = nn.Embedding(queries, 4)
        self.presence_token = nn.Embedding(1, width)
        self.query_sine = QuerySine(width)
        self.ref_point_head = MLP(2 * width, width, width)
        self.distances = Distances()
        self.boxRPB_embed_x = MLP(2, width, heads)
        self.boxRPB_embed_y = MLP(2, width, heads)
        self.rpb = RelativeBias()
        self.layers = nn.ModuleList(DecoderLayer(width, heads, hidden) for _ in range(layers))
        self.inverse_sigmoid = InverseSigmoid()
        self.norm = nn.LayerNorm(width, EPS)
        self.bbox_embed = MLP(width, width, width, 4)
        self.presence_token_out_norm = nn.LayerNorm(width, EPS)
        self.presence_token_head = MLP(width, width, width, 1)

    def bias(self, boxes: Tensor, height: int, width: int) -> Tensor:
        """The box relative position bias of boxes (n, Q, 4), cx cy w h: (n, heads, Q, height * width)."""
        x0, y0, x1, y1 = corners(boxes).unbind(-1)
        columns = self.boxRPB_embed_x(self.distances(torch.stack((x0, x1), -1), width))
        rows = self.boxRPB_embed_y(self.distances(torch.stack((y0, y1), -1), height))
        out: Tensor = self.rpb(columns, rows)
        return out

    def refined(self, queries: Tensor, references: Tensor) -> Tensor:
        """Boxes (..., 4), cx cy w h from 0 to 1: the references moved by what the normed queries (..., d) say."""
        logits = self.inverse_sigmoid(references)
        out: Tensor = (self.bbox_embed(queries) + logits).sigmoid()
        return out

    def forward(self, memory: Tensor, where: Tensor, prompt: Tensor, mask: Tensor, height: int, width: int) -> Decoded:
        """``memory`` and ``where`` (n, h * w, d); ``prompt`` (n, P, d); ``mask`` (n, P)."""
        n = len(memory)
        queries, presence, boxes = (
            table.weight.expand(n, -1, -1) for table in (self.query_embed, self.presence_token, self.reference_points)
        )
        boxes = boxes.sigmoid()
        outputs, references, logits = [], [], []
        for layer in self.layers:
            references.append(boxes)
            positions = self.ref_point_head(self.query_sine(boxes))
            bias = self.bias(boxes, height, width)
            queries, presence = layer(queries, presence, positions, prompt, mask, memory, where, bias)
            outputs.append(self.norm(queries))
            boxes = self.refined(outputs[-1], boxes)
            logits.append(self.presence_token_head(self.presence_token_out_norm(presence))[..., 0])
        return Decoded(torch.stack(outputs), torch.stack(references), torch.stack(logits))
