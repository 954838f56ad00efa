"""The reference: the original encoder from ``original_ref``, or from the user's own clone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from original_ref import ClipText, TextReference, load_clip_text, load_reference
from sam3lite_convert.convert.text_weights import cast
from sam3lite_convert.errors import CannotRun, UnsoundPlan
from sam3lite_convert.parity.checkout.original_repo import OriginalRepo
from sam3lite_convert.parity.encoders import Activations, Encoder, tapped_modules
from sam3lite_convert.parity.taps import ORIGINAL, SAM3_ORIGINAL
from sam3lite_convert.plan.architecture import Architecture

_TABLE, _CLIP_TABLE = "encoder.positional_embedding.pos_embed.pos_embed", "encoder.positional_embedding"
_NAMES = {ORIGINAL: "original TextStudentEncoder", SAM3_ORIGINAL: "original CLIP text encoder of SAM3"}


def reference_cfg(architecture: Architecture, rows: int) -> dict[str, int | float | str | bool]:
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


def clip_cfg(architecture: Architecture, rows: int) -> dict[str, int]:
    """The cfg of SAM3's own text encoder for an architecture, with ``rows`` rows in its position table."""
    s = architecture.sizes
    return {
        "width": s["text_hidden"],
        "heads": s["text_heads"],
        "layers": len(architecture.blocks["clip_blocks"]),
        "context_length": rows,
        "vocab_size": s["vocab"],
        "d_model": s["output_dim"],
        "ffn": s["text_ffn"],
        "projection_dim": s["projection_dim"],
    }


def position_table(weights: Mapping[str, Tensor]) -> Tensor:
    """The position table of the original's state dict, (1, 1, rows, width)."""
    if _CLIP_TABLE in weights:
        return weights[_CLIP_TABLE][None, None]
    return weights[_TABLE]


def reference_encoder(
    architecture: Architecture, weights: Mapping[str, Tensor], dtype: torch.dtype, context: int | None = None
) -> Encoder:
    """The reference with the checkpoint's weights (``source_weights``).

    context: what it is called with, in tokens; default that of the architecture. A longer position table is cut as the
        original cuts it.

    Raises UnsoundPlan if the weights do not fit.
    """
    state = cast(weights, dtype)
    rows = position_table(state).shape[2]
    try:
        model: TextReference
        if _CLIP_TABLE in state:
            model = load_clip_text(clip_cfg(architecture, rows), state)
        else:
            model = load_reference(reference_cfg(architecture, rows), state)
    except (RuntimeError, ValueError) as fault:
        raise UnsoundPlan(f"the reference could not be loaded: {fault}", "weights_not_loaded") from None
    model.set_context_length(architecture.called if context is None else context)
    return wrap_reference(model)


def reference_kind(model: TextReference) -> str:
    """The kind of encoder that a reference is, in the table of taps."""
    return SAM3_ORIGINAL if isinstance(model, ClipText) else ORIGINAL


def wrap_reference(model: TextReference) -> Encoder:
    """The ``Encoder`` of a loaded reference."""

    def run(input_ids: Tensor) -> tuple[Tensor, Tensor]:
        tokens = model.tokens(input_ids)
        return model.parts.projector(tokens), model.pool(tokens, input_ids)

    kind = reference_kind(model)
    return Encoder(_NAMES[kind], model, tapped_modules(model, kind), run)


def checkout_encoder(
    repo: OriginalRepo, architecture: Architecture, weights: Mapping[str, Tensor], dtype: torch.dtype, context: int
) -> Encoder:
    """The encoder of the user's own checkout, with the same weights as the reference, called with ``context`` tokens.

    Raises CannotRun if it cannot be built, if its modules are not those of the original, or if the checkpoint's text
    encoder is another one.
    """
    if _TABLE not in weights:
        raise CannotRun(
            "--original-repo runs the TextStudentEncoder of a clone; the text encoder of this checkpoint is SAM3's own "
            "(CLIP). Leave --original-repo out: the reference here was held to what SAM3's own code computes",
            "usage",
        )
    # Copies: its code may change weights or ids in place, which must not affect the other side.
    state = {name: tensor.clone() for name, tensor in cast(weights, dtype).items()}
    rows = position_table(state).shape[2]
    cfg = reference_cfg(architecture, rows) | {
        "norm_layer": "layer_norm_fp32", "embed_dropout": 0.0, "no_scale_embedding": False, "no_pos_embedding": False,
    }  # fmt: skip
    model: Any = repo.build(cfg, rows, architecture.sizes["output_dim"], state)
    with repo.running():
        if context < rows:
            model.set_context_length(context)
        layers, inner = tuple(model.encoder.transformer), model.encoder
        if not layers or not all(isinstance(layer, nn.Module) for layer in layers):
            raise CannotRun("encoder.transformer is not a list of layers", "original_repo_failed")
        modules = tapped_modules(model, ORIGINAL)

    def run(input_ids: Tensor) -> tuple[Tensor, Tensor]:
        with repo.running():
            projected = model.projector(inner(input_ids.clone(), return_all_tokens=True))
            return projected, inner(input_ids.clone())

    at = f" at commit {repo.commit[:12]}" if repo.commit else ""
    name = f"TextStudentEncoder of {repo.path}{at}"
    return Encoder(name, model, modules, run, in_place=True)


def record_checkout(encoder: Encoder, repo: OriginalRepo, input_ids: Tensor, like: Activations) -> Activations:
    """The activations of the checkout's encoder at every tap.

    Raises CannotRun if they cannot be recorded, or if a shape differs from that in ``like``, the activations of
    ``original_ref``.
    """
    try:
        found = encoder.record(input_ids)
    except KeyError as fault:
        raise CannotRun(
            f"{repo.path}: no activation at {fault.args[0]}: its code does not call that module",
            "original_repo_failed",
        ) from None
    for tap, ours in like.items():
        theirs: object = found[tap]
        if not isinstance(theirs, Tensor) or theirs.shape != ours.shape:
            shape = tuple(theirs.shape) if isinstance(theirs, Tensor) else type(theirs).__name__
            raise CannotRun(
                f"{repo.path}: at {tap} its activation is {shape}, but that of original_ref is {tuple(ours.shape)}, so "
                "they cannot be compared",
                "original_repo_failed",
            )
    return found
