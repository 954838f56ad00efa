"""Finds DIR: a converted folder on this machine, or a repository on the Hub that holds one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sam3lite_convert.commands.sources import REPOSITORY, HubLocation, on_the_hub
from sam3lite_convert.convert.folder import Folder, files_of, misspelt, read_place
from sam3lite_convert.convert.graph_files import GRAPH_SUFFIX
from sam3lite_convert.errors import CannotRun, Untrusted
from sam3lite_convert.hub.aliases import DEFAULT_REVISION
from sam3lite_convert.hub.licences import LICENCE_NAME
from sam3lite_convert.records.verify import RepositoryRecord

if TYPE_CHECKING:
    from sam3lite_convert.hub.folder import HubFolder
    from sam3lite_convert.workers import Advance

_BESIDE = (".json", ".txt", ".md", GRAPH_SUFFIX)  # files that are read, or shown, beside the weights
_SMALL = 16 << 20  # bytes


@dataclass(frozen=True)
class FolderLocation:
    """A converted folder that was found and not read yet.

    name: as the user typed it; of a page, OWNER/NAME[@REVISION].
    where: the repository; None for a folder on this machine.
    """

    name: str
    where: HubLocation | None = None

    @contextmanager
    def opened(self) -> Iterator[HubFolder]:
        """The repository, read by ranges; what was fetched is kept for the next run, unless it is not to be trusted.

        Raises CannotRun if it cannot be listed; ValueError for a folder on this machine.
        """
        if self.where is None:
            raise ValueError(f"{self.name} is on this machine")
        from sam3lite_convert.hub.folder import HubFolder

        try:
            folder = HubFolder(self.where.repository(), self.name)
        except CannotRun as fault:
            near = misspelt(Path(self.name))
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            details = {**(fault.details if isinstance(fault.details, dict) else {}), "instead": {self.name: near}}
            message = f"{self.name}: no such local folder. {on_the_hub(fault)}{hint}"
            raise CannotRun(message, fault.code, details if near else fault.details) from fault
        with folder:
            try:
                yield folder
            except Untrusted:
                # A range has no hash that tells a damaged download from a damaged file.
                folder.discard()
                raise

    def whole(self) -> tuple[Path, RepositoryRecord | None]:
        """The folder on this machine, and where it came from. Of a repository, all that a reader takes is downloaded
        through the cache.

        Raises CannotRun if it cannot be downloaded or holds no weights, Untrusted if a file is damaged.
        """
        if self.where is None:
            return Path(self.name), None
        with self.opened() as hub:
            taken = files_of(hub)
            shown = [n for n in hub.names() if n.endswith(_BESIDE) or LICENCE_NAME.fullmatch(n)]
            small = [n for n in shown if hub.files[n].size <= _SMALL]
            return hub.download(dict.fromkeys([*taken, *small])), origin(hub)


def origin(hub: HubFolder) -> RepositoryRecord:
    """Where a folder on the Hub lies, for documents."""
    return RepositoryRecord(repo=hub.repository.repo, revision=hub.repository.revision, commit=hub.commit or "")


def locate_folder(name: str, cache: Path | None = None) -> FolderLocation:
    """Find DIR: a local path first, then OWNER/NAME[@revision] on the Hub, or its page. Nothing is read.

    ``cache``: folder for downloads; None for the cache of huggingface_hub.
    Raises CannotRun for the address of something else than a repository.
    """
    if Path(name).exists():
        return FolderLocation(name)
    if "://" in name:
        name = _repository_at(name)
    match = REPOSITORY.fullmatch(name)
    if match is None or name.startswith("."):
        return FolderLocation(name)
    return FolderLocation(name, HubLocation(match["repo"], match["revision"] or DEFAULT_REVISION, cache))


def _repository_at(address: str) -> str:
    """OWNER/NAME[@revision] of the page of a repository."""
    from sam3lite_convert.hub.addresses import address_of

    found = address_of(address)
    if found is None or found.path:
        shown = found.shown if found else "this address"
        raise CannotRun(f"{shown} is not the page of a repository; give DIR as OWNER/NAME[@REVISION]", "usage")
    return found.repo + (f"@{found.revision}" if found.revision else "")


def with_bytes(hub: HubFolder, folder: Folder, keys: Iterable[str], advance: Advance = lambda n: None) -> Folder:
    """The folder with the bytes of these tensors, fetched by ranges.

    Raises CannotRun if they cannot be had, Untrusted if they lie outside of their records.
    """
    wanted = list(keys)
    hub.fetch((folder.tensors[key] for key in wanted), advance)
    # From here on the copies are read as files: the positions are exact once the bytes around them are here.
    exact = read_place(hub)
    hub.check_present(exact.tensors[key] for key in wanted)
    return exact
