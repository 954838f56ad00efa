"""The source's SHA-256 and the checksums inside it, computed in background threads.

Imports nothing heavy: hashing starts before the rest of a conversion is imported.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sam3lite_convert.checkpoint.file_set import members
from sam3lite_convert.checkpoint.index import check_unchanged, files_of, stamp_of
from sam3lite_convert.errors import CannotRun, Sam3LiteError, Untrusted
from sam3lite_convert.opened import is_regular, open_regular
from sam3lite_convert.progress import bar
from sam3lite_convert.seen import same_content
from sam3lite_convert.workers import Worker

if TYPE_CHECKING:
    from io import BufferedReader

    from sam3lite_convert.checkpoint.index import Checkpoint, StoredTensor, ZipEntry
    from sam3lite_convert.checkpoint.nonfinite import Watch

_LONG = 32 << 20  # bytes; what is smaller needs no bar
_CHUNK = 256 << 10  # stays in the processor's cache between reading and hashing


def sha256_of(path: Path) -> str:
    """The hex digest of a file."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size < _LONG:
            return _digest(file)
        with bar(f"hashing {path.name}", size, "byte") as advance:
            return _digest(file, advance)


def _digest(
    file: BufferedReader, advance: Callable[[int], None] = lambda n: None, stop: Callable[[], bool] = bool
) -> str:
    """The hex digest of what is left of a file. ``advance``: called with the number of bytes of each piece. ``stop``:
    asked before each piece whether to give up."""
    digest, view = hashlib.sha256(), memoryview(bytearray(_CHUNK))
    while not stop() and (count := file.readinto(view)):
        digest.update(view[:count])
        advance(count)
    return digest.hexdigest()


class FilesHash:
    """Computes the SHA-256 of files in a thread. Leaving the context stops it.

    ``paths``: the files; their names differ.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._stop = False
        self._files = tuple(paths)
        self._done = 0
        self._advance: Callable[[int], None] = lambda n: None
        self._digests = Worker(lambda: {path.name: self._hash(path) for path in self._files})

    def __enter__(self) -> FilesHash:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop = True
        self._digests.join()

    def _hash(self, path: Path) -> str:
        with open_regular(path) as file:
            return _digest(file, self._hashed, lambda: self._stop)

    def _hashed(self, count: int) -> None:
        self._done += count
        self._advance(count)

    def result(self) -> dict[str, str]:
        """The hex digests by name; waits for them. Raises CannotRun if a file cannot be read."""
        try:
            with bar("hashing the folder", sum(path.stat().st_size for path in self._files), "byte") as advance:
                advance(self._done)
                self._advance = advance
                return self._digests.result()
        except OSError as fault:
            raise CannotRun(f"{fault.filename}: {fault.strerror or fault}", "cannot_open") from fault


def git_blob_id(data: bytes) -> str:
    """Git's id of a file's content, in hex; the Hub states it of files that are not large."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def sha256_of_set(digests: Mapping[str, str]) -> str:
    """The SHA-256 of an index and its shards: that of the lines ``<sha256>  <name>``, sorted by name, which
    ``sha256sum`` prints of them.

    ``digests``: SHA-256 by name, relative to the folder of the index.
    """
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(os.fsencode(lines)).hexdigest()  # a name need not be UTF-8


def sha256_of_checkpoint(path: Path) -> str:
    """The hash of a local checkpoint: of its one file, or of its index and shards together (``sha256_of_set``).

    Raises as ``members`` does.
    """
    first, *shards = members(path)
    if not shards:
        return sha256_of(first)
    return sha256_of_set({p.relative_to(first.parent).as_posix(): sha256_of(p) for p in (first, *shards)})


def damaged_records(
    checkpoint: Checkpoint,
    records: Iterable[ZipEntry],
    stop: Callable[[], bool] = lambda: False,
    look: Callable[[ZipEntry, memoryview], None] = lambda record, data: None,
) -> list[str]:
    """The names of the zip entries that do not match their CRC-32; ``look`` is called with every piece that is read.

    Raises Untrusted if the checkpoint changes meanwhile.
    """
    from sam3lite_convert.checkpoint.reader import open_source  # here: it is loaded while the file is hashed

    damaged: list[str] = []
    view = memoryview(bytearray(_CHUNK))
    with open_source(checkpoint) as file:
        for record in records:
            crc, left = 0, record.nbytes
            file.seek(record.offset)
            while left and not stop() and (count := file.readinto(view[:left])):  # type: ignore[attr-defined]
                crc = zlib.crc32(view[:count], crc)
                look(record, view[:count])
                left -= count
            if stop():
                return damaged
            if crc != record.crc32:
                damaged.append(record.name)
    return damaged


