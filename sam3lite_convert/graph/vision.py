"""The graph of the image side: a ViT with windows, and the neck that makes maps of several sizes of its last one."""

from __future__ import annotations

import numpy as np

from sam3lite_convert.errors import CannotRun
from sam3lite_convert.graph.builder import Dim, GraphBuilder
from sam3lite_convert.graph.layers import attend, chunks_of
from sam3lite_convert.graph.positions import Rotations, rotated, rotations
from sam3lite_convert.graph.sizes import VisionSizes
from sam3lite_convert.plan.architecture import VISION, has_class_row

_TRUNK = f"{VISION}trunk."
_EPS = 1e-5  # of every norm (specification of the original detector)
_MOST_PATCHES = 128  # along a side: the tables of positions stay small, and the chunks of attention few
IMAGE = "image"
# Steps of a level of the neck before its two convolutions, by its size relative to the grid.
_SCALING = {4.0: ("dconv_2x2_0", "gelu", "dconv_2x2_1"), 2.0: ("dconv_2x2",), 1.0: ()}


def vision_graph(b: GraphBuilder, s: VisionSizes, size: int, prefix: str = "") -> None:
    """Build the image side. ``size``: of the pictures, in pixels. ``prefix``: put before the names of its taps.

    Raises CannotRun if the size is not a multiple of the patch, or too large.
    """
    side, width = s.grid(size), s.width
    if side > _MOST_PATCHES:
        raise CannotRun(f"--size {size}: graphs are for pictures of up to {_MOST_PATCHES * s.patch} pixels", "usage")
    image = b.input(
        IMAGE,
        b.dtype,
        ["batch", s.channels, size, size],
        f"pictures, resized to {size} x {size} without keeping their aspect: red, green, blue from -1 to 1",
    )
    four: list[Dim] = ["batch", side, side, width]
    x = _embedded(b, s, prefix, image, side)
    x = b.tap(f"{prefix}trunk.ln_pre", b.layer_norm("trunk.ln_pre", x, f"{_TRUNK}ln_pre.", _EPS), four)
    window = rotations(b, "trunk.window", s.window, 1.0, s.head)
    # Distances over the whole grid are scaled to those in a window, which the model was trained on first.
    whole = rotations(b, "trunk.whole", side, s.window / side, s.head)
    for i in range(s.layers):
        inside = None if i in s.global_blocks else s.window
        x = _block(b, s, i, x, side, inside, whole if inside is None else window)
        b.tap(f"{prefix}trunk.blocks.{i}", x, four)
    image = b.node("Transpose", "neck.in", x, perm=[0, 3, 1, 2])
    for i, factor in enumerate(s.factors):
        cells = int(side * factor)
        shape: list[Dim] = ["batch", s.hidden, cells, cells]
        level = b.tap(f"{prefix}neck.{i}", _level(b, i, factor, image), shape)
        b.output(level, b.dtype, shape, f"features of the pictures, {cells} x {cells}")


def map_name(level: int) -> str:
    """The name of the output of a level of the neck, 0 the finest."""
    return f"map_{level}"


def _embedded(b: GraphBuilder, s: VisionSizes, prefix: str, image: str, side: int) -> str:
    """Patches, and a table of positions that is tiled over the grid: (batch, side, side, width)."""
    kernel = b.weight(b.weights.one(f"{_TRUNK}patch_embed.proj.weight"))
    patches = b.node("Conv", "trunk.patches", image, kernel, strides=[s.patch, s.patch])
    rows = b.reshape("trunk.patches.rows", patches, -1, s.width, side * side)
    patches = b.node("Transpose", "trunk.patch_embed", rows, perm=[0, 2, 1])
    b.tap(f"{prefix}trunk.patch_embed", patches, ["batch", side * side, s.width])
    stored = b.weights.one(f"{_TRUNK}pos_embed")
    table = b.weight(stored)
    if has_class_row(stored.shape[1]):
        table = b.node("Slice", "trunk.positions.cells", table, b.ints(1), b.ints(stored.shape[1]), b.ints(1))
    table = b.reshape("trunk.positions.table", table, 1, s.pretrain, s.pretrain, s.width)
    cells = b.constant("trunk.positions.cell", np.arange(side) % s.pretrain)
    for axis, name in ((1, "trunk.positions.rows"), (2, "trunk.positions")):
        table = b.node("Gather", name, table, cells, axis=axis)
    return b.node("Add", "trunk.placed", b.reshape("trunk.grid", patches, -1, side, side, s.width), table)


