"""Builds one ONNX graph: nodes in order of execution, weights by their place in a file, small constants inline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from sam3lite_convert import __version__
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.graph.weights import StoredWeight, Weights

# Opset 20 has Gelu and LayerNormalization, and every released runtime reads IR 10. Opset 23's Attention would need
# runtimes that have no RoiAlign.
OPSET, IR = 20, 10
PRODUCER = "sam3lite-convert"
FloatName = Literal["float32", "float16"]
_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
}
_INLINE_LIMIT = 1 << 16  # bytes: what is larger is a weight, and belongs to the folder's files
Dim = int | str


class GraphBuilder:
    """One graph in the making. A value is known by its name, which is that of the node that makes it.

    weights: of the folder. dtype: of all floating-point values.
    """

    def __init__(self, weights: Weights, dtype: FloatName) -> None:
        self.weights = weights
        self.dtype = dtype
        self.taps: dict[str, str] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._shapes: dict[str, tuple[Dim, ...]] = {}

    # ---- values ---------------------------------------------------------------------

    def input(self, name: str, dtype: str, shape: Sequence[Dim], doc: str) -> str:
        """An input of the graph. ``shape``: a dimension that is a word is free."""
        self._inputs.append(helper.make_tensor_value_info(name, _TYPES[dtype], list(shape), doc))
        return name

    def output(self, name: str, dtype: str, shape: Sequence[Dim], doc: str) -> None:
        """Make a value an output of the graph."""
        self._outputs.append(helper.make_tensor_value_info(name, _TYPES[dtype], list(shape), doc))

    def tap(self, tap: str, value: str, shape: Sequence[Dim]) -> str:
        """Say that a value is this tap, which parity compares and at which the graph can be cut; returns the value."""
        self.taps[tap] = value
        self._shapes[value] = tuple(shape)
        return value

    def constant(self, name: str, values: NDArray[Any]) -> str:
        """A small constant, written into the graph; one of the same name has to have the same values.

        Raises ValueError if it is large.
        """
        if values.nbytes > _INLINE_LIMIT:
            raise ValueError(f"{name}: {values.nbytes} bytes are too many for a constant in the graph")
        made = numpy_helper.from_array(values, name)
        if self._initializers.setdefault(name, made) != made:
            raise ValueError(f"{name}: two constants of one name")
        return name

    def ints(self, *values: int) -> str:
        """A list of integers, as Reshape and Slice read them."""
        return self.constant("i" + "_".join(map(str, values)), np.array(values, np.int64))

    def number(self, value: int) -> str:
        """One integer, as Range and Gather read it."""
        return self.constant(f"n{value}", np.array(value, np.int64))

    def floats(self, values: NDArray[Any] | Sequence[float] | float, name: str) -> str:
        """A constant in the dtype of the graph."""
        return self.constant(name, np.asarray(values, np.float64).astype(self.dtype))

    def weight(self, stored: StoredWeight) -> str:
        """A tensor of the folder, by its place in the file; its name is the key, with the shape where it is a part.

        Raises CannotRun if it has another dtype than the graph.
        """
        if stored.dtype != self.dtype:
            raise CannotRun(
                f"{stored.key} is {stored.dtype} in a folder of {self.dtype}: a graph needs one dtype for all; convert "
                "with --dtype float32 or --dtype float16",
                "unsupported_dtype",
            )
        tensor = TensorProto(name=stored.key, data_type=_TYPES[stored.dtype], dims=stored.shape)
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": stored.file, "offset": stored.offset, "length": stored.nbytes}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        if self._initializers.setdefault(stored.key, tensor) != tensor:
            raise ValueError(f"{stored.key} is read in two shapes")
        return stored.key

    # ---- nodes ----------------------------------------------------------------------

    @overload
    def node(self, op: str, name: str, *inputs: str, **attributes: Any) -> str: ...

    @overload
    def node(self, op: str, name: Sequence[str], *inputs: str, **attributes: Any) -> Sequence[str]: ...

    def node(self, op: str, name: str | Sequence[str], *inputs: str, **attributes: Any) -> str | Sequence[str]:
        """Add a node; its output has its name. ``name``: several for a node with several outputs."""
        names = [name] if isinstance(name, str) else list(name)
        self._nodes.append(helper.make_node(op, list(inputs), names, names[0], **attributes))
        return name

    def linear(self, name: str, x: str, weight: str, bias: str | None = None) -> str:
        """x times a matrix of the original's, plus a bias. ``x``: (rows, width).

        weight: the original's name of a matrix (out, in). bias: of its bias, by default beside it.
        """
        beside = weight.removesuffix("weight") + "bias" if bias is None else bias
        return self.gemm(name, x, self.weights.one(weight), self.weights.one(beside))

    def gemm(self, name: str, x: str, matrix: StoredWeight, bias: StoredWeight | None = None) -> str:
        """x times the transpose of a stored matrix (out, in), plus a bias. ``x``: (rows, width)."""
        read = [x, self.weight(matrix)] + ([self.weight(bias)] if bias else [])
        return self.node("Gemm", name, *read, transB=1)

    def cast(self, name: str, x: str, dtype: str) -> str:
        """x in another dtype."""
        return self.node("Cast", name, x, to=_TYPES[dtype])

    def widened(self, name: str, x: str) -> str:
        """A value of the graph's dtype as float32: itself if it is."""
        return x if self.dtype == "float32" else self.cast(name, x, "float32")

    def narrowed(self, name: str, x: str) -> str:
        """A float32 value in the graph's dtype: itself if it is."""
        return x if self.dtype == "float32" else self.cast(name, x, self.dtype)

    def softmax(self, name: str, x: str) -> str:
        """Softmax over the last axis, computed in float32 whatever the dtype of the graph, as the original does."""
        if self.dtype == "float32":
            return self.node("Softmax", name, x, axis=-1)
        wide = self.node("Softmax", f"{name}.float32", self.widened(f"{name}.wide", x), axis=-1)
        return self.narrowed(name, wide)

    def qkv(self, name: str, x: str, weight: str) -> tuple[str, str, str]:
        """Queries, keys and values of x, whether the folder holds their matrix as one or as three: (rows, width) each.

        weight: the original's name of the matrix (3 * width, width), whose bias is beside it.
        """
        bias = weight.removesuffix("weight") + "bias"
        matrices, biases = self.weights.parts(weight), self.weights.parts(bias)
        q, k, v = names = (f"{name}.q", f"{name}.k", f"{name}.v")
        if len(matrices) == 1:
            self.node("Split", names, self.gemm(f"{name}.qkv", x, matrices[0], biases[0]), axis=1, num_outputs=3)
        else:
            for part, matrix, own in zip(names, matrices, biases, strict=True):
                self.gemm(part, x, matrix, own)
        return q, k, v

    def conv(self, name: str, x: str, prefix: str, op: str = "Conv", **attributes: Any) -> str:
        """A convolution with a bias. ``prefix``: of the original's weight and bias, with its dot."""
        kernel, bias = (self.weight(self.weights.one(prefix + part)) for part in ("weight", "bias"))
        return self.node(op, name, x, kernel, bias, **attributes)

    def layer_norm(self, name: str, x: str, prefix: str, eps: float) -> str:
        """LayerNorm over the last axis. ``prefix``: of the original's weight and bias, with its dot."""
        scale, bias = (self.weight(self.weights.one(prefix + part)) for part in ("weight", "bias"))
        return self.node("LayerNormalization", name, x, scale, bias, axis=-1, epsilon=eps)

    def reshape(self, name: str, x: str, *shape: int) -> str:
        """x in another shape; -1 is what is left."""
        return self.node("Reshape", name, x, self.ints(*shape))

    def heads(self, name: str, x: str, tokens: int, heads: int, width: int, transposed: bool = False) -> str:
        """(rows, width) as (batch, heads, tokens, head width), or with the last two exchanged."""
        split = self.reshape(f"{name}.heads", x, -1, tokens, heads, width // heads)
        perm = [0, 2, 3, 1] if transposed else [0, 2, 1, 3]
        return self.node("Transpose", f"{name}.t", split, perm=perm)

    # ---- the result -----------------------------------------------------------------

    def model(self, name: str, doc: str, metadata: Mapping[str, str], taps: bool = False) -> onnx.ModelProto:
        """The whole model. The same folder and options give the same bytes.

        metadata: further entries. taps: make every tap an output.
        """
        there = {value.name for value in self._outputs}
        more = {value: shape for value, shape in self._shapes.items() if taps and value not in there}
        extra = [helper.make_tensor_value_info(value, _TYPES[self.dtype], list(s)) for value, s in more.items()]
        graph = helper.make_graph(
            self._nodes, name, self._inputs, [*self._outputs, *extra], list(self._initializers.values()), doc
        )
        # Where the graph may be cut, its readers know the type of what is put there.
        outputs = {value.name for value in graph.output}
        graph.value_info.extend(
            helper.make_tensor_value_info(value, _TYPES[self.dtype], list(shape))
            for value, shape in self._shapes.items()
            if value not in outputs
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR,
            producer_name=PRODUCER,
            producer_version=__version__,
            doc_string=doc,
        )
        helper.set_model_props(model, dict(metadata))
        return model
