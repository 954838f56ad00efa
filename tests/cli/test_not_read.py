"""Text tensors that no module of the reference reads: both sides ignore them, so no verdict may call them equal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.folders import ENCODER, ROOT, sam3lite, tiny_state, write

ADAPTERS = [f"{ENCODER}transformer.{layer}.adapter.{leaf}" for layer in range(1, 5) for leaf in ("down", "up")]
RULE = r"""
[adapters]
op      = drop
source  = backbone\.language_backbone\.encoder\.transformer\.\d+\.adapter\..+
reason  = adapters of a fine-tune
example = backbone.language_backbone.encoder.transformer.1.adapter.down
"""


@pytest.fixture(scope="module")
def case(tmp_path_factory: Any) -> tuple[Path, Path]:
    """A checkpoint with adapters in four text layers, and tables that drop them."""
    folder = tmp_path_factory.mktemp("not_read")
    torch.manual_seed(1)
    checkpoint = write(folder, tiny_state() | {key: torch.randn(128, 16) for key in ADAPTERS})
    tables = shutil.copytree(ROOT / "mappings", folder / "tables")
    dropped = tables / "dropped.ini"
    dropped.write_text(dropped.read_text() + RULE)
    return checkpoint, tables


def test_parity_does_not_call_it_exact(case: tuple[Path, Path]) -> None:
    checkpoint, tables = case
    done = sam3lite("parity", checkpoint, "--mapping", tables, "--json")
    assert done.code == 1
    found = done.json
    assert found["verdict"] == found["verdicts"]["weights"] == "incomplete"
    assert sorted(found["not_read"]) == sorted(ADAPTERS)
    assert found["max_abs_diff"] is not None and "known here" in found["reference"]
    assert "8 tensors of the text encoder" in found["summary"]

    shown = sam3lite("parity", checkpoint, "--mapping", tables)
    assert shown.code == 1
    assert all(key in shown.out for key in ADAPTERS)
    assert "verdict 1, weights: incomplete" in shown.out.replace("\n", " ")


def test_a_saved_run_that_is_judged_again_says_no_more(case: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, tables = case
    saved = tmp_path / "run.safetensors"
    sam3lite("parity", checkpoint, "--mapping", tables, "--save-activations", saved)
    for command in (["judge", saved], ["parity", "--judge", saved]):
        again = sam3lite(*command, "--json")
        assert (again.code, again.json["verdict"]) == (1, "incomplete")
        assert sorted(again.json["not_read"]) == sorted(ADAPTERS)


def test_an_option_accepts_it_and_the_verdict_stays(case: tuple[Path, Path]) -> None:
    checkpoint, tables = case
    done = sam3lite("parity", checkpoint, "--mapping", tables, "--allow-not-read", "--json")
    assert (done.code, done.json["verdict"], done.json["not_read_allowed"]) == (0, "incomplete", True)


def test_what_differs_is_said_to_differ(case: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, tables = case
    folder = tmp_path / "out"
    assert sam3lite("convert", checkpoint, "--mapping", tables, "--output", folder).code == 0
    other = write(tmp_path, tiny_state() | {key: torch.ones(128, 16) for key in ADAPTERS} | _another_bias())
    done = sam3lite("parity", other, "--mapping", tables, "--converted", folder, "--allow-not-read", "--json")
    assert (done.code, done.json["verdict"]) == (1, "differs")
    assert sorted(done.json["not_read"]) == sorted(ADAPTERS)


def _another_bias() -> dict[str, torch.Tensor]:
    key = f"{ENCODER}final_layer_norm.bias"
    return {key: tiny_state()[key] + 1}


@pytest.mark.parametrize("allowed", [False, True], ids=["refused", "allowed"])
def test_a_conversion_says_it_in_receipt_and_card(case: tuple[Path, Path], tmp_path: Path, allowed: bool) -> None:
    checkpoint, tables = case
    folder = tmp_path / "out"
    done = sam3lite(
        "convert", checkpoint, "--mapping", tables, "--output", folder, "--parity", "--json",
        "--layout", "transformers", *(["--allow-not-read"] if allowed else []),
    )  # fmt: skip
    assert done.code == (0 if allowed else 1)
    receipt = json.loads((folder / "conversion.json").read_text())
    assert receipt["parity"]["verdict"] == "incomplete"
    assert receipt["parity"]["not_read_allowed"] is allowed
    assert sorted(receipt["not_read"]) == sorted(ADAPTERS)
    card = (folder / "README.md").read_text()
    assert ADAPTERS[0] in card and "Not `exact`" in card
    assert "bit for bit" not in card


def test_the_proof_says_what_it_leaves_out(case: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, tables = case
    folder = tmp_path / "out"
    assert sam3lite("convert", checkpoint, "--mapping", tables, "--output", folder).code == 0
    done = sam3lite("verify", folder, checkpoint, "--mapping", tables, "--json")
    assert done.code == 0
    assert "8 more tensors of the source were dropped that the original's text encoder may read" in done.json["summary"]


def test_the_page_names_them(case: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    checkpoint, tables = case
    page = tmp_path / "page.html"
    assert sam3lite("parity", checkpoint, "--mapping", tables, "--report", page).code == 1
    text = page.read_text().replace("<wbr>", "")
    assert "Incomplete" in text and all(key in text for key in ADAPTERS)


def test_the_behaviour_says_no_more_than_the_weights(case: tuple[Path, Path]) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("instant_clip_tokenizer")
    from sam3lite_convert.parity.as_used.behaviour import _capped

    # Whole runs need CLIP's vocabulary, which the small checkpoint does not have.
    assert _capped("exact", "incomplete") == _capped("within_tolerance", "incomplete") == "incomplete"
    assert _capped("differs", "incomplete") == "differs"
    assert _capped("exact", "exact") == "exact"


def test_a_file_that_holds_nothing_more_is_exact_as_before(tmp_path: Path) -> None:
    done = sam3lite("parity", write(tmp_path, tiny_state()), "--json")
    assert done.code == 0
    assert done.json["not_read"] == [] and done.json["verdict"] != "incomplete"


def test_an_adapter_that_the_user_drops_is_not_refused_for_its_name(tmp_path: Path) -> None:
    key = f"{ENCODER}transformer.1.pre_norm_mha.1.qkv_proj.lora_A.default.weight"
    checkpoint = write(tmp_path, tiny_state() | {key: torch.randn(4, 128)})
    refused = sam3lite("parity", checkpoint, "--json")
    assert refused.code == 3 and "that is not merged" in refused.json["error"]["message"]
    done = sam3lite("parity", checkpoint, "--drop", r".*\.lora_A\..*", "--reason", "an adapter", "--json")
    assert (done.code, done.json["verdict"], done.json["not_read"]) == (1, "incomplete", [key])


def test_a_tensor_beside_the_encoder_counts_if_its_name_says_text(tmp_path: Path) -> None:
    beside = {"detector.text_adapter.weight": torch.randn(4, 4), "detector.step": torch.tensor(3)}
    done = sam3lite("parity", write(tmp_path, tiny_state() | beside), "--json")
    assert (done.code, done.json["verdict"]) == (1, "incomplete")
    assert done.json["not_read"] == ["detector.text_adapter.weight"]
