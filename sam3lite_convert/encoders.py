"""The two text encoders of a comparison, behind one interface: run on ids, and record at the taps.

A tap is a place that both have: ``embeddings``, ``layers.N``, ``final_layer_norm``, ``projected``
(what the detector reads) and ``pooled``. Activations are recorded by hooks on the modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from original_ref import TextStudentEncoder, load_reference
from sam3lite_convert.architecture import Architecture
from sam3lite_convert.errors import CannotRun, UnsoundPlan
from sam3lite_convert.original_repo import OriginalRepo
from sam3lite_convert.packed_encoder import PackedTextConfig, PackedTextModel
from sam3lite_convert.text_weights import cast, load_all

EMBEDDINGS, FINAL, PROJECTED, POOLED = "embeddings", "final_layer_norm", "projected", "pooled"
Activations = dict[str, Tensor]


@dataclass(frozen=True)
class Encoder:
    """One side. ``run(ids)`` gives projected (batch, sequence, output_dim) and pooled (batch,
    projection_dim); ``layers`` and ``final_layer_norm`` are modules on (batch, sequence, hidden)."""

    name: str
    model: nn.Module
    layers: tuple[nn.Module, ...]
    final_layer_norm: nn.Module
    run: Callable[[Tensor], tuple[Tensor, Tensor]]
    in_place: bool = False  # its layers may write over what they or others made before

    def run_quietly(self, input_ids: Tensor) -> None:
        """One forward pass for its faults alone."""
        with torch.inference_mode():
            self.run(input_ids)

    @property
    def taps(self) -> tuple[str, ...]:
        """The names of the taps in the order of execution."""
        return (EMBEDDINGS, *(f"layers.{i}" for i in range(len(self.layers))), FINAL, PROJECTED, POOLED)


def record(encoder: Encoder, input_ids: Tensor, fed: Mapping[str, Tensor] | None = None) -> Activations:
    """Every tap's activation in one forward pass.

    ``fed``: activations of another encoder, by tap. Each module then reads those instead of what the
    module before it made: what it makes of them is its own doing, errors made earlier do not reach it.
    """
    seen: Activations = {}

    def read(name: str, value: Tensor) -> Tensor:
        seen[name] = value.clone() if encoder.in_place and isinstance(value, Tensor) else value
        return value if fed is None else fed[name].to(value.dtype)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (read(EMBEDDINGS, args[0]), *args[1:]), kwargs
        name = next(name for name, value in kwargs.items() if isinstance(value, Tensor))
        return args, kwargs | {name: read(EMBEDDINGS, kwargs[name])}

    def after(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        return lambda module, args, output: read(name, output)

    handles = [encoder.layers[0].register_forward_pre_hook(before, with_kwargs=True)]
    handles += [m.register_forward_hook(after(f"layers.{i}")) for i, m in enumerate(encoder.layers)]
    handles.append(encoder.final_layer_norm.register_forward_hook(after(FINAL)))
    try:
        with torch.inference_mode():
            seen[PROJECTED], seen[POOLED] = encoder.run(input_ids)
    finally:
        for handle in handles:
            handle.remove()
    return {name: seen[name] for name in encoder.taps}


def reference_cfg(architecture: Architecture, rows: int) -> dict[str, Any]:
    """The original's cfg for an architecture, with ``rows`` rows in its position table."""
    s = architecture.sizes
    return {
        "dim": s["text_hidden"],
        "n_transformer_layers": len(architecture.blocks["transformer_blocks"]),
        "n_heads_per_layer": s["text_heads"],
        "ffn_multiplier_per_layer": s["text_ffn"] / s["text_hidden"],
        "vocab_size": s["vocab"],
        "context_length": rows,
        "model_name": architecture.model_name,
        "causal_masking": architecture.causal_masking,
        "projection_dim": s["projection_dim"],
        "kernel_size": s.get("kernel", 11),
    }


def reference_encoder(architecture: Architecture, weights: Mapping[str, Tensor], dtype: torch.dtype) -> Encoder:
    """The original, with its own weights (``source_weights``); a longer table is cut as the original cuts it."""
    state = cast(weights, dtype)
    rows = state["encoder.positional_embedding.pos_embed.pos_embed"].shape[2]
    try:
        model = load_reference(reference_cfg(architecture, rows), state)
    except RuntimeError as fault:
        raise UnsoundPlan(f"the reference did not get its weights: {fault}", "weights_not_loaded") from None
    if architecture.sizes["context"] < rows:
        model.set_context_length(architecture.sizes["context"])
    return wrap_reference(model)


def wrap_reference(model: TextStudentEncoder) -> Encoder:
    """The interface over a loaded reference."""
    inner = model.encoder

    def run(input_ids: Tensor) -> tuple[Tensor, Tensor]:
        tokens = inner(input_ids, return_all_tokens=True)
        return model.projector(tokens), inner.pool(tokens, input_ids)

    return Encoder("original TextStudentEncoder", model, tuple(inner.transformer), inner.final_layer_norm, run)


