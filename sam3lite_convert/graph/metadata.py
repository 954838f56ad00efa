"""What a graph says of itself: where its weights are from, and how it is called."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from sam3lite_convert import __version__
from sam3lite_convert.graph.text import about_padding
from sam3lite_convert.json_text import parse_json
from sam3lite_convert.records.receipt import Receipt
from sam3lite_convert.records.record import Json

SOURCE, WEIGHTS, RECEIPT, CONTEXT, DTYPE, TOOL, CALL = (
    "source", "weights", "receipt", "context", "dtype", "tool", "call",
)  # fmt: skip
TOOL_NOW = f"sam3lite-convert {__version__}"
_CALL = "Token ids are padded to the context with 0. {} docs/onnx.md of sam3lite-convert has the code."
# What is added to a receipt, or renewed in it, while the conversion stays the same.
_LATER = (
    "beside", "proven", "parity", "graph_parity", "graph_losses", "licences", "tokenizer", "model_id",
    "card_blob_id", "edited_card_blob_id",
)  # fmt: skip


def graph_metadata(receipt: Receipt, weights: Mapping[str, str]) -> dict[str, str]:
    """The entries that the graphs of a folder have in common.

    weights: SHA-256 by name of the tensor files.
    """
    source = receipt.source
    said = {
        "name": source.name,
        "sha256": source.sha256,
        "etag": None if source.sha256 else source.etag,
        "repo": source.repo,
        "file": source.file,
        "commit": source.commit,
    }
    return {
        SOURCE: _line({key: value for key, value in said.items() if value is not None}),
        WEIGHTS: _line(dict(sorted(weights.items()))),
        RECEIPT: receipt_digest(receipt),
        CONTEXT: str(receipt.context.called),
        DTYPE: receipt.dtype,
        TOOL: TOOL_NOW,
        CALL: _CALL.format(about_padding(receipt.architecture.causal_masking)),
    }


def receipt_digest(receipt: Receipt) -> str:
    """SHA-256 of what a receipt says of the conversion, without what may be added to it later."""
    said = {name: value for name, value in receipt.to_json().items() if name not in _LATER}
    source = said["source"]
    if isinstance(source, dict):
        said["source"] = {name: value for name, value in source.items() if name != "licence"}
    return hashlib.sha256(_line(said, sort=True).encode()).hexdigest()


def stated_weights(metadata: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 by name of the tensor files that a graph says it belongs to; empty if it does not say."""
    try:
        found = parse_json(metadata.get(WEIGHTS, "{}"))
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: digest for name, digest in found.items() if isinstance(digest, str)}


def _line(value: Json | dict[str, str], sort: bool = False) -> str:
    return json.dumps(value, sort_keys=sort, separators=(",", ":"))
