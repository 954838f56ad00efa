"""Turns an exception that no check foresaw into an expected error: what is wrong, and what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar
from urllib.parse import urlsplit

from sam3lite_convert.errors import CannotRun, Internal, Sam3LiteError, in_short

NO_MEMORY = "not enough memory; end other programs, or raise the limit of this one (ulimit -v)"
# What libraries in C and C++ say where they get no memory, each in an exception of its own.
_NO_MEMORY = (
    "can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory", "bad_alloc",
    "bad allocation", "can't start new thread", "failed to map segment", "could not allocate", "unable to allocate",
    "returned null without setting",
)  # fmt: skip


_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def in_our_errors(call: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """A function of the Python API, which raises what a command would end with: what the system refuses, no memory, or
    a name that cannot be one, as a Sam3LiteError. A fault of this tool, or of the caller's own code, stays as it is."""

    @wraps(call)
    def called(*given: _Given.args, **named: _Given.kwargs) -> _Result:
        try:
            return call(*given, **named)
        except Exception as fault:
            if isinstance(told := expected(fault), Internal) or told is fault:
                raise
            raise told from fault

    return called


def expected(fault: BaseException) -> Sam3LiteError:
    """The error that a command ends with, or that a row of several shows, for any exception.

    One that is expected is itself; no memory, what the system refuses, packages that cannot be imported and names that
    are no text are told as what they are; anything else is a fault of this tool (Internal).
    """
    if isinstance(fault, Sam3LiteError):
        return fault
    if lacks_memory(fault):
        return CannotRun(NO_MEMORY, "no_memory")
    if isinstance(fault, ImportError):
        return CannotRun(
            f"a package cannot be imported: {in_short(fault)}. Install this tool and what it needs anew, in an "
            "environment of its own.",
            "broken_package",
        )
    if isinstance(fault, OSError):
        if isinstance(fault, FileNotFoundError) and fault.filename is None and not _has_place():
            return CannotRun("the current folder is gone; change to another (cd) and run it again", "no_current_folder")
        where, why = str(fault.filename or "")[:300], fault.strerror or in_short(fault)
        return CannotRun(f"{where}: {why}".lstrip(": "), "os_error")
    if isinstance(fault, UnicodeEncodeError):
        return CannotRun(
            f"a name or a value holds what is no character ({_around(fault)}); give it another", "not_text"
        )
    if isinstance(fault, ValueError) and str(fault).startswith("embedded null"):
        return CannotRun("a name of a file holds a null byte; give it another", "not_text")
    if isinstance(fault, ValueError) and (why := _bad_environment()):
        return CannotRun(why, "bad_environment")
    return Internal(
        f"this is a fault of sam3lite-convert, not of your files: {type(fault).__name__}: {in_short(fault)}. Please "
        "report it with the traceback, the command, and what 'sam3lite doctor' prints.",
        "internal",
        {"type": type(fault).__name__},
    )


def lacks_memory(fault: BaseException) -> bool:
    """Whether it was for lack of memory, address space or threads, in whichever way a library says that."""
    if isinstance(fault, MemoryError) or (isinstance(fault, OSError) and fault.errno == errno.ENOMEM):
        return True
    if not isinstance(fault, RuntimeError | ImportError | OSError | SystemError | ValueError):
        return False
    text = str(fault).lower()
    return any(words in text for words in _NO_MEMORY)


def _bad_environment() -> str:
    """What is wrong with the variables that the Hub's client reads when it is imported; empty if nothing is."""
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        value = os.environ.get(name, "1")
        if not (value.isascii() and value.isdigit()):
            return f"{name} is {value[:100]!r}, which is no whole number of seconds; set another, or unset it"
    try:
        _ = urlsplit(os.environ.get("HF_ENDPOINT", "")).port
    except ValueError as fault:
        shown = os.environ["HF_ENDPOINT"].rpartition("@")[2][:100]  # a password may stand before it
        why = "" if "@" in str(fault) else f" ({fault})"
        return f"HF_ENDPOINT is {shown!r}, which is no URL{why}; set another, or unset it"
    return ""


def _has_place() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def _around(fault: UnicodeEncodeError) -> str:
    return ascii(fault.object[max(fault.start - 20, 0) : fault.end])
