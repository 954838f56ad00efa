"""Notes about the Hub, of this package and of the Hub's client: on the command line both go through one channel.

The command line asks for that (``send_to``) before anything of the Hub is imported. In another program nothing of the
client or of its logging is changed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterable

_LONGEST = 500  # characters of a note; a server can have the client say anything
_SHORTEST_TOKEN = 8  # characters; shorter values of the variables are no tokens, and may stand anywhere
LOG = logging.getLogger("sam3lite_convert")
taken_over = False  # whether the command line asked for the channel and for a client of our own


class _Channel(logging.Handler):
    say: Callable[[str], None] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage().strip().splitlines()
        if self.say is not None and text:
            line = without_secrets(text[0])
            self.say("note: " + (line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."))


_channel = _Channel(logging.WARNING)


def without_secrets(text: str) -> str:
    """The text without URL queries (which may hold a signature), passwords in URLs, authorization values and tokens."""
    from huggingface_hub import get_token  # already imported whenever there is a message

    token = None
    with contextlib.suppress(Exception):  # a token file can hold anything
        token = get_token()
    return without(text, [token or ""])


def without(text: str, secrets: Iterable[str]) -> str:
    """The text without these secrets, and without what ``without_secrets`` leaves out by its form."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "...")
    text = re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1", text)
    text = re.sub(r"(\w://)[^\s/@'\"]*@", r"\1***@", text)
    text = re.sub(r"(?i)(bearer)\s+[^\s'\"]+", r"\1 ...", text)
    return re.sub(r"hf_[A-Za-z0-9]{8,}", "hf_...", text)


def without_tokens(text: str) -> str:
    """The text without tokens of the Hub, by their form and as the environment has them. Imports nothing."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        token = os.environ.get(name, "").strip()
        text = text.replace(token, "...") if len(token) >= _SHORTEST_TOKEN else text
    return re.sub(r"hf_[A-Za-z0-9]{30,}", "hf_...", text)


def masked_url(text: str) -> str:
    """A URL as people set it in variables, perhaps a wrong one, without user name, password, query and fragment."""
    scheme, separator, rest = text.partition("://") if "://" in text else ("", "", text)
    held, _, host = rest.rpartition("@")  # a password may hold anything
    return f"{scheme}{separator}{'***@' if held else ''}{re.split('[?#]', host)[0]}"


def send_to(say: Callable[[str], None] | None) -> None:
    """Where notes go from now on; None for nowhere. For the command line alone: it changes the whole process."""
    global taken_over
    _channel.say = say
    taken_over = True


def take_over_logging() -> None:
    """Send what the Hub's client, which has been imported, and this package log through the channel."""
    for logger in (logging.getLogger("huggingface_hub"), LOG):
        logger.handlers = [_channel]
        logger.propagate = False
