"""What is replaced is checked when it is taken out, never removed by name alone."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.broken_system import broken_system
from support.folders import convert, sam3lite, snapshot, tiny_state, write
from support.left_over import forget
from support.meddling import (
    a_copy_in_its_place,
    a_file_in_its_place,
    a_folder_in_it,
    a_link_in_its_place,
    add,
    all_of,
    another_in_its_place,
    edit,
    edit_in_place,
    take_one_out,
)

from sam3lite_convert import files, swap
from sam3lite_convert.convert import write as conversion
from sam3lite_convert.convert.whole_folder import check_destination, whole_folder
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.files import whole_file
from sam3lite_convert.seen import look
from sam3lite_convert.working_places import clear_leftovers

Meddle = Callable[[Path], object]


MEDDLING: list[Meddle] = [
    add, edit, edit_in_place, take_one_out, another_in_its_place, a_copy_in_its_place, a_link_in_its_place,
    a_file_in_its_place, a_folder_in_it,
]  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("source"), tiny_state())


@pytest.fixture(scope="module")
def converted(checkpoint, tmp_path_factory) -> Path:
    return convert(checkpoint, tmp_path_factory.mktemp("earlier") / "out", "--component", "text")


@pytest.fixture(params=[True, False], ids=["exchange", "two-renames"])
def way(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(swap, "exchange", lambda *_: False)


def at_the_end(monkeypatch, act: Callable[[], object]) -> None:
    """Do it when all is written and the new folder is about to take its place."""
    with_card = conversion.with_card

    def meanwhile(*arguments):
        act()
        return with_card(*arguments)

    monkeypatch.setattr(conversion, "with_card", meanwhile)


@pytest.mark.parametrize("meddle", MEDDLING)
def test_what_others_did_to_the_folder_meanwhile_is_not_lost(meddle, way, checkpoint, converted, tmp_path, monkeypatch):
    folder, kept = tmp_path / "out", {}
    shutil.copytree(converted, folder)

    def meanwhile():
        meddle(folder)
        kept.update({name: data for name, data in all_of(tmp_path).items() if ".partial-" not in name})

    at_the_end(monkeypatch, meanwhile)
    done = sam3lite("convert", "--checkpoint", checkpoint, "--output", folder, "--overwrite", "--json")
    assert (done.code, done.json["error"]["code"]) == (2, "output_changed"), done
    assert all_of(tmp_path) == kept
    message = done.json["error"]["message"]
    assert "Nothing was written there" in message and "as it was found" in message


def test_a_folder_that_was_moved_away_meanwhile_is_kept_and_the_new_one_stands_in_its_place(
    way, checkpoint, converted, tmp_path, monkeypatch
):
    folder = tmp_path / "out"
    shutil.copytree(converted, folder)
    before = snapshot(folder)
    at_the_end(monkeypatch, lambda: folder.rename(tmp_path / "moved"))
    assert sam3lite("convert", "--checkpoint", checkpoint, "--output", folder, "--overwrite").code == 0
    assert snapshot(tmp_path / "moved") == before and sam3lite("verify", folder, "--checkpoint", checkpoint).code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["moved", "out"]


@pytest.mark.parametrize("there", [True, False], ids=["an empty folder", "nothing"])
@pytest.mark.parametrize("meddle", [add, a_folder_in_it, a_file_in_its_place, a_link_in_its_place])
def test_what_appears_where_nothing_was_is_not_lost(there, meddle, checkpoint, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    if there:
        folder.mkdir()

    def meanwhile():
        folder.mkdir(exist_ok=True)
        meddle(folder)

    at_the_end(monkeypatch, meanwhile)
    done = sam3lite("convert", "--checkpoint", checkpoint, "--output", folder, "--json")
    assert (done.code, done.json["error"]["code"]) == (2, "output_changed"), done
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    if meddle in (add, a_folder_in_it):
        assert [path.read_text() for path in tmp_path.rglob("thesis.txt")] == ["mine"]
    else:
        assert (tmp_path / "moved").is_dir() and (folder.is_symlink() or folder.read_text() == "mine")


def test_marks_alone_are_no_other_content(way, checkpoint, converted, tmp_path, monkeypatch):
    # A backup that works with hard links, and chmod.
    folder = tmp_path / "out"
    shutil.copytree(converted, folder)

    def meanwhile():
        os.link(folder / "model.safetensors", tmp_path / "backup")
        (folder / "README.md").chmod(0o600)

    at_the_end(monkeypatch, meanwhile)
    assert sam3lite("convert", "--checkpoint", checkpoint, "--output", folder, "--overwrite").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup", "out"]


@pytest.mark.parametrize("there", ["nothing", "a file"])
@pytest.mark.parametrize("what", ["a file", "a folder", "a link"])
def test_a_file_that_somebody_else_put_there_meanwhile_is_not_lost(there, what, way, tmp_path):
    place, mine = tmp_path / "page.html", tmp_path / "mine"
    if there == "a file":
        place.write_text("earlier")
    with pytest.raises(CannotRun) as refused, whole_file(place) as out:
        out.write(b"new")
        place.unlink(missing_ok=True)
        if what == "a file":
            place.write_text("mine")
        elif what == "a folder":
            place.mkdir()
            (place / "thesis.txt").write_text("mine")
        else:
            mine.write_text("mine")
            place.symlink_to(mine)
    assert refused.value.code == "output_changed"
    assert "mine" in [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert (place.is_symlink(), place.is_dir()) == (what == "a link", what == "a folder")
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def left_in(place: Path) -> list[str]:
    """What a run left somewhere below a folder under a hidden name."""
    return [path.name for path in place.rglob(".*")]


@pytest.mark.parametrize("instead", [None, "a folder", "a link"])
def test_what_was_being_written_goes_with_the_folder_that_was_renamed(instead, tmp_path):
    place, moved, other = tmp_path / "here", tmp_path / "moved", tmp_path / "other"
    place.mkdir()
    with pytest.raises(CannotRun, match="nothing was written there"), whole_file(place / "page.html") as out:
        out.write(b"new")
        place.rename(moved)
        other.mkdir()
        (other / "page.html").write_text("mine")
        if instead == "a folder":
            other.rename(place)
        elif instead == "a link":
            place.symlink_to(other)
    assert left_in(tmp_path) == [] and list(moved.iterdir()) == []
    assert [path.read_text() for path in tmp_path.rglob("page.html") if not path.parent.is_symlink()] == ["mine"]


@pytest.mark.parametrize("link", [False, True])
def test_a_file_in_the_place_of_the_one_to_be_written_is_not_written_to(link, tmp_path, monkeypatch):
    made = files.working_place

    def planted(*arguments):
        work = made(*arguments)
        work.path.unlink()
        mine = tmp_path / "mine" if link else work.path
        mine.write_text("mine")
        if link:
            work.path.symlink_to(mine)
        return work

    monkeypatch.setattr(files, "working_place", planted)
    with pytest.raises(CannotRun, match="nothing was written there"), whole_file(tmp_path / "page.html"):
        raise AssertionError("it was opened")
    assert {path.read_text() for path in tmp_path.iterdir()} == {"mine"}


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_was_put_in_the_place_of_the_earlier_one_that_is_to_go_is_kept(kind, tmp_path, monkeypatch):
    place, discarded = tmp_path / "out", swap.discard

    def planted(taken, seen, final):
        if kind == "file":
            taken.unlink()
            taken.write_text("mine")
        else:
            shutil.rmtree(taken)
            taken.mkdir()
            (taken / "config.json").write_text("mine")
        discarded(taken, seen, final)

    def run(text):
        if kind == "file":
            with whole_file(place) as out:
                out.write(text)
        else:
            with whole_folder(place, look(place)) as work:
                (work / "config.json").write_bytes(text)

    run(b"earlier")
    monkeypatch.setattr(swap, "discard", planted)
    run(b"new")
    held = {path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert held == {"new", "mine"} and left_in(tmp_path) == []


def test_a_folder_that_cannot_be_synced_leaves_nothing_hidden(tmp_path, monkeypatch):
    place = tmp_path / "page.html"
    place.write_text("earlier")

    def fails(folder):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(swap, "sync_folder", fails)
    with pytest.raises(CannotRun, match=r"in its place.* then write it once more"), whole_file(place) as out:
        out.write(b"new")
    assert place.read_text() == "new" and [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_the_file_that_was_there_is_replaced_and_nothing_is_left(way, tmp_path):
    place = tmp_path / "page.html"
    for text in (b"one", b"two"):
        with whole_file(place, look(place)) as out:
            out.write(text)
        assert place.read_bytes() == text and [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_place_that_is_no_file_is_not_replaced(tmp_path):
    place = tmp_path / "pipe"
    os.mkfifo(place)
    with pytest.raises(CannotRun, match="not a file"), whole_file(place):
        pass
    assert place.is_fifo()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EXDEV, errno.EPERM], ids=errno.errorcode.get)
@pytest.mark.parametrize("there", [True, False], ids=["an earlier one", "nothing"])
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_whichever_call_to_the_system_fails_the_old_or_the_new_one_is_there(kind, there, number, way, tmp_path):
    """All of the calls, one after the other; what lies there is whole, and the next run succeeds and leaves nothing."""

    def text() -> str | None:
        place = tmp_path / "out"
        if not os.path.lexists(place):
            return None
        if kind == "file":
            return place.read_text()
        whole = sorted(os.listdir(place)) == ["config.json", "conversion.json"]
        return (place / "config.json").read_text() if whole else "odd"

    def run(data: str) -> None:
        place = tmp_path / "out"
        if kind == "file":
            with whole_file(place) as out:
                out.write(data.encode())
        else:
            clear_leftovers(place)
            earlier = check_destination(place, True, tmp_path / "source", 0).earlier
            with whole_folder(place, earlier) as work:
                for name in ("config.json", "conversion.json"):
                    (work / name).write_text(data)

    at, failed = 0, 0
    while True:
        for path in tmp_path.iterdir():
            forget(path)
        if there:
            run("old")
        with broken_system(tmp_path, at, number) as system:
            try:
                run("new")
                said = None
            except (CannotRun, OSError) as fault:  # the command line has words for both
                said = str(fault)
        if at >= len(system.made):
            break
        what = (at, system.made[at], said, sorted(p.name for p in tmp_path.iterdir()))
        assert text() in ({"new"} if said is None else {"new", "old" if there else None}), what
        assert said is None or "othing was written" not in said or text() != "new", what
        run("next")
        assert text() == "next" and [path.name for path in tmp_path.iterdir()] == ["out"], what
        at, failed = at + 1, failed + (said is not None)
    assert at > 15 and failed > 8
