"""Infers the architecture from canonical keys and shapes."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace

from sam3lite_convert.errors import UnsoundPlan
from sam3lite_convert.plan.architecture import (
    HEAD_DIM,
    POSITION_TABLE,
    TEXT,
    TEXT_BLOCKS,
    VISION,
    Architecture,
    Shapes,
    Vision,
    has_class_row,
    rotary_shape,
)
from sam3lite_convert.plan.infer_clip import CLIP, clip_text, is_clip
from sam3lite_convert.plan.infer_tracker import tracker
from sam3lite_convert.plan.stated import StatedVision
from sam3lite_convert.plan.votes import Votes, assume_missing, text_heads

FILLED_LEVELS = "fpn_filled"  # the list of the neck's levels that the file lacks and that are filled with zeros


def with_levels(architecture: Architecture, count: int) -> Architecture:
    """The architecture with as many levels of the neck as what reads the layout has.

    A file with one level fewer, the coarsest, gets that level: the reader needs it and throws it away (layout notes,
    fact 8), and SAM3.1 has none. Raises UnsoundPlan for any other number, and for levels of other sizes than 4, 2 and
    1 times the grid of the ViT, and half of it.
    """
    blocks = architecture.blocks
    have = len(blocks["fpn_levels"])
    if set(blocks["fpn_4x"]) & set(blocks["fpn_2x"]):
        return architecture  # a level of two sizes; the plan names the tensors that collide
    plain = (blocks["fpn_4x"], blocks["fpn_2x"]) == ((0,), (1,))
    if not plain or have not in (count - 1, count):
        raise UnsoundPlan(
            f"its neck has {have} levels, {len(blocks['fpn_4x'])} of them 4 times and {len(blocks['fpn_2x'])} 2 times "
            f"as large as the ViT's grid; the model that reads this layout has {count}, of which it throws the last "
            "away: it would read another level in its place",
            "neck_levels",
        )
    if have == count or architecture.vision is None:
        return architecture
    levels = tuple(range(count))
    vision = replace(architecture.vision, scale_factors=(*architecture.vision.scale_factors, 0.5))
    added = {"fpn_levels": levels, "fpn_1x": levels[2:], FILLED_LEVELS: levels[have:]}
    return replace(architecture, blocks=blocks | added, vision=vision)


def infer_architecture(shapes: Shapes, causal: bool = False, stated: StatedVision | None = None) -> Architecture:
    """The architecture that canonical keys and shapes show.

    ``shapes``: canonical key -> shape. ``causal``: what ``--causal`` states. ``stated``: what the config.json of a
    folder states, of which it is the source; it counts where the file holds no rotary tables.
    Raises UnsoundPlan if they hold no MobileCLIP or CLIP text encoder, or one of an unknown structure.
    """
    vote = Votes(shapes)
    sizes: dict[str, int | None] = {}
    blocks: dict[str, tuple[int, ...]] = dict.fromkeys(TEXT_BLOCKS, ())
    assumed: dict[str, str] = {}
    model_name = (clip_text if is_clip(vote) else _text)(vote, sizes, blocks, assumed)
    vision = _detector(vote, shapes, sizes, blocks, assumed, stated)
    tracker(vote, sizes, blocks)
    known = {k: v for k, v in sizes.items() if v is not None}
    causal = causal or model_name == CLIP
    layers = len(blocks["transformer_blocks"] + blocks["clip_blocks"])
    variant = _variant(model_name, known, layers, causal)
    if model_name == "base" and not causal:
        assumed["causal_masking"] = "false; MobileCLIP-B, which is causal, has the same weights: use --causal for it"
    return Architecture(known, blocks, model_name, variant, causal, vision, assumed)


def _text(
    vote: Votes, sizes: dict[str, int | None], blocks: dict[str, tuple[int, ...]], assumed: dict[str, str]
) -> str:
    names, vote = vote.names, vote.within(TEXT)
    enc = re.escape(TEXT) + r"encoder\."
    layer = enc + r"transformer\.\d+\."
    hidden = vote(
        (enc + r"final_layer_norm\.(?:weight|bias)", 0, 1),
        (layer + r"pre_norm_(?:mha|ffn)\.0\.(?:weight|bias)", 0, 1),
        (layer + r"(?:token_mixer\.)?layer_scale", 0, 3),
        (enc + r"embedding_layer\.weight", 1, 2),
    )
    layers = vote.indices(enc + r"transformer\.(\d+)\.")
    if hidden is None or not layers:
        first = ", ".join(list(names)[:3])
        raise UnsoundPlan(
            f"this is no SAM3-LiteText checkpoint: no MobileCLIP text encoder found. The first keys are {first}. If "
            "only a prefix hides the names, take it off: --strip-prefix PREFIX. Otherwise give another file: sam3lite "
            "inspect s0 shows one.",
            "no_text_encoder",
        )
    mixers = vote.showing(enc + r"transformer\.(\d+)\.(?:token_mixer|convffn|layer_scale)")
    ends = {0, len(layers) - 1}
    # A block with missing keys counts as the kind that its other keys show.
    attention = vote.showing(enc + r"transformer\.(\d+)\.pre_norm_")
    repmixer = ends if mixers and mixers & ends else set()
    if mixers - ends or (mixers & attention):
        raise UnsoundPlan(
            f"unknown text encoder: RepMixer blocks at layers {', '.join(map(str, sorted(mixers)))} of {len(layers)}; "
            "supported are blocks at the first and the last layer only",
            "unknown_text_encoder",
        )
    blocks["repmixer_blocks"] = tuple(i for i in layers if i in repmixer)
    blocks["transformer_blocks"] = tuple(i for i in layers if i not in repmixer)
    sizes["text_hidden"] = hidden
    sizes["text_ffn"] = vote(
        (layer + r"pre_norm_ffn\.1\.(?:weight|bias)", 0, 2), (layer + r"convffn\.fc1\.(?:weight|bias)", 0, 4)
    )
    sizes["vocab"] = vote((enc + r"embedding_layer\.weight", 0, 2))
    sizes["context"] = vote((re.escape(POSITION_TABLE), 2, 4))
    sizes["projection_dim"] = vote((enc + r"projection_layer", 1, 2))
    sizes["output_dim"] = vote((re.escape(TEXT) + r"projector\.(?:weight|bias)", 0, 2))
    if repmixer:
        sizes["kernel"] = vote((layer + r"(?:token_mixer\.mixer\.rbr_conv\.0|convffn\.conv)\.conv\.weight", 3, 4))
    sizes["text_heads"] = text_heads(hidden, assumed)
    usual = {"text_ffn": 4 * hidden, "vocab": 49408, "context": 16, "projection_dim": hidden, "output_dim": 256}
    assume_missing(sizes, usual, assumed)
    return "mct" if repmixer else "base"


def _variant(model_name: str, sizes: dict[str, int], layers: int, causal: bool) -> str:
    """``layers``: of the text encoder, without RepMixer blocks."""
    shape = (model_name, sizes["text_hidden"], layers)
    names = {
        ("mct", 512, 4): "MobileCLIP-S0",
        ("mct", 384, 2): "MobileCLIP-S0-Lite",
        ("base", 512, 12): "MobileCLIP-B" if causal else "MobileCLIP-S1",
        ("base", 768, 12): "MobileCLIP2-L",
        (CLIP, 1024, 24): "SAM3-CLIP",
    }
    may_be_causal = model_name == CLIP or shape == ("base", 512, 12)
    return "custom" if causal and not may_be_causal else names.get(shape, "custom")


def _detector(
    vote: Votes,
    shapes: Shapes,
    sizes: dict[str, int | None],
    blocks: dict[str, tuple[int, ...]],
    assumed: dict[str, str],
    stated: StatedVision | None,
) -> Vision | None:
    wb = r"(?:weight|bias)"
    trunk = re.escape(VISION) + r"trunk\."
    neck = re.escape(VISION) + r"convs\."
    geometry, encoder, decoder = r"geometry_encoder\.", r"transformer\.encoder\.", r"transformer\.decoder\."
    block = trunk + r"blocks\.\d+\."
    seen = vote.within(VISION)
    sizes["vit_hidden"] = seen((block + r"norm[12]\." + wb, 0, 1), (trunk + r"ln_pre\." + wb, 0, 1))
    sizes["vit_ffn"] = seen((block + r"mlp\.fc1\." + wb, 0, 2))
    sizes["channels"] = seen((trunk + r"patch_embed\.proj\.weight", 1, 4))
    sizes["patch"] = seen((trunk + r"patch_embed\.proj\.weight", 2, 4))
    rows = seen((trunk + "pos_embed", 1, 3))
    sizes["vit_positions"] = None if rows is None else rows - has_class_row(rows)
    sizes["fpn_hidden"] = seen((neck + r"\d+\.conv_3x3\." + wb, 0, 4))
    detr = vote.within("geometry_encoder.", "transformer.")
    norms = r"(?:norm\d?|encode_norm|img_pre_norm|catext_norm|presence_token_out_norm)\." + wb
    sizes["hidden"] = detr(
        (geometry + r"(?:encode\.\d+\.)?" + norms, 0, 1),
        (encoder + r"layers\.\d+\." + norms, 0, 1),
        (decoder + r"(?:layers\.\d+\.)?" + norms, 0, 1),
    )
    sizes["roi"] = detr((geometry + r"boxes_pool_project\.weight", 2, 4))
    sizes["geometry_ffn"] = detr((geometry + r"encode\.\d+\.linear1\." + wb, 0, 2))
    sizes["detr_encoder_ffn"] = detr((encoder + r"layers\.\d+\.linear1\." + wb, 0, 2))
    sizes["detr_decoder_ffn"] = detr((decoder + r"layers\.\d+\.linear1\." + wb, 0, 2))
    sizes["queries"] = detr((decoder + r"(?:query_embed|reference_points)\.weight", 0, 2))
    sizes["detr_heads"] = detr((decoder + r"boxRPB_embed_[xy]\.layers\.1\." + wb, 0, 2))
    blocks["vit_blocks"] = seen.indices(trunk + r"blocks\.(\d+)\.")
    blocks["geometry_layers"] = detr.indices(geometry + r"encode\.(\d+)\.")
    blocks["detr_encoder_layers"] = detr.indices(encoder + r"layers\.(\d+)\.")
    blocks["detr_decoder_layers"] = detr.indices(decoder + r"layers\.(\d+)\.")
    blocks["upsampling_stages"] = vote.indices(r"segmentation_head\.pixel_decoder\.conv_layers\.(\d+)\.")
    # The SAM 2 neck, which is dropped, has the same levels. A level that exists only there is missing here.
    either = re.escape(VISION) + r"(?:sam2_)?convs\."
    levels = seen.indices(either + r"(\d+)\.")
    by_four, by_two = seen.showing(either + r"(\d+)\.dconv_2x2_[01]\."), seen.showing(either + r"(\d+)\.dconv_2x2\.")
    blocks["fpn_levels"] = levels
    blocks["fpn_4x"] = tuple(i for i in levels if i in by_four)
    blocks["fpn_2x"] = tuple(i for i in levels if i in by_two)
    blocks["fpn_1x"] = tuple(i for i in levels if i not in by_four | by_two)
    if not blocks["vit_blocks"] or sizes["vit_hidden"] is None:
        return None
    return _vision_facts(vote, shapes, sizes, blocks, assumed, stated)


def _vision_facts(
    vote: Votes,
    shapes: Shapes,
    sizes: dict[str, int | None],
    blocks: dict[str, tuple[int, ...]],
    assumed: dict[str, str],
    stated: StatedVision | None,
) -> Vision:
    """What config.json needs beyond tensor sizes; the rotary tables tell most of it."""
    hidden, patch = sizes["vit_hidden"] or 0, sizes["patch"] or 14
    count = len(blocks["vit_blocks"])
    names = {i: f"{VISION}trunk.blocks.{i}.attn.freqs_cis" for i in blocks["vit_blocks"]}
    rotary = {i: rotary_shape(shapes.get(name) or shapes.get(f"{name}_real", ())) for i, name in names.items()}
    # A table of another form tells nothing.
    tables = {i: s for i, s in rotary.items() if len(s) == 2 and s[1] and math.isqrt(s[0]) ** 2 == s[0]}
    grid = math.isqrt(sizes["vit_positions"] or 576)
    if tables:
        half = Counter(s[1] for s in tables.values()).most_common(1)[0][0]
        tables = {i: s for i, s in tables.items() if s[1] == half}
        tokens = sorted({s[0] for s in tables.values()})
        heads = hidden // (2 * half)
        window, image_size = math.isqrt(tokens[0]), math.isqrt(tokens[-1]) * patch
        everywhere = tuple(i for i, s in tables.items() if s[0] == tokens[-1] and len(tokens) > 1)
    else:
        # SAM3's own: windows of 24 patches, every eighth of the blocks global, 1008 pixels.
        heads = max(hidden // HEAD_DIM, 1)
        window, image_size = 24, 72 * patch
        everywhere = tuple(i for i in range(count) if i % 8 == 7)
        if stated is None:
            assumed["vision"] = (
                "heads, window, image size and global blocks as in SAM3; the file holds no rotary tables"
            )
        else:
            heads = stated.heads if stated.heads and hidden % stated.heads == 0 else heads
            window = stated.window_size or window
            image_size = stated.image_size if stated.image_size and stated.image_size % patch == 0 else image_size
            everywhere = everywhere if stated.global_blocks is None else stated.global_blocks
    scales = dict.fromkeys(blocks["fpn_4x"], 4.0) | dict.fromkeys(blocks["fpn_2x"], 2.0)
    plain = 1.0
    for i in blocks["fpn_1x"]:
        scales[i], plain = plain, plain / 2
    if sizes["detr_heads"] is None:
        sizes["detr_heads"] = 8
        assumed["detr_heads"] = "8; the tensor that shows it is missing"
    assumed["attention heads"] = "geometry, DETR encoder and mask attention have as many heads as the DETR decoder"
    return Vision(
        pretrain_image_size=grid * patch,
        vit_heads=heads,
        window_size=window,
        image_size=image_size,
        global_attn_indexes=everywhere,
        scale_factors=tuple(scales[i] for i in blocks["fpn_levels"]),
    )
