"""Copies tensor bytes: ranges are copied by the kernel, casts are made in small pieces.

Only ``cast`` imports torch; everything else works on bytes of a known element width.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

from sam3lite_convert.checkpoint.dtypes import FLOAT8
from sam3lite_convert.checkpoint.shards import JoinedFile
from sam3lite_convert.checkpoint.tensor_reader import CHUNK, ranges, read_exactly, read_pieces, read_range
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.plan.plan import Mapped
from sam3lite_convert.records.receipt import LostByCast, Overflow
from sam3lite_convert.workers import Advance

if TYPE_CHECKING:
    import torch

_COPY_CHUNK = 32 << 20


@dataclass
class CastLoss:
    """What casts lost, over all tensors that were cast.

    tensors: number of tensors that were cast.
    changed_values: values that were rounded or overflowed.
    overflowed_values: finite values that became infinite, or NaN where a float8 has no infinity.
    max_abs_error: largest rounding error of the values that stayed finite.
    overflows: target key -> (number of values that overflowed, the largest absolute value among them).
    """

    tensors: int = 0
    changed_values: int = 0
    overflowed_values: int = 0
    max_abs_error: float = 0.0
    overflows: dict[str, tuple[int, float]] = field(default_factory=dict)

    def record(self, dtype: str | None) -> LostByCast:
        """The losses so far, as a record. ``dtype``: the dtype of the cast."""
        overflows = {k: Overflow(values=n, largest=most) for k, (n, most) in sorted(self.overflows.items())}
        return LostByCast(
            dtype=dtype,
            tensors=self.tensors,
            changed_values=self.changed_values,
            overflowed_values=self.overflowed_values,
            max_abs_error=self.max_abs_error,
            overflows=overflows or None,
        )

    def overflowed(self, key: str, count: int, greatest: float) -> None:
        """Add values of one tensor that overflowed; ``greatest``: the largest absolute value."""
        before, most = self.overflows.get(key, (0, 0.0))
        self.overflows[key] = before + count, max(most, greatest)
        self.overflowed_values += count


def cast(data: bytes, source: str, target: str, loss: CastLoss | None = None, key: str = "") -> bytes:
    """The elements, cast by torch. ``loss``: collects what the cast of tensor ``key`` lost, measured in float64.

    float8 goes by way of float32, which holds its values exactly and from which torch itself rounds to it; not all
    of its kinds have a direct cast, or isfinite. Raises CannotRun without torch, or if it lacks one of the dtypes.
    """
    try:
        import torch
    except ImportError as fault:
        raise CannotRun(
            f"{target} is cast by torch, which cannot be imported ({fault}): pip install torch", "no_torch"
        ) from None

    if not data:
        return b""
    before = torch.frombuffer(bytearray(data), dtype=_torch_dtype(source))
    if source in FLOAT8 or target in FLOAT8:
        before = before.float()
    after = before.to(_torch_dtype(target))
    if loss is not None:
        wide, narrow = before.double(), after.double()
        finite = wide.isfinite()
        overflow = finite & ~narrow.isfinite()  # some kinds of float8 have NaN in place of infinity
        error = (wide - narrow).abs()[finite & ~overflow]
        loss.changed_values += int((error != 0).sum()) + int(overflow.sum())
        if bool(overflow.any()):
            loss.overflowed(key, int(overflow.sum()), float(wide[overflow].abs().max()))
        if error.numel():
            loss.max_abs_error = max(loss.max_abs_error, float(error.max()))
    return after.view(torch.uint8).numpy().tobytes()


def _torch_dtype(name: str) -> torch.dtype:
    import torch

    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise CannotRun(f"torch {torch.__version__} has no {name}; install a newer torch", "dtype_needs_newer_torch")
    return found


def source_chunks(file: BinaryIO, piece: Mapped, step: int = CHUNK) -> Iterator[bytes]:
    """The piece's bytes in chunks, as in the source: its range of the tensor, in C order, without a cast."""
    return read_pieces(file, piece.source, step, piece.begin, piece.begin + piece.nbytes)


def source_bytes(file: BinaryIO, piece: Mapped) -> bytes:
    """The same bytes as ``source_chunks``, in one piece."""
    return read_range(file, piece.source, piece.begin, piece.begin + piece.nbytes)


def target_chunks(file: BinaryIO, piece: Mapped, loss: CastLoss | None = None) -> Iterator[bytes]:
    """The bytes that the plan writes for one target, in chunks."""
    source = piece.source
    chunks = source_chunks(file, piece) if piece.operation.verbatim else _whole(file, piece)
    for chunk in chunks:
        yield cast(chunk, source.dtype, piece.dtype, loss, piece.key) if piece.casts else chunk


def _whole(file: BinaryIO, piece: Mapped) -> Iterator[bytes]:
    yield piece.operation.forward(source_bytes(file, piece), piece.slice, piece.source.dtype)


def write_piece(source: BinaryIO, piece: Mapped, out: BinaryIO, advance: Advance, loss: CastLoss | None) -> None:
    """Append one target to ``out``; bytes that do not change are copied by the kernel."""
    if piece.source.contiguous and piece.operation.verbatim and not piece.casts:
        _copy(source, piece.source.offset + piece.begin, piece.nbytes, out, advance)
    else:
        if loss is not None and piece.casts:
            loss.tensors += 1
        for chunk in target_chunks(source, piece, loss):
            out.write(chunk)
            advance(len(chunk))


def _copy(source: BinaryIO, offset: int, nbytes: int, out: BinaryIO, advance: Advance) -> None:
    if isinstance(source, JoinedFile):  # which the kernel does not know
        source, offset = source.place(offset)
    copy_file_range = getattr(os, "copy_file_range", None)
    if copy_file_range is not None and nbytes >= 1 << 16:
        out.flush()
        while nbytes:
            try:
                done = copy_file_range(source.fileno(), out.fileno(), min(nbytes, _COPY_CHUNK), offset, out.tell())
            except OSError as fault:
                if fault.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                    raise
                break  # not supported between these two file systems
            if not done:
                break  # some file systems answer 0 instead of refusing
            out.seek(done, os.SEEK_CUR)
            offset, nbytes = offset + done, nbytes - done
            advance(done)
    for start, length in ranges(offset, nbytes):
        out.write(read_exactly(source, start, length))
        advance(length)
