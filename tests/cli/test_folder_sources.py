"""Every command on a folder in the names of a layout, such as one that transformers saved, in place of a checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support import families
from support.folders import (
    QKV,
    assert_proven,
    config,
    convert,
    flip_bit,
    receipt,
    sam3lite,
    same,
    snapshot,
    tiny_state,
    write,
)

import sam3lite_convert as s3

TABLE = "detector.backbone.vision_backbone.trunk.pos_embed"
TEXT = ("--component", "text")
PARTS = [f"text_encoder.layers.1.self_attn.{part}_proj.weight" for part in "qkv"]
MODEL = "model.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("original"), tiny_state())


@pytest.fixture(scope="module")
def folder(original, tmp_path_factory) -> Path:
    return convert(original, tmp_path_factory.mktemp("made") / "ours", "--layout", "transformers")


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    """The folder as ``save_pretrained`` leaves it after training, and the weights in memory."""
    model = transformers.Sam3LiteTextModel.from_pretrained(folder)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 1e-2)
    place = tmp_path_factory.mktemp("trained") / "tuned"
    model.save_pretrained(place)
    return place, model.state_dict()


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def change(folder: Path, **fields: object) -> None:
    (folder / "config.json").write_text(json.dumps(config(folder) | fields))


def notes(*arguments: object) -> str:
    done = sam3lite(*arguments, "--json")
    assert done.code == 0, done
    return "\n".join(done.json["notes"])


# ---- what it is


def test_inspect_says_in_whose_names_it_is(folder):
    for name in (folder, folder / MODEL):
        found = sam3lite("inspect", name, "--json").json
        assert found["kind"] == "SAM3-LiteText detector in the names of transformers (layout transformers)"
        assert (found["layout"], found["wrapper"], found["prefix"]) == ("transformers", None, "detector.")
        assert found["counts"]["source"] == found["counts"]["mapped"] and found["counts"]["dropped"] == 0
        assert found["convert"] == {"all": "yes", "text": "yes"}
    shown = sam3lite("inspect", folder).out
    assert "bare state dict, names of the layout transformers" in " ".join(shown.split())
    assert "filled, not restored" in " ".join(shown.split())


def test_the_library_opens_it(folder):
    opened = s3.open_checkpoint(folder)
    assert same(opened.read(QKV), tiny_state()[QKV])
    assert opened.index.turned_back.keys[QKV] == tuple(PARTS)


# ---- to another layout


def test_it_converts_to_what_the_original_converts_to(original, folder, tmp_path):
    ours = convert(original, tmp_path / "ours", "--layout", "packed")
    theirs = convert(folder, tmp_path / "theirs", "--layout", "packed", "--verify")
    assert (ours / MODEL).read_bytes() == (theirs / MODEL).read_bytes()
    assert config(ours) == config(theirs)
    source = receipt(theirs)["source"]
    assert source["name"] == MODEL and source["layout"] == "transformers"
    assert source["sha256"] == snapshot(folder)[MODEL]
    assert "layout" not in receipt(ours)["source"]
    assert "class_row" not in receipt(theirs)["lost"] and "class_row" in receipt(ours)["lost"]
    assert_proven(theirs, folder)
    again = sam3lite("convert", folder, "--output", tmp_path / "theirs", "--layout", "packed", "--json")
    assert again.code == 0 and again.json["state"] == "current"


def test_to_its_own_layout_it_stays_what_it_is(folder, tmp_path):
    again = convert(folder, tmp_path / "again", "--layout", "transformers")
    assert (again / MODEL).read_bytes() == (folder / MODEL).read_bytes()
    assert config(again) == config(folder)
    assert_proven(again, folder)


def test_its_original_names_hold_the_original_s_tensors(folder, tmp_path):
    back = convert(folder, tmp_path / "back", "--layout", "original")
    found, held = load_file(back / MODEL), tiny_state()
    no_place = ("tracker.", ".sam2_convs.", ".freqs_cis", "geometry_encoder.points_")
    assert found.keys() == {key for key in held if not any(part in key for part in no_place)}
    for key, tensor in found.items():
        if key == TABLE:
            assert same(tensor[:, 1:], held[key][:, 1:].contiguous()) and not tensor[:, 0].any()
        else:
            assert same(tensor, held[key]), key
    said = " ".join(receipt(back)["notes"])
    assert "filled, not restored" in said and "6 tensors are not in the checkpoint and not written" in said
    assert_proven(back, folder)


def test_a_folder_of_a_text_encoder_has_its_projection_with_it(original, tmp_path):
    text = convert(original, tmp_path / "text", "--layout", "transformers", *TEXT)
    packed = convert(original, tmp_path / "packed", *TEXT)
    for name in (text, text / MODEL):
        again = convert(name, tmp_path / f"from-{name.name}", *TEXT)
        assert (again / MODEL).read_bytes() == (packed / MODEL).read_bytes()
    assert set(receipt(again)["source"]["files"]) == {MODEL, "text_projection.safetensors"}
    (text / "text_projection.safetensors").unlink()
    done = sam3lite("convert", text, "--output", tmp_path / "without", *TEXT)
    assert done.code == 3 and "text_projection.safetensors" in done.err


# ---- what a library saved


def test_what_was_trained_is_a_checkpoint(trained, tmp_path):
    place, weights = trained
    assert sam3lite("parity", place, "--json").json["verdict"] == "exact"
    back = load_file(convert(place, tmp_path / "back", "--layout", "original") / MODEL)
    assert same(back[QKV], torch.cat([weights[part] for part in PARTS]))
    assert not same(back[QKV], tiny_state()[QKV])
    assert same(back[TABLE][:, 1:], weights["vision_encoder.backbone.embeddings.position_embeddings"])
    assert_proven(tmp_path / "back", place)


def test_parity_says_what_the_reference_runs_on(trained):
    place, _ = trained
    assert "names of transformers (layout transformers)" in notes("parity", place)
    assert f"both sides are made of {place}" in notes("parity", place)


@pytest.mark.stress
def test_a_video_model_that_was_never_loaded_is_a_checkpoint(tmp_path):
    checkpoint = families.write(tmp_path / "s0.pt", "s0")
    made = convert(checkpoint, tmp_path / "made", "--layout", "transformers", "--component", "video")
    model = transformers.Sam3VideoModel(transformers.AutoConfig.from_pretrained(made))
    model.load_state_dict(load_file(made / MODEL))
    model.save_pretrained(tmp_path / "fresh")
    keys = load_file(tmp_path / "fresh" / MODEL).keys()
    assert sum(key.startswith("tracker_model.tracker_model.") for key in keys) == 307
    again = convert(tmp_path / "fresh", tmp_path / "again", "--layout", "transformers", "--component", "video")
    assert (again / MODEL).read_bytes() == (made / MODEL).read_bytes()


# ---- config.json


def test_what_weights_cannot_tell_is_config_json_s(copy, tmp_path):
    vision = config(copy)["vision_config"]
    backbone = vision["backbone_config"] | {"image_size": 280, "window_size": 5, "global_attn_indexes": [1, 3]}
    change(copy, vision_config=vision | {"backbone_config": backbone})
    out = convert(copy, tmp_path / "out")
    found = config(out)["vision_config"]["backbone_config"]
    assert (found["image_size"], found["window_size"], found["global_attn_indexes"]) == (280, 5, [1, 3])
    assert sam3lite("convert", copy, "--output", out, "--json").json["state"] == "current"
    (copy / "config.json").unlink()
    done = sam3lite("convert", copy, "--output", out)
    assert done.code == 2 and "beside the file that it was converted from says something else now" in done.err
    assert "1008" in str(config(convert(copy, tmp_path / "bare"))["vision_config"]["backbone_config"]["image_size"])
    assert "as in SAM3; the file holds no rotary tables" in sam3lite("inspect", copy).out.replace("\n", " ")


def test_what_config_json_states_otherwise_is_said(copy):
    assert "config.json" not in notes("inspect", copy)
    text = config(copy)["text_config"]
    change(copy, text_config=text | {"layer_norm_eps": 1e-6, "num_attention_heads": 1})
    said = notes("inspect", copy)
    assert "text_config.layer_norm_eps" in said and "text_config.num_attention_heads" in said


@pytest.mark.parametrize(
    ("name", "content"), [("config.json", "[1]"), ("config.json", '{"a": ' * 5000), ("conversion.json", "{")]
)
def test_json_that_cannot_be_read_is_not_trusted(name, content, copy):
    (copy / name).write_text(content)
    done = sam3lite("inspect", copy)
    assert done.code == 4 and name in done.err and done.err.count("\n") <= 2


@pytest.mark.parametrize(
    "fields",
    [
        {"vision_config": 3},
        {"vision_config": {"backbone_config": {"image_size": -14, "window_size": "x", "num_attention_heads": 10**30}}},
        {"detector_config": [], "vision_config": {"backbone_config": {"global_attn_indexes": [None, "1"]}}},
    ],
)
def test_a_config_json_that_makes_no_sense_is_as_if_it_said_nothing(fields, copy):
    change(copy, **fields)
    found = sam3lite("inspect", copy, "--json").json
    detector = found["architecture"]["detector"]
    assert (detector["image_size"], detector["window_size"], detector["vit_heads"]) == (1008, 24, 2)
    assert detector["global_attn_indexes"] == [7] and found["convert"]["all"] == "yes"


def test_causal_masking_has_to_be_said(tmp_path):
    checkpoint = write(tmp_path, {k: t for k, t in tiny_state().items() if "language_backbone" in k})
    made = convert(checkpoint, tmp_path / "made", *TEXT, "--causal")
    done = sam3lite("convert", made, "--output", tmp_path / "out", *TEXT)
    assert done.code == 3 and "--causal" in done.err
    again = convert(made, tmp_path / "again", *TEXT, "--causal")
    assert config(again)["text_config"]["causal_masking"] is True


# ---- what is wrong with it


def rewritten(folder: Path, change_them) -> Path:
    state = load_file(folder / MODEL)
    change_them(state)
    save_file(state, folder / MODEL)
    return folder


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (lambda state: state.pop(PARTS[0]), PARTS[0]),
        (lambda state: state.update({"text_encoder.adapter.weight": torch.zeros(3)}), "text_encoder.adapter.weight"),
        (lambda state: state.update({PARTS[0]: state[PARTS[0]][:-1]}), "not of one shape"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused_by_name(broken, says, copy, tmp_path):
    rewritten(copy, broken)
    done = sam3lite("convert", copy, "--output", tmp_path / "out")
    assert done.code == 3 and says in done.err and not (tmp_path / "out").exists()
    assert sam3lite("inspect", copy).code == 0


@pytest.mark.stress
def test_two_copies_of_one_tensor_have_to_be_equal(tmp_path):
    checkpoint = families.write(tmp_path / "s0.pt", "s0")
    made = convert(checkpoint, tmp_path / "made", "--layout", "transformers", "--component", "video")
    key = "tracker_model.shared_image_embedding.positional_embedding"
    rewritten(made, lambda state: state.update({key: flip_bit(state[key])}))
    done = sam3lite("convert", made, "--output", tmp_path / "out", "--layout", "original")
    assert done.code == 4 and key in done.err and "prompt_encoder.shared_embedding" in done.err
    assert not (tmp_path / "out").exists()


def test_it_is_not_written_over_itself(copy):
    before = snapshot(copy)
    done = sam3lite("convert", copy, "--output", copy, "--layout", "packed", "--overwrite")
    assert done.code == 2 and snapshot(copy) == before
