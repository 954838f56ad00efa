"""What is to be said while the Hub is waited for: one channel, for this package and the Hub's library.

The command line says where it goes (``send_to``) before anything of the Hub is imported; the library
sets up its own output when it is imported, so that is taken over afterwards.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable


class _Channel(logging.Handler):
    say: Callable[[str], None] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage().strip().splitlines()
        if self.say is not None and text:
            self.say("note: " + without_secrets(text[0]))


_channel = _Channel(logging.WARNING)


def without_secrets(text: str) -> str:
    """The text without queries of addresses (which may be signed), authorization values, and tokens."""
    from huggingface_hub import get_token  # imported long since where there is something to hide

    text = re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1", text)
    text = re.sub(r"(?i)(bearer)\s+[^\s'\"]+", r"\1 ...", text)
    with contextlib.suppress(Exception):  # a token file can hold anything
        if token := get_token():
            text = text.replace(token, "...")
    return re.sub(r"hf_[A-Za-z0-9]{8,}", "hf_...", text)


def send_to(say: Callable[[str], None] | None) -> None:
    """Where notes go from now on; None for nowhere."""
    _channel.say = say


def take_over() -> logging.Logger:
    """Have the Hub's library, which has been imported, speak through the channel; returns our logger."""
    ours = logging.getLogger("sam3lite_convert")
    for logger in (logging.getLogger("huggingface_hub"), ours):
        logger.handlers = [_channel]
        logger.propagate = False
    return ours
