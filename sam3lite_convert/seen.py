"""What stands at a place in the file system, and whether it is still what stood there: others write there too."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_LISTED = 4  # names in a message
_KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISREG, "a file"), (stat.S_ISLNK, "a link"))


@dataclass(frozen=True)
class _Entry:
    """One entry of a folder, or the folder itself; links are not followed. Times in nanoseconds."""

    kind: int
    device: int
    inode: int
    size: int
    written: int
    changed: int
    marks: tuple[int, ...]  # what chmod, chown and hard links change, with the time of change

    @classmethod
    def of(cls, found: os.stat_result) -> _Entry:
        marks = (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, found.st_nlink)
        kind = stat.S_IFMT(found.st_mode)
        return cls(
            kind, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, marks
        )  # fmt: skip

    def is_renamed(self, now: _Entry) -> bool:
        """Whether ``now`` is the same file with the same content; a rename alone changes its time of change."""
        before = (self.kind, self.device, self.inode, self.size, self.written)
        return before == (now.kind, now.device, now.inode, now.size, now.written)

    def still(self, now: _Entry) -> bool:
        """Whether ``now`` is the same entry with the same content, as far as the system tells."""
        if (self.kind, self.size, self.written) != (now.kind, now.size, now.written):
            return False
        if self.changed == now.changed:  # file systems that number their files anew each time are among us
            return True
        return self.inode == now.inode and self.marks != now.marks


@dataclass(frozen=True)
class Seen:
    """What stood at a place: ``itself``, None for nothing; of a folder also its ``entries`` by name. Folders in it are
    not looked into."""

    itself: _Entry | None
    entries: Mapping[str, _Entry] = field(default_factory=dict)

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder, and no link to one."""
        return self.itself is not None and stat.S_ISDIR(self.itself.kind)

    @property
    def may_be_file(self) -> bool:
        """Whether it is a regular file, or a link."""
        return self.itself is not None and self.itself.kind in (stat.S_IFREG, stat.S_IFLNK)

    @property
    def is_empty_folder(self) -> bool:
        """Whether it is a folder without entries."""
        return self.is_folder and not self.entries

    @property
    def kind(self) -> str:
        """What it is, in words."""
        if self.itself is None:
            return "nothing"
        return next((words for is_kind, words in _KINDS if is_kind(self.itself.kind)), "something that is no file")

    def digest(self) -> bytes:
        """Stands for all that would differ if it were another one or had another content."""
        if self.itself is None:
            return b"nothing"
        of = [(name, e.inode, e.size, e.written) for name, e in sorted(self.entries.items())]
        own = () if self.is_folder else (self.itself.size, self.itself.written)
        return hashlib.sha256(repr((self.itself.inode, own, of)).encode("utf-8", "surrogatepass")).digest()

    def difference(self, now: Seen) -> str | None:
        """How what stands there now differs from this, in words; None if it does not."""
        if self.itself is None:
            return None if now.itself is None else now._appeared()
        if now.itself is None or now.itself.kind != self.itself.kind:
            return f"{now.kind} stands there now"
        if not self.is_folder:
            return None if self.itself.is_renamed(now.itself) else "it was changed or replaced"
        if (self.itself.device, self.itself.inode) != (now.itself.device, now.itself.inode):
            return "another folder stands there now"
        both = self.entries.keys() & now.entries.keys()
        groups = {
            "added": now.entries.keys() - both,
            "removed": self.entries.keys() - both,
            "changed": [name for name in both if not self.entries[name].still(now.entries[name])],
        }
        parts = [f"{_listed(names)} {'was' if len(names) == 1 else 'were'} {k}" for k, names in groups.items() if names]
        return "; ".join(parts) or None

    def _appeared(self) -> str:
        names = f" with {_listed(self.entries)}" if self.entries else ""
        return f"{self.kind}{names} was put there"


NOTHING = Seen(None)


def look(place: Path) -> Seen:
    """What stands at a place. Raises OSError if it cannot be looked at."""
    try:
        itself = _Entry.of(os.lstat(place))
        if not stat.S_ISDIR(itself.kind):
            return Seen(itself)
        with os.scandir(place) as entries:
            return Seen(itself, {entry.name: _Entry.of(os.lstat(entry.path)) for entry in entries})
    except FileNotFoundError:
        return NOTHING


def identity(place: Path) -> tuple[int, int] | None:
    """Device and inode of what stands at a place, links not followed; None for nothing. Raises OSError."""
    try:
        found = os.lstat(place)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _listed(names: Collection[str]) -> str:
    more = f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
    return f"{', '.join(sorted(names)[:_LISTED])}{more}"
