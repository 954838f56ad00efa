"""Reads the index of the format that ``torch.save`` wrote before 1.6: a stream of pickles and storages."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import BinaryIO

from sam3lite_convert.checkpoint import dtypes, unpickle
from sam3lite_convert.checkpoint.index import Checkpoint
from sam3lite_convert.checkpoint.pickle_machine import PICKLE_LIMIT
from sam3lite_convert.checkpoint.selection import NOTHING_STATED, Selection
from sam3lite_convert.checkpoint.state_dict import locate, read_at, state_dict_of
from sam3lite_convert.errors import Untrusted

_NUMBER = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
# The magic number as a pickle of protocol 2, which torch writes unless it is told otherwise, and of 3 to 5.
LEGACY_MAGIC = (
    b"\x80\x02" + _NUMBER,
    b"\x80\x03" + _NUMBER,
    *(bytes([0x80, protocol, 0x95]) + struct.pack("<Q", len(_NUMBER)) + _NUMBER for protocol in (4, 5)),
)


def read_legacy(path: Path, file: BinaryIO, size: int, selection: Selection = NOTHING_STATED) -> Checkpoint:
    """Index the stream. ``selection``: may state the entry to read.

    Raises Untrusted if it is truncated, corrupt or big-endian, UnsoundPlan if it holds no state dict.
    """
    # magic number, protocol, system info, the object, the storage keys: five pickles in a row.
    # Then each storage in the order of the keys: its length as int64, and its elements.
    stream = io.BytesIO(file.read(PICKLE_LIMIT))
    reader = unpickle.Reader(stream)
    reader.load()
    reader.load()
    system = reader.load()
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise Untrusted("the tensors are stored in big-endian order, which is not supported", "big_endian")
    tree = reader.load()
    keys = reader.load()
    found = state_dict_of(tree, reader.unknown, selection)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise Untrusted("the file's list of storages is invalid", "corrupt_file")
    kinds = reader.storages
    storages, position = {}, stream.tell()
    for key in keys:
        head = read_at(file, position, 8)
        if key not in kinds or len(head) < 8:
            raise Untrusted("the file is truncated, or lists a storage that no tensor uses", "truncated_file")
        nbytes = struct.unpack("<q", head)[0] * dtypes.itemsize(kinds[key] or "uint8")  # an untyped one is bytes
        if nbytes < 0 or position + 8 + nbytes > size:
            raise Untrusted("the file is truncated: it ends before its last tensor", "truncated_file")
        storages[key] = (position + 8, nbytes)
        position += 8 + nbytes
    note = "written in the format of torch before 1.6, which has no checksums: damage inside it cannot be detected"
    tensors = locate(found.tensors, storages)
    notes, others = (note, *found.notes), frozenset(found.others)
    return Checkpoint(path, size, "legacy", found.wrapper, tensors, (), notes, others, found.meta, left=found.left)
