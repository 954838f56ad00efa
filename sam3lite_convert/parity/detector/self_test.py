"""Tries the comparison on itself: known faults are made in the original, and must be seen at their tap and named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from original_ref import Detector
from sam3lite_convert.parity.compare import greatest_and_row_mean_large
from sam3lite_convert.parity.detector.diagnosis import fits_among, value_at
from sam3lite_convert.parity.detector.faults.changes import DetectorFault
from sam3lite_convert.parity.detector.faults.known import faults_for
from sam3lite_convert.parity.detector.models import DetectorSide
from sam3lite_convert.parity.detector.run import DetectorRun
from sam3lite_convert.parity.detector.store import TapStore
from sam3lite_convert.parity.detector.taps import row_name
from sam3lite_convert.parity.judgement import FLOORS, Floor
from sam3lite_convert.progress import bar
from sam3lite_convert.records.parity import TrialOutcome, TrialRecord


@dataclass(frozen=True)
class DetectorTrial:
    """One fault made on purpose at a tap. ``cause``: what the diagnosis said."""

    fault: DetectorFault
    tap: str
    outcome: TrialOutcome
    cause: str | None = None

    def record(self) -> TrialRecord:
        """The trial for the JSON."""
        seen = None if self.outcome == "not revealed" else self.tap
        return TrialRecord(
            fault=self.fault.words, made_in=self.tap, outcome=self.outcome, first_divergence=seen, cause=self.cause
        )


def try_faults(
    run: DetectorRun, store: TapStore, side: DetectorSide, floors: Mapping[str, Floor]
) -> Iterator[DetectorTrial]:
    """Make every known fault in the loaded reference, one at a time, in the last layer of its row.

    ``store``: the reference's recorded activations; ``floors``: noise floors by tap. A fault is found if it moves its
    tap by more than the tolerance, and the diagnosis names it as a likely cause. It is "not revealed" if it moves its
    tap by no more than that for these inputs.
    """
    assert isinstance(side.model, Detector)
    last = {row_name(tap): tap for tap in run.taps if tap in store}
    faults = {
        tap: list(faults_for(row, side.model, run.taps[tap].layer))
        for row, tap in sorted(last.items(), key=lambda each: list(run.taps).index(each[1]), reverse=True)
    }
    with bar("making faults", sum(map(len, faults.values()))) as advance:
        for tap, of_tap in faults.items():
            made: dict[DetectorFault, Tensor | None] = {}
            for fault in of_tap:
                with fault.change(side.model, run.taps[tap].layer):
                    made[fault] = value_at(run, store, side, tap)
                advance(stage=tap)
            given = floors.get(tap, Floor(0.0, 0.0, 0.0, 0.0))
            yield from _trials(run, store, tap, made, (FLOORS * given.isolated, FLOORS * given.mean_isolated))


def _trials(
    run: DetectorRun,
    store: TapStore,
    tap: str,
    made: Mapping[DetectorFault, Tensor | None],
    limits: tuple[float, float],
) -> Iterator[DetectorTrial]:
    """What the comparison says of faults of one tap. ``made``: what each gives there. ``limits``: the largest max abs
    diff, and mean abs diff of a row, that pass."""
    for fault, theirs in made.items():
        pair = run.comparable(tap, store.read(tap), theirs) if theirs is not None else None
        if theirs is None or pair is None or greatest_and_row_mean_large(*pair)[0] <= limits[0]:
            yield DetectorTrial(fault, tap, "not revealed")
            continue
        fits = fits_among(made.items(), run, store, tap, theirs, *limits)
        named = any(fit.key == fault.key and fit.likely for fit in fits)
        yield DetectorTrial(fault, tap, "found" if named else "missed", fits[0].words if fits else None)
