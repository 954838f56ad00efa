"""Faults of SAM3's own text encoder in transformers, each found in its layer and named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.clip_runs import HEADS, LAYERS, PREFIX, ROWS, WIDTH, write_text
from support.faulty import Make, said, spoilt
from support.rows import shipped_tables
from torch import Tensor, nn
from torch.nn import functional

from sam3lite_convert.checkpoint.reader import read_checkpoint
from sam3lite_convert.parity.encoders import Encoder
from sam3lite_convert.parity.run import compare_encoders, diagnose
from sam3lite_convert.parity.self_test import run_self_test
from sam3lite_convert.parity.setup import ParityOptions, Setup, set_up
from sam3lite_convert.plan.context import CalledContext

pytest.importorskip("transformers")

L1 = f"{PREFIX}encoder.layers.1."
Q, K, V, OUT = (f"{L1}self_attn.{name}_proj." for name in ("q", "k", "v", "out"))
FC1 = "mlp.fc1.weight"
POSITIONS = f"{PREFIX}embeddings.position_embedding.weight"


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return made(tmp_path_factory.mktemp("teacher"), seed=1, batch=4)


def made(folder: Path, **options: Any) -> Setup:
    return set_up(read_checkpoint(write_text(folder)), shipped_tables(), ParityOptions(**options))


def named(setup: Setup, candidate: Encoder) -> tuple[str, str]:
    """The first divergence and the closest cause."""
    found = diagnose(setup, compare_encoders(setup, candidate))
    assert found is not None, "nothing diverges"
    assert found.fits, found.words
    return found.tap, found.fits[0].key


def weights(**changes: Callable[[Tensor], Tensor]) -> Make:
    def make(setup: Setup) -> Encoder:
        changed = {key: change(setup.weights[key]).contiguous() for key, change in changes.items()}
        return setup.candidate(setup.weights | changed)

    return make


def zero(*keys: str) -> Make:
    return weights(**dict.fromkeys(keys, torch.zeros_like))


def exchanged(one: str, other: str) -> Make:
    def make(setup: Setup) -> Encoder:
        held = setup.weights
        keys = [k for k in held if k.startswith((one, other))]
        assert keys
        return setup.candidate(
            held | {k: held[k.replace(one, other) if one in k else k.replace(other, one)] for k in keys}
        )

    return make


def without_mask(encoder: Encoder) -> None:
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args[:1], kwargs | {"attention_mask": None, "is_causal": False}

    for layer in encoder.layers:
        layer.register_forward_pre_hook(before, with_kwargs=True)


def with_padding_masked(setup: Setup) -> Encoder:
    """What happens to a user who hands the tokenizer's mask on."""
    candidate = setup.candidate()
    model, projection = candidate.model["text_encoder"], candidate.model["text_projection"]

    def run(ids: Tensor) -> tuple[Tensor, Tensor]:
        out = model(input_ids=ids, attention_mask=(torch.arange(ids.shape[1]) <= ids.argmax(-1, keepdim=True)).long())
        return projection(out.last_hidden_state), out.text_embeds

    return dataclasses.replace(candidate, run=run)


def scaled_tokens(encoder: Encoder) -> None:
    table = encoder.model.get_submodule(f"{PREFIX}embeddings.token_embedding")
    table.register_forward_hook(lambda module, args, output: output * WIDTH**0.5)


def eps_at_the_end(encoder: Encoder) -> None:
    encoder.final_layer_norm.eps = 1e-6  # type: ignore[assignment]


