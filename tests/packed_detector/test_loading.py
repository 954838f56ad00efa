"""Loading the packed detector: every weight or none, and a config.json that fits."""

from __future__ import annotations

import shutil

import pytest
import torch
from support.folders import config, convert, edit, edit_config, tensors, tiny_state, write_safetensors
from support.rows import DATA

from sam3lite_convert.convert.packed_config import PackedConfig
from sam3lite_convert.errors import CannotRun, UnsoundPlan
from sam3lite_convert.packed_detector import PackedModel

VIT = "backbone_config"


@pytest.fixture
def bad(good, tmp_path):
    return shutil.copytree(good, tmp_path / "bad")


# ---- what is loaded ---------------------------------------------------------------------------------


def test_a_loaded_model_is_ready_to_run_and_holds_the_folders_tensors(good, model):
    assert not any(m.training for m in model.modules())
    assert not any(p.requires_grad for p in model.parameters())
    held, written = model.state_dict(), tensors(good)
    assert sorted(held) == sorted(written)
    assert all(torch.equal(held[k], written[k]) for k in written)


def test_weights_are_not_copied(good):
    weights = tensors(good)
    model = PackedModel.from_weights(config(good), weights)
    assert {k: t.data_ptr() for k, t in model.state_dict().items()} == {k: t.data_ptr() for k, t in weights.items()}


@pytest.mark.parametrize("variant", ["s0", "s1", "l"])
def test_at_full_size_its_keys_and_shapes_are_those_of_the_layout(variant, good):
    rows = [line.split("\t") for line in (DATA / f"target_packed_{variant}.tsv").read_text().splitlines()]
    wanted = {key: shape for key, _, shape in rows}
    said = config(good)
    said["text_config"] |= _text(wanted)
    said["vision_config"][VIT] |= {
        "hidden_size": 1024, "intermediate_size": 4736, "num_hidden_layers": 32, "num_attention_heads": 16,
        "pretrain_image_size": 336, "image_size": 1008, "window_size": 24, "global_attn_indexes": [7, 15, 23, 31],
    }  # fmt: skip
    said["vision_config"]["fpn_hidden_size"] = 256
    wide = {"hidden_size": 256, "intermediate_size": 2048, "num_attention_heads": 8}
    said["geometry_encoder_config"] |= wide | {"num_layers": 3}
    said["detr_encoder_config"] |= wide | {"num_layers": 6}
    said["detr_decoder_config"] |= wide | {"num_layers": 6, "num_queries": 200}
    said["mask_decoder_config"]["hidden_size"] = 256
    with torch.device("meta"):
        held = PackedModel(PackedConfig.from_dict(said)).state_dict()
    assert {k: "x".join(map(str, t.shape)) or "scalar" for k, t in held.items()} == wanted


def _text(rows):
    """The sizes of a text encoder, read off its key list."""
    vocab, width = map(int, rows["text_encoder.token_embedding.weight"].split("x"))
    layers = {k.split(".")[2] for k in rows if k.startswith("text_encoder.layers.")}
    mixers = any("token_mixer" in k for k in rows)
    hidden = next(s for k, s in rows.items() if k.startswith("text_") and k.endswith(".fc1.weight")).split("x")[0]
    return {
        "vocab_size": vocab, "hidden_size": width, "intermediate_size": int(hidden), "projection_dim": width,
        "num_hidden_layers": len(layers), "num_attention_heads": width // 64, "output_dim": 256,
        "max_position_embeddings": int(rows["text_encoder.position_embedding.position_embedding"].split("x")[2]),
        "use_repmixer_blocks": mixers,
    }  # fmt: skip


# ---- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        "vision_encoder.backbone.embeddings.position_embeddings",
        "vision_encoder.neck.fpn_layers.3.proj2.bias",
        "geometry_encoder.cls_embed.weight",
        "detr_decoder.layers.1.vision_cross_attn.k_proj.bias",
        "mask_decoder.pixel_decoder.norms.2.weight",
        "text_projection.bias",
    ],
)
def test_a_missing_weight_is_named(key, bad):
    edit(bad, {key: None})
    with pytest.raises(UnsoundPlan, match="missing: ") as caught:
        PackedModel.from_pretrained(bad)
    assert caught.value.details["missing"] == [key] and key in caught.value.message


