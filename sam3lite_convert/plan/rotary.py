"""The ViT's rotary tables (``freqs_cis``): what the original's formula gives, and whether a checkpoint stores that.

A conversion drops the tables, as the target computes its own. A checkpoint that stores others would be computed with
those by the original, and with the formula's by the target.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from sam3lite_convert.checkpoint.index import StoredTensor
from sam3lite_convert.checkpoint.tensor_reader import read_tensor
from sam3lite_convert.plan.architecture import VISION, Vision
from sam3lite_convert.plan.plan import Dropped, Plan

if TYPE_CHECKING:
    import numpy as np

THETA = 10000.0
# The original computes in float32: frequencies (a power), their products with positions of up to 24, and sine and
# cosine of angles of up to 24 radians. Each step rounds by at most 6e-8 of its value, in all 1e-5 of the angle; ten
# times that is allowed. A base of 10,100 in place of 10,000 changes the table by 1e-2.
TOLERANCE = 1e-4
_KEY = re.compile(re.escape(VISION) + r"trunk\.blocks\.(\d+)\.attn\.freqs_cis(|_real|_imag)")
_NUMPY = {"complex64": "c8", "complex128": "c16", "float32": "f4", "float64": "f8"}
_COMPLEX, _REAL, _IMAGINARY = "", "_real", "_imag"  # newer code stores the two parts of the numbers


class RotaryFault(NamedTuple):
    """A stored table that is not the formula's.

    key: in the checkpoint.
    why: how it differs, in words.
    cause: the same without what holds of this table alone.
    random: whether its values are random phases, which no trained model has and generated checkpoints do.
    """

    key: str
    why: str
    cause: str
    random: bool


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


def random_tables(count: int) -> str:
    """A note on tables of random phases."""
    return (
        f"{count} rotary tables (freqs_cis) of the checkpoint hold random phases, as generated test files do and no "
        "trained model; the target computes its own"
    )


def rotary_faults(plan: Plan, source: BinaryIO) -> Iterator[RotaryFault]:
    """The tables of the checkpoint that are not what the target computes. ``source``: the checkpoint, opened.

    None if only parts of the checkpoint are on this machine.
    """
    vision = plan.architecture.vision
    if vision is None or plan.options.component != "all" or plan.checkpoint.partial:
        return
    tables: dict[int, dict[str, Dropped]] = {}
    for dropped in plan.dropped.values():
        if not dropped.copy and (match := _KEY.fullmatch(dropped.canonical)):
            tables.setdefault(int(match[1]), {})[match[2]] = dropped
    for block, forms in tables.items():
        for form in ([_COMPLEX], [_REAL, _IMAGINARY]):
            parts = [forms[part].source for part in form if part in forms]
            if parts:
                yield from _fault(parts, len(form), block, vision, plan.architecture.sizes["patch"], source)


def _fault(
    parts: list[StoredTensor], wanted_parts: int, block: int, vision: Vision, patch: int, source: BinaryIO
) -> Iterator[RotaryFault]:
    """``parts``: one tensor of complex numbers, or their real and imaginary parts."""
    import numpy as np

    stored, key = parts[0], parts[0].key
    if len(parts) != wanted_parts:
        why = "is one part of complex numbers; the other is missing"
        yield RotaryFault(key, why, why, False)
        return
    everywhere = block in vision.global_attn_indexes
    side = vision.image_size // patch if everywhere else vision.window_size
    shape = (side * side, stored.shape[-1] if stored.shape else 0)
    kind = "complex" if wanted_parts == 1 else "float"
    fits = all(part.dtype in _NUMPY and part.dtype.startswith(kind) and part.shape == shape for part in parts)
    if not fits or shape[1] % 2:
        text = "x".join(map(str, stored.shape))
        why = f"is {stored.dtype} {text}; the target computes complex numbers for {side} x {side} patches"
        yield RotaryFault(key, why, why, False)
        return
    values = [np.frombuffer(read_tensor(source, part), _NUMPY[part.dtype]).reshape(shape) for part in parts]
    table = values[0].astype("c16") if wanted_parts == 1 else values[0] + 1j * values[1].astype("f8")
    wanted = axial_table(side, shape[1], vision.window_size)
    if not np.isfinite(table).all():
        lost = int((~np.isfinite(table)).sum())
        why = f"{lost:,} of {table.size:,} values are NaN or infinite"
        yield RotaryFault(key, why, "holds NaN or infinity", False)
        return
    worst = float(np.abs(table - wanted).max())
    if worst <= TOLERANCE:
        return
    if np.abs(table - wanted.conj()).max() <= TOLERANCE:
        cause = "is conjugated: it turns the other way than the table that the target computes"
    elif (table == table.flat[0]).all():
        cause = f"is {table.flat[0]:g} everywhere: nothing is turned; the target computes a table"
    elif _random(table, side):
        yield RotaryFault(key, "holds random phases", "hold random phases", True)
        return
    else:
        cause = "is not the table that the target computes (axial, base 10000)"
    yield RotaryFault(key, f"{cause}; max abs diff {worst:.3g}", cause, False)


def _random(table: np.ndarray, side: int) -> bool:
    """Whether values are of length one and in no order: from one patch to the next they turn by no constant angle."""
    import numpy as np

    if np.abs(np.abs(table) - 1).max() > 1e-3 or side < 3:
        return False
    rows = table.reshape(side, side, -1)
    steps = rows[:, 1:] * rows[:, :-1].conj()
    # 1 in each column of a table that turns evenly; of n random steps about 1/sqrt(n).
    return float(np.abs(steps.mean(axis=(0, 1))).mean()) < 0.5
