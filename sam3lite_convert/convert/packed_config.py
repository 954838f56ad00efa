"""config.json of a packed folder, as ``PackedTextModel`` and ``PackedModel`` read it. Needs no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from sam3lite_convert.errors import UnsoundPlan
from sam3lite_convert.records.record import JsonValue

ACTIVATIONS = ("gelu", "gelu_tanh", "gelu_pytorch_tanh", "relu")
NECK_FACTORS = (4.0, 2.0, 1.0, 0.5)  # sizes that a level of the neck may have, relative to the ViT's grid
GROUPS = 8  # of the mask decoder's group norms
_KINDS: dict[str, tuple[type, ...]] = {"int": (int,), "bool": (bool,), "str": (str,), "float": (float, int)}
_SECTION = TypeVar("_SECTION")


@dataclass(frozen=True)
class PackedTextConfig:
    """The ``text_config`` of a packed folder's config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    projection_dim: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    output_dim: int
    use_repmixer_blocks: bool
    repmixer_kernel_size: int = 11
    layer_norm_eps: float = 1e-5
    hidden_act: str = "gelu"
    causal_masking: bool = False

    @classmethod
    def from_dict(cls, data: Mapping[str, JsonValue]) -> PackedTextConfig:
        """Read ``text_config``; unknown entries are ignored.

        Raises UnsoundPlan, naming the field, if a field is missing or of another type, or ``hidden_act`` is not known.
        """
        config = _read(cls, data, "text_config")
        if config.hidden_act not in ACTIVATIONS:
            raise UnsoundPlan(f"config.json: text_config.hidden_act {config.hidden_act!r} is not known", "bad_config")
        return config


