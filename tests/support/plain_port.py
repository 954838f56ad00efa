"""A port of the text encoder as somebody outside would write it: plain torch functions over a dict of weights.

Written from the specification of the original alone; it shares no code with ``original_ref`` or ``sam3lite_convert``.
``FAULTS`` are mistakes that can be made in it, ``VARIATIONS`` are other ways to compute the same.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

EMBEDDING = "encoder.embedding_layer.weight"
POSITIONS = "encoder.positional_embedding.pos_embed.pos_embed"
POOLING = "encoder.projection_layer"
KERNELS = ("token_mixer.mixer.rbr_conv.0.conv.weight", "convffn.conv.conv.weight")
HEAD_DIM = 64


@dataclass(frozen=True)
class Fault:
    """A mistake in the port.

    ``part``: where it is made: ``embeddings``, ``layer`` (of any kind), ``transformer``, ``repmixer``,
    ``final_layer_norm``, ``projected`` or ``pooled``.
    ``causes``: keys of the hypotheses that name it; ``{heads}`` stands for the wrong number of heads. More than one
    where two mistakes compute the same.
    ``needs``: what makes it visible: ``heads`` (more than one), ``length`` (ids of another length than the table),
    ``short`` (ids shorter than the table), ``long`` (longer), ``cut`` (a table with more rows than the context),
    ``square`` (a projector as wide as the tokens), ``small`` (tokens of a small variance).
    """

    part: str
    causes: tuple[str, ...]
    needs: str = ""

    def tap(self, weights: Mapping[str, Tensor]) -> str | None:
        """The first tap that it changes if it is made wherever it can be; None if this encoder has no such part."""
        kinds = [_is_repmixer(_stripped(weights), i) for i in range(_depth(_stripped(weights)))]
        if self.part == "layer":
            return "layers.0"
        if self.part in ("transformer", "repmixer"):
            wanted = self.part == "repmixer"
            return f"layers.{kinds.index(wanted)}" if wanted in kinds else None
        return self.part


FAULTS: dict[str, Fault] = {
    # embeddings
    "embedding times sqrt(dim)": Fault("embeddings", ("scaled:sqrt",)),
    "sum times sqrt(dim)": Fault("embeddings", ("scaled_sum:sqrt",)),
    "no positions": Fault("embeddings", ("no_positions",)),
    "positions one late": Fault("embeddings", ("positions_shifted:+1",)),
    "positions one late, the last row twice": Fault("embeddings", ("positions_shifted:+1",)),
    "positions one early, zero first": Fault("embeddings", ("positions_shifted:-1",)),
    "positions past the padding (fairseq)": Fault("embeddings", ("positions_shifted:+2",)),
    "positions cut": Fault("embeddings", ("positions_cut",), "short"),
    "positions with aligned corners": Fault("embeddings", ("align_corners",), "length"),
    "positions by the nearest row": Fault("embeddings", ("positions_nearest",), "length"),
    "positions end with the last row": Fault("embeddings", ("positions_clamped",), "long"),
    "positions end with zeros": Fault("embeddings", ("positions_zero",), "long"),
    "positions begin again": Fault("embeddings", ("positions_wrapped",), "long"),
    "positions stretched": Fault("embeddings", ("positions_not_cut",), "cut"),
    "padding embedded as zero": Fault("embeddings", ("pad_zero",)),
    "padded with the end id": Fault("embeddings", ("padded_with_end",)),
    "ids without the start id": Fault("embeddings", ("ids_shifted:+1",)),
    "start id twice": Fault("embeddings", ("ids_shifted:-1",)),
    # any layer
    "tanh GELU": Fault("layer", ("gelu_tanh",)),
    "quick GELU": Fault("layer", ("quick_gelu",)),
    "SiLU": Fault("layer", ("silu",)),
    "ReLU": Fault("layer", ("relu",)),
    "no activation": Fault("layer", ("no_activation",)),
    # transformer layers
    "no attention scale": Fault("transformer", ("no_query_scale",)),
    "attention scaled by width": Fault("transformer", ("query_scaled_by_width",), "heads"),
    "attention scaled twice": Fault("transformer", ("query_scaled_twice",)),
    "attention scaled by head_dim": Fault("transformer", ("query_scaled_twice",)),
    "twice the heads": Fault("transformer", ("heads:{heads}",)),
    "qkv head by head": Fault("transformer", ("qkv_by_head",), "heads"),
    "qkv row by row": Fault("transformer", ("qkv_by_row",)),
    "heads innermost in qkv": Fault("transformer", ("qkv_heads_innermost",), "heads"),
    "heads merged without transposing": Fault("transformer", ("heads_not_transposed",), "heads"),
    "heads interleaved": Fault("transformer", ("heads_interleaved",), "heads"),
    "heads interleaved throughout": Fault("transformer", ("heads_interleaved_throughout",), "heads"),
    "q and k swapped": Fault("transformer", ("qkv_order:kqv",)),
    "q and v swapped": Fault("transformer", ("qkv_order:vkq",)),
    "v, q, k": Fault("transformer", ("qkv_order:vqk",)),
    "softmax over the queries": Fault("transformer", ("softmax_over_queries",)),
    "causal mask": Fault("transformer", ("causal",)),
    "padding masked": Fault("transformer", ("padding_masked",)),
    "no attention residual": Fault("transformer", ("no_attention_residual",)),
    "no FFN residual": Fault("transformer", ("no_ffn_residual",)),
    "residual of the normed": Fault("transformer", ("residual_after_norm",)),
    "post-norm": Fault("transformer", ("post_norm",)),
    "no attention norm": Fault("transformer", ("no_norm:pre_norm_mha.0",)),
    "no FFN norm": Fault("transformer", ("no_norm:pre_norm_ffn.0",)),
    "LayerNorm eps 1e-6": Fault("transformer", ("layernorm_eps_1e-06",), "small"),
    "LayerNorm eps 1e-12": Fault("transformer", ("layernorm_eps_1e-12",), "small"),
    "LayerNorm eps 1e-3": Fault("transformer", ("layernorm_eps_0.001",)),
    "LayerNorm with n - 1": Fault("transformer", ("layernorm_unbiased",)),
    "RMSNorm": Fault("transformer", ("rms_norm",)),
    "no qkv bias": Fault("transformer", ("no_bias:pre_norm_mha.1.qkv_proj.bias",)),
    "no out_proj bias": Fault("transformer", ("no_bias:pre_norm_mha.1.out_proj.bias",)),
    "no second FFN bias": Fault("transformer", ("no_bias:pre_norm_ffn.4.bias",)),
    "out_proj transposed": Fault("transformer", ("transposed:out_proj",)),
    # RepMixer blocks
    "BatchNorm eps 1e-3": Fault("repmixer", ("batchnorm_eps_0.001",)),
    "BatchNorm eps 1e-6": Fault("repmixer", ("batchnorm_eps_1e-06",)),
    "BatchNorm in training mode": Fault("repmixer", ("batchnorm_training",)),
    "no layer scales": Fault("repmixer", ("no_layer_scale:layer_scale,token_mixer.layer_scale",)),
    "no layer scale": Fault("repmixer", ("no_layer_scale:layer_scale",)),
    "true convolution": Fault("repmixer", ("flipped:both",)),
    "causal convolution": Fault("repmixer", ("convolution_causal",)),
    "convolution padded with the edge": Fault("repmixer", ("convolution_padding:replicate",)),
    "no RepMixer residual": Fault("repmixer", ("no_mixer_residual",)),
    "no ConvFFN residual": Fault("repmixer", ("no_convffn_residual",)),
    "no reference norm": Fault("repmixer", ("no_reference_norm",)),
    "no skip branch": Fault("repmixer", ("no_skip",)),
    "no second ConvFFN bias": Fault("repmixer", ("no_bias:convffn.fc2.bias",)),
    "RepMixer blocks left out": Fault("repmixer", ("no_layer",)),
    # the ends
    "no final norm": Fault("final_layer_norm", ("no_final_norm",)),
    "final norm eps 1e-3": Fault("final_layer_norm", ("layernorm_eps_0.001",)),
    "projector without bias": Fault("projected", ("no_bias:bias",)),
    "projector before the norm": Fault("projected", ("before_norm",)),
    "projected tokens normalised": Fault("projected", ("normalised",)),
    "projector transposed": Fault("projected", ("transposed:projector",), "square"),
    "pooling matrix transposed": Fault("pooled", ("projection_untransposed",)),
    "pooled at the last position": Fault("pooled", ("pool_last",)),
    "pooled at the first position": Fault("pooled", ("pool_first",)),
    "mean pooled": Fault("pooled", ("pool_mean",)),
    "pooled but not projected": Fault("pooled", ("not_projected",)),
    "pooled before the norm": Fault("pooled", ("pool_before_norm",)),
    "pooled and normalised": Fault("pooled", ("normalised",)),
}

VARIATIONS: dict[str, str] = {
    # of the whole run
    "float64": "everything in float64",
    "float64, rounded": "everything in float64, the activations rounded to float32",
    "row by row": "a batch of one for each row",
    "two chunks": "the batch in two chunks",
    "reversed batch": "the rows in the opposite order",
    "larger batch": "the rows three times over, the first copy read",
    "one thread": "torch on one thread",
    "four threads": "torch on four threads",
    "sequence first": "tokens as (sequence, batch, width)",
    # embeddings
    "one-hot embedding": "a product with one-hot rows",
    "positions by hand": "the position table resized by its own linear interpolation",
    # attention
    "sdpa": "torch's scaled_dot_product_attention",
    "torch attention": "torch's multi_head_attention_forward",
    "torch layer": "torch's own TransformerEncoderLayer",
    "split qkv": "three projections for q, k and v",
    "head by head": "a loop over the heads",
    "einsum attention": "attention by einsum",
    "softmax by hand": "exp(x - max) / sum",
    "scores scaled": "the scores are scaled, not the query",
    "query and key scaled": "query and key both scaled by head_dim^-0.25",
    "in-place additions": "the residual is added in place",
    # arithmetic
    "erf GELU": "GELU by its formula with erf",
    "LayerNorm by hand": "mean, variance and rsqrt",
    "LayerNorm in float64": "LayerNorm computed in float64",
    "matmul and bias": "x @ weight.T + bias",
    # RepMixer blocks
    "BatchNorm folded": "BatchNorm folded into the convolution in front of it",
    "BatchNorm as scale and shift": "x * scale + shift",
    "mixer folded": "the whole token mixer as one convolution",
    "conv1d": "one-dimensional convolutions",
    "unfolded convolution": "windows times the kernel",
    "convolution by shifts": "a sum of shifted products",
    "convolution as a matrix": "a banded matrix for each channel",
    "pointwise as linear": "Linear layers in place of 1x1 convolutions",
    "channels last": "channels-last memory",
    # the ends
    "one-hot pooling": "the pooled token picked by a product",
}


@dataclass(frozen=True)
class _Way:
    """How a part is computed: with which mistakes, and in which way."""

    faults: frozenset[str] = frozenset()
    variation: str | None = None
    heads: int = 1
    context: int | None = None

    def __contains__(self, name: str) -> bool:
        return name in self.faults or name == self.variation


def run_port(
    weights: Mapping[str, Tensor],
    ids: Tensor,
    heads: int | None = None,
    fault: str | None = None,
    variation: str | None = None,
    faults_in: Mapping[str, Collection[int]] | None = None,
    context: int | None = None,
    causal: bool = False,
) -> dict[str, Tensor]:
    """What the port computes at every tap, by its name, in the order of execution.

    ``weights``: by the original's keys, with or without what stands in front of ``encoder.`` and ``projector.``.
    ``ids``: (batch, sequence).
    ``heads``: by default one for every 64 columns.
    ``fault``: a key of FAULTS, made wherever it can be made.
    ``variation``: a key of VARIATIONS.
    ``faults_in``: key of FAULTS -> the layers that have it; for faults of a layer.
    ``context``: rows of the position table that are used, by default all.
    ``causal``: whether the original has a causal mask.
    """
    faults_in = faults_in or {}
    unknown = [name for name in (fault, *faults_in) if name is not None and name not in FAULTS]
    if unknown or (variation is not None and variation not in VARIATIONS):
        raise KeyError(f"no such fault or variation: {unknown or variation}")
    held = _stripped(weights)
    width = held[EMBEDDING].shape[1]
    way = _Way(frozenset({fault} - {None}), variation, heads or width // HEAD_DIM, context)  # type: ignore[arg-type]
    if "padded with the end id" in way:
        ids = torch.where(_behind_end(ids), ids.max(), ids)
    elif "ids without the start id" in way:
        ids = torch.cat([ids[:, 1:], torch.zeros_like(ids[:, :1])], 1)
    elif "start id twice" in way:
        ids = torch.cat([ids[:, :1], ids[:, :-1]], 1)
    if variation in ("float64", "float64, rounded"):
        held = {k: t.double() if t.is_floating_point() else t for k, t in held.items()}

    def run(rows: Tensor) -> dict[str, Tensor]:
        return _forward(held, rows, way, faults_in, causal)

    with torch.no_grad(), _threads({"one thread": 1, "four threads": 4}.get(variation or "")):
        if variation in ("row by row", "two chunks"):
            pieces = [run(rows) for rows in ids.split(1 if variation == "row by row" else (len(ids) + 1) // 2)]
            return {tap: torch.cat([piece[tap] for piece in pieces]) for tap in pieces[0]}
        if variation == "reversed batch":
            return {tap: t.flip(0) for tap, t in run(ids.flip(0)).items()}
        if variation == "larger batch":
            return {tap: t[: len(ids)] for tap, t in run(ids.repeat(3, 1)).items()}
        if variation == "float64, rounded":
            return {tap: t.float() for tap, t in run(ids).items()}
        return run(ids)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _stripped(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    (first,) = [k for k in weights if k.endswith(EMBEDDING)]
    prefix = first.removesuffix(EMBEDDING)
    return {k.removeprefix(prefix): t for k, t in weights.items() if k.startswith(prefix)}


def _depth(w: Mapping[str, Tensor]) -> int:
    return 1 + max(int(k.split(".")[2]) for k in w if k.startswith("encoder.transformer."))


def _is_repmixer(w: Mapping[str, Tensor], layer: int) -> bool:
    return f"encoder.transformer.{layer}.layer_scale" in w


def _behind_end(ids: Tensor) -> Tensor:
    return torch.arange(ids.shape[1]) > ids.argmax(-1, keepdim=True)


# ---- the encoder


def _forward(
    w: Mapping[str, Tensor], ids: Tensor, way: _Way, faults_in: Mapping[str, Collection[int]], causal: bool
) -> dict[str, Tensor]:
    taps = {"embeddings": _embed(w, ids, way)}
    x = taps["embeddings"]
    mask = None
    if causal:
        mask = torch.full((ids.shape[1],) * 2, -math.inf, dtype=x.dtype).triu(1)
    for i in range(_depth(w)):
        start = f"encoder.transformer.{i}."
        block = {k.removeprefix(start): t for k, t in w.items() if k.startswith(start)}
        here = replace(way, faults=way.faults | {name for name, layers in faults_in.items() if i in layers})
        x = _repmixer(block, x, here) if _is_repmixer(w, i) else _transformer(block, x, mask, _behind_end(ids), here)
        taps[f"layers.{i}"] = x.clone()  # the next layer may add in place
    before = x
    if "no final norm" not in way:
        eps = 1e-3 if "final norm eps 1e-3" in way else 1e-5
        way_norm = replace(way, faults=frozenset())
        x = _layer_norm(x, w["encoder.final_layer_norm.weight"], w["encoder.final_layer_norm.bias"], way_norm, eps)
    taps["final_layer_norm"] = x
    taps["projected"] = _projected(w, before, x, way)
    taps["pooled"] = _pooled(w, before, x, ids, way)
    return taps


def _embed(w: Mapping[str, Tensor], ids: Tensor, way: _Way) -> Tensor:
    table = w[EMBEDDING]
    if "one-hot embedding" in way:
        used, rows = ids.unique(return_inverse=True)
        tokens = F.one_hot(rows, len(used)).to(table.dtype) @ table[used]
    else:
        tokens = table[ids]
    root = math.sqrt(tokens.shape[2])
    if "embedding times sqrt(dim)" in way:
        tokens = tokens * root
    if "padding embedded as zero" in way:
        tokens = torch.where((ids == 0)[:, :, None], 0.0, tokens)
    if "no positions" in way:
        return tokens
    rows = w[POSITIONS][0, 0]
    if way.context is not None and "positions stretched" not in way:
        rows = rows[: way.context]
    x = tokens + _positions(rows, ids.shape[1], way)
    return x * root if "sum times sqrt(dim)" in way else x


def _positions(rows: Tensor, length: int, way: _Way) -> Tensor:
    if "positions one late" in way:
        rows = torch.cat([rows[1:], rows[:1]])
    elif "positions one late, the last row twice" in way:
        rows = torch.cat([rows[1:], rows[-1:]])
    elif "positions one early, zero first" in way:
        rows = torch.cat([torch.zeros_like(rows[:1]), rows[:-1]])
    elif "positions past the padding (fairseq)" in way:
        rows = torch.cat([rows[2:], rows[-1:], rows[-1:]])
    if length == len(rows):
        return rows
    if "positions cut" in way:
        return rows[:length]
    if "positions end with the last row" in way:
        return rows[torch.arange(length).clamp(max=len(rows) - 1)]
    if "positions end with zeros" in way:
        return torch.cat([rows, rows.new_zeros(length - len(rows), rows.shape[1])])
    if "positions begin again" in way:
        return rows[torch.arange(length) % len(rows)]
    if "positions by the nearest row" in way:
        return rows[(torch.arange(length) * len(rows)) // length]
    if "positions with aligned corners" in way:
        return F.interpolate(rows[None, None], (length, rows.shape[1]), mode="bilinear", align_corners=True)[0, 0]
    if "positions by hand" in way:
        place = ((torch.arange(length, dtype=torch.float64) + 0.5) * len(rows) / length - 0.5).clamp(min=0)
        low = place.long().clamp(max=len(rows) - 1)
        high = (low + 1).clamp(max=len(rows) - 1)
        share = (place - low)[:, None].to(rows.dtype)
        return rows[low] * (1 - share) + rows[high] * share
    return F.interpolate(rows[None, None], (length, rows.shape[1]), mode="bilinear")[0, 0]


# ---- arithmetic


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor, way: _Way, eps: float | None = None) -> Tensor:
    if eps is None:
        by_fault = {"LayerNorm eps 1e-6": 1e-6, "LayerNorm eps 1e-12": 1e-12, "LayerNorm eps 1e-3": 1e-3}
        eps = next((e for name, e in by_fault.items() if name in way), 1e-5)
    if "LayerNorm with n - 1" in way:
        return (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True) + eps) * weight + bias
    if "RMSNorm" in way:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight + bias
    if "LayerNorm by hand" in way:
        centred = x - x.mean(-1, keepdim=True)
        return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps) * weight + bias
    if "LayerNorm in float64" in way:
        return F.layer_norm(x.double(), weight.shape, weight.double(), bias.double(), eps).to(x.dtype)
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, way: _Way) -> Tensor:
    if "matmul and bias" in way:
        return x @ weight.T if bias is None else x @ weight.T + bias
    return F.linear(x, weight, bias)


def _activation(x: Tensor, way: _Way) -> Tensor:
    if "tanh GELU" in way:
        return F.gelu(x, approximate="tanh")
    if "quick GELU" in way:
        return x * torch.sigmoid(1.702 * x)
    if "SiLU" in way:
        return F.silu(x)
    if "ReLU" in way:
        return F.relu(x)
    if "no activation" in way:
        return x
    if "erf GELU" in way:
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    return F.gelu(x)


# ---- transformer layers


def _transformer(w: Mapping[str, Tensor], x: Tensor, mask: Tensor | None, behind: Tensor, way: _Way) -> Tensor:
    if "torch layer" in way:
        return _torch_layer(w, x, mask, way)
    if "sequence first" in way:
        x = x.transpose(0, 1).contiguous().transpose(0, 1)  # the same values, laid out as (sequence, batch, width)

    def normed(name: str, value: Tensor) -> Tensor:
        return _layer_norm(value, w[f"{name}.weight"], w[f"{name}.bias"], way)

    def attend(value: Tensor) -> Tensor:
        return _attention(w, value, mask, behind, way)

    def feed(value: Tensor) -> Tensor:
        inner = _activation(_linear(value, w["pre_norm_ffn.1.weight"], w["pre_norm_ffn.1.bias"], way), way)
        bias = None if "no second FFN bias" in way else w["pre_norm_ffn.4.bias"]
        return _linear(inner, w["pre_norm_ffn.4.weight"], bias, way)

    first, second = "pre_norm_mha.0", "pre_norm_ffn.0"
    if "post-norm" in way:
        x = normed(first, x + attend(x))
        return normed(second, x + feed(x))
    read = x if "no attention norm" in way else normed(first, x)
    if "residual of the normed" in way:
        x = read
    out = attend(read)
    if "in-place additions" in way:
        x = x.clone().add_(out)
        return x.add_(feed(normed(second, x)))
    x = out if "no attention residual" in way else x + out
    read = x if "no FFN norm" in way else normed(second, x)
    if "residual of the normed" in way:
        x = read
    out = feed(read)
    return out if "no FFN residual" in way else x + out


def _attention(w: Mapping[str, Tensor], x: Tensor, mask: Tensor | None, behind: Tensor, way: _Way) -> Tensor:
    batch, length, dim = x.shape
    heads = 2 * way.heads if "twice the heads" in way else way.heads
    head_dim = dim // heads
    fused, bias = w["pre_norm_mha.1.qkv_proj.weight"], w["pre_norm_mha.1.qkv_proj.bias"]
    out, out_bias = w["pre_norm_mha.1.out_proj.weight"], w["pre_norm_mha.1.out_proj.bias"]
    if "no qkv bias" in way:
        bias = torch.zeros_like(bias)
    if "no out_proj bias" in way:
        out_bias = torch.zeros_like(out_bias)
    if "out_proj transposed" in way:
        out = out.T
    if "torch attention" in way:
        return F.multi_head_attention_forward(
            x.transpose(0, 1), x.transpose(0, 1), x.transpose(0, 1), dim, heads, fused, bias, None, None, False, 0.0,
            out, out_bias, training=False, need_weights=False, attn_mask=mask,
        )[0].transpose(0, 1)  # fmt: skip
    if "split qkv" in way:
        q, k, v = (
            _linear(x, part, b, way).view(batch, length, heads, head_dim).transpose(1, 2)
            for part, b in zip(fused.split(dim), bias.split(dim), strict=True)
        )
    else:
        q, k, v = _split(_linear(x, fused, bias, way), heads, way)
    if mask is None and "causal mask" in way:
        mask = torch.full((length, length), -math.inf, dtype=x.dtype).triu(1)
    if "padding masked" in way:
        padding = torch.zeros(batch, 1, 1, length, dtype=x.dtype).masked_fill(behind[:, None, None, :], -math.inf)
        mask = padding if mask is None else mask + padding
    scale = head_dim**-0.5
    if "no attention scale" in way:
        scale = 1.0
    elif "attention scaled by width" in way:
        scale = dim**-0.5
    elif {"attention scaled twice", "attention scaled by head_dim"} & way.faults:
        scale = 1 / head_dim
    mixed = _mixed(q, k, v, mask, scale, way)
    if "heads merged without transposing" in way:
        mixed = mixed.reshape(batch, length, dim)
    elif {"heads interleaved", "heads interleaved throughout"} & way.faults:
        mixed = mixed.permute(0, 2, 3, 1).reshape(batch, length, dim)
    else:
        mixed = mixed.transpose(1, 2).reshape(batch, length, dim)
    return _linear(mixed, out, out_bias, way)


def _split(fused: Tensor, heads: int, way: _Way) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, width = fused.shape
    dim = width // 3
    if "qkv head by head" in way:
        q, k, v = fused.view(batch, length, heads, 3, dim // heads).permute(3, 0, 2, 1, 4)
    elif "qkv row by row" in way:
        q, k, v = fused.view(batch, length, heads, dim // heads, 3).permute(4, 0, 2, 1, 3)
    elif {"heads innermost in qkv", "heads interleaved throughout"} & way.faults:
        q, k, v = fused.view(batch, length, 3, dim // heads, heads).permute(2, 0, 4, 1, 3)
    else:
        q, k, v = fused.view(batch, length, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
    if "q and k swapped" in way:
        return k, q, v
    if "q and v swapped" in way:
        return v, k, q
    return (v, q, k) if "v, q, k" in way else (q, k, v)


def _mixed(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, way: _Way) -> Tensor:
    """(batch, heads, sequence, head_dim), from q, k and v of that shape."""
    if "sdpa" in way:
        return F.scaled_dot_product_attention(q, k, v, mask, scale=scale)
    if "head by head" in way:
        rest = replace(way, variation=None)
        parts = [_mixed(q[:, h], k[:, h], v[:, h], mask, scale, rest) for h in range(q.shape[1])]
        return torch.stack(parts, 1)
    if "einsum attention" in way:
        scores = torch.einsum("bhqd,bhkd->bhqk", q * scale, k)
    elif "scores scaled" in way:
        scores = (q @ k.transpose(-1, -2)) * scale
    elif "query and key scaled" in way:
        scores = (q * scale**0.5) @ (k * scale**0.5).transpose(-1, -2)
    else:
        scores = (q * scale) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask
    if "softmax by hand" in way:
        raised = torch.exp(scores - scores.amax(-1, keepdim=True))
        shares = raised / raised.sum(-1, keepdim=True)
    else:
        shares = scores.softmax(-2 if "softmax over the queries" in way else -1)
    return torch.einsum("bhqk,bhkd->bhqd", shares, v) if "einsum attention" in way else shares @ v


def _torch_layer(w: Mapping[str, Tensor], x: Tensor, mask: Tensor | None, way: _Way) -> Tensor:
    layer = torch.nn.TransformerEncoderLayer(
        x.shape[2], way.heads, len(w["pre_norm_ffn.1.weight"]), 0.0, "gelu", 1e-5, True, True, dtype=x.dtype
    )
    theirs = {
        "self_attn.in_proj_": "pre_norm_mha.1.qkv_proj.", "self_attn.out_proj.": "pre_norm_mha.1.out_proj.",
        "norm1.": "pre_norm_mha.0.", "norm2.": "pre_norm_ffn.0.", "linear1.": "pre_norm_ffn.1.",
        "linear2.": "pre_norm_ffn.4.",
    }  # fmt: skip
    layer.load_state_dict({to + leaf: w[name + leaf] for to, name in theirs.items() for leaf in ("weight", "bias")})
    return layer.eval()(x, src_mask=mask)


# ---- RepMixer blocks


def _repmixer(w: Mapping[str, Tensor], x: Tensor, way: _Way) -> Tensor:
    if "RepMixer blocks left out" in way:
        return x
    y = x.transpose(1, 2).unsqueeze(2)
    if "channels last" in way:
        y = y.contiguous(memory_format=torch.channels_last)
    kernels = {name: w[name].flip(-1) if "true convolution" in way else w[name] for name in KERNELS}
    scale, mixer_scale = w["layer_scale"], w["token_mixer.layer_scale"]
    if {"no layer scales", "no layer scale"} & way.faults:
        scale = torch.ones_like(scale)
    if "no layer scales" in way:
        mixer_scale = torch.ones_like(mixer_scale)

    if "mixer folded" in way:
        y = _mixer_folded(w, y, kernels[KERNELS[0]], mixer_scale, way)
    else:
        update = _conv_norm(w, y, kernels[KERNELS[0]], "token_mixer.mixer.rbr_conv.0.bn", way)
        if "no skip branch" not in way:
            update = update + _batch_norm(w, y, "token_mixer.mixer.rbr_skip", way)
        if "no reference norm" not in way:
            update = update - _batch_norm(w, y, "token_mixer.norm.rbr_skip", way)
        y = mixer_scale * update if "no RepMixer residual" in way else y + mixer_scale * update
    inner = _conv_norm(w, y, kernels[KERNELS[1]], "convffn.conv.bn", way)
    inner = _activation(_pointwise(inner, w["convffn.fc1.weight"], w["convffn.fc1.bias"], way), way)
    bias = None if "no second ConvFFN bias" in way else w["convffn.fc2.bias"]
    out = scale * _pointwise(inner, w["convffn.fc2.weight"], bias, way)
    y = out if "no ConvFFN residual" in way else y + out
    return y.squeeze(2).transpose(1, 2)


def _affine(w: Mapping[str, Tensor], name: str, way: _Way) -> tuple[Tensor, Tensor]:
    """A BatchNorm as x * scale + shift, per channel."""
    eps = 1e-3 if "BatchNorm eps 1e-3" in way else 1e-6 if "BatchNorm eps 1e-6" in way else 1e-5
    scale = w[f"{name}.weight"] / torch.sqrt(w[f"{name}.running_var"] + eps)
    return scale, w[f"{name}.bias"] - w[f"{name}.running_mean"] * scale


def _batch_norm(w: Mapping[str, Tensor], y: Tensor, name: str, way: _Way) -> Tensor:
    if "BatchNorm as scale and shift" in way:
        scale, shift = _affine(w, name, way)
        return y * scale[:, None, None] + shift[:, None, None]
    training = "BatchNorm in training mode" in way
    mean, variance = (None, None) if training else (w[f"{name}.running_mean"], w[f"{name}.running_var"])
    eps = 1e-3 if "BatchNorm eps 1e-3" in way else 1e-6 if "BatchNorm eps 1e-6" in way else 1e-5
    return F.batch_norm(y, mean, variance, w[f"{name}.weight"], w[f"{name}.bias"], training, 0.0, eps)


def _conv_norm(w: Mapping[str, Tensor], y: Tensor, kernel: Tensor, name: str, way: _Way) -> Tensor:
    if "BatchNorm folded" in way:
        scale, shift = _affine(w, name, way)
        return _convolution(y, kernel * scale[:, None, None, None], way) + shift[:, None, None]
    return _batch_norm(w, _convolution(y, kernel, way), name, way)


def _mixer_folded(w: Mapping[str, Tensor], y: Tensor, kernel: Tensor, layer_scale: Tensor, way: _Way) -> Tensor:
    """The token mixer as one convolution with a bias: y + s * (BN(conv(y)) + BN(y) - BN(y))."""
    a, b = _affine(w, "token_mixer.mixer.rbr_conv.0.bn", way)
    c, d = _affine(w, "token_mixer.mixer.rbr_skip", way)
    e, f = _affine(w, "token_mixer.norm.rbr_skip", way)
    s = layer_scale[:, 0, 0]
    one = kernel * (a * s)[:, None, None, None]
    one[..., kernel.shape[-1] // 2] += (1 + s * (c - e))[:, None, None]
    return _convolution(y, one, way) + (s * (b + d - f))[:, None, None]


def _convolution(y: Tensor, kernel: Tensor, way: _Way) -> Tensor:
    """Depthwise along the sequence: (batch, dim, 1, sequence)."""
    channels, size = kernel.shape[0], kernel.shape[-1]
    length, half = y.shape[-1], size // 2
    if "causal convolution" in way:
        return F.conv2d(F.pad(y, (size - 1, 0)), kernel, groups=channels)
    if "convolution padded with the edge" in way:
        return F.conv2d(F.pad(y, (half, half, 0, 0), mode="replicate"), kernel, groups=channels)
    if "conv1d" in way:
        return F.conv1d(y[:, :, 0], kernel[:, :, 0], padding=half, groups=channels).unsqueeze(2)
    padded = F.pad(y[:, :, 0], (half, half))
    if "unfolded convolution" in way:
        return torch.einsum("bclk,ck->bcl", padded.unfold(2, size, 1), kernel[:, 0, 0]).unsqueeze(2)
    if "convolution by shifts" in way:
        parts = [padded[:, :, j : j + length] * kernel[:, 0, 0, j, None] for j in range(size)]
        return torch.stack(parts).sum(0).unsqueeze(2)
    if "convolution as a matrix" in way:
        band = kernel.new_zeros(channels, length, length + 2 * half)
        for t in range(length):
            band[:, t, t : t + size] = kernel[:, 0, 0]
        return torch.einsum("ctp,bcp->bct", band, padded).unsqueeze(2)
    return F.conv2d(y, kernel, padding=(0, half), groups=channels)


def _pointwise(y: Tensor, weight: Tensor, bias: Tensor | None, way: _Way) -> Tensor:
    if "pointwise as linear" in way:
        tokens = y[:, :, 0].transpose(1, 2)
        return _linear(tokens, weight[:, :, 0, 0], bias, way).transpose(1, 2).unsqueeze(2)
    return F.conv2d(y, weight, bias)


# ---- the ends


def _projected(w: Mapping[str, Tensor], before: Tensor, tokens: Tensor, way: _Way) -> Tensor:
    weight, bias = w["projector.weight"], w["projector.bias"]
    if "projector transposed" in way:
        weight = weight.T
    read = before if "projector before the norm" in way else tokens
    out = _linear(read, weight, None if "projector without bias" in way else bias, way)
    return F.normalize(out, dim=-1) if "projected tokens normalised" in way else out


def _pooled(w: Mapping[str, Tensor], before: Tensor, tokens: Tensor, ids: Tensor, way: _Way) -> Tensor:
    read = before if "pooled before the norm" in way else tokens
    if "one-hot pooling" in way:
        at_end = F.one_hot(ids.argmax(-1), ids.shape[1]).to(tokens.dtype)
        token = torch.einsum("bl,blc->bc", at_end, read)
    elif "pooled at the last position" in way:
        token = read[:, -1]
    elif "pooled at the first position" in way:
        token = read[:, 0]
    elif "mean pooled" in way:
        token = read.mean(1)
    else:
        token = read[torch.arange(len(ids)), ids.argmax(-1)]
    if "pooled but not projected" in way:
        return token
    out = token @ (w[POOLING].T if "pooling matrix transposed" in way else w[POOLING])
    return F.normalize(out, dim=-1) if "pooled and normalised" in way else out
