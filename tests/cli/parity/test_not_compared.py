"""What sam3lite parity refuses to compare: tensors that are missing, of another shape or damaged, and odd configs."""

from __future__ import annotations

import json
import shutil
import sys
import types

import pytest
import torch
from safetensors.torch import load, load_file, save_file
from support.folders import (
    ENCODER,
    LAYOUTS,
    POSITIONS,
    PROJECTION,
    QKV,
    TEXT_POSITIONS,
    TRUNK,
    convert,
    edit,
    edit_config,
    flip_bit,
    overwrite_bytes,
    python,
    raw,
    record_offset,
    sam3lite,
    tensors,
    tiny_state,
    write,
    write_safetensors,
)
from support.parity_runs import assert_exact, errors, parity, state_of, strict

# ---- a weight is missing


TARGETS = {
    "packed": [
        "text_encoder.token_embedding.weight",
        TEXT_POSITIONS["packed"],
        "text_encoder.projection",
        "text_projection.bias",
        "text_encoder.layers.0.layer_scale",
        "text_encoder.layers.5.convffn.conv.1.running_mean",
        "text_encoder.layers.2.attention.in_proj_bias",
    ],
    "transformers": [
        "embeddings.token_embedding.weight",
        TEXT_POSITIONS["transformers"].removeprefix("text_encoder."),
        "projection.weight",
        "layers.0.layer_scale",
        "layers.5.conv_feed_forward.depthwise_batchnorm.running_mean",
        "layers.2.self_attn.k_proj.bias",
    ],
}
EACH = [(layout, key) for layout in LAYOUTS for key in TARGETS[layout]]


@pytest.mark.parametrize(("layout", "key"), EACH)
def test_a_folder_that_lost_a_tensor_is_not_compared(layout, key, s0, bad):
    folder = bad(layout)
    edit(folder, {key: None})
    done = sam3lite("parity", "--checkpoint", s0, "--converted", folder)
    assert key in errors(done, done.code)
    assert done.code in (3, 4)


@pytest.mark.parametrize("what", ["bias", "weight"])
def test_a_text_projection_that_is_not_whole_is_not_compared(what, s0, bad):
    folder = bad("transformers")
    file = folder / "text_projection.safetensors"
    state = load(file.read_bytes())  # no view of the file that is written over
    del state[f"text_projection.{what}"]
    save_file(state, file)
    assert what in errors(sam3lite("parity", "--checkpoint", s0, "--converted", folder), 3)
    file.unlink()
    assert "weight" in errors(sam3lite("parity", "--checkpoint", s0, "--converted", folder), 3)


