"""Renames that never replace what they were not told to: exchange of two names, and moving to a free name."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

_AT_FDCWD = -100
_NOREPLACE, _EXCHANGE = 1, 2
# The file system, the kernel or a container's filter does not know the call.
_UNKNOWN = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM, errno.ENOTTY)
_OCCUPIED = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR)


@cache
def _renameat2() -> Callable[..., int] | None:
    """The system's call, where it has one (Linux)."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        found = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return None
    found.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    found.restype = ctypes.c_int
    return found


def _call(source: Path, target: Path, flag: int) -> bool:
    call = _renameat2()
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNKNOWN:
        return False
    raise OSError(number, os.strerror(number), str(source), None, str(target))


def exchange(one: Path, other: Path) -> bool:
    """Exchange what two names stand for, in one step; False where that cannot be done, and nothing was.

    Raises OSError, FileNotFoundError if one of them is not there.
    """
    return _call(one, other, _EXCHANGE)


def move_to_free(source: Path, place: Path) -> None:
    """Rename to a name where nothing stands, or to that of an empty folder, if the source is a folder.

    Raises FileExistsError if something else stands there, or OSError; then nothing was changed.
    """
    if source.is_dir() and not source.is_symlink():
        _move_folder(source, place)
    elif not _call(source, place, _NOREPLACE):
        try:
            os.link(source, place, follow_symlinks=False)
        except FileExistsError:
            raise
        except (OSError, NotImplementedError):  # a file system without hard links
            if os.path.lexists(place):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(place)) from None
            os.rename(source, place)
        else:
            os.unlink(source)


def _move_folder(source: Path, place: Path) -> None:
    # The rename of a folder replaces nothing but an empty folder, everywhere.
    try:
        os.rename(source, place)
        return
    except OSError as fault:
        why = fault
    try:
        # An empty folder in a lower layer of an overlay; on Windows, any empty folder.
        os.rmdir(place)
    except FileNotFoundError:
        raise why from None
    except OSError as fault:
        if fault.errno in _OCCUPIED:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(place)) from None
        raise why from None
    try:
        os.rename(source, place)
    except OSError:
        os.mkdir(place)
        raise
