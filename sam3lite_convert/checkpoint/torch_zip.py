"""Reads the index of the zip archive that ``torch.save`` writes since 1.6."""

from __future__ import annotations

import io
import itertools
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from sam3lite_convert.checkpoint import unpickle
from sam3lite_convert.checkpoint.index import Checkpoint, FetchedRanges, ZipEntry, check_names
from sam3lite_convert.checkpoint.kinds import kind_of_large_pickle, kind_of_zip
from sam3lite_convert.checkpoint.pickle_machine import PICKLE_LIMIT
from sam3lite_convert.checkpoint.selection import NOTHING_STATED, Selection
from sam3lite_convert.checkpoint.state_dict import locate, read_at, state_dict_of
from sam3lite_convert.checkpoint.zip_directory import open_zip
from sam3lite_convert.errors import UnsoundPlan, Untrusted, in_short

_UTF8 = 0x800  # the flag of an entry whose name is in that encoding


def read_zip(
    path: Path, file: BinaryIO, size: int, copy: FetchedRanges | None, selection: Selection = NOTHING_STATED
) -> Checkpoint:
    """Index the archive. ``copy``: the partial copy, if ``file`` is one. ``selection``: may state the entry to read.

    Raises Untrusted if the archive is truncated, corrupt or was not written by ``torch.save``; UnsoundPlan if it
    holds no state dict.
    """
    try:
        archive = open_zip(file)
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as fault:
        raise Untrusted(
            "the file is truncated or damaged: its zip archive has no valid directory at the end "
            f"({in_short(fault)}). It has {size:,} bytes; compare that with the original and download it again.",
            "truncated_file",
        ) from fault
    check_names(archive.namelist())
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        if entry.filename in entries:
            raise Untrusted(f"the archive has two entries {entry.filename}", "corrupt_file")
        entries[entry.filename] = entry
    pickle_names = [n for n in entries if n == "data.pkl" or (n.endswith("/data.pkl") and n.count("/") == 1)]
    if kind := kind_of_zip(entries) if len(pickle_names) != 1 or _has_program(pickle_names[0], entries) else None:
        raise kind.refusal()
    if len(pickle_names) != 1:
        raise Untrusted("this is a zip archive that torch.save did not write (it has no data.pkl)", "not_a_checkpoint")
    root = pickle_names[0][: -len("data.pkl")]
    # Of a partial copy, headers of tensors that are not downloaded are not worth a request.
    fetched = {
        n
        for n, entry in entries.items()
        if copy is None or not n.startswith(root + "data/") or copy.present(entry.header_offset, 30)
    }
    needed = {n for n in entries if n.startswith(root + "data/") or n in (pickle_names[0], root + "byteorder")}
    every = {n: _zip_record(file if n in fetched else None, entry, size) for n, entry in entries.items()}
    position = 0
    for record in sorted(every.values(), key=lambda r: r.offset):
        if record.offset < position:
            raise Untrusted(f"the archive's entry {record.name} overlaps another entry", "corrupt_file")
        position = record.offset + record.nbytes
    # What somebody else put into the archive may be compressed; it is not read.
    records = {n: record for n, record in every.items() if n in needed or _is_stored(entries[n])}
    for name in needed:
        _check_stored(entries[name])
    order = records.get(root + "byteorder")
    if order and (order.nbytes != 6 or read_at(file, order.offset, 6) != b"little"):
        raise Untrusted("the tensors are stored in big-endian order, which is not supported", "big_endian")
    index = records[pickle_names[0]]
    if index.nbytes > PICKLE_LIMIT:
        if kind := kind_of_large_pickle(read_at(file, index.offset, 1 << 20)):
            raise kind.refusal()
        raise Untrusted(f"the archive's pickle has {index.nbytes:,} bytes; at most {PICKLE_LIMIT:,} are accepted")
    reader = unpickle.Reader(io.BytesIO(read_at(file, index.offset, index.nbytes)))
    tree = reader.load()

    storages = {}
    for name, record in records.items():
        if name.startswith(root + "data/"):
            storages[name[len(root + "data/") :]] = (record.offset, record.nbytes)
    found = state_dict_of(tree, reader.unknown, selection)
    tensors = locate(found.tensors, storages)
    # Of a partial copy, only entries that are complete can be checked.
    known = (r for n, r in records.items() if n in fetched and (copy is None or copy.present(r.offset, r.nbytes)))
    checkpoint = Checkpoint(
        path,
        size,
        "zip",
        found.wrapper,
        tensors,
        tuple(known),
        found.notes,
        frozenset(found.others),
        found.meta,
        left=found.left,
    )
    if copy is None:
        return checkpoint
    # An entry ends where the next entry or the directory begins.
    starts = [*sorted(e.header_offset for e in entries.values()), archive.start_dir]
    ends = dict(itertools.pairwise(starts))
    begins = {n[len(root + "data/") :]: entries[n].header_offset for n in records if n.startswith(root + "data/")}
    places = {k: begins[t.storage.key] for k, t in found.tensors.items()}
    return replace(checkpoint, partial=True, extents={k: (at, ends[at]) for k, at in places.items()})


def _zip_record(file: BinaryIO | None, entry: zipfile.ZipInfo, size: int) -> ZipEntry:
    """An entry with the position of its data; without a ``file`` to read its header from, the lowest possible one.

    Raises Untrusted if the entry is damaged.
    """
    name, extra_length = entry.orig_filename.encode("utf-8" if entry.flag_bits & _UTF8 else "cp437", "replace"), 0
    if file is not None:
        local = read_at(file, entry.header_offset, 30 + len(name))
        if len(local) < 30 or local[:4] != b"PK\x03\x04":
            raise Untrusted(f"the archive's entry {entry.filename} is damaged", "corrupt_file")
        name_length, extra_length = struct.unpack("<HH", local[26:30])
        if name_length != len(name) or local[30:] != name:
            raise Untrusted(f"the archive's entry {entry.filename} has another name in its own header", "corrupt_file")
    offset = entry.header_offset + 30 + len(name) + extra_length
    if offset + entry.compress_size > size:
        raise Untrusted(f"the archive's entry {entry.filename} exceeds the file: it is truncated", "truncated_file")
    return ZipEntry(entry.filename, offset, entry.compress_size, entry.CRC)


def _has_program(pickle_name: str, entries: Mapping[str, zipfile.ZipInfo]) -> bool:
    return pickle_name.removesuffix("data.pkl") + "constants.pkl" in entries


def _is_stored(entry: zipfile.ZipInfo) -> bool:
    return entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1


def _check_stored(entry: zipfile.ZipInfo) -> None:
    """Raises UnsoundPlan or Untrusted if the bytes of an entry that is read are not in the file as they are."""
    if not _is_stored(entry):
        raise UnsoundPlan(
            f"the archive's entry {entry.filename} is compressed or encrypted; torch.save writes neither. Unzip the "
            "file into an empty folder, and there: zip -0 -r ../checkpoint.pt .",
            "compressed_entry",
        )
    if entry.compress_size != entry.file_size:
        raise Untrusted(f"the archive's entry {entry.filename} has two different sizes", "corrupt_file")
