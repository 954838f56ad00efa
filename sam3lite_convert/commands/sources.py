"""What CHECKPOINT names: a local file, or one on the Hub, whole or by the ranges that are needed."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sam3lite_convert.checkpoint import dtypes
from sam3lite_convert.checkpoint.hashing import SourceHash, sha256_of
from sam3lite_convert.checkpoint.index import Checkpoint, StoredTensor
from sam3lite_convert.checkpoint.reader import read_checkpoint
from sam3lite_convert.errors import CannotRun, Untrusted
from sam3lite_convert.hub.aliases import ALIASES, DEFAULT_REPO, DEFAULT_REVISION
from sam3lite_convert.plan.architecture import SAM3_TEXT_PARAMETERS
from sam3lite_convert.plan.counts import dtype_counts
from sam3lite_convert.plan.names import Names
from sam3lite_convert.plan.plan import Options, make_plan
from sam3lite_convert.plan.tables import Mappings
from sam3lite_convert.records.shared import Fetched, FileFacts, HubOrigin

if TYPE_CHECKING:
    from sam3lite_convert.checkpoint.origin import HubFile
    from sam3lite_convert.hub.ranges import PartialCopy
    from sam3lite_convert.hub.repository import Repository
    from sam3lite_convert.workers import Advance


@dataclass(frozen=True)
class HubLocation:
    """The Hub repository in which names are looked up: ``--repo-id``, ``--revision``, ``--cache-dir``."""

    repo: str = DEFAULT_REPO
    revision: str = DEFAULT_REVISION
    cache: Path | None = None

    def repository(self) -> Repository:
        """The repository. Raises CannotRun if the revision is empty."""
        if not self.revision.strip():
            raise CannotRun("--revision is empty", "usage")
        from sam3lite_convert.hub.repository import Repository

        return Repository(self.repo, self.revision, self.cache)


@dataclass(frozen=True)
class Source:
    """A checkpoint that can be read. ``name``: as the user calls it; ``path``: the file on this
    machine; ``hub``: where it came from; ``copy``: set where only ranges of it were fetched;
    ``option``: what to type behind ``--checkpoint`` to name it again."""

    name: str
    path: Path
    hub: HubFile | None = None
    copy: PartialCopy | None = None
    option: str = ""

    def read(self) -> Checkpoint:
        """The index, with what the Hub states. Raises as ``read_checkpoint`` does."""
        checkpoint = read_checkpoint(self.path, self.copy)
        return replace(checkpoint, hub=self.hub) if self.hub else checkpoint

    def hashing(self) -> SourceHash:
        """The file's SHA-256, under way; a copy with holes has none."""
        return SourceHash(None if self.copy else self.path)

    def provenance(self) -> HubOrigin | None:
        """Repository, file, commit, etag and size; None for a local file."""
        return self.hub.record() if self.hub else None

    def fetched(self) -> Fetched | None:
        """How much of the file was fetched by ranges; None where all of it is here."""
        if self.copy is None:
            return None
        return Fetched(bytes=self.copy.received, requests=self.copy.requests, of=self.copy.file.size)

    def facts(self, checkpoint: Checkpoint, names: Names, text_parameters: int) -> FileFacts:
        """What the file is, by its index. ``text_parameters``: parameters of the text encoder."""
        return FileFacts(
            checkpoint=self.name,
            option=self.option,
            source=self.provenance(),
            fetched=self.fetched(),
            size=checkpoint.size,
            format=checkpoint.format,
            wrapper=checkpoint.wrapper,
            prefix=names.prefix,
            dtypes=dtype_counts(checkpoint),
            text_parameters=text_parameters,
            sam3_text_parameters=int(SAM3_TEXT_PARAMETERS),
        )

    def with_bytes_of(
        self, index: Checkpoint, tensors: Iterable[StoredTensor], advance: Advance = lambda n: None
    ) -> Checkpoint:
        """The index of a file that holds the bytes of these tensors: those that are not here are fetched.

        Raises CannotRun if they cannot be had, Untrusted if they lie outside of their records.
        """
        if self.copy is None:
            return index
        wanted = list(tensors)
        # A zip's record begins somewhat before its tensor, with a header that says where exactly.
        self.copy.fetch((index.extents.get(t.key) or _extent(t) for t in wanted), advance)
        # From here on the copy is read as a file, where a hole would be zeros.
        exact = self.read()
        holes = [t.key for t in wanted if not self.copy.present(*_stretch(exact.tensors[t.key]))]
        if holes:
            raise Untrusted(f"{self.path.name}: bytes of {', '.join(holes[:5])} lie outside of their records")
        return exact

    @contextmanager
    def trusted(self) -> Iterator[None]:
        """Faults of a file from the Hub told from faults of its copy here, which is then deleted."""
        try:
            yield
        except Untrusted as fault:
            if self.copy is not None:
                # Ranges have no hash of their own to tell the file's fault from that of the way here.
                self.copy.discard()
            if self.hub is None or self.copy is not None or not self._damaged_here(fault):
                raise
            from sam3lite_convert.hub.repository import forget

            forget(self.path)
            if fault.code == "etag_mismatch":
                raise
            raise Untrusted(
                f"what lies in the cache is not what the Hub states for {self.hub.path}, and was deleted there; run "
                f"the command again to fetch it anew. ({fault.message})",
                "etag_mismatch",
            ) from fault

    def _damaged_here(self, fault: Untrusted) -> bool:
        if fault.code == "etag_mismatch":
            return True
        if self.hub is None or self.hub.sha256 is None:
            return False
        return sha256_of(self.path) != self.hub.sha256


