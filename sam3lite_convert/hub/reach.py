"""Whether the Hub answers, and what the client goes by: its endpoint, where its token comes from."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import constants

from sam3lite_convert.errors import CannotRun, Sam3LiteError
from sam3lite_convert.hub.bounds import is_hub
from sam3lite_convert.hub.log import masked_url
from sam3lite_convert.hub.requests import LONGEST_TOKEN, hub_faults
from sam3lite_convert.hub.tree import read_info, read_user
from sam3lite_convert.opened import read_small
from sam3lite_convert.unforeseen import expected
from sam3lite_convert.workers import Worker

_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
# Errors of a Hub that answered: they are about the repository or the token.
_ANSWERED = ("no_such_repository", "no_access", "no_such_revision", "rate_limited")


class Answer(NamedTuple):
    """The outcome of one request. ``value``: None if it failed. ``fault``: None if it did not. ``seconds`` until
    then, or those that it was waited for."""

    value: str | None
    fault: Sam3LiteError | None
    seconds: float

    @property
    def answered(self) -> bool:
        """Whether the Hub answered, be it with a refusal."""
        return self.value is not None or (self.fault is not None and self.fault.code in _ANSWERED)


def endpoint() -> str:
    """The address of the Hub, without user name and password. Raises CannotRun if it is no address of the web."""
    shown = masked_url(constants.ENDPOINT)
    if not is_hub(constants.ENDPOINT):
        raise CannotRun(f"HF_ENDPOINT is {shown}, which is not the URL of a Hub", "bad_environment")
    return shown


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE keeps the client from asking the Hub."""
    return bool(constants.HF_HUB_OFFLINE)


def token_origin() -> str | None:
    """Where the token of requests comes from; None if there is none. Asks nobody.

    Raises CannotRun if the file of the token cannot be read.
    """
    if os.environ.get("HF_OIDC_RESOURCE"):
        return "HF_OIDC_RESOURCE"
    for name in _TOKENS:
        if os.environ.get(name, "").strip():
            return name
    return constants.HF_TOKEN_PATH if _in_file().strip() else None


def secrets() -> set[str]:
    """The tokens that are set here, as they stand there and as they are sent."""
    raw = {os.environ.get(name, "") for name in _TOKENS}
    with suppress(CannotRun):
        raw.add(_in_file())
    return {shape for text in raw for shape in (text, text.strip(), "".join(text.splitlines()).strip()) if shape}


def _in_file() -> str:
    path = Path(constants.HF_TOKEN_PATH)
    return read_small(path, LONGEST_TOKEN).decode("utf-8", "replace") if os.path.lexists(path) else ""


def ask(repo: str, with_user: bool, limit: float) -> tuple[Answer, Answer | None]:
    """Ask the Hub for a repository and, ``with_user``, for the user whose token is set, both at once and once each.

    ``limit``: seconds for both together; what has not answered by then is left to itself.
    """
    ends = time.monotonic() + limit
    info = Worker(lambda: _timed(repo, lambda: read_info(repo, tries=1).name))
    user = Worker(lambda: _timed(repo, lambda: read_user(tries=1))) if with_user else None
    return _in_time(info, ends, limit), None if user is None else _in_time(user, ends, limit)


def _timed(repo: str, call: Callable[[], str]) -> Answer:
    begun = time.monotonic()
    try:
        with hub_faults(repo):
            value = call()
    except Exception as fault:
        return Answer(None, expected(fault), time.monotonic() - begun)
    return Answer(value, None, time.monotonic() - begun)


def _in_time(worker: Worker[Answer], ends: float, limit: float) -> Answer:
    worker.join(max(ends - time.monotonic(), 0))
    if worker.is_alive():
        return Answer(None, CannotRun(f"no answer within {limit:g} seconds", "no_network"), limit)
    return worker.result()
