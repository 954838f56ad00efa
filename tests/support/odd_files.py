"""Files of odd kinds in the place of those that a command reads, and what must hold of every command that meets one."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SECONDS = 20
_DEEP = 100_000


def _remove(path: Path) -> None:
    if path.is_symlink() or path.exists():
        path.unlink()


def _socket(path: Path) -> None:
    here = os.open(".", os.O_RDONLY)
    os.chdir(path.parent)  # the name of a socket may have 100 bytes
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.fchdir(here)
        os.close(here)


def _sparse(path: Path, head: bytes = b"") -> None:
    with path.open("wb") as file:
        file.write(head)
        file.truncate(1 << 40)


def _link_to_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("the-pipe"))
    path.symlink_to("the-pipe")


def _link(target: str) -> Callable[[Path, bytes], None]:
    return lambda path, good: path.symlink_to(target)


def _device(major: int, minor: int) -> Callable[[Path, bytes], None]:
    """A link to a device of the test's own, never to one of the system: who may, would replace that for everybody."""

    def make(path: Path, good: bytes) -> None:
        try:
            os.mknod(path.with_name("the-device"), stat.S_IFCHR | 0o666, os.makedev(major, minor))
        except PermissionError:
            pytest.skip("may not make a device")
        path.symlink_to("the-device")

    return make


def _bytes(make: Callable[[bytes], bytes]) -> Callable[[Path, bytes], None]:
    return lambda path, good: void(path.write_bytes(make(good)))


def void(_: object) -> None:
    """Nothing, whatever a call gave."""


def _text(good: bytes) -> str:
    return good[:100_000].decode("utf-8", "replace")


