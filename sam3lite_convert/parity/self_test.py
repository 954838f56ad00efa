"""The self-test: inject every known fault into a copy of the candidate and check that parity finds it.

Faults of weights are made in the source tensors and converted by the plan into the candidate's layout; faults of code
are made in the candidate's modules. The diagnosis is independent of both: it tries its hypotheses on the reference.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from sam3lite_convert.parity.encoders import Encoder
from sam3lite_convert.parity.faults.hypotheses import distance, hypotheses
from sam3lite_convert.parity.faults.layers import layer_parts, other_layers
from sam3lite_convert.parity.judgement import FLOORS
from sam3lite_convert.parity.noise_floor import noise_floor
from sam3lite_convert.parity.run import compare_encoders, diagnose
from sam3lite_convert.parity.setup import Setup
from sam3lite_convert.parity.taps import (
    EMBEDDINGS,
    FINAL_NORM,
    LAYER,
    POOLED,
    PROJECTED,
    TapPoint,
    enclosing,
    tensors_behind,
)
from sam3lite_convert.plan.architecture import TEXT
from sam3lite_convert.plan.plan import Mapped
from sam3lite_convert.records.parity import TrialOutcome, TrialRecord
from sam3lite_convert.records.record import Json


@dataclass(frozen=True)
class InjectedFault:
    """A fault made on purpose.

    ``words``: the fault in one sentence.
    ``tap``: where it has to be found.
    ``cause``: key of the hypothesis that has to explain it.
    ``weights``: the candidate's changed state dict; None if unchanged.
    ``config``: the candidate's changed text config; None if unchanged.
    ``spoil``: changes the candidate after it is built.
    ``full_table``: see ``Evidence``.
    """

    words: str
    tap: str
    cause: str
    weights: dict[str, Tensor] | None = None
    config: Json | None = None
    spoil: Callable[[Encoder], None] = field(default=lambda encoder: None)
    full_table: Tensor | None = None


@dataclass(frozen=True)
class Trial:
    """The outcome for one fault.

    ``fault``: the fault that was injected.
    ``outcome``: found, missed or not revealed.
    ``first_divergence``: the tap that parity named.
    ``diagnosis``: the cause that parity named.
    """

    fault: InjectedFault
    outcome: TrialOutcome
    first_divergence: str | None
    diagnosis: str | None

    def record(self) -> TrialRecord:
        """The trial for the JSON."""
        return TrialRecord(
            fault=self.fault.words,
            made_in=self.fault.tap,
            outcome=self.outcome,
            first_divergence=self.first_divergence,
            cause=self.diagnosis,
        )


def run_self_test(setup: Setup) -> Iterator[Trial]:
    """Try every fault in turn.

    A fault is ``not revealed`` if it changes the reference by no more than the tolerance for these inputs, so that no
    comparison could find it.
    """
    floors = noise_floor(setup.evidence.model, setup.recorded, setup.inputs.ids)
    for fault in known_faults(setup):
        table = fault.full_table if fault.full_table is not None else setup.evidence.full_table
        altered = replace(setup, evidence=replace(setup.evidence, full_table=table), folder=None)
        limit = setup.tolerance if setup.tolerance is not None else FLOORS * floors[fault.tap].isolated
        if not _revealed(altered, fault, limit):
            yield Trial(fault, "not revealed", None, None)
            continue
        candidate = altered.candidate(fault.weights, fault.config)
        fault.spoil(candidate)
        compared = compare_encoders(altered, candidate)
        diagnosis = diagnose(altered, compared)
        found = compared.judgement.first_divergence
        named = diagnosis is not None and bool(diagnosis.fits) and diagnosis.fits[0].key == fault.cause
        in_its_place = found is not None and fault.tap in (found, enclosing(found))
        outcome: TrialOutcome = "found" if in_its_place and named else "missed"
        yield Trial(fault, outcome, found, diagnosis.words if diagnosis else None)


def _revealed(setup: Setup, fault: InjectedFault, limit: float) -> bool:
    """Whether this fault changes the reference by more than ``limit`` at the tap."""
    for hypothesis in itertools.chain(hypotheses(setup.evidence, fault.tap), other_layers(setup.evidence, fault.tap)):
        if hypothesis.key == fault.cause:
            with torch.inference_mode():
                made = hypothesis.output()
            return distance(made, setup.recorded[fault.tap])[0] > limit
    return True  # no hypothesis tells, so it has to be found


def count_faults(setup: Setup) -> int:
    """How many faults ``run_self_test`` tries."""
    return sum(1 for _ in known_faults(setup))


def known_faults(setup: Setup) -> Iterator[InjectedFault]:
    """All faults that this architecture can have; of each kind of layer, one layer is tried."""
    blocks = setup.plan.architecture.blocks
    yield from _embedding_faults(setup)
    if blocks["repmixer_blocks"]:
        yield from _repmixer_faults(setup, blocks["repmixer_blocks"][-1])
    if transformers := blocks["transformer_blocks"] or blocks["clip_blocks"]:
        yield from _transformer_faults(setup, transformers)
    words, tap = "the final LayerNorm runs at eps 1e-6", FINAL_NORM.name
    yield InjectedFault(words, tap, "layernorm_eps_1e-06", spoil=lambda e: _set_eps(e.final_layer_norm, nn.LayerNorm))
    bias = _altered(setup, _canonical(setup, PROJECTED, "bias"), torch.zeros_like)
    yield InjectedFault("the projector's bias is missing", PROJECTED.name, "no_bias:bias", bias)
    projection = _canonical(setup, POOLED)
    shape = next(m.source.shape for m in setup.plan.mapped.values() if m.canonical == projection)
    if shape[0] == shape[1]:
        flipped = _altered(setup, projection, lambda p: p.T)
        yield InjectedFault("the pooled projection is untransposed", POOLED.name, "projection_untransposed", flipped)


def _embedding_faults(setup: Setup) -> Iterator[InjectedFault]:
    width = setup.plan.architecture.sizes["text_hidden"]
    for key, factor, name in (("sqrt", width**0.5, f"sqrt({width})"), ("rsqrt", width**-0.5, f"{width}^-0.5")):
        words = f"the token embedding is scaled by {name}"
        yield InjectedFault(words, EMBEDDINGS.name, f"scaled:{key}", spoil=partial(_scale_tokens, factor=factor))
    placed = next(m for m in setup.plan.mapped.values() if m.position_table)
    shifted = _altered(setup, placed.canonical, lambda t: t.roll(-1, -2))
    yield InjectedFault("the position table is shifted by one row", EMBEDDINGS.name, "positions_shifted:+1", shifted)
    late = _altered(setup, placed.canonical, _late)
    words = "the position table has a row of zeros in front"
    yield InjectedFault(words, EMBEDDINGS.name, "positions_shifted:-1", late)
    if not setup.evidence.model.resizes_positions:
        return
    target, table = placed.target, setup.weights[placed.target]
    longer = torch.cat([table, table.flip(2)], 2)
    config = {**setup.config, "max_position_embeddings": longer.shape[2]}
    weights = {**setup.weights, target: longer}
    words = f"the position table is not cut: {longer.shape[2]} rows instead of {table.shape[2]}"
    yield InjectedFault(words, EMBEDDINGS.name, "positions_not_cut", weights, config, full_table=longer.to(setup.dtype))


def _repmixer_faults(setup: Setup, layer: int) -> Iterator[InjectedFault]:
    tap, key = LAYER.at(layer), f"{TEXT}encoder.transformer.{layer}."
    for name in ("layer_scale", "token_mixer.layer_scale"):
        ones = _altered(setup, key + name, torch.ones_like)
        yield InjectedFault(f"{name} is left out in {tap}", tap, f"no_layer_scale:{name}", ones)
    bias = _altered(setup, key + "convffn.fc2.bias", torch.zeros_like)
    yield InjectedFault(f"a bias is missing in {tap} (convffn.fc2)", tap, "no_bias:convffn.fc2.bias", bias)
    words = f"BatchNorm runs at eps 1e-6 in {tap}"
    yield InjectedFault(words, tap, "batchnorm_eps_1e-06", spoil=lambda e: _set_eps(e.layers[layer], nn.BatchNorm2d))
    yield from _activation_faults(layer)
    words = f"the token mixer's residual connection is left out in {tap}"
    yield InjectedFault(words, tap, "no_mixer_residual", spoil=lambda e: _without_mixer_residual(e.layers[layer]))
    words = f"the residual connection around the feed-forward is left out in {tap}"
    yield InjectedFault(words, tap, "no_convffn_residual", spoil=lambda e: _without_last_residual(e.layers[layer]))


def _activation_faults(layer: int) -> Iterator[InjectedFault]:
    others: dict[str, tuple[str, Callable[[], nn.Module]]] = {
        "gelu_tanh": ("GELU is the tanh approximation", lambda: nn.GELU("tanh")),
        "relu": ("the activation is a ReLU", nn.ReLU),
    }
    for cause, (words, make) in others.items():

        def spoil(encoder: Encoder, make: Callable[[], nn.Module] = make) -> None:
            _set_activation(encoder.layers[layer], make)

        yield InjectedFault(f"{words} in {LAYER.at(layer)}", LAYER.at(layer), cause, spoil=spoil)


def _transformer_faults(setup: Setup, layers: tuple[int, ...]) -> Iterator[InjectedFault]:
    layer = layers[len(layers) // 2]
    tap, key = LAYER.at(layer), _layer_key(setup, layer)
    parts = layer_parts(setup.evidence.block(tap))
    for order in ("kqv", "qvk", "vkq"):
        names = " and ".join(a for a, b in zip("qkv", order, strict=True) if a != b)
        rows = _altered_qkv(setup, key + parts.qkv, partial(_reordered, order=order))
        yield InjectedFault(f"{names} are swapped in {tap}", tap, f"qkv_order:{order}", rows)
    heads = setup.plan.architecture.sizes["text_heads"]
    orders = {"qkv_by_row": ("row by row", setup.plan.architecture.sizes["text_hidden"])}
    if heads > 1:
        orders["qkv_by_head"] = ("head by head", heads)
    for cause, (how, groups) in orders.items():
        rows = _altered_qkv(setup, key + parts.qkv, partial(_regrouped, groups=groups))
        yield InjectedFault(f"the fused rows are read as q, k, v {how} in {tap}", tap, cause, rows)
    root = (setup.plan.architecture.sizes["text_hidden"] // heads) ** 0.5
    unscaled = _altered_qkv(setup, key + parts.qkv, lambda t: torch.cat([t.chunk(3)[0] * root, *t.chunk(3)[1:]]))
    yield InjectedFault(f"the scale of attention is left out in {tap}", tap, "no_query_scale", unscaled)
    words = f"attention has {2 * heads} heads in place of {heads} in {tap}"
    yield InjectedFault(words, tap, f"heads:{2 * heads}", spoil=lambda e: _set_heads(e.layers[layer], 2 * heads))
    words = f"attention's residual connection is left out in {tap}"
    yield InjectedFault(
        words, tap, "no_attention_residual", spoil=lambda e: _without_attention_residual(e.layers[layer])
    )
    words = f"the residual connection around the feed-forward is left out in {tap}"
    yield InjectedFault(words, tap, "no_ffn_residual", spoil=lambda e: _without_last_residual(e.layers[layer]))
    out = _altered(setup, f"{key}{parts.out}.weight", lambda t: t.T)
    yield InjectedFault(f"out_proj is transposed in {tap}", tap, "transposed:out_proj", out)
    one = _altered(setup, f"{key}{parts.qkv}weight", lambda t: torch.cat([t.chunk(3)[0].T, *t.chunk(3)[1:]]))
    yield InjectedFault(f"the projection of q is transposed in {tap}", tap, "transposed:q", one)
    for name in (f"{parts.fc2}.bias", f"{parts.out}.bias"):
        bias = _altered(setup, key + name, torch.zeros_like)
        yield InjectedFault(f"a bias is missing in {tap} ({name})", tap, f"no_bias:{name}", bias)
    others = [i for i in layers if i != layer]
    if others:
        name, other = f"{parts.fc1}.weight", others[0]
        theirs = _source(setup, _layer_key(setup, other) + name)
        wrong = _altered(setup, key + name, lambda t: theirs)
        yield InjectedFault(f"{tap} holds {name} of {LAYER.at(other)}", tap, f"layer:{other}:{name}", wrong)
    words = f"LayerNorm runs at eps 1e-6 in {tap}"
    yield InjectedFault(words, tap, "layernorm_eps_1e-06", spoil=lambda e: _set_eps(e.layers[layer], nn.LayerNorm))
    yield from _activation_faults(layer)
    causal = setup.evidence.model.causal_mask(setup.recorded[EMBEDDINGS.name]) is not None
    first = LAYER.at(layers[0])
    if causal:
        yield InjectedFault("there is no causal mask", first, "not_causal", spoil=lambda e: _mask(e, layers, False))
    else:
        yield InjectedFault("attention is masked causally", first, "causal", spoil=lambda e: _mask(e, layers, True))


# ---- making them


def _layer_key(setup: Setup, layer: int) -> str:
    """What the canonical keys of a layer's tensors start with."""
    return next(start for start in _starts(LAYER, layer) if any(m.canonical.startswith(start) for m in _text(setup)))


