"""config.json for a converted folder, and whether a given one fits the weights.

Written without importing transformers. Field names are those of ``Sam3LiteTextConfig``; the ViT's
``layer_norm_eps`` is the original's 1e-5 (layout notes, fact 1), not the library's default.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from sam3lite_convert.architecture import Architecture
from sam3lite_convert.plan import Plan

EPS = 1e-5
PACKED_MODEL_TYPE = "sam3lite_packed"

# What transformers takes for a field that a config.json leaves out (released library, 5.23).
_LIBRARY_DEFAULTS: dict[str, dict[str, Any]] = {
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


def make_config(plan: Plan) -> dict[str, Any]:
    """The config.json that fits the plan's output."""
    architecture = plan.architecture
    text = _text(architecture)
    if plan.layout.config == "transformers":
        if plan.options.component == "text":
            model = "Sam3LiteTextTextModel"
            return {"architectures": [model], "dtype": plan.floating_dtype, **text}
        head = {"architectures": ["Sam3LiteTextModel"], "model_type": "sam3_lite_text", "dtype": plan.floating_dtype}
        return head | {"text_config": text} | _detector(architecture)
    text["model_type"] = f"{PACKED_MODEL_TYPE}_text"
    text |= {
        "variant": architecture.variant,
        "model_name": architecture.model_name,
        "output_dim": architecture.sizes["output_dim"],
        "causal_masking": architecture.causal_masking,
    }
    own: dict[str, Any] = {
        "model_type": PACKED_MODEL_TYPE if plan.layout.name == "packed" else f"sam3lite_{plan.layout.name}",
        "layout": plan.layout.name,
        "component": plan.options.component,
        "dtype": plan.floating_dtype,
        "text_config": text,
    }
    return own if plan.options.component == "text" else own | _detector(architecture)


def _text(a: Architecture) -> dict[str, Any]:
    s = a.sizes
    return {
        "model_type": "sam3_lite_text_text_model",
        "vocab_size": s["vocab"],
        "hidden_size": s["text_hidden"],
        "intermediate_size": s["text_ffn"],
        "projection_dim": s["projection_dim"],
        "num_hidden_layers": a.num_hidden_layers,
        "num_attention_heads": s["text_heads"],
        "max_position_embeddings": s["context"],
        "hidden_act": "gelu",
        "layer_norm_eps": EPS,
        "use_repmixer_blocks": bool(a.blocks["repmixer_blocks"]),
        "repmixer_kernel_size": s.get("kernel", 11),
    }


def _detector(a: Architecture) -> dict[str, Any]:
    s, v = a.sizes, a.vision
    grid = v["image_size"] // s["patch"]
    heads = s["detr_heads"]
    scales = v["scale_factors"]
    return {
        "vision_config": {
            "model_type": "sam3_vision_model",
            "backbone_config": {
                "model_type": "sam3_vit_model",
                "hidden_size": s["vit_hidden"],
                "intermediate_size": s["vit_ffn"],
                "num_hidden_layers": len(a.blocks["vit_blocks"]),
                "num_attention_heads": v["vit_heads"],
                "num_channels": s["channels"],
                "image_size": v["image_size"],
                "patch_size": s["patch"],
                "hidden_act": "gelu",
                "layer_norm_eps": EPS,
                "window_size": v["window_size"],
                "global_attn_indexes": v["global_attn_indexes"],
                "pretrain_image_size": v["pretrain_image_size"],
            },
            "fpn_hidden_size": s["fpn_hidden"],
            # The coarsest level is made and not used by the detector.
            "backbone_feature_sizes": [[int(grid * f)] * 2 for f in scales if f >= 1],
            "scale_factors": scales,
        },
        "geometry_encoder_config": {
            "model_type": "sam3_lite_text_geometry_encoder",
            "hidden_size": s["hidden"],
            "num_layers": len(a.blocks["geometry_layers"]),
            "num_attention_heads": heads,
            "intermediate_size": s["geometry_ffn"],
            "roi_size": s["roi"],
        },
        "detr_encoder_config": {
            "model_type": "sam3_lite_text_detr_encoder",
            "hidden_size": s["hidden"],
            "num_layers": len(a.blocks["detr_encoder_layers"]),
            "num_attention_heads": heads,
            "intermediate_size": s["detr_encoder_ffn"],
        },
        "detr_decoder_config": {
            "model_type": "sam3_lite_text_detr_decoder",
            "hidden_size": s["hidden"],
            "num_layers": len(a.blocks["detr_decoder_layers"]),
            "num_attention_heads": heads,
            "intermediate_size": s["detr_decoder_ffn"],
            "num_queries": s["queries"],
        },
        "mask_decoder_config": {
            "model_type": "sam3_lite_text_mask_decoder",
            "hidden_size": s["hidden"],
            "num_upsampling_stages": len(a.blocks["upsampling_stages"]),
            "num_attention_heads": heads,
        },
    }


def config_faults(plan: Plan, actual: dict[str, Any]) -> list[tuple[str, str]]:
    """Where a config.json does not fit the plan: (path of the field, what is wrong in words).

    A field that is left out counts with the value that transformers takes for it; fields that this
    tool does not write are not judged.
    """
    expected = make_config(plan)
    expected.pop("architectures", None)
    foreign = plan.layout.config != "transformers" and actual.get("model_type") != expected["model_type"]
    if foreign:
        if str(actual.get("model_type", "")).startswith("sam3_lite"):
            why = (
                f"is {actual['model_type']!r}: transformers would load these weights there and leave its split "
                "attention at random values"
            )
            return [("model_type", why)]
        for name in ("model_type", "layout", "component"):
            expected.pop(name)
    return list(_compare(expected, actual, "", plan, "text_config" if plan.options.component == "text" else ""))


def _compare(
    expected: dict[str, Any], actual: dict[str, Any], path: str, plan: Plan, section: str
) -> Iterator[tuple[str, str]]:
    library = plan.layout.config == "transformers"
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
                continue  # a config of another tool that does not speak of this part
            yield from _compare(want, have if isinstance(have, dict) else {}, f"{where}.", plan, name)
        elif (have is None and (name == "model_type" or not library)) or name in guessed or _equal(have, want):
            continue
        elif name == "layer_norm_eps":
            left_out = "" if name in actual else " (left out, so the library's default holds)"
            which = "the ViT's" if "backbone" in path else "the text encoder's"
            yield where, f"eps is {have:g}{left_out}; {which} LayerNorms run at {want:g} in the original"
        else:
            left_out = "" if name in actual else " (left out, so the library's default holds)"
            yield where, f"is {have!r}{left_out}; the weights say {want!r}"


def _equal(have: Any, want: Any) -> bool:
    if isinstance(want, float) and isinstance(have, int | float) and not isinstance(have, bool):
        return math.isclose(have, want, rel_tol=1e-9)
    if isinstance(want, int) and not isinstance(want, bool) and isinstance(have, list):
        return bool(have) and all(h == want for h in have)  # image_size: [1008, 1008]
    return bool(have == want)
