"""The loss of a graph: what it finds in one that was changed, neighbours, phrases, random weights."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from support.folders import convert, tensors, tiny_state, write

from sam3lite_convert.convert.folder import read_folder
from sam3lite_convert.graph.compare import taps_of
from sam3lite_convert.graph.folder_graphs import graphs_of, layout_of
from sam3lite_convert.graph.quantize import quantized
from sam3lite_convert.parity.graph_loss import (
    detection_loss,
    graph_losses,
    look_random,
    loss_inputs,
    nearest,
    text_loss,
)
from sam3lite_convert.parity.noun_phrases import noun_phrases
from sam3lite_convert.plan.tables import load_mappings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("loss")
    return convert(write(place, tiny_state()), place / "out", "--component", "text")


@pytest.fixture(scope="module")
def plain(folder):
    found = read_folder(folder)
    (model,) = graphs_of(found, layout_of(found.receipt or {}, load_mappings(None)), "text", {}).values()
    return model


@pytest.fixture(scope="module")
def inputs(plain):
    return loss_inputs({"model.onnx": plain}).rows(range(0, 1000, 25))


def test_a_graph_loses_nothing_against_itself(plain, folder, inputs):
    loss = text_loss(plain, plain, folder, inputs, budget=0)
    assert [tap.name for tap in loss.taps][:2] == ["embeddings", "layers.0"] and len(loss.taps) == 10
    assert all((tap.relative_l2, tap.cosine, tap.max_abs_diff) == (0, 1, 0) for tap in loss.taps)
    assert loss.first_over_budget is None
    assert [(a.features, a.share, a.changed) for a in loss.agreement] == [("tokens", 1, ()), ("end", 1, ())]
    assert loss.batch_relative_l2 < 1e-6
    assert loss.unquantised_bytes > 20 * loss.bytes > 0  # of a graph without its weights
    low, high = loss.times_as_fast_quartiles
    assert loss.rows == 40 and loss.milliseconds > 0 and 0 < low <= loss.times_as_fast <= high


def test_a_wrong_zero_point_shows_at_its_layer(plain, folder, inputs):
    made = quantized(plain, folder, "int8")
    right = text_loss(plain, made, folder, inputs)
    assert right.first_over_budget != "layers.3" and all(tap.relative_l2 < 0.05 for tap in right.taps)
    assert right.batch_relative_l2 > 1e-5  # scales are those of the whole call
    (point,) = (t for t in made.graph.initializer if "layers.3.fc2" in t.name and t.name.endswith("_zero_point"))
    values = numpy_helper.to_array(point)
    point.CopyFrom(numpy_helper.from_array(np.full_like(values, 40), point.name))
    wrong = text_loss(plain, made, folder, inputs, budget=0.05)
    assert wrong.first_over_budget == "layers.3"
    before = [tap.relative_l2 for tap in right.taps]
    after = [tap.relative_l2 for tap in wrong.taps]
    assert after[:4] == before[:4] and after[4] > 5 * before[4]


def test_a_projection_that_lost_most_of_its_columns_changes_the_neighbours(plain, folder, inputs):
    made = quantized(plain, folder, "int8")
    right = text_loss(plain, made, folder, inputs)
    (node,) = (n for n in made.graph.node if n.op_type == "MatMulInteger" and n.name.startswith("projected"))
    (matrix,) = (t for t in made.graph.initializer if t.name == node.input[1])
    values = numpy_helper.to_array(matrix).copy()
    values[:, 2:] = 0
    matrix.CopyFrom(numpy_helper.from_array(values, matrix.name))
    wrong = text_loss(plain, made, folder, inputs)
    assert [tap.name for tap in wrong.taps if tap.relative_l2 > 0.5] == ["projected"]
    (mean, pooled), (before, same) = wrong.agreement, right.agreement
    assert pooled == same and mean.share < before.share - 0.3
    (first, *_) = mean.changed
    assert first.prompt in inputs.prompts and first.before != first.after


def test_nearest_is_the_other_row_of_greatest_cosine(monkeypatch):
    monkeypatch.setattr("sam3lite_convert.parity.graph_loss._STRETCH", 7)
    rows = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    found = nearest(rows)
    for n in range(40):
        cosines = [float(torch.cosine_similarity(rows[n], rows[m], dim=0)) if m != n else -2 for m in range(40)]
        assert found[n] == int(np.argmax(cosines))


def test_the_phrases_are_a_thousand_and_get_ids_without_a_tokenizer(plain, monkeypatch):
    phrases = noun_phrases()
    assert len(phrases) == len(set(phrases)) == 1000
    assert all(phrase.isascii() and phrase == phrase.lower() and len(phrase.split()) in (2, 3) for phrase in phrases)
    short = loss_inputs({"model.onnx": plain})
    assert "each word as one id (the vocabulary is not CLIP's)" in short.what
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "instant_clip_tokenizer", None)
        assert "each word as one id (without the extra 'prompts')" in loss_inputs({"model.onnx": plain}).what
    assert short.ids.shape == (1000, 16) and len(torch.unique(short.ids, dim=0)) == 1000
    shared = [len(set(short.ids[0].tolist()) & set(short.ids[n].tolist())) for n in (1, 21)]
    assert shared[0] > shared[1]  # red car: blue car, blue bus


def test_random_weights_are_told(plain, folder, tmp_path):
    assert look_random(plain, folder)
    draw = np.random.default_rng(0)
    uneven = draw.standard_normal((2000, 64)) * np.exp(draw.normal(0, 0.1, 64))
    for values, random in ((draw.uniform(-1, 1, (2000, 64)), True), (uneven, False)):
        (tmp_path / "weights").write_bytes(values.astype(np.float32).tobytes())
        tensor = TensorProto(name="table", data_type=TensorProto.FLOAT, dims=values.shape)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.extend(
            onnx.StringStringEntryProto(key=key, value=value)
            for key, value in (("location", "weights"), ("offset", "0"))
        )
        model = helper.make_model(helper.make_graph([], "table", [], [], [tensor]))
        assert look_random(model, tmp_path) is random


@pytest.mark.stress
def test_one_layer_that_is_quantised_coarsely_is_the_first_over_the_budget(tmp_path):
    folder = convert(write(tmp_path, tiny_state()), tmp_path / "all")
    found, held = read_folder(folder), tensors(folder)
    plain = graphs_of(found, layout_of(found.receipt or {}, load_mappings(None)), "detector", {}, size=56)
    for name, key, tap in (
        ("vision.onnx", "vision_encoder.backbone.layers.0.attention.o_proj", "trunk.blocks.0"),
        ("vision.onnx", "vision_encoder.backbone.layers.5.mlp.fc2", "trunk.blocks.5"),
        ("text.onnx", "text_encoder.layers.2.fc1", "text.layers.2"),
        ("text.onnx", "text_projection", "text.projected"),
        ("decode.onnx", "geometry_encoder.boxes_pool_project", "geometry.box_pooled"),
        ("decode.onnx", "geometry_encoder.boxes_pos_enc_project", "geometry.box_position"),
        ("decode.onnx", "detr_encoder.layers.1.mlp.fc1", "encoder.layers.1"),
        ("decode.onnx", "detr_decoder.layers.1.text_cross_attn.v_proj", "decoder.presence.1"),
        ("decode.onnx", "detr_decoder.box_head.layer1", "decoder.box_delta.0"),
        ("decode.onnx", "dot_product_scoring.query_proj", "scoring.queries"),
        ("decode.onnx", "mask_decoder.mask_embedder.layers.2", "masks.mask_embed"),
    ):
        made = {each: onnx.ModelProto.FromString(model.SerializeToString()) for each, model in plain.items()}
        (tensor,) = (each for each in made[name].graph.initializer if each.name == f"{key}.weight")
        values = held[tensor.name].reshape(tuple(tensor.dims)).numpy()
        tensor.CopyFrom(numpy_helper.from_array(np.round(values / np.abs(values).max()), tensor.name))
        losses = graph_losses(plain, made, folder, budget=1e-3)
        assert {each: loss.first_over_budget for each, loss in losses.items() if loss.first_over_budget} == {name: tap}
        assert all(np.prod(each.shape) for each in losses["decode.onnx"].taps)


@pytest.mark.stress
def test_a_detector_is_measured_graph_by_graph_and_as_a_whole(tmp_path):
    folder = convert(write(tmp_path, tiny_state()), tmp_path / "all")
    found = read_folder(folder)
    layout = layout_of(found.receipt or {}, load_mappings(None))
    plain = graphs_of(found, layout, "detector", {}, size=56)
    made = plain | {"decode.onnx": quantized(plain["decode.onnx"], folder, "int8-all")}
    # Masks, and scores, of some queries that are clearly others.
    graph = made["decode.onnx"].graph
    makers = {name: node for node in graph.node for name in node.output}
    held = {tensor.name: tensor for tensor in graph.initializer}
    for tap in ("masks.mask_embed", "decoder.presence_logit.1"):
        node = makers[taps_of(plain["decode.onnx"])[tap]]
        while node.op_type != "Add":
            node = makers[node.input[0]]
        (bias,) = (held[name] for name in node.input if name in held)
        values = numpy_helper.to_array(bias)
        bias.CopyFrom(numpy_helper.from_array(values + np.resize(np.float32([3, -2]), values.shape), bias.name))
    losses = graph_losses(plain, made, folder, budget=0.1)
    assert [*losses] == ["vision.onnx", "text.onnx", "decode.onnx"]
    assert [loss.detection is None for loss in losses.values()] == [True, True, False]
    assert [len(loss.agreement) for loss in losses.values()] == [0, 2, 0]
    assert losses["vision.onnx"].first_over_budget is losses["text.onnx"].first_over_budget is None
    assert losses["decode.onnx"].first_over_budget == "decoder.presence_logit.0"  # one bias for all layers
    whole = losses["decode.onnx"].detection
    assert whole is not None and (whole.size, whole.queries) == (56, 10)
    assert (whole.picture, whole.prompt) == ("built-in picture", "red car")
    # By the two biases: masks of other places, and other scores.
    assert whole.mask_iou_mean < 0.5 and whole.score_max_abs_diff > 0.1


def test_masks_and_scores_are_compared_query_by_query():
    draw = torch.Generator().manual_seed(0)
    scores = torch.rand(30, generator=draw)
    masks = torch.randn(30, 8, 8, generator=draw)
    scores_after, masks_after = scores.flip(0), masks + torch.randn(30, 8, 8, generator=draw)
    best = [n for n in range(30) if scores[n] > 0.5]
    masks[best[0]], masks_after[best[0]] = -1, -1  # both empty: alike
    masks_after[best[1]] = -1
    found = detection_loss(
        {"scores": scores[None], "pred_masks": masks[None]},
        {"scores": scores_after[None], "pred_masks": masks_after[None]},
        56,
        "red car",
    )
    shared = []
    for n in best:
        ours, theirs = ({tuple(at) for at in (each[n] > 0).nonzero().tolist()} for each in (masks, masks_after))
        shared.append(len(ours & theirs) / len(ours | theirs) if ours | theirs else 1)
    assert (found.queries, found.size) == (len(best), 56) and 10 < len(best) < 30
    assert found.mask_iou_mean == pytest.approx(sum(shared) / len(shared)) and found.mask_iou_least == 0
    assert found.score_max_abs_diff == pytest.approx(max(abs(a - b) for a, b in zip(scores, scores_after, strict=True)))
    assert found.crossed == sum(bool(a > 0.5) != bool(b > 0.5) for a, b in zip(scores, scores_after, strict=True)) > 0
    few = detection_loss(
        {"scores": scores[None] / 2, "pred_masks": masks[None]},
        {"scores": scores[None] / 2, "pred_masks": masks[None]},
        56,
        "red car",
    )
    assert (few.queries, few.mask_iou_least, few.score_max_abs_diff, few.crossed) == (10, 1, 0, 0)
