"""Faults that a port can have outside its layers: embeddings, final LayerNorm, the two outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from sam3lite_convert.parity.faults.evidence import Evidence, Hypothesis, Run
from sam3lite_convert.parity.taps import FINAL_NORM


def embeddings_faults(evidence: Evidence, tap: str) -> Iterator[Hypothesis]:
    """Faults of the first layer's input: token and position embedding."""
    model, ids = evidence.model, evidence.ids
    embedding, table = model.parts.embedding, model.parts.table
    tokens = embedding(ids)
    dim, length = tokens.shape[2], ids.shape[1]
    found = model.positions(length)
    if table is None or found is None:
        return
    positions = found.to(tokens.dtype)
    resizes = model.resizes_positions

    def with_table(rows: Tensor, align_corners: bool = False) -> Callable[[], Tensor]:
        return lambda: tokens + _resized(rows, length, align_corners).to(tokens.dtype)

    def read_from(rows: Tensor) -> Callable[[], Tensor]:
        return with_table(rows if resizes else rows[:, :, :length])

    def scaled(factor: float, both: bool) -> Callable[[], Tensor]:
        return lambda: (tokens + positions) * factor if both else tokens * factor + positions

    for key, factor, name in (("sqrt", dim**0.5, f"sqrt({dim})"), ("rsqrt", dim**-0.5, f"{dim}^-0.5")):
        words = f"the token embedding is scaled by {name}; the original does not scale it"
        yield Hypothesis(f"scaled:{key}", words, scaled(factor, False))
        words = f"token and position embedding are scaled by {name}; the original does not scale them"
        yield Hypothesis(f"scaled_sum:{key}", words, scaled(factor, True))
    yield Hypothesis("no_positions", "the position table is not added", lambda: tokens)
    for shift in (*range(1, table.shape[2]), *range(-1, -table.shape[2], -1)):
        if 2 * abs(shift) <= table.shape[2]:  # at least half of the rows are compared
            rolled = table.roll(-shift, 2).clone()
            # The rows that moved in at the end are unknown: NaN excludes them from the comparison.
            if shift > 0:
                rolled[:, :, -shift:] = torch.nan
                words = f"the position table is shifted: position 0 reads row {shift}"
            else:
                rolled[:, :, :-shift] = torch.nan
                words = f"the position table is shifted: row 0 is at position {-shift}"
            yield Hypothesis(f"positions_shifted:{shift:+d}", words, read_from(rolled))
    words = "the position table is reversed: the last row comes first"
    yield Hypothesis("positions_reversed", words, read_from(table.flip(2)))
    start, end = ids[0, 0], ids[0].max()
    others = {
        "pad_zero": ("the embedding of the padding id 0 is zero", tokens * (ids != 0).unsqueeze(-1)),
        "ends_swapped": (
            "start and end id are exchanged",
            embedding(torch.where(ids == start, end, torch.where(ids == end, start, ids))),
        ),
        **_other_ids(evidence),
        "vocabulary_shifted:+1": ("every id reads the row after its own", _rows(embedding, ids + 1)),
        "vocabulary_shifted:-1": ("every id reads the row before its own", _rows(embedding, ids - 1)),
    }
    for key, (words, embedded) in others.items():
        yield Hypothesis(key, words, lambda e=embedded: e + positions)  # type: ignore[misc]
    if resizes:
        yield from _resizing_faults(evidence, tokens, table)
    elif length < table.shape[2]:
        words = f"the position table is resized to {length} rows; the original reads its first {length}"
        yield Hypothesis("positions_resized", words, with_table(table))
        words = f"the position table is resized to {length} rows, with align_corners; the original reads the first"
        yield Hypothesis("positions_resized:align_corners", words, with_table(table, True))


def _resizing_faults(evidence: Evidence, tokens: Tensor, table: Tensor) -> Iterator[Hypothesis]:
    """Faults of an encoder that resizes its table where a sequence has another length."""
    dim, length = tokens.shape[2], tokens.shape[1]

    def with_table(rows: Tensor, align_corners: bool = False) -> Callable[[], Tensor]:
        return lambda: tokens + _resized(rows, length, align_corners).to(tokens.dtype)

    full, rows = evidence.full_table, table.shape[2]
    if full is not None and full.shape[2] > rows:
        words = f"the position table was not cut to {rows} rows: all {full.shape[2]} are resized to {length}"
        yield Hypothesis("positions_not_cut", words, with_table(full))
    if length < rows:
        words = f"the first {length} rows of the position table are used; the original resizes the table"
        yield Hypothesis("positions_cut", words, lambda: tokens + table[:, 0, :length].to(tokens.dtype))
    if length > rows:
        at = torch.arange(length)
        beyond = {
            "positions_clamped": ("read its last row", table[:, 0, at.clamp(max=rows - 1)]),
            "positions_wrapped": ("begin with its first row again", table[:, 0, at % rows]),
            "positions_zero": ("are zero", functional.pad(table[:, 0], (0, 0, 0, length - rows))),
        }
        for key, (what, read) in beyond.items():
            words = f"positions behind the position table {what}; the original resizes the table"
            yield Hypothesis(key, words, lambda r=read: tokens + r.to(tokens.dtype))  # type: ignore[misc]
    if length != rows:
        words = "the position table is resized with align_corners; the original resizes it without"
        yield Hypothesis("align_corners", words, with_table(table, True))
        nearest = functional.interpolate(table, (length, dim), mode="nearest")
        words = "the position table is resized by its nearest rows; the original interpolates"
        yield Hypothesis("positions_nearest", words, with_table(nearest))


