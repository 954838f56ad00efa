"""What is proven stands in the receipt, and ``export onnx`` takes nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys

import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.folders import convert, edit_config, python, receipt, sam3lite, snapshot, tiny_state, verify, write
from support.hostile_graphs import ENTRIES, HOSTILE_GRAPHS, write_hostile

from sam3lite_convert.checkpoint.hashing import FilesHash
from sam3lite_convert.commands import graphs
from sam3lite_convert.convert import proof
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.graph import read
from sam3lite_convert.graph.builder import PRODUCER, GraphBuilder

TEXT = ("--layout", "packed", "--component", "text")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkpoint, and its text encoder, not verified; without the fingerprint, which takes time to check."""
    place = tmp_path_factory.mktemp("made")
    tiny = write(place, tiny_state())
    folder = convert(tiny, place / "text", *TEXT)
    (folder / "fingerprint.json").unlink()
    return tiny, folder


@pytest.fixture
def tiny(made):
    return made[0]


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made[1], tmp_path / "folder")


@pytest.fixture(scope="module")
def verified(made, tmp_path_factory):
    folder = shutil.copytree(made[1], tmp_path_factory.mktemp("verified") / "folder")
    assert verify(folder, made[0]).code == 0
    return folder


@pytest.fixture
def ready(verified, tmp_path):
    """The text encoder, verified."""
    return shutil.copytree(verified, tmp_path / "ready")


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def proven(folder):
    return {"model.safetensors": digest(folder / "model.safetensors")}


def refused(folder, *arguments):
    """The message of an export that is refused, which leaves everything as it was."""
    before = snapshot(folder)
    done = sam3lite("export", "onnx", folder, *arguments, "--json")
    assert done.code == 1 and snapshot(folder) == before
    return done.json["error"]


# ---- the receipt


def test_a_verification_adds_what_it_compared_to_the_receipt_and_changes_nothing_else(folder, tiny):
    before, said = snapshot(folder), receipt(folder)
    assert "proven" not in said
    done = verify(folder, tiny)
    assert done.code == 0 and done.json["proven"] == proven(folder) == receipt(folder)["proven"]
    after = receipt(folder)
    assert {name: value for name, value in after.items() if name != "proven"} == said
    assert list(after) == list(receipt(folder)) and list(after).index("proven") == list(after).index("beside") + 1
    assert {n for n in before if snapshot(folder)[n] != before[n]} == {"conversion.json"}
    stamp = (folder / "conversion.json").stat().st_mtime_ns
    assert verify(folder, tiny).code == 0 and (folder / "conversion.json").stat().st_mtime_ns == stamp


def test_a_conversion_that_verifies_has_the_same_receipt_as_one_that_was_verified_later(folder, tiny, tmp_path):
    at_once = [convert(tiny, tmp_path / name / "folder", *TEXT, "--verify") for name in "ab"]
    assert snapshot(at_once[0]) == snapshot(at_once[1])
    verify(folder, tiny)
    assert (at_once[0] / "conversion.json").read_bytes() == (folder / "conversion.json").read_bytes()
    before = snapshot(folder)
    assert sam3lite("convert", tiny, "--output", folder, *TEXT, "--json").json["state"] == "current"
    del before["README.md"], before["conversion.json"]  # the fingerprint is made again, and listed
    assert before.items() <= snapshot(folder).items()


def test_what_differs_is_not_recorded(folder, tiny):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    before = snapshot(folder)
    done = verify(folder, tiny)
    assert done.code == 1 and "proven" not in done.json and snapshot(folder) == before


def test_the_same_tensors_of_another_file_are_not_the_source_that_the_receipt_names(folder, tmp_path):
    other = write(tmp_path, tiny_state(), "again.pt", wrapper=None)
    before = snapshot(folder)
    done = verify(folder, other)
    assert done.json["verdict"] == "proven" and "proven" not in done.json and snapshot(folder) == before


