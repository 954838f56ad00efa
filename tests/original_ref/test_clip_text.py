"""The reference of the teacher's text encoder against activations of the real one, at every activation."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from support.clip_goldens import FULL, RUNS, TINY, activations, distances, full_size, sampled_distances, tiny
from support.goldens import golden
from support.recipe import draw
from support.rows import TEXT, key_list, rows_of
from torch import nn

from original_ref import ClipText, load_clip_text

NEAR = 2e-5  # of the small encoder, whose values are up to 4
FAR = 1e-4  # of 24 layers


# ---- the activations of the original


def test_every_run_that_the_golden_holds_is_compared() -> None:
    starts = {re.sub("(input_ids|activations).*", "", k) for k in golden(TINY).tensors if not k.startswith(TEXT)}
    assert starts == set(RUNS)


@pytest.mark.parametrize("run", RUNS)
def test_every_activation_of_a_small_encoder_is_the_originals(run: str) -> None:
    off = distances(tiny(), golden(TINY), run)
    assert len(off) == golden(TINY).cfg["layers"] + 5
    assert max(off.values()) < NEAR, off


@pytest.mark.stress
def test_every_activation_at_full_size_is_the_originals() -> None:
    of, _ = full_size()
    assert of.metadata["weights"] == "synthetic.py sam3_teacher --seed 0 --text-only"
    rows = {k: row for k, row in key_list("sam3_teacher").items() if k.startswith(TEXT)}
    model = load_clip_text(of.cfg, {k.removeprefix(TEXT): draw(k, *row) for k, row in rows.items()})
    off = sampled_distances(activations(model, of.ids()))
    assert len(off) == 24 + 5
    assert max(off.values()) < FAR, off


def test_keys_dtypes_and_shapes_are_those_of_the_released_file() -> None:
    with torch.device("meta"):
        model = ClipText(golden(FULL).cfg)
    wanted = {k.removeprefix(TEXT): row for k, row in key_list("sam3_teacher").items() if k.startswith(TEXT)}
    assert rows_of(model.state_dict()) == wanted


@pytest.mark.parametrize("run", RUNS)
@torch.no_grad()
def test_the_pooled_output_is_the_projection_of_the_end_id(run: str) -> None:
    of = golden(TINY)
    ends = [row.index(95) for row in of.ids(run).tolist()]
    model = tiny()
    pooled = model.pool(model.tokens(of.ids(run)), of.ids(run))
    wanted = of.activations(run)["pooled_all_tokens"]
    assert pooled.shape == (len(ends), 512)
    for row, end in enumerate(ends):
        torch.testing.assert_close(pooled[row], wanted[row, end], atol=NEAR, rtol=0)


# ---- what the goldens would not let pass


def rows_of_packed(order: str) -> Callable[[ClipText], None]:
    def mutate(model: ClipText) -> None:
        attention = model.encoder.transformer.resblocks[1].attn
        for name in ("in_proj_weight", "in_proj_bias"):
            parts = getattr(attention, name).chunk(3)
            setattr(attention, name, nn.Parameter(torch.cat([parts["qkv".index(p)] for p in order])))

    return mutate


def not_causal(model: ClipText) -> None:
    for block in model.encoder.transformer.resblocks:
        block.register_forward_pre_hook(lambda module, args: (args[0], None))


def tanh_gelu(model: ClipText) -> None:
    for block in model.encoder.transformer.resblocks:
        block.mlp.gelu = nn.GELU("tanh")


def other_positions(model: ClipText) -> None:
    inner = model.encoder
    inner.positions = lambda length: inner.positional_embedding[-length:]  # type: ignore[method-assign]


def resized_positions(model: ClipText) -> None:
    inner = model.encoder

    def positions(length: int) -> torch.Tensor:
        table = inner.positional_embedding[None, None]
        return nn.functional.interpolate(table, (length, table.shape[3]), mode="bilinear")[0, 0]

    inner.positions = positions  # type: ignore[method-assign]


def more_heads(model: ClipText) -> None:
    for block in model.encoder.transformer.resblocks:
        block.attn.heads, block.attn.head_dim = 8, 8


def post_norm(model: ClipText) -> None:
    for block in model.encoder.transformer.resblocks:

        def forward(x: torch.Tensor, mask: torch.Tensor, b: nn.Module = block) -> torch.Tensor:
            x = b.ln_1(x + b.attn(x, mask))
            out: torch.Tensor = b.ln_2(x + b.mlp(x))
            return out

        block.forward = forward


MUTATIONS = {
    "no causal mask": ("", not_causal),
    "k and v exchanged": ("", rows_of_packed("qvk")),
    "q and k exchanged": ("", rows_of_packed("kqv")),
    "tanh GELU": ("", tanh_gelu),
    "heads": ("", more_heads),
    "norms behind the additions": ("", post_norm),
    "the last rows of the table": ("short.", other_positions),
    "the table resized": ("short.", resized_positions),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_wrong_reference_differs_from_the_original(mutation: str) -> None:
    run, mutate = MUTATIONS[mutation]
    model = tiny()
    mutate(model)
    assert max(distances(model, golden(TINY), run).values()) > NEAR


def test_every_norm_has_the_originals_eps() -> None:
    assert {m.eps for m in tiny().modules() if isinstance(m, nn.LayerNorm)} == {1e-5}


@torch.no_grad()
def step_error(model: ClipText) -> float:
    """How far the modules are off, each fed with the original's own activation."""
    original, mask = golden(TINY).activations(), model.causal_mask(golden(TINY).activations()["embeddings"])
    last, off = original["embeddings"], []
    for i, block in enumerate(model.encoder.transformer.resblocks):
        wanted = original[f"layers.{i}"]
        off.append(float((block(last, mask) - wanted).abs().max()))
        last = wanted
    off.append(float((model.encoder.ln_final(last) - original["final_layer_norm"]).abs().max()))
    return max(off)


