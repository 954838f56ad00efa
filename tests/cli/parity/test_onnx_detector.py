"""sam3lite parity --candidate onnx --component detector, on the tiny detector of the real code's recordings."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from support.detector_goldens import tiny_weights
from support.folders import convert, sam3lite
from support.graph_faults import set_attribute
from support.parity_runs import errors, strict

from sam3lite_convert.graph.folder_graphs import DETECTOR_MODELS
from sam3lite_convert.parity.detector.taps import STAGES

SIZE = 56
BOX = ("--box", "20,30,60,50")


@pytest.fixture(scope="module")
def tiny(root):
    path = root / "tiny-onnx.pt"
    torch.save({"model": tiny_weights()}, path)
    return path


@pytest.fixture(scope="module")
def folder(tiny, root):
    """The tiny detector converted, proven and exported; read only."""
    made = convert(tiny, root / "onnx-detector", "--verify")
    assert sam3lite("export", "onnx", made, "--component", "detector", "--size", SIZE).code == 0
    return made


def detector(checkpoint: Path, *options: object, candidate: str = "onnx", code: int = 0) -> Any:
    given = ("--component", "detector", "--candidate", candidate, "--json", *options)
    done = sam3lite("parity", checkpoint, *given)
    assert done.code == code, done
    return strict(done.out)


def test_the_graphs_of_a_folder_are_compared(tiny, folder):
    """At the size that they are for, which need not be given."""
    record = detector(tiny, "--converted", folder, *BOX)
    assert record["verdict"] == "within_tolerance" and record["diagnosis"] is None
    assert record["inputs"]["size"] == SIZE and record["candidate"] == "onnx" and record["attention"] == "graph"
    assert [s["name"] for s in record["stages"]] == list(STAGES.values())
    assert all(s["seconds_candidate"] is None and s["floors"] <= 4 for s in record["stages"])
    assert [g["part"] for g in record["graphs"]] == [g["file"] for g in record["graphs"]] == list(DETECTOR_MODELS)
    for graph in record["graphs"]:
        assert graph["sha256"] == hashlib.sha256((folder / graph["file"]).read_bytes()).hexdigest()
        assert graph["differences"] == [] and graph["optimised"] is True and graph["seconds"] > 0
        assert graph["provider"] == "CPUExecutionProvider"


def test_a_folder_that_keeps_the_originals_names_is_one_of_this_detector_too(tiny, tmp_path):
    """It has sizes that only config.json states, as no rotary table tells them there, and no model loads it."""
    folder = convert(tiny, tmp_path / "original", "--layout", "original", "--verify")
    assert sam3lite("export", "onnx", folder, "--component", "detector", "--size", SIZE).code == 0
    record = detector(tiny, "--converted", folder, *BOX)
    assert record["verdict"] == "within_tolerance" and all(g["differences"] == [] for g in record["graphs"])
    stated = sam3lite("inspect", folder, "--json").json["architecture"]["detector"]
    assert stated == sam3lite("inspect", tiny, "--json").json["architecture"]["detector"]


def test_a_fault_in_a_graph_is_named_by_its_node(tiny, folder, tmp_path):
    bad = Path(shutil.copytree(folder, tmp_path / "bad"))
    model = onnx.load(bad / "decode.onnx", load_external_data=False)
    set_attribute("geometry.pool.aligned", coordinate_transformation_mode="half_pixel")(model)
    (bad / "decode.onnx").write_bytes(model.SerializeToString())
    done = sam3lite("parity", tiny, "--component", "detector", "--candidate", "onnx", "--converted", bad, *BOX)
    assert done.code == 1 and "first divergence: geometry.box_pooled" in done.out
    words = (
        "the node geometry.pool.aligned (RoiAlign) has coordinate_transformation_mode half_pixel, ours "
        "output_half_pixel"
    )
    assert f"In the graph, {words}" in " ".join(done.out.split())
    assert f"decode.onnx is not the graph that this version writes: {words}" in " ".join(done.out.split())


def test_what_is_refused(tiny, folder, tmp_path):
    def refused(*options: object) -> str:
        return errors(sam3lite("parity", tiny, "--component", "detector", "--candidate", "onnx", *options), 2)

    size = refused("--converted", folder, "--size", 112)
    assert f"for pictures of {SIZE} x {SIZE} pixels, and the comparison is at 112: give --size {SIZE}, or" in size
    assert "--self-test makes its faults in models of torch" in refused("--self-test")
    assert "--provider None: onnxruntime has" in refused("--converted", folder, "--provider", "None")
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in folder.iterdir():
        if path.name != "decode.onnx":
            (bare / path.name).hardlink_to(path)
    assert "has no decode.onnx: write the graphs with sam3lite export onnx" in refused("--converted", bare)


@pytest.mark.stress
def test_without_a_folder_one_is_made_and_deleted(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    record = detector(tiny, "--size", SIZE, "--no-graph-optimisation", *BOX)
    assert record["verdict"] == "within_tolerance" and record["converted"] is None
    assert all(g["file"] is None and g["differences"] == [] and g["optimised"] is False for g in record["graphs"])
    assert not list(tmp_path.glob("sam3lite-*"))


@pytest.mark.stress
@pytest.mark.parametrize("box", [(), BOX])
def test_openvino_runs_the_same_graphs(tiny, folder, box):
    record = detector(tiny, "--converted", folder, *box, candidate="openvino")
    assert record["verdict"] == "within_tolerance" and record["candidate"] == "openvino"
    assert max(s["floors"] for s in record["stages"]) <= 4
    assert all(t["isolated_max_abs_diff"] is not None for t in record["layers"])
    assert all(g["runtime"].startswith("OpenVINO ") and g["differences"] == [] for g in record["graphs"])
