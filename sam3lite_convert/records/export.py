"""What ``export`` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sam3lite_convert.records.record import Document, Record


@dataclass(frozen=True, kw_only=True)
class GraphValue(Record):
    """An input or output of a graph. shape: a dimension that is a word is free."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    about: str


@dataclass(frozen=True, kw_only=True)
class GraphFile(Record):
    """One graph that was written. ``size`` in bytes, of the graph alone: its weights stay in the folder's files."""

    name: str
    size: int
    sha256: str
    nodes: int
    inputs: tuple[GraphValue, ...]
    outputs: tuple[GraphValue, ...]


@dataclass(frozen=True, kw_only=True)
class ExportDocument(Document):
    """ONNX graphs over the tensors of a converted folder.

    component: what the graphs compute. taps: whether every tap is an output.
    weights: SHA-256 of each tensor file that the graphs read, by name.
    """

    folder: str
    component: Literal["text", "detector"]
    layout: str
    dtype: str
    taps: bool
    weights: dict[str, str]
    graphs: tuple[GraphFile, ...]
    notes: tuple[str, ...]
    next: str
