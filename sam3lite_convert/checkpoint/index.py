"""The index of a checkpoint: names, dtypes, shapes and byte positions of its tensors."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

from sam3lite_convert.checkpoint import dtypes
from sam3lite_convert.checkpoint.origin import HubFile
from sam3lite_convert.checkpoint.selection import NOTHING_STATED, Selection
from sam3lite_convert.errors import Untrusted
from sam3lite_convert.records.record import Json
from sam3lite_convert.seen import same_content, stamp

# No index is longer. One of 1,300 tensors takes 0.2 MB; a hostile one would cost memory and time.
INDEX_LIMIT = 8 << 20
_LONGEST_NAME = 1000  # characters; the longest of a released file has 117


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file.

    ``offset``: byte position of its first element in the file; below zero for one that the file lacks and that is
    taken to be all zeros.
    ``stride``: in elements; C-contiguous for nearly every tensor.
    ``parts``: of a tensor that is made of others, these: its elements in C order are those of the first, then those of
    the second, and so on. It has no offset of its own.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    stride: tuple[int, ...]
    parts: tuple[StoredTensor, ...] = ()

    @property
    def absent(self) -> bool:
        """Whether the file lacks it, so that it is taken to be all zeros."""
        return all(part.absent for part in self.parts) if self.parts else self.offset < 0

    @property
    def stored(self) -> tuple[StoredTensor, ...]:
        """The tensors of the file that its bytes come from: itself, or those that it is made of."""
        if self.parts:
            return tuple(stored for part in self.parts for stored in part.stored)
        return () if self.absent else (self,)

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * dtypes.itemsize(self.dtype)

    @property
    def contiguous(self) -> bool:
        return not self.parts and (self.stride == contiguous_stride(self.shape) or self.numel <= 1)

    @property
    def span(self) -> int:
        """Length of its range in the file, in elements: from the first to the last one, inclusive. Of a tensor that
        is made of others it says nothing about the file."""
        if self.numel == 0:
            return 0
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))

    @property
    def overlaps(self) -> bool:
        """Whether elements share bytes, as those of an expanded tensor do."""
        return any(part.overlaps for part in self.parts) if self.parts else self.numel > self.span

    @property
    def extent(self) -> tuple[int, int]:
        """Its byte range in the file: start, and end behind the last byte. Of what is made of others, ask each of
        ``stored``."""
        return self.offset, self.offset + self.span * dtypes.itemsize(self.dtype)


def zeros(key: str, dtype: str, shape: tuple[int, ...]) -> StoredTensor:
    """A tensor that no file holds, and that is read as zeros."""
    nbytes = math.prod(shape) * dtypes.itemsize(dtype)
    return StoredTensor(key, dtype, shape, -max(nbytes, 1), contiguous_stride(shape))


def joined(key: str, shape: tuple[int, ...], parts: Iterable[StoredTensor]) -> StoredTensor:
    """A tensor whose elements in C order are those of ``parts``, one after another.

    Raises ValueError if they are of several dtypes or not as many elements as ``shape`` has.
    """
    parts = tuple(parts)
    kinds = {part.dtype for part in parts}
    if len(kinds) != 1:
        raise ValueError(f"cannot be joined: {' and '.join(sorted(kinds))}")
    if sum(part.numel for part in parts) != math.prod(shape):
        raise ValueError("cannot be joined: their elements do not fill it")
    return StoredTensor(key, kinds.pop(), shape, -1, contiguous_stride(shape), parts)


@dataclass(frozen=True)
class ZipEntry:
    """One entry of a zip archive: byte range of its data, and the CRC-32 from the directory."""

    name: str
    offset: int
    nbytes: int
    crc32: int


@dataclass(frozen=True)
class Shard:
    """One of the files that hold the tensors of a checkpoint in shards.

    ``name``: as the index has it; ``size`` in bytes; ``stamp``: identity and time of last change, None for a partial
    copy.
    """

    name: str
    path: Path
    size: int
    stamp: tuple[int, ...] | None


@dataclass(frozen=True)
class TurnedBack:
    """What the file of a checkpoint holds, where that is a layout and not the original: the checkpoint's tensors are
    made of the file's.

    ``layout``: the name of the layout; ``component``: what of the model it is. ``names``: what writes those names, in
        words.
    ``keys``: by key of the checkpoint, the keys in the file of what it is made of.
    ``copies``: pairs of tensors of the file, under their keys there, that hold one tensor of the original: the first is
        used, the second has to be equal.
    ``why``: by key that stands as it is in the file, why it could not be turned back. ``unmade``: the keys of the
        original that could not be made, of which those were parts.
    """

    layout: str
    component: str
    names: str
    keys: dict[str, tuple[str, ...]]
    copies: tuple[tuple[StoredTensor, StoredTensor], ...] = ()
    why: dict[str, str] = field(default_factory=dict)
    unmade: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Checkpoint:
    """The index of one file, or of shards that are read as one file, in which each begins where the one before ends.

    ``path``: the file, or the index of shards. ``size``: of the file, or of the index and its shards together.
    ``wrapper``: the entry that holds the state dict; None if the file is the state dict itself.
    ``tensors``: by key, in the order of the file.
    ``records``: the zip entries; of a partial copy, those that are downloaded.
    ``others``: entries of the state dict that are not tensors.
    ``meta``: whole numbers of the file's ``meta`` entry, by key.
    ``extents``: of a partial copy, by tensor key, the byte range (start, end) that contains its zip entry.
    ``hub``: origin of the file; None for a local file.
    ``partial``: whether it is a partial copy. The offset of a tensor that is not downloaded is a lower bound.
    ``stamp``: identity and time of last change of the file; None for a partial copy.
    ``selection``: what the user states about the file.
    ``left``: number of tensors in the other entries of the file, by path.
    ``shards``: in their order; none if ``path`` holds the tensors itself.
    ``turned_back``: what the file holds, if that is not what is told here; None for a file in the original's names.
    ``config``: the content of the config.json beside it, if it is a folder's in the names of a layout; None if not, or
        if there is none.
    """

    path: Path
    size: int
    format: str  # "zip", "legacy" or "safetensors"
    wrapper: str | None
    tensors: dict[str, StoredTensor]
    records: tuple[ZipEntry, ...] = ()
    notes: tuple[str, ...] = ()
    others: frozenset[str] = frozenset()
    meta: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    extents: dict[str, tuple[int, int]] = field(default_factory=dict)
    hub: HubFile | None = None
    partial: bool = False
    stamp: tuple[int, ...] | None = None
    selection: Selection = NOTHING_STATED
    left: dict[str, int] = field(default_factory=dict)
    shards: tuple[Shard, ...] = ()
    turned_back: TurnedBack | None = None
    config: Json | None = None

    @property
    def taken(self) -> str | None:
        """Which entry of the file holds the weights, and what others hold, in words; None for a plain file."""
        if self.wrapper in (None, "model", "state_dict") and not self.left:
            return None
        left = ", ".join(f"{path} ({n:,} tensors)" for path, n in self.left.items())
        where = f"the entry {self.wrapper}" if self.wrapper else "the file itself"
        return f"the weights are those of {where}" + (f"; not read: {left}" if left else "")


class FetchedRanges(Protocol):
    """The part of a partial copy that the readers need."""

    def present(self, offset: int, nbytes: int) -> bool:
        """Whether these bytes of the file have been downloaded."""


def stamp_of(file: BinaryIO | Path) -> tuple[int, ...]:
    """Identity, size and times of a file; of ``same_content`` as long as it is not written to or replaced."""
    return stamp(os.stat(file) if isinstance(file, Path) else os.fstat(file.fileno()))


def files_of(checkpoint: Checkpoint) -> tuple[Checkpoint | Shard, ...]:
    """What stands for each of the files of a checkpoint, with its path and stamp: the index, then the shards."""
    return checkpoint, *checkpoint.shards


def check_unchanged(checkpoint: Checkpoint | Shard, file: BinaryIO | Path) -> None:
    """Raises Untrusted if the file, or of several that with the index of shards, was changed or replaced after it was
    indexed."""
    if checkpoint.stamp is None:
        return
    with suppress(FileNotFoundError):
        if same_content(checkpoint.stamp, stamp_of(file)):
            return
    raise Untrusted(f"{checkpoint.path.name}: the file changed while it was read", "changed_file")


def check_names(names: Iterable[str]) -> None:
    """Raises Untrusted for names that could flood or fake a message: over 1,000 characters, or several lines."""
    for name in names:
        if len(name) > _LONGEST_NAME or name.splitlines() not in ([name], []):
            raise Untrusted(
                f"the file holds an invalid name of {len(name):,} characters: {name[:100]!r}", "strange_name"
            )


def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The stride, in elements, of a C-contiguous tensor of this shape."""
    steps, step = [], 1
    for n in reversed(shape):
        steps.append(step)
        step *= max(n, 1)
    return tuple(reversed(steps))
