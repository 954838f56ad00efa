"""What the config.json of a folder states and weights cannot tell: the ViT's heads, window, image and global blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_SECTIONS = ("vision_config", "backbone_config")
_DETECTOR = "detector_config"  # in the config.json of a video model


@dataclass(frozen=True)
class StatedVision:
    """What is stated of the ViT; None for what is not, or not in a form that makes sense.

    ``image_size`` in pixels, ``window_size`` in patches, ``global_blocks``: those that attend to the whole image.
    """

    heads: int | None = None
    window_size: int | None = None
    image_size: int | None = None
    global_blocks: tuple[int, ...] | None = None


def stated_vision(config: Mapping[str, object] | None) -> StatedVision | None:
    """What a config.json states of the ViT; None if it has no section for it."""
    section: object = (config or {}).get(_DETECTOR, config)
    for name in _SECTIONS:
        section = section.get(name) if isinstance(section, Mapping) else None
    if not isinstance(section, Mapping):
        return None
    blocks = section.get("global_attn_indexes")
    listed = tuple(n for n in blocks if type(n) is int) if isinstance(blocks, list) else None
    return StatedVision(
        heads=_count(section.get("num_attention_heads")),
        window_size=_count(section.get("window_size")),
        image_size=_count(section.get("image_size")),
        global_blocks=listed if isinstance(blocks, list) and listed and len(listed) == len(blocks) else None,
    )


def stated_causal(config: Mapping[str, object] | None) -> bool:
    """Whether a config.json states that the text encoder masks causally."""
    text = (config or {}).get("text_config")
    return isinstance(text, Mapping) and text.get("causal_masking") is True


def _count(value: object) -> int | None:
    """A whole number above zero, or two equal ones: the library takes height and width too."""
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    return value if type(value) is int and value > 0 else None
