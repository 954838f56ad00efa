"""Judge the recorded activations of two encoders. Pure functions.

The tolerance at a tap is the one the user gives, or a small multiple of the noise floor measured there.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sam3lite_convert.errors import CannotRun
from sam3lite_convert.figures import in_sentence, number, only_compared
from sam3lite_convert.parity.compare import Difference, absolute_difference, compare, greatest_and_row_mean
from sam3lite_convert.parity.taps import PROJECTED, point_of, read_at
from sam3lite_convert.records.parity import FloorRecord, JudgementRecord, MisshapenTap, TapRecord, TapStatus, Verdict

# Two correct computations are each one floor away from the exact result, and the greatest of a few thousand errors
# varies: differences up to 2 floors were seen with sdpa or in half precision.
FLOORS = 4.0
_NAMED = 4  # taps in a sentence


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

    def record(self) -> FloorRecord:
        """The floor for the JSON."""
        return FloorRecord(
            propagated=self.propagated,
            isolated=self.isolated,
            mean_propagated=self.mean_propagated,
            mean_isolated=self.mean_isolated,
        )


@dataclass(frozen=True)
class Upstream:
    """What a tap was computed from, as far as it was given.

    ``tap``: the nearest given tap that leads to it; None: the ids.
    ``unseen``: the taps between the two, which were not given.
    ``agrees``: whether ``tap`` is within its tolerances.
    """

    tap: str | None = None
    unseen: tuple[str, ...] = ()
    agrees: bool = True


@dataclass(frozen=True)
class JudgedTap:
    """A tap and its verdict.

    With measured tolerances the means are judged too: one channel of large values can set a max abs floor that hides
    errors in all other channels.

    ``name``: the tap.
    ``difference``: the propagated difference.
    ``isolated``: max abs diff when the candidate's module reads the reference's recorded input; None if not given.
    ``tolerance``: largest propagated max abs diff that passes.
    ``isolated_tolerance``: largest isolated max abs diff that passes.
    ``floor``: the noise floor; None if it was not measured.
    ``valid``: propagated max abs diff at words; None if there are none.
    ``padded``: propagated max abs diff at padding; None if there is none.
    ``mean_isolated``: greatest isolated mean abs diff of a row; None if not given.
    ``measured``: whether the tolerances come from the noise floor, not from the user.
    ``upstream``: what it was computed from.
    ``read_by_detector``: whether the detector's result depends on this tap.
    """

    name: str
    difference: Difference
    isolated: float | None
    tolerance: float
    isolated_tolerance: float
    floor: Floor | None
    valid: float | None
    padded: float | None
    mean_isolated: float | None
    measured: bool
    upstream: Upstream = Upstream()
    read_by_detector: bool = True

    @property
    def mean_isolated_tolerance(self) -> float:
        """Largest ``mean_isolated`` that passes; infinite if the user gave a tolerance."""
        return FLOORS * self.floor.mean_isolated if self.measured and self.floor else math.inf

    @property
    def mean_tolerance(self) -> float:
        """Largest propagated mean abs diff of a row that passes; infinite if the user gave a tolerance."""
        return FLOORS * self.floor.mean_propagated if self.measured and self.floor else math.inf

    @property
    def diverges(self) -> bool:
        """Whether the candidate's module is wrong by itself, with the right input.

        Without an isolated error this is known only where the module's own input was given and agrees.
        """
        if self.isolated is None or self.mean_isolated is None:
            return self.off_first and not self.upstream.unseen
        finite = math.isfinite(self.isolated)
        return (
            not finite or self.isolated > self.isolated_tolerance or self.mean_isolated > self.mean_isolated_tolerance
        )

    @property
    def off_first(self) -> bool:
        """Whether it is off and the nearest given tap before it is not. Known only without an isolated error."""
        return self.isolated is None and self.upstream.agrees and not self._passes_on_little

    @property
    def _passes_on_little(self) -> bool:
        """Whether the propagated error is within the tolerances."""
        error = self.difference
        return (
            math.isfinite(error.max_abs) and error.max_abs <= self.tolerance and error.row_mean <= self.mean_tolerance
        )

    @property
    def within(self) -> bool:
        """Whether the isolated (where given) and the propagated error are within the tolerances."""
        return not self.diverges and self._passes_on_little

    @property
    def own_tolerances(self) -> tuple[float, float]:
        """Largest max and mean abs diff that pass where its own error is judged: isolated, or else propagated."""
        if self.isolated is None:
            return self.tolerance, self.mean_tolerance
        return self.isolated_tolerance, self.mean_isolated_tolerance

    @property
    def equal(self) -> bool:
        """Whether all errors that are known are 0.0."""
        return self.difference.max_abs == 0 and not self.isolated

    @property
    def near_floor(self) -> bool:
        """Whether the error is 0.0 or within the noise floor, regardless of a given tolerance."""
        if self.equal:
            return True
        floor = self.floor
        return (
            floor is not None
            and self.difference.max_abs <= FLOORS * floor.propagated
            and ((self.isolated or 0.0) <= FLOORS * floor.isolated)
        )

    @property
    def floors(self) -> float:
        """The greatest error as a multiple of its noise floor; 0.0 if no floor was measured."""
        if self.floor is None:
            return 0.0
        f = self.floor
        pairs = [(self.difference.max_abs, f.propagated), (self.difference.row_mean, f.mean_propagated)]
        if self.isolated is not None and self.mean_isolated is not None:
            pairs += [(self.isolated, f.isolated), (self.mean_isolated, f.mean_isolated)]
        return max(error / floor if floor else math.inf if error else 0.0 for error, floor in pairs)

    @property
    def status(self) -> TapStatus:
        """The tap's result in one word, for reports."""
        if self.diverges:
            return "diverges"
        if not self.within:
            return "unknown" if self.isolated is None else "carried"
        return "equal" if self.equal else "within"

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
            judged_by="propagated" if self.isolated is None else "isolated",
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

    ``taps``: all taps that were given, in the order of execution.
    ``given``: the user's tolerance; None if it is measured.
    ``not_given``: the encoder's other taps, in the order of execution.
    ``not_read``: source keys of text tensors that no module of the reference reads.
    ``receives``: the taps without which nothing is exact: what the detector receives of the text encoder, or what it
    returns itself.
    ``misshapen``: taps that were given in a shape that cannot be read as the original's. They are among ``not_given``.
    """

    taps: tuple[JudgedTap, ...]
    given: float | None
    not_given: tuple[str, ...] = ()
    not_read: tuple[str, ...] = ()
    receives: tuple[str, ...] = (PROJECTED.name,)
    misshapen: tuple[MisshapenTap, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The verdict. ``exact``: 0.0 at every tap that the detector reads, and the others are within their floors.

        Where only some taps were given, it needs those that ``receives`` names. ``incomplete``: nothing differs,
        but the reference does not read all text tensors of the file either.
        """
        if self.misshapen or not all(t.within for t in self.taps):
            return "differs"
        return "incomplete" if self.not_read else self._of_what_was_read

    @property
    def _of_what_was_read(self) -> Verdict:
        """The verdict on taps that are all within their tolerances."""
        zero = all(t.equal for t in self.taps if t.read_by_detector)
        near = all(t.near_floor for t in self.taps if not t.read_by_detector)
        return "exact" if zero and near and not set(self.receives) & set(self.not_given) else "within_tolerance"

    @property
    def first(self) -> JudgedTap | None:
        """The first tap whose isolated error is above its tolerance; where none is given, the first that is off."""
        return next((t for t in self.taps if t.diverges or t.off_first), None)

    @property
    def first_divergence(self) -> str | None:
        """The name of ``first``."""
        return self.first.name if self.first else None

    @property
    def unseen(self) -> tuple[str, ...]:
        """Taps that were not given and may be where the first divergence was made."""
        return self.first.upstream.unseen if self.first and not self.first.diverges else ()

    @property
    def place(self) -> str | None:
        """Where the first divergence was made, in words; None if nothing diverges."""
        if self.first is None or not self.unseen:
            return self.first_divergence
        after = self.first.upstream.tap
        return f"between {after} and {self.first.name}" if after else f"at or before {self.first.name}"

    @property
    def also_diverging(self) -> list[str]:
        """Later taps that are known to be wrong by themselves too."""
        return [t.name for t in self.taps if t.diverges and t is not self.first]

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
        return max(max(t.difference.max_abs, t.isolated or 0.0) for t in self.taps)

    @property
    def tolerance_is(self) -> str:
        """Where the tolerance comes from."""
        return "given" if self.given is not None else f"measured: {FLOORS:g} noise floors at each tap"

    def summary(self, dtype: str, who: str = "both sides") -> str:
        """The verdict in one sentence. ``dtype``: what the reference ran in; ``who``: who else did."""
        run = "" if dtype == "float32" else f", {who} in {dtype}"
        limit = f"tolerance {number(self.tolerance)}, {self.tolerance_is}"
        if self.misshapen:
            others = replace(self, misshapen=())
            odd = "; ".join(t.words for t in self.misshapen)
            return f"{odd}; the other taps: {others.verdict.replace('_', ' ')}, {others.summary(dtype, who)}"
        if self.verdict == "incomplete":
            many = len(self.not_read)
            tensors = f"{many:,} tensor{'s' * (many > 1)} of the text encoder in this file"
            others = replace(self, not_read=())
            return (
                f"{tensors} fit no module of the architecture that is known here, so neither side reads them and the "
                f"original may compute something else; the others: {others.verdict.replace('_', ' ')}, "
                f"{others.summary(dtype, who)}"
            )
        extent, rest = self._extent, self._left_out
        if self.verdict == "exact":
            beside = ""
            for t in self.taps:
                if t.difference.max_abs:  # true only for taps that the detector does not read
                    floors = f", {t.floors:.2g} noise floors" if t.floors else ""
                    beside += f"; {t.name}, which it does not read: {number(t.difference.max_abs)}{floors}"
            at = f"{extent}: 0.0" if extent else "0.0 at every tap that the detector reads"
            return f"{at}{run}{beside}{rest}"
        most = f"{extent}: max abs diff" if extent else "max abs diff"
        if self.verdict == "within_tolerance":
            return f"{most} {number(self.max_abs)}{run} ({limit}){rest}"
        carried = (
            ""
            if self.first_divergence
            else ("; no layer diverges by itself: small errors add up to more than the tolerance")
        )
        return f"{most} {number(self.max_abs)}{run} ({limit}){carried}"

    @property
    def _extent(self) -> str:
        """Which taps were compared, if not all."""
        names = [t.name for t in self.taps]
        return only_compared(names, len(names) + len(self.not_given)) if self.not_given else ""

    @property
    def needed(self) -> tuple[str, ...]:
        """Those taps that were not given and without which nothing is exact."""
        return tuple(name for name in self.receives if name in self.not_given)

    @property
    def _left_out(self) -> str:
        """Which taps were not compared, those that matter most first."""
        if not self.not_given:
            return ""
        if not (missing := self.needed):
            few = len(self.not_given) <= _NAMED
            return f"; not compared: {in_sentence(self.not_given) if few else f'the other {len(self.not_given)} taps'}"
        shown, more = missing[:_NAMED], len(self.not_given) - len(missing[:_NAMED])
        what = "which the detector receives" if PROJECTED.name in missing else "which it returns"
        return f"; not compared: {in_sentence(shown)}, {what}{f', and {more} more' if more else ''}"

    def record(self, dtype: str = "float32", who: str = "both sides") -> JudgementRecord:
        """The verdict and its taps for the JSON. ``dtype``: what the reference ran in; ``who``: who else did."""
        return JudgementRecord(
            verdict=self.verdict,
            tolerance=self.tolerance,
            tolerance_is=self.tolerance_is,
            smallest_passing_tolerance=self.smallest_passing,
            max_abs_diff=self.max_abs,
            first_divergence=self.first_divergence,
            place=self.place,
            unseen=self.unseen,
            also_diverging=tuple(self.also_diverging),
            not_given=self.not_given,
            layers=tuple(t.record() for t in self.taps),
            summary=self.summary(dtype, who),
            not_read=self.not_read,
            misshapen=self.misshapen,
            needed=self.needed,
        )


