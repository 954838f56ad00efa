"""What the receipt of a folder says was proven of its tensor files."""

from __future__ import annotations

from collections.abc import Mapping

from sam3lite_convert.convert.folder import Folder
from sam3lite_convert.convert.receipt import RECEIPT_NAME
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.files import json_bytes, write_whole
from sam3lite_convert.records.receipt import Receipt
from sam3lite_convert.records.record import Json, JsonValue

_FIELD, _BEFORE = "proven", "beside"


def own_receipt(folder: Folder) -> Receipt | None:
    """The receipt of a folder, if this tool wrote it and it lists the files that are taken; None otherwise."""
    try:
        receipt = Receipt.from_json(folder.receipt)
    except ValueError:
        return None
    return receipt if set(receipt.files) == set(folder.taken) else None


def record_proof(folder: Folder, proven: Mapping[str, str]) -> bool:
    """Write into the receipt of a folder on this machine which tensor files were proven; nothing else of it changes.

    proven: SHA-256 by name. Returns whether the receipt was written; it is not if it says so already.
    Raises CannotRun if it cannot be written, Untrusted if a file of the folder changed since it was read, or while this
    is written.
    """
    stated = folder.receipt or {}
    value: dict[str, JsonValue] = dict(sorted(proven.items()))
    if stated.get(_FIELD) == value:
        return False
    path = folder.path / RECEIPT_NAME
    if path.is_symlink():
        raise CannotRun(f"{path} is a link, and is left as it is", "cannot_write")
    folder.check_unchanged()
    write_whole(path, json_bytes(_with_proof(stated, value)))
    folder.check_unchanged(but=RECEIPT_NAME)
    return True


def _with_proof(stated: Json, value: dict[str, JsonValue]) -> Json:
    """The receipt with the field in the place where a conversion writes it."""
    out: Json = {}
    for name, held in stated.items():
        if name != _FIELD:
            out[name] = held
        if name == _BEFORE:
            out[_FIELD] = value
    return out | {_FIELD: value}
