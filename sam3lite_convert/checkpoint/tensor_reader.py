"""Reads the bytes of tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from sam3lite_convert.checkpoint import dtypes
from sam3lite_convert.checkpoint.index import StoredTensor
from sam3lite_convert.errors import UnsoundPlan, Untrusted

if TYPE_CHECKING:
    import numpy as np

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
    if tensor.contiguous:
        return read_exactly(file, tensor.offset, tensor.nbytes)
    return _view(file, tensor).tobytes()


def read_pieces(
    file: BinaryIO, tensor: StoredTensor, step: int, begin: int = 0, end: int | None = None
) -> Iterator[bytes]:
    """The bytes of a tensor in C order from ``begin`` to ``end`` (default: its last), whatever its stride, in pieces of
    ``step`` bytes, of which only the last may be shorter.

    Of a contiguous tensor one piece is held in memory, of one that is made of others the same of each, and of another
    one its range in the file. Raises as ``read_tensor`` does.
    """
    end = tensor.nbytes if end is None else min(end, tensor.nbytes)
    if tensor.contiguous:
        for start, length in ranges(tensor.offset + begin, end - begin, step):
            yield read_exactly(file, start, length)
        return
    held, position = bytearray(), 0
    for rows in _rows(file, tensor, step):
        held += rows[max(begin - position, 0) : max(end - position, 0)]
        position += len(rows)
        while len(held) >= step:
            yield bytes(held[:step])
            del held[:step]
    if held:
        yield bytes(held)


def _rows(file: BinaryIO, tensor: StoredTensor, step: int) -> Iterator[bytes]:
    """All bytes of a tensor that is not contiguous, in C order, so many rows at once as make about ``step`` bytes."""
    if tensor.parts:
        for part in tensor.parts:
            yield from read_pieces(file, part, step)
        return
    view = _view(file, tensor)
    count = max(step * len(view) // max(view.nbytes, 1), 1)
    for start in range(0, len(view), count):
        yield view[start : start + count].tobytes()


def _view(file: BinaryIO, tensor: StoredTensor) -> np.ndarray:
    """A tensor with its stride, over its range in the file; elements are of no numpy type, but bytes.

    Raises UnsoundPlan as ``read_tensor`` does.
    """
    if tensor.overlaps and tensor.numel > _MOST_EXPANDED:
        raise UnsoundPlan(f"{tensor.key} is an overlapping view; save it again after .contiguous()", "overlapping_view")
    import numpy as np

    width = dtypes.itemsize(tensor.dtype)
    flat = np.frombuffer(read_exactly(file, tensor.offset, tensor.span * width), dtype=f"V{width}")
    return np.lib.stride_tricks.as_strided(flat, tensor.shape, tuple(s * width for s in tensor.stride))
