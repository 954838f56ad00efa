"""The licence files of a repository on the Hub: which of its files they are, and their text."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from sam3lite_convert.checkpoint.hashing import git_blob_id
from sam3lite_convert.errors import Untrusted

if TYPE_CHECKING:
    from sam3lite_convert.checkpoint.origin import HubFile

# LICENSE, LICENCE.txt, SAM_LICENSE.md, LICENSE-APACHE-2.0, COPYING, NOTICE and the like.
LICENCE_NAME = re.compile(
    r"(?:[\w-]+[-_])?(?:(?:un)?licen[cs]es?|copying|notice)(?:[-_][\w-]+(?:\.\d+)*)?(?:\.(?:txt|md|rst))?",
    re.IGNORECASE | re.ASCII,
)
LICENCE_LIMIT = 1_000_000  # bytes
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0e-\x1f\x7f]")  # in no plain text of a byte or more a character


class LicenceText(NamedTuple):
    """A licence file of a repository. ``data``: its content; None if it is not one to pass on, which ``why`` tells."""

    file: HubFile
    data: bytes | None
    why: str | None


def licences_by_folder(files: Iterable[HubFile]) -> Mapping[str, tuple[HubFile, ...]]:
    """By folder of a repository ("." for its top): the licence files in it, by name."""
    found: dict[str, tuple[HubFile, ...]] = {}
    for file in sorted(files, key=lambda f: f.path):
        path = PurePosixPath(file.path)
        if LICENCE_NAME.fullmatch(path.name):
            found[str(path.parent)] = (*found.get(str(path.parent), ()), file)
    return found


def licences_of(path: str, by_folder: Mapping[str, tuple[HubFile, ...]]) -> tuple[HubFile, ...]:
    """The licence files that go with a file: those in its own folder, then those at the top of the repository. Of
    several with one content only the first."""
    found: dict[str, HubFile] = {}
    for folder in (str(PurePosixPath(path).parent), "."):
        for file in by_folder.get(folder, ()):
            found.setdefault(file.etag or file.path, file)
    return tuple(found.values())


def too_large(file: HubFile) -> LicenceText | None:
    """That a file is too large for a licence; None if it is not."""
    return LicenceText(file, None, "it has more than 1 MB") if file.size > LICENCE_LIMIT else None


def text_of(file: HubFile, data: bytes) -> LicenceText:
    """The text of a licence file, or why it is not one to pass on.

    Raises Untrusted if the content is not what the Hub lists.
    """
    stated = hashlib.sha256(data).hexdigest() if file.sha256 else git_blob_id(data)
    if len(data) != file.size or file.etag not in (None, stated):
        raise Untrusted(f"{file.path}: its content is not what the Hub lists", "etag_mismatch")
    if not data.strip():
        return LicenceText(file, None, "it is empty")
    if _CONTROL.search(data):
        return LicenceText(file, None, "it is not plain text")
    return LicenceText(file, data, None)
