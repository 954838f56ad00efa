"""Reads a graph that anybody may have written, and refuses what a runtime should not be given."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from sam3lite_convert.checkpoint.file_set import is_inside
from sam3lite_convert.errors import CannotRun, Sam3LiteError, Untrusted, in_short
from sam3lite_convert.figures import human_bytes
from sam3lite_convert.opened import check_regular, read_small

LIMIT = 64 << 20  # bytes of a graph without its weights; an exported detector with its constants takes 23 MB
_LARGEST = (2 << 30) - 1  # bytes of a graph with its weights in it: what protobuf reads
_ENTRIES = 1 << 20  # of all messages; each may take a hundred times its two bytes in memory
_DEPTH, _SUBGRAPHS = 40, 4  # of messages, of graphs inside graphs
_OLDEST_IR, _OLDEST_OPSET = 3, 7
_STANDARD = ("", "ai.onnx")
_BITS: dict[int, int] = {
    TensorProto.FLOAT: 32, TensorProto.DOUBLE: 64, TensorProto.FLOAT16: 16, TensorProto.BFLOAT16: 16,
    TensorProto.INT8: 8, TensorProto.UINT8: 8, TensorProto.INT16: 16, TensorProto.UINT16: 16, TensorProto.INT32: 32,
    TensorProto.UINT32: 32, TensorProto.INT64: 64, TensorProto.UINT64: 64, TensorProto.BOOL: 8, TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
}  # fmt: skip
_SPARSE = "it holds sparse tensors, which are not read"
_LISTS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


@dataclass(frozen=True)
class ExternalPlace:
    """Where the bytes of a tensor lie. file: its name in the graph's folder. offset, length: in bytes."""

    file: str
    offset: int
    length: int


def read_graph(path: Path, folder: Path | None, limit: int = LIMIT) -> ModelProto:
    """Read a graph whose weights lie in a folder; the weights themselves are not read.

    folder: None to read what the graph says alone, without a look at its weights: not to be run.
    limit: of the file's size, in bytes.

    Raises CannotRun if the file cannot be opened; Untrusted if it is no ONNX model, or too large, or if it is not safe
    to run: weights outside of the folder or of their file, values that are not made before they are read, operators of
    other domains, graphs nested too deep, or a version that the installed onnx does not know.
    """
    model, _ = read_with_hash(path, limit)
    if folder is not None:
        check_places(model, folder, path.name)
    return model


def read_with_hash(path: Path, limit: int = LIMIT) -> tuple[ModelProto, str]:
    """What ``read_graph`` reads without a folder, and the SHA-256 of the very bytes that it was read from."""
    model, data = _parsed(path, limit)
    _check_versions(model, path.name)
    _check_graph(model.graph, path.name, frozenset(), 0)
    return model, hashlib.sha256(data).hexdigest()


def producer_of(path: Path) -> str | None:
    """What a graph says that wrote it, whatever else it holds; None if it cannot be read."""
    try:
        model, _ = _parsed(path, _LARGEST)
    except Sam3LiteError:
        return None
    return str(model.producer_name)


