"""Families of checkpoints: their names, the classes that load them, and similar kinds that are refused.

A layout names its family. To add a family, add a record here, and tables in ``mappings/``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from sam3lite_convert.plan.architecture import TEXT, VISION, Architecture


@dataclass(frozen=True)
class Relative:
    """A known kind of checkpoint that ``convert`` refuses.

    kind: its name.
    why: how it differs from the family.
    keys: regular expression, matched at the start of canonical keys, that recognises it.
    text_open: whether its text encoder can be converted with ``--component text``.
    """

    kind: str
    why: str
    keys: str
    text_open: bool


@dataclass(frozen=True)
class LibraryNames:
    """Names of a family's classes in transformers, and of their model types in config.json.

    since: the first version of the library that has these classes.
    prefix, text_prefix: what loading the model, or the text encoder alone, takes off the front of keys
        (``base_model_prefix`` of the class).
    """

    since: str
    model: str
    model_config: str
    text_model: str
    text_model_config: str
    processor: str
    image_processor: str
    model_type: str
    text_model_type: str
    vision_model_type: str
    vit_model_type: str
    prefix: str
    text_prefix: str


@dataclass(frozen=True)
class Depth:
    """The number of layers in every released model of a width.

    of: the name of a size of the architecture.
    width: the value of that size.
    layers: the number of layers in every released model in which the size has this value.
    """

    of: str
    width: int
    layers: int


@dataclass(frozen=True)
class Family:
    """A family of checkpoints.

    name: its name, as shown to users.
    tags: the tags of its model cards.
    library: the names of its classes in transformers.
    depths: name of a list of layers in the architecture -> its released depth.
    text_widths: the widths of its released text encoders.
    contexts: the contexts that released models of the family are called with, in tokens.
    relatives: similar kinds of checkpoints that do not belong to the family.
    """

    name: str
    tags: tuple[str, ...]
    library: LibraryNames
    depths: dict[str, Depth]
    text_widths: tuple[int, ...]
    contexts: tuple[int, ...]
    relatives: tuple[Relative, ...]

    def relatives_in(self, keys: Iterable[str]) -> list[Relative]:
        """The relatives that these canonical keys match, in the order of ``relatives``."""
        names = list(keys)
        return [r for r in self.relatives if any(map(re.compile(r.keys).match, names))]

    def doubts(self, architecture: Architecture) -> list[str]:
        """Notes on what no released model has: numbers of layers, a context that is not that of its table's rows."""
        out = []
        if architecture.context and (said := architecture.context.note(self.contexts)):
            out.append(said)
        for name, depth in self.depths.items():
            have = len(architecture.blocks.get(name, ()))
            if have and have != depth.layers and architecture.sizes.get(depth.of) == depth.width:
                released = f"{depth.layers} in every released detector of this width"
                out.append(f"{name}: {have} in this file, {released}; layers may be missing")
        if architecture.variant == "custom" and architecture.sizes["text_hidden"] in self.text_widths:
            layers = architecture.num_hidden_layers
            out.append(f"text encoder: no released encoder of this width has {layers} layers; layers may be missing")
        return out


_TEXT, _VISION = re.escape(TEXT), re.escape(VISION)

SAM3_LITETEXT = Family(
    name="SAM3-LiteText",
    tags=("sam3", "sam3-litetext", "mobileclip"),
    library=LibraryNames(
        since="5.6",
        model="Sam3LiteTextModel",
        model_config="Sam3LiteTextConfig",
        text_model="Sam3LiteTextTextModel",
        text_model_config="Sam3LiteTextTextConfig",
        processor="Sam3Processor",
        image_processor="Sam3ImageProcessor",
        model_type="sam3_lite_text",
        text_model_type="sam3_lite_text_text_model",
        vision_model_type="sam3_vision_model",
        vit_model_type="sam3_vit_model",
        prefix="detector_model",
        text_prefix="model",
    ),
    depths={
        "vit_blocks": Depth("vit_hidden", 1024, 32),
        "geometry_layers": Depth("hidden", 256, 3),
        "detr_encoder_layers": Depth("hidden", 256, 6),
        "detr_decoder_layers": Depth("hidden", 256, 6),
        "upsampling_stages": Depth("hidden", 256, 3),
        "fpn_levels": Depth("fpn_hidden", 256, 4),
    },
    text_widths=(512, 768),
    contexts=(16, 32),
    relatives=(
        Relative(
            "SAM3 with its CLIP teacher",
            "its text encoder is SAM3's own CLIP",
            _TEXT + r"encoder\.transformer\.resblocks\.",
            False,
        ),
        Relative(
            "EfficientSAM3 with a CNN text encoder",
            "its text encoder is not MobileCLIP's",
            _TEXT + r"encoder\.(?:embedding\.|layers\.\d+\.[0145]\.)",
            False,
        ),
        Relative(
            "a student on teacher embeddings",
            "its text encoder reads SAM3's embeddings (embed_proj)",
            rf"(?:{_TEXT})?(?:[^.]+\.)*embed_proj\.",
            False,
        ),
        Relative(
            "fused RepMixer blocks",
            "its branches were merged (reparam_conv) and cannot be told apart",
            _TEXT + r"(?:[^.]+\.)*reparam_conv\.",
            False,
        ),
        Relative(
            "EfficientSAM3 with an image student",
            "its image encoder is not SAM3's ViT",
            _VISION + r"trunk\.model\.",
            True,
        ),
        Relative(
            "SAM3.1",
            "its neck has interactive and propagation branches instead of convs.3",
            _VISION + r"(?:interactive_convs|propagation_convs)\.",
            True,
        ),
    ),
)
FAMILIES = {family.name: family for family in (SAM3_LITETEXT,)}
