"""Quantised graphs: what is int8 in them, what their weights are, and that they can be made again."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper
from support.folders import LAYOUTS, convert, tensors, tiny_state, write

from sam3lite_convert.convert.folder import read_folder
from sam3lite_convert.convert.graph_files import METHODS, quantized_name
from sam3lite_convert.errors import CannotRun, Untrusted
from sam3lite_convert.graph.folder_graphs import graphs_of, layout_of, serialized
from sam3lite_convert.graph.quantize import graph_hash, installed, quantized, quantized_from, with_loss
from sam3lite_convert.plan.tables import load_mappings
from sam3lite_convert.records.export import TapLoss

LOSS = TapLoss(name="embeddings", shape=(1, 2), relative_l2=0.5, cosine=0.5, max_abs_diff=0.5)


def graph(folder, metadata=()):
    found = read_folder(folder)
    (model,) = graphs_of(found, layout_of(found.receipt or {}, load_mappings(None)), "text", dict(metadata)).values()
    return model


@pytest.fixture(scope="module", params=LAYOUTS)
def folder(request, tmp_path_factory):
    place = tmp_path_factory.mktemp("quantize")
    return convert(write(place, tiny_state()), place / "out", "--component", "text", "--layout", request.param)


@pytest.fixture(scope="module")
def made(folder):
    return {method: quantized(graph(folder, {"component": "text"}), folder, method) for method in METHODS}


def test_every_linear_layer_becomes_int8_with_a_scale_for_each_output(folder, made):
    plain, held = graph(folder), tensors(folder)
    pointwise = [n for n in plain.graph.node if n.op_type == "Conv" and n.name.endswith((".fc1", ".fc2"))]
    gemms = [n for n in plain.graph.node if n.op_type == "Gemm"]
    assert len(pointwise) == 4 and len(gemms) >= 18
    # What each multiplies with, (in, out): a Gemm that says so stores the transpose, as a convolution does.
    stored_as = {n.input[1]: n.op_type == "Conv" or any(a.name == "transB" and a.i for a in n.attribute) for n in
                 (*pointwise, *gemms)}  # fmt: skip
    table = next(key for key in held if key.endswith("token_embedding.weight"))
    for method, model in made.items():
        kinds = Counter(node.op_type for node in model.graph.node)
        assert kinds["MatMulInteger"] == len(stored_as)
        # Queries with keys, and the sums of values: both sides are computed.
        assert (kinds["Gemm"], kinds["MatMul"], kinds["ConvInteger"]) == (0, 8, 0)
        arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        for key, transposed in stored_as.items():
            (name,) = (n for n in arrays if n.startswith(key) and n.endswith("_quantized"))
            scale, wanted = arrays[name.replace("_quantized", "_scale")], held[key].flatten(1).double().numpy()
            wanted = wanted.T if transposed else wanted
            assert arrays[name].dtype == np.int8 and scale.shape == (wanted.shape[1],)
            assert (np.abs(arrays[name].astype(np.float64) * scale - wanted) <= 0.501 * scale).all()
        assert (table in arrays) == (method == "int8")
        for key in arrays.keys() & held.keys():
            assert np.array_equal(arrays[key].ravel(), held[key].flatten()[: arrays[key].size].numpy())
    assert arrays[f"{table}_quantized"].shape == tuple(held[table].shape)


def test_the_taps_keep_their_values_and_the_file_its_own_weights(made):
    for model in made.values():
        stated = {entry.key: entry.value for entry in model.metadata_props}
        values = {name for node in model.graph.node for name in node.output}
        taps = json.loads(stated["taps"])
        assert set(taps.values()) <= values and len(taps) == 10
        known = {value.name for value in (*model.graph.value_info, *model.graph.output)}
        assert set(taps.values()) <= known
        assert stated["component"] == "text"
        assert not any(tensor.data_location == TensorProto.EXTERNAL for tensor in model.graph.initializer)
        # Not number by number: our own reader counts those, and a detector has very many.
        assert all(tensor.HasField("raw_data") for tensor in model.graph.initializer)
        onnx.checker.check_model(model)


def test_it_is_made_again_to_the_byte_and_says_of_what(folder, made):
    model = graph(folder, {"component": "text"})
    again = quantized(model, folder, "int8-all")
    assert serialized(again) == serialized(made["int8-all"])
    stated = quantized_from(again)
    assert stated is not None and (stated.method, stated.graph) == ("int8-all", graph_hash(model))
    assert (stated.onnxruntime, stated.onnx) == installed() == (onnxruntime.__version__, onnx.__version__)
    assert quantized_from(model) is None
    assert quantized_from(with_loss(again, LOSS)) == stated


def test_names_and_what_is_refused(tmp_path):
    assert quantized_name("model.onnx", "int8-all") == "model.int8-all.onnx"
    place = convert(write(tmp_path, tiny_state()), tmp_path / "out", "--component", "text", "--dtype", "float16")
    with pytest.raises(CannotRun, match="needs a float32 folder"):
        quantized(graph(place), place, "int8")
    with pytest.raises(Untrusted, match="'quantized' cannot be read"):
        quantized_from(graph(place, {"quantized": '{"method": "int4"}'}))
