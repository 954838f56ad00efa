"""Graphs in converted folders, as export writes them."""

from __future__ import annotations

from pathlib import Path

import onnx

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
