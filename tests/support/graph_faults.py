"""Faults that are put into graphs of ours, one at a time: what a port, or whoever edits a graph, gets wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


@dataclass(frozen=True)
class GraphFault:
    """A fault. words: it in a sentence. tap: where it has to be found. named: the node or initializer that a comparison
    with the right graph has to name. make: puts it into a graph. cause: key of the hypothesis that explains it, if the
    diagnosis knows the fault."""

    words: str
    tap: str
    named: str
    make: Callable[[onnx.ModelProto], None]
    cause: str = ""

    def put_into(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """A copy of the graph with the fault."""
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        self.make(copy)
        return copy


# ---- ways to change a graph


def maker(model: onnx.ModelProto, value: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if value in node.output)


def initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def set_attribute(value: str, **attributes: Any) -> Callable[[onnx.ModelProto], None]:
    """Give the node that makes a value other attributes."""

    def make(model: onnx.ModelProto) -> None:
        node = maker(model, value)
        kept = [a for a in node.attribute if a.name not in attributes]
        del node.attribute[:]
        node.attribute.extend([*kept, *(helper.make_attribute(k, v) for k, v in attributes.items())])

    return make


def together(*changes: Callable[[onnx.ModelProto], None]) -> Callable[[onnx.ModelProto], None]:
    """Make several changes."""

    def make(model: onnx.ModelProto) -> None:
        for change in changes:
            change(model)

    return make


def become(value: str, op: str) -> Callable[[onnx.ModelProto], None]:
    """Let another operator make a value."""
    return lambda model: setattr(maker(model, value), "op_type", op)


def bypass(value: str, through: int = 0) -> Callable[[onnx.ModelProto], None]:
    """Take the node of a value out: its readers get its input."""

    def make(model: onnx.ModelProto) -> None:
        node = maker(model, value)
        before = node.input[through]
        for other in model.graph.node:
            other.input[:] = [before if name == value else name for name in other.input]
        model.graph.node.remove(node)

    return make


def skip(value: str, through: int = 0) -> Callable[[onnx.ModelProto], None]:
    """Let the node of a value pass on one of its inputs; for a value that has to keep its name."""

    def make(model: onnx.ModelProto) -> None:
        node = maker(model, value)
        kept = node.input[through]
        node.op_type = "Identity"
        node.input[:] = [kept]
        del node.attribute[:]

    return make


def exchange(first: str, second: str, place: int = 0) -> Callable[[onnx.ModelProto], None]:
    """Exchange one input of the nodes that make two values."""

    def make(model: onnx.ModelProto) -> None:
        one, other = maker(model, first), maker(model, second)
        one.input[place], other.input[place] = other.input[place], one.input[place]

    return make


def turn(value: str) -> Callable[[onnx.ModelProto], None]:
    """Let a Gemm read its matrix the other way."""

    def make(model: onnx.ModelProto) -> None:
        was = {a.name: a.i for a in maker(model, value).attribute}.get("transB", 0)
        set_attribute(value, transB=1 - was)(model)

    return make


def drop_input(value: str) -> Callable[[onnx.ModelProto], None]:
    """Take the last input of a value's node away, such as a bias."""

    def make(model: onnx.ModelProto) -> None:
        del maker(model, value).input[-1]

    return make


def read_instead(name: str, other: str) -> Callable[[onnx.ModelProto], None]:
    """Let an initializer lie where another one of its size lies."""

    def make(model: onnx.ModelProto) -> None:
        place = initializer(model, other).external_data
        tensor = initializer(model, name)
        del tensor.external_data[:]
        tensor.external_data.extend(place)

    return make


def after(value: str, op: str, *more: tuple[str, np.ndarray], **attributes: Any) -> Callable[[onnx.ModelProto], None]:
    """Put a node behind a value, so that all that read the value read what it makes. more: constants that it reads."""
    made = f"{value}.more"

    def make(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.input[:] = [made if name == value else name for name in node.input]
        names = [name for name, _ in more]
        model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in more)
        at = next((n for n, node in enumerate(model.graph.node) if value in node.output), -1)
        model.graph.node.insert(at + 1, helper.make_node(op, [value, *names], [made], made, **attributes))

    return make


# ---- faults of the text encoder