def stored_values(tensor: TensorProto, folder: Path) -> np.ndarray:
    """The values of an initializer of a graph that ``read_graph`` gave, mapped if they lie in the folder."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    place, dtype = place_of(tensor), helper.tensor_dtype_to_np_dtype(tensor.data_type)
    check_regular(folder / place.file)
    return np.memmap(folder / place.file, dtype, "r", place.offset, tuple(tensor.dims))


def _parsed(path: Path, limit: int) -> tuple[ModelProto, bytes]:
    where = path.name
    try:
        data = read_small(path, limit)
    except CannotRun as fault:
        if fault.code != "too_large":
            raise
        raise _refused(where, f"it is larger than {human_bytes(limit)}, without its weights") from None
    _check_entries(data, where)
    try:
        model: ModelProto = ModelProto.FromString(data)
    except (DecodeError, RecursionError, ValueError) as fault:
        raise _refused(where, f"it is not an ONNX model ({in_short(fault)})") from None
    return model, data


def check_places(model: ModelProto, folder: Path, where: str) -> None:
    """Raises Untrusted if a tensor's bytes are not all there, in the graph or in the folder. ``where``: the graph's
    name."""
    of_nodes = _tensors_of_nodes(model.graph)
    for tensor in (*model.graph.initializer, *of_nodes):
        _check_tensor(tensor, folder, where)
    # A runtime that was given the rest looks for these where it was started.
    if placed := [tensor.name[:80] for tensor in of_nodes if tensor.data_location == TensorProto.EXTERNAL]:
        raise _refused(where, f"{placed[0]!r}, a tensor inside a node, lies in a file")


def place_of(tensor: TensorProto) -> ExternalPlace:
    """Where an initializer of a graph that ``read_graph`` gave has its bytes; ValueError if they are in the graph."""
    if tensor.data_location != TensorProto.EXTERNAL:
        raise ValueError(f"{tensor.name} lies in the graph")
    stated = {entry.key: entry.value for entry in tensor.external_data}
    return ExternalPlace(stated["location"], int(stated.get("offset", 0)), int(stated.get("length", _nbytes(tensor))))


def metadata_of(model: ModelProto) -> dict[str, str]:
    """What a graph says of itself."""
    return {entry.key: entry.value for entry in model.metadata_props}


def _refused(where: str, why: str) -> Untrusted:
    return Untrusted(f"{where} is refused: {why}", "bad_graph")


# ---- the file, before an object is made of it


def _check_entries(data: bytes, where: str) -> None:
    """Raises Untrusted if the file holds more entries, or deeper ones, than a graph needs (parsed, 64 MB of empty ones
    would take 5 GB), or text that is not UTF-8."""
    left = _ENTRIES
    kinds: dict[Any, dict[int, tuple[Any, bool]]] = {}
    ahead: list[tuple[int, int, Any, int]] = [(0, len(data), ModelProto.DESCRIPTOR, 0)]
    while ahead:
        at, end, kind, depth = ahead.pop()
        if kind not in kinds:
            kinds[kind] = {f.number: (f.message_type, f.type == f.TYPE_STRING) for f in kind.fields if not _is_bytes(f)}
        fields = kinds[kind]
        while at < end:
            tag, at = _varint(data, at, end, where)
            wire = tag & 7
            if wire == 0:
                _, at = _varint(data, at, end, where)
            elif wire in (1, 5):
                at += 8 if wire == 1 else 4
            elif wire == 2:
                size, at = _varint(data, at, end, where)
                message, text = fields.get(tag >> 3, (None, True))
                if at + size > end:
                    raise _refused(where, "it is not an ONNX model, or is truncated")
                if message is not None:
                    if depth >= _DEPTH:
                        raise _refused(where, f"its entries are nested deeper than {_DEPTH}")
                    ahead.append((at, at + size, message, depth + 1))
                elif not text:
                    left -= size  # numbers in a row: eight bytes in memory for each of at least one
                elif tag >> 3 in fields and not _is_text(data[at : at + size]):
                    raise _refused(where, "it is not an ONNX model: it holds text that is not UTF-8")
                at += size
            else:
                raise _refused(where, "it is not an ONNX model")
            left -= 1
            if left < 0:
                raise _refused(where, f"it holds more than {_ENTRIES:,} entries")


def _is_bytes(field: Any) -> bool:
    return bool(field.type == field.TYPE_BYTES)


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _varint(data: bytes, at: int, end: int, where: str) -> tuple[int, int]:
    """A number of the file, and the position after it."""
    if at < end and data[at] < 128:
        return data[at], at + 1
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
    raise _refused(where, "it is not an ONNX model, or is truncated")


# ---- the model


def _check_versions(model: ModelProto, where: str) -> None:
    if not model.HasField("graph") or not model.graph.node:
        raise _refused(where, "it holds no graph")
    if model.functions or model.training_info:
        raise _refused(where, "it defines functions or training of its own, which are not read")
    newest = onnx.IR_VERSION
    if not _OLDEST_IR <= model.ir_version <= newest:
        raise _refused(where, f"its IR version is {model.ir_version}; {_OLDEST_IR} to {newest} are read here")
    opsets = [entry.version for entry in model.opset_import if entry.domain in _STANDARD]
    known = onnx.defs.onnx_opset_version()
    if len(opsets) != 1 or not _OLDEST_OPSET <= opsets[0] <= known:
        said = ", ".join(map(str, opsets)) or "none"
        raise _refused(where, f"its opset is {said}; one of {_OLDEST_OPSET} to {known} is read here")


def _check_graph(graph: GraphProto, where: str, outer: frozenset[str], depth: int) -> None:
    """Raises Untrusted if a value is read before it is made, made twice, or made by what is not a standard operator."""
    if depth > _SUBGRAPHS:
        raise _refused(where, f"graphs are nested deeper than {_SUBGRAPHS}")
    if graph.sparse_initializer:
        raise _refused(where, _SPARSE)
    made: set[str] = set()
    initializers = [tensor.name for tensor in graph.initializer]
    for name in dict.fromkeys(value.name for value in graph.input):
        _make(made, [name], where)
    twice = len(initializers) - len(set(initializers))
    if twice or "" in initializers:
        raise _refused(where, "two of its initializers have one name, or one has none")
    made.update(initializers)  # one that is an input too is that input's default
    for node in graph.node:
        if node.domain not in _STANDARD:
            raise _refused(where, f"{node.name or node.op_type} is an operator of {node.domain[:80]!r}, not of ONNX")
        for name in node.input:
            if name and name not in made and name not in outer:
                raise _refused(
                    where,
                    f"{node.name or node.op_type} reads {name[:80]!r}, which no node before it makes: the graph has a "
                    "cycle, or is not in order",
                )
        if any(attribute.HasField("sparse_tensor") or attribute.sparse_tensors for attribute in node.attribute):
            raise _refused(where, _SPARSE)
        for inner in _subgraphs(node):
            _check_graph(inner, where, outer | made, depth + 1)
        _make(made, [name for name in node.output if name], where)
    if lost := [value.name for value in graph.output if value.name not in made and value.name not in outer]:
        raise _refused(where, f"nothing makes its output {lost[0][:80]!r}")


def _make(made: set[str], names: Iterable[str], where: str) -> None:
    for name in names:
        if name in made:
            raise _refused(where, f"{name[:80]!r} is made twice")
        made.add(name)


def _subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _tensors_of_nodes(graph: GraphProto) -> list[TensorProto]:
    """The tensors in attributes of nodes, and those of the graphs inside them."""
    found: list[TensorProto] = []
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                found.append(attribute.t)
            found += attribute.tensors
        for inner in _subgraphs(node):
            found += [*inner.initializer, *_tensors_of_nodes(inner)]
    return found


# ---- tensors


def _nbytes(tensor: TensorProto) -> int:
    count: int = math.prod(tensor.dims)
    return (count * _BITS[tensor.data_type] + 7) // 8


def _check_tensor(tensor: TensorProto, folder: Path, where: str) -> None:
    """Raises Untrusted if a tensor's bytes are not all there, or lie where they may not."""
    name = f"{tensor.name[:200] or 'a constant'}"
    if any(dim < 0 for dim in tensor.dims):
        raise _refused(where, f"{name} has the shape {list(tensor.dims)}")
    if tensor.data_location == TensorProto.EXTERNAL:
        _check_place(tensor, name, folder, where)
    elif tensor.external_data:
        raise _refused(where, f"{name} says that its values are in the graph and also in a file")
    elif tensor.HasField("raw_data"):
        if tensor.data_type not in _BITS or len(tensor.raw_data) != _nbytes(tensor):
            raise _refused(where, f"{name} holds {len(tensor.raw_data)} bytes, and its shape is {list(tensor.dims)}")
    else:
        held, count = max(len(getattr(tensor, each)) for each in _LISTS), math.prod(tensor.dims)
        if tensor.data_type in _BITS and _BITS[tensor.data_type] < 8:
            count = (count + 1) // 2
        if held != count:
            raise _refused(where, f"{name} holds {held} values, and its shape is {list(tensor.dims)}")


