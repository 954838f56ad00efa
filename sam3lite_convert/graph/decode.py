"""The graph that finds what prompts name: image maps, text features and boxes in; boxes, scores and masks out."""

from __future__ import annotations

from sam3lite_convert.graph.boxes import corners
from sam3lite_convert.graph.builder import GraphBuilder
from sam3lite_convert.graph.detr import Prompt, detr_decoder, detr_encoder
from sam3lite_convert.graph.geometry import geometry_encoder
from sam3lite_convert.graph.heads import masks, scoring
from sam3lite_convert.graph.layers import padding_scores
from sam3lite_convert.graph.positions import position_map
from sam3lite_convert.graph.sizes import DetectorSizes
from sam3lite_convert.graph.text import FEATURES, MASK
from sam3lite_convert.graph.vision import map_name

BOXES, BOX_LABELS, BOX_MASK = "boxes", "box_labels", "box_mask"


def decode_graph(b: GraphBuilder, s: DetectorSizes) -> None:
    """Build everything behind the image encoder and the text encoder."""
    last = len(s.sides) - 1
    maps = [
        b.input(
            map_name(level),
            b.dtype,
            ["images", s.width, side, side],
            f"level {level} of the images' maps, as the vision graph gives it; one image for all prompts, or one a "
            "prompt",
        )
        for level, side in enumerate(s.sides)
    ]
    text = b.input(FEATURES, b.dtype, ["prompts", s.context, s.width], "as the text graph gives it")
    is_token = b.input(MASK, "bool", ["prompts", s.context], "true for a token, false for padding, as the text graph")
    boxes = b.input(
        BOXES,
        b.dtype,
        ["prompts", "boxes", 4],
        "box prompts: cx, cy, w, h relative to the image, from 0 to 1; there may be 0 boxes",
    )
    labels = b.input(BOX_LABELS, "int64", ["prompts", "boxes"], "1: a box around what is wanted, 0: around what is not")
    padded = b.input(BOX_MASK, "bool", ["prompts", "boxes"], "true for padding, which comes behind the valid boxes")

    features = maps[last]
    one = position_map(b, "position", s.width, s.grid, s.grid)
    position = b.node("Expand", "neck.positions", one, b.node("Shape", "images", features))
    b.tap("neck.positions", position, ["images", s.width, s.grid, s.grid])
    cells, places = (
        b.node("Transpose", name, b.reshape(f"{name}.flat", x, -1, s.width, s.cells), perm=[0, 2, 1])
        for name, x in (("cells", features), ("places", position))
    )
    tokens, padding = geometry_encoder(b, s, (features, cells, places), boxes, labels, padded)
    whole = b.node("Concat", "prompt", text, tokens, axis=1)
    not_token = b.node("Not", "text_padding", is_token)
    missing = b.node("Concat", "prompt.padding", not_token, padding, axis=1)
    count = b.node("Shape", "prompts", is_token, start=0, end=1)
    prompt = Prompt(whole, missing, padding_scores(b, "prompt.scores", missing), count)

    memory = detr_encoder(b, s, cells, places, prompt)
    found = detr_decoder(b, s, memory, places, prompt)
    logits = scoring(b, s, found.queries, prompt)
    pictures, semantic = masks(b, s, found.queries[-1], maps, memory, prompt)
    _outputs(b, s, logits, found.boxes, found.presence, pictures, semantic)


def _outputs(
    b: GraphBuilder, s: DetectorSizes, logits: str, boxes: str, presence: str, pictures: str, semantic: str
) -> None:
    side = s.sides[0]
    own = b.node("Gather", "pred_logits", logits, b.number(s.decoder_layers - 1), axis=0)
    shown = b.reshape("presence_logit_dec", presence, -1, 1)
    fit = b.node("Sigmoid", "scores.fit", b.reshape("scores.logits", own, -1, s.queries))
    there = b.node("Sigmoid", "scores.presence", shown)
    found = (
        ("scores", b.node("Mul", "scores", fit, there), [s.queries], "how sure each query is: fit times presence"),
        ("pred_boxes_xyxy", corners(b, "pred_boxes_xyxy", boxes, b.floats(0.5, "half")), [s.queries, 4],
         "x0, y0, x1, y1 relative to the image; not clamped to it"),
        ("pred_masks", pictures, [s.queries, side, side], "a mask a query, logits: above 0 is inside"),
        ("pred_logits", own, [s.queries, 1], "how well each query fits the prompt"),
        ("pred_boxes", b.node("Identity", "pred_boxes", boxes), [s.queries, 4], "cx, cy, w, h of the same boxes"),
        ("presence_logit_dec", shown, [1], "whether the image shows what the prompt names"),
        ("semantic_seg", b.node("Identity", "semantic_seg", semantic), [1, side, side],
         "the mask of everything that the prompt names, logits"),
    )  # fmt: skip
    for name, value, shape, doc in found:
        b.output(value, b.dtype, ["prompts", *shape], doc)
        if name not in ("scores", "pred_boxes"):
            b.tap(f"outputs.{name}", value, ["prompts", *shape])
