"""A sparse copy of a file on the Hub: ranges are downloaded when they are read.

The copy belongs to this process and is deleted with it. Downloaded ranges are kept beside it as pieces: files that
never change, named by the bytes they hold and their hash, so that several runs can share them safely. They lie in the
repository's folder of the cache, and are deleted with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from huggingface_hub import constants, get_session, hf_hub_url
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from sam3lite_convert.checkpoint.index import Checkpoint
from sam3lite_convert.checkpoint.one_file import read_file
from sam3lite_convert.checkpoint.origin import HubFile
from sam3lite_convert.checkpoint.positioned_file import PositionedFile
from sam3lite_convert.checkpoint.selection import Selection
from sam3lite_convert.errors import CannotRun, Untrusted
from sam3lite_convert.files import check_space, write_whole
from sam3lite_convert.hub.bounds import limit_body, raise_for_status
from sam3lite_convert.hub.repository import Repository
from sam3lite_convert.hub.requests import hub_faults, retried
from sam3lite_convert.opened import read_small

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from sam3lite_convert.workers import Advance

_BLOCK = 64 << 10  # what a small read fetches
_HEAD, _TAIL = 64 << 10, 192 << 10  # a zip's directory of 1,300 entries takes 0.15 MB
_REQUEST = 16 << 20
_PIECE = re.compile(r"(\d{1,16})-(\d{1,16})-([0-9a-f]{64})")
_FORGOTTEN = 24 * 3600  # seconds after which the copy of a killed process is cleared away

Range = tuple[int, int]


class _Piece(NamedTuple):
    start: int
    end: int
    sha256: str
    path: Path

    def read(self) -> bytes | None:
        """Its bytes. If they do not match its name, it is deleted and None is returned."""
        with contextlib.suppress(CannotRun):
            data = read_small(self.path, self.end - self.start)
            if len(data) == self.end - self.start and hashlib.sha256(data).hexdigest() == self.sha256:
                return data
        with contextlib.suppress(OSError):
            self.path.unlink()
        return None


def _pieces(folder: Path) -> Iterator[_Piece]:
    for path in sorted(folder.iterdir()):
        if match := _PIECE.fullmatch(path.name):
            yield _Piece(int(match[1]), int(match[2]), match[3], path)


class PartialCopy(PositionedFile):
    """A file object that downloads what is read. ``received``: bytes downloaded by this object."""

    def __init__(self, repository: Repository, file: HubFile) -> None:
        """Raises CannotRun if the copy cannot be written to the cache."""
        super().__init__(file.size)
        self.file = file
        self.received = 0
        self.requests = 0
        self._ranges: list[Range] = []
        self._folder = repository.partial(file)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for left in self._folder.glob("copy-*"):
                with contextlib.suppress(OSError):  # another process may delete it now
                    if time.time() - left.stat().st_mtime > _FORGOTTEN:
                        shutil.rmtree(left, ignore_errors=True)
            self._place = tempfile.TemporaryDirectory(prefix="copy-", dir=self._folder)
            self.path = Path(self._place.name) / Path(file.path).name
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            os.ftruncate(self._handle, file.size)
        except OSError as fault:
            raise CannotRun(f"{self._folder}: {fault.strerror or fault}", "cannot_write") from fault

    def present(self, offset: int, nbytes: int) -> bool:
        """Whether these bytes are in the copy."""
        return not self._missing(offset, offset + nbytes)

    def holds(self, extent: Range) -> bool:
        """Whether the bytes of this range (start, end) are in the copy."""
        return not self._missing(*extent)

    def _missing(self, start: int, end: int) -> list[Range]:
        missing, at = [], start
        for begin, stop in self._ranges:
            if stop <= at:
                continue
            if begin >= end:
                break
            if begin > at:
                missing.append((at, begin))
            at = max(at, stop)
        return [*missing, (at, end)] if at < end else missing

    def fetch(self, ranges: Iterable[Range], advance: Advance = lambda n: None) -> None:
        """Download what is missing of these ranges (start, end); ``advance`` is called with the bytes downloaded.

        Raises CannotRun if the download fails, Untrusted if the file on the Hub has changed.
        """
        asked = [(start, min(end, self.file.size)) for start, end in _merged(ranges)]
        if not self._gaps(asked):
            return
        try:
            self._take_pieces(asked)
            wanted = self._gaps(asked)
            check_space(self._folder, 2 * sum(b - a for a, b in wanted), f"to download parts of {self.file.path}")
            for start, end in wanted:
                for begin in range(start, end, _REQUEST):
                    data = self._request(begin, min(begin + _REQUEST, end))
                    name = f"{begin}-{begin + len(data)}-{hashlib.sha256(data).hexdigest()}"
                    write_whole(self._folder / name, data)
                    self._put(data, begin)
                    advance(len(data))
        except OSError as fault:
            raise CannotRun(f"{self._folder}: {fault.strerror or fault}", "cannot_write") from fault

    def _gaps(self, ranges: list[Range]) -> list[Range]:
        return [gap for start, end in ranges for gap in self._missing(start, end)]

    def _take_pieces(self, ranges: list[Range]) -> None:
        for piece in _pieces(self._folder):
            gaps = self._gaps(ranges)
            if any(piece.start < end and start < piece.end for start, end in gaps) and (data := piece.read()):
                self._put(data, piece.start)

    def _put(self, data: bytes, start: int) -> None:
        os.lseek(self._handle, start, os.SEEK_SET)
        view = memoryview(data)
        while view:
            view = view[os.write(self._handle, view) :]
        self._ranges = _merged([*self._ranges, (start, start + len(data))])

    def _request(self, start: int, end: int) -> bytes:
        file = self.file
        url = hf_hub_url(file.repo, file.path, revision=file.commit)
        headers = {**build_hf_headers(), "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}

        def get() -> bytes:
            timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
            with get_session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as answer:
                limit_body(answer, _REQUEST)
                if answer.is_error:
                    answer.read()
                raise_for_status(answer)
                self._check(answer, start, end)
                return bytes(answer.read())

        with hub_faults(file.repo):
            data = retried(get)
        if len(data) != end - start:
            raise CannotRun(f"the Hub sent {len(data):,} bytes of {file.path} in place of {end - start:,}", "no_ranges")
        self.received += len(data)
        self.requests += 1
        return data

    def _check(self, answer: Any, start: int, end: int) -> None:
        """Check from the headers that this is the requested range of the listed file.

        Raises CannotRun if the server ignores ranges, Untrusted if it is another file.
        """
        file = self.file
        stated = answer.headers.get("Content-Range", "")
        if answer.status_code != 206 or not stated.startswith(f"bytes {start}-{end - 1}/"):
            raise CannotRun(f"the Hub does not support range requests for {file.path}", "no_ranges")
        chain = [*answer.history, answer]
        # For a large file on another host, the etag is in the redirect to that host.
        linked = next((e for r in chain if (e := r.headers.get("X-Linked-ETag"))), None)
        etag = (linked or answer.headers.get("ETag") or "").removeprefix("W/").strip('"')
        total = stated.rpartition("/")[2]
        if (file.etag and etag != file.etag) or total != str(file.size):
            raise Untrusted(
                f"{file.path}: the Hub lists the etag {file.etag} and sent a file with "
                f"{f'the etag {etag}' if etag else 'no etag'}; it has probably changed just now. Run the command "
                "again.",
                "changed_file",
            )

    def prepare(self) -> bytes:
        """Download the beginning and the end, where an index may be; returns the first 512 bytes."""
        self.fetch([(0, _HEAD), (max(0, self.file.size - _TAIL), self.file.size)])
        return self._read_at(512, 0)

    def indexed(self, selection: Selection) -> Checkpoint:
        """The index of the file, of which no more than that is downloaded. Raises as ``read_file`` does."""
        return read_file(self.path, self, selection)

    def discard(self) -> None:
        """Delete all pieces of this file, so that the next run downloads it again."""
        with contextlib.suppress(OSError):
            for piece in _pieces(self._folder):
                piece.path.unlink()

    # ---- the file interface that zipfile and the reader use ----

    @property
    def name(self) -> str:
        return str(self.path)

    def fileno(self) -> int:
        return self._handle

    def readinto(self, buffer: WriteableBuffer) -> int:
        view: Any = memoryview(buffer).cast("B")
        start, end = self._position, min(self._position + len(view), self.file.size)
        if start >= end:
            return 0
        if not self.present(start, end - start):
            self.fetch([(start - start % _BLOCK, end + -end % _BLOCK)])
        data = self._read_at(end - start, start)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _read_at(self, nbytes: int, offset: int) -> bytes:
        os.lseek(self._handle, offset, os.SEEK_SET)
        return os.read(self._handle, nbytes)

    def close(self) -> None:
        """Close and delete the copy; its pieces are kept."""
        if not self.closed:
            os.close(self._handle)
            self._place.cleanup()
        super().close()


def _merged(ranges: Iterable[Range]) -> list[Range]:
    """The ranges sorted, with overlapping and adjacent ones merged."""
    out: list[Range] = []
    for start, end in sorted(ranges):
        if start >= end:
            continue
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out
