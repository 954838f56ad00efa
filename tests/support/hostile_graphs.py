"""Files named model.onnx that a runtime should not be given, made from one that it may be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper


class HostileGraph(NamedTuple):
    """make: changes a model whose first initializer that lies in a file is given, and its folder; returns the bytes of
    the file where they are not the model's. says: what the refusal says of it."""

    make: Callable[[ModelProto, TensorProto, Path], bytes | None]
    says: str


def number(value: int) -> bytes:
    """As protobuf writes it."""
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def entry(field: int, data: bytes) -> bytes:
    """A message or a string, as protobuf writes it."""
    return number(field << 3 | 2) + number(len(data)) + data


def placed(key: str, value: str) -> Callable[[ModelProto, TensorProto, Path], None]:
    def make(model: ModelProto, tensor: TensorProto, folder: Path) -> None:
        there = [e for e in tensor.external_data if e.key == key]
        there[0].value = value

    return make


def _link(model: ModelProto, tensor: TensorProto, folder: Path) -> None:
    outside = folder.parent / "secret.bin"
    outside.write_bytes(bytes(1 << 20))
    (folder / "weights.bin").symlink_to(outside)
    placed("location", "weights.bin")(model, tensor, folder)


def _pipe_or_folder(model: ModelProto, tensor: TensorProto, folder: Path) -> None:
    (folder / "weights").mkdir()
    placed("location", "weights")(model, tensor, folder)


def _past_the_end(model: ModelProto, tensor: TensorProto, folder: Path) -> None:
    placed("offset", str((folder / "model.safetensors").stat().st_size - 1))(model, tensor, folder)


def _twice(model: ModelProto, tensor: TensorProto, folder: Path) -> None:
    tensor.external_data.add(key="location", value="model.safetensors")


def _in_both(model: ModelProto, tensor: TensorProto, folder: Path) -> None:
    tensor.raw_data = b"\0"


def _huge_shape(model: ModelProto, tensor: TensorProto, folder: Path) -> None:
    tensor.dims[:] = [1 << 62, 1 << 62]


def _negative_shape(model: ModelProto, tensor: TensorProto, folder: Path) -> None:
    tensor.dims[0] = -tensor.dims[0]


def _small_constant(model: ModelProto, tensor: TensorProto, folder: Path) -> None:
    model.graph.initializer.append(
        TensorProto(name="huge", data_type=TensorProto.FLOAT, dims=[1 << 40], raw_data=b"\0")
    )


def _hidden_constant(model: ModelProto, tensor: TensorProto, folder: Path) -> None:
    """A tensor in an attribute that lies outside of the folder."""
    value = numpy_helper.from_array(np.zeros(2, np.float32), "hidden")
    value.ClearField("raw_data")
    value.data_location = TensorProto.EXTERNAL
    value.external_data.add(key="location", value="/etc/passwd")
    model.graph.node.append(helper.make_node("Constant", [], ["unread"], value=value))


def _inside_a_node(model: ModelProto, tensor: TensorProto, folder: Path) -> None:
    """A tensor in an attribute that lies in the folder, which a runtime looks for in the working directory."""
    model.graph.node.append(helper.make_node("Constant", [], ["unread"], value=tensor))


def _cycle(model: ModelProto, tensor: TensorProto, folder: Path) -> None:
    model.graph.node.insert(0, helper.make_node("Identity", ["round.2"], ["round.1"]))
    model.graph.node.insert(1, helper.make_node("Identity", ["round.1"], ["round.2"]))


def _made_twice(model: ModelProto, tensor: TensorProto, folder: Path) -> None:
    model.graph.node.append(model.graph.node[0])


def _two_initializers(model: ModelProto, tensor: TensorProto, folder: Path) -> None:
    model.graph.initializer.append(tensor)


def _no_maker(model: ModelProto, tensor: TensorProto, folder: Path) -> None:
    model.graph.output[0].name = "nobody"


