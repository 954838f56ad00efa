"""Writes ONNX graphs over the tensors of a converted folder into it, if these are proven to be its source's."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from sam3lite_convert.checkpoint.hashing import FilesHash
from sam3lite_convert.commands.convert import NotProven
from sam3lite_convert.commands.sources import HubLocation, Source, locate
from sam3lite_convert.commands.verify import verify_folder
from sam3lite_convert.convert.card import named_checkpoint
from sam3lite_convert.convert.folder import Folder, read_folder
from sam3lite_convert.convert.proof import own_receipt
from sam3lite_convert.convert.side_files import with_files, write_receipt
from sam3lite_convert.errors import CannotRun, in_short
from sam3lite_convert.files import whole_file
from sam3lite_convert.plan.tables import Mappings
from sam3lite_convert.records.export import ExportDocument, GraphFile, GraphValue
from sam3lite_convert.records.receipt import Receipt
from sam3lite_convert.records.verify import VerifyDocument
from sam3lite_convert.workers import Advance

if TYPE_CHECKING:
    import onnx

    from sam3lite_convert.graph.folder_graphs import Component

_MORE = 3  # causes that a message lists


def need_onnx(what: str = "export onnx") -> None:
    """Raises CannotRun, saying what to install, if the package onnx is not there."""
    try:
        import onnx  # noqa: F401
    except ImportError:
        raise CannotRun(f"{what} needs onnx: pip install 'sam3lite-convert[onnx]'", "no_onnx") from None


def export_onnx(
    folder: Path,
    mappings: Mappings,
    component: Component = "text",
    taps: bool = False,
    size: int | None = None,
    source: Source | None = None,
    causal: bool = False,
    progress: Callable[[str], Advance] | None = None,
) -> ExportDocument:
    """Write the graphs of a folder that is proven, all of them or none; existing ones are replaced.

    size: side of the pictures that the detector's graphs are for, in pixels; by default the detector's own.
    source: the checkpoint, to verify the folder first; None to go by its receipt. causal, progress: as in
    ``verify_folder``.

    Raises NotProven if the folder is not proven, or was changed since; CannotRun if there is no such folder, if onnx is
    not installed, or if there is no graph for it or the size; UnsoundPlan if a tensor is missing; Untrusted if a file
    is damaged.
    """
    need_onnx()
    verification = None
    if source is not None:
        read_folder(folder)  # first: one that cannot be read needs no verification
        verification = verify_folder(folder, source, mappings, causal, progress)
        if verification.verdict != "proven":
            message = f"not exported: {folder} is not {source.name}: {verification.summary}"
            raise NotProven(message, "not_proven", verification)
    found = read_folder(folder)
    receipt, weights = _proven(found, mappings, verification)
    graphs = add_graphs(found, receipt, weights, mappings, component, taps, size)
    receipt, note = write_receipt(folder, with_files(receipt, {name: data for name, (data, _) in graphs.items()}))
    return ExportDocument(
        folder=str(folder),
        component=component,
        layout=receipt.layout,
        dtype=receipt.dtype,
        taps=taps,
        weights=weights,
        graphs=tuple(file for _, file in graphs.values()),
        notes=(note,) if note else (),
        next=f"sam3lite parity CHECKPOINT --converted {shlex.quote(str(folder))} --candidate onnx"
        + _options(component, size),
    )


def add_graphs(
    folder: Folder,
    receipt: Receipt,
    weights: Mapping[str, str],
    mappings: Mappings,
    component: Component,
    taps: bool = False,
    size: int | None = None,
) -> dict[str, tuple[bytes, GraphFile]]:
    """Write the graphs of a folder into it, all of them or none; returns by name their bytes and what is said of them.

    receipt, weights: the folder's, and the SHA-256 of its tensor files by name, as they were proven.

    Raises CannotRun, UnsoundPlan and Untrusted as ``export_onnx`` does.
    """
    from sam3lite_convert.graph.folder_graphs import graphs_of, layout_of, serialized
    from sam3lite_convert.graph.metadata import graph_metadata

    layout = layout_of(receipt.to_json(), mappings)
    graphs = graphs_of(folder, layout, component, graph_metadata(receipt, weights), taps, size)
    made = {name: (data := serialized(model), _graph_file(name, model, data)) for name, model in graphs.items()}
    with ExitStack() as stack:
        for name, (data, _) in made.items():
            out = stack.enter_context(whole_file(folder.path / name))
            out.write(data)
            out.flush()
            _check(Path(out.name), name)
        folder.check_unchanged()
    return made


def _check(path: Path, name: str) -> None:
    """Raises CannotRun if onnx does not take a graph that was written beside its weights."""
    import onnx

    try:
        onnx.checker.check_model(path, full_check=True)
    except Exception as fault:  # of several classes, by what is wrong
        raise CannotRun(f"{name} was not written: onnx does not take it ({in_short(fault)})", "bad_graph") from fault


# ---- what is proven


def _proven(folder: Folder, mappings: Mappings, verification: VerifyDocument | None) -> tuple[Receipt, dict[str, str]]:
    """The receipt of a folder, and the SHA-256 of its tensor files by name, which are those that were proven.

    verification: of this run; None if there was none. Raises NotProven if they are not.
    """
    receipt, where = own_receipt(folder), shlex.quote(str(folder.path))
    if receipt is None:
        raise NotProven(
            f"not exported: {folder.path} has no conversion.json of its tensor files, which says what they were "
            f"converted from. Convert the checkpoint again: sam3lite convert CHECKPOINT --output DIR --verify, then "
            "sam3lite export onnx DIR.",
            "no_receipt",
        )
    options = named_checkpoint(receipt)
    help_ = (
        f"Run sam3lite verify {where} {options}, or sam3lite export onnx {where} {options}, which verifies it first."
    )
    proven = verification.proven if verification is not None else receipt.proven
    if not proven:
        other = " by the checkpoint that its conversion.json names" if verification is not None else ""
        raise NotProven(f"not exported: {folder.path} was not proven{other}. {help_}", "not_proven")
    with FilesHash(folder.path / name for name in folder.taken) as hashing:
        weights = hashing.result()
    if changed := sorted(name for name in {*weights, *proven} if weights.get(name) != proven.get(name)):
        raise NotProven(
            f"not exported: {', '.join(changed)} in {folder.path} changed since it was proven. {help_}", "other_weights"
        )
    if edited := _edited(folder, receipt, mappings):
        more = f"; and {len(edited) - _MORE} more" if len(edited) > _MORE else ""
        raise NotProven(
            f"not exported: {folder.path} was edited since it was proven: {'; '.join(edited[:_MORE])}{more}. {help_}",
            "edited",
        )
    return receipt, weights


def _edited(folder: Folder, receipt: Receipt, mappings: Mappings) -> list[str]:
    """What the JSON files of a folder say otherwise than its tensors, in words."""
    from sam3lite_convert.verify.own_sizes import edited_sizes  # loads numpy

    faults = [f"{fault.key} {fault.why}" for fault in folder.faults]
    tensors = locate(str(folder.path), HubLocation()).whole().read(mappings)
    return [*faults, *edited_sizes(folder, tensors, receipt, mappings)]


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
