"""Why a tap of the detector diverges: known faults are made in the reference, and what they give is compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from original_ref import Detector
from sam3lite_convert.parity.compare import greatest_and_row_mean_large
from sam3lite_convert.parity.detector.models import DetectorSide
from sam3lite_convert.parity.detector.recording import reading
from sam3lite_convert.parity.detector.run import DetectorOutcome, DetectorRun
from sam3lite_convert.parity.detector.taps import Tap
from sam3lite_convert.parity.faults.hypotheses import Fit, ranked

_NEAR = 1e-3  # of the divergence: a fault that leaves no more than this of it explains it

# (key, words, what makes the fault in the reference and takes it back) of every fault that may show at a tap.
Faults = Callable[[Tap, Detector], Iterable[tuple[str, str, AbstractContextManager[None]]]]


class _Reached(Exception):
    """The tap was read; the rest of the pass is not needed."""


def explain(run: DetectorRun, outcome: DetectorOutcome, side: DetectorSide, faults: Faults) -> list[Fit]:
    """Faults that explain the first divergence, the closest first.

    ``side``: the loaded reference. Each fault is made in it while its modules read the recorded activations, so that
    only what lies between the tap and those before it is computed.
    """
    found = outcome.judgement.first
    if found is None or found.name not in outcome.isolated:
        return []
    assert isinstance(side.model, Detector)
    theirs = outcome.isolated.read(found.name)
    greatest, mean = found.own_tolerances
    near = _NEAR * (found.isolated or 0.0)
    fits = []
    for key, words, made in faults(outcome.taps[found.name], side.model):
        with made:
            value = _value_at(run, outcome, side, found.name)
        pair = run.comparable(found.name, value, theirs)
        if pair is None:
            continue
        error, row_mean = greatest_and_row_mean_large(*pair)
        # A fault may make rounding larger, so what it leaves is also held against the divergence itself.
        if (error <= greatest and row_mean <= mean) or (math.isfinite(error) and error <= near):
            fits.append(Fit(key, words, error))
    return ranked(fits, greatest)


def _value_at(run: DetectorRun, outcome: DetectorOutcome, side: DetectorSide, tap: str) -> Tensor | None:
    """The reference's activation at a tap if its modules read the recorded ones; None if it is not reached."""
    seen: list[Tensor] = []
    store = outcome.store

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
