"""Graphs with their weights as int8, made by onnxruntime's dynamic quantizer; the file holds its weights itself."""

from __future__ import annotations

import gc
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sam3lite_convert.convert.graph_files import Method
from sam3lite_convert.errors import CannotRun, Untrusted
from sam3lite_convert.graph.folder_graphs import serialized
from sam3lite_convert.graph.read import metadata_of, stored_values
from sam3lite_convert.json_text import parse_json
from sam3lite_convert.records.record import Record

# What the quantizer takes. Gemm and 1 x 1 convolutions are made products before; convolutions proper stay as they are,
# since onnxruntime's integer ones are several times as slow as the others.
_OPERATORS: dict[Method, list[str]] = {"int8": ["MatMul"], "int8-all": ["MatMul", "Gather"]}
# Entries of the metadata.
QUANTIZED, LOSS = "quantized", "loss"


@dataclass(frozen=True, kw_only=True)
class QuantizedFrom(Record):
    """How a quantised graph was made.

    method: int8 (products) or int8-all (the token table too). graph: SHA-256 of the file of the graph that it was made
    of. tool: the function that made it. onnxruntime, onnx: their versions.
    """

    method: Method
    graph: str
    tool: str
    onnxruntime: str
    onnx: str


def quantized(model: onnx.ModelProto, folder: Path, method: Method, work: Path | None = None) -> onnx.ModelProto:
    """A graph with its weights quantised, per output channel; values keep their names, so that its taps are found.

    The same graph, weights and versions of onnxruntime and onnx give the same graph.

    model: as ``graphs_of`` makes it. folder: that its weights lie in. work: an empty folder that may be filled with as
    much as the weights; by default one of the system's.

    Raises CannotRun if the graph is not float32, or if onnxruntime is not installed or does not quantise it.
    """
    try:
        import onnxruntime
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError:
        raise CannotRun("--quantize needs onnxruntime: pip install 'sam3lite-convert[onnx]'", "no_onnx") from None
    _check_dtype(model)
    stated = QuantizedFrom(
        method=method,
        graph=graph_hash(model),
        tool="onnxruntime.quantization.quantize_dynamic",
        onnxruntime=onnxruntime.__version__,
        onnx=onnx.__version__,
    )
    with tempfile.TemporaryDirectory(prefix="sam3lite-", dir=work) as name:
        source, made = Path(name) / "source.onnx", Path(name) / "made.onnx"
        _write_source(model, folder, source)
        try:
            quantize_dynamic(
                source, made, op_types_to_quantize=_OPERATORS[method], per_channel=True, weight_type=QuantType.QInt8
            )
        except Exception as fault:  # classes of several libraries that share no base
            raise CannotRun(f"onnxruntime does not quantise the graph: {fault}", "bad_graph") from fault
        found = onnx.load(made)
    gc.collect()  # what the quantizer holds refers to itself: twice the weights
    _as_bytes(found.graph)
    found.producer_name, found.producer_version = model.producer_name, model.producer_version
    # What the quantizer infers of other values says nothing that onnxruntime does not infer itself.
    del found.graph.value_info[:]
    found.graph.value_info.extend(model.graph.value_info)
    return _with_metadata(found, metadata_of(model) | {QUANTIZED: json.dumps(stated.to_json(), sort_keys=True)})


def _as_bytes(graph: onnx.GraphProto) -> None:
    """Store the values of all initializers as bytes. The quantizer writes scales and zero points, of which a detector
    has hundreds of thousands, number by number, and our own reader takes so many entries for a hostile file."""
    for tensor in graph.initializer:
        if not tensor.HasField("raw_data"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))


def graph_hash(model: onnx.ModelProto) -> str:
    """SHA-256 of the bytes of a graph's file."""
    return hashlib.sha256(serialized(model)).hexdigest()


def quantized_from(model: onnx.ModelProto) -> QuantizedFrom | None:
    """How a graph was quantised, as its metadata says; None if it says nothing of it.

    Raises Untrusted if that cannot be read.
    """
    said = metadata_of(model).get(QUANTIZED)
    if said is None:
        return None
    try:
        return QuantizedFrom.from_json(parse_json(said))
    except ValueError as fault:
        raise Untrusted(f"the graph's metadata {QUANTIZED!r} cannot be read: {fault}", "bad_graph") from fault


def installed() -> tuple[str, str] | None:
    """The versions of onnxruntime and onnx here; None if there is no onnxruntime. Others may quantise otherwise."""
    try:
        import onnxruntime
    except ImportError:
        return None
    return str(onnxruntime.__version__), onnx.__version__


