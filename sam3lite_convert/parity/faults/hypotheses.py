"""Tries known faults of ports on the reference and ranks those that explain what the candidate computed.

A hypothesis that makes the reference compute what the candidate does is the likely cause. It needs nothing of the
candidate but its activation, so it works for any port. To add one: a fault of a layer is written in ``layers.py``, a
fault of the other taps (embeddings, final norm, projections) in ``ends.py``.
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

# A row of the table of taps -> its hypotheses. A tap inside one of these has the same ones, seen from there.
_KNOWN: dict[TapPoint, Callable[[Evidence, str], Iterator[Hypothesis]]] = {
    EMBEDDINGS: embeddings_faults,
    LAYER: layer_faults,
    FINAL_NORM: final_norm_faults,
    PROJECTED: projected_faults,
    POOLED: pooled_faults,
}


@dataclass(frozen=True)
class Fit:
    """A hypothesis that explains a candidate's activation up to ``error`` (max abs)."""

    key: str
    words: str
    error: float


def explain(
    evidence: Evidence, tap: str, candidate: Tensor, tolerance: float, mean_tolerance: float = math.inf
) -> list[Fit]:
    """Hypotheses that bring the tap's isolated error down to ``tolerance``, and its mean down to
    ``mean_tolerance``, the closest first.

    ``candidate``: its activation at the tap when fed the reference's recorded input. Other layers'
    tensors are tried only where nothing simpler fits.
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
    """Max and mean abs diff over the elements that the hypothesis speaks of (it leaves others not-a-number)."""
    known = ~made.isnan()
    if not bool(known.any()):
        return math.inf, math.inf
    difference = absolute_difference(made[known], candidate[known])
    return float(difference.max()), float(difference.mean())


def hypotheses(evidence: Evidence, tap: str) -> Iterator[Hypothesis]:
    """All that are known for a tap, but for tensors of other layers."""
    if known := _KNOWN.get(point_of(tap)):
        return known(evidence, tap)
    around = enclosing(tap)
    return evidence.seen_at(tap, hypotheses(evidence, around)) if around else iter(())
