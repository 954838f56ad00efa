"""Files on the Hub: names looked up in a repository's listing, downloads, the cache.

Everything goes through ``huggingface_hub``, with its token, its cache and its endpoint. Nothing here is
imported before a name is on the Hub.
"""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

from sam3lite_convert.checkpoint.origin import HubFile
from sam3lite_convert.errors import CannotRun, Untrusted
from sam3lite_convert.files import check_space
from sam3lite_convert.hub.aliases import ALIASES, DEFAULT_REVISION, alias_of
from sam3lite_convert.hub.log import LOG
from sam3lite_convert.hub.requests import TIMEOUT, hub_faults, retried

_COMMIT = re.compile(r"[0-9a-f]{40}")
_ETAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_WEIGHTS = (".pt", ".pth", ".safetensors")
_LICENCE = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class Listing:
    """The files found; ``unreached``: why they are those of the cache alone, None where they are not."""

    files: tuple[HubFile, ...]
    unreached: CannotRun | None = None


@dataclass(frozen=True)
class Repository:
    """A model repository. ``revision``: a branch, tag or commit; ``cache``: the cache's folder, None
    for the library's own."""

    repo: str
    revision: str = DEFAULT_REVISION
    cache: Path | None = None

    def listing(self) -> Listing:
        """Every file at the revision; where the Hub is not reached, those that are in the cache.

        Raises CannotRun where neither is to be had.
        """
        try:
            with hub_faults(self.repo):
                api = HfApi()
                info = retried(lambda: api.model_info(self.repo, revision=self.revision, timeout=TIMEOUT))
                commit = str(info.sha)
                entries = retried(lambda: list(api.list_repo_tree(self.repo, recursive=True, revision=commit)), 2)
                etags = {e.path: e.lfs.sha256 if e.lfs else e.blob_id for e in entries if isinstance(e, RepoFile)}
                if not _COMMIT.fullmatch(commit) or not all(map(_ETAG.fullmatch, etags.values())):
                    # They become names of files in the cache.
                    raise ValueError("its commit or etags are no hashes")
        except CannotRun as fault:
            found = self._cached_files() if fault.code in ("no_network", "hub_fault", "rate_limited") else []
            if not found:
                raise
            LOG.warning(
                "the Hub was not reached; %s is what the cache holds, commit %s", self.repo, found[0].commit[:12]
            )
            return Listing(tuple(found), fault)
        licence = info.card_data.to_dict() if info.card_data else {}  # type: ignore[no-untyped-call]
        licence = {k: licence[k] for k in _LICENCE if licence.get(k) is not None and licence[k] is not False}
        held = {f.path: f for f in self._cached_files(commit)}
        files = []
        for entry in entries:
            if isinstance(entry, RepoFile):
                etag = etags[entry.path]
                known = held.get(entry.path)
                cached = known.cached if known and known.etag in (None, etag) else None
                here = cached is not None or (self.folder() / "blobs" / etag).is_file()
                files.append(HubFile(self.repo, entry.path, commit, entry.size, etag, cached, here, licence))
        return Listing(tuple(files))

    def find(self, name: str) -> HubFile:
        """The file that an alias or a path in the repository names; of several for one alias the newer
        naming wins. Raises CannotRun, naming what is there, for one that is not."""
        listing = self.listing()
        if name in ALIASES:
            matches = [(kind, f) for f in listing.files if (kind := alias_of(f.path)) and kind.alias == name]
            if matches:
                return max(matches, key=lambda m: (m[0].newness, m[1].path))[1]
        else:
            for file in listing.files:
                if file.path == name:
                    return file
        raise self._unknown(name, listing)

    def matching(self, pattern: str) -> list[HubFile]:
        """The checkpoints whose path fits a glob, in the order of their paths; ``*`` stays in a folder.
        Raises CannotRun where there are none, and where the Hub is not reached: the cache does not know
        what else there is."""
        listing = self.listing()
        if listing.unreached is not None:
            raise listing.unreached
        found = [
            f
            for f in listing.files
            if fnmatch.fnmatchcase(f.path, pattern) and f.path.count("/") == pattern.count("/")
            if f.path.endswith(_WEIGHTS)
        ]
        if not found:
            raise self._unknown(pattern, listing)
        return sorted(found, key=lambda f: f.path)

    def _unknown(self, name: str, listing: Listing) -> CannotRun:
        if listing.unreached is not None:
            return CannotRun(f"{name} is not in the cache of {self.repo}. {listing.unreached.message}", "no_network")
        weights = [f.path for f in listing.files if f.path.endswith(_WEIGHTS)]
        aliases = sorted({kind.alias for p in weights if (kind := alias_of(p))}, key=ALIASES.index)
        near = difflib.get_close_matches(name, weights, 3, 0.75)
        said = [f"{self.repo} has no {name} at {self.revision}."]
        if near:
            said.append("Did you mean " + " or ".join(near) + "?")
        if aliases:
            said.append("Aliases that it has: " + ", ".join(aliases) + ".")
        if weights:
            listed = weights[:30] + ([f"... and {len(weights) - 30} more"] if len(weights) > 30 else [])
            said.append("Checkpoints that it has:\n  " + "\n  ".join(listed))
        else:
            said.append("It holds no checkpoint.")
        return CannotRun("\n".join(said), "no_such_file", {"aliases": aliases, "checkpoints": weights})

    @property
    def place(self) -> Path:
        """The cache's folder."""
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
            if not _COMMIT.fullmatch(commit) and ours and ref.is_file():
                commit = ref.read_text(encoding="utf-8", errors="replace").strip()
            if not _COMMIT.fullmatch(commit):
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
        """The file on this machine: from the cache, or fetched into it. ``beside``: bytes that something
        else is about to write to the same disk.

        Raises CannotRun, also where the disk has no room for it, and Untrusted where another file came.
        """
        if file.cached is not None:
            self._clear_unfinished(file)
            return file.cached
        # What another commit shares with this one is there already.
        check_space(
            self.place, beside + (0 if file.here else file.size), f"{file.path} is to be downloaded into {self.place}"
        )
        with hub_faults(self.repo):
            # The library goes on after a broken request by itself, and gives up on some faults at once.
            path = Path(
                retried(lambda: hf_hub_download(file.repo, file.path, revision=file.commit, cache_dir=self.cache))
            )
        blob = path.resolve()
        if file.etag and blob.parent.name == "blobs" and blob.name != file.etag:
            forget(path)
            raise Untrusted(
                f"{file.path}: the Hub's listing states the etag {file.etag}, and the file came with {blob.name}. It "
                "was deleted from the cache; run the command again.",
                "etag_mismatch",
            )
        if not _COMMIT.fullmatch(self.revision):
            # The library notes which commit a branch was at when asked for the branch; this is what
            # lets the name be found again without a network.
            ref = self.folder() / "refs" / self.revision
            with contextlib.suppress(OSError):
                ref.parent.mkdir(parents=True, exist_ok=True)
                ref.write_text(file.commit, encoding="utf-8")
        for piece in self.partial(file).glob("*-*-*"):
            # Copies beside them may be in use.
            with contextlib.suppress(OSError):
                piece.unlink()
        self._clear_unfinished(file)
        return path

    def _clear_unfinished(self, file: HubFile) -> None:
        """Remove what killed downloads of a file that is there now have left: the library never looks at it again.

        A download that is under way holds the lock, as the library has it.
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
        """The folder for a copy with holes; it is in the cache, so it goes when the repository goes."""
        return self.folder() / "sam3lite-partial" / (file.etag or file.commit)


def forget(path: Path) -> None:
    """Take a file out of the cache, its content too, so that the next run fetches it again."""
    for part in {path.resolve(), path}:
        with contextlib.suppress(OSError):
            part.unlink()
