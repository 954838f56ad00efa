"""The taps of the detector: the places at which both sides are recorded and compared.

This table defines every tap. To add one, add a row at its place in the order of execution; recording, both columns,
noise floors and the pages follow from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from original_ref import ClipText, Detector
from sam3lite_convert.parity import taps as text_taps

Stage = Literal["trunk", "neck", "text", "geometry", "encoder", "decoder", "scoring", "masks", "outputs"]
STAGES: dict[Stage, str] = {
    "trunk": "vision trunk",
    "neck": "neck",
    "text": "text encoder",
    "geometry": "geometry encoder",
    "encoder": "DETR encoder",
    "decoder": "DETR decoder",
    "scoring": "scoring",
    "masks": "mask head",
    "outputs": "outputs",
}
Rows = Literal["all", "boxes", "geometry", "prompt"]


@dataclass(frozen=True)
class Place:
    """Where a model computes a tap. ``{i}`` in the path is the number of a layer.

    path: of the module that is hooked.
    call: which of its calls, if it is called in every layer: the layer's number times ``call``; 0: the first.
    fixed_call: which of its calls, if the row is not per layer.
    part: which part of what it returns: an element of a tuple, or "queries" and "presence" of one tensor.
    at_input: whether its input is read, not its output.
    """

    path: str
    call: int = 0
    fixed_call: int = 0
    part: int | Literal["queries", "presence"] | None = None
    at_input: bool = False


@dataclass(frozen=True)
class Row:
    """A row of the table. ``{i}`` in its name is the number of a layer: such a row is one tap in each layer.

    name: in reports and files; its first word tells the stage.
    what: what the activation is, for the author of a port.
    original: where the reference computes it.
    converted: where the packed detector and transformers' compute it; None: neither has a module that returns it.
    tensors: prefixes of the keys of its tensors in the original.
    rows: which rows of the second axis hold something: others are padding, and are not compared.
    """

    name: str
    what: str
    original: Place
    converted: Place | None
    tensors: tuple[str, ...] = ()
    rows: Rows = "all"

    @property
    def stage(self) -> Stage:
        """The stage that the tap belongs to."""
        stage: Stage = self.name.split(".")[0]  # type: ignore[assignment]
        return stage

    @property
    def per_layer(self) -> bool:
        """Whether the row is a tap of each layer."""
        return "{i}" in self.name


TEXT_ENCODER = "backbone.language_backbone."  # where the original has it
_VISION, _DECODER = "backbone.vision_backbone.", "transformer.decoder."
_VIT = "vision_encoder.backbone."


def _text_rows(original: str, converted: str) -> Iterator[Row]:
    """The taps of the text encoder, but for the pooled output, which the detector does not compute.

    original, converted: kinds of encoders.
    """
    for point in text_taps.TAPS:
        if point is text_taps.POOLED:
            continue
        places = point.modules or point.elsewhere
        ours, theirs = places[original], places[converted]
        yield Row(
            f"text.{point.name}",
            point.what,
            Place(TEXT_ENCODER + ours, at_input=point.at_input),
            Place(theirs, at_input=point.at_input),
            tuple(TEXT_ENCODER + start for start in point.tensors),
        )


def _decoder_row(name: str, what: str, ours: str, theirs: str | None, calls: int = 1) -> Row:
    """A tap of a module of the decoder that is called once in each layer. ``calls``: by transformers."""
    return Row(
        f"decoder.{name}.{{i}}",
        what,
        Place(_DECODER + ours, call=1),
        Place(f"detr_decoder.{theirs}", call=calls) if theirs else None,
        (f"{_DECODER}{ours}.",),
    )


ROWS: tuple[Row, ...] = (
    Row(
        "trunk.patch_embed",
        "patches",
        Place(f"{_VISION}trunk.patch_embed"),
        Place(f"{_VIT}embeddings.patch_embeddings"),
        (f"{_VISION}trunk.patch_embed.",),
    ),
    Row(
        "trunk.ln_pre",
        "patches plus tiled positions, normed",
        Place(f"{_VISION}trunk.ln_pre"),
        Place(f"{_VIT}layer_norm"),
        (f"{_VISION}trunk.pos_embed", f"{_VISION}trunk.ln_pre."),
    ),
    Row(
        "trunk.blocks.{i}",
        "what block {i} returns, residuals included",
        Place(f"{_VISION}trunk.blocks.{{i}}"),
        Place(f"{_VIT}layers.{{i}}"),
        (f"{_VISION}trunk.blocks.{{i}}.",),
    ),
    Row(
        "neck.{i}",
        "level {i}, 0 the finest",
        Place(f"{_VISION}convs.{{i}}"),
        Place("vision_encoder.neck.fpn_layers.{i}"),
        (f"{_VISION}convs.{{i}}.",),
    ),
    Row(
        "neck.positions",
        "the sine position map of level 2",
        Place(f"{_VISION}position_encoding", fixed_call=2),
        Place("vision_encoder.neck.position_encoding", fixed_call=2),
    ),
    *_text_rows(text_taps.ORIGINAL, text_taps.PACKED),
    Row(
        "geometry.box_direct",
        "the box's four numbers, projected",
        Place("geometry_encoder.boxes_direct_project"),
        Place("geometry_encoder.boxes_direct_project"),
        ("geometry_encoder.boxes_direct_project.",),
        "boxes",
    ),
    Row(
        "geometry.box_pooled",
        "what lies under the box: normed, aligned, convolved",
        Place("geometry_encoder.boxes_pool_project"),
        Place("geometry_encoder.boxes_pool_project"),
        ("geometry_encoder.img_pre_norm.", "geometry_encoder.boxes_pool_project."),
        "boxes",
    ),
    Row(
        "geometry.box_position",
        "the sine code of the box, projected",
        Place("geometry_encoder.boxes_pos_enc_project"),
        Place("geometry_encoder.boxes_pos_enc_project"),
        ("geometry_encoder.boxes_pos_enc_project.",),
        "boxes",
    ),
    Row(
        "geometry.box_label",
        "the embedding of the box's label",
        Place("geometry_encoder.label_embed"),
        Place("geometry_encoder.label_embed"),
        ("geometry_encoder.label_embed.",),
        "boxes",
    ),
    Row(
        "geometry.final_proj",
        "box tokens and the class token, projected",
        Place("geometry_encoder.final_proj"),
        Place("geometry_encoder.final_proj"),
        ("geometry_encoder.cls_embed.", "geometry_encoder.final_proj."),
        "geometry",
    ),
    Row(
        "geometry.norm",
        "the same, normed: the input of layer 0",
        Place("geometry_encoder.norm"),
        Place("geometry_encoder.prompt_layer_norm"),
        ("geometry_encoder.norm.",),
        "geometry",
    ),
    Row(
        "geometry.layers.{i}",
        "what layer {i} returns",
        Place("geometry_encoder.encode.{i}"),
        Place("geometry_encoder.layers.{i}"),
        ("geometry_encoder.encode.{i}.",),
        "geometry",
    ),
    Row(
        "geometry.output",
        "geometry tokens of the prompt",
        Place("geometry_encoder.encode_norm"),
        Place("geometry_encoder.output_layer_norm"),
        ("geometry_encoder.encode_norm.",),
        "geometry",
    ),
    Row(
        "encoder.layers.{i}",
        "what layer {i} returns",
        Place("transformer.encoder.layers.{i}"),
        Place("detr_encoder.layers.{i}"),
        ("transformer.encoder.layers.{i}.",),
    ),
    _decoder_row("query_position", "the position of each query", "ref_point_head", "ref_point_head"),
    _decoder_row("rpb_x", "relative position bias of columns", "boxRPB_embed_x", "box_rpb_embed_x"),
    _decoder_row("rpb_y", "relative position bias of rows", "boxRPB_embed_y", "box_rpb_embed_y"),
    Row(
        "decoder.queries.{i}",
        "the queries that layer {i} returns",
        Place(f"{_DECODER}layers.{{i}}", part=0),
        Place("detr_decoder.layers.{i}", part="queries"),
        (f"{_DECODER}layers.{{i}}.", f"{_DECODER}query_embed."),
    ),
    Row(
        "decoder.presence.{i}",
        "the presence token that layer {i} returns",
        Place(f"{_DECODER}layers.{{i}}", part=1),
        Place("detr_decoder.layers.{i}", part="presence"),
        (f"{_DECODER}layers.{{i}}.", f"{_DECODER}presence_token."),
    ),
    _decoder_row("normed", "the queries, normed", "norm", "output_layer_norm", calls=2),
    _decoder_row("box_delta", "how far the boxes are moved, as logits", "bbox_embed", "box_head"),
    _decoder_row("presence_norm", "the presence token, normed", "presence_token_out_norm", "presence_layer_norm"),
    _decoder_row("presence_logit", "the presence logit, not clamped", "presence_token_head", "presence_head"),
    Row(
        "scoring.prompt_mlp",
        "prompt tokens through the MLP",
        Place("dot_prod_scoring.prompt_mlp"),
        Place("dot_product_scoring.text_mlp_out_norm"),
        ("dot_prod_scoring.prompt_mlp.",),
        "prompt",
    ),
    Row(
        "scoring.prompt",
        "the mean of valid prompt tokens, projected",
        Place("dot_prod_scoring.prompt_proj"),
        Place("dot_product_scoring.text_proj"),
        ("dot_prod_scoring.prompt_proj.",),
    ),
    Row(
        "scoring.queries",
        "the queries of all layers, projected",
        Place("dot_prod_scoring.hs_proj"),
        Place("dot_product_scoring.query_proj"),
        ("dot_prod_scoring.hs_proj.",),
    ),
    Row(
        "scoring.logits",
        "the scores of all layers",
        Place("dot_prod_scoring"),
        Place("dot_product_scoring"),
    ),
    Row(
        "masks.prompt_norm",
        "the memory, normed",
        Place("segmentation_head.cross_attn_norm"),
        Place("mask_decoder.prompt_cross_attn_norm"),
        ("segmentation_head.cross_attn_norm.",),
    ),
    Row(
        "masks.prompt_attention",
        "the memory's attention to the prompt",
        Place("segmentation_head.cross_attend_prompt"),
        Place("mask_decoder.prompt_cross_attn"),
        ("segmentation_head.cross_attend_prompt.",),
    ),
    Row(
        "masks.pixel_decoder",
        "the finest map, for all masks",
        Place("segmentation_head.pixel_decoder"),
        Place("mask_decoder.pixel_decoder"),
        ("segmentation_head.pixel_decoder.",),
    ),
    Row(
        "masks.instance",
        "the same, for the masks of queries",
        Place("segmentation_head.instance_seg_head"),
        Place("mask_decoder.instance_projection"),
        ("segmentation_head.instance_seg_head.",),
    ),
    Row(
        "masks.mask_embed",
        "the queries as filters of that map",
        Place("segmentation_head.mask_predictor.mask_embed"),
        Place("mask_decoder.mask_embedder"),
        ("segmentation_head.mask_predictor.",),
    ),
    Row(
        "masks.semantic",
        "the mask of everything that the prompt names",
        Place("segmentation_head.semantic_seg_head"),
        Place("mask_decoder.semantic_projection"),
        ("segmentation_head.semantic_seg_head.",),
    ),
)
_OWN_TEXT = {row.name: row for row in _text_rows(text_taps.SAM3_ORIGINAL, text_taps.SAM3_TRANSFORMERS)}
# The same for SAM3 with its own text encoder, where nothing else differs.
SAM3_ROWS = tuple(_OWN_TEXT.get(row.name, row) for row in ROWS)
# The result's entries, in the order of the table: they are taps without a module.
OUTPUTS: dict[str, str] = {
    "pred_logits": "the scores of the last layer",
    "pred_boxes_xyxy": "boxes, x0 y0 x1 y1 relative to the picture",
    "presence_logit_dec": "whether the picture shows any such object",
    "pred_masks": "masks, as logits",
    "semantic_seg": "the mask of everything that the prompt names, as logits",
}


@dataclass(frozen=True)
class Tap:
    """One tap of a detector. ``layer``: 0 for a row that is not per layer."""

    name: str
    row: Row | None
    layer: int = 0

    @property
    def stage(self) -> Stage:
        """The stage that it belongs to."""
        return self.row.stage if self.row else "outputs"

    @property
    def what(self) -> str:
        """What the activation is."""
        return self.row.what.replace("{i}", str(self.layer)) if self.row else OUTPUTS[self.name.split(".")[1]]

    @property
    def tensors(self) -> tuple[str, ...]:
        """Prefixes of the keys of its tensors in the original."""
        return tuple(start.replace("{i}", str(self.layer)) for start in self.row.tensors) if self.row else ()

    def path(self, place: Place) -> str:
        """The module that is hooked for it."""
        return place.path.replace("{i}", str(self.layer))

    def call(self, place: Place) -> int:
        """Which call of the module."""
        return place.fixed_call + place.call * self.layer


def taps_of(model: Detector) -> dict[str, Tap]:
    """Every tap of a reference, in the order of execution, by name."""
    counts = dict.fromkeys(STAGES, 0) | {
        "trunk": len(model.backbone.vision_backbone.trunk.blocks),
        "neck": 3,
        "text": len(model.backbone.language_backbone.parts.layers),
        "geometry": len(model.geometry_encoder.encode),
        "encoder": len(model.transformer.encoder.layers),
        "decoder": len(model.transformer.decoder.layers),
    }
    own = isinstance(model.backbone.language_backbone, ClipText)
    return ordered(counts, SAM3_ROWS if own else ROWS)


def ordered(layers: Mapping[Stage, int], rows: tuple[Row, ...] = ROWS) -> dict[str, Tap]:
    """Every tap of a detector with these numbers of layers, in the order of execution, by name."""
    found: dict[str, Tap] = {}
    group: list[Row] = []
    for row in (*rows, None):
        if group and (row is None or not row.per_layer or row.stage != group[0].stage):
            for layer in range(layers[group[0].stage]):
                found |= {name: Tap(name, r, layer) for r in group if (name := r.name.replace("{i}", str(layer)))}
            group = []
        if row is not None and row.per_layer:
            group.append(row)
        elif row is not None:
            found[row.name] = Tap(row.name, row)
    return found | {f"outputs.{name}": Tap(f"outputs.{name}", None) for name in OUTPUTS}


def row_name(tap: str) -> str:
    """The name of a tap's row: ``trunk.blocks.{i}`` for ``trunk.blocks.7``."""
    return re.sub(r"(?<=\.)\d+$", "{i}", tap)