def _own_operator(model: ModelProto, tensor: TensorProto, folder: Path) -> None:
    model.graph.node[-1].domain = "evil.corp"
    model.opset_import.append(helper.make_opsetid("evil.corp", 1))


def _nested(levels: int) -> NodeProto:
    graph = helper.make_graph([helper.make_node("Constant", [], ["inner"], value_int=1)], "g", [], [])
    node = helper.make_node("If", ["there"], ["inner"], then_branch=graph, else_branch=graph)
    for _ in range(levels):
        graph = helper.make_graph([node], "g", [], [])
        node = helper.make_node("If", ["there"], ["inner"], then_branch=graph)
    return node


def _subgraphs(model: ModelProto, tensor: TensorProto, folder: Path) -> None:
    model.graph.node.insert(0, helper.make_node("Constant", [], ["there"], value_int=1))
    model.graph.node.insert(1, _nested(7))


def _deeper(model: ModelProto, tensor: TensorProto, folder: Path) -> bytes:
    """Graphs in attributes of nodes, a thousand times, which a parser that calls itself does not survive."""
    graph = b""
    for _ in range(1000):
        graph = entry(1, entry(5, entry(6, graph)))
    return model.SerializeToString() + entry(7, graph)


def _function(model: ModelProto, tensor: TensorProto, folder: Path) -> None:
    model.functions.add(name="own", domain="")


def _sparse(model: ModelProto, tensor: TensorProto, folder: Path) -> None:
    model.graph.sparse_initializer.add().dims.append(4)


def _sparse_constant(model: ModelProto, tensor: TensorProto, folder: Path) -> None:
    node = model.graph.node.add(op_type="Constant", output=["sparse"])
    node.attribute.add(name="sparse_value", type=AttributeProto.SPARSE_TENSOR).sparse_tensor.dims.append(4)


def _place_unused(model: ModelProto, tensor: TensorProto, folder: Path) -> None:
    """A place in a file for a tensor that says it is in the graph."""
    tensor.data_location = TensorProto.DEFAULT


def _text_in_a_file(model: ModelProto, tensor: TensorProto, folder: Path) -> None:
    tensor.data_type = TensorProto.STRING


def _opset(version: int) -> Callable[[ModelProto, TensorProto, Path], None]:
    def make(model: ModelProto, tensor: TensorProto, folder: Path) -> None:
        model.opset_import[0].version = version

    return make


def _ir(model: ModelProto, tensor: TensorProto, folder: Path) -> None:
    model.ir_version = 1 << 40


def _many(model: ModelProto, tensor: TensorProto, folder: Path) -> bytes:
    return entry(7, entry(1, b"") * (1 << 17))


def _long_row(model: ModelProto, tensor: TensorProto, folder: Path) -> bytes:
    """Dimensions of a tensor, a byte each."""
    return entry(7, entry(5, entry(1, b"\1" * (1 << 17))))


def _large(model: ModelProto, tensor: TensorProto, folder: Path) -> bytes:
    return entry(6, bytes(64 << 20))