def test_a_folder_of_another_tool_is_not_touched(folder, tiny):
    text = (folder / "conversion.json").read_text()
    for receipt_ in (
        None,
        '{"made by": "another tool"}',
        text.replace('"model.safetensors"', '"other.safetensors"', 1),
    ):
        (folder / "conversion.json").unlink(missing_ok=True)
        if receipt_ is not None:
            (folder / "conversion.json").write_text(receipt_)
        before = snapshot(folder)
        assert "proven" not in verify(folder, tiny).json and snapshot(folder) == before


@pytest.mark.parametrize("how", ["a link", "a disk that is full"])
def test_a_receipt_that_cannot_be_written_is_only_a_note(folder, tiny, tmp_path, monkeypatch, how):
    if how == "a link":
        (folder / "conversion.json").rename(tmp_path / "elsewhere.json")
        (folder / "conversion.json").symlink_to(tmp_path / "elsewhere.json")
    else:

        def full(path, data):
            raise CannotRun(f"{path}: no space left on device", "cannot_write")

        monkeypatch.setattr(proof, "write_whole", full)
    before = snapshot(folder)
    done = verify(folder, tiny)
    assert done.code == 0 and done.json["verdict"] == "proven" and snapshot(folder) == before
    assert any("was not written into conversion.json" in note for note in done.json["notes"])


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "conversion.json"])
def test_a_folder_that_changes_between_comparing_and_hashing_is_not_proven(folder, tiny, monkeypatch, name):
    hashed = FilesHash.result

    def late(self):
        os.utime(folder / name)
        return hashed(self)

    monkeypatch.setattr(FilesHash, "result", late)
    done = verify(folder, tiny)
    assert done.code == 4 and done.json["error"]["code"] == "changed_file"
    assert "proven" not in receipt(folder)


# ---- refusals


def test_a_folder_that_was_never_verified_is_refused_with_the_commands_that_help(folder, tiny):
    error = refused(folder)
    assert error["code"] == "not_proven"
    for command in ("sam3lite verify", "sam3lite export onnx"):
        assert f"{command} {folder} PATH/TO/tiny.pt" in error["message"]


def test_other_bytes_than_were_proven_are_refused(ready):
    path = ready / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    error = refused(ready)
    assert error["code"] == "other_weights" and "model.safetensors" in error["message"]


def edit_receipt(folder, section, name, value):
    said = receipt(folder)
    if value is None:
        del said[section][name]
    else:
        said[section][name] = value
    (folder / "conversion.json").write_text(json.dumps(said))


EDITS = {
    "a width in the receipt": (edit_receipt, "architecture", "hidden_size", 64),
    "layers in the receipt": (edit_receipt, "architecture", "num_hidden_layers", 5),
    "heads in the receipt": (edit_receipt, "architecture", "num_attention_heads", 4),
    "the output in the receipt": (edit_receipt, "architecture", "output_dim", 64),
    "the context in the receipt": (edit_receipt, "context", "called", 8),
    "the mask in the receipt": (edit_receipt, "architecture", "causal_masking", True),
    "the option in the receipt": (edit_receipt, "options", "causal", True),
    "a tensor in the receipt": (edit_receipt, "tensors", "text_encoder.final_layer_norm.weight", None),
    "heads in config.json": (edit_config, "text_config", "num_attention_heads", 4),
    "a context in config.json": (edit_config, "text_config", "max_position_embeddings", 8),
    "a mask in config.json": (edit_config, "text_config", "causal_masking", True),
    "no such field in config.json": (edit_config, "text_config", "hidden_size", None),
}


@pytest.mark.parametrize("name", EDITS)
def test_sizes_that_are_not_those_of_the_tensors_are_refused(ready, name):
    edit, *path, value = EDITS[name]
    if edit is edit_config:
        edit_config(ready, *path, value=value)
    else:
        edit(ready, *path, value)
    error = refused(ready)
    assert error["code"] == "edited" and path[-1] in error["message"]


def test_a_folder_without_a_receipt_is_refused(ready):
    (ready / "conversion.json").unlink()
    error = refused(ready)
    assert error["code"] == "no_receipt" and "--verify" in error["message"]