def text_faults(model: onnx.ModelProto, tokens: int) -> Iterator[GraphFault]:
    """Faults for a graph of a text encoder, of the kinds that its layers can have. tokens: of its context."""
    taps = json.loads(next(entry.value for entry in model.metadata_props if entry.key == "taps"))
    values = {value for node in model.graph.node for value in node.output}
    layers = [tap for tap in taps if tap.startswith("layers.")]
    attention = [layer for layer in layers if f"{layer}.scores" in values]
    mixing = [layer for layer in layers if layer not in attention]
    table = maker(model, "embeddings").input[1]
    around = np.roll(np.arange(tokens), -1)
    yield GraphFault(
        "position rows are one off",
        "embeddings",
        "embeddings",
        after(table, "Gather", ("around", around), axis=0),
        "positions_shifted:+1",
    )
    for at in mixing[-1:]:
        yield GraphFault("BatchNorm at eps 1e-3", at, f"{at}.conv_norm", set_attribute(f"{at}.conv_norm", epsilon=1e-3))
        yield GraphFault(
            "the mixer's layer_scale is missing",
            at,
            f"{at}.mixer_scaled",
            skip(f"{at}.mixer_scaled", 1),
            "no_layer_scale:token_mixer.layer_scale",
        )
        yield GraphFault(
            "layer_scale is missing",
            at,
            f"{at}.ffn_scaled",
            bypass(f"{at}.ffn_scaled", 1),
            "no_layer_scale:layer_scale",
        )
        yield GraphFault(
            "GELU is the tanh approximation",
            at,
            f"{at}.gelu",
            set_attribute(f"{at}.gelu", approximate="tanh"),
            "gelu_tanh",
        )
    for at in attention[len(attention) // 2 :][:1]:
        yield GraphFault(
            "q and k are swapped", at, f"{at}.q.heads", exchange(f"{at}.q.heads", f"{at}.k.heads"), "qkv_order:kqv"
        )
        yield GraphFault(
            "k and v are swapped", at, f"{at}.k.heads", exchange(f"{at}.k.heads", f"{at}.v.heads"), "qkv_order:qvk"
        )
        yield GraphFault(
            "the scale of attention is missing", at, f"{at}.scaled", bypass(f"{at}.scaled"), "no_query_scale"
        )
        yield GraphFault(
            "LayerNorm at eps 1e-6",
            at,
            f"{at}.norm1",
            together(set_attribute(f"{at}.norm1", epsilon=1e-6), set_attribute(f"{at}.norm2", epsilon=1e-6)),
            "layernorm_eps_1e-06",
        )
        yield GraphFault(
            "GELU is the tanh approximation",
            at,
            f"{at}.gelu",
            set_attribute(f"{at}.gelu", approximate="tanh"),
            "gelu_tanh",
        )
        yield GraphFault("a norm is skipped", at, f"{at}.norm2", bypass(f"{at}.norm2"))
        yield GraphFault("a bias is missing", at, f"{at}.fc2", drop_input(f"{at}.fc2"))
        yield GraphFault(
            "the output projection is transposed", at, f"{at}.out", turn(f"{at}.out"), "transposed:out_proj"
        )
        yield GraphFault(
            "the residual around attention is missing",
            at,
            f"{at}.attended",
            skip(f"{at}.attended", 1),
            "no_attention_residual",
        )
        yield GraphFault("softmax over the wrong axis", at, f"{at}.softmax", set_attribute(f"{at}.softmax", axis=-2))
        if f"{at}.masked" in values:
            yield GraphFault("the causal mask is missing", at, f"{at}.masked", bypass(f"{at}.masked"), "not_causal")
        else:
            half = model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
            ahead = np.triu(np.full((tokens, tokens), -np.inf, "float16" if half else "float32"), 1)
            made = after(f"{at}.scores", "Add", ("ahead", ahead))
            yield GraphFault("a causal mask is added", at, f"{at}.softmax", made)
        others = [layer for layer in attention if layer != at]
        for other in others[:1]:
            mine, theirs = (maker(model, f"{layer}.fc1").input[1] for layer in (at, other))
            yield GraphFault(f"fc1 lies where that of {other} does", at, mine, read_instead(mine, theirs))
    final = "final_layer_norm"
    yield GraphFault("the final norm is skipped", final, final, skip(final))
    yield GraphFault(
        "the projector's bias is missing", "projected", "projected", drop_input("projected"), "no_bias:bias"
    )
    rows, columns = initializer(model, maker(model, "pooled").input[1]).dims
    if rows == columns:  # else no runtime takes it
        yield GraphFault(
            "the pooled projection is transposed", "pooled", "pooled", turn("pooled"), "projection_untransposed"
        )
    yield GraphFault("the wrong token is picked", "pooled", "pooled.at", become("pooled.at", "ArgMin"))
