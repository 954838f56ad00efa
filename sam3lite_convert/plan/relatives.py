"""Checkpoints that are related to SAM3-LiteText and are not converted as it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from sam3lite_convert.plan.architecture import TEXT, VISION


@dataclass(frozen=True)
class Relative:
    """A kind of checkpoint that is known and that ``convert`` refuses.

    ``text_open``: whether its text encoder converts with ``--component text``.
    """

    kind: str
    why: str
    text_open: bool


def relatives(shapes: Iterable[str]) -> list[Relative]:
    """The known relatives that these canonical keys betray (layout notes; the issue's list)."""
    keys = list(shapes)

    def has(pattern: str) -> bool:
        compiled = re.compile(pattern)
        return any(compiled.match(k) for k in keys)

    text = re.escape(TEXT)
    found = []
    if has(text + r"encoder\.transformer\.resblocks\."):
        found.append(Relative("SAM3 with its CLIP teacher", "its text encoder is SAM3's own CLIP", False))
    if has(text + r"encoder\.(?:embedding\.|layers\.\d+\.[0145]\.)"):
        found.append(Relative("EfficientSAM3 with a CNN text encoder", "its text encoder is not MobileCLIP's", False))
    if has(rf"(?:{text})?(?:[^.]+\.)*embed_proj\."):
        found.append(
            Relative("a student on teacher embeddings", "its text encoder reads SAM3's embeddings (embed_proj)", False)
        )
    if has(text + r"(?:[^.]+\.)*reparam_conv\."):
        found.append(
            Relative("fused RepMixer blocks", "its branches were merged (reparam_conv) and cannot be told apart", False)
        )
    if has(re.escape(VISION) + r"trunk\.model\."):
        found.append(Relative("EfficientSAM3 with an image student", "its image encoder is not SAM3's ViT", True))
    if has(re.escape(VISION) + r"(?:interactive_convs|propagation_convs)\."):
        found.append(Relative("SAM3.1", "its neck has interactive and propagation branches in place of convs.3", True))
    return found
