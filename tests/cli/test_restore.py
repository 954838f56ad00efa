"""``sam3lite restore``: a folder turned back into the checkpoint that it was converted from."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import write_shards
from support.folders import (
    POSITIONS,
    PROJECTION,
    QKV,
    TRUNK,
    assert_equal_states,
    assert_proven,
    convert,
    edit,
    flip_bit,
    old_state,
    overwrite_bytes,
    raw,
    receipt,
    record_offset,
    sam3lite,
    same,
    tensors,
    tiny_state,
    write,
)
from support.hub_files import OLD, REPO

import sam3lite_convert as s3
from sam3lite_convert import files
from sam3lite_convert.commands import restore
from sam3lite_convert.convert.torch_writer import write_torch_file
from sam3lite_convert.records.restore import RestoreDocument

POS_EMBED = TRUNK + "pos_embed"
NECK = "detector.backbone.vision_backbone.sam2_convs.0.conv_3x3.weight"
COUNTER = "num_batches_tracked"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write(tmp_path_factory.mktemp("checkpoint"), tiny_state())


@pytest.fixture(scope="module")
def converted(checkpoint, tmp_path_factory):
    """``converted(*options)``: a folder, made once; copied where a test changes it."""
    made = {}

    def make(*options):
        if options not in made:
            made[options] = convert(checkpoint, tmp_path_factory.mktemp("converted") / "out", *options)
        return made[options]

    return make


def restored(folder, output, *options):
    """The document of a restoration that has to succeed."""
    done = sam3lite("restore", folder, "--output", output, "--json", *options)
    assert done.code == 0, done
    return done.json


def content(path, wrapper="model"):
    if path.suffix == ".safetensors":
        return load_file(path)
    whole = torch.load(path, weights_only=True)
    if wrapper is None:
        return whole
    assert list(whole) == [wrapper]
    return whole[wrapper]


WAYS = {
    "packed": [],
    "transformers": ["--layout", "transformers"],
    "transformers text": ["--component", "text", "--layout", "transformers"],
    "bfloat16": ["--dtype", "bfloat16"],
    "shards": ["--max-shard-size", "2MB", "--layout", "transformers"],
}
MORE_WAYS = {
    "original": ["--layout", "original"],
    "packed text": ["--component", "text"],
    "float16 text": ["--dtype", "float16", "--component", "text", "--layout", "transformers"],
}
every_way = pytest.mark.parametrize(
    "options",
    [
        *(pytest.param(options, id=name) for name, options in WAYS.items()),
        *(pytest.param(options, id=name, marks=pytest.mark.stress) for name, options in MORE_WAYS.items()),
    ],
)


@every_way
def test_with_the_checkpoint_every_tensor_is_its_own_to_the_bit(options, checkpoint, converted, tmp_path):
    record = restored(converted(*options), tmp_path / "back.pt", "--checkpoint", checkpoint)
    found, wanted = content(tmp_path / "back.pt"), tiny_state()
    assert list(found) == list(wanted)
    assert_equal_states(found, wanted)
    assert record["changed"] == record["partly"] == record["unplaced"] == []
    said = receipt(converted(*options))
    assert record["equal"] == said["counts"]["mapped"]
    assert record["from_checkpoint"] == said["lost"]["dropped"]["by_kind"]
    assert record["tensors"] == len(wanted) and record["basis"] == "checkpoint"
    cast = [note for note in record["notes"] if "taken for unchanged" in note]
    assert len(cast) == (said["options"]["dtype"] is not None)


@every_way
def test_without_it_what_the_folder_holds_is_there_under_its_name(options, converted, tmp_path):
    record = restored(converted(*options), tmp_path / "back.pt")
    found, original, said = content(tmp_path / "back.pt"), tiny_state(), receipt(converted(*options))
    held = {entry["source"] for entry in said["tensors"].values()}
    wanted = {key: original[key] for key in held}
    if dtype := said["options"]["dtype"]:
        wanted = {k: t.to(getattr(torch, dtype)) if t.is_floating_point() else t for k, t in wanted.items()}
    if "class_row" in said["lost"]:
        assert [remark["key"] for remark in record["partly"]] == [POS_EMBED]
        wanted[POS_EMBED] = wanted[POS_EMBED].clone()
        wanted[POS_EMBED][:, 0] = 0
    assert_equal_states(found, wanted)
    assert record["basis"] == "receipt" and record["turned_back"] == len(wanted)
    assert record["absent"] == said["lost"]["dropped"]["by_kind"]
    assert any("cast" in note for note in record["notes"]) is (dtype is not None)


def test_a_folder_of_the_restored_file_is_the_same_folder(checkpoint, converted, tmp_path):
    """What stands in the file is enough for the same conversion: the class row is not read by it."""
    folder = converted("--layout", "transformers")
    restored(folder, tmp_path / "back.pt")
    again = convert(tmp_path / "back.pt", tmp_path / "again", "--layout", "transformers")
    assert_equal_states(tensors(again), tensors(folder))


# ---- a folder that was trained further

TRAINED = [
    QKV, QKV.replace("1.pre_norm_mha.1.qkv_proj.weight", "2.pre_norm_mha.1.qkv_proj.bias"), PROJECTION, POSITIONS,
    POS_EMBED, TRUNK + "blocks.0.attn.qkv.weight", TRUNK + "blocks.3.attn.qkv.bias", TRUNK + "blocks.7.mlp.fc1.weight",
    "detector.backbone.language_backbone.projector.bias", "detector.dot_prod_scoring.hs_proj.weight",
]  # fmt: skip


def trained_state():
    """The checkpoint after ten of its tensors were trained: as little as one bit of one of them."""
    state = tiny_state()
    for number, key in enumerate(TRAINED):
        state[key] = flip_bit(state[key], element=state[key].numel() - 1, bit=number)
    return state


def trained(folder, tmp_path, *options):
    """A copy of a folder with the tensors of a conversion of what was trained, where they differ."""
    copy = tmp_path / "trained"
    shutil.copytree(folder, copy)
    other = convert(write(tmp_path, trained_state(), "other.pt"), tmp_path / "other", *options)
    before, after = tensors(folder), tensors(other)
    changes = {key: tensor for key, tensor in after.items() if not same(tensor, before[key])}
    assert len(changes) == 10
    edit(copy, changes)
    return copy


@pytest.mark.parametrize("layout", ["packed", "transformers", "original"])
def test_ten_changed_tensors_are_changed_and_no_others(layout, checkpoint, converted, tmp_path):
    folder = trained(converted("--layout", layout), tmp_path, "--layout", layout)
    record = restored(folder, tmp_path / "back.pt", "--checkpoint", checkpoint)
    assert sorted(record["changed"]) == sorted(TRAINED)
    assert_equal_states(content(tmp_path / "back.pt"), trained_state())
    assert record["equal"] + 10 + sum(record["from_checkpoint"].values()) == len(tiny_state())
    # The same without the checkpoint, which doesn't know what was changed.
    restored(folder, tmp_path / "alone.pt")
    alone, wanted = content(tmp_path / "alone.pt"), trained_state()
    different = {key for key, tensor in alone.items() if not same(tensor, wanted[key])}
    assert different == (set() if layout == "original" else {POS_EMBED})


def test_what_was_trained_from_a_cast_folder_has_the_checkpoint_s_dtype(checkpoint, converted, tmp_path):
    """One q of a qkv: k, v and all others keep the bits that the cast rounded off."""
    folder = tmp_path / "out"
    shutil.copytree(converted("--dtype", "bfloat16", "--layout", "transformers"), folder)
    target = "text_encoder.layers.1.self_attn.q_proj.weight"
    new = torch.full_like(tensors(folder)[target], 0.7)
    edit(folder, {target: new})
    record = restored(folder, tmp_path / "back.pt", "--checkpoint", checkpoint)
    wanted = tiny_state()
    wanted[QKV] = torch.cat([new.float(), *wanted[QKV].chunk(3)[1:]])
    assert_equal_states(content(tmp_path / "back.pt"), wanted)
    assert record["changed"] == [QKV] and record["partly"] == []


def test_what_was_trained_wider_than_the_checkpoint_stays_as_wide(converted, tmp_path):
    state = {k: t.half() if t.is_floating_point() else t for k, t in tiny_state().items()}
    original = write(tmp_path, state, "half.pt")
    folder = convert(original, tmp_path / "out", "--dtype", "float32", "--layout", "transformers")
    new = tensors(folder)["vision_encoder.backbone.embeddings.position_embeddings"] + 1e-6
    edit(folder, {"vision_encoder.backbone.embeddings.position_embeddings": new})
    record = restored(folder, tmp_path / "back.pt", "--checkpoint", original)
    found = content(tmp_path / "back.pt")
    wanted = state | {POS_EMBED: torch.cat([state[POS_EMBED][:, :1].float(), new], 1)}
    assert_equal_states(found, wanted)
    assert record["partly"] == [
        {"key": POS_EMBED, "why": "is float32 as in the folder; in the checkpoint it is float16"}
    ]


# ---- kinds of checkpoints


@pytest.mark.parametrize("cut", [[], pytest.param(["--context", "5"], marks=pytest.mark.stress)])
def test_rows_that_were_cut_come_from_the_checkpoint(cut, tmp_path):
    state = old_state(text_hidden=64, text_heads=1, vit_layers=8)
    original = write(tmp_path, state, "efficient_ctx16.pt")
    folder = convert(original, tmp_path / "out", "--component", "text", *cut)
    assert tensors(folder)["text_encoder.position_embedding.position_embedding"].shape[2] == (5 if cut else 16)
    restored(folder, tmp_path / "back.pt", "--checkpoint", original)
    assert_equal_states(content(tmp_path / "back.pt"), state)
    record = restored(folder, tmp_path / "alone.pt")
    held = content(tmp_path / "alone.pt")[POSITIONS]
    assert same(held, state[POSITIONS][:, :, : held.shape[2]])
    assert [remark["why"].partition(" are")[0] for remark in record["partly"]] == [f"its last {72 if cut else 61} rows"]
    assert any("put ctx16 into it" in note for note in record["notes"]) is (not cut)
    named = restored(folder, tmp_path / "alone_ctx16.pt")
    assert not any("ctx16" in note for note in named["notes"])


@pytest.mark.parametrize("wrapper", [None, "model_ema"])
def test_the_state_dict_stands_where_it_stood(wrapper, tmp_path):
    state = {k.replace("detector.", "module."): t for k, t in tiny_state().items() if not k.startswith("tracker")}
    inner = {wrapper: state} if wrapper else state
    whole = inner | ({"meta": {"text_context_length": 8, "author": "somebody"}, "epoch": 3} if wrapper else {})
    torch.save(whole, tmp_path / "in.pt")
    folder = convert(tmp_path / "in.pt", tmp_path / "out", "--layout", "transformers")
    for options in (["--checkpoint", tmp_path / "in.pt"], []):
        record = restored(folder, tmp_path / "back.pt", "--overwrite", *options)
        found = torch.load(tmp_path / "back.pt", weights_only=True)
        assert record["wrapper"] == wrapper and record["prefix"] == "module."
        if wrapper:
            assert found.pop("meta") == {"text_context_length": 8}
            assert list(found) == [wrapper]
        found = found[wrapper] if wrapper else found
        if options:
            assert_equal_states(found, state)
        else:
            assert set(found) == {entry["source"] for entry in receipt(folder)["tensors"].values()}


def test_a_position_table_that_had_no_class_row(tmp_path):
    state = tiny_state() | {POS_EMBED: tiny_state()[POS_EMBED][:, 1:].clone()}
    original = write(tmp_path, state, "grid.pt")
    folder = convert(original, tmp_path / "out", "--layout", "transformers")
    record = restored(folder, tmp_path / "back.pt")
    assert record["partly"] == []
    assert same(content(tmp_path / "back.pt")[POS_EMBED], state[POS_EMBED])


def test_safetensors_in_and_out(tmp_path):
    state = {k: t for k, t in tiny_state().items() if not t.is_complex()}
    save_file({k: t.clone().contiguous() for k, t in state.items()}, tmp_path / "in.safetensors")
    folder = convert(tmp_path / "in.safetensors", tmp_path / "out")
    record = restored(folder, tmp_path / "back.safetensors", "--checkpoint", tmp_path / "in.safetensors")
    assert record["format"] == "safetensors" and record["wrapper"] is None
    assert_equal_states(content(tmp_path / "back.safetensors"), state)
    restored(folder, tmp_path / "back.pt", "--checkpoint", tmp_path / "in.safetensors")
    assert_equal_states(torch.load(tmp_path / "back.pt", weights_only=True), state)


def test_complex_tables_in_safetensors(checkpoint, converted, tmp_path):
    record = restored(converted(), tmp_path / "back.safetensors", "--checkpoint", checkpoint)
    assert_equal_states(content(tmp_path / "back.safetensors"), tiny_state())
    assert any("lie under 'model'" in note for note in record["notes"])


def test_a_dtype_that_safetensors_lacks(tmp_path):
    key = next(k for k, t in tiny_state().items() if t.is_complex())
    state = tiny_state() | {key: tiny_state()[key].to(torch.complex128)}
    original = write(tmp_path, state, "wide.pt")
    folder = convert(original, tmp_path / "out")
    done = sam3lite("restore", folder, original, "--output", tmp_path / "back.safetensors")
    assert done.code == 2 and f"{key} is complex128, which safetensors cannot hold" in done.err
    assert not (tmp_path / "back.safetensors").exists()
    restored(folder, tmp_path / "back.pt", "--checkpoint", original)
    assert_equal_states(content(tmp_path / "back.pt"), state)


def test_shards_as_checkpoint(tmp_path):
    original = write_shards(tmp_path / "shards", tiny_state(), "bin")
    folder = convert(original, tmp_path / "out", "--layout", "transformers")
    restored(folder, tmp_path / "back.pt", "--checkpoint", original)
    assert_equal_states(torch.load(tmp_path / "back.pt", weights_only=True), tiny_state())


TWIN = QKV.replace("detector.", "module.detector.")


@pytest.mark.parametrize("change", [pytest.param(False, marks=pytest.mark.stress), True])
def test_a_second_name_of_a_tensor(change, tmp_path):
    state = tiny_state()
    state[TWIN] = state[QKV].clone()
    original = write(tmp_path, state, "twins.pt")
    folder = convert(original, tmp_path / "out", "--layout", "transformers")
    if change:
        new = torch.full((128, 128), 0.5)
        edit(folder, {"text_encoder.layers.1.self_attn.k_proj.weight": new})
        q, _, v = state[QKV].chunk(3)
        state[QKV] = state[TWIN] = torch.cat([q, new, v])
    record = restored(folder, tmp_path / "back.pt", "--checkpoint", original)
    assert_equal_states(content(tmp_path / "back.pt"), state)
    assert sorted(record["changed"]) == ([QKV, TWIN] if change else [])
    alone = restored(folder, tmp_path / "alone.pt")
    found = content(tmp_path / "alone.pt")
    assert same(found[QKV], state[QKV]) and same(found[TWIN], state[QKV])
    assert "twin" not in alone["absent"]


def test_counters_that_the_checkpoint_lacks(tmp_path):
    state = {k: t for k, t in tiny_state().items() if not k.endswith(COUNTER)}
    original = write(tmp_path, state, "plain.pt")
    folder = convert(original, tmp_path / "out", "--layout", "transformers")
    filled = [key for key in tensors(folder) if key.endswith(COUNTER)]
    for options in (["--checkpoint", original], []):
        record = restored(folder, tmp_path / "back.pt", "--overwrite", *options)
        assert not any(key.endswith(COUNTER) for key in content(tmp_path / "back.pt"))
        assert record["unplaced"] == []
    edit(folder, {filled[0]: torch.tensor(3)})
    for options in (["--checkpoint", original], []):
        record = restored(folder, tmp_path / "back.pt", "--overwrite", *options)
        assert [remark["key"] for remark in record["unplaced"]] == [filled[0]]


def test_a_counter_that_the_folder_lacks(checkpoint, converted, tmp_path):
    shutil.copytree(converted("--layout", "transformers"), tmp_path / "out")
    key = next(key for key in tensors(tmp_path / "out") if key.endswith(COUNTER))
    edit(tmp_path / "out", {key: None})
    record = restored(tmp_path / "out", tmp_path / "back.pt", "--checkpoint", checkpoint)
    assert_equal_states(content(tmp_path / "back.pt"), tiny_state())
    assert record["from_checkpoint"]["counter"] == 1


# ---- which checkpoint


def test_the_same_checkpoint_saved_anew_serves_if_nothing_differs(checkpoint, converted, tmp_path):
    anew = tmp_path / "anew.pt"
    torch.save({"model": tiny_state(), "epoch": 3}, anew)
    folder = converted("--layout", "transformers")
    record = restored(folder, tmp_path / "back.pt", "--checkpoint", anew)
    assert any("is all that the folder holds" in note for note in record["notes"])
    assert_equal_states(content(tmp_path / "back.pt"), tiny_state())


def test_another_checkpoint_is_refused_where_the_folder_differs_from_it(converted, tmp_path):
    other = write(tmp_path, trained_state(), "other.pt")
    folder = tmp_path / "out"
    shutil.copytree(converted("--layout", "transformers"), folder)
    done = sam3lite("restore", folder, other, "--output", tmp_path / "back.pt", "--json")
    assert done.code == 2 and done.json["error"]["code"] == "other_checkpoint"
    assert sorted(done.json["error"]["details"]["changed"]) == sorted(TRAINED)
    assert not (tmp_path / "back.pt").exists()
    # As the message says: without the receipt, what the user states holds.
    (folder / "conversion.json").unlink()
    record = restored(folder, tmp_path / "back.pt", "--checkpoint", other)
    assert sorted(record["changed"]) == sorted(TRAINED)
    assert any("is taken as given" in note for note in record["notes"])
    wanted = tiny_state()
    wanted[POS_EMBED] = torch.cat([trained_state()[POS_EMBED][:, :1], wanted[POS_EMBED][:, 1:]], 1)
    assert_equal_states(content(tmp_path / "back.pt"), wanted)


def test_a_checkpoint_that_contradicts_itself(converted, tmp_path):
    state = tiny_state()
    state[TWIN] = flip_bit(state[QKV])
    original = write(tmp_path, state, "twins.pt")
    done = sam3lite("restore", converted(), original, "--output", tmp_path / "back.pt", "--json")
    assert done.code == 4 and done.json["error"]["code"] == "twins_differ"


def test_folder_and_checkpoint_on_the_hub(checkpoint, converted, hub, tmp_path):
    folder = converted("--layout", "transformers")
    hub.add_repo(REPO, {OLD["s0"]: checkpoint})
    hub.add_repo("porter/own", {p.name: p for p in folder.iterdir()})
    done = sam3lite("restore", "porter/own", "s0", "--output", tmp_path / "back.pt", "--json")
    assert done.code == 0, done
    assert done.json["folder"] == "porter/own" and done.json["repository"]["repo"] == "porter/own"
    assert done.json["source"]["repo"] == REPO
    assert_equal_states(content(tmp_path / "back.pt"), tiny_state())
    alone = sam3lite("restore", "porter/own", "--output", tmp_path / "alone.pt", "--json").json
    assert alone["basis"] == "receipt" and alone["turned_back"] == 420


def test_a_folder_in_place_of_the_checkpoint(converted, tmp_path):
    """What was trained, beside what it was trained from: both in the names of transformers."""
    before = converted("--layout", "transformers")
    after = trained(before, tmp_path, "--layout", "transformers")
    (after / "conversion.json").unlink()
    record = restored(after, tmp_path / "back.pt", "--checkpoint", before)
    assert sorted(record["changed"]) == sorted(TRAINED)
    found, wanted = content(tmp_path / "back.pt", None), trained_state()
    wanted[POS_EMBED] = torch.cat([torch.zeros(1, 1, 128), wanted[POS_EMBED][:, 1:]], 1)
    assert_equal_states(found, {key: wanted[key] for key in found})
    assert len(found) == 420


# ---- folders that are not as they were


def refused(folder, output, *options):
    done = sam3lite("restore", folder, "--output", output, "--json", *options)
    assert done.code, done
    assert not output.exists()
    return done.code, done.json["error"]["code"], done.json["error"]["message"]


@pytest.fixture
def folder(converted, tmp_path):
    return shutil.copytree(converted("--layout", "transformers"), tmp_path / "out")


@pytest.mark.parametrize("component", ["all", "text"])
@pytest.mark.parametrize("layout", ["packed", "transformers", "original"])
def test_without_a_receipt_the_tables_tell_the_names_of_a_released_file(layout, component, converted, tmp_path):
    whole = ["--component", "text"] if component == "text" else []
    folder = shutil.copytree(converted(*whole, "--layout", layout), tmp_path / "bare")
    said = receipt(folder)
    (folder / "conversion.json").unlink()
    record = restored(folder, tmp_path / "back.pt")
    wanted = {entry["source"]: tiny_state()[entry["source"]] for entry in said["tensors"].values()}
    if POS_EMBED in wanted and layout != "original":
        wanted[POS_EMBED] = torch.cat([torch.zeros(1, 1, 128), wanted[POS_EMBED][:, 1:]], 1)
        assert [remark["key"] for remark in record["partly"]] == [POS_EMBED]
    assert_equal_states(content(tmp_path / "back.pt"), wanted)
    assert (record["basis"], record["family"], record["layout"]) == ("layout", "SAM3-LiteText", layout)
    assert record["component"] == component and record["unplaced"] == []
    assert (record["wrapper"], record["prefix"], record["turned_back"]) == ("model", "detector.", len(wanted))
    assert any("there is no conversion.json; the names are those of a released file" in n for n in record["notes"])


def test_a_receipt_that_no_longer_fits(folder, checkpoint, tmp_path):
    """Of a shorter table: the tables tell the names, and with the checkpoint its other rows are there."""
    target = "text_encoder.embeddings.position_embedding.position_embedding"
    edit(folder, {target: tensors(folder)[target][:, :, :5]})
    record = restored(folder, tmp_path / "back.pt")
    assert record["basis"] == "layout"
    assert any("conversion.json is no longer that of the tensors" in note for note in record["notes"])
    assert same(content(tmp_path / "back.pt")[POSITIONS], tiny_state()[POSITIONS][:, :, :5])
    restored(folder, tmp_path / "whole.pt", "--checkpoint", checkpoint)
    assert_equal_states(content(tmp_path / "whole.pt"), tiny_state())


def test_tensors_that_have_no_place(folder, checkpoint, tmp_path):
    key = "text_encoder.layers.1.self_attn.q_proj.weight"
    edit(folder, {"lora.weight": torch.zeros(2)})
    code, name, message = refused(folder, tmp_path / "back.pt")
    assert (code, name) == (3, "unsound_plan") and "lora.weight" in message
    edit(folder, {key: torch.zeros(3, 3)})
    code, name, message = refused(folder, tmp_path / "back.pt", "--checkpoint", checkpoint)
    assert (code, name) == (3, "not_turned_back")
    assert "lora.weight is not part of the model" in message and f"{key} is 3x3, not 128x128" in message


def test_a_tensor_that_is_missing(folder, checkpoint, tmp_path):
    key = "text_encoder.layers.1.self_attn.q_proj.weight"
    edit(folder, {key: None})
    code, name, message = refused(folder, tmp_path / "back.pt")
    assert (code, name) == (3, "unsound_plan") and QKV in message
    code, name, message = refused(folder, tmp_path / "back.pt", "--checkpoint", checkpoint)
    assert (code, name) == (3, "not_turned_back") and f"{key} is missing" in message


def test_a_folder_whose_files_contradict_each_other(converted, checkpoint, tmp_path):
    folder = shutil.copytree(converted("--max-shard-size", "2MB", "--layout", "transformers"), tmp_path / "out")
    next(folder.glob("model-00002*")).unlink()
    assert refused(folder, tmp_path / "back.pt")[:2] == (4, "broken_folder")


def test_a_receipt_of_an_operation_that_is_not_known(folder, tmp_path):
    said = receipt(folder)
    key = next(iter(said["tensors"]))
    said["tensors"][key]["operation"] = "rotate"
    (folder / "conversion.json").write_text(json.dumps(said))
    code, name, message = refused(folder, tmp_path / "back.pt")
    assert (code, name) == (2, "unknown_operation") and "rotate" in message


def test_a_receipt_that_is_none(folder, tmp_path):
    (folder / "conversion.json").write_text('{"tensors": 3}')
    record = restored(folder, tmp_path / "back.pt")
    assert record["basis"] == "layout"
    assert any("conversion.json is not that of a conversion" in note for note in record["notes"])


# ---- the file that is written


def test_names_and_places_that_are_refused(folder, checkpoint, tmp_path):
    def code(output, *options):
        done = sam3lite("restore", folder, "--output", output, "--json", *options)
        return done.code, done.json["error"]["code"]

    (tmp_path / "folder.pt").mkdir()
    assert code(tmp_path / "back.txt") == (2, "usage")
    assert code(tmp_path / "folder.pt") == (2, "output_is_a_folder")
    assert code(folder / "back.pt") == (2, "output_holds_input")
    assert code(checkpoint, "--checkpoint", checkpoint, "--overwrite") == (2, "output_holds_input")
    done = sam3lite("restore", folder)
    assert done.code == 2 and "restore needs a file to write" in done.err
    assert sam3lite("restore", tmp_path / "nowhere", "--output", tmp_path / "b.pt").code == 2


def test_an_earlier_file_is_kept_unless_asked_and_until_the_end(folder, checkpoint, tmp_path):
    output = tmp_path / "back.pt"
    restored(folder, output)
    before = output.read_bytes()
    done = sam3lite("restore", folder, "--output", output, "--json")
    assert done.code == 2 and done.json["error"]["code"] == "output_exists"
    # In a tensor that the folder does not hold: nothing but the file's own checksums can tell.
    damaged = shutil.copy(checkpoint, tmp_path / "damaged.pt")
    data = raw(tiny_state()[NECK])
    overwrite_bytes(damaged, record_offset(damaged, data), raw(flip_bit(tiny_state()[NECK])))
    done = sam3lite("restore", folder, damaged, "--output", output, "--overwrite")
    assert done.code == 4 and "damaged.pt is damaged: 1 of" in done.err
    assert output.read_bytes() == before
    restored(folder, output, "--overwrite", "--checkpoint", checkpoint)
    assert_equal_states(content(output), tiny_state())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back.pt", "damaged.pt", "out"]


@pytest.mark.parametrize("which", ["checkpoint", "folder"])
def test_what_is_changed_while_it_is_read(which, folder, checkpoint, tmp_path, monkeypatch):
    original = shutil.copy(checkpoint, tmp_path / "original.pt")

    def write_and_touch(*arguments):
        write_torch_file(*arguments)
        touched = original if which == "checkpoint" else folder / "model.safetensors"
        os.utime(touched, ns=(1, 1))

    monkeypatch.setattr(restore, "write_torch_file", write_and_touch)
    assert refused(folder, tmp_path / "back.pt", "--checkpoint", original)[:2] == (4, "changed_file")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["original.pt", "out"]


def test_no_space(folder, tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")(3 << 20)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda place: usage)
    code, name, message = refused(folder, tmp_path / "back.pt")
    assert (code, name) == (2, "no_space") and "to write" in message


def test_what_is_printed(folder, checkpoint, tmp_path):
    edit(folder, {"text_projection.bias": tensors(folder)["text_projection.bias"] + 1})
    done = sam3lite("restore", folder, checkpoint, "--output", tmp_path / "back.pt")
    assert done.code == 0
    key = "detector.backbone.language_backbone.projector.bias"
    assert f"  changed  {key}\n" in done.out
    assert "468 tensors = 419 equal to the original + 1 changed in the folder + 48 from the original, not in the " in (
        done.out
    )
    assert "SAM3-LiteText detector; names of a SAM3-LiteText checkpoint, prefix 'detector.', under 'model'" in done.out
    done = sam3lite("restore", folder, "--output", tmp_path / "alone.pt")
    assert "420 tensors under the original's names; 48 more that the original holds are not in the folder" in done.out
    assert "its class row is filled with zeros, not restored" in done.out


def test_as_a_function(folder, checkpoint, tmp_path):
    document = s3.restore_folder(folder, tmp_path / "back.pt", checkpoint)
    assert (document.equal, document.changed) == (420, ())
    assert_proven(folder, tmp_path / "back.pt")
    with pytest.raises(s3.CannotRun, match="exists"):
        s3.restore_folder(folder, tmp_path / "back.pt")
    assert s3.restore_folder(folder, tmp_path / "back.pt", overwrite=True).basis == "receipt"


def test_tensors_that_do_not_add_up(folder, tmp_path):
    record = restored(folder, tmp_path / "back.pt")
    assert RestoreDocument.from_json(record).to_json() == record
    with pytest.raises(ValueError, match="420 tensors are not the 419"):
        RestoreDocument.from_json(record | {"turned_back": 419})


def test_a_file_that_somebody_else_put_there_meanwhile_is_not_replaced(tmp_path, monkeypatch):
    from sam3lite_convert.commands import restore as command

    path = write(tmp_path, tiny_state())
    folder, output = convert(path, tmp_path / "out"), tmp_path / "back.pt"
    output.write_bytes(b"earlier")
    real = command.read_folder

    def meanwhile(*arguments):
        output.write_bytes(b"mine and no other's")
        return real(*arguments)

    monkeypatch.setattr(command, "read_folder", meanwhile)
    done = sam3lite("restore", folder, "--checkpoint", path, "--output", output, "--overwrite", "--json")
    assert (done.code, done.json["error"]["code"]) == (2, "output_changed"), done
    assert output.read_bytes() == b"mine and no other's"
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]
