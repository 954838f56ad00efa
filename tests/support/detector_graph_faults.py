"""Faults that are put into a detector's graphs, one at a time: what a port, or whoever edits a graph, gets wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import onnx
from onnx import numpy_helper
from support.graph_faults import (
    GraphFault,
    bypass,
    drop_input,
    exchange,
    maker,
    read_instead,
    set_attribute,
    skip,
    turn,
)

from sam3lite_convert.graph.sizes import VisionSizes

Made = Callable[[onnx.ModelProto], None]
VISION, DECODE = "vision.onnx", "decode.onnx"


def reversed_inputs(*values: str) -> Made:
    """Exchange the first two inputs of the nodes that make these values."""

    def make(model: onnx.ModelProto) -> None:
        for value in values:
            node = maker(model, value)
            node.input[0], node.input[1] = node.input[1], node.input[0]

    return make


def reading(value: str, place: int, other: str) -> Made:
    """Let the node of a value read another value at one place."""

    def make(model: onnx.ModelProto) -> None:
        maker(model, value).input[place] = other

    return make


def with_constant(value: str, place: int, array: np.ndarray) -> Made:
    """Let the node of a value read a constant of its own at one place."""

    def make(model: onnx.ModelProto) -> None:
        name = f"{value}.constant"
        model.graph.initializer.append(numpy_helper.from_array(array, name))
        maker(model, value).input[place] = name

    return make


def all_of(*changes: Made) -> Made:
    def make(model: onnx.ModelProto) -> None:
        for change in changes:
            change(model)

    return make


def detector_faults(
    models: Mapping[str, onnx.ModelProto], another: Callable[[VisionSizes], onnx.ModelProto], sizes: VisionSizes
) -> Iterator[tuple[str, GraphFault]]:
    """(file, fault) for the graphs of a tiny detector that is run with a box.

    another: writes the image side for other sizes than the folder's own. sizes: these.
    """
    windowed = next(i for i in reversed(range(sizes.layers)) if i not in sizes.global_blocks)
    at = f"trunk.blocks.{windowed}"
    yield (
        VISION,
        GraphFault(
            "q and k are swapped in a ViT block", at, f"{at}.q.pairs", exchange(f"{at}.q.pairs", f"{at}.k.pairs")
        ),
    )
    yield (
        VISION,
        GraphFault(
            "the rotary table is transposed",
            "trunk.blocks.0",
            "trunk.window.cosine_grid",
            reversed_inputs("trunk.window.cosine_grid", "trunk.window.sine_grid"),
        ),
    )

    def become_global(model: onnx.ModelProto) -> None:
        model.CopyFrom(another(replace(sizes, global_blocks=(*sizes.global_blocks, windowed))))

    yield VISION, GraphFault("the attention of windows is made global", at, f"{at}.rows", become_global)
    yield VISION, GraphFault("LayerNorm at eps 0.1", at, f"{at}.norm2", set_attribute(f"{at}.norm2", epsilon=0.1))
    yield (
        VISION,
        GraphFault(
            "the scale of attention is missing",
            "trunk.blocks.1",
            "trunk.blocks.1.scaled",
            skip("trunk.blocks.1.scaled"),
        ),
    )
    yield (
        VISION,
        GraphFault("GELU is the tanh approximation", at, f"{at}.gelu", set_attribute(f"{at}.gelu", approximate="tanh")),
    )
    fine, coarse = (maker(models[VISION], f"map_{level}").input[1] for level in (1, 2))
    yield VISION, GraphFault("a level of the neck reads another's kernel", "neck.1", fine, read_instead(fine, coarse))

    yield (
        DECODE,
        GraphFault(
            "RoiAlign takes half a cell off",
            "geometry.box_pooled",
            "geometry.pool.aligned",
            set_attribute("geometry.pool.aligned", coordinate_transformation_mode="half_pixel"),
        ),
    )
    yield (
        DECODE,
        GraphFault(
            "the class token stands before the boxes",
            "geometry.final_proj",
            "geometry.longer",
            all_of(
                with_constant("geometry.longer", 1, np.array([0, 1, 0, 0, 0, 0], np.int64)),
                with_constant("geometry.is_next", 1, np.zeros((1, 1), np.int64)),
            ),
        ),
    )
    yield (
        DECODE,
        GraphFault(
            "the map has no positions in the DETR encoder",
            "encoder.layers.0",
            "encoder.layers.0.placed",
            skip("encoder.layers.0.placed"),
        ),
    )
    yield (
        DECODE,
        GraphFault(
            "q and k are swapped in the DETR encoder",
            "encoder.layers.1",
            "encoder.layers.1.cross.q",
            all_of(*(exchange("encoder.layers.1.cross.q", "encoder.layers.1.cross.k", n) for n in (1, 2))),
        ),
    )
    yield (
        DECODE,
        GraphFault(
            "boxes are not refined from layer to layer",
            "decoder.query_position.2",
            "decoder.boxes.1",
            all_of(reading("decoder.boxes.1", 0, "decoder.boxes.0"), skip("decoder.boxes.1")),
        ),
    )
    yield (
        DECODE,
        GraphFault(
            "the position bias has a natural logarithm",
            "decoder.rpb_x.0",
            "decoder.rpb_x.0.log",
            skip("decoder.rpb_x.0.log"),
        ),
    )
    yield (
        DECODE,
        GraphFault(
            "the norm of the presence token is skipped",
            "decoder.presence_norm.2",
            "decoder.presence_norm.2",
            skip("decoder.presence_norm.2"),
        ),
    )
    yield (
        DECODE,
        GraphFault(
            "padding counts in the prompt's mean",
            "scoring.prompt",
            "scoring.valid",
            with_constant("scoring.valid", 2, np.ones((), np.float32)),
        ),
    )
    yield DECODE, GraphFault("scores are not divided", "scoring.logits", "scoring.scaled", bypass("scoring.scaled"))
    yield (
        DECODE,
        GraphFault(
            "the mask head does not attend to the prompt", "masks.pixel_decoder", "masks.encoded", skip("masks.encoded")
        ),
    )
    yield (
        DECODE,
        GraphFault(
            "GroupNorm has other groups",
            "masks.pixel_decoder",
            "masks.stages.0.norm.grouped",
            _groups_halved("masks.stages.0.norm.grouped"),
        ),
    )
    yield (
        DECODE,
        GraphFault(
            "maps are enlarged from the other corner",
            "masks.pixel_decoder",
            "masks.stages.0.larger",
            set_attribute("masks.stages.0.larger", nearest_mode="ceil"),
        ),
    )
    yield (
        DECODE,
        GraphFault(
            "a bias of the masks' filters is missing",
            "masks.mask_embed",
            "masks.mask_embed.0",
            drop_input("masks.mask_embed.0"),
        ),
    )
    yield (
        DECODE,
        GraphFault(
            "the matrix of the box tokens is transposed",
            "geometry.final_proj",
            "geometry.final_proj.product",
            turn("geometry.final_proj.product"),
        ),
    )
    yield (
        DECODE,
        GraphFault(
            "boxes are given as centres and sizes",
            "outputs.pred_boxes_xyxy",
            "pred_boxes_xyxy",
            all_of(
                reading("pred_boxes_xyxy", 0, maker(models[DECODE], "pred_boxes").input[0]), skip("pred_boxes_xyxy")
            ),
        ),
    )


def _groups_halved(value: str) -> Made:
    """Reshape to half as many groups, of twice the width."""

    def make(model: onnx.ModelProto) -> None:
        held = {tensor.name: tensor for tensor in model.graph.initializer}
        shape = numpy_helper.to_array(held[maker(model, value).input[1]]).copy()
        shape[1] //= 2
        shape[2] *= 2
        with_constant(value, 1, shape)(model)

    return make
