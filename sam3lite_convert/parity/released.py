"""Compares the reference with what the original code computed on the released weights.

Nobody could run this reference on released weights here: the record is a public port's. Whoever has a released file
settles with one run whether the reference computes what the original does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources

import torch
from torch import Tensor

from original_ref import TextStudentEncoder
from sam3lite_convert.figures import number
from sam3lite_convert.parity.compact import positions
from sam3lite_convert.parity.judgement import FLOORS
from sam3lite_convert.parity.noise_floor import in_float64
from sam3lite_convert.parity.original import wrap_reference
from sam3lite_convert.parity.taps import PROJECTED
from sam3lite_convert.plan.architecture import Architecture
from sam3lite_convert.records.fingerprint import ReleasedCheck, ReleasedTap

_RECORD = "released_activations.json"
_VARIANTS = {"MobileCLIP-S0": "s0", "MobileCLIP-S1": "s1", "MobileCLIP2-L": "l"}
_AT_END = "projected_at_end_token"
_ROWS = (16, 77)  # of the position tables of released files that are called with 16
REQUEST = (
    "Please tell the project what this line says, whichever way it went: no released file could be run where this tool "
    "was made."
)


@dataclass(frozen=True)
class RecordedTap:
    """What was recorded at one tap: norm, greatest absolute value, and 64 values."""

    shape: tuple[int, ...]
    l2: float
    max_abs: float
    values: tuple[float, ...]


@dataclass(frozen=True)
class Recorded:
    """One released model: its file, the ids (sequence,) that it was run on, and its taps."""

    variant: str
    file: str
    ids: tuple[int, ...]
    taps: dict[str, RecordedTap]
    by: str


@cache
def recorded() -> dict[str, Recorded]:
    """The record, by variant."""
    data = json.loads(resources.files(__package__).joinpath(_RECORD).read_text(encoding="utf-8"))
    source = data["source"]
    by = f"{source['repository']} at commit {source['commit'][:12]} ({source['license']})"
    return {
        name: Recorded(
            name,
            entry["file"],
            tuple(entry["ids"]),
            {
                tap: RecordedTap(tuple(t["shape"]), t["l2"], t["max_abs"], tuple(t["values"]))
                for tap, t in entry["taps"].items()
            },
            by,
        )
        for name, entry in data["variants"].items()
    }


def could_be_released(architecture: Architecture, rows: int) -> Recorded | None:
    """The released model that a file could be, by its variant, its rows and the context that its meta or its name
    states; None if it can't be one.

    ``rows``: of its position table.
    """
    found = recorded().get(_VARIANTS.get(architecture.variant, ""))
    if found is None or rows not in _ROWS or architecture.causal_masking:
        return None
    stated = architecture.context.stated if architecture.context else None
    if stated not in (None, len(found.ids)):
        return None
    return found if architecture.sizes["vocab"] > max(found.ids) else None


def check_released(model: TextStudentEncoder, found: Recorded) -> ReleasedCheck:
    """Run the recorded ids on the reference and compare.

    ``model``: the reference in float32.
    """
    ids = torch.tensor([found.ids])
    reference = wrap_reference(model)
    with _cut(model, len(found.ids)):
        ours = _as_recorded(reference.record(ids), ids)
        with in_float64(model):
            exact = _as_recorded(reference.record(ids), ids)
    taps = []
    for name, stated in found.taps.items():
        value = ours[name]
        floor = float((value.double() - exact[name]).abs().max())
        # The recorded run rounded as well, on another machine.
        tolerance = FLOORS * max(floor, stated.max_abs * 2.0**-24)
        where = list(positions(name, value.numel(), found.variant))
        flat = value.reshape(-1).double()
        error = float((flat[where] - torch.tensor(stated.values, dtype=torch.float64)).abs().max())
        norm = abs(float(flat.norm()) - stated.l2)
        greatest = abs(float(flat.abs().max()) - stated.max_abs)
        agrees = tuple(value.shape) == stated.shape and max(error, greatest) <= tolerance
        agrees = agrees and norm <= tolerance * value.numel() ** 0.5
        taps.append(ReleasedTap(name=name, max_abs_diff=error, l2_diff=norm, tolerance=tolerance, agrees=agrees))
    first = next((t for t in taps if not t.agrees), None)
    return ReleasedCheck(
        variant=found.variant,
        file=found.file,
        recorded_by=found.by,
        agrees=first is None,
        first_off=first.name if first else None,
        taps=tuple(taps),
        summary=_summary(found, first),
        request=REQUEST,
    )


def _summary(found: Recorded, first: ReleasedTap | None) -> str:
    of = f"what {found.by} recorded of the released {found.file}"
    if first is None:
        return f"the reference on this file agrees with {of}, at all {len(found.taps)} taps"
    return (
        f"the reference on this file does not agree with {of}, from {first.name} on (max abs diff "
        f"{number(first.max_abs_diff)}, tolerance {number(first.tolerance)}): this is another training, or the "
        "reference is wrong"
    )


def _as_recorded(activations: dict[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
    """Activations by the record's names, without the batch dimension."""
    out = {name: value[0] for name, value in activations.items()}
    return {**out, _AT_END: out[PROJECTED.name][int(ids.argmax())]}


@contextmanager
def _cut(model: TextStudentEncoder, rows: int) -> Iterator[None]:
    """The model with the first rows of its position table, as the original was called for the record."""
    embedding = model.encoder.positional_embedding
    if embedding is None:
        raise ValueError("the model has no position table")
    table = embedding.pos_embed.pos_embed
    try:
        embedding.pos_embed.pos_embed = torch.nn.Parameter(table[:, :, :rows].clone(), requires_grad=False)
        yield
    finally:
        embedding.pos_embed.pos_embed = table
