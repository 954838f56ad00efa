"""Requests to the Hub: how long they are waited for, when they are made again, and their faults in words.

Faults become one sentence each, without secrets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from huggingface_hub import constants, set_client_factory
from huggingface_hub.errors import (
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._http import default_client_factory

from sam3lite_convert.errors import CannotRun, Sam3LiteError
from sam3lite_convert.hub import log

TIMEOUT = 60.0  # seconds without a byte; the library's client waits for ever
_TRANSIENT = (408, 429, 500, 502, 503, 504)
_TRIES = 4
_LONGEST_WAIT = 60.0  # seconds; a server that asks for more is told of instead
_NO_NETWORK = (
    "Files that were downloaded before are used from the cache. 'sam3lite demo' shows the whole job without a network."
)


T = TypeVar("T")


def _client() -> Any:
    client: Any = default_client_factory()
    client.event_hooks = {**client.event_hooks, "request": [*client.event_hooks["request"], _limit]}
    return client


def _limit(request: Any) -> None:
    # Parts of the library ask for no limit at all.
    stated = request.extensions.get("timeout") or {}
    phases = ("connect", "read", "write", "pool")
    request.extensions["timeout"] = {p: TIMEOUT if stated.get(p) is None else stated[p] for p in phases}


def take_over_client() -> None:
    """Give every request of the process a time limit, and the client's notes to the command line's channel."""
    set_client_factory(_client)
    log.take_over_logging()


if log.taken_over:
    take_over_client()


def retried(call: Callable[[], T], tries: int = _TRIES) -> T:
    """The result of a request: again after a server's fault or a broken connection, with the pause that
    the server asks for. ``tries``: fewer for what the library repeats by itself."""
    for attempt in range(1, tries + 1):
        try:
            return call()
        except Exception as fault:
            wait = _pause(fault, attempt)
            if wait is None or attempt == tries:
                raise
            log.LOG.warning(
                "the Hub did not do as asked (%s); again in %d s", first_line(fault) or type(fault).__name__, wait
            )
        time.sleep(wait)
    raise AssertionError


def _pause(fault: BaseException, attempt: int) -> float | None:
    """Seconds to wait before the request is made again; None where that would not help."""
    fault = _behind(fault)
    usual = float(2 ** (attempt - 1))
    if isinstance(fault, HfHubHTTPError):
        asked = fault.response.headers.get("Retry-After", "")
        wait = float(asked) if asked.isdigit() else usual
        return wait if fault.response.status_code in _TRANSIENT and wait <= _LONGEST_WAIT else None
    # Neither a full disk nor a network that is not there is waited for. A port that nobody listens on,
    # and a request that cannot be sent, stay so.
    lasting = _is_named(fault, "ConnectError") or _is_named(fault, "LocalProtocolError")
    silent = _is_named(fault, "TimeoutException") and attempt > 1
    return usual if _is_transport(fault) and not lasting and not silent else None


def _behind(fault: BaseException) -> BaseException:
    """The fault of the request behind what the library makes of it: 'not in the cache either', 'error
    while uploading'."""
    cause = fault.__cause__
    wrapped = isinstance(fault, LocalEntryNotFoundError) or type(fault) in (RuntimeError, ValueError)
    return cause if wrapped and (isinstance(cause, HfHubHTTPError) or _is_transport(cause)) and cause else fault


def _is_named(fault: BaseException | None, name: str) -> bool:
    """Whether it is this fault of the HTTP library, whichever one this version of the client uses."""
    return any(c.__name__ == name for c in type(fault).__mro__)


def _is_transport(fault: BaseException | None) -> bool:
    return _is_named(fault, "TransportError")


@contextmanager
def hub_faults(repo: str, doing: str = "read") -> Iterator[None]:
    """Faults of the client as CannotRun, one sentence each; ``doing``: ``read`` or ``write``."""
    try:
        yield
    except Sam3LiteError:
        raise
    except Exception as fault:
        if isinstance(fault, OSError) and fault.errno is not None and not isinstance(fault, ConnectionError):
            raise  # of this machine: the disk, a folder
        raise _in_words(fault, repo, doing) from fault


