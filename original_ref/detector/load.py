"""Builds a detector from a state dict: all sizes are read off the weights."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from original_ref.clip_text import ClipText
from original_ref.detector.constants import USED_LEVELS, Heads
from original_ref.detector.decoder import Decoder
from original_ref.detector.encoder import Encoder
from original_ref.detector.geometry import GeometryEncoder
from original_ref.detector.heads import Scoring, SegmentationHead
from original_ref.detector.model import Detector
from original_ref.detector.neck import HALF, SAME, UP_2, UP_4, VisionBackbone
from original_ref.detector.trunk import Trunk, rotary_table
from original_ref.encoder import TextStudentEncoder
from original_ref.text_reference import TextReference

PREFIX = "detector."
TRUNK = "backbone.vision_backbone.trunk."
NECK = "backbone.vision_backbone.convs."
TEXT = "backbone.language_backbone."
UNUSED = ("backbone.vision_backbone.sam2_convs.",)  # of a file that also holds a tracker; not read here
CLIP_BLOCKS = f"{TEXT}encoder.transformer.resblocks."
TEXT_HEAD = 64  # width of a head of the text encoder (section 11)


def load_detector(
    state_dict: Mapping[str, Tensor],
    heads: Mapping[str, int] | None = None,
    context_length: int | None = None,
    image_size: int | None = None,
) -> Detector:
    """Load a detector in evaluation mode with exactly these weights, which are not copied.

    ``state_dict``: keys as in a file, with or without ``detector.``; keys of a tracker and of its neck are not read.
    ``heads``: attention heads of ``geometry``, ``encoder`` and ``mask``, which no weight tells; 8 each if left out.
    ``context_length``: cuts a longer position table of the text encoder to this number of rows; SAM3's own reads its
        first rows alone, and keeps them all. None: as it is.
    ``image_size``: pixels; computes the rotary tables for this size. None: those of the state dict, and their size.

    Raises ValueError, in words, if sizes do not fit together: heads that do not divide, a size that the patches do not
    divide, no rotary tables. Raises RuntimeError if a key is missing, unexpected or of another shape.
    """
    state = _named(state_dict)
    sizes = _Sizes(state, Heads(**(heads or {})), image_size)
    with torch.device("meta"):
        model = sizes.build()
    state |= sizes.tables
    if missing := [key for key in model.state_dict() if key not in state]:
        raise RuntimeError(f"missing from the state dict: {', '.join(missing)}")
    model.load_state_dict(state, strict=True, assign=True)
    if context_length is not None:
        model.backbone.language_backbone.set_context_length(context_length)
    return model.requires_grad_(False).eval()


def _named(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The detector's tensors, without a prefix."""
    prefixed = any(key.startswith(PREFIX) for key in state_dict)
    own = {
        key.removeprefix(PREFIX): tensor for key, tensor in state_dict.items() if not prefixed or key.startswith(PREFIX)
    }
    return {key: tensor for key, tensor in own.items() if not key.startswith(UNUSED)}


