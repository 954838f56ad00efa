"""Reads the bytes of tensors."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

from sam3lite_convert.checkpoint import dtypes
from sam3lite_convert.checkpoint.index import StoredTensor
from sam3lite_convert.checkpoint.strided import strided_blocks
from sam3lite_convert.errors import Untrusted

CHUNK = 4 << 20


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
    return read_range(file, tensor, 0, tensor.nbytes)


def read_range(file: BinaryIO, tensor: StoredTensor, begin: int, end: int) -> bytes:
    """The bytes of a tensor in C order from ``begin`` to ``end``. Raises as ``read_tensor`` does."""
    if tensor.contiguous:
        return read_exactly(file, tensor.offset + begin, end - begin)
    return b"".join(_stored_pieces(file, tensor, CHUNK, begin, end))


def read_pieces(
    file: BinaryIO, tensor: StoredTensor, step: int, begin: int = 0, end: int | None = None
) -> Iterator[bytes]:
    """The bytes of a tensor in C order from ``begin`` to ``end`` (default: its last), whatever its stride, in pieces of
    ``step`` bytes, of which only the last may be shorter.

    In memory are two pieces, and of a tensor that is not contiguous a block of it. Raises as ``read_tensor`` does.
    """
    end = tensor.nbytes if end is None else min(end, tensor.nbytes)
    if tensor.contiguous:
        for start, length in ranges(tensor.offset + begin, end - begin, step):
            yield read_exactly(file, start, length)
        return
    held = bytearray()
    for piece in _stored_pieces(file, tensor, step, begin, end):
        for start, length in ranges(0, len(piece), step):
            held += piece[start : start + length]
            if len(held) >= step:
                yield bytes(held[:step])
                del held[:step]
    if held:
        yield bytes(held)


def same_bytes(file: BinaryIO, tensor: StoredTensor, other_file: BinaryIO, other: StoredTensor) -> bool:
    """Whether two tensors hold the same bytes in C order; read in pieces, as ``read_pieces`` does."""
    if tensor.nbytes != other.nbytes:
        return False
    pieces = zip(read_pieces(file, tensor, CHUNK), read_pieces(other_file, other, CHUNK), strict=True)
    return all(one == two for one, two in pieces)


def _stored_pieces(
    file: BinaryIO, tensor: StoredTensor, step: int, begin: int, end: int
) -> Iterator[bytes | memoryview]:
    """The bytes from ``begin`` to ``end`` of a tensor that is not contiguous, in pieces of any length."""
    if begin >= end:
        return
    if not tensor.parts:
        width = dtypes.itemsize(tensor.dtype)
        first, last = begin - begin % width, end + -end % width
        for block in strided_blocks(partial(read_exactly, file), tensor, first, last):
            yield block[max(begin - first, 0) : max(end - first, 0)]
            first += len(block)
        return
    position = 0
    for part in tensor.parts:
        if begin < position + part.nbytes and position < end:
            yield from read_pieces(file, part, step, max(begin - position, 0), end - position)
        position += part.nbytes
