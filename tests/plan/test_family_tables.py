"""The tables of the video tracker and of SAM3's own text encoder, and what is inferred of both.

Held against a map, key by key, that was made from the two models and not from this project's tables; whole plans
against the lists of the models' tensors are in test_families.py.
"""

from __future__ import annotations

import re

import pytest
from support import families
from support.rows import key_list, reshaped, shipped_tables, table

from sam3lite_convert.errors import UnsoundPlan
from sam3lite_convert.plan.families import SAM3, SAM3_LITETEXT
from sam3lite_convert.plan.infer import infer_architecture
from sam3lite_convert.plan.targets import expected_targets

OPERATIONS = {  # in the maps -> in our tables
    "keep": "keep",
    "split3_dim0": "split",
    "transpose": "transpose",
    "drop_first_row_dim1": "drop_class_row",
    "duplicate2": "duplicate",
}
MAPS = [  # table, column of its targets, family, component
    ("map_video", 2, SAM3_LITETEXT, "video"),
    ("map_teacher", 3, SAM3, "video"),
    ("map_teacher", 2, SAM3, "all"),
]
maps = pytest.mark.parametrize(
    ("name", "column", "family", "component"), MAPS, ids=["video", "teacher video", "teacher"]
)


def canonical(rows):
    return {key.removeprefix("detector."): shape for key, (_, shape) in rows.items()}


def mapped_rows(name, column):
    """(source, operation, targets) of each row of a map."""
    for row in table(name)[1:]:
        yield row[0].removeprefix("detector."), row[1], tuple(row[column].split()) if len(row) > column else ()


@maps
def test_every_source_goes_where_the_map_says(name, column, family, component):
    rules = shipped_tables().layout("transformers", family, component).rules
    count = 0
    for source, operation, targets in mapped_rows(name, column):
        found = [(rule, made) for rule in rules if (made := rule.apply(source)) is not None]
        assert len(found) == 1, source
        (rule, made), count = found[0], count + 1
        assert made == targets, source
        part = re.fullmatch(r"concat_dim0\[(\d)/(\d)\]", operation)
        if not targets:
            assert rule.operation.name == "drop", source
        elif part:
            assert rule.operation.name == "join"
            assert len(rule.patterns) == int(part[2])
            assert re.fullmatch(rule.patterns[int(part[1])], source)  # the place of its rows
        else:
            assert rule.operation.name == OPERATIONS[operation], source
    assert count == {"map_video": 1281, "map_teacher": 1465}[name]


@maps
def test_every_target_leads_back_to_the_sources_of_the_map(name, column, family, component):
    wanted: dict[str, list[tuple[str, str]]] = {}
    for source, operation, targets in mapped_rows(name, column):
        for target in targets:
            wanted.setdefault(target, []).append((operation, source))
    rules = shipped_tables().layout("transformers", family, component).rules
    held = {source for source, *_ in mapped_rows(name, column)}
    for target, sources in wanted.items():
        # Two rules lead to the neck's scale_layers.0; no file has both sources.
        found = [back for rule in rules if (back := rule.sources(target)) and held.issuperset(back)]
        assert found == [tuple(source for _, source in sorted(sources))], target


@pytest.mark.parametrize(("layout", "family"), [("original", SAM3_LITETEXT), ("original", SAM3)], ids=["s0", "teacher"])
def test_the_original_layout_holds_the_detector_under_its_own_names(layout, family):
    rows = key_list("s0_ctx16" if family is SAM3_LITETEXT else "sam3_teacher")
    architecture = infer_architecture(canonical(rows))
    made = dict(expected_targets(shipped_tables().layout(layout, family), architecture, "all"))
    left_out = re.compile(r"tracker\.|.*\.sam2_convs\.|.*\.freqs_cis")
    assert made == {key: shape for key, (_, shape) in rows.items() if not left_out.match(key)}


# ---- what is inferred


def test_the_teacher_is_recognized():
    architecture = infer_architecture(canonical(key_list("sam3_teacher")))
    record = architecture.record().to_json()
    expected = {  # family.md, 3.3b
        "variant": "SAM3-CLIP", "model_name": "clip", "hidden_size": 1024, "intermediate_size": 4096,
        "num_hidden_layers": 24, "num_attention_heads": 16, "context_length": 32, "vocab_size": 49408,
        "projection_dim": 512, "output_dim": 256, "causal_masking": True,
    }  # fmt: skip
    assert {k: record[k] for k in expected} == expected
    assert "repmixer_kernel_size" not in record
    assert record["detector"]["vit_blocks"] == 32
    assert not set(record["detector"]) & {"clip_blocks", "transformer_blocks", "repmixer_blocks"}


@pytest.mark.parametrize("name", ["s0_ctx16", "sam3_teacher", "student_repvit_m1_1_s0"])
def test_the_tracker_has_the_sizes_of_its_tensors(name):
    record = infer_architecture(canonical(key_list(name))).record().to_json()
    assert record["tracker"] == {  # the shapes of the key lists
        "tracker_hidden": 256, "tracker_memory": 64, "tracker_memories": 7, "tracker_attention_ffn": 2048,
        "tracker_fuser_ffn": 1024, "tracker_fuser_kernel": 7, "tracker_mask_channels": 16, "tracker_mask_tokens": 4,
        "tracker_iou_hidden": 256, "tracker_decoder_width": 128, "tracker_decoder_ffn": 2048,
        "tracker_attention_layers": 4, "tracker_fuser_layers": 2, "tracker_decoder_layers": 2, "tracker_mask_mlps": 4,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["sam3p1_s0_ctx16", "sam31_teacher", "student_ft_repvit"])
