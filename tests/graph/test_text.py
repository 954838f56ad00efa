"""The graph of the text encoder, run by onnxruntime, beside the original code's activations and the packed encoder."""

from __future__ import annotations

import json

import onnx
import pytest
import torch
from support.folders import LAYOUTS, convert, tensors, tiny_state, write

from sam3lite_convert.convert.folder import read_folder
from sam3lite_convert.graph.cut import Cutter
from sam3lite_convert.graph.folder_graphs import graphs_of, layout_of
from sam3lite_convert.packed_encoder import PackedTextModel
from sam3lite_convert.parity.onnx_session import OnnxSession
from sam3lite_convert.plan.tables import load_mappings


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_graph_reads_the_folders_own_bytes_and_computes_what_the_packed_encoder_does(tmp_path, layout):
    checkpoint = write(tmp_path, tiny_state())
    folder = convert(checkpoint, tmp_path / layout, "--layout", layout)
    packed = folder if layout == "packed" else convert(checkpoint, tmp_path / "packed", "--layout", "packed")
    found = read_folder(folder)
    (model,) = graphs_of(found, layout_of(found.receipt or {}, load_mappings(None)), "text", {}, taps=True).values()
    onnx.save(model, folder / "model.onnx")
    onnx.checker.check_model(folder / "model.onnx", full_check=True)

    data, held = (folder / "model.safetensors").read_bytes(), tensors(folder)
    outside = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    for tensor in outside:
        place = {entry.key: entry.value for entry in tensor.external_data}
        begin, length = int(place["offset"]), int(place["length"])
        assert data[begin : begin + length] == held[tensor.name].numpy().tobytes()
    assert len(outside) > 50

    ids = torch.randint(1, 512, (3, 16), generator=torch.Generator().manual_seed(0))
    ids[0, 5:] = 0
    wanted = PackedTextModel.from_pretrained(packed)(ids)
    for optimised in (True, False):
        out = OnnxSession(model, folder, optimised).run({"input_ids": ids})
        torch.testing.assert_close(out["text_features"], wanted.projected, atol=1e-5, rtol=0)
        torch.testing.assert_close(out["pooled"], wanted.pooled, atol=1e-5, rtol=0)
        assert torch.equal(out["text_mask"], ids != 0)

    taps = json.loads(next(p.value for p in model.metadata_props if p.key == "taps"))
    cutter = Cutter(model)
    for value in taps.values():
        others = set(taps.values()) - {value}
        alone = OnnxSession(cutter.cut(value, others), folder).run(out | {"input_ids": ids})
        torch.testing.assert_close(alone[value], out[value], atol=1e-5, rtol=0)
    assert cutter.reads(taps["layers.3"], set(taps.values()) - {taps["layers.3"]}) == (taps["layers.2"],)


def test_a_graph_in_float16_is_as_near_to_the_exact_values_as_the_packed_encoder(tmp_path):
    folder = convert(write(tmp_path, tiny_state()), tmp_path / "half", "--component", "text", "--dtype", "float16")
    found = read_folder(folder)
    (model,) = graphs_of(found, layout_of(found.receipt or {}, load_mappings(None)), "text", {}, taps=True).values()
    onnx.save(model, folder / "model.onnx")
    onnx.checker.check_model(folder / "model.onnx", full_check=True)
    assert {t.data_type for t in model.graph.initializer} == {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64}
    # Sums of many terms are in float32, as in the original: of the norms by their attribute, of attention by casts.
    kinds = {node.name: node for node in model.graph.node}
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    assert len(norms) == 9 and all(a.i == 1 for node in norms for a in node.attribute if a.name == "stash_type")
    made_by = {name: node for node in model.graph.node for name in node.output}
    softmaxes = [node for node in model.graph.node if node.op_type == "Softmax"]
    assert len(softmaxes) == 4
    for node in softmaxes:
        before = made_by[node.input[0]]
        assert before.op_type == "Cast" and before.attribute[0].i == onnx.TensorProto.FLOAT
        assert kinds[node.name.removesuffix(".float32")].op_type == "Cast"

    ids = torch.randint(1, 512, (5, 16), generator=torch.Generator().manual_seed(0))
    ids[0, 5:] = 0
    packed = PackedTextModel.from_pretrained(folder)
    half, exact = _values(packed, ids), _values(packed.double(), ids)
    for optimised in (True, False):
        out = OnnxSession(model, folder, optimised).run({"input_ids": ids})
        for tap, value in exact.items():
            floor = (half[tap].double() - value).abs().max()
            assert out[tap].dtype == torch.float16 and 0 < floor < 0.01
            assert (out[tap].double() - value).abs().max() <= 4 * floor, tap


def _values(model, ids):
    found = {}
    hooks = [
        layer.register_forward_hook(lambda module, given, out, n=n: found.update({f"layers.{n}": out}))
        for n, layer in enumerate(model.text_encoder.layers)
    ]
    out = model(ids)
    for hook in hooks:
        hook.remove()
    return found | {"final_layer_norm": out.tokens, "text_features": out.projected, "pooled": out.pooled}
