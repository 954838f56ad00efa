"""Files on the Hub: look-up in a repository's listing, downloads, the cache.

Uses ``huggingface_hub``, with its token, cache and endpoint. Import this module only when a name is on the Hub: the
import takes long.
"""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

from sam3lite_convert.checkpoint.file_set import (
    SHARD_INDEX_LIMIT,
    companion,
    is_index,
    one_shard,
    shard_map,
    shard_of,
    the_checkpoint,
)
from sam3lite_convert.checkpoint.hashing import sha256_of_set
from sam3lite_convert.checkpoint.kinds import WEIGHTS
from sam3lite_convert.checkpoint.origin import HubFile
from sam3lite_convert.errors import CannotRun, Sam3LiteError, Untrusted
from sam3lite_convert.files import check_space
from sam3lite_convert.hub.aliases import ALIASES, DEFAULT_REVISION, alias_of
from sam3lite_convert.hub.bounds import COMMIT, at_most, unexpected
from sam3lite_convert.hub.licences import (
    LICENCE_LIMIT,
    LicenceText,
    licences_by_folder,
    licences_of,
    text_of,
    too_large,
)
from sam3lite_convert.hub.log import LOG
from sam3lite_convert.hub.requests import hub_faults, retried
from sam3lite_convert.hub.tree import Tree, read_info, read_tree
from sam3lite_convert.opened import read_small, read_small_text
from sam3lite_convert.records.record import JsonValue

_ETAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_LISTED = 100
_LONGEST_REF = 4096  # bytes; a hash has 40
_SPARE = 1 << 20  # bytes that an answer may have beyond its file, such as the page of an error


@dataclass(frozen=True)
class Listing:
    """The files of a repository.

    ``unreached``: the error because of which only cached files are listed, or None.
    ``odd``: by path, why an entry of the Hub's listing is not one of the files.
    ``unplaced``: those of which the path does not tell whether they are meant, in words, with that path or None.
    ``commit``: the one that is listed; empty if the cache tells it.
    """

    files: tuple[HubFile, ...]
    unreached: CannotRun | None = None
    odd: Mapping[str, str] = field(default_factory=dict)
    unplaced: tuple[tuple[str | None, str], ...] = ()
    commit: str = ""

    def check(self, repo: str, path: str) -> None:
        """Raises CannotRun if the entry of this path is odd."""
        if path in self.odd:
            raise odd_entry(repo, path, self.odd[path])


@dataclass(frozen=True)
class Matches:
    """What fits a pattern.

    ``files``: the checkpoints, sorted by path. ``left_out``: the paths of the other files, sorted.
    ``failed``: by path, why a checkpoint cannot be read. ``odd``: entries of the listing of which it is not known
        whether they are checkpoints. ``commit``: the one that is listed.
    """

    files: tuple[HubFile, ...]
    left_out: tuple[str, ...]
    failed: Mapping[str, Sam3LiteError]
    odd: tuple[str, ...]
    commit: str


def odd_entry(repo: str, path: str, why: str) -> CannotRun:
    """The error for an entry of a listing that cannot be used."""
    return unexpected(f"in its listing of {repo}, {path} {why}")


