"""A graph is compared with the one that this version writes: each change is told by its node, its tap and its keys."""

from __future__ import annotations

import json

import onnx
import pytest
from onnx import helper
from support.folders import convert, tiny_state, write
from support.graph_faults import initializer, maker, read_instead, set_attribute, text_faults

from sam3lite_convert.convert.folder import read_folder
from sam3lite_convert.graph.compare import differences, first_unlike, stated_taps_differ, taps_of
from sam3lite_convert.graph.folder_graphs import graphs_of, layout_of
from sam3lite_convert.plan.tables import load_mappings


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graph")
    found = read_folder(convert(write(folder, tiny_state()), folder / "out"))
    (model,) = graphs_of(found, layout_of(found.receipt or {}, load_mappings(None)), "text", {}).values()
    return model


def _copy(model):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def test_the_same_graph_has_no_differences_whatever_its_names_and_order(model):
    other = _copy(model)
    for node in other.graph.node:
        node.name, node.doc_string = f"{node.name}-renamed", "of another"
    for kind in (other.graph.initializer, other.graph.value_info, other.metadata_props):
        turned = list(reversed(kind))
        del kind[:]
        kind.extend(turned)
    assert differences(other, model) == () == differences(model, model)


def test_every_fault_is_told_by_its_node_and_its_tap(model):
    tried = list(text_faults(model, 16))
    assert len(tried) > 15
    for fault in tried:
        found = differences(fault.put_into(model), model)
        told = next((d for d in found if d.name == fault.named), None)
        assert told is not None and told.taps[0] == fault.tap, (fault.words, found)
        assert len(found) <= 3, (fault.words, found)  # the fault, and what reads it


def test_words(model):
    eps = _copy(model)
    set_attribute("layers.3.norm1", epsilon=1e-6)(eps)
    (found,) = differences(eps, model)
    assert found.words == "the node layers.3.norm1 (LayerNormalization) has epsilon 1e-06, ours 1e-05"
    assert found.taps == ("layers.3",) and len(found.keys) == 2 and set(found.keys) < set(_names(model))

    tanh = _copy(model)
    set_attribute("layers.3.gelu", approximate="tanh")(tanh)
    (found,) = differences(tanh, model)
    assert found.words == "the node layers.3.gelu (Gelu) has approximate tanh, ours has none"

    moved = _copy(model)
    mine, other = maker(model, "layers.3.norm1").input[1], maker(model, "layers.2.norm1").input[1]
    read_instead(mine, other)(moved)
    (found,) = differences(moved, model)
    assert f"the tensor {mine} lies in model.safetensors at offset" in found.words
    assert f", the place of {other}; ours in" in found.words and found.keys == (mine,)

    scale = _copy(model)
    initializer(scale, "scale").raw_data = b"\0\0\x80?"
    (found,) = differences(scale, model)
    assert found.words == "the constant scale is 1, ours 0.125"
    assert found.taps == tuple(tap for tap in taps_of(model) if f"{tap}.scores" in {n.name for n in model.graph.node})


def test_what_is_no_node_is_told_too(model):
    other = _copy(model)
    other.opset_import[0].version = 21
    other.functions.add(name="f", domain="custom")
    other.graph.output.remove(other.graph.output[-1])
    other.graph.input.append(helper.make_tensor_value_info("mask", onnx.TensorProto.BOOL, ["batch", 16]))
    other.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "tokens"
    del other.graph.initializer[0]
    words = [d.words for d in differences(other, model)]
    assert words[:5] == [
        "operator sets: ai.onnx 21, ours ai.onnx 20",
        "the model has functions, ours has none",
        "the input input_ids is int64 (batch, tokens), ours int64 (batch, 16)",
        "the input mask is not in ours",
        "the output pooled is missing",
    ]
    assert len(words) == 6 and words[5].startswith("the initializer ") and words[5].endswith(" is missing")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t.ClearField("raw_data"),
        lambda t: setattr(t, "raw_data", b"\0"),
        lambda t: setattr(t, "data_type", 99),
        lambda t: t.dims.extend([1 << 40]),
        lambda t: t.dims.extend([-1]),
        lambda t: t.ClearField("dims"),
        lambda t: setattr(t, "data_location", onnx.TensorProto.EXTERNAL),
    ],
)
def test_malformed_constants_differ(model, spoil):
    other = _copy(model)
    spoil(initializer(other, "i-1_16_128"))
    (found,) = differences(other, model)
    assert found.words.startswith("the constant i-1_16_128 ")


def test_what_is_not_computed_is_found_by_its_place(model):
    def found(change):
        other = _copy(model)
        change(other)
        assert differences(other, model) == ()
        return first_unlike(other, model)

    def unread(other):
        other.MergeFromString(b"\xa2\x06\x01x")  # field 100, of which onnx knows nothing

    assert first_unlike(_copy(model), model) is None
    assert found(lambda m: setattr(m, "ir_version", 9)) == "ir_version"
    assert found(lambda m: setattr(m.graph.input[0], "doc_string", "any mask")) == "graph.input[0].doc_string"
    assert found(lambda m: m.graph.value_info[1].type.tensor_type.shape.dim.add()) == (
        "graph.value_info[1].type.tensor_type.shape.dim"
    )
    assert found(lambda m: m.metadata_props.add(key="call")) == "metadata_props"
    # Of two attributes of one name a reader may take either.
    twice = next(n for n, node in enumerate(model.graph.node) if node.attribute)
    assert found(lambda m: m.graph.node[twice].attribute.append(m.graph.node[twice].attribute[0])) == (
        f"graph.node[{twice}].attribute"
    )
    assert found(unread) == ""


def test_taps_that_the_metadata_puts_elsewhere_are_told(model):
    other = _copy(model)
    said = next(entry for entry in other.metadata_props if entry.key == "taps")
    said.value = json.dumps({**taps_of(model), "layers.1": "layers.2"})
    (found,) = stated_taps_differ(other, model)
    assert found.words == "the metadata says that the tap layers.1 is at layers.2; ours is at layers.1"
    assert found.taps == ("layers.1",) and found.misplaced
    said.value = "{}"
    assert list(stated_taps_differ(other, model)) == []


def _names(model):
    return [tensor.name for tensor in model.graph.initializer]