def with_loss(model: onnx.ModelProto, loss: Record) -> onnx.ModelProto:
    """The same graph (not a copy), with a measured loss in its metadata."""
    return _with_metadata(model, metadata_of(model) | {LOSS: json.dumps(loss.to_json(), sort_keys=True)})


def _with_metadata(model: onnx.ModelProto, metadata: dict[str, str]) -> onnx.ModelProto:
    del model.metadata_props[:]
    helper.set_model_props(model, metadata)
    return model


def _check_dtype(model: onnx.ModelProto) -> None:
    """Raises CannotRun if a weight is not float32."""
    halves = [t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16]
    if halves:
        raise CannotRun(
            f"--quantize needs a float32 folder, and {halves[0]} is float16: convert with --dtype float32",
            "unsupported_dtype",
        )


def _write_source(model: onnx.ModelProto, folder: Path, path: Path) -> None:
    """Write what the quantizer reads: the graph with its weights in one file beside it.

    Of the folder's own files onnx would copy all of a shard, or refuse a link to it. One weight at a time is in memory.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    turned = _as_products(copy.graph)
    # Without this entry the quantizer writes a warning to the logger of the whole program.
    _with_metadata(copy, {"onnx.quant.pre_process": "onnxruntime.quant"})
    with open(path.with_name(_SOURCE), "wb") as out:
        for tensor in copy.graph.initializer:
            if tensor.name in turned:
                stored = stored_values(turned[tensor.name], folder)
                values = np.ascontiguousarray(stored.reshape(stored.shape[:2]).T)
            else:
                values = np.asarray(stored_values(tensor, folder))
            if values.nbytes < _INLINE:
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
                continue
            place = {"location": _SOURCE, "offset": out.tell(), "length": values.nbytes}
            out.write(values.data)
            tensor.ClearField("raw_data")
            tensor.ClearField("external_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
    path.write_bytes(copy.SerializeToString())


_SOURCE = "weights"  # the file beside what the quantizer reads
_INLINE = 1024  # bytes; the quantizer reads shapes in the graph alone


def _as_products(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    """Write Gemm, and 1 x 1 convolutions with channels last, as products with a matrix (in, out), which is all that is
    quantised; outputs keep their names. Returns by name the initializers that were added, which hold no values: each is
    the transpose of the one that is returned for it, (out, in).

    The quantizer does so with Gemm too, but in onnxruntime 1.20 it transposes a matrix again for each node that reads
    it.
    """
    held = {tensor.name: tensor for tensor in graph.initializer}
    turned: dict[str, TensorProto] = {}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        stated = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Gemm" and node.input[1] in held and stated.keys() <= {"transB"}:
            nodes += _product(node, held, turned, node.input[0], node.output[0], bool(stated.get("transB")))
        elif node.op_type == "Conv" and node.input[1] in held and _is_pointwise(held[node.input[1]], stated):
            (name,) = node.output
            nodes.append(helper.make_node("Transpose", node.input[:1], [f"{name}.last"], f"{name}.last", perm=_LAST))
            nodes += _product(node, held, turned, f"{name}.last", f"{name}.product", True)
            nodes.append(helper.make_node("Transpose", [f"{name}.product"], [name], name, perm=_FIRST))
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    kept = [tensor for name, tensor in held.items() if name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return turned


_LAST, _FIRST = [0, 2, 3, 1], [0, 3, 1, 2]  # where the channels go


def _is_pointwise(kernel: TensorProto, stated: Mapping[str, object]) -> bool:
    plain = {"group": 1, "strides": [1, 1], "pads": [0] * 4, "auto_pad": b"NOTSET"}
    return list(kernel.dims[2:]) == [1, 1] and all(stated.get(name, value) == value for name, value in plain.items())


def _product(
    node: onnx.NodeProto,
    held: dict[str, TensorProto],
    turned: dict[str, TensorProto],
    x: str,
    name: str,
    transposed: bool,
) -> Iterator[onnx.NodeProto]:
    """The nodes for x times the matrix of a node, plus its bias if it has one; adds the matrix (in, out) to the
    initializers, and what it is the transpose of to ``turned``.

    transposed: whether the node stores it as (out, in).
    """
    matrix, bias = node.input[1], node.input[2:]
    if transposed:
        stored, matrix = held[matrix], f"{matrix}.transposed"
        if matrix not in held:
            held[matrix] = TensorProto(name=matrix, data_type=stored.data_type, dims=[stored.dims[1], stored.dims[0]])
            turned[matrix] = stored
    made = f"{name}.unbiased" if bias else name
    yield helper.make_node("MatMul", [x, matrix], [made], made)
    if bias:
        yield helper.make_node("Add", [made, *bias], [name], name)