def _block(b: GraphBuilder, s: VisionSizes, i: int, x: str, side: int, window: int | None, by: Rotations) -> str:
    """A pre-norm block. ``x``: (batch, side, side, width). ``window``: side of its windows; None for the whole grid."""
    at, block, width = f"trunk.blocks.{i}", f"{_TRUNK}blocks.{i}.", s.width
    normed = b.layer_norm(f"{at}.norm1", x, f"{block}norm1.", _EPS)
    if window is None:
        mixed = _attention(b, s, at, block, b.reshape(f"{at}.rows", normed, -1, width), side * side, 1, by)
        mixed = b.reshape(f"{at}.grid", mixed, -1, side, side, width)
    else:
        across = -(-side // window)
        rows = _windows(b, at, normed, side, window, width)
        mixed = _attention(b, s, at, block, rows, window * window, across * across, by)
        mixed = _from_windows(b, at, mixed, side, window, width)
    x = b.node("Add", f"{at}.attended", x, mixed)
    rows = b.reshape(f"{at}.mlp_rows", b.layer_norm(f"{at}.norm2", x, f"{block}norm2.", _EPS), -1, width)
    hidden = b.node("Gelu", f"{at}.gelu", b.linear(f"{at}.fc1", rows, f"{block}mlp.fc1.weight"))
    mixed = b.linear(f"{at}.fc2", hidden, f"{block}mlp.fc2.weight")
    return b.node("Add", at, x, b.reshape(f"{at}.mlp", mixed, -1, side, side, width))


def _windows(b: GraphBuilder, at: str, x: str, side: int, window: int, width: int) -> str:
    """The rows of one window after another. What is padded with zeros takes part in the attention."""
    across = -(-side // window)
    if missing := across * window - side:
        x = b.node("Pad", f"{at}.padded", x, b.ints(0, 0, 0, 0, 0, missing, missing, 0))
    tiles = b.reshape(f"{at}.tiles", x, -1, across, window, across, window, width)
    return b.reshape(f"{at}.rows", b.node("Transpose", f"{at}.windows", tiles, perm=[0, 1, 3, 2, 4, 5]), -1, width)


def _from_windows(b: GraphBuilder, at: str, rows: str, side: int, window: int, width: int) -> str:
    """The inverse of ``_windows``: (batch, side, side, width)."""
    across = -(-side // window)
    windows = b.reshape(f"{at}.windows_back", rows, -1, across, across, window, window, width)
    tiles = b.node("Transpose", f"{at}.tiles_back", windows, perm=[0, 1, 3, 2, 4, 5])
    grid = b.reshape(f"{at}.grid", tiles, -1, across * window, across * window, width)
    if across * window == side:
        return grid
    return b.node("Slice", f"{at}.cut", grid, b.ints(0, 0), b.ints(side, side), b.ints(1, 2))


def _attention(
    b: GraphBuilder, s: VisionSizes, at: str, block: str, rows: str, tokens: int, windows: int, by: Rotations
) -> str:
    """Self-attention with rotated queries and keys. ``rows``: (batch * windows * tokens, width)."""
    q, k, v = b.qkv(at, rows, f"{block}attn.qkv.weight")
    q = rotated(b, q, q, tokens, s.heads, s.width, by)
    k = rotated(b, k, k, tokens, s.heads, s.width, by, transposed=True)
    v = b.heads(v, v, tokens, s.heads, s.width)
    q = b.node("Mul", f"{at}.scaled", q, b.floats(s.head**-0.5, "trunk.scale"))
    mixed = attend(b, at, q, k, v, chunks_of(windows * s.heads, tokens, tokens))
    joined = b.reshape(f"{at}.joined", b.node("Transpose", f"{at}.back", mixed, perm=[0, 2, 1, 3]), -1, s.width)
    return b.linear(f"{at}.out", joined, f"{block}attn.proj.weight")


def _level(b: GraphBuilder, i: int, factor: float, x: str) -> str:
    """One level of the neck: the map, ``factor`` times as large, in the detector's width.

    x: (batch, width, h, w).
    """
    at, level = f"neck.{i}", f"{VISION}convs.{i}."
    for step in _SCALING[factor]:
        if step == "gelu":
            x = b.node("Gelu", f"{at}.gelu", x)
        else:
            x = b.conv(f"{at}.{step}", x, f"{level}{step}.", op="ConvTranspose", strides=[2, 2])
    x = b.conv(f"{at}.conv_1x1", x, f"{level}conv_1x1.")
    return b.conv(map_name(i), x, f"{level}conv_3x3.", pads=[1, 1, 1, 1])
