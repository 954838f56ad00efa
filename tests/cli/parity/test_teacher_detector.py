"""sam3lite parity --component detector of SAM3 itself: LiteText's detector with another text encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import state_dict, write
from support.folders import convert, edit, sam3lite, tensors
from support.rows import TEXT

from original_ref import ClipText, load_clip_text, load_detector

pytest.importorskip("transformers")

SMALL = ("--component", "detector", "--size", 56, "--json")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("teacher") / "teacher.pt", "teacher")


def compared(*arguments: object, code: int = 0) -> Any:
    done = sam3lite("parity", *arguments, *SMALL)
    assert done.code == code, done
    return done.json


@torch.inference_mode()
def test_the_reference_reads_the_text_encoder_that_its_keys_show() -> None:
    state = {k: t for k, t in state_dict("teacher").items() if k.startswith("detector.")}
    model = load_detector(state, {"geometry": 1, "encoder": 1, "mask": 1}, 20)
    text = model.backbone.language_backbone
    assert isinstance(text, ClipText) and text.context_length == 20
    cfg = {
        "width": 64, "heads": 1, "layers": 24, "context_length": 32, "vocab_size": 512, "d_model": 16, "ffn": 128,
        "projection_dim": 32,
    }  # fmt: skip
    alone = load_clip_text(cfg, {k.removeprefix(TEXT): t for k, t in state.items() if k.startswith(TEXT)})
    ids = torch.tensor([[510, 3, 4, 511, 0, 0]])
    features, mask = model.encode_text(ids)
    assert torch.equal(features, alone.features(ids)) and torch.equal(mask, ids == 0)
    with pytest.raises(RuntimeError, match="resizer"):
        load_detector({k: t for k, t in state.items() if "resizer" not in k}, {"geometry": 1, "encoder": 1, "mask": 1})


def test_the_converted_detector_is_the_originals_and_a_page_shows_it(teacher: Path, tmp_path: Path) -> None:
    record = compared(teacher, "--report", tmp_path / "page.html")
    assert record["verdict"] == "within_tolerance" and record["first_divergence"] is None
    assert record["candidate_encoder"].startswith("Sam3Model (transformers ")
    names = [tap["name"] for tap in record["layers"]]
    assert [n for n in names if n.startswith("text.")] == [
        "text.embeddings", *(f"text.layers.{i}" for i in range(24)), "text.final_layer_norm", "text.projected",
    ]  # fmt: skip
    assert "vision trunk" in (tmp_path / "page.html").read_text()


@pytest.mark.stress
def test_a_fault_in_its_text_is_found_and_named(teacher: Path, tmp_path: Path) -> None:
    folder = convert(teacher, tmp_path / "out", "--layout", "transformers")
    key = "text_encoder.text_model.encoder.layers.7.mlp.fc1.bias"
    edit(folder, {key: torch.zeros_like(tensors(folder)[key])})
    record = compared(teacher, "--converted", folder, code=1)
    assert record["first_divergence"] == "text.layers.7"
    assert record["diagnosis"]["fits"][0]["cause"] == "mlp.c_fc.bias is missing (zero)"


def test_packed_is_refused(teacher: Path) -> None:
    done = sam3lite("parity", teacher, "--candidate", "packed", *SMALL)
    assert (done.code, done.json["error"]["code"]) == (2, "usage")
    assert "of which there is no layout packed" in done.json["error"]["message"]
