"""What a port of the whole detector computed, brought into the original's shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from sam3lite_convert.errors import CannotRun
from sam3lite_convert.records.parity import MisshapenTap


def arranged(
    given: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], names: Mapping[str, str]
) -> tuple[dict[str, Tensor], list[str], list[MisshapenTap]]:
    """Activations in the order of the taps and in the original's shapes, how other shapes were read, and the taps of a
    shape that cannot be read so.

    Those of half precision are made float32.

    ``shapes``: of the original's, of all taps in the order of execution.
    ``names``: by tap, what the port calls it, where that is spelled otherwise.

    Raises CannotRun for an unknown tap.
    """
    if unknown := [tap for tap in given if tap not in shapes]:
        raise CannotRun(
            f"no such tap: {', '.join(unknown)}; sam3lite record --component detector lists the taps of this detector",
            "unknown_tap",
        )
    out: dict[str, Tensor] = {}
    read: dict[str, list[str]] = {}
    misshapen = []
    for tap, wanted in shapes.items():
        if tap not in given:
            continue
        value, how = fitted(given[tap], tuple(wanted))
        if value is None:
            own = tuple(given[tap].shape)
            misshapen.append(
                MisshapenTap(name=tap, called=names.get(tap, tap), shape=own, reference_shape=tuple(wanted))
            )
            continue
        out[tap] = value if value.dtype is torch.float64 else value.float()
        if how:
            read.setdefault(how, []).append(tap)
    return out, [f"{', '.join(taps)}: {how}" for how, taps in read.items()], misshapen


def fitted(value: Tensor, wanted: tuple[int, ...]) -> tuple[Tensor | None, str]:
    """The value in the original's shape (None if it is of another), and how it was read if that is not plain.

    Read so: axes of length 1 left out or at other places, as where the sequence is first in a batch of one; rows and
    columns of a map as one axis or as two; and a map's channels last instead of first, or first instead of last. Where
    the channels are as many as the rows and the columns, a map is always read as the original's.
    """
    shape = tuple(value.shape)
    if shape == wanted:
        return value, ""
    own, theirs = _long(shape), _long(wanted)
    if own == theirs:
        return value.reshape(wanted), "read without regard to axes of length 1"
    if math.prod(shape) == math.prod(wanted) and (_joined(own, theirs) or _joined(theirs, own)):
        return value.reshape(wanted), "rows and columns were read as the original has them"
    if len(wanted) == 4 and value.dim() in (3, 4):
        whole = value if value.dim() == 4 else value[None]
        for axes, how in (
            ((0, 3, 1, 2), "read as (batch, rows, columns, channels)"),
            ((0, 2, 3, 1), "read as (batch, channels, rows, columns)"),
        ):
            if tuple(whole.permute(axes).shape) == wanted:
                return whole.permute(axes), how
    return None, ""


def _long(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes that are longer than 1."""
    return tuple(n for n in shape if n != 1)


def _joined(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether the first shape is the second with two neighbouring axes as one."""
    return (
        any(one == (*other[:n], other[n] * other[n + 1], *other[n + 2 :]) for n in range(len(other) - 1))
        and len(one) == len(other) - 1
    )
