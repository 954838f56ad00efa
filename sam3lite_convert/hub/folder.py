"""A converted folder that lies in a repository: its small files and the headers of its weights, read by ranges."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from sam3lite_convert.checkpoint.index import Checkpoint, StoredTensor, stamp_of
from sam3lite_convert.checkpoint.one_file import read_file
from sam3lite_convert.checkpoint.origin import HubFile
from sam3lite_convert.checkpoint.selection import NOTHING_STATED, Selection
from sam3lite_convert.errors import CannotRun, Untrusted
from sam3lite_convert.hub.ranges import PartialCopy
from sam3lite_convert.hub.repository import Repository
from sam3lite_convert.opened import read_small

if TYPE_CHECKING:
    from sam3lite_convert.workers import Advance

_SMALL = 16 << 20  # bytes; a JSON or text file of a conversion is far smaller
_SHOWN = (".md", ".gitattributes")  # files that no reader takes


class HubFolder:
    """The top of a repository at one commit, or some of its files, read as a folder. Files in the cache are read there.

    path: OWNER/NAME or OWNER/NAME@revision, for messages.
    files: by path in the folder.
    """

    remote = True

    def __init__(self, repository: Repository, name: str, files: dict[str, HubFile] | None = None) -> None:
        """``files``: None for all that the repository lists. Raises CannotRun if it cannot be listed."""
        self.path = Path(name)
        self.repository = repository
        self.files = self._listed(repository) if files is None else files
        self._copies: dict[str, PartialCopy] = {}
        self._indexed: dict[Path, tuple[str, Checkpoint]] = {}
        self._stack = ExitStack()

    @staticmethod
    def _listed(repository: Repository) -> dict[str, HubFile]:
        listing = repository.listing(noted=True)
        for path in listing.odd:
            # What is judged without one of its files is judged wrongly.
            if "/" not in path and not path.endswith(_SHOWN):
                listing.check(repository.repo, path)
        return {f.path: f for f in listing.files}

    def __enter__(self) -> HubFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Delete the copies; what was downloaded is kept for the next run."""
        self._stack.close()

    @property
    def commit(self) -> str | None:
        """The commit that is read; None if the repository is empty."""
        return next((file.commit for file in self.files.values()), None)

    @property
    def received(self) -> int:
        """Bytes that were downloaded."""
        return sum(copy.received for copy in self._copies.values())

    @property
    def requests(self) -> int:
        """Range requests that were made."""
        return sum(copy.requests for copy in self._copies.values())

    def names(self) -> list[str]:
        """The names of the files at the top, sorted."""
        return sorted(name for name in self.files if "/" not in name)

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return PurePosixPath(name).as_posix() in self.files

    def read(self, name: str) -> bytes:
        """The content of a small file. Raises Untrusted if it has more than 16 MiB, CannotRun if the Hub fails."""
        file = self._file(name)
        if file.size > _SMALL:
            raise Untrusted(f"{self.path}/{name}: is too large to have been written by a conversion", "corrupt_file")
        if file.cached is not None:
            return read_small(file.cached, _SMALL)
        copy = self._copy(name)
        copy.seek(0)
        copy.fetch([(0, file.size)])
        return copy.read(file.size) or b""

    def index(self, name: str, selection: Selection = NOTHING_STATED) -> tuple[Path, Checkpoint]:
        """The file that holds the tensors' bytes once they are fetched, and its index.

        Raises CannotRun if the index cannot be read without the whole file, Untrusted if the file is damaged.
        """
        file = self._file(name)
        if file.cached is not None:
            path, checkpoint = file.cached, read_file(file.cached, selection=selection)
        else:
            copy = self._copy(name)
            path = copy.path
            # A safetensors header is at the front, and is fetched as it is read; a zip's directory is at the end.
            if not name.endswith(".safetensors"):
                head = copy.prepare()
                if not head.startswith(b"PK\x03\x04") and head[8:9] != b"{":
                    raise CannotRun(
                        f"{self.path}/{name} is in a format whose index lies between the tensors, so that it cannot be "
                        "read by ranges; --whole downloads it",
                        "no_ranges",
                    )
            checkpoint = read_file(path, copy, selection)
        self._indexed[path] = (name, checkpoint)
        return path, checkpoint

    def kept(self, name: str) -> tuple[Path, tuple[int, ...] | None]:
        """The file in the cache, with its identity and times, or its partial copy."""
        cached = self._file(name).cached
        return (cached, stamp_of(cached)) if cached else (self._copy(name).path, None)

    def fetched_by_ranges(self, path: Path) -> bool:
        """Whether this file, as ``index`` gave it, is a copy of which only ranges are here."""
        return self._indexed[path][0] in self._copies

    def fetch(self, tensors: Iterable[tuple[Path, StoredTensor]], advance: Advance = lambda n: None) -> None:
        """Download the bytes of these tensors, as ``index`` gave them; the index has to be read again afterwards.

        Raises CannotRun if they cannot be had.
        """
        wanted: dict[str, list[tuple[int, int]]] = {}
        for path, tensor in tensors:
            name, checkpoint = self._indexed[path]
            if name in self._copies:
                wanted.setdefault(name, []).append(checkpoint.extents.get(tensor.key) or tensor.extent)
        for name, ranges in wanted.items():
            self.fetch_ranges(name, ranges, advance)

    def fetch_ranges(self, name: str, ranges: Iterable[tuple[int, int]], advance: Advance = lambda n: None) -> None:
        """Download what is missing of these ranges (start, end) of a file. Raises CannotRun if they cannot be had."""
        if self._file(name).cached is None:
            self._copy(name).fetch(ranges, advance)

    def holds(self, name: str, extent: tuple[int, int]) -> bool:
        """Whether the bytes of this range of a file are on this machine."""
        return self._file(name).cached is not None or self._copy(name).holds(extent)

    def check_present(self, tensors: Iterable[tuple[Path, StoredTensor]]) -> None:
        """Raises Untrusted if bytes of one of these tensors were not fetched: a hole would be read as zeros."""
        for path, tensor in tensors:
            name, _ = self._indexed[path]
            if not self.holds(name, tensor.extent):
                raise Untrusted(f"{name}: bytes of {tensor.key} lie outside of their record", "corrupt_file")

    def download(self, names: Iterable[str]) -> Path:
        """Download these files through the cache; returns the folder that holds them there.

        Raises CannotRun if a download fails, Untrusted if another file arrived than the Hub lists.
        """
        root: Path | None = None
        for name in names:
            path = self.repository.download(self._file(name))
            root = path.parents[len(PurePosixPath(name).parts) - 1]
        if root is None:
            raise CannotRun(f"{self.path} holds no file that could be verified", "nothing_to_verify")
        return root

    def discard(self) -> None:
        """Delete what was downloaded by ranges, so that the next run downloads it again."""
        for copy in self._copies.values():
            copy.discard()

    def _file(self, name: str) -> HubFile:
        return self.files[PurePosixPath(name).as_posix()]

    def _copy(self, name: str) -> PartialCopy:
        if name not in self._copies:
            self._copies[name] = self._stack.enter_context(PartialCopy(self.repository, self._file(name)))
        return self._copies[name]
