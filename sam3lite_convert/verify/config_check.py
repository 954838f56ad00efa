"""Checks whether a config.json fits the weights in its folder.

A field is judged if it changes what the model computes. A field that is left out has the library's default value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from sam3lite_convert.checkpoint import dtypes
from sam3lite_convert.convert.config import make_config
from sam3lite_convert.convert.packed_config import SECTIONS, default_fields, required_fields
from sam3lite_convert.plan.plan import Plan
from sam3lite_convert.records.record import Json, JsonValue

# Defaults of transformers for fields that a config.json leaves out (released library, 5.23).
_TEXT_DEFAULTS: dict[str, Json] = {
    "sam3_lite_text_text_model": {
        "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "projection_dim": 512,
        "num_hidden_layers": 12, "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "gelu",
        "layer_norm_eps": 1e-5, "use_repmixer_blocks": True, "repmixer_kernel_size": 11,
    },
    "clip_text_model": {
        "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "projection_dim": 512,
        "num_hidden_layers": 12, "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5, "bos_token_id": 49406, "eos_token_id": 49407,
    },
}  # fmt: skip
# What Sam3Config takes in place of these where the whole section is left out.
_NO_CLIP_SECTION: Json = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "max_position_embeddings": 32, "hidden_act": "gelu",
}  # fmt: skip
_LIBRARY_DEFAULTS: dict[str, Json] = {
    "video": {"low_res_mask_size": 288},
    "tracker_config": {
        "image_size": 1008, "num_maskmem": 7, "memory_attention_hidden_size": 256, "memory_attention_num_layers": 4,
        "memory_attention_feed_forward_hidden_size": 2048, "memory_attention_rope_feat_sizes": [72, 72],
        "memory_encoder_hidden_size": 256, "memory_encoder_output_channels": 64, "mask_downsampler_embed_dim": 256,
        "memory_fuser_num_layers": 2, "memory_fuser_embed_dim": 256, "memory_fuser_intermediate_dim": 1024,
        "memory_fuser_kernel_size": 7, "memory_fuser_padding": 3,
    },
    "prompt_encoder_config": {"hidden_size": 256, "image_size": 1008, "patch_size": 14, "mask_input_channels": 16},
    "tracker mask_decoder_config": {
        "hidden_size": 256, "mlp_dim": 2048, "num_hidden_layers": 2, "num_attention_heads": 8,
        "attention_downsample_rate": 2, "num_multimask_outputs": 3, "iou_head_hidden_dim": 256,
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
# embedding has base 10000, and the feed-forward blocks of the DETR parts use ReLU (layout notes). What a field does was
# tried with the library, 5.23: each was changed in a small model, and its outputs compared.
_ROPE: Json = {"rope_type": "axial", "rope_theta": 10000.0}
_KEPT_AT_DEFAULT: dict[str, Json] = {
    "": {"quantization_config": None, "detector_config": None},
    "backbone_config": {
        "rope_parameters": _ROPE, "rope_scaling": _ROPE, "rope_theta": 10000.0, "layer_scale_init_value": None,
    },
    "geometry_encoder_config": {"hidden_act": "relu"},
    "detr_encoder_config": {"hidden_act": "relu"},
    "detr_decoder_config": {"hidden_act": "relu"},
    # The settings of the steps around the modules, with which the original builds its video model.
    "video": {
        "quantization_config": None, "score_threshold_detection": 0.5, "det_nms_thresh": 0.1, "assoc_iou_thresh": 0.1,
        "trk_assoc_iou_thresh": 0.5, "new_det_thresh": 0.7, "hotstart_delay": 15, "hotstart_unmatch_thresh": 8,
        "hotstart_dup_thresh": 8, "suppress_unmatched_only_within_hotstart": True, "init_trk_keep_alive": 30,
        "max_trk_keep_alive": 30, "min_trk_keep_alive": -1,
        "suppress_overlapping_based_on_recent_occlusion_threshold": 0.7,
        "decrease_trk_keep_alive_for_empty_masklets": False, "fill_hole_area": 16, "max_num_objects": 10000,
        "recondition_every_nth_frame": 16, "recondition_on_trk_masks": True, "high_conf_thresh": 0.8,
        "high_iou_thresh": 0.8,
    },
    "detector_config": {"quantization_config": None, "detector_config": None},
    "tracker_config": {
        "sigmoid_scale_for_mem_enc": 20.0, "sigmoid_bias_for_mem_enc": -10.0,
        "enable_occlusion_spatial_embedding": True, "multimask_output_in_sam": True, "multimask_min_pt_num": 0,
        "multimask_max_pt_num": 1, "multimask_output_for_tracking": True, "max_object_pointers_in_encoder": 16,
        "max_cond_frame_num": 4, "enable_temporal_pos_encoding_for_object_pointers": True,
        "memory_attention_num_attention_heads": 1, "memory_attention_downsample_rate": 1,
        "memory_attention_feed_forward_hidden_act": "relu", "mask_downsampler_kernel_size": 3,
        "mask_downsampler_stride": 2, "mask_downsampler_padding": 1, "mask_downsampler_total_stride": 16,
        "mask_downsampler_hidden_act": "gelu", "memory_fuser_hidden_act": "gelu", "rope_parameters": _ROPE,
        "rope_scaling": _ROPE, "rope_theta": 10000.0, "memory_attention_rope_theta": 10000.0,
    },
    "prompt_encoder_config": {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "num_point_embeddings": 4},
    "tracker mask_decoder_config": {
        "iou_head_depth": 3, "dynamic_multimask_via_stability": True, "dynamic_multimask_stability_delta": 0.05,
        "dynamic_multimask_stability_thresh": 0.98,
    },
}  # fmt: skip
# The original without temporal disambiguation has 0 in all of these; with it, the values above.
_DISAMBIGUATION = (
    "hotstart_delay", "hotstart_unmatch_thresh", "hotstart_dup_thresh", "recondition_every_nth_frame",
)  # fmt: skip
# The original has no such switch.
_NEARER = {
    "recondition_on_trk_masks": "what the original stores comes from the tracker's mask; False hands a mask of 0 and 1 "
    "to a step that reads logits",
}
# In any section: a part that returns tuples fails where its outputs are named; layers may have configs of their own.
_DETECTOR = "sam3"  # the library's default for the model_type of a video model's detector
_GREATEST = 2  # as eos_token_id: the library then pools the row of the greatest id, CLIP's end token
_KEPT_EVERYWHERE: Json = {"return_dict": True, "per_layer_config": None}
_ATTENTION, _OF_TORCH = ("_attn_implementation", "attn_implementation"), ("eager", "sdpa")
# null is the same as leaving these out; in other fields of the library it is refused.
_MAY_BE_NULL = frozenset(
    {
        "rope_parameters", "rope_scaling", "global_attn_indexes", "scale_factors",
        "backbone_feature_sizes", "dtype", "per_layer_config", "quantization_config", "detector_config",
        "memory_attention_rope_feat_sizes",
    }
)  # fmt: skip
# The library takes one number, or height and width.
_MAY_BE_PAIRS = frozenset({"image_size", "pretrain_image_size"})
_ROPE_FIELDS = frozenset({"rope_parameters", "rope_scaling", "rope_theta", "memory_attention_rope_theta", "head_dim"})
_COMPONENTS = {"tracker": "tracker", "text": "text_encoder", "vision": "vision_encoder"} | {
    name: name for name in ("geometry_encoder", "detr_encoder", "detr_decoder", "mask_decoder")
}
# Read only in training, when weights are initialised or by other tasks, or (the DETR parts' eps) never. The library
# refuses some of them if they have another type, or are no rate: _TYPES says of which kind each has to be.
_WITHOUT_EFFECT = frozenset(
    {
        "_name_or_path", "transformers_version", "torch_dtype", "dtype", "model_type", "architectures",
        "output_attentions", "output_hidden_states", "use_cache", "is_encoder_decoder", "chunk_size_feed_forward",
        "id2label", "label2id", "problem_type", "initializer_range", "dropout", "attention_dropout", "hidden_dropout",
        "layer_scale_init_value", "layer_norm_eps", "hidden_act", "tie_word_embeddings", "torchscript", "use_bfloat16",
        "bos_token_id", "eos_token_id", "pad_token_id", "num_labels", "auto_map", "tie_last_hidden_states",
        "initializer_factor", "scale", "memory_attention_dropout", "memory_attention_rope_dropout",
        "memory_fuser_layer_scale_init_value",
    }
)  # fmt: skip
_TYPES = {
    "initializer_range": "a decimal number", "layer_scale_init_value": "a decimal number",
    "layer_norm_eps": "a decimal number",
    "dropout": "a rate", "attention_dropout": "a rate", "hidden_dropout": "a rate",
    "memory_attention_dropout": "a rate", "memory_attention_rope_dropout": "a rate",
    "memory_fuser_layer_scale_init_value": "a decimal number",
    "hidden_act": "a name", "id2label": "an object", "output_hidden_states": "a flag", "dtype": "a dtype",
}  # fmt: skip


class ConfigFault(NamedTuple):
    """A field that does not fit.

    path: its path in config.json.
    why: what is wrong with it, in words.
    code: of the cause (``codes.CODES``).
    cause: the same for all fields of a section that is left out; empty if there is no such section.
    """

    path: str
    why: str
    code: str = "V-CONFIG-FIELD"
    cause: str = ""

    @property
    def component(self) -> str:
        """The component of the model that the field configures; ``config`` for none or all."""
        sections = (part.removesuffix("_config") for part in self.path.split(".") if part.endswith("_config"))
        return next((_COMPONENTS[name] for name in sections if name in _COMPONENTS), "config")


class ConfigCheck(NamedTuple):
    """The result of ``check_config``.

    faults: fields that do not fit.
    unjudged: paths of fields that this tool does not know.
    """

    faults: list[ConfigFault]
    unjudged: list[str]


def check_config(plan: Plan, actual: Json) -> ConfigCheck:
    """Compare a config.json with the plan's weights.

    A field that is left out has the value that the reader of the layout gives it: the default of transformers, or of
    ``convert/packed_config.py``. Nothing reads the config.json of other layouts; there only what is stated is compared.
    """
    expected = make_config(plan)
    library = plan.layout.loader.library is not None
    faults = list(_architectures(expected.pop("architectures", None), actual))
    if not library:
        faults += _own_model_type(plan, expected, actual)
        if expected.pop("model_type") != actual.get("model_type"):  # of another tool
            for name in ("layout", "component"):
                expected.pop(name)
    path, section = "", {"text": "text_config", "video": "video"}.get(plan.options.component, "") if library else ""
    if library and (other := _of_the_other_kind(plan, expected, actual)):
        faults += other.faults
        expected, actual, path, section = other.expected, other.actual, other.path, ""
    faults += _compare(expected, actual, path, plan, section)
    unjudged: list[str] = []
    faults += _others(expected, actual, path, section, plan, unjudged)
    return ConfigCheck(faults, unjudged)


class _OtherKind(NamedTuple):
    """What is compared where the video model's config.json lies beside a detector, or the other way round."""

    faults: list[ConfigFault]
    expected: Json
    actual: Json
    path: str