class _Sizes:
    """The sizes of a detector, and its rotary tables."""

    def __init__(self, state: Mapping[str, Tensor], heads: Heads, image_size: int | None) -> None:
        self._state, self.given = state, heads
        self.patch = self._shape(f"{TRUNK}patch_embed.proj.weight")[2]
        self.tables: dict[str, Tensor] = {}
        self._trunk(image_size)

    def build(self) -> Detector:
        """The modules, without values."""
        s, width = self._shape, self._shape("geometry_encoder.cls_embed.weight")[1]
        vit = s(f"{TRUNK}patch_embed.proj.weight")
        trunk = Trunk(
            vit[1], vit[0], self.patch, s(f"{TRUNK}pos_embed")[1], self.vit_heads,
            s(f"{TRUNK}blocks.0.mlp.fc1.weight")[0], self.windows, self.tokens,
        )  # fmt: skip
        decoder_heads = s("transformer.decoder.boxRPB_embed_x.layers.1.weight")[0]
        for part, count in (*self.given._asdict().items(), ("decoder", decoder_heads)):
            if count < 1 or width % count:
                raise ValueError(f"{count} heads in the {part} do not divide a width of {width}; give heads=")
        given = self.given
        return Detector(
            VisionBackbone(trunk, self._levels(), width),
            self._text(),
            GeometryEncoder(
                width, given.geometry, s("geometry_encoder.encode.0.linear1.weight")[0],
                self._count("geometry_encoder.encode."), s("geometry_encoder.boxes_pool_project.weight")[2],
            ),
            Encoder(
                width, given.encoder, s("transformer.encoder.layers.0.linear1.weight")[0],
                self._count("transformer.encoder.layers."),
            ),
            Decoder(
                width, decoder_heads, s("transformer.decoder.layers.0.linear1.weight")[0],
                self._count("transformer.decoder.layers."), s("transformer.decoder.query_embed.weight")[0],
            ),
            Scoring(
                width, s("dot_prod_scoring.prompt_mlp.layers.0.weight")[0], s("dot_prod_scoring.hs_proj.weight")[0]
            ),
            SegmentationHead(width, given.mask, self._count("segmentation_head.pixel_decoder.conv_layers.")),
            self.image_size,
        )  # fmt: skip

    def _shape(self, key: str) -> tuple[int, ...]:
        if key not in self._state:
            raise RuntimeError(f"missing from the state dict: {key}")
        return tuple(self._state[key].shape)

    def _count(self, start: str) -> int:
        """How many layers there are, by the highest number in the keys."""
        numbers = [int(m[1]) for m in map(re.compile(re.escape(start) + r"(\d+)\.").match, self._state) if m]
        if not numbers:
            raise RuntimeError(f"missing from the state dict: {start}0")
        return max(numbers) + 1

    def _trunk(self, image_size: int | None) -> None:
        """Heads, windows and picture size, which the rotary tables tell: their columns are half a head, and blocks
        with more rows than others attend to the whole picture."""
        blocks = range(self._count(f"{TRUNK}blocks."))
        names = [f"{TRUNK}blocks.{i}.attn.freqs_cis" for i in blocks]
        if absent := [name for name in names if name not in self._state]:
            raise ValueError(
                f"no rotary tables ({absent[0]} and {len(absent) - 1} more), so heads, windows and global blocks of "
                "the trunk are not known: add them with original_ref.rotary_table"
            )
        shapes = [self._shape(name) for name in names]
        width = self._shape(f"{TRUNK}pos_embed")[2]
        columns = {shape[-1] for shape in shapes}
        half = columns.pop()
        if columns or any(len(shape) != 2 or math.isqrt(shape[0]) ** 2 != shape[0] for shape in shapes):
            raise ValueError(f"rotary tables must be (n * n, half a head); these are {sorted(set(shapes))}")
        if not half or width % (2 * half) or half % 2:
            raise ValueError(
                f"a rotary table of {half} columns does not divide the trunk's width of {width} into heads"
            )
        self.vit_heads = width // (2 * half)
        rows = sorted({shape[0] for shape in shapes})
        if len(rows) > 2:
            raise ValueError(
                f"rotary tables of {len(rows)} sizes; there can be one for windows and one for the picture"
            )
        window, grid = math.isqrt(rows[0]), math.isqrt(rows[-1])
        self.windows: list[int | None] = [window if shape[0] == rows[0] and len(rows) > 1 else None for shape in shapes]
        self.image_size = grid * self.patch
        if image_size is not None and image_size != self.image_size and len(rows) == 1:
            raise ValueError(
                f"the rotary tables do not tell windows from global blocks, so only pictures of {self.image_size} fit"
            )
        if image_size is not None:
            self.image_size = image_size
            grid = self._grid(image_size, window)
            tables = {window: rotary_table(window, window, 2 * half), grid: rotary_table(grid, window, 2 * half)}
            sides = [side or grid for side in self.windows]
            self.tables = {name: tables[side] for name, side in zip(names, sides, strict=True)}
        self.tokens = [(side or grid) ** 2 for side in self.windows]
        positions = self._shape(f"{TRUNK}pos_embed")[1] - 1
        if positions < 1 or math.isqrt(positions) ** 2 != positions:
            raise ValueError(
                f"pos_embed has {positions + 1} rows; it needs 1 + n * n, a class position and a square grid"
            )

    def _grid(self, image_size: int, window: int) -> int:
        """Patches on a side."""
        if image_size < self.patch or image_size % self.patch:
            raise ValueError(f"pictures of {image_size} cannot be cut into patches of {self.patch}")
        if image_size // self.patch < 2:
            raise ValueError(f"pictures of {image_size} are one patch, and the neck halves the map")
        return image_size // self.patch

    def _levels(self) -> list[str]:
        count = self._count(NECK)
        if count < USED_LEVELS:
            raise ValueError(f"the neck has {count} levels; a detector reads {USED_LEVELS}")
        names = {key.removeprefix(NECK) for key in self._state if key.startswith(NECK)}
        kinds = []
        for n in range(count):
            up_4, up_2 = f"{n}.dconv_2x2_0.weight" in names, f"{n}.dconv_2x2.weight" in names
            kinds.append(UP_4 if up_4 else UP_2 if up_2 else SAME if SAME not in kinds else HALF)
        return kinds

    def _text(self) -> TextReference:
        """The text encoder, MobileCLIP's or SAM3's own, by its keys."""
        own = any(key.startswith(CLIP_BLOCKS) for key in self._state)
        return self._clip() if own else self._student()

    def _clip(self) -> ClipText:
        """SAM3's own text encoder."""
        encoder = f"{TEXT}encoder."
        vocab, dim = self._shape(f"{encoder}token_embedding.weight")
        cfg = {
            "width": dim,
            "heads": max(dim // TEXT_HEAD, 1),
            "layers": self._count(CLIP_BLOCKS),
            "context_length": self._shape(f"{encoder}positional_embedding")[0],
            "vocab_size": vocab,
            "d_model": self._shape(f"{TEXT}resizer.weight")[0],
            "ffn": self._shape(f"{CLIP_BLOCKS}0.mlp.c_fc.weight")[0],
            "projection_dim": self._shape(f"{encoder}text_projection")[1],
        }
        return ClipText(cfg)

    def _student(self) -> TextStudentEncoder:
        """MobileCLIP's text encoder (the specification of the text encoder)."""
        encoder = f"{TEXT}encoder."
        vocab, dim = self._shape(f"{encoder}embedding_layer.weight")
        count = self._count(f"{encoder}transformer.")
        mct = f"{encoder}transformer.0.token_mixer.layer_scale" in self._state
        kernel = f"{encoder}transformer.0.convffn.conv.conv.weight"
        hidden = self._shape(f"{encoder}transformer.0.{'convffn.fc1' if mct else 'pre_norm_ffn.1'}.weight")[0]
        cfg = {
            "dim": dim,
            "n_transformer_layers": count - 2 * mct,
            "n_heads_per_layer": max(dim // TEXT_HEAD, 1),
            "ffn_multiplier_per_layer": hidden / dim,
            "vocab_size": vocab,
            "model_name": "mct" if mct else "base",
            "projection_dim": self._shape(f"{encoder}projection_layer")[1],
        } | ({"kernel_size": self._shape(kernel)[3]} if mct else {})
        rows = self._shape(f"{encoder}positional_embedding.pos_embed.pos_embed")[2]
        return TextStudentEncoder(cfg, rows, self._shape(f"{TEXT}projector.weight")[0])
