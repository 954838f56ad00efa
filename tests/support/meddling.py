"""What somebody else may do to a converted folder, or in its place, while a run is about to replace it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def add(folder: Path) -> None:
    (folder / "thesis.txt").write_text("mine")


def edit(folder: Path) -> None:
    with open(folder / "README.md", "a") as card:
        card.write("mine")


def edit_in_place(folder: Path) -> None:
    """With the same size and the time of before."""
    card = folder / "README.md"
    before = card.stat()
    data = card.read_bytes()
    card.write_bytes(b"mine" + data[4:])
    os.utime(card, ns=(before.st_atime_ns, before.st_mtime_ns))


def take_one_out(folder: Path) -> None:
    (folder / "README.md").rename(folder.parent / "mine.md")


def another_in_its_place(folder: Path) -> None:
    folder.rename(folder.parent / "moved")
    folder.mkdir()
    add(folder)


def a_copy_in_its_place(folder: Path) -> None:
    folder.rename(folder.parent / "moved")
    shutil.copytree(folder.parent / "moved", folder)


def a_link_in_its_place(folder: Path) -> None:
    folder.rename(folder.parent / "moved")
    folder.symlink_to("moved")


def a_file_in_its_place(folder: Path) -> None:
    folder.rename(folder.parent / "moved")
    folder.write_text("mine")


def a_folder_in_it(folder: Path) -> None:
    (folder / "notes").mkdir()
    add(folder / "notes")


def all_of(place: Path) -> dict[str, object]:
    """Links, and files with their content, of a whole tree."""
    found: dict[str, object] = {}
    for path in sorted(place.rglob("*")):
        name = str(path.relative_to(place))
        found[name] = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
    return found
