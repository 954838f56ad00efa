"""Graphs of a folder: ``verify`` proves that they are those that this version writes, over the folder's own tensors."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.folders import convert, receipt, sam3lite, tiny_state, verify, write
from support.hostile_graphs import ENTRIES, HOSTILE_GRAPHS, placed, write_hostile

from sam3lite_convert.convert.folder import read_folder
from sam3lite_convert.graph import folder_graphs, metadata, read
from sam3lite_convert.plan.tables import load_mappings
from sam3lite_convert.verify.graphs import check_graphs

TEXT = ("--component", "text")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkpoint, and a text encoder with its graph."""
    place = tmp_path_factory.mktemp("made")
    tiny = write(place, tiny_state())
    return tiny, convert(tiny, place / "text", "--layout", "packed", *TEXT, "--onnx")


@pytest.fixture
def folder(made, tmp_path):
    # Without the fingerprint, which is checked by running the encoder.
    return shutil.copytree(made[1], tmp_path / "folder", ignore=shutil.ignore_patterns("fingerprint.json"))


@pytest.fixture
def tiny(made):
    return made[0]


def load(folder, name="model.onnx"):
    return onnx.load(folder / name, load_external_data=False)


def save(model, folder, name="model.onnx"):
    (folder / name).write_bytes(folder_graphs.serialized(model))


def findings(folder, tiny):
    done = verify(folder, tiny, "--json")
    assert (done.code == 1) == bool(done.json["findings"]), done
    return done.json["findings"]


def the_one(folder, tiny, code):
    (finding,) = findings(folder, tiny)
    assert finding["code"] == code, finding
    return finding


def wrong(folder):
    """What is wrong with the graphs, without the rest of ``verify``, by key: (code, why)."""
    faults = check_graphs(read_folder(folder), load_mappings(None), lambda: receipt(folder)["proven"], [])
    return {fault.key: (fault.code, fault.why) for fault in faults}


def test_the_graph_of_a_folder_is_proven_with_it(folder, tiny):
    assert findings(folder, tiny) == []
    notes = sam3lite("verify", folder, tiny, "--json").json["notes"]
    assert any(note.startswith("model.onnx: its weights are the folder's own tensors") for note in notes)
    said = {entry.key: entry.value for entry in load(folder).metadata_props}
    assert json.loads(said["weights"]) == receipt(folder)["proven"]
    assert json.loads(said["source"])["sha256"] == receipt(folder)["source"]["sha256"]
    assert {"receipt", "context", "dtype", "tool", "call", "component", "taps"} <= said.keys()


def test_the_graphs_of_a_whole_detector_are_too_with_taps_and_another_size(tmp_path, tiny):
    folder = convert(tiny, tmp_path / "all", "--layout", "transformers", "--verify")
    done = sam3lite("export", "onnx", folder, "--component", "detector", "--taps", "--size", "56", "--json")
    assert [graph["name"] for graph in done.json["graphs"]] == ["vision.onnx", "text.onnx", "decode.onnx"]
    assert wrong(folder) == {}
    save(load(folder, "vision.onnx"), folder, "text.onnx")
    assert {code for code, _ in wrong(folder).values()} == {"V-GRAPH"}


@pytest.mark.parametrize("name", HOSTILE_GRAPHS)
def test_a_hostile_graph_is_a_finding_in_words(folder, tiny, name, monkeypatch):
    monkeypatch.setattr(read, "_ENTRIES", ENTRIES)
    write_hostile(name, load(folder), folder)
    finding = the_one(folder, tiny, "V-GRAPH-FILE")
    assert HOSTILE_GRAPHS[name].says in finding["cause"] and finding["keys"] == ["model.onnx"]


def _other_eps(model):
    node = next(node for node in model.graph.node if node.op_type == "LayerNormalization")
    next(a for a in node.attribute if a.name == "epsilon").f = 1e-6
    return node.output[0]


def _swapped(model):
    node = next(node for node in model.graph.node if node.op_type == "MatMul")
    node.input[0], node.input[1] = node.input[1], node.input[0]
    return node.output[0]


def _less(model):
    """A node less: what it makes is what it reads."""
    node = next(node for node in model.graph.node if node.op_type == "Gelu")
    reads, makes = node.input[0], node.output[0]
    model.graph.node.remove(node)
    for other in model.graph.node:
        for n, name in enumerate(other.input):
            if name == makes:
                other.input[n] = reads
    return makes


def _constant(model):
    constant = next(t for t in model.graph.initializer if t.name == "scale")
    constant.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(constant) * np.float32(2), "scale"))
    return "scale"


def _inline(model):
    """A tensor of the folder with values of the graph's own."""
    tensor = next(t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL)
    tensor.CopyFrom(numpy_helper.from_array(np.zeros(list(tensor.dims), np.float32), tensor.name))
    return tensor.name


def _renamed(model):
    model.graph.input[0].name = "ids"
    for node in model.graph.node:
        for n, name in enumerate(node.input):
            if name == "input_ids":
                node.input[n] = "ids"
    return "ids"


@pytest.mark.parametrize("change", [_other_eps, _swapped, _less, _constant, _inline, _renamed])
def test_a_graph_that_computes_something_else_is_named_with_its_node(folder, change):
    model = load(folder)
    name = change(model)
    save(model, folder)
    found = wrong(folder)
    assert {code for code, _ in found.values()} == {"V-GRAPH"}
    assert f"model.onnx: {name}" in found


def _offset_of(folder, key):
    model = load(folder)
    return next({e.key: e.value for e in t.external_data} for t in model.graph.initializer if t.name == key)


