"""Kinds of checkpoint that the names, shapes and dtypes of their tensors tell, and what to do with each.

Relatives of a family, which its own names tell, are in ``families.py``; kinds that the bytes tell in
``checkpoint/kinds.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sam3lite_convert.checkpoint import dtypes
from sam3lite_convert.checkpoint.index import StoredTensor
from sam3lite_convert.checkpoint.kinds import Kind
from sam3lite_convert.plan.computed_weights import computed_weights

_AT = r"(?:^|.*\.)"  # at the beginning of a component of a key
_MERGE = "Merge it into the weights (merge_and_unload() of peft) and save that state dict"
_OTHER_MODEL = "This tool converts SAM3-LiteText; give one of its checkpoints: sam3lite inspect s0"
_NAMES: tuple[tuple[str, Kind], ...] = (
    (_AT + r"_flat_param(?:_\d+)?$|.*flat_param$", Kind(
        "a checkpoint of FSDP with flat parameters, in which the tensors have lost their names and shapes",
        "Save it again with FSDP.state_dict_type(model, StateDictType.FULL_STATE_DICT)")),
    (r"(?:detector_model|tracker_model)\.", Kind(
        "facebook/sam3's SAM3 in the names of the transformers library", _OTHER_MODEL)),
    (_AT + r"(?:memory_attention|sam_mask_decoder|memory_encoder)\.", Kind("a SAM 2 checkpoint", _OTHER_MODEL)),
    (r"mask_decoder\.(?:iou_token|mask_tokens|transformer)\.|prompt_encoder\.", Kind(
        "a SAM 1 checkpoint", _OTHER_MODEL)),
    (r"(?:text_encoder\.(?:embedding_layer|positional_embedding|transformer)\.|image_encoder\.model\.)", Kind(
        "a MobileCLIP checkpoint in its own names", _OTHER_MODEL)),
    (r"(?:vision_encoder\.backbone|text_encoder\.(?:layers|embeddings|token_embedding)|detr_decoder\.layers)\b", Kind(
        "a converted checkpoint: its tensors have the names that this tool and the transformers library write",
        "To prove its folder: sam3lite verify DIR --checkpoint CHECKPOINT; to convert, give the original checkpoint")),
)  # fmt: skip
_OURS = re.compile(r"(?:^|.*\.)(?:language_backbone|vision_backbone)\.")  # the original's names
_LORA = re.compile(r".*\.lora_(?:[AB]|down|up|embedding_[AB]|magnitude_vector)\b")
_SCALES = re.compile(
    r".*(?:(?:weight|bias)_(?:scale(?:_inv)?|zero_point)|\.(?:scales|SCB|absmax|quant_map|qweight|qzeros|g_idx|zero_points?)"
    r"|\.quant_state\..*)"
)
_PLACEHOLDERS = Kind(
    "a checkpoint of DeepSpeed ZeRO-3 whose tensors are empty placeholders: the values are in the files of the ranks",
    "Make one file of the folder with the script in it: python zero_to_fp32.py . checkpoint.pt",
)
_ADAPTER = Kind("a LoRA adapter alone, without the weights it belongs to", f"Load it over its base model. {_MERGE}")
_MLX = Kind("a checkpoint that was converted for MLX", "Give the PyTorch checkpoint that it was made from")
_GENERATORS = Kind("the state of random generators, without weights", "Give the checkpoint beside it")
_UNMERGED = Kind("a checkpoint with a LoRA adapter that is not merged", _MERGE)


def kind_of_names(tensors: Mapping[str, StoredTensor], metadata: Mapping[str, str]) -> Kind | None:
    """The kind of a checkpoint for which there is no sound plan; None if its tensors tell none."""
    if computed := computed_weights(tensors):
        return computed
    if metadata.get("format") == "mlx":
        return _MLX
    if tensors and all(t.dtype == "uint8" and len(t.shape) == 1 for t in tensors.values()):
        return _GENERATORS
    adapters = sum(_LORA.match(key) is not None for key in tensors)
    if adapters:
        return _ADAPTER if adapters > len(tensors) * 0.9 else _UNMERGED
    matrices = [t for key, t in tensors.items() if key.endswith(".weight") and dtypes.is_floating(t.dtype)]
    if len(matrices) > 10 and sum(t.shape in ((0,), (1,)) for t in matrices) > 0.9 * len(matrices):
        return _PLACEHOLDERS
    return _quantised(tensors) or _foreign(tensors)


def _quantised(tensors: Mapping[str, StoredTensor]) -> Kind | None:
    matrices = [t for t in tensors.values() if len(t.shape) >= 2]
    whole = [t for t in matrices if t.dtype in ("int8", "uint8", "int16", "int32")]
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
        return None
    for pattern, kind in _NAMES:
        if any(map(re.compile(pattern).match, tensors)):
            return kind
    return None
