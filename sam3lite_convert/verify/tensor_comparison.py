"""Compares two stored tensors of one shape piece by piece: bits first, then values in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

import numpy as np

from sam3lite_convert.checkpoint import dtypes
from sam3lite_convert.checkpoint.index import StoredTensor
from sam3lite_convert.checkpoint.nonfinite import count_not_finite
from sam3lite_convert.checkpoint.tensor_reader import read_pieces
from sam3lite_convert.convert.tensor_bytes import cast
from sam3lite_convert.records.receipt import NonFinite

_STEP = 1 << 18  # elements; as float64 they stay in the processor's cache
_MOST_ROWS = 1 << 20  # of which it is kept which ones changed
_FLOATS = {
    "float64": "f8", "float32": "f4", "float16": "f2", "complex128": "f8", "complex64": "f4", "complex32": "f2",
}  # fmt: skip
_INTEGERS = {
    "int64": "i8", "int32": "i4", "int16": "i2", "int8": "i1", "uint64": "u8", "uint32": "u4", "uint16": "u2",
    "uint8": "u1", "bool": "u1",
}  # fmt: skip


class OpenTensor(NamedTuple):
    """A stored tensor with its file, which is open."""

    file: BinaryIO
    stored: StoredTensor


@dataclass
class Sums:
    """Sums in float64 over elements that are finite on both sides; those of several tensors can be added.

    squares: of the differences. first, second: squares of the values of the first and the second side. products: of
    the values of both. max_abs: the largest absolute difference.
    """

    squares: float = 0.0
    first: float = 0.0
    second: float = 0.0
    products: float = 0.0
    max_abs: float = 0.0

    def add(self, other: Sums) -> None:
        """Add those of another tensor."""
        self.squares += other.squares
        self.first += other.first
        self.second += other.second
        self.products += other.products
        self.max_abs = max(self.max_abs, other.max_abs)

    @property
    def relative_l2(self) -> float:
        """Norm of the difference over the norm of the first side; infinite if that alone is zero."""
        if not self.squares:
            return 0.0
        ratio = math.sqrt(self.squares) / math.sqrt(self.first) if self.first else math.inf
        return math.inf if math.isnan(ratio) else ratio  # of sums that left the range of float64

    @property
    def cosine(self) -> float | None:
        """Cosine of the angle between both sides; None if one of them is zero."""
        norms = math.sqrt(self.first) * math.sqrt(self.second)
        return self.products / norms if norms else None


@dataclass
class Comparison:
    """How the second of two tensors of one shape differs from the first.

    elements, differing: numbers of elements, and of those that differ: in any bit, or of two dtypes in value. NaN on
        both sides is no difference.
    same_kind: whether the values can be compared at all; a complex and a real number cannot.
    rows: number of rows along the first dimension that has several; changed_rows: which of them differ; None where
        there are too many.
    casts: of two dtypes, those to which the other side can be cast with nothing left that differs.
    nan_in_both: places with NaN on both sides. not_finite: what each side holds of NaN and infinity.
    """

    elements: int
    differing: int = 0
    same_kind: bool = True
    rows: int = 1
    changed_rows: np.ndarray | None = None
    casts: tuple[str, ...] = ()
    nan_in_both: int = 0
    not_finite: tuple[NonFinite, NonFinite] = (NonFinite(nan=0, infinite=0), NonFinite(nan=0, infinite=0))
    sums: Sums = field(default_factory=Sums)


class Rows(NamedTuple):
    """Rows of two tensors that are held against each other: ``length`` of them, from a row of each side on.

    Rows are those along the first dimension that has several, of either side.
    """

    first: int
    second: int
    length: int


def compare_tensors(first: OpenTensor, second: OpenTensor, rows: Rows | None = None) -> Comparison:
    """Compare two tensors of one shape, or some rows of two that differ in their number of rows alone.

    In memory are a few pieces of them, and of one that is not contiguous a block of it.
    Raises ValueError if the shapes differ otherwise, Untrusted if a file ends too soon.
    """
    a, b = first.stored, second.stored
    lengths = leading_rows(a.shape, b.shape)
    if lengths is None or (rows is None and a.shape != b.shape):
        raise ValueError(f"the shapes differ: {a.shape} and {b.shape}")
    rows = rows or Rows(0, 0, lengths[0])
    width = a.numel // max(lengths[0], 1)  # elements of a row
    changed_rows = np.zeros(rows.length, bool) if rows.length <= _MOST_ROWS else None
    out = Comparison(rows.length * width, rows=rows.length, changed_rows=changed_rows)
    if _kind(a.dtype) != _kind(b.dtype) and "complex" in (_kind(a.dtype), _kind(b.dtype)):
        out.same_kind, out.differing = False, out.elements
        return out
    # Either side may be what the other one was cast to.
    possible = {b.dtype: (a, b), a.dtype: (b, a)} if a.dtype != b.dtype and _kind(a.dtype) == _kind(b.dtype) else {}
    counts = [0, 0, 0, 0]
    pieces = (
        _pieces(side, begin * width, out.elements) for side, begin in ((first, rows.first), (second, rows.second))
    )
    for n, (one, other) in enumerate(zip(*pieces, strict=True)):
        different = _compare(one, other, a.dtype, b.dtype, out, counts)
        if different is not None and out.changed_rows is not None:
            out.changed_rows[(np.flatnonzero(different) + n * _STEP) // width] = True
        for dtype, (source, target) in list(possible.items()):
            x, y = (one, other) if source is a else (other, one)
            if not _cast_equal(x, source.dtype, y, target.dtype):
                del possible[dtype]
    if a.dtype != b.dtype and not out.differing:  # also an integer and a floating number of one value
        possible |= {b.dtype: (a, b)}
    out.casts = tuple(sorted(possible, key=dtypes.itemsize))
    out.not_finite = (NonFinite(nan=counts[0], infinite=counts[1]), NonFinite(nan=counts[2], infinite=counts[3]))
    return out


def leading_rows(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, int] | None:
    """The numbers of rows of two shapes that may differ in these alone: the lengths along the first dimension that has
    several, on either side. None if they differ otherwise."""
    if len(first) != len(second):
        return None
    place = next((n for n, sides in enumerate(zip(first, second, strict=True)) if sides != (1, 1)), None)
    if place is None:
        return 1, 1
    return (first[place], second[place]) if first[place + 1 :] == second[place + 1 :] else None


def lacking_rows(stored: StoredTensor) -> int:
    """The number of rows at the beginning of a tensor that its file does not hold, as the class row of a position table
    in a folder of transformers; they are read as zeros."""
    lengths = leading_rows(stored.shape, stored.shape)
    absent = sum(part.numel for part in itertools.takewhile(lambda part: part.absent, stored.parts))
    return absent * lengths[0] // stored.numel if lengths and absent < stored.numel else 0


def _pieces(side: OpenTensor, begin: int, count: int) -> Iterator[bytes]:
    """The bytes of so many elements from the one at ``begin`` on, ``_STEP`` elements at once."""
    width = dtypes.itemsize(side.stored.dtype)
    return read_pieces(side.file, side.stored, _STEP * width, begin * width, (begin + count) * width)


def _kind(dtype: str) -> str:
    if dtype.startswith("complex"):
        return "complex"
    return "floating" if dtypes.is_floating(dtype) else "integer"


def as_float64(data: bytes, dtype: str) -> np.ndarray:
    """The values; of complex numbers both parts, one behind the other."""
    if dtype in _FLOATS:
        return np.frombuffer(data, _FLOATS[dtype]).astype("f8")
    if dtype in _INTEGERS:
        return np.frombuffer(data, _INTEGERS[dtype]).astype("f8")
    if dtype == "bfloat16":
        return (np.frombuffer(data, "u2").astype("u4") << 16).view("f4").astype("f8")
    return np.frombuffer(cast(data, dtype, "float64"), "f8")  # a float8


def _compare(one: bytes, other: bytes, a: str, b: str, out: Comparison, counts: list[int]) -> np.ndarray | None:
    """Add what two pieces, of dtypes ``a`` and ``b``, are like. Returns which elements differ; None if none does.

    counts: of NaN and infinity, on the first side and on the second.
    """
    equal = a == b and one == other
    x = as_float64(one, a)
    y = x if equal else as_float64(other, b)
    finite = both = None
    first = _not_finite(one, a)
    second = first if equal else _not_finite(other, b)
    if any((*first, *second)):
        counts[:] = (n + more for n, more in zip(counts, (*first, *second), strict=True))
        finite, both = np.isfinite(x) & np.isfinite(y), np.isnan(x) & np.isnan(y)
        out.nan_in_both += int(_elements(both, a).sum())
    different: np.ndarray | None = None
    if not equal:
        flags: np.ndarray = np.not_equal(_bits(one, a), _bits(other, b)) if a == b else np.not_equal(x, y)
        different = _elements(flags if both is None else flags & ~both, a)
        out.differing += int(different.sum())
    if finite is not None and not finite.all():
        x, y = x[finite], y[finite]
    with np.errstate(over="ignore", invalid="ignore"):  # values may be as large as the format allows
        squares = float(x @ x)
        if different is None or not different.any():
            out.sums.add(Sums(0.0, squares, squares, squares))
            return None
        difference = y - x
        most = float(np.abs(difference).max(initial=0.0))
        out.sums.add(Sums(float(difference @ difference), squares, float(y @ y), float(x @ y), most))
    return different


def _not_finite(data: bytes, dtype: str) -> tuple[int, int]:
    """How many values are NaN, and how many infinite."""
    return (0, 0) if _kind(dtype) == "integer" else count_not_finite(data, dtype)


def _elements(flags: np.ndarray, dtype: str) -> np.ndarray:
    """Flags by element, where those of complex numbers are by part."""
    return np.logical_or(flags[::2], flags[1::2]) if _kind(dtype) == "complex" else flags


def _bits(data: bytes, dtype: str) -> np.ndarray:
    """The elements as whole numbers of their width; of complex numbers both parts."""
    width = dtypes.itemsize(dtype) // (2 if dtype.startswith("complex") else 1)
    return np.frombuffer(data, f"u{width}")


def _cast_equal(data: bytes, source: str, target: bytes, dtype: str) -> bool:
    """Whether the elements, cast, are those of ``target``; NaN is, whatever its bits."""
    made = cast(data, source, dtype)
    if made == target:
        return True
    different = _bits(made, dtype) != _bits(target, dtype)
    if _kind(dtype) == "integer":
        return False
    x, y = as_float64(made, dtype)[different], as_float64(target, dtype)[different]
    return bool((np.isnan(x) & np.isnan(y)).all())
