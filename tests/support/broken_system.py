"""A file system that fails at one chosen call, for whatever is done below one folder."""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sam3lite_convert import renames

CALLS = (
    "open", "fsync", "rename", "replace", "rmdir", "unlink", "remove", "mkdir", "chmod", "utime", "scandir", "listdir",
    "stat", "lstat", "link", "fstat", "posix_fallocate",
)  # fmt: skip


class _Written:
    """A file that is open for writing, of which each write may fail."""

    def __init__(self, file: Any, call: Callable[[str], None]) -> None:
        self._file, self._call = file, call

    def write(self, data: Any) -> int:
        self._call("write")
        return int(self._file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Written:
        return self

    def __exit__(self, *fault: object) -> None:
        self._file.close()


class BrokenSystem:
    """Counts the calls that concern ``place``, and lets the one with the number ``at`` fail with ``number``; None: none
    fails. ``made``: the names of the calls so far."""

    def __init__(self, place: Path, at: int | None, number: int) -> None:
        self.place, self.at, self.number = str(place), at, number
        self.made: list[str] = []

    def _call(self, name: str) -> None:
        self.made.append(name)
        if self.at is not None and len(self.made) - 1 == self.at:
            raise OSError(self.number, os.strerror(self.number))

    def _concerns(self, argument: object) -> bool:
        if isinstance(argument, int):
            try:
                argument = os.readlink(f"/proc/self/fd/{argument}")
            except OSError:
                return False
        if isinstance(argument, bytes):
            argument = os.fsdecode(argument)
        return isinstance(argument, str | os.PathLike) and os.fspath(argument).startswith(self.place)

    def wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            if any(self._concerns(each) for each in arguments[:2]):
                self._call(name)
            return real(*arguments, **more)

        return call

    def opened(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, mode: str = "r", *arguments: Any, **more: Any) -> Any:
            if not self._concerns(file):
                return real(file, mode, *arguments, **more)
            self._call("open")
            found = real(file, mode, *arguments, **more)
            return _Written(found, self._call) if "w" in mode else found

        return call


@contextmanager
def broken_system(place: Path, at: int | None = None, number: int = errno.EIO) -> Iterator[BrokenSystem]:
    """The system while the block runs."""
    system = BrokenSystem(place, at, number)
    with pytest.MonkeyPatch.context() as patch:
        opened = system.opened(builtins.open)
        wrapped = {name: system.wrapped(name, getattr(os, name)) for name in CALLS}
        exchange = system.wrapped("renameat2", renames._call)
        for name, call in wrapped.items():
            patch.setattr(os, name, call)
        patch.setattr(builtins, "open", opened)
        patch.setattr(io, "open", opened)
        patch.setattr(renames, "_call", exchange)
        yield system
