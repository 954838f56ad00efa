"""The detector's graphs in onnxruntime beside the reference: at every tap, cut at every tap, and with faults put in."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from support.detector_goldens import tiny_weights
from support.detector_graph_faults import DECODE, VISION, detector_faults
from support.folders import convert
from support.graph_faults import GraphFault
from support.recipe import draw

from sam3lite_convert.checkpoint.reader import read_checkpoint
from sam3lite_convert.convert.folder import read_folder
from sam3lite_convert.errors import CannotRun, UnsoundPlan
from sam3lite_convert.graph.builder import GraphBuilder
from sam3lite_convert.graph.compare import differences
from sam3lite_convert.graph.cut import Cutter
from sam3lite_convert.graph.folder_graphs import DETECTOR_MODELS, graphs_of, layout_of, serialized
from sam3lite_convert.graph.sizes import VisionSizes
from sam3lite_convert.graph.vision import vision_graph
from sam3lite_convert.graph.weights import Weights
from sam3lite_convert.parity.detector.diagnosis import explain
from sam3lite_convert.parity.detector.graphs import GraphSide, detector_graphs, open_graphs, size_of
from sam3lite_convert.parity.detector.inputs import DetectorOptions
from sam3lite_convert.parity.detector.reads import reads_of
from sam3lite_convert.parity.detector.run import DetectorOutcome, DetectorRun
from sam3lite_convert.parity.detector.setup import set_up_detector
from sam3lite_convert.parity.detector.store import TapStore
from sam3lite_convert.parity.detector.taps import OUTPUTS, STAGES, ordered
from sam3lite_convert.parity.judgement import FLOORS, Floor
from sam3lite_convert.parity.runtime import RuntimeChoice
from sam3lite_convert.parity.setup import ParityOptions
from sam3lite_convert.plan.tables import load_mappings

SIZE = 112  # pixels: 8 x 8 patches, and so four windows
BOX = (20.0, 30.0, 60.0, 50.0)
LAYERS = {"trunk": 4, "neck": 3, "text": 3, "geometry": 2, "encoder": 2, "decoder": 3}
Models = Mapping[str, onnx.ModelProto]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture(scope="module")
def tiny(root):
    """The tiny detector of the real code's recordings, as a checkpoint."""
    torch.save({"model": tiny_weights()}, root / "tiny.pt")
    return root / "tiny.pt"


@pytest.fixture(scope="module")
def folder(tiny, root):
    """It converted, without graphs; read only."""
    return convert(tiny, root / "packed")


def graphs(folder: Path) -> dict[str, onnx.ModelProto]:
    found = read_folder(folder)
    return graphs_of(found, layout_of(found.receipt or {}, load_mappings(None)), "detector", {}, size=SIZE)


@pytest.fixture(scope="module")
def models(folder):
    """Its graphs; read only."""
    return graphs(folder)


def side(folder: Path, models: Models, optimised: bool = True) -> GraphSide:
    runtime = RuntimeChoice("onnx", optimised=optimised).open()
    return GraphSide(detector_graphs(models, dict.fromkeys(models, "")), folder, runtime)


def run_of(
    tiny: Path, folder: Path, place: Path, candidate: GraphSide, seed: int | None = None, boxes: tuple = (BOX,)
) -> DetectorRun:
    inputs = DetectorOptions(SIZE, seed=seed, boxes=boxes)
    mappings, options = load_mappings(None), ParityOptions()
    checkpoint = read_checkpoint(tiny)
    return set_up_detector(
        checkpoint, mappings, options, inputs, place, folder, instead=lambda folder, call: candidate
    ).run


