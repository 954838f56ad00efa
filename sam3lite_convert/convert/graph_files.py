"""The names of the ONNX graphs of a converted folder."""

from __future__ import annotations

from typing import Literal, get_args

GRAPH_SUFFIX = ".onnx"
TEXT_MODEL = "model.onnx"
DETECTOR_MODELS = ("vision.onnx", "text.onnx", "decode.onnx")

Method = Literal["int8", "int8-all"]  # what of a graph is quantised: its products, or the token table too
METHODS: tuple[Method, ...] = get_args(Method)


def quantized_name(name: str, method: Method) -> str:
    """model.onnx and int8 -> model.int8.onnx."""
    return f"{name.removesuffix(GRAPH_SUFFIX)}.{method}{GRAPH_SUFFIX}"


# The name of each quantised graph -> that of the graph it is made of, and how.
QUANTIZED_MODELS: dict[str, tuple[str, Method]] = {
    quantized_name(name, method): (name, method) for name in (TEXT_MODEL, *DETECTOR_MODELS) for method in METHODS
}