def checkout_encoder(
    repo: OriginalRepo, architecture: Architecture, weights: Mapping[str, Tensor], dtype: torch.dtype
) -> Encoder:
    """The encoder of the user's own checkout, with the weights that the reference gets.

    Raises CannotRun where it cannot be built, or not be run as the original is.
    """
    # Copies: what its code does to its weights or ids must not reach what it is compared with.
    state = {name: tensor.clone() for name, tensor in cast(weights, dtype).items()}
    rows = state["encoder.positional_embedding.pos_embed.pos_embed"].shape[2]
    cfg = reference_cfg(architecture, rows) | {
        "norm_layer": "layer_norm_fp32", "embed_dropout": 0.0, "no_scale_embedding": False, "no_pos_embedding": False,
    }  # fmt: skip
    model: Any = repo.build(cfg, rows, architecture.sizes["output_dim"], state)
    with repo.running():
        if architecture.sizes["context"] < rows:
            model.set_context_length(architecture.sizes["context"])
        layers, inner = tuple(model.encoder.transformer), model.encoder
        if not layers or not all(isinstance(layer, nn.Module) for layer in layers):
            raise CannotRun("encoder.transformer is no list of layers", "original_repo_failed")

    def run(input_ids: Tensor) -> tuple[Tensor, Tensor]:
        with repo.running():
            projected = model.projector(inner(input_ids.clone(), return_all_tokens=True))
            return projected, inner(input_ids.clone())

    at = f" at commit {repo.commit[:12]}" if repo.commit else ""
    name = f"TextStudentEncoder of {repo.path}{at}"
    return Encoder(name, model, layers, inner.final_layer_norm, run, in_place=True)


def record_checkout(encoder: Encoder, repo: OriginalRepo, input_ids: Tensor, like: Activations) -> Activations:
    """What the checkout's encoder makes at every tap.

    Raises CannotRun where that cannot be recorded, or is not what ``like``, our reference, makes in shape.
    """
    try:
        found = record(encoder, input_ids)
    except KeyError as fault:
        raise CannotRun(
            f"{repo.path}: nothing is seen at {fault.args[0]}: its code does not call that module",
            "original_repo_failed",
        ) from None
    for tap, ours in like.items():
        theirs: Any = found[tap]
        if not isinstance(theirs, Tensor) or theirs.shape != ours.shape:
            shape = tuple(theirs.shape) if isinstance(theirs, Tensor) else type(theirs).__name__
            raise CannotRun(
                f"{repo.path}: at {tap} it makes {shape} where original_ref makes {tuple(ours.shape)}, so they cannot "
                "be compared",
                "original_repo_failed",
            )
    return found


def packed_encoder(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], dtype: torch.dtype, attention: str
) -> Encoder:
    """The project's own encoder. ``config``: ``text_config`` of a packed config.json."""
    parsed = PackedTextConfig.from_dict(config)
    model = PackedTextModel.from_weights(parsed, cast(weights, dtype), attention)
    inner = model.text_encoder
    return Encoder(
        f"packed, {attention} attention",
        model,
        tuple(inner.layers),
        inner.final_layer_norm,
        lambda ids: (lambda out: (out.projected, out.pooled))(model(ids)),
    )


def transformers_encoder(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], dtype: torch.dtype, attention: str
) -> Encoder:
    """``Sam3LiteTextTextModel`` with the text projection. ``config``: ``text_config`` of its config.json.

    Raises CannotRun where transformers is missing or does not have the model.
    """
    try:
        from transformers import Sam3LiteTextTextConfig, Sam3LiteTextTextModel, __version__
    except ImportError:
        raise CannotRun(
            "the transformers candidate needs transformers 5.6 or later: pip install 'sam3lite-convert[transformers]'. "
            "--candidate packed runs without it.",
            "no_transformers",
        ) from None
    parsed = Sam3LiteTextTextConfig(**{k: v for k, v in config.items() if k != "model_type"})
    parsed._attn_implementation = attention
    state = cast(weights, dtype)
    own = {k.removeprefix("text_encoder."): t for k, t in state.items() if k.startswith("text_encoder.")}
    beside = {k.removeprefix("text_projection."): t for k, t in state.items() if k.startswith("text_projection.")}
    with torch.device("meta"):
        model = Sam3LiteTextTextModel(parsed)
        output_dim, hidden = beside["weight"].shape if "weight" in beside else (256, parsed.hidden_size)
        projection = nn.Linear(hidden, output_dim)
    load_all(model, own, "Sam3LiteTextTextModel")
    load_all(projection, beside, "the text projection")
    for part in (model, projection):
        part.requires_grad_(False)
        part.train(False)

    def run(input_ids: Tensor) -> tuple[Tensor, Tensor]:
        out = model(input_ids=input_ids, return_dict=True)
        return projection(out.last_hidden_state), out.pooler_output

    both = nn.ModuleDict({"text_encoder": model, "text_projection": projection})
    name = f"Sam3LiteTextTextModel (transformers {__version__}), {attention} attention"
    return Encoder(name, both, tuple(model.layers), model.final_layer_norm, run)


CANDIDATES: dict[str, Callable[[Mapping[str, Any], Mapping[str, Tensor], torch.dtype, str], Encoder]] = {
    "packed": packed_encoder,
    "transformers": transformers_encoder,
}
