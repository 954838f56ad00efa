"""``export onnx`` of the other kinds of folders: SAM3's own text encoder, video models, SAM3.1, image students."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from support.families import write
from support.folders import convert, edit_config, receipt, sam3lite, verify
from support.graph_faults import bypass

from sam3lite_convert.graph.folder_graphs import DETECTOR_MODELS, serialized

VIDEO, ORIGINAL, STOCK = ("--component", "video"), ("--layout", "original"), ("--layout", "transformers")
# Kind of checkpoint, how it is converted, taps of its text encoder.
KINDS = [
    ("teacher", (*STOCK, *VIDEO), 28), ("teacher", STOCK, 28), ("teacher", ORIGINAL, 28), ("teacher-3.1", STOCK, 28),
    ("teacher-3.1", ORIGINAL, 28), ("s0", (*STOCK, *VIDEO), 10), ("s0", ORIGINAL, 10), ("s0-3.1", STOCK, 10),
]  # fmt: skip
RIGHT = "its weights are the folder's own tensors, and it is the graph that this version writes for them"


def model_of(folder: Path, name: str) -> onnx.ModelProto:
    return onnx.load(folder / name, load_external_data=False)


def entries(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


@pytest.mark.stress
@pytest.mark.parametrize(("kind", "how", "taps"), KINDS)
def test_the_detectors_graphs_are_proven_and_compute_what_the_original_does(
    kind: str, how: tuple[str, ...], taps: int, tmp_path: Path
) -> None:
    checkpoint = write(tmp_path / f"{kind}.pt", kind)
    folder = convert(checkpoint, tmp_path / "out", *how, "--verify")
    done = sam3lite("export", "onnx", folder, "--component", "detector", "--size", 56, "--json")
    assert done.code == 0 and [graph["name"] for graph in done.json["graphs"]] == list(DETECTOR_MODELS), done
    assert sam3lite("export", "onnx", folder).code == 0
    notes = verify(folder, checkpoint).json["notes"]
    assert {f"{name}: {RIGHT}" for name in (*DETECTOR_MODELS, "model.onnx")} <= set(notes)
    text = model_of(folder, "text.onnx")
    assert len(json.loads(entries(text)["taps"])) == taps
    family = receipt(folder)["family"]
    assert text.doc_string.startswith(f"The text encoder of a {family} detector")
    # Who calls it reads what becomes of the padding.
    says = "no token attends to one behind it" if family == "SAM3" else "attends to the padding, as the original's does"
    assert says in entries(text)["call"] and says in text.graph.input[0].doc_string
    record = compared(checkpoint, folder)
    assert record["verdict"] == "within_tolerance" and record["candidate"] == "onnx"
    assert all(stage["floors"] <= 4 for stage in record["stages"])
    assert all(graph["differences"] == [] for graph in record["graphs"])


def compared(checkpoint: Path, folder: Path, code: int = 0) -> Any:
    done = sam3lite(
        "parity", checkpoint, "--converted", folder, "--candidate", "onnx", "--component", "detector", "--json"
    )
    assert done.code == code, done
    return done.json


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """SAM3 as a checkpoint, and its video model with the graph of its text encoder; read only."""
    place = tmp_path_factory.mktemp("video")
    checkpoint = write(place / "teacher.pt", "teacher")
    return checkpoint, convert(checkpoint, place / "out", *STOCK, *VIDEO, "--onnx")


def test_graphs_of_sam3s_own_are_proven_and_an_edited_one_is_told_by_its_node(
    video: tuple[Path, Path], tmp_path: Path
) -> None:
    checkpoint, folder = video
    bad = Path(shutil.copytree(folder, tmp_path / "bad"))
    assert sam3lite("export", "onnx", bad, "--component", "detector", "--size", 56).code == 0
    notes = verify(bad, checkpoint).json["notes"]
    assert {f"{name}: {RIGHT}" for name in (*DETECTOR_MODELS, "model.onnx")} <= set(notes)
    model = model_of(bad, "model.onnx")
    bypass("layers.5.masked")(model)
    (bad / "model.onnx").write_bytes(serialized(model))
    findings = verify(bad, checkpoint).json["findings"]
    assert "V-GRAPH" in {finding["code"] for finding in findings}
    done = sam3lite("parity", checkpoint, "--converted", bad, "--candidate", "onnx", "--json")
    assert (done.code, done.json["first_divergence"]) == (1, "layers.5")
    diagnosis = done.json["diagnosis"]
    assert diagnosis["fits"][0]["key"] == "not_causal" and "layers.5.masked" in diagnosis["cause"]


def test_a_folder_in_the_originals_names_is_held_to_its_own_config(tmp_path: Path) -> None:
    """No tensor of it tells the windows and the size of the pictures."""
    checkpoint = write(tmp_path / "teacher.pt", "teacher")
    folder = convert(checkpoint, tmp_path / "out", *ORIGINAL, "--verify")
    assert sam3lite("export", "onnx", folder).code == 0
    edit_config(folder, "vision_config", "backbone_config", "window_size", value=2)
    done = sam3lite("export", "onnx", folder, "--json")
    assert (done.code, done.json["error"]["code"]) == (1, "edited")
    assert "architecture.detector" in done.json["error"]["message"]


def test_of_an_image_student_the_text_encoder_has_a_graph_and_the_detector_is_refused_in_words(tmp_path: Path) -> None:
    checkpoint = write(tmp_path / "student.pt", "student")
    folder = convert(checkpoint, tmp_path / "out", *ORIGINAL, "--onnx")
    for command in (
        ("export", "onnx", folder),
        ("parity", checkpoint, "--converted", folder, "--candidate", "onnx"),
    ):
        done = sam3lite(*command, "--component", "detector", "--json")
        assert done.code == 2 and "image encoder is not SAM3's ViT" in done.json["error"]["message"]
        assert sam3lite(*command, "--json").code == 0
