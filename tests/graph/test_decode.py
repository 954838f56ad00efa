"""The graphs of the whole detector, run by onnxruntime, beside the original code's activations and the packed detector.

Pictures and ids go in at the front: what is behind the two encoders reads what their graphs gave.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from support import families
from support.detector_goldens import CASES, HEADS, ROWS, Case, allowed, case, distance, tiny_weights
from support.folders import (
    LAYOUTS,
    config,
    convert,
    receipt,
    sam3lite,
    snapshot,
    tensors,
    write_safetensors,
)
from torch import Tensor, nn

from sam3lite_convert.convert.folder import read_folder
from sam3lite_convert.convert.packed_config import PackedConfig
from sam3lite_convert.errors import CannotRun, Untrusted
from sam3lite_convert.graph import heads, layers
from sam3lite_convert.graph.builder import FloatName, GraphBuilder
from sam3lite_convert.graph.cut import Cutter
from sam3lite_convert.graph.decode import decode_graph
from sam3lite_convert.graph.folder_graphs import layout_of
from sam3lite_convert.graph.sizes import DetectorSizes, TextSizes, VisionSizes
from sam3lite_convert.graph.text import text_graph
from sam3lite_convert.graph.vision import vision_graph
from sam3lite_convert.graph.weights import Weights
from sam3lite_convert.packed_detector import PackedModel
from sam3lite_convert.packed_detector.boxes import corners
from sam3lite_convert.packed_detector.positions import PositionEncoding
from sam3lite_convert.packed_detector.vision import EncodedImages
from sam3lite_convert.parity.detector.reads import reads_of
from sam3lite_convert.parity.detector.recording import reading
from sam3lite_convert.parity.detector.taps import OUTPUTS, STAGES, ordered
from sam3lite_convert.parity.onnx_session import OnnxSession
from sam3lite_convert.plan.tables import load_mappings

mappings = functools.cache(load_mappings)
SIZE, LAYERS = 140, {"geometry": 2, "encoder": 2, "decoder": 3}
Turn = Callable[[Tensor], Tensor]


def sequence_first(value: Tensor) -> Tensor:
    """The real code has the sequence before the batch here."""
    return value.transpose(0, 1)


def same(value: Tensor) -> Tensor:
    return value


def golden_taps() -> dict[str, tuple[str, Turn]]:
    """The name of each tap in the goldens of the tiny detector, and how to get to the shape that it has there."""
    decoder, first = "transformer.decoder.", sequence_first
    found: dict[str, tuple[str, Turn]] = {"neck.positions": ("backbone.vision_backbone.position_encoding@2", same)}
    for name, module, turn in (
        ("box_direct", "boxes_direct_project", first), ("box_pooled", "boxes_pool_project", same),
        ("box_position", "boxes_pos_enc_project", first), ("box_label", "label_embed", first),
        ("final_proj", "final_proj", first), ("norm", "norm", first), ("output", "encode_norm", first),
        ("layers.0", "encode.0", first), ("layers.1", "encode.1", first),
    ):  # fmt: skip
        found[f"geometry.{name}"] = f"geometry_encoder.{module}", turn
    for i in range(LAYERS["encoder"]):
        found[f"encoder.layers.{i}"] = f"transformer.encoder.layers.{i}", same
    for i in range(LAYERS["decoder"]):
        for name, module, turn in (
            ("query_position", "ref_point_head", first), ("rpb_x", "boxRPB_embed_x", same),
            ("rpb_y", "boxRPB_embed_y", same), ("box_delta", "bbox_embed", first),
            ("presence_norm", "presence_token_out_norm", first), ("presence_logit", "presence_token_head", first),
        ):  # fmt: skip
            found[f"decoder.{name}.{i}"] = f"{decoder}{module}@{i}", turn
        found[f"decoder.normed.{i}"] = f"{decoder}norm@{2 * i}", first
        found[f"decoder.queries.{i}"] = f"{decoder}layers.{i}.0", first
        found[f"decoder.presence.{i}"] = f"{decoder}layers.{i}.1", first
    for name, module, turn in (
        ("scoring.prompt_mlp", "dot_prod_scoring.prompt_mlp", first),
        ("scoring.prompt", "dot_prod_scoring.prompt_proj", same), ("scoring.queries", "dot_prod_scoring.hs_proj", same),
        ("scoring.logits", "dot_prod_scoring", same), ("masks.prompt_norm", "segmentation_head.cross_attn_norm", first),
        ("masks.prompt_attention", "segmentation_head.cross_attend_prompt", first),
        ("masks.pixel_decoder", "segmentation_head.pixel_decoder", same),
        ("masks.instance", "segmentation_head.instance_seg_head", same),
        ("masks.mask_embed", "segmentation_head.mask_predictor.mask_embed", same),
        ("masks.semantic", "segmentation_head.semantic_seg_head", same),
    ):  # fmt: skip
        found[name] = module, turn
    return found | {f"outputs.{name}": (f"output.{name}", same) for name in OUTPUTS}


OWN_FOLDER = ("context5", "loud", "small")  # cases of other weights, or of another context
BOXES = {f"geometry.box_{name}" for name in ("direct", "pooled", "position", "label")}


class Graphs:
    """The three graphs of a folder, in memory, and their sessions."""

    def __init__(self, folder: Path) -> None:
        seeing, reading = builder(folder), builder(folder)
        vision_graph(seeing, VisionSizes.of(receipt(folder)), SIZE)
        text_graph(reading, TextSizes.of(receipt(folder)))
        self.folder = folder
        self.decode, self.taps = decode_of(folder)
        self._vision = OnnxSession(seeing.model("vision", "", {}), folder)
        self._text = OnnxSession(reading.model("text", "", {}), folder)
        self.session = functools.cache(lambda optimised=True: OnnxSession(self.decode, folder, optimised))

    def encode(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the decoder reads, of a call of the detector with one image a prompt, or one for all."""
        run, text = self._vision.run({"image": inputs["image"]}), self._text.run({"input_ids": inputs["input_ids"]})
        own = inputs.get("image_ids")
        maps = {k: v if own is None or len(v) == 1 else v[own] for k, v in run.items()}
        return maps | text | prompt_of(inputs)


