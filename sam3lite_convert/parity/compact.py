"""An activation in a few numbers: its norm, its greatest value, and 64 values at positions that its name fixes.

Small enough to travel, and enough to tell whether another computation gives the same. The positions follow from the
name alone, so that whoever has the whole tensor can look up the same 64 values without being told where they are.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sam3lite_convert.records.record import Record

COUNT = 64  # values of each tap
POSITIONS = "numpy.random.Generator(numpy.random.PCG64(zlib.crc32(b'VARIANT.TAP'))).integers(0, numel, 64), flattened"


@dataclass(frozen=True, kw_only=True)
class CompactTap(Record):
    """One activation in a few numbers.

    shape: of the whole tensor.
    l2: its Euclidean norm, summed in float64.
    max_abs: its largest absolute value.
    positions: in the flattened tensor, the last dimension running fastest; a position may occur twice.
    values: the values there, in the order of ``positions``.
    """

    shape: tuple[int, ...]
    l2: float
    max_abs: float
    positions: tuple[int, ...]
    values: tuple[float, ...]


def positions(tap_name: str, numel: int, seed_name: str, count: int = COUNT) -> tuple[int, ...]:
    """The positions at a tap: they depend on both names and on the number of values, and on nothing else.

    ``seed_name``: the model's name, such as "s0".
    ``count``: how many.

    Raises ValueError if ``numel`` is not above 0.
    """
    draw = np.random.Generator(np.random.PCG64(zlib.crc32(f"{seed_name}.{tap_name}".encode())))
    return tuple(int(n) for n in draw.integers(0, numel, count))


def compact(tap_name: str, tensor: Tensor, seed_name: str) -> CompactTap:
    """A tap's activation, of any shape and floating-point dtype, in a few numbers. NaN and infinity stay what they are.

    ``seed_name``: as in ``positions``.

    Raises ValueError if the tensor is empty.
    """
    flat = tensor.detach().reshape(-1).double()
    where = positions(tap_name, flat.numel(), seed_name)
    return CompactTap(
        shape=tuple(tensor.shape),
        l2=float(flat.square().sum().sqrt()),
        max_abs=float(flat.abs().max()),
        positions=where,
        values=tuple(float(flat[n]) for n in where),
    )
