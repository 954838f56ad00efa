"""sam3lite parity called wrongly, and its help."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.folders import (
    LAYOUTS,
    python,
    sam3lite,
)
from support.parity_runs import errors, strict

from sam3lite_convert.cli import parity as cli
from sam3lite_convert.errors import CannotRun

USAGE = {
    "tolerance below 0": ["--tolerance", "-1e-9"],
    "tolerance not a number": ["--tolerance", "nan"],
    "tolerance infinite": ["--tolerance", "inf"],
    "tolerance a word": ["--tolerance", "small"],
    "batch 0": ["--batch", "0"],
    "batch below 0": ["--batch", "-1"],
    "length 0": ["--length", "0"],
    "unknown candidate": ["--candidate", "original"],
    "unknown attention": ["--attention", "flash"],
    "unknown dtype": ["--dtype", "float8"],
    "no such folder": ["--converted", "nowhere"],
    "prompt with seed": ["--prompt", "a dog", "--seed", "1"],
    "prompt with batch": ["--prompt", "a dog", "--batch", "2"],
    "self-test with activations": ["--self-test", "--save-activations", "x.st"],
    "judge with checkpoint": ["--judge", "x.st"],
    "no such option": ["--layer", "3"],
    "seed a word": ["--seed", "x"],
    "seed below 0": ["--seed", "-1"],
    "seed of more than 63 bits": ["--seed", str(1 << 63)],
    "seed of many digits": ["--seed", "9" * 30],
    "batch out of all measure": ["--batch", "10000000"],
    "length out of all measure": ["--length", "10000000"],
}


@pytest.mark.parametrize("case", USAGE)
def test_wrong_usage_exits_with_2_and_is_one_json_document(case, s0, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    errors(sam3lite("parity", "--checkpoint", s0, *USAGE[case]), 2)
    done = sam3lite("parity", "--checkpoint", s0, *USAGE[case], "--json")
    assert done.code == 2
    assert set(strict(done.out)["error"]) == {"code", "message", "details"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("layout", "other"), [LAYOUTS, LAYOUTS[::-1]])
def test_a_candidate_of_another_layout_than_the_folder_is_wrong_usage(layout, other, s0, good):
    message = errors(sam3lite("parity", "--checkpoint", s0, "--converted", good[layout], "--candidate", other), 2)
    assert f"layout {layout}" in message


@pytest.mark.parametrize(
    "more",
    [
        ["--converted", "x"], ["--self-test"], ["--save-activations", "y.st"], ["--seed", "1"],
        ["--candidate", "packed"], ["--dtype", "float16"], ["--batch", "2"], ["--length", "3"], ["--prompt", "a dog"],
        ["--causal"], ["--ids", "ids.npy"], ["--checkpoint", "s0.pt", "--seed", "1"],
    ],
)  # fmt: skip
def test_judge_takes_nothing_but_a_tolerance(more, saved):
    assert "--judge" in errors(sam3lite("parity", "--judge", saved[0], *more), 2)


def test_without_a_checkpoint_it_is_s0_from_the_hub(good):
    for options in ([], ["--converted", good["packed"]]):
        assert "s0" in errors(sam3lite("parity", *options), 2)
    assert "nowhere.pt" in errors(sam3lite("parity", "--checkpoint", "nowhere.pt"), 2)


@pytest.mark.parametrize("there", ["my own.pt", None])
def test_without_a_checkpoint_and_without_a_network_a_local_way_is_named(there, tmp_path, monkeypatch):
    def unplugged(name, *rest):
        raise CannotRun(f"{name}: the Hub cannot be reached.", "no_network")

    monkeypatch.setattr(cli, "locate", unplugged)
    monkeypatch.chdir(tmp_path)
    if there:
        Path(there).touch()
    command = "sam3lite parity 'my own.pt'" if there else "sam3lite parity FILE.pt"
    message = errors(sam3lite("parity", "--debug-intermediates"), 2)
    assert "no checkpoint was given" in message and message.strip().endswith(command)
    assert "sam3lite parity" not in errors(sam3lite("parity", "s0"), 2)  # which was asked for


def test_help_does_not_import_torch():
    code = (
        "import sys\nfrom sam3lite_convert.cli.app import run\ncode = run(['parity', '--help'])\n"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    for option in ("--converted", "--debug-intermediates", "--self-test", "--save-activations", "--judge"):
        assert option in done.stdout
