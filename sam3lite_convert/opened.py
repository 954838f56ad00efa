"""Opens every file that comes from others: a regular file of a sane size, without ever waiting for one to answer."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from io import BufferedReader, FileIO
from pathlib import Path

from sam3lite_convert.errors import CannotRun
from sam3lite_convert.figures import human_bytes

_KINDS = (
    (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
)  # fmt: skip
# A pipe that something else puts in the file's place between the look at it and the opening is not waited for;
# a terminal does not become this process's. Windows has neither.
NO_WAIT = (
    os.O_RDONLY
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)
_PIECE = 64 << 10  # bytes
_PIPE_SECONDS = 15  # for all that a pipe has to say


def open_regular(path: Path, most: int | None = None) -> BufferedReader:
    """A regular file, with links followed, open for reading from its start.

    ``most``: the bytes that such a file may have; None for any size.

    Raises CannotRun: "no_such_file", "no_permission", "not_a_file" for a folder, pipe, socket or device, "too_large",
    "links_in_a_circle", or "cannot_open" for whatever else the system says.
    """
    check_regular(path, most)  # a device is not even opened: that alone may do something

    def opened(name: str, flags: int) -> int:
        handle = os.open(name, NO_WAIT)
        try:
            found = os.fstat(handle)
            _check(path, found, most)
            if not found.st_size and os.read(handle, 1):  # of /proc, where a log without news has nothing to read yet
                os.lseek(handle, 0, os.SEEK_SET)
        except BaseException:
            os.close(handle)
            raise
        return handle

    try:
        return BufferedReader(FileIO(os.fspath(path), opener=opened))
    except OSError as fault:
        raise _in_words(path, fault) from None


def check_regular(path: Path, most: int | None = None) -> os.stat_result:
    """What ``open_regular`` raises, for a file that a library will open by its name; returns what ``stat`` says."""
    try:
        found = os.stat(path)
    except (OSError, ValueError) as fault:
        raise _in_words(path, fault) from None
    _check(path, found, most)
    return found


def read_small(path: Path, most: int) -> bytes:
    """The content of a regular file of at most ``most`` bytes, whatever size the system states for it.

    Raises CannotRun as ``open_regular`` does.
    """
    try:
        with open_regular(path, most) as file:
            return _read_up_to(path, file.raw.read, most)
    except OSError as fault:
        raise _in_words(path, fault) from None


def read_small_text(path: Path, most: int, encoding: str = "utf-8") -> str:
    """The text of a regular file of at most ``most`` bytes, its line ends as ``\\n``.

    Raises CannotRun as ``open_regular`` does, and "not_text" if it is not in this encoding.
    """
    return text_of(path, read_small(path, most), encoding)


def text_of(path: Path, data: bytes, encoding: str = "utf-8") -> str:
    """The text of a file's bytes, its line ends as ``\\n``.

    Raises CannotRun "not_text" if it is not in this encoding.
    """
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as fault:
        name = "UTF-8" if encoding.startswith("utf-8") else encoding
        raise CannotRun(
            f"{path}: cannot be read as {name} text ({fault.reason} at byte {fault.start:,}); save it as {name}",
            "not_text",
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_stream(path: Path, most: int) -> bytes:
    """As ``read_small``, and a pipe too, as ``<(command)`` of a shell is: read to its end, for at most 15 seconds. One
    that nothing writes to is empty.

    Raises CannotRun as ``read_small`` does, and "cannot_open" for a pipe that does not end in time.
    """
    try:
        if not stat.S_ISFIFO(os.stat(path).st_mode):
            return read_small(path, most)
        handle = os.open(path, NO_WAIT)
        try:
            ends = time.monotonic() + _PIPE_SECONDS
            return _read_up_to(path, lambda n: _from_pipe(path, handle, n, ends), most)
        finally:
            os.close(handle)
    except (OSError, ValueError) as fault:
        raise _in_words(path, fault) from None


def holds(path: Path, data: bytes) -> bool:
    """Whether there is a regular file with exactly this content; no, if it cannot be read."""
    try:
        return read_small(path, len(data)) == data
    except CannotRun:
        return False


def is_regular(path: Path) -> bool:
    """Whether there is such a regular file, with links followed; no, if it cannot be looked at."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def is_there(path: Path) -> bool:
    """Whether something that is no folder stands under this name, with links followed: also what ``open_regular``
    refuses, so that it is named and not passed over."""
    try:
        return not stat.S_ISDIR(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as fault:
        return fault.errno == errno.EACCES


def _from_pipe(path: Path, handle: int, n: int, ends: float) -> bytes:
    while True:
        try:
            return os.read(handle, n)
        except BlockingIOError:  # something has it open for writing, and is silent
            if time.monotonic() > ends:
                raise CannotRun(
                    f"{path}: the pipe did not end within {_PIPE_SECONDS} seconds; write it to a file first",
                    "cannot_open",
                ) from None
            time.sleep(0.02)


def _read_up_to(path: Path, read: Callable[[int], bytes | None], most: int) -> bytes:
    """What ``read`` gives until its end: a file may be longer than is stated, as those of /proc are, or still grow."""
    data = bytearray()
    while True:
        piece = read(min(_PIECE, most + 1 - len(data)))
        if piece is None:
            raise _in_words(path, BlockingIOError(errno.EAGAIN, ""))
        if not piece:
            return bytes(data)
        data += piece
        if len(data) > most:
            raise _too_large(path, None, most)


def _check(path: Path, found: os.stat_result, most: int | None) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(found.st_mode)), "something else")
        raise CannotRun(f"{path} is not a regular file but {kind}; give a file", "not_a_file")
    if most is not None and found.st_size > most:
        raise _too_large(path, found.st_size, most)


def _too_large(path: Path, size: int | None, most: int) -> CannotRun:
    held = "more than that" if size is None else human_bytes(size)
    return CannotRun(
        f"{path}: is too large: such a file may have {human_bytes(most)}, and this one has {held}. Give the right file",
        "too_large",
        {"most": most},
    )


def _in_words(path: Path, fault: Exception) -> CannotRun:
    number = fault.errno if isinstance(fault, OSError) else None
    if number == errno.ENOENT:
        if os.path.islink(path):
            return CannotRun(f"{path}: no such file: it is a link to {os.readlink(path)}", "no_such_file")
        return CannotRun(f"{path}: no such file", "no_such_file")
    if number in (errno.EACCES, errno.EPERM):
        return CannotRun(f"{path}: permission denied", "no_permission")
    if number == errno.ELOOP:
        return CannotRun(f"{path}: its symbolic links form a loop", "links_in_a_circle")
    if number in (errno.EAGAIN, errno.ESPIPE):  # the kernel's log
        return CannotRun(f"{path}: gives its data only as they come; copy it to a file first", "not_a_file")
    if number == errno.ENXIO:  # a socket
        return CannotRun(f"{path} is not a regular file; give a file", "not_a_file")
    if isinstance(fault, ValueError):  # a NUL in the name
        return CannotRun(f"{str(path)!r} is no name of a file", "no_such_file")
    return CannotRun(f"{path}: {fault.strerror or fault}" if isinstance(fault, OSError) else str(fault), "cannot_open")
