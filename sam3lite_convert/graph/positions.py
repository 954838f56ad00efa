"""Codes of positions as constants of a graph, in float32: sines of the DETR parts, rotations of the ViT.

What is large is made in the graph, of one-dimensional tables: a row of a map has the same codes in every column.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sam3lite_convert.graph.builder import GraphBuilder
from sam3lite_convert.plan.detector_constants import ROTARY_BASE, SINE_BASE, SINE_EPS

Floats = NDArray[np.float32]


def wavelengths(channels: int) -> Floats:
    """What an angle is divided by in each channel of a sine code: (channels)."""
    pair = np.arange(channels, dtype=np.float32) // 2
    return _power(SINE_BASE, 2 * pair / np.float32(channels))


def sine_code(values: Floats, channels: int) -> Floats:
    """Sines (even channels) and cosines (odd) of 2 pi ``values`` at falling frequencies: (..., channels)."""
    angles = (values * np.float32(2 * np.pi))[..., None] / wavelengths(channels)
    wide = angles.astype(np.float64)
    return np.where(np.arange(channels) % 2 == 0, np.sin(wide), np.cos(wide)).astype(np.float32)


def sine_nodes(b: GraphBuilder, name: str, values: str, channels: int) -> str:
    """The same of values (..., 1) that the graph computes, in float32: (..., channels)."""
    turns = b.node("Mul", f"{name}.turns", values, b.constant("two_pi", np.array(2 * np.pi, np.float32)))
    angles = b.node("Div", f"{name}.angles", turns, b.constant(f"wavelengths_{channels}", wavelengths(channels)))
    even = b.constant(f"even_{channels}", np.arange(channels) % 2 == 0)
    return b.node("Where", name, even, b.node("Sin", f"{name}.sin", angles), b.node("Cos", f"{name}.cos", angles))


def position_map(b: GraphBuilder, name: str, width: int, rows: int, columns: int) -> str:
    """The position map of a feature map: (1, width, rows, columns).

    Rows are in the first half of the channels, columns in the second.
    """
    halves = []
    for axis, n, shape in (("y", rows, (1, -1, rows, 1)), ("x", columns, (1, -1, 1, columns))):
        places = np.arange(1, n + 1, dtype=np.float32) / np.float32(n + SINE_EPS)
        code = b.floats(sine_code(places, width // 2).T.reshape(shape), f"{name}.{axis}")
        halves.append(b.node("Expand", f"{name}.{axis}_map", code, b.ints(1, width // 2, rows, columns)))
    return b.node("Concat", name, *halves, axis=1)


class Rotations(NamedTuple):
    """Rotations of the tokens of a grid, as values of a graph in float32. ``pairs``: half the width of a head.

    cosine: (tokens, 1, pairs). sine: (tokens, 2, pairs), negated in the first of the two.
    turned: the same two as (1, pairs, tokens) and (2, pairs, tokens).
    """

    cosine: str
    sine: str
    turned: tuple[str, str]


def rotary_angles(side: int, scale: float, head: int) -> Floats:
    """The angles of a row of ``side`` tokens: (side, head / 4). ``scale``: distance between neighbours."""
    frequencies = 1 / _power(ROTARY_BASE, np.arange(0, head, 4, dtype=np.float32) / np.float32(head))
    places = np.arange(side, dtype=np.float32) * np.float32(scale)
    return np.outer(places, frequencies)


def rotations(b: GraphBuilder, name: str, side: int, scale: float, head: int) -> Rotations:
    """Rotations of a ``side`` x ``side`` grid.

    The first half of the pairs turns with a token's column, the second with its row, both times ``scale``.
    """
    angles = rotary_angles(side, scale, head).astype(np.float64)
    made = {}
    for part, values in (("cosine", np.cos(angles)), ("sine", np.sin(angles))):
        line = b.constant(f"{name}.{part}_line", values.astype(np.float32))
        halves = []
        for axis, shape in (("x", (1, side, head // 4)), ("y", (side, 1, head // 4))):
            one = b.reshape(f"{name}.{part}_{axis}", line, *shape)
            halves.append(b.node("Expand", f"{name}.{part}_{axis}_grid", one, b.ints(side, side, head // 4)))
        both = b.node("Concat", f"{name}.{part}_grid", *halves, axis=-1)
        made[part] = b.reshape(f"{name}.{part}", both, side * side, 1, head // 2)
    less = b.node("Neg", f"{name}.less_sine", made["sine"])
    sine = b.node("Concat", f"{name}.signed_sine", less, made["sine"], axis=1)
    turned = [b.node("Transpose", f"{value}.t", value, perm=[1, 2, 0]) for value in (made["cosine"], sine)]
    return Rotations(made["cosine"], sine, (turned[0], turned[1]))


def rotated(
    b: GraphBuilder, name: str, x: str, tokens: int, heads: int, width: int, by: Rotations, transposed: bool = False
) -> str:
    """Split (rows, width) into heads and rotate neighbouring channels, as complex numbers, in float32.

    The result is (batch, heads, tokens, head width), or with the last two exchanged. The channels of a head are in
    another order, real parts first: products of queries and keys that were both rotated are the same in any order.
    """
    pairs = width // heads // 2
    split = b.reshape(f"{name}.pairs", x, -1, tokens, heads, pairs, 2)
    perm = [0, 2, 4, 3, 1] if transposed else [0, 2, 1, 4, 3]
    parts = b.widened(f"{name}.wide", b.node("Transpose", f"{name}.parts", split, perm=perm))
    cosine, sine = by.turned if transposed else (by.cosine, by.sine)
    kept = b.node("Mul", f"{name}.cosine", parts, cosine)
    swapped = b.node("Gather", f"{name}.swapped", parts, b.ints(1, 0), axis=2 if transposed else 3)
    turned = b.node("Add", f"{name}.sum", kept, b.node("Mul", f"{name}.sine", swapped, sine))
    turned = b.narrowed(f"{name}.narrow", turned)
    last = (2 * pairs, tokens) if transposed else (tokens, 2 * pairs)
    return b.reshape(f"{name}.rotated", turned, -1, heads, *last)


def _power(base: float, exponents: Floats) -> Floats:
    """Powers of a number, right to the last bit of float32."""
    return (base ** exponents.astype(np.float64)).astype(np.float32)
