"""Finds CHECKPOINT: a local file, or one on the Hub, downloaded as a whole or by byte ranges."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from sam3lite_convert.checkpoint.file_set import json_object, members, stem_of
from sam3lite_convert.checkpoint.hashing import SourceHash, sha256_of
from sam3lite_convert.checkpoint.index import Checkpoint, StoredTensor
from sam3lite_convert.checkpoint.kinds import WEIGHTS
from sam3lite_convert.checkpoint.place import LocalPlace, read_json
from sam3lite_convert.checkpoint.reader import read_checkpoint
from sam3lite_convert.checkpoint.selection import NOTHING_STATED, Selection, stated
from sam3lite_convert.convert.receipt import RECEIPT_NAME
from sam3lite_convert.errors import CannotRun, Sam3LiteError, Untrusted
from sam3lite_convert.hub.aliases import ALIASES, DEFAULT_REPO, DEFAULT_REVISION, is_path
from sam3lite_convert.plan.architecture import SAM3_TEXT_PARAMETERS
from sam3lite_convert.plan.counts import dtype_counts
from sam3lite_convert.plan.names import Names
from sam3lite_convert.plan.original_names import Beside, in_original_names
from sam3lite_convert.plan.plan import Options, make_plan
from sam3lite_convert.plan.stated import stated_causal
from sam3lite_convert.plan.tables import Mappings
from sam3lite_convert.quoting import shell_path, shell_word
from sam3lite_convert.records.record import Json
from sam3lite_convert.records.shared import Fetched, FileFacts, HubOrigin
from sam3lite_convert.seen import MOST_ENTRIES, nearest

if TYPE_CHECKING:
    from sam3lite_convert.checkpoint.origin import HubFile
    from sam3lite_convert.hub.ranges import PartialCopy
    from sam3lite_convert.hub.repository import Repository
    from sam3lite_convert.hub.shards import PartialShards
    from sam3lite_convert.workers import Advance


_LISTED = 5
# OWNER/NAME[@REVISION].
REPOSITORY = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>.+))?")


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
    """A checkpoint that can be read.

    ``name``: as the user typed it.
    ``path``: the file on this machine, or the index of shards.
    ``hub``: its origin on the Hub; None for a local file.
    ``copy``: the partial copy, if only ranges of it were downloaded.
    ``stem``: what files are named after that are made of it.
    ``option``: the value of ``--checkpoint`` that names it, with the options of its repository and its selection.
    ``selection``: what the user states about the file.
    ``beside``: the content of a JSON file that lies beside it; None if there is none.
    """

    name: str
    path: Path
    hub: HubFile | None = None
    copy: PartialCopy | PartialShards | None = None
    option: str = ""
    selection: Selection = NOTHING_STATED
    stem: str = ""
    beside: Callable[[str], Json | None] = lambda name: None

    def read(self, mappings: Mappings) -> Checkpoint:
        """The index under the original's names, with its origin on the Hub; of a file in the names of a layout as
        ``in_original_names`` tells it. Raises as ``read_checkpoint`` does."""
        checkpoint = self.copy.indexed(self.selection) if self.copy else read_checkpoint(self.path, self.selection)
        checkpoint = in_original_names(
            checkpoint, mappings, lambda: Beside(self.beside(RECEIPT_NAME), self.beside("config.json"))
        )
        if checkpoint.turned_back:
            checkpoint = replace(checkpoint, notes=(*checkpoint.notes, *_config_notes(checkpoint, mappings)))
        return replace(checkpoint, hub=self.hub) if self.hub else checkpoint

    def as_stated(self, receipt: Mapping[str, object] | None) -> Source:
        """The source, read as the receipt of a folder states, unless the user stated it."""
        return self if self.selection != NOTHING_STATED else replace(self, selection=stated(receipt))

    def hashing(self) -> SourceHash:
        """Start to compute the file's SHA-256; a partial copy has none."""
        return SourceHash(None if self.copy else self.path)

    @property
    def size(self) -> int:
        """Bytes on this machine, of all shards. Raises as ``members`` does."""
        return sum(path.stat().st_size for path in members(self.path))

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
            shards=len(checkpoint.shards) or 1,
            format=checkpoint.format,
            wrapper=checkpoint.wrapper,
            left=checkpoint.left,
            layout=checkpoint.turned_back.layout if checkpoint.turned_back else None,
            prefix=names.prefix,
            taken_off=names.taken_off,
            dtypes=dtype_counts(checkpoint),
            text_parameters=text_parameters,
            sam3_text_parameters=int(SAM3_TEXT_PARAMETERS),
        )

    def with_bytes_of(
        self,
        mappings: Mappings,
        index: Checkpoint,
        tensors: Iterable[StoredTensor],
        advance: Advance = lambda n: None,
    ) -> Checkpoint:
        """The index of a file that holds the bytes of these tensors: those that are not here are fetched.

        Raises CannotRun if they cannot be had, Untrusted if they lie outside of their records.
        """
        if self.copy is None:
            return index
        tensors = tuple(tensors)
        # A zip's record begins somewhat before its tensor, with a header that says where exactly.
        wanted = (stored for tensor in tensors for stored in tensor.stored)
        self.copy.fetch((index.extents.get(t.key) or t.extent for t in wanted), advance)
        # From here on the copy is read as a file, where a hole would be zeros.
        exact = self.read(mappings)
        copies = exact.turned_back.copies if exact.turned_back else ()
        found = exact.tensors | {tensor.key: tensor for pair in copies for tensor in pair}
        there = (stored for tensor in tensors for stored in found[tensor.key].stored)
        holes = [stored.key for stored in there if not self.copy.holds(stored.extent)]
        if holes:
            raise Untrusted(f"{self.path.name}: bytes of {', '.join(holes[:5])} lie outside of their records")
        return exact

    @contextmanager
    def trusted(self) -> Iterator[None]:
        """Context for reading the file: a download that turns out damaged is deleted.

        Raises Untrusted as the reader does.
        """
        try:
            yield
        except Untrusted as fault:
            if self.copy is not None:
                # A range has no hash that tells a damaged download from a damaged file.
                self.copy.discard()
            damaged = self._damaged_here(fault) if self.copy is None else {}
            if not damaged:
                raise
            from sam3lite_convert.hub.repository import forget

            for path in damaged.values():
                forget(path)
            if fault.code == "etag_mismatch":
                raise
            raise Untrusted(
                f"the cached copy of {', '.join(damaged)} was damaged and is deleted; run the command again to "
                f"download it. ({fault.message})",
                "etag_mismatch",
            ) from fault

    def _damaged_here(self, fault: Untrusted) -> dict[str, Path]:
        """The files in the cache that are not what the Hub lists, by their path in the repository."""
        if self.hub is None:
            return {}
        root = PurePosixPath(self.hub.path).parent
        files = {
            part.path: (part.sha256, self.path.parent / PurePosixPath(part.path).relative_to(root))
            for part in self.hub.parts or (self.hub,)
        }
        if fault.code == "etag_mismatch" and len(files) == 1:
            return {name: path for name, (_, path) in files.items()}
        found = {name: path for name, (sha256, path) in files.items() if sha256 not in (None, sha256_of(path))}
        if fault.code == "etag_mismatch" and not found:  # then it is a file whose SHA-256 the Hub does not state
            return {name: path for name, (_, path) in files.items()}
        return found


