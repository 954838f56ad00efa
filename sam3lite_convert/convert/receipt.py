"""conversion.json: what was done, enough to redo it and to check it."""

from __future__ import annotations

from typing import Any

from sam3lite_convert import __version__
from sam3lite_convert.checkpoint import dtypes
from sam3lite_convert.convert.tensor_bytes import CastLoss
from sam3lite_convert.plan.counts import text_parameters
from sam3lite_convert.plan.plan import Options, Plan

RECEIPT_NAME = "conversion.json"


def losses(plan: Plan, loss: CastLoss) -> dict[str, Any]:
    """What cannot be turned back, by kind: dropped tensors, the class row, cut positions, a cast."""
    out: dict[str, Any] = {}
    if plan.dropped:
        out["dropped"] = {
            "tensors": len(plan.dropped),
            "bytes": sum(d.source.nbytes for d in plan.dropped.values()),
            "by_kind": plan.dropped_by_label,
        }
    for piece in plan.mapped.values():
        source = piece.source
        if lost := piece.operation.lost(source.shape):
            nbytes = lost.numel * dtypes.itemsize(source.dtype)
            out[lost.kind] = {"tensor": source.key, "rows": lost.rows, "bytes": nbytes}
    if loss.tensors:
        out["cast"] = {"dtype": plan.options.dtype, **loss.record()}
    return out


def make_receipt(
    plan: Plan,
    sha256: str | None,
    loss: CastLoss,
    files: list[str],
    notes: list[str],
    max_shard_size: int | None = None,
) -> dict[str, Any]:
    """The receipt. It holds no time and no path: the same input and options give the same bytes.

    ``sha256``: None where only ranges of a file on the Hub were read.
    """
    checkpoint = plan.checkpoint
    source: dict[str, Any] = {
        "name": checkpoint.path.name,
        "size": checkpoint.size,
        "sha256": sha256,
        "format": checkpoint.format,
        "wrapper": checkpoint.wrapper,
        "prefix": plan.names.prefix,
    }
    if checkpoint.hub is not None:
        source |= checkpoint.hub.record() | {"licence": checkpoint.hub.licence}
    return {
        "tool": tool_record(plan.mappings_sha256),
        "source": source,
        "layout": plan.layout.name,
        "library": "transformers" if plan.layout.config == "transformers" else None,
        "component": plan.options.component,
        "dtype": plan.floating_dtype,
        "options": options_record(plan.options, max_shard_size),
        "architecture": plan.architecture.record(),
        "text_parameters": text_parameters(plan),
        "counts": plan.counts,
        "files": files,
        "lost": losses(plan, loss),
        "notes": notes,
        "tensors": {key: plan.mapped[key].record() for key in sorted(plan.mapped)},
        "dropped": {key: d.reason for key, d in sorted(plan.dropped.items())},
    }


def tool_record(mappings_sha256: str) -> dict[str, Any]:
    """What converted: name, version, and the hash of the mapping tables."""
    return {"name": "sam3lite-convert", "version": __version__, "mappings_sha256": mappings_sha256}


def options_record(options: Options, max_shard_size: int | None) -> dict[str, Any]:
    """The options that the receipt does not hold elsewhere; sizes in bytes."""
    return {
        "dtype": options.dtype,
        "context": options.context,
        "causal": options.causal,
        "max_shard_size": max_shard_size,
    }
