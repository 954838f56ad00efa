"""Bounds of what is taken from a server: bytes, time, redirects and pauses of an answer, and where the token may go."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import time
import zlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

from huggingface_hub import constants, get_session
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

from sam3lite_convert.errors import CannotRun
from sam3lite_convert.figures import human_bytes
from sam3lite_convert.hub.addresses import public_hosts
from sam3lite_convert.hub.log import masked_url

TIMEOUT = 60.0  # seconds without a byte; huggingface_hub waits without a limit
LONGEST_WAIT = 60.0  # seconds; if a server asks for more, the command ends with a message
COMMIT = re.compile(r"[0-9a-f]{40}")
_ANSWER = 32 << 20  # bytes of an answer of the API; a page of 1,000 files has 0.3 MB
_SECONDS = 120.0  # for one answer of the API
_SLOWEST = 256.0  # bytes a second, over TIMEOUT, of whatever is sent
_REDIRECTS = 5
_ETAG = re.compile(r"\w[\w+=-]{0,127}", re.ASCII)
_PAUSE = re.compile(r"[0-9]{1,12}")
_AMBIGUOUS = re.compile(r"[\\\s\x00-\x1f\x7f]")
_RATE_LIMIT = re.compile(r"\bt=([0-9]{1,12})\b")
TRANSIENT = (408, 429, 500, 502, 503, 504)
_SCHEMES = {"http": 80, "https": 443}


class Page(NamedTuple):
    """One answer of the API. ``value``: what its JSON holds. ``more``: the address of the next page, or None."""

    value: Any
    more: str | None


@dataclass
class _Budget:
    """What a call may still take. ``nbytes``: of one answer. ``requests``: None for any number."""

    nbytes: int
    requests: int | None = None


_budget: ContextVar[_Budget | None] = ContextVar("_budget", default=None)


@contextlib.contextmanager
def at_most(nbytes: int = _ANSWER, requests: int | None = None) -> Iterator[None]:
    """Context for calls of the client in this thread: bytes of an answer, and requests in all. CannotRun is raised
    from inside the client if they are exceeded, where the command line has made the client."""
    token = _budget.set(_Budget(nbytes, requests))
    try:
        yield
    finally:
        _budget.reset(token)


def the_hub() -> str:
    """What messages call the Hub: with its address, which may hold a password that is not for them."""
    return f"the Hub ({masked_url(constants.ENDPOINT)})"


def unexpected(what: str) -> CannotRun:
    """The error for an answer that is not one of the Hub. ``what``: in words, what it is."""
    return CannotRun(
        f"unexpected response from {the_hub()}: {what.rstrip('.')}. Check HF_ENDPOINT and your proxy.",
        "hub_fault",
    )


def _origin(url: str) -> tuple[str, str, int] | None:
    """(scheme, host, port); None for an address that is not one of the web, or that libraries read differently."""
    if _AMBIGUOUS.search(url):
        return None
    try:
        parts = urlsplit(url)
        port = parts.port or _SCHEMES.get(parts.scheme, 0)
    except ValueError:
        return None
    if parts.scheme not in _SCHEMES or not parts.hostname:
        return None
    return parts.scheme, parts.hostname.lower(), port


def is_hub(url: str) -> bool:
    """Whether an address is one of the configured endpoint or, by TLS, of the public Hub: there the token may go."""
    found, own = _origin(url), _origin(constants.ENDPOINT)
    if found is None:
        return False
    by_tls = found[0] == "https" and found[2] == _SCHEMES["https"]
    return found == own or (by_tls and (found[1] in public_hosts() or (own is not None and found[1] == own[1])))


def host_of(url: str) -> str:
    """Scheme and host of an address, for messages: the rest may hold a signature, or anything."""
    try:
        parts = urlsplit(url)
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    except ValueError:
        shown = "an invalid address"
    return ascii(shown)[1:-1][:100]


def asked_pause(headers: Any) -> float | None:
    """Seconds that a server asks to wait, by its headers; None if it does not, or not as a number."""
    said = str(headers.get("Retry-After", "")).strip()
    if _PAUSE.fullmatch(said):
        return float(said)
    match = _RATE_LIMIT.search(str(headers.get("ratelimit", "")))
    return float(match[1]) if match and not said else None


def too_long(status: int, pause: float) -> CannotRun:
    """The error for a server that asks for a longer pause than a command makes."""
    where = the_hub()
    if status == 429:
        message = f"too many requests to {where} (429). Run the command again in {pause:.0f} seconds."
        return CannotRun(message, "rate_limited")
    return CannotRun(
        f"{where} has an internal error ({status}) and asks for a pause of {pause:.0f} seconds. Run the command again "
        "after it.",
        "hub_fault",
    )


# ---- what the client of the command line asks and takes ------------------------------------------------


def check_request(request: Any) -> None:
    """Hook for each request of the client, those after a redirect included.

    Raises CannotRun if it would take the token to another host, or leaves an endpoint with TLS for one without.
    """
    budget = _budget.get()
    if budget is not None and budget.requests is not None:
        budget.requests -= 1
        if budget.requests < 0:
            raise unexpected("it asks for the same request again and again")
    url = str(request.url)
    if "authorization" in request.headers and not is_hub(url):
        raise unexpected(f"it leads to {host_of(url)}, where your token is not sent")
    own, found = _origin(constants.ENDPOINT), _origin(url)
    if found is None or (own is not None and own[0] == "https" and found[0] == "http"):
        raise unexpected(f"it leads to {host_of(url)}")
    # Compressed answers hide how long they are.
    request.headers["Accept-Encoding"] = "identity"


def check_response(response: Any) -> None:
    """Hook for each response of the client, before its body is read, which is bounded from here on.

    Raises CannotRun for headers that lead the client astray: names of files in the cache, the address that a token is
    sent to, a pause of years.
    """
    stream = response.extensions.get("network_stream")
    if isinstance(stream, _Connection):
        stream.body_begins()
    headers = response.headers
    pause = asked_pause(headers)
    if response.status_code in TRANSIENT and pause is not None and pause > LONGEST_WAIT:
        raise too_long(response.status_code, pause)
    if "Retry-After" in headers and pause is None:
        del headers["Retry-After"]
    commit = headers.get("X-Repo-Commit")
    if commit is not None and not COMMIT.fullmatch(commit):
        raise unexpected("its commit is not a hash")
    followed = response.has_redirect_location and re.match(r"/[^/]", headers["Location"])
    if response.request.method == "HEAD" and not response.is_error and not followed:
        # The client makes file names of these. Those of an answer that only leads on within the host are not used.
        for name in ("X-Linked-ETag", "ETag"):
            said = headers.get(name)
            if said and not _ETAG.fullmatch(said.removeprefix("W/").strip('"')):
                raise unexpected(f"its {name} is not a hash")
    if response.has_redirect_location and response.request.method == "POST" and is_hub(str(response.request.url)):
        # What is posted is the user's. The token is not sent to another host, but the content would be.
        place = urljoin(str(response.request.url), headers["Location"])
        if not is_hub(place):
            raise unexpected(f"it leads to {host_of(place)}, where your files are not sent")
    if (route := _token_route(response)) and not is_hub(route):
        raise unexpected(f"it leads to {host_of(route)}, where your token is not sent")
    budget = _budget.get()
    limit_body(response, budget.nbytes if budget else _ANSWER)


def _token_route(response: Any) -> str | None:
    """Where the storage protocol asks for a token of its own, with the user's; None if nowhere."""
    if "X-Xet-Hash" not in response.headers:
        return None
    route = _linked(response, "xet-auth") or response.headers.get("X-Xet-Refresh-Route")
    return urljoin(constants.ENDPOINT, route) if route else None