@pytest.mark.parametrize(("layout", "key"), [(layout, TARGETS[layout][n]) for layout in LAYOUTS for n in (0, 2, 3)])
def test_a_tensor_of_another_shape_is_not_compared(layout, key, s0, bad):
    folder = bad(layout)
    edit(folder, {key: tensors(folder)[key][:-1]})
    done = sam3lite("parity", "--checkpoint", s0, "--converted", folder)
    assert key in errors(done, done.code)
    assert done.code in (3, 4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tensor_too_many_is_not_compared(layout, s0, bad):
    folder = bad(layout)
    key = ("text_encoder." if layout == "packed" else "") + "layers.3.new.weight"
    edit(folder, {key: torch.ones(3)})
    assert "layers.3.new.weight" in errors(sam3lite("parity", "--checkpoint", s0, "--converted", folder), 3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_detector_that_lost_a_text_tensor_is_not_compared(layout, detector, tmp_path):
    folder = convert(detector, tmp_path / "out", "--layout", layout)
    edit(folder, {"text_projection.weight": None, "text_encoder.final_layer_norm.bias": None})
    message = errors(sam3lite("parity", "--checkpoint", detector, "--converted", folder), 3)
    assert "final_layer_norm.bias" in message
    (folder / "model.safetensors").unlink()
    errors(sam3lite("parity", "--checkpoint", detector, "--converted", folder), 2)


@pytest.mark.parametrize(
    "key",
    [
        PROJECTION,
        POSITIONS,
        ENCODER + "transformer.0.convffn.fc1.weight",
        ENCODER + "transformer.0.token_mixer.layer_scale",
        ENCODER + "transformer.3.pre_norm_mha.1.qkv_proj.bias",
    ],
)
@pytest.mark.parametrize("fault", ["lost", "another shape"])
def test_a_source_that_is_not_whole_is_not_compared(key, fault, good, tmp_path):
    state = state_of()
    if fault == "lost":
        del state[key]
    else:
        state[key] = torch.cat([state[key], state[key]])
    path = write_safetensors(tmp_path, state)
    for options in ([], ["--converted", good["transformers"]]):
        message = errors(sam3lite("parity", "--checkpoint", path, *options), 3)
        assert key.removeprefix("detector.") in message


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_without_config_is_not_compared(layout, s0, bad):
    folder = bad(layout)
    (folder / "config.json").unlink()
    message = errors(sam3lite("parity", "--checkpoint", s0, "--converted", folder), 2)
    assert "config.json" in message
    (folder / "config.json").write_text("{")
    assert "config.json" in errors(sam3lite("parity", "--checkpoint", s0, "--converted", folder), 4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("field", "value"), [("num_hidden_layers", 5), ("vocab_size", 511), ("intermediate_size", 64), ("hidden_size", 64)]
)
def test_a_config_of_other_sizes_is_not_compared(layout, field, value, s0, bad):
    folder = bad(layout)
    edit_config(folder, *(["text_config"] if layout == "packed" else []), field, value=value)
    errors(sam3lite("parity", "--checkpoint", s0, "--converted", folder), 3)


@pytest.mark.parametrize(
    ("layout", "field", "value"),
    [
        *[(layout, "num_attention_heads", 3) for layout in LAYOUTS],
        ("transformers", "num_attention_heads", 0),
        *[(layout, "layer_norm_eps", "1e-5") for layout in LAYOUTS],
        ("packed", "hidden_size", "wide"),
        ("transformers", "hidden_act", "swish2"),
    ],
)
def test_a_config_that_no_encoder_can_be_built_from_is_a_fault_of_the_folder(layout, field, value, s0, bad):
    folder = bad(layout)
    edit_config(folder, *(["text_config"] if layout == "packed" else []), field, value=value)
    assert "config" in errors(sam3lite("parity", "--checkpoint", s0, "--converted", folder), 3)


@pytest.mark.parametrize("which", ["missing", "too old"])
def test_without_transformers_its_candidate_cannot_run_and_packed_can(which, s0, good, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None if which == "missing" else types.ModuleType("transformers"))
    for options in (["--candidate", "transformers"], ["--converted", good["transformers"]]):
        message = errors(sam3lite("parity", "--checkpoint", s0, *options), 2)
        assert "sam3lite-convert[transformers]" in message
        assert "packed" in message
    assert_exact(parity(s0), "packed")
    assert_exact(parity(s0, "--converted", good["packed"]), "packed")


def test_packed_imports_no_transformers_and_json_is_the_only_thing_on_stdout(s0, good):
    code = (
        "import sys\nclass Blocked:\n    def find_spec(self, name, *rest):\n"
        "        assert name.partition('.')[0] not in ('transformers', 'tokenizers'), name\n"
        "sys.meta_path.insert(0, Blocked())\nfrom sam3lite_convert.cli.app import run\n"
        "sys.exit(run(['parity', *sys.argv[1:]]))"
    )
    options = ("--debug-intermediates", "--json")
    done = python("-c", code, "--checkpoint", s0, "--converted", good["packed"], *options)
    assert done.returncode == 0, done.stderr
    assert_exact(strict(done.stdout), "packed")


# ---- files that are not to be trusted


def test_a_damaged_tensor_of_the_text_encoder_is_not_compared(tmp_path, good):
    state = state_of()
    path = write(tmp_path, state)
    overwrite_bytes(path, record_offset(path, raw(state[PROJECTION])), b"\x12\x34\x56\x78")
    for options in ([], ["--converted", good["packed"]], ["--self-test"]):
        assert path.name in errors(sam3lite("parity", "--checkpoint", path, *options), 4)
    path.write_bytes(path.read_bytes()[:-1000])
    assert path.name in errors(sam3lite("parity", "--checkpoint", path), 4)


def test_a_damaged_tensor_that_is_not_the_text_encoders_does_not_matter(tmp_path):
    state = tiny_state()
    path = write(tmp_path, state)
    overwrite_bytes(path, record_offset(path, raw(state[TRUNK + "ln_pre.weight"])), b"\x12\x34\x56\x78")
    assert_exact(parity(path), "packed")


def test_twins_of_the_text_encoder_that_differ_are_not_compared(tmp_path):
    twin = QKV.replace("language_backbone.", "language_backbone.tensor_runner.")
    path = write_safetensors(tmp_path, state_of() | {twin: state_of()[QKV].clone()})
    assert_exact(parity(path), "packed")
    path = write_safetensors(tmp_path, state_of() | {twin: flip_bit(state_of()[QKV])})
    assert "qkv_proj" in errors(sam3lite("parity", "--checkpoint", path), 4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_that_is_truncated_or_contradicts_itself_is_not_compared(layout, s0, detector, bad, tmp_path):
    folder = bad(layout)
    file = folder / "model.safetensors"
    both = [folder / f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for shard in both:
        shutil.copy(file, shard)
    places = {key: both[n % 2].name for n, key in enumerate(load_file(file))}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    # The single file comes first: its shards are not read, and that is said.
    assert "not read" in sam3lite("parity", "--checkpoint", s0, "--converted", folder).out
    file.rename(tmp_path / "aside")
    assert "and also in" in errors(sam3lite("parity", "--checkpoint", s0, "--converted", folder), 4)
    (tmp_path / "aside").rename(file)
    for path in (*both, index):
        path.unlink()
    file.write_bytes(file.read_bytes()[:-100])
    assert file.name in errors(sam3lite("parity", "--checkpoint", s0, "--converted", folder), 4)
    cut = convert(detector, tmp_path / "cut", "--layout", layout, "--max-shard-size", "1MB")
    sorted(cut.glob("model-*.safetensors"))[1].unlink()
    assert "model-00002" in errors(sam3lite("parity", "--checkpoint", detector, "--converted", cut), 4)
