"""Two activations compared: pure functions that return records. All arithmetic in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Difference:
    """How far a candidate's activation is from the reference's.

    ``position``, ``reference`` and ``candidate``: where the greatest difference is, and both values
    there. Not-a-number on one side alone counts as an infinite difference.
    """

    shape: tuple[int, ...]
    max_abs: float
    position: tuple[int, ...]
    reference: float
    candidate: float
    mean_abs: float
    relative_l2: float
    cosine: float
    finite: bool

    def record(self) -> dict[str, Any]:
        """The JSON fields of the contract, and the place of the greatest difference."""
        return {
            "shape": list(self.shape),
            "max_abs_diff": number(self.max_abs),
            "mean_abs_diff": number(self.mean_abs),
            "relative_l2": number(self.relative_l2),
            "cosine": number(self.cosine),
            "position": list(self.position),
            "reference_value": number(self.reference),
            "candidate_value": number(self.candidate),
        }


def number(value: float) -> float | None:
    """The value for JSON, which has no infinity and no not-a-number."""
    return value if math.isfinite(value) else None


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


def greatest_and_mean(reference: Tensor, candidate: Tensor) -> tuple[float, float]:
    """Max and mean absolute difference; 0.0 for empty tensors. Raises ValueError for different shapes."""
    difference = absolute_difference(reference, candidate)
    return (float(difference.max()), float(difference.mean())) if difference.numel() else (0.0, 0.0)


def compare(reference: Tensor, candidate: Tensor) -> Difference:
    """Raises ValueError for different shapes."""
    difference = absolute_difference(reference, candidate)
    a, b = reference.double().flatten(), candidate.double().flatten()
    finite = bool(a.isfinite().all() and b.isfinite().all())
    if not difference.numel():
        return Difference(tuple(reference.shape), 0.0, (), 0.0, 0.0, 0.0, 0.0, 1.0, finite)
    flat = difference.flatten()
    worst = int(flat.argmax())
    position = tuple(int(i) for i in np.unravel_index(worst, reference.shape))
    norm_a, norm_b = float(a.norm()), float(b.norm())
    error = float(flat.norm())
    # Exactly equal activations have cosine 1 by definition; rounding must not say 0.9999999.
    cosine = 1.0 if error == 0 else float((a / norm_a) @ (b / norm_b)) if norm_a and norm_b else 0.0
    return Difference(
        tuple(reference.shape),
        float(flat[worst]),
        position,
        float(a[worst]),
        float(b[worst]),
        float(flat.mean()),
        0.0 if error == 0 else error / norm_a if norm_a else math.inf,
        cosine,
        finite,
    )