@dataclass(frozen=True)
class Location:
    """A checkpoint that was found and not read yet.

    ``name``: as the user typed it.
    ``path``: the local file, or the path in the repository; of shards, their index.
    ``repository``, ``file``: None for a local file.
    ``selection``: what the user states about the file.
    ``where``: the options that the name was looked up with.
    ``folder``: name of the folder or repository, if the user named that and not the file in it.
    """

    name: str
    path: Path
    repository: Repository | None = None
    file: HubFile | None = None
    selection: Selection = NOTHING_STATED
    where: HubLocation = field(default_factory=HubLocation)
    folder: str | None = None

    @property
    def stem(self) -> str:
        """What files are named after that are made of it."""
        return self.folder or stem_of(self.path.name)

    @property
    def option(self) -> str:
        """The value of ``--checkpoint`` that names it, with the options of its repository and its selection."""
        option = shell_path(self.name)
        if self.repository is not None and self.where.repo != DEFAULT_REPO:
            option += f" --repo-id {shell_word(self.where.repo)}"
        if self.repository is not None and self.where.revision != DEFAULT_REVISION:
            option += f" --revision {shell_word(self.where.revision)}"
        if self.repository is not None and self.where.cache is not None:
            option += f" --cache-dir {shell_path(self.where.cache)}"
        return option + self.selection.options

    def here(self) -> Path:
        """The file on this machine. Raises ValueError if it was not downloaded."""
        cached = self.file.cached if self.file else self.path
        if cached is None:
            raise ValueError(f"{self.name} is not on this machine")
        return cached

    def whole(self, beside: int = 0) -> Source:
        """The whole file, downloaded unless it is in the cache.

        ``beside``: bytes that something else is about to write to that disk. Raises CannotRun if it cannot be
        downloaded.
        """
        if self.repository is None or self.file is None:
            return self._source(self.path)
        return self._source(self.repository.download(self.file, beside))

    def _source(self, path: Path, copy: PartialCopy | PartialShards | None = None) -> Source:
        return Source(self.name, path, self.file, copy, self.option, self.selection, self.stem, self._beside)

    def _beside(self, name: str) -> Json | None:
        """The content of a JSON file beside the checkpoint. Raises Untrusted if it is not a JSON object."""
        if self.repository is None or self.file is None:
            return read_json(LocalPlace(self.path.parent), name)
        at = replace(self.repository, revision=self.file.commit)
        data = at.small((PurePosixPath(self.file.path).parent / name).as_posix())
        return None if data is None else json_object(data, Path(self.file.repo) / name)

    def index(self) -> Source:
        """A source whose index can be read; of a file that is not on this machine only the index is downloaded.

        Raises CannotRun if it cannot be downloaded.
        """
        if self.repository is None or self.file is None or self.file.here:
            return self.whole()
        if self.file.parts:
            return self._index_of_files(self.repository, self.file)
        from sam3lite_convert.hub.ranges import PartialCopy

        copy = PartialCopy(self.repository, self.file)
        try:
            head = copy.prepare()
        except CannotRun as fault:
            if fault.code != "no_ranges":
                raise
            head = b""
        if head.startswith(b"PK\x03\x04") or head[8:9] == b"{":
            return self._source(copy.path, copy)
        # The server has no ranges, or the file is older than torch 1.6 and has its index between the tensors.
        copy.discard()
        copy.close()
        return self.whole()

    def _index_of_files(self, repository: Repository, file: HubFile) -> Source:
        from sam3lite_convert.hub.shards import PartialShards

        copy = PartialShards(repository, file)
        try:
            copy.indexed(self.selection)
        except (CannotRun, Untrusted) as fault:
            copy.discard()
            copy.close()
            if fault.code != "no_ranges":
                raise
            return self.whole()
        return self._source(copy.path, copy)

    def text(self, mappings: Mappings, causal: bool = False, advance: Advance = lambda n: None) -> Source:
        """As ``index``, with the bytes of the text tensors. ``advance`` is called with the bytes downloaded.

        Raises UnsoundPlan if the file holds no text encoder that can be converted.
        """
        source = self.index()
        if source.copy is None:
            return source
        with source.trusted():
            checkpoint = source.read(mappings)
            plan = make_plan(checkpoint, mappings, Options(component="text", causal=causal))
            tensors = [source for m in plan.mapped.values() for source in m.sources]
            tensors += [t for twin in plan.twins for t in (twin.first, twin.second)]
            source.with_bytes_of(mappings, checkpoint, tensors, advance)
        return source