def _of_the_other_kind(plan: Plan, expected: Json, actual: Json) -> _OtherKind | None:
    """Whether a config.json is that of the video model in place of its detector's, or of the detector in place of the
    video model's; then only what configures the detector can be compared. None for the right kind, or another."""
    names, found = plan.layout.family.library, actual.get("model_type")
    wanted = expected.get("model_type")
    if wanted == names.video_model_type and found == names.model_type:
        why = f"is {found!r}: transformers loads the detector alone, without the tracker, which has no config here"
        inner = expected["detector_config"]
        if isinstance(inner, dict):
            return _OtherKind([ConfigFault("model_type", why, "V-CONFIG-CLASS")], inner, actual, "")
    inside = actual.get("detector_config")
    if wanted == names.model_type and found == names.video_model_type and isinstance(inside, dict):
        why = f"is {found!r}: AutoModel makes a video model, whose tracker is not in this folder, but random"
        fault = ConfigFault("model_type", why, "V-CONFIG-CLASS")
        return _OtherKind(
            [fault], expected | {"dtype": inside.get("dtype", plan.floating_dtype)}, inside, "detector_config."
        )
    return None


def _section(within: str, name: str) -> str:
    """The name of a section in the tables above: detector and tracker have a mask decoder each."""
    return f"tracker {name}" if (within, name) == ("tracker_config", "mask_decoder_config") else name


