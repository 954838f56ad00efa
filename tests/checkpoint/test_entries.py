"""Which dict of a file holds the weights: found at any depth, chosen, or refused with a list of several."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import assert_index_is, either_format, refused, saved, tensors
from support.folders import sam3lite

from sam3lite_convert.checkpoint.reader import read_checkpoint
from sam3lite_convert.checkpoint.selection import Selection, selection
from sam3lite_convert.errors import CannotRun, UnsoundPlan

OPTIMIZER = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}


@either_format
@pytest.mark.parametrize("path", ["net", "app.model", "0", "a.b.c.d", "model.state_dict"])
def test_the_only_one_is_found_at_any_depth_and_the_rest_is_counted(tmp_path: Path, path: str, legacy: bool) -> None:
    content: Any = tensors()
    for part in reversed(path.split(".")):
        content = [content, {"step": torch.ones(1)}] if part == "0" else {part: content, "optimizer": OPTIMIZER}
    file = saved(tmp_path, content, legacy)
    assert_index_is(file, tensors())
    found = read_checkpoint(file)
    assert found.wrapper == path
    parts = path.split(".")
    beside = {".".join([*parts[:n], "optimizer"]): 2 for n in range(len(parts))}
    assert found.left == ({"1": 1} if path == "0" else beside)
    assert found.taken is not None
    assert all(f"{name} ({n:,} tensors)" in found.taken for name, n in found.left.items())
    assert not any("optimizer" in note for note in found.notes)  # said once


@either_format
def test_several_are_listed_and_each_can_be_chosen(tmp_path: Path, legacy: bool) -> None:
    other = {key: value + 1 if value.is_floating_point() else value for key, value in tensors().items()}
    file = saved(tmp_path, {"model": tensors(), "ema": {"module": other}, "optimizer": OPTIMIZER}, legacy)
    fault = refused(file, UnsoundPlan)
    numel = sum(value.numel() for value in tensors().values())
    for name in ("model", "ema.module"):
        assert f"  {name}: {len(tensors())} tensors, {numel} parameters" in fault.message
    assert fault.message.endswith("Choose one: --state-dict-key model or --state-dict-key ema.module")
    assert set(fault.details["entries"]) == {"model", "ema.module"}
    chosen = read_checkpoint(file, selection=selection("ema.module"))
    assert (chosen.wrapper, chosen.left) == ("ema.module", {"model": len(tensors()), "optimizer": 2})
    first = next(iter(tensors()))
    assert read_checkpoint(file, selection=selection("model")).tensors[first] != chosen.tensors[first]


def test_the_file_itself_can_be_chosen(tmp_path: Path) -> None:
    file = saved(tmp_path, tensors() | {"teacher": tensors()})
    assert "  .: " in refused(file, UnsoundPlan).message
    found = read_checkpoint(file, selection=selection("."))
    assert (found.wrapper, found.left) == (None, {})
    assert set(found.tensors) == set(tensors())


def test_two_names_of_one_dict_are_one(tmp_path: Path) -> None:
    state = tensors()
    assert read_checkpoint(saved(tmp_path, {"model": state, "state_dict": state})).wrapper == "model"


def test_an_entry_that_is_not_there_cannot_run_and_a_receipt_s_is_passed_over(tmp_path: Path) -> None:
    file = saved(tmp_path, {"model": tensors()})
    with pytest.raises(CannotRun, match=r"'nothing' is no dict of tensors.*\n  model: ") as fault:
        read_checkpoint(file, selection=selection("nothing"))
    assert fault.value.exit_code == 2
    assert read_checkpoint(file, selection=Selection("nothing", passed_over=True)).wrapper == "model"


def test_a_misspelt_one_gets_the_command_that_was_meant(tmp_path: Path) -> None:
    file = saved(tmp_path, {"model": tensors(), "ema": {"module": tensors()}, "n": {"a.b": torch.ones(2)}})
    done = sam3lite("inspect", file, "--state-dict-key=ema.modul", "--json")
    error = done.json["error"]
    command = ["sam3lite", "inspect", str(file), "--state-dict-key", "ema.module"]
    assert "Did you mean --state-dict-key ema.module?\n" in error["message"] and "  n: 1 tensor, 2 " in error["message"]
    assert shlex.split(error["details"]["command"]) == command
    assert shlex.split(error["message"].splitlines()[-1]) == command
    assert "Did you mean" not in sam3lite("inspect", file, "--state-dict-key", "optimizer").err


def test_a_safetensors_file_has_no_entries(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a.b": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(CannotRun, match="no entries"):
        read_checkpoint(tmp_path / "a.safetensors", selection=selection("model"))


@pytest.mark.parametrize(
    "tree",
    [[torch.ones(2)] * 3, tuple(torch.ones(3)), {"decay": 0.9, "averages": [torch.ones(2)] * 3},
     {n: torch.ones(2) for n in range(3)}, [(n, torch.ones(2)) for n in range(3)]],
    ids=["list", "tuple", "shadow", "numbers", "numbered pairs"],
)  # fmt: skip
def test_tensors_without_names_are_said_to_be_that(tree, tmp_path):
    torch.save(tree, tmp_path / "file.pt")
    with pytest.raises(UnsoundPlan, match=r"3 tensors without names.*model\.state_dict\(\)"):
        read_checkpoint(tmp_path / "file.pt")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("path", [None, "model"])
@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_of_names_and_tensors_is_a_state_dict(kind, path, legacy, tmp_path):
    pairs = kind(tensors().items())
    torch.save({path: pairs} if path else pairs, tmp_path / "file.pt", _use_new_zipfile_serialization=not legacy)
    assert_index_is(tmp_path / "file.pt", tensors())
    found = read_checkpoint(tmp_path / "file.pt")
    assert found.wrapper == path and any("pairs of a name and a tensor" in note for note in found.notes)


def test_a_list_that_names_a_tensor_twice_is_not_trusted(tmp_path):
    pairs = [("a.w", torch.ones(2)), ("a.b", torch.ones(2)), ("a.w", torch.zeros(2))]
    torch.save(pairs, tmp_path / "file.pt")
    assert refused(tmp_path / "file.pt").code == "repeated_key"


def test_a_tensor_under_a_number_is_said_to_be_left_out(tmp_path):
    torch.save({"model": {**tensors(), 5: torch.ones(2)}}, tmp_path / "file.pt")
    assert_index_is(tmp_path / "file.pt", tensors())
    (note,) = read_checkpoint(tmp_path / "file.pt").notes
    assert note == "1 tensor of the state dict has a key that is not text, and is left out: 5"


def test_names_that_are_split_into_nested_dicts_are_told_as_that(tmp_path):
    tree: Any = {}
    for key in (f"a.layers.{n}.{name}" for n in range(4) for name in ("weight", "norm.bias")):
        *parts, last = key.split(".")
        inner = tree
        for part in parts:
            inner = inner.setdefault(part, {})
        inner[last] = torch.ones(2)
    with pytest.raises(UnsoundPlan, match=r"tree of dicts, 8 of them with tensors.*flat model\.state_dict"):
        read_checkpoint(saved(tmp_path, {"params": tree, "step": 3}))


def test_state_dicts_under_numbers_are_listed_and_chosen(tmp_path):
    torch.save({0: tensors(), 1: {k: t + 1 for k, t in tensors().items()}}, tmp_path / "file.pt")
    with pytest.raises(UnsoundPlan, match="--state-dict-key 0"):
        read_checkpoint(tmp_path / "file.pt")
    assert read_checkpoint(tmp_path / "file.pt", selection=selection("1")).wrapper == "1"


def test_an_object_beside_the_weights_in_a_tuple_is_passed_over(tmp_path):
    torch.save((tensors(), torch.optim.AdamW), tmp_path / "file.pt")
    assert_index_is(tmp_path / "file.pt", tensors())
