"""What stands at a place in the file system, and whether it is still what stood there: others write there too."""

from __future__ import annotations

import difflib
import hashlib
import os
import stat
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

MOST_ENTRIES = 10_000  # of a folder, among which one is sought that was misspelt
_LISTED = 4  # names in a message
_KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISREG, "a file"), (stat.S_ISLNK, "a link"))


def nearest(name: str, there: Iterable[str], like: float) -> list[str]:
    """Up to three of these names, the most alike first; only those that differ in case alone, if there are such."""
    lower = {one.lower(): one for one in sorted(there)}
    if name.lower() in lower:
        return [lower[name.lower()]]
    return [lower[one] for one in difflib.get_close_matches(name.lower(), lower, 3, like)]


def stamp(found: os.stat_result) -> tuple[int, ...]:
    """Identity, size and times of a file in nanoseconds, then what else changes its last time: mode, owner, links."""
    own = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return (*own, found.st_mode, found.st_uid, found.st_gid, found.st_nlink)


def same_content(before: tuple[int, ...], now: tuple[int, ...]) -> bool:
    """Whether two stamps are of one file that was not written to in between. Another hard link, owner or mode, with
    the time of that change, is no other content."""
    return before == now or (before[:4] == now[:4] and before[5:] != now[5:])


@dataclass(frozen=True)
class _Entry:
    """One entry of a folder, or the folder itself; links are not followed."""

    kind: int
    stamp: tuple[int, ...]

    @classmethod
    def of(cls, found: os.stat_result) -> _Entry:
        return cls(stat.S_IFMT(found.st_mode), stamp(found))

    def is_renamed(self, now: _Entry) -> bool:
        """Whether ``now`` is the same file with the same content; a rename alone changes its time of change."""
        return (self.kind, *self.stamp[:4]) == (now.kind, *now.stamp[:4])

    def still(self, now: _Entry) -> bool:
        """Whether ``now`` is the same entry with the same content, as far as the system tells."""
        # Some file systems give a file another number each time; what is equal then is its size and its times.
        return self.kind == now.kind and (self.stamp[2:5] == now.stamp[2:5] or same_content(self.stamp, now.stamp))


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
        of = [(name, *e.stamp[1:4]) for name, e in sorted(self.entries.items())]
        own = self.itself.stamp[1 : 2 if self.is_folder else 4]
        return hashlib.sha256(repr((own, of)).encode("utf-8", "surrogatepass")).digest()

    def difference(self, now: Seen) -> str | None:
        """How what stands there now differs from this, in words; None if it does not."""
        if self.itself is None:
            return None if now.itself is None else now._appeared()
        if now.itself is None or now.itself.kind != self.itself.kind:
            return f"{now.kind} stands there now"
        if not self.is_folder:
            return None if self.itself.is_renamed(now.itself) else "it was changed or replaced"
        if self.itself.stamp[:2] != now.itself.stamp[:2]:
            return "another folder stands there now"
        both = self.entries.keys() & now.entries.keys()
        groups = {
            "added": now.entries.keys() - both,
            "removed": self.entries.keys() - both,
            "changed": [name for name in both if not self.entries[name].still(now.entries[name])],
        }
        parts = [f"{_listed(names)} {'was' if len(names) == 1 else 'were'} {k}" for k, names in groups.items() if names]
        return "; ".join(parts) or None

    def is_other(self, now: Seen) -> bool:
        """Whether ``now`` is something else than this, or a file whose content changed; of a folder the entries may
        have changed."""
        if self.itself is not None and now.itself is not None and self.is_folder and now.is_folder:
            return self.itself.stamp[:2] != now.itself.stamp[:2]
        return self.difference(now) is not None

    def _appeared(self) -> str:
        names = f" with {_listed(self.entries)}" if self.entries else ""
        return f"{self.kind}{names} was put there"


NOTHING = Seen(None)


def look(place: Path) -> Seen:
    """What stands at a place. Raises OSError if it cannot be looked at."""
    try:
        itself = _Entry.of(os.lstat(place))
        names = os.listdir(place) if stat.S_ISDIR(itself.kind) else []
    except (FileNotFoundError, NotADirectoryError):
        return NOTHING
    entries = {}
    for name in names:
        with suppress(FileNotFoundError):  # removed just now
            entries[name] = _Entry.of(os.lstat(place / name))
    return Seen(itself, entries)


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
