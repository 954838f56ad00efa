"""Try known faults of ports on the reference and rank those that explain the candidate's activation.

A hypothesis that makes the reference compute what the candidate computed is the likely cause. It needs only the
candidate's activation, so it works for any port. To add one, write a fault of a layer in ``layers.py``, and a fault of
another tap (embeddings, final norm, projections) in ``ends.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sam3lite_convert.parity.compare import absolute_difference
from sam3lite_convert.parity.faults.ends import embeddings_faults, final_norm_faults, pooled_faults, projected_faults
from sam3lite_convert.parity.faults.evidence import Evidence, Hypothesis
from sam3lite_convert.parity.faults.layers import layer_faults, other_layers
from sam3lite_convert.parity.taps import EMBEDDINGS, FINAL_NORM, LAYER, POOLED, PROJECTED, TapPoint, enclosing, point_of

# Row of the table of taps -> its hypotheses. A tap inside one of these rows has the same hypotheses.
_KNOWN: dict[TapPoint, Callable[[Evidence, str], Iterator[Hypothesis]]] = {
    EMBEDDINGS: embeddings_faults,
    LAYER: layer_faults,
    FINAL_NORM: final_norm_faults,
    PROJECTED: projected_faults,
    POOLED: pooled_faults,
}


@dataclass(frozen=True)
class Fit:
    """A hypothesis that explains the candidate's activation.

    ``key``, ``words``: of the hypothesis.
    ``error``: remaining max abs diff.
    """

    key: str
    words: str
    error: float


def explain(
    evidence: Evidence, tap: str, candidate: Tensor, tolerance: float, mean_tolerance: float = math.inf
) -> list[Fit]:
    """Hypotheses that explain the candidate's activation within the tolerances, the closest first.

    ``candidate``: its activation at the tap when it reads the reference's recorded input.
    ``tolerance``: largest max abs diff to a hypothesis that fits.
    ``mean_tolerance``: largest mean abs diff to a hypothesis that fits.

    Tensors of other layers are tried only if nothing simpler fits.
    """
    for group in (hypotheses, other_layers):
        fits = []
        for hypothesis in group(evidence, tap):
            with torch.inference_mode():
                made = hypothesis.output()
            if made.shape != candidate.shape:
                continue
            error, mean = distance(made, candidate)
            if error <= tolerance and mean <= mean_tolerance:
                fits.append(Fit(hypothesis.key, hypothesis.words, error))
        if fits:
            return sorted(fits, key=lambda f: f.error)
    return []


def distance(made: Tensor, candidate: Tensor) -> tuple[float, float]:
    """Max and mean abs diff over the elements that the hypothesis predicts (the others are NaN)."""
    known = ~made.isnan()
    if not bool(known.any()):
        return math.inf, math.inf
    difference = absolute_difference(made[known], candidate[known])
    return float(difference.max()), float(difference.mean())


def hypotheses(evidence: Evidence, tap: str) -> Iterator[Hypothesis]:
    """All hypotheses for a tap, except tensors of other layers."""
    if known := _KNOWN.get(point_of(tap)):
        return known(evidence, tap)
    around = enclosing(tap)
    return evidence.seen_at(tap, hypotheses(evidence, around)) if around else iter(())
