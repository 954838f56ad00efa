"""Expected errors, each with its exit code of the command line."""

from __future__ import annotations

from sam3lite_convert.records.record import JsonValue, json_value


class Sam3LiteError(Exception):
    """An expected error.

    ``code`` is a short stable name for scripts. ``details``: anything that JSON can hold, records included; it is
    kept as JSON values.
    """

    exit_code = 2

    def __init__(self, message: str, code: str = "cannot_run", details: object = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.details: JsonValue = json_value(details)


def in_short(fault: BaseException) -> str:
    """The message of a library's error in one line of at most 200 characters; some quote the whole file."""
    text = " ".join(str(fault).split()) or type(fault).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."


class CannotRun(Sam3LiteError):
    """Exit 2: wrong usage, a missing file or package, no network, no disk space."""


class UnsoundPlan(Sam3LiteError):
    """Exit 3: the checkpoint does not match the mapping tables, or its kind is not supported."""

    exit_code = 3


class Untrusted(Sam3LiteError):
    """Exit 4: a truncated, corrupt or hostile file, or one that contradicts itself."""

    exit_code = 4

    def __init__(self, message: str, code: str = "untrusted_file", details: object = None) -> None:
        super().__init__(message, code, details)
