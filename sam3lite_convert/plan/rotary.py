"""The ViT's rotary tables (``freqs_cis``): what the original's formula gives, and whether a checkpoint stores that.

A conversion drops the tables, as the target computes its own. A checkpoint that stores others would be computed with
those by the original, and with the formula's by the target.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from sam3lite_convert.checkpoint.index import StoredTensor
from sam3lite_convert.checkpoint.tensor_reader import read_tensor
from sam3lite_convert.plan.architecture import VISION, Vision, rotary_shape
from sam3lite_convert.plan.plan import Dropped, Plan

if TYPE_CHECKING:
    import numpy as np

THETA = 10000.0
# The original computes in float32: frequencies (a power), their products with positions of up to 24, and sine and
# cosine of angles of up to 24 radians. Each step rounds by at most 6e-8 of its value, in all 1e-5 of the angle; ten
# times that is allowed. A base of 10,100 in place of 10,000 changes the table by 1e-2.
TOLERANCE = 1e-4
_KEY = re.compile(re.escape(VISION) + r"trunk\.blocks\.(\d+)\.attn\.freqs_(cis|cis_real|cis_imag|cos|sin)")
# numpy's type, and by how much a value of up to 1 is rounded in it.
_FLOATS = {"float64": ("f8", 0.0), "float32": ("f4", 0.0), "float16": ("f2", 2.0**-11), "bfloat16": ("u2", 2.0**-8)}
_OF_PARTS = {"complex128": "float64", "complex64": "float32", "complex32": "float16"}
_COMPLEX, _REAL, _IMAGINARY = "complex", "real", "imaginary"
# Newer code stores the two parts of the numbers; each form is compared with the formula.
_FORMS = ({"cis": _COMPLEX}, {"cis_real": _REAL, "cis_imag": _IMAGINARY}, {"cos": _REAL, "sin": _IMAGINARY})
_MOST_PAIRS = 1024  # a few bytes may state an expanded table of any size


class RotaryFault(NamedTuple):
    """A stored table that is not the formula's.

    key: in the checkpoint.
    why: how it differs, in words.
    cause: the same without what holds of this table alone.
    """

    key: str
    why: str
    cause: str


class _Unchecked(NamedTuple):
    """Of a stored table that is no fault, why it is not known to be the formula's: a predicate, in words."""

    what: str


class _Stored(NamedTuple):
    """The values of a table: complex numbers, or the one part of them that is stored.

    limit: by how much a right value may be off.
    """

    values: np.ndarray
    part: str
    limit: float


