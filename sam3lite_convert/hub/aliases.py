"""Aliases of released checkpoints, and the file names that they stand for, old and new."""

from __future__ import annotations

import re
from typing import NamedTuple

DEFAULT_REPO = "Simon7108528/EfficientSAM3"
DEFAULT_REVISION = "main"
DEFAULT_PATTERN = "sam3_litetext/*.pt"
ALIASES = ("s0", "s1", "l", "s0-32", "s1-32", "l-32")

# Files of the repository were renamed; the newest naming last.
_NAMINGS = ("efficient_sam3_image_encoder", "sam3_litetext")
_FILE = re.compile(
    rf"sam3_litetext/(?P<naming>{'|'.join(_NAMINGS)})_mobileclip2?_(?P<size>s0|s1|l)_ctx(?P<context>\d+)\.pt"
)


class Alias(NamedTuple):
    """The alias of a file, and the age of its naming scheme: a higher ``newness`` is newer."""

    alias: str
    newness: int


def alias_of(path: str) -> Alias | None:
    """The alias of a file in the repository, or None. Context 16 is left out of an alias."""
    match = _FILE.fullmatch(path)
    if not match:
        return None
    suffix = "" if match["context"] == "16" else f"-{match['context']}"
    name = match["size"] + suffix
    return Alias(name, _NAMINGS.index(match["naming"])) if name in ALIASES else None
