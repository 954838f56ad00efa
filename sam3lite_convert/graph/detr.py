"""The DETR encoder, which mixes the prompt into the map, and the decoder, which finds boxes in it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sam3lite_convert.graph.boxes import corners, logit
from sam3lite_convert.graph.builder import GraphBuilder
from sam3lite_convert.graph.layers import attention, feed_forward, norm, perceptron, pre_norm_layer
from sam3lite_convert.graph.positions import sine_nodes
from sam3lite_convert.graph.sizes import DetectorSizes
from sam3lite_convert.plan.detector_constants import BIAS_SCALE

_ENCODER, _DECODER = "transformer.encoder.", "transformer.decoder."
_TABLES = ("presence_token", "query_embed", "reference_points")
_AXES = {"x": (0, 2), "y": (1, 3)}  # which corners lie on an axis


@dataclass(frozen=True)
class Prompt:
    """What prompts are made of.

    tokens: (prompts, tokens, width), of the text and then of the boxes.
    padding: (prompts, tokens).
    scores: what the padding adds to the scores of an attention, (prompts, 1, 1, tokens).
    count: how many prompts there are, a list of one number.
    """

    tokens: str
    padding: str
    scores: str
    count: str


def detr_encoder(b: GraphBuilder, s: DetectorSizes, cells: str, position: str, prompt: Prompt) -> str:
    """The map with the prompt in it, (prompts, cells, width); there is no last norm.

    cells, position: (images, cells, width).
    """
    x = cells
    for i in range(s.encoder_layers):
        at, block, lengths = f"encoder.layers.{i}", f"{_ENCODER}layers.{i}.", (s.cells, None)
        x = pre_norm_layer(
            b, at, block, s.encoder_heads, x, prompt.tokens, prompt.tokens, lengths, position, None, prompt.scores
        )
        b.tap(at, x, ["prompts", s.cells, s.width])
    return x


@dataclass(frozen=True)
class Found:
    """What the decoder found: the queries of each layer, normed, (prompts, queries, width); boxes (prompts, queries,
    4); the presence logit of the last layer, (prompts, 1, 1)."""

    queries: tuple[str, ...]
    boxes: str
    presence: str


def detr_decoder(b: GraphBuilder, s: DetectorSizes, memory: str, position: str, prompt: Prompt) -> Found:
    """Find boxes. ``memory``: (prompts, cells, width); ``position``: (images, cells, width)."""
    key = b.node("Add", "decoder.key", memory, position)
    presence, queries, boxes = _start(b, s, prompt)
    found, logit_of_presence = [], ""
    for i in range(s.decoder_layers):
        at = f"decoder.layers.{i}"
        # The presence token has no position and no bias: a row of zeros before those of the queries.
        placed = b.node("Pad", f"{at}.placed", _query_position(b, s, i, boxes), b.ints(0, 1, 0, 0, 0, 0))
        z = b.node("Concat", f"{at}.tokens", presence, queries, axis=1)
        z = _layer(b, s, i, z, placed, prompt, key, memory, _bias(b, s, i, boxes))
        # Both are taps: the next layer reads them, and not what they were cut from.
        presence, queries = names = (f"decoder.presence.{i}", f"decoder.queries.{i}")
        b.node("Split", names, z, b.ints(1, s.queries), axis=1)
        b.tap(presence, presence, ["prompts", 1, s.width])
        b.tap(queries, queries, ["prompts", s.queries, s.width])
        normed = norm(b, f"decoder.normed.{i}", queries, f"{_DECODER}norm.")
        found.append(b.tap(f"decoder.normed.{i}", normed, ["prompts", s.queries, s.width]))
        boxes = _moved(b, s, i, boxes, normed)
        logit_of_presence = _presence(b, s, i, presence)
    return Found(tuple(found), boxes, logit_of_presence)


def _start(b: GraphBuilder, s: DetectorSizes, prompt: Prompt) -> tuple[str, str, str]:
    """The presence token (prompts, 1, width), the queries (prompts, queries, width) and their boxes (prompts, queries,
    4): the same for every prompt."""
    tables = {name: b.weight(b.weights.one(f"{_DECODER}{name}.weight")) for name in _TABLES}
    tables["reference_points"] = b.node("Sigmoid", "decoder.start.boxes", tables["reference_points"])
    found = []
    for name, rows, width in zip(_TABLES, (1, s.queries, s.queries), (s.width, s.width, 4), strict=True):
        shape = b.node("Concat", f"decoder.start.{name}.shape", prompt.count, b.ints(rows, width), axis=0)
        found.append(b.node("Expand", f"decoder.start.{name}", tables[name], shape))
    presence, queries, boxes = found
    return presence, queries, boxes


def _query_position(b: GraphBuilder, s: DetectorSizes, layer: int, boxes: str) -> str:
    """The position of each query, from sine codes of its box's cy, cx, w and h: (prompts, queries, width)."""
    name = f"decoder.query_position.{layer}"
    ordered = b.node("Gather", f"{name}.ordered", b.widened(f"{name}.wide", boxes), b.ints(1, 0, 2, 3), axis=2)
    values = b.node("Unsqueeze", f"{name}.values", ordered, b.ints(3))
    code = b.narrowed(f"{name}.narrow", sine_nodes(b, f"{name}.code", values, s.width // 2))
    rows = b.reshape(f"{name}.rows", code, -1, 2 * s.width)
    found = b.reshape(name, perceptron(b, name, rows, f"{_DECODER}ref_point_head.", 2), -1, s.queries, s.width)
    return b.tap(name, found, ["prompts", s.queries, s.width])


def _bias(b: GraphBuilder, s: DetectorSizes, layer: int, boxes: str) -> str:
    """What the place of a cell, seen from the edges of a box, adds to its score: (prompts, heads, 1 + queries, cells).

    Its first row, of the presence token, is zeros.
    """
    at = f"decoder.layers.{layer}.bias"
    half = b.constant("half_wide", np.array(0.5, np.float32))
    edges = corners(b, f"{at}.corners", b.widened(f"{at}.boxes", boxes), half)
    along = {}
    for axis, places in _AXES.items():
        name = f"decoder.rpb_{axis}.{layer}"
        rows = b.reshape(f"{name}.rows", _distances(b, s, name, edges, places), -1, 2)
        flat = perceptron(b, name, rows, f"{_DECODER}boxRPB_embed_{axis}.", 2)
        found = b.reshape(name, flat, -1, s.queries, s.grid, s.decoder_heads)
        b.tap(name, found, ["prompts", s.queries, s.grid, s.decoder_heads])
        by_head = b.node("Transpose", f"{name}.by_head", found, perm=[0, 3, 1, 2])
        longer = b.node("Pad", f"{name}.longer", by_head, b.ints(0, 0, 1, 0, 0, 0, 0, 0))
        along[axis] = b.node("Unsqueeze", f"{name}.spread", longer, b.ints(3 if axis == "x" else 4))
    both = b.node("Add", f"{at}.sum", along["y"], along["x"])
    return b.reshape(at, both, -1, s.decoder_heads, 1 + s.queries, s.cells)


def _distances(b: GraphBuilder, s: DetectorSizes, name: str, edges: str, places: tuple[int, int]) -> str:
    """From two edges of each box to the cells of an axis, on a logarithmic scale: (prompts, queries, grid, 2).

    In float32 whatever the dtype of the graph, and rounded once.
    """
    fixed = {
        f"cells_{s.grid}": (np.arange(s.grid) / s.grid)[:, None],
        "bias_scale": BIAS_SCALE,
        "one_wide": 1.0,
        "ln_scale": math.log(BIAS_SCALE),
    }
    cells, scale, one, ln_scale = (b.constant(key, np.array(value, np.float32)) for key, value in fixed.items())
    two = b.node("Gather", f"{name}.edges", edges, b.ints(*places), axis=2)
    away = b.node("Sub", f"{name}.away", cells, b.node("Unsqueeze", f"{name}.edges_1", two, b.ints(2)))
    scaled = b.node("Mul", f"{name}.scaled", away, scale)
    longer = b.node("Add", f"{name}.plus", b.node("Abs", f"{name}.abs", scaled), one)
    # To the base of BIAS_SCALE: log2(x) / log2(BIAS_SCALE).
    log = b.node("Div", f"{name}.log", b.node("Log", f"{name}.ln", longer), ln_scale)
    far = b.node("Mul", f"{name}.distances", b.node("Sign", f"{name}.sign", scaled), log)
    return b.narrowed(f"{name}.narrow", far)


def _layer(
    b: GraphBuilder,
    s: DetectorSizes,
    layer: int,
    z: str,
    placed: str,
    prompt: Prompt,
    key: str,
    memory: str,
    bias: str,
) -> str:
    """A post-norm layer over the presence token and the queries: (prompts, 1 + queries, width)."""
    at, block, heads, own = f"decoder.layers.{layer}", f"{_DECODER}layers.{layer}.", s.decoder_heads, 1 + s.queries
    moved = b.node("Add", f"{at}.self.placed", z, placed)
    found = attention(b, f"{at}.self", f"{block}self_attn.", heads, moved, moved, z, (own, own))
    z = norm(b, f"{at}.norm2", b.node("Add", f"{at}.sum1", z, found), f"{block}norm2.")
    moved = b.node("Add", f"{at}.text.placed", z, placed)
    tokens, scores = prompt.tokens, prompt.scores
    found = attention(b, f"{at}.text", f"{block}ca_text.", heads, moved, tokens, tokens, (own, None), scores)
    z = norm(b, f"{at}.catext_norm", b.node("Add", f"{at}.sum2", z, found), f"{block}catext_norm.")
    moved = b.node("Add", f"{at}.cross.placed", z, placed)
    found = attention(b, f"{at}.cross", f"{block}cross_attn.", heads, moved, key, memory, (own, s.cells), bias)
    z = norm(b, f"{at}.norm1", b.node("Add", f"{at}.sum3", z, found), f"{block}norm1.")
    total = b.node("Add", f"{at}.sum4", z, feed_forward(b, f"{at}.mlp", z, block, own))
    return norm(b, at, total, f"{block}norm3.")


def _moved(b: GraphBuilder, s: DetectorSizes, layer: int, boxes: str, normed: str) -> str:
    """The boxes that a layer makes of those before it: (prompts, queries, 4)."""
    name = f"decoder.box_delta.{layer}"
    rows = perceptron(b, name, b.reshape(f"{name}.rows", normed, -1, s.width), f"{_DECODER}bbox_embed.", 3)
    delta = b.tap(name, b.reshape(name, rows, -1, s.queries, 4), ["prompts", s.queries, 4])
    at = f"decoder.boxes.{layer}"
    return b.node("Sigmoid", at, b.node("Add", f"{at}.logits", delta, logit(b, f"{at}.before", boxes)))


def _presence(b: GraphBuilder, s: DetectorSizes, layer: int, token: str) -> str:
    """The logit of the presence token, (prompts, 1, 1), not clamped."""
    normed = norm(b, f"decoder.presence_norm.{layer}", token, f"{_DECODER}presence_token_out_norm.")
    b.tap(f"decoder.presence_norm.{layer}", normed, ["prompts", 1, s.width])
    name = f"decoder.presence_logit.{layer}"
    rows = perceptron(b, name, b.reshape(f"{name}.rows", normed, -1, s.width), f"{_DECODER}presence_token_head.", 3)
    return b.tap(name, b.reshape(name, rows, -1, 1, 1), ["prompts", 1, 1])