@functools.cache
def _stream_class(base: type) -> type:
    """A stream of the client's library, over an iterator; the library looks at the class."""

    class Bounded(base):  # type: ignore[misc]
        def __init__(self, inner: Any, chunks: Iterator[bytes]) -> None:
            self._inner, self._chunks = inner, chunks

        def __iter__(self) -> Iterator[bytes]:
            return self._chunks

        def close(self) -> None:
            self._inner.close()

    return Bounded


def limit_body(response: Any, limit: int, seconds: float | None = None) -> None:
    """Bound a response whose body was not read: ``limit`` in bytes, uncompressed; ``seconds``: None for any time, at a
    rate that ends. Reading it then raises CannotRun."""
    stream = response.stream
    base = next((c for c in type(stream).__mro__ if c.__name__ == "SyncByteStream"), None)
    if base is None:  # it was read
        return
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", "") and response.request.method != "HEAD":
        # Its length is that of the compressed bytes.
        for name in ("Content-Encoding", "Content-Length"):
            if name in response.headers:
                del response.headers[name]
    chunks = _timed(iter(stream), seconds)
    if response.request.method != "HEAD":
        chunks = _bounded(_expanded(chunks, encoding), limit)
    response.stream = _stream_class(base)(stream, chunks)


class _Meter:
    """Counts bytes and the time that was waited for them. Raises CannotRun if they come too slowly to ever end, or
    not all within ``seconds`` of waiting."""

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = seconds
        self._waited = self._since = 0.0
        self._received = 0

    def count(self, waited: float, nbytes: int) -> None:
        """Bytes that came after so many seconds of waiting: what is done with them takes its own time."""
        self._waited += waited
        self._since += waited
        self._received += nbytes
        if self.seconds is not None and self._waited > self.seconds:
            raise unexpected(f"an answer did not end within {self.seconds:.0f} seconds")
        if self._since > TIMEOUT:
            if self._received < _SLOWEST * self._since:
                raise unexpected(f"{self._received:,} bytes in {self._since:.0f} seconds")
            self._since, self._received = 0.0, 0


def _timed(chunks: Iterator[bytes], seconds: float | None) -> Iterator[bytes]:
    meter = _Meter(seconds)
    while True:
        begun = time.monotonic()
        chunk = next(chunks, None)
        if chunk is None:
            return
        meter.count(time.monotonic() - begun, len(chunk))
        yield chunk


