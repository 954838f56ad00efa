"""Small checkpoints of SAM3's own text encoder, for runs of sam3lite parity."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from support.folders import write_safetensors
from support.rows import TEXT

from original_ref import ClipText, load_clip_text
from sam3lite_convert.plan.synthetic import draw

WIDTH, HEADS, LAYERS, ROWS = 128, 2, 3, 32
PREFIX = "text_encoder.text_model."


def cfg(vocab: int = 96) -> dict[str, int]:
    return {
        "width": WIDTH, "heads": HEADS, "layers": LAYERS, "context_length": ROWS, "vocab_size": vocab, "d_model": 32,
        "ffn": 192, "projection_dim": 64,
    }  # fmt: skip


@functools.cache
def _state(vocab: int) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        shapes = {TEXT + key: tuple(tensor.shape) for key, tensor in ClipText(cfg(vocab)).state_dict().items()}
    return {key: draw(key, shape) for key, shape in shapes.items()}


def state_of(vocab: int = 96) -> dict[str, torch.Tensor]:
    """Under the real keys. Tensors are shared between the tests: replace them, never change them."""
    return dict(_state(vocab))


def write_text(folder: Path, vocab: int = 96) -> Path:
    """A checkpoint of the text encoder alone."""
    return write_safetensors(folder, state_of(vocab))


def reference(vocab: int = 96) -> ClipText:
    """The original, from the checkpoint's own tensors: nothing of a comparison has a hand in it."""
    return load_clip_text(cfg(vocab), {k.removeprefix(TEXT): t for k, t in state_of(vocab).items()})
