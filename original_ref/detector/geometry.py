"""The geometry encoder: boxes become tokens of the prompt (section 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from original_ref.detector.attention import Attention, FeedForward
from original_ref.detector.boxes import corners
from original_ref.detector.constants import EPS, ROI_ALIGNED
from original_ref.detector.positions import SineCode


class RoiAlign(nn.Module):
    """What torchvision's compiled ``roi_align`` computes with its default settings. It has no weights.

    torchvision's fallback in Python differs from it at samples outside the map (section 12, trap 10).
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.aligned = ROI_ALIGNED

    def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
        """``features`` (n, C, h, w); ``boxes`` (n, K, 4), x0 y0 x1 y1 in cells; returns (n, K, C, size, size)."""
        out = features.new_zeros(*boxes.shape[:2], features.shape[1], self.size, self.size)
        for n, k in torch.cartesian_prod(*map(torch.arange, boxes.shape[:2])).tolist():
            out[n, k] = self._one(features[n], boxes[n, k])
        return out

    def _one(self, features: Tensor, box: Tensor) -> Tensor:
        height, width = features.shape[-2:]
        x0, y0, x1, y1 = box - 0.5 if self.aligned else box
        rows, low_y, high_y, part_y = self._samples(y0, y1, height)
        columns, low_x, high_x, part_x = self._samples(x0, x1, width)
        top = torch.lerp(features[:, low_y][:, :, low_x], features[:, low_y][:, :, high_x], part_x)
        low = torch.lerp(features[:, high_y][:, :, low_x], features[:, high_y][:, :, high_x], part_x)
        values = torch.lerp(top, low, part_y[:, None]) * (rows[:, None] & columns)
        # Each bin is the mean of its samples.
        bins: Tensor = values.unflatten(2, (self.size, -1)).unflatten(1, (self.size, -1)).mean((2, 4))
        return bins

    def _samples(self, start: Tensor, end: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of the samples on one axis: whether they lie on the map, the cells on both sides, and how far between."""
        length = end - start if self.aligned else (end - start).clamp(min=1)
        each = max(int(torch.ceil(length / self.size)), 1)  # samples in a bin
        index = torch.arange(self.size * each, device=start.device)
        step = length / self.size
        at = start + index.div(each, rounding_mode="floor") * step + (index % each + 0.5) * step / each
        inside = (at >= -1) & (at <= size)
        at = at.clamp(0, size - 1)
        low = at.floor().long()
        return inside, low, (low + 1).clamp(max=size - 1), at - low


class BoxCode(nn.Module):
    """The sine code of boxes: centre y, centre x, then height and width as they are. It has no weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.code = SineCode(width // 2)

    def forward(self, boxes: Tensor) -> Tensor:
        """(n, K, 4), cx cy w h -> (n, K, width + 2)."""
        x, y, w, h = boxes.unbind(-1)
        return torch.cat((self.code(y), self.code(x), h[..., None], w[..., None]), -1)


class TokenSequence(nn.Module):
    """The box tokens with the class token behind the last valid one. It has no weights."""

    def forward(self, boxes: Tensor, mask: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        """``boxes`` (n, K, d); ``mask`` (n, K), True at padding; ``token`` (1, d).

        Returns tokens (n, K + 1, d) and their mask (n, K + 1).
        """
        n, count, width = boxes.shape
        end = (~mask).sum(1)
        x = torch.cat((boxes, boxes.new_zeros(n, 1, width)), 1)
        x[torch.arange(n, device=x.device), end] = token.to(x.dtype)
        # Behind the token, padded boxes keep their embedding and the last row its zeros; they are masked.
        return x, torch.arange(count + 1, device=x.device) > end[:, None]


class GeometryLayer(FeedForward):
    """A pre-norm layer: tokens attend to one another, then to the picture."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__(width, hidden)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width, EPS) for _ in range(3))
        self.self_attn = Attention(width, heads)
        self.cross_attn_image = Attention(width, heads)

    def forward(self, x: Tensor, mask: Tensor, features: Tensor, positions: Tensor) -> Tensor:
        """``x`` (n, G, d); ``mask`` (n, G); ``features`` and ``positions`` (n, h * w, d)."""
        t = self.norm1(x)
        x = x + self.self_attn(t, t, t, mask)
        x = x + self.cross_attn_image(self.norm2(x), features + positions, features)
        return x + self.feed_forward(self.norm3(x))


class GeometryEncoder(nn.Module):
    """Boxes, which may be none, and a class token, which is always there. Point prompts are not supported."""

    def __init__(self, width: int, heads: int, hidden: int, layers: int, roi: int) -> None:
        super().__init__()
        self.label_embed = nn.Embedding(2, width)
        self.cls_embed = nn.Embedding(1, width)
        # The original holds these, and nothing reads them without points.
        self.points_direct_project = nn.Linear(2, width)
        self.points_pool_project = nn.Linear(width, width)
        self.points_pos_enc_project = nn.Linear(width, width)
        self.boxes_direct_project = nn.Linear(4, width)
        self.boxes_pool_project = nn.Conv2d(width, width, roi)
        self.boxes_pos_enc_project = nn.Linear(width + 2, width)
        self.roi_align = RoiAlign(roi)
        self.encode_boxes = BoxCode(width)
        self.sequence = TokenSequence()
        self.final_proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, EPS)
        self.img_pre_norm = nn.LayerNorm(width, EPS)
        self.encode = nn.ModuleList(GeometryLayer(width, heads, hidden) for _ in range(layers))
        self.encode_norm = nn.LayerNorm(width, EPS)

    def box_tokens(self, boxes: Tensor, labels: Tensor, features: Tensor) -> Tensor:
        """The sum of four views of a box: its numbers, what it covers, its sine code, its label. (n, K, d)."""
        height, width = features.shape[-2:]
        direct = self.boxes_direct_project(boxes)
        normed = self.img_pre_norm(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        cells = boxes.new_tensor([width, height, width, height])
        covered = self.roi_align(normed, corners(boxes) * cells)
        pooled = self.boxes_pool_project(covered.flatten(0, 1)).flatten(1).unflatten(0, labels.shape)
        position = self.boxes_pos_enc_project(self.encode_boxes(boxes))
        out: Tensor = self.label_embed(labels) + ((direct + pooled) + position)
        return out

    def forward(
        self, boxes: Tensor, labels: Tensor, mask: Tensor, features: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens (n, K + 1, d), and their mask (n, K + 1), True at padding.

        ``boxes`` (n, K, 4), cx cy w h relative to the picture; ``labels`` (n, K), 1 for what is wanted and 0 for what
        is not; ``mask`` (n, K), True at padding, which comes last; ``features``, ``positions`` (n, d, h, w).
        """
        tokens = self.box_tokens(boxes, labels, features) if boxes.shape[1] else boxes.new_zeros(
            len(boxes), 0, features.shape[1]
        )  # fmt: skip
        x, padded = self.sequence(tokens, mask, self.cls_embed.weight)
        x = self.norm(self.final_proj(x))
        flat, where = features.flatten(2).mT, positions.flatten(2).mT
        for layer in self.encode:
            x = layer(x, padded, flat, where)
        return self.encode_norm(x), padded