def post_norm(encoder: Encoder) -> None:
    layer: Any = encoder.layers[1]

    def forward(x: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        x = layer.layer_norm1(x + layer.self_attn(x, attention_mask=attention_mask, **kwargs)[0])
        out: Tensor = layer.layer_norm2(x + layer.mlp(x))
        return out

    layer.forward = forward


FAULTS: dict[str, tuple[Make, str, str]] = {
    "q and k exchanged": (exchanged(Q, K), "layers.1", "qkv_order:kqv"),
    "k and v exchanged": (exchanged(K, V), "layers.1", "qkv_order:qvk"),
    "q transposed": (weights(**{Q + "weight": lambda t: t.T}), "layers.1", "transposed:q"),
    "out_proj transposed": (weights(**{OUT + "weight": lambda t: t.T}), "layers.1", "transposed:out_proj"),
    "no bias of v": (zero(V + "bias"), "layers.1", "no_bias:v"),
    "no bias of q, k, v": (zero(*(p + "bias" for p in (Q, K, V))), "layers.1", "no_bias:attn.in_proj_bias"),
    "no bias of out_proj": (zero(OUT + "bias"), "layers.1", "no_bias:attn.out_proj.bias"),
    "no bias of the first linear layer": (zero(L1 + "mlp.fc1.bias"), "layers.1", "no_bias:mlp.c_fc.bias"),
    "norms exchanged": (exchanged(L1 + "layer_norm1.", L1 + "layer_norm2."), "layers.1", "norms_exchanged"),
    "norm without a weight": (
        weights(**{L1 + "layer_norm2.weight": torch.ones_like}), "layers.1", "no_weight:ln_2",
    ),
    "tensors of another layer": (
        lambda s: s.candidate(s.weights | {L1 + FC1: s.weights[f"{PREFIX}encoder.layers.0.{FC1}"]}),
        "layers.1", "layer:0:mlp.c_fc.weight",
    ),
    "no causal mask": (spoilt(without_mask), "layers.0", "not_causal"),
    "padding masked": (with_padding_masked, "layers.0", "padding_masked"),
    "norms behind the additions": (spoilt(post_norm), "layers.1", "post_norm"),
    "tanh GELU": (said(hidden_act="gelu_pytorch_tanh"), "layers.0", "gelu_tanh"),
    "quick GELU, which CLIP's config has by default": (said(hidden_act="quick_gelu"), "layers.0", "quick_gelu"),
    "eps": (said(layer_norm_eps=1e-6), "layers.0", "layernorm_eps_1e-06"),
    "heads": (said(num_attention_heads=2 * HEADS), "layers.0", f"heads:{2 * HEADS}"),
    "eps of the last norm": (spoilt(eps_at_the_end), "final_layer_norm", "layernorm_eps_1e-06"),
    "token embedding scaled": (spoilt(scaled_tokens), "embeddings", "scaled:sqrt"),
    "no positions": (zero(POSITIONS), "embeddings", "no_positions"),
    "positions shifted": (weights(**{POSITIONS: lambda t: t.roll(-1, 0)}), "embeddings", "positions_shifted:+1"),
    "positions reversed": (weights(**{POSITIONS: lambda t: t.flip(0)}), "embeddings", "positions_reversed"),
    "no bias of the projector": (zero("text_projection.bias"), "projected", "no_bias:bias"),
    "an end id that no prompt holds": (said(eos_token_id=10_000), "pooled", "pool_first"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_in_its_place_and_named(fault: str, setup: Setup) -> None:
    make, tap, cause = FAULTS[fault]
    assert named(setup, make(setup)) == (tap, cause)


def test_the_right_candidate_differs_nowhere(setup: Setup) -> None:
    judgement = compare_encoders(setup, setup.candidate()).judgement
    assert judgement.verdict in ("exact", "within_tolerance")
    assert judgement.first_divergence is None
    assert [tap.name for tap in judgement.taps][1 : 1 + LAYERS] == [f"layers.{n}" for n in range(LAYERS)]


@pytest.mark.parametrize("align", [False, True])
def test_a_table_that_is_resized_to_a_shorter_sequence_is_named(align: bool, tmp_path: Path) -> None:
    setup = made(tmp_path, seed=1, batch=2, length=20)
    candidate = setup.candidate()
    table = candidate.model.get_submodule(POSITIONS.removesuffix(".weight"))

    def forward(ids: Tensor) -> Tensor:
        rows: Tensor = table.weight[None, None]  # type: ignore[index]
        size = (ids.shape[-1], WIDTH)
        return functional.interpolate(rows, size, mode="bilinear", align_corners=align)[0]

    table.forward = forward
    key = "positions_resized:align_corners" if align else "positions_resized"
    assert named(setup, candidate) == ("embeddings", key)


def test_the_tables_first_rows_are_read_whatever_the_context(tmp_path: Path) -> None:
    setup = made(tmp_path, seed=1, context=20)
    assert setup.inputs.ids.shape == (1, 20)
    assert isinstance(setup.plan.context, CalledContext) and setup.plan.context.held == 20
    assert setup.weights[POSITIONS].shape == (20, WIDTH)
    full = setup.evidence.full_table
    assert full is not None and full.shape == (1, 1, ROWS, WIDTH)
    assert compare_encoders(setup, setup.candidate()).judgement.first_divergence is None


def test_the_self_test_finds_every_fault_with_either_attention(tmp_path: Path) -> None:
    setup = made(tmp_path, seed=1, attention="sdpa")
    trials = {trial.fault.words: trial for trial in run_self_test(setup)}
    missed = [(words, t.first_divergence, t.diagnosis) for words, t in trials.items() if t.outcome != "found"]
    assert missed == []
    assert len(trials) > 20
    assert trials["there is no causal mask"].first_divergence == "layers.0"
