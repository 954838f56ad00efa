"""The origin of a checkpoint: one file of a repository on the Hub, at one commit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sam3lite_convert.records.record import JsonValue
    from sam3lite_convert.records.shared import HubOrigin

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class HubFile:
    """One file of a repository at one commit.

    ``path``: in the repository.
    ``size``: in bytes.
    ``etag``: SHA-256 of a large (LFS) file, git blob id of a small one; None if the cache does not record it.
    ``cached``: the file in the cache; None if it is not there.
    ``here``: whether its content is in the cache, possibly under another commit.
    ``licence``: licence fields of the repository's model card; None if they were not requested.
    ``licence_files``: the repository's licence files that go with it; None if they were not listed.
    ``parts``: of a checkpoint in shards, its index, which ``path`` names, and the shards. ``size`` and ``etag`` are
        then those of all of them together.
    """

    repo: str
    path: str
    commit: str
    size: int
    etag: str | None
    cached: Path | None = None
    here: bool = False
    licence: Mapping[str, JsonValue] | None = None
    parts: tuple[HubFile, ...] = ()
    licence_files: tuple[HubFile, ...] | None = None

    @property
    def sha256(self) -> str | None:
        """The SHA-256 that the Hub states; None for a small file, whose etag is a git blob id."""
        return self.etag if self.etag and _SHA256.fullmatch(self.etag) else None

    def record(self) -> HubOrigin:
        """Where it came from, for documents."""
        from sam3lite_convert.records.shared import HubOrigin  # here: a conversion is hashing before it is loaded

        return HubOrigin(repo=self.repo, file=self.path, commit=self.commit, etag=self.etag, size=self.size)
