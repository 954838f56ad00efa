"""Layers that the graphs of the detector are made of, by the names of the original's weights.

A sequence is a value (batch, length, width). Its length is a number, or None if it is free. Where two sequences of one
layer have the batches 1 and n, the result has n: operators broadcast, nothing is copied.
"""

from __future__ import annotations

import numpy as np

from sam3lite_convert.graph.builder import GraphBuilder
from sam3lite_convert.graph.weights import StoredWeight
from sam3lite_convert.plan.detector_constants import NORM_EPS

Length = int | None
_SCORES_LIMIT = 1 << 26  # bytes of attention scores that are made at once, of one picture


def norm(b: GraphBuilder, name: str, x: str, prefix: str) -> str:
    """LayerNorm over the last axis, with the detector's eps. ``prefix``: of its weight and bias, with its dot."""
    return b.layer_norm(name, x, prefix, NORM_EPS)


def unflatten(b: GraphBuilder, name: str, rows: str, like: str, length: Length, *last: int) -> str:
    """Rows (batch * length, ...) as (batch, length, *last). ``like``: a value with that batch and length."""
    if length is not None:
        return b.reshape(name, rows, -1, length, *last)
    dims = b.node("Shape", f"{name}.dims", like, start=0, end=2)
    # Without allowzero a dimension of 0, as of no boxes, would be taken from the same place in ``rows``.
    return b.node("Reshape", name, rows, b.node("Concat", f"{name}.shape", dims, b.ints(*last), axis=0), allowzero=1)


def linear(b: GraphBuilder, name: str, x: str, weight: str, length: Length) -> str:
    """A linear layer over a sequence. ``weight``: the original's name of its matrix; the bias stands beside it."""
    out, width = b.weights.shape(weight)
    rows = b.linear(f"{name}.product", b.reshape(f"{name}.rows", x, -1, width), weight)
    return unflatten(b, name, rows, x, length, out)


def perceptron(b: GraphBuilder, name: str, rows: str, prefix: str, layers: int) -> str:
    """Linear layers ``prefix`` + ``layers.{i}.`` with ReLU between them, over rows (n, width)."""
    for i in range(layers):
        last = i == layers - 1
        x = b.linear(f"{name}.{i}" if not last else f"{name}.product", rows, f"{prefix}layers.{i}.weight")
        rows = x if last else b.node("Relu", f"{name}.{i}.relu", x)
    return rows


def feed_forward(b: GraphBuilder, name: str, x: str, prefix: str, length: Length) -> str:
    """``linear1``, ReLU, ``linear2`` over a sequence."""
    out, width = b.weights.shape(f"{prefix}linear2.weight")[0], b.weights.shape(f"{prefix}linear1.weight")[1]
    hidden = b.linear(f"{name}.linear1", b.reshape(f"{name}.rows", x, -1, width), f"{prefix}linear1.weight")
    rows = b.linear(f"{name}.linear2", b.node("Relu", f"{name}.relu", hidden), f"{prefix}linear2.weight")
    return unflatten(b, name, rows, x, length, out)


def padding_scores(b: GraphBuilder, name: str, padding: str) -> str:
    """What padding (batch, length), true where it is, adds to the scores of an attention: (batch, 1, 1, length)."""
    added = b.node("Where", f"{name}.added", padding, b.floats(-np.inf, "minus_infinity"), b.floats(0.0, "zero"))
    return b.node("Unsqueeze", name, added, b.ints(1, 2))