def test_a_file_without_this_tracker_shows_none(name):
    architecture = infer_architecture(canonical(key_list(name)))
    assert not [k for k in architecture.sizes if k.startswith("tracker_")]
    assert not any(v for k, v in architecture.blocks.items() if k.startswith("tracker_"))
    assert "tracker" not in architecture.record().to_json()


@pytest.mark.parametrize(
    "key",
    [
        "tracker.transformer.encoder.layers.0.norm1.weight",
        "tracker.transformer.encoder.layers.0.linear1.weight",
        "tracker.transformer.encoder.layers.0.cross_attn_image.k_proj.weight",
        "tracker.maskmem_backbone.out_proj.weight",
        "tracker.maskmem_backbone.fuser.layers.0.pwconv1.weight",
        "tracker.maskmem_backbone.fuser.layers.1.pwconv2.weight",
        "tracker.sam_prompt_encoder.mask_downscaling.3.weight",
        "tracker.sam_mask_decoder.mask_tokens.weight",
        "tracker.sam_mask_decoder.iou_prediction_head.layers.0.weight",
        "tracker.sam_mask_decoder.transformer.layers.0.mlp.lin1.weight",
        "tracker.sam_mask_decoder.transformer.final_attn_token_to_image.q_proj.weight",
        "detector.backbone.language_backbone.encoder.ln_final.weight",
        "detector.backbone.language_backbone.encoder.token_embedding.weight",
        "detector.backbone.language_backbone.encoder.transformer.resblocks.0.ln_1.weight",
        "detector.backbone.language_backbone.encoder.transformer.resblocks.0.attn.out_proj.weight",
        "detector.backbone.language_backbone.encoder.transformer.resblocks.0.mlp.c_fc.weight",
    ],
)
def test_one_tensor_of_another_shape_does_not_change_the_architecture(key):
    rows = key_list("sam3_teacher")
    odd = [n + 64 for n in rows[key][1]]
    if key.endswith("token_embedding.weight"):
        odd[0] -= 64  # its rows alone show the vocabulary
    seen = infer_architecture(canonical(reshaped(rows, key, odd)))
    assert seen == infer_architecture(canonical(rows))


def test_a_clip_encoder_without_a_size_gets_the_usual_one_and_says_so():
    rows = canonical(key_list("sam3_teacher"))
    text = "backbone.language_backbone."
    lacking = ("encoder.positional_embedding", "encoder.text_projection", "resizer.weight", "resizer.bias")
    seen = infer_architecture({k: s for k, s in rows.items() if k.removeprefix(text) not in lacking})
    assert {k: seen.sizes[k] for k in ("context", "projection_dim", "output_dim")} == {
        "context": 32,
        "projection_dim": 512,
        "output_dim": 256,
    }
    assert {"context", "projection_dim", "output_dim"} <= set(seen.assumed)


def test_a_clip_encoder_that_shows_no_width_or_no_whole_heads_is_refused():
    block = "backbone.language_backbone.encoder.transformer.resblocks.0."
    with pytest.raises(UnsoundPlan, match="shows the width"):
        infer_architecture({block + "mlp.c_fc.bias": (64,)})
    with pytest.raises(UnsoundPlan, match="100 is not a multiple of the head width 64"):
        infer_architecture({block + "ln_1.weight": (100,)})


# ---- the small checkpoints


@pytest.mark.parametrize("kind", families.KINDS)
def test_a_small_checkpoint_has_the_keys_dtypes_and_ranks_of_the_real_one(kind):
    real, state = key_list(families.LISTS[kind]), families.state_dict(kind)
    assert list(state) == list(real)
    made = {key: (str(t.dtype).removeprefix("torch."), t.dim()) for key, t in state.items()}
    assert made == {key: (dtype, len(shape)) for key, (dtype, shape) in real.items()}
    assert sum(t.nbytes for t in state.values()) < 10e6


@pytest.mark.parametrize(
    ("kind", "family", "component"),
    [
        ("s0", SAM3_LITETEXT, "all"),
        ("s0", SAM3_LITETEXT, "video"),
        ("teacher", SAM3, "all"),
        ("teacher", SAM3, "video"),
    ],
)
def test_the_tensors_of_a_small_checkpoint_fit_together(kind, family, component):
    """Each has the shape that the others, through the inferred sizes, require of it."""
    rows = canonical(families.rows(kind))
    layout = shipped_tables().layout("transformers", family, component)
    expected = dict(expected_targets(layout, infer_architecture(rows), component))
    for target, shape in expected.items():
        (rule, sources) = next((r, s) for r in layout.rules if (s := r.sources(target)) and s[0] in rows)
        held = rows[sources[0]]
        whole = (sum(rows[s][0] for s in sources), *held[1:]) if len(sources) > 1 else held
        parts = dict(zip(rule.apply(sources[0]) or (), rule.operation.slices(whole), strict=True))
        assert parts[target].shape == shape, target
