"""What the shapes say the model is: the released variants, and models of other sizes."""

from __future__ import annotations

import math

import pytest
from support.rows import LAYOUTS, MODELS, plan_of, source_rows, target_rows

from sam3lite_convert.errors import UnsoundPlan
from sam3lite_convert.plan.architecture import COMPONENTS, component_of
from sam3lite_convert.plan.infer import infer_architecture
from sam3lite_convert.plan.synthetic import small_architecture, source_shapes

TEXT = "backbone.language_backbone."

# original.md: variant, model_name, dim, heads, transformer layers, all layers
VARIANTS = {
    "s0": ("MobileCLIP-S0", "mct", 512, 8, 4, 6),
    "s1": ("MobileCLIP-S1", "base", 512, 8, 12, 12),
    "l": ("MobileCLIP2-L", "base", 768, 12, 12, 12),
}
PARAMETERS = {"s0": 42.54, "s1": 63.53, "l": 123.80}  # millions, at context 16


def shapes(model):
    return {k.removeprefix("detector."): s for k, (_, s) in source_rows(model).items()}


@pytest.mark.parametrize("model", MODELS)
def test_a_released_model_is_recognized(model):
    variant, name, dim, heads, transformer, layers = VARIANTS[model]
    arch = infer_architecture(shapes(model))
    record = arch.record().to_json()
    assert (arch.variant, arch.model_name, arch.num_hidden_layers) == (variant, name, layers)
    assert len(arch.blocks["transformer_blocks"]) == transformer
    assert arch.blocks["repmixer_blocks"] == ((0, 5) if name == "mct" else ())
    expected = {
        "hidden_size": dim, "intermediate_size": 4 * dim, "num_attention_heads": heads, "num_hidden_layers": layers,
        "context_length": 16, "vocab_size": 49408, "projection_dim": dim, "output_dim": 256, "causal_masking": False,
    }  # fmt: skip
    assert {k: record[k] for k in expected} == expected
    assert record.get("repmixer_kernel_size") == (11 if name == "mct" else None)


@pytest.mark.parametrize("model", MODELS)
def test_the_detector_of_a_released_model_has_the_sizes_of_its_tensors(model):
    arch = infer_architecture(shapes(model))
    sizes = {
        "vit_hidden": 1024, "vit_ffn": 4736, "channels": 3, "patch": 14, "vit_positions": 576, "hidden": 256,
        "queries": 200, "geometry_ffn": 2048, "detr_encoder_ffn": 2048, "detr_decoder_ffn": 2048, "detr_heads": 8,
    }  # fmt: skip
    assert {k: arch.sizes[k] for k in sizes} == sizes
    layers = {
        "vit_blocks": 32,
        "geometry_layers": 3,
        "detr_encoder_layers": 6,
        "detr_decoder_layers": 6,
        "fpn_levels": 4,
    }
    assert {k: len(arch.blocks[k]) for k in layers} == layers


def test_the_rotary_tables_show_windows_and_image_size():
    # keys/s0: freqs_cis is 576x32 (24 x 24 patches) but at four blocks 5184x32 (72 x 72 patches of 14 pixels)
    vision = infer_architecture(shapes("s0")).vision
    assert vision.window_size == 24
    assert vision.image_size == 72 * 14
    assert vision.global_attn_indexes == (7, 15, 23, 31)
    assert vision.vit_heads == 1024 // 64
    assert vision.pretrain_image_size == 24 * 14


def test_without_rotary_tables_the_same_facts_are_assumed_and_said_so():
    full = infer_architecture(shapes("s0"))
    bare = infer_architecture({k: s for k, s in shapes("s0").items() if not k.endswith("freqs_cis")})
    assert bare.vision == full.vision
    assert "vision" in bare.assumed
    assert "vision" not in full.assumed


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_text_encoder_has_the_parameters_of_its_variant(layout, model):
    plan = plan_of(source_rows(model), layout=layout, component="text")
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    count = sum(math.prod(m.shape) for m in plan.mapped.values() if not m.target.endswith(buffers))
    assert round(count / 1e6, 2) == PARAMETERS[model]


