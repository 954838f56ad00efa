"""The geometry encoder: box prompts as tokens, and a class token behind them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sam3lite_convert.convert.packed_config import PackedGeometryConfig
from sam3lite_convert.packed_detector.boxes import corners, roi_align
from sam3lite_convert.packed_detector.layers import PreNormLayer, norm, valid_keys
from sam3lite_convert.packed_detector.positions import sine_code
from sam3lite_convert.packed_encoder import embedding


class GeometryEncoder(nn.Module):
    """The modules whose keys start with ``geometry_encoder.``. Without a box it gives the class token alone."""

    def __init__(self, config: PackedGeometryConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.roi_size = config.roi_size
        self.label_embed = embedding(2, width)
        self.cls_embed = embedding(1, width)
        self.boxes_direct_project = nn.Linear(4, width)
        self.boxes_pool_project = nn.Conv2d(width, width, config.roi_size)
        self.boxes_pos_enc_project = nn.Linear(width + 2, width)
        self.vision_layer_norm = norm(width)
        self.final_proj = nn.Linear(width, width)
        self.prompt_layer_norm = norm(width)
        self.layers = nn.ModuleList(PreNormLayer(config) for _ in range(config.num_layers))
        self.output_layer_norm = norm(width)

    def forward(
        self, features: Tensor, position: Tensor, boxes: Tensor, labels: Tensor, padding: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens (n, K + 1, d), and where they are padding (n, K + 1).

        features, position: (n, d, h, w), the prompts' images.
        boxes, labels, padding: (n, K, 4), (n, K) and (n, K); valid boxes come first.
        """
        embedded = self._embed(features, boxes, labels)
        # The class token stands behind the last valid box, so that padded boxes stay behind it.
        count = (~padding).sum(1)
        sequence = functional.pad(embedded, (0, 0, 0, 1))
        sequence[torch.arange(len(count), device=count.device), count] = self.cls_embed.weight[0]
        padding = torch.arange(sequence.size(1), device=count.device) > count[:, None]

        value = features.flatten(2).transpose(-1, -2)
        key = value + position.flatten(2).transpose(-1, -2)
        x = self.prompt_layer_norm(self.final_proj(sequence))
        for layer in self.layers:
            x = layer(x, key, value, self_mask=valid_keys(padding))
        return self.output_layer_norm(x), padding

    def _embed(self, features: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        """A token a box, from its numbers, what lies under it, its place, and its label: (n, K, d)."""
        maps = self.vision_layer_norm(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        direct = self.boxes_direct_project(boxes)
        pool = self.boxes_pool_project(self._under(maps, boxes)).reshape(direct.shape)
        cx, cy, w, h = boxes.unbind(-1)
        half = features.size(1) // 2
        code = torch.cat([sine_code(cy, half), sine_code(cx, half), h[..., None], w[..., None]], -1)
        place = self.boxes_pos_enc_project(code.to(boxes.dtype))
        out: Tensor = self.label_embed(labels) + ((direct + pool) + place)
        return out

    def _under(self, maps: Tensor, boxes: Tensor) -> Tensor:
        """What lies under each box: (n * K, d, roi, roi). ``maps``: (n, d, h, w), ``boxes``: (n, K, 4)."""
        rows, columns = maps.shape[2:]
        cells = corners(boxes) * boxes.new_tensor([columns, rows, columns, rows])
        found = [roi_align(m, box, self.roi_size) for m, own in zip(maps, cells, strict=True) for box in own]
        return torch.stack(found) if found else maps.new_zeros(0, maps.size(1), self.roi_size, self.roi_size)
