"""Kinds of checkpoint that the names, shapes and dtypes of their tensors tell, and what to do with each.

Relatives of a family, which its own names tell, are in ``families.py``; kinds that the bytes tell in
``checkpoint/kinds.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sam3lite_convert.checkpoint import dtypes
from sam3lite_convert.checkpoint.index import StoredTensor
from sam3lite_convert.checkpoint.kinds import ADAPTER, GATHER, MERGE, Kind
from sam3lite_convert.plan.computed_weights import computed_weights

_AT = r"(?:^|.*\.)"  # at the beginning of a component of a key
_OTHER_MODEL = "This tool converts SAM3-LiteText; give one of its checkpoints: sam3lite inspect s0"
_NAMES: tuple[tuple[str, Kind], ...] = (
    (_AT + r"_?flat_param(?:_\d+)?$", Kind(
        "a checkpoint of FSDP with flat parameters, in which the tensors have lost their names and shapes",
        "Save it again with FSDP.state_dict_type(model, StateDictType.FULL_STATE_DICT)")),
    (_AT + r"tracker\.(?:model\.)?(?:sam_mask_decoder|maskmem_backbone|transformer)\.", Kind(
        "the tracker of a SAM3 checkpoint without its detector",
        "Give the whole checkpoint; a part alone is not converted")),
    (_AT + r"(?:memory_attention|sam_mask_decoder|memory_encoder)\.", Kind("a SAM 2 checkpoint", _OTHER_MODEL)),
    (r"(?:.*\.)?mask_decoder\.(?:iou_token|mask_tokens|transformer|output_upscaling)\b|(?:.*\.)?prompt_encoder\.", Kind(
        "a SAM 1 checkpoint, or one of its relatives (MobileSAM, EfficientSAM, EdgeSAM)", _OTHER_MODEL)),
    (r"(?:text_encoder\.(?:embedding_layer|positional_embedding|transformer)\.|image_encoder\.model\.)", Kind(
        "a MobileCLIP checkpoint in its own names", _OTHER_MODEL)),
    (r"(?:detector_model|tracker_model|tracker_neck)\.|(?:vision_encoder\.backbone|detr_decoder\.layers)\b"
     r"|text_encoder\.(?:layers|embeddings|text_model|token_embedding)\b|layers\.\d+\.token_mixer\."
     r"|embeddings\.position_embedding\.position_embedding$", Kind(
        "a part of a model in the names that this tool and the transformers library write",
        "Give the whole of it; to a text encoder alone belongs the text_projection.safetensors beside it")),
    (r"(?:.*\.)?(?:diffusion_model|first_stage_model|cond_stage_model|(?:down|up|mid)_blocks?)\.", Kind(
        "a diffusion model, as ComfyUI or diffusers load it", _OTHER_MODEL)),
    (r"(?:.*\.)?(?:storage_tokens|register_tokens|rope_embed\.periods)$", Kind("a DINO checkpoint", _OTHER_MODEL)),
    (r"(?:.*\.)?visual\.attn_pool\.", Kind("a Perception Encoder or CLIP checkpoint", _OTHER_MODEL)),
    (r"(?:.*\.)?(?:visual|text)\.(?:trunk|transformer|class_embedding|token_embedding|conv1)\b"
     r"|(?:.*\.)?transformer\.resblocks\.|(?:text|vision)_model\.", Kind(
        "a CLIP checkpoint (OpenAI's, OpenCLIP's, MobileCLIP2's or transformers')", _OTHER_MODEL)),
    (r"(?:.*\.)?(?:lm_head|embed_tokens)\.", Kind("a language model", _OTHER_MODEL)),
    (r"(?:.*\.)?bert\.embeddings\.|backbone\.0\.body\.|transformer\.level_embed", Kind(
        "a checkpoint of another detector (DETR, Grounding DINO)", _OTHER_MODEL)),
)  # fmt: skip
_TEXT = re.compile(r"(?:^|.*\.)(?:language_backbone\.|resizer\.(?:weight|bias)$)")  # the original's names
_OURS = re.compile(rf"{_TEXT.pattern}|(?:^|.*\.)vision_backbone\.")
_DETECTOR = re.compile(r"(?:^|.*\.)(?:segmentation_head|dot_prod_scoring)\.")
_LORA = re.compile(r".*\.lora_(?:[AB]|down|up|mid|embedding_[AB]|magnitude_vector)\b")
_OTHER_ADAPTER = re.compile(r".*\.(?:(?:hada|lokr|boft|oft|vera)_\w+|ia3_l)\b|prompt_embeddings$")
_BESIDE_ADAPTER = re.compile(r".*\.(?:alpha|dora_scale|bias_indices)$")
_SCALES = re.compile(
    r".*(?:(?:weight|bias)_(?:scale(?:_inv)?|zero_point|global_scale)"
    r"|\.(?:scales|SCB|absmax|quant_map|qweight|qzeros|g_idx|zero_points?|scale_weight|input_scale|W_q)|scaled_fp8"
    r"|\.quant_state\..*)"
)
_DIFFERENCE = re.compile(r".*\.diff(?:_b)?$")
_PLACEHOLDERS = Kind(
    "a checkpoint of DeepSpeed ZeRO-3 whose tensors are empty placeholders: the values are in the files of the ranks",
    GATHER,
)
_OTHER_ADAPTERS = Kind(
    "an adapter (of the kind of LoHa, LoKr, IA3, OFT or prompt tuning), not the weights it belongs to",
    f"Load it over its base model. {MERGE}",
)
_DIFFERENCES = Kind("the difference of two checkpoints", "Add it to the weights it was taken from, and save the sum")
_OTHER_LIBRARY = Kind("a checkpoint in the names of TensorFlow or Flax", "Give the PyTorch checkpoint")
NO_TEXT = Kind(
    "a part of a SAM3 detector without its text encoder", "Give the whole checkpoint; a part alone is not converted"
)
_EMPTY = Kind("a file without tensors", "Give the file that holds the model's weights")
_MLX = Kind("a checkpoint that was converted for MLX", "Give the PyTorch checkpoint that it was made from")
_GENERATORS = Kind("the state of random generators, without weights", "Give the checkpoint beside it")
_UNMERGED = Kind("a checkpoint with an adapter (LoRA or its like) that is not merged", MERGE)


def kind_of_names(tensors: Mapping[str, StoredTensor], metadata: Mapping[str, str]) -> Kind | None:
    """The kind of a checkpoint for which there is no sound plan; None if its tensors tell none."""
    if not tensors:
        return _EMPTY
    if computed := computed_weights(tensors):
        return computed
    if metadata.get("format") == "mlx":
        return _MLX
    if metadata.get("format") in ("tf", "flax", "jax"):
        return _OTHER_LIBRARY
    if all(t.dtype == "uint8" and len(t.shape) == 1 for t in tensors.values()):
        return _GENERATORS

    def count(pattern: re.Pattern[str]) -> int:
        return sum(pattern.match(key) is not None for key in tensors)

    for pattern, alone in ((_LORA, ADAPTER), (_OTHER_ADAPTER, _OTHER_ADAPTERS)):
        if adapters := count(pattern):
            return alone if adapters + count(_BESIDE_ADAPTER) > len(tensors) * 0.9 else _UNMERGED
    if count(_DIFFERENCE) > len(tensors) // 2:
        return _DIFFERENCES
    weights = [t for key, t in tensors.items() if key.endswith(".weight")]
    matrices = [t for t in weights if dtypes.is_floating(t.dtype)]
    if len(matrices) > 10 and sum(t.shape in ((0,), (1,)) for t in matrices) > 0.9 * len(matrices):
        return _PLACEHOLDERS
    return _quantised(tensors) or _of_odd_dtype(weights) or _foreign(tensors)


def _of_odd_dtype(weights: list[StoredTensor]) -> Kind | None:
    odd = [t for t in weights if t.dtype.startswith("complex") or t.dtype == "float8_e8m0fnu"]
    if not odd or 2 * len(odd) < len(weights):
        return None
    do = "Save their real parts, t.real.clone(), if the imaginary ones are zero"
    if dtypes.is_floating(odd[0].dtype):
        do = "Such a number is a power of two, made for scales; give the weights, or convert it with --dtype float32"
    return Kind(f"a checkpoint of {odd[0].dtype} ({len(odd):,} tensors), a dtype that no weights have", do)


def _quantised(tensors: Mapping[str, StoredTensor]) -> Kind | None:
    matrices = [t for t in tensors.values() if len(t.shape) >= 2]
    whole = [t for t in matrices if not dtypes.is_floating(t.dtype) and not t.dtype.startswith("complex")]
    small = [t for t in matrices if t.dtype in dtypes.FLOAT8]
    scales = [key for key in tensors if _SCALES.fullmatch(key)]
    if not scales and len(whole) <= len(matrices) // 10:
        return None
    held = whole or small
    if not held:
        return None
    with_scales = f", {len(scales):,} scales beside them" if scales else ""
    return Kind(
        f"a quantised checkpoint ({len(held):,} tensors of {held[0].dtype}{with_scales}); the numbers are no weights",
        "Give the weights before they were quantised, or dequantise them where they were written",
    )


def _foreign(tensors: Mapping[str, StoredTensor]) -> Kind | None:
    if any(map(_OURS.match, tensors)):
        return None if any(map(_TEXT.match, tensors)) else NO_TEXT
    for pattern, kind in _NAMES:
        if any(map(re.compile(pattern).match, tensors)):
            return kind
    return NO_TEXT if any(map(_DETECTOR.match, tensors)) else None
