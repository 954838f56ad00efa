"""Turns an exception that no check foresaw into an expected error: what is wrong, and what to do."""

from __future__ import annotations

import errno

from sam3lite_convert.errors import CannotRun, Internal, Sam3LiteError, in_short

NO_MEMORY = "not enough memory; end other programs, or raise the limit of this one (ulimit -v)"
# What libraries in C and C++ say where they get no memory, each in an exception of its own.
_NO_MEMORY = (
    "can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory", "bad_alloc",
    "bad allocation", "can't start new thread", "failed to map segment", "could not allocate", "unable to allocate",
)  # fmt: skip


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
        return CannotRun(f"{fault.filename or ''}: {fault.strerror or fault}".lstrip(": "), "os_error")
    if isinstance(fault, UnicodeEncodeError):
        return CannotRun(
            f"a name or a value holds what is no character ({_around(fault)}); give it another", "not_text"
        )
    return Internal(
        f"this is a fault of sam3lite-convert, not of your files: {type(fault).__name__}: {in_short(fault)}. Please "
        "report it with the traceback, the command, and what 'sam3lite --version' prints.",
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


def _around(fault: UnicodeEncodeError) -> str:
    return ascii(fault.object[max(fault.start - 20, 0) : fault.end])
