"""The mapping tables against the key lists of real checkpoints and of real target models."""

from __future__ import annotations

from collections import Counter

import pytest
from support.rows import (
    LAYOUTS,
    MODELS,
    TEXT,
    VISION,
    faults_of,
    key_list,
    plan_of,
    reshaped,
    source_rows,
    target_rows,
    without,
)  # fmt: skip

from sam3lite_convert.errors import CannotRun, UnsoundPlan
from sam3lite_convert.plan.operations import Transpose
from sam3lite_convert.plan.tables import builtin_directory, load_mappings
from sam3lite_convert.records.shared import Counts

# layouts.md: sources mapped, sources dropped, targets packed, targets transformers
COUNTS = {"s0": (912, 369, 1188, 1204), "s1": (952, 369, 1228, 1276), "l": (952, 369, 1228, 1276)}
# README of the original's detector: these two are not needed where its image model is loaded strictly, or computed.
NOT_IN_ORIGINAL = ("sam2_convs", "freqs_cis")
STUDENTS = ("student_repvit_m1_1_s0", "student_sam3p1_tinyvit_s0", "student_ft_repvit")
# Table of a layout -> the key lists of the checkpoints that it takes.
TAKES = {
    **dict.fromkeys((*LAYOUTS, "original"), ("s0_ctx16", "s1_ctx16", "l_ctx16", "sam3p1_s0_ctx16")),
    "transformers-video": ("s0_ctx16", "s1_ctx16", "l_ctx16"),
    **dict.fromkeys(("transformers-sam3", "original-sam3"), ("sam3_teacher", "sam31_teacher")),
    "transformers-sam3-video": ("sam3_teacher",),
    "original-student": STUDENTS,
    "original-sam3-student": (),  # of such a file there is no list
}
TAKEN = [(layout, name) for layout, names in TAKES.items() for name in names]
DROPPED = {"tracker": 309, "freqs_cis": 32, "sam2_convs": 22, "points": 6}


def canonical(name):
    return [k.removeprefix("detector.") for k in key_list(name)]


def test_every_layout_is_tested_here(mappings):
    assert set(TAKES) == set(mappings.layouts)


@pytest.mark.parametrize("layout", TAKES)
def test_each_example_matches_its_own_rule_alone(mappings, layout):
    rules = mappings.layouts[layout].rules
    for rule in rules:
        assert [r.name for r in rules if r.apply(rule.example) is not None] == [rule.name]


def test_each_spelling_rule_matches_its_example_and_leaves_canonical_names_alone(mappings):
    names = {k for listed in TAKES.values() for name in listed for k in canonical(name)}
    for rule in mappings.spellings:
        assert rule.apply(rule.example) is not None
        assert not [k for k in names if rule.apply(k)], rule.name


@pytest.mark.parametrize(("layout", "name"), TAKEN)
def test_exactly_one_rule_matches_each_key_of_a_released_file_and_leads_back(mappings, layout, name):
    rules = mappings.layouts[layout].rules
    for key in canonical(name):
        (rule,) = (r for r in rules if r.apply(key) is not None)
        for target in rule.apply(key):
            assert key in rule.sources(target)
            assert rule.operation.joins or rule.sources(target) == (key,)


@pytest.mark.parametrize("layout", TAKES)
def test_no_rule_is_without_a_key_in_the_released_files(mappings, layout):
    # What a table of the detector drops is there for every family that has one.
    keys = {k for name in (*TAKES[layout], *TAKES["packed"], *STUDENTS, "sam3_teacher") for k in canonical(name)}
    idle = [r.name for r in mappings.layouts[layout].rules if not any(r.apply(k) is not None for k in keys)]
    # What trainers leave, and no released file holds.
    assert set(idle) == {"averaging counters", "extra state"}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_plan_of_a_released_file_is_exactly_the_target_list(layout, model):
    plan = plan_of(source_rows(model), layout=layout)
    assert {k: (m.dtype, m.shape) for k, m in plan.mapped.items()} == target_rows(layout, model)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("component", ["all", "text"])
