"""Decides from receipt and index whether a folder already holds what a conversion would write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sam3lite_convert.convert.card import model_card
from sam3lite_convert.convert.folder import Folder, read_folder
from sam3lite_convert.convert.receipt import RECEIPT_NAME, options_record, tool_record
from sam3lite_convert.errors import Sam3LiteError
from sam3lite_convert.figures import human_bytes
from sam3lite_convert.plan.plan import Options
from sam3lite_convert.plan.tables import Mappings


def present(folder: Path) -> bool:
    """Whether the folder holds anything that a conversion would have to replace."""
    return folder.is_dir() and any(folder.iterdir())


def earlier(folder: Path) -> Folder | str:
    """The folder's index if it is a complete conversion; otherwise the reason why it is not, in words."""
    if not (folder / RECEIPT_NAME).is_file():
        return f"it has no {RECEIPT_NAME}, so it is not a finished conversion"
    try:
        found = read_folder(folder)
    except Sam3LiteError as fault:
        return fault.message
    receipt = found.receipt or {}
    stated = receipt.get("tensors")
    if not isinstance(stated, dict) or not isinstance(receipt.get("source"), dict):
        return f"its {RECEIPT_NAME} was not written by this tool"
    held = {key: {"dtype": t.dtype, "shape": list(t.shape)} for key, (_, t) in found.tensors.items()}
    wanted = {
        key: {"dtype": entry.get("dtype"), "shape": entry.get("shape")}
        for key, entry in stated.items()
        if isinstance(entry, dict)
    }
    if found.faults or held != wanted:
        return f"its tensors differ from those listed in its {RECEIPT_NAME}"
    if found.config is None:
        return "its config.json is missing"
    try:
        model_card(receipt)
        dict(receipt["lost"])
        beside = receipt.get("beside") or {}
        if not all(isinstance(v, str) for pair in dict(beside).items() for v in pair) or not isinstance(beside, dict):
            raise TypeError("beside")
        if receipt["library"] not in (None, "transformers") or not isinstance(receipt["source"]["name"], str):
            raise ValueError("library or source")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return f"its {RECEIPT_NAME} was not written by this tool, or was damaged"
    return found


def difference(receipt: dict[str, Any], options: Options, max_shard_size: int | None, mappings: Mappings) -> str | None:
    """How the receipt differs from what a conversion with these options would write, in words; None if it does not.

    The source is not compared.
    """
    tool = tool_record(mappings.sha256)
    if receipt.get("tool") != tool:
        old = receipt["tool"] if isinstance(receipt.get("tool"), dict) else {}
        other = "version of this tool" if old.get("version") != tool["version"] else "set of mapping tables"
        return f"it was made with another {other}"
    stated = receipt.get("options")
    stated = {**(stated if isinstance(stated, dict) else {}), "layout": receipt["layout"]}
    stated["component"] = receipt["component"]
    asked = {**options_record(options, max_shard_size), "layout": options.layout, "component": options.component}
    others = [
        f"{name.replace('_', ' ')}: {_in_words(name, stated.get(name))} there, {_in_words(name, value)} now"
        for name, value in asked.items()
        if stated.get(name) != value
    ]
    return f"it was converted with other options ({'; '.join(others)})" if others else None


# What an option means that was not given.
_NOT_GIVEN = {"dtype": "as stored", "context": "all rows", "max_shard_size": "one file"}


def _in_words(option: str, value: object) -> str:
    if value is None:
        return _NOT_GIVEN.get(option, "not stated")
    if isinstance(value, bool):
        return "yes" if value else "no"
    return human_bytes(value) if option == "max_shard_size" and isinstance(value, int) else str(value)


def same_source(receipt: dict[str, Any], identity: str | None) -> bool:
    """Whether the receipt names this file as its source. ``identity``: its SHA-256, or the etag that the Hub states."""
    source = receipt["source"]
    return identity is not None and identity in (source.get("sha256"), source.get("etag"))