@dataclass(frozen=True)
class Repository:
    """A model repository.

    ``repo``: OWNER/NAME.
    ``revision``: a branch, tag or commit.
    ``cache``: folder for downloads; None for the cache of huggingface_hub.
    """

    repo: str
    revision: str = DEFAULT_REVISION
    cache: Path | None = None

    def listing(self, noted: bool = False) -> Listing:
        """Every file at the revision; if the Hub cannot be reached, those in the cache. ``noted``: say what is odd.

        Raises CannotRun if the Hub cannot be reached and the cache is empty, or for another error of the Hub.
        """
        try:
            with hub_faults(self.repo):
                info = read_info(self.repo, self.revision)
                tree = read_tree(self.repo, info.commit)
        except CannotRun as fault:
            found = self._cached_files() if fault.code in ("no_network", "hub_fault", "rate_limited") else []
            if not found:
                raise
            LOG.warning(
                "the Hub cannot be reached; using the cached files of %s, commit %s", self.repo, found[0].commit[:12]
            )
            return Listing(tuple(found), fault)
        if noted:
            tree.note(self.repo)
        return self._listed(info.commit, info.licence, tree)

    def _listed(self, commit: str, licence: Mapping[str, JsonValue], tree: Tree) -> Listing:
        held = {f.path: f for f in self._cached_files(commit)}
        files = []
        for entry in tree.entries:
            known = held.get(entry.path)
            cached = known.cached if known and known.etag in (None, entry.etag) else None
            here = cached is not None or (self.folder() / "blobs" / entry.etag).is_file()
            files.append(HubFile(self.repo, entry.path, commit, entry.size, entry.etag, cached, here, licence))
        licences = licences_by_folder(files)
        return Listing(
            tuple(replace(file, licence_files=licences_of(file.path, licences)) for file in files),
            odd={entry.path: entry.why for entry in tree.odd if entry.path},
            unplaced=tuple((entry.path, str(entry)) for entry in tree.odd if not entry.placed),
            commit=commit,
        )

    def find(self, name: str) -> HubFile:
        """The file of an alias, or as ``at``; of several files for one alias, the one with the newer naming.

        Raises CannotRun, with the names that exist, if there is no such file; with theirs, if several files for an
        alias differ and it is not known which is the newest.
        """
        if name not in ALIASES:
            return self.at(name)
        listing = self.listing(noted=True)
        for path in listing.odd:
            if (kind := alias_of(path)) and kind.alias == name:
                listing.check(self.repo, path)
        matches = [(kind, f) for f in listing.files if (kind := alias_of(f.path)) and kind.alias == name]
        if not matches:
            raise self._unknown(name, listing)
        newest = max(kind.newness or 0 for kind, _ in matches)
        meant = [f for kind, f in matches if kind.newness in (None, newest)]
        if len({f.etag or f.path for f in meant}) > 1:
            files = sorted(f.path for f in meant)
            raise CannotRun(
                f"{self.repo} has {len(files)} different files for the alias {name}: {', '.join(files)}. Name the one "
                "that you mean by its path.",
                "ambiguous_alias",
                {"checkpoints": files},
            )
        return max(meant, key=lambda f: f.path)

    def at(self, path: str) -> HubFile:
        """The checkpoint at a path: a file, an index of shards with its shards, or the only one of these in a folder,
        with the projection of a text encoder that lies beside it.

        ``path``: empty for the top of the repository. Of an index the content is downloaded.
        Raises CannotRun, with the names that exist, if there is no such path, and as ``the_checkpoint`` and
        ``shard_map`` do.
        """
        listing = self.listing(noted=True)
        path = PurePosixPath(path.strip("/")).as_posix().removeprefix(".")
        listing.check(self.repo, path)
        file = next((f for f in listing.files if f.path == path), None)
        folder = path if file is None else PurePosixPath(path).parent.as_posix().removeprefix(".")
        inside = f"{folder}/" if folder else ""
        beside = {f.path.removeprefix(inside): f for f in listing.files if f.path.startswith(inside)}
        beside = {name: f for name, f in beside.items() if "/" not in name}
        where = self.repo + ("" if self.revision == DEFAULT_REVISION else f"@{self.revision}")
        where += f"/{folder}" if folder else ""
        shard = shard_of(file.path) if file else None
        if file is not None and shard:
            index = PurePosixPath(shard.index_name).name
            raise one_shard(file.path, shard, self._uri(inside + index) if index in beside else None)
        if file is None:
            for odd in listing.odd:
                # Which of the files is meant cannot be told without it.
                if odd.startswith(inside) and "/" not in odd[len(inside) :] and odd.endswith(WEIGHTS):
                    listing.check(self.repo, odd)
            try:
                name = the_checkpoint(beside, where, lambda name: self._small(beside[name]))
            except CannotRun as fault:
                if fault.code != "not_a_file":
                    raise
                raise self._unknown(path, listing) from None
            file = beside[name]
        return self._with_parts(file, listing)

    def _uri(self, path: str) -> str:
        """What names a file of it, as CHECKPOINT."""
        revision = "" if self.revision == DEFAULT_REVISION else f"@{quote(self.revision, safe='')}"
        return f"hf://{self.repo}{revision}/{path}"

    def _small(self, file: HubFile) -> bytes:
        """The content of a JSON file, through the cache."""
        if file.size > SHARD_INDEX_LIMIT:
            raise Untrusted(f"{self.repo}: {file.path} is too large to be read here", "corrupt_file")
        return read_small(self.download(file), SHARD_INDEX_LIMIT)

    def small(self, path: str) -> bytes | None:
        """The content of a small file, through the cache; None if there is no such file.

        Raises CannotRun if the Hub fails, Untrusted if the file is large.
        """
        listing = self.listing()
        listing.check(self.repo, path)
        file = next((f for f in listing.files if f.path == path), None)
        return None if file is None else self._small(file)

    def _with_parts(self, file: HubFile, listing: Listing) -> HubFile:
        """A file with those that belong to it, as ``members`` has them: an index with the shards that it names, and a
        text encoder with its projection. The ``etag`` of all of them is the hash of the set, as ``sha256_of_set`` has
        it, where the Hub states the SHA-256 of every one but the index; else a shorter one, of their etags.
        """
        root, files = PurePosixPath(file.path).parent, {f.path: f for f in listing.files}

        def has(name: str) -> bool:
            listing.check(self.repo, (root / name).as_posix())
            return (root / name).as_posix() in files

        names: list[str] = []
        digests: dict[str, str | None] = {PurePosixPath(file.path).name: file.sha256}
        if is_index(file.path):
            content = self._small(file)
            file = replace(file, cached=self.download(file), here=True)
            try:
                names = sorted(set(shard_map(content, Path(file.path), has).values()))
            except CannotRun as fault:
                raise fault if listing.unreached is None else self._unknown(file.path, listing) from None
            digests = {PurePosixPath(file.path).name: hashlib.sha256(content).hexdigest()}
        if beside := companion(PurePosixPath(file.path).name, has):
            names.append(beside)
        if not names:
            return file
        others = {name: files[(root / name).as_posix()] for name in names}
        parts = (file, *others.values())
        digests |= {name: part.sha256 for name, part in others.items()}
        stated = {name: digest for name, digest in digests.items() if digest}
        etag: str | None = None
        if len(stated) == len(digests):
            etag = sha256_of_set(stated)
        elif all(part.etag for part in parts):
            etag = hashlib.sha256("".join(f"{p.etag}  {p.path}\n" for p in parts).encode()).hexdigest()[:40]
        return replace(
            file,
            size=sum(part.size for part in parts),
            etag=etag,
            cached=file.cached if all(part.cached for part in parts) else None,
            here=all(part.here for part in parts),
            parts=parts,
        )

    def matching(self, pattern: str) -> Matches:
        """What fits a glob, of the checkpoints and the other files; ``*`` does not match across folders. A checkpoint
        that cannot be read does not keep the others from it.

        Raises CannotRun if there are no checkpoints, or if the Hub cannot be reached: the cache may not hold all of
        them.
        """
        listing = self.listing(noted=True)
        if listing.unreached is not None:
            raise listing.unreached

        def fits(path: str) -> bool:
            return fnmatch.fnmatchcase(path, pattern) and path.count("/") == pattern.count("/")

        def weights(path: str) -> bool:
            return path.endswith(WEIGHTS) or is_index(path)

        matches = [f for f in listing.files if fits(f.path)]
        found = [f for f in matches if weights(f.path)]
        failed: dict[str, Sam3LiteError] = {
            path: odd_entry(self.repo, path, why) for path, why in listing.odd.items() if fits(path) and weights(path)
        }
        if not found and not failed:
            raise self._unknown(pattern, listing, f"checkpoint that fits {pattern}")
        files = {f.path: f for f in listing.files}
        # A shard stands for all of them.
        indexes = {f.path: files.get(shard.index_name, f) for f in found if (shard := shard_of(f.path))}
        checkpoints = []
        for path, file in sorted({file.path: file for file in (indexes.get(f.path, f) for f in found)}.items()):
            try:
                checkpoints.append(self._with_parts(file, listing))
            except Sam3LiteError as fault:
                failed[path] = fault
        left_out = sorted({f.path for f in matches} - {f.path for f in found})
        odd = [said for path, said in listing.unplaced if path not in failed][:_LISTED]
        return Matches(tuple(checkpoints), tuple(left_out), failed, tuple(odd), listing.commit)

    def licence_files(self, path: str) -> tuple[HubFile, ...]:
        """The licence files that go with the file at a path.

        Raises CannotRun if the Hub cannot be reached, or has no such file.
        """
        listing = self.listing()
        if listing.unreached is not None:
            raise listing.unreached
        listing.check(self.repo, path)
        file = next((f for f in listing.files if f.path == path), None)
        if file is None:
            raise self._unknown(path, listing)
        return file.licence_files or ()

    def licence_texts(self, files: Iterable[HubFile]) -> list[LicenceText]:
        """The texts of licence files, through the cache. What is too large is not downloaded.

        Raises CannotRun if one cannot be downloaded, Untrusted if its content is not what the Hub lists.
        """
        return [too_large(file) or self._licence_text(file) for file in files]

    def _licence_text(self, file: HubFile) -> LicenceText:
        path = self.download(file)
        try:
            return text_of(file, read_small(path, LICENCE_LIMIT))
        except Sam3LiteError:
            forget(path)
            raise

    def _unknown(self, name: str, listing: Listing, what: str | None = None) -> CannotRun:
        """The error that lists what is there. ``what``: in words, what was looked for; None for ``name`` itself."""
        if listing.unreached is not None:
            return CannotRun(
                f"{name or 'a checkpoint'} is not in the cache of {self.repo}. {listing.unreached.message}",
                "no_network",
            )
        weights = [f.path for f in listing.files if f.path.endswith(WEIGHTS)]
        aliases = sorted({kind.alias for p in weights if (kind := alias_of(p))}, key=ALIASES.index)
        near = difflib.get_close_matches(name, weights, 3, 0.75)
        what = what or (f"file or alias {name}" if name else "checkpoint at its top")
        said = [f"{self.repo} has no {what} at revision {self.revision}."]
        if near:
            said.append("Did you mean " + " or ".join(near) + "?")
        if aliases:
            said.append("Its aliases: " + ", ".join(aliases) + ".")
        if weights:
            listed = weights[:30] + ([f"... and {len(weights) - 30} more"] if len(weights) > 30 else [])
            said.append("Its checkpoints:\n  " + "\n  ".join(listed))
        else:
            said.append("It has no checkpoint files.")
        return CannotRun("\n".join(said), "no_such_file", {"aliases": aliases, "checkpoints": weights})

    @property
    def place(self) -> Path:
        """The folder of the cache."""
        return Path(self.cache or constants.HF_HUB_CACHE)

    def folder(self) -> Path:
        """The repository's folder in the cache; it may not exist."""
        return self.place / repo_folder_name(repo_id=self.repo, repo_type="model")

    def _cached_files(self, commit: str | None = None) -> list[HubFile]:
        folder = self.folder()
        if commit is None:
            commit = self.revision
            ref = folder / "refs" / self.revision
            ours = (folder / "refs").resolve() in ref.resolve().parents
            if not COMMIT.fullmatch(commit) and ours and ref.is_file():
                commit = read_small_text(ref, _LONGEST_REF, "latin-1").strip()
            if not COMMIT.fullmatch(commit):
                return []
        snapshot = folder / "snapshots" / commit
        files = []
        for path in sorted(snapshot.rglob("*")) if snapshot.is_dir() else []:
            if path.is_file():
                blob = path.resolve()
                etag = blob.name if blob.parent.name == "blobs" else None
                inside = path.relative_to(snapshot).as_posix()
                files.append(HubFile(self.repo, inside, commit, path.stat().st_size, etag, path, True))
        return files

    def download(self, file: HubFile, beside: int = 0) -> Path:
        """The path of the file in the cache; it is downloaded if necessary, and with an index its shards.

        ``beside``: bytes that something else is about to write to the same disk.
        Raises CannotRun if the download fails or the disk has no space, Untrusted if another file arrived.
        """
        if file.cached is not None:
            self._clear_unfinished(file)
            return file.cached
        if file.parts:
            room = sum(part.size for part in file.parts if not part.here)
            check_space(self.place, beside + room, f"to download {file.path} and its shards to {self.place}")
            index, *_ = [self.download(part) for part in file.parts]
            return index
        # A file that another commit shares with this one needs no space.
        check_space(self.place, beside + (0 if file.here else file.size), f"to download {file.path} to {self.place}")
        with hub_faults(self.repo), at_most(file.size + _SPARE):
            # The library repeats and resumes by itself, but not after every error.
            path = Path(
                retried(lambda: hf_hub_download(file.repo, file.path, revision=file.commit, cache_dir=self.cache), 2)
            )
        blob = path.resolve()
        if file.etag and blob.parent.name == "blobs" and blob.name != file.etag:
            forget(path)
            raise Untrusted(
                f"{file.path}: the Hub lists the etag {file.etag} and sent a file with the etag {blob.name}. The file "
                "was deleted from the cache; run the command again.",
                "etag_mismatch",
            )
        if not COMMIT.fullmatch(self.revision):
            # The library records the commit of a branch only when asked for the branch. Without the record the
            # name cannot be found offline.
            ref = self.folder() / "refs" / self.revision
            with contextlib.suppress(OSError):
                ref.parent.mkdir(parents=True, exist_ok=True)
                ref.write_text(file.commit, encoding="utf-8")
        for piece in self.partial(file).glob("*-*-*"):
            # Pieces only: partial copies may be in use.
            with contextlib.suppress(OSError):
                piece.unlink()
        self._clear_unfinished(file)
        return path

    def _clear_unfinished(self, file: HubFile) -> None:
        """Remove leftovers of killed downloads of a file that is complete now; the library never removes them.

        A download in progress holds the lock of the library, and its file is kept.
        """
        if not file.etag or not _ETAG.fullmatch(file.etag):
            return
        left = list((self.folder() / "blobs").glob(f"{file.etag}*.incomplete"))
        if not left:
            return
        lock = self.place / ".locks" / self.folder().name / f"{file.etag}.lock"
        with contextlib.suppress(OSError), WeakFileLock(lock, timeout=0.5):
            for path in left:
                path.unlink(missing_ok=True)

    def partial(self, file: HubFile) -> Path:
        """The folder for partial downloads of a file; it is part of the cache and is deleted with the repository."""
        return self.folder() / "sam3lite-partial" / (file.etag or file.commit)


def forget(path: Path) -> None:
    """Delete a file and its content from the cache, so that the next run downloads it again."""
    for part in {path.resolve(), path}:
        with contextlib.suppress(OSError):
            part.unlink()
