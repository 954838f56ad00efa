"""SAM3's own text encoder, the CLIP teacher, with the original's state-dict keys and results. Evaluation only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from original_ref.blocks import EPS, MultiHeadAttention
from original_ref.text_reference import PAD, TextParts, TextReference, Tokenizer, upper_mask

PROJECTION_DIM = 512  # columns of the text projection in every released file


class PackedAttention(MultiHeadAttention):
    """Self-attention with the keys of torch's own: ``in_proj_weight`` and ``in_proj_bias``, rows q, k, v."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        del self.qkv_proj
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))

    def fused(self, x: Tensor) -> Tensor:
        """q, k and v side by side, (batch, sequence, 3 * dim)."""
        return functional.linear(x, self.in_proj_weight, self.in_proj_bias)


class FeedForward(nn.Module):
    """Linear, exact (erf) GELU, linear."""

    def __init__(self, dim: int, ffn: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(dim, ffn)
        self.gelu = nn.GELU()
        self.c_proj = nn.Linear(ffn, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(self.gelu(self.c_fc(x)))
        return out


class ClipBlock(nn.Module):
    """x + attention(LN(x)), then x + mlp(LN(x)); LayerNorm in the input's dtype."""

    def __init__(self, dim: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim, EPS)
        self.attn = PackedAttention(dim, heads)
        self.ln_2 = nn.LayerNorm(dim, EPS)
        self.mlp = FeedForward(dim, ffn)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.ln_1(x), mask)
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class ClipBlocks(nn.Module):
    """A wrapper that exists because the original's keys have this level."""

    def __init__(self, blocks: Sequence[ClipBlock]) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class ClipTransformer(nn.Module):
    """Token and position embedding, pre-norm blocks under a causal mask, a last LayerNorm. ``cfg``: see ClipText.

    ``text_projection`` is multiplied with every token by the original, and the results are read by nothing.
    """

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        super().__init__()
        dim = cfg["width"]
        ffn = cfg.get("ffn", 4 * dim)
        # from_pretrained: Embedding's own initialisation would import torch's compiler.
        self.token_embedding = nn.Embedding.from_pretrained(torch.zeros(cfg["vocab_size"], dim), freeze=False)
        self.positional_embedding = nn.Parameter(torch.zeros(cfg["context_length"], dim))
        self.transformer = ClipBlocks([ClipBlock(dim, cfg["heads"], ffn) for _ in range(cfg["layers"])])
        self.ln_final = nn.LayerNorm(dim, EPS)
        self.text_projection = nn.Parameter(torch.zeros(dim, cfg.get("projection_dim", PROJECTION_DIM)))

    def positions(self, length: int) -> Tensor:
        """The first rows of the position table, (length, width).

        Raises ValueError if it has fewer: it is sliced, and never resized.
        """
        if length > (rows := len(self.positional_embedding)):
            raise ValueError(f"a sequence of {length} does not fit a position table of {rows} rows; it is not resized")
        return self.positional_embedding[:length]

    def forward_embedding(self, input_ids: Tensor) -> Tensor:
        """Token plus position embedding, (batch, sequence, width). Raises ValueError if the sequence is too long."""
        out: Tensor = self.token_embedding(input_ids) + self.positions(input_ids.shape[1])
        return out

    def forward(self, input_ids: Tensor) -> Tensor:
        """The tokens after the last LayerNorm, (batch, sequence, width). Padding is not masked: the causal mask keeps
        it from what stands before it."""
        x = self.forward_embedding(input_ids)
        out: Tensor = self.ln_final(self.transformer(x, upper_mask(x)))
        return out


class ClipText(TextReference):
    """The text encoder as the detector holds it: ``encoder`` and ``resizer``.

    ``cfg``: the original's settings, see below.
    ``tokenizer``: used by ``forward`` alone.

    Keys of ``cfg``:

    ``width``: of the tokens.
    ``heads``: attention heads of a block.
    ``layers``: blocks.
    ``context_length``: rows of the position table.
    ``vocab_size``: rows of the token embedding.
    ``d_model``: width of the tokens that the detector reads.
    ``ffn``: width of the feed-forward part, by default 4 times ``width``.
    ``projection_dim``: columns of the text projection, by default 512.

    Raises ValueError if the heads do not divide the width.
    """

    resizes_positions = False

    def __init__(self, cfg: Mapping[str, Any], tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        self.context_length = cfg["context_length"]
        self.tokenizer = tokenizer
        self.encoder = ClipTransformer(cfg)
        self.resizer = nn.Linear(cfg["width"], cfg["d_model"])

    @property
    def parts(self) -> TextParts:
        inner = self.encoder
        table, layers = inner.positional_embedding[None, None], inner.transformer.resblocks
        return TextParts(inner.token_embedding, table, layers, inner.ln_final, self.resizer, inner.text_projection)

    def set_context_length(self, length: int) -> None:
        """Tokenize to ``length`` from now on. The table stays: a shorter sequence reads its first rows.

        Raises ValueError if the table has fewer rows.
        """
        self.encoder.positions(length)
        self.context_length = length

    def positions(self, length: int) -> Tensor:
        return self.encoder.positions(length)[None]

    def causal_mask(self, x: Tensor) -> Tensor:
        return upper_mask(x)

    def tokens(self, input_ids: Tensor) -> Tensor:
        out: Tensor = self.encoder(input_ids)
        return out

    def pool(self, tokens: Tensor, input_ids: Tensor) -> Tensor:
        """The token at the first position of the greatest id, times the projection: (batch, projection_dim).

        The original has no pooled output: it projects every token, and which of them would be the output is said
        nowhere in it. The end id is the greatest, and its token is the one that transformers' CLIP text model returns.
        """
        return super().pool(tokens, input_ids)

    def forward(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Encode prompts.

        Returns what the detector reads: the padding mask (batch, sequence), which is True where the id is 0, and the
        projected tokens (batch, sequence, d_model).

        Raises ValueError if there is no tokenizer.
        """
        input_ids = self.tokenized(prompts)
        return input_ids == PAD, self.features(input_ids)


def load_clip_text(cfg: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> ClipText:
    """Load the teacher's text encoder in evaluation mode with exactly these weights, which are not copied.

    ``cfg``: see ``ClipText``.
    ``state_dict``: keys ``encoder.*`` and ``resizer.*``.

    Raises RuntimeError if a key is missing, unexpected or of another shape: a reference that is not fully loaded proves
    nothing. Raises ValueError if the cfg is not possible.
    """
    with torch.device("meta"):
        model = ClipText(cfg)
    model.load_state_dict(dict(state_dict), strict=True, assign=True)
    return model.requires_grad_(False).eval()
