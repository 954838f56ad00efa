"""Simple faults of ports, each tried on the reference: what would it put out if it had that fault?

A hypothesis that makes the reference put out what the candidate does is the likely cause. It needs
nothing of the candidate but its activation, so it works for any port.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from original_ref import TextStudentEncoder
from original_ref.blocks import MultiHeadAttention, TransformerLayer
from sam3lite_convert.compare import max_abs
from sam3lite_convert.encoders import EMBEDDINGS, FINAL, POOLED, PROJECTED, Activations

_EPS = (1e-6, 1e-12, 1e-3)
_ACTIVATIONS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "gelu_tanh": ("GELU is the tanh approximation; the original's is exact (erf)", lambda: nn.GELU("tanh")),
    "quick_gelu": ("the activation is quick GELU (x * sigmoid(1.702 x)); the original's is exact", lambda: _Quick()),
    "relu": ("the activation is a ReLU; the original's is an exact GELU", nn.ReLU),
}


class _Quick(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


@dataclass(frozen=True)
class Hypothesis:
    """``key`` is stable, ``words`` say the fault, ``output()`` is the reference's tap if it had it;
    not-a-number stands where the hypothesis says nothing."""

    key: str
    words: str
    output: Callable[[], Tensor]


@dataclass(frozen=True)
class Fit:
    """A hypothesis that explains a candidate's activation up to ``error`` (max abs)."""

    key: str
    words: str
    error: float


@dataclass(frozen=True)
class Evidence:
    """The reference, its recorded activations for ``ids``, and its position table before any cut."""

    model: TextStudentEncoder
    recorded: Activations
    ids: Tensor
    full_table: Tensor | None = None

    def read_by(self, tap: str) -> Tensor:
        """What the module behind a tap reads, as recorded."""
        names = list(self.recorded)
        return self.recorded[FINAL if tap in (PROJECTED, POOLED) else names[names.index(tap) - 1]]


def explain(evidence: Evidence, tap: str, candidate: Tensor, tolerance: float) -> list[Fit]:
    """Hypotheses that bring the tap's isolated error down to ``tolerance``, the closest first.

    ``candidate``: its activation at the tap when fed the reference's recorded input. Other layers'
    tensors are tried only where nothing simpler fits.
    """
    for group in (hypotheses, other_layers):
        fits = []
        for hypothesis in group(evidence, tap):
            with torch.inference_mode():
                made = hypothesis.output()
            if made.shape == candidate.shape and (error := _distance(made, candidate)) <= tolerance:
                fits.append(Fit(hypothesis.key, hypothesis.words, error))
        if fits:
            return sorted(fits, key=lambda f: f.error)
    return []


def _distance(made: Tensor, candidate: Tensor) -> float:
    """Max abs diff over the elements that the hypothesis speaks of (it leaves others not-a-number)."""
    known = ~made.isnan()
    return max_abs(made[known], candidate[known]) if bool(known.any()) else torch.inf


def hypotheses(evidence: Evidence, tap: str) -> Iterator[Hypothesis]:
    """All that are known for a tap, but for tensors of other layers."""
    if tap == EMBEDDINGS:
        return _embeddings(evidence)
    if tap == FINAL:
        return _final_norm(evidence)
    if tap == PROJECTED:
        return _projected(evidence)
    if tap == POOLED:
        return _pooled(evidence)
    block = _block(evidence, tap)
    return (
        _transformer(evidence, tap, block) if isinstance(block, TransformerLayer) else _repmixer(evidence, tap, block)
    )


def _block(evidence: Evidence, tap: str) -> nn.Module:
    return evidence.model.encoder.transformer[int(tap.removeprefix("layers."))]


