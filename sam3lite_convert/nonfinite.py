"""Values of a checkpoint that are infinite or not a number: which tensors hold them, and how many."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sam3lite_convert.checkpoint import StoredTensor, open_file
from sam3lite_convert.errors import Sam3LiteError
from sam3lite_convert.streams import CastLoss, read_tensor
from sam3lite_convert.workers import Worker

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CHUNK = 1 << 20
# Formats that numpy lacks, as words: (word, mask of the exponent, mask of the mantissa).
_WORDS = {
    "bfloat16": ("uint16", 0x7F80, 0x007F),
    "float8_e5m2": ("uint8", 0x7C, 0x03),
    "float8_e4m3fn": ("uint8", 0x7F, 0x00),  # all ones is not a number; it has no infinity
}
_NUMPY = {"float64": "f8", "float32": "f4", "float16": "f2", "complex128": "f8", "complex64": "f4"}


class NotFinite(Sam3LiteError):
    """Exit 1: there are values that are not finite, and there were to be none."""

    exit_code = 1


@dataclass
class Counts:
    """Of one tensor."""

    nan: int = 0
    infinite: int = 0

    def record(self) -> dict[str, int]:
        return {"nan": self.nan, "infinite": self.infinite}

    def __str__(self) -> str:
        parts = [f"{self.nan:,} not a number"] * bool(self.nan) + [f"{self.infinite:,} infinite"] * bool(self.infinite)
        return " and ".join(parts)


def not_finite(
    path: Path, tensors: Iterable[StoredTensor], stop: Callable[[], bool] = lambda: False
) -> dict[str, Counts]:
    """Key -> counts, for those of the tensors that hold such values. Reads all of them, piece by piece."""
    found: dict[str, Counts] = {}
    seen: dict[tuple[int, int, str], Counts] = {}
    with open_file(path) as file:
        for tensor in tensors:
            if stop():
                break
            if tensor.dtype not in _WORDS and tensor.dtype not in _NUMPY:
                continue
            place = (tensor.offset, tensor.nbytes, tensor.dtype)
            if tensor.contiguous and place in seen:
                counts = seen[place]
            else:
                counts = Counts()
                if tensor.contiguous:
                    seen[place] = counts
                    file.seek(tensor.offset)
                    left = tensor.nbytes
                    while left and (data := file.read(min(left, _CHUNK))):
                        _count(data, tensor.dtype, counts)
                        left -= len(data)
                else:
                    _count(read_tensor(file, tensor), tensor.dtype, counts)
            if counts.nan or counts.infinite:
                found[tensor.key] = counts
    return found


def _count(data: bytes, dtype: str, counts: Counts) -> None:
    import numpy as np  # here, so that a conversion is hashing before numpy is loaded

    if dtype in _NUMPY:
        values: NDArray[np.floating[Any]] = np.frombuffer(data, _NUMPY[dtype])
        if not np.isfinite(values).all():
            counts.nan += int(np.isnan(values).sum())
            counts.infinite += int(np.isinf(values).sum())
        return
    word, exponent, mantissa = _WORDS[dtype]
    words = np.frombuffer(data, word)
    special = words[(words & exponent) == exponent]
    if special.size:
        nan = special.size if not mantissa else int(np.count_nonzero(special & mantissa))
        counts.nan += nan
        counts.infinite += special.size - nan


@contextmanager
def searching(path: Path, tensors: Iterable[StoredTensor]) -> Iterator[Worker]:
    """``not_finite`` in a thread beside whatever else is done; leaving the context stops it."""
    stopped = threading.Event()
    worker = Worker(lambda: not_finite(path, tensors, stopped.is_set))
    try:
        yield worker
    finally:
        stopped.set()
        worker.join()


@dataclass(frozen=True)
class Strict:
    """What a conversion refuses: values that are not finite already, and those that a cast makes so."""

    nonfinite: bool = False
    overflow: bool = True

    def check(self, found: dict[str, Counts], loss: CastLoss, dtype: str | None) -> None:
        """Raises NotFinite for the first of them that was found."""
        if self.nonfinite and found:
            refuse({key: counts.record() for key, counts in found.items()}, words_of(found))
        if self.overflow and loss.overflowed_values:
            raise NotFinite(
                f"{loss.overflowed_values:,} values do not fit into {dtype} and would become infinite: "
                f"{overflow_words(loss)}. bfloat16 has the range of float32; --allow-overflow takes them as they are.",
                "overflow",
                loss.record()["overflows"],
            )


def refuse(details: dict[str, Any], words: str) -> NoReturn:
    """Raises NotFinite for tensors that hold such values."""
    raise NotFinite(
        f"{len(details):,} tensors hold values that are not finite (--fail-on-nonfinite): {words}",
        "not_finite",
        details,
    )


def overflow_words(loss: CastLoss, shown: int = 5) -> str:
    """The tensors by name, the greatest value first."""
    worst = sorted(loss.overflows, key=lambda key: -loss.overflows[key][1])
    said = [f"{key}: {loss.overflows[key][0]:,}, the greatest {loss.overflows[key][1]:.6g}" for key in worst[:shown]]
    return "; ".join(said) + (f"; and {len(worst) - shown:,} more tensors" if len(worst) > shown else "")


def words_of(found: dict[str, Counts], shown: int = 5) -> str:
    """The tensors by name, the worst first."""
    worst = sorted(found, key=lambda key: -(found[key].nan + found[key].infinite))
    more = f"; and {len(found) - shown:,} more tensors" if len(found) > shown else ""
    return "; ".join(f"{key}: {found[key]}" for key in worst[:shown]) + more
