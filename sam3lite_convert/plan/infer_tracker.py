"""Infers the sizes of the video tracker; of a file without one, no size and empty lists.

Not in the weights, and therefore not here: the heads of its attention, the kernel's strides, and every setting of the
steps around its modules.
"""

from __future__ import annotations

from sam3lite_convert.plan.votes import Votes

_WB = r"(?:weight|bias)"


def tracker(vote: Votes, sizes: dict[str, int | None], blocks: dict[str, tuple[int, ...]]) -> None:
    """Adds the sizes and lists whose names begin with ``tracker_``.

    tracker_hidden: width of its tokens and features. tracker_memory: width of a stored memory. tracker_memories: number
    of frames that the memory's position table tells apart. tracker_mask_channels: of the prompt encoder's mask
    features. tracker_decoder_width: of the mask decoder's attention between tokens and image.
    """
    attention, memory, prompts, decoder = (
        rf"tracker\.{module}\."
        for module in (r"transformer\.encoder", "maskmem_backbone", "sam_prompt_encoder", "sam_mask_decoder")
    )
    vote = vote.within("tracker.")
    layer, two_way = attention + r"layers\.\d+\.", decoder + r"transformer\."
    sizes["tracker_hidden"] = vote(
        (layer + r"norm[123]\." + _WB, 0, 1),
        (attention + r"norm\." + _WB, 0, 1),
        (two_way + r"layers\.\d+\.norm[1234]\." + _WB, 0, 1),
    )
    sizes["tracker_memory"] = vote(
        (memory + r"out_proj\." + _WB, 0, 4),
        (layer + r"cross_attn_image\.[kv]_proj\.weight", 1, 2),
        (r"tracker\.obj_ptr_tpos_proj\." + _WB, 0, 2),
    )
    sizes["tracker_memories"] = vote((r"tracker\.maskmem_tpos_enc", 0, 4))
    sizes["tracker_attention_ffn"] = vote((layer + r"linear1\." + _WB, 0, 2), (layer + r"linear2\.weight", 1, 2))
    fuser = memory + r"fuser\.layers\.\d+\."
    sizes["tracker_fuser_ffn"] = vote((fuser + r"pwconv1\." + _WB, 0, 2), (fuser + r"pwconv2\.weight", 1, 2))
    sizes["tracker_fuser_kernel"] = vote(*((fuser + r"dwconv\.weight", axis, 4) for axis in (2, 3)))
    sizes["tracker_mask_channels"] = vote(
        (prompts + r"mask_downscaling\.3\." + _WB, 0, 4),
        (prompts + r"mask_downscaling\.4\." + _WB, 0, 1),
        (prompts + r"mask_downscaling\.6\.weight", 1, 4),
    )
    sizes["tracker_mask_tokens"] = vote(
        (decoder + r"mask_tokens\.weight", 0, 2), (decoder + r"iou_prediction_head\.layers\.2\." + _WB, 0, 2)
    )
    sizes["tracker_iou_hidden"] = vote((decoder + r"iou_prediction_head\.layers\.[01]\." + _WB, 0, 2))
    sizes["tracker_decoder_width"] = vote(
        (two_way + r"(?:layers\.\d+\.cross|final)_attn_\w+\.[qkv]_proj\." + _WB, 0, 2),
        (two_way + r"(?:layers\.\d+\.cross|final)_attn_\w+\.out_proj\.weight", 1, 2),
    )
    mlp = two_way + r"layers\.\d+\.mlp\."
    sizes["tracker_decoder_ffn"] = vote((mlp + r"lin1\." + _WB, 0, 2), (mlp + r"lin2\.weight", 1, 2))
    blocks["tracker_attention_layers"] = vote.indices(attention + r"layers\.(\d+)\.")
    blocks["tracker_fuser_layers"] = vote.indices(memory + r"fuser\.layers\.(\d+)\.")
    blocks["tracker_decoder_layers"] = vote.indices(two_way + r"layers\.(\d+)\.")
    blocks["tracker_mask_mlps"] = vote.indices(decoder + r"output_hypernetworks_mlps\.(\d+)\.")