def _architectures(expected: JsonValue, actual: Json) -> Iterator[ConfigFault]:
    # Some loaders go by model_type, others pick the class by this field. It does no harm if it is left out.
    found = actual.get("architectures")
    if isinstance(expected, list) and found and found != expected:
        yield ConfigFault("architectures", f"is {found!r}; these are the tensors of {expected[0]}", "V-CONFIG-CLASS")


def _own_model_type(plan: Plan, expected: Json, actual: Json) -> Iterator[ConfigFault]:
    """The model_type of a layout that no library loads."""
    found, wanted = actual.get("model_type"), expected["model_type"]
    if found == wanted:
        return
    if str(found or "").startswith(plan.layout.family.library.model_type):
        yield ConfigFault(
            "model_type",
            f"is {found!r}: transformers would load these weights as that model and leave every tensor that it does "
            "not find under its own name at random values",
            "V-CONFIG-CLASS",
        )
    elif plan.layout.loader.name in ("packed_model", "packed_encoder"):
        said = f"is {found!r}" if "model_type" in actual else "is missing"
        yield ConfigFault("model_type", f"{said}; PackedTextModel only loads a folder of {wanted!r}")


def _others(
    expected: Json, actual: Json, path: str, section: str, plan: Plan, unjudged: list[str]
) -> Iterator[ConfigFault]:
    """Fields that we do not write: judged if they are known to matter, otherwise added to ``unjudged``."""
    library = plan.layout.loader.library is not None
    known = _KEPT_AT_DEFAULT.get(section, {}) | _KEPT_EVERYWHERE | _other_names(expected, section, plan)
    if section == "video" and all(type(actual.get(name)) is int and not actual[name] for name in _DISAMBIGUATION):
        known |= dict.fromkeys(_DISAMBIGUATION, 0)
    for name, have in actual.items():
        where, ours = f"{path}{name}", expected.get(name)
        if isinstance(ours, dict):
            if isinstance(have, dict):
                yield from _others(ours, have, f"{where}.", _section(section, name), plan, unjudged)
        elif name in expected or (have is None and name in _MAY_BE_NULL):
            continue
        elif name in known:
            yield from _kept(where, name, have, known[name])
        elif library and (why := _refused(name, have, path)):
            yield ConfigFault(where, why)
        elif name not in _WITHOUT_EFFECT:
            unjudged.append(where)
        elif (
            library
            and name in _TYPES
            and not (_fits(have, _TYPES[name]) and (section != "text_config" or type(have) is not int))
        ):
            why = f"is {have!r}, which is not {_TYPES[name]}; transformers refuses it, although nothing reads it"
            yield ConfigFault(where, why, "V-CONFIG-TYPE")


