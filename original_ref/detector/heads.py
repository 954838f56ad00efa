"""What is read from the queries: scores (section 7) and masks (section 8)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from original_ref.detector.attention import MLP, Attention
from original_ref.detector.constants import EPS, GROUPS, SCORE_CLAMP


class PromptMLP(MLP):
    """An MLP with a residual connection and a norm behind it."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(width, hidden, width)
        self.out_norm = nn.LayerNorm(width, EPS)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out_norm(x + super().forward(x))
        return out


class Scoring(nn.Module):
    """How well a query fits the prompt: the scaled dot product of the two."""

    def __init__(self, width: int, hidden: int, projected: int) -> None:
        super().__init__()
        self.clamp = SCORE_CLAMP
        self.scale = projected**-0.5
        self.prompt_mlp = PromptMLP(width, hidden)
        self.prompt_proj = nn.Linear(width, projected)
        self.hs_proj = nn.Linear(width, projected)

    def forward(self, queries: Tensor, prompt: Tensor, mask: Tensor) -> Tensor:
        """``queries`` (L, n, Q, d); ``prompt`` (n, P, d); ``mask`` (n, P); logits (L, n, Q, 1)."""
        valid = (~mask).to(prompt.dtype)[..., None]
        mean = (self.prompt_mlp(prompt) * valid).sum(1) / valid.sum(1).clamp(min=1)
        fit = self.hs_proj(queries) @ self.prompt_proj(mean)[:, :, None]
        out: Tensor = (fit * self.scale).clamp(-self.clamp, self.clamp)
        return out


class PixelDecoder(nn.Module):
    """From the coarsest map to the finest. ``stages``: those that are held; the last one is not used."""

    def __init__(self, width: int, stages: int) -> None:
        super().__init__()
        self.upsampling = "nearest"
        self.conv_layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(stages))
        self.norms = nn.ModuleList(nn.GroupNorm(GROUPS, width, EPS) for _ in range(stages))

    def forward(self, maps: list[Tensor]) -> Tensor:
        """``maps``: finest first, each (n, d, h, w); the result has the finest's size."""
        *finer, y = maps
        for features, conv, norm in zip(reversed(finer), self.conv_layers, self.norms, strict=False):
            y = features + functional.interpolate(y, features.shape[-2:], mode=self.upsampling)
            y = norm(conv(y)).relu()
        return y


class MaskPredictor(nn.Module):
    """A mask for every query."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mask_embed = MLP(width, width, width, width)

    def forward(self, queries: Tensor, pixels: Tensor) -> Tensor:
        """``queries`` (n, Q, d); ``pixels`` (n, d, h, w); mask logits (n, Q, h, w)."""
        out: Tensor = (self.mask_embed(queries) @ pixels.flatten(2)).unflatten(2, pixels.shape[-2:])
        return out


class EncoderMap(nn.Module):
    """Puts cells back into the shape of a map. It has no weights."""

    def forward(self, cells: Tensor, height: int, width: int) -> Tensor:
        """(n, h * w, d) -> (n, d, h, w)."""
        out: Tensor = cells.mT.unflatten(2, (height, width))
        return out


class SegmentationHead(nn.Module):
    """Masks of the queries, and one of everything that the prompt names."""

    def __init__(self, width: int, heads: int, stages: int) -> None:
        super().__init__()
        self.cross_attn_norm = nn.LayerNorm(width, EPS)
        self.cross_attend_prompt = Attention(width, heads)
        self.encoder_map = EncoderMap()
        self.pixel_decoder = PixelDecoder(width, stages)
        self.instance_seg_head = nn.Conv2d(width, width, 1)
        self.mask_predictor = MaskPredictor(width)
        self.semantic_seg_head = nn.Conv2d(width, 1, 1)

    def forward(
        self, maps: list[Tensor], memory: Tensor, prompt: Tensor, mask: Tensor, queries: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mask logits (n, Q, h, w) and semantic logits (n, 1, h, w) at the size of the finest map.

        ``maps``: finest first, each (n, d, h, w); ``memory`` (n, cells of the coarsest, d); ``queries`` (n, Q, d).
        """
        *finer, coarsest = maps
        attended = memory + self.cross_attend_prompt(self.cross_attn_norm(memory), prompt, prompt, mask)
        pixels = self.pixel_decoder([*finer, self.encoder_map(attended, *coarsest.shape[-2:])])
        masks = self.mask_predictor(queries, self.instance_seg_head(pixels))
        return masks, self.semantic_seg_head(pixels)
