"""A checkpoint in shards on the Hub, of which ranges are downloaded; a shard in the cache is read there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from sam3lite_convert.checkpoint.file_set import is_index
from sam3lite_convert.checkpoint.index import Checkpoint
from sam3lite_convert.checkpoint.origin import HubFile
from sam3lite_convert.checkpoint.selection import Selection
from sam3lite_convert.checkpoint.shards import read_files
from sam3lite_convert.hub.folder import HubFolder
from sam3lite_convert.hub.ranges import Range
from sam3lite_convert.hub.repository import Repository

if TYPE_CHECKING:
    from sam3lite_convert.workers import Advance


class PartialShards:
    """What ``PartialCopy`` is of one file, of several: byte positions are those of ``read_files``."""

    def __init__(self, repository: Repository, file: HubFile) -> None:
        """``file``: of a checkpoint of several files, with its ``parts``."""
        self.file = file
        root = PurePosixPath(file.path).parent
        parts = {PurePosixPath(part.path).relative_to(root).as_posix(): part for part in file.parts}
        self._index = PurePosixPath(file.path).name
        self._folder = HubFolder(repository, f"{repository.repo}/{root}".removesuffix("/."), parts)
        self._sizes = [(name, part.size) for name, part in sorted(parts.items()) if not is_index(name)]
        if is_index(self._index):
            repository.download(parts[self._index])
        self.path = self._folder.kept(self._index)[0]

    @property
    def received(self) -> int:
        """Bytes that were downloaded."""
        return self._folder.received

    @property
    def requests(self) -> int:
        """Range requests that were made."""
        return self._folder.requests

    def indexed(self, selection: Selection) -> Checkpoint:
        """The index of all files, of which no more than that is downloaded. Raises as ``read_files`` does."""
        return read_files(self._folder, self._index, selection)

    def fetch(self, ranges: Iterable[Range], advance: Advance = lambda n: None) -> None:
        """Download what is missing of these ranges (start, end). Raises CannotRun if they cannot be had."""
        wanted: dict[str, list[Range]] = {}
        for extent in ranges:
            for name, start, end in self._places(extent):
                wanted.setdefault(name, []).append((start, end))
        for name, pieces in wanted.items():
            self._folder.fetch_ranges(name, pieces, advance)

    def holds(self, extent: Range) -> bool:
        """Whether the bytes of this range (start, end) are on this machine."""
        return all(self._folder.holds(name, (start, end)) for name, start, end in self._places(extent))

    def _places(self, extent: Range) -> Iterator[tuple[str, int, int]]:
        """(shard, start, end) for the part of a range in every shard."""
        base = 0
        for name, size in self._sizes:
            start, end = max(extent[0] - base, 0), min(extent[1] - base, size)
            if start < end:
                yield name, start, end
            base += size

    def discard(self) -> None:
        """Delete what was downloaded by ranges, so that the next run downloads it again."""
        self._folder.discard()

    def close(self) -> None:
        """Delete the copies; what was downloaded is kept for the next run."""
        self._folder.close()