class SourceHash:
    """Computes a checkpoint's SHA-256 and checks its zip entries against their CRC-32, in two threads.

    Hashing takes longest, so it starts when the object is made, with nothing but the name. The checksums start with
    ``check``, which gives the positions of the entries. Leaving the context stops both.

    files: SHA-256 by name of an index and its shards, once ``result`` is there; empty for a single file.
    """

    def __init__(self, path: Path | None) -> None:
        """``path``: file, index of shards or folder; None for a partial copy, whose SHA-256 cannot be computed."""
        self.files: dict[str, str] = {}
        self._path = path
        self._checkpoint: Checkpoint | None = None
        self._damaged: Worker[list[str]] | None = None
        self._watch: Watch | None = None
        self._done = 0
        self._advance: Callable[[int], None] = lambda n: None
        self._stop = False
        self._sha256 = Worker(self._hash)

    def check(self, checkpoint: Checkpoint) -> None:
        """Start to check the CRC-32 of the file's entries. ``checkpoint``: the index of the same file."""
        self._checkpoint = checkpoint
        from sam3lite_convert.checkpoint.nonfinite import Watch

        self._watch = watch = Watch(checkpoint)
        self._damaged = Worker(lambda: damaged_records(checkpoint, checkpoint.records, lambda: self._stop, watch.look))

    def follow(self, advance: Callable[[int], None]) -> None:
        """Call ``advance`` with the number of bytes hashed, now for those so far and then for each piece."""
        advance(self._done)
        self._advance = advance

    @contextmanager
    def shown(self, label: str = "hashing the source") -> Iterator[None]:
        """Inside it, a bar shows how far the hash is; none for a partial copy."""
        if self._path is None:
            yield
            return
        size: int | None = None
        with suppress(Sam3LiteError, OSError):  # the reader reports what is wrong
            size = sum(path.stat().st_size for path in members(self._path))
        with bar(label, size, "byte") as advance:
            self.follow(advance)
            yield
            self._advance = lambda n: None

    def __enter__(self) -> SourceHash:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop = True
        self._sha256.join()
        if self._damaged is not None:
            self._damaged.join()

    def _hash(self) -> tuple[str, int, tuple[tuple[int, ...], ...]]:
        try:
            paths = members(self._path) if self._path is not None else []
        except Sam3LiteError:
            paths = []
        if not paths or not all(is_regular(path) for path in paths):
            return "", 0, ()  # a pipe would never end; the reader reports what is wrong
        stamps = list[tuple[int, ...]]()
        digests: dict[str, str] = {}
        for path in paths:
            with open_regular(path) as file:
                stamps.append(stamp_of(file))
                digest = _digest(file, self._hashed, lambda: self._stop)
            digests[path.relative_to(paths[0].parent).as_posix()] = digest
        if len(paths) == 1:
            return digest, self._done, tuple(stamps)
        self.files = digests
        return sha256_of_set(digests), self._done, tuple(stamps)

    def _hashed(self, count: int) -> None:
        self._done += count
        self._advance(count)

    def digest(self) -> str:
        """The hex digest; waits for it."""
        return str(self._sha256.result()[0])

    def suspects(self, tensors: Iterable[StoredTensor]) -> list[StoredTensor]:
        """Tensors that may hold NaN or infinity; to be called after ``result``. Empty for a file without entries."""
        if self._watch is None or self._checkpoint is None or not self._checkpoint.records:
            return []
        return self._watch.suspects(tensors)

    def result(self) -> tuple[str | None, list[str]]:
        """The hex digest (None for a partial copy), and notes on what could not be checked.

        Waits for both threads. Raises Untrusted if the file changed after it was indexed, if its hash is not the one
        that the Hub states, or if entries do not match their CRC-32.
        """
        checkpoint = self._checkpoint
        if checkpoint is None or self._damaged is None:
            raise RuntimeError("check() comes before result()")
        damaged = self._damaged.result()
        digest, notes = (None, []) if checkpoint.partial else (self._whole(checkpoint), [])
        if checkpoint.partial:
            checked = (
                f"the CRC-32 of {len(checkpoint.records)} entries matched"
                if checkpoint.records
                else "it has no checksums"
            )
            notes.append(
                "only the text tensors were downloaded: the SHA-256 is the one that the Hub states and was not "
                f"computed; the etag matched and {checked}"
            )
        names = [r.name for r in checkpoint.records if r.nbytes]
        if damaged and set(damaged) >= set(names):
            # torch.serialization.set_crc32_options(False) writes no checksums.
            notes.append("the archive has no checksums, so damage inside it cannot be detected")
        elif damaged:
            shown = ", ".join(damaged[:5]) + (", ..." if len(damaged) > 5 else "")
            raise Untrusted(
                f"{checkpoint.path.name} is damaged: {len(damaged)} of {len(names)} entries do not match their "
                f"checksums ({shown}). Download it again.",
                "corrupt_file",
                {"records": damaged},
            )
        return digest, notes

    def _whole(self, checkpoint: Checkpoint) -> str:
        sha256, size, hashed = self._sha256.result()
        indexed = [each.stamp for each in files_of(checkpoint) if each.stamp is not None]
        changed = Untrusted(f"{checkpoint.path.name}: the file changed while it was read", "changed_file")
        if size != checkpoint.size or len(hashed) != len(indexed) or not all(map(same_content, indexed, hashed)):
            raise changed
        touched = list(hashed) != indexed
        for each in files_of(checkpoint):
            check_unchanged(each, each.path)
            touched |= each.stamp is not None and stamp_of(each.path) != each.stamp
        # Another link or mode is no other content, but its time hides that of a change: read it once more.
        if touched and self._path is not None and sha256_of_checkpoint(self._path) != sha256:
            raise changed
        stated = checkpoint.hub.sha256 if checkpoint.hub else None
        if stated not in (None, sha256):
            raise Untrusted(
                f"{checkpoint.path.name} is not the file that the Hub lists: its SHA-256 is {sha256}, its etag "
                f"{stated}. The download was damaged or tampered with, and was deleted from the cache. Run the command "
                "again to download it.",
                "etag_mismatch",
            )
        return str(sha256)
