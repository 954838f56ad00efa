"""The geometry encoder: box prompts as tokens, and a class token behind the last valid one."""

from __future__ import annotations

import numpy as np

from sam3lite_convert.graph.boxes import corners
from sam3lite_convert.graph.builder import GraphBuilder
from sam3lite_convert.graph.layers import linear, norm, padding_scores, pre_norm_layer, unflatten
from sam3lite_convert.graph.positions import sine_nodes
from sam3lite_convert.graph.sizes import DetectorSizes

_PREFIX = "geometry_encoder."
# Of (cx, cy, w, h): what the sine codes are made of, and what stands behind them.
_ORDERS = {"yx": (1, 0), "hw": (3, 2)}


def geometry_encoder(
    b: GraphBuilder, s: DetectorSizes, image: tuple[str, str, str], boxes: str, labels: str, padded: str
) -> tuple[str, str]:
    """Tokens (prompts, boxes + 1, width), and where they are padding (prompts, boxes + 1).

    image: the coarsest map (images, width, grid, grid), the same as a sequence (images, cells, width), and the
        positions of that.
    boxes, labels, padded: (prompts, boxes, 4), (prompts, boxes) and (prompts, boxes).
    """
    features, cells, position = image
    embedded = _embedded(b, s, features, boxes, labels)
    # The class token stands behind the last valid box, so that padded boxes stay behind it.
    longer = b.node("Pad", "geometry.longer", embedded, b.ints(0, 0, 0, 0, 1, 0))
    valid = b.cast("geometry.valid", b.node("Not", "geometry.not_padded", padded), "int64")
    count = b.node("ReduceSum", "geometry.count", valid, b.ints(1), keepdims=1)
    after = b.node("Add", "geometry.length", _count(b, "geometry.boxes", padded, axis=1), b.number(1))
    at = b.node("Range", "geometry.at", b.number(0), after, b.number(1))
    is_class = b.node("Unsqueeze", "geometry.is_class", b.node("Equal", "geometry.is_next", at, count), b.ints(2))
    token = b.weight(b.weights.one(f"{_PREFIX}cls_embed.weight"))
    sequence = b.node("Where", "geometry.sequence", is_class, token, longer)
    padding = b.node("Greater", "geometry.padding", at, count)

    three: list[int | str] = ["prompts", "boxes_and_class", s.width]
    projected = linear(b, "geometry.final_proj", sequence, f"{_PREFIX}final_proj.weight", None)
    x = norm(b, "geometry.norm", b.tap("geometry.final_proj", projected, three), f"{_PREFIX}norm.")
    b.tap("geometry.norm", x, three)
    key = b.node("Add", "geometry.key", cells, position)
    scores = padding_scores(b, "geometry.scores", padding)
    for i in range(s.geometry_layers):
        at, block = f"geometry.layers.{i}", f"{_PREFIX}encode.{i}."
        lengths = None, s.cells
        x = pre_norm_layer(b, at, block, s.geometry_heads, x, key, cells, lengths, self_scores=scores)
        b.tap(at, x, three)
    return b.tap("geometry.output", norm(b, "geometry.output", x, f"{_PREFIX}encode_norm."), three), padding