@dataclass(frozen=True)
class PackedVitConfig:
    """``vision_config.backbone_config``. Image sizes are in pixels, the window in patches."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int
    pretrain_image_size: int
    window_size: int
    global_attn_indexes: tuple[int, ...]
    num_channels: int = 3
    layer_norm_eps: float = 1e-5
    hidden_act: str = "gelu"


@dataclass(frozen=True)
class PackedNeckConfig:
    """``vision_config``: the neck. Levels with a factor below 1 are stored, and nothing computes them."""

    fpn_hidden_size: int
    scale_factors: tuple[float, ...]


@dataclass(frozen=True)
class PackedLayersConfig:
    """A stack of transformer layers: ``detr_encoder_config``."""

    hidden_size: int
    num_layers: int
    num_attention_heads: int
    intermediate_size: int


@dataclass(frozen=True)
class PackedGeometryConfig(PackedLayersConfig):
    """``geometry_encoder_config``. roi_size: side of the grid that is read under a box, in samples."""

    roi_size: int


@dataclass(frozen=True)
class PackedDecoderConfig(PackedLayersConfig):
    """``detr_decoder_config``."""

    num_queries: int


@dataclass(frozen=True)
class PackedMaskConfig:
    """``mask_decoder_config``."""

    hidden_size: int
    num_upsampling_stages: int
    num_attention_heads: int


@dataclass(frozen=True)
class PackedConfig:
    """config.json of a packed folder that holds the whole detector."""

    text: PackedTextConfig
    vit: PackedVitConfig
    neck: PackedNeckConfig
    geometry: PackedGeometryConfig
    encoder: PackedLayersConfig
    decoder: PackedDecoderConfig
    mask: PackedMaskConfig

    @classmethod
    def from_dict(cls, data: Mapping[str, JsonValue]) -> PackedConfig:
        """Read the sections; unknown entries are ignored.

        Raises UnsoundPlan, naming the field, if a field is missing or of another type, or if sizes do not fit each
        other.
        """
        vision = _section(data, "vision_config")
        config = cls(
            PackedTextConfig.from_dict(_section(data, "text_config")),
            _read(PackedVitConfig, _section(vision, "backbone_config"), "vision_config.backbone_config"),
            _read(PackedNeckConfig, vision, "vision_config"),
            _read(PackedGeometryConfig, _section(data, "geometry_encoder_config"), "geometry_encoder_config"),
            _read(PackedLayersConfig, _section(data, "detr_encoder_config"), "detr_encoder_config"),
            _read(PackedDecoderConfig, _section(data, "detr_decoder_config"), "detr_decoder_config"),
            _read(PackedMaskConfig, _section(data, "mask_decoder_config"), "mask_decoder_config"),
        )
        if fault := config._fault():
            raise UnsoundPlan(f"config.json: {fault}", "bad_config")
        return config

    def _fault(self) -> str | None:
        """The first thing that does not fit, in words."""
        vit, width = self.vit, self.neck.fpn_hidden_size
        parts: tuple[tuple[str, PackedTextConfig | PackedVitConfig | PackedLayersConfig | PackedMaskConfig], ...] = (
            ("vision_config.backbone_config", vit),
            ("text_config", self.text),
            ("geometry_encoder_config", self.geometry),
            ("detr_encoder_config", self.encoder),
            ("detr_decoder_config", self.decoder),
            ("mask_decoder_config", self.mask),
        )
        for name, part in parts:
            for field in dataclasses.fields(part):
                value = getattr(part, field.name)
                if field.type == "int" and value < 1:
                    return f"{name}.{field.name} is {value}; it has to be at least 1"
            if part.hidden_size % part.num_attention_heads:
                return f"{name}: {part.num_attention_heads} heads do not divide a width of {part.hidden_size}"
            if part not in (vit, self.text) and part.hidden_size != width:
                return f"{name}.hidden_size is {part.hidden_size}, vision_config.fpn_hidden_size {width}"
        if self.text.output_dim != width:
            return f"text_config.output_dim is {self.text.output_dim}, vision_config.fpn_hidden_size {width}"
        if width < 1 or width % GROUPS:
            return f"vision_config.fpn_hidden_size is {width}; it has to be a multiple of {GROUPS}"
        if vit.hidden_size // vit.num_attention_heads % 4:
            return f"vision_config.backbone_config: heads of {vit.hidden_size // vit.num_attention_heads} cannot rotate"
        if vit.hidden_act not in ACTIVATIONS:
            return f"vision_config.backbone_config.hidden_act {vit.hidden_act!r} is not known"
        factors = self.neck.scale_factors
        used = [f for f in factors if f >= 1]
        if any(f not in NECK_FACTORS for f in factors) or used[-1:] != [1.0] or used != list(factors[: len(used)]):
            return f"vision_config.scale_factors {list(factors)} are not those of a neck: from 4 down to 1, then 0.5"
        if len(used) - 1 > self.mask.num_upsampling_stages:
            return f"mask_decoder_config.num_upsampling_stages is {self.mask.num_upsampling_stages}, too few"
        return None


# The sections that are read, by their own names.
SECTIONS: dict[str, type] = {
    "text_config": PackedTextConfig,
    "vision_config": PackedNeckConfig,
    "backbone_config": PackedVitConfig,
    "geometry_encoder_config": PackedGeometryConfig,
    "detr_encoder_config": PackedLayersConfig,
    "detr_decoder_config": PackedDecoderConfig,
    "mask_decoder_config": PackedMaskConfig,
}


def required_fields(section: type) -> tuple[str, ...]:
    """The fields of a section that have no default."""
    return tuple(f.name for f in dataclasses.fields(section) if f.default is dataclasses.MISSING)


def default_fields(section: type) -> dict[str, JsonValue]:
    """What the other fields of a section are if they are left out."""
    return {f.name: f.default for f in dataclasses.fields(section) if f.default is not dataclasses.MISSING}


def _section(data: Mapping[str, JsonValue], name: str) -> Mapping[str, JsonValue]:
    found = data.get(name)
    return found if isinstance(found, dict) else {}


def _read(section: type[_SECTION], data: Mapping[str, JsonValue], where: str) -> _SECTION:
    """A section of config.json; ``where``: its path. Raises UnsoundPlan if a field is missing or of another type."""
    kinds = {f.name: str(f.type) for f in dataclasses.fields(section)}  # type: ignore[arg-type]
    known = {k: v for k, v in data.items() if k in kinds}
    if missing := [name for name in required_fields(section) if name not in known]:
        raise UnsoundPlan(f"config.json: {where}: missing: {', '.join(missing)}", "bad_config")
    for name, value in known.items():
        kind = kinds[name].removeprefix("tuple[").removesuffix(", ...]")
        several = kind != kinds[name]
        if several is not isinstance(value, list) or any(
            type(v) not in _KINDS[kind] for v in (value if isinstance(value, list) else [value])
        ):
            raise UnsoundPlan(f"config.json: {where}.{name} {value!r} is of another type", "bad_config")
    return section(**{k: tuple(v) if isinstance(v, list) else v for k, v in known.items()})
