"""Plans from names and shapes: what is sound, what is refused, and which key is blamed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.rows import (
    LAYOUTS,
    MODELS,
    TEXT,
    VISION,
    fake,
    faults_of,
    key_list,
    plan_of,
    reshaped,
    rows_of,
    source_rows,
    target_rows,
    without,
)  # fmt: skip

from sam3lite_convert.checkpoint.reader import read_checkpoint
from sam3lite_convert.errors import CannotRun, UnsoundPlan, Untrusted
from sam3lite_convert.plan import synthetic
from sam3lite_convert.plan.names import canonical_names
from sam3lite_convert.plan.plan import Options, make_plan
from sam3lite_convert.plan.tables import load_mappings


def unsound(rows, mappings=None, **options) -> UnsoundPlan:
    with pytest.raises(UnsoundPlan) as fault:
        plan_of(rows, mappings, **options)
    assert fault.value.exit_code == 3
    return fault.value


def outline(plan):
    """What a plan does, without the spelling of the source."""
    mapped = {
        k: (m.file, m.canonical, m.rule.name, m.part, m.begin, m.nbytes, m.shape, m.dtype)
        for k, m in plan.mapped.items()
    }
    return mapped, {(d.canonical, d.label) for d in plan.dropped.values() if d.label != "twin"}


def respelled(rows, old, new):
    return {k.replace(old, new, 1): v for k, v in rows.items()}


# ---- sound plans ----------------------------------------------------------------------


def test_the_plan_of_a_file_is_that_of_its_names_and_shapes(small_file, small_rows, mappings):
    plan = make_plan(read_checkpoint(small_file), mappings, Options())
    assert outline(plan) == outline(plan_of(small_rows))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_counts_add_up(small_rows, layout):
    counts = plan_of(small_rows, layout=layout).counts.to_json()
    # layouts.md, for s0
    assert counts == {"source": 1281, "mapped": 912, "dropped": 369, "target": 1188 if layout == "packed" else 1204}
    assert counts["mapped"] + counts["dropped"] == counts["source"]


def test_what_is_dropped_is_labelled_counted_and_has_a_reason(small_rows):
    plan = plan_of(small_rows)
    assert sorted(plan.dropped_by_label.values()) == [6, 22, 32, 309]
    for key, dropped in plan.dropped.items():
        word = next(w for w in ("sam2_convs", "freqs_cis", "points", "tracker") if w in key)
        assert dropped.reason.startswith(word)
    assert all(d.rule is not None for d in plan.dropped.values())


def test_a_batch_norm_counter_is_carried_over_as_an_integer(small_rows):
    mapped = plan_of(small_rows, dtype="float16").mapped
    counters = [m for k, m in mapped.items() if k.endswith("num_batches_tracked")]
    assert len(counters) == 8  # four BatchNorms in each of two RepMixer blocks
    assert {(m.dtype, m.shape, m.casts) for m in counters} == {("int64", (), False)}


def test_a_cast_concerns_all_floating_tensors(small_rows):
    plan = plan_of(small_rows, dtype="bfloat16")
    assert {m.dtype for m in plan.mapped.values()} == {"bfloat16", "int64"}
    assert plan.floating_dtype == "bfloat16"
    same = plan_of(small_rows)
    floats = sum(m.out_nbytes for m in same.mapped.values() if m.dtype == "float32")
    assert same.out_nbytes - plan.out_nbytes == floats // 2


@pytest.mark.parametrize(("own", "asked", "casts"), [
    ("float32", "bfloat16", True), ("float16", "float32", True), ("bfloat16", "float16", True),
    ("float32", "float32", False), ("float16", None, False),
])  # fmt: skip
def test_a_tensor_is_cast_where_another_dtype_is_asked_for(small_rows, own, asked, casts):
    rows = {k: (own if d == "float32" else d, s) for k, (d, s) in small_rows.items()}
    weights = [m for m in plan_of(rows, dtype=asked).mapped.values() if m.source.dtype != "int64"]
    assert {(m.casts, m.dtype) for m in weights} == {(casts, asked or own)}


def test_the_receipt_tells_the_part_of_a_fused_tensor_and_of_no_other(small_rows):
    mapped = plan_of(small_rows, dtype="float16").mapped
    for part in "qkv":
        assert mapped[f"vision_encoder.backbone.layers.3.attention.{part}_proj.weight"].record().to_json() == {
            "source": VISION + "trunk.blocks.3.attn.qkv.weight", "operation": "split", "part": part,
            "dtype": "float16", "shape": [128, 128],
        }  # fmt: skip
    assert mapped["text_projection.bias"].record().to_json() == {
        "source": TEXT + "projector.bias", "operation": "keep", "dtype": "float16", "shape": [32],
    }  # fmt: skip


def test_each_source_byte_that_is_mapped_is_used_once(small_rows):
    plan = plan_of(small_rows, layout="transformers")
    used: dict[str, int] = {}
    for m in plan.mapped.values():
        used[m.source.key] = used.get(m.source.key, 0) + m.nbytes
        assert {type(n) for n in (m.begin, m.nbytes, *m.shape)} == {int}
    for key, nbytes in used.items():
        first_row = 128 * 4 if key.endswith("trunk.pos_embed") else 0
        assert nbytes == plan.checkpoint.tensors[key].nbytes - first_row


# ---- faults of names --------------------------------------------------------------------


def test_a_misspelled_key_is_unmatched_and_the_nearest_known_name_is_offered(small_rows):
    fault = unsound(respelled(small_rows, "encoder.layers.0.linear1.weight", "encoder.layers.0.linaer1.weight"))
    assert faults_of(fault) == {
        ("unmatched", "detector.transformer.encoder.layers.0.linaer1.weight"),
        ("unfilled", "detr_encoder.layers.0.mlp.fc1.weight"),
    }
    (near,) = (f["near"] for f in fault.details["faults"] if f["kind"] == "unmatched")
    assert near == ["transformer.encoder.layers.0.linear1.weight"]
    assert "linaer1 -> linear1" in fault.message


def test_a_key_is_told_what_it_would_be_with_the_rule_that_is_found(small_rows):
    fault = unsound(respelled(small_rows, ".mlp.fc", ".mpl.fc"))
    unmatched = {f["key"]: f["near"] for f in fault.details["faults"] if f["kind"] == "unmatched"}
    assert len(unmatched) == 32 * 4
    assert all(near == [key.removeprefix("detector.").replace(".mpl.", ".mlp.")] for key, near in unmatched.items())


def test_near_names_are_offered_for_keys_without_a_rule_and_for_no_other_fault(small_rows):
    key = "detector.geometry_encoder.norm.weight"
    fault = unsound(reshaped(small_rows, key, (31,)) | {"detector.geometry_encoder.nrom.bias": ("float32", (32,))})
    near = {f["kind"]: f["near"] for f in fault.details["faults"]}
    assert near["wrong_shape"] == []
    assert near["unmatched"][0] == "geometry_encoder.norm.bias"
    assert fault.message.count("nearest rule") == 1
    assert "nearest rule: [geometry prompt norm] of detector.ini, for geometry_encoder.norm.bias" in fault.message


def test_near_names_are_looked_up_for_the_first_twenty_groups(small_rows):
    fault = unsound(
        small_rows
        | {f"detector.geometry_encoder.norm{c}.weight": ("float32", (4,)) for c in "abcdefghijklmnopqrstuvwxyzABCD"}
    )
    assert [bool(f["near"]) for f in fault.details["faults"]] == [True] * 20 + [False] * 10


def test_keys_that_differ_in_numbers_are_one_group_and_json_has_all_of_them(small_rows):
    extra = {f"detector.quality_head.layers.{n}.weight": ("float32", (4,)) for n in range(103)}
    fault = unsound(small_rows | extra)
    assert "103 source keys without a rule:\n  detector.quality_head.layers.{0..102}.weight (103)\n" in fault.message
    assert faults_of(fault) == {("unmatched", key) for key in extra}
    (group,) = fault.details["groups"]
    assert (group["kind"], group["pattern"]) == ("unmatched", "detector.quality_head.layers.{0..102}.weight (103)")


def test_an_additional_key_is_unmatched(small_rows):
    fault = unsound(small_rows | {"detector.quality_head.weight": ("float32", (4, 4))})
    assert faults_of(fault) == {("unmatched", "detector.quality_head.weight")}


@pytest.mark.parametrize(
    ("layout", "key", "targets"),
    [
        (
            "packed",
            VISION + "trunk.blocks.3.attn.qkv.weight",
            "vision_encoder.backbone.layers.3.attention.{}_proj.weight",
        ),
        (
            "packed",
            "detector.segmentation_head.cross_attend_prompt.in_proj_bias",
            "mask_decoder.prompt_cross_attn.{}_proj.bias",
        ),
        (
            "transformers",
            TEXT + "encoder.transformer.2.pre_norm_mha.1.qkv_proj.bias",
            "text_encoder.layers.2.self_attn.{}_proj.bias",
        ),
    ],
)
def test_a_missing_fused_tensor_leaves_q_k_and_v_unfilled(small_rows, layout, key, targets):
    fault = unsound(without(small_rows, key), layout=layout)
    assert faults_of(fault) == {("unfilled", targets.format(p)) for p in "qkv"}
    assert key in fault.message


def test_a_missing_tensor_is_named_with_its_source(small_rows):
    fault = unsound(without(small_rows, "dot_prod_scoring.hs_proj.bias"))
    assert faults_of(fault) == {("unfilled", "dot_product_scoring.query_proj.bias")}
    assert "detector.dot_prod_scoring.hs_proj.bias" in fault.message


def test_an_entry_that_is_no_tensor_is_not_called_missing(small_rows):
    key = "detector.dot_prod_scoring.hs_proj.bias"
    checkpoint = replace(fake(without(small_rows, key)), others=frozenset({key}))
    with pytest.raises(UnsoundPlan, match="is in the file but is not a tensor"):
        make_plan(checkpoint, load_mappings(), Options())


@pytest.mark.parametrize(
    ("part", "target"),
    [
        ("vision_backbone", "vision_encoder"),
        ("geometry_encoder.", "geometry_encoder"),
        ("transformer.encoder.", "detr_encoder"),
        ("transformer.decoder.", "detr_decoder"),
        ("dot_prod_scoring.", "dot_product_scoring"),
        ("segmentation_head.", "mask_decoder"),
        ("language_backbone.projector.", "text_projection"),
    ],
)
def test_a_missing_component_is_named(small_rows, part, target):
    rows = {
        k: v
        for k, v in small_rows.items()
        if not k.removeprefix("detector.backbone.").removeprefix("detector.").startswith(part)
    }
    assert len(rows) < len(small_rows)
    fault = unsound(rows)
    assert ("missing_component", target) in faults_of(fault)


def test_a_missing_component_hides_no_other_fault(small_rows):
    # The vision encoder is the first that a model must hold.
    fault = unsound(without(small_rows, "vision_backbone.", "dot_prod_scoring.hs_proj.bias"))
    assert faults_of(fault) == {
        ("missing_component", "vision_encoder"),
        ("unfilled", "dot_product_scoring.query_proj.bias"),
    }


@pytest.mark.parametrize(
    "part", ["trunk.blocks.", "geometry_encoder.encode.", "transformer.decoder.layers.", "pixel_decoder."]
)
def test_a_component_without_any_of_its_layers_is_not_sound(small_rows, part):
    unsound(without(small_rows, part))


def test_a_text_encoder_alone_is_told_to_convert_with_component_text(small_rows):
    text = {k: v for k, v in small_rows.items() if k.startswith(TEXT)}
    assert "--component text" in unsound(text).message
    # Not one who did that already, nor one whose file holds a detector too.
    for rows, component in ((without(text, "projector.bias"), "text"), (without(small_rows, "hs_proj.bias"), "all")):
        message = unsound(rows, component=component).message
        assert "--component text" not in message
        assert "--mapping DIR" in message


def test_two_sources_for_one_target_collide(small_rows, edited_tables):
    # The mistake of a well-known converter: points_* onto boxes_*.
    point = (
        "\n[points]\nop = keep\nsource = geometry_encoder\\.points_direct_project\\.weight\n"
        "target = geometry_encoder.boxes_direct_project.weight\n"
        "example = geometry_encoder.points_direct_project.weight\n"
    )
    example = ("points_direct_project.weight", "points_pool_project.weight")
    edited_tables("dropped.ini", ("points_(?:direct|pool|pos_enc)", "points_(?:pool|pos_enc)"), example)
    folder = edited_tables("detector.ini", ("# ---- DETR encoder", point + "\n# ---- DETR encoder"))
    for rows in (small_rows, dict(reversed(small_rows.items()))):
        fault = unsound(rows, load_mappings(folder))
        assert ("collision", "geometry_encoder.boxes_direct_project.weight") in faults_of(fault)
        for key in ("points_direct_project.weight", "boxes_direct_project.weight"):
            assert f"detector.geometry_encoder.{key}" in fault.message


def test_two_rules_for_one_key_overlap(small_rows, edited_tables):
    twice = (
        "\n[neck again]\nop = drop\nsource = .+\\.convs\\.0\\.conv_1x1\\.bias\nreason = none\n"
        "example = a.convs.0.conv_1x1.bias\n\n"
    )
    fault = unsound(small_rows, load_mappings(edited_tables("dropped.ini", ("[tracker]", twice + "[tracker]"))))
    assert ("overlap", VISION + "convs.0.conv_1x1.bias") in faults_of(fault)
    assert "[neck again]" in fault.message
    assert "[neck 1x1]" in fault.message


def test_two_rules_that_drop_a_key_agree_and_the_first_gives_the_reason(small_rows, edited_tables):
    again = "\n[own tracker]\nop = drop\nsource = tracker\\..+\nreason = not mine\nexample = tracker.no_obj_ptr\n\n"
    folder = edited_tables("dropped.ini", ("[tracker]", again + "[tracker]"))
    plan = plan_of(small_rows, load_mappings(folder))
    tracker = {d.reason for key, d in plan.dropped.items() if key.startswith("tracker.")}
    assert tracker == {"not mine"}


def test_a_renamed_target_is_unknown_and_leaves_its_place_unfilled(small_rows, edited_tables):
    folder = edited_tables(
        "detector.ini", ("target  = dot_product_scoring.query_proj.{p}", "target  = dot_product_scoring.qurey_proj.{p}")
    )
    fault = unsound(small_rows, load_mappings(folder))
    assert faults_of(fault) == {
        (kind, f"dot_product_scoring.{name}.{p}")
        for kind, name in (("unknown_target", "qurey_proj"), ("unfilled", "query_proj"))
        for p in ("weight", "bias")
    }
    near = [f["near"] for f in fault.details["faults"] if f["key"] == "dot_product_scoring.qurey_proj.weight"]
    assert near[0][0] == "dot_product_scoring.query_proj.weight"
    assert len(near[0]) == 2


def test_faults_of_all_kinds_are_listed_at_once(small_rows):
    rows = without(small_rows, "hs_proj.bias", "segmentation_head.")
    rows = reshaped(rows, "detector.geometry_encoder.cls_embed.weight", (1, 31)) | {"detector.extra": ("float32", (1,))}
    fault = unsound(rows)
    assert faults_of(fault) == {
        ("unfilled", "dot_product_scoring.query_proj.bias"),
        ("missing_component", "mask_decoder"),
        ("wrong_shape", "detector.geometry_encoder.cls_embed.weight"),
        ("unmatched", "detector.extra"),
    }
    # Each once, under its own heading.
    assert [line.strip() for line in fault.message.splitlines() if not line.startswith("      ")][1:-2] == [
        "1 source key without a rule:",
        "detector.extra",
        "1 tensor of the wrong shape:",
        "detector.geometry_encoder.cls_embed.weight",
        "1 component missing from the file:",
        "mask_decoder: the file has none of the 20 tensors of this component",
        "1 target without a source; missing in the file:",
        "detector.dot_prod_scoring.hs_proj.bias",
    ]


# ---- faults of shapes -------------------------------------------------------------------

MISSHAPEN = [
    (TEXT + "encoder.final_layer_norm.weight", (63,)),
    (TEXT + "encoder.final_layer_norm.bias", (128,)),
    (TEXT + "encoder.embedding_layer.weight", (49408, 63)),
    (TEXT + "encoder.embedding_layer.weight", (49408,)),
    (TEXT + "encoder.positional_embedding.pos_embed.pos_embed", (16, 64)),
    (TEXT + "encoder.positional_embedding.pos_embed.pos_embed", (1, 1, 16, 63)),
    (TEXT + "encoder.projection_layer", (63, 64)),
    (TEXT + "encoder.projection_layer", (64,)),
    (TEXT + "encoder.projection_layer", (64, 64, 1)),
    (TEXT + "encoder.transformer.0.layer_scale", (64,)),
    (TEXT + "encoder.transformer.0.token_mixer.mixer.rbr_conv.0.conv.weight", (64, 1, 1, 9)),
    (TEXT + "encoder.transformer.0.convffn.fc1.weight", (256, 64)),
    (TEXT + "encoder.transformer.1.pre_norm_mha.1.qkv_proj.weight", (191, 64)),
    (TEXT + "encoder.transformer.1.pre_norm_mha.1.qkv_proj.weight", (189, 64)),
    (TEXT + "encoder.transformer.1.pre_norm_ffn.1.bias", (255,)),
    (TEXT + "projector.weight", (32, 63)),
    (TEXT + "projector.weight", (64,)),
    (VISION + "trunk.patch_embed.proj.weight", (127, 3, 14, 14)),
    (VISION + "trunk.patch_embed.proj.weight", (128, 3, 14, 13)),
    (VISION + "trunk.patch_embed.proj.weight", (128, 588)),
    (VISION + "trunk.pos_embed", (1, 17, 127)),
    (VISION + "trunk.pos_embed", (17, 128)),
    (VISION + "trunk.pos_embed", (128, 17)),
    (VISION + "trunk.pos_embed", (1, 17, 128, 1)),
    (VISION + "trunk.pos_embed", (1, 15, 128)),
    (VISION + "trunk.blocks.0.norm1.weight", (127,)),
    (VISION + "trunk.blocks.0.attn.qkv.weight", (383, 128)),
    (VISION + "trunk.blocks.0.attn.qkv.weight", (381, 128)),
    (VISION + "trunk.blocks.0.attn.qkv.weight", ()),
    (VISION + "trunk.blocks.31.attn.qkv.bias", (387,)),
    (VISION + "trunk.blocks.0.mlp.fc1.weight", (191, 128)),
    (VISION + "convs.0.conv_3x3.weight", (31, 32, 3, 3)),
    ("detector.geometry_encoder.cls_embed.weight", (1, 31)),
    ("detector.geometry_encoder.cls_embed.weight", (2, 32)),
    ("detector.geometry_encoder.norm.weight", (31,)),
    ("detector.geometry_encoder.norm.weight", (32, 1)),
    ("detector.geometry_encoder.encode.0.linear1.weight", (63, 32)),
    ("detector.transformer.decoder.query_embed.weight", (10, 31)),
    ("detector.transformer.decoder.query_embed.weight", (32,)),
    ("detector.transformer.decoder.boxRPB_embed_x.layers.1.weight", (7, 32)),
    ("detector.geometry_encoder.boxes_pool_project.weight", (32,)),
    ("detector.segmentation_head.pixel_decoder.norms.0.weight", (31,)),
    ("detector.segmentation_head.cross_attend_prompt.in_proj_weight", (97, 32)),
]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("key", "shape"),
    MISSHAPEN,
    ids=lambda v: v.split("_backbone.")[-1] if isinstance(v, str) else "x".join(map(str, v)),
)
def test_only_the_misshapen_tensor_is_blamed(small_rows, layout, key, shape):
    assert key in small_rows
    fault = unsound(reshaped(small_rows, key, shape), layout=layout)
    assert faults_of(fault) == {("wrong_shape", key)}


def test_a_wrong_shape_is_told_with_both_shapes(small_rows):
    message = unsound(reshaped(small_rows, "detector.geometry_encoder.cls_embed.weight", (1, 31))).message
    assert "1x31" in message
    assert "1x32" in message


@pytest.mark.parametrize(
    ("key", "shape", "says"),
    [
        (TEXT + "encoder.projection_layer", (64, 64, 1), "only a matrix can be transposed"),
        (TEXT + "encoder.projection_layer", (64,), "only a matrix can be transposed"),
        (VISION + "trunk.blocks.0.attn.qkv.weight", (383, 128), "not a multiple of three"),
        (VISION + "trunk.blocks.0.attn.qkv.weight", (), "not a multiple of three"),
        (VISION + "trunk.pos_embed", (17, 128), "has three dimensions"),
        (VISION + "trunk.pos_embed", (1, 17, 128, 1), "has three dimensions"),
        (VISION + "trunk.pos_embed", (1, 15, 128), "not a square grid"),
        (TEXT + "encoder.positional_embedding.pos_embed.pos_embed", (16, 64, 1), "has four dimensions"),
    ],
)
def test_why_a_shape_does_not_allow_the_operation_is_told(small_rows, key, shape, says):
    message = unsound(reshaped(small_rows, key, shape), layout="transformers", context=8).message
    assert f"is {'x'.join(map(str, shape)) or 'scalar'}; " in message
    assert says in message


def test_misshapen_tensors_of_several_components_are_all_named(small_rows):
    rows = reshaped(small_rows, TEXT + "encoder.embedding_layer.weight", (49408, 65))
    rows = reshaped(rows, VISION + "trunk.ln_pre.bias", (129,))
    assert faults_of(unsound(rows)) == {
        ("wrong_shape", TEXT + "encoder.embedding_layer.weight"),
        ("wrong_shape", VISION + "trunk.ln_pre.bias"),
    }


@pytest.mark.parametrize("dtype", ["int8", "uint8", "bool", "complex64"])
def test_weights_that_are_no_floating_point_numbers_are_named(small_rows, dtype):
    key = "detector.geometry_encoder.cls_embed.weight"
    fault = unsound(small_rows | {key: (dtype, small_rows[key][1])})
    assert faults_of(fault) == {("wrong_dtype", key)}
    assert f"has dtype {dtype}; weights must be floating-point" in fault.message


def test_a_dtype_that_safetensors_has_no_name_for_is_a_fault_of_its_tensor_alone(small_rows):
    key = "detector.geometry_encoder.cls_embed.weight"
    fault = unsound(small_rows | {key: ("complex128", small_rows[key][1])})
    assert [f["key"] for f in fault.details["faults"]] == [key]
    assert "complex128 has no place in a safetensors file" in fault.message


def test_the_class_row_of_the_position_table_goes(small_rows):
    mapped = plan_of(small_rows).mapped["vision_encoder.backbone.embeddings.position_embeddings"]
    assert (mapped.shape, mapped.begin, mapped.nbytes) == ((1, 16, 128), 128 * 4, 16 * 128 * 4)


def test_a_position_table_without_a_class_row_is_kept_whole(small_rows):
    mapped = plan_of(reshaped(small_rows, VISION + "trunk.pos_embed", (1, 16, 128))).mapped
    piece = mapped["vision_encoder.backbone.embeddings.position_embeddings"]
    assert (piece.shape, piece.begin, piece.nbytes) == ((1, 16, 128), 0, 16 * 128 * 4)


# ---- spellings --------------------------------------------------------------------------

PREFIXES = [
    "",
    "module.",
    "sam3_model.",
    "module.detector.",
    "sam3_model.detector.",
    "module.sam3_model.detector.",
    "module.sam3_model.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_changes_nothing(small_rows, prefix):
    rows = {prefix + k.removeprefix("detector."): v for k, v in small_rows.items()}
    assert outline(plan_of(rows)) == outline(plan_of(small_rows))


def test_a_file_without_the_tracker_changes_the_dropped_ones_only(small_rows):
    mapped, dropped = outline(plan_of(without(small_rows, "tracker.")))
    full = outline(plan_of(small_rows))
    assert mapped == full[0]
    assert full[1] - dropped == {d for d in full[1] if d[0].startswith("tracker.")}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("vision_backbone.trunk.", "vision_backbone.trunk.student_trunk."),
        ("vision_backbone.trunk.", "vision_backbone.student_trunk.trunk."),
        ("vision_backbone.", "vision_backbone.student_trunk."),
        ("language_backbone.", "language_backbone.tensor_runner."),
        ("pre_norm_mha.1.qkv_proj.", "pre_norm_mha.1.attn.in_proj_"),
        ("pre_norm_mha.1.out_proj.", "pre_norm_mha.1.attn.out_proj."),
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_spelling_changes_nothing(small_rows, layout, old, new):
    rows = respelled(small_rows, old, new)
    assert rows.keys() != small_rows.keys()
    assert outline(plan_of(rows, layout=layout)) == outline(plan_of(small_rows, layout=layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_of_february_holds_every_text_tensor_twice(small_rows, layout):
    old = respelled(respelled(small_rows, "1.qkv_proj.", "1.attn.in_proj_"), "1.out_proj.", "1.attn.out_proj.")
    text = {k: v for k, v in old.items() if k.startswith(TEXT)}
    plan = plan_of(old | respelled(text, "language_backbone.", "language_backbone.tensor_runner."), layout=layout)
    assert outline(plan) == outline(plan_of(small_rows, layout=layout))
    assert len(plan.twins) == len(text) == plan.dropped_by_label["twin"]
    assert plan.counts.mapped + plan.counts.dropped == plan.counts.source == len(small_rows) + len(text)
    # The first spelling is what is converted, and the second what is accounted for as dropped.
    seconds = {k for k in plan.checkpoint.tensors if ".tensor_runner." in k}
    assert {k for k, d in plan.dropped.items() if d.label == "twin"} == seconds
    assert seconds.isdisjoint(m.source.key for m in plan.mapped.values())
    for key in seconds:
        name = key.removeprefix("detector.").replace("tensor_runner.", "")
        name = name.replace("1.attn.in_proj_", "1.qkv_proj.").replace("1.attn.out_proj.", "1.out_proj.")
        assert plan.dropped[key].canonical == name
        assert plan.dropped[key].reason.split()[3] == key.replace("tensor_runner.", "") + ","
    for twin in plan.twins:
        assert twin.second.key == twin.first.key.replace("language_backbone.", "language_backbone.tensor_runner.")


@pytest.mark.parametrize("prefix", ["", "tensor_runner.", "module."])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_bare_text_student_is_the_text_component(small_rows, layout, prefix):
    student = {prefix + k.removeprefix(TEXT): v for k, v in small_rows.items() if k.startswith(TEXT)}
    mapped, dropped = outline(plan_of(student, layout=layout, component="text"))
    assert mapped == outline(plan_of(small_rows, layout=layout, component="text"))[0]
    assert not dropped


@pytest.mark.parametrize(
    "key",
    [
        "detector.geometry_encoder.detector.norm.weight",
        "detector.detector.geometry_encoder.norm.weight",
        "my.detector.geometry_encoder.norm.weight",
    ],
)
def test_detector_is_a_prefix_in_front_only(small_rows, mappings, key):
    fault = unsound(small_rows | {key: ("float32", (32,))})
    assert faults_of(fault) == {("unmatched", key)}
    (name,) = canonical_names(fake({key: ("float32", (32,))}), mappings.spellings).sources
    assert name == (key.removeprefix("detector."))


def test_the_prefix_of_a_file_is_told(small_rows, mappings):
    for prefix in ("detector.", "", "module.sam3_model.detector."):
        rows = {prefix + k.removeprefix("detector."): v for k, v in without(small_rows, "tracker.").items()}
        assert canonical_names(fake(rows), mappings.spellings).prefix == prefix


@pytest.mark.parametrize("other", [("float32", (65,)), ("float16", (64,)), ("float32", (1, 64))])
def test_twins_that_differ_in_shape_or_dtype_are_not_trusted(small_rows, other):
    key = TEXT + "encoder.final_layer_norm.weight"
    twin = key.replace("language_backbone.", "language_backbone.tensor_runner.")
    with pytest.raises(Untrusted) as fault:
        plan_of(small_rows | {twin: other})
    assert fault.value.exit_code == 4
    assert key in fault.value.message
    assert twin in fault.value.message


# ---- options ------------------------------------------------------------------------------


def text_targets(layout, model):
    return {k for k in target_rows(layout, model) if k.startswith(("text_encoder.", "text_projection."))}


@pytest.mark.parametrize("model", MODELS)
def test_the_text_component_keeps_its_names_in_the_packed_layout(model):
    plan = plan_of(source_rows(model), component="text")
    assert set(plan.mapped) == text_targets("packed", model)
    assert {m.file for m in plan.mapped.values()} == {"model"}


@pytest.mark.parametrize("model", MODELS)
def test_the_text_component_of_the_transformers_layout_is_what_the_text_model_loads(model):
    plan = plan_of(source_rows(model), layout="transformers", component="text")
    files = {f: {k for k, m in plan.mapped.items() if m.file == f} for f in ("model", "text_projection")}
    wanted = text_targets("transformers", model)
    assert files["model"] == {k.removeprefix("text_encoder.") for k in wanted if k.startswith("text_encoder.")}
    assert {m.target for m in plan.mapped.values() if m.file == "text_projection"} == {
        "text_projection.weight",
        "text_projection.bias",
    }
    assert len(files["model"]) + len(files["text_projection"]) == len(wanted) == len(plan.mapped)


def test_what_lies_outside_the_text_component_is_dropped_and_counted(small_rows):
    plan = plan_of(small_rows, component="text")
    text = [k for k in small_rows if k.startswith(TEXT)]
    assert plan.counts.mapped == len(text)
    assert plan.counts.dropped == len(small_rows) - len(text)
    assert all("--component text" in d.reason for d in plan.dropped.values())


def test_the_text_component_does_not_ask_for_a_sound_detector(small_rows):
    broken = without(small_rows, "segmentation_head.") | {"detector.extra": ("float32", (1,))}
    mapped, _ = outline(plan_of(broken, component="text"))
    assert mapped == outline(plan_of(small_rows, component="text"))[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_context_is_cut_to_its_first_rows(small_rows, layout):
    plan = plan_of(small_rows, layout=layout, context=8)
    (piece,) = [m for k, m in plan.mapped.items() if k.endswith("position_embedding.position_embedding")]
    assert (piece.shape, piece.begin, piece.nbytes) == ((1, 1, 8, 64), 0, 8 * 64 * 4)
    assert plan.architecture.record().context_length == 8
    rest = {k: v for k, v in outline(plan)[0].items() if k != piece.key}
    assert rest.items() <= outline(plan_of(small_rows, layout=layout))[0].items()
    assert len(rest) == plan.counts.target - 1


@pytest.mark.parametrize("context", [17, 32, 0, -1])
def test_the_context_is_never_stretched(small_rows, context):
    with pytest.raises(CannotRun) as fault:
        plan_of(small_rows, context=context)
    assert f"--context {context}: must be from 1 to 16, the number of rows" in fault.value.message


def test_a_single_position_is_left_of_a_context_of_one(small_rows):
    plan = plan_of(small_rows, context=1)
    assert plan.mapped["text_encoder.position_embedding.position_embedding"].shape == (1, 1, 1, 64)


def test_the_whole_context_is_no_cut(small_rows):
    assert outline(plan_of(small_rows, context=16)) == outline(plan_of(small_rows))


def test_a_misshapen_position_table_is_a_fault_of_its_own_when_the_context_is_cut(small_rows):
    key = TEXT + "encoder.positional_embedding.pos_embed.pos_embed"
    for shape in ((16, 64), (1, 1, 16, 64, 1)):
        assert faults_of(unsound(reshaped(small_rows, key, shape), context=8)) == {("wrong_shape", key)}


def test_causal_is_refused_where_the_layout_cannot_say_it():
    assert plan_of(source_rows("s1"), causal=True).architecture.variant == "MobileCLIP-B"
    assert "causal" in unsound(source_rows("s1"), layout="transformers", causal=True).message


def test_an_unknown_layout_cannot_run(small_rows):
    with pytest.raises(CannotRun, match="mlx"):
        plan_of(small_rows, layout="mlx")


# ---- relatives ------------------------------------------------------------------------------

RELATIVES = [  # a key that betrays it, its name, whether its text encoder converts
    (TEXT + "encoder.transformer.resblocks.0.ln_1.weight", "a checkpoint with two text encoders", False),
    (TEXT + "encoder.embedding.weight", "EfficientSAM3 with a CNN text encoder", False),
    (TEXT + "encoder.layers.3.0.weight", "EfficientSAM3 with a CNN text encoder", False),
    (TEXT + "encoder.embed_proj.weight", "a student on teacher embeddings", False),
    (TEXT + "encoder.transformer.0.token_mixer.reparam_conv.weight", "fused RepMixer blocks", False),
    (VISION + "trunk.model.stages.0.blocks.0.weight", "EfficientSAM3 with an image student", True),
    (VISION + "trunk.model.backbone.model.features.0.weight", "EfficientSAM3 with an image student (RepViT)", True),
]


@pytest.mark.parametrize("prefix", ["detector.", ""])
@pytest.mark.parametrize(("key", "kind", "text_open"), RELATIVES)
def test_a_relative_is_refused_by_name(small_rows, key, kind, text_open, prefix):
    rows = {prefix + k.removeprefix("detector."): v for k, v in (small_rows | {key: ("float32", (4,))}).items()}
    fault = unsound(rows, layout="transformers")
    assert fault.code == "unsupported_checkpoint"
    assert fault.details["component_text"] is text_open
    assert fault.details["kind"] == kind
    assert f"this is {kind}, not a" in fault.message
    assert ("--component text" in fault.message) is text_open


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("key", "kind", "text_open"), RELATIVES)
def test_the_text_encoder_of_a_relative_converts_where_it_is_ours(small_rows, key, kind, text_open, layout):
    rows = small_rows | {key: ("float32", (4,))}
    if text_open:
        mapped, _ = outline(plan_of(rows, layout=layout, component="text"))
        assert mapped == outline(plan_of(small_rows, layout=layout, component="text"))[0]
    else:
        assert unsound(rows, layout=layout, component="text").code == "unsupported_checkpoint"


def test_a_relative_in_two_ways_is_closed_when_one_is(small_rows):
    rows = small_rows | {RELATIVES[1][0]: ("float32", (4,)), RELATIVES[6][0]: ("float32", (4,))}
    assert unsound(rows).details["component_text"] is False
    assert unsound(rows, component="text").details["component_text"] is False
    # It is called what closes it, wherever that stands among its kinds.
    kinds = [RELATIVES[1][1], RELATIVES[6][1]]
    assert (unsound(rows).details["kind"], unsound(rows).details["kinds"]) == (kinds[0], kinds)


def test_a_file_of_two_variants_is_called_by_both():
    fault = unsound(key_list("student_sam3p1_tinyvit_s0"))
    assert fault.details["kinds"] == ["EfficientSAM3 with an image student (TinyViT)", "SAM3.1"]
    assert "this is EfficientSAM3 with an image student (TinyViT) and SAM3.1, not a" in fault.message
    assert fault.details["component_text"] is True


def test_another_model_altogether_has_no_text_encoder():
    assert (
        unsound({"conv1.weight": ("float32", (64, 3, 7, 7)), "fc.bias": ("float32", (1000,))}).code == "no_text_encoder"
    )


@pytest.mark.parametrize(
    "arch",
    [
        synthetic.small_architecture("base", 2, 3),
        synthetic.small_architecture("mct", 1, 9, hidden=64),
        synthetic.small_architecture("base", 1, 2, hidden=33),
        synthetic.small_architecture("base", 1, 2, projection_dim=96),
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_models_of_other_depths_and_widths_have_sound_plans(arch, layout):
    rows = {k: ("float32", s) for k, s in synthetic.source_shapes(arch).items()}
    counts = plan_of(rows, layout=layout).counts
    assert counts.mapped + counts.dropped == counts.source == len(rows)


def test_a_plan_from_tensors_takes_their_dtypes(small_state):
    half = {k: t.half() if t.is_floating_point() else t for k, t in small_state.items()}
    plan = plan_of(rows_of(half))
    assert {m.dtype for m in plan.mapped.values()} == {"float16", "int64"}
    assert plan.floating_dtype == "float16"


def test_a_neck_level_that_only_the_dropped_neck_shows_is_missing(small_rows):
    rows = {k: v for k, v in small_rows.items() if ".vision_backbone.convs.3." not in k}
    assert ("unfilled", "vision_encoder.neck.fpn_layers.3.proj1.weight") in faults_of(unsound(rows))