def test_a_tensor_of_the_graph_that_is_another_of_the_folder_is_named(folder):
    model = load(folder)
    a, b = [t for t in model.graph.initializer if t.name.endswith("norm1.bias")][:2]
    placed("offset", _offset_of(folder, b.name)["offset"])(model, a, folder)
    save(model, folder)
    assert _misplaced(folder) == [(f"model.onnx: {a.name}", f"lies where {b.name} does")]


def _misplaced(folder):
    found = check_graphs(read_folder(folder), load_mappings(None), lambda: receipt(folder)["proven"], [])
    return [(fault.key, fault.why) for fault in found if fault.code == "V-GRAPH-WEIGHTS"]


def test_bytes_between_tensors_are_none(folder):
    model = load(folder)
    tensor = next(t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL)
    place = {e.key: e.value for e in tensor.external_data}
    placed("offset", str(int(place["offset"]) + 4))(model, tensor, folder)
    save(model, folder)
    ((key, why),) = _misplaced(folder)
    assert key == f"model.onnx: {tensor.name}" and "where no tensor of the folder begins" in why


def test_the_same_bytes_as_another_type_are_not_the_tensor(folder):
    model = load(folder)
    tensor = next(t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL)
    tensor.data_type = TensorProto.INT32
    save(model, folder)
    ((_, why),) = _misplaced(folder)
    assert "is int32" in why


def other_checkpoint(place):
    state = tiny_state()
    key = next(k for k in state if k.endswith("projector.weight"))
    place.mkdir()
    return write(place, state | {key: state[key] + 1})


def test_a_graph_beside_other_weights_is_told_with_both_hashes(folder, tmp_path):
    checkpoint = other_checkpoint(tmp_path / "other")
    other = convert(checkpoint, tmp_path / "moved", "--layout", "packed", *TEXT, "--verify")
    (other / "fingerprint.json").unlink()
    shutil.copy(folder / "model.onnx", other)
    finding = the_one(other, checkpoint, "V-GRAPH-WEIGHTS")
    for each in (folder, other):
        assert receipt(each)["proven"]["model.safetensors"] in finding["cause"]


def test_a_graph_without_its_weights_says_which_they_are(folder, tiny):
    (folder / "model.safetensors").unlink()
    done = verify(folder, tiny, "--json")
    assert done.code == 2
    digest, source = receipt(folder)["proven"]["model.safetensors"], receipt(folder)["source"]
    said = done.json["error"]["message"]
    assert f"model.onnx there belongs to model.safetensors (SHA-256 {digest})" in said
    assert source["name"] in said and source["sha256"] in said


def test_changed_weights_are_told_of_the_graph_too(folder, tiny):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    found = {finding["code"] for finding in findings(folder, tiny)}
    assert "V-GRAPH-WEIGHTS" in found and len(found) == 2


@pytest.mark.parametrize("key", ["call", "context", "receipt", "source", "component", "dtype"])
def test_what_a_graph_says_of_itself_has_to_be_so(folder, key):
    model = load(folder)
    next(entry for entry in model.metadata_props if entry.key == key).value = "16 or so"
    save(model, folder)
    ((where, (code, why)),) = wrong(folder).items()
    assert (where, code) == (f"model.onnx: {key}", "V-GRAPH") and "'16 or so'" in why


def test_a_graph_that_says_something_else_of_its_input_is_not_the_one_of_this_version(folder):
    model = load(folder)
    model.graph.input[0].doc_string = "padded with anything"
    save(model, folder)
    ((_, (code, why)),) = wrong(folder).items()
    assert code == "V-GRAPH" and "graph.input[0].doc_string differs" in why


def test_a_graph_of_a_detector_does_not_belong_to_a_text_encoder(folder):
    shutil.copy(folder / "model.onnx", folder / "text.onnx")
    ((key, (code, why)),) = wrong(folder).items()
    assert (key, code) == ("text.onnx", "V-GRAPH") and "the folder is a text encoder" in why


def test_a_graph_of_another_version_is_told_apart_from_an_edited_one(folder, tiny):
    model = load(folder)
    next(entry for entry in model.metadata_props if entry.key == "tool").value = "sam3lite-convert 0.0.1"
    _other_eps(model)
    save(model, folder)
    finding = the_one(folder, tiny, "V-GRAPH-VERSION")
    assert "sam3lite-convert 0.0.1" in finding["cause"] and metadata.TOOL_NOW in finding["cause"]
    assert "export onnx" in finding["cause"]


def test_a_graph_that_somebody_else_wrote_is_told_so(folder, tiny):
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "theirs", [x], [y])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder)
    assert "it states no weights" in the_one(folder, tiny, "V-GRAPH")["cause"]


def test_a_folder_without_a_receipt_has_no_graph_of_ours(folder, tiny):
    (folder / "conversion.json").unlink()
    assert "no receipt" in the_one(folder, tiny, "V-GRAPH")["cause"]


def test_other_graphs_are_left_alone_and_that_is_said(folder, tiny):
    (folder / "mine.onnx").write_bytes(b"anything")
    done = verify(folder, tiny, "--json")
    assert done.code == 0 and any(note.startswith("mine.onnx was not checked") for note in done.json["notes"])


def test_without_onnx_a_graph_is_not_checked_and_that_is_said(folder, tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    (folder / "model.onnx").write_bytes(b"anything")
    done = verify(folder, tiny, "--json")
    assert done.code == 0
    assert "model.onnx was not checked: pip install 'sam3lite-convert[onnx]'" in done.json["notes"]


@pytest.mark.parametrize("code", ["V-GRAPH", "V-GRAPH-FILE", "V-GRAPH-WEIGHTS", "V-GRAPH-VERSION"])
def test_the_codes_are_explained(code):
    assert sam3lite("explain", code).code == 0