def prompt_of(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The boxes of a call, and what the packed detector takes where they are left out."""
    boxes = inputs.get("boxes", torch.zeros(len(inputs["input_ids"]), 0, 4))
    labels = inputs.get("box_labels", torch.ones(boxes.shape[:2], dtype=torch.int64))
    padding = inputs.get("box_mask", torch.zeros(boxes.shape[:2], dtype=torch.bool))
    return {"boxes": boxes, "box_labels": labels, "box_mask": padding}


def decode_of(
    folder: Path, dtype: FloatName = "float32", context: int | None = None
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The graph of what is behind the encoders, with its taps as outputs, and their values."""
    sizes = DetectorSizes.of(receipt(folder), SIZE)
    own = {f"{part}_heads": heads for part, heads in HEADS.items()}  # every part has other heads than the next
    b = builder(folder, dtype)
    decode_graph(b, dataclasses.replace(sizes, context=context or sizes.context, **own))
    model = b.model("decode", "", {}, taps=True)
    onnx.save(model, folder / "decode.onnx")
    onnx.checker.check_model(folder / "decode.onnx", full_check=True)
    return model, b.taps


def builder(folder: Path, dtype: FloatName = "float32") -> GraphBuilder:
    found = read_folder(folder)
    return GraphBuilder(Weights(found, layout_of(found.receipt or {}, mappings())), dtype)


@pytest.fixture(scope="module")
def graphs_of_case(tmp_path_factory) -> Callable[[str, str], Graphs]:
    """Layout and case -> the graphs of its weights."""

    @functools.cache
    def made(layout: str, weights: str, context: int) -> Graphs:
        root = tmp_path_factory.mktemp("tiny")
        of = case(weights).weights() if weights else tiny_weights()
        folder = convert(
            write_safetensors(root, of), root / "out", "--layout", layout, "--context", context, "--verify"
        )
        return Graphs(folder)

    def of_case(layout: str, name: str) -> Graphs:
        return made(layout, name if name in ("loud", "small") else "", min(case(name).context, ROWS))

    return of_case


def worst(graphs: Graphs, of: Case, optimised: bool = True) -> dict[str, float]:
    """Tap -> its distance from the golden, in units of what the rule of the goldens allows."""
    found = graphs.session(optimised).run(graphs.encode(of.inputs()))
    far = {}
    for tap, (golden, turn) in golden_taps().items():
        if golden in of.taps:
            value = found[graphs.taps[tap]]
            own = value[: len(of.inputs()["image"])] if tap == "neck.positions" else value
            far[tap] = distance(golden, of.taps[golden], turn(own))
    return far


# context12 has more tokens than the table of positions, which a graph does not stretch. The others need a folder each.
OF_ONE_FOLDER = [name for name in CASES if name not in ("context12", *OWN_FOLDER)]


@pytest.mark.parametrize("name", OF_ONE_FOLDER + [pytest.param(name, marks=pytest.mark.stress) for name in OWN_FOLDER])
def test_every_tap_is_that_of_the_real_detector(name, graphs_of_case):
    graphs, of = graphs_of_case("packed", name), case(name)
    far = worst(graphs, of)
    assert max(far.values()) <= 1, far
    assert graphs.taps.keys() - far.keys() == (set() if "boxes" in of.inputs() else BOXES)
    assert far.keys() <= graphs.taps.keys() == golden_taps().keys()


@pytest.mark.parametrize("layout", [*LAYOUTS, pytest.param("original", marks=pytest.mark.stress)])
def test_so_it_is_in_every_layout_and_as_it_is_written(layout, graphs_of_case):
    for name in ("text", "partial"):
        far = worst(graphs_of_case(layout, name), case(name), optimised=False)
        assert max(far.values()) <= 1, far


# ---- beside the packed detector ----------------------------------------------------------------

# Less than a cell, in a corner and cut by it, around the image, all but outside, outside; and one in the middle.
ODD_BOXES = torch.tensor(
    [
        [0.512, 0.318, 0.03, 0.02], [0.0, 0.0, 0.2, 0.3], [0.95, 0.98, 0.2, 0.2], [0.5, 0.5, 1.2, 1.1],
        [1.13, 0.5, 0.2, 0.4], [1.4, -0.3, 0.1, 0.1], [0.41, 0.62, 0.35, 0.22],
    ]
)  # fmt: skip


def packed_of(folder: Path) -> PackedModel:
    said = config(folder)
    for part, name in (("geometry_encoder", "geometry"), ("detr_encoder", "encoder"), ("mask_decoder", "mask")):
        said[f"{part}_config"]["num_attention_heads"] = HEADS[name]
    return PackedModel.from_weights(said, tensors(folder))


@torch.inference_mode()
def torch_taps(model: PackedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the packed detector's modules return, and its outputs, by the names of the taps."""
    seen: dict[str, Tensor] = {}
    taps = ordered(dict.fromkeys(STAGES, 0) | LAYERS)
    behind = {name: tap for name, tap in taps.items() if tap.stage != "outputs"}
    with reading(model, behind, "converted", lambda tap, value: seen.__setitem__(tap, value.clone())):
        out = model(**inputs)
    return seen | {f"outputs.{name}": getattr(out, name) for name in OUTPUTS}


def off(found: Tensor, wanted: Tensor) -> float:
    """How far two values are from each other, in units of what the rule of the goldens allows."""
    assert found.shape == wanted.shape
    return float((found - wanted).double().norm()) / allowed(float(wanted.double().norm()), wanted.numel())


def two_prompts(images: int) -> dict[str, Tensor]:
    """Two prompts of different lengths, the first with all the odd boxes, the second with two, in another order."""
    draw = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 90, (2, 8), generator=draw)
    ids[1, 4:] = 0
    labels = torch.randint(0, 2, (2, len(ODD_BOXES)), generator=draw)
    mask = torch.zeros(2, len(ODD_BOXES), dtype=torch.bool)
    mask[1, 2:] = True
    return {
        "image": torch.randn(images, 3, SIZE, SIZE, generator=draw), "input_ids": ids,
        "boxes": torch.stack([ODD_BOXES, ODD_BOXES.flip(0)]), "box_labels": labels, "box_mask": mask,
    }  # fmt: skip


@pytest.mark.parametrize("images", [1, 2])
def test_every_tap_is_that_of_the_packed_detector(images, graphs_of_case):
    graphs, inputs = graphs_of_case("packed", "box"), two_prompts(images)
    model = packed_of(graphs.folder)
    wanted, read = torch_taps(model, inputs), graphs.encode(inputs)
    for optimised in (True, False):
        found = graphs.session(optimised).run(read)
        for tap, value in graphs.taps.items():
            assert off(found[value], wanted[tap]) <= 1, tap
        logits, presence = wanted["outputs.pred_logits"][..., 0], wanted["outputs.presence_logit_dec"]
        assert off(found["scores"], logits.sigmoid() * presence.sigmoid()) <= 1
        assert off(corners(found["pred_boxes"]), wanted["outputs.pred_boxes_xyxy"]) <= 1


def test_no_box_is_the_same_as_boxes_that_are_padding(graphs_of_case):
    graphs = graphs_of_case("packed", "text")
    read = graphs.encode(case("prompts2").inputs())
    assert read["boxes"].shape == (2, 0, 4)
    session = graphs.session()
    padded = {"boxes": torch.full((2, 3, 4), 0.5), "box_labels": torch.zeros(2, 3, dtype=torch.int64)}
    none, padding = (session.run(read | more) for more in ({}, padded | {"box_mask": torch.ones(2, 3) > 0}))
    for name in [f"pred_{what}" for what in ("logits", "boxes", "masks")] + ["scores", "semantic_seg"]:
        assert off(none[name], padding[name]) <= 1, name


def test_two_images_for_three_prompts_are_refused(graphs_of_case):
    graphs = graphs_of_case("packed", "text")
    read = graphs.encode(case("three").inputs())
    one_less = {k: v[:2] if k.startswith("map_") else v for k, v in read.items()}
    with pytest.raises(CannotRun, match="onnxruntime fails on the graph"):
        graphs.session().run(one_less)
    several = {k: v if k.startswith("map_") else v[:1] for k, v in read.items()}
    with pytest.raises(CannotRun, match="onnxruntime fails on the graph"):
        graphs.session().run(several)


def test_attention_in_chunks_is_the_same(graphs_of_case, monkeypatch):
    """The grid has 100 cells, and 4 heads: chunks of 30 queries, all told of the map's attention to itself alone."""
    graphs, of = graphs_of_case("packed", "box"), case("box")
    monkeypatch.setattr(layers, "_SCORES_LIMIT", 30 * 4 * 4 * 100)
    model, _ = decode_of(graphs.folder)
    split = {node.name: len(node.output) for node in model.graph.node if node.name.endswith(".queries.0")}
    assert split == {f"encoder.layers.{i}.self.queries.0": 4 for i in range(2)}
    found = OnnxSession(model, graphs.folder).run(graphs.encode(of.inputs()))
    for tap in ("encoder.layers.0", "encoder.layers.1"):
        golden = golden_taps()[tap][0]
        assert distance(golden, of.taps[golden], found[graphs.taps[tap]]) <= 1


def test_norms_of_large_maps_are_as_near_as_small_ones(graphs_of_case):
    """Sums of hundreds of thousands of values, which onnxruntime adds one after another: 3e-6 off in one go."""
    folder = graphs_of_case("packed", "text").folder
    s, b = DetectorSizes.of(receipt(folder), 1008), builder(folder)
    x = b.input("x", "float32", ["batch", 32, 288, 288], "")
    b.output(heads._group_norm(b, s, "y", x, 1, 288), "float32", ["batch", 32, 288, 288], "")
    values = torch.randn(1, 32, 288, 288, generator=torch.Generator().manual_seed(0)) + 3
    scale, bias = (
        tensors(folder)[f"mask_decoder.pixel_decoder.norms.1.{part}"].double() for part in ("weight", "bias")
    )
    wanted = nn.functional.group_norm(values.double(), 8, scale, bias)
    found = OnnxSession(b.model("norm", "", {}), folder).run({"x": values})["y"]
    assert float((found - wanted).abs().max()) < 1e-6 * float(wanted.abs().max())


# What a graph reads at a cut beside the taps of the table: inputs; and the presence token is attended to with the
# queries, of whose bias it has a row of zeros. The original makes the last boxes twice, the graph once.
INPUTS = {"boxes", "box_labels", "box_mask", "text_mask"}
OWN = {"neck.positions": {"neck.2"}, "outputs.pred_boxes_xyxy": {"decoder.box_delta.2"}}
OWN |= {f"decoder.presence.{i}": {f"decoder.rpb_{axis}.{i}" for axis in "xy"} for i in range(3)}


def test_a_cut_at_a_tap_reads_the_taps_before_it(graphs_of_case):
    graphs = graphs_of_case("packed", "box")
    named = {value: tap for tap, value in graphs.taps.items()} | {f"map_{i}": f"neck.{i}" for i in range(3)}
    named["text_features"] = "text.projected"
    cutter, taps = Cutter(graphs.decode), ordered(dict.fromkeys(STAGES, 0) | LAYERS | {"neck": 3, "text": 1})
    for tap, value in graphs.taps.items():
        found = {named.get(name, name) for name in cutter.reads(value, set(graphs.taps.values()) - {value})}
        less = {"decoder.normed.2"} if tap == "outputs.pred_boxes_xyxy" else set()
        assert found - INPUTS == set(reads_of(tap, taps)) - less | OWN.get(tap, set()), tap


def test_half_precision_is_as_near_as_half_precision_is(graphs_of_case, tmp_path):
    checkpoint = write_safetensors(tmp_path, tiny_weights())
    folder = convert(checkpoint, tmp_path / "half", "--dtype", "float16", "--context", 8)
    model, taps = decode_of(folder, "float16")
    graphs, inputs = graphs_of_case("packed", "box"), two_prompts(1)
    wanted, read = torch_taps(packed_of(graphs.folder), inputs), graphs.encode(inputs)
    halved = {k: v.half() if v.is_floating_point() else v for k, v in read.items()}
    found = OnnxSession(model, folder).run(halved)
    far = {tap: float((found[v].float() - wanted[tap]).norm() / wanted[tap].norm()) for tap, v in taps.items()}
    assert max(far.values()) < 0.02, far


VIDEO = ("--layout", "transformers", "--component", "video")


@pytest.mark.stress
@pytest.mark.parametrize(
    ("kind", "options"), [("s0-3.1", ()), ("s0", VIDEO), ("teacher", VIDEO[:2]), ("teacher", VIDEO)]
)
def test_folders_of_the_whole_family_have_this_graph(kind, options, tmp_path):
    """Also where there is no graph of the text encoder: its features are drawn, for both sides."""
    folder = convert(families.write(tmp_path / "tiny.pt", kind), tmp_path / "out", *options)
    s = DetectorSizes.of(receipt(folder), 112)
    said = config(folder)
    text = {"vocab_size": 8, "hidden_size": 64, "intermediate_size": 8, "projection_dim": 8, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 1, "max_position_embeddings": 8, "output_dim": s.width}
    text |= {"use_repmixer_blocks": False}
    model = PackedModel(
        PackedConfig.from_dict(said.get("detector_config", said) | {"text_config": text}), "eager", 112
    ).requires_grad_(False)
    state = {k.removeprefix("detector_model."): t.float() for k, t in tensors(folder).items()}
    state = {k: t for k, t in state.items() if not k.startswith("text_")}
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert all(key.startswith("text_") for key in missing)
    draw = torch.Generator().manual_seed(1)
    features, ids = torch.randn(2, s.context, s.width, generator=draw), torch.ones(2, s.context, dtype=torch.int64)
    ids[1, 5:] = 0
    maps = tuple(torch.randn(1, s.width, side, side, generator=draw) for side in s.sides)
    prompts = two_prompts(1)

    b = builder(folder)
    decode_graph(b, s)
    read = prompt_of(prompts) | {f"map_{i}": m for i, m in enumerate(maps)}
    found = OnnxSession(b.model("decode", "", {}), folder).run(
        read | {"text_features": features, "text_mask": ids != 0}
    )
    model.text_encoder.forward, model.text_projection = lambda ids: (features, None), nn.Identity()
    position = PositionEncoding()(maps[-1])
    wanted = model.decode(EncodedImages(maps, position), ids, **prompt_of(prompts))
    for name, value in wanted._asdict().items():
        assert off(found[name], value) <= 1, name


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def proven(tmp_path_factory):
    """A folder of its own: a proof does not hold where config.json was edited."""
    root = tmp_path_factory.mktemp("proven")
    return convert(write_safetensors(root, tiny_weights()), root / "out", "--layout", "packed", "--verify")


def test_export_writes_three_graphs_for_a_size_and_says_so(proven):
    folder = proven
    before = snapshot(folder)
    done = sam3lite("export", "onnx", folder, "--component", "detector", "--size", 56, "--json")
    assert done.code == 0, done
    assert [graph["name"] for graph in done.json["graphs"]] == ["vision.onnx", "text.onnx", "decode.onnx"]
    assert done.json["next"].endswith("--candidate onnx --component detector --size 56")
    shapes = {v["name"]: v["shape"] for graph in done.json["graphs"] for v in (*graph["inputs"], *graph["outputs"])}
    assert shapes["image"][1:] == [3, 56, 56] and shapes["map_0"][1:] == [32, 16, 16]
    assert shapes["pred_masks"] == ["prompts", 7, 16, 16] and shapes["scores"] == ["prompts", 7]
    models = {name: onnx.load(folder / name, load_external_data=False) for name in ("vision.onnx", "decode.onnx")}
    for model in models.values():
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        assert metadata["image_size"] == "56" and metadata["component"] == "detector"
        assert json.loads(metadata["weights"]) == done.json["weights"]
    assert sam3lite("export", "onnx", folder).code == 0
    text, alone = (onnx.load(folder / name, load_external_data=False) for name in ("text.onnx", "model.onnx"))
    assert text.graph.node == alone.graph.node
    assert snapshot(folder)["model.safetensors"] == before["model.safetensors"]
    assert sam3lite("export", "onnx", folder, "--component", "detector").code == 0
    whole = {v.name: v for v in onnx.load(folder / "vision.onnx", load_external_data=False).graph.input}
    assert [d.dim_value for d in whole["image"].type.tensor_type.shape.dim][1:] == [3, SIZE, SIZE]


def test_what_has_no_detector_or_no_such_size_is_refused(proven, tmp_path):
    for options, said in (
        (("--component", "detector", "--size", 100), "--size must be a multiple of 14"),
        (("--component", "detector", "--size", 0), "--size must be a multiple of 14"),
        (("--size", 56), "--size needs --component detector"),
    ):
        refused = sam3lite("export", "onnx", proven, *options)
        assert refused.code == 2 and said in refused.err
    text = convert(write_safetensors(tmp_path, tiny_weights()), tmp_path / "text", "--component", "text", "--verify")
    refused = sam3lite("export", "onnx", text, "--component", "detector")
    assert refused.code == 2 and "holds the text encoder alone" in refused.err
    assert not list(text.glob("*.onnx"))


def test_sizes_that_do_not_fit_each_other_are_refused(graphs_of_case):
    said = receipt(graphs_of_case("packed", "text").folder)
    for name, value in (("detr_heads", 5), ("hidden", 64), ("queries", "7"), ("scale_factors", [4.0, 2.0])):
        detector = said["architecture"]["detector"] | {name: value}
        with pytest.raises(Untrusted):
            DetectorSizes.of(said | {"architecture": said["architecture"] | {"detector": detector}}, SIZE)
