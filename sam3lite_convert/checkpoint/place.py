"""Where a folder lies, on this machine or in a repository on the Hub, and how its files are read there."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from sam3lite_convert.checkpoint.file_set import has_file, json_object
from sam3lite_convert.checkpoint.index import Checkpoint, stamp_of
from sam3lite_convert.checkpoint.one_file import read_file
from sam3lite_convert.checkpoint.selection import NOTHING_STATED, Selection
from sam3lite_convert.errors import CannotRun, Untrusted, in_short
from sam3lite_convert.opened import read_small
from sam3lite_convert.records.record import Json

JSON_LIMIT = 16 << 20  # bytes; the receipt of 1,300 tensors takes 0.4 MB


class Place(Protocol):
    """Where a folder lies: on this machine, or in a repository on the Hub."""

    path: Path

    @property
    def remote(self) -> bool:
        """Whether reading costs requests."""

    def names(self) -> list[str]:
        """The names of the files at the top of the folder, sorted."""

    def has(self, name: str) -> bool:
        """Whether there is such a file; ``name``: relative, with slashes."""

    def read(self, name: str) -> bytes:
        """The content of a small file. Raises Untrusted if it is too large to be one."""

    def index(self, name: str, selection: Selection = NOTHING_STATED) -> tuple[Path, Checkpoint]:
        """The file on this machine that holds the tensors' bytes, or will when they are fetched, and its index.

        ``selection``: what the user states about it.
        """

    def kept(self, name: str) -> tuple[Path, tuple[int, ...] | None]:
        """Where a small file that was read is on this machine, with its identity and times (``stamp_of``) then; None
        for those of a partial copy."""


class LocalPlace:
    """A folder on this machine. ``stamps``: of the files that were read."""

    remote = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stamps: dict[Path, tuple[int, ...]] = {}

    def names(self) -> list[str]:
        """The names of the files in it, sorted."""
        return sorted(p.name for p in self.path.iterdir() if p.is_file())

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return has_file(self.path, name)

    def read(self, name: str) -> bytes:
        """The content of a file of at most 16 MiB. Raises Untrusted if it is larger, CannotRun if it cannot be read."""
        path = self.path / name
        try:
            stamp = stamp_of(path)
            data = read_small(path, JSON_LIMIT)
        except OSError as fault:
            raise CannotRun(f"{path}: cannot be read ({in_short(fault)})", "cannot_open") from fault
        except CannotRun as fault:
            if fault.code == "too_large":
                raise Untrusted(f"{path}: is too large to have been written by a conversion", "corrupt_file") from None
            raise
        self.stamps[path] = stamp
        return data

    def index(self, name: str, selection: Selection = NOTHING_STATED) -> tuple[Path, Checkpoint]:
        """The file and its index. Raises as ``read_file`` does."""
        path = self.path / name
        checkpoint = read_file(path, selection=selection)
        if checkpoint.stamp is not None:
            self.stamps[path] = checkpoint.stamp
        return path, checkpoint

    def kept(self, name: str) -> tuple[Path, tuple[int, ...] | None]:
        """The file, and its identity and times when it was read."""
        return self.path / name, self.stamps.get(self.path / name)


def read_json(place: Place, name: str) -> Json | None:
    """The content of a JSON file; None if there is no such file. Raises Untrusted if it is not a JSON object."""
    return json_object(place.read(name), place.path / name) if place.has(name) else None
