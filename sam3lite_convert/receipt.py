"""conversion.json and the model card: what was done, enough to redo it and to check it."""

from __future__ import annotations

from typing import Any

from sam3lite_convert import __version__
from sam3lite_convert.architecture import POSITION_TABLE, SAM3_TEXT_PARAMETERS
from sam3lite_convert.plan import Plan
from sam3lite_convert.streams import CastLoss
from sam3lite_convert.summary import text_parameters

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
        missing = piece.source.nbytes - piece.nbytes
        if piece.operation == "drop_class_row" and missing:
            out["class_row"] = {"tensor": piece.source.key, "rows": 1, "bytes": missing}
        if piece.canonical == POSITION_TABLE and missing:
            rows = piece.source.shape[2] - piece.shape[2]
            out["positions"] = {"tensor": piece.source.key, "rows": rows, "bytes": missing}
    if loss.tensors:
        out["cast"] = {"dtype": plan.options.dtype, **loss.record()}
    return out


def make_receipt(plan: Plan, sha256: str, loss: CastLoss, files: list[str], notes: list[str]) -> dict[str, Any]:
    """The receipt. It holds no time and no path: the same input and options give the same bytes."""
    options = plan.options
    return {
        "tool": {"name": "sam3lite-convert", "version": __version__, "mappings_sha256": plan.mappings_sha256},
        "source": {
            "name": plan.checkpoint.path.name,
            "size": plan.checkpoint.size,
            "sha256": sha256,
            "format": plan.checkpoint.format,
            "wrapper": plan.checkpoint.wrapper,
            "prefix": plan.names.prefix,
        },
        "layout": plan.layout.name,
        "component": options.component,
        "dtype": plan.floating_dtype,
        "options": {"dtype": options.dtype, "context": options.context, "causal": options.causal},
        "architecture": plan.architecture.record(),
        "counts": plan.counts,
        "files": files,
        "lost": losses(plan, loss),
        "notes": notes,
        "tensors": {key: plan.mapped[key].record() for key in sorted(plan.mapped)},
        "dropped": {key: d.reason for key, d in sorted(plan.dropped.items())},
    }


def model_card(plan: Plan, receipt: dict[str, Any]) -> str:
    """README.md of the folder, for somebody who finds it without having made it."""
    a, counts, source = plan.architecture, receipt["counts"], receipt["source"]
    library = plan.layout.config == "transformers"
    text_only = plan.options.component == "text"
    what = "text encoder" if text_only else "detector"
    head = ["---", "tags:", "- sam3", "- sam3-litetext", "- mobileclip"]
    if library:
        head.insert(1, "library_name: transformers")
    if not text_only:
        head.insert(1, "pipeline_tag: mask-generation")
    lines = [
        *head,
        "---",
        "",
        f"# SAM3-LiteText {what}, {a.variant}, layout `{plan.layout.name}`",
        "",
        f"Converted from `{source['name']}` ({source['size']:,} bytes, SHA-256 `{source['sha256']}`) by "
        f"sam3lite-convert {__version__}. `conversion.json` accounts for every tensor.",
        "",
        "| | tensors |",
        "|---|---|",
        f"| in the checkpoint | {counts['source']} |",
        f"| mapped | {counts['mapped']} |",
        f"| dropped | {counts['dropped']} |",
        f"| in this folder | {counts['target']} |",
        "",
        *(f"- dropped {n}: {label}" for label, n in plan.dropped_by_label.items()),
        *(f"- {note}" for note in receipt["notes"]),
        "",
        f"Text encoder: {a.num_hidden_layers} layers, {a.sizes['text_hidden']} wide, context "
        f"{a.sizes['context']}, {text_parameters(plan) / 1e6:.2f} M parameters "
        f"(SAM3's own: {SAM3_TEXT_PARAMETERS / 1e6:.2f} M). Tensors: {plan.floating_dtype}.",
        "",
        "## Loading",
        "",
        "```python",
        *_loading(library, text_only),
        "```",
        "",
        "## Checking",
        "",
        "```",
        f"sam3lite verify . --checkpoint {source['name']}",
        "```",
        "",
    ]
    return "\n".join(lines)


def _loading(library: bool, text_only: bool) -> list[str]:
    if not library:
        return [
            "from safetensors.torch import load_file",
            "",
            'tensors = load_file("model.safetensors")  # names and shapes: conversion.json',
        ]
    model = "Sam3LiteTextTextModel" if text_only else "Sam3LiteTextModel"
    lines = [f"from transformers import {model}", "", f'model = {model}.from_pretrained(".")']
    if text_only:
        lines += [
            "",
            "# The detector reads every token through this projection, not the pooled output:",
            "from safetensors.torch import load_file",
            "",
            'projection = load_file("text_projection.safetensors")',
        ]
    return lines