@pytest.mark.parametrize("where", ["ln_1", "ln_2", "ln_final"])
def test_a_wrong_eps_shows_in_one_step_from_the_originals_own_activation(where: str) -> None:
    model = tiny()
    assert step_error(model) < 3e-6
    for name, norm in model.named_modules():
        if isinstance(norm, nn.LayerNorm) and where in name:
            norm.eps = 1e-6
    assert step_error(model) > 3e-6


# ---- exactly these weights

KEYS = sorted(golden(TINY).weights())


def test_a_missing_key_is_refused() -> None:
    for key in KEYS:
        weights = golden(TINY).weights()
        del weights[key]
        with pytest.raises(RuntimeError, match=re.escape(key)):
            load_clip_text(golden(TINY).cfg, weights)


@pytest.mark.parametrize("key", ["logit_scale", "encoder.transformer.resblocks.3.ln_1.weight", "resizer.scale"])
def test_an_unexpected_key_is_refused(key: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(key)):
        load_clip_text(golden(TINY).cfg, golden(TINY).weights() | {key: torch.zeros(1)})


def test_a_wrong_shape_is_refused() -> None:
    weights = golden(TINY).weights()
    for key in KEYS:
        for side in range(weights[key].dim()):
            shape = list(weights[key].shape)
            shape[side] += 1
            with pytest.raises(RuntimeError, match="size mismatch"):
                load_clip_text(golden(TINY).cfg, weights | {key: torch.zeros(shape)})


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="5 heads do not divide a width of 64"):
        load_clip_text(golden(TINY).cfg | {"heads": 5}, golden(TINY).weights())


def test_the_weights_are_loaded_as_they_are_and_for_evaluation() -> None:
    model, weights = tiny(), golden(TINY).weights()
    held = model.state_dict()
    assert held.keys() == weights.keys()
    assert all(held[k].data_ptr() == t.data_ptr() for k, t in weights.items())
    assert not any(m.training for m in model.modules())
    assert not any(p.requires_grad for p in model.parameters())


# ---- the wrapper


@torch.no_grad()
def test_forward_returns_what_the_detector_reads() -> None:
    of = golden(TINY)
    model, calls = tiny(), []
    model.tokenizer = lambda prompts, context: calls.append((prompts, context)) or of.ids()  # type: ignore[func-returns-value]
    mask, memory = model(["some", "prompts"])
    assert calls == [(["some", "prompts"], 8)]
    assert torch.equal(mask, of.activations()["mask"].bool())
    torch.testing.assert_close(memory, of.activations()["projected"], atol=NEAR, rtol=0)


def test_forward_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(ValueError, match="tokenizer"):
        tiny()(["dog"])


def test_a_sequence_or_a_context_longer_than_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="9 does not fit a position table of 8 rows; it is not resized"):
        tiny().tokens(torch.ones(1, 9, dtype=torch.int64))
    with pytest.raises(ValueError, match="9 does not fit a position table of 8 rows"):
        tiny().set_context_length(9)


@torch.no_grad()
def test_a_shorter_context_changes_no_row_of_the_table_and_nothing_before_the_cut() -> None:
    model, ids = tiny(), golden(TINY).ids()
    model.set_context_length(5)
    assert model.context_length == 5
    wanted = golden(TINY).activations()["final_layer_norm"][:, :5]
    torch.testing.assert_close(model.tokens(ids[:, :5]), wanted, atol=NEAR, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_runs_and_stays_near_the_original(dtype: torch.dtype) -> None:
    off = distances(tiny().to(dtype), golden(TINY))
    assert 0 < max(off.values()) < {torch.float16: 0.02, torch.bfloat16: 0.2}[dtype]
