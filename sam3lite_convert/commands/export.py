"""Writes ONNX graphs over the tensors of a converted folder into it, if these are proven to be its source's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sam3lite_convert.checkpoint.hashing import FilesHash
from sam3lite_convert.commands.convert import NotProven
from sam3lite_convert.commands.graphs import add_graphs, need_onnx, replaceable_graphs
from sam3lite_convert.commands.quantized_graphs import Quantization, add_quantized, check_quantizable
from sam3lite_convert.commands.sources import HubLocation, Source, locate
from sam3lite_convert.commands.verify import read_with_weights, verify_folder
from sam3lite_convert.convert.card import named_checkpoint
from sam3lite_convert.convert.folder import Folder
from sam3lite_convert.convert.graph_files import DETECTOR_MODELS, QUANTIZED_MODELS, TEXT_MODEL, quantized_name
from sam3lite_convert.convert.proof import own_receipt
from sam3lite_convert.convert.side_files import with_graphs, with_quantized, without_tokenizer, write_receipt
from sam3lite_convert.plan.tables import Mappings
from sam3lite_convert.quoting import shell_path
from sam3lite_convert.records.export import ExportDocument, QuantizedFile
from sam3lite_convert.records.receipt import Receipt
from sam3lite_convert.records.verify import VerifyDocument
from sam3lite_convert.seen import Seen
from sam3lite_convert.workers import Advance

if TYPE_CHECKING:
    from sam3lite_convert.graph.folder_graphs import Component

_MORE = 3  # causes that a message lists
_GRAPHS = (TEXT_MODEL, *DETECTOR_MODELS, *QUANTIZED_MODELS)  # one that is wrong must not keep others from being written


def export_onnx(
    folder: Path,
    mappings: Mappings,
    component: Component = "text",
    taps: bool = False,
    size: int | None = None,
    source: Source | None = None,
    causal: bool = False,
    progress: Callable[[str], Advance] | None = None,
    quantization: Quantization | None = None,
) -> ExportDocument:
    """Write the graphs of a folder that is proven, all of them or none, and then quantised ones beside them if asked
    to; existing ones of ours are replaced.

    size: side of the pictures that the detector's graphs are for, in pixels; by default the detector's own.
    source: the checkpoint, to verify the folder first; None to go by its receipt. causal, progress: as in
    ``verify_folder``.

    Raises NotProven if the folder is not proven, or was changed since; CannotRun if there is no such folder, if onnx is
    not installed, if there is no graph for it or the size, if it cannot be quantised, or if somebody else's graph is in
    the way; UnsoundPlan if a tensor is missing; Untrusted if a file is damaged.
    """
    need_onnx()
    verification = None
    if source is not None:
        read_with_weights(folder)  # first: one that cannot be read needs no verification
        verification = verify_folder(folder, source, mappings, causal, progress, unchecked=_GRAPHS)
        if verification.verdict != "proven":
            message = f"not exported: {folder} is not {source.name}: {verification.summary}"
            raise NotProven(message, "not_proven", verification)
    found = read_with_weights(folder)
    receipt, weights = _proven(found, mappings, verification)
    earlier: dict[str, Seen] = {}
    if quantization is not None:
        check_quantizable(receipt, quantization)
        parts = (TEXT_MODEL,) if component == "text" else DETECTOR_MODELS
        earlier = replaceable_graphs(folder, receipt, [quantized_name(name, quantization.method) for name in parts])
    graphs = add_graphs(found, receipt, weights, mappings, component, taps, size)
    receipt, note = write_receipt(folder, with_graphs(receipt, {name: data for name, (data, _) in graphs.items()}))
    made: dict[str, QuantizedFile] = {}
    if quantization is not None:
        made = add_quantized(folder, {name: data for name, (data, _) in graphs.items()}, quantization, earlier)
        receipt, note = write_receipt(folder, with_quantized(receipt, tuple(made.values())))
    return ExportDocument(
        folder=str(folder),
        component=component,
        layout=receipt.layout,
        dtype=receipt.dtype,
        taps=taps,
        weights=weights,
        verified=verification.summary if verification is not None else None,
        graphs=tuple(file for _, file in graphs.values()),
        quantized=tuple(made.values()),
        within_budget=all(file.loss.first_over_budget is None for file in made.values()) if made else None,
        notes=tuple(filter(None, (note, without_tokenizer(folder)))),
        next=f"sam3lite parity {_checkpoint(source, receipt)} --converted {shell_path(folder)} --candidate onnx"
        + _options(component, size),
    )


def _checkpoint(source: Source | None, receipt: Receipt) -> str:
    """How the checkpoint is named in a command: as it was given, or as the file that is still where it was."""
    if source is not None:
        return source.option
    name = receipt.source.name
    return shell_path(name) if Path(name).is_file() else named_checkpoint(receipt)


# ---- what is proven


def _proven(folder: Folder, mappings: Mappings, verification: VerifyDocument | None) -> tuple[Receipt, dict[str, str]]:
    """The receipt of a folder, and the SHA-256 of its tensor files by name, which are those that were proven.

    verification: of this run; None if there was none. Raises NotProven if they are not.
    """
    receipt, where = own_receipt(folder), shell_path(folder.path)
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
