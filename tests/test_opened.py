"""The one function that opens the files of others: what it refuses, in what words, and that it never waits."""

from __future__ import annotations

import os
import signal
import socket
import threading

import pytest

from sam3lite_convert import opened
from sam3lite_convert.errors import CannotRun


@pytest.fixture(autouse=True)
def _no_waiting():
    def out_of_time(*_):
        raise AssertionError("it waited")

    before = signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def odd(kind, tmp_path):
    """A file of an odd kind."""
    path = tmp_path / "odd"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    elif kind == "folder":
        path.mkdir()
    elif kind in ("zero", "full"):
        path.symlink_to(f"/dev/{kind}")
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "circle":
        path.symlink_to("odd")
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    elif kind == "large":
        path.write_bytes(bytes(1001))
    elif kind == "below a file":
        path.write_bytes(b"")
        path = path / "x"
    elif kind == "nul":
        path = tmp_path / "a\0b"
    elif kind == "long":
        path = tmp_path / ("x" * 300)
    return path


CODES = {
    "pipe": "not_a_file", "socket": "not_a_file", "folder": "not_a_file", "zero": "not_a_file", "full": "not_a_file",
    "dangling": "no_such_file", "circle": "links_in_a_circle", "sparse": "too_large", "large": "too_large",
    "below a file": "cannot_open", "nul": "no_such_file", "long": "cannot_open", "absent": "no_such_file",
}  # fmt: skip


@pytest.mark.parametrize("kind", CODES)
def test_odd_files_are_refused_at_once(kind, tmp_path):
    path = odd(kind, tmp_path)
    for what in (opened.check_regular, opened.open_regular, opened.read_small, opened.read_stream):
        if what is opened.read_stream and kind == "pipe":
            continue
        with pytest.raises(CannotRun) as fault:
            what(path, 1000)
        assert fault.value.code == CODES[kind] and "\n" not in fault.value.message
    there = {"pipe", "socket", "zero", "full", "circle", "sparse", "large"}
    assert opened.is_there(path) == (kind in there - {"circle"})
    assert opened.is_regular(path) == (kind in ("sparse", "large"))


def test_a_pipe_put_in_the_place_of_a_file_is_not_waited_for(tmp_path, monkeypatch):
    path = odd("pipe", tmp_path)
    other = tmp_path / "file"
    other.write_bytes(b"x")
    found = other.stat()
    monkeypatch.setattr(opened, "check_regular", lambda path, most: found)  # what was there before
    with pytest.raises(CannotRun, match="named pipe"):
        opened.open_regular(path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x")
    path.chmod(0)
    with pytest.raises(CannotRun, match="permission denied"):
        opened.read_small(path, 1)
    assert opened.is_there(path)


def test_a_file_up_to_its_bound_is_read(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(1000))
    assert opened.read_small(path, 1000) == bytes(1000)
    with opened.open_regular(path, 1000) as file:
        assert file.read() == bytes(1000) and file.seek(0) == 0


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no /proc")
def test_a_file_whose_size_is_stated_as_none_is_read_and_bounded():
    assert os.stat("/proc/self/maps").st_size == 0
    assert b"Name:" in opened.read_small(opened.Path("/proc/self/status"), 1 << 20)
    with pytest.raises(CannotRun, match="too large"):
        opened.read_small(opened.Path("/proc/self/maps"), 100)


def test_a_file_that_grows_is_bounded(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 50)
    real = opened._check

    def grown(path, found, most):
        real(path, found, most)
        with path.open("ab") as file:
            file.write(b"x" * 50)

    monkeypatch.setattr(opened, "_check", grown)
    with pytest.raises(CannotRun, match="too large"):
        opened.read_small(path, 120)


@pytest.mark.parametrize(
    ("data", "encoding", "text"),
    [(b"a\r\nb\rc", "utf-8", "a\nb\nc"), (b"\xef\xbb\xbfa", "utf-8-sig", "a"), ("ä".encode(), "utf-8", "ä")],
)
def test_text(data, encoding, text, tmp_path):
    (tmp_path / "file").write_bytes(data)
    assert opened.read_small_text(tmp_path / "file", 100, encoding) == text


@pytest.mark.parametrize("data", ["a".encode("utf-16"), b"\xff", b"\xed\xa0\x80", b"ab\xc3"])
def test_other_encodings_are_named(data, tmp_path):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(CannotRun, match=r"cannot be read as UTF-8 text .*save it as UTF-8") as fault:
        opened.read_small_text(tmp_path / "file", 100)
    assert fault.value.code == "not_text"


def test_a_pipe_as_a_stream(tmp_path, monkeypatch):
    path = odd("pipe", tmp_path)
    assert opened.read_stream(path, 100) == b""  # nothing writes to it

    def through(data):
        reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        writing = os.open(path, os.O_WRONLY)
        os.write(writing, data)
        return reading, writing

    held = through(b"a prompt\n")
    threading.Timer(0.2, lambda: os.close(held[1])).start()
    assert opened.read_stream(path, 100) == b"a prompt\n"
    os.close(held[0])
    held = through(b"x" * 101)
    with pytest.raises(CannotRun, match="too large"):
        opened.read_stream(path, 100)
    monkeypatch.setattr(opened, "_PIPE_SECONDS", 0.3)
    with pytest.raises(CannotRun, match=r"did not end within 0\.3 seconds"):
        opened.read_stream(path, 100)
    for handle in held:
        os.close(handle)