@dataclass(frozen=True)
class Location:
    """Where a checkpoint is, before anything of it is read. ``path``: the local file, or the path in
    the repository; ``file`` is None for a local one."""

    name: str
    path: Path
    repository: Repository | None = None
    file: HubFile | None = None

    @property
    def option(self) -> str:
        """What to type behind ``--checkpoint`` to name it again."""
        option = shlex.quote(self.name)
        if self.repository is not None and self.repository.repo != DEFAULT_REPO:
            option += f" --repo-id {shlex.quote(self.repository.repo)}"
        if self.repository is not None and self.repository.revision != DEFAULT_REVISION:
            option += f" --revision {shlex.quote(self.repository.revision)}"
        if self.repository is not None and self.repository.cache is not None:
            option += f" --cache-dir {shlex.quote(str(self.repository.cache))}"
        return option

    def here(self) -> Path:
        """The file on this machine; only for one that is."""
        cached = self.file.cached if self.file else self.path
        if cached is None:
            raise ValueError(f"{self.name} is not on this machine")
        return cached

    def whole(self, beside: int = 0) -> Source:
        """All of the file, downloaded unless it is in the cache. ``beside``: bytes that something else is
        about to write to that disk. Raises CannotRun where it cannot be had."""
        if self.repository is None or self.file is None:
            return Source(self.name, self.path, option=self.option)
        return Source(self.name, self.repository.download(self.file, beside), self.file, option=self.option)

    def index(self) -> Source:
        """A source whose index can be read; of a file that is not on this machine only that is fetched.

        Raises CannotRun where it cannot be had.
        """
        if self.repository is None or self.file is None or self.file.here:
            return self.whole()
        from sam3lite_convert.hub.ranges import PartialCopy

        copy = PartialCopy(self.repository, self.file)
        try:
            head = copy.prepare()
        except CannotRun as fault:
            if fault.code != "no_ranges":
                raise
            head = b""
        if head.startswith(b"PK\x03\x04") or head[8:9] == b"{":
            return Source(self.name, copy.path, self.file, copy, self.option)
        # No ranges are served, or it is the format from before torch 1.6, whose index lies between the tensors.
        copy.discard()
        copy.close()
        return self.whole()

    def text(self, mappings: Mappings, causal: bool = False, advance: Advance = lambda n: None) -> Source:
        """As ``index``, with the bytes of the text tensors fetched as well.

        Raises UnsoundPlan where the file holds no text encoder that can be converted.
        """
        source = self.index()
        if source.copy is None:
            return source
        with source.trusted():
            checkpoint = source.read()
            plan = make_plan(checkpoint, mappings, Options("packed", "text", causal=causal))
            tensors = [m.source for m in plan.mapped.values()]
            tensors += [t for twin in plan.twins for t in (twin.first, twin.second)]
            source.with_bytes_of(checkpoint, tensors, advance)
        return source


def locate(name: str, where: HubLocation) -> Location:
    """What CHECKPOINT names: a local path comes first, then an alias, then a path in the repository.

    Raises CannotRun for a name that is none of these.
    """
    path = Path(name)
    if path.exists():
        return Location(name, path)
    if not name or name.startswith((".", "/", "~")) or "\\" in name:
        raise CannotRun(
            f"{name}: no such file. Names on the Hub are aliases ({', '.join(ALIASES)}) or paths in {where.repo}.",
            "no_such_file",
        )
    repository = where.repository()
    try:
        file = repository.find(name)
    except CannotRun as fault:
        message = f"{name} is no file here, and on the Hub: {fault.message}"
        raise CannotRun(message, fault.code, fault.details) from fault
    return Location(name, Path(file.path), repository, file)


def _stretch(tensor: StoredTensor) -> tuple[int, int]:
    """Offset and length of a tensor's bytes."""
    return tensor.offset, tensor.span * dtypes.itemsize(tensor.dtype)


def _extent(tensor: StoredTensor) -> tuple[int, int]:
    start, length = _stretch(tensor)
    return start, start + length