def test_the_original_layout_is_the_originals_detector_key_for_key(model, component):
    start = TEXT if component == "text" else "detector."
    wanted = {k: v for k, v in source_rows(model).items() if k.startswith(start)}
    wanted = without(wanted, *NOT_IN_ORIGINAL)
    plan = plan_of(source_rows(model), layout="original", component=component)
    assert {k: (m.dtype, m.shape) for k, m in plan.mapped.items()} == wanted
    assert {k: m.source.key for k, m in plan.mapped.items()} == {k: k for k in wanted}
    assert {m.operation.name for m in plan.mapped.values()} == {"keep"}


@pytest.mark.parametrize(
    ("change", "fault"),
    [  # its rules take whole modules in; the list of targets does not
        (
            lambda r: r | {"detector.geometry_encoder.lines_project.weight": ("float32", (4, 4))},
            ("unknown_target", "detector.geometry_encoder.lines_project.weight"),
        ),
        (
            lambda r: without(r, "points_pool_project.bias"),
            ("unfilled", "detector.geometry_encoder.points_pool_project.bias"),
        ),
        (
            lambda r: without(r, ".scoring", "dot_prod_scoring."),
            ("missing_component", "detector.dot_prod_scoring"),
        ),
        (  # the original's table has a class row
            lambda r: reshaped(r, VISION + "trunk.pos_embed", (1, 576, 1024)),
            ("wrong_shape", VISION + "trunk.pos_embed"),
        ),
        (
            lambda r: reshaped(r, "detector.geometry_encoder.points_direct_project.weight", (256, 4)),
            ("wrong_shape", "detector.geometry_encoder.points_direct_project.weight"),
        ),
    ],
    ids=["a key too many", "a key too few", "a module too few", "no class row", "another shape"],
)
def test_the_original_layout_is_strict(change, fault):
    with pytest.raises(UnsoundPlan) as found:
        plan_of(change(source_rows("s0")), layout="original")
    assert faults_of(found.value) == {fault}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_counts_are_those_of_the_layout_notes(layout, model):
    mapped, dropped, packed, transformers = COUNTS[model]
    plan = plan_of(source_rows(model), layout=layout)
    target = packed if layout == "packed" else transformers
    assert plan.counts == Counts(source=mapped + dropped, mapped=mapped, dropped=dropped, target=target)
    kinds = Counter(
        word for d in plan.dropped.values() for word in DROPPED if word in d.source.key.split("detector.")[-1]
    )
    assert kinds == DROPPED


@pytest.mark.parametrize(
    ("source", "target"),
    [  # layouts.md, "not guessable"
        ("transformer.decoder.layers.3.norm1.bias", "detr_decoder.layers.3.vision_cross_attn_layer_norm.bias"),
        ("transformer.decoder.layers.3.catext_norm.bias", "detr_decoder.layers.3.text_cross_attn_layer_norm.bias"),
        ("transformer.decoder.layers.3.norm2.bias", "detr_decoder.layers.3.self_attn_layer_norm.bias"),
        ("transformer.decoder.layers.3.norm3.bias", "detr_decoder.layers.3.mlp_layer_norm.bias"),
        ("transformer.decoder.bbox_embed.layers.2.bias", "detr_decoder.box_head.layer3.bias"),
        ("segmentation_head.mask_predictor.mask_embed.layers.2.bias", "mask_decoder.mask_embedder.layers.2.bias"),
        ("backbone.vision_backbone.convs.0.dconv_2x2_1.bias", "vision_encoder.neck.fpn_layers.0.scale_layers.2.bias"),
    ],
)
def test_the_names_that_cannot_be_guessed(source, target):
    mapped = plan_of(source_rows("s0")).mapped
    assert mapped[target].canonical == source


@pytest.mark.parametrize("model", MODELS)
def test_rows_are_split_in_the_order_q_k_v(model):
    mapped = plan_of(source_rows(model), layout="transformers").mapped
    for fused in (
        "vision_encoder.backbone.layers.7.attention",
        "text_encoder.layers.2.self_attn",
        "mask_decoder.prompt_cross_attn",
    ):
        q, k, v = (mapped[f"{fused}.{p}_proj.weight"] for p in "qkv")
        rows, columns = q.shape
        assert [p.part for p in (q, k, v)] == ["q", "k", "v"]
        assert [p.begin for p in (q, k, v)] == [n * rows * columns * 4 for n in range(3)]
        assert {p.nbytes for p in (q, k, v)} == {rows * columns * 4}


