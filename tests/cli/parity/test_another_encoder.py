"""sam3lite parity of a wrong conversion: the layer, the cause and the tensor."""

from __future__ import annotations

import re

import pytest
import torch
from support.folders import (
    ENCODER,
    LAYOUTS,
    PROJECTION,
    TEXT_POSITIONS,
    edit,
    edit_config,
    flip_bit,
    rounding,
    sam3lite,
    tensors,
    write,
)
from support.parity_runs import column, errors, parity, rewrite, state_of, swap, taps


@pytest.mark.parametrize("layout", LAYOUTS)
def test_q_and_k_swapped_in_one_layer(layout, s0, bad):
    folder = bad(layout)
    swap(folder, layout)
    record = parity(s0, "--converted", folder, "--debug-intermediates", code=1)
    assert (record["verdict"], record["first_divergence"]) == ("differs", "layers.3")
    above = [t["name"] for t in record["layers"] if t["isolated_max_abs_diff"] > t["isolated_tolerance"]]
    assert above == ["layers.3"]
    isolated = column(record, "isolated_max_abs_diff")
    assert all(isolated[tap] <= rounding(record) for tap in taps(6) if tap not in ("layers.3", "pooled"))
    propagated = column(record, "max_abs_diff")
    assert all(propagated[tap] <= rounding(record) for tap in taps(6)[:4])
    assert all(t["max_abs_diff"] > 10 * t["tolerance"] for t in record["layers"][4:])
    diagnosis = record["diagnosis"]
    assert diagnosis["tap"] == "layers.3"
    assert diagnosis["fits"][0]["key"] == "qkv_order:kqv"
    assert "q and k are swapped" in diagnosis["cause"]
    source = ENCODER + "transformer.3."
    named = {(t["target"].rpartition("layers.3.")[2], t["source"]): t for t in diagnosis["tensors"]}
    assert all(t["source"].startswith(source) for t in diagnosis["tensors"])
    leaf = {"packed": "attention.in_proj_weight", "transformers": "self_attn.q_proj.weight"}[layout]
    wrong = named[leaf, source + "pre_norm_mha.1.qkv_proj.weight"]
    assert wrong["rule"] == "text attention qkv"
    assert wrong["table"] == f"text-{layout}.ini"
    assert wrong["fault"]
    right = named[{"packed": "fc1", "transformers": "mlp.fc1"}[layout] + ".weight", source + "pre_norm_ffn.1.weight"]
    assert right["fault"] is None


def test_a_pooled_projection_that_is_untransposed(s0, bad):
    folder = bad("transformers")
    edit(folder, {"projection.weight": tensors(folder)["projection.weight"].T})
    record = parity(s0, "--converted", folder, code=1)
    assert (record["verdict"], record["first_divergence"]) == ("differs", "pooled")
    for name in ("max_abs_diff", "isolated_max_abs_diff"):
        found = column(record, name)
        assert found.pop("pooled") > 0.01
        assert max(found.values()) <= rounding(record)
    assert record["diagnosis"]["fits"][0]["key"] == "projection_untransposed"
    assert "untransposed" in record["diagnosis"]["cause"]
    (tensor,) = record["diagnosis"]["tensors"]
    assert (tensor["source"], tensor["operation"]) == (PROJECTION, "transpose")


CONFIGS = {
    # The mct encoder begins with a RepMixer block, which has no LayerNorm and no heads.
    "layer_norm_eps 1e-6": ("layer_norm_eps", 1e-6, "layers.1", "layernorm_eps_1e-06"),
    "layer_norm_eps 1e-3": ("layer_norm_eps", 1e-3, "layers.1", "layernorm_eps_0.001"),
    "tanh GELU": ("hidden_act", "gelu_pytorch_tanh", "layers.0", "gelu_tanh"),
    "ReLU": ("hidden_act", "relu", "layers.0", "relu"),
    "one head": ("num_attention_heads", 1, "layers.1", "heads:1"),
    "four heads": ("num_attention_heads", 4, "layers.1", "heads:4"),
}


@pytest.mark.parametrize(
    ("layout", "case"),
    [*[("packed", case) for case in CONFIGS], *[("transformers", case) for case in list(CONFIGS)[:3]]],
)
def test_a_wrong_field_of_the_config_is_found_where_it_acts_first(layout, case, s0, bad):
    field, value, tap, cause = CONFIGS[case]
    folder = bad(layout)
    edit_config(folder, *(["text_config"] if layout == "packed" else []), field, value=value)
    record = parity(s0, "--converted", folder, "--seed", 1, "--batch", 4, code=1)
    assert record["first_divergence"] == tap
    diagnosis = record["diagnosis"]
    assert all(t["fault"] is None for t in diagnosis["tensors"])  # the weights are right
    assert diagnosis["fits"][0]["key"] == cause
    isolated = column(record, "isolated_max_abs_diff")
    assert all(isolated[t] <= rounding(record) for t in taps(6)[: taps(6).index(tap)])


