"""Whether a folder already is what a conversion would write, read off its receipt and its index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sam3lite_convert.convert.card import model_card
from sam3lite_convert.convert.folder import Folder, read_folder
from sam3lite_convert.convert.receipt import RECEIPT_NAME, options_record, tool_record
from sam3lite_convert.errors import Sam3LiteError
from sam3lite_convert.plan.loaders import LOADERS
from sam3lite_convert.plan.plan import Options
from sam3lite_convert.plan.tables import Mappings


def present(folder: Path) -> bool:
    """Whether something lies there that a conversion would have to replace."""
    return folder.is_dir() and any(folder.iterdir())


def earlier(folder: Path) -> Folder | str:
    """The folder's index where it is a complete conversion, or why it is none."""
    if not (folder / RECEIPT_NAME).is_file():
        return f"it holds no {RECEIPT_NAME}, so no conversion wrote it"
    try:
        found = read_folder(folder)
    except Sam3LiteError as fault:
        return fault.message
    receipt = found.receipt or {}
    stated = receipt.get("tensors")
    if not isinstance(stated, dict) or not isinstance(receipt.get("source"), dict):
        return f"its {RECEIPT_NAME} is not one of this tool"
    held = {key: {"dtype": t.dtype, "shape": list(t.shape)} for key, (_, t) in found.tensors.items()}
    wanted = {
        key: {"dtype": entry.get("dtype"), "shape": entry.get("shape")}
        for key, entry in stated.items()
        if isinstance(entry, dict)
    }
    if found.faults or held != wanted:
        return f"its tensors are not those of its {RECEIPT_NAME}"
    if found.config is None:
        return "its config.json is missing"
    try:
        model_card(receipt)
        dict(receipt["lost"])
        beside = receipt.get("beside") or {}
        if not all(isinstance(v, str) for pair in dict(beside).items() for v in pair) or not isinstance(beside, dict):
            raise TypeError("beside")
        if receipt["library"] != LOADERS[receipt["loader"]].library or not isinstance(receipt["source"]["name"], str):
            raise ValueError("library or source")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return f"its {RECEIPT_NAME} is not one of this tool"
    return found


def difference(receipt: dict[str, Any], options: Options, max_shard_size: int | None, mappings: Mappings) -> str | None:
    """What the receipt says otherwise than a conversion now would, the source apart; None for nothing."""
    tool = tool_record(mappings.sha256)
    if receipt.get("tool") != tool:
        old = receipt["tool"] if isinstance(receipt.get("tool"), dict) else {}
        other = "version" if old.get("version") != tool["version"] else "set of mapping tables"
        return f"it was made with another {other} of this tool"
    stated = receipt.get("options")
    stated = {**(stated if isinstance(stated, dict) else {}), "layout": receipt["layout"]}
    stated["component"] = receipt["component"]
    asked = {**options_record(options, max_shard_size), "layout": options.layout, "component": options.component}
    others = [f"{name} {stated.get(name)}, not {value}" for name, value in asked.items() if stated.get(name) != value]
    return f"it was converted otherwise ({'; '.join(others)})" if others else None


def same_source(receipt: dict[str, Any], identity: str | None) -> bool:
    """Whether the receipt speaks of this file. ``identity``: its SHA-256, or the etag that the Hub states."""
    source = receipt["source"]
    return identity is not None and identity in (source.get("sha256"), source.get("etag"))
