"""Places and files that are out to lose data, time or the terminal's temper."""

import os

import pytest
import torch
from support.folders import convert, sam3lite, tiny_architecture, tiny_state, write

from sam3lite_convert import files, swap
from sam3lite_convert.convert import write as conversion
from sam3lite_convert.plan import synthetic


@pytest.fixture
def checkpoint(tmp_path):
    return write(tmp_path, tiny_state())


def test_a_folder_that_appears_during_the_conversion_is_kept(checkpoint, tmp_path, monkeypatch):
    write_index = conversion.write_index

    def meanwhile(*arguments):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").write_text("mine")
        write_index(*arguments)

    monkeypatch.setattr(conversion, "write_index", meanwhile)
    assert sam3lite("convert", "--checkpoint", checkpoint, "--output", tmp_path / "out").code == 2
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_an_interrupt_between_the_two_renames_restores_the_earlier_folder(checkpoint, tmp_path, monkeypatch):
    earlier = convert(checkpoint, tmp_path / "out")
    before = (earlier / "conversion.json").stat().st_ino
    # Where names can be exchanged there is no such moment.
    monkeypatch.setattr(swap, "exchange", lambda *_: False)
    rename, calls = os.rename, []

    def interrupted(source, target):
        rename(source, target)
        calls.append(source)
        if source == earlier and target.name.startswith(".out.old-"):
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", interrupted)
    assert sam3lite("convert", "--checkpoint", checkpoint, "--output", earlier, "--overwrite").code == 130
    assert (earlier / "conversion.json").stat().st_ino == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", checkpoint.name]


def test_the_working_directory_is_not_replaced(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    done = sam3lite("convert", "--checkpoint", checkpoint, "--output", ".")
    assert done.code == 2
    assert "working directory" in done.err


def test_names_from_a_file_do_not_steer_the_terminal(tmp_path):
    path = write(tmp_path, tiny_state() | {"foo\x1b]0;pwn\x07": torch.ones(1)})
    done = sam3lite("convert", "--checkpoint", path, "--output", tmp_path / "out")
    assert done.code == 3
    assert "\x1b" not in done.err and "x1b]0;pwn" in done.err


def test_a_key_that_no_encoding_can_write_does_not_break_the_receipt(tmp_path):
    path = write(tmp_path, tiny_state() | {"tracker.\udc80x": torch.ones(1)})
    assert sam3lite("convert", "--checkpoint", path, "--output", tmp_path / "out", "--json").json["counts"]["dropped"]


WRITTEN = {
    "r.npz": "record text.pt --output r.npz",
    "r.safetensors": "record text.pt --output r.safetensors",
    "r.json": "record text.pt --output r.json --compact",
    "f.json": "record text.pt --output f.json --fingerprint",
    "hooks.py": "record --script hooks.py",
    "a.safetensors": "parity text.pt --save-activations a.safetensors",
    "r.html": "parity text.pt --report r.html",
    "out/model.onnx": "export onnx out",
    "b.pt": "restore out --output b.pt --overwrite",
}


@pytest.mark.parametrize("names", [["hooks.py"], pytest.param(WRITTEN, marks=pytest.mark.stress)], ids=["one", "all"])
def test_a_file_that_appears_while_another_of_its_name_is_made_is_kept(names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if names is WRITTEN:
        pytest.importorskip("onnx")
        write(tmp_path, synthetic.state_dict(tiny_architecture(), text_only=True), "text.pt")
        convert(tmp_path / "text.pt", tmp_path / "out", "--component", "text", "--verify")
    real = files.clear_leftovers

    def meanwhile(path):  # before the working file is made, when all that is to be written is computed
        if path.name == (tmp_path / name).name:
            path.write_text("mine")
        real(path)

    monkeypatch.setattr(files, "clear_leftovers", meanwhile)
    for name in names:
        done = sam3lite(*WRITTEN[name].split(), "--json")
        told = done.json["report_error"] if name == "r.html" else done.json["error"]["message"]
        assert done.code == 2 and "changed during the run" in told, done
        assert (tmp_path / name).read_text() == "mine", name
    assert not list(tmp_path.rglob(".*"))
