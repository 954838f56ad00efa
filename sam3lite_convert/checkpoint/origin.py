"""Where a checkpoint came from: one file of a repository on the Hub, at one commit."""

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
    """One file of a repository at one commit. ``etag``: the SHA-256 of a large (LFS) file, the git
    blob id of a small one; None where the cache does not tell. ``cached``: where it lies on this
    machine already; ``here``: whether its content does, maybe under another commit; ``licence``: the
    licence fields of the repository's card, as they stand there, None where it was not asked."""

    repo: str
    path: str
    commit: str
    size: int
    etag: str | None
    cached: Path | None = None
    here: bool = False
    licence: Mapping[str, JsonValue] | None = None

    @property
    def sha256(self) -> str | None:
        """What the Hub states; None for a small file, which has another kind of etag."""
        return self.etag if self.etag and _SHA256.fullmatch(self.etag) else None

    def record(self) -> HubOrigin:
        """Where it came from, for documents."""
        from sam3lite_convert.records.shared import HubOrigin  # here: a conversion is hashing before it is loaded

        return HubOrigin(repo=self.repo, file=self.path, commit=self.commit, etag=self.etag, size=self.size)
