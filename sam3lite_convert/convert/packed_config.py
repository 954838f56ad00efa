"""The ``text_config`` of a packed folder's config.json, as ``PackedTextModel`` reads it. Needs no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from sam3lite_convert.errors import UnsoundPlan
from sam3lite_convert.records.record import JsonValue

ACTIVATIONS = ("gelu", "gelu_tanh", "gelu_pytorch_tanh", "relu")


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
        known = {k: v for k, v in data.items() if k in cls.__dataclass_fields__}
        missing = [name for name in cls.required() if name not in known]
        if missing:
            raise UnsoundPlan(f"config.json: text_config: missing: {', '.join(missing)}", "bad_config")
        for name, value in known.items():
            kinds = {"int": (int,), "bool": (bool,), "str": (str,), "float": (float, int)}[cls.__annotations__[name]]
            if type(value) not in kinds:
                raise UnsoundPlan(f"config.json: text_config.{name} {value!r} is of another type", "bad_config")
        config = cls(**known)  # type: ignore[arg-type]
        if config.hidden_act not in ACTIVATIONS:
            raise UnsoundPlan(f"config.json: text_config.hidden_act {config.hidden_act!r} is not known", "bad_config")
        return config

    @classmethod
    def required(cls) -> tuple[str, ...]:
        """The fields that have no default."""
        return tuple(f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING)

    @classmethod
    def defaults(cls) -> dict[str, JsonValue]:
        """What the other fields are if they are left out."""
        return {f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING}