def attention(
    b: GraphBuilder,
    name: str,
    prefix: str,
    heads: int,
    query: str,
    key: str,
    value: str,
    lengths: tuple[Length, Length],
    scores: str | None = None,
) -> str:
    """Multi-head attention of torch's kind. ``prefix``: of ``in_proj_weight`` and the others, with its dot.

    lengths: of the query, and of key and value. scores: what is added to the scores, broadcast to (batch, heads, query,
    key).
    """
    mine, theirs = lengths
    matrices, biases = (_thirds(b, f"{prefix}in_proj_{part}") for part in ("weight", "bias"))
    width = b.weights.shape(f"{prefix}out_proj.weight")[1]
    parts = []
    for part, x, length, matrix, bias in zip(
        "qkv", (query, key, value), (mine, theirs, theirs), matrices, biases, strict=True
    ):
        at = f"{name}.{part}"
        rows = b.node("Gemm", at, b.reshape(f"{at}.rows", x, -1, width), matrix, bias, transB=1)
        split = unflatten(b, f"{at}.heads", rows, x, length, heads, width // heads)
        perm = [0, 2, 3, 1] if part == "k" else [0, 2, 1, 3]
        parts.append(b.node("Transpose", f"{at}.t", split, perm=perm))
    q = b.node("Mul", f"{name}.scaled", parts[0], b.floats((width // heads) ** -0.5, f"scale_{width // heads}"))
    chunks = chunks_of(heads, mine, theirs) if mine and theirs and scores is None else ()
    back = b.node(
        "Transpose", f"{name}.back", attend(b, name, q, parts[1], parts[2], chunks, scores), perm=[0, 2, 1, 3]
    )
    joined = b.linear(f"{name}.out", b.reshape(f"{name}.joined", back, -1, width), f"{prefix}out_proj.weight")
    return unflatten(b, name, joined, back, mine, width)


def chunks_of(heads: int, queries: int, keys: int) -> tuple[int, ...]:
    """How many queries are attended at once, chunk by chunk.

    A graph keeps every value whole: all scores of a grid of 72 x 72 cells are 1.7 GB in the ViT. So they are made chunk
    by chunk, which is fixed when the graph is written. A batch takes as many times the memory as it has pictures.
    """
    count = -(-4 * heads * queries * keys // _SCORES_LIMIT)
    return tuple(len(part) for part in np.array_split(np.arange(queries), count))


def attend(
    b: GraphBuilder, name: str, q: str, k: str, v: str, chunks: tuple[int, ...], scores: str | None = None
) -> str:
    """The values mixed for each query, (batch, heads, queries, head width).

    q: scaled, of the result's shape. k: (batch, heads, head width, keys). v: (batch, heads, keys, head width).
    chunks: of ``chunks_of``. scores: what is added to the scores of all queries, which then are one chunk.
    """
    parts = [q]
    if len(chunks) > 1:
        parts = [f"{name}.queries.{n}" for n in range(len(chunks))]
        b.node("Split", parts, q, b.ints(*chunks), axis=2)
    mixed = []
    for n, part in enumerate(parts):
        end = f".{n}" if len(parts) > 1 else ""
        found = b.node("MatMul", f"{name}.scores{end}", part, k)
        if scores is not None:
            found = b.node("Add", f"{name}.biased{end}", found, scores)
        mixed.append(b.node("MatMul", f"{name}.mixed{end}", b.softmax(f"{name}.softmax{end}", found), v))
    return mixed[0] if len(mixed) == 1 else b.node("Concat", f"{name}.mixed", *mixed, axis=2)


def _thirds(b: GraphBuilder, name: str) -> tuple[str, ...]:
    """The parts of q, k and v of a tensor, which the folder holds in one or in three."""
    found: tuple[StoredWeight, ...] = b.weights.parts(name)
    if len(found) == 3:
        return tuple(map(b.weight, found))
    names = [f"{name}.{part}" for part in "qkv"]
    return tuple(b.node("Split", names, b.weight(found[0]), axis=0, num_outputs=3))


def pre_norm_layer(
    b: GraphBuilder,
    name: str,
    prefix: str,
    heads: int,
    x: str,
    key: str,
    value: str,
    lengths: tuple[Length, Length],
    position: str | None = None,
    self_scores: str | None = None,
    cross_scores: str | None = None,
) -> str:
    """A layer of the geometry encoder and of the DETR encoder: attention to itself, to another sequence, an MLP.

    key, value: of the other sequence. lengths: of both. position: added to the query and key of the attention to
    itself. self_scores, cross_scores: what is added to the scores of the two.
    """
    own = lengths[0]
    t = norm(b, f"{name}.norm1", x, f"{prefix}norm1.")
    placed = t if position is None else b.node("Add", f"{name}.placed", t, position)
    found = attention(b, f"{name}.self", f"{prefix}self_attn.", heads, placed, placed, t, (own, own), self_scores)
    x = b.node("Add", f"{name}.sum1", x, found)
    t = norm(b, f"{name}.norm2", x, f"{prefix}norm2.")
    found = attention(b, f"{name}.cross", f"{prefix}cross_attn_image.", heads, t, key, value, lengths, cross_scores)
    x = b.node("Add", f"{name}.sum2", x, found)
    t = norm(b, f"{name}.norm3", x, f"{prefix}norm3.")
    return b.node("Add", name, x, feed_forward(b, f"{name}.mlp", t, prefix, own))
