"""NaN and infinity in a checkpoint: which tensors hold them, and how many."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from sam3lite_convert.checkpoint.index import Checkpoint, StoredTensor, ZipEntry
from sam3lite_convert.checkpoint.reader import open_source
from sam3lite_convert.checkpoint.tensor_reader import read_pieces
from sam3lite_convert.records.receipt import NonFinite
from sam3lite_convert.workers import Worker

_WIDTH = 8  # bytes; a record of another length is checked again in smaller pieces
_CHUNK = 256 << 10  # stays in the processor's cache between reading and looking
# Formats that numpy lacks, as words: (word, bits to look at, their value if it is not finite, mask of the mantissa,
# which is zero for infinity). Without a mantissa to look at the format has NaN alone.
_WORDS = {
    "bfloat16": ("uint16", 0x7F80, 0x7F80, 0x007F),
    "float8_e5m2": ("uint8", 0x7C, 0x7C, 0x03),
    "float8_e4m3fn": ("uint8", 0x7F, 0x7F, 0x00),  # all ones
    "float8_e4m3fnuz": ("uint8", 0xFF, 0x80, 0x00),  # what would be minus zero
    "float8_e5m2fnuz": ("uint8", 0xFF, 0x80, 0x00),
    "float8_e8m0fnu": ("uint8", 0xFF, 0xFF, 0x00),
}
_NUMPY = {
    "float64": "f8", "float32": "f4", "float16": "f2", "complex128": "f8", "complex64": "f4", "complex32": "f2",
}  # fmt: skip


def not_finite(
    checkpoint: Checkpoint, tensors: Iterable[StoredTensor], stop: Callable[[], bool] = lambda: False
) -> dict[str, NonFinite]:
    """Key -> counts, for those of the tensors that hold such values. Reads all of them, piece by piece.

    Raises Untrusted if the checkpoint changes meanwhile.
    """
    found: dict[str, NonFinite] = {}
    seen: dict[tuple[int, int, str], NonFinite] = {}
    view = memoryview(bytearray(_CHUNK))  # one buffer: a new one each time costs more than the reading
    with open_source(checkpoint) as file:
        for tensor in tensors:
            if stop():
                break
            if tensor.dtype not in _WORDS and tensor.dtype not in _NUMPY:
                continue
            place = (tensor.offset, tensor.nbytes, tensor.dtype)
            if tensor.contiguous and place in seen:
                counts = seen[place]
            elif tensor.contiguous:
                nan = infinite = 0
                file.seek(tensor.offset)
                left = tensor.nbytes
                while left and (size := file.readinto(view[:left])):  # type: ignore[attr-defined]
                    more = count_not_finite(view[:size], tensor.dtype)
                    nan, infinite = nan + more[0], infinite + more[1]
                    left -= size
                counts = seen[place] = NonFinite(nan=nan, infinite=infinite)
            else:
                pieces = read_pieces(file, tensor, _CHUNK)
                each = [count_not_finite(piece, tensor.dtype) for piece in pieces]
                counts = NonFinite(nan=sum(n for n, _ in each), infinite=sum(n for _, n in each))
            if counts.nan or counts.infinite:
                found[tensor.key] = counts
    return found


class Watch:
    """Finds zip entries with NaN or infinity while their checksums are computed.

    This costs next to nothing; a second reading of the whole file would cost as much as a copy.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._records = sorted(checkpoint.records, key=lambda r: r.offset)
        self._begins = [r.offset for r in self._records]
        self._dtypes: dict[int, set[str]] = {}
        for tensor in checkpoint.tensors.values():
            if (begin := self._begin(tensor)) is not None:
                self._dtypes.setdefault(begin, set()).add(tensor.dtype)
        self._suspects: set[int] = set()

    def _begin(self, tensor: StoredTensor) -> int | None:
        """The offset of the entry that holds a tensor; None if no entry does."""
        at = bisect.bisect_right(self._begins, tensor.offset) - 1
        inside = at >= 0 and tensor.offset < self._begins[at] + max(self._records[at].nbytes, 1)
        return self._begins[at] if inside else None

    def look(self, record: ZipEntry, data: memoryview) -> None:
        """Check one piece of an entry; pieces come in order."""
        kinds = self._dtypes.get(record.offset, set()) & (_NUMPY.keys() | _WORDS.keys())
        if not kinds or record.offset in self._suspects:
            return
        # If one entry holds several dtypes, each of its tensors is searched by itself afterwards.
        alike = len(self._dtypes[record.offset]) == 1 and len(data) % _WIDTH == 0
        if not alike or any(count_not_finite(data, kinds.pop())):
            self._suspects.add(record.offset)

    def suspects(self, tensors: Iterable[StoredTensor]) -> list[StoredTensor]:
        """The tensors that may hold NaN or infinity; all others do not."""
        begins = ((tensor, self._begin(tensor)) for tensor in tensors)
        return [tensor for tensor, begin in begins if begin is None or begin in self._suspects]


def count_not_finite(data: bytes | memoryview, dtype: str) -> tuple[int, int]:
    """How many values are NaN, and how many infinite. ``dtype``: a floating or a complex one."""
    import numpy as np  # here, so that a conversion is hashing before numpy is loaded

    if dtype in _NUMPY:
        values = np.frombuffer(data, _NUMPY[dtype])
        if np.isfinite(values).all():
            return 0, 0
        return int(np.isnan(values).sum()), int(np.isinf(values).sum())
    word, looked_at, not_finite_value, mantissa = _WORDS[dtype]
    words = np.frombuffer(data, word)
    special = words[(words & looked_at) == not_finite_value]
    nan = int(np.count_nonzero(special & mantissa)) if mantissa else special.size
    return nan, special.size - nan


@contextmanager
def searching(checkpoint: Checkpoint, tensors: Iterable[StoredTensor]) -> Iterator[Worker[dict[str, NonFinite]]]:
    """``not_finite`` in a thread beside whatever else is done; leaving the context stops it. Of a zip there is
    nothing to read, as its records are watched."""
    stopped = threading.Event()
    tensors = () if checkpoint.records else tuple(tensors)
    worker = Worker(lambda: not_finite(checkpoint, tensors, stopped.is_set))
    try:
        yield worker
    finally:
        stopped.set()
        worker.join()


def words_of(found: Mapping[str, NonFinite], shown: int = 5) -> str:
    """The tensors by name, the worst first."""
    worst = sorted(found, key=lambda key: -(found[key].nan + found[key].infinite))
    more = f"; and {len(found) - shown:,} more tensors" if len(found) > shown else ""
    return "; ".join(f"{key}: {_words(found[key])}" for key in worst[:shown]) + more


def _words(counts: NonFinite) -> str:
    parts = [f"{counts.nan:,} NaN"] * bool(counts.nan) + [f"{counts.infinite:,} infinite"] * bool(counts.infinite)
    return " and ".join(parts)