def test_the_pooled_projection_is_transposed_in_the_transformers_layout_only():
    turned = plan_of(source_rows("s0"), layout="transformers").mapped["text_encoder.projection.weight"]
    assert isinstance(turned.operation, Transpose)
    assert (turned.begin, turned.nbytes, turned.shape) == (0, 512 * 512 * 4, (512, 512))
    kept = plan_of(source_rows("s0"), layout="packed").mapped["text_encoder.projection"]
    assert not isinstance(kept.operation, Transpose)


# ---- reading tables -------------------------------------------------------------------

RULE = "[my rule]\nop = keep\nsource = spare\\.(?P<p>weight|bias)\ntarget = spare.{p}\nexample = spare.weight\n"


def test_a_table_of_the_users_folder_takes_the_place_of_the_shipped_one(edited_tables, mappings):
    own = load_mappings(edited_tables("dropped.ini", ("SAM 2 neck has no counterpart", "SAM 2 neck is of no use here")))
    reasons = [[r.reason for r in m.layouts["packed"].rules if r.reason] for m in (mappings, own)]
    assert len(reasons[0]) == len(reasons[1]) == 9
    assert sum(a != b for a, b in zip(*reasons, strict=True)) == 1
    assert own.sha256 != mappings.sha256


def test_the_hash_depends_on_the_content_and_not_on_the_place(edited_tables, mappings):
    assert load_mappings(edited_tables("dropped.ini")).sha256 == mappings.sha256


def test_a_user_can_add_a_layout(edited_tables):
    folder = edited_tables("layout-packed.ini")
    (folder / "layout-packed.ini").rename(folder / "layout-mine.ini")
    assert set(load_mappings(folder).layouts) == {*TAKES, "mine"}


def test_a_layout_of_two_entries_keeps_the_names_and_may_be_causal(tmp_path, mappings):
    text = "[layout]\nrules = detector.ini text-packed.ini dropped.ini trainers.ini\n"
    (tmp_path / "layout-mine.ini").write_text(text + "targets = targets-detector.ini targets-text-packed.ini\n")
    mine = load_mappings(tmp_path).layout("mine")
    assert (mine.loader.name, mine.strips_text, mine.causal, mine.about) == ("none", False, True, "")
    assert (mine.rules, mine.shapes) == (mappings.layout("packed").rules, mappings.layout("packed").shapes)
    assert mappings.layout("transformers").strips_text


@pytest.mark.parametrize(
    ("shipped", "entry", "other", "says"),
    [
        ("packed", "targets   = targets-detector.ini targets-text-packed.ini", "targets = targets-detector.ini",
         "loads the tensors of targets-text-packed.ini"),
        ("packed", "targets   = targets-detector.ini targets-text-packed.ini", "targets = targets-text-packed.ini",
         "loads the tensors of targets-detector.ini"),
        ("packed", "text_keys = keep", "text_keys = strip", "packed_model does not load text_keys = strip"),
        ("transformers", "text_keys = strip", "text_keys = keep", "transformers does not load text_keys = keep"),
        ("transformers", "causal    = no", "causal = yes", "transformers does not support causal = yes"),
    ],
)  # fmt: skip
def test_a_loader_is_not_named_for_what_it_does_not_load(edited_tables, shipped, entry, other, says):
    with pytest.raises(CannotRun, match=says):
        load_mappings(edited_tables(f"layout-{shipped}.ini", (entry, other)))


@pytest.mark.parametrize("shipped", LAYOUTS)
def test_what_a_loader_needs_it_brings(edited_tables, mappings, shipped):
    folder = edited_tables(f"layout-{shipped}.ini")
    lines = (folder / f"layout-{shipped}.ini").read_text().splitlines()
    kept = "\n".join(line for line in lines if not line.startswith(("text_keys", "causal")))
    (folder / f"layout-{shipped}.ini").write_text(kept)
    assert load_mappings(folder).layout(shipped) == mappings.layout(shipped)


