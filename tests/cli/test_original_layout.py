"""The layout ``original``: the names and shapes of the original, by tables alone."""

from __future__ import annotations

import json

import pytest
import torch
from support.folders import (
    POSITIONS,
    QKV,
    TRUNK,
    assert_equal_states,
    assert_proven,
    config,
    convert,
    edit,
    flip_bit,
    receipt,
    sam3lite,
    tensors,
    tiny_state,
    verify,
    write,
)
from support.goldens import agree, golden

from original_ref import load_reference

TEXT = "detector.backbone.language_backbone."
ROTARY = TRUNK + "blocks.0.attn.freqs_cis"
POINTS = "detector.geometry_encoder.points_pool_project.weight"


def held(component="all"):
    """What the original's image model holds of the checkpoint, but for the tables that it computes."""
    start = TEXT if component == "text" else "detector."
    return {
        k: t for k, t in tiny_state().items() if k.startswith(start) and "freqs_cis" not in k and "sam2_convs" not in k
    }


@pytest.fixture
def checkpoint(tmp_path):
    return write(tmp_path, tiny_state())


def original(checkpoint, folder, *options):
    return convert(checkpoint, folder, "--layout", "original", *options)


@pytest.mark.parametrize("component", ["all", "text"])
@pytest.mark.parametrize("shards", [[], ["--max-shard-size", "2MB"]], ids=["one file", "shards"])
def test_every_tensor_is_the_originals_under_its_name(component, shards, checkpoint, tmp_path):
    folder = original(checkpoint, tmp_path / "out", "--component", component, *shards)
    assert (folder / "model.safetensors.index.json").exists() is bool(shards)
    assert_equal_states(tensors(folder), held(component))
    record = assert_proven(folder, checkpoint)
    assert (record["layout"], record["component"], record["checked"]) == ("original", component, len(held(component)))


def test_position_tables_are_whole_and_points_are_there(checkpoint, tmp_path):
    found = tensors(original(checkpoint, tmp_path / "out"))
    assert found[TRUNK + "pos_embed"].shape[1] == 17  # 4 x 4 and the class position
    assert found[POSITIONS].shape == tiny_state()[POSITIONS].shape
    assert POINTS in found


def test_what_is_not_there_is_named_with_its_reason(checkpoint, tmp_path):
    said = receipt(original(checkpoint, tmp_path / "out"))
    left_out = set(tiny_state()) - set(held())
    assert set(said["dropped"]) == left_out
    kinds = said["dropped"]
    assert "computed by the original" in kinds[ROTARY]
    assert {r.split(":")[0] for r in kinds.values()} == {"freqs_cis", "sam2_convs", "tracker"}
    assert "class_row" not in said["lost"]
    assert config(tmp_path / "out")["model_type"] == "sam3lite_original"


@pytest.mark.parametrize("name", ["tiny_mct", "tiny_base", "tiny_base_causal"])
def test_the_text_encoder_loads_strictly_under_its_own_names_and_computes_what_the_original_did(name, tmp_path):
    of = golden(name)
    source = write(tmp_path, {k: t for k, t in of.tensors.items() if k.startswith(TEXT)})
    causal = ["--causal"] if of.cfg["causal_masking"] else []
    folder = original(source, tmp_path / "out", "--component", "text", *causal)
    held = {k.removeprefix(TEXT): t for k, t in tensors(folder).items()}
    agree(load_reference(of.cfg, held), of)


def test_a_fault_is_found_and_named(checkpoint, tmp_path):
    folder = original(checkpoint, tmp_path / "out")
    found = tensors(folder)
    rows = found[QKV].chunk(3)
    edit(folder, {POINTS: flip_bit(found[POINTS]), QKV: torch.cat([rows[1], rows[0], rows[2]])})
    done = verify(folder, checkpoint)
    assert done.code == 1
    why = {m["key"]: m["why"] for m in done.json["mismatched"]}
    assert set(why) == {POINTS, QKV}
    assert "k, q, v" in why[QKV]


def test_a_cast_is_proven_up_to_the_cast(checkpoint, tmp_path):
    folder = original(checkpoint, tmp_path / "out", "--dtype", "bfloat16")
    record = assert_proven(folder, checkpoint)
    assert record["up_to"] == "the cast to bfloat16"


def test_what_modules_keep_beside_their_weights_is_dropped(tmp_path):
    state = {
        f"{name}._extra_state": torch.zeros(4, dtype=torch.uint8)
        for name in (TRUNK + "blocks.0.attn.qkv", "detector.geometry_encoder.norm", TEXT + "encoder.final_layer_norm")
    }
    path = write(tmp_path, tiny_state() | state)
    folder = original(path, tmp_path / "out")
    assert_proven(folder, path)
    assert state.keys() <= receipt(folder)["dropped"].keys()


def test_names_are_explained_both_ways(checkpoint):
    short = QKV.removeprefix("detector.")
    for key in (QKV, short):
        record = sam3lite("explain", checkpoint, key, "--layout", "original", "--json").json
        assert (record["source"]["key"], record["operation"]) == (QKV, "keep")
        assert [t["key"] for t in record["targets"]] == [QKV]
    record = sam3lite("explain", checkpoint, ROTARY, "--layout", "original", "--json").json
    assert (record["outcome"], record["targets"]) == ("dropped", [])


def test_the_folder_is_a_checkpoint_again(checkpoint, tmp_path):
    folder = original(checkpoint, tmp_path / "out")
    again = convert(folder / "model.safetensors", tmp_path / "again", "--layout", "transformers")
    assert_equal_states(tensors(again), tensors(convert(checkpoint, tmp_path / "direct", "--layout", "transformers")))


def test_parity_says_that_nothing_runs_it(checkpoint, tmp_path):
    folder = original(checkpoint, tmp_path / "out")
    for options in (["--converted", folder], ["--candidate", "original"]):
        done = sam3lite("parity", "--checkpoint", checkpoint, *options, "--json")
        assert done.code == 2
        assert json.loads(done.out)["error"]["code"] == "no_candidate"
