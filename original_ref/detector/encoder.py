"""The DETR encoder: the picture's cells attend to one another and to the prompt (section 5)."""

from __future__ import annotations

from torch import Tensor, nn

from original_ref.detector.attention import Attention, FeedForward
from original_ref.detector.constants import EPS


class EncoderLayer(FeedForward):
    """A pre-norm layer. In spite of its name, ``cross_attn_image`` attends to the prompt."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__(width, hidden)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width, EPS) for _ in range(3))
        self.self_attn = Attention(width, heads)
        self.cross_attn_image = Attention(width, heads)

    def forward(self, x: Tensor, positions: Tensor, prompt: Tensor, mask: Tensor) -> Tensor:
        """``x``, ``positions`` (n, h * w, d); ``prompt`` (n, P, d); ``mask`` (n, P)."""
        t = self.norm1(x)
        x = x + self.self_attn(t + positions, t + positions, t)
        x = x + self.cross_attn_image(self.norm2(x), prompt, prompt, mask)
        return x + self.feed_forward(self.norm3(x))


class Encoder(nn.Module):
    """The layers; there is no norm behind them."""

    def __init__(self, width: int, heads: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(width, heads, hidden) for _ in range(layers))

    def forward(self, x: Tensor, positions: Tensor, prompt: Tensor, mask: Tensor) -> Tensor:
        """The memory, (n, h * w, d)."""
        for layer in self.layers:
            x = layer(x, positions, prompt, mask)
        return x
