"""Whether a folder already is what a conversion would write, read off its receipt and its index."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sam3lite_convert.convert.folder import read_folder
from sam3lite_convert.convert.receipt import RECEIPT_NAME, options_record, tool_record
from sam3lite_convert.errors import Sam3LiteError
from sam3lite_convert.plan.families import FAMILIES
from sam3lite_convert.plan.plan import Options
from sam3lite_convert.plan.tables import Mappings
from sam3lite_convert.records.receipt import Receipt


@dataclass(frozen=True)
class EarlierConversion:
    """A complete conversion that an earlier run left: its folder and its receipt."""

    path: Path
    receipt: Receipt


def present(folder: Path) -> bool:
    """Whether something lies there that a conversion would have to replace."""
    return folder.is_dir() and any(folder.iterdir())


def earlier(folder: Path) -> EarlierConversion | str:
    """The conversion that lies in a folder if it is complete, or why it is none."""
    if not (folder / RECEIPT_NAME).is_file():
        return f"it holds no {RECEIPT_NAME}, so no conversion wrote it"
    try:
        found = read_folder(folder)
        receipt = Receipt.from_json(found.receipt)
    except Sam3LiteError as fault:
        return fault.message
    except ValueError as fault:
        return f"its {RECEIPT_NAME} is not one of this tool ({fault})"
    if receipt.family not in FAMILIES:
        return f"its {RECEIPT_NAME} is of another family of checkpoints ({receipt.family})"
    held = {key: (t.dtype, t.shape) for key, (_, t) in found.tensors.items()}
    if found.faults or held != {key: (t.dtype, t.shape) for key, t in receipt.tensors.items()}:
        return f"its tensors are not those of its {RECEIPT_NAME}"
    if found.config is None:
        return "its config.json is missing"
    return EarlierConversion(folder, receipt)


def difference(receipt: Receipt, options: Options, max_shard_size: int | None, mappings: Mappings) -> str | None:
    """What the receipt says otherwise than a conversion now would, the source apart; None for nothing."""
    tool = tool_record(mappings.sha256)
    if receipt.tool != tool:
        other = "version" if receipt.tool.version != tool.version else "set of mapping tables"
        return f"it was made with another {other} of this tool"
    stated = receipt.options.to_json() | {"layout": receipt.layout, "component": receipt.component}
    asked = options_record(options, max_shard_size).to_json()
    asked |= {"layout": options.layout, "component": options.component}
    others = [f"{name} {stated[name]}, not {value}" for name, value in asked.items() if stated[name] != value]
    return f"it was converted otherwise ({'; '.join(others)})" if others else None


def same_source(receipt: Receipt, identity: str | None) -> bool:
    """Whether the receipt speaks of this file. ``identity``: its SHA-256, or the etag that the Hub states."""
    return identity is not None and identity in (receipt.source.sha256, receipt.source.etag)