@pytest.mark.parametrize(
    ("layout", "boxes", "optimised", "seed"),
    [
        ("packed", (BOX,), True, None),
        pytest.param("float16", (BOX,), True, 1, marks=pytest.mark.stress),
        pytest.param("float16", (), False, 2, marks=pytest.mark.stress),
        pytest.param("packed", (), True, 1, marks=pytest.mark.stress),
        pytest.param("packed", (), False, 2, marks=pytest.mark.stress),
        pytest.param("packed", (BOX, (1.0, 2.0, 30.0, 80.0)), False, 3, marks=pytest.mark.stress),
        pytest.param("transformers", (BOX,), False, 4, marks=pytest.mark.stress),
        pytest.param("transformers", (), True, None, marks=pytest.mark.stress),
    ],
)
def test_every_tap_is_within_its_noise(tiny, folder, tmp_path, layout, boxes, optimised, seed):
    if layout != "packed":
        given = ("--dtype", layout) if layout == "float16" else ("--layout", layout)
        folder = convert(tiny, tmp_path / layout, *given)
    candidate = side(folder, graphs(folder), optimised)
    (tmp_path / "taps").mkdir()
    run = run_of(tiny, folder, tmp_path / "taps", candidate, seed, boxes)
    outcome = run.compare()
    assert outcome.judgement.verdict == "within_tolerance", outcome.judgement.first_divergence
    assert max(t.floors for t in outcome.judgement.taps) <= FLOORS
    # Every tap of the reference is one of a graph, and was also computed apart from the others.
    assert set(outcome.taps) == {name for name in run.taps if run.holds(name)}
    assert all(t.isolated is not None for t in outcome.judgement.taps)
    assert sum(bool(t.isolated) for t in outcome.judgement.taps) > len(outcome.taps) / 2
    assert list(candidate.seconds) == list(DETECTOR_MODELS) and set(candidate.moved) == set(OUTPUTS)
    assert outcome.seconds[1] == {}
    # In half precision the floors are those of half precision, and no wider than they need to be.
    worst = max(t.floors for t in outcome.judgement.taps)
    assert worst > 0.5 and (outcome.judgement.max_abs > 0.1) == (layout == "float16")


@pytest.mark.stress
@pytest.mark.parametrize(
    ("seed", "boxes", "optimised"),
    [(1, (), True), (5, (), True), (12, (BOX,), False), (17, (BOX,), True), (19, (BOX,), False), (23, (), True)],
)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_detectors_of_other_weights_are_too(tmp_path, seed, boxes, optimised, dtype):
    """Seeds where one draw of rounding was a fifth of another, at a logit or at the bias of few boxes."""
    drawn = {
        key: draw(key, str(value.dtype).removeprefix("torch."), tuple(value.shape), seed)
        if value.is_floating_point()
        else value
        for key, value in tiny_weights().items()
    }
    torch.save({"model": drawn}, tmp_path / "tiny.pt")
    folder = convert(tmp_path / "tiny.pt", tmp_path / "folder", "--dtype", dtype)
    (tmp_path / "taps").mkdir()
    candidate = side(folder, graphs(folder), optimised)
    outcome = run_of(tmp_path / "tiny.pt", folder, tmp_path / "taps", candidate, seed, boxes).compare()
    assert outcome.judgement.verdict == "within_tolerance", outcome.judgement.first_divergence


