"""Whole files, locks and free space: a file or folder appears whole or not at all."""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sam3lite_convert.errors import CannotRun
from sam3lite_convert.figures import human_bytes

if TYPE_CHECKING:
    from sam3lite_convert.records.record import Json


def write_whole(path: Path, data: bytes) -> None:
    """Write one file outside a converted folder, or into one that is there: it appears whole, or what was there
    stays. What a run that was killed left of it goes.

    Raises CannotRun where it cannot be written.
    """
    work, held = None, None
    try:
        if path.is_dir():
            raise CannotRun(f"{path} is a folder; name a file", "cannot_write")
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(path)
        work, held = working_place(path, _new_file)
        with open(work, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        work.chmod(0o666 & ~umask())
        os.replace(work, path)
    except OSError as fault:
        raise CannotRun(f"{path}: {fault.strerror or fault}; nothing was written there", "cannot_write") from fault
    finally:
        if work is not None:
            work.unlink(missing_ok=True)
        if held is not None:
            os.close(held)


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
    """Raises CannotRun where the disk that ``place`` (which need not exist) is on has less room."""
    free = shutil.disk_usage(_existing(place)).free
    if free < nbytes:
        needed = human_bytes(nbytes)
        raise CannotRun(f"no space: {what}, {needed}, and {human_bytes(free)} are free there", "no_space")


def same_disk(one: Path, other: Path) -> bool:
    """Whether two places, which need not exist, share their free space."""
    return _existing(one).stat().st_dev == _existing(other).stat().st_dev


def resolved(path: Path) -> Path:
    """The place that a path leads to, links followed. Raises CannotRun for links that lead in a circle."""
    try:
        found = path.resolve()
    except RuntimeError:  # Python before 3.13
        found = path
    if found.is_symlink():
        raise CannotRun(f"{path}: its links lead in a circle", "links_in_a_circle")
    return found


def _existing(place: Path) -> Path:
    place = resolved(place)
    while not place.exists():
        place = place.parent
    return place


def working_place(final: Path, make: Callable[..., str]) -> tuple[Path, int | None]:
    """A new folder or file beside ``final``, and the lock on it."""
    for last in (False, False, True):
        # Unique also among containers, where every process has the same number.
        work = Path(make(prefix=f".{final.name}.partial-", dir=final.parent))
        held = _hold(work)
        if last or (held is not None and work.exists()):
            break
        # Another run has taken it for one that was left behind, or there are no locks here.
        _remove(work)
        if held is not None:
            os.close(held)
    return work, held


def _hold(work: Path) -> int | None:
    """A lock on a working folder or file, which goes with the process however it ends: it tells that of a run that
    is under way from one that was left behind. None where somebody else has it, or there are no such locks."""
    try:
        import fcntl
    except ImportError:
        return None
    handle = None
    try:
        handle = os.open(work, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if handle is not None:
            os.close(handle)
        return None
    return handle


def clear_leftovers(folder: Path) -> None:
    """Remove what runs that were killed left beside ``folder``; one that was killed while it put a new folder in
    the place of an old one gets the old one back. Folders of runs that are under way stay."""
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
            continue  # it is named among the notes of the plan
        finally:
            os.close(held)
    for old in _left(final, "old"):
        work = sibling_place(old, "partial")
        if final.exists() and not work.exists():  # it has become the final one
            shutil.rmtree(old, ignore_errors=True)


def _remove(work: Path) -> None:
    if work.is_dir():
        shutil.rmtree(work, ignore_errors=True)
    else:
        work.unlink(missing_ok=True)


def leftovers(folder: Path) -> list[Path]:
    """Working folders, or files, that an interrupted run left beside ``folder``."""
    final = resolved(folder)
    return sorted([*_left(final, "partial"), *_left(final, "old")])


def _left(final: Path, kind: str) -> list[Path]:
    return sorted(final.parent.glob(f".{glob.escape(final.name)}.{kind}-*"))


def sibling_place(place: Path, kind: str) -> Path:
    """Of a working folder, the place of the old one that it replaces, and the other way round."""
    return place.with_name(re.sub(r"\.(?:partial|old)-(\w+)$", rf".{kind}-\1", place.name))


def umask() -> int:
    """The process's file mode mask."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync_folder(folder: Path) -> None:
    """Sync a folder's entries to disk, where the system has that."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
