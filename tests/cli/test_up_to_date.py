"""Running a conversion again: what is complete and current, what is not, and what stands in the way."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants
from support.folders import sam3lite, snapshot
from support.hub_files import FOLDER, REPO, S0, checkpoint, downloads, one_line, publish
from support.hub_server import HubServer


@pytest.fixture
def s0(hub: HubServer, tmp_path: Path) -> Path:
    """The hub with one checkpoint, s0 under its old name; the file."""
    return publish(hub, tmp_path, {"s0": S0})["s0"]


def test_a_second_run_does_nothing(s0, hub):
    sam3lite("convert", "--checkpoint", "s0")
    before, _ = snapshot(FOLDER), hub.clear_log()
    done = sam3lite("convert", "--checkpoint", "s0")
    assert done.code == 0 and "complete and current" in done.out
    assert snapshot(FOLDER) == before
    assert downloads(hub) == 0


def test_a_second_run_needs_no_checkpoint(s0, hub):
    sam3lite("convert", "--checkpoint", "s0")
    shutil.rmtree(constants.HF_HUB_CACHE)
    hub.clear_log()
    assert sam3lite("convert", "--checkpoint", "s0", "--json").json["state"] == "current"
    assert downloads(hub) == 0


def test_a_new_file_upstream_needs_overwrite(s0, hub, tmp_path):
    sam3lite("convert", "--checkpoint", "s0")
    before = snapshot(FOLDER)
    hub.commit(REPO, {S0: checkpoint(tmp_path, "another")})
    assert "another file" in one_line(sam3lite("convert", "--checkpoint", "s0"), 2)
    assert snapshot(FOLDER) == before
    assert sam3lite("convert", "--checkpoint", "s0", "--overwrite").code == 0
    assert snapshot(FOLDER) != before


def test_a_new_commit_with_the_same_file_is_current(s0, hub):
    sam3lite("convert", "--checkpoint", "s0")
    hub.commit(REPO, {"README.md": b"# other\n"})
    assert sam3lite("convert", "--checkpoint", "s0", "--json").json["state"] == "current"


OTHER = {
    "--context 8": "context: not given there, 8 now",
    "--max-shard-size 1MB": "max shard size: one file there, 1.0 MB now",
    "--causal": "causal: no there, yes now",
    f"--dtype float16 --output {FOLDER}": ("dtype: as stored there, float16 now"),
}


@pytest.mark.parametrize("options", OTHER)
def test_other_options_are_not_current(options, s0):
    sam3lite("convert", "--checkpoint", "s0")
    before = snapshot(FOLDER)
    said = one_line(sam3lite("convert", "--checkpoint", "s0", *options.split()), 2)
    assert "--overwrite" in said and f"it was converted with other options ({OTHER[options]})" in said
    assert snapshot(FOLDER) == before


def test_options_given_then_and_not_now_are_said_in_words(s0):
    for options, said in (
        ("--context 8", "8 there, not given"),
        ("--max-shard-size 2MB", "2.0 MB there, one file"),
    ):
        sam3lite("convert", "--checkpoint", "s0", *options.split(), "--overwrite")
        assert said in one_line(sam3lite("convert", "--checkpoint", "s0"), 2)


# ---- what an earlier run left -----------------------------------------------------------------------

DAMAGED = {
    "no library": lambda r: r.pop("library"),
    "no counts": lambda r: r.pop("counts"),
    "no size": lambda r: r["source"].pop("size"),
    "no losses": lambda r: r.update(lost=None),
    "architecture": lambda r: r.update(architecture="x"),
    "notes": lambda r: r.update(notes=5),
    "licence": lambda r: r["source"].update(licence="mit"),
    "parity": lambda r: r.update(parity=[1]),
    "parameters": lambda r: r.update(text_parameters="a"),
    "tool": lambda r: r.update(tool=[]),
    "tensors": lambda r: r.update(tensors=[]),
    "source": lambda r: r.update(source=None),
    "processor files": lambda r: r.update(beside=3),
    "options": lambda r: r.update(options=3),
    "pairs": lambda r: r.update(beside=[["a", "b"]]),
    "another library": lambda r: r.update(library=5),
    "name": lambda r: r["source"].update(name={}),
    "schema version": lambda r: r.pop("schema_version"),
    "a sum": lambda r: r["counts"].update(mapped=1),
    "a hash": lambda r: r["beside"].update({"config.json": None}),
    "one tensor": lambda r: next(iter(r["tensors"].values())).pop("dtype"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_receipt_is_not_current(what, s0):
    sam3lite("convert", "--checkpoint", "s0")
    path = FOLDER / "conversion.json"
    receipt = json.loads(path.read_text())
    DAMAGED[what](receipt)
    path.write_text(json.dumps(receipt))
    before = snapshot(FOLDER)
    assert "--overwrite" in one_line(sam3lite("convert", "--checkpoint", "s0"), 2)
    assert snapshot(FOLDER) == before


def test_what_is_wrong_in_a_receipt_is_named(s0):
    sam3lite("convert", "--checkpoint", "s0")
    path = FOLDER / "conversion.json"
    good = json.loads(path.read_text())
    for broken, place in (
        ({k: v for k, v in good.items() if k != "library"}, "library is missing"),
        (good | {"source": good["source"] | {"size": "7"}}, "source.size"),
        (good | {"files": ["model.safetensors", 5]}, "files[1]"),
    ):
        path.write_text(json.dumps(broken))
        assert place in one_line(sam3lite("convert", "--checkpoint", "s0"), 2)


def test_a_receipt_with_fields_that_are_not_known_is_current(s0):
    sam3lite("convert", "--checkpoint", "s0")
    path = FOLDER / "conversion.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"of_a_later_version": 1}))
    assert sam3lite("convert", "--checkpoint", "s0", "--json").json["state"] == "current"


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_a_receipt_that_is_none(text, s0):
    sam3lite("convert", "--checkpoint", "s0")
    (FOLDER / "conversion.json").write_text(text)
    assert "--overwrite" in one_line(sam3lite("convert", "--checkpoint", "s0"), 2)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "conversion.json"])
def test_a_folder_that_lost_a_file_is_not_current(name, s0):
    sam3lite("convert", "--checkpoint", "s0")
    (FOLDER / name).unlink()
    one_line(sam3lite("convert", "--checkpoint", "s0"), 2)


def test_a_folder_whose_tensors_are_others_is_not_current(s0):
    from safetensors.torch import load, save_file

    sam3lite("convert", "--checkpoint", "s0")
    tensors = load((FOLDER / "model.safetensors").read_bytes())  # no view of the file that is written over
    key = "text_encoder.projection"
    for wrong in ({k: t for k, t in tensors.items() if k != key}, tensors | {key: tensors[key].half()}):
        save_file(wrong, FOLDER / "model.safetensors")
        assert "its tensors" in one_line(sam3lite("convert", "--checkpoint", "s0"), 2)


def spoil(path: Path, back: bool) -> None:
    """Change one bit; ``back``: set the time of change back to what it was."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    if back:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("back", [False, True])
