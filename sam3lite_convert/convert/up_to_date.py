"""Decides from receipt and index whether a folder already holds what a conversion would write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sam3lite_convert.checkpoint.selection import Selection
from sam3lite_convert.convert.folder import Folder, read_folder
from sam3lite_convert.convert.receipt import RECEIPT_NAME, options_record, tool_record
from sam3lite_convert.errors import Sam3LiteError
from sam3lite_convert.figures import human_bytes
from sam3lite_convert.plan.families import FAMILIES
from sam3lite_convert.plan.plan import Options
from sam3lite_convert.plan.tables import Mappings
from sam3lite_convert.records.receipt import Receipt


@dataclass(frozen=True)
class EarlierConversion:
    """A complete conversion that an earlier run left: its folder and its receipt.

    touched: files of tensors that were written, moved or copied after the receipt, so that neither size nor time tells
        whether they are still what was converted.
    note: what was done about them, for the user; None if there are none.
    """

    path: Path
    receipt: Receipt
    touched: tuple[str, ...] = ()
    note: str | None = None


def present(folder: Path) -> bool:
    """Whether the folder holds anything that a conversion would have to replace."""
    return folder.is_dir() and any(folder.iterdir())


def earlier(folder: Path) -> EarlierConversion | str:
    """The conversion in a folder if it is complete; otherwise the reason why it is not, in words."""
    if not (folder / RECEIPT_NAME).is_file():
        return f"it has no {RECEIPT_NAME}, so it is not a finished conversion"
    try:
        found = read_folder(folder)
        receipt = Receipt.from_json(found.receipt)
    except Sam3LiteError as fault:
        return fault.message
    except ValueError as fault:
        return f"its {RECEIPT_NAME} was not written by this tool, or was damaged ({fault})"
    if receipt.family not in FAMILIES:
        return f"its {RECEIPT_NAME} names a family of checkpoints that this version does not know ({receipt.family})"
    if set(receipt.files) != set(found.taken):
        others = ", ".join(sorted(set(receipt.files) ^ set(found.taken)))
        return f"its files of tensors are not those that its {RECEIPT_NAME} lists ({others})"
    held = {key: (t.dtype, t.shape) for key, (_, t) in found.tensors.items()}
    if found.faults or held != {key: (t.dtype, t.shape) for key, t in receipt.tensors.items()}:
        return f"its tensors differ from those listed in its {RECEIPT_NAME}"
    if found.config is None:
        return "its config.json is missing"
    return EarlierConversion(folder, receipt, _touched(found))


def _touched(folder: Folder) -> tuple[str, ...]:
    """The files of tensors that changed after the receipt was written, by their times.

    A conversion writes the receipt last. The time of the last change of the file's own entry counts too, which no
    program can set back.
    """
    receipt = (folder.path / RECEIPT_NAME).stat()
    written = max(receipt.st_mtime_ns, receipt.st_ctime_ns)
    files = {name: (folder.path / name).stat() for name in folder.taken}
    return tuple(name for name, found in files.items() if max(found.st_mtime_ns, found.st_ctime_ns) > written)


def difference(
    receipt: Receipt, options: Options, selection: Selection, max_shard_size: int | None, mappings: Mappings
) -> str | None:
    """How the receipt differs from what a conversion with these options would write, in words; None if it does not.

    The source is not compared.
    """
    tool = tool_record(mappings.sha256)
    if receipt.tool != tool:
        other = "version of this tool" if receipt.tool.version != tool.version else "set of mapping tables"
        return f"it was made with another {other}"
    stated = receipt.options.to_json() | {"layout": receipt.layout, "component": receipt.component}
    asked = options_record(options, selection, max_shard_size).to_json()
    asked |= {"layout": options.layout, "component": options.component}
    others = [
        f"{name.replace('_', ' ')}: {_in_words(name, stated[name])} there, {_in_words(name, value)} now"
        for name, value in asked.items()
        if stated[name] != value
    ]
    return f"it was converted with other options ({'; '.join(others)})" if others else None


# What it means that an option was not given.
_NOT_GIVEN = {"state_dict_key": "not given", "dtype": "as stored", "context": "not given", "max_shard_size": "one file"}


def _in_words(option: str, value: object) -> str:
    if value is None:
        return _NOT_GIVEN.get(option, "not stated")
    if value in ([], {}):
        return "not given"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return human_bytes(value) if option == "max_shard_size" and isinstance(value, int) else str(value)


def same_source(receipt: Receipt, identity: str | None) -> bool:
    """Whether the receipt names this file as its source. ``identity``: its SHA-256, or the etag that the Hub states."""
    return identity is not None and identity in (receipt.source.sha256, receipt.source.etag)