def _canonical(setup: Setup, point: TapPoint, leaf: str = "") -> str:
    """The canonical key of a tap's tensor that ends with ``leaf``."""
    return next(
        m.canonical for m in _text(setup) if m.canonical.startswith(_starts(point)) and m.canonical.endswith(leaf)
    )


def _starts(point: TapPoint, layer: int = 0) -> tuple[str, ...]:
    return tuple(TEXT + start for start in tensors_behind(point.at(layer)))


def _text(setup: Setup) -> list[Mapped]:
    return [m for m in setup.plan.mapped.values() if m.canonical.startswith(TEXT)]


def _late(table: Tensor) -> Tensor:
    """A position table with a row of zeros in front, and without its last row."""
    return torch.cat([torch.zeros_like(table[..., :1, :]), table[..., :-1, :]], -2)


def _regrouped(fused: Tensor, groups: int) -> Tensor:
    rows: Tensor = fused.unflatten(0, (groups, 3, -1)).transpose(0, 1).flatten(0, 2)
    return rows


def _source(setup: Setup, canonical: str, weights: dict[str, Tensor] | None = None) -> Tensor:
    """A source tensor, reassembled from the candidate's state dict."""
    held = weights or setup.weights
    pieces = [m for m in setup.plan.mapped.values() if m.canonical == canonical]
    operation, tensors = pieces[0].operation, [held[m.target] for m in pieces]
    shape = operation.source_shape([tuple(t.shape) for t in tensors])
    whole = torch.empty(shape, dtype=tensors[0].dtype)
    for tensor, part in zip(tensors, operation.slices(shape), strict=True):
        data = operation.backward(_bytes(tensor), part, _name(tensor))
        whole.view(-1)[part.begin : part.begin + part.numel] = _read(data, tensor.dtype)
    return whole


