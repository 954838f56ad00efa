"""Activations that the real original code computed, and the comparison with them."""

from __future__ import annotations

import functools
import json
from typing import NamedTuple

import pytest
import torch
from safetensors import safe_open
from support.rows import DATA, TEXT

from original_ref import TextStudentEncoder, load_reference

ATOL = 1e-4
TABLE = "encoder.positional_embedding.pos_embed.pos_embed"
RUNS = {
    "tiny_base": ["", "interpolated."],
    "tiny_base_causal": ["", "interpolated."],
    "tiny_mct": ["", "interpolated."],
    "tiny_mct_eps": ["", "end_padded.", "longer."],
}
FULL_SIZE = {"s0": ["s0_ctx16", "s0_ctx32"], "s1": ["s1_ctx16"], "l": ["l_ctx16"]}
TINY = [pytest.param(name, run, id=f"{name} {run or 'main'}") for name, runs in RUNS.items() for run in runs]


class Golden(NamedTuple):
    cfg: dict
    metadata: dict[str, str]
    tensors: dict[str, torch.Tensor]

    def weights(self) -> dict[str, torch.Tensor]:
        return {k.removeprefix(TEXT): t for k, t in self.tensors.items() if k.startswith(TEXT)}

    def activations(self, run: str = "") -> dict[str, torch.Tensor]:
        start = f"{run}activations."
        return {k.removeprefix(start): t for k, t in self.tensors.items() if k.startswith(start)}

    def ids(self, run: str = "") -> torch.Tensor:
        return self.tensors[f"{run}input_ids"]


@functools.cache
def golden(name: str) -> Golden:
    """A file of the goldens; read only."""
    with safe_open(DATA / "goldens" / f"{name}.safetensors", "pt") as held:
        metadata = held.metadata()
        tensors = {k: held.get_tensor(k) for k in held.keys()}  # noqa: SIM118
    return Golden(json.loads(metadata["cfg"]), metadata, tensors)


def tiny(name: str = "tiny_mct") -> TextStudentEncoder:
    """The reference on a golden's weights, which it does not copy: replace a tensor, never write into it."""
    return load_reference(golden(name).cfg, golden(name).weights())


@torch.no_grad()
def activations(model: TextStudentEncoder, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every activation of one run, under the goldens' names."""
    found, layers = {}, model.encoder.transformer

    def keep(name):
        return lambda module, inputs, output: found.update({name: output})

    hooks = [layers[0].register_forward_pre_hook(lambda module, inputs: found.update(embeddings=inputs[0]))]
    hooks += [layer.register_forward_hook(keep(f"layers.{i}")) for i, layer in enumerate(layers)]
    tokens = model.encoder(ids, return_all_tokens=True)
    for hook in hooks:
        hook.remove()
    return found | {"final_layer_norm": tokens, "projected": model.projector(tokens), "pooled": model.encoder(ids)}


def agree(model: TextStudentEncoder, of: Golden, run: str = "") -> None:
    found, wanted = activations(model, of.ids(run)), of.activations(run)
    assert found.keys() == wanted.keys()
    assert len(wanted) == len(model.encoder.transformer) + 4
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, atol=ATOL, rtol=0, msg=lambda m, n=name: f"{run}{n}: {m}")


def furthest(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """The greatest difference of any activation."""
    assert found.keys() == wanted.keys()
    return max(float((found[k] - wanted[k]).abs().max()) for k in wanted)
