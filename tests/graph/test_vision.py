"""The graph of the image side, run by onnxruntime, beside the original code's activations and the packed detector's."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import torch
from support import families
from support.detector_goldens import case, distance
from support.folders import LAYOUTS, config, convert, receipt, tensors, tiny_state, write_safetensors
from torch import Tensor

from sam3lite_convert.convert.folder import read_folder
from sam3lite_convert.convert.packed_config import PackedNeckConfig, PackedVitConfig
from sam3lite_convert.errors import CannotRun, Untrusted
from sam3lite_convert.graph import layers, vision
from sam3lite_convert.graph.builder import FloatName, GraphBuilder
from sam3lite_convert.graph.cut import Cutter
from sam3lite_convert.graph.folder_graphs import layout_of
from sam3lite_convert.graph.positions import position_map, rotary_angles
from sam3lite_convert.graph.sizes import VisionSizes
from sam3lite_convert.graph.weights import Weights
from sam3lite_convert.packed_detector.positions import PositionEncoding, rotary_table
from sam3lite_convert.packed_detector.vision import VisionEncoder
from sam3lite_convert.parity.detector.taps import STAGES, ordered
from sam3lite_convert.parity.onnx_session import OnnxSession
from sam3lite_convert.plan.tables import load_mappings

GOLDEN = "backbone.vision_backbone."
VIDEO = ("--layout", "transformers", "--component", "video")
NEAR = {"atol": 2e-5, "rtol": 0.0}
mappings = functools.cache(load_mappings)


class Built(NamedTuple):
    model: onnx.ModelProto
    taps: dict[str, str]


def builder(folder: Path, dtype: FloatName = "float32") -> GraphBuilder:
    found = read_folder(folder)
    return GraphBuilder(Weights(found, layout_of(found.receipt or {}, mappings())), dtype)


def built(folder: Path, size: int, dtype: FloatName = "float32") -> Built:
    """The graph of a folder, checked, with its taps as outputs."""
    b = builder(folder, dtype)
    vision.vision_graph(b, VisionSizes.of(receipt(folder)), size)
    model = b.model("vision", "", {}, taps=True)
    onnx.save(model, folder / "vision.onnx")
    onnx.checker.check_model(folder / "vision.onnx", full_check=True)
    return Built(model, b.taps)


def torch_encoder(folder: Path) -> VisionEncoder:
    """The packed detector's vision encoder on a folder of any layout, which all name it alike; in float32."""
    whole = config(folder)
    said = whole.get("detector_config", whole)["vision_config"]
    fields = {field.name for field in dataclasses.fields(PackedVitConfig)}
    vit = {k: tuple(v) if isinstance(v, list) else v for k, v in said["backbone_config"].items() if k in fields}
    encoder = VisionEncoder(
        PackedVitConfig(**vit), PackedNeckConfig(said["fpn_hidden_size"], tuple(said["scale_factors"]))
    )
    prefix = "detector_model.vision_encoder." if "detector_config" in whole else "vision_encoder."
    state = {k.removeprefix(prefix): t.float() for k, t in tensors(folder).items() if k.startswith(prefix)}
    encoder.load_state_dict(state)
    return encoder


@torch.inference_mode()
def torch_taps(folder: Path, image: Tensor) -> dict[str, Tensor]:
    """What the modules of the packed detector's vision encoder return, by the names of the taps."""
    encoder, seen = torch_encoder(folder), dict[str, Tensor]()
    vit = encoder.backbone
    named = {"trunk.patch_embed": vit.embeddings.patch_embeddings, "trunk.ln_pre": vit.layer_norm}
    named |= {f"trunk.blocks.{i}": layer for i, layer in enumerate(vit.layers)}
    named |= {f"neck.{i}": encoder.neck.fpn_layers[i] for i in range(3)}
    for name, module in named.items():
        module.register_forward_hook(lambda _, args, output, name=name: seen.__setitem__(name, output))
    encoder(image)
    return seen


def pictures(count: int, size: int) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted).norm() / wanted.norm())


