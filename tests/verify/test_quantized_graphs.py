"""Quantised graphs of a folder: ``verify`` makes them again from the folder's tensors and compares."""

from __future__ import annotations

import builtins
import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from support.folders import convert, edit, receipt, sam3lite, tensors, tiny_state, verify, write

from sam3lite_convert.convert.folder import read_folder
from sam3lite_convert.graph import quantize
from sam3lite_convert.graph.folder_graphs import serialized
from sam3lite_convert.plan.tables import load_mappings
from sam3lite_convert.verify.graphs import check_graphs

NAME = "model.int8-all.onnx"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkpoint, and a text encoder with a quantised graph."""
    place = tmp_path_factory.mktemp("quantised")
    tiny = write(place, tiny_state())
    folder = convert(tiny, place / "text", "--component", "text", "--verify")
    assert sam3lite("export", "onnx", folder, "--quantize", "int8-all", "--taps").code == 0
    return tiny, folder


@pytest.fixture
def folder(made, tmp_path):
    copy = shutil.copytree(made[1], tmp_path / "folder", ignore=shutil.ignore_patterns("fingerprint.json"))
    (copy / "model.onnx").unlink()
    return copy


def wrong(folder, notes=None):
    """What is wrong with the graphs, by key: (code, why)."""
    notes = [] if notes is None else notes
    faults = check_graphs(read_folder(folder), load_mappings(None), lambda: receipt(folder)["proven"], notes)
    return {fault.key: (fault.code, fault.why) for fault in faults}


def changed(folder, change):
    model = onnx.load(folder / NAME)
    change(model)
    (folder / NAME).write_bytes(serialized(model))
    return wrong(folder)


def test_a_quantised_graph_is_proven_with_its_folder(made):
    done = verify(made[1], made[0])
    assert done.code == 0 and done.json["verdict"] == "proven" and not done.json["findings"], done
    said = dict(note.split(": ", 1) for note in done.json["notes"] if ".onnx" in note)
    assert said.keys() == {"model.onnx", "model.int8-all.onnx"} and "comes out the same" in said["model.int8-all.onnx"]


def test_one_changed_weight_is_named(folder):
    def change(model):
        (tensor,) = (t for t in model.graph.initializer if "layers.2.fc1" in t.name and t.name.endswith("_quantized"))
        values = numpy_helper.to_array(tensor).copy()
        values[3, 5] ^= 1
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    ((key, (code, why)),) = changed(folder, change).items()
    assert code == "V-GRAPH" and "layers.2.fc1" in key and "layers.2.fc1" in why


def test_what_it_says_of_its_making_has_to_be_so(folder):
    def change(model):
        said = {entry.key: entry.value for entry in model.metadata_props}
        stated = json.loads(said["quantized"]) | {"graph": "0" * 64}
        helper.set_model_props(model, said | {"quantized": json.dumps(stated), "loss": "{}"})

    assert [*changed(folder, change)] == [f"{NAME}: quantized"]
    (folder / NAME).write_bytes(b"\x00" * 100)
    ((key, (code, _)),) = wrong(folder).items()
    assert (key, code) == (NAME, "V-GRAPH-FILE")


@pytest.mark.parametrize("version", ["of here", "another"])
def test_beside_other_weights_it_is_told(folder, monkeypatch, version):
    if version == "another":  # it is not made again, and still says what it belongs to
        monkeypatch.setattr(quantize, "installed", lambda: ("1.0", "1.1"))
    key = next(k for k in tensors(folder) if k.endswith("fc2.weight"))
    edit(folder, {key: tensors(folder)[key] + np.float32(1)})
    faults = check_graphs(read_folder(folder), load_mappings(None), lambda: {"model.safetensors": "1" * 64}, [])
    ((code, why),) = [(fault.code, fault.why) for fault in faults]
    assert code == "V-GRAPH-WEIGHTS" and why.endswith("1" * 64 + ")")


def test_what_made_it_with_other_versions_or_without_onnxruntime_is_not_checked(folder, monkeypatch):
    notes: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(quantize, "installed", lambda: ("1.0", "1.1"))
        assert wrong(folder, notes) == {}
    assert f"{NAME} was not checked: onnxruntime" in notes[0] and "onnxruntime 1.0 and onnx 1.1 may" in notes[0]
    there = builtins.__import__

    def absent(name, *rest, **more):
        if name.startswith("onnxruntime"):
            raise ImportError(name)
        return there(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    assert wrong(folder, notes) == {}
    assert notes[1:] == [f"{NAME} was not checked: pip install 'sam3lite-convert[onnx]'"]