def _config_notes(checkpoint: Checkpoint, mappings: Mappings) -> Iterator[str]:
    """What the config.json beside a checkpoint that was turned back states otherwise than its weights and the
    original, whose code computes with no other values."""
    turned = checkpoint.turned_back
    if turned is None or checkpoint.config is None:
        return
    from sam3lite_convert.verify.config_check import check_config

    options = Options(turned.layout, turned.component, causal=stated_causal(checkpoint.config))
    try:
        faults = check_config(make_plan(checkpoint, mappings, options), checkpoint.config).faults
    except Sam3LiteError:
        return  # the command says why there is no plan
    for fault in faults[:_LISTED]:
        yield f"config.json, which only the folder's own reader follows: {fault.path} {fault.why}"
    if len(faults) > _LISTED:
        yield f"config.json: {len(faults) - _LISTED:,} more fields that do not fit (sam3lite verify lists them)"


def locate(name: str, where: HubLocation, selection: Selection | None = None) -> Location:
    """Find CHECKPOINT: a local path first, then an address on the Hub, then an alias or a path in the repository, and
    OWNER/NAME[@REVISION] of another one.

    A path may be that of an index of shards, or of a folder that holds it or one file. ``selection``: what the user
    states about it.

    Raises CannotRun if it is none of these, and as ``members`` does.
    """
    path, selection = Path(name), selection or NOTHING_STATED
    if path.exists():
        folder = (path.name or path.resolve().name) if path.is_dir() else None
        return Location(name, members(path)[0], selection=selection, where=where, folder=folder)
    if not name or is_path(name):
        raise CannotRun(
            f"{name}: no such file.{_meant(name)} Names on the Hub are aliases ({', '.join(ALIASES)}) or paths in "
            f"{where.repo}.",
            "no_such_file",
        )
    from sam3lite_convert.hub.addresses import address_of

    address = address_of(name)
    if address is None:
        repository, file, asked = _named(name, where)
    else:
        name, asked = address.shown, address.path
        repository = _there(name, address.repo, address.revision, where).repository()
        try:
            file = repository.at(address.path)
        except Sam3LiteError as fault:
            fault.message = f"{name}: {fault.message}"
            raise
    folder = None
    if asked is not None and asked.strip("/") != file.path:
        folder = PurePosixPath(asked).name or repository.repo.rpartition("/")[2]
    return Location(name, Path(file.path), repository, file, selection, where, folder)


