"""Answers that no Hub gives: each arms the test hub, and is tried on a command by ``tests/hub/test_odd_answers.py``."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from support.hub_files import OLD
from support.hub_server import TOKEN, Answer, HubServer

Arm = Callable[[HubServer], None]
S0 = OLD["s0"]
INFO, TREE, RESOLVE, CDN = r"/api/models/.*/revision/", r"/tree/", r"/resolve/", r"/cdn/"
HASH, OTHER = "ab" * 32, "cd" * 20
CLEAR = "\x1b[2J\x1b]0;owned\x07"
MEGABYTE = "x" * 1_000_000


def edited(match: str, edit: Callable[[Answer], Answer], **options: Any) -> Arm:
    """Arms the edit of each answer that fits."""
    return lambda hub: hub.fail("edit", match=match, times=None, edit=edit, **options)


def raw(match: str, chunks: Callable[[], Iterator[bytes]], **options: Any) -> Arm:
    """Arms bytes in place of each answer that fits."""
    return lambda hub: hub.fail("raw", match=match, times=None, raw=chunks, **options)


def rewritten(answer: Answer, value: object) -> Answer:
    """The answer with other JSON."""
    text = json.dumps(value).encode()
    return replace(
        answer,
        body=text.replace(b"RAW-NEWLINE", b"\n").replace(b"RAW-LATIN", b"\xe9").replace(b'"RAW-DIGITS"', b"7" * 6000),
    )


def body(data: bytes, status: int = 200, **headers: str) -> Callable[[Answer], Answer]:
    """Any answer becomes this one; an underscore in the name of a header stands for a hyphen."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda answer: Answer(status, {"Content-Type": "application/json", **named}, data)


