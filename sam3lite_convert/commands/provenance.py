"""What an HTML report shows beside a command's record: tensor counts, receipt, versions, heat map."""

from __future__ import annotations

import datetime
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from sam3lite_convert.convert.folder import Folder
from sam3lite_convert.plan.counts import components
from sam3lite_convert.plan.plan import Plan

if TYPE_CHECKING:
    from sam3lite_convert.parity.run import Outcome
    from sam3lite_convert.parity.setup import Setup

Record = dict[str, Any]
_PACKAGES = ("sam3lite-convert", "torch", "transformers", "safetensors", "huggingface_hub", "numpy")
_PER_TENSOR = ("tensors", "dropped")  # of a receipt: a line for each of more than a thousand keys
_COLUMNS = 64  # of a heat map: a channel each, or the greatest of a few side by side


def provenance(plan: Plan | None, folder: Folder | None, command: str) -> Record:
    """The origin of a report's figures: counts, receipt, package versions, command line and date."""
    receipt = (folder.receipt if folder else None) or None
    return {
        "accounting": _accounting(plan) if plan else None,
        "receipt": {k: v for k, v in receipt.items() if k not in _PER_TENSOR} if receipt else None,
        "versions": _versions(),
        "command": command,
        "made": datetime.date.today().isoformat(),
    }


def _accounting(plan: Plan) -> Record:
    return {
        "counts": plan.counts,
        "components": {k: c.record() for k, c in components(plan.checkpoint, plan.names, plan).items()},
        "dropped": {d.label: d.reason for d in plan.dropped.values()},
    }


def _versions() -> Record:
    found: Record = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def heat_map(setup: Setup, outcome: Outcome) -> Record | None:
    """Max abs diff by position and channel of one tap, for the worst row; None if the verdict is exact.

    The tap is the first that diverges; without one, the tap with the largest difference.
    """
    from sam3lite_convert.parity.compare import absolute_difference, number
    from sam3lite_convert.parity.encoders import POOLED

    judgement = outcome.judgement
    if judgement.verdict == "exact":  # then at most the pooled output's last bits differ
        return None
    tap = judgement.first_divergence
    # For the first diverging tap: the candidate's layer on the reference's input.
    candidate = outcome.isolated if tap else outcome.propagated
    if tap is None:
        wide = [t for t in judgement.taps if t.name != POOLED and t.difference.max_abs] or list(judgement.taps)
        tap = max(wide, key=lambda t: t.difference.max_abs).name
    difference = absolute_difference(setup.recorded[tap], candidate[tap])
    row = int(difference.flatten(1).amax(1).argmax())
    picture = difference[row].reshape(-1, difference.shape[-1])
    step = -(-picture.shape[1] // _COLUMNS)
    values = [[number(float(piece.max())) for piece in line.split(step)] for line in picture]
    prompts = setup.inputs.prompts
    return {
        "tap": tap,
        "isolated": tap == judgement.first_divergence,
        "prompt": prompts[row] if prompts else None,
        "row": row,
        "positions": picture.shape[0],
        "channels": picture.shape[1],
        "channels_per_column": step,
        "values": values,
    }