class _Connection:
    """A connection of the client whose answers begin in time: a time limit for each byte is none for the head."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._meter = _Meter()

    def read(self, *arguments: Any, **named: Any) -> bytes:
        begun = time.monotonic()
        data: bytes = self._inner.read(*arguments, **named)
        self._meter.count(time.monotonic() - begun, len(data))
        return data

    def write(self, *arguments: Any, **named: Any) -> None:
        self._inner.write(*arguments, **named)
        self._meter = _Meter(2 * TIMEOUT)

    def body_begins(self) -> None:
        self._meter.seconds = None

    def start_tls(self, *arguments: Any, **named: Any) -> _Connection:
        return _Connection(self._inner.start_tls(*arguments, **named))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Network:
    """What the client makes connections with, which are watched."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def connect_tcp(self, *arguments: Any, **named: Any) -> _Connection:
        return _Connection(self._inner.connect_tcp(*arguments, **named))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def watch_connections(client: Any) -> None:
    """Bound the time in which an answer begins, for all connections of a client that are made from now on."""
    transports = [getattr(client, "_transport", None), *getattr(client, "_mounts", {}).values()]
    for transport in transports:
        pool = getattr(transport, "_pool", None)
        # The library has no public place for it; without this one, each byte has its time limit and no more.
        if pool is not None and hasattr(pool, "_network_backend"):
            pool._network_backend = _Network(pool._network_backend)


def _expanded(chunks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """The bytes behind a compression that was not asked for, a piece at a time."""
    if encoding in ("identity", ""):
        yield from chunks
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise unexpected("its content is compressed in a way that was not asked for")
    decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        for chunk in chunks:
            while chunk and not decoder.eof:
                yield decoder.decompress(chunk, 1 << 20)
                chunk = decoder.unconsumed_tail
    except zlib.error:
        raise unexpected("its content is damaged") from None
    if not decoder.eof:
        raise unexpected("its content is cut off")


def _bounded(chunks: Iterator[bytes], limit: int) -> Iterator[bytes]:
    left = limit
    for chunk in chunks:
        left -= len(chunk)
        if left < 0:
            raise unexpected(f"an answer has more than {human_bytes(limit)}")
        yield chunk


# ---- answers of the API ---------------------------------------------------------------------------------


def api_page(url: str, params: dict[str, str] | None = None, token: bool | None = None) -> Page:
    """One answer of the Hub's API. ``token``: True if one is needed.

    Raises CannotRun if it is not JSON or leads to another host, HfHubHTTPError for an error status, and what the
    client raises for a broken connection.
    """
    for _ in range(_REDIRECTS + 1):
        if not is_hub(url):
            raise unexpected(f"the API leads to {host_of(url)}, where your token is not sent")
        with get_session().stream(
            "GET",
            url,
            params=params,
            headers={**build_hf_headers(token=token), "Accept-Encoding": "identity"},
            timeout=TIMEOUT,
            follow_redirects=False,
        ) as answer:
            limit_body(answer, _ANSWER, _SECONDS)
            if answer.has_redirect_location:
                url, params = urljoin(url, answer.headers["Location"]), None
                continue
            data = answer.read()
            raise_for_status(answer)
            return Page(_json(answer, data), _next(answer))
    raise unexpected("the API redirects again and again")


def raise_for_status(answer: Any) -> None:
    """Raises HfHubHTTPError for an error status, whatever the body holds."""
    try:
        hf_raise_for_status(answer)
    except HfHubHTTPError:
        raise
    except Exception:
        # The client reads the body of an error, which can hold anything.
        raise HfHubHTTPError(f"status {answer.status_code}", response=answer) from None


def _json(answer: Any, data: bytes) -> Any:
    if answer.status_code != 200:
        raise unexpected(f"the API answered with the status {answer.status_code}")
    try:
        # What is wrong in one entry of a listing is found there: it does not make the listing unreadable.
        text = data.decode("utf-8", "surrogateescape")
        return json.loads(text, strict=False, parse_int=_integer)
    except (ValueError, RecursionError):
        kind = str(answer.headers.get("Content-Type", "")).partition(";")[0].strip()
        named = f" ({kind})" if re.fullmatch(r"[\w.+-]+/[\w.+-]+", kind, re.ASCII) and "json" not in kind else ""
        what = "is empty" if not data.strip() else f"is not JSON{named}"
        raise unexpected(f"the answer of the API {what}") from None


def _integer(text: str) -> int | float:
    """An integer; one of more digits than any size has as infinity, which no size is."""
    return int(text) if len(text) < 30 else float("inf")


def _next(answer: Any) -> str | None:
    more = _linked(answer, "next")
    return urljoin(str(answer.url), more) if more else None


def _linked(answer: Any, relation: str) -> str | None:
    """The address with this relation in a Link header."""
    try:
        found = answer.links.get(relation, {}).get("url")
    except Exception:  # whatever a header may hold
        raise unexpected("its Link header cannot be read") from None
    return str(found) if found else None
