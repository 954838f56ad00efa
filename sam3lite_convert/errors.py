"""The foreseeable faults, each with the exit code that the command line promises."""

from __future__ import annotations

from sam3lite_convert.records.record import JsonValue, json_value


class Sam3LiteError(Exception):
    """A foreseeable fault: what is wrong, where, and what to do next.

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
    """What a library says of a fault, in one line of at most 200 characters: some quote the whole file."""
    text = " ".join(str(fault).split()) or type(fault).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."


class CannotRun(Sam3LiteError):
    """Exit 2: usage, a missing file, a missing package, no space."""


class UnsoundPlan(Sam3LiteError):
    """Exit 3: the checkpoint and the tables do not fit together, or the kind is not supported."""

    exit_code = 3


class Untrusted(Sam3LiteError):
    """Exit 4: truncated, corrupt or hostile files, and files that contradict themselves."""

    exit_code = 4

    def __init__(self, message: str, code: str = "untrusted_file", details: object = None) -> None:
        super().__init__(message, code, details)
