"""From two encoders' activations to a verdict: pure functions over what was recorded.

The tolerance of a tap is what the user gives, or a small multiple of the noise floor measured there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sam3lite_convert.compare import Difference, absolute_difference, compare, max_abs, number
from sam3lite_convert.encoders import POOLED
from sam3lite_convert.errors import CannotRun

# Two ways to compute the same thing are each a floor away from the exact result, and the greatest of
# a few thousand errors varies: with sdpa or in half precision up to 2 floors were seen.
FLOORS = 4.0


@dataclass(frozen=True)
class Floor:
    """The noise floor of one tap, max abs: rounding carried on from the first tap, and made here alone."""

    propagated: float
    isolated: float


@dataclass(frozen=True)
class Tap:
    """One tap. ``isolated``: max abs diff when the candidate's module reads the reference's recorded
    input. ``valid`` and ``padded``: the propagated max abs diff by position, None where there are none."""

    name: str
    difference: Difference
    isolated: float
    tolerance: float
    isolated_tolerance: float
    floor: Floor | None
    valid: float | None
    padded: float | None

    @property
    def diverges(self) -> bool:
        """The candidate's module itself is wrong, whatever reached it."""
        return self.isolated > self.isolated_tolerance or (self.isolated > 0 and not self.difference.finite)

    @property
    def within(self) -> bool:
        return not self.diverges and self.difference.max_abs <= self.tolerance

    def record(self) -> dict[str, Any]:
        """The tap's JSON."""
        floors = None if self.floor is None else {"propagated": self.floor.propagated, "isolated": self.floor.isolated}
        return {
            "name": self.name,
            **self.difference.record(),
            "isolated_max_abs_diff": number(self.isolated),
            "tolerance": self.tolerance,
            "isolated_tolerance": self.isolated_tolerance,
            "floor": floors,
            "valid_max_abs_diff": None if self.valid is None else number(self.valid),
            "padded_max_abs_diff": None if self.padded is None else number(self.padded),
        }


@dataclass(frozen=True)
class Judgement:
    """All taps in the order of execution. ``given``: the user's tolerance, None for the measured one."""

    taps: tuple[Tap, ...]
    given: float | None

    @property
    def verdict(self) -> str:
        """``exact``: 0.0 wherever the detector reads, and pooled within its tolerance."""
        if not all(t.within for t in self.taps):
            return "differs"
        exact = all(
            t.difference.max_abs == 0 and t.isolated == 0 for t in self.taps if t.name != POOLED
        )  # the detector does not read it
        return "exact" if exact else "within_tolerance"

    @property
    def first_divergence(self) -> str | None:
        """The first tap whose isolated error is above its tolerance."""
        return next((t.name for t in self.taps if t.diverges), None)

    @property
    def also_diverging(self) -> list[str]:
        """Taps behind the first divergence that are wrong by themselves, not by what reached them."""
        return [t.name for t in self.taps if t.diverges][1:]

    @property
    def max_abs(self) -> float:
        return max(t.difference.max_abs for t in self.taps)

    @property
    def tolerance(self) -> float:
        """The given one, or the greatest of the measured ones."""
        return self.given if self.given is not None else max(t.tolerance for t in self.taps)

    @property
    def smallest_passing(self) -> float:
        """The smallest ``--tolerance`` that would have passed."""
        return max(max(t.difference.max_abs, t.isolated) for t in self.taps)

    def record(self) -> dict[str, Any]:
        """The JSON fields that follow from the taps."""
        return {
            "verdict": self.verdict,
            "tolerance": self.tolerance,
            "tolerance_is": "given" if self.given is not None else f"measured: {FLOORS:g} noise floors at each tap",
            "smallest_passing_tolerance": number(self.smallest_passing),
            "max_abs_diff": number(self.max_abs),
            "first_divergence": self.first_divergence,
            "also_diverging": self.also_diverging,
            "layers": [t.record() for t in self.taps],
        }


def judge(
    reference: Mapping[str, Tensor],
    candidate: Mapping[str, Tensor],
    isolated: Mapping[str, Tensor],
    floors: Mapping[str, Floor] | None,
    padded: Tensor,
    tolerance: float | None = None,
) -> Judgement:
    """``reference``, ``candidate``, ``isolated``: activations by tap, (batch, sequence, width), pooled
    (batch, width). ``floors`` None: none was measured, because nothing differs. ``padded``: (batch,
    sequence), bool. Raises ValueError for taps or shapes that do not match.
    """
    if list(reference) != list(candidate) or list(reference) != list(isolated):
        raise ValueError("the two sides were not recorded at the same taps")
    taps = []
    for name, ours in reference.items():
        floor = None if floors is None else floors[name]
        propagated_limit = isolated_limit = tolerance if tolerance is not None else 0.0
        if tolerance is None and floor is not None:
            propagated_limit, isolated_limit = FLOORS * floor.propagated, FLOORS * floor.isolated
        theirs = candidate[name]
        difference = absolute_difference(ours, theirs)
        valid = behind = None
        if difference.shape[:2] == padded.shape:
            valid, behind = _greatest(difference[~padded]), _greatest(difference[padded])
        taps.append(
            Tap(
                name,
                compare(ours, theirs),
                max_abs(ours, isolated[name]),
                propagated_limit,
                isolated_limit,
                floor,
                valid,
                behind,
            )
        )
    return Judgement(tuple(taps), tolerance)


def require_finite(reference: Mapping[str, Tensor]) -> None:
    """Raises CannotRun where the reference itself is not finite: equal to that proves nothing."""
    for name, value in reference.items():
        if not bool(value.isfinite().all()):
            dtype = str(value.dtype).removeprefix("torch.")
            raise CannotRun(
                f"the original itself is not finite from {name} on (in {dtype}), so nothing can be compared with it. "
                "In half precision that is an overflow: try --dtype float32. In float32 its weights hold infinities or "
                "not-a-numbers.",
                "not_finite",
                {"tap": name},
            )


def _greatest(values: Tensor) -> float | None:
    return float(values.max()) if values.numel() else None
