"""What runs that were killed at a chosen moment leave beside a folder or a file, with the names that they give."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from sam3lite_convert.renames import exchange
from sam3lite_convert.seen import NOTHING, look
from sam3lite_convert.working_places import working_place


def unfinished(final: Path, text: str = "half of it", folder: bool = True) -> Path:
    """A new folder or file that was being written; returns where it lies."""
    work = working_place(final, folder, NOTHING)
    (work.path / "new" if folder else work.path).write_text(text)
    work.close()
    return work.path


def between(final: Path, text: str, exchanged: bool) -> Path:
    """A new folder of which a run was about to remove the earlier one: after the exchange of the two, or, where the
    system has none, after the first of two renames. Returns where the earlier one lies."""
    final.mkdir(exist_ok=True)
    (final / "old").write_text(text)
    work = working_place(final, True, look(final))
    (work.path / "new").write_text(text)
    work.close()
    if exchanged:
        assert exchange(work.path, final)
        return work.path
    os.rename(final, work.aside)
    return work.aside


def forget(place: Path) -> None:
    """Remove whatever lies there."""
    shutil.rmtree(place, ignore_errors=True)
    place.unlink(missing_ok=True)
