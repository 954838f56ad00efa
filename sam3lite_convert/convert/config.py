"""config.json for a converted folder.

Written without importing transformers. Field names are those of the library's config classes; the ViT's
``layer_norm_eps`` is the original's 1e-5 (layout notes, fact 1), not the library's default. Settings of the steps
around the video model's modules are left out: the library's defaults are the original's.
"""

from __future__ import annotations

from collections.abc import Callable

from sam3lite_convert.convert.clip_ids import framing_ids
from sam3lite_convert.plan.architecture import Architecture
from sam3lite_convert.plan.families import LibraryNames
from sam3lite_convert.plan.infer_clip import CLIP
from sam3lite_convert.plan.plan import Plan
from sam3lite_convert.records.record import Json

EPS = 1e-5
_MASK_SCALE = 4  # sides of a mask in cells of the ViT's grid
_TRACKER_HEADS = 8  # of the mask decoder; the weights do not show it
PACKED_MODEL_TYPE = "sam3lite_packed"


def make_config(plan: Plan) -> Json:
    """The content of config.json for the plan's output."""
    return _WRITERS[plan.layout.loader.name](plan)


def _of_the_library(plan: Plan) -> Json:
    """For folders that transformers loads."""
    names = plan.layout.family.library
    text = _text(plan.architecture, names)
    if plan.options.component == "text":
        return {"architectures": [names.text_model], "dtype": plan.floating_dtype, **text}
    detector: Json = {"model_type": names.model_type, "text_config": text, **_detector(plan.architecture, names)}
    if plan.options.component == "video":
        return {
            "architectures": [names.video_model],
            "model_type": names.video_model_type,
            "dtype": plan.floating_dtype,
            "detector_config": detector,
            "tracker_config": _tracker(plan.architecture, names),
            "low_res_mask_size": _MASK_SCALE * _grid(plan.architecture),
        }
    return {"architectures": [names.model], "dtype": plan.floating_dtype, **detector}


def _packed(plan: Plan) -> Json:
    return _own(plan, PACKED_MODEL_TYPE)


def _plain(plan: Plan) -> Json:
    return _own(plan, f"sam3lite_{plan.layout.name}")


def _own(plan: Plan, model_type: str) -> Json:
    """For layouts that no library loads: the same facts, and those that the library's config has no fields for."""
    names, architecture = plan.layout.family.library, plan.architecture
    text = _text(architecture, names) | {
        "model_type": f"{model_type}_text",
        "variant": architecture.variant,
        "model_name": architecture.model_name,
        "output_dim": architecture.sizes["output_dim"],
        "causal_masking": architecture.causal_masking,
    }
    own: Json = {
        "model_type": model_type,
        "layout": plan.layout.name,
        "component": plan.options.component,
        "dtype": plan.floating_dtype,
        "text_config": text,
    }
    whole = plan.options.component != "text" and architecture.vision is not None
    return own | _detector(architecture, names) if whole else own


_WRITERS: dict[str, Callable[[Plan], Json]] = {
    "transformers": _of_the_library,
    "packed_model": _packed,
    "packed_encoder": _packed,
    "none": _plain,
}


def _text(a: Architecture, names: LibraryNames) -> Json:
    s = a.sizes
    own: Json = {
        "model_type": names.text_model_type,
        "vocab_size": s["vocab"],
        "hidden_size": s["text_hidden"],
        "intermediate_size": s["text_ffn"],
        "projection_dim": s["projection_dim"],
        "num_hidden_layers": a.num_hidden_layers,
        "num_attention_heads": s["text_heads"],
        "max_position_embeddings": s["context"],
        "hidden_act": "gelu",
        "layer_norm_eps": EPS,
    }
    if a.model_name == CLIP:
        # The pooled output is that of the end id: CLIP's own in every released file. The original projects every row
        # and reads none of them.
        start, end = framing_ids(s["vocab"])
        return own | {"bos_token_id": start, "eos_token_id": end}
    return own | {
        "use_repmixer_blocks": bool(a.blocks["repmixer_blocks"]),
        "repmixer_kernel_size": s.get("kernel", 11),
    }


def _grid(a: Architecture) -> int:
    """Patches along a side of the image."""
    if a.vision is None:
        raise ValueError("a text encoder alone has no image")
    return a.vision.image_size // a.sizes["patch"]


