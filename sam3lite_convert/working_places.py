"""Working folders and files beside what they become: their names, locks, and what interrupted runs left of them.

A name ends in four parts of eight characters: a random one; the inode of the new folder or file; a digest of what it
is to replace; and a check of these. So a later run can tell, without any other record, what is left over from a run of
this tool, and whether it is the new folder, the earlier one, or something that somebody else put in its place
meanwhile. What has such a name by chance, or was named so by hand, is left alone.
"""

from __future__ import annotations

import base64
import errno
import glob
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sam3lite_convert.opened import NO_WAIT
from sam3lite_convert.renames import move_to_free
from sam3lite_convert.seen import NOTHING, Seen, identity, look

_PART = 8  # characters
_NAME = re.compile(r"^\.(.+)\.(partial|old)-(\w+)$", re.DOTALL)
_NO_LINK = os.O_NOFOLLOW | os.O_CLOEXEC if os.name == "posix" else getattr(os, "O_BINARY", 0)
_LONGEST = 160  # bytes of the name that a working name repeats; file systems take 255


@dataclass(frozen=True)
class WorkingPlace:
    """A new folder or file that is to become ``final``; ``path``: where it lies; ``number``: its device and inode;
    ``lock``: the handle of its lock, None where there are no locks."""

    path: Path
    final: Path
    number: tuple[int, int]
    lock: int | None

    @property
    def aside(self) -> Path:
        """Where what it replaces is put, where two names cannot be exchanged."""
        found = _NAME.match(self.path.name)
        assert found is not None
        return self.path.with_name(f".{found[1]}.old-{found[3]}")

    def opened(self) -> BinaryIO:
        """The new file, open for writing. Raises OSError if something else lies there by now."""

        def still_empty(path: str, _: int) -> int:
            handle = os.open(path, os.O_WRONLY | _NO_LINK)
            if os.fstat(handle).st_size:
                os.close(handle)
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
            return handle

        return open(self.path, "wb", opener=still_empty)

    def remove(self) -> None:
        """Remove the new folder or file if it still lies there; what else does is not touched. Never fails."""
        with suppress(OSError):
            place = self._now()
            if identity(place) == self.number:
                _remove(place)

    def _now(self) -> Path:
        """Where it lies if it has not become ``final``: a folder above may have been renamed meanwhile."""
        if self.lock is not None and not os.path.lexists(self.path):
            with suppress(OSError):
                found = Path(os.readlink(f"/proc/self/fd/{self.lock}"))
                if found.name == self.path.name:
                    return found
        return self.path

    def close(self) -> None:
        """Give up its lock."""
        if self.lock is not None:
            os.close(self.lock)


