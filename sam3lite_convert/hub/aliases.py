"""Aliases of released checkpoints, and the file names that they stand for, old and new; what is no name on the Hub."""

from __future__ import annotations

import re
from typing import NamedTuple

DEFAULT_REPO = "Simon7108528/EfficientSAM3"
DEFAULT_REVISION = "main"
DEFAULT_PATTERN = "sam3_litetext/*.pt"


class _Folder(NamedTuple):
    """A folder of released checkpoints.

    mark: what stands behind the size in the aliases of its files.
    namings: patterns of what stands in front of ``mobileclip`` in the names of its files, which were renamed; the
        newest last.
    others: whether files with another naming have the alias too. How old that is is then not known.
    """

    mark: str
    namings: tuple[str, ...]
    others: bool = False


_FOLDERS = {
    "sam3_litetext": _Folder("", ("efficient_sam3_image_encoder", "sam3_litetext")),
    "sam3p1_litetext": _Folder("-3.1", ("efficient_.+", "sam3p1_litetext"), others=True),
}
_FILE = re.compile(
    r"(?P<folder>[^/]+)/(?P<naming>[^/]+)_mobileclip2?_(?P<size>s0|s1|l)_ctx(?P<context>16|32)\.pt",
)
ALIASES = tuple(
    f"{size}{folder.mark}{context}"
    for folder in _FOLDERS.values()
    for context in ("", "-32")
    for size in ("s0", "s1", "l")
)


class Alias(NamedTuple):
    """The alias of a file, and the age of its naming scheme: a higher ``newness`` is newer, None is not known."""

    alias: str
    newness: int | None


def alias_of(path: str) -> Alias | None:
    """The alias of a file in the repository, or None. Context 16 is left out of an alias."""
    match = _FILE.fullmatch(path)
    folder = _FOLDERS.get(match["folder"]) if match else None
    if not match or not folder:
        return None
    ages = [n for n, naming in enumerate(folder.namings) if re.fullmatch(naming, match["naming"])]
    if not ages and not folder.others:
        return None
    context = "" if match["context"] == "16" else f"-{match['context']}"
    return Alias(match["size"] + folder.mark + context, ages[0] if ages else None)


def is_path(name: str) -> bool:
    """Whether a name can only be that of a local file or folder, and not of something on the Hub."""
    return name.startswith((".", "/", "~")) or "\\" in name
