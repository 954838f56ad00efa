"""Activations that sam3lite parity saves, and its judgement of such a file later."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.folders import (
    rounding,
    sam3lite,
    snapshot,
    tiny_architecture,
    write,
)
from support.goldens import activations
from support.parity_runs import FIELDS, TAP_FIELDS, TEXT, column, errors, parity, rewrite, state_of, strict, taps

from original_ref import load_reference
from sam3lite_convert import swap
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.parity.original import reference_cfg


def judged(file: Path, *options: object, code: int = 0) -> Any:
    done = sam3lite("parity", "--judge", file, "--json", *options)
    assert done.code == code, done
    return strict(done.out)


def test_the_judge_says_what_the_run_said(saved):
    file, ran = saved
    record = judged(file, code=1)
    for field in FIELDS | {"smallest_passing_tolerance", "tolerance_is", "inputs", "values", "checkpoint", "converted"}:
        assert record[field] == ran[field], field


@pytest.mark.parametrize(
    "options", [[], ["--attention", "sdpa"], ["--candidate", "transformers"], ["--dtype", "bfloat16"]]
)
def test_the_judge_says_what_the_run_said_where_it_passed(options, s0, tmp_path):
    ran = parity(s0, *options, "--seed", 1, "--save-activations", tmp_path / "a.st")
    record = judged(tmp_path / "a.st")
    for field in ("verdict", "first_divergence", "max_abs_diff", "smallest_passing_tolerance", "values"):
        assert record[field] == ran[field], field
    for ours, theirs in zip(record["layers"], ran["layers"], strict=True):
        assert {k: ours[k] for k in TAP_FIELDS} == {k: theirs[k] for k in TAP_FIELDS}


def test_the_judge_needs_neither_checkpoint_nor_folder_nor_transformers(saved, tmp_path, monkeypatch):
    shutil.copy(saved[0], tmp_path / "far away.st")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    done = sam3lite("parity", "--judge", "far away.st", "--debug-intermediates")
    assert done.code == 1
    assert "first divergence: layers.3" in done.out
    assert "DIVERGES" in done.out


def test_another_tolerance_gives_another_verdict(saved):
    file, ran = saved
    smallest = ran["smallest_passing_tolerance"]
    record = judged(file, "--tolerance", smallest)
    assert (record["verdict"], record["tolerance"], record["first_divergence"]) == ("within_tolerance", smallest, None)
    judged(file, "--tolerance", float(np.nextafter(smallest, 0)), code=1)
    # A tolerance between the floor of an eager run and its pooled error: what is isolated decides.
    assert judged(file, "--tolerance", rounding(ran), code=1)["first_divergence"] == "layers.3"


def test_a_right_port_from_elsewhere_is_within_the_floors_that_were_saved(s0, tmp_path):
    # An exact run measures no floors for itself; the file has them all the same.
    parity(s0, "--seed", 1, "--batch", 3, "--save-activations", tmp_path / "a.st")
    # One that rounds once at every tap; sdpa may have the very bits of eager attention.
    wide = {k.removeprefix(TEXT): t.double() if t.is_floating_point() else t for k, t in state_of().items()}
    ids = load_file(tmp_path / "a.st")["input_ids"]
    theirs = activations(load_reference(reference_cfg(tiny_architecture(), 16), wide), ids)
    changes = {f"candidate.{tap}": tensor.float() for tap, tensor in theirs.items()}
    changes |= {f"isolated.{tap}": None for tap in taps(6)}
    file = rewrite(tmp_path / "a.st", tmp_path / "b.st", **{k.replace(".", "__"): t for k, t in changes.items()})
    record = judged(file)
    assert (record["verdict"], record["first_divergence"]) == ("within_tolerance", None)
    assert 0 < record["max_abs_diff"] < 1e-5


@pytest.mark.parametrize("tolerance", ["-1", "nan", "inf"])
def test_the_judge_refuses_a_tolerance_as_the_run_does(tolerance, saved):
    errors(sam3lite("parity", "--judge", saved[0], "--tolerance", tolerance), 2)


def test_a_candidate_from_another_machine_is_judged(s0, tmp_path):
    parity(s0, "--seed", 1, "--save-activations", tmp_path / "a.st")
    held = load_file(tmp_path / "a.st")
    theirs = {tap: held[f"candidate.{tap}"] + 0.25 for tap in taps(6)[5:]}
    changes = {f"candidate.{tap}".replace(".", "__"): t for tap, t in theirs.items()}
    both = changes | {"isolated__layers__4": held["isolated.layers.4"] + 0.25}
    record = judged(rewrite(tmp_path / "a.st", tmp_path / "b.st", **both), code=1)
    assert (record["verdict"], record["first_divergence"], record["also_diverging"]) == ("differs", "layers.4", [])
    assert record["notes"] == []
    found = column(record, "max_abs_diff")
    assert [found[tap] for tap in taps(6)[:5]] == [0.0] * 5
    assert all(found[tap] == pytest.approx(0.25, abs=1e-6) for tap in taps(6)[5:])
    # Whoever replaces the candidate alone leaves another candidate's isolated activations in the file.
    record = judged(rewrite(tmp_path / "a.st", tmp_path / "b.st", **changes), code=1)
    assert (record["verdict"], record["first_divergence"]) == ("differs", "layers.4")
    assert "isolated" in record["notes"][0]


def test_a_candidate_that_rounds_otherwise_is_judged_by_the_floors_of_the_file(s0, tmp_path):
    """They are in it, although nothing differed when it was written."""
    assert parity(s0, "--seed", 1, "--save-activations", tmp_path / "a.st")["verdict"] == "exact"
    held = load_file(tmp_path / "a.st")["candidate.projected"]
    rounded = torch.nextafter(held, torch.full_like(held, torch.inf))
    both = {"candidate__projected": rounded, "isolated__projected": rounded}
    record = judged(rewrite(tmp_path / "a.st", tmp_path / "b.st", **both))
    assert (record["verdict"], record["first_divergence"]) == ("within_tolerance", None)


def test_without_isolated_activations_the_propagated_ones_are_judged(saved, tmp_path):
    file, ran = saved
    none = {f"isolated.{tap}".replace(".", "__"): None for tap in taps(6)}
    record = judged(rewrite(file, tmp_path / "b.st", **none), code=1)
    assert (record["verdict"], record["first_divergence"]) == ("differs", "layers.3")
    assert column(record, "max_abs_diff") == column(ran, "max_abs_diff")
    assert "isolated" in record["notes"][0]


def test_activations_hold_both_sides_the_ids_and_how_to_read_them(saved):
    file, ran = saved
    held = load_file(file)
    sides = ("reference", "candidate", "isolated")
    assert sorted(held) == sorted(["input_ids", *(f"{side}.{tap}" for side in sides for tap in taps(6))])
    assert held["input_ids"].tolist() == ran["inputs"]["ids"]
    with safe_open(file, "pt") as opened:
        about = json.dumps(opened.metadata())
    for word in ("original TextStudentEncoder", "eager", "float32", "random ids, seed 1", "sam3lite-convert"):
        assert word in about


# What a file from elsewhere has to say of the run at least.
ABOUT = {
    "checkpoint": "s0.pt", "reference": "original", "candidate": "mine", "candidate_encoder": "my port",
    "attention": "eager", "dtype": "float32", "inputs": {"what": "my ids", "prompts": []},
}  # fmt: skip


def test_a_file_from_elsewhere_need_not_name_a_folder_or_count_prompts(saved, tmp_path):
    file, ran = saved
    record = judged(rewrite(file, tmp_path / "b.st", metadata={"about": ABOUT}), code=1)
    assert (record["converted"], record["candidate_encoder"]) == (None, "my port")
    assert record["inputs"] == ran["inputs"] | {"what": "my ids", "prompts": [], "prompts_total": 0}
    assert record["first_divergence"] == ran["first_divergence"]


INCOMPLETE = {
    "a tap of the reference": {"reference__layers__2": None},
    "a tap of the candidate": {"candidate__pooled": None},
    "a tap of the isolated column": {"isolated__layers__3": None},
    "the ids": {"input_ids": None},
    "another shape": {"candidate__layers__2": torch.zeros(2, 16, 64)},
    "another shape of the isolated column": {"isolated__pooled": torch.zeros(2, 64)},
    "no taps": {"metadata": {"taps": []}},
    "taps that are not there": {"metadata": {"taps": ["embeddings", "layers.99"]}},
    "floors that are no numbers": {"metadata": {"floors": {tap: ["x", "y"] for tap in taps(6)}}},
    "a floor that is not there": {"metadata": {"floors": {"embeddings": [1, 1]}}},
    "the first tap of the isolated column": {"isolated__embeddings": None},
    "ids of one axis": {"input_ids": torch.zeros(16, dtype=torch.int64)},
    "no pooled tap": {"metadata": {"taps": taps(6)[:-1]}},
    "no outputs": {"metadata": {"taps": taps(6)[:3]}},
    "nothing about the run": {"metadata": {"about": {}}},
    "ids that are a number": {"metadata": {"about": {"inputs": 5}}},
    "a floor that is no number": {"metadata": {"floors": {tap: [float("nan")] * 2 for tap in taps(6)}}},
    "prompts that are no text": {"metadata": {"about": ABOUT | {"inputs": {"what": "ids", "prompts": [1]}}}},
    "inputs without words": {"metadata": {"about": ABOUT | {"inputs": {"prompts": []}}}},
    "a number of prompts that is a word": {
        "metadata": {"about": ABOUT | {"inputs": {"what": "ids", "prompts": [], "prompts_total": "many"}}}
    },
    "a side that is no name": {"metadata": {"about": ABOUT | {"reference": 5}}},
}


@pytest.mark.parametrize("case", INCOMPLETE)
def test_activations_that_are_not_complete_are_not_trusted(case, saved, tmp_path):
    file = rewrite(saved[0], tmp_path / "b.st", **INCOMPLETE[case])
    assert "b.st" in errors(sam3lite("parity", "--judge", file), 4)
    done = sam3lite("parity", "--judge", file, "--json")
    assert done.code == 4
    assert strict(done.out)["error"]["code"] == "corrupt_file"


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_truncated_activations_are_not_trusted(cut, saved, tmp_path):
    file = tmp_path / "cut.st"
    file.write_bytes(saved[0].read_bytes()[:cut])
    assert "cut.st" in errors(sam3lite("parity", "--judge", file), 4)


def test_a_file_without_activations_cannot_be_judged(good, tmp_path):
    for file in (good["packed"] / "model.safetensors", tmp_path / "nowhere.st", tmp_path):
        assert file.name in errors(sam3lite("parity", "--judge", file), 2)


def test_saving_makes_folders_and_a_file_that_others_can_read(s0, tmp_path):
    file = tmp_path / "a" / "b" / "acts.st"
    before = os.umask(0o022)
    try:
        parity(s0, "--save-activations", file)
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert [p.name for p in file.parent.iterdir()] == ["acts.st"]
    out = sam3lite("parity", "--checkpoint", s0, "--save-activations", file).out
    assert f"sam3lite parity --judge {file}" in out


def test_saving_replaces_an_earlier_file_whole_or_not_at_all(s0, tmp_path, monkeypatch):
    file = tmp_path / "acts.st"
    parity(s0, "--seed", 5, "--save-activations", file)
    before, number, real = file.read_bytes(), file.stat().st_ino, swap.exchange

    def full(*arguments):
        raise OSError(28, "No space left on device")

    for module, name in ((os, "fsync"), (swap, "exchange")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, full)
            message = errors(sam3lite("parity", "--checkpoint", s0, "--save-activations", file), 2)
        assert "No space left" in message
        assert file.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["acts.st"]

    def replace(source, target):
        # Whole before it takes the name: the old file is there until then.
        assert Path(target).read_bytes() == before
        assert len(load_file(source)) == 31
        return real(source, target)

    monkeypatch.setattr(swap, "exchange", replace)
    parity(s0, "--save-activations", file)
    assert file.stat().st_ino != number
    assert [p.name for p in tmp_path.iterdir()] == ["acts.st"]
    assert judged(file)["inputs"]["ids"] == [[510, 320, 511, *[0] * 13]]


@pytest.mark.parametrize("what", ["text", "a model", "a checkpoint", "nothing"])
def test_saving_keeps_what_is_no_file_of_activations(what, s0, good, tmp_path):
    file = tmp_path / "mine.st"
    if what == "a model":
        shutil.copy(good["packed"] / "model.safetensors", file)
    elif what == "a checkpoint":
        shutil.copy(write(tmp_path, {"a": torch.ones(2)}), file)
    else:
        file.write_text("precious" if what == "text" else "")
    before = file.read_bytes()
    assert "mine.st" in errors(sam3lite("parity", "--checkpoint", s0, "--save-activations", file), 2)
    assert file.read_bytes() == before


def test_saving_into_a_folder_or_below_a_file_fails_cleanly(s0, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "file").write_text("precious")
    before = snapshot(tmp_path)
    for place in (tmp_path / "here", tmp_path / "file" / "acts.st"):
        message = errors(sam3lite("parity", "--checkpoint", s0, "--save-activations", place), 2)
        assert re.search("here|file", message)
    assert snapshot(tmp_path) == before


def test_nothing_is_written_unless_asked_for(s0, good, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = snapshot(good["packed"])
    parity(s0, "--converted", good["packed"])
    assert snapshot(good["packed"]) == before
    assert list(tmp_path.iterdir()) == []


def test_options_of_a_library_user_are_checked_too(s0):
    from support.rows import shipped_tables

    from sam3lite_convert.checkpoint.reader import read_checkpoint
    from sam3lite_convert.parity.setup import ParityOptions, set_up

    for options in (ParityOptions(attention="flash"), ParityOptions(tolerance=-1.0), ParityOptions(batch=0)):
        with pytest.raises(CannotRun) as caught:
            set_up(read_checkpoint(s0), shipped_tables(), options)
        assert caught.value.code == "usage"
