"""Try known faults of ports on the reference and rank those that explain the candidate's activation.

A hypothesis that makes the reference compute what the candidate computed is the likely cause. It needs only the
candidate's activation, so it works for any port. To add one, write a fault of a layer in ``layers.py``, and a fault of
another tap (embeddings, final norm, projections) in ``ends.py``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sam3lite_convert.parity.compare import absolute_difference
from sam3lite_convert.parity.faults.ends import embeddings_faults, final_norm_faults, pooled_faults, projected_faults
from sam3lite_convert.parity.faults.evidence import Evidence, Hypothesis, few_threads
from sam3lite_convert.parity.faults.fitted import fitted_faults
from sam3lite_convert.parity.faults.layers import layer_faults, other_layers
from sam3lite_convert.parity.judgement import FLOORS
from sam3lite_convert.parity.original import wrap_reference
from sam3lite_convert.parity.taps import EMBEDDINGS, FINAL_NORM, LAYER, POOLED, PROJECTED, TapPoint, enclosing, point_of
from sam3lite_convert.progress import bar
from sam3lite_convert.records.parity import FitRecord

Group = Callable[[Evidence, str], Iterator[Hypothesis]]

_NEAR = 0.01  # of a divergence: what a hypothesis may leave of it and still be held to a noise floor of its own

_NAMED = 3  # likely causes in a sentence

# Row of the table of taps -> its hypotheses. A tap inside one of these rows has the same hypotheses.
_KNOWN: dict[TapPoint, Group] = {
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
    ``likely``: whether it fits as well as the closest one: to twice its error, or to the noise floor.
    """

    key: str
    words: str
    error: float
    likely: bool = True

    def record(self) -> FitRecord:
        """The fit for the JSON."""
        return FitRecord(key=self.key, cause=self.words, remaining_error=self.error, likely=self.likely)


def in_words(fits: Sequence[Fit]) -> str:
    """The likely causes in one sentence, at most three of them; that none is known if nothing fits."""
    if not fits:
        return (
            "not found: no known fault explains it, so that a setting (eps, heads, a mask, a scale) or a tensor may be "
            "wrong; check the tensors listed for this tap"
        )
    likely = [fit.words for fit in fits if fit.likely]
    more = f"; or one of {len(likely) - _NAMED} more" if len(likely) > _NAMED else ""
    return "; or ".join(likely[:_NAMED]) + more


def explain(
    evidence: Evidence,
    tap: str,
    candidate: Tensor,
    tolerance: float,
    mean_tolerance: float = math.inf,
    propagated: bool = False,
) -> list[Fit]:
    """Hypotheses that explain the candidate's activation within the tolerances, the closest first.

    ``candidate``: its activation at the tap when it reads the reference's recorded input, or, with ``propagated``, in
    a normal forward pass that agrees with the reference's up to this tap.
    ``tolerance``: largest max abs diff to a hypothesis that fits.
    ``mean_tolerance``: largest mean abs diff to a hypothesis that fits.

    The tolerances are those of the right module. A fault may make rounding larger, so if nothing fits within them,
    hypotheses that leave next to nothing of the divergence are held to noise floors of their own.
    Tensors of other layers are tried only if nothing simpler fits.
    """
    if candidate.shape != evidence.recorded[tap].shape:
        return []
    with few_threads(evidence.ids.numel(), candidate.shape[-1]):
        return _explain(evidence, tap, candidate, tolerance, mean_tolerance, propagated)


def _explain(
    evidence: Evidence, tap: str, candidate: Tensor, tolerance: float, mean_tolerance: float, propagated: bool
) -> list[Fit]:
    off = distance(evidence.recorded[tap], candidate)[0]
    near = _NEAR * off if math.isfinite(off) else 0.0
    exact = None
    found: dict[int, list[Hypothesis]] = {}

    def fitted(evidence: Evidence, tap: str) -> Iterator[Hypothesis]:
        if id(evidence) not in found:  # a search, which is not made twice
            found[id(evidence)] = list(fitted_faults(evidence, tap, candidate))
        return iter(found[id(evidence)])

    groups: tuple[Group, ...] = (hypotheses, fitted, other_layers)
    for group in groups:
        fits, close = [], list[tuple[int, Fit, float]]()
        for n, (hypothesis, made) in enumerate(tried(lambda g=group: g(evidence, tap), tap)):  # type: ignore[misc]
            if made.shape != candidate.shape:
                continue
            error, mean = distance(made, candidate)
            fit = Fit(hypothesis.key, hypothesis.words, error)
            if error <= tolerance and mean <= mean_tolerance:
                fits.append(fit)
            elif error <= near:
                close.append((n, fit, mean))
        if close and not fits:
            exact = exact or _in_float64(evidence, propagated)
            floors = _own_floors(evidence, exact, group, tap, [n for n, _, _ in close])
            for (_, fit, mean), (floor, mean_floor) in zip(close, floors, strict=True):
                if fit.error <= max(tolerance, FLOORS * floor) and mean <= max(mean_tolerance, FLOORS * mean_floor):
                    fits.append(fit)
        if fits:
            return ranked(fits, tolerance)
    return []


def tried(made: Callable[[], Iterator[Hypothesis]], place: str) -> Iterator[tuple[Hypothesis, Tensor]]:
    """Hypotheses with what each gives, under a bar. ``made``: makes them, one at a time, since each holds tensors."""
    with bar(f"trying known faults of {place}", sum(1 for _ in made())) as advance:
        for hypothesis in made():
            with torch.inference_mode():
                output = hypothesis.output()
            yield hypothesis, output
            advance()


def ranked(fits: Sequence[Fit], tolerance: float) -> list[Fit]:
    """The fits, the closest first, and which of them are likely. ``tolerance``: largest error of a fit."""
    alike = max(2 * min((fit.error for fit in fits), default=0.0), tolerance / FLOORS)
    return [replace(fit, likely=fit.error <= alike) for fit in sorted(fits, key=lambda fit: fit.error)]


def _own_floors(
    evidence: Evidence, exact: Evidence, group: Group, tap: str, numbers: Sequence[int]
) -> list[tuple[float, float]]:
    """The noise floor of hypotheses, by their number in the group: max and mean abs diff to float64."""
    ours, theirs = list(group(evidence, tap)), list(group(exact, tap))
    with torch.inference_mode():
        return [distance(ours[n].output(), theirs[n].output()) for n in numbers]


def _in_float64(evidence: Evidence, propagated: bool) -> Evidence:
    """The same in float64: from the first tap on, or from the recorded input of each module."""
    model = copy.deepcopy(evidence.model).double()
    if propagated:
        recorded = wrap_reference(model).record(evidence.ids)
    else:
        recorded = {tap: value.double() for tap, value in evidence.recorded.items()}
    table = evidence.full_table
    return replace(evidence, model=model, recorded=recorded, full_table=None if table is None else table.double())


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