# Not files at all, or of no size that anything has.
PLACES: dict[str, Callable[[Path, bytes], None]] = {
    "pipe": lambda path, good: os.mkfifo(path),
    "link to a pipe": lambda path, good: _link_to_pipe(path),
    "socket": lambda path, good: _socket(path),
    "/dev/zero": _device(1, 5),
    "/dev/full": _device(1, 7),
    "/dev/tty": _device(5, 0),
    "/proc/kmsg": _link("/proc/kmsg"),
    "folder": lambda path, good: path.mkdir(),
    "dangling": _link("nowhere"),
    "circle": lambda path, good: path.symlink_to(path.name),
    "1 TB": lambda path, good: _sparse(path),
    "1 TB behind the file": _sparse,
}
# Regular files with odd content. The first letters decide what a reader of several formats takes it for.
CONTENTS: dict[str, Callable[[Path, bytes], None]] = {
    "empty": _bytes(lambda good: b""),
    "half": _bytes(lambda good: good[: len(good) // 2]),
    "all but a byte": _bytes(lambda good: good[:-1]),
    "NUL bytes": _bytes(lambda good: bytes(len(good) or 10)),
    "NUL behind": _bytes(lambda good: good + b"\0" * 100),
    "UTF-16": _bytes(lambda good: _text(good).encode("utf-16", "surrogatepass")),
    "byte order mark": _bytes(lambda good: b"\xef\xbb\xbf" + good),
    "latin 1": _bytes(lambda good: b'{"caf\xe9": "\xff"}'),
    "a long line": _bytes(lambda good: b"a" * (17 << 20)),
    "many lines": _bytes(lambda good: b"a photo\n" * (2 << 20)),
    "a long string": _bytes(lambda good: b'{"a": "' + b"x" * (15 << 20) + b'"}'),
    "deep lists": _bytes(lambda good: b"[" * _DEEP + b"]" * _DEEP),
    "deep objects": _bytes(lambda good: b'{"a":' * _DEEP + b"1" + b"}" * _DEEP),
    "deep inside": _bytes(lambda good: b'{"text_config": ' + b"[" * 900 + b"]" * 900 + b"}"),
    "a list": _bytes(lambda good: b"[1, 2, 3]"),
    "null": _bytes(lambda good: b"null"),
    "a string": _bytes(lambda good: b'"text"'),
    "a number": _bytes(lambda good: b"5"),
    "nothing known": _bytes(lambda good: b"{}"),
    "other types": _bytes(
        lambda good: b'{"text_config": 5, "weight_map": [1], "tensors": {"a": 1}, "model": null, "taps": 3, "ids": "x",'
        b' "source": [], "architecture": "s0", "beside": 7, "size": {"height": []}, "layout": {}, "files": 1}'
    ),
    "great numbers": _bytes(
        lambda good: b'{"text_config": {"hidden_size": 1' + b"0" * 250 + b', "vocab_size": -1}, "ids": [[1'
        + b"0" * 30 + b']], "schema_version": 1e300, "weight_map": {"a": 1' + b"0" * 200 + b"}}"
    ),
    "10^400": _bytes(lambda good: b'{"hidden_size": 1' + b"0" * 400 + b', "ids": [[1' + b"0" * 400 + b"]]}"),
    "10^5000": _bytes(lambda good: b'{"hidden_size": 1' + b"0" * 5000 + b"}"),
    "NaN": _bytes(lambda good: b'{"layer_norm_eps": NaN, "ids": [[NaN, Infinity]], "tolerance": -Infinity}'),
    "lone surrogates": _bytes(
        lambda good: b'{"architectures": ["\\ud800"], "\\udfff": "\\ud800", "model_type": "\\udc80", "weight_map": '
        b'{"\\ud800": "\\udfff"}, "layout": "\\ud800", "beside": {"\\ud800.txt": "\\ud800"}}'
    ),
    "control characters": _bytes(
        lambda good: b'{"model_type": "\\u001b]0;x\\u0007\\u0000", "weight_map": {"a\\u0000": "../\\u0000"}, "layout": '
        b'"\\u001b[2J"}'
    ),
    "names that lead out": _bytes(
        lambda good: b'{"weight_map": {"a": "../../etc/passwd", "b": "/etc/passwd"}, "beside": {"../x.onnx": "0", '
        b'"/etc/LICENSE": "0"}, "files": ["../x"]}'
    ),
    "a name twice": _bytes(lambda good: b'{"model_type": "a", "model_type": {"b": 1}, "weight_map": 1}'),
    "a zip archive": _bytes(lambda good: b"PK\x05\x06" + bytes(18)),
    "a pickle": _bytes(lambda good: b"\x80\x04cos\nsystem\n(S'touch hacked'\ntR."),
    "random bytes": _bytes(lambda good: hashlib.sha256(good).digest() * 50),
    "its bytes changed": _bytes(lambda good: good[:200] + bytes(b ^ 0x15 for b in good[200:400]) + good[400:]),
    "twice itself": _bytes(lambda good: good + good),
}  # fmt: skip
KINDS = PLACES | CONTENTS


def put(kind: str, path: Path) -> None:
    """Put a file of an odd kind in the place of another, or where none is."""
    good = path.read_bytes() if path.is_file() and path.stat().st_size < 64 << 20 else b"{}"
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    _remove(path)
    KINDS[kind](path, good)


def looks(folder: Path) -> dict[str, tuple[object, ...]]:
    """What lies in a folder, without opening what is no regular file: by name, what kind, and what it holds."""
    found: dict[str, tuple[object, ...]] = {}
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(place) / name
            said = path.lstat()
            if stat.S_ISREG(said.st_mode) and said.st_size <= 64 << 20:
                held: object = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                held = os.readlink(path) if path.is_symlink() else None
            size = None if stat.S_ISDIR(said.st_mode) else said.st_size
            found[str(path.relative_to(folder))] = (stat.S_IFMT(said.st_mode), size, held)
    return found


@contextmanager
def in_time(seconds: int = SECONDS) -> Iterator[None]:
    """Raises TimeoutError inside a block of the main thread that takes too long, whatever it waits for."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def greatest_memory() -> int:
    """Bytes that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
