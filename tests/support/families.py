"""Small checkpoints of every kind of the family: all keys and dtypes of the real one, in their order, with small sides.

A side of the real shape becomes the side of a table here, by the part of the model, so that tensors that fit together
still do. Depths are the real ones. What the library fixes in its code stays as large as it is: the width of a stored
memory (64), and the channels of the masks on their way into it (4, 16, 64, 256).
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from support.rows import Rows, fake, key_list

from sam3lite_convert.plan.synthetic import draw

LISTS = {
    "s0": "s0_ctx16",
    "s1": "s1_ctx16",
    "l": "l_ctx16",
    "s0-32": "s0_ctx16",
    "s0-3.1": "sam3p1_s0_ctx16",
    "teacher": "sam3_teacher",
    "teacher-3.1": "sam31_teacher",
    "student": "student_repvit_m1_1_s0",
    "student-3.1": "student_sam3p1_tinyvit_s0",
    "student-ft": "student_ft_repvit",
}
KINDS = tuple(LISTS)
VOCAB = 512  # words; the real tokenizer needs 49408

# A sixteenth, but for what would be too large, and the ViT's one head, which keeps its width of 64.
_WIDTHS = {128: 8, 200: 12, 256: 16, 258: 18, 512: 32, 768: 48, 1024: 64, 2048: 64, 3072: 192, 4736: 96}
_MOBILECLIP = {256: 16, 512: 64, 768: 64, 1536: 192, 2048: 128, 2304: 192, 3072: 128}  # one head of 64
_LONGER = {"s0-32": 32}  # kinds that are called with another context than that of their list: 16
_CLIP = {256: 16, 512: 32, 1024: 64, 3072: 192, 4096: 128}  # one head of 64
_VIT_TABLE = {577: 17}  # positions: 4 x 4 and the class row
_ROTARY = {576: 16, 5184: 64}  # a window of 4 x 4 patches, an image of 8 x 8
_STUDENT = {64: 4, 128: 8, 256: 16, 384: 24, 448: 28, 512: 32, 768: 48, 1024: 64, 1344: 84, 1792: 112}
_MASK_DECODER = {32: 2, 64: 4, 128: 8, 256: 16, 2048: 64}  # an eighth and a quarter of the width, too
_POSITIONS = "detector.backbone.language_backbone.encoder.positional_embedding.pos_embed.pos_embed"
_NECK = "backbone.vision_backbone."
_MULTIPLEX = _WIDTHS | _MASK_DECODER  # SAM3.1's tracker


def shapes(kind: str, vocab: int = VOCAB) -> dict[str, tuple[int, ...]]:
    """Key -> small shape of every tensor of a checkpoint of this kind, under the real names and in the real order."""
    return {key: shape for key, (_, shape) in rows(kind, vocab).items()}


def runnable(kind: str = "s0", seed: int = 0, vocab: int = VOCAB) -> dict[str, torch.Tensor]:
    """A checkpoint whose video model runs: the library needs a tracker that is wider than a stored memory (64), so what
    is 256 wide in the real one is 128 here, but for what the neck makes of the ViT."""
    real = key_list(LISTS[kind])
    clip = any(".resblocks." in key for key in real)
    return {key: draw(key, _runnable(key, shape, clip, vocab), seed) for key, (_, shape) in real.items()}


def rows(kind: str, vocab: int = VOCAB) -> Rows:
    """The same with the dtypes."""
    real = key_list(LISTS[kind])
    clip = any(".resblocks." in key for key in real)
    made = {key: (dtype, _small(key, shape, clip, vocab)) for key, (dtype, shape) in real.items()}
    if rows := _LONGER.get(kind):
        dtype, shape = made[_POSITIONS]
        made[_POSITIONS] = dtype, (*shape[:2], rows, shape[3])
    return made


def held(kind: str, more: Rows | None = None) -> Any:
    """A checkpoint of this kind as the source of a command that reads no tensor data: there is no file behind it."""
    checkpoint = fake(rows(kind) | (more or {}))
    return SimpleNamespace(
        name=kind, option=kind, trusted=contextlib.nullcontext, fetched=lambda: None, read=lambda mappings: checkpoint
    )


def state_dict(kind: str, seed: int = 0, vocab: int = VOCAB) -> dict[str, torch.Tensor]:
    """The checkpoint's tensors, drawn from their names; rotary tables are those of the formula."""
    return {key: draw(key, shape, seed) for key, shape in shapes(kind, vocab).items()}


def write(path: Path, kind: str, wrapper: str | None = "model", seed: int = 0, vocab: int = VOCAB) -> Path:
    """Write such a checkpoint as torch does, under an entry ``wrapper`` unless it is None."""
    state = state_dict(kind, seed, vocab)
    torch.save(state if wrapper is None else {wrapper: state}, path)
    return path


def _small(key: str, shape: tuple[int, ...], clip: bool, vocab: int) -> tuple[int, ...]:
    sides = _sides(key.removeprefix("detector."), clip) | {49408: vocab}
    small = tuple(sides.get(n, n) for n in shape)
    if key == "tracker.maskmem_backbone.mask_downsampler.encoder.12.weight":
        return (_WIDTHS[shape[0]], *shape[1:])  # from the masks' channels, which stay, to the width
    return small


_WIDER = {128: 64, 256: 128, 258: 130, 512: 256, 768: 384}


def _runnable(key: str, shape: tuple[int, ...], clip: bool, vocab: int) -> tuple[int, ...]:
    small, name = _small(key, shape, clip, vocab), key.removeprefix("detector.")
    if name.startswith("backbone.language_backbone."):
        return tuple(128 if n == 16 and m == 256 else n for n, m in zip(small, shape, strict=True))
    if name.startswith(_NECK):
        made = "conv_1x1." in name or "conv_3x3." in name  # of the width of the neck
        wide = (128, *small[1:]) if made else small
        return (128, 128, *small[2:]) if "conv_3x3.weight" in name else wide
    if name.startswith("tracker.maskmem_backbone.mask_downsampler.encoder."):
        return (128, *small[1:]) if ".12." in name else small
    halves = {32: 16, 64: 32} if name.startswith("tracker.sam_mask_decoder.") else {}
    wider = _WIDER | halves
    return tuple(wider.get(m, n) for n, m in zip(small, shape, strict=True))


def _sides(key: str, clip: bool) -> dict[int, int]:
    if key.startswith("backbone.language_backbone."):
        return _CLIP if clip else _MOBILECLIP
    if key.startswith("backbone.vision_backbone.trunk.model."):
        return _STUDENT
    if key.endswith("trunk.pos_embed"):
        return _WIDTHS | _VIT_TABLE
    if key.endswith("freqs_cis"):
        return _ROTARY
    if key.startswith("tracker.model."):
        return _MULTIPLEX
    if key.startswith("tracker.maskmem_backbone.mask_downsampler.encoder."):
        return {256: 16} if key.endswith("12.bias") else {}
    if key.startswith("tracker.sam_mask_decoder."):
        return _MASK_DECODER
    return _WIDTHS
