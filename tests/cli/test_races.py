"""Runs that are stopped (SIGSTOP) at a chosen moment, while somebody else works in the same place: nothing is lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.folders import convert, environment, sam3lite, tiny_state, write
from support.meddling import (
    a_copy_in_its_place,
    a_file_in_its_place,
    a_folder_in_it,
    a_link_in_its_place,
    add,
    all_of,
    another_in_its_place,
    edit,
    take_one_out,
)

pytestmark = pytest.mark.stress

# Stops the process before it calls a function, by module and name, for the time with this number.
_STOPPED = """
import importlib, os, signal, sys
module, name, turn = importlib.import_module(sys.argv[1]), sys.argv[2], int(sys.argv[3])
real, turns = getattr(module, name), []
def stopped(*arguments, **more):
    turns.append(name)
    if len(turns) == turn:
        os.kill(os.getpid(), signal.SIGSTOP)
    return real(*arguments, **more)
setattr(module, name, stopped)
sys.argv = ["sam3lite", *sys.argv[4:]]
from sam3lite_convert.cli.app import main
sys.exit(main())
"""

MOMENTS = [
    ("sam3lite_convert.commands.convert", "make_plan", 1),
    ("sam3lite_convert.convert.write", "write_shard", 1),
    ("sam3lite_convert.convert.write", "write_index", 1),
    ("sam3lite_convert.convert.write", "with_card", 1),
    ("sam3lite_convert.convert.whole_folder", "put_in_place", 1),
    ("sam3lite_convert.swap", "exchange", 1),
]


def moved_away(folder: Path) -> None:
    folder.rename(folder.parent / "moved")


def removed(folder: Path) -> None:
    shutil.rmtree(folder)


LOST = [add, edit, take_one_out, another_in_its_place, a_copy_in_its_place, a_link_in_its_place, a_file_in_its_place,
        a_folder_in_it]  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("source"), tiny_state())


@pytest.fixture(scope="module")
def converted(checkpoint, tmp_path_factory) -> Path:
    return convert(checkpoint, tmp_path_factory.mktemp("earlier") / "out", "--component", "text")


class Stopped:
    """A run that waits at a moment until it is told to go on."""

    def __init__(self, moment: tuple[str, str, int], *command: object) -> None:
        module, name, turn = moment
        words = [sys.executable, "-c", _STOPPED, module, name, str(turn), *map(str, command)]
        self.process = subprocess.Popen(
            words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        _, status = os.waitpid(self.process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), self.process.communicate()

    def go_on(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGCONT)
        out, said = self.process.communicate(timeout=200)
        assert "Traceback" not in out + said
        return self.process.returncode, said


def kept(place: Path) -> dict[str, object]:
    return {name: data for name, data in all_of(place).items() if ".partial-" not in name}


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment[1])
@pytest.mark.parametrize("meddle", LOST)
def test_what_somebody_did_while_a_run_stood_still_is_there_afterwards(moment, meddle, checkpoint, converted, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(converted, folder)
    run = Stopped(
        moment, "convert", "--checkpoint", checkpoint, "--output", folder, "--overwrite", "--component", "text"
    )
    meddle(folder)
    theirs = kept(tmp_path)
    code, said = run.go_on()
    assert code == 2 and said.count("error: ") == 1, said
    assert all_of(tmp_path) == theirs


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment[1])
@pytest.mark.parametrize("meddle", [moved_away, removed])
def test_a_folder_that_went_while_a_run_stood_still_makes_room(moment, meddle, checkpoint, converted, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(converted, folder)
    run = Stopped(moment, "convert", "--checkpoint", checkpoint, "--output", folder, "--overwrite")
    meddle(folder)
    theirs = kept(tmp_path)
    code, said = run.go_on()
    assert code == 0, said
    assert {name: data for name, data in all_of(tmp_path).items() if not name.startswith("out")} == theirs
    assert sam3lite("verify", folder, "--checkpoint", checkpoint).code == 0


@pytest.mark.parametrize("moment", MOMENTS[:-1], ids=lambda moment: moment[1])
@pytest.mark.parametrize("meddle", [add, a_folder_in_it, a_file_in_its_place, a_link_in_its_place])
def test_what_appears_where_nothing_was_while_a_run_stood_still_is_kept(moment, meddle, checkpoint, tmp_path):
    folder = tmp_path / "out"
    run = Stopped(moment, "convert", "--checkpoint", checkpoint, "--output", folder, "--component", "text")
    folder.mkdir()
    meddle(folder)
    theirs = kept(tmp_path)
    code, said = run.go_on()
    assert code == 2 and said.count("error: ") == 1, said
    assert all_of(tmp_path) == theirs


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment[1])
def test_of_two_runs_the_one_that_stood_still_does_not_replace_the_others_folder(
    moment, checkpoint, converted, tmp_path
):
    folder = tmp_path / "out"
    shutil.copytree(converted, folder)
    run = Stopped(
        moment, "convert", "--checkpoint", checkpoint, "--output", folder, "--overwrite", "--component", "text"
    )
    assert sam3lite("convert", "--checkpoint", checkpoint, "--output", folder, "--overwrite").code == 0
    theirs = kept(tmp_path)
    code, said = run.go_on()
    assert code == 2 and said.count("error: ") == 1, said
    assert all_of(tmp_path) == theirs


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment[1])
def test_a_source_that_was_linked_while_a_run_stood_still_is_converted(moment, checkpoint, converted, tmp_path):
    folder, source = tmp_path / "out", tmp_path / checkpoint.name
    shutil.copytree(converted, folder)
    shutil.copyfile(checkpoint, source)
    run = Stopped(moment, "convert", "--checkpoint", source, "--output", folder, "--overwrite")
    os.link(source, tmp_path / "backup")
    code, said = run.go_on()
    assert code == 0, said
    assert sam3lite("verify", folder, "--checkpoint", source).code == 0