def _named(name: str, where: HubLocation) -> tuple[Repository, HubFile, str | None]:
    """The file of an alias or of a path in the repository; else that of a repository of this name.

    Returns with it the repository, and the path that was asked for; None for an alias. Raises CannotRun if there is
    none.
    """
    repository = where.repository()
    try:
        return repository, repository.find(name), None if name in ALIASES else name
    except Sam3LiteError as fault:
        match = REPOSITORY.fullmatch(name)
        if match and fault.code == "no_such_file" and not name.endswith((*WEIGHTS, ".json")):
            other = HubLocation(match["repo"], match["revision"] or where.revision, where.cache).repository()
            try:
                return other, other.at(""), ""
            except Sam3LiteError as there:
                if there.code != "no_such_repository":
                    there.message = f"{name}: {there.message}"
                    raise there from None
        fault.message = f"{name}: no such local file.{_meant(name)} {on_the_hub(fault)}"
        raise


def on_the_hub(fault: Sam3LiteError) -> str:
    """What the Hub said to a name, as a sentence of its own."""
    said = fault.message
    return f"T{said[1:]}" if said.startswith("the Hub ") else f"On the Hub: {said}"


def _meant(name: str) -> str:
    """What helps: a question that names the checkpoints beside a missing file, and the aliases, that are spelt much
    like it; of a pattern, who reads patterns."""
    if any(c in name for c in "*?["):
        return " Without quotes a shell puts the names of the files in its place."
    folder, found = Path(name).parent, []
    with suppress(OSError, ValueError), os.scandir(folder) as entries:
        found = [
            entry.name for entry in islice(entries, MOST_ENTRIES) if entry.name.endswith((*WEIGHTS, ".index.json"))
        ]
    near = nearest(Path(name).name, found, 0.75)
    said = [str(folder / one) for one in near]
    if not said and name not in ALIASES:
        said = nearest(name, ALIASES, 0.5)
    return f" Did you mean {' or '.join(said)}?" if said else ""


def _there(name: str, repo: str, revision: str | None, where: HubLocation) -> HubLocation:
    """Where an address leads. Raises CannotRun if an option states something else."""
    for option, said, asked, default in (
        ("--repo-id", repo, where.repo, DEFAULT_REPO),
        ("--revision", revision, where.revision, DEFAULT_REVISION),
    ):
        if said is not None and asked not in (said, default):
            raise CannotRun(f"{name} names {said} itself, and {option} {asked}; leave out one of them", "usage")
    return HubLocation(repo, where.revision if revision is None else revision, where.cache)
