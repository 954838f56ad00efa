"""Writes ONNX graphs over the tensors of a converted folder into it."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from sam3lite_convert.checkpoint.hashing import sha256_of
from sam3lite_convert.convert.folder import read_folder
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.files import write_whole
from sam3lite_convert.plan.tables import Mappings
from sam3lite_convert.records.export import ExportDocument, GraphFile, GraphValue

if TYPE_CHECKING:
    import onnx

    from sam3lite_convert.graph.folder_graphs import Component


def need_onnx() -> None:
    """Raises CannotRun, saying what to install, if the package onnx is not there."""
    try:
        import onnx  # noqa: F401
    except ImportError:
        raise CannotRun("export onnx needs onnx: pip install 'sam3lite-convert[onnx]'", "no_onnx") from None


def export_onnx(
    folder: Path, mappings: Mappings, component: Component = "text", taps: bool = False, size: int | None = None
) -> ExportDocument:
    """Write the graphs of a folder; existing ones are replaced.

    size: side of the pictures that the detector's graphs are for, in pixels; by default the detector's own.
    Raises CannotRun if there is no such folder, if onnx is not installed, or if there is no graph for it or the size;
    UnsoundPlan if a tensor is missing; Untrusted if a file is damaged.
    """
    need_onnx()
    from sam3lite_convert.graph.folder_graphs import graphs_of, layout_of, serialized

    found = read_folder(folder)
    if found.receipt is None:
        raise CannotRun(f"{folder} has no conversion.json: only a folder that sam3lite wrote is exported", "no_receipt")
    layout = layout_of(found.receipt, mappings)
    weights = {name: sha256_of(folder / name) for name in found.taken}
    metadata = {f"weights.{name}": digest for name, digest in weights.items()}
    graphs = graphs_of(found, layout, component, metadata, taps, size)
    found.check_unchanged()
    files = []
    for name, model in graphs.items():
        data = serialized(model)
        write_whole(folder / name, data)
        files.append(_graph_file(name, model, data))
    return ExportDocument(
        folder=str(folder),
        component=component,
        layout=layout.name,
        dtype=str(found.receipt.get("dtype")),
        taps=taps,
        weights=weights,
        graphs=tuple(files),
        notes=(),
        next=f"sam3lite parity CHECKPOINT --converted {shlex.quote(str(folder))} --candidate onnx"
        + _options(component, size),
    )


def _options(component: Component, size: int | None) -> str:
    """What ``parity`` needs to run the same graphs."""
    return (" --component detector" if component == "detector" else "") + (f" --size {size}" if size else "")


def _graph_file(name: str, model: onnx.ModelProto, data: bytes) -> GraphFile:
    return GraphFile(
        name=name,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        nodes=len(model.graph.node),
        inputs=tuple(map(_value, model.graph.input)),
        outputs=tuple(map(_value, model.graph.output)),
    )


def _value(value: onnx.ValueInfoProto) -> GraphValue:
    import onnx

    kind = value.type.tensor_type
    return GraphValue(
        name=value.name,
        dtype=onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name,
        shape=tuple(d.dim_param or d.dim_value for d in kind.shape.dim),
        about=value.doc_string,
    )
