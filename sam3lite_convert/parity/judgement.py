"""Judge the recorded activations of two encoders. Pure functions.

The tolerance at a tap is the one the user gives, or a small multiple of the noise floor measured there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sam3lite_convert.errors import CannotRun
from sam3lite_convert.figures import number
from sam3lite_convert.parity.compare import Difference, absolute_difference, compare, greatest_and_row_mean
from sam3lite_convert.parity.taps import point_of
from sam3lite_convert.records.parity import FloorRecord, JudgementRecord, TapRecord, TapStatus, Verdict

# Two correct computations are each one floor away from the exact result, and the greatest of a few thousand errors
# varies: differences up to 2 floors were seen with sdpa or in half precision.
FLOORS = 4.0


@dataclass(frozen=True)
class Floor:
    """The noise floor at one tap. A mean that was not measured is infinite, so that it limits nothing.

    ``propagated``: max abs diff of the rounding carried on from the first tap.
    ``isolated``: max abs diff of the rounding of this tap's module alone.
    ``mean_propagated``: greatest mean abs diff of a row, carried on from the first tap.
    ``mean_isolated``: greatest mean abs diff of a row, of this tap's module alone.
    """

    propagated: float
    isolated: float
    mean_propagated: float = math.inf
    mean_isolated: float = math.inf

    def without_isolated(self) -> Floor:
        """The floor for a candidate whose isolated activations were not recorded."""
        return Floor(self.propagated, self.propagated, self.mean_propagated, self.mean_propagated)

    def record(self) -> FloorRecord:
        """The floor for the JSON."""
        return FloorRecord(
            propagated=self.propagated,
            isolated=self.isolated,
            mean_propagated=self.mean_propagated,
            mean_isolated=self.mean_isolated,
        )


@dataclass(frozen=True)
class JudgedTap:
    """A tap and its verdict.

    With measured tolerances the means are judged too: one channel of large values can set a max abs floor that hides
    errors in all other channels.

    ``name``: the tap.
    ``difference``: the propagated difference.
    ``isolated``: max abs diff when the candidate's module reads the reference's recorded input.
    ``tolerance``: largest propagated max abs diff that passes.
    ``isolated_tolerance``: largest isolated max abs diff that passes.
    ``floor``: the noise floor; None if it was not measured.
    ``valid``: propagated max abs diff at words; None if there are none.
    ``padded``: propagated max abs diff at padding; None if there is none.
    ``mean_isolated``: greatest isolated mean abs diff of a row.
    ``measured``: whether the tolerances come from the noise floor, not from the user.
    """

    name: str
    difference: Difference
    isolated: float
    tolerance: float
    isolated_tolerance: float
    floor: Floor | None
    valid: float | None
    padded: float | None
    mean_isolated: float
    measured: bool

    @property
    def read_by_detector(self) -> bool:
        """Whether the detector's result depends on this tap."""
        return point_of(self.name).read_by_detector

    @property
    def mean_isolated_tolerance(self) -> float:
        """Largest ``mean_isolated`` that passes; infinite if the user gave a tolerance."""
        return FLOORS * self.floor.mean_isolated if self.measured and self.floor else math.inf

    @property
    def diverges(self) -> bool:
        """Whether the candidate's module is wrong by itself, with the right input."""
        limit = self.mean_isolated_tolerance
        finite = math.isfinite(self.isolated)
        return not finite or self.isolated > self.isolated_tolerance or self.mean_isolated > limit

    @property
    def within(self) -> bool:
        """Whether the isolated and the propagated error are within the tolerances."""
        limit = FLOORS * self.floor.mean_propagated if self.measured and self.floor else math.inf
        error = self.difference
        return (
            not self.diverges
            and math.isfinite(error.max_abs)
            and error.max_abs <= self.tolerance
            and (error.row_mean <= limit)
        )

    @property
    def near_floor(self) -> bool:
        """Whether the error is 0.0 or within the noise floor, regardless of a given tolerance."""
        if self.difference.max_abs == 0 == self.isolated:
            return True
        floor = self.floor
        return (
            floor is not None
            and self.difference.max_abs <= FLOORS * floor.propagated
            and (self.isolated <= FLOORS * floor.isolated)
        )

    @property
    def floors(self) -> float:
        """The greatest error as a multiple of its noise floor; 0.0 if no floor was measured."""
        if self.floor is None:
            return 0.0
        f = self.floor
        pairs = [(self.difference.max_abs, f.propagated), (self.isolated, f.isolated)]
        pairs += [(self.difference.row_mean, f.mean_propagated), (self.mean_isolated, f.mean_isolated)]
        return max(error / floor if floor else math.inf if error else 0.0 for error, floor in pairs)

    @property
    def status(self) -> TapStatus:
        """The tap's result in one word, for reports."""
        if self.diverges:
            return "diverges"
        if not self.within:
            return "carried"
        return "equal" if self.difference.max_abs == 0 == self.isolated else "within"

    def record(self) -> TapRecord:
        """The tap for the JSON."""
        error = self.difference
        return TapRecord(
            name=self.name,
            read_by_detector=self.read_by_detector,
            shape=error.shape,
            max_abs_diff=error.max_abs,
            mean_abs_diff=error.mean_abs,
            relative_l2=error.relative_l2,
            cosine=error.cosine,
            position=error.position,
            reference_value=error.reference,
            candidate_value=error.candidate,
            isolated_max_abs_diff=self.isolated,
            isolated_mean_abs_diff=self.mean_isolated,
            tolerance=self.tolerance,
            isolated_tolerance=self.isolated_tolerance,
            floor=self.floor.record() if self.floor else None,
            floors=self.floors,
            diverges=self.diverges,
            within=self.within,
            status=self.status,
            valid_max_abs_diff=self.valid,
            padded_max_abs_diff=self.padded,
        )


