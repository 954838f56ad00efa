"""The graphs that this version writes for a converted folder; the same folder gives the same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal

import onnx

from sam3lite_convert.convert.folder import Folder
from sam3lite_convert.convert.graph_files import DETECTOR_MODELS as DETECTOR_MODELS
from sam3lite_convert.convert.graph_files import GRAPH_SUFFIX as GRAPH_SUFFIX
from sam3lite_convert.convert.graph_files import TEXT_MODEL as TEXT_MODEL
from sam3lite_convert.errors import CannotRun, Untrusted
from sam3lite_convert.graph.builder import FloatName, GraphBuilder
from sam3lite_convert.graph.decode import decode_graph
from sam3lite_convert.graph.sizes import DetectorSizes, TextSizes, VisionSizes
from sam3lite_convert.graph.text import text_graph
from sam3lite_convert.graph.vision import vision_graph
from sam3lite_convert.graph.weights import Weights
from sam3lite_convert.plan.architecture import VISION, WORD_TABLES
from sam3lite_convert.plan.families import FAMILIES
from sam3lite_convert.plan.tables import Layout, Mappings
from sam3lite_convert.records.record import Json

Component = Literal["text", "detector"]
# What is said of each graph; in braces: the family.
_TEXT_DOC = "The text encoder of a {} detector: token ids to the features that the detector reads."
_VISION_DOC = "The image side of a {} detector: pictures to maps, which any number of prompts are found in."
_DECODE_DOC = "The rest of a {} detector: maps, text features and boxes to boxes, scores and masks."


def layout_of(receipt: Json, mappings: Mappings) -> Layout:
    """The layout that a receipt states. Raises CannotRun if there is none such, Untrusted if it states none."""
    said = [receipt.get(name) for name in ("layout", "component", "family")]
    family = next((family for family in FAMILIES.values() if family.name == said[2]), None)
    if not isinstance(said[0], str) or not isinstance(said[1], str) or family is None:
        raise Untrusted("conversion.json does not state layout, component and family", "bad_receipt")
    return mappings.layout(said[0], family, said[1])


def graphs_of(
    folder: Folder,
    layout: Layout,
    component: Component,
    metadata: Mapping[str, str],
    taps: bool = False,
    size: int | None = None,
) -> dict[str, onnx.ModelProto]:
    """The graphs of a folder by the names of their files.

    metadata: what every graph says of the folder. taps: make every tap an output.
    size: side of the pictures that the detector's graphs are for, in pixels; by default the detector's own.
    Raises CannotRun if there is no graph for such a component or size, UnsoundPlan if a tensor is missing, Untrusted if
    the receipt does not state the sizes.
    """
    weights, receipt = Weights(folder, layout), folder.receipt or {}
    dtype = _dtype(weights)
    b = GraphBuilder(weights, dtype)
    text_sizes, family = TextSizes.of(receipt), layout.family.name
    if component == "text":
        text_graph(b, text_sizes)
        return {TEXT_MODEL: b.model("text encoder", _TEXT_DOC.format(family), _stated(b, metadata, component), taps)}
    if receipt.get("component") == "text":
        raise CannotRun(f"{folder.path} holds the text encoder alone: leave out --component detector", "text_only")
    if not any(name.startswith(f"{VISION}trunk.blocks.") for name in weights.names()):
        raise CannotRun(
            f"there is no graph for the detector in {folder.path}: its image encoder is not SAM3's ViT. For the graph "
            "of its text encoder, leave out --component detector",
            "no_graph",
        )
    vision_sizes = VisionSizes.of(receipt)
    side = vision_sizes.image if size is None else size
    text_graph(b, text_sizes, "text.")
    seeing, finding = GraphBuilder(weights, dtype), GraphBuilder(weights, dtype)
    vision_graph(seeing, vision_sizes, side)
    decode_graph(finding, DetectorSizes.of(receipt, side))
    sized = dict(metadata) | {"image_size": str(side)}
    parts = (
        (seeing, "image encoder", _VISION_DOC, sized),
        (b, "text encoder", _TEXT_DOC, metadata),
        (finding, "decoder", _DECODE_DOC, sized),
    )
    models = (
        made.model(name, doc.format(family), _stated(made, said, component), taps) for made, name, doc, said in parts
    )
    return dict(zip(DETECTOR_MODELS, models, strict=True))


def _stated(b: GraphBuilder, metadata: Mapping[str, str], component: Component) -> dict[str, str]:
    """The metadata of a graph: what is given, and where its taps are."""
    return dict(metadata) | {"component": component, "taps": json.dumps(b.taps)}


def _dtype(weights: Weights) -> FloatName:
    """The dtype of the text encoder's table. Raises CannotRun if no graph has it, UnsoundPlan if there is no table."""
    first = weights.one(next((name for name in WORD_TABLES if name in weights), WORD_TABLES[0]))
    if first.dtype not in ("float32", "float16"):
        raise CannotRun(
            f"a graph is float32 or float16, and the folder is {first.dtype}: convert with --dtype float32 or --dtype "
            "float16",
            "unsupported_dtype",
        )
    return "float32" if first.dtype == "float32" else "float16"


def serialized(model: onnx.ModelProto) -> bytes:
    """The bytes of a graph's file: the same for the same graph."""
    data: bytes = model.SerializeToString(deterministic=True)
    return data