def _tracker(a: Architecture, names: LibraryNames) -> Json:
    """The part of the video model that carries masks from frame to frame.

    It is also read by itself, by the library's tracker classes: they build the vision encoder that is described here,
    the detector's own, with the tracker's neck on it.
    """
    if a.vision is None:
        raise ValueError("a text encoder alone has no tracker")
    s, size = a.sizes, a.vision.image_size
    hidden, kernel = s["tracker_hidden"], s["tracker_fuser_kernel"]
    return {
        "model_type": names.tracker_model_type,
        "image_size": size,  # left out, the library takes 1008 here, and in every section below
        "vision_config": _vision(a, names),
        "prompt_encoder_config": {
            "hidden_size": hidden,
            "image_size": size,
            "patch_size": s["patch"],
            "mask_input_channels": s["tracker_mask_channels"],
        },
        "mask_decoder_config": {
            "hidden_size": hidden,
            "mlp_dim": s["tracker_decoder_ffn"],
            "num_hidden_layers": len(a.blocks["tracker_decoder_layers"]),
            "num_attention_heads": _TRACKER_HEADS,
            "attention_downsample_rate": hidden // s["tracker_decoder_width"],
            "num_multimask_outputs": s["tracker_mask_tokens"] - 1,
            "iou_head_hidden_dim": s["tracker_iou_hidden"],
        },
        "num_maskmem": s["tracker_memories"],
        "memory_attention_hidden_size": hidden,
        "memory_attention_num_layers": len(a.blocks["tracker_attention_layers"]),
        "memory_attention_feed_forward_hidden_size": s["tracker_attention_ffn"],
        "memory_attention_rope_feat_sizes": [_grid(a)] * 2,
        "memory_encoder_hidden_size": hidden,
        "memory_encoder_output_channels": s["tracker_memory"],
        "mask_downsampler_embed_dim": hidden,
        "memory_fuser_num_layers": len(a.blocks["tracker_fuser_layers"]),
        "memory_fuser_embed_dim": hidden,
        "memory_fuser_intermediate_dim": s["tracker_fuser_ffn"],
        "memory_fuser_kernel_size": kernel,
        "memory_fuser_padding": kernel // 2,
    }


def _vision(a: Architecture, names: LibraryNames) -> Json:
    """The ViT and its neck."""
    if a.vision is None:
        raise ValueError("a text encoder alone has no vision config")
    s, v = a.sizes, a.vision
    return {
        "model_type": names.vision_model_type,
        "backbone_config": {
            "model_type": names.vit_model_type,
            "hidden_size": s["vit_hidden"],
            "intermediate_size": s["vit_ffn"],
            "num_hidden_layers": len(a.blocks["vit_blocks"]),
            "num_attention_heads": v.vit_heads,
            "num_channels": s["channels"],
            "image_size": v.image_size,
            "patch_size": s["patch"],
            "hidden_act": "gelu",
            "layer_norm_eps": EPS,
            "window_size": v.window_size,
            "global_attn_indexes": [*v.global_attn_indexes],
            "pretrain_image_size": v.pretrain_image_size,
        },
        "fpn_hidden_size": s["fpn_hidden"],
        # The detector computes the coarsest level but does not use it.
        "backbone_feature_sizes": [[int(_grid(a) * f)] * 2 for f in v.scale_factors if f >= 1],
        "scale_factors": [*v.scale_factors],
    }


def _detector(a: Architecture, names: LibraryNames) -> Json:
    s, heads = a.sizes, a.sizes["detr_heads"]
    return {
        "vision_config": _vision(a, names),
        "geometry_encoder_config": {
            "model_type": f"{names.model_type}_geometry_encoder",
            "hidden_size": s["hidden"],
            "num_layers": len(a.blocks["geometry_layers"]),
            "num_attention_heads": heads,
            "intermediate_size": s["geometry_ffn"],
            "roi_size": s["roi"],
        },
        "detr_encoder_config": {
            "model_type": f"{names.model_type}_detr_encoder",
            "hidden_size": s["hidden"],
            "num_layers": len(a.blocks["detr_encoder_layers"]),
            "num_attention_heads": heads,
            "intermediate_size": s["detr_encoder_ffn"],
        },
        "detr_decoder_config": {
            "model_type": f"{names.model_type}_detr_decoder",
            "hidden_size": s["hidden"],
            "num_layers": len(a.blocks["detr_decoder_layers"]),
            "num_attention_heads": heads,
            "intermediate_size": s["detr_decoder_ffn"],
            "num_queries": s["queries"],
        },
        "mask_decoder_config": {
            "model_type": f"{names.model_type}_mask_decoder",
            "hidden_size": s["hidden"],
            "num_upsampling_stages": len(a.blocks["upsampling_stages"]),
            "num_attention_heads": heads,
        },
    }