def test_text_encoder_and_detector_are_told_apart_by_where_the_rules_lead(edited_tables):
    folder = edited_tables("layout-packed.ini")
    text = (builtin_directory() / "text-packed.ini").read_text()
    for old, new, wanted in (
        ("text_encoder.", "model.text.", ("model.text.", "text_projection.")),
        ("text_projection.{p}", "text_encoder.out.{p}", ("text_encoder.", "text_encoder.out.")),
        ("text_projection.{p}", "text_out_{p}", ("text_encoder.", "text_out_")),
    ):
        (folder / "text-packed.ini").write_text(text.replace(f"target  = {old}", f"target  = {new}"))
        layout = load_mappings(folder).layout("packed")
        assert (layout.text_encoder, layout.text_projection) == wanted
        text_targets = {t for r in layout.rules for t in r.targets if TEXT.removeprefix("detector.") in r.example}
        assert {t for r in layout.rules for t in r.targets if layout.is_text(t)} == text_targets
    (folder / "text-packed.ini").write_text(text.replace("text_encoder.", "mask_decoder."))
    with pytest.raises(CannotRun, match="the text encoder need a prefix of their own"):
        load_mappings(folder)


def broken(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(CannotRun) as fault:
        load_mappings(tmp_path)
    assert fault.value.exit_code == 2
    return fault.value


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("op = keep", "op = rename", "'rename'"),
        ("op = keep\n", "", "op is one of"),
        ("op = keep", "op = split", "3 targets, not 1"),
        ("target = spare.{p}", "target = a.{p} b.{p}", "1 targets, not 2"),
        ("target = spare.{p}\n", "", "1 targets, not 0"),
        ("example = spare.weight\n", "", "example"),
        ("example = spare.weight", "example = spare.running_mean", "example"),
        ("example = spare.weight", "example = spare.weight.more", "example"),
        ("spare\\.(?P<p>", "spare\\.((?P<p>", "rule [my rule]"),
        ("target = spare.{p}", "target = spare.{q}", "rule [my rule]"),
        ("target = spare.{p}", "target = spare.{}", "rule [my rule]"),
        ("target = spare.{p}", "target = spare.{p", "rule [my rule]"),
        ("target = spare.{p}", "target = spare.{p.x}", "rule [my rule]"),
        ("target = spare.{p}", "target = spare.weight", "rule [my rule]"),
        (
            "source = spare",
            "source = (?:spare|extra)",
            "cannot be read backwards: the text that (?:spare|extra) matched",
        ),
        ("source = spare", "source = sparee?", "the target does not show whether e? was present"),
        ("source = spare", "source = (?:spare)?", "the target does not show whether (?:spare)? was present"),
        ("source = spare", "source = (spare)", "an unnamed group ((spare)"),
        ("source = spare", "source = (?=s)spare", "a lookahead ((?=s)"),
        ("source = spare", "source = (?P<a>s)(?P=a)?pare", "a backreference ((?P=a)"),
        ("target = spare.{p}", "target = spare.{p}.{p", "a brace that is not part of {group}"),
        ("op = keep\n", "op = drop\n", "0 targets, not 1"),
        ("op = keep", "op = keep\nnote = hello", "note"),
        ("[my rule]", RULE + "\n[my rule]", "my rule"),
        ("[my rule]\n", "", "dropped.ini"),
    ],
)
def test_a_broken_rule_is_named(tmp_path, old, new, says):
    assert old in RULE
    message = broken(tmp_path, "dropped.ini", RULE.replace(old, new)).message
    assert "dropped.ini" in message
    assert says in message


@pytest.mark.parametrize("table", ["detector.ini", "dropped.ini", "text-packed.ini"])
def test_a_rule_of_any_table_has_to_lead_back(tmp_path, table):
    message = broken(tmp_path, table, RULE.replace("source = spare", "source = (?:spare|extra)")).message
    assert f"{table}, rule [my rule]: the pattern cannot be read backwards: " in message


