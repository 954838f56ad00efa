"""A model hub on 127.0.0.1: what the real ``huggingface_hub`` client asks of the service, and faults on demand.

Two listeners: the hub, and the storage that large files are redirected to and uploaded to. They are on different
hosts: the client follows a redirect on one host while it asks for the headers of a file, and sends its token along.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import itertools
import json
import re
import shutil
import socket
import struct
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

import yaml

TOKEN = "hf_test_token_for_loopback"
USER = "porter"
CHUNK = 256 << 10
IN_MEMORY = 4 << 20  # larger uploads are kept on disk
LFS_PATTERNS = ("*.safetensors", "*.pt", "*.bin")
GIT_ATTRIBUTES = "".join(f"{p} filter=lfs diff=lfs merge=lfs -text\n" for p in LFS_PATTERNS).encode()
FAULTS = ("status", "drop", "wrong_bytes", "short", "stall", "swap", "etag", "edit", "raw")
FLIPPED = bytes(b ^ 0xFF for b in range(256))
FIRST_COMMIT = datetime(2025, 1, 1, tzinfo=timezone.utc)


@dataclass
class Request:
    """A request as it came and how it was answered. ``status`` is 0 if there was no answer."""

    method: str
    path: str  # decoded, without the query
    query: dict[str, str]
    headers: dict[str, str]  # names in lower case
    status: int = 0
    sent: int = 0  # bytes of the body of the answer
    received: int = 0  # bytes of the body of the request
    range: str | None = None
    storage: bool = False  # asked of the storage, not of the hub

    @property
    def target(self) -> str:
        return self.path + ("?" + urlencode(self.query, safe="/") if self.query else "")


@dataclass(frozen=True)
class Commit:
    id: str
    parents: tuple[str, ...]
    author: str
    message: str
    description: str
    date: str
    files: dict[str, Entry] = field(repr=False)


@dataclass(frozen=True)
class Content:
    """Bytes, or a file of which only the part asked for is read."""

    source: bytes | Path
    sha256: str
    size: int

    @classmethod
    def of(cls, source: bytes | Path) -> Content:
        if isinstance(source, bytes):
            return cls(source, hashlib.sha256(source).hexdigest(), len(source))
        digest, size = hashlib.sha256(), 0
        with source.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                size += len(chunk)
        return cls(source, digest.hexdigest(), size)

    def chunks(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        end = self.size if end is None else end
        if isinstance(self.source, bytes):
            for at in range(start, end, CHUNK):
                yield self.source[at : min(at + CHUNK, end)]
            return
        with self.source.open("rb") as file:
            file.seek(start)
            while start < end and (chunk := file.read(min(CHUNK, end - start))):
                start += len(chunk)
                yield chunk

    def read(self) -> bytes:
        return b"".join(self.chunks())


@dataclass(frozen=True)
class Entry:
    """A file in a commit. ``oid`` is its git blob id, for an LFS file that of the pointer."""

    sha256: str
    size: int
    lfs: bool
    oid: str
    pointer_size: int

    @classmethod
    def of(cls, content: Content, lfs: bool) -> Entry:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{content.sha256}\nsize {content.size}\n"
        blob = pointer.encode() if lfs else content.read()
        oid = hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()
        return cls(content.sha256, content.size, lfs, oid, len(pointer) if lfs else 0)

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass
class Repo:
    id: str
    private: bool = False
    gated: bool | str = False
    readers: frozenset[str] | None = None  # None: every user
    writers: frozenset[str] | None = None
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pull_requests: dict[str, str] = field(default_factory=dict)  # refs/pr/N -> commit
    objects: set[str] = field(default_factory=set)  # LFS objects that were uploaded here

    def commit_at(self, revision: str) -> Commit | None:
        for refs in (self.branches, self.tags, self.pull_requests):
            if revision in refs:
                return self.commits[refs[revision]]
        return self.commits.get(revision)

    def may(self, user: str | None, who: frozenset[str] | None) -> bool:
        return user is not None and (who is None or user in who)


@dataclass
class Fault:
    what: str
    match: str
    method: str | None
    times: int | None
    skip: int
    after: int
    options: dict[str, Any]

    def fits(self, request: Request) -> bool:
        if self.method is not None and request.method != self.method.upper():
            return False
        texts = (request.path, request.target)
        if any(self.match in text for text in texts):
            return True
        with contextlib.suppress(re.error):
            return any(re.search(self.match, text) for text in texts)
        return False


@dataclass
class Answer:
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | Content = b""
    start: int = 0
    end: int | None = None

    @property
    def length(self) -> int:
        if isinstance(self.body, bytes):
            return len(self.body)
        return (self.body.size if self.end is None else self.end) - self.start

    def chunks(self) -> Iterator[bytes]:
        if isinstance(self.body, bytes):
            yield from (self.body[at : at + CHUNK] for at in range(0, len(self.body), CHUNK))
        else:
            yield from self.body.chunks(self.start, self.end)

    @classmethod
    def of(cls, value: object, status: int = 200, **headers: str) -> Answer:
        """JSON; an underscore in the name of a header stands for a hyphen."""
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        body = json.dumps(value, default=str).encode()
        return cls(status, {"Content-Type": "application/json; charset=utf-8", **named}, body)


class Refusal(Exception):
    """An answer with an error status."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        super().__init__(message)
        if code:
            headers["X_Error_Code"] = code
        self.answer = Answer.of({"error": message}, status, X_Error_Message=message, **headers)


