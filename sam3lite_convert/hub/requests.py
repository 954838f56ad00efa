"""Requests to the Hub: the command line's client, retries, and errors as messages without secrets."""

from __future__ import annotations

import os
import re
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import constants, get_token, set_client_factory
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
from sam3lite_convert.hub.bounds import (
    LONGEST_WAIT,
    TIMEOUT,
    TRANSIENT,
    asked_pause,
    check_request,
    check_response,
    the_hub,
    too_long,
    unexpected,
    watch_connections,
)
from sam3lite_convert.opened import check_regular
from sam3lite_convert.quoting import visible

TRIES = 4
LONGEST_TOKEN = 1 << 16  # bytes of its file
_LONGEST_LINE = 300  # characters of what a server or a library says
NO_NETWORK = "Cached files work offline. 'sam3lite demo' runs all commands without a network."
# Variables that name certificates: the client's, and those of others that it does not read.
_READ, _UNREAD = ("SSL_CERT_FILE", "SSL_CERT_DIR"), ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
INVALID_NAME = "{} is not a valid repository name: OWNER/NAME, of letters, digits, '-', '_' and '.'"

T = TypeVar("T")


def _client() -> Any:
    client: Any = default_client_factory()
    hooks: dict[str, list[Any]] = client.event_hooks
    client.event_hooks = {
        "request": [*hooks.get("request", []), _limit, check_request],
        "response": [check_response, *hooks.get("response", [])],
    }
    watch_connections(client)
    return client


def _limit(request: Any) -> None:
    # Some requests of huggingface_hub set no timeout.
    stated = request.extensions.get("timeout") or {}
    phases = ("connect", "read", "write", "pool")
    request.extensions["timeout"] = {p: TIMEOUT if stated.get(p) is None else stated[p] for p in phases}


def take_over_client() -> None:
    """Give every request of the process its bounds, and the client's notes to the command line's channel."""
    set_client_factory(_client)
    log.take_over_logging()


if log.taken_over:
    take_over_client()


def retried(call: Callable[[], T], tries: int = TRIES) -> T:
    """The result of a request, which is repeated after a server error or a broken connection.

    The pause is the one that the server asks for, or doubles. ``tries``: fewer for requests that huggingface_hub
    repeats by itself. Raises what ``call`` raises.
    """
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
    """Seconds to wait before a retry; None if a retry would not help."""
    fault = _behind(fault)
    usual = float(2 ** (attempt - 1))
    if isinstance(fault, HfHubHTTPError):
        asked = asked_pause(fault.response.headers)
        wait = usual if asked is None else asked
        return wait if fault.response.status_code in TRANSIENT and wait <= LONGEST_WAIT else None
    # A retry does not help against a full disk, a missing network, a closed port or an invalid request.
    lasting = _is_named(fault, "ConnectError") or _is_named(fault, "LocalProtocolError")
    silent = _is_named(fault, "TimeoutException") and attempt > 1
    return usual if _is_transport(fault) and not lasting and not silent else None


def _behind(fault: BaseException) -> BaseException:
    """The error of the request, which huggingface_hub wraps in errors such as LocalEntryNotFoundError."""
    cause = fault.__cause__
    if isinstance(cause, Sam3LiteError):
        return cause
    wrapped = isinstance(fault, LocalEntryNotFoundError) or type(fault) in (RuntimeError, ValueError)
    return cause if wrapped and (isinstance(cause, HfHubHTTPError) or _is_transport(cause)) and cause else fault


def _is_named(fault: BaseException | None, name: str) -> bool:
    """Whether it is the error of this name of an HTTP library; versions of huggingface_hub use different ones."""
    return any(c.__name__ == name for c in type(fault).__mro__)


def _is_transport(fault: BaseException | None) -> bool:
    return _is_named(fault, "TransportError")


@contextmanager
def hub_faults(repo: str, doing: str = "read") -> Iterator[None]:
    """Raises CannotRun for errors of huggingface_hub and of the network, and if the file of the token is not a regular
    one: the client would read a device to its end. ``doing``: ``read`` or ``write``."""
    if os.path.exists(constants.HF_TOKEN_PATH):
        check_regular(Path(constants.HF_TOKEN_PATH), LONGEST_TOKEN)
    try:
        yield
    except Sam3LiteError:
        raise
    except Exception as fault:
        if isinstance(fault, ssl.SSLError | FileNotFoundError) and (wrong := _wrong_certificates()):
            raise CannotRun(f"{the_hub()} cannot be reached: {wrong}", "no_network") from fault
        if isinstance(fault, OSError) and fault.errno is not None and not isinstance(fault, ConnectionError):
            raise  # an error of this machine's disk
        raise _in_words(fault, repo, doing) from fault


