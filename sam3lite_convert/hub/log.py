"""Notes to the user while the Hub is being waited for, from this package and from huggingface_hub.

The command line sets the destination with ``send_to`` before huggingface_hub is imported. That library installs its
own log handlers on import; ``take_over`` replaces them afterwards.
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
    """The text without URL queries (which may hold a signature), authorization values and tokens."""
    from huggingface_hub import get_token  # already imported whenever there is a message

    text = re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1", text)
    text = re.sub(r"(?i)(bearer)\s+[^\s'\"]+", r"\1 ...", text)
    with contextlib.suppress(Exception):  # a token file can hold anything
        if token := get_token():
            text = text.replace(token, "...")
    return re.sub(r"hf_[A-Za-z0-9]{8,}", "hf_...", text)


def send_to(say: Callable[[str], None] | None) -> None:
    """Set the function that is called with each note; None to drop notes."""
    _channel.say = say


def take_over() -> logging.Logger:
    """Send messages of huggingface_hub through the channel; returns the logger of this package."""
    ours = logging.getLogger("sam3lite_convert")
    for logger in (logging.getLogger("huggingface_hub"), ours):
        logger.handlers = [_channel]
        logger.propagate = False
    return ours
