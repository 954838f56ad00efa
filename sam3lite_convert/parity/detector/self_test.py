"""Tries the comparison on itself: known faults are made in the original, and must be found where they were made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from original_ref import Detector
from sam3lite_convert.parity.compare import greatest_and_row_mean_large
from sam3lite_convert.parity.detector.diagnosis import fits_at, value_at
from sam3lite_convert.parity.detector.faults.changes import DetectorFault
from sam3lite_convert.parity.detector.faults.known import faults_for
from sam3lite_convert.parity.detector.models import DetectorSide
from sam3lite_convert.parity.detector.recording import reading
from sam3lite_convert.parity.detector.run import DetectorRun
from sam3lite_convert.parity.detector.store import TapStore
from sam3lite_convert.parity.detector.taps import row_name
from sam3lite_convert.parity.judgement import FLOORS, Floor
from sam3lite_convert.records.parity import TrialOutcome, TrialRecord


@dataclass(frozen=True)
class DetectorTrial:
    """One fault made on purpose. ``first``: the first tap that it moved; ``cause``: what the diagnosis said."""

    fault: DetectorFault
    tap: str
    outcome: TrialOutcome
    first: str | None = None
    cause: str | None = None

    def record(self) -> TrialRecord:
        """The trial for the JSON."""
        return TrialRecord(
            fault=self.fault.words,
            made_in=self.tap,
            outcome=self.outcome,
            first_divergence=self.first,
            cause=self.cause,
        )


def try_faults(
    run: DetectorRun, store: TapStore, side: DetectorSide, floors: dict[str, Floor]
) -> Iterator[DetectorTrial]:
    """Make every known fault, one at a time and in one layer of each row, in the loaded reference.

    ``store``: its recorded activations; ``floors``: noise floors by tap. A fault is found if the first tap that it
    moves by more than the tolerance is its own, and it is the closest cause that the diagnosis names. It is "not
    revealed" if it moves its tap by no more than the tolerance for these inputs.
    """
    assert isinstance(side.model, Detector)
    tried: set[str] = set()
    for name, tap in reversed(run.taps.items()):  # the last layer of a row, where every kind of layer was before
        row = row_name(name)
        for fault in faults_for(row, side.model, tap.layer):
            if fault.key + row in tried or name not in store:
                continue
            tried.add(fault.key + row)
            yield _trial(run, store, side, floors, fault, name)


def _trial(
    run: DetectorRun, store: TapStore, side: DetectorSide, floors: dict[str, Floor], fault: DetectorFault, tap: str
) -> DetectorTrial:
    layer = run.taps[tap].layer
    assert isinstance(side.model, Detector)
    floor = floors.get(tap, Floor(0.0, 0.0))
    limits = FLOORS * floor.isolated, FLOORS * floor.mean_isolated
    with fault.change(side.model, layer):
        theirs = value_at(run, store, side, tap)
        first = _first_moved(run, store, side, floors, tap) if theirs is not None else None
    pair = run.comparable(tap, store.read(tap), theirs) if theirs is not None else None
    if theirs is None or pair is None or greatest_and_row_mean_large(*pair)[0] <= limits[0]:
        return DetectorTrial(fault, tap, "not revealed")
    fits = fits_at(run, store, side, tap, theirs, *limits)
    named = bool(fits) and any(fit.key == fault.key and fit.likely for fit in fits)
    outcome: TrialOutcome = "found" if named and first == tap else "missed"
    return DetectorTrial(fault, tap, outcome, first, fits[0].words if fits else None)


def _first_moved(
    run: DetectorRun, store: TapStore, side: DetectorSide, floors: dict[str, Floor], upto: str
) -> str | None:
    """The first tap, up to one, whose isolated error is above its tolerance."""
    moved: list[str] = []

    def read(name: str, value: Tensor) -> Tensor | None:
        if name in store and not moved:
            pair = run.comparable(name, store.read(name), value.detach().cpu())
            error = greatest_and_row_mean_large(*pair)[0] if pair else 0.0
            if error > FLOORS * floors.get(name, Floor(0.0, 0.0)).isolated:
                moved.append(name)
        return run.recorded_like(name, value, store)

    try:
        with torch.inference_mode(), reading(side.model, run.taps, side.side, read):
            outputs = side.run(run.call, torch.float32)
    except (RuntimeError, ValueError, IndexError):
        return moved[0] if moved else None
    for name, value in outputs.items():
        read(f"outputs.{name}", value)
    return moved[0] if moved else None
