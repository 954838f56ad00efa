"""The names of the ONNX graphs of a converted folder."""

from __future__ import annotations

GRAPH_SUFFIX = ".onnx"
TEXT_MODEL = "model.onnx"
DETECTOR_MODELS = ("vision.onnx", "text.onnx", "decode.onnx")