def _altered(
    setup: Setup, canonical: str, change: Callable[[Tensor], Tensor], weights: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The candidate's state dict as the plan would convert it from a source with this tensor changed."""
    held = dict(weights or setup.weights)
    pieces = [m for m in setup.plan.mapped.values() if m.canonical == canonical]
    made = change(_source(setup, canonical, held)).contiguous()
    operation = pieces[0].operation
    for piece, part in zip(pieces, operation.slices(tuple(made.shape)), strict=True):
        stretch = made.view(-1)[part.begin : part.begin + part.numel]
        data = operation.forward(_bytes(stretch), part, _name(made))
        held[piece.target] = _read(data, made.dtype).reshape(part.shape)
    return held


def _altered_qkv(setup: Setup, start: str, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The same for the fused rows of q, k and v. ``start``: what stands before ``weight`` and ``bias``."""
    rows = None
    for leaf in ("weight", "bias"):
        rows = _altered(setup, start + leaf, change, rows)
    assert rows is not None
    return rows


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _read(data: bytes, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=dtype)


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _reordered(fused: Tensor, order: str) -> Tensor:
    return torch.cat([fused.chunk(3)["qkv".index(part)] for part in order])


def _set_eps(module: nn.Module, kind: type[nn.Module], eps: float = 1e-6) -> None:
    for part in module.modules():
        if isinstance(part, kind):
            setattr(part, "eps", eps)  # noqa: B010


def _set_activation(module: nn.Module, make: Callable[[], nn.Module]) -> None:
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if "gelu" in type(child).__name__.lower():
                setattr(parent, name, make())


def _set_heads(layer: nn.Module, heads: int) -> None:
    attention = next(m for m in layer.modules() if hasattr(m, "num_heads"))
    width = next(m for m in layer.modules() if isinstance(m, nn.LayerNorm)).normalized_shape[0] // heads
    for name, value in (("num_heads", heads), ("head_dim", width), ("scale", width**-0.5)):
        if hasattr(attention, name):
            setattr(attention, name, value)


def _without_attention_residual(layer: nn.Module) -> None:
    """What the layer reads is taken off again: from the input of its second half, and from the sum at its end."""
    _, second = (m for m in layer.modules() if isinstance(m, nn.LayerNorm))
    read: list[Tensor] = []

    def before(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, object]) -> None:
        read[:] = args[:1]

    layer.register_forward_pre_hook(before, with_kwargs=True)
    second.register_forward_pre_hook(lambda module, args: (args[0] - read[0],))
    layer.register_forward_hook(lambda module, args, output: output - read[0])


def _without_last_residual(layer: nn.Module) -> None:
    """What the layer's second half reads is taken off the sum at its end."""
    read: list[Tensor] = []
    mixer = getattr(layer, "token_mixer", None)
    if isinstance(mixer, nn.Module):
        mixer.register_forward_hook(lambda module, args, output: read.__setitem__(slice(None), [output[:, :, 0].mT]))
    else:
        _, second = (m for m in layer.modules() if isinstance(m, nn.LayerNorm))
        second.register_forward_pre_hook(lambda module, args: read.__setitem__(slice(None), args))
    layer.register_forward_hook(lambda module, args, output: output - read[0])


def _without_mixer_residual(layer: nn.Module) -> None:
    mixer = layer.get_submodule("token_mixer")
    mixer.register_forward_hook(lambda module, args, output: output - args[0])


def _scale_tokens(encoder: Encoder, factor: float) -> None:
    embedding = next(m for m in encoder.model.modules() if isinstance(m, nn.Embedding))
    embedding.register_forward_hook(lambda module, args, output: output * factor)


def _mask(encoder: Encoder, layers: tuple[int, ...], causal: bool) -> None:
    def before(
        module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[Tensor, ...], dict[str, object]]:
        length = args[0].shape[1]
        upper = torch.full((length, length), -torch.inf, dtype=args[0].dtype).triu(1)
        # Where a layer is told that it is causal, no mask would be a causal one.
        told = {"is_causal": causal} if "is_causal" in kwargs else {}
        return (args[0],), {**kwargs, **told, "attention_mask": upper if causal else None}

    for i in layers:
        encoder.layers[i].register_forward_pre_hook(before, with_kwargs=True)
