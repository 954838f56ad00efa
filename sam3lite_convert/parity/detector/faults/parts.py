"""Faults that attention, norms and MLPs can have wherever they stand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from original_ref import Detector
from original_ref.detector.attention import MLP, Attention, FeedForward
from sam3lite_convert.parity.detector.faults.changes import (
    NOTHING,
    Change,
    DetectorFault,
    Need,
    computing,
    part,
    replacing,
    setting,
    together,
)

_EPS = {"1e-06": 1e-6, "1e-12": 1e-12, "0.001": 1e-3}


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


# ---- norms


def eps_faults(
    row: str, where: str, path: str, *names: str, needs: Need = NOTHING, each: bool = False
) -> Iterator[DetectorFault]:
    """Another eps of all these norms, with ``each`` also of one alone.

    ``where``: the norms, in words; ``path``: of the module that holds them; ``names``: of the norms in it, "" for
    itself.
    """

    def with_eps(eps: float, chosen: Sequence[str]) -> Callable[[Detector, int], Change]:
        def change(model: Detector, layer: int) -> Change:
            holder = part(model, path, layer, nn.Module)
            return together(*(setting(holder.get_submodule(name), eps=eps) for name in chosen))

        return change

    plural = len(names) > 1
    for said, eps in _EPS.items():
        words = f"{where} {'run' if plural else 'runs'} at eps {said}; the original's at 1e-05"
        yield DetectorFault(f"{row_key(row)}.eps:{said}", words, row, with_eps(eps, names), needs)
    for name in names if each else ():
        words = f"{name} runs at eps 1e-06; the original's at 1e-05"
        yield DetectorFault(f"{row_key(row)}.eps:1e-06:{name}", words, row, with_eps(1e-6, [name]), needs)


def norm_faults(row: str, where: str, path: str, needs: Need = NOTHING, name: str = "") -> Iterator[DetectorFault]:
    """A LayerNorm that is left out, does not subtract the mean, or has no weight or bias. ``name``: for the key."""

    def left_out(model: Detector, layer: int) -> Change:
        return computing(part(model, path, layer, nn.LayerNorm), lambda x: x)

    def not_centred(model: Detector, layer: int) -> Change:
        norm = part(model, path, layer, nn.LayerNorm)

        def forward(x: Tensor) -> Tensor:
            return x * (x.square().mean(-1, keepdim=True) + norm.eps).rsqrt() * norm.weight + norm.bias

        return computing(norm, forward)

    def plain(model: Detector, layer: int) -> Change:
        norm = part(model, path, layer, nn.LayerNorm)
        tensors = {"weight": torch.ones_like(norm.weight), "bias": torch.zeros_like(norm.bias)}
        return replacing(norm, tensors)

    key = row_key(row) + (f".{name}" if name else "")
    yield DetectorFault(f"{key}.no_norm", f"{where} is left out", row, left_out, needs)
    words = f"{where} is an RMSNorm, which does not subtract the mean; the original's is a LayerNorm"
    yield DetectorFault(f"{key}.rms_norm", words, row, not_centred, needs)
    words = f"{where} has no weight and bias (one and zero)"
    yield DetectorFault(f"{key}.no_affine", words, row, plain, needs)


def exchanged(path: str, a: str, b: str) -> Callable[[Detector, int], Change]:
    """The tensors of two modules exchanged. ``path``: of the module that holds them."""

    def change(model: Detector, layer: int) -> Change:
        holder = part(model, path, layer, nn.Module)
        one, other = (dict(holder.get_submodule(name).named_parameters()) for name in (a, b))
        return replacing(holder, {f"{a}.{k}": t for k, t in other.items()} | {f"{b}.{k}": t for k, t in one.items()})

    return change


# ---- attention


def attention_faults(
    row: str, where: str, path: str, needs: Need = NOTHING, other_heads: bool = True
) -> Iterator[DetectorFault]:
    """Faults of an attention with packed ``in_proj``: order of its rows, heads, scale, biases.

    ``where``: the attention, in words. ``other_heads``: whether it can have another number of heads; not where a bias
    of each head is added.
    """
    name = path.rpartition(".")[2]
    key = f"{row_key(row)}.{name}"

    def with_rows(order: Callable[[Tensor, int], Tensor]) -> Callable[[Detector, int], Change]:
        def change(model: Detector, layer: int) -> Change:
            attention = part(model, path, layer, Attention)
            names = ("in_proj_weight", "in_proj_bias")
            return replacing(attention, {n: order(attention.get_parameter(n), attention.heads) for n in names})

        return change

    for order in itertools.permutations("qkv"):
        if order != ("q", "k", "v"):
            words = f"{where}: {moved_rows(order)}"
            yield DetectorFault(f"{key}.order:{''.join(order)}", words, row, with_rows(ordered_rows(order)), needs)
    words = f"{where}: the rows of in_proj were read as q, k, v of each head in turn"
    yield DetectorFault(f"{key}.rows_by_head", words, row, with_rows(by_head), needs)
    words = f"{where}: the rows of q, k and v were read as (head size, heads)"
    yield DetectorFault(f"{key}.heads_innermost", words, row, with_rows(heads_innermost), needs)
    words = f"{where}: the scores are not scaled by the root of the head size"
    yield DetectorFault(f"{key}.no_scale", words, row, with_rows(scaled_queries(0.5)), needs)
    words = f"{where}: the scores are scaled twice by the root of the head size"
    yield DetectorFault(f"{key}.scaled_twice", words, row, with_rows(scaled_queries(-0.5)), needs)

    def no_bias(model: Detector, layer: int) -> Change:
        attention = part(model, path, layer, Attention)
        return replacing(attention, {"in_proj_bias": torch.zeros_like(attention.in_proj_bias)})

    yield DetectorFault(f"{key}.no_bias", f"{where}: the bias of q, k and v is missing", row, no_bias, needs)

    def transposed(model: Detector, layer: int) -> Change:
        attention = part(model, path, layer, Attention)
        return replacing(attention.out_proj, {"weight": attention.out_proj.weight.T})

    yield DetectorFault(f"{key}.out_transposed", f"{where}: out_proj is transposed", row, transposed, needs)

    def not_projected(model: Detector, layer: int) -> Change:
        return computing(part(model, path, layer, Attention).out_proj, lambda x: x)

    yield DetectorFault(f"{key}.no_out", f"{where}: out_proj is left out", row, not_projected, needs)

    def with_heads(up: int, down: int) -> Callable[[Detector, int], Change]:
        def change(model: Detector, layer: int) -> Change:
            attention = part(model, path, layer, Attention)
            return setting(attention, heads=attention.heads * up // down)

        return change

    def divides(up: int, down: int) -> Callable[[Detector, int], bool]:
        def applies(model: Detector, layer: int) -> bool:
            attention = part(model, path, layer, Attention)
            heads, rest = divmod(attention.heads * up, down)
            return not rest and len(attention.in_proj_bias) // 3 % heads == 0

        return applies

    for said, up, down in (("twice", 2, 1), ("half", 1, 2)) if other_heads else ():
        words = f"{where} has {said} as many heads as the original's"
        yield DetectorFault(f"{key}.heads:{said}", words, row, with_heads(up, down), needs, divides(up, down))


def moved_rows(order: Sequence[str]) -> str:
    """In words, that the thirds of the fused rows stand in another order."""
    moved = [a for a, b in zip("qkv", order, strict=True) if a != b]
    return f"{' and '.join(moved)} are swapped" if len(moved) == 2 else f"q, k, v were read as {', '.join(order)}"


def ordered_rows(order: Sequence[str]) -> Callable[[Tensor, int], Tensor]:
    """Fused rows whose thirds are read in another order."""
    return lambda fused, heads: torch.cat([dict(zip("qkv", fused.chunk(3), strict=True))[name] for name in order])


def by_head(fused: Tensor, heads: int) -> Tensor:
    """Fused rows that are read as q, k and v of the first head, then of the second."""
    out: Tensor = fused.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)
    return out


def heads_innermost(fused: Tensor, heads: int) -> Tensor:
    """Fused rows whose thirds are read as (head size, heads)."""
    out: Tensor = fused.unflatten(0, (3, -1, heads)).transpose(1, 2).flatten(0, 2)
    return out


def scaled_queries(power: float) -> Callable[[Tensor, int], Tensor]:
    """Fused rows whose query is multiplied by this power of the head size."""

    def scaled(fused: Tensor, heads: int) -> Tensor:
        q, k, v = fused.chunk(3)
        return torch.cat((q * (len(q) // heads) ** power, k, v))

    return scaled


# ---- MLPs

_ACTIVATIONS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "gelu": ("a GELU", functional.gelu),
    "silu": ("a SiLU", functional.silu),
    "none": ("left out", lambda x: x),
}


def mlp_faults(row: str, where: str, path: str, needs: Need = NOTHING) -> Iterator[DetectorFault]:
    """Other activations of an MLP, and one more behind it."""

    def with_activation(activation: Callable[[Tensor], Tensor], behind: bool = False) -> Callable[..., Change]:
        def change(model: Detector, layer: int) -> Change:
            mlp = part(model, path, layer, MLP)

            def forward(x: Tensor) -> Tensor:
                *hidden, last = mlp.layers
                for linear in hidden:
                    x = activation(linear(x))
                out: Tensor = last(x)
                return out.relu() if behind else out

            return computing(mlp, forward)

        return change

    for name, (said, activation) in _ACTIVATIONS.items():
        words = f"{where}: the activation is {said}; the original's is a ReLU"
        yield DetectorFault(f"{row_key(row)}.activation:{name}", words, row, with_activation(activation), needs)
    words = f"{where}: a ReLU stands behind the last layer too"
    yield DetectorFault(f"{row_key(row)}.relu_behind", words, row, with_activation(torch.relu, behind=True), needs)


def feed_forward_faults(row: str, where: str, path: str, needs: Need = NOTHING) -> Iterator[DetectorFault]:
    """Other activations between a layer's ``linear1`` and ``linear2``."""

    def with_activation(activation: Callable[[Tensor], Tensor]) -> Callable[[Detector, int], Change]:
        def change(model: Detector, layer: int) -> Change:
            own = part(model, path, layer, FeedForward)
            return setting(own, feed_forward=lambda x: own.linear2(activation(own.linear1(x))))

        return change

    for name, (said, activation) in _ACTIVATIONS.items():
        words = f"{where}: the feed-forward's activation is {said}; the original's is a ReLU"
        yield DetectorFault(f"{row_key(row)}.activation:{name}", words, row, with_activation(activation), needs)


# ---- tensors of another layer


def other_layer_faults(row: str, what: str, layers: str, needs: Need = NOTHING) -> Iterator[DetectorFault]:
    """A layer that holds the tensors of the one before or behind it. ``layers``: path of the list of layers."""

    def holding(by: int) -> Callable[[Detector, int], Change]:
        def change(model: Detector, layer: int) -> Change:
            mine, other = (part(model, f"{layers}.{{i}}", n, nn.Module) for n in (layer, layer + by))
            return replacing(mine, dict(other.named_parameters()))

        return change

    def there(by: int) -> Callable[[Detector, int], bool]:
        return lambda model, layer: 0 <= layer + by < len(part(model, layers, 0, nn.ModuleList))

    for by, said in ((-1, "before"), (1, "behind")):
        words = f"{what} holds the tensors of the one {said} it"
        yield DetectorFault(f"{row_key(row)}.tensors:{by:+d}", words, row, holding(by), needs, there(by))


def row_key(row: str) -> str:
    """The row's part of a fault's key."""
    return row.replace(".{i}", "")
