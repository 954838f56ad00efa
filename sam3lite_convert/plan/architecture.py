"""The architecture of a checkpoint: sizes and lists of layers.

Each size is the majority vote of all tensors that show it, so that a single tensor of the wrong shape is reported and
does not change the architecture. What weights cannot show is listed in ``assumed``, with the value used and its
origin. Causal masking is stated by the user, never guessed.

Facts used: ``heads = dim / 64``, the variants and their sizes, RepMixer blocks first and last (specification of the
original encoder); the class row of the position table and the eps (notes on the layouts).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from sam3lite_convert.plan.context import CalledContext
from sam3lite_convert.records.record import Json, Record
from sam3lite_convert.records.shared import ArchitectureRecord

TEXT_ENCODER = "text_encoder"  # the component, in reports
TEXT = "backbone.language_backbone."
VISION = "backbone.vision_backbone."
POSITION_TABLE = TEXT + "encoder.positional_embedding.pos_embed.pos_embed"
CLIP_POSITION_TABLE = TEXT + "encoder.positional_embedding"  # of SAM3's own text encoder
POSITION_TABLES = (POSITION_TABLE, CLIP_POSITION_TABLE)
WORD_TABLES = (TEXT + "encoder.embedding_layer.weight", TEXT + "encoder.token_embedding.weight")
COUNTER = "num_batches_tracked"  # the last part of the names of BatchNorm counters, which evaluation does not read
SAM3_TEXT_PARAMETERS = 353.72e6  # SAM3's own text encoder
HEAD_DIM = 64

# Every size that a target table may use.
SIZES = frozenset(
    {
        "text_hidden", "text_ffn", "text_heads", "vocab", "context", "projection_dim", "output_dim", "kernel",
        "vit_hidden", "vit_ffn", "channels", "patch", "vit_positions", "fpn_hidden", "hidden", "roi", "geometry_ffn",
        "detr_encoder_ffn", "detr_decoder_ffn", "queries", "detr_heads",
        "tracker_hidden", "tracker_memory", "tracker_memories", "tracker_attention_ffn", "tracker_fuser_ffn",
        "tracker_fuser_kernel", "tracker_mask_channels", "tracker_mask_tokens", "tracker_iou_hidden",
        "tracker_decoder_width", "tracker_decoder_ffn",
    }
)  # fmt: skip
# Lists of the text encoder's blocks; the last one is CLIP's, the others are MobileCLIP's.
TEXT_BLOCKS = ("repmixer_blocks", "transformer_blocks", "clip_blocks")
# Lists that may be empty: a kind of block that the encoder does not have, or a scale that the neck does not have.
OPTIONAL_BLOCKS = frozenset({"repmixer_blocks", "transformer_blocks", "fpn_4x", "fpn_2x", "fpn_1x"})

Shapes = Mapping[str, tuple[int, ...]]

COMPONENTS = (  # name in reports, start of its canonical keys
    (TEXT_ENCODER, TEXT),
    ("vision_encoder", VISION),
    ("geometry_encoder", "geometry_encoder."),
    ("detr_encoder", "transformer.encoder."),
    ("detr_decoder", "transformer.decoder."),
    ("dot_product_scoring", "dot_prod_scoring."),
    ("mask_decoder", "segmentation_head."),
    ("tracker", "tracker."),
)


@dataclass(frozen=True, kw_only=True)
class Vision(Record):
    """What config.json needs of the ViT and its neck beyond tensor sizes.

    ``image_size`` and ``pretrain_image_size`` in pixels, ``window_size`` in patches. ``global_attn_indexes``: blocks
    that attend to the whole image. ``scale_factors``: of the neck's levels, relative to the ViT's grid.
    """

    pretrain_image_size: int
    vit_heads: int
    window_size: int
    image_size: int
    global_attn_indexes: tuple[int, ...]
    scale_factors: tuple[float, ...]


@dataclass(frozen=True)
class Architecture:
    """Sizes and lists of layers, under the names of the target tables, and further facts for config.json.

    ``sizes``: size name -> value; ``blocks``: list name -> layer indices. A size that the file
    does not show is absent; ``context`` among them are the rows of the position table that the target holds.
    ``context``: what the model is called with; None if only shapes are known. ``vision``: None without a ViT.
    """

    sizes: dict[str, int]
    blocks: dict[str, tuple[int, ...]]
    model_name: str
    variant: str
    causal_masking: bool
    vision: Vision | None = None
    assumed: dict[str, str] = field(default_factory=dict)
    context: CalledContext | None = None

    @property
    def called(self) -> int:
        """The context that the model is called with, in tokens."""
        return self.context.called if self.context else self.sizes["context"]

    def with_context(self, context: CalledContext) -> Architecture:
        """The architecture with this context: the target holds the rows that the original reads."""
        return replace(self, context=context, sizes=self.sizes | {"context": context.held})

    @property
    def num_hidden_layers(self) -> int:
        """All text blocks, RepMixer blocks included."""
        return sum(len(self.blocks.get(name, ())) for name in TEXT_BLOCKS)

    def record(self) -> ArchitectureRecord:
        """The text encoder's sizes by the names of the contract, those of detector and tracker as they are."""
        s = self.sizes
        text_sizes = ("text_", "context", "vocab", "projection_dim", "output_dim", "kernel")
        rest: Json = {k: v for k, v in s.items() if not k.startswith(text_sizes)}
        rest |= {k: len(v) for k, v in self.blocks.items() if k not in TEXT_BLOCKS}
        tracker: Json = {k: rest.pop(k) for k in list(rest) if k.startswith("tracker_")}
        if self.vision is not None:
            rest |= self.vision.to_json()
        return ArchitectureRecord(
            variant=self.variant,
            model_name=self.model_name,
            hidden_size=s["text_hidden"],
            intermediate_size=s["text_ffn"],
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=s["text_heads"],
            context_length=self.called,
            vocab_size=s["vocab"],
            projection_dim=s["projection_dim"],
            output_dim=s["output_dim"],
            causal_masking=self.causal_masking,
            repmixer_kernel_size=s.get("kernel"),
            detector=rest if rest.get("vit_blocks") else None,
            tracker=tracker if tracker.get("tracker_hidden") else None,
            assumed=self.assumed or None,
        )


def component_of(name: str) -> str:
    """The component of a canonical key; ``other`` if it belongs to none."""
    return next((label for label, start in COMPONENTS if name.startswith(start)), "other")


def has_class_row(rows: int) -> bool:
    """Whether a ViT position table with this number of rows starts with a class position.

    The grid is square: 576 = 24 x 24 rows have none, 577 have one.
    """
    return math.isqrt(rows) ** 2 != rows and math.isqrt(rows - 1) ** 2 == rows - 1


def rotary_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The sides of a rotary table that count, patches and pairs: without those of one element, and without the two
    parts of a complex number that ``torch.view_as_real`` puts behind them."""
    sides = tuple(n for n in shape if n != 1)
    return sides[:2] if sides[2:] == (2,) else sides
