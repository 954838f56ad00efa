"""A disk that is full and one that may only be read: real ones, in memory, where this machine lets us mount them."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.folders import convert, sam3lite, snapshot, tiny_state, write
from support.hub_files import OLD, publish

from sam3lite_convert.convert import safetensors_writer

pytestmark = pytest.mark.stress

MB = 1_000_000
Mount = Callable[[int], Path]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("source"), tiny_state())


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Mount]:
    mounted = []

    def mount(nbytes: int) -> Path:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={nbytes}", "tmpfs", str(place)]
        if not hasattr(os, "geteuid") or os.geteuid() or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("only root may mount a file system; CI runs these as root")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


def read_only(place: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)


def refused(*arguments: object) -> str:
    done = sam3lite(*arguments)
    assert done.code == 2, done
    assert done.err.count("error: ") == 1 and "Traceback" not in done.err
    return done.err


def test_too_small_a_disk_is_noticed_before_the_first_byte(source, disk, monkeypatch):
    place = disk(4 * MB)
    monkeypatch.setattr(safetensors_writer, "write_piece", lambda *_: pytest.fail("it began to write"))
    message = refused("convert", "--checkpoint", source, "--output", place / "out")
    assert f"not enough disk space to write {place / 'out'}: " in message and "4.0 MB free" in message
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("room", [0, 10_000, 5 * MB])
@pytest.mark.parametrize("layout", ["packed", "transformers"])
def test_a_disk_that_fills_up_meanwhile_loses_nothing(room, layout, source, disk, monkeypatch):
    # Room for the earlier folder and so much more; another program takes the rest after the first look.
    place = disk(64 * MB)
    earlier = convert(source, place / "out", "--component", "text")
    before = snapshot(place)
    free = os.statvfs(place)
    with open(place / "another program", "wb") as file:
        file.write(bytes(max(0, int(free.f_bavail * free.f_frsize - room))))
    from sam3lite_convert import files
    from sam3lite_convert.commands import convert as conversions
    from sam3lite_convert.convert import whole_folder

    for module in (whole_folder, conversions, files):
        if hasattr(module, "check_space"):
            monkeypatch.setattr(module, "check_space", lambda *_: None)
    message = refused("convert", "--checkpoint", source, "--output", earlier, "--overwrite", "--layout", layout)
    assert "No space left on device" in message
    (place / "another program").unlink()
    assert snapshot(place) == before and [p.name for p in place.iterdir()] == ["out"]
    monkeypatch.undo()
    assert sam3lite("convert", "--checkpoint", source, "--output", earlier, "--overwrite").code == 0


def test_a_read_only_disk(source, disk):
    place = disk(64 * MB)
    earlier = convert(source, place / "out")
    before = snapshot(place)
    read_only(place)
    assert "Read-only file system" in refused("convert", "--checkpoint", source, "--output", place / "new")
    assert "Read-only file system" in refused("convert", "--checkpoint", source, "--output", earlier, "--overwrite")
    assert snapshot(place) == before
    assert sam3lite("verify", earlier, "--checkpoint", source).code == 0
    assert sam3lite("inspect", source).code == 0


@pytest.mark.parametrize("command", ["report", "save"])
def test_a_report_that_has_no_room_leaves_none(command, source, disk, tmp_path):
    place = disk(1 * MB)
    with open(place / "another program", "wb") as file:
        file.write(bytes(1 * MB - 20_000))
    option = {"report": ["--report", place / "r.html"], "save": ["--save-activations", place / "a"]}[command]
    message = refused("parity", "--checkpoint", source, *option)
    assert "No space left on device" in message
    assert [p.name for p in place.iterdir()] == ["another program"]


def test_a_cache_without_room_is_noticed_before_the_download(hub, disk, tmp_path):
    publish(hub, tmp_path, {"s0": OLD["s0"]})
    place = disk(4 * MB)
    message = refused("convert", "--checkpoint", "s0", "--cache-dir", place, "--output", tmp_path / "out")
    assert "not enough disk space to download " in message
    assert hub.sent("/cdn/") == 0 and not (tmp_path / "out").exists()


def test_a_cache_that_may_only_be_read_serves_what_it_has(hub, disk, tmp_path):
    publish(hub, tmp_path, OLD)
    place = disk(40 * MB)
    convert_s0 = ["convert", "--checkpoint", "s0", "--cache-dir", place, "--output"]
    assert sam3lite(*convert_s0, tmp_path / "out").code == 0
    read_only(place)
    assert sam3lite(*convert_s0, tmp_path / "again").code == 0
    message = refused("convert", "--checkpoint", "s1", "--cache-dir", place, "--output", tmp_path / "s1")
    assert "Read-only file system" in message or "cannot be written" in message


@pytest.fixture
def overlay(disk) -> Path:
    """A folder as a container has it: a lower layer with what was in the image, an upper one for what is written."""
    place = disk(200 * MB)
    for name in ("image", "upper", "work", "merged"):
        (place / name).mkdir()
    return place


def mount_overlay(place: Path) -> Path:
    options = ",".join(f"{key}={place / name}" for key, name in
                       (("lowerdir", "image"), ("upperdir", "upper"), ("workdir", "work")))  # fmt: skip
    command = ["mount", "-t", "overlay", "overlay", "-o", options, str(place / "merged")]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no overlay on this machine")
    return place / "merged"


@pytest.fixture(params=[True, False], ids=["exchange", "two-renames"])
def way(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr("sam3lite_convert.swap.exchange", lambda *_: False)


def test_an_empty_output_folder_of_an_image(way, overlay, source):
    (overlay / "image" / "out").mkdir()
    place = mount_overlay(overlay)
    convert(source, place / "out", "--component", "text")
    assert sam3lite("convert", "--checkpoint", source, "--output", place / "out", "--overwrite").code == 0
    assert sam3lite("verify", place / "out", "--checkpoint", source).code == 0
    assert [p.name for p in place.iterdir()] == ["out"]
    subprocess.run(["umount", str(place)], check=True)


def test_a_conversion_of_an_image_is_not_replaced_and_that_is_said_before_the_first_byte(overlay, source, monkeypatch):
    convert(source, overlay / "image" / "out", "--component", "text")
    place = mount_overlay(overlay)
    before = snapshot(place)
    monkeypatch.setattr(safetensors_writer, "write_piece", lambda *_: pytest.fail("it began to write"))
    message = refused("convert", "--checkpoint", source, "--output", place / "out", "--overwrite")
    assert "part of an image" in message and "--output" in message
    assert snapshot(place) == before and [p.name for p in place.iterdir()] == ["out"]
    subprocess.run(["umount", str(place)], check=True)


def test_a_file_of_an_image_is_replaced(way, overlay, source):
    folder = convert(source, overlay / "image" / "out", "--component", "text")
    (overlay / "image" / "back.pt").write_bytes(b"earlier")
    place = mount_overlay(overlay)
    command = ["restore", place / folder.name, "--checkpoint", source, "--output", place / "back.pt"]
    assert sam3lite(*command, "--overwrite").code == 0
    assert sorted(p.name for p in place.iterdir()) == ["back.pt", "out"] and (place / "back.pt").stat().st_size > 100
    # And files in a folder of an image: what is added to it later.
    assert sam3lite("verify", place / "out", "--checkpoint", source).code == 0
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("full", [True, False], ids=["an earlier conversion", "an empty folder"])
def test_a_bind_mount_as_output_is_refused_before_the_first_byte(full, disk, source, monkeypatch):
    place = disk(200 * MB)
    if full:
        convert(source, place / "real", "--component", "text")
    else:
        (place / "real").mkdir()
    (place / "out").mkdir()
    subprocess.run(["mount", "--bind", str(place / "real"), str(place / "out")], check=True)
    before = snapshot(place)
    with monkeypatch.context() as patch:
        patch.setattr(safetensors_writer, "write_piece", lambda *_: pytest.fail("it began to write"))
        message = refused("convert", "--checkpoint", source, "--output", place / "out", "--overwrite")
    assert "mount point" in message and "inside it" in message
    assert snapshot(place) == before and sorted(p.name for p in place.iterdir()) == ["out", "real"]
    if not full:
        convert(source, place / "out" / "inside")
    subprocess.run(["umount", str(place / "out")], check=True)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES], ids=errno.errorcode.get)
def test_where_folders_cannot_be_synced_that_is_no_failure(number, source, tmp_path, monkeypatch):
    sync = os.fsync

    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    convert(source, tmp_path / "out", "--component", "text")
    convert(source, tmp_path / "out", "--overwrite")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_nothing_was_written_is_not_said_of_a_folder_that_is_in_its_place(source, tmp_path, monkeypatch):
    earlier, sync = convert(source, tmp_path / "out", "--component", "text"), os.fsync

    def fsync(handle):
        if os.path.samestat(os.fstat(handle), tmp_path.stat()):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        message = refused("convert", "--checkpoint", source, "--output", earlier, "--overwrite")
    assert "is written and in its place" in message and "othing was written" not in message
    assert sam3lite("verify", earlier, "--checkpoint", source).code == 0
    assert sam3lite("convert", "--checkpoint", source, "--output", earlier, "--overwrite").code == 0
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.skipif(shutil.which("bindfs") is None, reason="bindfs is not installed")
def test_a_file_system_in_user_space(source, tmp_path):
    below, seen = tmp_path / "below", tmp_path / "seen"
    below.mkdir()
    seen.mkdir()
    if subprocess.run(["bindfs", below, seen], capture_output=True).returncode:
        pytest.skip("no FUSE here")
    try:
        out = convert(source, seen / "out", "--component", "text")
        first = snapshot(out)
        assert convert(source, out, "--component", "text", "--overwrite") == out and snapshot(out) == first
        (seen / "empty").mkdir()
        convert(source, seen / "empty", "--component", "text")
        (out / "mine").write_text("mine")
        assert "mine" in refused("convert", "--checkpoint", source, "--output", out, "--overwrite")
        assert sorted(p.name for p in below.iterdir()) == ["empty", "out"]
    finally:
        subprocess.run(["umount", seen], check=True)
