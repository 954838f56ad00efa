"""The vision encoder: a ViT with windows, and the neck that makes maps of several sizes of its last one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from sam3lite_convert.convert.packed_config import PackedNeckConfig, PackedVitConfig
from sam3lite_convert.packed_detector.layers import FeedForward
from sam3lite_convert.packed_detector.positions import PositionEncoding, rotary_table, rotate
from sam3lite_convert.packed_encoder import ACTIVATIONS


class EncodedImages(NamedTuple):
    """What the detector reads of B images.

    maps: (B, d, h, w) each, finest first; the last has one cell a patch.
    position: the position map of the last.
    """

    maps: tuple[Tensor, ...]
    position: Tensor

    def of(self, image_ids: Tensor) -> EncodedImages:
        """One image a prompt. ``image_ids``: (n), which image each prompt belongs to."""
        return EncodedImages(tuple(m[image_ids] for m in self.maps), self.position[image_ids])


class _PatchEmbeddings(nn.Module):
    def __init__(self, config: PackedVitConfig) -> None:
        super().__init__()
        patch = config.patch_size
        self.projection = nn.Conv2d(config.num_channels, config.hidden_size, patch, stride=patch, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.projection(image).flatten(2).transpose(-1, -2)
        return out


class _Embeddings(nn.Module):
    """Patches, and a table of positions that is tiled over the grid."""

    def __init__(self, config: PackedVitConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.side = config.pretrain_image_size // config.patch_size
        self.patch_embeddings = _PatchEmbeddings(config)
        self.position_embeddings = nn.Parameter(torch.zeros(1, self.side**2, config.hidden_size))

    def forward(self, image: Tensor) -> Tensor:
        rows, columns = (n // self.patch_size for n in image.shape[2:])
        y, x = (torch.arange(n, device=image.device) % self.side for n in (rows, columns))
        table = self.position_embeddings.view(self.side, self.side, -1)
        out: Tensor = self.patch_embeddings(image).view(len(image), rows, columns, -1) + table[y][:, x]
        return out


class VitAttention(nn.Module):
    """Self-attention over a grid, with rotated queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """``x``: (batch, rows, columns, width); ``table``: rotations by token."""
        q, k, v = (
            projected.view(len(x), -1, self.num_heads, x.size(-1) // self.num_heads).transpose(1, 2)
            for projected in (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        )
        mixed = functional.scaled_dot_product_attention(rotate(q, table), rotate(k, table), v)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(x.shape))
        return out


class VitLayer(nn.Module):
    """A pre-norm layer. ``window``: side of the windows that it attends in; None for the whole grid."""

    def __init__(self, config: PackedVitConfig, window: int | None) -> None:
        super().__init__()
        width = config.hidden_size
        self.window = window
        self.layer_norm1 = nn.LayerNorm(width, config.layer_norm_eps)
        self.attention = VitAttention(width, config.num_attention_heads)
        self.layer_norm2 = nn.LayerNorm(width, config.layer_norm_eps)
        self.mlp = FeedForward(width, config.intermediate_size, ACTIVATIONS[config.hidden_act]())

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """``x``: (B, h, w, width); ``table``: the rotations of a window, or of the grid."""
        t = self.layer_norm1(x)
        if self.window is None:
            x = x + self.attention(t, table)
        else:
            x = x + _from_windows(self.attention(_windows(t, self.window), table), x)
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


def _windows(x: Tensor, side: int) -> Tensor:
    """(B, h, w, C) as (B * windows, side, side, C). What is padded with zeros takes part in the attention."""
    down, right = (-n % side for n in x.shape[1:3])
    x = functional.pad(x, (0, 0, 0, right, 0, down))
    batch, rows, columns, width = x.shape
    tiled = x.view(batch, rows // side, side, columns // side, side, width)
    return tiled.transpose(2, 3).reshape(-1, side, side, width)


def _from_windows(windows: Tensor, like: Tensor) -> Tensor:
    """The inverse of ``_windows``, in the shape of ``like``."""
    batch, rows, columns, width = like.shape
    side = windows.size(1)
    down, across = -(-rows // side), -(-columns // side)
    tiled = windows.view(batch, down, across, side, side, width)
    return tiled.transpose(2, 3).reshape(batch, down * side, across * side, width)[:, :rows, :columns]


class Vit(nn.Module):
    """The modules whose keys start with ``vision_encoder.backbone.``. There is no class token and no last norm."""

    def __init__(self, config: PackedVitConfig) -> None:
        super().__init__()
        self.window = config.window_size
        self.head = config.hidden_size // config.num_attention_heads
        self.embeddings = _Embeddings(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.layers = nn.ModuleList(
            VitLayer(config, None if i in config.global_attn_indexes else config.window_size)
            for i in range(config.num_hidden_layers)
        )

    def forward(self, image: Tensor) -> Tensor:
        """``image``: (B, 3, S, S). The map: (B, h, w, width)."""
        x: Tensor = self.layer_norm(self.embeddings(image))
        side = x.size(1)
        # Distances over the whole grid are scaled to those in a window, which the model was trained on first.
        whole = rotary_table(side, self.window / side, self.head, x.device)
        window = rotary_table(self.window, 1.0, self.head, x.device)
        for layer in self.layers:
            x = layer(x, whole if layer.window is None else window)
        return x


class FpnLayer(nn.Module):
    """One level of the neck: the map, ``factor`` times as large, in the detector's width."""

    def __init__(self, width: int, hidden: int, factor: float) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        if factor < 1:
            steps = [nn.MaxPool2d(2)]
        elif factor == 2:
            steps = [nn.ConvTranspose2d(width, width // 2, 2, stride=2)]
        elif factor == 4:
            steps = [
                nn.ConvTranspose2d(width, width // 2, 2, stride=2),
                nn.GELU(),
                nn.ConvTranspose2d(width // 2, width // 4, 2, stride=2),
            ]
        self.scale_layers = nn.Sequential(*steps)
        self.proj1 = nn.Conv2d(width // max(int(factor), 1), hidden, 1)
        self.proj2 = nn.Conv2d(hidden, hidden, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj2(self.proj1(self.scale_layers(x)))
        return out


class Neck(nn.Module):
    """The modules whose keys start with ``vision_encoder.neck.``."""

    def __init__(self, width: int, config: PackedNeckConfig) -> None:
        super().__init__()
        self.used = sum(factor >= 1 for factor in config.scale_factors)
        self.fpn_layers = nn.ModuleList(FpnLayer(width, config.fpn_hidden_size, f) for f in config.scale_factors)
        self.position_encoding = PositionEncoding()

    def forward(self, x: Tensor) -> EncodedImages:
        """``x``: (B, width, h, w). The level below the grid's size, where there is one, is not computed."""
        maps, positions = [], []
        for layer in list(self.fpn_layers)[: self.used]:
            maps.append(layer(x))
            positions.append(self.position_encoding(maps[-1]))
        return EncodedImages(tuple(maps), positions[-1])


class VisionEncoder(nn.Module):
    """The modules whose keys start with ``vision_encoder.``."""

    def __init__(self, vit: PackedVitConfig, neck: PackedNeckConfig) -> None:
        super().__init__()
        self.backbone = Vit(vit)
        self.neck = Neck(vit.hidden_size, neck)

    def forward(self, image: Tensor) -> EncodedImages:
        """``image``: (B, 3, S, S), normalised."""
        out: EncodedImages = self.neck(self.backbone(image).permute(0, 3, 1, 2))
        return out