def _in_words(fault: BaseException, repo: str, doing: str) -> Sam3LiteError:
    where = the_hub()
    login = "Log in with 'hf auth login', or set HF_TOKEN"
    fault = _behind(fault)
    if isinstance(fault, Sam3LiteError):
        return fault
    right = "to a token with write access" if doing == "write" else "to a token with read access"
    if isinstance(fault, GatedRepoError):
        return CannotRun(
            f"{repo} is gated: accept its conditions on its page on the Hub. {login} {right}.", "no_access"
        )
    if isinstance(fault, RevisionNotFoundError):
        return CannotRun(f"{repo} has no such branch, tag or commit; see --revision", "no_such_revision")
    if isinstance(fault, RepositoryNotFoundError):
        if fault.response.status_code == 401:
            return CannotRun(
                f"{where} has no public repository {repo}, or refuses the token. Check the name; for a private "
                f"repository, {login[0].lower()}{login[1:]} {right}.",
                "no_such_repository",
            )
        return CannotRun(f"{where} has no repository {repo}, or it is private. {login} {right}.", "no_such_repository")
    if isinstance(fault, HfHubHTTPError):
        return _status_in_words(fault, repo, where, f"{login} {right}")
    if isinstance(fault, OfflineModeIsEnabled):
        return CannotRun(f"HF_HUB_OFFLINE is set, so {where} is not used. {NO_NETWORK}", "no_network")
    if isinstance(fault, LocalEntryNotFoundError):
        return CannotRun(f"{where} cannot be reached, and the file is not in the cache. {NO_NETWORK}", "no_network")
    if isinstance(fault, EntryNotFoundError):
        return CannotRun(f"{repo} has no such file", "no_such_file")
    if isinstance(fault, HFValidationError):
        return CannotRun(INVALID_NAME.format(repo), "usage")
    if isinstance(fault, FileMetadataError):
        return unexpected(first_line(fault))
    if (isinstance(fault, UnicodeError) or _is_named(fault, "LocalProtocolError")) and not _token_can_be_sent():
        return CannotRun(
            f"the token is not valid: it holds characters that cannot be sent. {login} {right}.", "no_access"
        )
    if _is_named(fault, "UnsupportedProtocol") or _is_named(fault, "LocalProtocolError"):
        return unexpected("it leads to an address that is not one of the web")
    if _is_transport(fault):
        what = first_line(fault) or type(fault).__name__
        why = f" {_certificates()}" if "CERTIFICATE_VERIFY_FAILED" in what else ""
        return CannotRun(f"{where} cannot be reached ({what}).{why} {NO_NETWORK}", "no_network")
    if isinstance(fault, LocalTokenNotFoundError):
        return CannotRun(f"no token is set. {login} {right}.", "no_token")
    if isinstance(fault, OSError) and "onsistency" in str(fault):
        return CannotRun(
            f"incomplete download from {repo}: the length differs from the one that {where} states. Run the command "
            "again.",
            "download_incomplete",
        )
    # Anything else: a response that is not the Hub's, or an error inside the libraries.
    what = first_line(fault) or type(fault).__name__
    if doing == "write":
        return CannotRun(f"{where}: {what}.", "push_failed")
    return unexpected(what)


def _token_can_be_sent() -> bool:
    """Whether a header can hold the token that is set."""
    try:
        return re.fullmatch(r"[\x21-\x7e]*", get_token() or "") is not None
    except ValueError:  # a token file can hold anything
        return False


def _wrong_certificates() -> str | None:
    """That the client's file of certificates cannot be used, and what to do; None if it can."""
    path = os.environ.get("SSL_CERT_FILE")
    if not path:
        return None
    why = "there is no such file"
    if os.path.exists(path):
        try:
            ssl.create_default_context().load_verify_locations(path)
            return None
        except OSError:
            why = "it holds no certificates"
    return f"SSL_CERT_FILE is {path}, and {why}. Unset it, or set it to a PEM file of certificates."


def _certificates() -> str:
    """What to do about a certificate of the Hub, or of a proxy before it, that is not trusted."""
    for variable in _READ:
        if path := os.environ.get(variable):
            return f"{variable} is {path}, which has to hold the certificate of your proxy."
    for variable in _UNREAD:
        if path := os.environ.get(variable):
            return f"{variable} is not read here: set SSL_CERT_FILE to {path}."
    return "Set SSL_CERT_FILE to a PEM file that holds the certificate of your proxy."


def _status_in_words(fault: HfHubHTTPError, repo: str, where: str, login: str) -> CannotRun:
    status = fault.response.status_code
    pause = asked_pause(fault.response.headers)
    said = f" Its message: {first_line(fault.server_message).rstrip('.')}." if fault.server_message else ""
    if status in (401, 403):
        return CannotRun(f"{where} refuses access to {repo} ({status}).{said} {login}.", "no_access")
    if status == 404:
        return CannotRun(f"{where} did not find the file in {repo} (404).{said}", "no_such_file")
    if status == 429:
        if pause:
            return too_long(status, pause)
        return CannotRun(f"too many requests to {where} (429). Run the command again later.", "rate_limited")
    if status >= 500:
        return CannotRun(f"{where} has an internal error ({status}).{said} Run the command again later.", "hub_fault")
    return CannotRun(f"{where} refused a request about {repo} ({status}).{said}", "hub_refused")


def first_line(said: object) -> str:
    """The first line of an exception's message, in short, without URL queries, tokens and control characters."""
    lines = str(said).strip().splitlines()
    line = log.without_secrets(lines[0]) if lines else ""
    plain = visible(line)
    return plain if len(plain) <= _LONGEST_LINE else f"{plain[:_LONGEST_LINE]}..."
