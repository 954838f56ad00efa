"""What the text encoders have in common, MobileCLIP's and the CLIP teacher's, for whoever compares one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

# (prompts, context length) -> ids of shape (prompts, context), padded with 0.
Tokenizer = Callable[[Sequence[str], int], Tensor]
PAD = 0


class TextParts(NamedTuple):
    """The modules and tensors of a text encoder, under one name for each.

    ``embedding``: of the tokens.
    ``table``: the position table, (1, 1, rows, width); None if there is none.
    ``layers``: modules that read (tokens, mask) and return tokens (batch, sequence, width).
    ``norm``: the LayerNorm after the last layer.
    ``projector``: makes the tokens that the detector reads.
    ``projection``: matrix of the pooled output, (width, projection_dim).
    """

    embedding: nn.Embedding
    table: Tensor | None
    layers: nn.ModuleList
    norm: nn.LayerNorm
    projector: nn.Linear
    projection: Tensor


class TextReference(nn.Module, ABC):
    """A text encoder as the detector holds it.

    ``context_length``: what prompts are tokenized to.
    ``tokenizer``: used by ``forward`` alone.
    ``resizes_positions``: whether its position table is resized to another length; otherwise its first rows are read.
    """

    resizes_positions: ClassVar[bool]
    context_length: int
    tokenizer: Tokenizer | None

    @property
    @abstractmethod
    def parts(self) -> TextParts:
        """Its modules and tensors."""

    @abstractmethod
    def set_context_length(self, length: int) -> None:
        """Tokenize to ``length`` from now on."""

    @abstractmethod
    def positions(self, length: int) -> Tensor | None:
        """The positions that are added to a sequence's tokens, (1, length, width); None if there is no table.

        Raises ValueError if the encoder cannot read a sequence of this length.
        """

    @abstractmethod
    def causal_mask(self, x: Tensor) -> Tensor | None:
        """The additive mask for tokens ``x``: -inf above the diagonal; None if the encoder does not mask causally."""

    @abstractmethod
    def tokens(self, input_ids: Tensor) -> Tensor:
        """The tokens after the last LayerNorm, (batch, sequence, width)."""

    def pool(self, tokens: Tensor, input_ids: Tensor) -> Tensor:
        """The token at the first position of the greatest id, times the projection: (batch, projection_dim)."""
        rows = torch.arange(tokens.shape[0], device=tokens.device)
        return tokens[rows, input_ids.argmax(dim=-1)] @ self.parts.projection

    def features(self, input_ids: Tensor) -> Tensor:
        """The projected tokens that the detector reads, (batch, sequence, output_dim)."""
        out: Tensor = self.parts.projector(self.tokens(input_ids))
        return out

    def tokenized(self, prompts: Sequence[str]) -> Tensor:
        """Ids of the prompts, (prompts, context_length). Raises ValueError if there is no tokenizer."""
        if self.tokenizer is None:
            raise ValueError("prompts need a tokenizer: pass one to the constructor, or call encoder with ids")
        return self.tokenizer(prompts, self.context_length)


def upper_mask(x: Tensor) -> Tensor:
    """-inf above the diagonal, 0 elsewhere, for tokens ``x`` (batch, sequence, width): (sequence, sequence)."""
    length = x.shape[1]
    return torch.full((length, length), float("-inf"), dtype=x.dtype, device=x.device).triu(1)