class _Run:
    """Runs a tap's module with tensors or attributes exchanged for the time of the run."""

    def __init__(self, evidence: Evidence, tap: str, module: nn.Module) -> None:
        self._module = module
        self._read = evidence.read_by(tap)
        self.tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        mask = evidence.model.encoder.causal_mask(self._read)
        self._args: tuple[Any, ...] = (mask,) if tap.startswith("layers.") else ()

    def having(self, tensors: Mapping[str, Tensor], *args: Any) -> Callable[[], Tensor]:
        call = args or self._args
        return lambda: functional_call(self._module, dict(tensors), (self._read, *call))

    def zero(self, *names: str) -> Callable[[], Tensor]:
        return self.having({n: torch.zeros_like(self.tensors[n]) for n in names})

    def setting(self, changes: list[tuple[nn.Module, str, Any]]) -> Callable[[], Tensor]:
        def output() -> Tensor:
            with _set(changes):
                out: Tensor = self._module(self._read, *self._args)
                return out

        return output

    def eps(self, kind: type[nn.Module], name: str) -> Iterator[Hypothesis]:
        """Another eps in all modules of a kind."""
        norms = [m for m in self._module.modules() if isinstance(m, kind)]
        for eps in _EPS:
            words = f"{name} runs at eps {eps:g}; the original's is {norms[0].eps:g}"
            yield Hypothesis(f"{name}_eps_{eps:g}".lower(), words, self.setting([(m, "eps", eps) for m in norms]))

    def biases(self) -> Iterator[Hypothesis]:
        for name in self.tensors:
            if name.endswith("bias"):
                yield Hypothesis(f"no_bias:{name}", f"{name} is missing (zero)", self.zero(name))

    def activations(self) -> Iterator[Hypothesis]:
        places = [
            (parent, name)
            for parent in self._module.modules()
            for name, child in parent.named_children()
            if isinstance(child, nn.GELU)
        ]
        for key, (words, make) in _ACTIVATIONS.items():
            yield Hypothesis(key, words, self.setting([(parent, name, make()) for parent, name in places]))


@contextmanager
def _set(changes: list[tuple[nn.Module, str, Any]]) -> Iterator[None]:
    before = [(module, name, getattr(module, name)) for module, name, _ in changes]
    try:
        for module, name, value in changes:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


# ---- transformer layers