def _embedded(b: GraphBuilder, s: DetectorSizes, features: str, boxes: str, labels: str) -> str:
    """A token a box, from its numbers, what lies under it, its place, and its label: (prompts, boxes, width)."""
    at = "geometry.box"
    three: list[int | str] = ["prompts", "boxes", s.width]
    rows = b.reshape(f"{at}.rows", boxes, -1, 4)
    flat = b.linear(f"{at}.direct", rows, f"{_PREFIX}boxes_direct_project.weight")
    direct = b.tap("geometry.box_direct", unflatten(b, "geometry.box_direct", flat, boxes, None, s.width), three)
    pooled = unflatten(b, f"{at}.pooled", _pooled(b, s, features, boxes, rows), boxes, None, s.width)

    wide = b.widened(f"{at}.wide", rows)
    (yx, hw) = (b.node("Gather", f"{at}.{word}", wide, b.ints(*axes), axis=1) for word, axes in _ORDERS.items())
    code = sine_nodes(b, f"{at}.code", b.node("Unsqueeze", f"{at}.values", yx, b.ints(2)), s.width // 2)
    whole = b.node("Concat", f"{at}.numbers", b.reshape(f"{at}.codes", code, -1, s.width), hw, axis=1)
    flat = b.linear(f"{at}.place", b.narrowed(f"{at}.narrow", whole), f"{_PREFIX}boxes_pos_enc_project.weight")
    place = b.tap("geometry.box_position", unflatten(b, "geometry.box_position", flat, boxes, None, s.width), three)

    table = b.weight(b.weights.one(f"{_PREFIX}label_embed.weight"))
    label = b.tap("geometry.box_label", b.node("Gather", "geometry.box_label", table, labels), three)
    seen = b.node("Add", f"{at}.seen", direct, pooled)
    return b.node("Add", f"{at}.embedded", label, b.node("Add", f"{at}.placed", seen, place))


def _pooled(b: GraphBuilder, s: DetectorSizes, features: str, boxes: str, rows: str) -> str:
    """What lies under each box, convolved: (prompts * boxes, width, 1, 1). ``rows``: (prompts * boxes, 4)."""
    at, roi = "geometry.pool", s.roi
    channels_last = b.node("Transpose", f"{at}.last", features, perm=[0, 2, 3, 1])
    normed = norm(b, f"{at}.norm", channels_last, f"{_PREFIX}img_pre_norm.")
    maps = b.widened(f"{at}.maps", b.node("Transpose", f"{at}.first", normed, perm=[0, 3, 1, 2]))
    relative = corners(
        b, f"{at}.corners", b.widened(f"{at}.wide", rows), b.constant("half_wide", np.array(0.5, np.float32))
    )
    in_cells = b.node("Mul", f"{at}.cells", relative, b.constant("grid_wide", np.array(s.grid, np.float32)))
    # Which image a box belongs to: that of its prompt, or the only one.
    upto = b.node("Range", f"{at}.upto", b.number(0), _count(b, f"{at}.prompts", boxes, axis=0), b.number(1))
    prompt = b.node("Unsqueeze", f"{at}.prompt", upto, b.ints(1))
    last = b.node("Sub", f"{at}.last_image", b.node("Shape", f"{at}.images", features, start=0, end=1), b.ints(1))
    dims = b.node("Shape", f"{at}.dims", boxes, start=0, end=2)
    image = b.node("Expand", f"{at}.image", b.node("Min", f"{at}.own", prompt, last), dims)
    under = b.node(
        "RoiAlign",
        f"{at}.aligned",
        maps,
        in_cells,
        b.reshape(f"{at}.image_rows", image, -1),
        mode="avg",
        output_height=roi,
        output_width=roi,
        sampling_ratio=0,
        # No half cell is taken off the start.
        coordinate_transformation_mode="output_half_pixel",
    )
    # The convolution covers the whole of what it is given: a matrix.
    flat = b.reshape(f"{at}.flat", b.narrowed(f"{at}.narrow", under), -1, s.width * roi * roi)
    kernel, bias = (b.weights.one(f"{_PREFIX}boxes_pool_project.{part}") for part in ("weight", "bias"))
    found = b.gemm(f"{at}.product", flat, kernel.seen_as(kernel.shape[0], s.width * roi * roi), bias)
    pooled = b.reshape("geometry.box_pooled", found, -1, s.width, 1, 1)
    return b.tap("geometry.box_pooled", pooled, ["prompts_x_boxes", s.width, 1, 1])


def _count(b: GraphBuilder, name: str, x: str, axis: int) -> str:
    """How many places x has along an axis, as Range reads it."""
    return b.node("Squeeze", name, b.node("Shape", f"{name}.dim", x, start=axis, end=axis + 1), b.ints(0))
