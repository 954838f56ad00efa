"""The ids that both encoders are run on, and which of their positions are padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sam3lite_convert.convert.clip_ids import END, PAD, START
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.parity.prompts import tokenize
from sam3lite_convert.records.parity import InputsRecord

CLASSIC = (START, 320, 1125, END)  # "a photo", the input that ports of CLIP are tried on
BATCH = 128  # rows that run at once
_MOST = 100_000  # beyond it, a typing error


@dataclass(frozen=True)
class Inputs:
    """``ids``: (batch, sequence), int64. ``what`` says in words where they come from."""

    ids: Tensor
    what: str
    prompts: tuple[str, ...] = ()

    @property
    def padded(self) -> Tensor:
        """Whether a position lies behind the end id: (batch, sequence), bool."""
        return torch.arange(self.ids.shape[1]) > self.ids.argmax(-1, keepdim=True)

    def rows(self, rows: Sequence[int]) -> Inputs:
        """Some of the rows, in this order."""
        texts = tuple(self.prompts[n] for n in rows) if self.prompts else ()
        return Inputs(self.ids[list(rows)], self.what, texts)

    def record(self, total: int, rows: int | None = None) -> InputsRecord:
        """The inputs as they stand in the JSON. ``total``: prompts that were given; ``rows``: rows that were run, if
        these are some of them."""
        batch, length = self.ids.shape
        return InputsRecord(
            what=self.what,
            prompts=self.prompts,
            prompts_total=total,
            shape=(batch if rows is None else rows, length),
            ids=tuple(tuple(row) for row in self.ids.tolist()),
        )


def given_ids(ids: Tensor | np.ndarray | Sequence[Sequence[int]], vocab: int) -> Inputs:
    """The user's own ids, (batch, sequence). Raises CannotRun if they are not whole numbers below ``vocab``."""
    try:
        found = torch.as_tensor(ids)
    except (ValueError, TypeError, RuntimeError) as fault:
        raise CannotRun(f"ids are not (batch, sequence) of whole numbers: {fault}", "bad_ids") from fault
    if found.dim() != 2 or not found.numel() or found.is_floating_point() or found.is_complex():
        raise CannotRun(
            f"ids are {found.dtype} {tuple(found.shape)}, not (batch, sequence) of whole numbers", "bad_ids"
        )
    if int(found.min()) < 0 or int(found.max()) >= vocab:
        raise CannotRun(f"ids go from 0 to {vocab - 1:,}; these go from {found.min()} to {found.max()}", "bad_ids")
    return Inputs(found.long(), "ids that were given")


def make_inputs(
    context: int,
    vocab: int,
    seed: int | None = None,
    batch: int = 1,
    length: int | None = None,
    prompts: Sequence[str] = (),
) -> Inputs:
    """Ids for an encoder with ``context`` positions and ``vocab`` entries.

    Without ``seed`` and ``prompts`` the classic dummy; with ``seed`` random words, the first row
    filling the sequence and the others of random lengths. ``length``: of the sequence, the context
    by default; another one makes the encoders resize their position table.
    Raises CannotRun for values that no encoder can run on.
    """
    length = context if length is None else length
    if length < 1 or batch < 1:
        raise CannotRun("--length and --batch are at least 1", "usage")
    if seed is not None and not 0 <= seed < 1 << 63:
        raise CannotRun("--seed is a whole number from 0 to 2^63 - 1", "usage")
    if length > _MOST or batch > _MOST:
        raise CannotRun(f"--length and --batch go up to {_MOST:,}", "usage")
    if prompts:
        if seed is not None or batch != 1:
            raise CannotRun("prompts make the batch themselves: leave --seed and --batch out", "usage")
        ids = tokenize(prompts, length)
        if int(ids.max()) >= vocab:
            raise CannotRun(
                f"the tokenizer's ids reach {int(ids.max())}, and this encoder has {vocab} entries; use --seed N",
                "vocabulary_too_small",
            )
        return Inputs(ids, f"{len(prompts):,} prompt{'s' * (len(prompts) > 1)}", tuple(prompts))
    start, end = (START, END) if vocab > END else (vocab - 2, vocab - 1)
    if seed is None:
        words = [w for w in CLASSIC[1:-1] if w < start] or [1]
        row = torch.tensor(_framed(words, length, start, end))
        name = f"the dummy [{', '.join(str(i) for i in row[:4].tolist())}, {PAD} ...]"
        return Inputs(row.repeat(batch, 1), f"{name}, batch {batch}, length {length}")
    if start < 2:
        raise CannotRun(f"a vocabulary of {vocab} has no words to draw from", "vocabulary_too_small")
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for n in range(batch):
        count = length - 2 if n == 0 else int(torch.randint(0, max(length - 1, 1), (), generator=generator))
        words = torch.randint(1, start, (max(count, 0),), generator=generator).tolist()
        rows.append(_framed(words, length, start, end))
    return Inputs(torch.tensor(rows), f"random ids, seed {seed}, batch {batch}, length {length}")


def _framed(words: Sequence[int], length: int, start: int, end: int) -> list[int]:
    """Start, words, end and padding; what does not fit is cut with the end id last."""
    row = [start, *words, end]
    row = row if len(row) <= length else [*row[: length - 1], end]
    return row + [PAD] * (length - len(row))