@dataclass(frozen=True)
class Judgement:
    """The judgement of a comparison.

    ``taps``: all taps in the order of execution.
    ``given``: the user's tolerance; None if it is measured.
    ``not_read``: source keys of text tensors that no module of the reference reads.
    """

    taps: tuple[JudgedTap, ...]
    given: float | None
    not_read: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The verdict. ``exact``: 0.0 at every tap that the detector reads, and the others are within their floors.
        ``incomplete``: nothing differs, but the reference does not read all text tensors of the file either."""
        if not all(t.within for t in self.taps):
            return "differs"
        return "incomplete" if self.not_read else self._of_what_was_read

    @property
    def _of_what_was_read(self) -> Verdict:
        """The verdict on taps that are all within their tolerances."""
        zero = all(t.difference.max_abs == 0 == t.isolated for t in self.taps if t.read_by_detector)
        near = all(t.near_floor for t in self.taps if not t.read_by_detector)
        return "exact" if zero and near else "within_tolerance"

    @property
    def first_divergence(self) -> str | None:
        """The first tap whose isolated error is above its tolerance."""
        return next((t.name for t in self.taps if t.diverges), None)

    @property
    def also_diverging(self) -> list[str]:
        """Later taps whose isolated error is above their tolerance too."""
        return [t.name for t in self.taps if t.diverges][1:]

    @property
    def max_abs(self) -> float:
        return max(t.difference.max_abs for t in self.taps)

    @property
    def tolerance(self) -> float:
        """The given tolerance, or the greatest of the measured ones."""
        return self.given if self.given is not None else max(t.tolerance for t in self.taps)

    @property
    def smallest_passing(self) -> float:
        """The smallest ``--tolerance`` that would have passed."""
        return max(max(t.difference.max_abs, t.isolated) for t in self.taps)

    @property
    def tolerance_is(self) -> str:
        """Where the tolerance comes from."""
        return "given" if self.given is not None else f"measured: {FLOORS:g} noise floors at each tap"

    def summary(self, dtype: str) -> str:
        """The verdict in one sentence. ``dtype``: what both sides ran in."""
        run = "" if dtype == "float32" else f", both sides in {dtype}"
        limit = f"tolerance {number(self.tolerance)}, {self.tolerance_is}"
        if self.verdict == "incomplete":
            many = len(self.not_read)
            tensors = f"{many:,} tensor{'s' * (many > 1)} of the text encoder in this file"
            rest = replace(self, not_read=())
            return (
                f"{tensors} fit no module of the architecture that is known here, so neither side reads them and the "
                f"original may compute something else; the others: {rest.verdict.replace('_', ' ')}, "
                f"{rest.summary(dtype)}"
            )
        if self.verdict == "exact":
            beside = ""
            for t in self.taps:
                if t.difference.max_abs:  # true only for taps that the detector does not read
                    floors = f", {t.floors:.2g} noise floors" if t.floors else ""
                    beside += f"; {t.name}, which it does not read: {number(t.difference.max_abs)}{floors}"
            return f"0.0 at every tap that the detector reads{run}{beside}"
        if self.verdict == "within_tolerance":
            return f"max abs diff {number(self.max_abs)}{run} ({limit})"
        carried = (
            ""
            if self.first_divergence
            else ("; no layer diverges by itself: small errors add up to more than the tolerance")
        )
        return f"max abs diff {number(self.max_abs)}{run} ({limit}){carried}"

    def record(self, dtype: str = "float32") -> JudgementRecord:
        """The verdict and its taps for the JSON. ``dtype``: what both sides ran in."""
        return JudgementRecord(
            verdict=self.verdict,
            tolerance=self.tolerance,
            tolerance_is=self.tolerance_is,
            smallest_passing_tolerance=self.smallest_passing,
            max_abs_diff=self.max_abs,
            first_divergence=self.first_divergence,
            also_diverging=tuple(self.also_diverging),
            layers=tuple(t.record() for t in self.taps),
            summary=self.summary(dtype),
            not_read=self.not_read,
        )


def judge(
    reference: Mapping[str, Tensor],
    candidate: Mapping[str, Tensor],
    isolated: Mapping[str, Tensor],
    floors: Mapping[str, Floor] | None,
    padded: Tensor,
    tolerance: float | None = None,
) -> Judgement:
    """Judge two sides' activations: (batch, sequence, width), pooled (batch, width).

    ``reference``: the original's activations by tap.
    ``candidate``: the candidate's activations by tap.
    ``isolated``: the candidate's activations by tap when each module reads the reference's recorded input.
    ``floors``: noise floors by tap; None if they were not measured because nothing differs.
    ``padded``: True at padding, (batch, sequence), bool.
    ``tolerance``: the user's; None to derive it from the floors.

    Raises ValueError if taps or shapes do not match.
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
        alone, mean_alone = greatest_and_row_mean(ours, isolated[name])
        difference = absolute_difference(ours, theirs)
        valid = behind = None
        if difference.shape[:-1] == padded.shape:
            valid, behind = _greatest(difference[~padded]), _greatest(difference[padded])
        taps.append(
            JudgedTap(
                name,
                compare(ours, theirs),
                alone,
                propagated_limit,
                isolated_limit,
                floor,
                valid,
                behind,
                mean_alone,
                tolerance is None,
            )
        )
    return Judgement(tuple(taps), tolerance)