def _low(run: DetectorRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the floors of a row be an unlucky draw, a sixth of what they are."""
    measure = run.floors

    def floors(*args: Any) -> dict[str, Floor]:
        found = measure(*args)
        low = [tap for tap in found if tap.startswith(("decoder.rpb_x", "decoder.presence_logit"))]
        return {**found, **{tap: Floor(*(each / 6 for each in astuple(found[tap]))) for tap in low}}

    monkeypatch.setattr(run, "floors", floors)


def test_an_unlucky_draw_of_rounding_is_not_the_floor(tiny, folder, models, tmp_path, monkeypatch):
    monkeypatch.setattr("sam3lite_convert.parity.detector.run._DRAWS", 2)
    run = run_of(tiny, folder, tmp_path, side(folder, models))
    _low(run, monkeypatch)
    judgement = run.compare().judgement
    assert judgement.verdict == "within_tolerance", judgement.first_divergence


@pytest.mark.stress
@pytest.mark.parametrize("low", [False, True])
def test_a_fault_of_a_hundred_thousandth_is_found_at_the_bias(tiny, folder, models, tmp_path, monkeypatch, low):
    def put(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.name == "decoder.rpb_x.1.log")
        model.graph.initializer.append(numpy_helper.from_array(np.array(math.log(8) * (1 + 1e-5), np.float32), "off"))
        node.input[1] = "off"

    bad = models | {DECODE: GraphFault("", "", "", put).put_into(models[DECODE])}
    run = run_of(tiny, folder, tmp_path, side(folder, bad))
    if low:
        _low(run, monkeypatch)
    assert run.compare().judgement.first_divergence == "decoder.rpb_x.1"


def test_a_cut_reads_the_taps_that_the_table_says(models):
    """And no others, so that an error at one tap is not seen at the next."""
    taps = ordered(dict.fromkeys(STAGES, 0) | LAYERS)
    wanted = {tap: set(reads_of(tap, taps)) for tap in taps}
    wanted["neck.positions"] = {"neck.2"}  # for the number of pictures
    for i in range(LAYERS["decoder"]):  # rows of zeros, in one tensor with those of the queries
        wanted[f"decoder.presence.{i}"] |= {f"decoder.rpb_x.{i}", f"decoder.rpb_y.{i}"}
    # The graph does not compute the last delta twice.
    wanted["outputs.pred_boxes_xyxy"] = {f"decoder.box_delta.{i}" for i in range(LAYERS["decoder"])}
    found = {}
    for graph in detector_graphs(models, dict.fromkeys(models, "")):
        cutter, stands_for = Cutter(graph.model), graph.recorded
        for tap, value in graph.taps.items():
            read = cutter.reads(value, stands_for.keys() - {value})
            found[tap] = {stands_for[name] for name in read if name in stands_for}
    del found["text.pooled"]  # the detector does not read it
    assert found == wanted


# ---- faults


@dataclass
class Judge:
    """Judges graphs with faults on one recording of the reference."""

    run: DetectorRun
    store: TapStore
    floors: dict[str, Floor]
    folder: Path
    place: Path

    def __call__(self, models: Models) -> DetectorOutcome:
        candidate = side(self.folder, models)
        self.place.mkdir()
        isolated = TapStore(self.place)
        differences, _, _ = self.run._propagated(candidate, self.store)
        errors = self.run._isolated(candidate, self.store, isolated)
        judgement = self.run._judge(differences, errors, {tap: self.floors[tap] for tap in differences})
        return DetectorOutcome(self.run.taps, judgement, {}, ({}, {}), self.store, isolated)


@pytest.fixture(scope="module")
def judge(tiny, folder, models, root):
    (root / "recorded").mkdir()
    run = run_of(tiny, folder, root, side(folder, models))
    store, reference = TapStore(root / "recorded"), run.reference()
    run.record(reference, store)
    floors = run.floors(reference, store, store.taps, store.taps, {t: store.read(t).numel() for t in store.taps})
    return lambda place: Judge(run, store, floors, folder, place)


@pytest.fixture(scope="module")
def faults(folder, models):
    """Words -> (file, fault)."""
    found = read_folder(folder)
    sizes = VisionSizes.of(found.receipt or {})

    def another(sizes: VisionSizes) -> onnx.ModelProto:
        b = GraphBuilder(Weights(found, layout_of(found.receipt or {}, load_mappings(None))), "float32")
        vision_graph(b, sizes, SIZE)
        return b.model("image encoder", "", {"taps": json.dumps(b.taps)})

    return {fault.words: (file, fault) for file, fault in detector_faults(models, another, sizes)}


# In the suite one in each graph; what the diagnosis says of faults that it knows.
QUICK = ("the attention of windows is made global", "RoiAlign takes half a cell off")
NAMES = {
    "q and k are swapped in a ViT block": "trunk.blocks.order:kqv",
    "the rotary table is transposed": "trunk.blocks.rotary:y_first",
    "the attention of windows is made global": "trunk.blocks.windows_global",
    "LayerNorm at eps 0.1": None,
    "the scale of attention is missing": "trunk.blocks.no_scale",
    "GELU is the tanh approximation": "trunk.blocks.activation:gelu_tanh",
    "a level of the neck reads another's kernel": None,
    "RoiAlign takes half a cell off": "geometry.box_pooled.aligned",
    "the class token stands before the boxes": "geometry.final_proj.class_first",
    "the map has no positions in the DETR encoder": "encoder.layers.no_positions",
    "q and k are swapped in the DETR encoder": "encoder.layers.cross_attn_image.order:kqv",
    "boxes are not refined from layer to layer": None,
    "the position bias has a natural logarithm": None,
    "the norm of the presence token is skipped": None,
    "padding counts in the prompt's mean": "scoring.prompt.mean_of_padding_too",
    "scores are not divided": "scoring.logits.no_scale",
    "the mask head does not attend to the prompt": "masks.pixel_decoder.no_attention",
    "GroupNorm has other groups": None,
    "maps are enlarged from the other corner": None,
    "a bias of the masks' filters is missing": None,
    "the matrix of the box tokens is transposed": None,
    "boxes are given as centres and sizes": "outputs.pred_boxes_xyxy.not_corners",
}


def test_every_fault_is_told_by_its_node_and_its_tap(faults, models):
    assert set(faults) == set(NAMES)
    for file, fault in faults.values():
        found = differences(fault.put_into(models[file]), models[file])
        told = next((d for d in found if d.name == fault.named), None)
        assert told is not None and fault.tap in told.taps, (fault.words, found)


@pytest.mark.parametrize("words", [w if w in QUICK else pytest.param(w, marks=pytest.mark.stress) for w in NAMES])
def test_a_fault_is_found_where_it_was_put(words, faults, models, judge, tmp_path):
    file, fault = faults[words]
    judged = judge(tmp_path / "isolated")
    bad = fault.put_into(models[file])
    outcome = judged(models | {file: bad})
    assert outcome.judgement.verdict == "differs" and outcome.judgement.first_divergence == fault.tap
    # What else diverges reads the same nodes: what was carried is not accused.
    assert set(outcome.judgement.also_diverging) <= {t for d in differences(bad, models[file]) for t in d.taps}
    fits = explain(judged.run, outcome, judged.run.reference())
    likely = [fit.key for fit in fits if fit.likely]
    assert NAMES[words] in likely if NAMES[words] else not fits


# ---- what is refused


def test_graphs_that_are_not_there_or_for_something_else(folder, models, judge, tmp_path):
    place = tmp_path / "folder"
    place.mkdir()
    for path in folder.iterdir():
        (place / path.name).hardlink_to(path)
    call = judge(tmp_path).run.call
    assert size_of(place) is None
    with pytest.raises(CannotRun, match=r"has no vision\.onnx, text\.onnx, decode\.onnx: .* --component detector"):
        open_graphs(place, call)
    for name, model in models.items():
        (place / name).write_bytes(serialized(model))
    assert size_of(place) == SIZE and [graph.file for graph in open_graphs(place, call)] == list(DETECTOR_MODELS)
    smaller = replace(call, image=call.image[..., :56, :56])
    with pytest.raises(
        CannotRun, match="for pictures of 112 x 112 pixels, and the comparison is at 56: give --size 112"
    ):
        open_graphs(place, smaller)
    with pytest.raises(CannotRun, match="for 8 tokens, and the original is called with 5: give --context 8"):
        open_graphs(place, replace(call, input_ids=call.input_ids[:, :5]))


def test_graphs_of_something_else_are_refused_in_words(models):
    def changed(file: str, change) -> dict[str, onnx.ModelProto]:
        return {**models, file: GraphFault("", "", "", change).put_into(models[file])}

    def sha256(found: Models) -> dict[str, str]:
        return dict.fromkeys(found, "")

    value = onnx.helper.make_tensor_value_info("mask", onnx.TensorProto.BOOL, [1])
    with pytest.raises(UnsoundPlan, match=r"vision\.onnx reads mask, which nothing gives it"):
        detector_graphs(found := changed(VISION, lambda m: m.graph.input.append(value)), sha256(found))

    def without_masks(model: onnx.ModelProto) -> None:
        model.graph.output.remove(next(v for v in model.graph.output if v.name == "pred_masks"))
        for entry in model.metadata_props:
            if entry.key == "taps":
                entry.value = entry.value.replace('"outputs.pred_masks"', '"other"')

    with pytest.raises(UnsoundPlan, match=r"the graphs do not give pred_masks"):
        detector_graphs(found := changed(DECODE, without_masks), sha256(found))


@pytest.mark.stress
def test_a_fault_is_found_in_half_precision_too(tiny, faults, tmp_path):
    folder = convert(tiny, tmp_path / "half", "--dtype", "float16")
    file, fault = faults["q and k are swapped in a ViT block"]
    right = graphs(folder)
    candidate = side(folder, {**right, file: fault.put_into(right[file])})
    assert candidate.dtype is torch.float16
    (tmp_path / "taps").mkdir()
    outcome = run_of(tiny, folder, tmp_path / "taps", candidate).compare()
    assert outcome.judgement.first_divergence == fault.tap and outcome.judgement.also_diverging == []
