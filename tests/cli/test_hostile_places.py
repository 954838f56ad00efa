"""Places and files that are out to lose data, time or the terminal's temper."""

import os

import pytest
import torch
from support.folders import convert, sam3lite, tiny_state, write

from sam3lite_convert import swap
from sam3lite_convert.convert import write as conversion


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