def _refused(name: str, have: JsonValue, path: str) -> str | None:
    """Why transformers does not load a config.json with this field, or not everywhere; None if it does."""
    if name == "use_return_dict":
        return f"is {have!r}; transformers refuses a config.json with this field"
    # That of a section is replaced by the whole model's.
    if name in _ATTENTION and not path and have not in (None, *_OF_TORCH):
        return (
            f"is {have!r}: transformers then loads the model only where this implementation is installed, and computes "
            f"with it; {' and '.join(_OF_TORCH)} are torch's own"
        )
    return None


def _other_names(expected: Json, section: str, plan: Plan) -> Json:
    """Fields by which the library sets others that we write, with the values that they must have."""
    vision = plan.architecture.vision
    if section in ("detr_encoder_config", "detr_decoder_config"):
        return {"num_hidden_layers": expected["num_layers"]}
    if section == "backbone_config" and vision is not None:
        return {"head_dim": plan.architecture.sizes["vit_hidden"] // vision.vit_heads}
    if (
        section in ("", "video", "detector_config", "vision_config")
        and vision is not None
        and "vision" not in plan.architecture.assumed
    ):
        return {"image_size": vision.image_size}
    return {}


def _kept(where: str, name: str, have: JsonValue, want: JsonValue) -> Iterator[ConfigFault]:
    """A field that has to have its default value; of an object, each of its entries."""
    code = "V-CONFIG-ROPE" if name in _ROPE_FIELDS else "V-CONFIG-FIELD"
    if isinstance(want, dict) and not isinstance(have, dict):
        yield ConfigFault(where, f"is {have!r}, which is not an object", "V-CONFIG-TYPE")
        return
    if name in ("per_layer_config", "head_dim") and not have:
        return
    parts, base = (have, want) if isinstance(have, dict) and isinstance(want, dict) else ({"": have}, {"": want})
    for part, value in parts.items():
        default = base.get("rope_type" if part == "type" and want == _ROPE else part)
        if not _equal(value, default, name in _MAY_BE_PAIRS):
            field = f"{where}.{part}" if part else where
            yield ConfigFault(field, f"is {value!r}; {_NEARER.get(name, f'the original model has {default!r}')}", code)


def _compare(
    expected: Json, actual: Json, path: str, plan: Plan, section: str, left_out: str = ""
) -> Iterator[ConfigFault]:
    """Fields that we write. ``left_out``: says so of the whole section, if the file does not have it."""
    defaults = _defaults(plan, section, bool(left_out))
    unknown = {"num_attention_heads", "window_size", "image_size", "global_attn_indexes", "backbone_feature_sizes"}
    guessed = unknown if "vision" in plan.architecture.assumed and "vision" in path else set()
    for name, want in expected.items():
        where = f"{path}{name}"
        absent = name not in actual or (actual[name] is None and name in _MAY_BE_NULL)
        have = defaults.get(name) if absent else actual[name]
        if name == "dtype":
            have = actual.get("dtype") or actual.get("torch_dtype") or want
        if isinstance(want, dict):
            yield from _compare_section(want, actual.get(name), where, plan, _section(section, name), left_out)
        elif absent and name == "model_type" and section == "backbone_config" and not left_out:
            yield ConfigFault(where, f"is missing; transformers does not load a backbone without it. It is {want!r}")
        elif absent and name == "model_type" and section == "detector_config" and want != _DETECTOR and not left_out:
            said = f"is missing; transformers takes {_DETECTOR!r} for it, which does not load. It is {want!r}"
            yield ConfigFault(where, said, "V-CONFIG-CLASS")
        elif absent and name not in defaults and (name == "model_type" or not _reads(plan, section)):
            continue
        elif absent and name not in defaults and name != "dtype":
            if name in required_fields(SECTIONS[section]):
                yield ConfigFault(where, f"is missing; {_reader(where)} refuses the folder. The weights say {want!r}")
        elif not absent and (why := _type_fault(have, want, name, plan)):
            yield ConfigFault(where, f"{why}; the weights say {want!r}", "V-CONFIG-TYPE")
        elif name in guessed or _equal(have, want, name in _MAY_BE_PAIRS) or _as_good(name, have, want, plan):
            continue
        else:
            yield _wrong_value(where, name, have, want, plan, absent, left_out)


def _compare_section(
    want: Json, have: JsonValue, where: str, plan: Plan, name: str, left_out: str
) -> Iterator[ConfigFault]:
    """The fields of a section. ``left_out``: says so of the section that it is in."""
    if isinstance(have, dict):
        yield from _compare(want, have, f"{where}.", plan, name)
    elif have is not None:
        yield ConfigFault(where, f"is {have!r}, which is not an object", "V-CONFIG-TYPE")
    elif plan.layout.loader.library is not None:
        said = left_out or f"{where} is left out, and the library's defaults do not fit the weights"
        yield from _compare(want, {}, f"{where}.", plan, name, said)
    elif _reads(plan, name):
        yield ConfigFault(where, f"is missing; {_reader(where)} reads all sizes there and refuses the folder")


def _wrong_value(
    where: str, name: str, have: JsonValue, want: JsonValue, plan: Plan, absent: bool, left_out: str
) -> ConfigFault:
    reader = "the library's" if plan.layout.loader.library else f"{_reader(where)}'s"
    default = f" (left out, so {reader} default applies)" if absent else ""
    if name == "layer_norm_eps":
        which = "the ViT's" if "backbone" in where else "the text encoder's"
        why = f"eps is {have!r}{default}; {which} LayerNorms use {want:g} in the original"
        return ConfigFault(where, why, "V-CONFIG-EPS", left_out)
    classes = dict.fromkeys(("model_type", "detector_config.model_type", "tracker_config.model_type"), "V-CONFIG-CLASS")
    code = {"dtype": "V-CONFIG-DTYPE", **classes}.get(where, "V-CONFIG-FIELD")
    return ConfigFault(where, f"is {have!r}{default}; the weights say {want!r}", code, left_out)


def _reads(plan: Plan, section: str) -> bool:
    """Whether a reader of the layout takes the fields of this section."""
    read = {"packed_model": [*SECTIONS], "packed_encoder": ["text_config"]}
    return plan.layout.loader.library is not None or section in read.get(plan.layout.loader.name, ())


def _reader(where: str) -> str:
    """What reads this part of a packed folder's config.json."""
    return "PackedTextModel" if where.startswith("text_config") else "PackedModel"


def _defaults(plan: Plan, section: str, left_out: bool) -> Json:
    """What the reader takes for fields that are left out. ``left_out``: so is the whole section."""
    if plan.layout.loader.library is not None and section == "text_config":
        kind = plan.layout.family.library.text_model_type
        whole = left_out and kind == "clip_text_model"
        return _TEXT_DEFAULTS[kind] | (_NO_CLIP_SECTION if whole else {})
    if plan.layout.loader.library is not None:
        return _LIBRARY_DEFAULTS.get(section, {})
    return default_fields(SECTIONS[section]) if _reads(plan, section) else {}


# ---- values and types


def _type_fault(have: JsonValue, want: JsonValue, name: str, plan: Plan) -> str | None:
    """In words, why a value is of a type that the reader does not take; None if it is of the right type."""
    if have is None:
        return "is null"
    if isinstance(have, float) and not math.isfinite(have):
        return f"is {have!r}"
    if name in _MAY_BE_PAIRS and isinstance(have, list):
        fits = len(have) == 2 and all(type(side) is int for side in have)
    elif isinstance(want, list) and isinstance(have, list):
        kinds = {type(item) for item in want}
        fits = all(type(item) in kinds for item in have)
    elif isinstance(want, float):
        # transformers takes no whole number for one of its floats.
        fits = type(have) is float or (type(have) is int and plan.layout.loader.library is None)
    else:
        fits = type(have) is type(want)
    return None if fits else f"is {have!r}, a value of another type"


def _fits(have: JsonValue, kind: str) -> bool:
    """Whether a field that has no effect has a value that the library accepts."""
    if kind == "a dtype":
        return have is None or (isinstance(have, str) and have in dtypes.NAMES)
    if kind == "an object":
        return have is None or isinstance(have, dict)
    if kind == "a flag":
        return have is None or isinstance(have, bool)
    if kind == "a name":
        return isinstance(have, str)
    if kind == "a decimal number":
        return type(have) is float
    return isinstance(have, int | float) and not isinstance(have, bool) and 0 <= have <= 1


def _equal(have: JsonValue, want: JsonValue, pairs: bool = False) -> bool:
    """Equal in value and in type; with ``pairs`` a number equals a height and a width of that number."""
    if isinstance(want, float) and isinstance(have, int | float) and not isinstance(have, bool):
        return math.isclose(have, want, rel_tol=1e-9)
    if pairs and isinstance(have, list):
        return len(have) == 2 and all(_equal(side, want) for side in have)
    if isinstance(want, list) and isinstance(have, list):
        return len(have) == len(want) and all(map(_equal, have, want))
    return type(have) is type(want) and bool(have == want)


def _as_good(name: str, have: JsonValue, want: JsonValue, plan: Plan) -> bool:
    """Whether another value does the same: a start id, which nothing reads; the mark for the row of the greatest id,
    which is that of CLIP's end token; a list of global blocks that names the same of those that there are."""
    if name == "bos_token_id" or (name == "eos_token_id" and have == _GREATEST):
        return True
    if name != "global_attn_indexes" or not isinstance(have, list) or not isinstance(want, list):
        return False
    count = len(plan.architecture.blocks["vit_blocks"])
    there = [{n for n in side if isinstance(n, int) and n < count} for side in (have, want)]
    return there[0] == there[1]
