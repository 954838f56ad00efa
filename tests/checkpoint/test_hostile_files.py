"""Files that are made to do harm, given to the command line as a user would, in a process of its own.

In every case: the documented exit code, one message of readable length, no traceback, no output, no code
run, and little memory and time.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import time
import zipfile
from pathlib import Path

import pytest
import torch
from support.folders import convert, sam3lite, tiny_state, write
from support.hostile import FOLDERS, KEYS, UNTRUSTED, patched, pickled, state, tensor, text
from support.peak import Ended, run

from sam3lite_convert.checkpoint.reader import read_checkpoint
from sam3lite_convert.errors import Untrusted

pytestmark = pytest.mark.stress

MOST_MEMORY = 250 << 20
MOST_TEXT = 20_000


def assert_refused(done: Ended, folder: Path, before: set[str], code: int) -> None:
    assert done.code == code, done
    assert "Traceback" not in done.err
    assert done.err.startswith("error: ")
    assert len(done.err) < MOST_TEXT
    assert all(c.isprintable() or c == "\n" for c in done.err)
    assert not any(line.startswith("error: ") for line in done.err.split("\n")[1:])
    assert {p.name for p in folder.iterdir()} == before
    assert done.peak < MOST_MEMORY, f"{done.peak / 2**20:.0f} MB"


REPEATS = [name for name in UNTRUSTED if name.startswith("repeats")]


@pytest.mark.parametrize("name", REPEATS)
def test_a_key_that_is_set_twice_is_what_is_refused(name, tmp_path):
    UNTRUSTED[name](tmp_path / "file.pt")
    with pytest.raises(Untrusted) as refusal:
        read_checkpoint(tmp_path / "file.pt")
    assert refusal.value.code == "repeated_key"


# Lists and dicts may be as deep as they like, there is no state dict in them; a zip that somebody made anew may be
# compressed.
UNSUPPORTED = ("lists 10,000 deep", "dicts 10,000 deep", "encrypted", "compressed", "a zip bomb")


@pytest.mark.parametrize("name", UNTRUSTED)
def test_a_hostile_file_is_refused(name, tmp_path):
    path = tmp_path / "file.pt"
    UNTRUSTED[name](path)
    before = {p.name for p in tmp_path.iterdir()}
    done = run(tmp_path, "convert", "--checkpoint", path, "--output", tmp_path / "out")
    assert_refused(done, tmp_path, before, 3 if name in UNSUPPORTED else 4)
    assert done.out == ""


def test_the_hand_made_file_is_a_good_one(tmp_path):
    path = pickled(tmp_path / "file.pt", state(text("w"), tensor()))
    assert sorted(torch.load(path)) == ["w"]
    assert "no MobileCLIP text encoder" in run(tmp_path, "convert", "--checkpoint", path).err


NO_NAMES = ("lines", *(name for name in KEYS if name.startswith("a megabyte")))


@pytest.mark.parametrize("name", KEYS)
def test_a_strange_key_is_named_and_refused(name, tmp_path):
    path = write(tmp_path, tiny_state() | {KEYS[name]: torch.ones(1)})
    before = {p.name for p in tmp_path.iterdir()}
    done = run(tmp_path, "convert", "--checkpoint", path, "--output", tmp_path / "out")
    assert_refused(done, tmp_path, before, 4 if name in NO_NAMES else 3)
    for command in (["inspect", path], ["convert", "--checkpoint", path, "--dry-run"]):
        done = sam3lite(*command)
        assert "Traceback" not in done.err and len(done.err) + len(done.out) < MOST_TEXT
        assert all(c.isprintable() or c == "\n" for c in done.out + done.err)


@pytest.mark.parametrize("name", [name for name in KEYS if name not in NO_NAMES])
def test_a_strange_key_that_is_dropped_goes_no_further_than_the_receipt(name, tmp_path):
    key = "tracker.x" + KEYS[name]
    path = write(tmp_path, tiny_state() | {key: torch.ones(1)})
    done = run(tmp_path, "convert", "--checkpoint", path, "--output", tmp_path / "out")
    assert done.code == 0, done
    assert len(done.out) < MOST_TEXT and all(c.isprintable() or c == "\n" for c in done.out)
    assert {p.name for p in tmp_path.iterdir()} == {path.name, "out"}
    assert sam3lite("verify", tmp_path / "out", "--checkpoint", path).code == 0
    if name != "no character":
        assert key in json.loads((tmp_path / "out" / "conversion.json").read_text())["dropped"]


def test_thousands_of_keys_without_a_rule_take_no_minute(tmp_path):
    strange = {f"detector.{'x' * 60}.{n}.w{n % 7}": torch.ones(1) for n in range(20_000)}
    path = write(tmp_path, tiny_state() | strange)
    before = {p.name for p in tmp_path.iterdir()}
    done = run(tmp_path, "convert", "--checkpoint", path, "--output", tmp_path / "out")
    assert_refused(done, tmp_path, before, 3)
    assert "20,000 source keys without a rule" in done.err and len(done.err.splitlines()) < 24


# ---- damage -------------------------------------------------------------------------------------------


def test_a_wrong_checksum_is_noticed_and_nothing_is_written(tmp_path):
    path = write(tmp_path, tiny_state())
    place = directory_entry_of_a_tensor(path)
    patched(path, place + 16, b"\xde\xad\xbe\xef")
    before = {p.name for p in tmp_path.iterdir()}
    done = run(tmp_path, "convert", "--checkpoint", path, "--output", tmp_path / "out")
    assert_refused(done, tmp_path, before, 4)


def directory_entry_of_a_tensor(path: Path) -> int:
    with zipfile.ZipFile(path) as made:
        name = next(n for n in made.namelist() if n.endswith("/data/3"))
    return path.read_bytes().rindex(name.encode()) - 46


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_file_cut_at_any_64_kib_is_refused(kind, tmp_path):
    content = {"model": tiny_state()}
    whole = io.BytesIO()
    if kind == "safetensors":
        from safetensors.torch import save

        data = save({k: t.clone().contiguous() for k, t in tiny_state().items()})
    else:
        torch.save(content, whole, _use_new_zipfile_serialization=kind == "zip")
        data = whole.getvalue()
    path = tmp_path / "file.pt"
    path.write_bytes(data)
    last = (len(data) - 1) // 65536 * 65536
    assert last > 50 * 65536
    started = time.monotonic()
    for end in range(last, -1, -65536):
        os.truncate(path, end)
        done = sam3lite("convert", "--checkpoint", path, "--output", tmp_path / "out")
        assert done.code == 4, (end, done)
        assert done.out == "" and done.err.count("error: ") == 1 and "Traceback" not in done.err
        assert [p.name for p in tmp_path.iterdir()] == ["file.pt"], end
    assert time.monotonic() - started < 60


# ---- folders --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder_of_text(tmp_path_factory):
    root = tmp_path_factory.mktemp("folder")
    source = write(root, tiny_state())
    good = convert(source, root / "out", "--component", "text")
    (good / "fingerprint.json").unlink()  # torch, which makes it again, would take most of the memory
    return source, good


@pytest.mark.parametrize("name", FOLDERS)
def test_a_hostile_folder_is_not_proven(name, folder_of_text, tmp_path):
    source, good = folder_of_text
    folder = Path(shutil.copytree(good, tmp_path / "out"))
    file, data = FOLDERS[name]
    (folder / file).write_bytes(data)
    if file.endswith(".index.json"):
        (folder / "model.safetensors").unlink()  # with it, no reader looks at an index
    done = run(tmp_path, "verify", folder, "--checkpoint", source)
    assert done.code in (1, 2, 4), done
    assert "Traceback" not in done.err and len(done.out) + len(done.err) < MOST_TEXT
    assert done.peak < MOST_MEMORY, f"{done.peak / 2**20:.0f} MB"
