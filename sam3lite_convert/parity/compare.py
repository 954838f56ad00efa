"""Two activations compared: pure functions that return records. All arithmetic in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Difference:
    """How far a candidate's activation is from the reference's.

    ``row_mean``: the greatest mean of a row (the first axis), which many good rows do not thin out.
    ``position``, ``reference`` and ``candidate``: where the greatest difference is, and both values
    there. Not-a-number on one side alone counts as an infinite difference.
    """

    shape: tuple[int, ...]
    max_abs: float
    position: tuple[int, ...]
    reference: float
    candidate: float
    mean_abs: float
    row_mean: float
    relative_l2: float
    cosine: float
    finite: bool


def absolute_difference(reference: Tensor, candidate: Tensor) -> Tensor:
    """Element by element, in float64; equal infinities and two not-a-numbers differ by 0.

    Raises ValueError for different shapes.
    """
    if reference.shape != candidate.shape:
        raise ValueError(f"shapes differ: {tuple(reference.shape)} and {tuple(candidate.shape)}")
    a, b = reference.double(), candidate.double()
    same = (a == b) | (a.isnan() & b.isnan())
    return torch.where(same, 0.0, (a - b).abs()).nan_to_num(nan=math.inf, posinf=math.inf)


def max_abs(reference: Tensor, candidate: Tensor) -> float:
    """The greatest absolute difference; 0.0 for empty tensors. Raises ValueError for different shapes."""
    difference = absolute_difference(reference, candidate)
    return float(difference.max()) if difference.numel() else 0.0


def greatest_and_row_mean(reference: Tensor, candidate: Tensor) -> tuple[float, float]:
    """The greatest absolute difference, and the greatest mean of a row (the first axis); 0.0 for empty tensors.
    Raises ValueError for different shapes."""
    difference = absolute_difference(reference, candidate)
    return (float(difference.max()), float(row_means(difference).max())) if difference.numel() else (0.0, 0.0)


def row_means(difference: Tensor) -> Tensor:
    """The mean of each row (the first axis)."""
    return difference.reshape(len(difference), -1).mean(1)


class Running:
    """A difference that is added up batch by batch, so that no more than one batch is in memory."""

    def __init__(self) -> None:
        self.rows = 0
        self._shape: tuple[int, ...] = ()
        self._count = 0
        self._worst: tuple[float, tuple[int, ...], float, float] = (0.0, (), 0.0, 0.0)
        self._row_mean = 0.0
        self._sum = self._error = self._ours = self._theirs = 0.0
        self._cosines: list[tuple[float, float, float]] = []
        self._finite = True

    def add(self, reference: Tensor, candidate: Tensor) -> Tensor:
        """Rows that follow those before them; returns their absolute difference, in float64.

        Raises ValueError for different shapes.
        """
        difference = absolute_difference(reference, candidate)
        self._shape = tuple(reference.shape[1:])
        a, b = reference.double().flatten(), candidate.double().flatten()
        self._finite &= bool(a.isfinite().all() and b.isfinite().all())
        rows, self.rows = self.rows, self.rows + len(reference)
        if not difference.numel():
            return difference
        flat = difference.flatten()
        worst = int(flat.argmax())
        if not self._count or float(flat[worst]) > self._worst[0]:
            first, *rest = (int(i) for i in np.unravel_index(worst, reference.shape))
            self._worst = (float(flat[worst]), (rows + first, *rest), float(a[worst]), float(b[worst]))
        self._sum += float(flat.sum())
        self._row_mean = max(self._row_mean, float(row_means(difference).max()))
        # Norms, not squares: those of the smallest numbers would vanish.
        ours, theirs = float(a.norm()), float(b.norm())
        if ours and theirs:
            self._cosines.append((float((a / ours) @ (b / theirs)), ours, theirs))
        self._error = math.hypot(self._error, float(flat.norm()))
        self._ours, self._theirs = math.hypot(self._ours, ours), math.hypot(self._theirs, theirs)
        self._count += difference.numel()
        return difference

    def add_equal(self, both: Tensor) -> None:
        """Rows that are equal to the bit and finite: only their norm counts, which is much less work."""
        self._shape = tuple(both.shape[1:])
        self.rows += len(both)
        if not both.numel():
            return
        norm = float(torch.linalg.vector_norm(both, dtype=torch.float64))
        self._finite &= math.isfinite(norm)
        if norm:
            self._cosines.append((1.0, norm, norm))
        if not self._count:
            first = float(both.flatten()[0])
            self._worst = (0.0, (0,) * both.dim(), first, first)
        self._ours, self._theirs = math.hypot(self._ours, norm), math.hypot(self._theirs, norm)
        self._count += both.numel()

    def difference(self) -> Difference:
        """What was added so far."""
        greatest, position, ours, theirs = self._worst
        cosine = sum(c * (a / self._ours) * (b / self._theirs) for c, a, b in self._cosines)
        equal = greatest == 0
        return Difference(
            (self.rows, *self._shape),
            greatest,
            position,
            ours,
            theirs,
            self._sum / self._count if self._count else 0.0,
            self._row_mean,
            0.0 if equal else self._error / self._ours if self._ours else math.inf,
            # Exactly equal activations have cosine 1 by definition; rounding must not say 0.9999999.
            1.0 if equal else cosine,
            self._finite,
        )


def compare(reference: Tensor, candidate: Tensor) -> Difference:
    """Raises ValueError for different shapes."""
    running = Running()
    running.add(reference, candidate)
    return running.difference()
