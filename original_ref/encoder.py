"""The text encoder and its student wrapper, with the original's state-dict keys and results.

Evaluation only: there is no dropout, and BatchNorm uses its running statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from original_ref.blocks import EPS, KERNEL, LayerNormFP32, RepMixerBlock, TransformerLayer
from original_ref.text_reference import PAD, TextParts, TextReference, Tokenizer, upper_mask


class PositionTable(nn.Module):
    """A learned position table, resized if the sequence has another length."""

    def __init__(self, context_length: int, dim: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 1, context_length, dim))

    def forward(self, length: int) -> Tensor:
        """Positions of shape (1, length, dim)."""
        table: Tensor = self.pos_embed
        if length != table.shape[2]:
            # The table is resized as an image of height context and width dim.
            table = functional.interpolate(table, size=(length, table.shape[3]), mode="bilinear", align_corners=False)
        return table.reshape(1, length, table.shape[3])


class PositionalEmbedding(nn.Module):
    """A wrapper that exists because the original's keys have this level."""

    def __init__(self, context_length: int, dim: int) -> None:
        super().__init__()
        self.pos_embed = PositionTable(context_length, dim)

    def forward(self, length: int) -> Tensor:
        out: Tensor = self.pos_embed(length)
        return out


class TextEncoder(nn.Module):
    """MobileCLIP's text encoder. ``cfg``: see TextStudentEncoder."""

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        super().__init__()
        dim, heads, count = cfg["dim"], cfg["n_heads_per_layer"], cfg["n_transformer_layers"]
        ffn = round(cfg.get("ffn_multiplier_per_layer", 4.0) * dim)
        model_name = cfg.get("model_name", "base")
        if cfg.get("norm_layer", "layer_norm_fp32") != "layer_norm_fp32":
            raise ValueError(f"norm_layer {cfg['norm_layer']!r}: only layer_norm_fp32 is supported")
        if model_name not in ("base", "mct"):
            raise ValueError(f"model_name {model_name!r}: must be base or mct")
        self.causal_masking = bool(cfg.get("causal_masking", False))
        # Zeros, since weights are loaded afterwards and torch's random initialisation would import its compiler.
        table = torch.zeros(cfg.get("vocab_size", 49408), dim)
        self.embedding_layer = nn.Embedding.from_pretrained(table, freeze=False)
        self.positional_embedding = (
            None if cfg.get("no_pos_embedding", False) else PositionalEmbedding(cfg["context_length"], dim)
        )
        blocks: list[nn.Module] = [TransformerLayer(dim, heads, ffn) for _ in range(count)]
        if model_name == "mct":
            kernel = cfg.get("kernel_size", KERNEL)
            blocks = [RepMixerBlock(dim, ffn, kernel), *blocks, RepMixerBlock(dim, ffn, kernel)]
        self.transformer = nn.ModuleList(blocks)
        self.final_layer_norm = LayerNormFP32(dim, EPS)
        self.projection_layer = nn.Parameter(torch.zeros(dim, cfg.get("projection_dim", dim)))

    def forward_embedding(self, input_ids: Tensor) -> Tensor:
        """Token plus position embedding, (batch, sequence, dim), without scaling."""
        x: Tensor = self.embedding_layer(input_ids)
        if self.positional_embedding is not None:
            x = x + self.positional_embedding(input_ids.shape[1]).to(x.dtype)
        return x

    def causal_mask(self, x: Tensor) -> Tensor | None:
        """The additive mask for ``x``: -inf above the diagonal; None if the encoder does not mask causally."""
        return upper_mask(x) if self.causal_masking else None

    def pool(self, tokens: Tensor, input_ids: Tensor) -> Tensor:
        """The token at the first position of the greatest id, times the projection: (batch, projection_dim)."""
        rows = torch.arange(tokens.shape[0], device=tokens.device)
        return tokens[rows, input_ids.argmax(dim=-1)] @ self.projection_layer

    def forward(self, x: Tensor, return_all_tokens: bool = False, input_is_embeddings: bool = False) -> Tensor:
        """Final-norm tokens (batch, sequence, dim), or the pooled output (batch, projection_dim).

        ``x``: ids (batch, sequence), or embeddings (batch, sequence, dim) with ``input_is_embeddings``.
        ``return_all_tokens``: return all tokens instead of the pooled output.

        Raises ValueError if the pooled output is asked for with embeddings: pooling needs the ids.
        """
        if input_is_embeddings and not return_all_tokens:
            raise ValueError("the pooled output is the token at the greatest id, so it needs ids, not embeddings")
        tokens = x if input_is_embeddings else self.forward_embedding(x)
        mask = self.causal_mask(tokens)
        for block in self.transformer:
            tokens = block(tokens, mask)
        tokens = self.final_layer_norm(tokens)
        return tokens if return_all_tokens else self.pool(tokens, x)