FLIPPED = {
    "packed": {
        "text_encoder.token_embedding.weight": "embeddings",
        TEXT_POSITIONS["packed"]: "embeddings",
        "text_encoder.layers.0.token_mixer.norm.rbr_skip.weight": "layers.0",
        "text_encoder.layers.5.convffn.fc1.bias": "layers.5",
        "text_encoder.final_layer_norm.weight": "final_layer_norm",
        "text_projection.weight": "projected",
        "text_encoder.projection": "pooled",
    },
    "transformers": {
        "embeddings.token_embedding.weight": "embeddings",
        "layers.2.self_attn.v_proj.weight": "layers.2",
        "layers.5.token_mixer.layer_scale": "layers.5",
        "projection.weight": "pooled",
    },
}


@pytest.mark.parametrize(("layout", "key"), [(layout, key) for layout in LAYOUTS for key in FLIPPED[layout]])
def test_one_flipped_bit_is_found_in_its_layer_with_the_tensors_name(layout, key, s0, bad):
    folder = bad(layout)
    # The last bit but one of the exponent changes the number by a factor of 2^64; id 320 is in the dummy.
    element = 320 * 128 if "token_embedding" in key else 0
    edit(folder, {key: flip_bit(tensors(folder)[key], element, 29)})
    record = parity(s0, "--converted", folder, code=1)
    assert record["first_divergence"] == FLIPPED[layout][key]
    assert key in record["diagnosis"]["cause"]
    assert [t["target"].endswith(key) for t in record["diagnosis"]["tensors"] if t["fault"]] == [True]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_candidate_that_puts_out_no_numbers_differs_and_its_json_is_json(layout, s0, bad):
    folder = bad(layout)
    key = {"packed": "text_encoder.layers.3.fc1.bias", "transformers": "layers.3.mlp.fc1.bias"}[layout]
    edit(folder, {key: torch.full_like(tensors(folder)[key], torch.nan)})
    record = parity(s0, "--converted", folder, code=1)
    assert (record["verdict"], record["first_divergence"], record["max_abs_diff"]) == ("differs", "layers.3", None)
    assert record["also_diverging"] == []  # the others only read what it made
    assert record["values"]["projected"]["candidate"] == [None] * 5


def test_an_original_that_is_not_finite_proves_nothing(s0, tmp_path):
    key = ENCODER + "transformer.2.pre_norm_ffn.4.bias"
    path = write(tmp_path, state_of() | {key: torch.full((128,), 1e5)})  # float16 ends at 65504
    parity(path)
    for options in ([], ["--self-test"], ["--candidate", "transformers"]):
        message = errors(sam3lite("parity", "--checkpoint", path, "--dtype", "float16", *options), 2)
        assert "layers.2" in message
        assert "float16" in message
        assert "--dtype float32" in message
    path = write(tmp_path, state_of() | {key: torch.full((128,), torch.nan)})
    assert "layers.2" in errors(sam3lite("parity", "--checkpoint", path), 2)
    parity(s0, "--save-activations", tmp_path / "a.st")
    broken = rewrite(tmp_path / "a.st", tmp_path / "b.st", reference__layers__2=torch.full((1, 16, 128), torch.inf))
    assert "layers.2" in errors(sam3lite("parity", "--judge", broken), 2)


def test_every_layer_that_diverges_by_itself_is_named(s0, bad):
    folder = bad("transformers")
    swap(folder)
    keys = ["layers.0.conv_feed_forward.mlp.fc2.bias", "final_layer_norm.weight"]
    edit(folder, {key: tensors(folder)[key] + 0.5 for key in keys})
    record = parity(s0, "--converted", folder, code=1)
    assert record["first_divergence"] == "layers.0"
    assert record["also_diverging"] == ["layers.3", "final_layer_norm"]
    out = sam3lite("parity", "--checkpoint", s0, "--converted", folder).out
    assert re.search(r"first divergence: layers\.0\b.*layers\.3, final_layer_norm", out)


def test_small_errors_that_add_up_make_no_layer_diverge(s0, bad):
    """Each layer within the given tolerance, the sum of them above it."""
    folder = bad("packed")
    held = tensors(folder)
    keys = [f"text_encoder.layers.{i}.fc2.bias" for i in (1, 2, 3, 4)]
    edit(folder, {key: held[key] + 0.01 for key in keys})
    record = parity(s0, "--converted", folder, "--tolerance", 0.02, code=1)
    isolated = column(record, "isolated_max_abs_diff")
    assert [round(isolated[f"layers.{i}"], 4) for i in (1, 2, 3, 4)] == [0.01] * 4
    assert (record["verdict"], record["first_divergence"], record["diagnosis"]) == ("differs", None, None)
    out = sam3lite("parity", "--checkpoint", s0, "--converted", folder, "--tolerance", 0.02).out
    assert "no layer diverges" in out
