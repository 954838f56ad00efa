"""Ends the process when anything is run, written or imported: nothing in a file may cause it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_WRITES = ("os.system", "os.exec", "os.posix_spawn", "os.remove", "os.rename", "os.mkdir", "subprocess.Popen", "socket")
_RUNS = ("exec", "compile", "marshal.loads", "ctypes.dlopen")
_CODECS = ("ascii", "cp437", "latin-1", "raw-unicode-escape", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be")
_CODECS += ("utf-32", "utf-32-le", "utf-32-be")  # which json tells apart
_PARSED = "<unknown>"  # the file name with which ast.parse compiles: to a tree, which is not run


class Executed(BaseException):
    """Something was run, opened or imported that reading a file has no use for."""


@functools.cache
def _hooked() -> dict[str, bool]:
    """What the hook, which cannot be taken off again, looks at: whether it forbids anything now."""
    for codec in _CODECS:
        "".encode(codec)  # imported when first used, and these are used
    state = {"on": False}

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if not state["on"] or (event == "compile" and arguments[1] == _PARSED):
            return
        foreign = event == "import" and arguments[0] not in sys.modules
        if foreign or event in _RUNS or event.startswith(_WRITES):
            state["on"] = False  # printing what was found compiles and imports
            raise Executed(f"{event} {arguments!r}"[:300])

    sys.addaudithook(watch)
    return state


@contextmanager
def forbidden() -> Iterator[None]:
    """Inside, running, writing or importing anything raises Executed."""
    state = _hooked()
    state["on"] = True
    try:
        yield
    finally:
        state["on"] = False
