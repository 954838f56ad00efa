"""The graph of the text encoder: ids of a fixed length in, the features that the detector reads out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sam3lite_convert.graph.builder import GraphBuilder
from sam3lite_convert.graph.sizes import TextSizes
from sam3lite_convert.plan.architecture import CLIP_POSITION_TABLE, POSITION_TABLE, TEXT

_ENCODER = f"{TEXT}encoder."
# Of every norm, and of BatchNorm (specification of the original encoder).
_EPS = 1e-5
IDS, FEATURES, MASK, POOLED = "input_ids", "text_features", "text_mask", "pooled"


@dataclass(frozen=True)
class _LayerNames:
    """What the original calls the parts of a transformer layer, behind the layer's own prefix.

    norm1, norm2: with their dot. The others: of the matrix, whose bias stands beside it.
    """

    norm1: str
    qkv: str
    out: str
    norm2: str
    fc1: str
    fc2: str


@dataclass(frozen=True)
class _Names:
    """What the original calls the parts of a text encoder.

    layers, final_norm: with their dot. projector: of the matrix, whose bias stands beside it.
    """

    words: str
    positions: str
    layers: str
    layer: _LayerNames
    final_norm: str
    projector: str
    pooled: str


_MOBILECLIP = _Names(
    words=f"{_ENCODER}embedding_layer.weight",
    positions=POSITION_TABLE,
    layers=f"{_ENCODER}transformer.",
    layer=_LayerNames(
        norm1="pre_norm_mha.0.",
        qkv="pre_norm_mha.1.qkv_proj.weight",
        out="pre_norm_mha.1.out_proj.weight",
        norm2="pre_norm_ffn.0.",
        fc1="pre_norm_ffn.1.weight",
        fc2="pre_norm_ffn.4.weight",
    ),
    final_norm=f"{_ENCODER}final_layer_norm.",
    projector=f"{TEXT}projector.weight",
    pooled=f"{_ENCODER}projection_layer",
)
# SAM3's own: the same transformer layers, all of them causal, and no others.
_CLIP = _Names(
    words=f"{_ENCODER}token_embedding.weight",
    positions=CLIP_POSITION_TABLE,
    layers=f"{_ENCODER}transformer.resblocks.",
    layer=_LayerNames(
        norm1="ln_1.",
        qkv="attn.in_proj_weight",
        out="attn.out_proj.weight",
        norm2="ln_2.",
        fc1="mlp.c_fc.weight",
        fc2="mlp.c_proj.weight",
    ),
    final_norm=f"{_ENCODER}ln_final.",
    projector=f"{TEXT}resizer.weight",
    pooled=f"{_ENCODER}text_projection",
)


def text_graph(b: GraphBuilder, s: TextSizes, prefix: str = "") -> None:
    """Build the text encoder. ``prefix``: put before the names of its taps."""
    names = _CLIP if _CLIP.words in b.weights else _MOBILECLIP
    tokens, width = s.context, s.width
    ids = b.input(
        IDS,
        "int64",
        ["batch", tokens],
        f"{tokens} token ids a prompt: start, the prompt's, end, then zeros. {about_padding(s.causal)}",
    )
    three: list[int | str] = ["batch", tokens, width]
    rows = b.node("Gather", "embeddings.rows", b.weight(b.weights.one(names.words)), ids)
    table = b.weight(b.weights.one(names.positions).seen_as(tokens, width))
    x = b.tap(f"{prefix}embeddings", b.node("Add", "embeddings", rows, table), three)
    for i in range(s.layers):
        at, block = f"layers.{i}", f"{names.layers}{i}."
        if f"{block}{names.layer.norm1}weight" in b.weights:
            x = _transformer(b, s, names.layer, at, block, x)
        else:
            x = _repmixer(b, s, at, block, x)
        b.tap(f"{prefix}{at}", x, three)
    x = b.layer_norm("final_layer_norm", x, names.final_norm, _EPS)
    b.tap(f"{prefix}final_layer_norm", x, three)
    flat = b.linear("projected", b.reshape("tokens", x, -1, width), names.projector)
    features = b.reshape(FEATURES, flat, -1, tokens, s.output)
    b.tap(f"{prefix}projected", features, ["batch", tokens, s.output])
    b.output(features, b.dtype, ["batch", tokens, s.output], "what the detector reads of each token")
    b.output(b.cast(MASK, ids, "bool"), "bool", ["batch", tokens], "true for a token, false for padding")
    # The first greatest id: the end token has the greatest of all.
    at = b.node("ArgMax", "pooled.at", ids, axis=1, keepdims=1, select_last_index=0)
    picked = b.node("GatherND", "pooled.token", x, at, batch_dims=1)
    matrix = b.weights.one(names.pooled)
    b.node("Gemm", POOLED, picked, b.weight(matrix), transB=int(matrix.transposed))
    b.tap(f"{prefix}{POOLED}", POOLED, ["batch", s.pooled])
    b.output(POOLED, b.dtype, ["batch", s.pooled], "the end token, projected; the detector does not read it")


def about_padding(causal: bool) -> str:
    """What a caller needs to know of the padding, in words."""
    if causal:
        return "There is no attention mask: no token attends to one behind it, so that padding changes no other token."
    return "There is no attention mask: the text encoder attends to the padding, as the original's does."


def _transformer(b: GraphBuilder, s: TextSizes, names: _LayerNames, at: str, block: str, x: str) -> str:
    """A pre-norm transformer layer. ``block``: its prefix in the original. ``x``: (batch, tokens, width)."""
    tokens, width, heads = s.context, s.width, s.heads
    x = b.reshape(f"{at}.in", x, -1, width)
    normed = b.layer_norm(f"{at}.norm1", x, block + names.norm1, _EPS)
    parts = b.qkv(at, normed, block + names.qkv)
    q, k, v = (b.heads(part, part, tokens, heads, width, transposed=part.endswith("k")) for part in parts)
    q = b.node("Mul", f"{at}.scaled", q, b.floats((width // heads) ** -0.5, "scale"))
    scores = b.node("MatMul", f"{at}.scores", q, k)
    if s.causal:
        ahead = np.triu(np.full((tokens, tokens), -np.inf), 1)
        scores = b.node("Add", f"{at}.masked", scores, b.floats(ahead, "causal_mask"))
    mixed = b.node("MatMul", f"{at}.mixed", b.softmax(f"{at}.softmax", scores), v)
    joined = b.reshape(f"{at}.joined", b.node("Transpose", f"{at}.back", mixed, perm=[0, 2, 1, 3]), -1, width)
    x = b.node("Add", f"{at}.attended", x, b.linear(f"{at}.out", joined, block + names.out))
    normed = b.layer_norm(f"{at}.norm2", x, block + names.norm2, _EPS)
    hidden = b.node("Gelu", f"{at}.gelu", b.linear(f"{at}.fc1", normed, block + names.fc1))
    x = b.node("Add", f"{at}.sum", x, b.linear(f"{at}.fc2", hidden, block + names.fc2))
    return b.reshape(at, x, -1, tokens, width)


def _repmixer(b: GraphBuilder, s: TextSizes, at: str, block: str, x: str) -> str:
    """A RepMixer block, over the sequence as an image of height 1. ``x``: (batch, tokens, width)."""
    tokens, width = s.context, s.width
    turned = b.node("Transpose", f"{at}.turned", x, perm=[0, 2, 1])
    image = b.reshape(f"{at}.image", turned, -1, width, 1, tokens)
    mixer = f"{block}token_mixer."
    conv = _conv_norm(b, f"{at}.conv", f"{mixer}mixer.rbr_conv.0.", image)
    skip = _batch_norm(b, f"{at}.skip", f"{mixer}mixer.rbr_skip.", image)
    both = b.node("Add", f"{at}.mixer", conv, skip)
    apart = b.node("Sub", f"{at}.apart", both, _batch_norm(b, f"{at}.norm", f"{mixer}norm.rbr_skip.", image))
    scaled = b.node("Mul", f"{at}.mixer_scaled", b.weight(b.weights.one(f"{mixer}layer_scale")), apart)
    image = b.node("Add", f"{at}.mixed", image, scaled)
    ffn = f"{block}convffn."
    y = _conv_norm(b, f"{at}.ffn_conv", f"{ffn}conv.", image)
    y = b.node("Gelu", f"{at}.gelu", b.conv(f"{at}.fc1", y, f"{ffn}fc1."))
    y = b.conv(f"{at}.fc2", y, f"{ffn}fc2.")
    scaled = b.node("Mul", f"{at}.ffn_scaled", b.weight(b.weights.one(f"{block}layer_scale")), y)
    image = b.node("Add", f"{at}.sum", image, scaled)
    turned = b.reshape(f"{at}.sequence", image, -1, width, tokens)
    return b.node("Transpose", at, turned, perm=[0, 2, 1])


def _conv_norm(b: GraphBuilder, name: str, prefix: str, x: str) -> str:
    """A depthwise convolution along the sequence, and BatchNorm."""
    kernel = b.weights.one(f"{prefix}conv.weight")
    side = kernel.shape[-1] // 2
    y = b.node("Conv", name, x, b.weight(kernel), group=kernel.shape[0], pads=[0, side, 0, side])
    return _batch_norm(b, f"{name}_norm", f"{prefix}bn.", y)


def _batch_norm(b: GraphBuilder, name: str, prefix: str, x: str) -> str:
    parts = (b.weight(b.weights.one(prefix + part)) for part in ("weight", "bias", "running_mean", "running_var"))
    return b.node("BatchNormalization", name, x, *parts, epsilon=_EPS)