def headed(**headers: str | None) -> Callable[[Answer], Answer]:
    """The answer with other headers; None takes one off."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    def edit(answer: Answer) -> Answer:
        made = {k: v for k, v in (answer.headers | named).items() if v is not None}
        return replace(answer, headers=made)

    return edit


# ---- rows of a listing ------------------------------------------------------------------------------------

ROWS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "size a string": lambda row: row | {"size": str(row["size"])},
    "size empty": lambda row: row | {"size": ""},
    "size 2^70": lambda row: row | {"size": 2**70},
    "size 2^63": lambda row: row | {"size": 2**63},
    "size 10^400": lambda row: row | {"size": 10**400},
    "size of 6,000 digits": lambda row: row | {"size": "RAW-DIGITS"},
    "size negative": lambda row: row | {"size": -1},
    "size null": lambda row: row | {"size": None},
    "size true": lambda row: row | {"size": True},
    "size a fraction": lambda row: row | {"size": 0.5},
    "size infinite": lambda row: row | {"size": float("inf")},
    "size a list": lambda row: row | {"size": [row["size"]]},
    "size missing": lambda row: {k: v for k, v in row.items() if k != "size"},
    "path null": lambda row: row | {"path": None},
    "path a number": lambda row: row | {"path": 7},
    "path a list": lambda row: row | {"path": [row["path"]]},
    "path missing": lambda row: {k: v for k, v in row.items() if k != "path"},
    "path empty": lambda row: row | {"path": ""},
    "path with NUL": lambda row: row | {"path": row["path"].replace("_s0", "\0_s0")},
    "path with a lone surrogate": lambda row: row | {"path": row["path"].replace("_s0", "\udc80_s0")},
    "path with an escape": lambda row: row | {"path": row["path"].replace("_s0", f"{CLEAR}_s0")},
    "path with a line break": lambda row: row | {"path": row["path"].replace("_s0", "\nerror: faked\n_s0")},
    "path with bytes that are no text": lambda row: row | {"path": row["path"].replace("_s0", "RAW-LATIN_s0")},
    "path with a line break that is not escaped": lambda row: (
        row | {"path": row["path"].replace("_s0", "RAW-NEWLINE_s0")}
    ),
    "path upwards": lambda row: row | {"path": "../../../" + row["path"]},
    "path upwards within": lambda row: row | {"path": row["path"].replace("/", "/../../../victim/")},
    "path absolute": lambda row: row | {"path": "/" + row["path"]},
    "path with backslashes": lambda row: row | {"path": row["path"].replace("/", "\\..\\")},
    "path with empty parts": lambda row: row | {"path": row["path"].replace("/", "//")},
    "path of a megabyte": lambda row: row | {"path": f"sam3_litetext/{MEGABYTE}.pt"},
    "path with a name of 300 bytes": lambda row: row | {"path": f"sam3_litetext/{'é' * 150}.pt"},
    "type null": lambda row: row | {"type": None},
    "type unknown": lambda row: row | {"type": "commit"},
    "type missing": lambda row: {k: v for k, v in row.items() if k != "type"},
    "oid null": lambda row: row | {"oid": None},
    "oid a path": lambda row: row | {"oid": "../../victim"},
    "oid missing": lambda row: {k: v for k, v in row.items() if k != "oid"},
    "lfs a string": lambda row: row | {"lfs": "large"},
    "lfs a list": lambda row: row | {"lfs": []},
    "lfs empty": lambda row: row | {"lfs": {}},
    "lfs with a path": lambda row: row | {"lfs": row["lfs"] | {"oid": "../../../victim"}},
    "lfs with another size": lambda row: row | {"lfs": row["lfs"] | {"size": 5}},
    "lfs with a size of text": lambda row: row | {"lfs": row["lfs"] | {"size": "5"}},
    "lfs with a number": lambda row: row | {"lfs": row["lfs"] | {"oid": 5}},
    "not an object": lambda row: row["path"],
    "null": lambda row: None,
    "a list": lambda row: [row],
}


def row(path: str, change: Callable[[dict[str, Any]], Any]) -> Arm:
    """Arms the change of the row of this path."""

    def edit(answer: Answer) -> Answer:
        assert isinstance(answer.body, bytes)
        rows = json.loads(answer.body)
        return rewritten(answer, [change(r) if r["path"] == path else r for r in rows])

    return edited(TREE, edit)


def more_rows(path: str, *others: Callable[[dict[str, Any]], Any]) -> Arm:
    """Arms rows behind the one of this path, made of it."""

    def edit(answer: Answer) -> Answer:
        assert isinstance(answer.body, bytes)
        rows = json.loads(answer.body)
        (found,) = [r for r in rows if r["path"] == path] or [None]
        return rewritten(answer, rows + [change(dict(found)) for change in others] if found else rows)

    return edited(TREE, edit)


# ---- answers of the API, whole ---------------------------------------------------------------------------------


def endless() -> Iterator[bytes]:
    """A body without an end."""
    yield b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n" + b"[" * 0x10000 + b"\r\n"
    while True:
        yield chunk


def dripping(head: bytes = b"", seconds: float = 0.05) -> Callable[[], Iterator[bytes]]:
    """A body, or ``head`` alone, a byte at a time."""

    def drip() -> Iterator[bytes]:
        if not head:
            yield b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
        at = 0
        while True:
            yield head[at : at + 1] or b" "
            at += 1
            time.sleep(seconds)

    return drip


def once(data: bytes) -> Callable[[], Iterator[bytes]]:
    return lambda: iter([data])


def bomb(size: int = 1 << 30) -> bytes:
    """Few bytes that become many."""
    zeros = gzip.compress(b" " * (16 << 20))
    return zeros * (size >> 24)


BODIES: dict[str, Callable[[Answer], Answer]] = {
    "empty": body(b""),
    "204": body(b"", 204),
    "202": body(b"{}", 202),
    "206": body(b"{}", 206),
    "HTML": body(b"<html><h1>Log in to the network</h1></html>", Content_Type="text/html"),
    "a binary": body(bytes(range(256)) * 40, Content_Type="application/octet-stream"),
    "a binary that claims to be JSON": body(b"PK\x03\x04" + bytes(range(128, 256))),
    "UTF-16": body(json.dumps({"sha": OTHER}).encode("utf-16")[:-1]),
    "cut off": body(b'{"sha": "'),
    "nested": body(b"[" * 200_000),
    "a number of 10,000 digits": body(b"1" * 10_000),
    "a string": body(b'"sha"'),
    "null": body(b"null"),
    "a number": body(b"7"),
    "true": body(b"true"),
    "a bomb": body(bomb(), Content_Encoding="gzip"),
    "gzip that is not": body(b"{}", Content_Encoding="gzip"),
    "an unknown compression": body(b"{}", Content_Encoding="zstd, br"),
    "gzip cut off": body(gzip.compress(MEGABYTE.encode())[:500], Content_Encoding="gzip"),
}
INFOS: dict[str, object] = {
    "sha null": {"sha": None},
    "sha a path": {"sha": "../../../victim"},
    "sha short": {"sha": "abc"},
    "sha a number": {"sha": 10**40},
    "sha a list": {"sha": [OTHER]},
    "sha upper case": {"sha": OTHER.upper()},
    "sha with a line break": {"sha": OTHER + "\n"},
    "id a number": {"id": 5},
    "id a path": {"id": "../../x"},
    "private a string": {"private": "false"},
    "private a number": {"private": 1},
}
HARMLESS_INFOS: dict[str, object] = {
    "siblings null": {"siblings": None},
    "siblings a string": {"siblings": "none"},
    "siblings of nulls": {"siblings": [None, {"rfilename": None}]},
    "dates that are none": {"lastModified": "yesterday", "createdAt": 5},
    "a card that is a list": {"cardData": [1, 2]},
    "a card that is text": {"cardData": "license: mit"},
    "a licence that is an object": {"cardData": {"license": {"name": CLEAR}}},
    "a licence with a surrogate": {"cardData": {"license": "\udc80", "license_name": "\0"}},
    "a licence of a megabyte": {"cardData": {"license": "other", "license_name": MEGABYTE}},
    "a licence of many": {"cardData": {"license": ["mit"] * 100_000}},
    "a card with an evaluation that is none": {"cardData": {"model-index": [{"results": 5}]}},
    "tags that are numbers": {"tags": [1, None], "config": 5, "safetensors": "yes", "gguf": []},
    "a provider mapping that is text": {"inferenceProviderMapping": "x"},
    "unknown fields": {"x" * 1000: None, "self": 1, "kwargs": {}},
}


def info(change: Any) -> Callable[[Answer], Answer]:
    def edit(answer: Answer) -> Answer:
        assert isinstance(answer.body, bytes)
        return rewritten(answer, json.loads(answer.body) | change)

    return edit


STATUSES: dict[str, tuple[int, bytes, dict[str, str]]] = {
    "401 with HTML": (401, b"<html>", {"Content-Type": "text/html"}),
    "401 with a list": (401, b"[1]", {}),
    "403 with a binary": (403, bytes(range(256)), {"Content-Type": "application/json"}),
    "403 that fakes a message": (403, b"{}", {"X-Error-Message": f"{CLEAR} error: all is well"}),
    "404 with a number": (404, b"7", {}),
    "404 without a commit": (404, b"", {"X-Error-Code": "EntryNotFound"}),
    "404 with a commit that is a path": (404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "../../victim"}),
    "404 of an unknown code": (404, b"", {"X-Error-Code": MEGABYTE[:5000]}),
    "410": (410, b"{}", {}),
    "418 with a long message": (418, json.dumps({"error": MEGABYTE}).encode(), {}),
    "400 with escapes": (400, json.dumps({"error": f"{CLEAR}\r\nerror: faked"}).encode(), {}),
    "400 with a lone surrogate": (400, b'{"error": "\\udc80"}', {}),
    "400 with errors that are none": (400, b'{"errors": 5}', {}),
    "400 with the token": (400, json.dumps({"error": f"your token is {TOKEN}"}).encode(), {}),
    "429 for 30 years": (429, b"", {"Retry-After": "1000000000"}),
    "429 for 10^400 seconds": (429, b"", {"Retry-After": "1" + "0" * 400}),
    "429 for a negative time": (429, b"", {"Retry-After": "-5"}),
    "429 for a superscript": (429, b"", {"Retry-After": "\xb2"}),
    "429 until a date": (429, b"", {"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"}),
    "429 by a rate limit of 30 years": (429, b"", {"RateLimit": '"api";r=0;t=1000000000'}),
    "503 for 30 years": (503, b"", {"Retry-After": "1000000000"}),
    "500 with a binary": (500, bytes(range(256)), {"Content-Type": "text/plain"}),
    "599": (599, b"{}", {}),
    "302 without a place": (302, b"", {}),
    "304": (304, b"", {}),
    "300": (300, b"", {}),
}


def status(named: str) -> Callable[[Answer], Answer]:
    code, data, headers = STATUSES[named]
    return lambda answer: Answer(code, headers, data)


def redirects(own: str, elsewhere: str) -> dict[str, str]:
    """By name, the address that an answer leads to. ``own``, ``elsewhere``: of the hub and of another host."""
    return {
        "another host": f"{elsewhere}/api/models/x",
        "another host behind the hub's name": f"{elsewhere.replace('//', f'//{own[7:]}@')}/x",
        "another port": f"{own.rpartition(':')[0]}:9/api",
        "a file": "file:///etc/passwd",
        "an unknown scheme": "gopher://x/1",
        "no address": "http://[::1",
        "a port that is none": "http://127.0.0.1:99999999/",
        "an empty one": "",
        "a script": "javascript:alert(1)",
        "a line of control characters": f"/{CLEAR}",
        "a binary of its own": f"{own}/Simon7108528/EfficientSAM3/resolve/main/{S0}",
    }


REDIRECTS = tuple(redirects("http://own", "http://elsewhere"))

# ---- the headers of a file ---------------------------------------------------------------------------------

FILE_HEADERS: dict[str, dict[str, str | None]] = {
    "etag upwards": {"X-Linked-ETag": '"../../../victim"', "ETag": '"../../../victim"'},
    "etag absolute": {"X-Linked-ETag": '"/tmp/victim"'},
    "etag with backslashes": {"X-Linked-ETag": '"..\\victim"'},
    "etag of dots": {"X-Linked-ETag": '".."'},
    "etag empty": {"X-Linked-ETag": '""', "ETag": '""'},
    "etag of a megabyte": {"X-Linked-ETag": f'"{MEGABYTE[:5000]}"'},
    "etag of another file": {"X-Linked-ETag": f'"{HASH}"'},
    "etag weak": {"X-Linked-ETag": f'W/"{HASH}"'},
    "no etag": {"X-Linked-ETag": None, "ETag": None},
    "commit upwards": {"X-Repo-Commit": "../../../victim"},
    "commit of another": {"X-Repo-Commit": OTHER},
    "no commit": {"X-Repo-Commit": None},
    "size that is none": {"X-Linked-Size": "many"},
    "size negative": {"X-Linked-Size": "-5"},
    "size 2^70": {"X-Linked-Size": str(2**70)},
    "size smaller": {"X-Linked-Size": "5"},
    "size a superscript": {"X-Linked-Size": "\xb2"},
    "storage that asks another host for a token": {
        "X-Xet-Hash": HASH,
        "X-Xet-Refresh-Route": "http://127.0.0.2:9/token",
    },
    "storage that asks another host by a link": {
        "X-Xet-Hash": HASH,
        "Link": '<http://127.0.0.2:9/token>; rel="xet-auth"',
    },
    "a place that is a file": {"Location": "file:///etc/passwd"},
    "a place without a host": {"Location": "http:///x"},
    "a place that is none": {"Location": "http://[::1"},
    "a warning of a megabyte": {"X-HF-Warning": MEGABYTE[:60_000]},
    "a warning with escapes": {"X-HF-Warning": f"topic;{CLEAR}"},
}
RANGES: dict[str, Callable[[Answer], Answer]] = {
    "another range": lambda a: replace(a, headers=a.headers | {"Content-Range": "bytes 5-9/100"}),
    "a range that is none": lambda a: replace(a, headers=a.headers | {"Content-Range": "bytes */*"}),
    "no range": lambda a: replace(a, headers={k: v for k, v in a.headers.items() if k != "Content-Range"}),
    "another size": lambda a: replace(
        a, headers=a.headers | {"Content-Range": a.headers.get("Content-Range", "").rpartition("/")[0] + "/99"}
    ),
    "fewer bytes": lambda a: replace(a, end=a.start + 10) if a.status == 206 else a,
    "more bytes": lambda a: Answer(a.status, a.headers, b"x" * (9 << 20)) if a.status == 206 else a,
    "another etag": lambda a: replace(a, headers=a.headers | {"ETag": f'"{HASH}"'}),
    "416": lambda a: Answer(416, {"Content-Range": "bytes */5"}, b""),
    "the whole file": lambda a: replace(a, status=200, start=0, end=None),
    "204": lambda a: Answer(204, {}, b""),
    "HTML": lambda a: Answer(200, {"Content-Type": "text/html"}, b"<html>"),
    "compressed": lambda a: replace(a, headers=a.headers | {"Content-Encoding": "gzip"}),
    "a bomb": lambda a: Answer(a.status, a.headers | {"Content-Encoding": "gzip"}, bomb()),
}

# ---- what the connection does ---------------------------------------------------------------------------------

CONNECTIONS: dict[str, Callable[[], Iterator[bytes]]] = {
    "nothing": once(b""),
    "not HTTP": once(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "TLS": once(b"\x15\x03\x01\x00\x02\x02\x28"),
    "HTTP/0.9": once(b"<html>hello</html>"),
    "HTTP/9.9": once(b"HTTP/9.9 200 OK\r\n\r\n"),
    "a status that is none": once(b"HTTP/1.1 abc OK\r\n\r\n"),
    "a status of 1,000": once(b"HTTP/1.1 1000 OK\r\n\r\n"),
    "a header of a megabyte": once(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1_000_000 + b"\r\n\r\n"),
    "100,000 headers": once(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000 + b"\r\n"),
    "a header with NUL": once(b"HTTP/1.1 200 OK\r\nX: \0\r\n\r\n{}"),
    "a header without a name": once(b"HTTP/1.1 200 OK\r\n: y\r\n\r\n{}"),
    "two lengths": once(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 5\r\n\r\n{}"),
    "a negative length": once(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}"),
    "a length of 2^70": once(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n{}" % 2**70),
    "chunks that are none": once(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
    "a chunk of 2^70": once(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n{}" % 2**70),
    "an unknown encoding": once(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: rot13\r\n\r\n{}"),
    "endless": endless,
}


def interim() -> Iterator[bytes]:
    """Interim answers without an end."""
    while True:
        yield b"HTTP/1.1 100 Continue\r\n\r\n"
        time.sleep(0.01)


SLOW: dict[str, Callable[[], Iterator[bytes]]] = {
    "a body that drips": dripping(),
    "a head that drips": dripping(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000),
    "interim answers without an end": interim,
}

# ---- pushes ---------------------------------------------------------------------------------------------------

WHO, CREATE, PREUPLOAD, BATCH = r"/whoami", r"/repos/create", r"/preupload/", r"/objects/batch"
UPLOAD, LFS_VERIFY, COMMIT, YAML = r"/upload/", r"/lfs/verify", r"/commit/", r"/validate-yaml"


def changed(change: Callable[[Any], Any]) -> Callable[[Answer], Answer]:
    """The answer with its JSON changed in place or replaced."""

    def edit(answer: Answer) -> Answer:
        if answer.status >= 300 or not isinstance(answer.body, bytes):
            return answer
        value = json.loads(answer.body)
        made = change(value)
        return rewritten(answer, value if made is None else made)

    return edit


def every(name: str, value: object) -> Callable[[Any], None]:
    """Sets a field of each file of the answer to preupload."""

    def change(found: Any) -> None:
        for file in found["files"]:
            file[name] = value

    return change


def actions(**fields: Any) -> Callable[[Any], None]:
    """Sets fields of the upload action of each object."""

    def change(found: Any) -> None:
        for item in found["objects"]:
            if "actions" in item:
                item["actions"]["upload"] |= fields

    return change


def verifying(place: str) -> Callable[[Any], None]:
    def change(found: Any) -> None:
        for item in found["objects"]:
            if "actions" in item:
                item["actions"]["verify"]["href"] = place

    return change


ELSEWHERE = "http://127.0.0.2:9/verify"
PUSHES: dict[str, tuple[str, Callable[[Answer], Answer]]] = {
    "who: HTML": (WHO, BODIES["HTML"]),
    "who: empty": (WHO, BODIES["empty"]),
    "who: a list": (WHO, body(b"[]")),
    "who: no name": (WHO, body(b"{}")),
    "who: a name that is a path": (WHO, changed(lambda v: v | {"name": "../x"})),
    "who: a name with escapes": (WHO, changed(lambda v: v | {"name": CLEAR})),
    "who: a name that is a number": (WHO, changed(lambda v: v | {"name": 5})),
    "who: a bomb": (WHO, BODIES["a bomb"]),
    "who: elsewhere": (WHO, body(b"", 307, Location=ELSEWHERE)),
    "create: empty": (CREATE, body(b"")),
    "create: HTML": (CREATE, BODIES["HTML"]),
    "create: a list": (CREATE, body(b"[]")),
    "create: no url": (CREATE, body(b"{}")),
    "create: a url that is a number": (CREATE, body(b'{"url": 5}')),
    "create: another repository": (CREATE, changed(lambda v: v | {"url": v["url"] + "-2"})),
    "create: on another host": (CREATE, changed(lambda v: v | {"url": "http://127.0.0.2:9/porter/x"})),
    "create: in conflict without end": (
        CREATE,
        body(b'{"error": "Cannot create repo: another conflicting operation is in progress"}', 409),
    ),
    "create: elsewhere": (CREATE, body(b"", 307, Location=ELSEWHERE)),
    "create: 403 with a binary": (CREATE, body(bytes(range(256)), 403)),
    "preupload: no files": (PREUPLOAD, changed(lambda v: v | {"files": []})),
    "preupload: files null": (PREUPLOAD, changed(lambda v: v | {"files": None})),
    "preupload: a list": (PREUPLOAD, body(b"[]")),
    "preupload: one file": (PREUPLOAD, changed(lambda v: v | {"files": v["files"][:1]})),
    "preupload: other files": (PREUPLOAD, changed(every("path", "../../other"))),
    "preupload: an unknown mode": (PREUPLOAD, changed(every("uploadMode", "pigeon"))),
    "preupload: all are ignored": (PREUPLOAD, changed(every("shouldIgnore", True))),
    "preupload: all are large": (PREUPLOAD, changed(every("uploadMode", "lfs"))),
    "preupload: all are small": (PREUPLOAD, changed(every("uploadMode", "regular"))),
    "preupload: ids that are numbers": (PREUPLOAD, changed(every("oid", 5))),
    "preupload: HTML": (PREUPLOAD, BODIES["HTML"]),
    "preupload: elsewhere": (PREUPLOAD, body(b"", 307, Location=ELSEWHERE)),
    "batch: objects null": (BATCH, changed(lambda v: v | {"objects": None})),
    "batch: no objects": (BATCH, changed(lambda v: v | {"objects": []})),
    "batch: an object that is text": (BATCH, changed(lambda v: v | {"objects": ["x"]})),
    "batch: another object": (BATCH, changed(lambda v: v | {"objects": [v["objects"][0] | {"oid": HASH}]})),
    "batch: a size of text": (BATCH, changed(lambda v: v | {"objects": [v["objects"][0] | {"size": "5"}]})),
    "batch: an error with escapes": (
        BATCH,
        changed(lambda v: v | {"objects": [v["objects"][0] | {"error": {"code": 1, "message": CLEAR}}]}),
    ),
    "batch: it has all": (BATCH, changed(lambda v: v | {"objects": [{"oid": v["objects"][0]["oid"], "size": 1}]})),
    "batch: to a file": (BATCH, changed(actions(href="file:///tmp/victim"))),
    "batch: to no address": (BATCH, changed(actions(href="http://[::1"))),
    "batch: to nobody": (BATCH, changed(actions(href="http://127.0.0.2:9/upload"))),
    "batch: to a number": (BATCH, changed(actions(href=5))),
    "batch: chunks of 0": (BATCH, changed(actions(header={"chunk_size": "0"}))),
    "batch: chunks of -1": (BATCH, changed(actions(header={"chunk_size": "-1"}))),
    "batch: chunks of text": (BATCH, changed(actions(header={"chunk_size": "many"}))),
    "batch: chunks of one byte": (BATCH, changed(actions(header={"chunk_size": "1"}))),
    "batch: a header that is a list": (BATCH, changed(actions(header=[1]))),
    "batch: verified elsewhere": (BATCH, changed(verifying(ELSEWHERE))),
    "batch: verified in a file": (BATCH, changed(verifying("file:///etc/passwd"))),
    "batch: elsewhere": (BATCH, body(b"", 307, Location=ELSEWHERE)),
    "upload: 403 with a binary": (UPLOAD, body(bytes(range(256)), 403)),
    "upload: 500": (UPLOAD, body(b"", 500)),
    "upload: elsewhere": (UPLOAD, body(b"", 307, Location=ELSEWHERE)),
    "upload: 503 for 30 years": (UPLOAD, body(b"", 503, Retry_After="1000000000")),
    "upload: no etag": (UPLOAD, headed(ETag=None)),
    "lfs: 404": (LFS_VERIFY, body(b"", 404)),
    "lfs: elsewhere": (LFS_VERIFY, body(b"", 307, Location=ELSEWHERE)),
    "yaml: HTML": (YAML, BODIES["HTML"]),
    "yaml: 400 with a list": (YAML, body(b"[]", 400)),
    "yaml: errors that are none": (YAML, body(b'{"errors": 5, "warnings": [1]}', 400)),
    "yaml: warnings that are none": (YAML, body(b'{"errors": 5, "warnings": 5}')),
    "commit: empty": (COMMIT, body(b"")),
    "commit: HTML": (COMMIT, BODIES["HTML"]),
    "commit: a list": (COMMIT, body(b"[]")),
    "commit: nothing": (COMMIT, body(b"{}")),
    "commit: no id": (COMMIT, changed(lambda v: {k: x for k, x in v.items() if k != "commitOid"})),
    "commit: an id that is null": (COMMIT, changed(lambda v: v | {"commitOid": None})),
    "commit: an id that is a path": (COMMIT, changed(lambda v: v | {"commitOid": "../../main"})),
    "commit: another id": (COMMIT, changed(lambda v: v | {"commitOid": OTHER})),
    "commit: a url that is null": (COMMIT, changed(lambda v: v | {"commitUrl": None})),
    "commit: a url with escapes": (COMMIT, changed(lambda v: v | {"commitUrl": f"http://x/{CLEAR}"})),
    "commit: a url elsewhere": (COMMIT, changed(lambda v: v | {"commitUrl": "http://127.0.0.2:9/porter/x/commit/1"})),
    "commit: 413 with HTML": (COMMIT, body(b"<html>", 413, Content_Type="text/html")),
    "commit: 412 with escapes": (COMMIT, body(json.dumps({"error": CLEAR}).encode(), 412)),
    "commit: 204": (COMMIT, body(b"", 204)),
    "commit: elsewhere": (COMMIT, body(b"", 307, Location=ELSEWHERE)),
    "tree: a file is another": (TREE, changed(lambda v: [r | {"oid": OTHER} for r in v])),
    "tree: a file is missing": (TREE, changed(lambda v: [r for r in v if r["path"] != "config.json"])),
    "tree: nothing": (TREE, changed(lambda v: [])),
    "tree: a size is another": (TREE, changed(lambda v: [r | {"size": 5} for r in v])),
    "tree: a row is odd": (TREE, changed(lambda v: [*v, {"type": "file", "path": "x", "size": "5", "oid": OTHER}])),
}
RECEIPTS: dict[str, bytes] = {
    "a list": b"[]",
    "null": b"null",
    "text": b'"x"',
    "empty": b"",
    "nested": b"[" * 100_000,
    "no text": bytes(range(256)),
    "a surrogate": b'{"tool": "\\udc80"}',
    "fields of other types": b'{"source": 5, "files": 7, "beside": [], "options": null}',
    "files that are numbers": b'{"source": {"name": 1}, "files": [1, null], "beside": {"x": 1}}',
    "17 MB": b"[" + b" " * (17 << 20) + b"]",
}
REFERENCES: dict[str, Any] = {
    "null": None,
    "text": "refs/pr/1",
    "rows that are none": [None, 5, {}, {"ref": 5, "targetCommit": OTHER}],
    "a path": [{"name": "x", "ref": "refs/pr/../../x", "targetCommit": OTHER}],
    "a commit that is a path": [{"name": "x", "ref": "refs/pr/1", "targetCommit": "../../x"}],
    "a number that is none": [{"name": "x", "ref": "refs/pr/x", "targetCommit": OTHER}],
    "a number of 5,000 digits": [{"name": "x", "ref": "refs/pr/" + "9" * 5000, "targetCommit": OTHER}],
}
