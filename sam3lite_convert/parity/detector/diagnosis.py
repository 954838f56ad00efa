"""Why a tap of the detector diverges: known faults are made in the reference, and what they give is compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from original_ref import Detector
from sam3lite_convert.parity.compare import greatest_and_row_mean_large
from sam3lite_convert.parity.detector.faults.changes import DetectorFault
from sam3lite_convert.parity.detector.faults.known import faults_for
from sam3lite_convert.parity.detector.models import DetectorSide
from sam3lite_convert.parity.detector.recording import reading
from sam3lite_convert.parity.detector.run import DetectorOutcome, DetectorRun
from sam3lite_convert.parity.detector.store import TapStore
from sam3lite_convert.parity.detector.taps import row_name
from sam3lite_convert.parity.faults.evidence import Evidence
from sam3lite_convert.parity.faults.hypotheses import Fit, ranked
from sam3lite_convert.parity.faults.hypotheses import explain as explain_text
from sam3lite_convert.parity.judgement import JudgedTap
from sam3lite_convert.progress import bar

_TEXT = "text."
_NEAR = 1e-3  # of the divergence: a fault that leaves no more than this of it explains it


class _Reached(Exception):
    """The tap was read; the rest of the pass is not needed."""


def explain(run: DetectorRun, outcome: DetectorOutcome, side: DetectorSide) -> list[Fit]:
    """Faults that explain the first divergence, the closest first. ``side``: the loaded reference.

    Where no isolated activation is known, what was carried to the tap is the evidence: what it reads agrees.
    """
    found = outcome.judgement.first
    if found is None or found.name not in outcome.isolated:
        return []
    theirs = outcome.isolated.read(found.name)
    if found.name.startswith(_TEXT):
        return _of_the_text_encoder(run, outcome, side, found, theirs)
    return fits_at(run, outcome.store, side, found.name, theirs, *found.own_tolerances)


def _of_the_text_encoder(
    run: DetectorRun, outcome: DetectorOutcome, side: DetectorSide, found: JudgedTap, theirs: Tensor
) -> list[Fit]:
    """The causes that are known of the text encoder alone, at a tap of it."""
    assert isinstance(side.model, Detector)
    names = [name for name in outcome.store.taps if name.startswith(_TEXT)]
    recorded = {name.removeprefix(_TEXT): outcome.store.read(name) for name in names}
    evidence = Evidence(side.model.backbone.language_backbone, recorded, run.call.input_ids)
    tap, carried = found.name.removeprefix(_TEXT), found.isolated is None
    return explain_text(evidence, tap, theirs, *found.own_tolerances, propagated=carried)


def fits_at(
    run: DetectorRun, store: TapStore, side: DetectorSide, tap: str, theirs: Tensor, greatest: float, mean: float
) -> list[Fit]:
    """Known faults that give ``theirs`` at a tap, the closest first.

    ``store``: the original's recorded activations. Each fault is made in the loaded reference while its modules read
    these, so that only what lies between the tap and those before it is computed.
    ``greatest``, ``mean``: the largest max abs diff, and mean abs diff of a row, to a fault that fits.
    """

    def made() -> Iterator[tuple[DetectorFault, Tensor | None]]:
        assert isinstance(side.model, Detector)
        layer = run.taps[tap].layer
        faults = list(faults_for(row_name(tap), side.model, layer))
        with bar(f"trying known faults of {tap}", len(faults)) as advance:
            for fault in faults:
                with fault.change(side.model, layer):
                    value = value_at(run, store, side, tap)
                yield fault, value
                advance()

    return fits_among(made(), run, store, tap, theirs, greatest, mean)


def fits_among(
    made: Iterable[tuple[DetectorFault, Tensor | None]],
    run: DetectorRun,
    store: TapStore,
    tap: str,
    theirs: Tensor,
    greatest: float,
    mean: float,
) -> list[Fit]:
    """Those of these faults that give ``theirs``, the closest first. ``made``: what each gives at the tap; the other
    arguments are those of ``fits_at``."""
    pair = run.comparable(tap, store.read(tap), theirs)
    off = greatest_and_row_mean_large(*pair)[0] if pair else 0.0
    near = _NEAR * off if math.isfinite(off) else 0.0
    fits = []
    for fault, value in made:
        pair = run.comparable(tap, value, theirs)
        if pair is None:
            continue
        error, row_mean = greatest_and_row_mean_large(*pair)
        # A fault may make rounding larger, so what it leaves is also held against the divergence itself.
        if (error <= greatest and row_mean <= mean) or error <= near:
            fits.append(Fit(fault.key, fault.words, error))
    return ranked(fits, greatest)


def value_at(run: DetectorRun, store: TapStore, side: DetectorSide, tap: str) -> Tensor | None:
    """The reference's activation at a tap if its modules read the recorded ones; None if it is not reached."""
    seen: list[Tensor] = []

    def read(name: str, value: Tensor) -> Tensor | None:
        if name == tap:
            seen.append(value.detach().cpu())
            raise _Reached
        return run.recorded_like(name, value, store)

    if tap.startswith("outputs."):
        with torch.inference_mode(), reading(side.model, run.taps, side.side, read):
            return side.run(run.call, torch.float32)[tap.removeprefix("outputs.")].detach().cpu()
    try:
        with torch.inference_mode(), run.skipping(side, [tap], store), reading(side.model, run.taps, side.side, read):
            side.run(run.call, torch.float32)
    except _Reached:
        return seen[0]
    except (RuntimeError, ValueError, IndexError):
        return None  # with this fault the sizes of this input do not fit
    return None
