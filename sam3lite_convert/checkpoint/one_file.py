"""Opens one file of tensors, recognises its format and reads its index. No tensor data is read.

Formats: the zip archive that ``torch.save`` writes since 1.6, the stream of pickles that it wrote before, and
safetensors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, cast

from sam3lite_convert.checkpoint import safetensors_file, torch_legacy, torch_zip
from sam3lite_convert.checkpoint.index import Checkpoint, FetchedRanges, stamp_of
from sam3lite_convert.checkpoint.kinds import kind_of_bytes, kind_of_folder, kind_of_name, refusal_of, refuse_folder
from sam3lite_convert.checkpoint.selection import NOTHING_STATED, Selection
from sam3lite_convert.checkpoint.state_dict import FILE_ITSELF
from sam3lite_convert.errors import CannotRun, UnsoundPlan, Untrusted
from sam3lite_convert.opened import open_regular


@contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """The file opened for reading.

    Raises CannotRun if it cannot be opened or is not a regular file, UnsoundPlan for a folder of a known kind.
    """
    if path.is_dir():
        raise refuse_folder(path)
    with open_regular(path) as file:
        yield file


def read_file(path: Path, copy: FetchedRanges | None = None, selection: Selection = NOTHING_STATED) -> Checkpoint:
    """Index one file. ``copy``: the partial copy to read in place of ``path``.
    ``selection``: what the user states about the file.

    Raises CannotRun if the file cannot be opened, or has no entry of the stated path; Untrusted if it is empty,
    truncated, corrupt, hostile or not a checkpoint; UnsoundPlan if it holds no state dict, or several.
    """
    one_of_many = path.suffix == ".distcp" or path.name in (".metadata", "data.pkl")
    if one_of_many and kind_of_folder(path.parent):
        raise refuse_folder(path.parent)
    with open_file(path) if copy is None else nullcontext(cast(BinaryIO, copy)) as file:
        size = os.fstat(file.fileno()).st_size
        stamp = stamp_of(file) if copy is None else None
        file.seek(0)
        head = file.read(512)
        file.seek(0)
        try:
            if head.startswith(b"PK\x03\x04"):
                found = torch_zip.read_zip(path, file, size, copy, selection)
                return replace(found, stamp=stamp, selection=selection)
            if head.startswith(torch_legacy.LEGACY_MAGIC):
                found = torch_legacy.read_legacy(path, file, size, selection)
                return replace(found, stamp=stamp, selection=selection)
            # The length of a header may begin as another format does; above 4 GB it cannot be.
            if head[8:9] == b"{" and (head[4:8] == bytes(4) or not kind_of_bytes(head)):
                if selection.state_dict_key not in (None, FILE_ITSELF) and not selection.passed_over:
                    raise CannotRun(
                        "--state-dict-key: a safetensors file has no entries to choose from", "unknown_entry"
                    )
                found = safetensors_file.read_safetensors(path, file, size)
                return replace(found, partial=copy is not None, stamp=stamp, selection=selection)
        except (CannotRun, Untrusted, UnsoundPlan) as fault:
            fault.message = f"{path.name}: {fault.message}"
            raise
    if kind := kind_of_bytes(head) or (kind_of_name(path.name) if size else None):
        raise refusal_of(kind, path.name)
    raise Untrusted(f"{path.name}: {_not_a_checkpoint(head, size)}", "not_a_checkpoint")


def _not_a_checkpoint(head: bytes, size: int) -> str:
    if size == 0:
        return "the file is empty; if it was downloaded, that has to be done again"
    if not any(head):
        return "the file starts with zeros: the download was probably interrupted, and has to be done again"
    if all(32 <= b < 127 or b in b"\t\r\n" or b >= 0xC2 for b in head):
        return "this is a text file, not a checkpoint"
    return "unknown format: neither a torch checkpoint (zip archive or older stream) nor safetensors"
