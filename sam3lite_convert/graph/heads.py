"""What is read off the queries: how well each fits the prompt, and its mask."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sam3lite_convert.convert.packed_config import GROUPS
from sam3lite_convert.graph.builder import GraphBuilder
from sam3lite_convert.graph.detr import Prompt
from sam3lite_convert.graph.layers import attention, norm, perceptron, unflatten
from sam3lite_convert.graph.sizes import DetectorSizes
from sam3lite_convert.plan.detector_constants import NORM_EPS, SCORE_LIMIT

_SCORING, _MASKS = "dot_prod_scoring.", "segmentation_head."


def scoring(b: GraphBuilder, s: DetectorSizes, queries: Sequence[str], prompt: Prompt) -> str:
    """Queries against the mean of the prompt: logits (layers, prompts, queries, 1).

    queries: of each layer, (prompts, queries, width).
    """
    at, layers = "scoring", len(queries)
    rows = b.reshape(f"{at}.rows", prompt.tokens, -1, s.width)
    hidden = perceptron(b, f"{at}.mlp", rows, f"{_SCORING}prompt_mlp.", 2)
    moved = unflatten(b, f"{at}.moved", hidden, prompt.tokens, None, s.width)
    summed = b.node("Add", f"{at}.sum", prompt.tokens, moved)
    tokens = norm(b, "scoring.prompt_mlp", summed, f"{_SCORING}prompt_mlp.out_norm.")
    b.tap("scoring.prompt_mlp", tokens, ["prompts", "tokens", s.width])
    is_valid = b.node("Unsqueeze", f"{at}.is_valid", b.node("Not", f"{at}.not_padding", prompt.padding), b.ints(2))
    valid = b.node("Where", f"{at}.valid", is_valid, b.floats(1.0, "one"), b.floats(0.0, "zero"))
    total, count = (
        b.node("ReduceSum", f"{at}.{name}", x, b.ints(1), keepdims=0)
        for name, x in (("total", b.node("Mul", f"{at}.counted", tokens, valid)), ("count", valid))
    )
    mean = b.node("Div", f"{at}.mean", total, b.node("Max", f"{at}.count_1", count, b.floats(1.0, "one")))
    wanted = b.linear("scoring.prompt", mean, f"{_SCORING}prompt_proj.weight")
    (width,) = b.weights.shape(f"{_SCORING}prompt_proj.bias")
    b.tap("scoring.prompt", wanted, ["prompts", width])

    apart = [b.node("Unsqueeze", f"{at}.layer.{i}", x, b.ints(0)) for i, x in enumerate(queries)]
    flat = b.reshape(f"{at}.queries.rows", b.node("Concat", f"{at}.layers", *apart, axis=0), -1, s.width)
    product = b.linear(f"{at}.queries.product", flat, f"{_SCORING}hs_proj.weight")
    projected = b.reshape("scoring.queries", product, layers, -1, s.queries, width)
    b.tap("scoring.queries", projected, [layers, "prompts", s.queries, width])
    scores = b.node("MatMul", f"{at}.scores", projected, b.node("Unsqueeze", f"{at}.column", wanted, b.ints(2)))
    scaled = b.node("Div", f"{at}.scaled", scores, b.floats(math.sqrt(width), "root_width"))
    least, most = (b.floats(sign * SCORE_LIMIT, name) for sign, name in ((-1, "least_score"), (1, "greatest_score")))
    clipped = b.node("Clip", "scoring.logits", scaled, least, most)
    return b.tap("scoring.logits", clipped, [layers, "prompts", s.queries, 1])


def masks(
    b: GraphBuilder, s: DetectorSizes, queries: str, maps: Sequence[str], memory: str, prompt: Prompt
) -> tuple[str, str]:
    """Masks (prompts, queries, h, w) and the semantic map (prompts, 1, h, w), logits, in the size of the finest map.

    queries: (prompts, queries, width), of the last layer.
    maps: the images', finest first. The memory (prompts, cells, width) takes the place of the last.
    """
    three: list[int | str] = ["prompts", s.cells, s.width]
    normed = b.tap("masks.prompt_norm", norm(b, "masks.prompt_norm", memory, f"{_MASKS}cross_attn_norm."), three)
    name, prefix, lengths = "masks.prompt_attention", f"{_MASKS}cross_attend_prompt.", (s.cells, None)
    tokens, scores = prompt.tokens, prompt.scores
    attended = attention(b, name, prefix, s.mask_heads, normed, tokens, tokens, lengths, scores)
    encoded = b.node("Add", "masks.encoded", memory, b.tap(name, attended, three))
    turned = b.node("Transpose", "masks.turned", encoded, perm=[0, 2, 1])
    coarsest = b.reshape("masks.coarsest", turned, -1, s.width, s.grid, s.grid)
    side, finest = s.sides[0], s.sides[0] * s.sides[0]
    pixels = _pixel_decoder(b, s, coarsest, maps)
    four: list[int | str] = ["prompts", s.width, side, side]
    b.tap("masks.pixel_decoder", pixels, four)

    instances = b.tap("masks.instance", b.conv("masks.instance", pixels, f"{_MASKS}instance_seg_head."), four)
    rows = b.reshape("masks.queries", queries, -1, s.width)
    filters = perceptron(b, "masks.mask_embed", rows, f"{_MASKS}mask_predictor.mask_embed.", 3)
    embedded = b.reshape("masks.mask_embed", filters, -1, s.queries, s.width)
    b.tap("masks.mask_embed", embedded, ["prompts", s.queries, s.width])
    flat = b.node("MatMul", "masks.flat", embedded, b.reshape("masks.pixels", instances, -1, s.width, finest))
    # With the prompts' number, so that a number of images that does not fit is refused.
    shape = b.node("Concat", "masks.shape", prompt.count, b.ints(s.queries, side, side), axis=0)
    semantic = b.tap(
        "masks.semantic", b.conv("masks.semantic", pixels, f"{_MASKS}semantic_seg_head."), ["prompts", 1, side, side]
    )
    return b.node("Reshape", "pred_masks", flat, shape), semantic


def _pixel_decoder(b: GraphBuilder, s: DetectorSizes, y: str, maps: Sequence[str]) -> str:
    """The maps from the coarsest to the finest, each added to what came before it."""
    sides, prefix = s.sides, f"{_MASKS}pixel_decoder."
    for stage, level in enumerate(range(len(maps) - 2, -1, -1)):
        at, times = f"masks.stages.{stage}", sides[level] / sides[level + 1]
        scales = b.constant(f"times_{times:g}", np.array([1, 1, times, times], np.float32))
        larger = b.node(
            "Resize",
            f"{at}.larger",
            y,
            "",
            scales,
            mode="nearest",
            nearest_mode="floor",
            coordinate_transformation_mode="asymmetric",
        )
        both = b.node("Add", f"{at}.sum", maps[level], larger)
        found = b.conv(f"{at}.conv", both, f"{prefix}conv_layers.{stage}.", pads=[1, 1, 1, 1])
        last = level == 0
        y = b.node(
            "Relu", "masks.pixel_decoder" if last else at, _group_norm(b, s, f"{at}.norm", found, stage, sides[level])
        )
    return y


def _group_norm(b: GraphBuilder, s: DetectorSizes, name: str, x: str, stage: int, side: int) -> str:
    """GroupNorm, written out, in float32: onnxruntime's own is 5.9e-5 off on a map of 288 x 288."""
    wide = b.widened(f"{name}.wide", x)
    grouped = b.reshape(f"{name}.grouped", wide, -1, GROUPS, s.width // GROUPS, side, side)
    apart = b.node("Sub", f"{name}.apart", grouped, _mean(b, f"{name}.mean", grouped))
    variance = _mean(b, f"{name}.variance", b.node("Mul", f"{name}.square", apart, apart))
    above = b.node("Add", f"{name}.above", variance, b.constant("eps_wide", np.array(NORM_EPS, np.float32)))
    normed = b.node("Div", f"{name}.normed", apart, b.node("Sqrt", f"{name}.deviation", above))
    back = b.narrowed(f"{name}.narrow", b.reshape(f"{name}.back", normed, -1, s.width, side, side))
    scale, bias = (
        b.weight(b.weights.one(f"{_MASKS}pixel_decoder.norms.{stage}.{part}").seen_as(s.width, 1, 1))
        for part in ("weight", "bias")
    )
    return b.node("Add", name, b.node("Mul", f"{name}.scaled", back, scale), bias)


def _mean(b: GraphBuilder, name: str, x: str) -> str:
    """The mean over the last three axes, one after another: a sum of millions of values in one go is 4e-5 off."""
    for axis in (4, 3, 2):
        x = b.node("ReduceMean", name if axis == 2 else f"{name}.{axis}", x, b.ints(axis))
    return x