def test_only_causal_tells_b_from_s1():
    assert infer_architecture(shapes("s1"), causal=True).variant == "MobileCLIP-B"
    assert infer_architecture(shapes("s1"), causal=True).causal_masking
    assert "causal_masking" in infer_architecture(shapes("s1")).assumed
    assert "causal_masking" not in infer_architecture(shapes("s0")).assumed
    for model in ("s0", "l"):
        assert infer_architecture(shapes(model), causal=True).variant == "custom"


def test_s0_lite_is_recognized():
    arch = small_architecture("mct", 2, text_hidden=384, text_heads=6, text_ffn=1536, projection_dim=384)
    seen = infer_architecture(source_shapes(arch))
    assert (seen.variant, seen.model_name, seen.num_hidden_layers) == ("MobileCLIP-S0-Lite", "mct", 4)
    assert seen.blocks["repmixer_blocks"] == (0, 3)
    assert seen.sizes["text_heads"] == 6


OTHER_SIZES = [
    small_architecture(),
    small_architecture("base", 3, text_hidden=128, text_heads=2, text_ffn=512, projection_dim=128),
    small_architecture("mct", 1, kernel=7, context=32, vocab=1000, output_dim=48, projection_dim=96),
    small_architecture("mct", 2, 5, vit_hidden=64, vit_ffn=160, patch=16, channels=1, vit_positions=49, fpn_hidden=16),
    small_architecture("base", 1, 16, hidden=64, roi=5, geometry_ffn=96, detr_encoder_ffn=128, detr_decoder_ffn=160),
    small_architecture("base", 12, 2, queries=25, detr_heads=4, vit_positions=4),
]


@pytest.mark.parametrize("arch", OTHER_SIZES, ids=range(len(OTHER_SIZES)))
def test_a_model_of_other_sizes_is_inferred_back(arch):
    seen = infer_architecture(source_shapes(arch))
    expected = {k: v for k, v in arch.sizes.items() if k != "kernel" or arch.model_name == "mct"}
    assert seen.sizes == expected
    assert seen.blocks == arch.blocks
    assert seen.model_name == arch.model_name


def test_the_small_checkpoint_has_the_keys_and_dtypes_of_the_released_s0(small_rows):
    released = source_rows("s0")
    assert set(small_rows) == set(released)
    assert {k: d for k, (d, _) in small_rows.items()} == {k: d for k, (d, _) in released.items()}
    assert {k: len(s) for k, (_, s) in small_rows.items()} == {k: len(s) for k, (_, s) in released.items()}


def test_a_file_without_a_text_encoder_is_refused():
    for kept in ({}, {k: s for k, s in shapes("s0").items() if not k.startswith(TEXT)}):
        with pytest.raises(UnsoundPlan) as fault:
            infer_architecture(kept)
        assert fault.value.exit_code == 3
        assert "text encoder" in fault.value.message


def test_a_repmixer_block_in_the_middle_is_refused():
    odd = {
        k.replace("transformer.5.", "transformer.3."): s for k, s in shapes("s0").items() if ".transformer.3." not in k
    }
    with pytest.raises(UnsoundPlan, match="RepMixer"):
        infer_architecture(odd)


def test_a_width_that_is_no_whole_number_of_heads_is_refused():
    arch = small_architecture("base", 2, text_hidden=100)
    with pytest.raises(UnsoundPlan, match="100"):
        infer_architecture(source_shapes(arch))


@pytest.mark.parametrize("model", MODELS)
def test_each_key_and_each_target_component_is_known(model):
    for key in shapes(model):
        assert component_of(key) in {label for label, _ in COMPONENTS}
    # Every component but the tracker has targets.
    assert len({t.split(".")[0] for t in target_rows("packed", model)}) == len(COMPONENTS)  # text counts twice
