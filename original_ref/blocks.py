"""The blocks of the original text encoder: normalisation, attention, transformer layer, RepMixer.

Every block reads and returns token features of shape (batch, sequence, dim).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

EPS = 1e-5  # of every LayerNorm and BatchNorm
KERNEL = 11  # of every depthwise convolution of a released model, along the sequence


class LayerNormFP32(nn.LayerNorm):
    """LayerNorm that computes in float32 (float64 for float64 input) and casts back to the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.weight.to(wide), self.bias.to(wide)
        return functional.layer_norm(x.to(wide), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class MultiHeadAttention(nn.Module):
    """Self-attention with a fused q, k, v projection. Without a mask, attention reads padding too."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} heads do not divide a width of {dim}")
        self.heads = heads
        self.head_dim = dim // heads
        self.qkv_proj = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)

    def fused(self, x: Tensor) -> Tensor:
        """q, k and v side by side: (batch, sequence, 3 * dim)."""
        out: Tensor = self.qkv_proj(x)
        return out

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, length, dim = x.shape
        fused = self.fused(x).reshape(batch, length, 3, self.heads, self.head_dim)
        query, key, value = fused.permute(2, 0, 3, 1, 4).unbind(0)
        # The query is scaled before the product; softmax computes in float32 at least.
        scores = torch.matmul(query * self.head_dim**-0.5, key.transpose(-1, -2))
        if mask is not None:
            scores = scores + mask.to(scores.dtype)
        wide = torch.promote_types(scores.dtype, torch.float32)
        weights = functional.softmax(scores, dim=-1, dtype=wide).to(scores.dtype)
        mixed = torch.matmul(weights, value).transpose(1, 2).reshape(batch, length, dim)
        out: Tensor = self.out_proj(mixed)
        return out


class TransformerLayer(nn.Module):
    """x + MHA(LN(x)), then x + FFN(LN(x)) with an exact (erf) GELU."""

    def __init__(self, dim: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.pre_norm_mha = nn.ModuleList([LayerNormFP32(dim, EPS), MultiHeadAttention(dim, heads)])
        # 2, 3 and 5 are the activation and the dropouts, which have no weights.
        self.pre_norm_ffn = nn.Sequential(
            LayerNormFP32(dim, EPS), nn.Linear(dim, ffn), nn.GELU(), nn.Identity(), nn.Linear(ffn, dim)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        norm, attention = self.pre_norm_mha
        x = x + attention(norm(x), mask)
        out: Tensor = x + self.pre_norm_ffn(x)
        return out


def _depthwise(dim: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(dim, dim, (1, kernel), padding=(0, kernel // 2), groups=dim, bias=False)


class ConvNorm(nn.Module):
    """Depthwise convolution without bias, then BatchNorm."""

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        self.conv = _depthwise(dim, kernel)
        self.bn = nn.BatchNorm2d(dim, EPS)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn(self.conv(x))
        return out


class NormBranch(nn.Module):
    """The mixer's reference branch: one BatchNorm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.rbr_skip = nn.BatchNorm2d(dim, EPS)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.rbr_skip(x)
        return out


class MixerBranch(NormBranch):
    """BatchNorm of the input plus BatchNorm of its depthwise convolution."""

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__(dim)
        self.rbr_conv = nn.ModuleList([ConvNorm(dim, kernel)])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.rbr_skip(x) + self.rbr_conv[0](x)
        return out


class TokenMixer(nn.Module):
    """x + layer_scale * (mixer(x) - norm(x)), on (batch, dim, 1, sequence)."""

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        self.layer_scale = nn.Parameter(torch.ones(dim, 1, 1))
        self.norm = NormBranch(dim)
        self.mixer = MixerBranch(dim, kernel)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layer_scale * (self.mixer(x) - self.norm(x))
        return out


class ConvFFN(nn.Module):
    """Depthwise convolution, BatchNorm, two pointwise convolutions with an exact GELU between."""

    def __init__(self, dim: int, ffn: int, kernel: int) -> None:
        super().__init__()
        self.conv = ConvNorm(dim, kernel)
        self.fc1 = nn.Conv2d(dim, ffn, 1)
        self.activation = nn.GELU()
        self.fc2 = nn.Conv2d(ffn, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.activation(self.fc1(self.conv(x))))
        return out


class RepMixerBlock(nn.Module):
    """The token mixer, then x + layer_scale * convffn(x). Takes no mask, so it is never causal."""

    def __init__(self, dim: int, ffn: int, kernel: int = KERNEL) -> None:
        super().__init__()
        self.layer_scale = nn.Parameter(torch.ones(dim, 1, 1))
        self.token_mixer = TokenMixer(dim, kernel)
        self.convffn = ConvFFN(dim, ffn, kernel)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = x.transpose(1, 2).unsqueeze(2)  # the sequence is an image of height 1
        y = self.token_mixer(y)
        y = y + self.layer_scale * self.convffn(y)
        out: Tensor = y.squeeze(2).transpose(1, 2)
        return out