@pytest.fixture(scope="module", params=(*LAYOUTS, "original"))
def golden_folder(request, tmp_path_factory) -> Path:
    """The detector of the goldens: its windows of 4 do not divide its grid of 10 x 10. The last layout holds q, k and v
    as one matrix, and a class row."""
    root = tmp_path_factory.mktemp(request.param)
    return convert(
        write_safetensors(root, case("text").weights()), root / "out", "--layout", request.param, "--context", 8
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("vision")
    return convert(write_safetensors(root, tiny_state()), root / "out")


@pytest.mark.parametrize("optimised", [True, False])
def test_every_tap_is_that_of_the_real_detector(golden_folder, optimised):
    graph = built(golden_folder, 140)
    session = OnnxSession(graph.model, golden_folder, optimised)
    for name in ("text", "batch2"):  # one picture, two pictures
        of = case(name)
        out = session.run({"image": of.inputs()["image"]})
        for tap, value in graph.taps.items():
            name = GOLDEN + tap.replace("neck", "convs")
            found = out[value].unflatten(1, (10, 10)) if tap == "trunk.patch_embed" else out[value]
            assert distance(name, of.taps[name], found) <= 1, tap
    assert len(graph.taps) == 2 + 4 + 3


@pytest.mark.parametrize("size", [56, 112, 154])  # as the position table; as the window divides it; as it does not
def test_every_tap_is_that_of_the_packed_detector(folder, size):
    graph = built(folder, size)
    layers = dict.fromkeys(STAGES, 0) | {"trunk": 8, "neck": 3}
    assert list(graph.taps) == [t for t in ordered(layers) if t.startswith(("trunk.", "neck.")) and t[-1] != "s"]
    for count in (1, 2):
        wanted = torch_taps(folder, pictures(count, size))
        out = OnnxSession(graph.model, folder).run({"image": pictures(count, size)})
        for tap, value in graph.taps.items():
            torch.testing.assert_close(out[value], wanted[tap], **NEAR)
    assert [o.name for o in graph.model.graph.output][:3] == ["map_0", "map_1", "map_2"]


@pytest.mark.stress
@pytest.mark.parametrize(
    ("kind", "options"), [("s0-3.1", ()), ("s0", VIDEO), ("teacher", VIDEO[:2]), ("teacher", VIDEO)]
)
def test_folders_of_the_whole_family_have_a_graph(kind, options, tmp_path):
    folder = convert(families.write(tmp_path / "tiny.pt", kind), tmp_path / "out", *options)
    graph = built(folder, 84)
    wanted = torch_taps(folder, pictures(1, 84))
    out = OnnxSession(graph.model, folder).run({"image": pictures(1, 84)})
    for tap, value in graph.taps.items():
        assert relative(out[value], wanted[tap]) < 1e-5, tap


def test_a_float16_folder_computes_within_float16_and_turns_in_float32(tmp_path):
    folder = convert(write_safetensors(tmp_path, tiny_state()), tmp_path / "out", "--dtype", "float16")
    graph = built(folder, 140, "float16")
    image = pictures(2, 140).half()
    wanted = torch_taps(folder, image.float())
    for optimised in (True, False):
        out = OnnxSession(graph.model, folder, optimised).run({"image": image})
        for tap, value in graph.taps.items():
            assert out[value].dtype == torch.float16
            assert relative(out[value], wanted[tap]) < 2e-3, tap
    typed = onnx.shape_inference.infer_shapes(graph.model).graph.value_info
    turned = {value.type.tensor_type.elem_type for value in typed if value.name.endswith((".q.sum", ".k.sum"))}
    assert turned == {onnx.TensorProto.FLOAT}


@pytest.mark.parametrize(("rows", "split"), [(30, {7: 4}), (7, dict.fromkeys(range(7), 4) | {7: 15})])
def test_attention_in_chunks_is_the_same(folder, rows, split, monkeypatch):
    """``rows``: of the scores of the whole grid, 100 x 100 for each of two heads; so many chunks by block."""
    image = {"image": pictures(2, 140)}
    graph = built(folder, 140)
    whole = OnnxSession(graph.model, folder).run(image)
    monkeypatch.setattr(layers, "_SCORES_LIMIT", rows * 2 * 4 * 100)
    chunked = built(folder, 140).model
    made = {node.name: len(node.output) for node in chunked.graph.node if node.op_type == "Split"}
    assert made == {f"trunk.blocks.{i}.queries.0": chunks for i, chunks in split.items()}
    out = OnnxSession(chunked, folder).run(image)
    for value in graph.taps.values():
        torch.testing.assert_close(out[value], whole[value], atol=2e-6, rtol=0)


def test_a_tap_can_be_computed_from_the_one_before_it(folder):
    graph, image = built(folder, 112), pictures(2, 112)
    out = OnnxSession(graph.model, folder).run({"image": image}) | {"image": image}
    cutter, values = Cutter(graph.model), list(graph.taps.values())
    for before, value in zip(["image", *values], values, strict=False):
        others = set(values) - {value}
        before = "trunk.blocks.7" if value.startswith("map") else before
        assert cutter.reads(value, others) == (before,)
        alone = OnnxSession(cutter.cut(value, others), folder).run(out)
        torch.testing.assert_close(alone[value], out[value], **NEAR)


@pytest.mark.parametrize("size", [0, 13, 113, 129 * 14])
def test_a_size_that_has_no_graph_is_refused(folder, size):
    with pytest.raises(CannotRun, match=r"--size"):
        vision.vision_graph(builder(folder), VisionSizes.of(receipt(folder)), size)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("patch", None, "does not state architecture.detector.patch"),
        ("window_size", 0, "not a positive number"),
        ("vit_heads", 5, "do not fit"),
        ("scale_factors", [3.0, 1.0], "do not fit"),
        ("global_attn_indexes", ["7"], "not a list"),
    ],
)
def test_a_receipt_of_other_sizes_is_refused(folder, name, value, said):
    changed = receipt(folder)
    changed["architecture"]["detector"][name] = value
    if value is None:
        del changed["architecture"]["detector"][name]
    with pytest.raises(Untrusted, match=said):
        VisionSizes.of(changed)


def test_codes_of_positions_are_torchs_to_the_last_bit_of_float32(folder):
    b = builder(folder)
    b.output(position_map(b, "positions", 32, 10, 7), "float32", [1, 32, 10, 7], "")
    found = OnnxSession(b.model("positions", "", {}), folder).run({})["positions"]
    torch.testing.assert_close(found, PositionEncoding()(torch.zeros(1, 32, 10, 7)), atol=6e-8, rtol=0)
    angles = rotary_angles(72, 24 / 72, 64).astype(np.float64)
    table = rotary_table(72, 24 / 72, 64, torch.device("cpu")).view(72, 72, 32)
    for part, wanted in ((np.cos(angles), table.real), (np.sin(angles), table.imag)):
        for line in (wanted[5, :, :16], wanted[:, 5, 16:]):
            torch.testing.assert_close(torch.from_numpy(part).float(), line, atol=6e-8, rtol=0)
