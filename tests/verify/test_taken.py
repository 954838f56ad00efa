"""A folder is judged by what its reader takes from it: the same folders are loaded with the library's own class."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from support.folders import (
    State,
    assert_proven,
    convert,
    edit_config,
    sam3lite,
    tensors,
    verify,
)

from sam3lite_convert.convert import folder as folders
from sam3lite_convert.errors import CannotRun, UnsoundPlan
from sam3lite_convert.packed_encoder import PackedTextModel
from sam3lite_convert.plan.families import SAM3_LITETEXT
from sam3lite_convert.verify import recognise

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


@pytest.fixture(scope="module")
def good(tiny, tmp_path_factory):
    return convert(tiny, tmp_path_factory.mktemp("good") / "out", "--layout", "transformers")


@pytest.fixture(scope="module")
def right(good) -> State:
    return tensors(good)


def shifted(state: State) -> State:
    return {k: t + 1 if t.is_floating_point() else t for k, t in state.items()}


def halves(state: State) -> tuple[State, State]:
    keys = sorted(state)
    return {k: state[k] for k in keys[::2]}, {k: state[k] for k in keys[1::2]}


def save(state: State, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    save_file({k: t.clone() for k, t in state.items()}, path, {"format": "pt"})


def index(folder: Path, files: dict[str, State], name: str = INDEX, **other: object) -> None:
    places = {key: file for file, state in files.items() for key in state}
    (folder / name).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places} | other))


def shards(folder: Path, state: State, first: str = "m1.safetensors", second: str = "m2.safetensors") -> None:
    one, two = halves(state)
    save(one, folder / first)
    save(two, folder / second)
    index(folder, {first: one, second: two})


def wrong_after_loading(folder: Path, right: State) -> int | None:
    """How many of the model's tensors are not the source's when transformers loads the folder; None if it refuses."""
    logging.getLogger("transformers").setLevel(logging.CRITICAL)
    try:
        held = transformers.Sam3LiteTextModel.from_pretrained(folder).state_dict()
    except Exception:
        return None
    assert held.keys() == right.keys()
    return sum(not torch.equal(t, right[k]) for k, t in held.items())


# ---- ways to lay the same tensors, right and wrong ones, into a folder --------------------------------
# Each writes into a folder without weights; ``w`` are the right tensors.


def extra_beside_wrong(f: Path, w: State) -> None:
    save(shifted(w), f / SINGLE)
    save(w, f / "model-extra.safetensors")


def half_and_extra(f: Path, w: State) -> None:
    one, two = halves(w)
    save(one, f / SINGLE)
    save(two, f / "model-extra.safetensors")


def config_names_another(f: Path, w: State) -> None:
    save(w, f / SINGLE)
    save(shifted(w), f / "other.safetensors")
    edit_config(f, "transformers_weights", value="other.safetensors")


def single_wrong_shards_right(f: Path, w: State) -> None:
    save(shifted(w), f / SINGLE)
    shards(f, w)


def config_names_wrong_shards(f: Path, w: State) -> None:
    save(w, f / SINGLE)
    shards(f, shifted(w))
    edit_config(f, "transformers_weights", value=INDEX)


def all_listed_in_one_of_two_shards(f: Path, w: State) -> None:
    one, two = halves(w)
    save(one, f / "m1.safetensors")
    save(two, f / "m2.safetensors")
    index(f, {"m1.safetensors": w})


def later_shard_wins(f: Path, w: State) -> None:
    save(w, f / "m1.safetensors")
    save({k: t for k, t in shifted(w).items() if k.startswith("detr")}, f / "m2.safetensors")
    some = next(k for k in w if k.startswith("detr"))
    index(f, {"m1.safetensors": {k: t for k, t in w.items() if k != some}, "m2.safetensors": {some: w[some]}})


def bin_wrong_safetensors_right_by_name(f: Path, w: State) -> None:
    torch.save(shifted(w), f / BIN)
    save(w, f / "weights.safetensors")


def bin_wrapped(f: Path, w: State) -> None:
    torch.save({"state_dict": w}, f / BIN)


def index_without_metadata(f: Path, w: State) -> None:
    one, two = halves(w)
    save(one, f / "m1.safetensors")
    save(two, f / "m2.safetensors")
    (f / INDEX).write_text(json.dumps({"weight_map": {k: f"m{1 + (k in two)}.safetensors" for k in w}}))


def missing_shard(f: Path, w: State) -> None:
    shards(f, w)
    (f / "m2.safetensors").unlink()


def torch_file_under_another_name(f: Path, w: State) -> None:
    torch.save(w, f / SINGLE)


def safetensors_under_another_name(f: Path, w: State) -> None:
    save(w, f / BIN)


def config_names_nothing_that_is_there(f: Path, w: State) -> None:
    save(w, f / SINGLE)
    edit_config(f, "transformers_weights", value="gone.safetensors")


def config_names_a_bin(f: Path, w: State) -> None:
    save(w, f / SINGLE)
    torch.save(w, f / BIN)
    edit_config(f, "transformers_weights", value=BIN)


def config_names_a_number(f: Path, w: State) -> None:
    save(w, f / SINGLE)
    config = json.loads((f / "config.json").read_text())
    (f / "config.json").write_text(json.dumps(config | {"transformers_weights": 0}))


def prefixed(prefix: str) -> Callable[[Path, State], None]:
    return lambda f, w: save({prefix + k: t for k, t in w.items()}, f / SINGLE)


def variant_alone(f: Path, w: State) -> None:
    save(w, f / "model.fp32.safetensors")


def twice_by_the_class_prefix(f: Path, w: State) -> None:
    key = "text_encoder.final_layer_norm.weight"
    save({**w, f"detector_model.{key}": torch.zeros_like(w[key])}, f / SINGLE)


WRONG: dict[str, Callable[[Path, State], None]] = {
    "right tensors in a second file": extra_beside_wrong,
    "half in a second file": half_and_extra,
    "config names another file": config_names_another,
    "stale single file before right shards": single_wrong_shards_right,
    "config names shards that are wrong": config_names_wrong_shards,
    "all listed in one shard": all_listed_in_one_of_two_shards,
    "a later shard wins": later_shard_wins,
    "a name that nobody looks for": bin_wrong_safetensors_right_by_name,
    "bin with a wrapper": bin_wrapped,
    "index without metadata": index_without_metadata,
    "missing shard": missing_shard,
    "torch file named safetensors": torch_file_under_another_name,
    "safetensors named bin": safetensors_under_another_name,
    "config names what is missing": config_names_nothing_that_is_there,
    "config names a bin": config_names_a_bin,
    "config names a number": config_names_a_number,
    "prefix model.": prefixed("model."),
    "prefix module._orig_mod.": prefixed("module._orig_mod."),
    "the class's own prefix twice": prefixed("detector_model.detector_model."),
    "a variant alone": variant_alone,
    "a key twice, once behind the class's own prefix": twice_by_the_class_prefix,
}


def single(f: Path, w: State) -> None:
    save(w, f / SINGLE)


def single_right_shards_wrong(f: Path, w: State) -> None:
    save(w, f / SINGLE)
    shards(f, shifted(w))


def named_by_config(f: Path, w: State) -> None:
    save(shifted(w), f / SINGLE)
    save(w, f / "sub" / "other.safetensors")
    edit_config(f, "transformers_weights", value="sub/other.safetensors")


def shard_in_a_subfolder(f: Path, w: State) -> None:
    (f / "sub").mkdir()
    shards(f, w, second="sub/m2.safetensors")


def bin_alone(f: Path, w: State) -> None:
    torch.save(w, f / BIN)


def legacy_bin(f: Path, w: State) -> None:
    torch.save(w, f / BIN, _use_new_zipfile_serialization=False)


def bin_with_strides(f: Path, w: State) -> None:
    torch.save({k: t.T.contiguous().T if t.dim() == 2 else t for k, t in w.items()}, f / BIN)


def bin_shards(f: Path, w: State) -> None:
    one, two = halves(w)
    torch.save(one, f / "p1.bin")
    torch.save(two, f / "p2.bin")
    index(f, {"p1.bin": one, "p2.bin": two}, BIN_INDEX)


def bin_wrong_beside_safetensors(f: Path, w: State) -> None:
    save(w, f / SINGLE)
    torch.save(shifted(w), f / BIN)


def damaged_file_beside(f: Path, w: State) -> None:
    save(w, f / SINGLE)
    (f / "backup.safetensors").write_bytes(b"<html>")


RIGHT: dict[str, Callable[[Path, State], None]] = {
    "one file": single,
    "stale shards behind the right single file": single_right_shards_wrong,
    "the file that config names": named_by_config,
    "shards, one in a subfolder": shard_in_a_subfolder,
    "bin": bin_alone,
    "bin of the older format": legacy_bin,
    "bin with strides": bin_with_strides,
    "bin shards": bin_shards,
    "another bin behind safetensors": bin_wrong_beside_safetensors,
    "the class's own prefix": prefixed("detector_model."),
    "a damaged file that nobody takes": damaged_file_beside,
}


@pytest.fixture
def empty(good, tmp_path) -> Path:
    """The folder without its weights and its receipt, as another tool would write it."""
    return shutil.copytree(good, tmp_path / "out", ignore=lambda d, names: {SINGLE, "conversion.json"} & {*names})


@pytest.mark.parametrize("way", WRONG)
def test_a_folder_that_loads_wrong_is_not_proven(way, empty, right, tiny):
    WRONG[way](empty, right)
    assert wrong_after_loading(empty, right) != 0
    done = verify(empty, tiny)
    assert done.code == 1 and done.json["verdict"] == "mismatch", done
    assert done.json["mismatched"] or done.json["missing"]


@pytest.mark.parametrize("way", RIGHT)
def test_a_folder_that_loads_right_is_proven(way, empty, right, tiny):
    RIGHT[way](empty, right)
    assert wrong_after_loading(empty, right) == 0
    assert_proven(empty, tiny)


@pytest.mark.parametrize("way", WRONG)
def test_parity_is_not_exact_for_a_folder_that_loads_wrong(way, empty, right, tiny):
    WRONG[way](empty, right)
    done = sam3lite("parity", "--checkpoint", tiny, "--converted", empty, "--json")
    assert done.code in (1, 3, 4), done
    assert done.json.get("verdict") not in ("exact", "within_tolerance")


@pytest.mark.parametrize("way", ["bin", "bin shards", "stale shards behind the right single file"])
def test_parity_runs_on_what_is_taken(way, empty, right, tiny):
    RIGHT[way](empty, right)
    done = sam3lite("parity", "--checkpoint", tiny, "--converted", empty, "--json")
    assert done.code == 0, done
    if "stale" in way:
        assert any("not read" in n and "m1.safetensors, m2.safetensors" in n for n in done.json["notes"])


# ---- what is said --------------------------------------------------------------------------------------


def by_key(record) -> dict[str, str]:
    return {m["key"]: m["why"] for m in record["mismatched"]}


def test_tensors_that_are_not_taken_are_missing_and_their_file_is_named(empty, right, tiny):
    half_and_extra(empty, right)
    record = verify(empty, tiny).json
    lost = {k for k in halves(right)[1] if not k.endswith("num_batches_tracked")}
    assert set(record["missing"]) == lost
    absent = [f for f in record["findings"] if f["code"] == "V-MISSING"]
    assert {key for f in absent for key in f["keys"]} == lost
    assert all("model-extra.safetensors" in f["cause"] and "transformers" in f["cause"] for f in absent)


def test_a_key_that_two_shards_hold_is_named(empty, right, tiny):
    later_shard_wins(empty, right)
    mismatched = verify(empty, tiny).json["mismatched"]
    twice = {m["key"] for m in mismatched if "is in m1.safetensors and also in m2.safetensors" in m["why"]}
    assert twice == {k for k in right if k.startswith("detr")}


def test_a_variant_alone_is_named_with_the_way_to_load_it(empty, right, tiny):
    variant_alone(empty, right)
    loaded = transformers.Sam3LiteTextModel.from_pretrained(empty, variant="fp32").state_dict()
    assert all(torch.equal(t, right[k]) for k, t in loaded.items())
    (why,) = by_key(verify(empty, tiny).json).values()
    assert "model.fp32.safetensors with variant='fp32'" in why


def test_a_prefix_is_named_and_the_values_are_judged_without_it(empty, right, tiny):
    prefixed("_orig_mod.module.")(empty, right)
    record = verify(empty, tiny).json
    assert by_key(record).keys() == {"_orig_mod.module."}
    assert record["summary"].startswith("every key starts with '_orig_mod.module.', which transformers does not take")
    wrong = shifted({"mask_decoder.mask_embedder.layers.0.bias": right["mask_decoder.mask_embedder.layers.0.bias"]})
    prefixed("_orig_mod.module.")(empty, right | wrong)
    assert by_key(verify(empty, tiny).json).keys() == {"_orig_mod.module.", *wrong}


def test_the_prefix_that_the_class_takes_off_is_a_note(empty, right, tiny):
    prefixed("detector_model.")(empty, right)
    assert any("'detector_model.'" in note for note in assert_proven(empty, tiny)["notes"])


def test_the_prefixes_are_those_of_the_classes():
    names = SAM3_LITETEXT.library
    assert names.prefix == getattr(transformers, names.model).base_model_prefix
    assert names.text_prefix == getattr(transformers, names.text_model).base_model_prefix


@pytest.mark.parametrize(("prefix", "code"), [("model.", 0), ("detector_model.", 1), ("model.model.", 1)])
def test_a_text_encoder_alone_has_a_prefix_of_its_own(prefix, code, tiny, tmp_path):
    folder = convert(tiny, tmp_path / "out", "--layout", "transformers", "--component", "text")
    (folder / "conversion.json").unlink()
    held = load(folder / SINGLE)
    save({prefix + k: t for k, t in held.items()}, folder / SINGLE)
    logging.getLogger("transformers").setLevel(logging.CRITICAL)
    loaded = transformers.Sam3LiteTextTextModel.from_pretrained(folder).state_dict()
    assert all(torch.equal(t, held[k]) for k, t in loaded.items()) == (code == 0)
    assert verify(folder, tiny).code == code


def load(path: Path) -> State:
    from safetensors.torch import load as load_bytes

    return load_bytes(path.read_bytes())


@pytest.mark.parametrize("name", ["../out2/m2.safetensors", "/m2.safetensors"])
def test_a_shard_outside_of_the_folder_is_not_read(name, empty, right, tiny):
    shards(empty, right)
    text = (empty / INDEX).read_text()
    (empty / INDEX).write_text(text.replace("m2.safetensors", name))
    (empty.parent / "out2").mkdir()
    (empty / "m2.safetensors").rename(empty.parent / "out2/m2.safetensors")
    record = verify(empty, tiny).json
    assert "outside" in by_key(record)[name] and record["missing"]


@pytest.mark.parametrize(
    ("name", "code"),
    [("shard-00001-model-00001-of-00001.safetensors", "V-DISTRIBUTED"), ("adapter_config.json", "V-ADAPTER")],
)
def test_files_that_change_what_is_loaded_are_faults(name, code, empty, right, tiny):
    single(empty, right)
    shutil.copy(empty / "config.json", empty / name)
    done = verify(empty, tiny)
    assert done.code == 1 and by_key(done.json).keys() == {name}
    assert [f.code for f in folders.read_folder(empty).faults] == [code]


def test_every_kind_of_fault_has_its_code(good, right, tmp_path):
    expected = {
        "a name that nobody looks for": None,
        "a later shard wins": "V-TWICE",
        "bin with a wrapper": "V-WRAPPED",
        "index without metadata": "V-INDEX",
        "missing shard": "V-INDEX",
        "torch file named safetensors": "V-FORMAT",
        "safetensors named bin": "V-FORMAT",
        "config names what is missing": "V-WEIGHTS",
        "config names a bin": "V-WEIGHTS",
        "config names a number": "V-WEIGHTS",
        "prefix model.": "V-PREFIX",
        "a variant alone": "V-NOT-TAKEN",
        "a key twice, once behind the class's own prefix": "V-TWICE",
    }
    for number, (way, code) in enumerate(expected.items()):
        folder = shutil.copytree(good, tmp_path / str(number), ignore=lambda d, n: {SINGLE, "conversion.json"} & {*n})
        WRONG[way](folder, right)
        codes = {fault.code for fault in folders.read_folder(folder).faults}
        assert codes == ({code} if code else set()), way


# ---- a folder that changes meanwhile --------------------------------------------------------------------


def rewrite(folder: Path) -> None:
    path = folder / SINGLE
    before = path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_by_a_copy(folder: Path) -> None:
    shutil.copy(folder / SINGLE, folder / "copy")
    os.replace(folder / "copy", folder / SINGLE)


def edit_the_config(folder: Path) -> None:
    edit_config(folder, "model_type", value="other")


def put_shards_beside(folder: Path) -> None:
    (folder / "extra.safetensors").write_bytes(b"")


def take_the_receipt_away(folder: Path) -> None:
    (folder / "conversion.json").unlink()


@pytest.mark.parametrize("command", ["verify", "parity"])
@pytest.mark.parametrize(
    "change", [rewrite, replace_by_a_copy, edit_the_config, put_shards_beside, take_the_receipt_away]
)
def test_a_folder_that_changes_while_it_is_read_is_noticed(change, command, good, tiny, tmp_path, monkeypatch):
    folder = shutil.copytree(good, tmp_path / "out")
    inner = recognise.recognise

    def meanwhile(*arguments):
        plan = inner(*arguments)
        change(folder)
        return plan

    monkeypatch.setattr(recognise, "recognise", meanwhile)
    words = ["verify", folder] if command == "verify" else ["parity", "--converted", folder]
    done = sam3lite(*words, "--checkpoint", tiny, "--json")
    assert done.code == 4 and done.json["error"]["code"] == "changed_file", done


# ---- the packed layout ----------------------------------------------------------------------------------


@pytest.fixture
def packed(tiny, tmp_path) -> Path:
    return convert(tiny, tmp_path / "packed")


def test_our_own_reader_takes_what_is_judged(packed, tiny):
    held = tensors(packed)
    save(shifted(held), packed / "model-extra.safetensors")
    edit_config(packed, "transformers_weights", value="model-extra.safetensors")  # not ours to obey
    assert_proven(packed, tiny)
    loaded = PackedTextModel.from_pretrained(packed).state_dict()
    assert all(torch.equal(t, held[k]) for k, t in loaded.items())
    (packed / SINGLE).unlink()
    shards(packed, held)
    assert verify(packed, tiny).code == 0
    loaded = PackedTextModel.from_pretrained(packed).state_dict()
    assert all(torch.equal(t, held[k]) for k, t in loaded.items())


def test_our_own_reader_takes_no_prefix_off(packed, tiny):
    save({"_orig_mod." + k: t for k, t in tensors(packed).items()}, packed / SINGLE)
    (packed / "conversion.json").unlink()
    assert by_key(verify(packed, tiny).json).keys() == {"_orig_mod."}
    with pytest.raises(UnsoundPlan, match="_orig_mod"):
        PackedTextModel.from_pretrained(packed)


def test_a_file_in_the_place_of_a_folder_is_told_so(good, tiny):
    file = next(iter(good.values() if isinstance(good, dict) else [good])) / "model.safetensors"
    done = sam3lite("verify", file, "--checkpoint", tiny)
    assert done.code == 2 and "is a file; name the converted folder that holds it" in done.err.replace("\n", " ")
    with pytest.raises(CannotRun, match=f"sam3lite convert {re.escape(str(tiny))}$"):
        PackedTextModel.from_pretrained(tiny)


def test_a_file_and_a_folder_that_changed_places_are_told_so(good, tiny):
    folder = next(iter(good.values() if isinstance(good, dict) else [good]))
    done = sam3lite("verify", tiny, "--checkpoint", folder)
    assert done.code == 2
    assert f"swap them\nDid you mean:\n  sam3lite verify {folder} {tiny}\n" in done.err
