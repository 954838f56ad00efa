"""Checks whether a config.json fits the weights in its folder.

A field is judged if it changes what the model computes. A field that is left out has the library's default value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from sam3lite_convert.convert.config import make_config
from sam3lite_convert.plan.plan import Plan
from sam3lite_convert.records.record import Json, JsonValue

# Defaults of transformers for fields that a config.json leaves out (released library, 5.23).
_LIBRARY_DEFAULTS: dict[str, Json] = {
    "text_config": {
        "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "projection_dim": 512,
        "num_hidden_layers": 12, "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "gelu",
        "layer_norm_eps": 1e-5, "use_repmixer_blocks": True, "repmixer_kernel_size": 11,
    },
    "backbone_config": {
        "hidden_size": 1024, "intermediate_size": 4736, "num_hidden_layers": 32, "num_attention_heads": 16,
        "num_channels": 3, "image_size": 1008, "patch_size": 14, "layer_norm_eps": 1e-6, "window_size": 24,
        "global_attn_indexes": [7, 15, 23, 31], "pretrain_image_size": 336, "hidden_act": "gelu",
    },
    "vision_config": {
        "fpn_hidden_size": 256, "backbone_feature_sizes": [[288, 288], [144, 144], [72, 72]],
        "scale_factors": [4.0, 2.0, 1.0, 0.5],
    },
    "geometry_encoder_config": {
        "hidden_size": 256, "num_layers": 3, "num_attention_heads": 8, "intermediate_size": 2048, "roi_size": 7,
    },
    "detr_encoder_config": {
        "hidden_size": 256, "num_layers": 6, "num_attention_heads": 8, "intermediate_size": 2048,
    },
    "detr_decoder_config": {
        "hidden_size": 256, "num_layers": 6, "num_attention_heads": 8, "intermediate_size": 2048, "num_queries": 200,
    },
    "mask_decoder_config": {"hidden_size": 256, "num_upsampling_stages": 3, "num_attention_heads": 8},
}  # fmt: skip
# Fields that we do not write because the library's default is the original's value: the ViT's rotary
# embedding has base 10000, and the feed-forward blocks of the DETR parts use ReLU (layout notes).
_KEPT_AT_DEFAULT: dict[str, Json] = {
    "": {"quantization_config": None},
    "backbone_config": {
        "rope_parameters": {"rope_type": "axial", "rope_theta": 10000.0}, "rope_theta": 10000.0,
        "layer_scale_init_value": None,
    },
    "geometry_encoder_config": {"hidden_act": "relu"},
    "detr_encoder_config": {"hidden_act": "relu"},
    "detr_decoder_config": {"hidden_act": "relu"},
}  # fmt: skip
_COMPONENTS = {"text": "text_encoder", "vision": "vision_encoder"} | {
    name: name for name in ("geometry_encoder", "detr_encoder", "detr_decoder", "mask_decoder")
}
# Read only in training, when weights are initialised or by other tasks, or (the DETR parts' eps) never.
_WITHOUT_EFFECT = frozenset(
    {
        "_name_or_path", "transformers_version", "torch_dtype", "dtype", "model_type", "architectures", "return_dict",
        "output_attentions", "output_hidden_states", "use_cache", "is_encoder_decoder", "chunk_size_feed_forward",
        "id2label", "label2id", "problem_type", "initializer_range", "dropout", "attention_dropout", "hidden_dropout",
        "layer_scale_init_value", "layer_norm_eps", "hidden_act", "tie_word_embeddings", "torchscript", "use_bfloat16",
        "bos_token_id", "eos_token_id", "pad_token_id", "num_labels", "auto_map",
    }
)  # fmt: skip


class ConfigFault(NamedTuple):
    """A field that does not fit: its path in config.json, in words what is wrong with it, and the code of the cause."""

    path: str
    why: str
    code: str = "V-CONFIG-FIELD"

    @property
    def component(self) -> str:
        """The component of the model that the field configures; ``config`` for none or all."""
        section = self.path.partition("_config")
        return _COMPONENTS.get(section[0], "config") if section[1] else "config"


class ConfigCheck(NamedTuple):
    """The result of ``check_config``.

    faults: fields that do not fit.
    unjudged: paths of fields that this tool does not know.
    """

    faults: list[ConfigFault]
    unjudged: list[str]


def check_config(plan: Plan, actual: Json) -> ConfigCheck:
    """Compare a config.json with the plan's weights.

    A field that is left out has the default value of transformers.
    """
    expected = make_config(plan)
    library = plan.layout.loader.library is not None
    if not library and actual.get("model_type") != expected["model_type"]:
        if str(actual.get("model_type", "")).startswith(plan.layout.family.library.model_type):
            why = (
                f"is {actual['model_type']!r}: transformers would load these weights as that model and leave every "
                "tensor that it does not find under its own name at random values"
            )
            return ConfigCheck([ConfigFault("model_type", why, "V-CONFIG-CLASS")], [])
        for name in ("model_type", "layout", "component"):
            expected.pop(name)
    section = "text_config" if plan.options.component == "text" and library else ""
    faults = list(_architectures(expected.pop("architectures", None), actual))
    faults += _compare(expected, actual, "", plan, section)
    unjudged: list[str] = []
    faults += _others(expected, actual, "", section, unjudged)
    return ConfigCheck(faults, unjudged)


def _architectures(expected: JsonValue, actual: Json) -> Iterator[ConfigFault]:
    # Some loaders go by model_type, others pick the class by this field. It does no harm if it is left out.
    found = actual.get("architectures")
    if isinstance(expected, list) and found and found != expected:
        yield ConfigFault("architectures", f"is {found!r}; these are the tensors of {expected[0]}", "V-CONFIG-CLASS")


def _others(expected: Json, actual: Json, path: str, section: str, unjudged: list[str]) -> Iterator[ConfigFault]:
    """Fields that we do not write: judged if they are known to matter, otherwise added to ``unjudged``."""
    known = _KEPT_AT_DEFAULT.get(section, {})
    for name, have in actual.items():
        where, ours = f"{path}{name}", expected.get(name)
        if isinstance(ours, dict) and isinstance(have, dict):
            yield from _others(ours, have, f"{where}.", name, unjudged)
        elif name in expected:
            continue
        elif name in known:
            want = known[name]
            parts, base = (
                (have, want) if isinstance(have, dict) and isinstance(want, dict) else ({"": have}, {"": want})
            )
            for part, value in parts.items():
                if not _equal(value, base.get(part)):
                    field = f"{where}.{part}" if part else where
                    yield ConfigFault(field, f"is {value!r}; the original model has {base.get(part)!r}")
        elif name not in _WITHOUT_EFFECT:
            unjudged.append(where)


def _compare(expected: Json, actual: Json, path: str, plan: Plan, section: str) -> Iterator[ConfigFault]:
    library = plan.layout.loader.library is not None
    defaults = _LIBRARY_DEFAULTS.get(section, {}) if library else {}
    unknown = {"num_attention_heads", "window_size", "image_size", "global_attn_indexes", "backbone_feature_sizes"}
    guessed = unknown if "vision" in plan.architecture.assumed and "vision" in path else set()
    for name, want in expected.items():
        where = f"{path}{name}"
        have = actual.get(name, defaults.get(name))
        if name == "dtype":
            have = actual.get("dtype", actual.get("torch_dtype", want))
        if isinstance(want, dict):
            if name not in actual and not library:
                continue  # another tool's config, without this section
            yield from _compare(want, have if isinstance(have, dict) else {}, f"{where}.", plan, name)
        elif (have is None and (name == "model_type" or not library)) or name in guessed or _equal(have, want):
            continue
        elif name == "layer_norm_eps":
            left_out = "" if name in actual else " (left out, so the library's default applies)"
            which = "the ViT's" if "backbone" in path else "the text encoder's"
            yield ConfigFault(
                where, f"eps is {have!r}{left_out}; {which} LayerNorms use {want:g} in the original", "V-CONFIG-EPS"
            )
        else:
            left_out = "" if name in actual else " (left out, so the library's default applies)"
            yield ConfigFault(where, f"is {have!r}{left_out}; the weights say {want!r}")


def _equal(have: JsonValue, want: JsonValue) -> bool:
    if isinstance(want, float) and isinstance(have, int | float) and not isinstance(have, bool):
        return math.isclose(have, want, rel_tol=1e-9)
    if isinstance(want, int) and not isinstance(want, bool) and isinstance(have, list):
        return bool(have) and all(h == want for h in have)  # image_size: [1008, 1008]
    return bool(have == want)