def test_a_folder_whose_bytes_changed_is_not_current(back, s0):
    sam3lite("convert", "--checkpoint", "s0")
    spoil(FOLDER / "model.safetensors", back)
    before = snapshot(FOLDER)
    said = one_line(sam3lite("convert", "--checkpoint", "s0"), 2)
    assert "model.safetensors changed or was copied" in said and "1 of " in said and "--overwrite" in said
    assert snapshot(FOLDER) == before


def test_the_bytes_of_a_copied_folder_are_read_and_that_is_said(s0, hub):
    sam3lite("convert", "--checkpoint", "s0")
    assert not any("compared with the checkpoint" in n for n in notes(sam3lite("convert", "s0", "--json")))
    shutil.copytree(FOLDER, "copy")
    FOLDER.rename("aside")
    os.utime("copy/model.safetensors")  # whatever the order of copying
    Path("copy").rename(FOLDER)
    done = sam3lite("convert", "--checkpoint", "s0", "--json")
    assert done.json["state"] == "current" and any("compared with the checkpoint" in n for n in notes(done))
    # Without the checkpoint on this machine it is fetched for that.
    shutil.rmtree(constants.HF_HUB_CACHE)
    hub.clear_log()
    assert sam3lite("convert", "--checkpoint", "s0", "--json").json["state"] == "current"
    assert downloads(hub) >= s0.stat().st_size


def notes(done) -> list[str]:
    return done.json["notes"]


def test_what_is_trusted_is_said(s0, hub):
    sam3lite("convert", "--checkpoint", "s0")
    spoil(FOLDER / "model.safetensors", False)
    hub.clear_log()
    done = sam3lite("convert", "--checkpoint", "s0", "--trust", "--json")
    assert done.json["state"] == "current" and downloads(hub) == 0
    assert any("model.safetensors" in n and "trusted, and not read (--trust)" in n for n in notes(done))
    assert "trusted" in sam3lite("convert", "--checkpoint", "s0", "--trust").out
    for other in ("--push-to-hub", "--verify", "--overwrite"):
        assert "--trust" in one_line(sam3lite("convert", "--checkpoint", "s0", "--trust", other), 2)


def test_what_stands_in_the_way_is_said_before_the_download(s0, hub):
    Path("file").write_text("x")
    Path("theirs").mkdir()
    Path("theirs/x").write_text("x")
    for output, more in (("file", []), ("theirs", ["--overwrite"]), ("theirs", [])):
        one_line(sam3lite("convert", "--checkpoint", "s0", "--output", output, *more), 2)
    assert downloads(hub) == 0
