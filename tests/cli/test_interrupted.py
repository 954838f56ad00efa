"""Runs that were killed: the folder is absent, the old one or the new one, and the next run leaves nothing behind."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.folders import convert, environment, sam3lite, snapshot, tiny_state, write
from support.left_over import between, forget, unfinished

from sam3lite_convert import swap, working_places
from sam3lite_convert.convert.whole_folder import whole_folder
from sam3lite_convert.files import write_whole
from sam3lite_convert.seen import look
from sam3lite_convert.working_places import clear_leftovers

pytestmark = pytest.mark.stress

# By hand, for as many as one likes: SAM3LITE_MOMENTS=50 pytest tests/test_interrupted*.py
MOMENTS = int(os.environ.get("SAM3LITE_MOMENTS", "4"))  # of each kind


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("source"), tiny_state())


def begin(source: Path, folder: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "sam3lite_convert",
        "convert",
        "--checkpoint",
        str(source),
        "--output",
        str(folder),
    ]
    return subprocess.Popen(
        [*command, *options],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # A shell that started the tests in its background has them ignore SIGINT, and a child inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_whenever_it_ends_the_folder_is_old_or_new_and_the_next_run_heals(name, source, tmp_path):
    begun = time.monotonic()
    assert begin(source, tmp_path / "timed").wait() == 0
    takes = time.monotonic() - begun
    folder = tmp_path / "out"
    old = snapshot(convert(source, folder, "--component", "text"))
    new = snapshot(convert(source, tmp_path / "new"))
    draw = random.Random(name)
    for _ in range(MOMENTS):
        process = begin(source, folder, "--overwrite")
        time.sleep(draw.uniform(0, takes))
        process.send_signal(getattr(signal, name))
        process.wait()
        # Killed between two renames the old folder is beside its place; the next run puts it back.
        clear_leftovers(folder)
        assert snapshot(folder) in (old, new)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "out", "timed"]
        if snapshot(folder) == new:
            convert(source, folder, "--component", "text", "--overwrite")
    done = sam3lite("convert", "--checkpoint", source, "--output", folder, "--overwrite")
    assert done.code == 0 and "left over" not in done.out and snapshot(folder) == new


@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_whenever_restore_ends_its_file_is_old_or_new(name, source, tmp_path):
    folder, output = convert(source, tmp_path / "folder"), tmp_path / "back.pt"
    restore = ["restore", str(folder), "--output", str(output), "--overwrite"]
    begun = time.monotonic()
    command = [sys.executable, "-m", "sam3lite_convert", *restore]
    assert subprocess.run(command, env=environment(), stdout=subprocess.DEVNULL).returncode == 0
    takes, old = time.monotonic() - begun, output.read_bytes()
    assert sam3lite(*restore, "--checkpoint", source).code == 0
    new = output.read_bytes()
    draw = random.Random(name)
    for _ in range(MOMENTS):
        process = subprocess.Popen(
            command,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        time.sleep(draw.uniform(0.3, 1) * takes)
        process.send_signal(getattr(signal, name))
        process.wait()
        assert output.read_bytes() in (old, new)
    assert sam3lite(*restore).code == 0 and output.read_bytes() == old
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back.pt", "folder"]


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("name", ["out", "out.partial-1", "out.old-1", "o" * 240])
def test_a_run_that_was_killed_between_two_renames_gives_the_old_folder_back(name, tmp_path, monkeypatch):
    between(tmp_path / name, "a", exchanged=False)
    clear_leftovers(tmp_path / name)
    assert names(tmp_path) == [name] and (tmp_path / name / "old").read_text() == "a"
    # The same with a real run.
    rename, process = os.rename, []

    def killed(source, target):
        if process:
            raise SystemExit
        rename(source, target)
        if re.search(r"\.old-\w{32}$", target.name):
            process.append(target)

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(swap, "exchange", lambda *_: False)
        patched.setattr(os, "rename", killed)
        patched.setattr(working_places, "_remove", lambda *_: None)
        with whole_folder(tmp_path / name, look(tmp_path / name)) as work:
            (work / "new").write_text("b")
    assert not (tmp_path / name).exists() and len(names(tmp_path)) == 2
    clear_leftovers(tmp_path / name)
    assert names(tmp_path) == [name] and (tmp_path / name / "old").read_text() == "a"


@pytest.mark.parametrize("name", ["out", "out[1]", "o?t*", "o" * 240])
def test_what_was_replaced_goes_and_what_is_there_stays(name, tmp_path):
    between(tmp_path / name, "a", exchanged=True)
    unfinished(tmp_path / name)
    other = unfinished(tmp_path / "out2")
    clear_leftovers(tmp_path / name)
    assert names(tmp_path) == [other.name, name] and names(tmp_path / name) == ["new"]


@pytest.mark.parametrize("exchanged", [True, False])
def test_an_old_folder_without_a_new_one_is_never_deleted(exchanged, tmp_path):
    old = between(tmp_path / "out", "a", exchanged)
    for path in tmp_path.iterdir():
        if path != old:
            forget(path)
    clear_leftovers(tmp_path / "out")
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["old"]


@pytest.mark.parametrize("exchanged", [True, False])
def test_what_somebody_put_into_the_old_folder_before_the_run_was_killed_is_kept(exchanged, tmp_path):
    old = between(tmp_path / "out", "a", exchanged)
    if not exchanged:
        shutil.copytree(old, tmp_path / "out")
    (old / "thesis.txt").write_text("mine")
    clear_leftovers(tmp_path / "out")
    assert (old / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("kind", ["partial", "old"])
@pytest.mark.parametrize("token", ["x", "12345", "abcd1234", "a" * 32, "abcdefgh" * 4])
@pytest.mark.parametrize("there", [True, False])
def test_what_only_looks_like_a_leftover_is_left_alone(kind, token, there, tmp_path):
    planted = tmp_path / f".out.{kind}-{token}"
    planted.mkdir()
    (planted / "thesis.txt").write_text("mine")
    if there:
        (tmp_path / "out").mkdir()
    clear_leftovers(tmp_path / "out")
    assert (planted / "thesis.txt").read_text() == "mine" and (tmp_path / "out").exists() is there


def test_a_run_that_is_under_way_keeps_its_folder(tmp_path):
    with whole_folder(tmp_path / "out") as work:
        (work / "x").write_text("mine")
        code = "import sys; from pathlib import Path; from sam3lite_convert.working_places import clear_leftovers\n"
        code += "clear_leftovers(Path(sys.argv[1]))"
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=True, env=environment())
        clear_leftovers(tmp_path / "out")
        assert (work / "x").read_text() == "mine"
    assert names(tmp_path) == ["out"] and (tmp_path / "out" / "x").exists()


def test_what_was_left_of_a_file_goes_when_it_is_written_again(tmp_path):
    unfinished(tmp_path / "page.html", folder=False)
    other = unfinished(tmp_path / "other.html", folder=False)
    write_whole(tmp_path / "page.html", b"all of it")
    assert names(tmp_path) == [other.name, "page.html"]
    assert (tmp_path / "page.html").read_bytes() == b"all of it"


def test_a_file_that_another_run_is_writing_stays(tmp_path):
    code = "import sys, time; from pathlib import Path; from sam3lite_convert import files, swap\n"
    code += "swap.os.fsync = lambda handle: (print('writing', flush=True), time.sleep(60))\n"
    code += "files.write_whole(Path(sys.argv[1]), b'theirs')"
    command = [sys.executable, "-c", code, str(tmp_path / "x")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment())
    assert process.stdout and process.stdout.readline() == b"writing\n"
    write_whole(tmp_path / "x", b"ours")
    assert len(names(tmp_path)) == 2
    process.kill()
    process.communicate()
    write_whole(tmp_path / "x", b"again")
    assert names(tmp_path) == ["x"] and (tmp_path / "x").read_bytes() == b"again"


def test_a_folder_that_was_being_added_to_can_be_made_anew(source, tmp_path):
    folder = convert(source, tmp_path / "out")
    unfinished(folder / "vocab.json", folder=False)
    assert sam3lite("verify", folder, "--checkpoint", source).code == 0
    convert(source, folder, "--overwrite", "--component", "text")
    assert not [name for name in names(folder) if name.startswith(".")]


def test_two_runs_at_once_one_wins_whole_and_the_other_says_so(source, tmp_path):
    runs = [begin(source, tmp_path / "out") for _ in range(2)]
    codes = sorted(run.wait() for run in runs)
    assert codes[0] == 0 and codes[1] in (0, 2)
    assert names(tmp_path) == ["out"]
    assert snapshot(tmp_path / "out") == snapshot(convert(source, tmp_path / "alone"))


def test_no_handle_is_left_open(tmp_path):
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(3):
        with whole_folder(tmp_path / "out", look(tmp_path / "out")) as work:
            (work / "x").write_text("x")
        clear_leftovers(tmp_path / "out")
    if before:
        assert len(os.listdir("/proc/self/fd")) == before
