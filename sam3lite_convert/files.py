"""Files that are written as a whole or not at all, and free disk space."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from sam3lite_convert.errors import CannotRun
from sam3lite_convert.figures import human_bytes
from sam3lite_convert.seen import Seen, look
from sam3lite_convert.swap import put_in_place, sync_file
from sam3lite_convert.working_places import clear_leftovers, working_place

if TYPE_CHECKING:
    from sam3lite_convert.records.record import Json


def write_whole(path: Path, data: bytes, earlier: Seen | None = None) -> None:
    """Write one file as a whole, or leave an existing one unchanged; also removes leftovers of killed runs.

    ``earlier``: as for ``whole_file``. Raises CannotRun as ``whole_file`` does.
    """
    write_pieces(path, (data,), earlier)


def write_pieces(path: Path, pieces: Iterable[bytes], earlier: Seen | None = None) -> None:
    """``write_whole`` of data that comes piece by piece, so that it is never in memory as a whole."""
    with whole_file(path, earlier) as out:
        for piece in pieces:
            out.write(piece)


@contextmanager
def whole_file(path: Path, earlier: Seen | None = None) -> Iterator[BinaryIO]:
    """A new file beside ``path``, open for writing, that takes its place at the end; on an error it is removed, and an
    existing file is unchanged.

    ``earlier``: what stood there when the run began, and may be replaced; None for what stands there now.

    Raises CannotRun if the file system reports an error ("cannot_write"), or if something else stands there at the
    end ("output_changed").
    """
    work = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(path)
        earlier = earlier or place_of_file(path)
        work = working_place(path, False, earlier)
        with work.opened() as out:
            yield out
            out.flush()
            sync_file(out.fileno())
        work.path.chmod(0o666 & ~umask())
        put_in_place(work, earlier)
    except OSError as fault:
        raise CannotRun(f"{path}: {fault.strerror or fault}; nothing was written there", "cannot_write") from fault
    finally:
        if work is not None:
            work.remove()
            work.close()


def place_of_file(path: Path) -> Seen:
    """What stands where a file is to be written. Raises CannotRun if it is something else than a regular file, with
    links followed: a device of the system in the place of an output would be replaced for everybody."""
    earlier = look(path)
    if earlier.itself is not None and not earlier.may_be_file:
        raise CannotRun(f"{path} is {earlier.kind}, not a file; choose another name", "cannot_write")
    return earlier


def write_text(path: Path, text: str) -> None:
    """Write and sync a small file."""
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as out:
        out.write(text)
        out.flush()
        sync_file(out.fileno())


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
    free = shutil.disk_usage(existing(place)).free
    if free < nbytes:
        needed = human_bytes(nbytes)
        raise CannotRun(f"not enough disk space {what}: {needed} needed, {human_bytes(free)} free", "no_space")


def same_disk(one: Path, other: Path) -> bool:
    """Whether two paths, which need not exist, are on the same disk."""
    return existing(one).stat().st_dev == existing(other).stat().st_dev


def resolved(path: Path) -> Path:
    """The path with all links followed. Raises CannotRun if the links form a loop."""
    try:
        found = path.resolve()
    except RuntimeError:  # Python before 3.13
        found = path
    if found.is_symlink():
        raise CannotRun(f"{path}: its symbolic links form a loop", "links_in_a_circle")
    return found


def existing(place: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    place = resolved(place)
    while not place.exists():
        place = place.parent
    return place


def umask() -> int:
    """The process's file mode mask."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
