"""Reads the elements of a tensor that does not lie in one piece: memory follows what is read, not the range that its
stride spans."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from sam3lite_convert.checkpoint import dtypes
from sam3lite_convert.checkpoint.index import StoredTensor
from sam3lite_convert.errors import UnsoundPlan

if TYPE_CHECKING:
    import numpy as np

Read = Callable[[int, int], bytes]  # (offset, length) in bytes -> the bytes there

_MOST_EXPANDED = 16 << 20  # elements
_BLOCK = 32 << 20  # bytes of elements that are gathered at once: the longer, the fewer passes over a transposed matrix
_WINDOW = 8 << 20  # bytes of the file that are read at once
_GAP = 16 << 10  # bytes between two elements that are read with them: another call takes as long


def strided_blocks(read: Read, tensor: StoredTensor, begin: int, end: int) -> Iterator[memoryview]:
    """The bytes of a tensor with a stride in C order, from ``begin`` to ``end``, both at an element's begin.

    ``read``: reads bytes of its file. In memory are two blocks of at most 32 MiB, and 8 MiB of the file.
    Raises UnsoundPlan for an expanded tensor of many elements: a file of a few bytes may state any number of them.
    """
    if tensor.overlaps and tensor.numel > _MOST_EXPANDED:
        raise UnsoundPlan(f"{tensor.key} is an overlapping view; save it again after .contiguous()", "overlapping_view")
    width = dtypes.itemsize(tensor.dtype)
    axes = _axes(tensor)
    # The rows of the axis ``cut`` are the largest that fit into a block.
    inner = [math.prod(n for n, _ in axes[i + 1 :]) * width for i in range(len(axes))]
    cut = next(i for i, nbytes in enumerate(inner) if nbytes <= _BLOCK)
    outer, (length, step), row = axes[:cut], axes[cut], inner[cut]
    position = 0
    for index in _indexes([n for n, _ in outer]):
        first = max((begin - position) // row, 0)
        last = min(-((position - end) // row), length)
        start = tensor.offset + sum(i * s for i, (_, s) in zip(index, outer, strict=True)) * width
        for at in range(first, last, _BLOCK // row):
            count = min(_BLOCK // row, last - at)
            block = _gathered(read, start + at * step * width, ((count, step), *axes[cut + 1 :]), width)
            here = position + at * row
            yield block[max(begin - here, 0) : max(end - here, 0)]
        position += length * row
        if position >= end:
            return


def _indexes(lengths: list[int]) -> Iterator[tuple[int, ...]]:
    """Every index of an array of these lengths, the last axis first; ``itertools.product`` would hold all of them."""
    if not lengths:
        yield ()
        return
    *outer, last = lengths
    for index in _indexes(outer):
        for i in range(last):
            yield *index, i


def _axes(tensor: StoredTensor) -> list[tuple[int, int]]:
    """(length, stride in elements) of the fewest axes over which the elements of a tensor are in the same order."""
    axes = [(1, 0)]
    for length, step in zip(tensor.shape, tensor.stride, strict=True):
        if length == 1:
            continue
        before, far = axes[-1]
        if before == 1:
            axes[-1] = length, step
        elif far == length * step:
            axes[-1] = before * length, step
        else:
            axes.append((length, step))
    return axes


def _gathered(read: Read, start: int, axes: tuple[tuple[int, int], ...], width: int) -> memoryview:
    """The elements at ``start`` and on these axes, in C order."""
    import numpy as np

    block = np.empty([n for n, _ in axes], f"V{width}")
    order = sorted(range(len(axes)), key=lambda i: -axes[i][1])  # the widest step first
    _fill(read, start, block.transpose(order)[..., None], [*(axes[i] for i in order), (1, 0)], width)
    return block.reshape(-1).view(np.uint8).data


def _fill(read: Read, start: int, block: np.ndarray, axes: list[tuple[int, int]], width: int) -> None:
    """Read the elements on these axes, widest step first, into a block of their lengths."""
    import numpy as np

    # So many axes are read one index at a time that the others lie in one window, without wide gaps.
    spans = [(1 + sum((n - 1) * s for n, s in axes[i:])) * width for i in range(len(axes) + 1)]
    gaps = [s * width - inner for (_, s), inner in zip(axes, spans[1:], strict=True)]
    single = max((i + 1 for i, gap in enumerate(gaps) if gap > _GAP or spans[i] > _WINDOW), default=0)
    at_once = axes[single][0]
    if single and gaps[single - 1] <= _GAP:  # of the last of these, as many indexes as fit
        single -= 1
        at_once = 1 + (_WINDOW - spans[single + 1]) // (axes[single][1] * width)
    (length, step), rest = axes[single], axes[single + 1 :]
    for index in _indexes([n for n, _ in axes[:single]]):
        here, place = start + sum(i * s for i, (_, s) in zip(index, axes, strict=False)) * width, block[index]
        for at in range(0, length, at_once):
            part = [(min(at_once, length - at), step), *rest]
            data = read(here + at * step * width, (1 + sum((n - 1) * s for n, s in part)) * width)
            view = np.ndarray([n for n, _ in part], block.dtype, data, 0, [s * width for _, s in part])
            place[at : at + len(view)] = view