def working_place(final: Path, folder: bool, earlier: Seen) -> WorkingPlace:
    """Create an empty working folder or file beside ``final``, which is to replace ``earlier``.

    That its rename succeeds shows that the file system can rename. Raises OSError.
    """
    for last in (False, False, True):
        made = _beside(final, "partial", _part(b"not known yet"), earlier)
        if folder:
            os.mkdir(made, 0o700)
        else:
            os.close(os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        try:
            number = identity(made) or (0, 0)
            path = _beside(final, "partial", _inode_part(number[1]), earlier)
            move_to_free(made, path)
        except BaseException:
            _remove_empty(made)
            raise
        lock = hold(path)
        place = WorkingPlace(path, final, number, lock)
        kept = False
        try:
            kept = last or (lock is not None and identity(path) == number)
        finally:
            # Else another run took it for a leftover before it was locked, or the file system has no locks.
            if not kept:
                place.remove()
                place.close()
        if kept:
            break
    return place


def _beside(final: Path, kind: str, inode: str, earlier: Seen) -> Path:
    # Random, not the process id: every container may have the same ids.
    parts = _part(os.urandom(16)) + inode + _seen_part(earlier)
    return final.with_name(f".{_stem(final)}.{kind}-{parts}{_part(parts.encode())}")


def _part(data: bytes) -> str:
    return base64.b32encode(hashlib.sha256(b"sam3lite " + data).digest()[:5]).decode().lower()


def _inode_part(inode: int) -> str:
    return _part(b"inode %d" % inode)


def _seen_part(seen: Seen) -> str:
    return _part(seen.digest())


def _stem(final: Path) -> str:
    name = os.fsencode(final.name)
    if len(name) <= _LONGEST:
        return final.name
    return f"{final.name[: _LONGEST // 4]}-{_part(name)}"


@dataclass(frozen=True)
class _Leftover:
    """Something beside its final place that has a working name. ``inode``: the part that stands for the inode of the
    new one; ``replaces``: that of the earlier one."""

    path: Path
    kind: str
    inode: str = ""
    replaces: str = ""

    @classmethod
    def of(cls, path: Path) -> _Leftover | None:
        """None if nothing shows that it is ours, and somebody would miss it."""
        found = _NAME.match(path.name)
        if found is None:
            return None
        parts, check = found[3][: 3 * _PART], found[3][3 * _PART :]
        if len(parts) == 3 * _PART and check == _part(parts.encode()):
            return cls(path, found[2], parts[_PART : 2 * _PART], parts[2 * _PART :])
        nameless = cls(path, found[2])
        return nameless if found[2] == "partial" and nameless.is_empty() else None

    def is_empty(self) -> bool:
        """Whether it is a folder or file without content. No, if it cannot be looked at."""
        with suppress(OSError):
            found = os.lstat(self.path)
            if stat.S_ISDIR(found.st_mode):
                return not os.listdir(self.path)
            return stat.S_ISREG(found.st_mode) and found.st_size == 0
        return False

    def is_new(self) -> bool:
        """Whether it is what the run was writing."""
        return self.kind == "partial" and _inode_part((identity(self.path) or (0, 0))[1]) == self.inode


def clear_leftovers(final: Path) -> None:
    """Remove what killed runs left beside ``final`` (with links followed); working folders of running processes are
    kept.

    What was taken out of the place is put back if nothing stands there now; otherwise it is removed if it is what the
    run was told to replace, and kept if it is not.
    """
    for left in _ours(final):
        lock = hold(left.path)
        if lock is None:
            continue
        # What cannot be removed is listed among the notes of the plan.
        try:
            with suppress(OSError):
                if left.is_empty():
                    _remove_empty(left.path)
                elif left.is_new():
                    _remove(left.path)
                elif not os.path.lexists(final):
                    move_to_free(left.path, final)
                elif _seen_part(seen := look(left.path)) == left.replaces:
                    discard(left.path, seen, final)
        finally:
            os.close(lock)


def discard(taken: Path, seen: Seen, final: Path) -> None:
    """Remove a folder or file that was taken out and looked at, under a name that tells a later run to go on with it
    if this one is killed. What appeared in it, or in its place, since it was ``seen`` is kept under a name that is not
    hidden. Never fails."""
    with suppress(OSError):
        number = identity(taken)
        if number is None:
            return
        doomed = _beside(final, "partial", _inode_part(number[1]), NOTHING)
        move_to_free(taken, doomed)
        if seen.is_other(look(doomed)):
            move_to_free(doomed, visible(final))
            return
        if not seen.is_folder:
            os.unlink(doomed)
            return
        for name in seen.entries:
            with suppress(OSError):
                _remove(doomed / name)
        try:
            os.rmdir(doomed)
        except OSError:
            if not {path.name for path in doomed.iterdir()} <= seen.entries.keys():
                move_to_free(doomed, visible(final))


def visible(final: Path) -> Path:
    """A free name beside ``final`` for what somebody may want to have back."""
    return final.with_name(f"{_stem(final)}.kept-{_part(os.urandom(16))}")


def leftovers(final: Path) -> list[Path]:
    """Working folders and files that interrupted runs left beside ``final``, and that the next run removes."""
    return [left.path for left in _ours(final)]


def alike(final: Path) -> list[Path]:
    """What is named as if it were left over beside ``final``, but is not, or not as this version names it."""
    return [path for path in _named(final) if _Leftover.of(path) is None]


def finished_name(path: Path) -> str:
    """The name that a file which a killed run left unfinished would have got; of others, their own."""
    found = _NAME.match(path.name)
    return found[1] if found and found[2] == "partial" and _Leftover.of(path) else path.name


def _ours(final: Path) -> Iterator[_Leftover]:
    return filter(None, map(_Leftover.of, _named(final)))


def _named(final: Path) -> list[Path]:
    pattern = f".{glob.escape(_stem(final))}"
    return sorted(path for kind in ("partial", "old") for path in final.parent.glob(f"{pattern}.{kind}-*"))


def _remove(work: Path) -> None:
    if work.is_dir() and not work.is_symlink():
        shutil.rmtree(work, ignore_errors=True)
    else:
        work.unlink(missing_ok=True)


def _remove_empty(made: Path) -> None:
    with suppress(OSError):
        if made.is_dir() and not made.is_symlink():
            os.rmdir(made)
        else:
            os.unlink(made)


def hold(place: Path) -> int | None:
    """Lock a folder or file until the process ends; a leftover of a killed run is unlocked.

    Returns the handle of the lock; None if another process holds it or locks are not available.
    """
    try:
        import fcntl
    except ImportError:
        return None
    handle = None
    try:
        handle = os.open(place, NO_WAIT | os.O_NOFOLLOW)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if handle is not None:
            os.close(handle)
        return None
    return handle
