"""Runs of sam3lite parity, and what its tests read from the record."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.folders import (
    ROUNDING,
    edit,
    right,
    rounding,
    sam3lite,
    tensors,
    tiny_architecture,
)

from sam3lite_convert.plan import synthetic

TEXT = "detector.backbone.language_backbone."
OUTPUTS = ["final_layer_norm", "projected", "pooled"]


# name -> (sizes of a small architecture, layers)
KINDS: dict[str, tuple[dict[str, Any], int]] = {
    "s0": ({}, 6),
    "base": ({"model_name": "base", "transformer_layers": 3}, 3),
    "s0-lite": ({"text_hidden": 384, "text_heads": 6, "transformer_layers": 2, "projection_dim": 384}, 4),
}


@functools.cache
def _state(kind: str) -> dict[str, torch.Tensor]:
    return synthetic.state_dict(tiny_architecture(**KINDS[kind][0]), text_only=True)


def state_of(kind: str = "s0") -> dict[str, torch.Tensor]:
    """Tensors are shared between the tests: replace them, never change them."""
    return dict(_state(kind))


def strict(text: str) -> Any:
    """JSON as other programs read it: without NaN and Infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def parity(checkpoint: Path, *options: object, code: int = 0) -> Any:
    done = sam3lite("parity", "--checkpoint", checkpoint, "--json", *options)
    assert done.code == code, done
    assert done.err == ""
    return strict(done.out)


def taps(layers: int) -> list[str]:
    return ["embeddings", *(f"layers.{i}" for i in range(layers)), *OUTPUTS]


def column(record: Any, name: str) -> dict[str, float]:
    return {t["name"]: t[name] for t in record["layers"]}


def assert_exact(record: Any, layout: str) -> None:
    """0.0 in both columns at every tap; transformers may round its pooled output in another way, and on some
    processors its attention."""
    assert record["verdict"] in right(record)
    assert (record["first_divergence"], record["candidate"]) == (None, layout)
    for name in ("max_abs_diff", "isolated_max_abs_diff"):
        found = column(record, name)
        pooled = found.pop("pooled")
        assert max(found.values()) <= rounding(record)
        assert pooled <= (0.0 if layout == "packed" else ROUNDING)


def errors(done: Any, code: int) -> str:
    """The message of a failure, which is one line or a few and never a traceback."""
    assert done.code == code, done
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert "Traceback" not in done.err
    return done.err


def swap(folder: Path, layout: str = "transformers", layer: int = 3) -> None:
    """Exchange q and k of a layer, weights and biases."""
    held = tensors(folder)
    start = next(k for k in held if f"layers.{layer}." in k).partition("layers.")[0] + f"layers.{layer}."
    if layout == "transformers":
        q, k = start + "self_attn.q_proj.", start + "self_attn.k_proj."
        edit(folder, {a + leaf: held[b + leaf] for a, b in ((q, k), (k, q)) for leaf in ("weight", "bias")})
    else:
        names = [start + f"attention.in_proj_{leaf}" for leaf in ("weight", "bias")]
        thirds = {name: held[name].chunk(3) for name in names}
        edit(folder, {name: torch.cat([k, q, v]) for name, (q, k, v) in thirds.items()})


FIELDS = {
    "verdict", "tolerance", "reference", "candidate", "attention", "dtype", "max_abs_diff", "first_divergence",
    "layers",
}  # fmt: skip
TAP_FIELDS = {"name", "shape", "max_abs_diff", "mean_abs_diff", "relative_l2", "cosine", "isolated_max_abs_diff"}


def rewrite(file: Path, to: Path, metadata: dict[str, Any] | None = None, **changes: torch.Tensor | None) -> Path:
    """A copy of saved activations with tensors (dots written as __) replaced, or (None) taken away."""
    state = load_file(file)
    with safe_open(file, "pt") as held:
        about = dict(held.metadata())
    for name, tensor in changes.items():
        key = name.replace("__", ".")
        if tensor is None:
            del state[key]
        else:
            state[key] = tensor.clone().contiguous()
    if metadata is not None:
        (name,) = (k for k in about if k != "format")
        about[name] = json.dumps(json.loads(about[name]) | metadata)
    save_file(state, to, about)
    return to
