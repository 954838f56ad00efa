"""Compares a graph with the one that this version writes: what differs in what it computes, node by node, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from sam3lite_convert.json_text import parse_json

_SHOWN = 8  # values, or names, that a sentence lists


@dataclass(frozen=True)
class GraphDifference:
    """One difference.

    name: of the node, the initializer, the input or the output; "" for what is said of the model.
    taps: those whose own part of the graph reads it, in order of execution; empty for what leads to none of them.
    words: what differs, with ``name``.
    keys: the folder's tensors that it is about.
    misplaced: whether it is about where the graph says that a tap is, and not about what it computes.
    """

    name: str
    taps: tuple[str, ...]
    words: str
    keys: tuple[str, ...] = ()
    misplaced: bool = False


def differences(given: onnx.ModelProto, own: onnx.ModelProto) -> tuple[GraphDifference, ...]:
    """All differences of what ``given`` computes from what ``own`` does, in order of execution; names of nodes,
    documentation, metadata, the order of nodes and declared types of values between are not compared.

    Nodes are told by the values that they make; where less than half of ours are there, one difference says that the
    graph is of another writer. No file is opened, and ``given`` may be malformed.

    own: as ``graphs_of`` makes it.
    """
    return tuple(_Comparison(given, own).all())


def stated_taps_differ(given: onnx.ModelProto, own: onnx.ModelProto) -> Iterator[GraphDifference]:
    """Taps that the metadata of ``given`` puts at other values than that of ``own`` does; none for a graph that states
    no taps."""
    there = taps_of(given)
    for tap, value in taps_of(own).items():
        if there.get(tap, value) != value:
            words = f"the metadata says that the tap {tap} is at {there[tap]}; ours is at {value}"
            yield GraphDifference(value, (tap,), words, misplaced=True)


def first_unlike(given: Message, own: Message) -> str | None:
    """Where two models first say something else, computed or not, as a path such as graph.input[0].doc_string; None
    if they would be written as the same bytes."""
    if given.SerializeToString(deterministic=True) == own.SerializeToString(deterministic=True):
        return None
    for field in own.DESCRIPTOR.fields:
        theirs, ours = getattr(given, field.name), getattr(own, field.name)
        repeated = isinstance(ours, Sequence) and not isinstance(ours, str | bytes)
        for n, (left, right) in enumerate(zip(theirs, ours, strict=False) if repeated else [(theirs, ours)]):
            name = f"{field.name}[{n}]" if repeated else str(field.name)
            if field.message_type is None:
                if left != right:
                    return name
            elif (inner := first_unlike(left, right)) is not None:
                return f"{name}.{inner}" if inner else name
        if repeated and len(theirs) != len(ours):
            return str(field.name)
        if not repeated and field.has_presence and given.HasField(field.name) != own.HasField(field.name):
            return str(field.name)
    return ""  # in a field that onnx does not know


def taps_of(model: onnx.ModelProto) -> dict[str, str]:
    """Tap -> value, as the metadata of a graph of ours states them; empty for other graphs."""
    said = next((entry.value for entry in model.metadata_props if entry.key == "taps"), "{}")
    try:
        found = parse_json(said)
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    return {str(tap): value for tap, value in found.items() if isinstance(value, str)}


class _Comparison:
    def __init__(self, given: onnx.ModelProto, own: onnx.ModelProto) -> None:
        self._given, self._own = given, own
        self._theirs = {value: node for node in given.graph.node for value in node.output if value}
        self._ours = {value: node for node in own.graph.node for value in node.output if value}
        self._held = {tensor.name: tensor for tensor in given.graph.initializer}
        self._wanted = {tensor.name: tensor for tensor in own.graph.initializer}
        self._keys = {name for name, tensor in self._wanted.items() if _outside(tensor)}
        self._at = {_begin(tensor): name for name, tensor in self._wanted.items() if _outside(tensor)}
        self._taps = _taps_by_value(own)

    def all(self) -> Iterator[GraphDifference]:
        shared = len(self._theirs.keys() & self._ours.keys())
        if 2 * shared < len(self._ours):
            writer = f"{self._given.producer_name} {self._given.producer_version}".strip() or "another writer"
            had = f"{shared:,} of the {len(self._ours):,} values that ours makes"
            yield GraphDifference("", (), f"the graph is one of {writer}, with {had}")
            return
        yield from self._of_the_model()
        yield from self._ends("input", self._given.graph.input, self._own.graph.input)
        yield from self._ends("output", self._given.graph.output, self._own.graph.output)
        told: set[str] = set()
        for node in self._own.graph.node:
            for name in node.input:
                if name in self._wanted and name not in told:
                    told.add(name)
                    yield from self._initializer(name)
            yield from self._node(node)
        for node in self._given.graph.node:
            if not any(value in self._ours for value in node.output):
                yield self._said(_made(node), f"the node {_made(node)} ({_call(node)}) is not in ours", node)
        for name in self._held:
            if name not in self._wanted:
                yield self._said(name, f"the initializer {name} is not in ours")

    def _said(self, name: str, words: str, *nodes: NodeProto) -> GraphDifference:
        """taps: of the value in our graph, or else of what reads or is read by the node."""
        around = [name, *(value for node in nodes for value in (*node.output, *node.input))]
        taps = next((self._taps[value] for value in around if value in self._taps), ())
        keys = dict.fromkeys(value for node in nodes for value in node.input if value in self._keys)
        if name in self._keys:
            keys[name] = None
        return GraphDifference(name, taps, words, tuple(keys))

    # ---- the model, its inputs and outputs

    def _of_the_model(self) -> Iterator[GraphDifference]:
        theirs, ours = (
            {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
            for model in (self._given, self._own)
        )
        if theirs != ours:
            said = [", ".join(f"{domain} {version}" for domain, version in kind.items()) for kind in (theirs, ours)]
            yield self._said("", f"operator sets: {said[0] or 'none'}, ours {said[1]}")
        for what in ("functions", "training_info"):
            if len(getattr(self._given, what)):
                yield self._said("", f"the model has {what.replace('_', ' ')}, ours has none")
        if len(self._given.graph.sparse_initializer):
            yield self._said("", "the graph has sparse initializers, ours has none")

    def _ends(
        self, what: str, theirs: Sequence[onnx.ValueInfoProto], ours: Sequence[onnx.ValueInfoProto]
    ) -> Iterator[GraphDifference]:
        found = {value.name: value for value in theirs}
        for value in ours:
            if value.name not in found:
                yield self._said(value.name, f"the {what} {value.name} is missing")
            elif _type(found[value.name]) != _type(value):
                said = f"the {what} {value.name} is {_type(found[value.name])}, ours {_type(value)}"
                yield self._said(value.name, said)
        wanted = [value.name for value in ours]
        for name in found:
            if name not in wanted:
                yield self._said(name, f"the {what} {name} is not in ours")
        kept = [name for name in found if name in wanted]
        if kept != [name for name in wanted if name in found]:
            yield self._said("", f"the {what}s stand in another order: {', '.join(kept)}")

    # ---- initializers

    def _initializer(self, name: str) -> Iterator[GraphDifference]:
        ours, theirs = self._wanted[name], self._held.get(name)
        if theirs is None:
            where = "is made by a node" if name in self._theirs else "is missing"
            yield self._said(name, f"the initializer {name} {where}")
            return
        said = list(self._of_tensors(theirs, ours))
        if said:
            yield self._said(name, f"the {'tensor' if name in self._keys else 'constant'} {name} {'; '.join(said)}")

    def _of_tensors(self, theirs: TensorProto, ours: TensorProto) -> Iterator[str]:
        kinds = [_kind(tensor) for tensor in (theirs, ours)]
        if kinds[0] != kinds[1]:
            yield f"is {kinds[0]}, ours {kinds[1]}"
        if _outside(ours) and _outside(theirs):
            there, here = _place(theirs), _place(ours)
            if there != here:
                other = self._at.get(_begin(theirs))
                whose = f", the place of {other}" if other else ""
                yield f"lies {_spot(there)}{whose}; ours {_spot(here)}"
        elif _outside(ours):
            yield f"has its values in the graph, and not {_spot(_place(ours))}"
        elif _outside(theirs):
            yield f"lies {_spot(_place(theirs))}, and ours in the graph"
        elif kinds[0] == kinds[1] and (said := _values_differ(theirs, ours)):
            yield said

    # ---- nodes

    def _node(self, ours: NodeProto) -> Iterator[GraphDifference]:
        made = _made(ours)
        theirs = self._theirs.get(made)
        if theirs is None:
            how = "is an initializer" if made in self._held else "is missing"
            yield self._said(made, f"the node {made} ({_call(ours)}) {how}", ours)
            return
        said = []
        if (theirs.op_type, _domain(theirs)) != (ours.op_type, _domain(ours)):
            said.append(f"is {theirs.op_type}, ours {ours.op_type}")
        said += self._inputs(theirs, ours)
        if list(theirs.output) != list(ours.output):
            said.append(f"makes {_listed(theirs.output)}, ours {_listed(ours.output)}")
        said += _attributes_differ(theirs, ours)
        if said:
            yield self._said(made, f"the node {made} ({ours.op_type}) {'; '.join(said)}", ours, theirs)

    def _inputs(self, theirs: NodeProto, ours: NodeProto) -> Iterator[str]:
        read, wanted = list(theirs.input), list(ours.input)
        if read == wanted:
            return
        if Counter(read) == Counter(wanted):
            yield f"reads its inputs in another order: {_listed(read)}, ours {_listed(wanted)}"
        elif len(read) != len(wanted):
            yield f"reads {_listed(read)}, ours {_listed(wanted)}"
        else:
            for there, here in zip(read, wanted, strict=True):
                if there != here:
                    yield f"reads {there or 'nothing'}, ours {here or 'nothing'}"


def _taps_by_value(own: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
    """Value of our graph -> the taps whose own part of it, back to the taps before, makes or reads the value."""
    taps = taps_of(own)
    makers = {value: node for node in own.graph.node for value in node.output}
    read_as: dict[str, dict[str, None]] = {}
    for tap, value in taps.items():
        seen, ahead = {value}, [value]
        while ahead:
            name = ahead.pop()
            read_as.setdefault(name, {})[tap] = None
            for before in makers[name].input if name in makers else ():
                if before not in seen and before not in taps.values():
                    seen.add(before)
                    ahead.append(before)
        for other in makers[value].output if value in makers else ():
            read_as.setdefault(other, {})[tap] = None
    return {value: tuple(found) for value, found in read_as.items()}


def _attributes_differ(theirs: NodeProto, ours: NodeProto) -> Iterator[str]:
    there, here = ({a.name: a for a in node.attribute} for node in (theirs, ours))
    for name in dict.fromkeys((*here, *there)):
        if name not in there:
            yield f"has no {name}, ours {_shown(here[name])}"
        elif name not in here:
            yield f"has {name} {_shown(there[name])}, ours has none"
        elif not _same(there[name], here[name]):
            yield f"has {name} {_shown(there[name])}, ours {_shown(here[name])}"


def _same(theirs: AttributeProto, ours: AttributeProto) -> bool:
    """Whether two attributes say the same, documentation apart."""
    bare: list[bytes] = []
    for attribute in (theirs, ours):
        copy = AttributeProto()
        copy.CopyFrom(attribute)
        copy.ClearField("doc_string")
        bare.append(copy.SerializeToString(deterministic=True))
    return bare[0] == bare[1]


def _shown(attribute: AttributeProto) -> str:
    """The value of an attribute, in short."""
    simple = {
        AttributeProto.FLOAT: lambda: f"{attribute.f:g}",
        AttributeProto.INT: lambda: str(attribute.i),
        AttributeProto.STRING: lambda: attribute.s.decode("utf-8", "replace"),
        AttributeProto.INTS: lambda: _listed(attribute.ints),
        AttributeProto.FLOATS: lambda: _listed(f"{value:g}" for value in attribute.floats),
        AttributeProto.TENSOR: lambda: f"a tensor, {_kind(attribute.t)}",
    }.get(attribute.type)
    return simple() if simple else "something else"


def _values_differ(theirs: TensorProto, ours: TensorProto) -> str | None:
    """How two constants of one kind differ, both in the graph."""
    if theirs.raw_data == ours.raw_data and theirs.HasField("raw_data"):
        return None
    right = numpy_helper.to_array(ours)
    try:
        left = numpy_helper.to_array(theirs)
    except Exception:  # of an untrusted tensor: whatever onnx and numpy raise for it
        return "holds other values than its shape says"
    if left.shape != right.shape or left.dtype != right.dtype:
        return "holds other values than its shape says"
    off = left.tobytes() != right.tobytes()
    if not off:
        return None
    if left.size == 1:
        return f"is {left.reshape(())[()]:g}, ours {right.reshape(())[()]:g}"
    unlike = (left != right) & ~((left != left) & (right != right))
    many = int(unlike.sum())
    if not many:
        return "differs in bits alone (zeros of the other sign, or NaN)"
    first = tuple(int(i) for i in np.argwhere(unlike)[0])
    return (
        f"differs in {many:,} of {left.size:,} values, first at {list(first)}: {left[first]:g}, ours {right[first]:g}"
    )


def _type(value: onnx.ValueInfoProto) -> str:
    """The type of an input or output, in words."""
    if not value.type.HasField("tensor_type"):
        return "no tensor"
    kind = value.type.tensor_type
    dims = [str(d.dim_param or d.dim_value) for d in kind.shape.dim]
    return f"{_dtype(kind.elem_type)} ({', '.join(dims)})" if kind.HasField("shape") else _dtype(kind.elem_type)


def _kind(tensor: TensorProto) -> str:
    return f"{_dtype(tensor.data_type)} ({', '.join(map(str, tensor.dims))})"


def _dtype(number: int) -> str:
    try:
        return helper.tensor_dtype_to_np_dtype(number).name
    except (KeyError, ValueError, TypeError):
        return f"type {number}"


def _outside(tensor: TensorProto) -> bool:
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def _place(tensor: TensorProto) -> Mapping[str, str]:
    """Where a tensor lies outside the graph."""
    return {entry.key: entry.value for entry in tensor.external_data}


def _begin(tensor: TensorProto) -> tuple[str | None, str | None]:
    place = _place(tensor)
    return place.get("location"), place.get("offset")


def _spot(place: Mapping[str, str]) -> str:
    rest = [f"{key} {value}" for key, value in place.items() if key != "location"]
    return f"in {place.get('location', 'no file')} at {', '.join(rest) or 'its start'}"


def _made(node: NodeProto) -> str:
    """The value that a node is told by."""
    return next(iter(node.output), node.name)


def _domain(node: NodeProto) -> str:
    return "" if node.domain == "ai.onnx" else node.domain


def _call(node: NodeProto) -> str:
    return f"{node.op_type} of {_listed(node.input)}"


def _listed(values: Iterable[object]) -> str:
    said = [str(value) or "nothing" for value in values]
    more = f" and {len(said) - _SHOWN} more" if len(said) > _SHOWN else ""
    return ", ".join(said[:_SHOWN]) + more if said else "nothing"
