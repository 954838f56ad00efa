"""Compare two activations. Pure functions; all arithmetic is in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

_STRETCH = 1 << 21  # values


@dataclass(frozen=True)
class Difference:
    """The difference between a candidate's activation and the reference's. NaN on one side only counts as infinite.

    ``shape``: of either activation.
    ``max_abs``: greatest absolute difference.
    ``position``: index of the greatest difference.
    ``reference``: the reference's value there.
    ``candidate``: the candidate's value there.
    ``mean_abs``: mean absolute difference.
    ``row_mean``: greatest mean absolute difference of a row (first axis); good rows do not dilute a bad one.
    ``relative_l2``: L2 norm of the difference over that of the reference.
    ``cosine``: cosine similarity; 1 if both are equal.
    ``finite``: whether all values of both are finite.
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
    """The absolute difference of each element, in float64. Equal infinities, and NaN on both sides, differ by 0.

    Raises ValueError if the shapes differ.
    """
    if reference.shape != candidate.shape:
        raise ValueError(f"shapes differ: {tuple(reference.shape)} and {tuple(candidate.shape)}")
    a, b = reference.double(), candidate.double()
    same = (a == b) | (a.isnan() & b.isnan())
    return torch.where(same, 0.0, (a - b).abs()).nan_to_num(nan=math.inf, posinf=math.inf)


def max_abs(reference: Tensor, candidate: Tensor) -> float:
    """The greatest absolute difference; 0.0 for empty tensors. Raises ValueError if the shapes differ."""
    difference = absolute_difference(reference, candidate)
    return float(difference.max()) if difference.numel() else 0.0


def greatest_and_row_mean(reference: Tensor, candidate: Tensor) -> tuple[float, float]:
    """The greatest absolute difference, and the greatest mean of a row (first axis); 0.0 for empty tensors.

    Raises ValueError if the shapes differ.
    """
    difference = absolute_difference(reference, candidate)
    return (float(difference.max()), float(row_means(difference).max())) if difference.numel() else (0.0, 0.0)


def stretches(value: Tensor) -> Iterator[Tensor]:
    """The rows on the last axis, (rows, width), a few million values at a time: what is computed of one in float64
    stays small."""
    rows = value.reshape(-1, value.shape[-1]) if value.dim() > 1 else value.reshape(-1, 1)
    return iter(rows.split(max(_STRETCH // max(rows.shape[1], 1), 1)))


def compare_large(reference: Tensor, candidate: Tensor) -> Difference:
    """The difference between two activations of any size; a row is one of the last axis.

    Raises ValueError if the shapes differ.
    """
    if reference.shape != candidate.shape:
        raise ValueError(f"shapes differ: {tuple(reference.shape)} and {tuple(candidate.shape)}")
    running = Running()
    for ours, theirs in zip(stretches(reference), stretches(candidate), strict=True):
        if torch.equal(ours, theirs):
            running.add_equal(ours)
        else:
            running.add(ours, theirs)
    found = running.difference()
    shape = tuple(reference.shape)
    flat = found.position[0] * found.shape[-1] + found.position[-1] if found.position else 0
    position = tuple(int(i) for i in np.unravel_index(flat, shape)) if reference.numel() else ()
    return replace(found, shape=shape, position=position)


def greatest_and_row_mean_large(reference: Tensor, candidate: Tensor) -> tuple[float, float]:
    """``greatest_and_row_mean`` of activations of any size; a row is one of the last axis.

    Raises ValueError if the shapes differ.
    """
    if reference.shape != candidate.shape:
        raise ValueError(f"shapes differ: {tuple(reference.shape)} and {tuple(candidate.shape)}")
    pairs = [
        greatest_and_row_mean(ours, theirs)
        for ours, theirs in zip(stretches(reference), stretches(candidate), strict=True)
    ]
    return max((a for a, _ in pairs), default=0.0), max((b for _, b in pairs), default=0.0)


def row_means(difference: Tensor) -> Tensor:
    """The mean of each row (first axis)."""
    return difference.reshape(len(difference), -1).mean(1)


class Running:
    """A difference accumulated batch by batch, so that only one batch is in memory."""

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
        """Add the next rows; returns their absolute difference, in float64.

        Raises ValueError if the shapes differ.
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
        # Norms, not their squares, which underflow for the smallest numbers.
        ours, theirs = float(a.norm()), float(b.norm())
        if ours and theirs:
            self._cosines.append((float((a / ours) @ (b / theirs)), ours, theirs))
        self._error = math.hypot(self._error, float(flat.norm()))
        self._ours, self._theirs = math.hypot(self._ours, ours), math.hypot(self._theirs, theirs)
        self._count += difference.numel()
        return difference

    def add_equal(self, both: Tensor) -> None:
        """Add rows that are bitwise equal on both sides. Only their norm is computed, which is much cheaper."""
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
        """The difference over all rows added so far."""
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
            # Equal activations have cosine 1; computed, it could be rounded to 0.9999999.
            1.0 if equal else cosine,
            self._finite,
        )


def compare(reference: Tensor, candidate: Tensor) -> Difference:
    """The difference between two activations. Raises ValueError if the shapes differ."""
    running = Running()
    running.add(reference, candidate)
    return running.difference()
