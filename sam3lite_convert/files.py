"""Files that are written as a whole or not at all, locks, and free disk space."""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from sam3lite_convert.errors import CannotRun
from sam3lite_convert.figures import human_bytes
from sam3lite_convert.opened import NO_WAIT, is_regular, is_there

if TYPE_CHECKING:
    from sam3lite_convert.records.record import Json


def write_whole(path: Path, data: bytes) -> None:
    """Write one file as a whole, or leave an existing one unchanged; also removes leftovers of killed runs.

    Raises CannotRun if it cannot be written.
    """
    write_pieces(path, (data,))


def write_pieces(path: Path, pieces: Iterable[bytes]) -> None:
    """``write_whole`` of data that comes piece by piece, so that it is never in memory as a whole."""
    with whole_file(path) as out:
        for piece in pieces:
            out.write(piece)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A new file beside ``path``, open for writing, that takes its place at the end; on an error it is removed, and an
    existing file is unchanged.

    Raises CannotRun if the file system reports an error.
    """
    work, held = None, None
    try:
        check_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(path)
        work, held = working_place(path, _new_file)
        with open(work, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        work.chmod(0o666 & ~umask())
        check_replaceable(path)
        os.replace(work, path)
    except OSError as fault:
        raise CannotRun(f"{path}: {fault.strerror or fault}; nothing was written there", "cannot_write") from fault
    finally:
        if work is not None:
            work.unlink(missing_ok=True)
        if held is not None:
            os.close(held)


def check_replaceable(path: Path) -> None:
    """Raises CannotRun if what is there, with links followed, is no regular file: a device of the system in the place
    of an output would be replaced for everybody."""
    if path.is_dir():
        raise CannotRun(f"{path} is a folder, not a file", "cannot_write")
    if is_there(path) and not is_regular(path):
        raise CannotRun(f"{path} is not a regular file, so it was not replaced; choose another name", "cannot_write")


def _new_file(prefix: str, dir: Path) -> str:
    handle, name = tempfile.mkstemp(prefix=prefix, dir=dir)
    os.close(handle)
    return name


def write_text(path: Path, text: str) -> None:
    """Write and sync a small file."""
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())


def json_bytes(data: Json) -> bytes:
    """JSON, readable by people; the same data gives the same bytes."""
    return (json.dumps(data, indent=2) + "\n").encode()


def write_json(path: Path, data: Json) -> None:
    """Write and sync JSON."""
    write_text(path, json_bytes(data).decode())


def check_space(place: Path, nbytes: int, what: str) -> None:
    """Raises CannotRun if the disk of ``place`` (which need not exist) has less than ``nbytes`` bytes free.

    ``what``: the purpose, for the message: "to write ..." or "to download ...".
    """
    free = shutil.disk_usage(_existing(place)).free
    if free < nbytes:
        needed = human_bytes(nbytes)
        raise CannotRun(f"not enough disk space {what}: {needed} needed, {human_bytes(free)} free", "no_space")


def same_disk(one: Path, other: Path) -> bool:
    """Whether two paths, which need not exist, are on the same disk."""
    return _existing(one).stat().st_dev == _existing(other).stat().st_dev


def resolved(path: Path) -> Path:
    """The path with all links followed. Raises CannotRun if the links form a loop."""
    try:
        found = path.resolve()
    except RuntimeError:  # Python before 3.13
        found = path
    if found.is_symlink():
        raise CannotRun(f"{path}: its symbolic links form a loop", "links_in_a_circle")
    return found


def _existing(place: Path) -> Path:
    place = resolved(place)
    while not place.exists():
        place = place.parent
    return place


def working_place(final: Path, make: Callable[..., str]) -> tuple[Path, int | None]:
    """Create a working folder or file beside ``final``; returns it and the handle of its lock, or None."""
    for last in (False, False, True):
        # Random, not the process id: every container may have the same ids.
        work = Path(make(prefix=f".{final.name}.partial-", dir=final.parent))
        held = _hold(work)
        if last or (held is not None and work.exists()):
            break
        # Another run took it for a leftover before it was locked, or the file system has no locks.
        _remove(work)
        if held is not None:
            os.close(held)
    return work, held


def _hold(work: Path) -> int | None:
    """Lock a working folder or file until the process ends; a leftover of a killed run is unlocked.

    Returns the handle of the lock; None if another process holds it or locks are not available.
    """
    try:
        import fcntl
    except ImportError:
        return None
    handle = None
    try:
        handle = os.open(work, NO_WAIT)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if handle is not None:
            os.close(handle)
        return None
    return handle


def clear_leftovers(folder: Path) -> None:
    """Remove leftovers of killed runs beside ``folder``; working folders of running processes are kept.

    If a run was killed while it replaced ``folder``, the old folder is restored.
    """
    final = resolved(folder)
    for work in _left(final, "partial"):
        held = _hold(work)
        if held is None:
            continue
        old = sibling_place(work, "old")
        try:
            if old.exists() and not final.exists():
                os.rename(old, final)
            _remove(work)
        except OSError:
            continue  # the plan lists it among its notes
        finally:
            os.close(held)
    for old in _left(final, "old"):
        work = sibling_place(old, "partial")
        if final.exists() and not work.exists():  # the replacement was completed
            shutil.rmtree(old, ignore_errors=True)


def _remove(work: Path) -> None:
    if work.is_dir():
        shutil.rmtree(work, ignore_errors=True)
    else:
        work.unlink(missing_ok=True)


def leftovers(folder: Path) -> list[Path]:
    """Working folders and files that interrupted runs left beside ``folder``."""
    final = resolved(folder)
    return sorted([*_left(final, "partial"), *_left(final, "old")])


def _left(final: Path, kind: str) -> list[Path]:
    return sorted(final.parent.glob(f".{glob.escape(final.name)}.{kind}-*"))


def sibling_place(place: Path, kind: str) -> Path:
    """The name that belongs to a working folder with ``kind`` partial (the new folder) or old (the one it replaces)."""
    return place.with_name(re.sub(r"\.(?:partial|old)-(\w+)$", rf".{kind}-\1", place.name))


def umask() -> int:
    """The process's file mode mask."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync_folder(folder: Path) -> None:
    """Sync a folder's entries to disk, on POSIX systems."""
    if os.name != "posix":
        return
    handle = os.open(folder, NO_WAIT)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
