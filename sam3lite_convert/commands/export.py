"""Writes ONNX graphs over the tensors of a converted folder into it."""

from __future__ import annotations

import hashlib
import math
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sam3lite_convert.checkpoint.hashing import sha256_of
from sam3lite_convert.convert.folder import read_folder
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.files import clear_leftovers, working_place, write_whole
from sam3lite_convert.plan.tables import Mappings
from sam3lite_convert.records.export import ExportDocument, GraphFile, GraphLoss, GraphValue, QuantizedFile

if TYPE_CHECKING:
    import onnx

    from sam3lite_convert.graph.folder_graphs import Component
    from sam3lite_convert.graph.quantize import Method


@dataclass(frozen=True)
class Quantization:
    """That graphs are to be quantised.

    budget: relative L2 that a tap may have; None for the default, which is only reported.
    prompts: what the loss is measured on; empty for the built-in phrases.
    """

    method: Method
    budget: float | None = None
    prompts: tuple[str, ...] = ()


def need_onnx() -> None:
    """Raises CannotRun, saying what to install, if the package onnx is not there."""
    try:
        import onnx  # noqa: F401
    except ImportError:
        raise CannotRun("export onnx needs onnx: pip install 'sam3lite-convert[onnx]'", "no_onnx") from None


def export_onnx(
    folder: Path,
    mappings: Mappings,
    component: Component = "text",
    taps: bool = False,
    quantization: Quantization | None = None,
) -> ExportDocument:
    """Write the graphs of a folder, and quantised ones beside them if asked to; existing ones are replaced.

    Raises CannotRun if there is no such folder, if onnx is not installed, if there is no graph for it, or if it cannot
    be quantised; UnsoundPlan if a tensor is missing; Untrusted if a file is damaged.
    """
    need_onnx()
    if quantization and quantization.budget is not None and not 0 <= quantization.budget < math.inf:
        raise CannotRun("--budget must be a number of at least 0", "usage")
    from sam3lite_convert.graph.folder_graphs import graphs_of, layout_of, serialized

    found = read_folder(folder)
    if found.receipt is None:
        raise CannotRun(f"{folder} has no conversion.json: only a folder that sam3lite wrote is exported", "no_receipt")
    layout = layout_of(found.receipt, mappings)
    weights = {name: sha256_of(folder / name) for name in found.taken}
    metadata = {f"weights.{name}": digest for name, digest in weights.items()}
    graphs = graphs_of(found, layout, component, metadata, taps)
    made = [_quantized(model, name, folder, quantization) for name, model in graphs.items() if quantization]
    found.check_unchanged()
    files = []
    for name, model in graphs.items():
        data = serialized(model)
        write_whole(folder / name, data)
        files.append(_graph_file(name, model, data))
    for quantized, data in made:
        write_whole(folder / quantized.name, data)
    return ExportDocument(
        folder=str(folder),
        component=component,
        layout=layout.name,
        dtype=str(found.receipt.get("dtype")),
        taps=taps,
        weights=weights,
        graphs=tuple(files),
        quantized=tuple(quantized for quantized, _ in made),
        within_budget=all(q.loss.first_over_budget is None for q, _ in made) if made else None,
        notes=(),
        next=f"sam3lite parity CHECKPOINT --converted {shlex.quote(str(folder))} --candidate onnx",
    )


def _quantized(model: onnx.ModelProto, name: str, folder: Path, asked: Quantization) -> tuple[QuantizedFile, bytes]:
    """A graph quantised and its loss measured: what is said of it, and the bytes of its file."""
    from sam3lite_convert.graph.folder_graphs import serialized
    from sam3lite_convert.graph.quantize import quantized, quantized_name, with_loss

    target = folder / quantized_name(name, asked.method)
    with _working_folder(target) as work:
        made = quantized(model, folder, asked.method, work)
    loss = _loss(model, made, folder, asked)
    data = serialized(with_loss(made, loss))
    digest = hashlib.sha256(data).hexdigest()
    said = QuantizedFile(name=target.name, of=name, method=asked.method, size=len(data), sha256=digest, loss=loss)
    return said, data


def _loss(model: onnx.ModelProto, made: onnx.ModelProto, folder: Path, asked: Quantization) -> GraphLoss:
    from sam3lite_convert.parity.graph_loss import BUDGET, loss_inputs, text_loss

    inputs = loss_inputs(model, asked.prompts)
    return text_loss(model, made, folder, inputs, BUDGET if asked.budget is None else asked.budget)


@contextmanager
def _working_folder(target: Path) -> Iterator[Path]:
    """A folder beside a file for what its making needs; it is removed, also one that a killed run left.

    Raises CannotRun if it cannot be made.
    """
    work, held = None, None
    try:
        clear_leftovers(target)
        work, held = working_place(target, tempfile.mkdtemp)
        yield work
    except OSError as fault:
        raise CannotRun(f"{target}: {fault.strerror or fault}; nothing was written there", "cannot_write") from fault
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
        if held is not None:
            os.close(held)


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
