"""sam3lite parity of a folder of the video model: its detector beside the original, or its text encoder alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.families import write
from support.folders import convert, edit, edit_config, sam3lite, tensors
from support.parity_runs import parity

pytest.importorskip("transformers")

LAYERS = {"s0": "text_encoder.layers.", "teacher": "text_encoder.text_model.encoder.layers."}
TARGETS = {"s0": 1533, "teacher": 1797}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("files")
    return {kind: write(place / f"{kind}.pt", kind) for kind in LAYERS}


@pytest.fixture(scope="module")
def folders(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """kind -> the folder of the video model; read only."""
    place = tmp_path_factory.mktemp("folders")
    return {kind: convert(file, place / kind, "--component", "video") for kind, file in files.items()}


@pytest.fixture
def spoilt(files: dict[str, Path], tmp_path: Path) -> Path:
    return convert(files["teacher"], tmp_path / "out", "--component", "video")


@pytest.mark.parametrize("kind", LAYERS)
def test_the_text_encoder_of_its_detector_is_exact(
    kind: str, files: dict[str, Path], folders: dict[str, Path], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    done = sam3lite("parity", files[kind], "--converted", folders[kind], "--report", page, "--json")
    assert done.code == 0, done
    record = done.json
    assert record["verdict"] in ("exact", "within_tolerance") and record["first_divergence"] is None
    own = ("detector_model.text_encoder.", "detector_model.text_projection.")
    text = sum(key.startswith(own) for key in tensors(folders[kind]))
    assert record["not_compared"] == TARGETS[kind] - text
    assert f"{TARGETS[kind]:,}" in page.read_text()  # the accounting is that of the whole folder


def test_a_fault_in_it_is_found_and_named_by_the_key_of_the_folder(files: dict[str, Path], spoilt: Path) -> None:
    key = f"detector_model.{LAYERS['teacher']}3.mlp.fc2.bias"
    edit(spoilt, {key: torch.zeros_like(tensors(spoilt)[key])})
    record = parity(files["teacher"], "--converted", spoilt, code=1)
    assert record["first_divergence"] == "layers.3"
    assert record["diagnosis"]["cause"] == "mlp.c_proj.bias is missing (zero)"
    wrong = [t["source"] for t in record["diagnosis"]["tensors"] if t["fault"]]
    assert wrong == ["detector.backbone.language_backbone.encoder.transformer.resblocks.3.mlp.c_proj.bias"]


def test_its_config_is_read_where_the_video_model_has_it(files: dict[str, Path], spoilt: Path) -> None:
    edit_config(spoilt, "detector_config", "text_config", "layer_norm_eps", value=1e-3)
    record = parity(files["teacher"], "--converted", spoilt, code=1)
    assert record["first_divergence"] == "layers.0"
    assert record["diagnosis"]["fits"][0]["key"] == "layernorm_eps_0.001"
    assert any("layer_norm_eps" in note for note in record["notes"])
    config = json.loads((spoilt / "config.json").read_text())
    edit_config(spoilt, "detector_config", value=config["detector_config"] | {"model_type": "sam3_lite_text"})
    done = sam3lite("parity", "--checkpoint", files["teacher"], "--converted", spoilt, "--json")
    assert (done.code, done.json["error"]["code"]) == (3, "bad_config")


@pytest.mark.stress
@pytest.mark.parametrize("kind", LAYERS)
def test_its_detector_is_the_originals(
    kind: str, files: dict[str, Path], folders: dict[str, Path], tmp_path: Path
) -> None:
    options = ("--component", "detector", "--size", 56, "--converted", folders[kind], "--report", tmp_path / "p.html")
    done = sam3lite("parity", files[kind], *options, "--json")
    assert done.code == 0, done
    assert done.json["verdict"] == "within_tolerance"
    assert f"{TARGETS[kind]:,}" in (tmp_path / "p.html").read_text()
