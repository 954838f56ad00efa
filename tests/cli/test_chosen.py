"""What the user states about a file: kept in the receipt and the card, read from there by verify and parity."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from support.folders import sam3lite, tiny_state

import sam3lite_convert as s3


@pytest.fixture(scope="module")
def both(tmp_path_factory: Any) -> Path:
    """A trainer's file: the weights under an unknown prefix with a counter beside them, and their average."""
    state = tiny_state()
    average = {k: v * 1.01 if v.is_floating_point() else v for k, v in state.items()}
    path: Path = tmp_path_factory.mktemp("chosen") / "both.pt"
    counted = {"net_g." + k: v for k, v in average.items()} | {"my.counter": torch.tensor(3)}
    torch.save({"model": state, "model_ema": counted, "epoch": 1}, path)
    return path


OPTIONS = [
    "--state-dict-key",
    "model_ema",
    "--strip-prefix",
    "net_g.",
    "--drop",
    r"my\.counter",
    "--reason",
    "a counter",
]


def test_what_was_chosen_is_kept_and_verified(both: Path, tmp_path: Path) -> None:
    assert sam3lite("convert", both, "--dry-run").code == 3
    folder = tmp_path / "out"
    done = sam3lite("convert", both, "--output", folder, "--json", *OPTIONS)
    assert done.code == 0 and done.json["wrapper"] == "model_ema"
    kept = len(tiny_state())
    assert (done.json["left"], done.json["taken_off"]) == ({"model": kept}, {"net_g": kept})
    receipt = json.loads((folder / "conversion.json").read_text())
    assert receipt["options"]["state_dict_key"] == "model_ema"
    assert receipt["options"]["strip_prefix"] == ["net_g."]
    assert receipt["options"]["drop"] == {r"my\.counter": "a counter"}
    assert receipt["dropped"]["my.counter"] == "a counter"
    assert (receipt["source"]["wrapper"], receipt["source"]["left"]) == ("model_ema", {"model": kept})
    card = (folder / "README.md").read_text()
    assert f"PATH/TO/both.pt {shlex.join(OPTIONS)}" in card
    assert f"the weights are those of the entry model_ema; not read: model ({kept:,} tensors)" in card
    # verify and parity need no option: the receipt has them.
    proof = sam3lite("verify", folder, both, "--json")
    assert proof.code == 0 and proof.json["verdict"] == "proven"
    assert any("those of the entry model_ema; not read: model" in note for note in proof.json["notes"])
    assert sam3lite("parity", both, "--converted", folder).code == 0
    # The option of the command counts for more than the receipt; those are other weights.
    assert sam3lite("verify", folder, both, "--state-dict-key", "model").code == 1
    # A second run finds the folder as it is only with the same options.
    assert sam3lite("convert", both, "--output", folder, *OPTIONS).code == 0
    other = sam3lite("convert", both, "--output", folder, "--state-dict-key", "model")
    assert other.code == 2 and "state dict key: model_ema there, model now" in other.err


def test_a_folder_without_a_receipt_is_verified_against_what_is_chosen(both: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert sam3lite("convert", both, "--output", folder, *OPTIONS).code == 0
    (folder / "conversion.json").unlink()
    refused = sam3lite("verify", folder, both)
    assert refused.code == 3 and "--state-dict-key model" in refused.err
    assert sam3lite("verify", folder, both, *OPTIONS).code == 0


@pytest.mark.parametrize("command", ["inspect", "explain", "convert"])
def test_every_command_lists_the_same_entries(command: str, both: Path) -> None:
    more = {"explain": ["no_such_key"], "convert": ["--dry-run"], "inspect": []}[command]
    refused = sam3lite(command, both, *more)
    assert refused.code == 3
    assert all(f"  {entry}: " in refused.err for entry in ("model", "model_ema"))


def test_the_library_takes_the_same(both: Path) -> None:
    opened = s3.open_checkpoint(
        both, state_dict_key="model_ema", strip_prefix=["net_g."], drop={r"my\.counter": "a counter"}
    )
    plan = s3.make_plan(opened, component="text")
    key = next(k for k, m in plan.mapped.items() if m.operation.name == "keep" and m.source.dtype == "float32")
    source = plan.mapped[key].source.key
    assert torch.equal(plan.state_dict()[key], tiny_state()[source.removeprefix("net_g.")] * 1.01)


def test_it_is_of_one_file(tmp_path: Path) -> None:
    refused = sam3lite("convert", "--all", "--state-dict-key", "model")
    assert refused.code == 2 and "--all cannot be combined with --state-dict-key" in refused.err
