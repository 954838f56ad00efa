"""A file with more rows than it is called with: what every command says of it, and what it does."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from support.folders import (
    OLD_NAME,
    POSITIONS,
    TEXT_POSITIONS,
    assert_proven,
    config,
    convert,
    edit,
    edit_config,
    old_state,
    receipt,
    right,
    sam3lite,
    same,
    tensors,
    tiny_state,
    write,
)
from support.hub_files import OLD, REPO
from torch.nn import functional

import sam3lite_convert as s3

TF = ("--layout", "transformers")
CALLED = "the file's name says that the model is called with 16 tokens; its position table has 77 rows"


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Path:
    """77 rows, and a name that says 16; read only."""
    return write(tmp_path_factory.mktemp("old"), old_state(), OLD_NAME)


@pytest.fixture(scope="module")
def table() -> torch.Tensor:
    return old_state()[POSITIONS]


@pytest.fixture(scope="module")
def cut(old, tmp_path_factory) -> Path:
    """What convert makes of it; read only."""
    return convert(old, tmp_path_factory.mktemp("cut") / "out", *TF)


@pytest.fixture(scope="module")
def all_rows(old, tmp_path_factory) -> Path:
    """The same with all rows, as the user asked for; read only."""
    return convert(old, tmp_path_factory.mktemp("all") / "out", *TF, "--context", 77)


@pytest.fixture(scope="module")
def published(all_rows, tmp_path_factory) -> Path:
    """As another tool makes it: all rows, and no receipt; read only."""
    folder = tmp_path_factory.mktemp("published") / "out"
    shutil.copytree(all_rows, folder)
    (folder / "conversion.json").unlink()
    return folder


# ---- inspect and convert ----------------------------------------------------------------------------


def test_inspect_says_what_is_called_and_how_many_rows_there_are(old, tmp_path):
    record = sam3lite("inspect", old, "--json").json
    assert record["context"] == {"called": 16, "rows": 77, "origin": "name"}
    assert record["architecture"]["context_length"] == 16
    assert [note for note in record["notes"] if CALLED in note]
    out = sam3lite("inspect", old).out
    assert "context 16 of 77 rows" in out and CALLED in out
    unknown = tmp_path / "old.pt"
    shutil.copy(old, unknown)
    record = sam3lite("inspect", unknown, "--json").json
    assert record["context"] == {"called": 77, "rows": 77, "origin": "unknown"}
    assert "context that the model is called with is not stated; its table has 77 rows" in record["notes"][0]
    assert sam3lite("inspect", unknown, "--context", 20, "--json").json["context"]["called"] == 20
    out = sam3lite("inspect", unknown).out
    assert "context 77 (rows of its table; what it is called with is not stated)" in out


def test_inspect_of_a_file_that_does_not_convert_says_it_too(tmp_path):
    state = {k: t for k, t in old_state().items() if not k.endswith("pre_norm_mha.0.weight")}
    record = sam3lite("inspect", write(tmp_path, state, OLD_NAME), "--json").json
    assert record["counts"] is None and record["context"] == {"called": 16, "rows": 77, "origin": "name"}


@pytest.mark.parametrize("layout", TEXT_POSITIONS)
def test_convert_keeps_the_rows_that_are_called(layout, old, table, clip, tmp_path):
    done = sam3lite("convert", old, "--output", tmp_path / "out", "--layout", layout, "--tokenizer", clip, "--json")
    assert done.code == 0, done
    assert [note for note in done.json["notes"] if CALLED in note and "(--context 77 keeps all)" in note]
    folder = tmp_path / "out"
    assert same(tensors(folder)[TEXT_POSITIONS[layout]], table[:, :, :16])
    said = receipt(folder)
    assert said["context"] == done.json["context"] == {"called": 16, "rows": 77, "origin": "name"}
    assert said["architecture"]["context_length"] == 16 and said["lost"]["positions"]["rows"] == 61
    assert config(folder)["text_config"]["max_position_embeddings"] == 16
    card = (folder / "README.md").read_text()
    assert "context 16," in card and CALLED in card
    if layout == "transformers":
        assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 16
    assert_proven(folder, old)


def test_the_option_keeps_all_rows_and_says_so(old, table, all_rows):
    done = sam3lite("convert", old, "--dry-run", "--context", 77, "--json")
    assert done.json["context"] == {"called": 77, "rows": 77, "origin": "option"}
    (said,) = [note for note in done.json["notes"] if "--context 77 is followed" in note]
    assert "the file's name says that the model is called with 16" in said
    assert same(tensors(all_rows)[TEXT_POSITIONS["transformers"]], table)
    assert config(all_rows)["text_config"]["max_position_embeddings"] == 77
    assert receipt(all_rows)["architecture"]["context_length"] == 77


def test_a_meta_entry_counts_before_the_name(tmp_path):
    path = tmp_path / OLD_NAME
    torch.save({"model": old_state(), "meta": {"text_context_length": 32, "epoch": 3}}, path)
    done = sam3lite("convert", path, "--output", tmp_path / "out", "--json")
    assert done.json["context"] == {"called": 32, "rows": 77, "origin": "meta"}
    assert [n for n in done.json["notes"] if "called with 32 tokens (its name says 16); its position table" in n]
    assert tensors(tmp_path / "out")[TEXT_POSITIONS["packed"]].shape[2] == 32
    assert_proven(tmp_path / "out", path)


def test_a_shorter_table_is_kept_and_called_longer(clip, tmp_path):
    path = write(tmp_path, tiny_state(), "s0_ctx32.pt")
    folder = convert(path, tmp_path / "out", *TF, "--tokenizer", clip)
    assert tensors(folder)[TEXT_POSITIONS["transformers"]].shape[2] == 16
    assert config(folder)["text_config"]["max_position_embeddings"] == 16  # or the library could not load the table
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 32
    said = receipt(folder)
    assert said["context"] == {"called": 32, "rows": 16, "origin": "name"}
    assert [n for n in said["notes"] if "only 16 rows, which are kept as they are" in n]
    assert_proven(folder, path)
    record = sam3lite("parity", path, "--converted", folder, "--json").json
    assert record["inputs"]["shape"] == [1, 32] and record["verdict"] in right(record)


def test_explain_shows_the_cut(old):
    def target(*options):
        return sam3lite("explain", old, POSITIONS, "--json", *options).json["targets"][0]["shape"]

    assert target() == [1, 1, 16, 128] and target("--context", 77) == [1, 1, 77, 128]


def test_all_of_a_repository_follow_their_names(hub, tmp_path):
    path = write(tmp_path, old_state())
    hub.add_repo(REPO, {OLD["s0"]: path, "sam3_litetext/s0.pt": path})
    done = sam3lite("convert", "--all", "--json")
    assert done.code == 0, done
    found = {r["checkpoint"]: (r["context"]["called"], r["context"]["origin"]) for r in done.json["results"]}
    assert found == {OLD["s0"]: (16, "name"), "sam3_litetext/s0.pt": (77, "unknown")}
    assert sam3lite("inspect", "s0", "--json").json["context"] == {"called": 16, "rows": 77, "origin": "name"}
    assert sam3lite("parity", "s0", "--json").json["inputs"]["shape"] == [1, 16]


def test_a_folder_of_another_call_is_not_current(old, tmp_path):
    path = tmp_path / "x.pt"
    shutil.copy(old, path)
    convert(path, tmp_path / "out")
    renamed = path.rename(tmp_path / OLD_NAME)
    done = sam3lite("convert", renamed, "--output", tmp_path / "out")
    assert done.code == 2 and "context: 77 there, 16 now" in done.err
    # By another name that states the same, it is.
    convert(renamed, tmp_path / "out", "--overwrite")
    again = renamed.rename(tmp_path / "s0_ctx16.pt")
    assert sam3lite("convert", again, "--output", tmp_path / "out", "--json").json["state"] == "current"


def test_the_library_takes_a_context_too(old, tmp_path):
    assert s3.make_plan(old).architecture.called == 16
    assert s3.make_plan(old, context=77).architecture.called == 77
    opened = s3.open_checkpoint(old, context=20)
    assert s3.make_plan(opened).architecture.called == 20
    assert s3.run_parity(opened).inputs.shape == (1, 20)
    assert s3.run_parity(old).inputs.shape == (1, 16)


# ---- verify -----------------------------------------------------------------------------------------


def test_folders_with_the_called_rows_and_with_all_are_proven_and_the_latter_said(old, cut, all_rows, published):
    assert not [n for n in assert_proven(cut, old)["notes"] if "called with" in n]
    for folder in (all_rows, published):
        (said,) = [n for n in assert_proven(folder, old)["notes"] if "called with" in n]
        assert "the original reads the first 16 rows of its table, the folder holds 77" in said and "stock call" in said
    out = sam3lite("verify", published, "--checkpoint", old).out
    assert "the folder holds 77" in re.sub(r"\s+", " ", out)


def test_a_wrong_row_among_those_that_are_not_called_is_found(old, table, published, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(published, folder)
    wrong = table.clone()
    wrong[0, 0, 76, 0] += 1
    edit(folder, {TEXT_POSITIONS["transformers"]: wrong})
    done = sam3lite("verify", folder, "--checkpoint", old, "--json")
    assert done.code == 1 and done.json["mismatched"][0]["key"] == TEXT_POSITIONS["transformers"]


def test_77_rows_of_a_file_that_has_16_are_not_proven(published, tmp_path):
    state = old_state()
    state[POSITIONS] = state[POSITIONS][:, :, :16].clone()
    done = sam3lite("verify", published, "--checkpoint", write(tmp_path, state, OLD_NAME), "--json")
    assert done.code == 1
    assert TEXT_POSITIONS["transformers"] in [m["key"] for m in done.json["mismatched"]]


def test_a_file_that_was_renamed_proves_its_folder(old, cut, all_rows, tmp_path):
    for name in ("x.pt", "x_ctx32.pt"):
        shutil.copy(old, tmp_path / name)
        for folder in (cut, all_rows):
            assert_proven(folder, tmp_path / name)
    short = write(tmp_path, tiny_state(), "s0_ctx32.pt")
    folder = convert(short, tmp_path / "short")
    assert_proven(folder, short.rename(tmp_path / "y.pt"))


@pytest.mark.parametrize("field", ["called", "rows", "origin"])
def test_a_receipt_that_states_another_context_is_a_mismatch(field, old, cut, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(cut, folder)
    said = receipt(folder)
    said["context"][field] = "meta" if field == "origin" else 20
    (folder / "conversion.json").write_text(json.dumps(said))
    done = sam3lite("verify", folder, "--checkpoint", old, "--json")
    assert done.code == 1 and [m["key"] for m in done.json["mismatched"]] == ["conversion.json: context"]


# ---- parity -----------------------------------------------------------------------------------------


def parity(*arguments: object, code: int = 0):
    done = sam3lite("parity", *arguments, "--json")
    assert done.code == code, done
    return done.json


def test_the_reference_is_cut_as_the_original_cuts_it(old, cut):
    for options in ([], ["--converted", cut]):
        record = parity(old, *options)
        assert record["inputs"]["shape"] == [1, 16] and record["verdict"] in right(record)
        assert [n for n in record["notes"] if CALLED in n and "the original is cut" in n]


def test_a_folder_with_all_rows_differs_and_the_cause_is_named(old, all_rows, published):
    for folder in (all_rows, published):
        record = parity(old, "--converted", folder, code=1)
        assert (record["verdict"], record["first_divergence"]) == ("differs", "embeddings")
        assert record["diagnosis"]["fits"][0]["key"] == "positions_not_cut"
        assert "all 77 are resized to 16" in record["diagnosis"]["cause"]
        assert [n for n in record["notes"] if "reads the first 16 rows of its table, the folder holds 77" in n]
        record = parity(old, "--converted", folder, "--context", 77)
        assert record["inputs"]["shape"] == [1, 77] and record["verdict"] in right(record)
        assert "--context 77 is followed, although the file's name says" in record["notes"][0]


def test_a_folder_with_fewer_rows_differs_and_that_is_said(old, tmp_path):
    folder = convert(old, tmp_path / "out", "--context", 8)
    record = parity(old, "--converted", folder, code=1)
    assert [n for n in record["notes"] if "the folder holds only the first 8 of the 77 rows" in n]
    assert parity(old, "--converted", folder, "--context", 8)["verdict"] == "exact"
    assert (
        "the folder holds 8 rows of the position table"
        in parity(old, "--converted", folder, "--context", 9, code=1)["notes"]
    )


def test_convert_compares_what_it_was_told(old, tmp_path):
    for options, shape in (([], "length 16"), (["--context", 77], "length 77")):
        folder = convert(old, tmp_path / shape, "--parity", *options)
        said = receipt(folder)["parity"]
        assert said["verdict"] == "exact" and shape in said["inputs"]


def test_a_table_stretched_by_another_tool_is_not_taken_for_rows_that_were_left(tmp_path, published, old):
    """77 rows made of the 16 by interpolation: the difference is there, and it is not said that it was not cut."""
    state = old_state()
    state[POSITIONS] = state[POSITIONS][:, :, :16].clone()
    path = write(tmp_path, state, OLD_NAME)
    folder = tmp_path / "out"
    shutil.copytree(published, folder)
    stretched = functional.interpolate(state[POSITIONS], (77, 128), mode="bilinear")
    edit(folder, {TEXT_POSITIONS["transformers"]: stretched})
    edit_config(folder, "text_config", "max_position_embeddings", value=77)
    record = parity(path, "--converted", folder, code=1)
    assert record["first_divergence"] == "embeddings"
    assert "positions_not_cut" not in [f["key"] for f in record["diagnosis"]["fits"]]