def isolated_belongs(
    reference: Mapping[str, Tensor], candidate: Mapping[str, Tensor], isolated: Mapping[str, Tensor]
) -> bool:
    """Whether the isolated activations can belong to this candidate.

    Up to the first difference, its modules read the same inputs as the reference's, so both columns must be equal.
    """
    for name, ours in reference.items():
        if not torch.equal(candidate[name], isolated[name]):
            return False
        if not torch.equal(ours, candidate[name]):
            return True
    return True


def check_tolerance(tolerance: float | None) -> None:
    """Raises CannotRun if the tolerance is negative or not finite."""
    if tolerance is not None and not 0 <= tolerance < math.inf:
        raise CannotRun("--tolerance must be a finite number from 0 on", "usage")


def require_finite(reference: Mapping[str, Tensor]) -> None:
    """Raises CannotRun if the reference holds NaN or infinity: being equal to that proves nothing."""
    for name, value in reference.items():
        if not bool(value.isfinite().all()):
            dtype = str(value.dtype).removeprefix("torch.")
            raise CannotRun(
                f"the original itself gives NaN or infinity from {name} on (in {dtype}), so nothing can be compared "
                "with it. In half precision that is an overflow: try --dtype float32. In float32 its weights hold NaN "
                "or infinity.",
                "not_finite",
                {"tap": name},
            )


def _greatest(values: Tensor) -> float | None:
    return float(values.max()) if values.numel() else None
