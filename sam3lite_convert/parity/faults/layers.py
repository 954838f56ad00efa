"""Faults that transformer layers and RepMixer blocks of a port can have."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from original_ref.blocks import MultiHeadAttention, RepMixerBlock, TransformerLayer
from original_ref.clip_text import ClipBlock
from sam3lite_convert.parity.faults.evidence import Evidence, Hypothesis, Run
from sam3lite_convert.parity.taps import LAYER, enclosing, point_of

_MOST_HEADS = 64  # that a wrong number of heads is tried up to


def layer_faults(evidence: Evidence, tap: str) -> Iterator[Hypothesis]:
    """Faults of a layer, a transformer layer or a RepMixer block."""
    block = evidence.block(tap)
    if isinstance(block, RepMixerBlock):
        return repmixer_faults(evidence, tap, block)
    return transformer_faults(evidence, tap, block)


# ---- transformer layers


@dataclass(frozen=True)
class LayerParts:
    """Where the parts of a pre-norm transformer layer are, in one of the two encoders.

    ``norm1``, ``norm2``: paths of the LayerNorms before attention and before the feed-forward part.
    ``attention``: path of attention.
    ``qkv``: what stands before ``weight`` and ``bias`` of the fused rows of q, k and v.
    ``fc1``, ``fc2``: paths of the feed-forward part's linear layers.
    """

    norm1: str
    attention: str
    qkv: str
    norm2: str
    fc1: str
    fc2: str

    @property
    def out(self) -> str:
        """Path of attention's output projection."""
        return f"{self.attention}.out_proj"


STUDENT_LAYER = LayerParts(
    "pre_norm_mha.0", "pre_norm_mha.1", "pre_norm_mha.1.qkv_proj.", "pre_norm_ffn.0", "pre_norm_ffn.1", "pre_norm_ffn.4"
)
CLIP_LAYER = LayerParts("ln_1", "attn", "attn.in_proj_", "ln_2", "mlp.c_fc", "mlp.c_proj")


def layer_parts(block: nn.Module) -> LayerParts:
    """Where the parts of a transformer layer of a reference are."""
    return CLIP_LAYER if isinstance(block, ClipBlock) else STUDENT_LAYER


def _feed_forward(block: nn.Module) -> Callable[[Tensor], Tensor]:
    """The feed-forward part, without its LayerNorm."""
    if isinstance(block, ClipBlock):
        return block.mlp
    assert isinstance(block, TransformerLayer)
    _, *rest = block.pre_norm_ffn
    return nn.Sequential(*rest)