def axial_table(side: int, pairs: int, window: int, theta: float = THETA) -> np.ndarray:
    """The table of a grid of ``side`` x ``side`` patches: (side * side, pairs), complex128.

    pairs: half the width of a head; the first half of them is for columns, the other for rows. window: side of the
    grid that positions are scaled to, so that a global block has the angles of a window.
    """
    import numpy as np  # here, so that a conversion is hashing before numpy is loaded

    half = pairs // 2
    frequencies = theta ** (-np.arange(half) / half)
    places = np.arange(side * side)
    scale = window / side
    angles = [scale * np.outer(axis, frequencies) for axis in (places % side, places // side)]
    table: np.ndarray = np.exp(1j * np.concatenate(angles, axis=1))
    return table


def check_rotary(plan: Plan, source: BinaryIO) -> tuple[list[RotaryFault], list[str]]:
    """The tables of the checkpoint that are not what the target computes, and notes on those whose values don't tell:
    the tables are dropped, so they may be in any form. ``source``: the checkpoint, opened.

    Neither if only parts of the checkpoint are on this machine.
    """
    vision = plan.architecture.vision
    if vision is None or plan.options.component == "text" or plan.checkpoint.partial:
        return [], []
    tables: dict[int, dict[str, Dropped]] = {}
    for dropped in plan.dropped.values():
        if not dropped.copy and (match := _KEY.fullmatch(dropped.canonical)):
            tables.setdefault(int(match[1]), {})[match[2]] = dropped
    widths = Counter(rotary_shape(d.source.shape)[-1:] for forms in tables.values() for d in forms.values())
    pairs = widths.most_common(1)[0][0] if widths else ()
    faults: list[RotaryFault] = []
    unchecked: Counter[str] = Counter()
    for block, forms in tables.items():
        for form in _FORMS:
            parts = {part: forms[name].source for name, part in form.items() if name in forms}
            if not parts:
                continue
            found = _compare(parts, pairs, block, vision, plan.architecture.sizes["patch"], source)
            if isinstance(found, RotaryFault):
                faults.append(found)
            elif found:
                unchecked[found.what] += 1
    return faults, [
        f"{count:,} rotary table{'s' * (count > 1)} (freqs_cis) of the checkpoint {what}; the target computes its own"
        for what, count in unchecked.items()
    ]


def _compare(
    parts: Mapping[str, StoredTensor],
    pairs: tuple[int, ...],
    block: int,
    vision: Vision,
    patch: int,
    source: BinaryIO,
) -> RotaryFault | _Unchecked | None:
    """``parts``: one tensor of complex numbers, or their real and imaginary parts, or one of the two. ``pairs``: how
    many numbers a patch has in most tables."""
    import numpy as np

    key = next(iter(parts.values())).key
    side = vision.image_size // patch if block in vision.global_attn_indexes else vision.window_size
    stored = _read(parts, (side * side, *pairs), source)
    if isinstance(stored, _Unchecked):
        return stored
    table, part, limit = stored
    if not np.isfinite(table).all():
        lost = int((~np.isfinite(table)).sum())
        why = f"{lost:,} of {table.size:,} values are NaN or infinite"
        return RotaryFault(key, why, "holds NaN or infinity")
    computed = axial_table(side, table.shape[1], vision.window_size)
    wanted = {_COMPLEX: computed, _REAL: computed.real, _IMAGINARY: computed.imag}[part]
    worst = float(np.abs(table - wanted).max())
    if worst <= limit:
        if part == _COMPLEX:
            return None
        other = _IMAGINARY if part == _REAL else _REAL
        return _Unchecked(f"hold the {part} parts alone, which are right; the {other} ones can't be compared")
    if np.abs(table - wanted.conj()).max() <= limit or (part == _IMAGINARY and np.abs(table + wanted).max() <= limit):
        cause = "is conjugated: it turns the other way than the table that the target computes"
    elif (table == table.flat[0]).all():
        cause = f"is {table.flat[0]:g} everywhere: nothing is turned; the target computes a table"
    elif _random(table, side, limit):
        return _Unchecked("hold random phases, as generated test files do and no trained model")
    else:
        cause = "is not the table that the target computes (axial, base 10000)"
    return RotaryFault(key, f"{cause}; max abs diff {worst:.3g}", cause)


def _read(parts: Mapping[str, StoredTensor], wanted: tuple[int, ...], source: BinaryIO) -> _Stored | _Unchecked:
    """The values of a table that should be of the shape ``wanted``, patches and pairs."""
    import numpy as np

    first = next(iter(parts.values()))
    kind = _OF_PARTS.get(first.dtype, first.dtype)
    rows = rotary_shape(first.shape)
    in_last = first.numel == 2 * math.prod(rows)
    of_parts = kind != first.dtype
    alike = all((other.dtype, other.shape) == (first.dtype, first.shape) for other in parts.values())
    fits = len(rows) == 2 and rows == wanted and rows[1] in range(2, _MOST_PAIRS, 2)
    in_pairs = in_last or of_parts
    if not (alike and fits) or kind not in _FLOATS or (in_last and of_parts) or (in_pairs and _COMPLEX not in parts):
        text = "x".join(map(str, first.shape)) or "scalar"
        return _Unchecked(f"are {first.dtype} {text}, which is not compared with the formula for {wanted[0]:,} patches")
    code, rounding = _FLOATS[kind]
    read = []
    for stored in parts.values():
        values = np.frombuffer(read_tensor(source, stored), code)
        wide = (values.astype("u4") << 16).view("f4") if kind == "bfloat16" else values
        read.append(wide.astype("f8").reshape(*rows, 2) if in_pairs else wide.astype("f8").reshape(rows))
    limit = TOLERANCE + 2 * rounding  # of complex numbers: sqrt(2) times that of a part
    if in_pairs:
        return _Stored(read[0][..., 0] + 1j * read[0][..., 1], _COMPLEX, limit)
    if len(read) == 2:
        return _Stored(read[0] + 1j * read[1], _COMPLEX, limit)
    return _Stored(read[0], _IMAGINARY if _IMAGINARY in parts else _REAL, limit)


def _random(table: np.ndarray, side: int, limit: float) -> bool:
    """Whether values are of length one, or parts of such, and in no order: from one patch to the next they turn by no
    constant angle."""
    import numpy as np

    length = np.abs(table)
    out = np.abs(length - 1) if np.iscomplexobj(table) else length - 1
    if out.max() > max(1e-3, limit) or side < 3:
        return False
    rows = table.reshape(side, side, -1)
    steps = rows[:, 1:] * rows[:, :-1].conj()
    # About 1 in each column of a table that turns evenly; of n random steps about 1/sqrt(n).
    turned = np.abs(steps.mean(axis=(0, 1))) / (length**2).mean(axis=0).clip(1e-9)
    return float(turned.mean()) < 0.5
