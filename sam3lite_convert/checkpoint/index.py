"""The index of a checkpoint as records: names, dtypes, shapes and where the bytes lie."""

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
from sam3lite_convert.errors import Untrusted

# No index is longer. One of 1,300 tensors takes 0.2 MB; a hostile one would cost memory and time.
INDEX_LIMIT = 8 << 20
_LONGEST_NAME = 1000  # characters; the longest of a released file has 117


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file. ``offset`` is the byte position of its first element in the file;
    ``stride`` counts elements, and is the C-contiguous one for nearly every tensor."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    stride: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * dtypes.itemsize(self.dtype)

    @property
    def contiguous(self) -> bool:
        return self.stride == contiguous_stride(self.shape) or self.numel <= 1

    @property
    def span(self) -> int:
        """Elements from the first to behind the last one, as they lie in the file."""
        if self.numel == 0:
            return 0
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))


@dataclass(frozen=True)
class ZipEntry:
    """A stretch of the file with the CRC-32 that its zip directory states."""

    name: str
    offset: int
    nbytes: int
    crc32: int


@dataclass(frozen=True)
class Checkpoint:
    """The index of one file. ``wrapper`` is the entry that held the state dict, None for a bare one;
    ``others`` are the state dict's entries that are no tensors.

    ``hub``: where the file came from, None for a local one. ``partial``: the file has holes; then
    ``records`` are those that have been fetched, ``extents`` gives by key of a tensor the bytes of the
    file (start, end) that its zip record lies in, and the offset of a tensor whose record has not been
    fetched is only a lower bound. ``stamp``: which file it was, and when it was last changed; None for one
    with holes.
    """

    path: Path
    size: int
    format: str  # "zip", "legacy" or "safetensors"
    wrapper: str | None
    tensors: dict[str, StoredTensor]
    records: tuple[ZipEntry, ...] = ()
    notes: tuple[str, ...] = ()
    others: frozenset[str] = frozenset()
    metadata: dict[str, str] = field(default_factory=dict)
    extents: dict[str, tuple[int, int]] = field(default_factory=dict)
    hub: HubFile | None = None
    partial: bool = False
    stamp: tuple[int, ...] | None = None


class FetchedRanges(Protocol):
    """What a reader asks of a copy with holes: which bytes are there."""

    def present(self, offset: int, nbytes: int) -> bool:
        """Whether these bytes of the file have been fetched."""


def stamp_of(file: BinaryIO | Path) -> tuple[int, ...]:
    """What changes where a file is written to, or another takes its name."""
    found = os.stat(file) if isinstance(file, Path) else os.fstat(file.fileno())
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def check_unchanged(checkpoint: Checkpoint, file: BinaryIO | Path) -> None:
    """Raises Untrusted where this is not the file that was indexed, as it was then."""
    if checkpoint.stamp is None:
        return
    with suppress(FileNotFoundError):
        if stamp_of(file) == checkpoint.stamp:
            return
    raise Untrusted(f"{checkpoint.path.name}: the file changed while it was read", "changed_file")


def check_names(names: Iterable[str]) -> None:
    """Raises Untrusted for names that are out to fill or to fake a message: endless, or of several lines."""
    for name in names:
        if len(name) > _LONGEST_NAME or name.splitlines() not in ([name], []):
            raise Untrusted(
                f"the file holds a name that no model has, of {len(name):,} characters: {name[:100]!r}", "strange_name"
            )


def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The stride, in elements, of a C-contiguous tensor of this shape."""
    steps, step = [], 1
    for n in reversed(shape):
        steps.append(step)
        step *= max(n, 1)
    return tuple(reversed(steps))
