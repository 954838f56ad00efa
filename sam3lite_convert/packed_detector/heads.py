"""What is read off the queries: how well each fits the prompt, and its mask."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from sam3lite_convert.convert.packed_config import GROUPS, PackedMaskConfig
from sam3lite_convert.packed_detector.layers import Attention, Perceptron, norm, valid_keys
from sam3lite_convert.plan.detector_constants import NORM_EPS, SCORE_LIMIT


class DotProductScoring(nn.Module):
    """The modules whose keys start with ``dot_product_scoring.``: queries against the mean of the prompt."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.text_mlp = Perceptron(width, hidden, width)
        self.text_mlp_out_norm = norm(width)
        self.text_proj = nn.Linear(width, width)
        self.query_proj = nn.Linear(width, width)

    def forward(self, queries: Tensor, prompt: Tensor, padding: Tensor) -> Tensor:
        """``queries``: (layers, n, Q, d); ``prompt``, ``padding``: (n, P). The logits: (layers, n, Q, 1)."""
        tokens = self.text_mlp_out_norm(prompt + self.text_mlp(prompt))
        valid = (~padding)[..., None].to(tokens.dtype)
        mean = (tokens * valid).sum(1) / valid.sum(1).clamp(min=1)
        wanted = self.text_proj(mean)
        scores: Tensor = self.query_proj(queries) @ wanted[:, :, None]
        return (scores / math.sqrt(wanted.size(-1))).clamp(-SCORE_LIMIT, SCORE_LIMIT)


class MaskEmbedder(nn.Module):
    """Queries to the vectors that masks are made with."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x.relu() if i else x)
        return x


class PixelDecoder(nn.Module):
    """The maps of the neck, from the coarsest to the finest, each added to what came before it."""

    def __init__(self, config: PackedMaskConfig) -> None:
        super().__init__()
        width, stages = config.hidden_size, config.num_upsampling_stages
        self.conv_layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(stages))
        self.norms = nn.ModuleList(nn.GroupNorm(GROUPS, width, NORM_EPS) for _ in range(stages))

    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        """``maps``: (n, d, h, w) each, finest first. Stages that are more than the steps between them stay unused."""
        y = maps[-1]
        for finer, conv, group_norm in zip(maps[-2::-1], self.conv_layers, self.norms, strict=False):
            y = group_norm(conv(finer + functional.interpolate(y, finer.shape[2:], mode="nearest"))).relu()
        return y


class MaskDecoder(nn.Module):
    """The modules whose keys start with ``mask_decoder.``."""

    def __init__(self, config: PackedMaskConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.prompt_cross_attn_norm = norm(width)
        self.prompt_cross_attn = Attention(width, config.num_attention_heads)
        self.pixel_decoder = PixelDecoder(config)
        self.instance_projection = nn.Conv2d(width, width, 1)
        self.mask_embedder = MaskEmbedder(width)
        self.semantic_projection = nn.Conv2d(width, 1, 1)

    def forward(
        self, queries: Tensor, maps: tuple[Tensor, ...], memory: Tensor, prompt: Tensor, padding: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Masks (n, Q, h, w) and the semantic map (n, 1, h, w), both logits, in the size of the finest map.

        queries: (n, Q, d), of the last layer.
        maps: (n, d, h, w) each, finest first.
        memory: (n, cells, d), which takes the place of the coarsest map.
        prompt, padding: (n, P, d) and (n, P).
        """
        attended = self.prompt_cross_attn(self.prompt_cross_attn_norm(memory), prompt, prompt, valid_keys(padding))
        encoded = (memory + attended).transpose(-1, -2).reshape(maps[-1].shape)
        pixels = self.pixel_decoder((*maps[:-1], encoded))
        instances = self.instance_projection(pixels)
        masks = torch.einsum("nqc,nchw->nqhw", self.mask_embedder(queries), instances)
        return masks, self.semantic_projection(pixels)