@dataclass
class Upload:
    """An object that is being uploaded, whole or in parts."""

    repo: Repo
    oid: str
    size: int
    parts: dict[int, tuple[Content, str]] = field(default_factory=dict)  # number -> content, etag


class RequestBody:
    """The body of a request, read at most once; counts what was received."""

    def __init__(self, request: Request, file: BufferedIOBase) -> None:
        self._request = request
        self._limit = sys.maxsize
        self._chunks = self._read(file)
        self.empty = not self._chunked and not self._length

    @property
    def _chunked(self) -> bool:
        return "chunked" in self._request.headers.get("transfer-encoding", "")

    @property
    def _length(self) -> int:
        return int(self._request.headers.get("content-length", 0))

    def _read(self, file: BufferedIOBase) -> Iterator[bytes]:
        if not self._chunked:
            yield from self._exactly(file, self._length)
            return
        while size := int(file.readline().split(b";")[0], 16):
            yield from self._exactly(file, size)
            file.readline()
        while file.readline().strip():
            pass

    def _exactly(self, file: BufferedIOBase, size: int) -> Iterator[bytes]:
        while size:
            wanted = min(CHUNK, size, max(self._limit - self._request.received, 1))
            chunk = file.read1(wanted)
            if not chunk:
                raise ConnectionError("the client went away")
            size -= len(chunk)
            self._request.received += len(chunk)
            yield chunk

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def read(self) -> bytes:
        return b"".join(self)

    def json(self) -> Any:
        return json.loads(self.read() or b"null")

    def take(self, size: int) -> None:
        """Read `size` bytes, or all if there are fewer."""
        self._limit = size
        while self._request.received < size and next(self._chunks, None) is not None:
            pass

    def drain(self) -> None:
        for _ in self:
            pass


class Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, hub: HubServer, storage: bool) -> None:
        self.hub, self.storage = hub, storage
        self.sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        # Two hosts, as in reality: a client tells by the host whether its token may go there.
        super().__init__(("127.0.0.2" if storage else "127.0.0.1", 0), Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.sockets.add(connection)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            self.hub.errors.append(traceback.format_exc())


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Listener

    def serve(self) -> None:
        try:
            self.server.hub.serve(self)
        except OSError:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = serve

    def log_message(self, format: str, *args: object) -> None:
        pass

    def hang_up(self, reset: bool) -> None:
        """Close at once: with a reset, or as a server that has ended."""
        self.close_connection = True
        if reset:
            time.sleep(0.05)  # a reset throws away what the client has not been given yet
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            self.connection.close()


class HubServer:
    """The hub. Repos are filled from Python (`add_repo`, `commit`) or by the client."""

    def __init__(
        self,
        users: dict[str, str] | None = None,
        page_size: int = 3,
        part_size: int = 1 << 20,
        lfs_threshold: int = 10 << 20,
    ) -> None:
        self.users = {TOKEN: USER} if users is None else users  # token -> name
        self.page_size, self.part_size, self.lfs_threshold = page_size, part_size, lfs_threshold
        self.on_request: Callable[[Request], None] | None = None
        self.log: list[Request] = []
        self.url = self.storage_url = ""
        self.errors: list[str] = []  # tracebacks of the server's own mistakes
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._listeners: list[Listener] = []
        self._scratch = Path(tempfile.mkdtemp(prefix="hub-"))
        weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)
        self._serials = itertools.count(1)
        self._repos: dict[str, Repo] = {}
        self._aliases: dict[str, str] = {}
        self._contents: dict[str, Content] = {}
        self._uploads: dict[str, Upload] = {}
        self._faults: list[Fault] = []

    # Starting and stopping

    def start(self) -> HubServer:
        self._stopping.clear()
        self._listeners = [Listener(self, storage=False), Listener(self, storage=True)]
        self.url, self.storage_url = ("http://{}:{}".format(*listener.server_address) for listener in self._listeners)
        for listener in self._listeners:
            threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def stop(self) -> None:
        self._stopping.set()
        for listener in self._listeners:
            listener.shutdown()
            listener.server_close()
            for connection in list(listener.sockets):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self._listeners = []

    def __enter__(self) -> HubServer:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    # What a test fills and reads

    def add_repo(
        self,
        repo_id: str,
        files: Mapping[str, bytes | Path] | None = None,
        private: bool = False,
        gated: bool | str = False,
        commit: str | None = None,
        readers: Iterable[str] | None = None,
        writers: Iterable[str] | None = None,
    ) -> str:
        """A repo with one commit; its id. `readers` of a private or gated repo and `writers`: None is every user."""
        with self._lock:
            if repo_id in self._repos:
                raise ValueError(f"{repo_id} is there already")
            self._repos[repo_id] = Repo(
                repo_id,
                private,
                gated,
                None if readers is None else frozenset(readers),
                None if writers is None else frozenset(writers),
            )
            return self.commit(repo_id, files or {}, "initial commit", commit)

    def commit(
        self,
        repo_id: str,
        files: Mapping[str, bytes | Path | None],
        message: str = "Update",
        commit: str | None = None,
        revision: str = "main",
    ) -> str:
        """A commit on top of a branch; its id. None deletes a file."""
        entries = {path: None if source is None else self._store(path, source) for path, source in files.items()}
        with self._lock:
            repo = self._repos[repo_id]
            parent = repo.commit_at(revision)
            tree = dict(parent.files) if parent else {}
            for path, entry in entries.items():
                if entry is None:
                    del tree[path]
                else:
                    tree[path] = entry
            made = self._make_commit(repo, parent, tree, "test", message, "", commit)
            (repo.pull_requests if revision.startswith("refs/pr/") else repo.branches)[revision] = made.id
            return made.id

    def head(self, repo_id: str, revision: str = "main") -> str:
        return self._commit(repo_id, revision).id

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Every file with its content, however large."""
        with self._lock:
            found = {p: self._contents[e.sha256] for p, e in self._commit(repo_id, revision).files.items()}
        return {path: content.read() for path, content in found.items()}

    def commits(self, repo_id: str, revision: str = "main") -> list[Commit]:
        """The history of a revision, oldest first."""
        with self._lock:
            return self._history(self._repos[repo_id], self._commit(repo_id, revision))

    def tag(self, repo_id: str, name: str, revision: str = "main") -> None:
        with self._lock:
            self._repos[repo_id].tags[name] = self.head(repo_id, revision)

    def alias(self, old_id: str, repo_id: str) -> None:
        """`old_id` is the former name of a repo: requests for it are redirected."""
        with self._lock:
            self._aliases[old_id] = repo_id

    def sent(self, path_part: str = "") -> int:
        """Bytes of the bodies sent for requests whose path contains the part."""
        with self._lock:
            return sum(r.sent for r in self.log if path_part in r.path)

    def requests(self, path_part: str = "", method: str | None = None) -> list[Request]:
        with self._lock:
            return [r for r in self.log if path_part in r.path and method in (None, r.method)]

    def clear_log(self) -> None:
        with self._lock:
            self.log.clear()

    def clear_faults(self) -> None:
        with self._lock:
            self._faults.clear()

    def reset(self) -> None:
        """Forget repos, faults and log."""
        with self._lock:
            self.on_request = None
            for kept in (self._repos, self._aliases, self._contents, self._uploads, self._faults, self.log):
                kept.clear()
            self.errors.clear()

    def fail(
        self,
        what: str,
        *,
        match: str = "",
        method: str | None = None,
        times: int | None = 1,
        after: int = 0,
        skip: int = 0,
        **options: Any,
    ) -> None:
        """Arm a fault for the next `times` requests (None: all) that fit, behind the first `skip` that do.

        `match` is part of the path (or of path?query), or a regular expression for it. One request meets one fault
        at most, in the order of arming.

        - ``status``: `status` (500), `error_code`, `message`, `retry_after`; nothing is done.
        - ``drop``: reset after `after` bytes of the answer's body (-1: before its headers) or of the request's;
          `reset=False` closes as a server that ends; `processed=True` does what was asked and loses the answer.
        - ``short``: states the full length, ends after `after` bytes.
        - ``wrong_bytes``: every byte inverted, or only the one `at` a place in the file.
        - ``stall``: waits `seconds` before the answer, or behind `after` bytes of it.
        - ``swap``: from this request on `path` of `repo_id` (default: those of the request) has other `content`
          (default: inverted) at the same commit; the request itself still sees the old.
        - ``etag``: states `etag` (default: zeros).
        - ``edit``: the answer is what `edit` makes of it.
        - ``raw``: in place of an answer, the bytes that `raw` yields, and the end of the connection.
        """
        if what not in FAULTS:
            raise ValueError(what)
        with self._lock:
            self._faults.append(Fault(what, match, method, times, skip, after, options))

    # Contents and commits

    def _is_lfs(self, path: str, size: int) -> bool:
        large = size > self.lfs_threshold
        return size > 0 and (large or any(fnmatch(path.rpartition("/")[2], p) for p in LFS_PATTERNS))

    def _store(self, path: str, source: bytes | Path) -> Entry:
        content = Content.of(source)
        with self._lock:
            content = self._contents.setdefault(content.sha256, content)
        return Entry.of(content, self._is_lfs(path, content.size))

    def _make_commit(
        self,
        repo: Repo,
        parent: Commit | None,
        files: dict[str, Entry],
        author: str,
        message: str,
        description: str,
        fixed: str | None = None,
    ) -> Commit:
        serial = next(self._serials)
        if fixed is not None and not re.fullmatch("[0-9a-f]{40}", fixed):
            raise ValueError(f"not a commit id: {fixed}")
        made = fixed or hashlib.sha1(f"{repo.id} {serial} {message}".encode()).hexdigest()
        date = (FIRST_COMMIT + timedelta(minutes=serial)).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        parents = (parent.id,) if parent else ()
        repo.commits[made] = Commit(made, parents, author, message, description, date, files)
        repo.objects.update(entry.sha256 for entry in files.values() if entry.lfs)
        return repo.commits[made]

    def _commit(self, repo_id: str, revision: str) -> Commit:
        with self._lock:
            found = self._repos[repo_id].commit_at(revision)
        if found is None:
            raise KeyError(revision)
        return found

    def _history(self, repo: Repo, last: Commit) -> list[Commit]:
        history = [last]
        while history[-1].parents:
            history.append(repo.commits[history[-1].parents[0]])
        return history[::-1]

    # Requests

    def serve(self, handler: Handler) -> None:
        raw = urlsplit(handler.path)
        request = Request(
            handler.command,
            unquote(raw.path),
            {name: values[-1] for name, values in parse_qs(raw.query, keep_blank_values=True).items()},
            {name.lower(): value for name, value in handler.headers.items()},
            range=handler.headers.get("Range"),
            storage=handler.server.storage,
        )
        with self._lock:
            self.log.append(request)
        body = RequestBody(request, handler.rfile)
        if self.on_request is not None:
            self.on_request(request)
        fault = self._take_fault(request)
        what = fault.what if fault else ""
        options = fault.options if fault else {}
        after = fault.after if fault else 0
        if fault and what == "drop" and not options.get("processed"):
            if not body.empty:
                body.take(after)
            if not body.empty or request.method == "HEAD" or after < 0:
                return handler.hang_up(options.get("reset", True))
        if what == "stall" and not after:
            self._stopping.wait(options.get("seconds", 1))
        if fault and what == "status":
            answer = self._armed_status(fault)
        else:
            answer = self._answer(request, [p for p in raw.path.split("/") if p], body)
        body.drain()
        if fault and what == "swap":
            self._swap(request, **options)
        if what == "edit":
            answer = options["edit"](answer)
        if what == "raw":
            return self._send_raw(handler, request, options["raw"]())
        if what == "etag":
            for name in ("ETag", "X-Linked-ETag"):
                if name in answer.headers:
                    answer.headers[name] = f'"{options.get("etag", "0" * (len(answer.headers[name]) - 2))}"'
        if fault and what == "drop" and options.get("processed"):
            return handler.hang_up(options.get("reset", True))
        self._send(handler, request, answer, fault)

    def _take_fault(self, request: Request) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if not fault.fits(request):
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                if fault.times is not None:
                    fault.times -= 1
                    if not fault.times:
                        self._faults.remove(fault)
                return fault
        return None

    def _armed_status(self, fault: Fault) -> Answer:
        options = fault.options
        status = options.get("status", 500)
        message = options.get("message", f"armed {status}")
        headers = {"Retry_After": str(options["retry_after"])} if "retry_after" in options else {}
        return Refusal(status, message, options.get("error_code"), **headers).answer

    def _swap(
        self, request: Request, path: str | None = None, repo_id: str | None = None, content: bytes | None = None
    ) -> None:
        parts = request.path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            parts = parts[2:]
        elif parts[0] == "cdn":
            parts = [*parts[2:4], "", "", *parts[4:]]
        repo = self._repos[repo_id or "/".join(parts[:2])]
        path = path or "/".join(parts[4:])
        with self._lock:
            at = next(c.files[path] for c in reversed(repo.commits.values()) if path in c.files)
            source = self._contents[at.sha256].read().translate(FLIPPED) if content is None else content
            entry = self._store(path, source)
            for commit in repo.commits.values():
                if commit.files.get(path) == at:
                    commit.files[path] = entry

    def _answer(self, request: Request, parts: list[str], body: RequestBody) -> Answer:
        try:
            if request.storage:
                return self._storage(request, parts, body)
            return self._hub(request, parts, body)
        except Refusal as refusal:
            return refusal.answer
        except OSError:
            raise
        except Exception:
            self.errors.append(traceback.format_exc())
            return Refusal(500, traceback.format_exc(limit=-1).replace("\n", " ")).answer

    def _send(self, handler: Handler, request: Request, answer: Answer, fault: Fault | None) -> None:
        what = fault.what if fault else ""
        request.status = answer.status
        handler.send_response(answer.status)
        for name, value in {"Content-Length": str(answer.length), **answer.headers}.items():
            handler.send_header(name, value.replace("\n", " "))
        handler.end_headers()
        left = 0 if request.method == "HEAD" else answer.length
        stall_at = fault.after if fault and what == "stall" else 0
        if fault and what in ("drop", "short"):
            left = min(left, fault.after)
        place = answer.start
        for chunk in answer.chunks():
            chunk = chunk[:left]
            if not chunk:
                break
            if fault and what == "wrong_bytes":
                chunk = self._wrong(chunk, place, fault.options.get("at"))
            if stall_at and request.sent + len(chunk) >= stall_at:
                cut = stall_at - request.sent
                self._write(handler, request, chunk[:cut])
                self._stopping.wait(fault.options.get("seconds", 1) if fault else 0)
                self._write(handler, request, chunk[cut:])
                stall_at = 0
            else:
                self._write(handler, request, chunk)
            left -= len(chunk)
            place += len(chunk)
        if (fault and what in ("drop", "short")) or left > 0:
            handler.hang_up(what == "drop" and fault is not None and fault.options.get("reset", True))

    def _send_raw(self, handler: Handler, request: Request, chunks: Iterable[bytes]) -> None:
        for chunk in chunks:
            if self._stopping.is_set():
                break
            self._write(handler, request, chunk)
        handler.hang_up(False)

    def _write(self, handler: Handler, request: Request, chunk: bytes) -> None:
        request.sent += len(chunk)  # before the client has them, so that a test that has them can count
        try:
            handler.wfile.write(chunk)
        except OSError:
            request.sent -= len(chunk)
            raise

    @staticmethod
    def _wrong(chunk: bytes, place: int, at: int | None) -> bytes:
        if at is None:
            return chunk.translate(FLIPPED)
        at -= place
        if not 0 <= at < len(chunk):
            return chunk
        return chunk[:at] + chunk[at : at + 1].translate(FLIPPED) + chunk[at + 1 :]

    # The hub

    def _hub(self, request: Request, parts: list[str], body: RequestBody) -> Answer:
        user = self._user(request)
        names = [unquote(part) for part in parts]
        if names == ["api", "whoami-v2"]:
            return self._whoami(user)
        if names == ["api", "validate-yaml"]:
            return self._validate_yaml(body.json())
        if names == ["api", "repos", "create"]:
            return self._create(user, body.json())
        if names[:2] == ["api", "models"] and len(names) >= 4:
            prefix, names = "/api/models/", names[2:]
        elif len(names) > 2 and (names[2] == "resolve" or names[1].endswith(".git")):
            prefix = "/"
        else:
            raise Refusal(404, f"no such page: {request.path}")
        repo_id = f"{names[0]}/{names[1].removesuffix('.git')}"
        if repo_id in self._aliases:
            behind = urlsplit(request.target)
            location = prefix + request.path.removeprefix(prefix).replace(repo_id, self._aliases[repo_id], 1)
            query = f"?{behind.query}" if behind.query else ""
            return Answer(307, {"Location": quote(location) + query})
        if names[1].endswith(".git"):
            if names[2:5] == ["info", "lfs", "complete"]:  # the client sends no token here
                return self._complete(request, names[5], body.json())
            return self._lfs(request, user, self._writable(repo_id, user, pull_request=True), names[2:], body)
        with self._lock:
            repo = self._readable(repo_id, user)
        action, rest = (names[2], names[3:]) if len(names) > 2 else ("", [])
        revision = rest[0] if rest else "main"
        if rest[:2] == ["refs", "pr"] and len(rest) > 2:
            revision, rest = "/".join(rest[:3]), rest[2:]
        path = "/".join(rest[1:])
        if prefix == "/":
            with self._lock:
                self._check_gate(repo, user)
                return self._resolve(request, repo, self._at(repo, revision), path)
        if request.method == "POST" and action == "commit":
            return self._post_commit(request, repo, user, revision, body.read())
        posted = body.read()
        with self._lock:
            if request.method == "GET" and action in ("", "revision"):
                return self._info(request, repo, self._at(repo, revision))
            if request.method == "GET" and action == "refs":
                return self._refs(request, repo)
            if request.method == "GET" and action == "tree":
                return self._tree(request, repo, self._at(repo, revision), path)
            if request.method == "GET" and action == "commits":
                return self._commit_list(request, repo, self._at(repo, revision))
            if request.method == "POST" and action == "paths-info":
                return self._paths_info(request, repo, self._at(repo, revision), posted)
            if request.method == "POST" and action == "preupload":
                proposed = "create_pr" in request.query or revision.startswith("refs/pr/")
                self._writable(repo_id, user, proposed)
                return self._preupload(self._at(repo, revision), json.loads(posted))
        raise Refusal(404, f"no such page: {request.method} {request.path}")

    def _user(self, request: Request) -> str | None:
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if not kind:
            return None
        if kind != "Bearer" or token not in self.users:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.users[token]

    def _readable(self, repo_id: str, user: str | None) -> Repo:
        repo = self._repos.get(repo_id)
        if repo is None or (repo.private and not repo.may(user, repo.readers)):
            # The service sends no code with a 401, the client tells from the address; not where that is http.
            if user is None:
                raise Refusal(401, "Invalid username or password.", "RepoNotFound")
            raise Refusal(404, "Repository not found", "RepoNotFound")
        return repo

    def _check_gate(self, repo: Repo, user: str | None) -> None:
        if repo.gated and not repo.may(user, repo.readers):
            raise Refusal(
                401 if user is None else 403,
                f"Access to model {repo.id} is restricted and you are not in the authorized list.",
                "GatedRepo",
            )

    def _writable(self, repo_id: str, user: str | None, pull_request: bool = False) -> Repo:
        with self._lock:
            repo = self._readable(repo_id, user)
        if user is None:
            raise Refusal(401, "Invalid username or password.", "RepoNotFound")
        if not pull_request and not repo.may(user, repo.writers):
            raise Refusal(403, f"You don't have the rights to write to {repo_id}")
        return repo

    def _at(self, repo: Repo, revision: str) -> Commit:
        found = repo.commit_at(revision)
        if found is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    def _whoami(self, user: str | None) -> Answer:
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        token = {"displayName": "test", "role": "write"}
        return Answer.of(
            {
                "type": "user",
                "id": hashlib.md5(user.encode()).hexdigest()[:24],
                "name": user,
                "fullname": user,
                "isPro": False,
                "orgs": [],
                "auth": {"type": "access_token", "accessToken": token},
            }
        )

    @staticmethod
    def _front_matter(text: str) -> object:
        found = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
        return yaml.safe_load(found[1]) if found else None

    def _validate_yaml(self, asked: dict[str, Any]) -> Answer:
        try:
            self._front_matter(asked["content"])
        except yaml.YAMLError as error:
            return Answer.of({"errors": [{"message": str(error)}], "warnings": []}, 400)
        return Answer.of({"errors": [], "warnings": []})

    def _create(self, user: str | None, asked: dict[str, Any]) -> Answer:
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        repo_id = f"{asked.get('organization') or user}/{asked['name']}"
        url = f"{self.url}/{repo_id}"
        with self._lock:
            if repo_id in self._repos:
                return Answer.of({"error": "You already created this model repo", "url": url}, 409)
            private = bool(asked.get("private")) or asked.get("visibility") == "private"
            self.add_repo(repo_id, {".gitattributes": GIT_ATTRIBUTES}, private=private)
        return Answer.of({"url": url, "name": repo_id, "id": repo_id})

    def _info(self, request: Request, repo: Repo, commit: Commit) -> Answer:
        card: object = None
        if "README.md" in commit.files:
            with contextlib.suppress(yaml.YAMLError, UnicodeDecodeError):
                card = self._front_matter(self._contents[commit.files["README.md"].sha256].read().decode())
        card = card if isinstance(card, dict) else None
        tags = list((card or {}).get("tags") or [])
        if (card or {}).get("license"):
            tags.append(f"license:{(card or {})['license']}")
        siblings: list[dict[str, object]] = []
        for path, entry in sorted(commit.files.items()):
            siblings.append({"rfilename": path})
            if "blobs" in request.query:
                siblings[-1] |= {"size": entry.size, "blobId": entry.oid}
                if entry.lfs:
                    lfs = {"sha256": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
                    siblings[-1]["lfs"] = lfs
        info = {
            "_id": hashlib.md5(repo.id.encode()).hexdigest()[:24],
            "id": repo.id,
            "modelId": repo.id,
            "author": repo.id.partition("/")[0],
            "sha": commit.id,
            "lastModified": commit.date,
            "createdAt": self._history(repo, commit)[0].date,
            "private": repo.private,
            "gated": "auto" if repo.gated is True else repo.gated,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": tags,
            "siblings": siblings,
            "usedStorage": sum(entry.size for entry in commit.files.values()),
        }
        if card is not None:
            info["cardData"] = card
            for name in ("library_name", "pipeline_tag"):
                if name in card:
                    info[name] = card[name]
        return Answer.of(info)

    def _refs(self, request: Request, repo: Repo) -> Answer:
        def listed(refs: dict[str, str], prefix: str) -> list[dict[str, str]]:
            return [{"name": n, "ref": prefix + n, "targetCommit": c} for n, c in refs.items()]

        found = {
            "branches": listed(repo.branches, "refs/heads/"),
            "converts": [],
            "tags": listed(repo.tags, "refs/tags/"),
        }
        if "include_prs" in request.query:
            found["pullRequests"] = listed(repo.pull_requests, "")
        return Answer.of(found)

    def _listed(self, repo: Repo, commit: Commit, path: str, expand: bool) -> dict[str, Any] | None:
        """How a file or folder is listed; None if it is neither."""
        found: dict[str, Any]
        entry = commit.files.get(path)
        if entry is not None:
            found = {"type": "file", "oid": entry.oid, "size": entry.size, "path": path}
            if entry.lfs:
                found["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
        else:
            below = "".join(f"{p} {e.oid}\n" for p, e in sorted(commit.files.items()) if p.startswith(path + "/"))
            if not below:
                return None
            found = {"type": "directory", "oid": hashlib.sha1(below.encode()).hexdigest(), "size": 0, "path": path}
        if expand:
            last = commit
            for one in reversed(self._history(repo, commit)):
                if one.files.get(path) != entry:
                    break
                last = one
            found["lastCommit"] = {"id": last.id, "title": last.message, "date": last.date}
            if entry is not None:
                found["securityFileStatus"] = {"status": "safe", "avScan": None, "pickleImportScan": None}
        return found

    def _tree(self, request: Request, repo: Repo, commit: Commit, folder: str) -> Answer:
        prefix = folder.strip("/") + "/" if folder.strip("/") else ""
        recursive = request.query.get("recursive", "false").lower() in ("true", "1")
        found = set()
        for path in commit.files:
            if path.startswith(prefix):
                steps = path[len(prefix) :].split("/")
                depths = range(1, len(steps) + 1) if recursive else [1]
                found |= {prefix + "/".join(steps[:depth]) for depth in depths}
        if prefix and not found:
            raise Refusal(404, f"{folder} does not exist on {commit.id}", "EntryNotFound", X_Repo_Commit=commit.id)
        expand = request.query.get("expand", "false").lower() in ("true", "1")
        return self._page(request, [self._listed(repo, commit, path, expand) for path in sorted(found)])

    def _page(self, request: Request, rows: list[Any]) -> Answer:
        """A page of the rows, and where the next one is."""
        at = 0
        if "cursor" in request.query:
            try:
                at = int(base64.urlsafe_b64decode(request.query["cursor"]))
            except (ValueError, binascii.Error):
                raise Refusal(400, "Invalid cursor") from None
        end = at + min(self.page_size, int(request.query.get("limit", self.page_size)))
        answer = Answer.of(rows[at:end])
        if end < len(rows):
            cursor = base64.urlsafe_b64encode(str(end).encode()).decode()
            query = urlencode(request.query | {"cursor": cursor})
            answer.headers["Link"] = f'<{self.url}{quote(request.path)}?{query}>; rel="next"'
        return answer

    def _paths_info(self, request: Request, repo: Repo, commit: Commit, posted: bytes) -> Answer:
        if "json" in request.headers.get("content-type", ""):
            asked = json.loads(posted)
            paths, expand = asked["paths"], bool(asked.get("expand"))
        else:
            form = parse_qs(posted.decode())
            paths, expand = form.get("paths", []), form.get("expand", ["false"])[-1].lower() in ("true", "1")
        found = [self._listed(repo, commit, path.strip("/"), expand) for path in paths]
        return Answer.of([row for row in found if row is not None])

    def _commit_list(self, request: Request, repo: Repo, commit: Commit) -> Answer:
        rows = [
            {
                "id": c.id,
                "title": c.message,
                "message": c.description,
                "authors": [{"user": c.author}],
                "date": c.date,
            }
            for c in reversed(self._history(repo, commit))
        ]
        return self._page(request, rows)

    def _resolve(self, request: Request, repo: Repo, commit: Commit, path: str) -> Answer:
        if request.method not in ("GET", "HEAD"):
            raise Refusal(405, "Method not allowed")
        entry = commit.files.get(path)
        if entry is None:
            raise Refusal(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit.id)
        headers = {"X-Repo-Commit": commit.id}
        content = self._contents[entry.sha256]
        if not entry.lfs:
            return self._part(request, content, entry.etag, headers)
        where = f"/cdn/{entry.sha256}/{repo.id}/{quote(path)}"
        headers |= {
            "X-Linked-Size": str(entry.size),
            "X-Linked-ETag": f'"{entry.etag}"',
            "ETag": f'"{entry.oid}"',
            "Location": f"{self.storage_url}{where}?signature={self._signature(entry.sha256)}",
        }
        return Answer(302, headers, b"Found. Redirecting to the storage")

    def _part(self, request: Request, content: Content, etag: str, headers: dict[str, str]) -> Answer:
        """The content or the range of it that was asked for."""
        headers = {
            "Content-Type": "application/octet-stream",
            "Accept-Ranges": "bytes",
            "ETag": f'"{etag}"',
            **headers,
        }
        size = content.size
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", (request.range or "").replace(" ", ""))
        if found is None or found.groups() == ("", "") or request.headers.get("if-range", f'"{etag}"') != f'"{etag}"':
            return Answer(200, headers, content)
        if found[1]:
            start, end = int(found[1]), min(int(found[2]) + 1 if found[2] else size, size)
        else:
            start, end = max(size - int(found[2]), 0), size
        if start >= end:
            return Answer(416, {"Content-Range": f"bytes */{size}", "Accept-Ranges": "bytes"})
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        return Answer(206, headers, content, start, end)

    # Uploads

    def _preupload(self, commit: Commit, asked: dict[str, Any]) -> Answer:
        found = []
        for file in asked["files"]:
            entry = commit.files.get(file["path"])
            mode = "lfs" if self._is_lfs(file["path"], file["size"]) else "regular"
            found.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
            if entry is not None:
                found[-1]["oid"] = entry.etag
        return Answer.of({"files": found, "commitOid": commit.id})

    def _signature(self, text: str) -> str:
        return hashlib.sha256(f"{id(self)} {text}".encode()).hexdigest()[:32]

    def _lfs(self, request: Request, user: str | None, repo: Repo, names: list[str], body: RequestBody) -> Answer:
        if request.method != "POST" or names[:2] != ["info", "lfs"]:
            raise Refusal(404, f"no such page: {request.path}")
        if names[2:] == ["objects", "batch"]:
            asked = body.json()
            with self._lock:
                objects = [self._batch(repo, asked, wanted) for wanted in asked["objects"]]
            parts = any("chunk_size" in o.get("actions", {}).get("upload", {}).get("header", {}) for o in objects)
            return Answer.of({"transfer": "multipart" if parts else "basic", "objects": objects})
        if names[2:] == ["verify"]:
            asked = body.json()
            stored = self._contents.get(asked["oid"]) if asked["oid"] in repo.objects else None
            if stored is None or stored.size != asked["size"]:
                raise Refusal(404, "no such object")
            return Answer.of({"success": True})
        raise Refusal(404, f"no such page: {request.path}")

    def _batch(self, repo: Repo, asked: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
        oid, size = wanted["oid"], wanted["size"]
        answer: dict[str, Any] = {"oid": oid, "size": size, "authenticated": True}
        if asked["operation"] != "upload" or oid in repo.objects:
            return answer
        upload = Upload(repo, oid, size)
        serial = f"{next(self._serials):04d}"
        self._uploads[serial] = upload
        query = f"?id={serial}&signature={self._signature(oid)}"
        if size > self.part_size and "multipart" in asked.get("transfers", ["basic"]):
            count = -(-size // self.part_size)
            header = {f"{n:05d}": f"{self.storage_url}/upload/{oid}/{n}{query}" for n in range(1, count + 1)}
            header["chunk_size"] = str(self.part_size)
            action = {"href": f"{self.url}/{repo.id}.git/info/lfs/complete/{oid}{query}", "header": header}
        else:
            action = {"href": f"{self.storage_url}/upload/{oid}{query}", "header": {}}
        verify = {"href": f"{self.url}/{repo.id}.git/info/lfs/verify", "header": {}}
        answer["actions"] = {"upload": action, "verify": verify}
        return answer

    def _signed_upload(self, request: Request, oid: str) -> Upload:
        upload = self._uploads.get(request.query.get("id", ""))
        if upload is None or upload.oid != oid or request.query.get("signature") != self._signature(oid):
            raise Refusal(403, "SignatureDoesNotMatch")
        return upload

    def _keep(self, chunks: Iterable[bytes]) -> Content:
        """What was received, as bytes or as a file."""
        digest, kept, path = hashlib.sha256(), bytearray(), None
        with contextlib.ExitStack() as stack:
            file: BinaryIO | None = None
            total = 0
            for chunk in chunks:
                digest.update(chunk)
                total += len(chunk)
                kept += chunk
                if len(kept) > IN_MEMORY:
                    if file is None:
                        path = self._scratch / f"upload-{next(self._serials)}"
                        file = stack.enter_context(path.open("wb"))
                    file.write(kept)
                    kept.clear()
            if file is not None:
                file.write(kept)
        return Content(bytes(kept) if path is None else path, digest.hexdigest(), total)

    def _finish(self, upload: Upload, content: Content) -> None:
        if (content.sha256, content.size) != (upload.oid, upload.size):
            raise Refusal(400, "BadDigest: the object is not the one that was announced")
        with self._lock:
            self._contents.setdefault(upload.oid, content)
            upload.repo.objects.add(upload.oid)

    def _complete(self, request: Request, oid: str, asked: dict[str, Any]) -> Answer:
        upload = self._signed_upload(request, oid)
        numbers = [part["partNumber"] for part in asked["parts"]]
        etags = [part["etag"] for part in asked["parts"]]
        if numbers != sorted(upload.parts) or etags != [upload.parts[n][1] for n in numbers]:
            raise Refusal(400, "InvalidPart: the parts are not those that were uploaded")
        parts = [upload.parts[number][0] for number in numbers]
        self._finish(upload, self._keep(chunk for part in parts for chunk in part.chunks()))
        for part in parts:
            if isinstance(part.source, Path):
                part.source.unlink()
        upload.parts.clear()
        return Answer.of({"success": True})

    def _post_commit(self, request: Request, repo: Repo, user: str | None, revision: str, posted: bytes) -> Answer:
        """A commit of the operations posted; one without any is made too, as the service does."""
        pull_request = request.query.get("create_pr") in ("1", "true")
        self._writable(repo.id, user, pull_request or revision.startswith("refs/pr/"))
        lines = [json.loads(line) for line in posted.splitlines() if line.strip()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        stored = {
            line["value"]["path"]: self._store_regular(base64.b64decode(line["value"]["content"]))
            for line in lines
            if line["key"] == "file"
        }
        with self._lock:
            parent = self._at(repo, revision)
            refs = repo.pull_requests if revision in repo.pull_requests else repo.branches
            if not pull_request and revision not in refs:
                raise Refusal(400, f"{revision} is not a branch")
            if header.get("parentCommit") not in (None, parent.id):
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            tree = dict(parent.files)
            for line in lines:
                value = line["value"]
                path = value.get("path", "").strip("/")
                if line["key"] == "file":
                    tree[path] = stored[value["path"]]
                elif line["key"] == "lfsFile":
                    if value["oid"] not in repo.objects:
                        raise Refusal(400, f"Your push was rejected because an LFS pointer of {path} has no object")
                    tree[path] = Entry.of(self._contents[value["oid"]], lfs=True)
                elif line["key"] == "deletedFile":
                    if path not in tree:
                        message = "A file with this name doesn't exist"
                        raise Refusal(404, message, "EntryNotFound", X_Repo_Commit=parent.id)
                    del tree[path]
                elif line["key"] == "deletedFolder":
                    inside = [p for p in tree if p.startswith(path + "/")]
                    if not inside:
                        message = "A folder with this name doesn't exist"
                        raise Refusal(404, message, "EntryNotFound", X_Repo_Commit=parent.id)
                    for inner in inside:
                        del tree[inner]
                elif line["key"] != "header":
                    raise Refusal(400, f"Unknown operation: {line['key']}")
            made = self._make_commit(
                repo, parent, tree, user or "", header.get("summary", ""), header.get("description", "")
            )
            url = f"{self.url}/{repo.id}"
            answer = {"success": True, "commitOid": made.id, "commitUrl": f"{url}/commit/{made.id}", "hookOutput": ""}
            if pull_request:
                number = len(repo.pull_requests) + 1
                repo.pull_requests[f"refs/pr/{number}"] = made.id
                answer["pullRequestUrl"] = f"{url}/discussions/{number}"
            else:
                refs[revision] = made.id
        return Answer.of(answer)

    def _store_regular(self, source: bytes) -> Entry:
        content = Content.of(source)
        with self._lock:
            content = self._contents.setdefault(content.sha256, content)
        return Entry.of(content, lfs=False)

    # The storage

    def _storage(self, request: Request, names: list[str], body: RequestBody) -> Answer:
        """Signed addresses; a token here was sent along by mistake and is refused, as the real storage does."""
        if "authorization" in request.headers:
            raise Refusal(400, "Only one auth mechanism allowed")
        if names[0] == "cdn" and request.method in ("GET", "HEAD"):
            content = self._contents.get(names[1])
            if content is None or request.query.get("signature") != self._signature(names[1]):
                raise Refusal(403, "SignatureDoesNotMatch")
            return self._part(request, content, content.sha256, {})
        if names[0] == "upload" and request.method == "PUT":
            upload = self._signed_upload(request, names[1])
            content = self._keep(body)
            etag = f'"{content.sha256[:32]}"'
            if len(names) > 2:
                with self._lock:
                    upload.parts[int(names[2])] = (content, etag)
            else:
                self._finish(upload, content)
            return Answer(200, {"ETag": etag})
        raise Refusal(404, f"no such page: {request.path}")