def test_without_onnx_nothing_is_done(folder, tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    for command in (("export", "onnx", folder, tiny), ("convert", tiny, "--output", tmp_path / "new", "--onnx")):
        done = sam3lite(*command, "--json")
        assert done.code == 2 and done.json["error"]["code"] == "no_onnx"
    assert "proven" not in receipt(folder) and not (tmp_path / "new").exists()


def test_a_checkpoint_in_the_place_of_the_folder_is_told_from_one(folder, tiny):
    for arguments, says in (
        ((tiny, folder), f"swap them\nDid you mean:\n  sam3lite export onnx {folder} {tiny} --json"),
        ((tiny,), f"sam3lite convert {tiny} --onnx"),
        ((folder / "model.safetensors",), f"name the converted folder that holds it: {folder}"),
    ):
        done = sam3lite("export", "onnx", *arguments, "--json")
        assert done.code == 2 and says in done.json["error"]["message"]


def test_a_graph_that_was_moved_away_says_where_it_belongs(ready, tmp_path):
    assert sam3lite("export", "onnx", ready).code == 0
    (tmp_path / "away").mkdir()
    shutil.copy(ready / "model.onnx", tmp_path / "away")
    done = sam3lite("export", "onnx", tmp_path / "away", "--json")
    assert (
        done.code == 2
        and f"belongs to model.safetensors (SHA-256 {digest(ready / 'model.safetensors')})"
        in (done.json["error"]["message"])
    )


# ---- what is written


def test_with_the_checkpoint_it_verifies_records_and_exports(folder, tiny, tmp_path):
    torch_state = tiny_state()
    key = next(k for k in torch_state if k.endswith("projector.weight"))
    other = write(tmp_path, torch_state | {key: torch.zeros_like(torch_state[key])}, "other.pt")
    error = refused(folder, other)
    assert error["code"] == "not_proven" and error["details"]["verdict"] == "mismatch"

    done = sam3lite("export", "onnx", folder, tiny, "--json")
    assert done.code == 0 and done.json["weights"] == proven(folder) == receipt(folder)["proven"]
    assert done.json["verified"] == verify(folder, tiny).json["summary"]
    assert receipt(folder)["beside"]["model.onnx"] == digest(folder / "model.onnx") == done.json["graphs"][0]["sha256"]
    first = snapshot(folder)
    again = sam3lite("export", "onnx", folder, "--checkpoint", tiny)
    assert again.code == 0 and f"\nproven: {done.json['verified']}\n" in again.out and snapshot(folder) == first
    by_receipt = sam3lite("export", "onnx", folder)
    assert by_receipt.code == 0 and "proven: " not in by_receipt.out and snapshot(folder) == first
    assert not any(name.startswith(".") for name in first)


def test_convert_writes_the_same_graph_in_one_go_or_nothing(folder, tiny, tmp_path, monkeypatch):
    sam3lite("export", "onnx", folder, tiny)
    at_once = convert(tiny, tmp_path / "at once", *TEXT, "--onnx")
    for name in ("model.onnx", "model.safetensors"):
        assert (at_once / name).read_bytes() == (folder / name).read_bytes()
    assert receipt(at_once)["beside"]["model.onnx"] == digest(at_once / "model.onnx")

    def fails(path, name):
        raise CannotRun("onnx does not take it", "bad_graph")

    said = sam3lite("convert", tiny, "--output", at_once, *TEXT, "--onnx").out
    assert f"Next: sam3lite parity {tiny} --converted '{at_once}' --candidate onnx" in said
    monkeypatch.setattr(graphs, "_check", fails)
    done = sam3lite("convert", tiny, "--output", tmp_path / "none", *TEXT, "--onnx")
    assert done.code == 2 and not (tmp_path / "none").exists()
    before = snapshot(at_once)
    assert sam3lite("convert", tiny, "--output", at_once, *TEXT, "--onnx", "--overwrite").code == 2
    assert snapshot(at_once) == before
    convert(tiny, at_once, *TEXT, "--overwrite")
    assert not (at_once / "model.onnx").exists()


def test_weights_behind_a_link_are_told_before_anything_is_written(ready, tmp_path):
    (ready / "model.safetensors").rename(tmp_path / "elsewhere")
    (ready / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    before = snapshot(ready)
    done = sam3lite("export", "onnx", ready, "--json")
    assert done.code == 2 and "is a link to a file outside of the folder" in done.json["error"]["message"]
    assert snapshot(ready) == before


@pytest.mark.parametrize("listed", [False, True])
def test_a_graph_that_somebody_else_wrote_is_not_replaced(ready, tiny, listed):
    if listed:  # theirs took the place of ours
        assert sam3lite("export", "onnx", ready).code == 0
    theirs = onnx.ModelProto(producer_name="pytorch").SerializeToString()
    for data in (theirs, theirs if listed else b"what cannot be read"):
        (ready / "model.onnx").write_bytes(data)
        for command in (("export", "onnx", ready), ("convert", tiny, "--output", ready, *TEXT, "--onnx")):
            done = sam3lite(*command, "--json")
            assert done.code == 2 and done.json["error"]["code"] == "output_not_ours"
            assert "model.onnx is not a graph that sam3lite wrote" in done.json["error"]["message"]
            assert (ready / "model.onnx").read_bytes() == data
    # One of ours that no receipt lists yet: a run was killed between the two.
    (ready / "model.onnx").write_bytes(onnx.ModelProto(producer_name=PRODUCER).SerializeToString())
    assert sam3lite("export", "onnx", ready).code == 0


def test_a_failed_export_keeps_the_graphs_that_were_there(tiny, tmp_path, monkeypatch):
    folder = convert(tiny, tmp_path / "all", "--layout", "packed", "--verify")
    for name in ("vision.onnx", "text.onnx", "decode.onnx"):
        (folder / name).write_bytes(onnx.ModelProto(producer_name=PRODUCER, doc_string="earlier").SerializeToString())
    before, checked = snapshot(folder), onnx.checker.check_model

    def fails(model, full_check):
        assert full_check
        checked(model, full_check)
        if "pred_masks" in {value.name for value in model.graph.output}:
            raise onnx.checker.ValidationError("the third is bad")

    monkeypatch.setattr(onnx.checker, "check_model", fails)
    done = sam3lite("export", "onnx", folder, "--component", "detector", "--json")
    assert done.code == 2 and "the third is bad" in done.json["error"]["message"]
    assert snapshot(folder) == before


def test_weights_that_have_a_second_name_are_no_reason_to_refuse(folder, tiny, tmp_path):
    (tmp_path / "a backup's.safetensors").hardlink_to(folder / "model.safetensors")
    assert sam3lite("export", "onnx", folder, tiny).code == 0
    assert verify(folder, tiny).code == 0


def test_a_graph_that_was_taken_away_is_not_missed(folder, tiny):
    sam3lite("export", "onnx", folder, tiny)
    (folder / "model.onnx").unlink()
    done = sam3lite("convert", tiny, "--output", folder, *TEXT, "--json")
    assert done.json["state"] == "current" and not done.json["missing_files"]
    assert "model.onnx" not in receipt(folder)["beside"] and verify(folder, tiny).code == 0
    done = sam3lite("convert", tiny, "--output", folder, *TEXT, "--onnx", "--json")
    assert done.json["added"] == ["model.onnx"] and verify(folder, tiny).code == 0


def test_a_graph_that_was_edited_is_written_again_if_that_is_asked_for(ready, tiny):
    sam3lite("export", "onnx", ready)
    good = (ready / "model.onnx").read_bytes()
    (ready / "model.onnx").write_bytes(good[:-1])
    done = sam3lite("convert", tiny, "--output", ready, *TEXT, "--verify")
    assert done.code == 1 and "model.onnx" in done.err
    assert sam3lite("convert", tiny, "--output", ready, *TEXT, "--onnx").code == 0
    assert (ready / "model.onnx").read_bytes() == good


def test_a_folder_of_shards_is_exported_over_them(tiny, tmp_path):
    folder = convert(tiny, tmp_path / "shards", *TEXT, "--max-shard-size", "500KB", "--onnx")
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(names) > 1 and sorted(receipt(folder)["proven"]) == names
    onnx.checker.check_model(folder / "model.onnx", full_check=True)
    tensors = {key: load_file(folder / name) for key, name in zip(names, names, strict=True)}
    one = tensors[names[0]]
    save_file({key: value + 1 for key, value in one.items()}, folder / names[0])
    assert refused(folder)["code"] == "other_weights"


def test_exporting_imports_no_torch(ready):
    program = (
        "import sys; from sam3lite_convert.cli import app; "
        f"code = app.run(['export', 'onnx', {str(ready)!r}]); sys.exit(code or 'torch' in sys.modules)"
    )
    done = python("-c", program)
    assert done.returncode == 0 and (ready / "model.onnx").is_file(), done


@pytest.mark.parametrize("other", ["--no-verify", "--dry-run", "--trust"])
def test_a_graph_goes_with_a_verification(tiny, other):
    done = sam3lite("convert", tiny, "--onnx", other)
    assert done.code == 2 and "--onnx" in done.err and other in done.err


# ---- the card, and parity --------------------------------------------------------------------------


def code(folder):
    """The examples of the model card."""
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)


def test_the_card_says_how_the_graph_is_called_and_what_shows_each_claim(ready, tiny, monkeypatch, capsys):
    plain = (ready / "README.md").read_text()
    assert "## ONNX" not in plain
    sam3lite("export", "onnx", ready)
    card = (ready / "README.md").read_text()
    monkeypatch.chdir(ready)
    exec(code(ready)[-1], {})
    assert capsys.readouterr().out == "(1, 16, 32)\n"
    rows = [line for line in card.splitlines() if line.startswith("| `model.")]
    assert len(rows) == 2 and proven(ready)["model.safetensors"] in rows[0]
    for row in rows:
        command = row.rpartition("| `")[2].removesuffix("` |").replace("PATH/TO/tiny.pt", str(tiny))
        assert command.startswith("sam3lite ") and sam3lite(*command.split()[1:]).code == 0
    assert verify(ready, tiny).code == 0 and (ready / "README.md").read_text() == card


def test_with_parity_the_graph_is_run_beside_the_original_and_the_card_says_what_came_of_it(tiny, tmp_path):
    folder = tmp_path / "folder"
    done = sam3lite("convert", tiny, "--output", folder, *TEXT, "--onnx", "--parity", "--json")
    graph = receipt(folder)["graph_parity"]
    assert done.code == 0 and graph == done.json["graph_parity"] and "onnxruntime" in graph["candidate_encoder"]
    assert graph["verdict"] in ("exact", "within_tolerance")
    (row,) = (line for line in (folder / "README.md").read_text().splitlines() if "--candidate onnx" in line)
    assert f"`{graph['verdict']}`" in row and f"{graph['max_abs_diff']:.3g}" in row
    # Another graph is not the one that was run.
    assert sam3lite("export", "onnx", folder, "--taps").code == 0
    assert "graph_parity" not in receipt(folder) and "--candidate onnx" not in (folder / "README.md").read_text()


def test_a_graph_that_differs_from_the_original_fails_the_conversion(tiny, tmp_path, monkeypatch):
    node = GraphBuilder.node

    def wrong(self, op, name, *inputs, **attributes):
        if op == "Softmax":
            op, attributes = "Sigmoid", {}
        return node(self, op, name, *inputs, **attributes)

    monkeypatch.setattr(GraphBuilder, "node", wrong)
    done = sam3lite("convert", tiny, "--output", tmp_path / "folder", *TEXT, "--onnx", "--parity", "--json")
    assert done.code == 1 and done.json["parity"]["verdict"] == "exact"
    assert done.json["graph_parity"]["verdict"] == "differs"


@pytest.mark.parametrize("name", HOSTILE_GRAPHS)
def test_parity_runs_no_hostile_graph(ready, tiny, name, monkeypatch):
    monkeypatch.setattr(read, "_ENTRIES", ENTRIES)
    sam3lite("export", "onnx", ready)
    write_hostile(name, onnx.load(ready / "model.onnx", load_external_data=False), ready)
    done = sam3lite("parity", tiny, "--converted", ready, "--candidate", "onnx", "--json")
    assert done.code == 4 and HOSTILE_GRAPHS[name].says in done.json["error"]["message"]
