"""Explains what is wrong with a converted tensor, in the terms of somebody who ports the model.

Bytes in, a cause out. The first hypothesis that reproduces the found bytes exactly is the diagnosis; values are
compared only if no hypothesis does.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np

from sam3lite_convert.checkpoint import dtypes
from sam3lite_convert.checkpoint.index import StoredTensor
from sam3lite_convert.checkpoint.tensor_reader import read_tensor
from sam3lite_convert.convert.tensor_bytes import cast, target_chunks
from sam3lite_convert.plan.operations import DropClassRow, Split, Transpose, positions
from sam3lite_convert.plan.plan import Mapped, Plan
from sam3lite_convert.plan.unsound import shape_text
from sam3lite_convert.verify.findings import Values, modules, one_place
from sam3lite_convert.verify.tensor_comparison import as_float64


@dataclass(frozen=True)
class Cause:
    """Why a tensor differs; the fields are those of ``findings.Difference``."""

    code: str
    why: str
    cause: str = ""
    holds: tuple[str, ...] = ()
    values: Values | None = None


_STRETCHES: dict[str, dict[str, Any]] = {
    "bilinearly": {"mode": "bilinear", "align_corners": False},
    "bilinearly, with corners aligned": {"mode": "bilinear", "align_corners": True},
    "bicubically": {"mode": "bicubic", "align_corners": False},
    "by the nearest row": {"mode": "nearest"},
}
_ORDINALS = {1: "st", 2: "nd", 3: "rd"}  # of up to twenty
STOCK_LENGTH = 32  # tokens that the stock processor of transformers pads to (layout notes, fact 5)


class Diagnoser:
    """Explains wrong tensors, one at a time, given the plan and the source."""

    def __init__(self, plan: Plan, source: BinaryIO) -> None:
        self._plan = plan
        self._source = source
        self._by_size: dict[int, dict[bytes, list[str]]] = {}

    def expected(self, piece: Mapped) -> bytes:
        """The bytes that the target should hold."""
        return b"".join(target_chunks(self._source, piece))

    def explain(self, piece: Mapped, found: bytes) -> Cause:
        """Why ``found``, which has the right shape and dtype, differs from what the plan writes."""
        expected = self.expected(piece)
        for hypothesis in (self._arrangement, self._class_row, self._filled, self._other_tensor):
            cause = hypothesis(piece, expected, found)
            if cause:
                return cause
        return _compare_values(piece, expected, found)

    def explain_dtype(self, piece: Mapped, found: StoredTensor, data: bytes) -> Cause:
        """What a tensor of the right shape and another dtype holds. ``data``: its bytes."""
        why = f"is {found.dtype}; the rest of the folder is {piece.dtype}"
        if not (dtypes.is_floating(found.dtype) and dtypes.is_floating(piece.source.dtype)):
            return Cause("V-DTYPE", why)
        kept = found.dtype == piece.source.dtype
        if not kept and not _has_torch():
            return Cause("V-DTYPE", why)
        if self.expected(replace(piece, dtype=found.dtype)) == data:
            return Cause("V-DTYPE", f"{why}. Its values are the source's{'' if kept else ', cast to that'}")
        return Cause("V-DTYPE", f"{why}. Its values are not the source's{'' if kept else ' either, cast to that'}")

    # ---- the same numbers, arranged differently

    def _arrangement(self, piece: Mapped, expected: bytes, found: bytes) -> Cause | None:
        width = dtypes.itemsize(piece.dtype)
        if len(piece.shape) == 2:
            rows, columns = piece.shape
            matrix = np.frombuffer(expected, dtype=f"V{width}").reshape(rows, columns)
            if rows == columns and matrix.T.tobytes() == found:
                if isinstance(piece.operation, Transpose):
                    why = (
                        f"stored untransposed: it is an exact copy of {piece.source.key}. The original computes x @ P, "
                        "but a Linear computes x @ W.T, so the pooled output is unrelated to the original's"
                    )
                    return Cause("V-TRANSPOSED", why)
                why = "stored transposed: it is the transpose of the source; it is square, so no shape check notices"
                return Cause("V-TRANSPOSED", why)
            if matrix.reshape(columns, rows).T.tobytes() == found:
                return Cause("V-RESHAPED", "its elements are the source's, reordered by a reshape and a transpose")
            if piece.operation.joins and (how := _row_order(expected, found, rows)):
                sources = ", ".join(source.key for source in piece.sources)
                return Cause("V-ROW-ORDER", f"its rows are the {how} of {sources}; the model reads them in that order")
        if piece.shape and piece.shape[0] % 3 == 0 and piece.part is None and _is_fused(piece):
            step = len(expected) // 3
            blocks = {name: expected[n * step : (n + 1) * step] for n, name in enumerate("qkv")}
            for order in itertools.permutations("qkv"):
                if b"".join(blocks[name] for name in order) == found:
                    return Cause(
                        "V-QKV-ORDER", f"its rows are in the order {', '.join(order)}; the original's are q, k, v"
                    )
            if how := _interleaved(expected, found, piece):
                why = f"its rows are {how}; the original's are all of q, then all of k, then all of v"
                return Cause("V-QKV-INTERLEAVED", why)
        if piece.part:
            fused = self._cast(piece, read_tensor(self._source, piece.source))
            if how := _interleaved(fused, found, piece, Split.labels.index(piece.part)):
                rest = f"were {how}; they are all of q, then all of k, then all of v"
                return Cause(
                    "V-QKV-INTERLEAVED",
                    f"was split as if the rows of {piece.source.key} {rest}",
                    f"split as if the fused rows {rest}",
                )
        return None

    def _class_row(self, piece: Mapped, expected: bytes, found: bytes) -> Cause | None:
        if not isinstance(piece.operation, DropClassRow) or not piece.operation.lost(piece.source.shape):
            return None
        whole = self._cast(piece, read_tensor(self._source, piece.source))
        if whole[: len(found)] == found:
            why = "the last row was dropped instead of the first, the class position; every position is off by one"
            return Cause("V-CLASS-ROW", why)
        return None

    # ---- another tensor in its place

    def _other_tensor(self, piece: Mapped, expected: bytes, found: bytes) -> Cause | None:
        holders = self._holders(piece, found)
        others = [k for k in holders if self._plan.mapped[k].source.key != piece.source.key]
        same = [k for k in holders if k not in others]
        if same and piece.part:
            other = self._plan.mapped[same[0]]
            holds = f"{other.part} where {piece.part} belongs"
            why = f"holds {holds} (rows of {piece.source.key})"
            return Cause("V-OTHER-TENSOR", why, f"holds {holds}", tuple(holders))
        if others:
            other = self._plan.mapped[others[0]]
            why = f"holds the tensor of {other.key}, which comes from {other.source.key}"
            return Cause("V-OTHER-TENSOR", why, _other_layer(piece.key, other.key), tuple(holders))
        for dropped in self._plan.dropped.values():
            source = dropped.source
            if source.overlaps or (source.nbytes, source.dtype) != (piece.nbytes, piece.source.dtype):
                continue
            if self._cast(piece, read_tensor(self._source, source)) == found:
                why = f"holds {source.key}, a tensor that has no counterpart in this layout ({dropped.reason})"
                return Cause("V-DROPPED-IN-PLACE", why)
        return None

    def _holders(self, piece: Mapped, found: bytes) -> list[str]:
        """The other targets that should hold these bytes."""
        size = len(found)
        if size not in self._by_size:
            table: dict[bytes, list[str]] = {}
            for key, other in self._plan.mapped.items():
                if other.out_nbytes == size:
                    table.setdefault(hashlib.sha256(self.expected(other)).digest(), []).append(key)
            self._by_size[size] = table
        return [k for k in self._by_size[size].get(hashlib.sha256(found).digest(), []) if k != piece.key]

    # ---- other values

    def _filled(self, piece: Mapped, expected: bytes, found: bytes) -> Cause | None:
        values = _numbers(found, piece.dtype)
        if values is None:
            return None
        if np.isnan(values).all():
            return Cause("V-NOT-FINITE", "holds nothing but NaN")
        if values.size > 1 and (values == values[0]).all():
            why = f"holds {values[0]:g} everywhere: it was never filled, or reset"
            return Cause("V-CONSTANT", why, holds=tuple(self._holders(piece, found)))
        narrow = [d for d in ("float16", "bfloat16") if piece.dtype == "float32"]
        for dtype in narrow:
            if len(expected) == len(found) and _went_through(expected, dtype, found):
                return Cause("V-HALF-PRECISION", f"was rounded to {dtype} and converted back to {piece.dtype}")
        wanted = _numbers(expected, piece.dtype)
        if wanted is None or wanted.size != values.size:
            return None
        usable = np.abs(wanted) > 1e-6
        if usable.sum() < 2:
            return None
        with np.errstate(invalid="ignore", over="ignore"):
            ratio = values[usable] / wanted[usable]
        factor = float(np.median(ratio))
        if math.isfinite(factor) and abs(factor - 1) > 1e-3 and np.allclose(ratio, factor, rtol=1e-4):
            width = piece.source.shape[-1] if piece.source.shape else 1
            root = math.sqrt(width)
            name = f" = sqrt({width})" if math.isclose(factor, root, rel_tol=1e-4) else ""
            name = f" = 1/sqrt({width})" if math.isclose(factor, 1 / root, rel_tol=1e-4) else name
            return Cause("V-SCALED", f"holds the source times {factor:g}{name}; the original does not scale it")
        return None

    def _cast(self, piece: Mapped, data: bytes) -> bytes:
        return cast(data, piece.source.dtype, piece.dtype) if piece.casts else data


def _row_order(expected: bytes, found: bytes, rows: int) -> str | None:
    """In words, which of a few rows are where; None if they are not the same rows in another order."""
    width = len(expected) // rows
    names = {expected[i * width : (i + 1) * width]: f"{i + 1}{_ORDINALS.get(i + 1, 'th')}" for i in range(rows)}
    order = [names.get(found[i * width : (i + 1) * width]) for i in range(rows)]
    return ", ".join(map(str, order)) if None not in order and len(set(order)) == rows else None


def _other_layer(key: str, other: str) -> str:
    """In words, which layer's or module's tensor a key holds, for keys of the same tensor in both; otherwise empty."""
    place = one_place(key, other)
    if place is None:
        own, others = modules(key, other)
        return f"{own} holds tensors of {others}" if own != key else ""
    if not key.split(".")[place].isdecimal():
        return ""
    start = ".".join(key.split(".")[:place])
    return f"{start}.{key.split('.')[place]} holds tensors of {start}.{other.split('.')[place]}"


def _interleaved(fused: bytes, found: bytes, piece: Mapped, part: int | None = None) -> str | None:
    """In words, which interleaving of the rows of q, k and v gives ``found``; None if none does.

    fused: all rows of q, k and v.
    part: None if ``found`` is a whole fused tensor in another order; otherwise the index of the part (q, k or v) that
        ``found`` should hold.
    """
    if not piece.shape or not fused:
        return None
    count = piece.shape[0] if part is not None else piece.shape[0] // 3
    data = np.frombuffer(fused, dtype=np.uint8)
    for heads in (*range(2, 33), count):
        if heads < 2 or count % heads:
            continue
        made = data.reshape(3, heads, -1).swapaxes(0, 1) if part is None else data.reshape(heads, 3, -1)[:, part]
        if made.tobytes() == found:
            return "interleaved row by row" if heads == count else f"interleaved by head, for {heads} heads"
    return None


def _went_through(data: bytes, dtype: str, found: bytes) -> bool:
    """Whether ``found`` is these float32 values rounded to float16 or bfloat16 and back; any NaN is as good as another.

    As torch rounds, without torch: verify runs where it is not installed.
    """
    values, got = np.frombuffer(data, "<f4"), np.frombuffer(found, "<f4")
    if dtype == "float16":
        with np.errstate(over="ignore", invalid="ignore"):
            made = values.astype("<f2").astype("<f4")
    else:
        bits = values.view("<u4")
        # The upper half of the bits, to the nearest, ties to even.
        made = ((bits + (0x7FFF + ((bits >> 16) & 1))) & 0xFFFF0000).astype("<u4").view("<f4")
    same = made.view("<u4") == got.view("<u4")
    return bool((same | (np.isnan(values) & np.isnan(got))).all())


def explain_shape(piece: Mapped, shape: tuple[int, ...]) -> Cause:
    """How a tensor came to have this shape instead of the planned one."""
    found, wanted = shape_text(shape), shape_text(piece.shape)
    if isinstance(piece.operation, DropClassRow) and shape == piece.source.shape:
        return Cause("V-CLASS-ROW", f"is {found}: the class position was kept; the model has {wanted} there")
    if shape == piece.shape[::-1]:
        why, cause = (f"is {s}stored transposed" for s in (f"{found}, ", ""))
        return Cause("V-TRANSPOSED", f"{why}; the model has {wanted} there", cause)
    if shape == piece.source.shape and piece.part:
        why = f"is {found}: q, k and v were not split; the model has {wanted} there"
        return Cause("V-QKV-UNSPLIT", why, "q, k and v were not split")
    return Cause("V-SHAPE", f"is {found}; the model has {wanted} there")


def explain_rows(piece: Mapped, source: BinaryIO, shape: tuple[int, ...], found: bytes) -> Cause | None:
    """What the rows of a text position table are that has more of them than the plan writes.

    found: the table's bytes, of the plan's dtype. Returns None if it is no such table.
    """
    rows, called = positions(shape), positions(piece.shape)
    if not piece.position_table or not rows or not called or rows <= called or shape[3:] != piece.shape[3:]:
        return None
    width = len(found) // rows
    data = read_tensor(source, piece.source)
    whole = cast(data, piece.source.dtype, piece.dtype) if piece.casts else data
    trained = len(whole) // width
    if found[: called * width] == whole[: called * width]:
        same = "so are the others" if found == whole[: len(found)] else "the others are not"
        stock = "reads all of them" if rows == STOCK_LENGTH else "stretches them"
        return Cause(
            "V-ROWS",
            f"{rows} rows, the first {called} are the source's; the stock call at {STOCK_LENGTH} {stock} "
            f"({same}; the model is called with {called})",
        )
    for count in dict.fromkeys((called, trained)):
        if how := _stretched(whole[: count * width], count, found, rows, piece):
            return Cause("V-ROWS", f"{rows} rows, which are the source's first {count} stretched {how}")
    stretch = "nor is it a stretch of them" if _has_torch() else "whether it is a stretch of them takes torch to tell"
    return Cause("V-ROWS", f"{rows} rows, and the first {called} are not the source's; {stretch}")


def one_row(piece: Mapped) -> Cause | None:
    """What is wrong with a text position table that was cut to its first row; None if it has more."""
    if not piece.position_table or positions(piece.shape) != 1 or positions(piece.source.shape) == 1:
        return None
    return Cause("V-ROWS", f"1 row of {positions(piece.source.shape)}: every position of a prompt would be the same")


def _has_torch() -> bool:
    try:
        import torch  # noqa: F401
    except ImportError:
        return False
    return True


def _stretched(source: bytes, count: int, found: bytes, rows: int, piece: Mapped) -> str | None:
    """In words, how ``rows`` rows were interpolated from the source's ``count`` rows; None if they were not, or without
    torch."""
    if not _has_torch():
        return None
    import torch

    dtype = getattr(torch, piece.dtype)
    table = torch.frombuffer(bytearray(source), dtype=dtype).float().reshape(1, 1, count, -1)
    got = torch.frombuffer(bytearray(found), dtype=dtype).float().reshape(1, 1, rows, -1)
    for how, options in _STRETCHES.items():
        made = torch.nn.functional.interpolate(table, (rows, table.size(3)), **options)
        # Rounding of the interpolation and of the dtype, against values of the table's size.
        limit = max(4 * torch.finfo(dtype).eps, 1e-6) * float(table.abs().max())
        if torch.isfinite(got).all() and float((made - got).abs().max()) <= limit:
            return how
    return None


def _numbers(data: bytes, dtype: str) -> np.ndarray | None:
    """The values as float64; None if there are none, or if they are boolean or complex."""
    return as_float64(data, dtype) if data and not dtype.startswith("complex") and dtype != "bool" else None


def _is_fused(piece: Mapped) -> bool:
    return any(word in piece.canonical for word in ("qkv", "in_proj"))


def _compare_values(piece: Mapped, expected: bytes, found: bytes) -> Cause:
    width = dtypes.itemsize(piece.dtype)
    a = np.frombuffer(expected, dtype=np.uint8).reshape(-1, width)
    b = np.frombuffer(found, dtype=np.uint8).reshape(-1, width)
    differing = np.flatnonzero((a != b).any(axis=1))
    first = int(differing[0])
    place = tuple(int(i) for i in np.unravel_index(first, piece.shape)) if piece.shape else ()
    where = f"at {list(place)}" if place else "in its one element"
    flipped = int(np.unpackbits(a[differing] ^ b[differing]).sum())
    x, y = _numbers(expected, piece.dtype), _numbers(found, piece.dtype)
    values = "" if x is None or y is None else f": {y[first]:.9g} where the source has {x[first]:.9g}"
    if flipped == 1:
        return Cause("V-ONE-BIT", f"one bit differs, {where}{values}", "one bit differs")
    if x is None or y is None:
        why = f"{len(differing):,} of {len(a):,} elements differ; the first {where}"
        return Cause("V-OTHER-VALUES", why, values=Values(len(a), len(differing)))
    sums = _value_sums(x, y, len(differing))
    why = (
        f"{len(differing):,} of {len(a):,} elements differ, max abs diff {sums.max_abs:.3g}; the first {where}{values}"
    )
    lost = int((np.isfinite(x) & ~np.isfinite(y)).sum())
    if lost:
        why = f"{lost:,} values are NaN or infinite that are not in the source; {why}"
        return Cause("V-NOT-FINITE", why, "values are NaN or infinite that are not in the source")
    return Cause("V-OTHER-VALUES", why, values=sums)


def _value_sums(x: np.ndarray, y: np.ndarray, differing: int) -> Values:
    """``x``: the source's values; ``y``: the folder's. Both float64."""
    elements = x.size
    finite = np.isfinite(x) & np.isfinite(y)
    if not finite.all():
        x, y = x[finite], y[finite]
    if not x.size:
        return Values(elements, differing)
    with np.errstate(over="ignore", invalid="ignore"):  # values may be as large as the format allows
        difference, p, q = y - x, x - x.mean(), y - y.mean()
        return Values(
            elements,
            differing,
            float(difference @ difference),
            float(x @ x),
            float(p @ p),
            float(q @ q),
            float(p @ q),
            float(np.abs(difference).max()),
        )