class TextStudentEncoder(TextReference):
    """The text encoder as the detector holds it: ``encoder`` and ``projector``.

    ``cfg``: the original's settings, see below.
    ``context_length``: number of rows in the position table.
    ``output_dim``: width of the projected tokens.
    ``tokenizer``: used by ``forward`` alone.

    Keys of ``cfg``:

    ``dim``: width of the tokens.
    ``n_transformer_layers``: number of transformer layers.
    ``n_heads_per_layer``: attention heads.
    ``ffn_multiplier_per_layer``: width of the feed-forward part over ``dim``, by default 4.
    ``vocab_size``: rows of the token embedding, by default 49408.
    ``model_name``: "mct" (with a RepMixer block at each end) or "base", the default.
    ``causal_masking``: by default False.
    ``no_pos_embedding``: by default False.
    ``projection_dim``: width of the pooled output, by default ``dim``; not in any released cfg.
    ``kernel_size``: of the RepMixer blocks, by default 11; not in any released cfg.
    ``norm_layer``: "layer_norm_fp32", the default.
    ``embed_dropout``, ``no_scale_embedding``: no effect here.

    Raises ValueError if the cfg is not supported.
    """

    resizes_positions = True

    def __init__(
        self,
        cfg: Mapping[str, Any],
        context_length: int,
        output_dim: int = 256,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        super().__init__()
        self.context_length = context_length
        self.tokenizer = tokenizer
        self.encoder = TextEncoder({**cfg, "context_length": context_length})
        self.projector = nn.Linear(cfg["dim"], output_dim)

    def set_context_length(self, length: int) -> None:
        """Tokenize to ``length`` from now on, and keep the first ``length`` rows of a longer table."""
        self.context_length = length
        if self.encoder.positional_embedding is not None:
            table = self.encoder.positional_embedding.pos_embed
            table.pos_embed = nn.Parameter(table.pos_embed[:, :, :length].detach().clone(), requires_grad=False)

    @property
    def parts(self) -> TextParts:
        inner = self.encoder
        table = None if inner.positional_embedding is None else inner.positional_embedding.pos_embed.pos_embed
        return TextParts(
            inner.embedding_layer, table, inner.transformer, inner.final_layer_norm, self.projector,
            inner.projection_layer,
        )  # fmt: skip

    def positions(self, length: int) -> Tensor | None:
        """See ``TextReference``; a table of another length is resized."""
        return None if (table := self.encoder.positional_embedding) is None else table(length)

    def causal_mask(self, x: Tensor) -> Tensor | None:
        return self.encoder.causal_mask(x)

    def tokens(self, input_ids: Tensor) -> Tensor:
        out: Tensor = self.encoder(input_ids, return_all_tokens=True)
        return out

    def forward(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Encode prompts.

        Returns the padding mask (batch, sequence), which is True where the id is 0; the projected tokens (sequence,
        batch, output_dim); the embeddings (sequence, batch, dim).

        Raises ValueError if there is no tokenizer.
        """
        input_ids = self.tokenized(prompts)
        embeddings = self.encoder.forward_embedding(input_ids)
        tokens = self.encoder(embeddings, return_all_tokens=True, input_is_embeddings=True)
        memory = self.projector(tokens)
        return input_ids == PAD, memory.transpose(0, 1), embeddings.transpose(0, 1)


def load_reference(
    cfg: Mapping[str, Any], state_dict: Mapping[str, Tensor], output_dim: int | None = None
) -> TextStudentEncoder:
    """Load a reference in evaluation mode with exactly these weights, which are not copied.

    ``cfg``: see ``TextStudentEncoder``; it must also hold ``context_length``.
    ``state_dict``: keys ``encoder.*`` and ``projector.*``.
    ``output_dim``: width of the projected tokens, by default that of the state dict's projector.

    Raises RuntimeError if a key is missing, unexpected or of another shape: a reference that is not fully loaded proves
    nothing.
    """
    projector = state_dict.get("projector.weight")
    width = output_dim if output_dim is not None else 256 if projector is None else projector.shape[0]
    with torch.device("meta"):
        model = TextStudentEncoder(cfg, cfg["context_length"], width)
    # torch would silently fill in a missing BatchNorm counter if the state dict has no version.
    if missing := [name for name in model.state_dict() if name not in state_dict]:
        raise RuntimeError(f"missing from the state dict: {', '.join(missing)}")
    model.load_state_dict(dict(state_dict), strict=True, assign=True)
    return model.requires_grad_(False).eval()