def _transformer(evidence: Evidence, tap: str, block: nn.Module) -> Iterator[Hypothesis]:
    run = _Run(evidence, tap, block)
    attention = next(m for m in block.modules() if isinstance(m, MultiHeadAttention))
    names = {leaf: f"pre_norm_mha.1.qkv_proj.{leaf}" for leaf in ("weight", "bias")}
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
    if attention.heads > 1:
        rows = {
            n: torch.cat([t.reshape(attention.heads, 3, -1)[:, i].reshape(t.shape[0] // 3, -1) for i in range(3)])
            for n, t in fused.items()
        }
        rows = {n: t.reshape(fused[n].shape) for n, t in rows.items()}
        yield Hypothesis("qkv_by_head", "the fused rows were read as q, k, v of each head in turn", run.having(rows))
    weight = parts[names["weight"]]
    for flipped in ("q", "k", "v", "qkv"):
        rows = {names["weight"]: torch.cat([weight[p].T if p in flipped else weight[p] for p in "qkv"])}
        which = "the projections of q, k and v are" if flipped == "qkv" else f"the projection of {flipped} is"
        yield Hypothesis(f"transposed:{flipped}", f"{which} transposed", run.having(rows))
    out = "pre_norm_mha.1.out_proj.weight"
    yield Hypothesis("transposed:out_proj", "attention's out_proj is transposed", run.having({out: run.tensors[out].T}))
    yield from run.biases()
    for part in "qkv":
        bias = {p: b.zero_() if p == part else b for p, b in ((p, b.clone()) for p, b in parts[names["bias"]].items())}
        missing = {names["bias"]: torch.cat([bias[p] for p in "qkv"])}
        yield Hypothesis(f"no_bias:{part}", f"the bias of {part} is missing", run.having(missing))
    root = attention.head_dim**0.5
    scale = {n: torch.cat([p["q"] * root, p["k"], p["v"]]) for n, p in parts.items()}
    yield Hypothesis("no_query_scale", "the query is not scaled by head_dim^-0.5", run.having(scale))
    yield from run.eps(nn.LayerNorm, "LayerNorm")
    for name in ("pre_norm_mha.0", "pre_norm_ffn.0"):
        ones = {f"{name}.weight": torch.ones_like(run.tensors[f"{name}.weight"])}
        yield Hypothesis(f"no_weight:{name}", f"the weight of {name} is missing (one)", run.having(ones))
    yield from run.activations()
    read = evidence.read_by(tap)
    length = read.shape[1]
    upper = torch.full((length, length), -torch.inf, dtype=read.dtype).triu(1)
    if evidence.model.encoder.causal_masking:
        yield Hypothesis("not_causal", "there is no causal mask; the original has one", run.having({}, None))
    else:
        words = "attention is masked causally; the original masks nothing"
        yield Hypothesis("causal", words, run.having({}, upper))
        behind = torch.arange(length) > evidence.ids.argmax(-1, keepdim=True)
        if behind.any():
            padding = torch.zeros(behind.shape, dtype=read.dtype).masked_fill(behind, -torch.inf)
            words = "padding is masked; the original attends to it"
            yield Hypothesis("padding_masked", words, run.having({}, padding[:, None, None, :]))


# ---- RepMixer blocks


def _repmixer(evidence: Evidence, tap: str, block: nn.Module) -> Iterator[Hypothesis]:
    run = _Run(evidence, tap, block)
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
    a, b = "token_mixer.norm.rbr_skip", "token_mixer.mixer.rbr_skip"
    leaves = ("weight", "bias", "running_mean", "running_var")
    exchanged = {f"{x}.{leaf}": run.tensors[f"{y}.{leaf}"] for x, y in ((a, b), (b, a)) for leaf in leaves}
    words = "the mixer's skip BatchNorm and its reference BatchNorm are exchanged"
    yield Hypothesis("norms_exchanged", words, run.having(exchanged))
    for name in ("token_mixer.mixer.rbr_conv.0.conv.weight", "convffn.conv.conv.weight"):
        yield Hypothesis(
            f"flipped:{name}", f"the kernel of {name} is reversed", run.having({name: run.tensors[name].flip(-1)})
        )
    yield from run.biases()
    yield from run.activations()


def other_layers(evidence: Evidence, tap: str) -> Iterator[Hypothesis]:
    """Tensors of another layer in the place of this one's: the whole layer, and one at a time."""
    if not tap.startswith("layers."):
        return
    block = _block(evidence, tap)
    run = _Run(evidence, tap, block)
    for other, theirs in enumerate(evidence.model.encoder.transformer):
        if theirs is block or type(theirs) is not type(block):
            continue
        tensors = {**dict(theirs.named_parameters()), **dict(theirs.named_buffers())}
        words = f"it holds the tensors of layers.{other}"
        yield Hypothesis(f"layer:{other}", words, run.having(tensors))
        for name in _modules_of(tensors):
            mine = {k: t for k, t in tensors.items() if k.rpartition(".")[0] == name or k == name}
            yield Hypothesis(f"layer:{other}:{name}", f"{name} is that of layers.{other}", run.having(mine))
            for leaf, tensor in mine.items():
                yield Hypothesis(
                    f"layer:{other}:{leaf}", f"{leaf} is that of layers.{other}", run.having({leaf: tensor})
                )


def _modules_of(tensors: Mapping[str, Tensor]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] or name for name in tensors))


# ---- embeddings, final norm, the two outputs


def _embeddings(evidence: Evidence) -> Iterator[Hypothesis]:
    encoder, ids = evidence.model.encoder, evidence.ids
    tokens = encoder.embedding_layer(ids)
    dim, length = tokens.shape[2], ids.shape[1]
    if encoder.positional_embedding is None:
        return
    positions = encoder.positional_embedding(length).to(tokens.dtype)
    table = encoder.positional_embedding.pos_embed.pos_embed

    def with_table(rows: Tensor, align_corners: bool = False) -> Callable[[], Tensor]:
        return lambda: tokens + _resized(rows, length, align_corners).to(tokens.dtype)

    def scaled(factor: float, both: bool) -> Callable[[], Tensor]:
        return lambda: (tokens + positions) * factor if both else tokens * factor + positions

    for key, factor, name in (("sqrt", dim**0.5, f"sqrt({dim})"), ("rsqrt", dim**-0.5, f"{dim}^-0.5")):
        words = f"the token embedding is scaled by {name}; the original does not scale it"
        yield Hypothesis(f"scaled:{key}", words, scaled(factor, False))
        words = f"token and position embedding are scaled by {name}; the original does not scale them"
        yield Hypothesis(f"scaled_sum:{key}", words, scaled(factor, True))
    yield Hypothesis("no_positions", "the position table is not added", lambda: tokens)
    for shift in (1, -1, 2, -2):
        if abs(shift) < table.shape[2]:
            rolled = table.roll(-shift, 2).clone()
            # Which rows came in at the end is anybody's guess, so those are not judged.
            if shift > 0:
                rolled[:, :, -shift:] = torch.nan
                words = f"the position table is shifted: position 0 reads row {shift}"
            else:
                rolled[:, :, :-shift] = torch.nan
                words = f"the position table is shifted: row 0 stands at position {-shift}"
            yield Hypothesis(f"positions_shifted:{shift:+d}", words, with_table(rolled))
    full, rows = evidence.full_table, table.shape[2]
    if full is not None and full.shape[2] > rows:
        words = f"the position table was not cut to {rows} rows: all {full.shape[2]} are squeezed into {length}"
        yield Hypothesis("positions_not_cut", words, with_table(full))
    if length < rows:
        words = f"the first {length} rows of the position table are used; the original resizes the table"
        yield Hypothesis("positions_cut", words, lambda: tokens + table[:, 0, :length].to(tokens.dtype))
    if length != rows:
        words = "the position table is resized with align_corners; the original resizes it without"
        yield Hypothesis("align_corners", words, with_table(table, True))


def _resized(table: Tensor, length: int, align_corners: bool = False) -> Tensor:
    if table.shape[2] != length:
        size = (length, table.shape[3])
        table = functional.interpolate(table, size, mode="bilinear", align_corners=align_corners)
    return table[:, 0]


def _final_norm(evidence: Evidence) -> Iterator[Hypothesis]:
    run = _Run(evidence, FINAL, evidence.model.encoder.final_layer_norm)
    yield from run.eps(nn.LayerNorm, "LayerNorm")
    yield from run.biases()
    ones = {"weight": torch.ones_like(run.tensors["weight"])}
    yield Hypothesis("no_weight", "the weight of the final LayerNorm is missing (one)", run.having(ones))
    read = evidence.read_by(FINAL)
    yield Hypothesis("no_final_norm", "the final LayerNorm is left out", lambda: read)


def _projected(evidence: Evidence) -> Iterator[Hypothesis]:
    run = _Run(evidence, PROJECTED, evidence.model.projector)
    yield from run.biases()
    before = evidence.read_by(FINAL)
    projector = evidence.model.projector
    yield Hypothesis("before_norm", "the tokens are projected before the final LayerNorm", lambda: projector(before))
    weight = run.tensors["weight"]
    if weight.shape[0] == weight.shape[1]:
        yield Hypothesis("transposed:projector", "the projector is transposed", run.having({"weight": weight.T}))


def _pooled(evidence: Evidence) -> Iterator[Hypothesis]:
    tokens, ids = evidence.read_by(POOLED), evidence.ids
    matrix = evidence.model.encoder.projection_layer
    rows = torch.arange(ids.shape[0])
    first = ids.argmax(-1)
    picked = tokens[rows, first]
    if matrix.shape[0] == matrix.shape[1]:
        words = "the pooled projection is untransposed: the original computes x @ P, and a Linear computes x @ W.T"
        yield Hypothesis("projection_untransposed", words, lambda: picked @ matrix.T)
    last = ids.shape[1] - 1 - ids.flip(1).argmax(-1)
    words = "the pooled token is the last of several greatest ids; argmax takes the first"
    yield Hypothesis("argmax_last", words, lambda: tokens[rows, last] @ matrix)
    yield Hypothesis("pool_last", "the last position is pooled, not the greatest id", lambda: tokens[:, -1] @ matrix)
    yield Hypothesis("pool_first", "the first position is pooled, not the greatest id", lambda: tokens[:, 0] @ matrix)
    yield Hypothesis("pool_mean", "the mean of all tokens is pooled", lambda: tokens.mean(1) @ matrix)
    yield Hypothesis("not_projected", "the pooled token is not projected", lambda: picked)
    before = evidence.read_by(FINAL)
    words = "the token is pooled before the final LayerNorm"
    yield Hypothesis("pool_before_norm", words, lambda: before[rows, first] @ matrix)
