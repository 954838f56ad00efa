"""Families of checkpoints: their names, the classes that load them, their variants, and similar kinds that are refused.

A family is what has one text encoder; its variants differ elsewhere, and a file may be several of them at once. A
layout names its family. To add a family, add a record here, and tables in ``mappings/``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from sam3lite_convert.errors import CannotRun
from sam3lite_convert.plan.architecture import TEXT, VISION, Architecture


@dataclass(frozen=True)
class Relative:
    """A known kind of checkpoint that ``convert`` refuses whole.

    kind: its name.
    why: how it differs from the family.
    keys: regular expression, matched at the start of canonical keys, that recognises it.
    """

    kind: str
    why: str
    keys: str


@dataclass(frozen=True)
class Variant:
    """A known kind of checkpoint of the family that differs from a released detector outside the text encoder.

    name: its name in the tables of layouts.
    kind: its name, as shown to users.
    why: how it differs.
    keys: regular expression, matched at the start of canonical keys, that recognises it.
    whole: whether every layout of the family takes its detector; if not, only layouts do that name the variant.
    video: whether ``--component video`` takes its tracker.
    models: models of which its image encoder may be, by a regular expression at the start of canonical keys.
    depths: lists of layers that differ from those of the family's other detectors.
    """

    name: str
    kind: str
    why: str
    keys: str
    whole: bool
    video: bool
    models: dict[str, str] = field(default_factory=dict)
    depths: frozenset[str] = frozenset()

    def described(self, names: Iterable[str]) -> str:
        """The kind, with the model of its image encoder where these canonical keys tell it."""
        keys = list(names)
        found = [name for name, own in self.models.items() if any(map(re.compile(own).match, keys))]
        return f"{self.kind} ({' and '.join(found)})" if found else self.kind


@dataclass(frozen=True)
class LibraryNames:
    """Names of a family's classes in transformers, and of their model types in config.json.

    since: the first version of the library that has these classes.
    video_model, tracker_model: the video model around the detector, and its tracker alone.
    frame_processor: the part of ``video_processor`` that takes the frames.
    text_targets: the table of the tensors that its text encoder has.
    prefix, text_prefix, video_prefix: what loading the model, the text encoder alone, or the video model takes off the
        front of keys (``base_model_prefix`` of the class).
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
    text_targets: str
    video_model: str = "Sam3VideoModel"
    video_model_type: str = "sam3_video"
    video_prefix: str = "sam3_video"
    video_session: str = "Sam3VideoInferenceSession"
    video_processor: str = "Sam3VideoProcessor"
    frame_processor: str = "Sam2VideoVideoProcessor"
    tracker_model: str = "Sam3TrackerVideoModel"
    tracker_model_type: str = "sam3_tracker_video"


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
    text: its text encoder, in words.
    text_keys: regular expression, matched at the start of canonical keys, that recognises its text encoder.
    text_projection: prefix of the canonical keys of the layer through which the detector reads the tokens.
    projection_key: prefix of its keys in the file beside a text encoder that is written without its prefix; empty if
        they are the targets' own.
    layout: the name of the layout that it is described by, where none is asked for.
    causal: whether its text encoder always masks causally; if not, the user may state it.
    tags: the tags of its model cards.
    library: the names of its classes in transformers.
    depths: name of a list of layers in the architecture -> its released depth.
    text_widths: the widths of its released text encoders.
    contexts: the contexts that released models of the family are called with, in tokens.
    variants: kinds of checkpoints of the family.
    relatives: similar kinds of checkpoints that do not belong to the family.
    """

    name: str
    text: str
    text_keys: str
    text_projection: str
    projection_key: str
    layout: str
    causal: bool
    tags: tuple[str, ...]
    library: LibraryNames
    depths: dict[str, Depth]
    text_widths: tuple[int, ...]
    contexts: tuple[int, ...]
    variants: tuple[Variant, ...]
    relatives: tuple[Relative, ...]

    def relatives_in(self, keys: Iterable[str]) -> list[Relative]:
        """The relatives that these canonical keys match, in the order of ``relatives``."""
        names = list(keys)
        return [r for r in self.relatives if any(map(re.compile(r.keys).match, names))]

    def variants_in(self, keys: Iterable[str]) -> list[Variant]:
        """The variants that these canonical keys match, in the order of ``variants``."""
        names = list(keys)
        return [v for v in self.variants if any(map(re.compile(v.keys).match, names))]

    def described(self, keys: Iterable[str]) -> str:
        """What a checkpoint with these canonical keys is, in words."""
        names = list(keys)
        if all(name.startswith(TEXT) for name in names):
            return f"{self.name} text encoder without a detector"
        variants = self.variants_in(names)
        if not variants:
            return f"{self.name} detector"
        return f"{' and '.join(v.described(names) for v in variants)}, with {self.text}"

    def doubts(self, architecture: Architecture, component: str = "all", variants: Iterable[Variant] = ()) -> list[str]:
        """Notes on what no released model has: numbers of layers, a context that is not that of its table's rows.

        component: what is converted; of a text encoder alone, the rest of the file raises no doubts.
        variants: of the checkpoint.
        """
        out = []
        if architecture.context and (said := architecture.context.note(self.contexts)):
            out.append(said)
        other = frozenset().union(*(v.depths for v in variants))
        for name, depth in self.depths.items() if component != "text" else ():
            have = len(architecture.blocks.get(name, ()))
            if name in other or architecture.sizes.get(depth.of) != depth.width:
                continue
            if have and have != depth.layers:
                released = f"{depth.layers} in every released detector of this width"
                out.append(f"{name}: {have} in this file, {released}; layers may be missing")
        if architecture.variant == "custom" and architecture.sizes["text_hidden"] in self.text_widths:
            layers = architecture.num_hidden_layers
            out.append(f"text encoder: no released encoder of this width has {layers} layers; layers may be missing")
        return out


_TEXT, _VISION = re.escape(TEXT), re.escape(VISION)

_STUDENT_MODELS = {
    "RepViT": _VISION + r"trunk\.model\.(?:[^.]+\.)*features\.",
    "TinyViT": _VISION + r"trunk\.model\.(?:[^.]+\.)*patch_embed\.seq\.",
    "EfficientViT": _VISION + r"trunk\.model\.(?:[^.]+\.)*input_stem\.",
}
_VARIANTS = (
    Variant(
        "image-student",
        "EfficientSAM3 with an image student",
        "its image encoder is not SAM3's ViT",
        _VISION + r"trunk\.model\.",
        whole=False,
        video=False,
        models=_STUDENT_MODELS,
        depths=frozenset({"vit_blocks", "geometry_layers"}),
    ),
    Variant(
        "sam3.1",
        "SAM3.1",
        "its neck has interactive and propagation branches instead of convs.3 and sam2_convs, and another tracker",
        rf"(?:{_VISION}(?:interactive_convs|propagation_convs)|tracker\.model)\.",
        whole=True,
        video=False,
        depths=frozenset({"fpn_levels"}),
    ),
)
_DEPTHS = {
    "vit_blocks": Depth("vit_hidden", 1024, 32),
    "geometry_layers": Depth("hidden", 256, 3),
    "detr_encoder_layers": Depth("hidden", 256, 6),
    "detr_decoder_layers": Depth("hidden", 256, 6),
    "upsampling_stages": Depth("hidden", 256, 3),
    "fpn_levels": Depth("fpn_hidden", 256, 4),
}
_CLIP_BLOCKS = _TEXT + r"encoder\.transformer\.resblocks\."

SAM3_LITETEXT = Family(
    name="SAM3-LiteText",
    text="the text encoder of SAM3-LiteText",
    text_keys=_TEXT,
    text_projection=TEXT + "projector.",
    projection_key="",
    layout="packed",
    causal=False,
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
        text_targets="targets-text-transformers.ini",
    ),
    depths=_DEPTHS,
    text_widths=(512, 768),
    contexts=(16, 32),
    variants=_VARIANTS,
    relatives=(
        Relative(
            "EfficientSAM3 with a CNN text encoder",
            "its text encoder is not MobileCLIP's",
            _TEXT + r"encoder\.(?:embedding\.|layers\.\d+\.[0145]\.)",
        ),
        Relative(
            "a student on teacher embeddings",
            "its text encoder reads SAM3's embeddings (embed_proj)",
            rf"(?:{_TEXT})?(?:[^.]+\.)*embed_proj\.",
        ),
        Relative(
            "fused RepMixer blocks",
            "its branches were merged (reparam_conv) and cannot be told apart",
            _TEXT + r"(?:[^.]+\.)*reparam_conv\.",
        ),
    ),
)
SAM3 = Family(
    name="SAM3",
    text="SAM3's own CLIP text encoder",
    text_keys=_CLIP_BLOCKS,
    text_projection=TEXT + "resizer.",
    projection_key="resizer.",  # text_projection is the name of CLIP's own
    layout="transformers",
    causal=True,
    tags=("sam3",),
    library=LibraryNames(
        since="5.6",
        model="Sam3Model",
        model_config="Sam3Config",
        text_model="CLIPTextModelWithProjection",
        text_model_config="CLIPTextConfig",
        processor="Sam3Processor",
        image_processor="Sam3ImageProcessor",
        model_type="sam3",
        text_model_type="clip_text_model",
        vision_model_type="sam3_vision_model",
        vit_model_type="sam3_vit_model",
        prefix="detector_model",
        text_prefix="text_model",
        text_targets="targets-text-clip.ini",
    ),
    depths=_DEPTHS,
    text_widths=(1024,),
    contexts=(32,),
    variants=_VARIANTS,
    relatives=(
        Relative(
            "a checkpoint with two text encoders",
            "it holds MobileCLIP's blocks beside CLIP's",
            _TEXT + r"encoder\.transformer\.\d+\.",
        ),
    ),
)
FAMILIES = {family.name: family for family in (SAM3_LITETEXT, SAM3)}


def family_of(keys: Iterable[str]) -> Family:
    """The family that these canonical keys belong to: by its text encoder, else SAM3-LiteText, the released one."""
    names = list(keys)
    return SAM3 if any(map(re.compile(SAM3.text_keys).match, names)) else SAM3_LITETEXT


def family_named(name: str) -> Family:
    """The family of this name; upper and lower case are the same. Raises CannotRun if there is none."""
    found = {known.lower(): family for known, family in FAMILIES.items()}.get(name.lower())
    if found is None:
        raise CannotRun(f"no family {name!r}; there are: {', '.join(FAMILIES)}", "unknown_family")
    return found
