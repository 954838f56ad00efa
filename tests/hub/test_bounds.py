"""Where the token may go, what an endpoint may lead to, and how much is read of an answer."""

from __future__ import annotations

import gzip
import importlib
import types
import zlib
from typing import Any

import pytest
from huggingface_hub import constants, get_session

from sam3lite_convert.errors import CannotRun
from sam3lite_convert.hub import bounds

# Versions of the client use different ones.
HTTP: Any = importlib.import_module(type(get_session()).__module__.partition(".")[0])
PUBLIC = constants.HUGGINGFACE_CO_URL_HOME.rstrip("/")


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.example:8443")
    return constants.ENDPOINT


@pytest.mark.parametrize(
    ("place", "may"),
    [
        ("https://hub.example:8443/api", True),
        ("https://HUB.example:8443/api", True),
        ("https://user@hub.example:8443/api", True),
        (f"{PUBLIC}/api", True),
        ("https://hub.example/api", True),  # the same host, at the port of TLS
        ("http://hub.example:8443/api", False),
        ("https://hub.example:8444/api", False),
        ("https://hub.example.evil.invalid:8443/api", False),
        ("https://hub.example:8443@evil.invalid/api", False),
        ("https://evil.invalid/hub.example:8443", False),
        ("https://evil.invalid#@hub.example:8443", False),
        ("https://evil.invalid\\@hub.example:8443", False),
        (PUBLIC.replace("https", "http") + "/api", False),
        (PUBLIC + ".evil.invalid", False),
        ("//hub.example:8443", False),
        ("file:///etc/passwd", False),
        ("https://[::1", False),
        ("https://hub.example:x", False),
        ("", False),
    ],
)
def test_the_token_goes_to_the_hub_alone(place, may, own):
    assert bounds.is_hub(place) is may


@pytest.mark.parametrize(
    ("place", "token"), [("https://evil.invalid/", True), ("http://cdn.example/", False), ("ftp://x/", False)]
)
def test_a_request_that_would_leave_the_hub_is_not_made(place, token, own):
    request = HTTP.Request("GET", place, headers={"authorization": "Bearer x"} if token else {})
    with pytest.raises(CannotRun, match="unexpected response"):
        bounds.check_request(request)
    bounds.check_request(HTTP.Request("GET", "https://cdn.example/", headers={}))


def test_the_number_of_requests_may_be_bounded(own):
    with bounds.at_most(requests=3):
        for _ in range(3):
            bounds.check_request(HTTP.Request("GET", own))
        with pytest.raises(CannotRun):
            bounds.check_request(HTTP.Request("GET", own))
    bounds.check_request(HTTP.Request("GET", own))


def answer(data: bytes, encoding: str) -> Any:
    class Stream(HTTP.SyncByteStream):
        def __iter__(self):
            yield from (data[at : at + 1000] for at in range(0, len(data), 1000))

    request = HTTP.Request("GET", "https://x/")
    return HTTP.Response(200, headers={"Content-Encoding": encoding}, stream=Stream(), request=request)


@pytest.mark.parametrize(
    ("made", "encoding"), [(gzip.compress, "gzip"), (zlib.compress, "deflate"), (bytes, "identity"), (bytes, "")]
)
def test_what_is_compressed_is_read_as_it_was_and_no_further(made, encoding):
    text = b"text " * 10_000
    whole = answer(made(text), encoding)
    bounds.limit_body(whole, len(text))
    assert whole.read() == text
    more = answer(made(text), encoding)
    bounds.limit_body(more, len(text) - 1)
    with pytest.raises(CannotRun, match="more than"):
        more.read()


@pytest.mark.parametrize(
    ("headers", "pause"),
    [
        ({"Retry-After": "5"}, 5),
        ({"Retry-After": " 5 "}, 5),
        ({"Retry-After": "1" * 400}, None),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "\xb2"}, None),
        ({"ratelimit": '"api";r=0;t=55'}, 55),
        ({}, None),
    ],
)
def test_the_pause_that_is_asked_for(headers, pause):
    assert bounds.asked_pause(headers) == pause


def test_a_slow_answer_ends_and_the_time_of_the_reader_does_not_count(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(bounds, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))

    def chunks(seconds, nbytes):
        while True:
            clock[0] += seconds
            yield b"x" * nbytes

    with pytest.raises(CannotRun, match="61 bytes in 61 seconds"):
        for _ in bounds._timed(chunks(1.0, 1), None):
            pass
    reading = bounds._timed(chunks(1.0, 1000), None)
    for _ in range(1000):
        next(reading)
        clock[0] += 3600