def judge(
    reference: Mapping[str, Tensor],
    candidate: Mapping[str, Tensor],
    isolated: Mapping[str, Tensor],
    floors: Mapping[str, Floor] | None,
    padded: Tensor,
    tolerance: float | None = None,
    every: Sequence[str] = (),
) -> Judgement:
    """Judge two sides' activations: (batch, sequence, width), pooled (batch, width).

    ``reference``: the original's activations by tap.
    ``candidate``: the candidate's activations by tap.
    ``isolated``: the candidate's activations by tap when each module reads the reference's recorded input; taps may be
    missing.
    ``floors``: noise floors by tap; None if they were not measured because nothing differs.
    ``padded``: True at padding, (batch, sequence), bool.
    ``tolerance``: the user's; None to derive it from the floors.
    ``every``: all taps of the encoder in the order of execution, if the sides hold only some of them.

    Raises ValueError if taps or shapes do not match.
    """
    if list(reference) != list(candidate) or not isolated.keys() <= reference.keys():
        raise ValueError("the two sides were not recorded at the same taps")
    every = every or list(reference)
    taps: dict[str, JudgedTap] = {}
    for name, ours in reference.items():
        floor = None if floors is None else floors[name]
        propagated_limit = isolated_limit = tolerance if tolerance is not None else 0.0
        if tolerance is None and floor is not None:
            propagated_limit, isolated_limit = FLOORS * floor.propagated, FLOORS * floor.isolated
        theirs = candidate[name]
        alone: float | None = None
        mean_alone: float | None = None
        if name in isolated:
            alone, mean_alone = greatest_and_row_mean(ours, isolated[name])
        difference = absolute_difference(ours, theirs)
        valid = behind = None
        if difference.shape[:-1] == padded.shape:
            valid, behind = _greatest(difference[~padded]), _greatest(difference[padded])
        before, unseen = _computed_from(name, every, reference.keys())
        taps[name] = JudgedTap(
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
            Upstream(before, unseen, before is None or taps[before].within),
            point_of(name).read_by_detector,
        )
    return Judgement(tuple(taps.values()), tolerance, tuple(name for name in every if name not in reference))


def _computed_from(tap: str, every: Sequence[str], given: Collection[str]) -> tuple[str | None, tuple[str, ...]]:
    """The nearest given tap that leads to this one (None: the ids), and the taps between, which were not given."""
    unseen: list[str] = []
    while True:
        try:
            tap = read_at(tap, every)
        except ValueError:
            return None, tuple(reversed(unseen))
        if tap in given:
            return tap, tuple(reversed(unseen))
        unseen.append(tap)


def isolated_belongs(
    reference: Mapping[str, Tensor], candidate: Mapping[str, Tensor], isolated: Mapping[str, Tensor]
) -> bool:
    """Whether the isolated activations, which may lack taps, can belong to this candidate.

    Up to the first difference, its modules read the same inputs as the reference's, so both columns must be equal.
    """
    for name, ours in reference.items():
        if name in isolated and not torch.equal(candidate[name], isolated[name]):
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
