"""A sparse copy of a file on the Hub: what is read from it is fetched by range, and kept.

The copy lies in the repository's folder of the cache, under the file's etag, so it goes when the
repository is deleted from the cache. Holes read as zeros by anything else, so a reader asks
``present`` first.
"""

from __future__ import annotations

import bisect
import contextlib
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import constants, get_session, hf_hub_url
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

from sam3lite_convert.errors import CannotRun, Untrusted
from sam3lite_convert.hub import HubFile, Repository, hub_faults, retried
from sam3lite_convert.output import check_space, write_whole

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from sam3lite_convert.streams import Advance

_BLOCK = 64 << 10  # what a small read fetches
_HEAD, _TAIL = 64 << 10, 256 << 10  # a zip's directory of 1,300 entries takes 0.15 MB
_REQUEST = 16 << 20

Range = tuple[int, int]


class PartialCopy(io.RawIOBase):
    """A file that can be read like the whole one. ``received``: bytes fetched by this object."""

    def __init__(self, repository: Repository, file: HubFile) -> None:
        """Raises CannotRun where the copy cannot be made."""
        super().__init__()
        self.file = file
        self.received = 0
        self.requests = 0
        folder = repository.partial(file)
        self.path = folder / Path(file.path).name
        self._noted = folder / "ranges.json"
        self._position = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            if os.fstat(self._handle).st_size != file.size:
                self._noted.unlink(missing_ok=True)
                os.ftruncate(self._handle, file.size)
        except OSError as fault:
            raise CannotRun(f"{folder}: {fault.strerror or fault}", "cannot_write") from fault
        self._ranges = self._read_ranges()

    def _read_ranges(self) -> list[Range]:
        try:
            found = json.loads(self._noted.read_text(encoding="utf-8"))
            return _merged((int(a), int(b)) for a, b in found)
        except (OSError, ValueError, TypeError):
            return []

    def present(self, offset: int, nbytes: int) -> bool:
        """Whether these bytes have been fetched."""
        return not self._missing(offset, offset + nbytes)

    def _missing(self, start: int, end: int) -> list[Range]:
        missing, at = [], start
        for begin, stop in self._ranges[max(0, bisect.bisect(self._ranges, (start,)) - 1) :]:
            if begin >= end:
                break
            if begin > at:
                missing.append((at, begin))
            at = max(at, stop)
        return [*missing, (at, end)] if at < end else missing

    def fetch(self, ranges: Iterable[Range], advance: Advance = lambda n: None) -> None:
        """Fetch what is missing of these ranges (start, end); ``advance`` is told of bytes.

        Raises CannotRun where the Hub does not give them, Untrusted where the file is another one now.
        """
        wanted = [m for start, end in _merged(ranges) for m in self._missing(start, min(end, self.file.size))]
        if not wanted:
            return
        check_space(self.path.parent, sum(b - a for a, b in wanted), "ranges of the checkpoint are to be downloaded")
        try:
            for start, end in wanted:
                for begin in range(start, end, _REQUEST):
                    data = self._request(begin, min(begin + _REQUEST, end))
                    _write_at(self._handle, data, begin)
                    advance(len(data))
        except OSError as fault:
            raise CannotRun(f"{self.path}: {fault.strerror or fault}", "cannot_write") from fault
        os.fsync(self._handle)
        # What another process has noted in the meantime stays noted.
        self._ranges = _merged([*self._ranges, *wanted, *self._read_ranges()])
        write_whole(self._noted, json.dumps(self._ranges).encode())

    def _request(self, start: int, end: int) -> bytes:
        file = self.file
        url = hf_hub_url(file.repo, file.path, revision=file.commit)
        headers = {**build_hf_headers(), "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}

        def get() -> Any:
            timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
            answer = get_session().get(url, headers=headers, timeout=timeout, follow_redirects=True)
            hf_raise_for_status(answer)
            return answer

        with hub_faults(file.repo):
            response = retried(get)
        first = response.history[0] if response.history else response
        etag = first.headers.get("X-Linked-ETag") or first.headers.get("ETag") or ""
        etag = etag.removeprefix("W/").strip('"')
        content = response.content
        if response.status_code != 206 or len(content) != end - start:
            raise CannotRun(
                f"the Hub gave {len(content):,} bytes of {file.path} where {end - start:,} were asked for; it does not "
                "serve ranges of it. Without --partial and --dry-run the whole file is downloaded.",
                "no_ranges",
            )
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        if (file.etag and etag and etag != file.etag) or (total.isdigit() and int(total) != file.size):
            raise Untrusted(
                f"{file.path}: the Hub's listing and the file itself do not agree (etag {file.etag} and {etag}); it "
                "was changed in between, or the listing is wrong. Run the command again.",
                "changed_file",
            )
        self.received += len(content)
        self.requests += 1
        return bytes(content)

    def prepare(self) -> bytes:
        """Fetch the places where an index lies, the beginning and the end; returns the first bytes."""
        self.fetch([(0, _HEAD), (max(0, self.file.size - _TAIL), self.file.size)])
        return _read_at(self._handle, 512, 0)

    def discard(self) -> None:
        """Delete the copy: the next one starts anew."""
        for path in (self._noted, self.path):
            with contextlib.suppress(OSError):
                path.unlink()

    # ---- what zipfile and the reader of the index need of a file ----

    @property
    def name(self) -> str:
        return str(self.path)

    def fileno(self) -> int:
        return self._handle

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.file.size}[whence]
        if base + offset < 0:
            raise OSError("seek before the start of the file")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        view: Any = memoryview(buffer).cast("B")
        start, end = self._position, min(self._position + len(view), self.file.size)
        if start >= end:
            return 0
        if not self.present(start, end - start):
            self.fetch([(start - start % _BLOCK, end + -end % _BLOCK)])
        data = _read_at(self._handle, end - start, start)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            os.close(self._handle)
        super().close()


def _merged(ranges: Iterable[Range]) -> list[Range]:
    """Sorted, without overlaps; ranges that touch become one."""
    out: list[Range] = []
    for start, end in sorted(ranges):
        if start >= end:
            continue
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out


def _read_at(handle: int, nbytes: int, offset: int) -> bytes:
    os.lseek(handle, offset, os.SEEK_SET)
    return os.read(handle, nbytes)


def _write_at(handle: int, data: bytes, offset: int) -> None:
    os.lseek(handle, offset, os.SEEK_SET)
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
