"""Graphs in converted folders, as export writes them."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
from onnx import helper

from sam3lite_convert.convert.folder import read_folder
from sam3lite_convert.graph.folder_graphs import TEXT_MODEL, graphs_of, layout_of, serialized
from sam3lite_convert.plan.tables import load_mappings


def text_graph(folder: Path, taps: bool = False) -> onnx.ModelProto:
    """The graph of a folder's text encoder."""
    found = read_folder(folder)
    return graphs_of(found, layout_of(found.receipt or {}, load_mappings()), "text", {}, taps)[TEXT_MODEL]


def put(folder: Path, model: onnx.ModelProto | None = None) -> Path:
    """Write a graph into a folder, by default its own; returns the folder."""
    (folder / TEXT_MODEL).write_bytes(serialized(text_graph(folder) if model is None else model))
    return folder


def of_weights(model: onnx.ModelProto, digest: str) -> onnx.ModelProto:
    """The graph, now stating that it belongs to a model.safetensors of this SHA-256."""
    said = {entry.key: entry.value for entry in model.metadata_props}
    helper.set_model_props(model, {**said, "weights": json.dumps({"model.safetensors": digest})})
    return model