def transformer_faults(evidence: Evidence, tap: str, block: nn.Module) -> Iterator[Hypothesis]:
    """Faults of a transformer layer: q, k and v, heads, mask, norms, the feed-forward part."""
    run = Run(evidence, tap, block)
    where = layer_parts(block)
    attention = block.get_submodule(where.attention)
    assert isinstance(attention, MultiHeadAttention)
    names = {leaf: f"{where.qkv}{leaf}" for leaf in ("weight", "bias")}
    fused = {name: run.tensors[name] for name in names.values()}
    parts = {name: dict(zip("qkv", t.chunk(3), strict=True)) for name, t in fused.items()}
    for order in itertools.permutations("qkv"):
        if order != ("q", "k", "v"):
            moved = [a for a, b in zip("qkv", order, strict=True) if a != b]
            swap = (
                f"{' and '.join(moved)} are swapped" if len(moved) == 2 else f"q, k, v were read as {', '.join(order)}"
            )
            rows = {name: torch.cat([p[part] for part in order]) for name, p in parts.items()}
            yield Hypothesis(f"qkv_order:{''.join(order)}", swap, run.having(rows))
            for leaf, name in names.items():
                key, words = f"qkv_order:{''.join(order)}:{leaf}", f"{swap}, in the {leaf} alone"
                yield Hypothesis(key, words, run.having({name: rows[name]}))
    out = f"{where.out}.weight"
    yield from _other_rows(run, attention, fused, out)
    weight = parts[names["weight"]]
    for flipped in ("q", "k", "v", "qkv"):
        rows = {names["weight"]: torch.cat([weight[p].T if p in flipped else weight[p] for p in "qkv"])}
        which = "the projections of q, k and v are" if flipped == "qkv" else f"the projection of {flipped} is"
        yield Hypothesis(f"transposed:{flipped}", f"{which} transposed", run.having(rows))
    yield Hypothesis("transposed:out_proj", "attention's out_proj is transposed", run.having({out: run.tensors[out].T}))
    yield from run.biases()
    for part in "qkv":
        bias = {p: b.zero_() if p == part else b for p, b in ((p, b.clone()) for p, b in parts[names["bias"]].items())}
        missing = {names["bias"]: torch.cat([bias[p] for p in "qkv"])}
        yield Hypothesis(f"no_bias:{part}", f"the bias of {part} is missing", run.having(missing))
    root = attention.head_dim**0.5
    scale = {n: torch.cat([p["q"] * root, p["k"], p["v"]]) for n, p in parts.items()}
    yield Hypothesis("no_query_scale", "the query is not scaled by head_dim^-0.5", run.having(scale))
    twice = {n: torch.cat([p["q"] / root, p["k"], p["v"]]) for n, p in parts.items()}
    yield Hypothesis("query_scaled_twice", "the query is scaled by head_dim^-0.5 twice", run.having(twice))
    if attention.heads > 1:
        width = attention.heads**-0.5
        by_width = {n: torch.cat([p["q"] * width, p["k"], p["v"]]) for n, p in parts.items()}
        words = "the query is scaled by dim^-0.5; the original scales it by head_dim^-0.5"
        yield Hypothesis("query_scaled_by_width", words, run.having(by_width))
    matrix, heads, width = run.tensors[out], attention.heads, attention.head_dim
    columns = {
        "heads_interleaved": ("attention's heads are interleaved, not side by side, before out_proj", width, heads),
        "out_proj_columns": ("out_proj's columns are ordered for interleaved heads", heads, width),
    }
    for key, (words, outer, inner) in columns.items():
        permuted = matrix.reshape(-1, outer, inner).transpose(1, 2).reshape(matrix.shape)
        yield Hypothesis(key, words, run.having({out: permuted}))
    width = attention.heads * attention.head_dim
    for heads in range(1, min(width, _MOST_HEADS) + 1):
        if heads != attention.heads and width % heads == 0:
            words = f"attention has {heads} heads; the original has {attention.heads}"
            changes = [(attention, "heads", heads), (attention, "head_dim", width // heads)]
            yield Hypothesis(f"heads:{heads}", words, run.setting(changes))
    yield from run.eps(nn.LayerNorm, "LayerNorm")
    yield from run.other_norms()
    first, second = where.norm1, where.norm2
    both = ((first, second), (second, first))
    exchanged = {f"{x}.{leaf}": run.tensors[f"{y}.{leaf}"] for x, y in both for leaf in ("weight", "bias")}
    yield Hypothesis("norms_exchanged", "the layer's two LayerNorms are exchanged", run.having(exchanged))
    for name in (first, second):
        ones = {f"{name}.weight": torch.ones_like(run.tensors[f"{name}.weight"])}
        yield Hypothesis(f"no_weight:{name}", f"the weight of {name} is missing (one)", run.having(ones))
    yield from run.activations()
    yield from _other_wiring(run, block, where)
    read = evidence.read_by(tap)
    length = read.shape[1]
    upper = torch.full((length, length), -torch.inf, dtype=read.dtype).triu(1)
    causal = run.mask is not None
    if causal:
        yield Hypothesis("not_causal", "there is no causal mask; the original has one", run.having({}, None))
    else:
        words = "attention has a causal mask; the original has no mask"
        yield Hypothesis("causal", words, run.having({}, upper))
    behind = torch.arange(length) > evidence.ids.argmax(-1, keepdim=True)
    if behind.any():
        padding = torch.zeros(behind.shape, dtype=read.dtype).masked_fill(behind, -torch.inf)[:, None, None, :]
        words = "padding is masked; the original attends to it"
        yield Hypothesis("padding_masked", words, run.having({}, padding + upper if causal else padding))


def _other_rows(run: Run, attention: MultiHeadAttention, fused: Mapping[str, Tensor], out: str) -> Iterator[Hypothesis]:
    """The fused rows of q, k, v (``fused``, by name) read in another order; ``out``: name of out_proj's weight."""
    heads, width = attention.heads, attention.head_dim
    dim = heads * width
    rows = torch.arange(3 * dim)
    orders = {"qkv_by_row": ("the fused rows were read as q, k, v row by row", rows.reshape(dim, 3).T.flatten())}
    if heads > 1:
        by_head = rows.reshape(heads, 3, width).transpose(0, 1).flatten()
        orders["qkv_by_head"] = ("the fused rows were read as q, k, v of each head in turn", by_head)
        innermost = rows.reshape(3, width, heads).transpose(1, 2).flatten()
        orders["qkv_heads_innermost"] = ("the rows of q, k and v were read as (head_dim, heads)", innermost)
    for key, (words, order) in orders.items():
        yield Hypothesis(key, words, run.having({name: tensor[order] for name, tensor in fused.items()}))
    if heads > 1:
        columns = torch.arange(dim).reshape(width, heads).T.flatten()
        both = {name: tensor[innermost] for name, tensor in fused.items()} | {out: run.tensors[out][:, columns]}
        words = "attention's heads are interleaved from q, k and v to out_proj; the original's are side by side"
        yield Hypothesis("heads_interleaved_throughout", words, run.having(both))


def _other_wiring(run: Run, block: nn.Module, where: LayerParts) -> Iterator[Hypothesis]:
    """Transformer layers with the right parts, connected wrongly."""
    norm, attention, norm2 = (block.get_submodule(path) for path in (where.norm1, where.attention, where.norm2))
    assert isinstance(attention, MultiHeadAttention)
    ffn = _feed_forward(block)
    x, mask = run.read, run.mask

    def attended() -> Tensor:
        out: Tensor = x + attention(norm(x), mask)
        return out

    def without_first() -> Tensor:
        y: Tensor = attention(norm(x), mask)
        out: Tensor = y + ffn(norm2(y))
        return out

    def residual_after_norm() -> Tensor:
        y = norm(x)
        y = norm2(y + attention(y, mask))
        out: Tensor = y + ffn(y)
        return out

    def without_norm1() -> Tensor:
        y = x + attention(x, mask)
        out: Tensor = y + ffn(norm2(y))
        return out

    def without_norm2() -> Tensor:
        y = attended()
        out: Tensor = y + ffn(y)
        return out

    def with_attention(other: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[], Tensor]:
        def output() -> Tensor:
            y = x + attention.out_proj(other(*_query_key_value(attention, norm(x))))
            out: Tensor = y + ffn(norm2(y))
            return out

        return output

    def scores(query: Tensor, key: Tensor) -> Tensor:
        out: Tensor = query * attention.head_dim**-0.5 @ key.mT
        return out if mask is None else out + mask

    def over_queries(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return (scores(query, key).softmax(-2) @ value).transpose(1, 2).reshape(x.shape)

    def not_transposed(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return (scores(query, key).softmax(-1) @ value).reshape(x.shape)

    def post_norm() -> Tensor:
        y = norm(x + attention(x, mask))
        out: Tensor = norm2(y + ffn(y))
        return out

    wirings = {
        "no_attention_residual": ("attention's residual connection is left out", without_first),
        "no_ffn_residual": ("the feed-forward's residual connection is left out", lambda: ffn(norm2(attended()))),
        "no_attention": ("attention is left out", lambda: x + ffn(norm2(x))),
        "no_ffn": ("the feed-forward is left out", attended),
        "parallel": ("attention and feed-forward both read the layer's input", lambda: attended() + ffn(norm2(x))),
        "post_norm": (
            "the LayerNorms come after the additions; the original's come before attention and FFN",
            post_norm,
        ),
        "no_layer": ("the layer does nothing", lambda: x),
        "residual_after_norm": ("the residual connections begin behind the LayerNorms", residual_after_norm),
        f"no_norm:{where.norm1}": ("the LayerNorm before attention is left out", without_norm1),
        f"no_norm:{where.norm2}": ("the LayerNorm before the feed-forward is left out", without_norm2),
        "softmax_over_queries": (
            "softmax runs over the queries; the original's over the keys",
            with_attention(over_queries),
        ),
    }
    if attention.heads > 1:
        words = "attention's heads are not transposed back before they are merged"
        wirings["heads_not_transposed"] = (words, with_attention(not_transposed))
    for key, (words, output) in wirings.items():
        yield Hypothesis(key, words, output)


def _query_key_value(attention: MultiHeadAttention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each (batch, heads, sequence, head_dim); the query is not scaled."""
    fused = attention.fused(x).reshape(*x.shape[:2], 3, attention.heads, attention.head_dim)
    query, key, value = fused.permute(2, 0, 3, 1, 4)
    return query, key, value


# ---- RepMixer blocks


def repmixer_faults(evidence: Evidence, tap: str, block: RepMixerBlock) -> Iterator[Hypothesis]:
    """Faults of a RepMixer block: layer scales, branches, BatchNorms, kernels."""
    run = Run(evidence, tap, block)
    scales = ("layer_scale", "token_mixer.layer_scale")
    for chosen in (scales, *((s,) for s in scales)):
        which = " and ".join(chosen)
        verb = "are" if len(chosen) > 1 else "is"
        for value, words in (
            (1.0, f"{which} {verb} left out"),
            (1e-5, f"{which} {verb} still at 1e-05, an initial value"),
        ):
            filled = {name: torch.full_like(run.tensors[name], value) for name in chosen}
            key = f"no_layer_scale:{','.join(chosen)}" if value == 1 else f"initial_layer_scale:{','.join(chosen)}"
            yield Hypothesis(key, words, run.having(filled))
    yield from run.eps(nn.BatchNorm2d, "BatchNorm")
    norms = [n for n, m in block.named_modules() if isinstance(m, nn.BatchNorm2d)]
    fresh = {f"{n}.running_mean": torch.zeros_like(run.tensors[f"{n}.running_mean"]) for n in norms}
    fresh |= {f"{n}.running_var": torch.ones_like(run.tensors[f"{n}.running_var"]) for n in norms}
    words = "the running statistics of the BatchNorms were not loaded (mean 0, variance 1)"
    yield Hypothesis("no_statistics", words, run.having(fresh))
    batch_norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
    # With momentum 0 and no counter the running statistics do not change.
    training = {"training": True, "momentum": 0.0, "num_batches_tracked": None}
    words = "the BatchNorms run in training mode, on the statistics of this batch (call eval())"
    changes = [(m, name, value) for m in batch_norms for name, value in training.items()]
    yield Hypothesis("batchnorm_training", words, run.setting(changes))
    yield from _other_mixing(run, block)
    a, b = "token_mixer.norm.rbr_skip", "token_mixer.mixer.rbr_skip"
    leaves = ("weight", "bias", "running_mean", "running_var")
    exchanged = {f"{x}.{leaf}": run.tensors[f"{y}.{leaf}"] for x, y in ((a, b), (b, a)) for leaf in leaves}
    words = "the mixer's skip BatchNorm and its reference BatchNorm are exchanged"
    yield Hypothesis("norms_exchanged", words, run.having(exchanged))
    for name in ("token_mixer.mixer.rbr_conv.0.conv.weight", "convffn.conv.conv.weight"):
        yield Hypothesis(
            f"flipped:{name}", f"the kernel of {name} is reversed", run.having({name: run.tensors[name].flip(-1)})
        )
    kernels = ("token_mixer.mixer.rbr_conv.0.conv.weight", "convffn.conv.conv.weight")
    flipped = {name: run.tensors[name].flip(-1) for name in kernels}
    yield Hypothesis("flipped:both", "the depthwise kernels are reversed", run.having(flipped))
    yield from _other_padding(run, block)
    for shift, words in ((1, "to the right"), (-1, "to the left")):
        moved = {name: _shifted(run.tensors[name], shift) for name in kernels}
        yield Hypothesis(f"kernels_shifted:{shift:+d}", f"the depthwise kernels are shifted {words}", run.having(moved))
    squares = {name: run.tensors[name].square() for name in scales}
    yield Hypothesis("layer_scale_twice", "the layer scales are applied twice", run.having(squares))
    deviations = {f"{n}.running_var": run.tensors[f"{n}.running_var"].square() for n in norms}
    words = "the BatchNorms read the running variance as a standard deviation"
    yield Hypothesis("variance_as_deviation", words, run.having(deviations))
    yield from run.biases()
    yield from run.activations()


def _other_padding(run: Run, block: RepMixerBlock) -> Iterator[Hypothesis]:
    """Depthwise convolutions that read something else than zeros behind the ends, or only what comes before."""
    convolutions = [m for m in block.modules() if isinstance(m, nn.Conv2d) and m.kernel_size[1] > 1]
    length = run.read.shape[1]

    def padded(mode: str, causal: bool = False) -> Callable[[], Tensor]:
        changes: list[tuple[nn.Module, str, object]] = [(m, "padding_mode", mode) for m in convolutions]
        for m in convolutions:
            before, behind = (m.kernel_size[1] - 1, 0) if causal else (m.kernel_size[1] // 2,) * 2
            changes.append((m, "_reversed_padding_repeated_twice", [before, behind, 0, 0]))
        return run.setting(changes)

    words = "the depthwise convolutions are padded in front alone (causal); the original's on both sides"
    yield Hypothesis("convolution_causal", words, padded("constant", causal=True))
    halves = [m.kernel_size[1] // 2 for m in convolutions]
    for mode, least in (("replicate", 1), ("circular", max(halves)), ("reflect", max(halves) + 1)):
        if length >= least:
            words = f"the depthwise convolutions are padded in the mode {mode}; the original's with zeros"
            yield Hypothesis(f"convolution_padding:{mode}", words, padded(mode))


def _shifted(kernel: Tensor, by: int) -> Tensor:
    out = torch.zeros_like(kernel)
    if by > 0:
        out[..., by:] = kernel[..., :-by]
    else:
        out[..., :by] = kernel[..., -by:]
    return out


def _other_mixing(run: Run, block: RepMixerBlock) -> Iterator[Hypothesis]:
    """RepMixer blocks with the right parts, connected wrongly."""
    mixer = block.token_mixer
    image = run.read.transpose(1, 2).unsqueeze(2)
    skip, conv, norm = mixer.mixer.rbr_skip, mixer.mixer.rbr_conv[0], mixer.norm

    def block_with(update: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def output() -> Tensor:
            y: Tensor = image + mixer.layer_scale * update()
            y = y + block.layer_scale * block.convffn(y)
            return y.squeeze(2).transpose(1, 2)

        return output

    updates = {
        "no_reference_norm": ("the reference BatchNorm is not subtracted", lambda: skip(image) + conv(image)),
        "norm_added": ("the reference BatchNorm is added, not subtracted", lambda: mixer.mixer(image) + norm(image)),
        "no_skip": ("the mixer's skip BatchNorm is left out", lambda: conv(image) - norm(image)),
        "no_conv": ("the mixer's convolution is left out", lambda: skip(image) - norm(image)),
        "no_mixer": ("the token mixer is left out, or scaled to next to nothing", lambda: torch.zeros_like(image)),
    }
    for key, (words, update) in updates.items():
        yield Hypothesis(key, words, block_with(update))

    def without_mixer_residual() -> Tensor:
        y = mixer.layer_scale * (mixer.mixer(image) - norm(image))
        y = y + block.layer_scale * block.convffn(y)
        out: Tensor = y.squeeze(2).transpose(1, 2)
        return out

    def without_ffn_residual() -> Tensor:
        y: Tensor = block.layer_scale * block.convffn(mixer(image))
        return y.squeeze(2).transpose(1, 2)

    words = "the token mixer's residual connection is left out"
    yield Hypothesis("no_mixer_residual", words, without_mixer_residual)
    words = "the residual connection around the block's feed-forward is left out"
    yield Hypothesis("no_convffn_residual", words, without_ffn_residual)

    def without_ffn() -> Tensor:
        out: Tensor = mixer(image).squeeze(2).transpose(1, 2)
        return out

    yield Hypothesis("no_convffn", "the block's feed-forward is left out, or scaled to next to nothing", without_ffn)
    yield Hypothesis("no_layer", "the layer does nothing", lambda: run.read)


def other_layers(evidence: Evidence, tap: str) -> Iterator[Hypothesis]:
    """Tensors of another layer in place of this one's: the whole layer, a module, or a single tensor."""
    if point_of(tap) is not LAYER:
        if around := enclosing(tap):
            yield from evidence.seen_at(tap, other_layers(evidence, around))
        return
    block = evidence.block(tap)
    run = Run(evidence, tap, block)
    for other, theirs in enumerate(evidence.model.parts.layers):
        if theirs is block or type(theirs) is not type(block):
            continue
        tensors = {**dict(theirs.named_parameters()), **dict(theirs.named_buffers())}
        tensors = {name: t for name, t in tensors.items() if t.is_floating_point()}  # no counters
        yield Hypothesis(f"layer:{other}", f"it holds the tensors of {LAYER.at(other)}", run.having(tensors))
        modules: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            modules.setdefault(name.rpartition(".")[0], {})[name] = tensor
            words = f"{name} is that of {LAYER.at(other)}"
            yield Hypothesis(f"layer:{other}:{name}", words, run.having({name: tensor}))
        for module, mine in modules.items():
            if len(mine) > 1:
                words = f"{module} is that of {LAYER.at(other)}"
                yield Hypothesis(f"layer:{other}:{module}", words, run.having(mine))
