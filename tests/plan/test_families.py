"""Plans of the whole family against the key lists of real checkpoints and of the models that load the folders."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.rows import VISION, Rows, key_list, plan_of

from sam3lite_convert.errors import CannotRun, UnsoundPlan

# Checkpoint, component, list of the target, sources mapped and dropped, targets that are filled: family.md 2 and 6, and
# the table on SAM3.1 in the README of the reference data.
PLACED = [
    ("s0_ctx16", "video", "target_video_s0", 1243, 38, 0),
    ("s1_ctx16", "video", "target_video_s1", 1283, 38, 0),
    ("l_ctx16", "video", "target_video_l", 1283, 38, 0),
    ("sam3_teacher", "all", "target_sam3_model", 1096, 369, 0),
    ("sam3_teacher", "video", "target_sam3_video_teacher", 1427, 38, 0),
    ("sam3p1_s0_ctx16", "all", "target_transformers_s0", 908, 531, 4),
    ("sam31_teacher", "all", "target_sam3_model", 1092, 531, 4),
]
FILLED = [f"vision_encoder.neck.fpn_layers.3.{layer}.{p}" for layer in ("proj1", "proj2") for p in ("weight", "bias")]


def refused(rows: Rows, **options: object) -> UnsoundPlan:
    with pytest.raises(UnsoundPlan) as fault:
        plan_of(rows, **options)
    return fault.value


@pytest.mark.parametrize(("name", "component", "target", "mapped", "dropped", "filled"), PLACED)
def test_the_plan_is_exactly_the_list_of_the_target(name, component, target, mapped, dropped, filled):
    plan = plan_of(key_list(name), layout="transformers", component=component)
    assert {k: (m.dtype, m.shape) for k, m in plan.mapped.items()} == key_list(target)
    counts = plan.counts
    assert (counts.mapped, counts.dropped, counts.filled or 0) == (mapped, dropped, filled)
    assert sorted(plan.filled) == sorted(FILLED[:filled])


@pytest.mark.parametrize("layout", ["packed", "transformers"])
def test_what_sam31_lacks_is_filled_and_named_and_each_drop_has_its_reason(layout):
    plan = plan_of(key_list("sam3p1_s0_ctx16"), layout=layout)
    assert {plan.mapped[k].operation.name for k in plan.filled} == {"zeros"}
    assert plan.dropped_by_label == {
        "rotary tables": 32, "points projectors": 6, "interactive neck": 18, "propagation neck": 18,
        "multiplex tracker": 457,
    }  # fmt: skip
    reasons = {d.label: d.reason.partition(":")[0] for d in plan.dropped.values()}
    assert reasons["interactive neck"] == "interactive_convs"
    assert reasons["propagation neck"] == "propagation_convs"
    assert reasons["multiplex tracker"] == "tracker.model"
    assert plan.architecture.vision.scale_factors == (4.0, 2.0, 1.0, 0.5)


def test_a_fill_follows_a_cast():
    plan = plan_of(key_list("sam3p1_s0_ctx16"), layout="transformers", dtype="bfloat16")
    assert {plan.mapped[k].dtype for k in plan.filled} == {"bfloat16"}


def test_four_point_embeddings_are_one_table_in_the_order_of_their_names_and_one_table_is_written_twice():
    shuffled = dict(sorted(key_list("s0_ctx16").items(), reverse=True))
    plan = plan_of(shuffled, layout="transformers", component="video")
    table = plan.mapped["tracker_model.prompt_encoder.point_embed.weight"]
    names = [f"tracker.sam_prompt_encoder.point_embeddings.{i}.weight" for i in range(4)]
    assert [s.key for s in table.sources] == names
    assert table.record().sources == tuple(names)
    twice = [k for k, m in plan.mapped.items() if m.operation.name == "duplicate"]
    assert len(twice) == 2
    assert {plan.mapped[k].source.key for k in twice} == {
        "tracker.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    }


@pytest.mark.parametrize("missing", range(4))
def test_a_missing_part_of_a_joined_table_is_reported_by_name(missing):
    key = f"tracker.sam_prompt_encoder.point_embeddings.{missing}.weight"
    rows = {k: v for k, v in key_list("s0_ctx16").items() if k != key}
    fault = refused(rows, layout="transformers", component="video")
    assert key in str(fault.details["faults"])


@pytest.mark.parametrize(
    ("entry", "said"),
    [(("float32", (1, 255)), "rows of several shapes"), (("float16", (1, 256)), "float16 and float32")],
)
def test_parts_of_a_joined_table_that_do_not_fit_are_reported_once_with_all_their_names(entry, said):
    key = "tracker.sam_prompt_encoder.point_embeddings.2.weight"
    fault = refused(key_list("s0_ctx16") | {key: entry}, layout="transformers", component="video")
    (only,) = fault.details["faults"]
    assert (only["kind"], only["key"]) == ("not_joined", "tracker_model.prompt_encoder.point_embed.weight")
    assert "tracker.sam_prompt_encoder.point_embeddings.{0..3}.weight (4)" in fault.message
    assert said in fault.message
    assert "Give the file that holds all parts of these tensors, in one shape and dtype." in fault.message


# ---- the neck's levels ------------------------------------------------------------------------------


def stripped(name: str, *parts: str) -> Rows:
    return {k: v for k, v in key_list(name).items() if not any(p in k for p in parts)}


def test_a_sam31_file_without_its_own_necks_is_filled_as_well():
    rows = stripped("sam3p1_s0_ctx16", "interactive_convs", "propagation_convs", "tracker.")
    plan = plan_of(rows, layout="transformers")
    assert {k: (m.dtype, m.shape) for k, m in plan.mapped.items()} == key_list("target_transformers_s0")
    assert sorted(plan.filled) == sorted(FILLED)


@pytest.mark.parametrize("layout", ["packed", "transformers"])
@pytest.mark.parametrize("levels", [1, 2, 5])
def test_any_other_number_of_levels_is_refused(layout, levels):
    rows = stripped("s0_ctx16", "sam2_convs", *(f".vision_backbone.convs.{i}." for i in range(levels, 4)))
    rows |= {k.replace("convs.3", "convs.4"): v for k, v in rows.items() if ".convs.3." in k and levels == 5}
    fault = refused(rows, layout=layout)
    assert fault.code == "neck_levels"
    assert f"{levels} levels" in fault.message


def test_the_originals_own_layout_keeps_three_levels_as_they_are():
    rows = key_list("sam3p1_s0_ctx16")
    plan = plan_of(rows, layout="original")
    assert not plan.filled
    assert {k for k in plan.mapped if k.startswith(f"{VISION}convs.")} == {
        k for k in rows if k.startswith(f"{VISION}convs.")
    }


def test_a_level_of_which_a_part_is_there_is_not_filled():
    rows = key_list("sam3p1_s0_ctx16") | {f"{VISION}convs.3.conv_1x1.weight": ("float32", (256, 1024, 1, 1))}
    kinds = {(f["kind"], f["key"]) for f in refused(rows, layout="transformers").details["faults"]}
    assert ("unfilled", FILLED[1]) in kinds


# ---- what is refused, in words ------------------------------------------------------------------------


def test_the_tracker_of_sam31_has_no_class():
    fault = refused(key_list("sam3p1_s0_ctx16"), layout="transformers", component="video")
    assert fault.code == "unsupported_checkpoint"
    assert "leave out --component video" in fault.message


@pytest.mark.parametrize("component", ["all", "text"])
def test_sam3_itself_has_no_packed_layout(component):
    fault = refused(key_list("sam3_teacher"), layout="packed", component=component)
    assert fault.code == "unsupported_checkpoint"
    assert "use --layout original or transformers" in fault.message


@pytest.mark.parametrize("layout", ["packed", "original"])
def test_only_one_layout_has_the_video_model(layout):
    with pytest.raises(CannotRun, match="use --layout transformers"):
        plan_of(key_list("s0_ctx16"), layout=layout, component="video")


def test_a_file_without_a_tracker_is_no_video_model():
    fault = refused(stripped("s0_ctx16", "tracker.", "sam2_convs"), layout="transformers", component="video")
    assert ("missing_component", "tracker_model") in {(f["kind"], f["key"]) for f in fault.details["faults"]}


def test_a_tracker_alone_is_told_from_sam_2():
    for name in ("s0_ctx16", "sam3p1_s0_ctx16"):
        fault = refused({k: v for k, v in key_list(name).items() if k.startswith("tracker.")})
        assert "this is the tracker of a SAM3 checkpoint without its detector" in fault.message


def test_the_names_that_the_librarys_own_scripts_expect_are_those_of_the_file():
    fronts = {"detector.": "sam3_model.", "tracker.": "sam2_predictor.model."}
    rows = {fronts[k.partition(".")[0] + "."] + k.partition(".")[2]: v for k, v in key_list("sam3_teacher").items()}
    plan = plan_of(rows, layout="transformers", component="video")
    assert {k: (m.dtype, m.shape) for k, m in plan.mapped.items()} == key_list("target_sam3_video_teacher")
    assert len(plan.dropped) == 38


def test_the_text_encoder_of_sam3_is_taken_without_any_prefix():
    rows, front = key_list("sam3_teacher"), "detector.backbone.language_backbone."
    bare = {k.removeprefix(front): v for k, v in rows.items() if k.startswith(front)}
    plan = plan_of(bare, layout="transformers", component="text")
    whole = plan_of(rows, layout="transformers", component="text")
    assert {k: (m.dtype, m.shape) for k, m in plan.mapped.items()} == {
        k: (m.dtype, m.shape) for k, m in whole.mapped.items()
    }
    assert len(plan.mapped) == 391
    assert not plan.dropped
    assert "convert it with --component text" in refused(bare, layout="transformers").message


# ---- image students -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["student_repvit_m1_1_s0", "student_sam3p1_tinyvit_s0", "student_ft_repvit"])
def test_an_image_student_is_kept_whole_under_the_originals_names(name):
    rows = key_list(name)
    plan = plan_of(rows, layout="original")
    names = {k if k.startswith("tracker.") else "detector." + k.removeprefix("detector."): v for k, v in rows.items()}
    assert {k: (m.dtype, m.shape) for k, m in plan.mapped.items()} == names
    assert not plan.dropped
    assert plan.unchecked == len(plan.mapped) - 111
    assert plan.kind.startswith("EfficientSAM3 with an image student (")


@given(name=st.sampled_from(["s0_ctx16", "sam3p1_s0_ctx16", "sam3_teacher", "student_ft_repvit"]), data=st.data())
@settings(max_examples=6, deadline=None)
def test_counts_add_up_in_every_plan_and_whatever_is_left_out_is_noticed(name, data):
    """Of a file without some of its tensors the counts add up, or the plan is refused and names what is missing."""
    rows = key_list(name)
    layout = "original" if name.startswith("student") else "transformers"
    gone = data.draw(st.lists(st.sampled_from(sorted(rows)), max_size=3, unique=True))
    left = {k: v for k, v in rows.items() if k not in gone}
    whole = plan_of(rows, layout=layout)
    needed = [k for k in gone if k in {s.key for m in whole.mapped.values() for s in m.sources}]
    try:
        plan = plan_of(left, layout=layout)
    except UnsoundPlan as fault:
        required = [k for k in needed if layout != "original" or ".language_backbone." in k]
        weights = [k for k in required if not k.endswith("num_batches_tracked")]
        assert weights
        assert all(k in str(fault.details) + fault.message for k in weights)
        return
    # A counter is filled; what a layout takes as it is, nothing requires.
    assert all(k.endswith("num_batches_tracked") or layout == "original" for k in needed)
    assert plan.counts.mapped + plan.counts.dropped == len(left)
    assert plan.counts.target == len(plan.mapped)