HOSTILE_GRAPHS = {
    "a path that leads out": HostileGraph(placed("location", "../secret.bin"), "not the name of a file of this folder"),
    "an absolute path": HostileGraph(placed("location", "/etc/passwd"), "not the name of a file of this folder"),
    "a path of Windows": HostileGraph(placed("location", "C:\\secret.bin"), "not the name of a file of this folder"),
    "no place at all": HostileGraph(placed("location", ""), "not the name of a file of this folder"),
    "a file that is not there": HostileGraph(placed("location", "other.safetensors"), "not in this folder"),
    "a link to a file outside": HostileGraph(_link, "a link to a file outside"),
    "a folder as the file": HostileGraph(_pipe_or_folder, "not in this folder"),
    "a place past the end": HostileGraph(_past_the_end, "which has"),
    "a negative place": HostileGraph(placed("offset", "-4"), "has the offset '-4'"),
    "a place of forty digits": HostileGraph(placed("offset", "9" * 40), "has the offset"),
    "another length than the shape's": HostileGraph(placed("length", "4"), "takes 4 bytes of"),
    "two places": HostileGraph(_twice, "states 'location' of its place, twice"),
    "values in both": HostileGraph(_in_both, "in a file and also in the graph"),
    "a shape of 2 to the 124": HostileGraph(_huge_shape, "and its shape"),
    "a negative shape": HostileGraph(_negative_shape, "has the shape [-"),
    "a constant of a terabyte in a byte": HostileGraph(_small_constant, "huge holds 1 bytes"),
    "a constant's values outside": HostileGraph(_hidden_constant, "hidden lies in '/etc/passwd'"),
    "a constant's values in a file": HostileGraph(_inside_a_node, "a tensor inside a node, lies in a file"),
    "a cycle": HostileGraph(_cycle, "reads 'round.2', which no node before it makes"),
    "a value made twice": HostileGraph(_made_twice, "is made twice"),
    "two tensors of one name": HostileGraph(_two_initializers, "two of its initializers have one name"),
    "an output that nothing makes": HostileGraph(_no_maker, "nothing makes its output 'nobody'"),
    "an operator of its own": HostileGraph(_own_operator, "is an operator of 'evil.corp'"),
    "graphs in graphs": HostileGraph(_subgraphs, "graphs are nested deeper than 4"),
    "a thousand graphs in graphs": HostileGraph(_deeper, "nested deeper than 40"),
    "a function of its own": HostileGraph(_function, "defines functions"),
    "sparse tensors": HostileGraph(_sparse, "sparse tensors"),
    "a sparse constant": HostileGraph(_sparse_constant, "sparse tensors"),
    "a place and no use of it": HostileGraph(_place_unused, "in the graph and also in a file"),
    "text in a file": HostileGraph(_text_in_a_file, "of a type that no file holds"),
    "a number without an end": HostileGraph(lambda *_: b"\x08" + b"\xff" * 12, "truncated"),
    "a group of fields": HostileGraph(lambda model, *_: model.SerializeToString() + b"\x0b\x0c", "not an ONNX model"),
    "bytes past the end": HostileGraph(lambda model, *_: model.SerializeToString() + b"\x0d\1", "not an ONNX model ("),
    "an opset of the future": HostileGraph(_opset(1000), "its opset is 1000"),
    "an opset of the past": HostileGraph(_opset(1), "its opset is 1;"),
    "a version of the format of the future": HostileGraph(_ir, "its IR version is"),
    "a hundred thousand empty nodes": HostileGraph(_many, "more than 65,536 entries"),
    "a row of a hundred thousand dimensions": HostileGraph(_long_row, "more than 65,536 entries"),
    "more than 64 MB": HostileGraph(_large, "is larger than"),
    "an empty file": HostileGraph(lambda *_: b"", "it holds no graph"),
    "a picture": HostileGraph(lambda *_: b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "not an ONNX model"),
    "half a file": HostileGraph(lambda model, *_: model.SerializeToString()[:-40], "truncated"),
    "text that is not UTF-8": HostileGraph(
        lambda model, *_: model.SerializeToString() + entry(2, b"\xff\xfe"), "ONNX model"
    ),
}


ENTRIES = 1 << 16  # to be set as the limit in place of a million, which take a second


def write_hostile(name: str, model: ModelProto, folder: Path) -> Path:
    """``model.onnx`` of a folder, changed as one of the table says; the model itself is left as it is."""
    changed = ModelProto()
    changed.CopyFrom(model)
    tensor = next(t for t in changed.graph.initializer if t.data_location == TensorProto.EXTERNAL)
    data = HOSTILE_GRAPHS[name].make(changed, tensor, folder)
    path = folder / "model.onnx"
    path.write_bytes(changed.SerializeToString() if data is None else data)
    return path
