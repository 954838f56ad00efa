"""Graphs that anybody may have written: what a runtime should not be given is refused, in words."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.hostile_graphs import ENTRIES, HOSTILE_GRAPHS, write_hostile

from sam3lite_convert.errors import CannotRun, Untrusted
from sam3lite_convert.graph import read
from sam3lite_convert.graph.read import metadata_of, place_of, read_graph


def _model() -> onnx.ModelProto:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3, 2], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": "model.safetensors", "offset": "8", "length": "24"}.items():
        weight.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Add", ["y", "one"], ["z"])],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 2])],
        [weight, numpy_helper.from_array(np.ones(2, np.float32), "one")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"dtype": "float32"})
    return model


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "folder"
    place.mkdir()
    (place / "model.safetensors").write_bytes(bytes(range(64)))
    return place


def test_a_good_graph_is_read_with_the_places_of_its_weights(folder):
    path = folder / "model.onnx"
    path.write_bytes(_model().SerializeToString())
    model = read_graph(path, folder)
    assert model == _model() and metadata_of(model) == {"dtype": "float32"}
    outside, inside = model.graph.initializer
    assert (place_of(outside).file, place_of(outside).offset, place_of(outside).length) == ("model.safetensors", 8, 24)
    with pytest.raises(ValueError):
        place_of(inside)


def test_graphs_inside_it_read_what_was_made_outside_of_them(folder):
    model = _model()
    inner = helper.make_graph([helper.make_node("Neg", ["z"], ["n"])], "inner", [], [onnx.ValueInfoProto(name="n")])
    model.graph.node.append(helper.make_node("Constant", [], ["there"], value_int=1))
    model.graph.node.append(helper.make_node("If", ["there"], ["i"], then_branch=inner, else_branch=inner))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    assert read_graph(folder / "model.onnx", folder) == model


def test_a_link_inside_the_folder_and_into_the_hubs_cache_is_read(tmp_path):
    place = tmp_path / "models--a--b" / "snapshots" / "0123"
    blob = tmp_path / "models--a--b" / "blobs" / "4567"
    for each in (place, blob.parent):
        each.mkdir(parents=True)
    blob.write_bytes(bytes(64))
    (place / "model.safetensors").symlink_to(os.path.relpath(blob, place))
    (place / "model.onnx").write_bytes(_model().SerializeToString())
    assert read_graph(place / "model.onnx", place) == _model()


@pytest.mark.parametrize("name", HOSTILE_GRAPHS)
def test_what_a_runtime_should_not_be_given_is_refused_in_words(folder, name, monkeypatch):
    monkeypatch.setattr(read, "_ENTRIES", ENTRIES)
    path = write_hostile(name, _model(), folder)
    with pytest.raises(Untrusted) as fault:
        read_graph(path, folder)
    assert fault.value.code == "bad_graph"
    assert fault.value.message.startswith("model.onnx is refused: ")
    assert HOSTILE_GRAPHS[name].says in fault.value.message


def test_a_pipe_is_not_opened(folder):
    os.mkfifo(folder / "model.onnx")
    with pytest.raises(CannotRun):
        read_graph(folder / "model.onnx", folder)