def _other_ids(evidence: Evidence) -> dict[str, tuple[str, Tensor]]:
    """Key -> words and token embedding, for ids that a port may have been given in place of these."""
    embedding, ids = evidence.model.parts.embedding, evidence.ids
    behind = torch.arange(ids.shape[1]) > ids.argmax(-1, keepdim=True)
    found = {}
    if bool(behind.any()):
        padded = torch.where(behind, ids.max(-1, keepdim=True).values, ids)
        words = "padding is the end id, or another id whose embedding is equal; these ids hold other padding"
        found["padded_with_end"] = words, embedding(padded)
    for by, words in (
        (1, "the ids begin one too late: the start id is missing"),
        (-1, "the ids have one more in front"),
    ):
        moved = embedding(ids.roll(-by, 1))
        moved[:, -1 if by > 0 else 0] = torch.nan  # what moved in is unknown
        found[f"ids_shifted:{by:+d}"] = words, moved
    return found


def _rows(embedding: nn.Module, ids: Tensor) -> Tensor:
    """Rows of the table; NaN for ids outside it, which excludes them from the comparison."""
    table = embedding.weight
    assert isinstance(table, Tensor)
    inside = (ids >= 0) & (ids < table.shape[0])
    found: Tensor = embedding(ids.clamp(0, table.shape[0] - 1))
    return found.masked_fill(~inside.unsqueeze(-1), torch.nan)


def _resized(table: Tensor, length: int, align_corners: bool = False) -> Tensor:
    if table.shape[2] != length:
        size = (length, table.shape[3])
        table = functional.interpolate(table, size, mode="bilinear", align_corners=align_corners)
    return table[:, 0]


def final_norm_faults(evidence: Evidence, tap: str) -> Iterator[Hypothesis]:
    """Faults of the LayerNorm after the last layer."""
    run = Run(evidence, tap, evidence.model.parts.norm)
    yield from run.eps(nn.LayerNorm, "LayerNorm")
    yield from run.biases()
    yield from run.other_norms()
    ones = {"weight": torch.ones_like(run.tensors["weight"])}
    yield Hypothesis("no_weight", "the weight of the final LayerNorm is missing (one)", run.having(ones))
    read = evidence.read_by(tap)
    yield Hypothesis("no_final_norm", "the final LayerNorm is left out", lambda: read)


def projected_faults(evidence: Evidence, tap: str) -> Iterator[Hypothesis]:
    """Faults of the projector, which the detector reads."""
    run = Run(evidence, tap, evidence.model.parts.projector)
    yield from run.biases()
    before = evidence.read_by(FINAL_NORM.name)
    projector = evidence.model.parts.projector
    yield Hypothesis("before_norm", "the tokens are projected before the final LayerNorm", lambda: projector(before))
    right = evidence.recorded[tap]
    words = "the projected tokens are normalised to length 1"
    yield Hypothesis("normalised", words, lambda: functional.normalize(right, dim=-1))
    weight = run.tensors["weight"]
    if weight.shape[0] == weight.shape[1]:
        yield Hypothesis("transposed:projector", "the projector is transposed", run.having({"weight": weight.T}))


def pooled_faults(evidence: Evidence, tap: str) -> Iterator[Hypothesis]:
    """Faults of the pooled output: the choice of the token, the projection and its orientation."""
    tokens, ids = evidence.read_by(tap), evidence.ids
    matrix = evidence.model.parts.projection
    rows = torch.arange(ids.shape[0])
    first = ids.argmax(-1)
    picked = tokens[rows, first]
    if matrix.shape[0] == matrix.shape[1]:
        words = (
            "the pooled output is x @ P.T where the original has x @ P: the projection is untransposed in a Linear, or "
            "transposed in the packed layout"
        )
        yield Hypothesis("projection_untransposed", words, lambda: picked @ matrix.T)
    last = ids.shape[1] - 1 - ids.flip(1).argmax(-1)
    words = "the pooled token is the last of several greatest ids; argmax takes the first"
    yield Hypothesis("argmax_last", words, lambda: tokens[rows, last] @ matrix)
    yield Hypothesis("pool_last", "the last position is pooled, not the greatest id", lambda: tokens[:, -1] @ matrix)
    yield Hypothesis("pool_first", "the first position is pooled, not the greatest id", lambda: tokens[:, 0] @ matrix)
    yield Hypothesis("pool_mean", "the mean of all tokens is pooled", lambda: tokens.mean(1) @ matrix)
    yield Hypothesis("not_projected", "the pooled token is not projected", lambda: picked)
    words = "the pooled output is normalised to length 1"
    yield Hypothesis("normalised", words, lambda: functional.normalize(picked @ matrix, dim=-1))
    before = evidence.read_by(FINAL_NORM.name)
    words = "the token is pooled before the final LayerNorm"
    yield Hypothesis("pool_before_norm", words, lambda: before[rows, first] @ matrix)