def test_nested_and_optional_groups_of_a_table_are_read_in_both_directions(edited_tables):
    """The same plan as with the shipped table, and a missing tensor is told by the key that it would come from."""
    source = r"source  = backbone\.language_backbone\.encoder\.final_layer_norm\.(?P<p>weight|bias)"
    nested = (
        r"source  = backbone\.language_backbone\.(?P<all>encoder\.final_layer_norm\.(?:(?P<w>weight))?(?P<b>bias)?)"
    )
    folder = edited_tables(
        "text-packed.ini",
        (source, nested),
        ("target  = text_encoder.final_layer_norm.{p}", "target  = text_encoder.final_layer_norm.{w}{b}"),
    )
    own = load_mappings(folder)
    rows = source_rows("s0")
    plan = plan_of(rows, own)
    assert {k: m.source.key for k, m in plan.mapped.items()} == {
        k: m.source.key for k, m in plan_of(rows).mapped.items()
    }
    gone = "detector.backbone.language_backbone.encoder.final_layer_norm.bias"
    with pytest.raises(UnsoundPlan) as fault:
        plan_of({k: v for k, v in rows.items() if k != gone}, own)
    (only,) = fault.value.details["faults"]
    assert only["key"] == "text_encoder.final_layer_norm.bias"
    assert only["detail"] == f"its source {gone} is missing"
    assert gone in fault.value.message


def test_a_drop_needs_a_reason(tmp_path):
    message = broken(tmp_path, "dropped.ini", "[gone]\nop = drop\nsource = spare\nexample = spare\n").message
    assert "reason" in message
    assert "[gone]" in message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[layout]\nrules = detector.ini\n",
        "[layout]\ntargets = targets-detector.ini\n",
        "[layout]\nrules = nowhere.ini\ntargets = targets-detector.ini\n",
        "[layout]\nrules = detector.ini\ntargets = nowhere.ini\n",
        "[layout]\nrules = detector.ini\ntargets = targets-detector.ini\ncausal = perhaps\n",
        "[layout]\nrules = detector.ini\ntargets = targets-detector.ini\nconfig = own\n",
        "[layout]\nrules = detector.ini\ntargets = targets-detector.ini\nloader = onnx\n",
        "[layout]\nrules = detector.ini\ntargets = targets-detector.ini\nfamily = SAM2\n",
        "[layout]\nrules = detector.ini\ntargets = targets-detector.ini\ntext_keys = drop\n",
    ],
)
def test_a_broken_layout_is_named(tmp_path, text):
    assert "layout-mine.ini" in broken(tmp_path, "layout-mine.ini", text).message


def test_a_table_that_is_not_text_is_named(tmp_path):
    (tmp_path / "dropped.ini").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CannotRun, match=r"dropped\.ini"):
        load_mappings(tmp_path)


@pytest.mark.parametrize("sizes", ["nonsense*hidden", "hidden/0", "hidden/x", "hidden+x", "hiden"])
def test_a_broken_shape_in_a_target_table_is_a_fault_of_the_table(edited_tables, sizes):
    folder = edited_tables(
        "targets-detector.ini", ("cls_embed.weight             = 1, hidden", f"cls_embed.weight = 1, {sizes}")
    )
    with pytest.raises(CannotRun):
        plan_of(source_rows("s0"), load_mappings(folder))


def test_a_section_without_a_name_in_a_target_table_is_a_fault_of_the_table(tmp_path):
    message = broken(tmp_path, "targets-detector.ini", "[ ]\nweight = 1\n").message
    assert "of a table of targets names no module" in message


def test_an_unknown_block_list_in_a_target_table_is_named(edited_tables):
    folder = edited_tables("targets-detector.ini", ("each = vit_blocks", "each = vit_layers"))
    with pytest.raises(CannotRun, match="vit_layers"):
        plan_of(source_rows("s0"), load_mappings(folder))


def test_an_unknown_layout_is_refused_with_the_known_ones(mappings):
    with pytest.raises(CannotRun, match="original, packed, transformers"):
        mappings.layout("mlx")


def test_a_folder_without_tables_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CannotRun, match="no mapping tables"):
            load_mappings(folder)
