"""conversion.json: records a conversion in enough detail to repeat and to check it."""

from __future__ import annotations

from collections.abc import Mapping

from sam3lite_convert import __version__
from sam3lite_convert.checkpoint import dtypes
from sam3lite_convert.checkpoint.selection import Selection
from sam3lite_convert.convert.tensor_bytes import CastLoss
from sam3lite_convert.plan.counts import text_parameters
from sam3lite_convert.plan.plan import Options, Plan
from sam3lite_convert.records.receipt import (
    Losses,
    LostRows,
    LostTensors,
    NonFinite,
    OptionsRecord,
    Receipt,
    SourceRecord,
    ToolRecord,
)

RECEIPT_NAME = "conversion.json"


def losses(plan: Plan, loss: CastLoss) -> Losses:
    """What the folder cannot give back, by kind: dropped tensors, the class row, cut positions, a cast."""
    dropped, rows = None, dict[str, LostRows]()
    if plan.dropped:
        dropped = LostTensors(
            tensors=len(plan.dropped),
            bytes=sum(d.source.nbytes for d in plan.dropped.values()),
            by_kind=plan.dropped_by_label,
        )
    for piece in plan.mapped.values():
        source = piece.source
        lost = piece.operation.lost(source.shape)
        if lost and not any(part.absent for part in source.parts):  # a class row that was filled is no loss
            nbytes = lost.numel * dtypes.itemsize(source.dtype)
            rows[lost.kind] = LostRows(tensor=source.key, rows=lost.rows, bytes=nbytes)
    cast = loss.record(plan.options.dtype) if loss.tensors else None
    return Losses(dropped=dropped, cast=cast, **rows)


def make_receipt(
    plan: Plan,
    sha256: str | None,
    hashes: Mapping[str, str],
    loss: CastLoss,
    files: list[str],
    notes: list[str],
    nonfinite: Mapping[str, NonFinite],
    max_shard_size: int | None = None,
    model_id: str | None = None,
) -> Receipt:
    """The receipt. It holds no time and no path, so the same input and options give the same bytes.

    sha256: hash of the source; None if only ranges of a file on the Hub were read.
    hashes: of shards, the hash of each and of their index, by name.
    nonfinite: counts of NaN and infinity, by source key.
    max_shard_size: in bytes; None for a single file.
    model_id: the repository that the model card names; None if it names none.
    """
    return Receipt(
        tool=tool_record(plan.mappings_sha256),
        source=source_record(plan, sha256, hashes),
        layout=plan.layout.name,
        family=plan.layout.family.name,
        kind=plan.kind,
        reader=plan.layout.about,
        loader=plan.layout.loader.name,
        library=plan.layout.loader.library,
        own_tables=plan.own_tables,
        component=plan.options.component,
        dtype=plan.floating_dtype,
        options=options_record(plan.options, plan.checkpoint.selection, max_shard_size),
        architecture=plan.architecture.record(),
        context=plan.context.record(),
        text_parameters=text_parameters(plan),
        counts=plan.counts,
        files=tuple(files),
        lost=losses(plan, loss),
        notes=tuple(notes),
        nonfinite=dict(sorted(nonfinite.items())),
        model_id=model_id,
        tensors={key: piece.record() for key, piece in sorted(plan.mapped.items())},
        dropped={key: dropped.reason for key, dropped in sorted(plan.dropped.items())},
        not_read=plan.not_read,
    )


def source_record(plan: Plan, sha256: str | None, hashes: Mapping[str, str]) -> SourceRecord:
    """What a plan converts, and where on the Hub it came from. Its hashes are as in ``make_receipt``."""
    checkpoint, hub = plan.checkpoint, plan.checkpoint.hub
    return SourceRecord(
        name=checkpoint.path.name,
        size=checkpoint.size,
        sha256=sha256,
        files=dict(hashes) or None,
        format=checkpoint.format,
        wrapper=checkpoint.wrapper,
        left=checkpoint.left or None,
        layout=checkpoint.turned_back.layout if checkpoint.turned_back else None,
        prefix=plan.names.prefix,
        taken_off=plan.names.taken_off or None,
        repo=hub.repo if hub else None,
        file=hub.path if hub else None,
        commit=hub.commit if hub else None,
        etag=hub.etag if hub else None,
        licence=dict(hub.licence) if hub and hub.licence is not None else None,
    )


def tool_record(mappings_sha256: str) -> ToolRecord:
    """The tool that converts: name, version, and hash of the mapping tables."""
    return ToolRecord(name="sam3lite-convert", version=__version__, mappings_sha256=mappings_sha256)


def options_record(options: Options, selection: Selection, max_shard_size: int | None) -> OptionsRecord:
    """The options that no other field of the receipt holds; sizes in bytes."""
    return OptionsRecord(
        dtype=options.dtype,
        context=options.context,
        causal=options.causal,
        max_shard_size=max_shard_size,
        state_dict_key=selection.state_dict_key,
        strip_prefix=selection.strip_prefix,
        drop=dict(selection.drop),
    )
