"""Each call to the file system fails once: the earlier output is whole, or the new one is, and the next run heals."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.broken_system import broken_system
from support.folders import convert, sam3lite, snapshot, tiny_state, write
from support.rows import TEXT

from sam3lite_convert import swap

pytestmark = pytest.mark.stress

NUMBERS = [errno.EIO, errno.ENOSPC, errno.EXDEV, errno.EPERM]
NEW = ["--component", "text", "--layout", "transformers"]
PARTS = 8  # of one run's calls, each a test of its own


@dataclass(frozen=True)
class Places:
    """checkpoint: the source, of a text encoder, as each test converts it some fifty times; earlier: its conversion to
    one layout; new: to another."""

    checkpoint: Path
    earlier: Path
    new: Path


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Places:
    place = tmp_path_factory.mktemp("places")
    checkpoint = write(place, {k: t for k, t in tiny_state().items() if k.startswith(TEXT)})
    earlier = convert(checkpoint, place / "earlier", "--component", "text", "--layout", "packed")
    return Places(checkpoint, earlier, convert(checkpoint, place / "new", *NEW))


def same(one: Path, other: Path) -> bool:
    return one.is_dir() and snapshot(one) == snapshot(other)


def tried(
    place: Path,
    prepare: Callable[[], object],
    command: list[object],
    good: Callable[[int], bool],
    part: int,
    number: int,
) -> None:
    """Run the command once for every call that is its own, with that call failing; ``good``: by the exit code, whether
    what lies there then is complete."""

    def anew() -> None:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        prepare()

    anew()
    with broken_system(place) as counted:
        assert sam3lite(*command).code == 0
    writes = [at for at, name in enumerate(counted.made) if name == "write"]
    calls = [at for at, name in enumerate(counted.made) if name != "write"] + writes[:: max(1, len(writes) // 10)]
    for at in sorted(calls)[part::PARTS]:
        anew()
        with broken_system(place, at, number) as system:
            done = sam3lite(*command)
        what = (at, system.made[at : at + 1], done)
        assert done.code in (0, 2), what
        assert "Traceback" not in done.out + done.err and done.err.count("error: ") == (done.code != 0), what
        assert good(done.code), what
        if "nothing was written" in done.err.lower():
            assert not good(0), what
        assert sam3lite(*command).code == 0 and good(0), what
        assert not [path.name for path in place.iterdir() if path.name.startswith(".")], what


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
@pytest.mark.parametrize("way", ["exchange", "two renames"])
def test_a_call_fails_while_an_earlier_conversion_is_replaced(way, number, part, places, tmp_path, monkeypatch):
    if way != "exchange":
        monkeypatch.setattr(swap, "exchange", lambda *_: False)
    place = tmp_path / "place"
    folder = place / "out"

    def good(code: int) -> bool:
        return same(folder, places.new) or (code != 0 and same(folder, places.earlier))

    command = ["convert", "--checkpoint", places.checkpoint, "--output", folder, "--overwrite", *NEW]
    tried(place, lambda: shutil.copytree(places.earlier, folder), command, good, part, number)


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
def test_a_call_fails_while_a_new_folder_is_written(number, part, places, tmp_path):
    place = tmp_path / "place"
    folder = place / "out"

    def good(code: int) -> bool:
        return same(folder, places.new) or (code != 0 and not os.path.lexists(folder))

    command = ["convert", "--checkpoint", places.checkpoint, "--output", folder, "--overwrite", *NEW]
    tried(place, lambda: None, command, good, part, number)


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
def test_a_call_fails_while_a_file_is_replaced(number, part, places, tmp_path):
    place = tmp_path / "place"
    back, made = place / "back.pt", tmp_path / "made.pt"
    assert sam3lite("restore", places.new, "--checkpoint", places.checkpoint, "--output", made).code == 0
    new = made.read_bytes()

    def good(code: int) -> bool:
        return back.read_bytes() == new or (code != 0 and back.read_bytes() == b"earlier")

    command = ["restore", places.new, "--checkpoint", places.checkpoint, "--output", back, "--overwrite"]
    tried(place, lambda: back.write_bytes(b"earlier"), command, good, part, number)
