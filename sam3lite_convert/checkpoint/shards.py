"""Reads the files of a checkpoint as one, such as an index and its shards, whose bytes follow each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from sam3lite_convert.checkpoint.file_set import companion, disagreements, is_index, shard_map
from sam3lite_convert.checkpoint.index import Checkpoint, Shard, StoredTensor, ZipEntry
from sam3lite_convert.checkpoint.place import Place
from sam3lite_convert.checkpoint.positioned_file import PositionedFile
from sam3lite_convert.checkpoint.selection import NOTHING_STATED, Selection
from sam3lite_convert.errors import UnsoundPlan, Untrusted

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class JoinedFile(PositionedFile):
    """Files read as one, in which each begins behind the last byte of the one before."""

    def __init__(self, path: Path, parts: Sequence[tuple[BinaryIO, int]]) -> None:
        """``path``: for messages. ``parts``: the open files, and their sizes in bytes."""
        super().__init__(sum(size for _, size in parts))
        self.name = str(path)
        self._parts = parts

    def place(self, offset: int) -> tuple[BinaryIO, int]:
        """The file that holds a byte, and the byte's offset there; behind the end, the last file."""
        for file, size in self._parts[:-1]:
            if offset < size:
                return file, offset
            offset -= size
        return self._parts[-1][0], offset

    def read(self, size: int = -1, /) -> bytes:
        """That many bytes; fewer only at the end of the file that holds the first of them, as no tensor goes on
        in the next one."""
        file, offset = self.place(self._position)
        file.seek(offset)
        data = file.read(size)
        self._position += len(data)
        return data

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        file, offset = self.place(self._position)
        file.seek(offset)
        count: int = file.readinto(buffer)  # type: ignore[attr-defined]
        self._position += count
        return count


def read_files(place: Place, name: str, selection: Selection = NOTHING_STATED) -> Checkpoint:
    """Index the files of a checkpoint that has several: the shards that the index of this name lists, or the file of
    this name, and the projection that belongs to it (``companion``). ``selection``: what the user states about it.

    Raises as ``shard_map`` does for the index, and as ``read_file`` does for every file; Untrusted if index and
    shards do not agree, or if two files hold one tensor; UnsoundPlan if they are of several formats, or hold their
    tensors under several entries.
    """
    path, index_size = place.path / name, 0
    if is_index(name):
        found, index_size = _shards(place, name, selection)
    else:
        found = {name: place.index(name, selection)[1]}
    if beside := companion(name, place.has):
        projection = place.index(beside, selection)[1]
        for key in projection.tensors:
            if holder := next((shard for shard, held in found.items() if key in held.tensors), None):
                raise _disagree(path, [(key, f"is in {holder} and also in {beside}")])
        found[beside] = projection
    parts = list(found.values())
    for what, held in (("formats", {p.format for p in parts}), ("entries", {str(p.wrapper) for p in parts})):
        if len(held) > 1:
            raise UnsoundPlan(f"{path}: its shards are of several {what}: {', '.join(sorted(held))}", "mixed_shards")
    kept, stamp = place.kept(name)
    joined = _joined(kept, list(found.items()), index_size)
    # A file that holds tensors itself is among the shards.
    return replace(joined, stamp=stamp if is_index(name) else None, selection=selection)


def _shards(place: Place, name: str, selection: Selection) -> tuple[dict[str, Checkpoint], int]:
    """The shards that an index lists, by name, and the size of the index in bytes. Raises as ``read_files`` does."""
    path, data = place.path / name, place.read(name)
    places = shard_map(data, path, place.has)
    found: dict[str, Checkpoint] = {}
    holders: dict[str, str] = {}
    others: set[str] = set()
    twice: list[tuple[str, str, str]] = []
    for shard in sorted(set(places.values())):
        _, found[shard] = place.index(shard, selection)
        for key in found[shard].tensors:
            if key in holders:
                twice.append((key, holders[key], shard))
            holders[key] = shard
        others |= found[shard].others
        if len(holders) + len(twice) > len(places):
            break  # the index does not name all of them: this is refused, and no more is read
    faults = [(key, f"is in {one} and also in {two}") for key, one, two in twice]
    faults = faults or [(k, why) for k, why in disagreements(places, holders, found) if k not in others]
    if faults:
        raise _disagree(path, faults)
    return found, len(data)


def _disagree(path: Path, faults: list[tuple[str, str]]) -> Untrusted:
    """The error for an index and shards that do not agree. ``faults``: (key, why)."""
    key, why = faults[0]
    more = f" (and {len(faults) - 1:,} more tensors)" if len(faults) > 1 else ""
    return Untrusted(
        f"{path} and its shards do not agree: {key} {why}{more}. Download all of them again, from one place.",
        "shards_disagree",
        {"keys": [key for key, _ in faults]},
    )


def _joined(path: Path, parts: list[tuple[str, Checkpoint]], index_size: int) -> Checkpoint:
    """One index of them all. The offsets of a shard's bytes begin where the shard before ends."""
    tensors: dict[str, StoredTensor] = {}
    records: list[ZipEntry] = []
    extents: dict[str, tuple[int, int]] = {}
    notes: list[str] = []
    others: set[str] = set()
    meta: dict[str, int] = {}
    metadata: dict[str, str] = {}
    left: dict[str, int] = {}
    shards: list[Shard] = []
    base = 0
    for name, part in parts:
        tensors |= {key: replace(t, offset=t.offset + base) for key, t in part.tensors.items()}
        records += [replace(r, name=f"{name}: {r.name}", offset=r.offset + base) for r in part.records]
        extents |= {key: (start + base, end + base) for key, (start, end) in part.extents.items()}
        notes += [f"{name}: {note}" for note in part.notes]
        others |= part.others
        meta |= part.meta
        metadata |= part.metadata
        left |= {entry: left.get(entry, 0) + n for entry, n in part.left.items()}
        shards.append(Shard(name, part.path, part.size, part.stamp))
        base += part.size
    return Checkpoint(
        path=path,
        size=base + index_size,
        format=parts[0][1].format,
        wrapper=parts[0][1].wrapper,
        tensors=tensors,
        records=tuple(records),
        notes=tuple(notes),
        others=frozenset(others),
        meta=meta,
        metadata=metadata,
        extents=extents,
        partial=any(part.partial for _, part in parts),
        left=left,
        shards=tuple(shards),
    )
