"""The ids that both encoders run on, and which of their positions are padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sam3lite_convert.convert.clip_ids import END, PAD, START, framing_ids
from sam3lite_convert.convert.prompts import tokenize
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.records.parity import InputsRecord

CLASSIC = (START, 320, 1125, END)  # "a photo", the usual test input for ports of CLIP
BATCH = 128  # rows per forward pass
_MOST = 100_000  # a greater number is a typing error


@dataclass(frozen=True)
class Inputs:
    """The ids of a comparison.

    ``ids``: (batch, sequence), int64.
    ``what``: where they come from, for reports.
    ``prompts``: the prompt of each row; empty if the ids were not made from prompts.
    """

    ids: Tensor
    what: str
    prompts: tuple[str, ...] = ()

    @property
    def padded(self) -> Tensor:
        """True at positions after the end id: (batch, sequence), bool."""
        return torch.arange(self.ids.shape[1]) > self.ids.argmax(-1, keepdim=True)

    def rows(self, rows: Sequence[int]) -> Inputs:
        """Some of the rows, in this order."""
        texts = tuple(self.prompts[n] for n in rows) if self.prompts else ()
        return Inputs(self.ids[list(rows)], self.what, texts)

    def record(self, total: int, rows: int | None = None) -> InputsRecord:
        """The inputs for the JSON.

        ``total``: number of prompts that were given.
        ``rows``: number of rows that were run, if ``ids`` is a part of them.
        """
        batch, length = self.ids.shape
        return InputsRecord(
            what=self.what,
            prompts=self.prompts,
            prompts_total=total,
            shape=(batch if rows is None else rows, length),
            ids=tuple(tuple(row) for row in self.ids.tolist()),
        )


def given_ids(ids: Tensor | np.ndarray | Sequence[Sequence[int]], vocab: int) -> Inputs:
    """The user's own ids, (batch, sequence). Raises CannotRun if they are not integers from 0 to ``vocab`` - 1."""
    try:
        found = torch.as_tensor(ids)
    except (ValueError, TypeError, RuntimeError) as fault:
        raise CannotRun(f"ids must be integers of shape (batch, sequence): {fault}", "bad_ids") from fault
    if found.dim() != 2 or not found.numel() or found.is_floating_point() or found.is_complex():
        raise CannotRun(
            f"ids must be integers of shape (batch, sequence), not {found.dtype} {tuple(found.shape)}", "bad_ids"
        )
    if int(found.min()) < 0 or int(found.max()) >= vocab:
        raise CannotRun(
            f"ids must be from 0 to {vocab - 1:,}; these are from {found.min()} to {found.max()}", "bad_ids"
        )
    return Inputs(found.long(), "ids given by the caller")


def make_inputs(
    context: int,
    vocab: int,
    seed: int | None = None,
    batch: int = 1,
    length: int | None = None,
    prompts: Sequence[str] = (),
) -> Inputs:
    """Make ids for an encoder.

    ``context``: number of positions of the encoder.
    ``vocab``: number of entries of its vocabulary.
    ``seed``: draw random words; the first row fills the sequence, the others have random lengths.
    ``batch``: number of rows, if there are no prompts.
    ``length``: sequence length, by default the context; another length makes the encoders resize their position table.
    ``prompts``: texts to tokenize, one row each.

    Without ``seed`` and ``prompts``, the first row is the dummy input "a photo"; the next ones are an empty prompt, one
    word, a full sequence, and then other words and lengths, so that no row is like another.
    Raises CannotRun if a value is out of range, or if options exclude each other.
    """
    length = context if length is None else length
    if length < 1 or batch < 1:
        raise CannotRun("--length and --batch must be at least 1", "usage")
    if seed is not None and not 0 <= seed < 1 << 63:
        raise CannotRun("--seed must be an integer from 0 to 2^63 - 1", "usage")
    if length > _MOST or batch > _MOST:
        raise CannotRun(f"--length and --batch must be at most {_MOST:,}", "usage")
    if prompts:
        if seed is not None or batch != 1:
            raise CannotRun("prompts cannot be combined with --seed or --batch", "usage")
        ids = tokenize(prompts, length)
        if int(ids.max()) >= vocab:
            raise CannotRun(
                f"the tokenizer's ids reach {int(ids.max())}, but this encoder has {vocab} entries; use --seed N",
                "vocabulary_too_small",
            )
        return Inputs(ids, f"{len(prompts):,} prompt{'s' * (len(prompts) > 1)}", tuple(prompts))
    start, end = framing_ids(vocab)
    if seed is None:
        words = [w for w in CLASSIC[1:-1] if w < start] or [1]
        rows = [framed(words, length, start, end)]
        name = f"the dummy [{', '.join(map(str, rows[0][:4]))}, {PAD} ...]"
        if batch > 1:
            name += f" and {batch - 1:,} other row{'s' * (batch > 2)}"
            rows += [framed(_other_words(n, length, start), length, start, end) for n in range(1, batch)]
        return Inputs(torch.tensor(rows), f"{name}, batch {batch}, length {length}")
    if start < 2:
        raise CannotRun(f"a vocabulary of {vocab} has no words to draw from", "vocabulary_too_small")
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for n in range(batch):
        count = length - 2 if n == 0 else int(torch.randint(0, max(length - 1, 1), (), generator=generator))
        words = torch.randint(1, start, (max(count, 0),), generator=generator).tolist()
        rows.append(framed(words, length, start, end))
    return Inputs(torch.tensor(rows), f"random ids, seed {seed}, batch {batch}, length {length}")


def _other_words(n: int, length: int, start: int) -> list[int]:
    """The words of row ``n`` (from 1) beside the dummy: none, one, as many as fit, then 1, 2, ... again."""
    most = max(length - 2, 0)
    count = {1: 0, 2: 1, 3: most}.get(n, 1 + (n - 4) % max(most, 1))
    # Two rows of one length differ in their words, since 7919 is a prime that divides no usual vocabulary.
    return [1 + (7919 * n + 31 * i) % max(start - 1, 1) for i in range(count)]


def framed(words: Sequence[int], length: int, start: int, end: int) -> list[int]:
    """Start id, words, end id and padding; too many words are cut, with the end id last."""
    row = [start, *words, end]
    row = row if len(row) <= length else [*row[: length - 1], end]
    return row + [PAD] * (length - len(row))
