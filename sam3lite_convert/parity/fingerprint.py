"""A fingerprint: what the original computes with a checkpoint's weights on three prompts, in a few kB.

It is computed in float64, so that the same checkpoint gives the same numbers on every machine, and carries how far a
correct float32 computation may be from them. Nothing of the checkpoint is needed to compare a port with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from original_ref import TextReference
from sam3lite_convert.convert.clip_ids import framing_ids
from sam3lite_convert.parity.compact import positions
from sam3lite_convert.parity.inputs import framed
from sam3lite_convert.parity.judgement import FLOORS, require_finite
from sam3lite_convert.parity.noise_floor import in_float64
from sam3lite_convert.parity.original import wrap_reference
from sam3lite_convert.plan.architecture import Architecture
from sam3lite_convert.records.fingerprint import (
    Fingerprint,
    FingerprintCheck,
    FingerprintSource,
    FingerprintTap,
)
from sam3lite_convert.records.record import JsonValue

ROWS = ("one word", "as many words as fit", "a few words, then padding")
ABOUT = (
    "Run `ids` through your text encoder in float32, without an attention mask. At each tap, flatten the activation "
    "(batch, sequence, width) and compare the values at `positions` of its shape with `values`, and its norm with "
    "`l2`. The first tap that is further off than `tolerance` x `floor` is where your port goes wrong."
)
_WORDS = (320, 2533, 6765, 320, 3701)  # "a person riding a bike", the prompt that the released weights were recorded on
_SEED = "fingerprint"
_DIGITS = 9


def fingerprint_ids(context: int, vocab: int) -> Tensor:
    """The ids of a fingerprint: (3, context), int64; one word, as many as fit, a few words and padding."""
    start, end = framing_ids(vocab)
    words = [w if w < start else 1 + w % max(start - 1, 1) for w in _WORDS]
    full = [words[n % len(words)] for n in range(max(context - 2, 0))]
    # The full row counts upwards, so that no two of its positions hold the same token.
    full = [1 + (w + n) % max(start - 1, 1) for n, w in enumerate(full)]
    return torch.tensor([framed(row, context, start, end) for row in (words[1:2], full, words)])


def make_fingerprint(
    model: TextReference,
    architecture: Architecture,
    source: FingerprintSource,
    ids: Tensor,
    rows: Tensor,
    not_read: tuple[str, ...] = (),
) -> Fingerprint:
    """The fingerprint of a loaded reference.

    ``model``: the reference in float32, cut to its context; its token embedding may hold some of the rows alone.
    ``ids``: as ``fingerprint_ids`` gives them.
    ``rows``: the row of the model's token embedding for each of the ids, in the same order of size.

    Raises CannotRun if the reference computes NaN or infinity.
    """
    reference = wrap_reference(model)
    rounded = reference.record(rows)
    require_finite(rounded)
    with in_float64(model):
        exact = reference.record(rows)
    where: dict[str, tuple[int, ...]] = {}
    taps = []
    for name, value in exact.items():
        shape = "x".join(map(str, value.shape))
        chosen = where.setdefault(shape, tuple(sorted(positions(shape, value.numel(), _SEED))))
        flat, error = value.reshape(-1), (value - rounded[name].double()).abs()
        taps.append(
            FingerprintTap(
                name=name,
                shape=tuple(value.shape),
                l2=_digits(float(flat.norm())),
                max_abs=_digits(float(flat.abs().max())),
                values=tuple(_digits(float(flat[n])) for n in chosen),
                floor=_floor(float(error.max()), float(flat.abs().max())),
                floor_l2=_floor(float(error.norm()), float(flat.norm())),
            )
        )
    return Fingerprint(
        about=ABOUT,
        source=source,
        architecture=replace(architecture.record(), detector=None),
        rows=ROWS,
        ids=tuple(tuple(row) for row in ids.tolist()),
        tolerance=FLOORS,
        positions=where,
        taps=tuple(taps),
        not_read=not_read,
    )


def in_lines(fingerprint: Fingerprint) -> bytes:
    """The file: JSON with a line for each field and each tap, so that two of them can be compared by eye."""
    lines = []
    for name, value in fingerprint.to_json().items():
        if isinstance(value, list) and name in ("ids", "taps"):
            rows = ",\n  ".join(_compact(row) for row in value)
            lines.append(f'"{name}": [\n  {rows}\n ]')
        else:
            lines.append(f'"{name}": {_compact(value)}')
    return ("{\n " + ",\n ".join(lines) + "\n}\n").encode()


def _compact(value: JsonValue) -> str:
    return json.dumps(value, separators=(",", ":"))


def check_tap(fingerprint: Fingerprint, tap: FingerprintTap, value: np.ndarray) -> FingerprintCheck:
    """A port's activation at one tap. Only the values at the positions, the norm and the greatest value are compared.

    ``value``: (batch, sequence, width) or (batch, width), floating-point.
    """
    flat = value.astype(np.float64).reshape(-1)
    tolerance, norm_tolerance = fingerprint.tolerance * tap.floor, fingerprint.tolerance * tap.floor_l2
    norm = float(np.linalg.norm(flat))
    off = worst = None
    if value.shape != tap.shape:
        off = f"its shape is {tuple(value.shape)}, the original's {tap.shape}"
    else:
        where = fingerprint.positions["x".join(map(str, tap.shape))]
        differences = np.abs(flat[list(where)] - np.array(tap.values))
        worst = float(differences.max()) if np.isfinite(differences).all() else math.inf
        greatest = float(np.abs(flat).max())
        if not np.isfinite(flat).all():
            off = "it holds NaN or infinity"
        elif worst > tolerance:
            off = f"{int((differences > tolerance).sum())} of {len(where)} values are off"
        elif abs(greatest - tap.max_abs) > tolerance:
            off = f"its greatest absolute value is {greatest:.6g}, the original's {tap.max_abs:.6g}"
        elif abs(norm - tap.l2) > norm_tolerance:
            off = f"its norm is {norm:.9g}, the original's {tap.l2:.9g}"
    return FingerprintCheck(
        name=tap.name,
        shape=tuple(value.shape),
        max_abs_diff=worst,
        l2=norm,
        l2_diff=abs(norm - tap.l2),
        tolerance=tolerance,
        l2_tolerance=norm_tolerance,
        agrees=off is None,
        why=off,
    )


def first_difference(stated: Fingerprint, made: Fingerprint) -> str | None:
    """In what a fingerprint differs from the one that was made of the same checkpoint, in words; None if in nothing.

    Values are compared with the tolerance, since another machine may round the last digit in another direction.
    """
    for name in ("ids", "positions", "tolerance", "architecture", "not_read"):
        if getattr(stated, name) != getattr(made, name):
            return f"{name!r} in it is not what this checkpoint gives"
    if [(t.name, t.shape) for t in stated.taps] != [(t.name, t.shape) for t in made.taps]:
        return "its taps are not those of this checkpoint"
    for ours, theirs in zip(made.taps, stated.taps, strict=True):
        if len(theirs.values) != len(ours.values):
            return f"it has {len(theirs.values)} values at {ours.name}, not {len(ours.values)}"
        limit, norm_limit = ours.floor, ours.floor_l2
        errors = [abs(a - b) for a, b in zip(ours.values, theirs.values, strict=True)]
        errors += [abs(ours.max_abs - theirs.max_abs)]
        if not all(e <= limit for e in errors) or not abs(ours.l2 - theirs.l2) <= norm_limit:
            return f"from {ours.name} on it is not what the original computes with this checkpoint"
        if not (
            ours.floor / 4 <= theirs.floor <= ours.floor * 4
            and ours.floor_l2 / 4 <= theirs.floor_l2 <= ours.floor_l2 * 4
        ):
            return f"its floor at {ours.name} is {theirs.floor:g}; measured here: {ours.floor:g}"
    return None


def by_tap(fingerprint: Fingerprint, activations: Mapping[str, np.ndarray]) -> tuple[FingerprintCheck, ...]:
    """A port's activations at the taps of the fingerprint that it has, in the order of execution."""
    return tuple(
        check_tap(fingerprint, tap, activations[tap.name]) for tap in fingerprint.taps if tap.name in activations
    )


def _digits(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _floor(error: float, size: float) -> float:
    """An error as a power of two, so that machines that round a little differently write the same; never below what
    the digits of a fingerprint leave open. ``size``: of the values."""
    least = max(error, size * 2.0**-26)
    return 2.0 ** math.ceil(math.log2(least)) if least else 0.0