def _in_words(fault: BaseException, repo: str, doing: str) -> CannotRun:
    where = f"the Hub ({constants.ENDPOINT})"
    login = "Log in with 'hf auth login', or set HF_TOKEN"
    fault = _behind(fault)
    right = "with a token that may write there" if doing == "write" else "with a token that may read it"
    if isinstance(fault, GatedRepoError):
        return CannotRun(f"{repo} is gated: accept its conditions on its page. {login} {right}.", "no_access")
    if isinstance(fault, RevisionNotFoundError):
        return CannotRun(f"{repo} has no such revision; see --revision", "no_such_revision")
    if isinstance(fault, RepositoryNotFoundError):
        if fault.response.status_code == 401:
            return CannotRun(
                f"{where} has no public repository {repo}, or does not accept the token. Check the name; for a private "
                f"one, {login[0].lower()}{login[1:]} {right}.",
                "no_such_repository",
            )
        return CannotRun(f"{where} has no repository {repo}, or it is private. {login} {right}.", "no_such_repository")
    if isinstance(fault, HfHubHTTPError):
        return _status_in_words(fault, repo, where, f"{login} {right}")
    if isinstance(fault, OfflineModeIsEnabled):
        return CannotRun(f"HF_HUB_OFFLINE is set, so {where} is not asked. {_NO_NETWORK}", "no_network")
    if isinstance(fault, LocalEntryNotFoundError):
        return CannotRun(f"{where} cannot be reached, and the file is not in the cache. {_NO_NETWORK}", "no_network")
    if isinstance(fault, EntryNotFoundError):
        return CannotRun(f"{repo} has no such file", "no_such_file")
    if isinstance(fault, HFValidationError):
        return CannotRun(f"{repo} is no name of a repository (NAMESPACE/NAME): {fault}", "usage")
    if isinstance(fault, FileMetadataError):
        return CannotRun(f"{where} did not answer as one does: {first_line(fault)}", "hub_fault")
    if isinstance(fault, UnicodeError) or _is_named(fault, "LocalProtocolError"):
        return CannotRun(
            f"the token cannot be sent: it holds something that no token holds. {login} {right}.", "no_access"
        )
    if _is_transport(fault):
        what = first_line(fault) or type(fault).__name__
        return CannotRun(f"{where} cannot be reached ({what}). {_NO_NETWORK}", "no_network")
    if isinstance(fault, LocalTokenNotFoundError):
        return CannotRun(f"no token is set. {login} {right}.", "no_token")
    if isinstance(fault, OSError) and "onsistency" in str(fault):
        return CannotRun(
            f"the download from {repo} came out with another length than {where} states; nothing was kept. Run the "
            "command again.",
            "download_incomplete",
        )
    # The libraries raise as they like: what no Hub says, and what a transfer breaks with.
    what = first_line(fault) or type(fault).__name__
    if doing == "write":
        return CannotRun(f"{where}: {what}.", "push_failed")
    return CannotRun(f"{where} did not answer as one does ({what}); see HF_ENDPOINT and the proxy", "hub_fault")


def _status_in_words(fault: HfHubHTTPError, repo: str, where: str, login: str) -> CannotRun:
    status = fault.response.status_code
    said = f" It says: {first_line(fault.server_message).rstrip('.')}." if fault.server_message else ""
    if status in (401, 403):
        return CannotRun(f"{where} refuses access to {repo} ({status}).{said} {login}.", "no_access")
    if status == 404:
        return CannotRun(f"{where} does not find that in {repo} (404).{said}", "no_such_file")
    if status == 429:
        wait = fault.response.headers.get("Retry-After")
        later = f" in {wait} seconds" if wait else " later"
        return CannotRun(f"{where} has had too many requests (429). Run the command again{later}.", "rate_limited")
    if status >= 500:
        return CannotRun(f"{where} has a fault of its own ({status}).{said} Run the command again later.", "hub_fault")
    return CannotRun(f"{where} refused a request about {repo} ({status}).{said}", "hub_refused")


def first_line(said: object) -> str:
    """The first line of what an exception says, without secrets: neither the query of an address, which
    may be signed, nor a token."""
    lines = str(said).strip().splitlines()
    return log.without_secrets(lines[0]) if lines else ""