def _check_place(tensor: TensorProto, name: str, folder: Path, where: str) -> None:
    stated: dict[str, str] = {}
    for entry in tensor.external_data:
        if entry.key in stated or entry.key not in ("location", "offset", "length", "checksum"):
            raise _refused(where, f"{name} states {entry.key[:80]!r} of its place, twice or without a meaning")
        stated[entry.key] = entry.value
    if tensor.data_type not in _BITS:
        raise _refused(where, f"{name} is of a type that no file holds")
    if tensor.HasField("raw_data") or any(len(getattr(tensor, each)) for each in _LISTS):
        raise _refused(where, f"{name} says that its values are in a file and also in the graph")
    file = stated.get("location", "")
    if not file or file in (".", "..") or any(c in file for c in "/\\:\0"):
        raise _refused(where, f"{name} lies in {file[:200]!r}, which is not the name of a file of this folder")
    if not (folder / file).is_file():
        raise _refused(where, f"{name} lies in {file[:200]}, which is not in this folder")
    if not is_inside(folder, file):
        raise _refused(where, f"{name} lies in {file[:200]}, a link to a file outside of the folder")
    size, needed = (folder / file).stat().st_size, _nbytes(tensor)
    for key in ("offset", "length"):
        said = stated.get(key, "0")
        if not (said.isascii() and said.isdecimal() and len(said) < 20):
            raise _refused(where, f"{name} has the {key} {said[:80]!r}")
    place = place_of(tensor)
    if place.length != needed:
        raise _refused(
            where, f"{name} takes {place.length:,} bytes of {file}, and its shape {list(tensor.dims)} {needed:,}"
        )
    if place.offset + place.length > size:
        raise _refused(where, f"{name} lies at {place.offset:,} of {file}, which has {size:,} bytes")