def test_a_weight_too_many_or_of_another_shape_is_named(bad):
    key = "detr_encoder.layers.0.mlp.fc1.bias"
    edit(bad, {"detr_encoder.norm.weight": torch.ones(32), key: tensors(bad)[key][:-1]})
    with pytest.raises(UnsoundPlan) as caught:
        PackedModel.from_pretrained(bad)
    assert caught.value.details["unexpected"] == ["detr_encoder.norm.weight"]
    assert f"{key} is (63,) where the model has (64,)" in caught.value.message


def test_a_text_encoder_alone_and_another_layout_are_refused(tmp_path):
    path = write_safetensors(tmp_path, tiny_state())
    with pytest.raises(CannotRun, match="PackedTextModel"):
        PackedModel.from_pretrained(convert(path, tmp_path / "text", "--component", "text"))
    with pytest.raises(CannotRun, match="not a folder of the packed layout"):
        PackedModel.from_pretrained(convert(path, tmp_path / "tf", "--layout", "transformers"))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("detr_decoder_config", "num_queries"), None, "detr_decoder_config: missing: num_queries"),
        (("vision_config", VIT), None, "backbone_config: missing: hidden_size, "),
        (("vision_config", VIT, "window_size"), "4", "backbone_config.window_size '4' is of another type"),
        (("vision_config", VIT, "global_attn_indexes"), 7, "global_attn_indexes 7 is of another type"),
        (("vision_config", VIT, "global_attn_indexes"), [True], r"global_attn_indexes \[True\] is of another type"),
        (("vision_config", VIT, "hidden_act"), "swish", "hidden_act 'swish' is not known"),
        (("vision_config", VIT, "num_attention_heads"), 64, "heads of 2 cannot rotate"),
        (("vision_config", "scale_factors"), [4.0, 2.0, 1.5], "scale_factors"),
        (("vision_config", "scale_factors"), [4.0, 2.0], "scale_factors"),
        (("vision_config", "scale_factors"), [], "scale_factors"),
        (("mask_decoder_config", "num_upsampling_stages"), 1, "num_upsampling_stages is 1, too few"),
        (("mask_decoder_config", "num_attention_heads"), 5, "mask_decoder_config: 5 heads do not divide a width of 32"),
        (("detr_encoder_config", "num_layers"), 0, "detr_encoder_config.num_layers is 0; it has to be at least 1"),
        (("geometry_encoder_config", "hidden_size"), 64, "geometry_encoder_config.hidden_size is 64, .* 32"),
        (("text_config", "output_dim"), 64, "text_config.output_dim is 64, .* 32"),
    ],
)
def test_a_field_of_the_config_that_does_not_fit_is_named(path, value, said, bad):
    edit_config(bad, *path, value=value)
    with pytest.raises(UnsoundPlan, match=said) as caught:
        PackedModel.from_pretrained(bad)
    assert caught.value.code == "bad_config"


def test_a_size_or_an_attention_that_cannot_be_is_refused(good):
    for size in (100, 7, -14):
        with pytest.raises(CannotRun, match=f"{size} is not a multiple of the patch, 14 pixels"):
            PackedModel.from_pretrained(good, image_size=size)
    with pytest.raises(CannotRun, match="flash"):
        PackedModel.from_pretrained(good, "flash")


def test_images_of_another_size_and_prompts_without_an_image_are_refused(model):
    ids = torch.ones(2, 5, dtype=torch.int64)
    with pytest.raises(CannotRun, match=r"\(1, 3, 112, 98\), not \(batch, 3, 112, 112\)"):
        model(torch.zeros(1, 3, 112, 98), ids)
    with pytest.raises(CannotRun, match="2 prompts and 3 images"):
        model(torch.zeros(3, 3, 112, 112), ids)
