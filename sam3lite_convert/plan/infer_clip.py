"""Infers the sizes of SAM3's own text encoder (CLIP), the teacher of the MobileCLIP students."""

from __future__ import annotations

import re

from sam3lite_convert.errors import UnsoundPlan
from sam3lite_convert.plan.architecture import TEXT
from sam3lite_convert.plan.votes import Votes, assume_missing, text_heads

CLIP = "clip"  # its model name
_BLOCKS = TEXT + "encoder.transformer.resblocks."


def is_clip(vote: Votes) -> bool:
    """Whether the keys have a block of this encoder."""
    return any(name.startswith(_BLOCKS) for name in vote.names)


def clip_text(
    vote: Votes, sizes: dict[str, int | None], blocks: dict[str, tuple[int, ...]], assumed: dict[str, str]
) -> str:
    """Adds the text encoder's sizes and its list ``clip_blocks``; returns the model name.

    Raises UnsoundPlan if no tensor shows its width, or the width is not a whole number of heads.
    """
    enc = re.escape(TEXT) + r"encoder\."
    block = re.escape(_BLOCKS) + r"\d+\."
    hidden = vote(
        (enc + r"ln_final\.(?:weight|bias)", 0, 1),
        (block + r"ln_[12]\.(?:weight|bias)", 0, 1),
        (block + r"attn\.out_proj\.(?:weight|bias)", 0, 2),
        (enc + r"token_embedding\.weight", 1, 2),
        (enc + "positional_embedding", 1, 2),
    )
    if hidden is None:
        raise UnsoundPlan(
            f"unknown text encoder: no norm or embedding shows the width of its blocks ({_BLOCKS}N)",
            "unknown_text_encoder",
        )
    blocks["clip_blocks"] = vote.indices(re.escape(_BLOCKS) + r"(\d+)\.")
    sizes["text_hidden"] = hidden
    sizes["text_ffn"] = vote((block + r"mlp\.c_fc\.(?:weight|bias)", 0, 2))
    sizes["vocab"] = vote((enc + r"token_embedding\.weight", 0, 2))
    sizes["context"] = vote((enc + "positional_embedding", 0, 2))
    sizes["projection_dim"] = vote((enc + "text_projection", 1, 2))
    sizes["output_dim"] = vote((re.escape(TEXT) + r"resizer\.(?:weight|bias)", 0, 2))
    sizes["text_heads"] = text_heads(hidden, assumed)
    usual = {"text_ffn": 4 * hidden, "vocab": 49408, "context": 32, "projection_dim": hidden // 2, "output_dim": 256}
    assume_missing(sizes, usual, assumed)
    return CLIP
