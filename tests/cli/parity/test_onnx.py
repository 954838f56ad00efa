"""sam3lite parity --candidate onnx: graphs of folders, of this run, of others, and hostile ones."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
import warnings

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from support import clip_runs
from support.folders import LAYOUTS, convert, old_state, sam3lite, write_safetensors
from support.graph_faults import text_faults
from support.graphs import of_weights, put, text_graph
from support.hostile_graphs import ENTRIES, HOSTILE_GRAPHS, write_hostile
from support.parity_runs import column, errors, parity, state_of, strict, taps

from sam3lite_convert.graph import read
from sam3lite_convert.packed_encoder import PackedTextModel
from sam3lite_convert.parity.inputs import BATCH

ONNX = ("--candidate", "onnx")


@pytest.fixture(scope="module")
def graphs(root, good):
    """layout -> the text encoder alone with its graph; read only."""
    return {layout: put(shutil.copytree(good[layout], root / f"graph-{layout}")) for layout in LAYOUTS}


@pytest.fixture
def own(graphs, tmp_path):
    """Such a folder to change."""
    return shutil.copytree(graphs["packed"], tmp_path / "own")


# ---- right graphs


# kind, layout, dtype, context, options of convert, options of parity
RIGHT = [
    ("s0", "packed", "float32", 16, [], ["--batch", 32, "--seed", 1]),
    ("base", "transformers", "float16", 16, [], ["--batch", 3, "--seed", 2, "--no-graph-optimisation"]),
    ("base", "packed", "float32", 16, ["--causal"], []),
    ("s0", "transformers", "float32", 32, ["--context", 32], ["--no-graph-optimisation", "--seed", 4]),
    ("s0", "packed", "float16", 16, [], ["--batch", 32, "--seed", 1]),
    ("s0-lite", "packed", "float32", 16, [], ["--batch", 7, "--seed", 3]),
    ("s0-lite", "transformers", "float16", 16, [], ["--no-graph-optimisation"]),
    ("s0", "transformers", "float32", 16, [], ["--batch", 2, "--seed", 8, "--tolerance", 1e-5]),
    ("s0", "packed", "float16", 32, ["--context", 32], ["--seed", 5, "--batch", 2]),
    ("teacher", "transformers", "float32", 32, [], ["--batch", 32, "--seed", 1]),
    ("teacher", "original", "float16", 20, ["--context", 20], ["--batch", 2, "--seed", 3, "--no-graph-optimisation"]),
]
RIGHT_TOO = [
    ("teacher", "transformers", "float16", 32, [], ["--batch", 32, "--seed", 5]),
    ("teacher", "original", "float32", 32, [], ["--batch", 7, "--seed", 6, "--no-graph-optimisation"]),
    ("teacher", "transformers", "float32", 5, ["--context", 5], ["--batch", 3, "--seed", 7]),
]


def state_for(kind, context):
    if kind == "teacher":
        return clip_runs.state_of()
    return old_state(text_only=True) if context == 32 else state_of(kind)


@pytest.mark.parametrize(
    ("kind", "layout", "dtype", "context", "made", "asked"),
    [*RIGHT, *(pytest.param(*case, marks=pytest.mark.stress) for case in RIGHT_TOO)],
)
def test_a_right_graph_is_within_four_floors_at_every_tap(kind, layout, dtype, context, made, asked, tmp_path):
    checkpoint = write_safetensors(tmp_path, state_for(kind, context))
    folder = put(
        convert(checkpoint, tmp_path / "out", "--layout", layout, "--component", "text", "--dtype", dtype, *made)
    )
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    given = [x for x in made if x != "--causal"]  # that is in the receipt
    record = parity(checkpoint, "--converted", folder, *ONNX, *given, *asked)
    assert (record["verdict"], record["candidate"], record["dtype"]) == ("within_tolerance", "onnx", dtype)
    assert record["not_given"] == [] and record["inputs"]["shape"][1] == context
    assert max(column(record, "floors").values()) <= 4
    assert None not in column(record, "isolated_max_abs_diff").values()
    floors = [tap["floor"]["propagated"] for tap in record["layers"] if tap["name"] == "projected"]
    assert (floors[0] > 1e-5) == (dtype == "float16")  # of the dtype that ran
    graph = record["graph"]
    assert graph["runtime"] == f"onnxruntime {onnxruntime.__version__}"
    assert graph["provider"] == "CPUExecutionProvider"
    assert graph["optimised"] == ("--no-graph-optimisation" not in asked)
    assert (graph["file"], graph["differences"]) == ("model.onnx", [])
    assert graph["sha256"] == hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_without_a_folder_the_graph_is_written_for_this_run_and_removed(dtype, s0, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    record = parity(s0, *ONNX, "--dtype", dtype)
    assert (record["verdict"], record["dtype"], record["converted"]) == ("within_tolerance", dtype, None)
    assert (record["graph"]["file"], record["graph"]["differences"]) == (None, [])
    assert list(column(record, "max_abs_diff")) == taps(6)
    assert list(tmp_path.iterdir()) == []


def test_openvino_runs_the_same_graph(s0, graphs, own):
    asked = ("--candidate", "openvino", "--seed", 1, "--batch", 4)
    record = parity(s0, "--converted", graphs["transformers"], *asked)
    assert (record["verdict"], record["candidate"]) == ("within_tolerance", "openvino")
    assert max(column(record, "floors").values()) <= 4 and list(column(record, "floors")) == taps(6)
    graph = record["graph"]
    assert graph["runtime"].startswith("OpenVINO 20") and (graph["provider"], graph["differences"]) == ("CPU", [])
    # It does compute: not the bits of onnxruntime, and a fault of the graph shows.
    other = parity(s0, "--converted", graphs["transformers"], *ONNX, "--seed", 1, "--batch", 4)
    assert column(record, "max_abs_diff") != column(other, "max_abs_diff")
    (fault,) = (f for f in text_faults(text_graph(own), 16) if f.words == "layer_scale is missing")
    put(own, fault.put_into(text_graph(own)))
    assert parity(s0, "--converted", own, *asked, code=1)["first_divergence"] == fault.tap


def test_what_openvino_cannot_is_said_in_words(s0, own, monkeypatch):
    model = text_graph(own)
    next(n for n in model.graph.node if n.op_type == "Gelu").op_type = "Gelly"
    put(own, model)
    for options, says in (
        ([], "OpenVINO does not load the graph"),
        (["--provider", "TPU"], "--provider TPU: OpenVINO has CPU here"),
        (["--no-graph-optimisation"], "OpenVINO has no such switch"),
    ):
        done = sam3lite("parity", s0, "--converted", own, "--candidate", "openvino", *options)
        assert says in errors(done, 2)
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert "pip install 'sam3lite-convert[openvino]'" in errors(sam3lite("parity", s0, "--candidate", "openvino"), 2)


def test_many_rows_run_in_batches_and_the_worst_are_compared_closely(s0, graphs):
    record = parity(s0, "--converted", graphs["packed"], *ONNX, "--seed", 1, "--batch", BATCH + 9)
    assert record["verdict"] == "within_tolerance"
    assert {tap["shape"][0] for tap in record["layers"]} == {BATCH + 9}
    assert max(column(record, "floors").values()) <= 4
    assert f"both encoders ran on all {BATCH + 9} rows" in record["notes"][-1]


def test_it_is_printed_saved_and_shown_on_a_page(s0, graphs, tmp_path):
    saved, page = tmp_path / "a.st", tmp_path / "p.html"
    done = sam3lite(
        "parity", s0, "--converted", graphs["packed"], *ONNX, "--debug-intermediates", "--save-activations", saved,
        "--report", page,
    )  # fmt: skip
    assert done.code == 0, done
    sha256 = hashlib.sha256((graphs["packed"] / "model.onnx").read_bytes()).hexdigest()
    said = f"ONNX graph in onnxruntime {onnxruntime.__version__} (CPUExecutionProvider), from model.onnx of"
    assert said in done.out and f"SHA-256 {sha256[:12]}" in done.out
    assert "--as-used" not in done.out  # which is refused
    html = page.read_text(encoding="utf-8").replace("<wbr>", "")
    assert sha256 in html and "model.onnx" in html
    judged = strict(sam3lite("parity", "--judge", saved, "--json").out)
    assert judged["verdict"] == "within_tolerance" and len(judged["layers"]) == 10


# ---- wrong graphs


def test_a_fault_is_told_by_its_node_and_its_tensors(s0, own, tmp_path):
    (fault,) = (f for f in text_faults(text_graph(own), 16) if f.words == "q and k are swapped")
    put(own, fault.put_into(text_graph(own)))
    page = tmp_path / "p.html"
    done = sam3lite("parity", s0, "--converted", own, *ONNX, "--seed", 3, "--batch", 4, "--report", page)
    assert done.code == 1
    for said in (
        "first divergence: layers.3",
        "likely cause: q and k are swapped",
        "In the graph, the node layers.3.q.heads (Reshape) reads layers.3.k, ours layers.3.q",
        "graph: the node layers.3.k.heads (Reshape) reads layers.3.q, ours layers.3.k",
        "note: the graph is not the one that this version writes: the node layers.3.q.heads",
    ):
        assert said in done.out.replace("\n", " "), said
    assert "Graph: the node layers.3.k.heads" in page.read_text(encoding="utf-8").replace("<wbr>", "")
    record = parity(s0, "--converted", own, *ONNX, "--seed", 3, "--batch", 4, code=1)
    assert [d["name"] for d in record["diagnosis"]["graph"]] == ["layers.3.q.heads", "layers.3.k.heads"]
    assert record["graph"]["differences"] == record["diagnosis"]["graph"]


def test_a_tensor_in_the_place_of_another_is_named(s0, own):
    model = text_graph(own)
    (fault,) = (f for f in text_faults(model, 16) if f.words.startswith("fc1 lies where"))
    put(own, fault.put_into(model))
    told = parity(s0, "--converted", own, *ONNX, code=1)["diagnosis"]
    (difference,) = told["graph"]
    assert difference["tensors"] == [fault.named] and "the place of text_encoder.layers.1.fc1.weight" in told["cause"]


def test_a_graph_says_first_that_it_belongs_to_other_weights(s0, own, tmp_path):
    model = text_graph(own)
    (fault,) = (f for f in text_faults(model, 16) if f.words == "q and k are swapped")
    model = fault.put_into(model)

    def told(digest: str) -> dict:
        put(own, of_weights(model, digest))
        return parity(s0, "--converted", own, *ONNX, code=1)["diagnosis"]

    of_others = (
        "the weights that it says it belongs to are not those of the folder: model.safetensors (SHA-256 beefbeefbeef)"
    )
    found = told("beef" * 16)
    assert found["cause"].startswith(f"q and k are swapped. In the graph, {of_others}; the node layers.3.q.heads")
    assert found["graph"][0] == {"name": "", "taps": [], "what": of_others, "tensors": []}
    own_digest = hashlib.sha256((own / "model.safetensors").read_bytes()).hexdigest()
    assert told(own_digest)["graph"] == found["graph"][1:]
    # Without any, as where a graph was moved away.
    put(own, of_weights(model, "beef" * 16))
    (own / "model.safetensors").unlink()
    message = errors(sam3lite("parity", s0, "--converted", own, *ONNX), 2)
    assert f"model.onnx there belongs to model.safetensors (SHA-256 {'beef' * 16})" in message


def test_a_long_list_of_differences_ends(s0, own):
    model = text_graph(own)
    for number in range(30):
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), f"more.{number}"))
    (fault,) = (f for f in text_faults(model, 16) if f.words == "q and k are swapped")
    put(own, fault.put_into(model))
    said = sam3lite("parity", s0, "--converted", own, *ONNX).out
    assert said.count("  graph: ") == 20 and "  ... and 12 more; --verbose lists all of them" in said


HOSTILE = ["a path that leads out", "a cycle", "a picture", "an opset of the future", "more than 64 MB"]


@pytest.mark.parametrize("name", [*HOSTILE, *(name for name in HOSTILE_GRAPHS if name not in HOSTILE)])
def test_a_hostile_graph_is_refused_before_a_runtime_sees_it(name, s0, own, monkeypatch):
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *args, **options: pytest.fail("it was loaded"))
    monkeypatch.setattr(read, "_ENTRIES", ENTRIES)
    write_hostile(name, text_graph(own), own)
    message = errors(sam3lite("parity", s0, "--converted", own, *ONNX), 4)
    assert "model.onnx is refused" in message and HOSTILE_GRAPHS[name].says in message


def test_what_a_runtime_does_not_take_is_said_in_words(s0, own):
    model = text_graph(own)
    next(n for n in model.graph.node if n.op_type == "Gelu").op_type = "Gelly"
    put(own, model)
    assert "onnxruntime does not load the graph" in errors(sam3lite("parity", s0, "--converted", own, *ONNX), 2)


USAGE = {
    "--provider NoSuch": "onnxruntime has",
    "--dtype float16": "model.onnx computes in float32",
    "--length 8": "the graph takes 16 tokens a prompt, and these ids are 8",
    "--self-test": "makes its faults in models of torch",
    "--as-used": "a graph is called in one way only",
    "--attention sdpa": "a graph states it",
}


@pytest.mark.parametrize("options", USAGE)
def test_what_does_not_go_with_a_graph_is_refused_in_words(options, s0, graphs):
    done = sam3lite("parity", s0, "--converted", graphs["packed"], *ONNX, *options.split())
    assert USAGE[options] in errors(done, 2)


def test_options_of_a_graph_need_one_and_a_folder_without_one_is_told_how_to_write_it(s0, good):
    assert "--provider needs --candidate onnx" in errors(sam3lite("parity", s0, "--provider", "X"), 2)
    done = sam3lite("parity", s0, "--no-graph-optimisation", "--candidate", "packed")
    assert "--graph-optimisation needs --candidate onnx" in errors(done, 2)
    message = errors(sam3lite("parity", s0, "--converted", good["packed"], *ONNX), 2)
    assert f"sam3lite export onnx {good['packed']} writes it" in message


def test_without_the_extra_it_says_what_to_install(s0, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install 'sam3lite-convert[onnx]'" in errors(sam3lite("parity", s0, *ONNX), 2)


# ---- graphs of others


@pytest.fixture(scope="module")
def foreign(good, root):
    """torch.onnx.export of the packed text encoder, for batches of 2 (all dimensions fixed)."""
    path = root / "foreign.onnx"
    model = PackedTextModel.from_pretrained(good["packed"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (torch.ones(2, 16, dtype=torch.int64),), str(path), input_names=["tokens"], opset_version=18,
            output_names=["tokens_normed", "features", "pooled"], dynamo=False,
        )  # fmt: skip
    return path


def test_a_graph_of_an_exporter_is_judged_on_its_outputs(foreign, s0, own):
    shutil.copyfile(foreign, own / "model.onnx")
    record = parity(s0, "--converted", own, *ONNX, "--seed", 1, "--batch", 5)
    assert record["verdict"] == "within_tolerance"
    assert list(column(record, "max_abs_diff")) == ["projected", "pooled"]
    assert "only projected and pooled were compared (2 of 10 taps)" in record["summary"]
    assert set(column(record, "judged_by").values()) == {"propagated"}
    notes = " ".join(record["notes"])
    for said in (
        "the output features was read as projected, by its shape",
        "outputs of the graph that no tap is known for, and so not compared: tokens_normed",
        "the graph is not the one that this version writes: the graph is one of pytorch 2",
        "the graph does not name these taps, so they were not compared: embeddings, layers.0",
    ):
        assert said in notes, said
    done = sam3lite("parity", s0, "--converted", own, *ONNX, "--save-activations", own.parent / "a.st")
    assert "--save-activations writes all taps, and the graph does not name embeddings" in errors(done, 2)
    # A weight in the graph itself, changed: told as far as can be known.
    data = (own / "model.onnx").read_bytes()
    held = state_of()["detector.backbone.language_backbone.projector.bias"].numpy().tobytes()
    assert data.count(held) == 1
    (own / "model.onnx").write_bytes(data.replace(held, bytes(len(held))))
    record = parity(s0, "--converted", own, *ONNX, "--seed", 1, code=1)
    assert record["first_divergence"] == "projected" and record["unseen"][-1] == "final_layer_norm"
    assert "embeddings, layers.0" in record["diagnosis"]["cause"] or "bias" in record["diagnosis"]["cause"]


def test_a_graph_of_an_exporter_is_judged_by_its_activations(foreign, s0, tmp_path):
    session = onnxruntime.InferenceSession(foreign)
    ids = torch.randint(1, 512, (2, 16), generator=torch.Generator().manual_seed(0))
    normed, features, pooled = map(torch.from_numpy, session.run(None, {"tokens": ids.numpy()}))
    given = {"final_layer_norm": normed, "projected": features, "pooled": pooled}
    save_file(given | {"input_ids": ids}, tmp_path / "port.safetensors")
    judged = ("judge", tmp_path / "port.safetensors", "--checkpoint", s0, "--name", "torch.onnx.export", "--json")
    record = strict(sam3lite(*judged).out)
    assert record["verdict"] == "within_tolerance" and len(record["layers"]) == 3
    given["projected"] = features * (1 + 1e-3)
    save_file(given | {"input_ids": ids}, tmp_path / "port.safetensors")
    done = sam3lite(*judged)
    assert done.code == 1 and strict(done.out)["first_divergence"] == "projected"


def _say_of_taps(model, **taps):
    said = next(entry for entry in model.metadata_props if entry.key == "taps")
    said.value = json.dumps(json.loads(said.value) | taps)


def test_an_output_is_what_its_name_says_whatever_the_metadata_says(s0, own):
    """The wrong features under the name that readers take, the right ones where the metadata says that they are."""
    model = text_graph(own)
    right = next(node for node in model.graph.node if "text_features" in node.output)
    right.output[0] = "right"
    model.graph.node.append(helper.make_node("Neg", ["right"], ["text_features"]))
    model.graph.output.add().CopyFrom(model.graph.output[0])
    model.graph.output[-1].name = "right"
    _say_of_taps(model, projected="right")
    put(own, model)
    record = parity(s0, "--converted", own, *ONNX, code=1)
    assert record["verdict"] == "differs" and record["first_divergence"] == "projected"
    model.graph.output[-1].name = "projected"  # a value before it is called so
    put(own, model)
    done = sam3lite("parity", s0, "--converted", own, *ONNX)
    assert "the graph's outputs text_features and projected are both named as projected" in errors(done, 2)


def test_a_tap_that_the_metadata_puts_elsewhere_has_no_other_cause(s0, own):
    model = text_graph(own)
    _say_of_taps(model, **{"layers.1": "layers.0"})
    record = parity(s0, "--converted", put(own, model), *ONNX, code=1)
    told = record["diagnosis"]
    words = "the metadata says that the tap layers.1 is at layers.0; ours is at layers.1"
    assert (record["first_divergence"], told["fits"], told["cause"]) == ("layers.1", [], f"In the graph, {words}")


def test_a_graph_that_gives_pooled_alone_is_judged_on_it(s0, own):
    model = text_graph(own)
    del model.metadata_props[:], model.graph.output[0]
    record = parity(s0, "--converted", put(own, model), *ONNX)
    assert list(column(record, "max_abs_diff")) == ["pooled"] and "projected" in record["not_given"]
    assert "only pooled was compared (1 of 10 taps)" in record["summary"]


def test_a_graph_without_its_metadata_is_judged_on_its_outputs_and_says_where_it_cannot_look(s0, own):
    model = text_graph(own)
    (fault,) = (f for f in text_faults(model, 16) if f.words == "a norm is skipped")
    model = fault.put_into(model)
    del model.metadata_props[:]
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT32
    put(own, model)
    record = parity(s0, "--converted", own, *ONNX, code=1)
    assert list(column(record, "max_abs_diff")) == ["projected", "pooled"]
    assert record["place"] == "at or before projected" and record["unseen"][:2] == ["embeddings", "layers.0"]
    # It still has our names, so that the node is told.
    assert fault.named in {d["name"] for d in record["diagnosis"]["graph"]}
    assert "the input input_ids is int32 (batch, 16), ours int64 (batch, 16)" in json.dumps(record["graph"])
