"""Reads the bytes of tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from sam3lite_convert.checkpoint import dtypes
from sam3lite_convert.checkpoint.index import StoredTensor
from sam3lite_convert.errors import UnsoundPlan, Untrusted

CHUNK = 4 << 20
_MOST_EXPANDED = 16 << 20  # elements


def read_exactly(file: BinaryIO, offset: int, nbytes: int) -> bytes:
    """``nbytes`` bytes at ``offset``; zeros for an offset below zero, which is that of a tensor that the file lacks.

    Raises Untrusted if the file is shorter.
    """
    if offset < 0:
        return bytes(nbytes)
    file.seek(offset)
    data = file.read(nbytes)
    if len(data) != nbytes:
        raise Untrusted(f"{file.name}: the file became shorter while it was read", "truncated_file")
    return data


def ranges(offset: int, nbytes: int, step: int = CHUNK) -> Iterator[tuple[int, int]]:
    """The range cut into pieces of at most ``step`` bytes: (offset, length)."""
    for start in range(offset, offset + nbytes, step):
        yield start, min(step, offset + nbytes - start)


def read_tensor(file: BinaryIO, tensor: StoredTensor) -> bytes:
    """All bytes of a tensor in C order, whatever its stride.

    Raises UnsoundPlan for an expanded tensor of many elements: a file of a few bytes may state any number of them.
    """
    if tensor.parts:
        return b"".join(read_tensor(file, part) for part in tensor.parts)
    if tensor.overlaps and tensor.numel > _MOST_EXPANDED:
        raise UnsoundPlan(f"{tensor.key} is an overlapping view; save it again after .contiguous()", "overlapping_view")
    width = dtypes.itemsize(tensor.dtype)
    raw = read_exactly(file, tensor.offset, tensor.span * width)
    if tensor.contiguous:
        return raw
    import numpy as np

    steps = tuple(s * width for s in tensor.stride)
    flat = np.frombuffer(raw, dtype=f"V{width}")
    return np.lib.stride_tricks.as_strided(flat, tensor.shape, steps).tobytes()
