"""Expected errors, each with its exit code of the command line."""

from __future__ import annotations

import re

from sam3lite_convert.records.record import JsonValue, json_value

_LONG_WORD = re.compile(r"\S{5000,}")
_ANEW = "Get the file again, or save it anew where it was written"
_STATE_DICT = "Give the file that holds the model's weights, or save model.state_dict() where it was written"
# By code: what to do, for messages that do not say it; those that do end with a full stop.
_ADVICE = {
    "untrusted_file": _ANEW,
    "corrupt_file": _ANEW,
    "truncated_file": _ANEW,
    "repeated_key": _ANEW,
    "strange_name": _ANEW,
    "changed_file": "Run it again when nothing else writes there",
    "big_endian": "Load it where it was written and save it with safetensors.torch.save_file",
    "hostile_pickle": "If you trust the file, load it in the program that wrote it and save only its state dict",
    "not_a_checkpoint": "Give a file that torch.save or safetensors wrote; sam3lite inspect s0 shows a released one",
    "no_state_dict": _STATE_DICT,
    "unknown_text_encoder": "Give the checkpoint as it was trained, with all of its keys",
}


class Sam3LiteError(Exception):
    """An expected error.

    ``message``: what is wrong and what to do. ``code`` is a short stable name for scripts. ``details``: anything that
    JSON can hold, records included; it is kept as JSON values. Of these the command line makes whole commands, which
    it shows behind the message: ``options``, a name and a value to add to what was typed; ``instead``, a path that was
    typed, and a list of those that may be meant.
    """

    exit_code = 2

    def __init__(self, message: str, code: str = "cannot_run", details: object = None) -> None:
        if code in _ADVICE and not message.endswith("."):
            message = f"{message}. {_ADVICE[code]}."
        # A word as long as this is nobody's name; what it is taken from, a table or a file, may be all of it.
        message = _LONG_WORD.sub(lambda word: f"{word[0][:400]}[... {len(word[0]):,} characters]", message)
        super().__init__(message)
        self.message = message
        self.code = code
        self.details: JsonValue = json_value(details)

    def __str__(self) -> str:
        return self.message  # which is made more exact where the fault is caught


def in_short(fault: BaseException) -> str:
    """The message of a library's error in one line of at most 200 characters; some quote the whole file."""
    text = " ".join(str(fault).split()) or type(fault).__name__
    text = text.partition("; use sys.")[0]  # advice to programmers
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


class Internal(Sam3LiteError):
    """Exit 70: a fault of this tool. Where one of several conversions has it, the others go on."""

    exit_code = 70
