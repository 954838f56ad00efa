"""Files in the names of a layout, told in the original's: against the lists of real keys, and to the bit."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support import families
from support.folders import flip_bit, same
from support.rows import Rows, fake, faults_of, key_list, shipped_tables, table, target_rows, without

from sam3lite_convert.checkpoint.index import Checkpoint
from sam3lite_convert.checkpoint.reader import open_source, read_checkpoint
from sam3lite_convert.checkpoint.selection import NOTHING_STATED, Selection, selection
from sam3lite_convert.convert.text_weights import planned_tensors, read_stored
from sam3lite_convert.errors import UnsoundPlan, Untrusted
from sam3lite_convert.plan.names import released_key, spelled_key
from sam3lite_convert.plan.original_names import Beside, in_original_names
from sam3lite_convert.plan.plan import Options, make_plan
from sam3lite_convert.plan.tables import load_mappings
from sam3lite_convert.plan.twins import check_twins

TABLE = "detector.backbone.vision_backbone.trunk.pos_embed"
GAUSSIAN = "tracker.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
TWICE = ("tracker_model.prompt_encoder.shared_embedding.", "tracker_model.shared_image_embedding.")
NO_PLACE = ("tracker.", ".sam2_convs.", ".freqs_cis", "geometry_encoder.points_")  # of the released s0, s1 and l
Q = "text_encoder.layers.1.self_attn.q_proj.weight"


def told(checkpoint: Checkpoint, beside: Beside | None = None) -> Checkpoint:
    return in_original_names(checkpoint, shipped_tables(), lambda: beside or Beside())


def listed(rows: Rows) -> Checkpoint:
    """What a list of keys is told as; no file is behind it."""
    return told(fake(rows))


@functools.cache
def of(name: str) -> Checkpoint:
    """What one of the lists is told as."""
    return listed(key_list(name))


def rows_of(checkpoint: Checkpoint) -> Rows:
    return {key: (t.dtype, t.shape) for key, t in checkpoint.tensors.items()}


def refused(rows: Rows, layout: str = "transformers") -> UnsoundPlan:
    with pytest.raises(UnsoundPlan) as fault:
        make_plan(listed(rows), shipped_tables(), Options(layout))
    return fault.value


# ---- names and shapes, against lists that were made elsewhere


@pytest.mark.parametrize("model", ["s0", "s1", "l"])
@pytest.mark.parametrize("layout", ["packed", "transformers"])
def test_the_keys_of_a_layout_are_told_as_those_of_the_released_file(layout, model):
    found = of(f"target_{layout}_{model}")
    assert rows_of(found) == without(key_list(f"{model}_ctx16"), *NO_PLACE)
    assert (found.turned_back.layout, found.turned_back.component) == (layout, "all")
    assert not found.turned_back.why and not found.turned_back.copies


@pytest.mark.parametrize(
    ("source", "target", "maps", "column", "component"),
    [
        ("s0_ctx16", "target_video_s0", "map_video", 2, "video"),
        ("sam3_teacher", "target_sam3_model", "map_teacher", 2, "all"),
        ("sam3_teacher", "target_sam3_video_teacher", "map_teacher", 3, "video"),
    ],
)
def test_each_tensor_is_made_of_those_that_the_map_names(source, target, maps, column, component):
    placed = {row[0]: tuple(row[column].split()) for row in table(maps)[1:] if row[column:] and row[column]}
    released, found = key_list(source), of(target)
    assert rows_of(found) == {key: released[key] for key in placed}
    assert found.turned_back.keys == placed
    assert (found.turned_back.layout, found.turned_back.component) == ("transformers", component)
    assert len(found.turned_back.copies) == (component == "video")


@pytest.mark.parametrize("name", sorted(families.LISTS.values()))
def test_what_has_the_original_s_names_is_left_as_it_is(name):
    checkpoint = fake(key_list(name))

    def beside() -> Beside:
        raise AssertionError("nothing is read beside it")

    assert in_original_names(checkpoint, shipped_tables(), beside) is checkpoint
    bare = fake({spelled_key(key, shipped_tables().spellings).name: row for key, row in key_list(name).items()})
    assert in_original_names(bare, shipped_tables(), beside) is bare


def test_of_a_folder_that_keeps_the_names_config_json_counts():
    rows = {key: row for key, row in key_list("s0_ctx16").items() if "freqs_cis" not in key}
    checkpoint, config = replace(fake(rows), format="safetensors"), {"text_config": {"causal_masking": True}}
    found = in_original_names(checkpoint, shipped_tables(), lambda: Beside({"layout": "original"}, config))
    assert found.config == config and found.tensors == checkpoint.tensors and found.turned_back is None
    # A config.json of anything else that lies beside a checkpoint is not its own.
    assert in_original_names(checkpoint, shipped_tables(), lambda: Beside(None, config)) is checkpoint


def test_the_key_of_a_released_file_is_another_spelling_of_its_canonical_name():
    for name in families.LISTS.values():
        for key in key_list(name):
            canonical = spelled_key(key, shipped_tables().spellings).name
            assert spelled_key(released_key(canonical), shipped_tables().spellings).name == canonical
    assert {released_key(k.removeprefix("detector.")) for k in key_list("s0_ctx16")} == set(key_list("s0_ctx16"))


@pytest.mark.parametrize(
    "keys",
    [[], ["a.weight", "b.weight"], ["text_model.embeddings.token_embedding.weight"],
     ["vision_encoder.backbone.layer_norm.weight", "a", "b"], ["text_projection.weight", "tracker.no_mem_embed"]],
)  # fmt: skip
def test_another_model_is_left_as_it_is(keys):
    checkpoint = fake(dict.fromkeys(keys, ("float32", (4,))))
    assert told(checkpoint) is checkpoint


# ---- other spellings


def doubled(key: str) -> str:
    return key.replace("tracker_model.", "tracker_model.tracker_model.", 1)


@pytest.mark.parametrize(
    ("target", "spell"),
    [
        ("target_video_s0", doubled),
        ("target_video_s0", lambda key: f"module.{doubled(key)}"),
        ("target_transformers_s0", lambda key: f"detector_model.{key}"),
        ("target_packed_s0", lambda key: f"model.module.{key}"),
    ],
)
def test_a_prefix_is_another_spelling_of_the_same_keys(target, spell):
    found = listed({spell(key): row for key, row in key_list(target).items()})
    assert rows_of(found) == rows_of(of(target))
    assert found.turned_back.keys == {k: tuple(map(spell, made)) for k, made in of(target).turned_back.keys.items()}


def test_a_prefix_that_the_user_states_is_taken_off():
    rows = {f"mine.of.{key}": row for key, row in target_rows("transformers", "s0").items()}
    assert told(fake(rows)).turned_back is None
    stated = Checkpoint(**{**vars(fake(rows)), "selection": Selection(strip_prefix=("mine.of.",))})
    found = told(stated)
    assert rows_of(found) == rows_of(of("target_transformers_s0"))
    make_plan(found, shipped_tables(), Options("original"))


def test_of_two_spellings_of_one_key_the_other_is_refused_by_name():
    rows = target_rows("transformers", "s0")
    assert ("unmatched", f"module.{Q}") in faults_of(refused(rows | {f"module.{Q}": rows[Q]}))


# ---- what is not turned back


def test_a_foreign_key_stays_and_is_refused_by_its_name():
    rows = target_rows("transformers", "s0") | {"text_encoder.adapter.weight": ("float32", (4, 4))}
    assert ("unmatched", "text_encoder.adapter.weight") in faults_of(refused(rows))


def test_of_a_part_that_is_missing_the_others_are_refused_with_why():
    rows = without(target_rows("transformers", "s0"), Q)
    fault = refused(rows)
    left = [Q.replace("q_proj", part) for part in ("k_proj", "v_proj")]
    assert faults_of(fault) == {("not_turned_back", key) for key in left}
    assert f"{Q} is missing" in fault.message and "Give the file that holds all parts" in fault.message


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (("float32", (512,)), "not of one shape"),
        (("float32", (256, 512)), "not of one shape"),
        (("bfloat16", (512, 512)), "cannot be joined: bfloat16 and float32"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(row, why):
    details = {f["key"]: f["detail"] for f in refused(target_rows("transformers", "s0") | {Q: row}).details["faults"]}
    assert all(why in details[Q.replace("q_proj", f"{part}_proj")] for part in "qkv")


def test_a_tensor_that_is_in_the_file_under_both_names_is_refused():
    rows = target_rows("transformers", "s0")
    both = rows | {TABLE: ("float32", (1, 577, 1024))}
    details = {f["key"]: f["detail"] for f in refused(both).details["faults"]}
    assert f"{TABLE} is in the file too" in details["vision_encoder.backbone.embeddings.position_embeddings"]


def test_a_missing_component_is_absent():
    rows = without(key_list("target_video_s0"), "tracker_model.", "tracker_neck.")
    assert rows_of(listed(rows)) == without(key_list("s0_ctx16"), *NO_PLACE)


def test_of_two_copies_one_is_enough_and_the_other_is_named():
    found = listed(without(key_list("target_video_s0"), TWICE[1]))
    assert GAUSSIAN in found.tensors and not found.turned_back.copies
    (note,) = [note for note in found.notes if "its copy" in note]
    assert TWICE[1] in note and "is missing" in note


def test_a_key_that_the_user_drops_is_dropped_under_the_name_that_it_has():
    rows = target_rows("transformers", "s0") | {"extra.weight": ("float32", (4,))}
    stated = selection(drop=[r"extra\..+"], reason=["not of the model"])
    found = told(Checkpoint(**{**vars(fake(rows)), "selection": stated}))
    plan = make_plan(found, shipped_tables(), Options("transformers"))
    assert plan.dropped["extra.weight"].reason == "not of the model"
    stated = selection(drop=[r"vision_encoder\.neck\.fpn_layers\.3\..+"], reason=["not used"])
    found = told(Checkpoint(**{**vars(fake(rows)), "selection": stated}))
    assert "detector.backbone.vision_backbone.convs.3.conv_1x1.weight" not in found.tensors


def test_a_layout_of_the_user_s_is_told_too(tmp_path):
    (tmp_path / "layout-mine.ini").write_text(
        "[layout]\nrules = mine.ini\ntargets = targets-mine.ini\ntext_keys = keep\ncausal = yes\n"
    )
    (tmp_path / "mine.ini").write_text(
        "[all]\nop = keep\nsource = (?P<rest>(?:backbone|geometry_encoder|transformer|dot_prod|segm).*)\n"
        "target = mine/{rest}\nexample = backbone.language_backbone.projector.weight\n"
        "[tracker]\nop = drop\nsource = tracker.+\nreason = none\nexample = tracker.no_obj_ptr\n"
    )
    (tmp_path / "targets-mine.ini").write_text("[mine/backbone]\nx = 1\n")
    mappings = load_mappings(tmp_path)
    rows = {f"mine/{k.removeprefix('detector.')}": row for k, row in without(key_list("s0_ctx16"), "tracker.").items()}
    found = in_original_names(fake(rows), mappings)
    assert rows_of(found) == without(key_list("s0_ctx16"), "tracker.")
    assert found.turned_back.names == "the layout mine"


# ---- bytes


@functools.cache
def source(kind: str) -> dict[str, torch.Tensor]:
    return families.state_dict(kind)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("files")


@functools.cache
def converted(place: Path, kind: str, layout: str, component: str, dtype: str | None = None) -> dict[str, torch.Tensor]:
    path = place / f"{kind}.safetensors"
    if not path.exists():
        save_file({k: t for k, t in source(kind).items() if not t.is_complex()}, path)
    return planned_tensors(make_plan(read_checkpoint(path), shipped_tables(), Options(layout, component, dtype=dtype)))


def saved(place: Path, state: dict[str, torch.Tensor], chosen: Selection = NOTHING_STATED) -> Checkpoint:
    save_file({key: t.contiguous() for key, t in state.items()}, place / "one.safetensors")
    return read_checkpoint(place / "one.safetensors", chosen)


def tensors_of(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    with open_source(checkpoint) as file:
        return {key: read_stored(file, stored) for key, stored in checkpoint.tensors.items()}


FOLDERS = [
    ("s0", "packed", "all"), ("s0", "transformers", "video"), ("s0", "transformers", "text"),
    ("s0", "packed", "text"), ("s0-3.1", "transformers", "all"), ("teacher", "transformers", "text"),
]  # fmt: skip
MORE = [
    ("s0", "transformers", "all"), ("teacher", "transformers", "all"), ("student", "transformers", "text"),
    ("s0-3.1", "packed", "all"), ("s0-3.1", "transformers", "text"),
    ("teacher", "transformers", "video"), ("teacher-3.1", "transformers", "all"),
    ("teacher-3.1", "transformers", "text"), ("student", "packed", "text"), ("student-3.1", "transformers", "text"),
    ("student-ft", "transformers", "text"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "layout", "component"),
    [*FOLDERS, *(pytest.param(*each, marks=pytest.mark.stress) for each in MORE)],
)
def test_every_tensor_is_that_of_the_source_to_the_bit(kind, layout, component, place, tmp_path):
    state = converted(place, kind, layout, component)
    found = told(saved(tmp_path, state))
    held = {released_key(spelled_key(k, shipped_tables().spellings).name): t for k, t in source(kind).items()}
    filled = {key for key, t in tensors_of(found).items() if key not in held}
    assert filled == {k for k in found.tensors if ".vision_backbone.convs.3." in k and "3.1" in kind}
    for key, tensor in tensors_of(found).items():
        if key == TABLE:
            assert same(tensor[:, 1:], held[key][:, 1:]) and not tensor[:, 0].any()
            assert tensor.shape == held[key].shape
        elif key not in filled:
            assert same(tensor, held[key]), key
    # And the layout again is what was there.
    again = planned_tensors(make_plan(found, shipped_tables(), Options(layout, component)))
    assert again.keys() == state.keys() and all(same(again[key], tensor) for key, tensor in state.items())


def test_a_class_row_that_was_filled_is_said(place, tmp_path):
    found = told(saved(tmp_path, converted(place, "s0", "packed", "all")))
    (note,) = [note for note in found.notes if "class row" in note]
    assert TABLE in note and "filled, not restored" in note
    assert "names of the layout packed" in " ".join(found.notes)


def test_of_a_text_encoder_alone_no_class_row_is_said(place, tmp_path):
    found = told(saved(tmp_path, converted(place, "s0", "packed", "text")))
    assert found.turned_back.component == "text" and not [note for note in found.notes if "class row" in note]


def test_what_a_conversion_filled_is_left_out_if_the_receipt_says_so(place, tmp_path):
    checkpoint = saved(tmp_path, converted(place, "s0-3.1", "transformers", "all"))
    levels = {k: {"operation": "zeros"} for k in checkpoint.tensors if ".fpn_layers.3." in k}
    found = told(checkpoint, Beside({"layout": "transformers", "tensors": levels, "kind": "SAM3.1"}))
    assert "its conversion.json says that it was made of this: SAM3.1" in found.notes
    left = told(checkpoint).tensors.keys() - found.tensors.keys()
    assert left == {k for k in source("s0") if ".vision_backbone.convs.3." in k} and len(left) == 4
    (note,) = [note for note in found.notes if note.startswith("left out")]
    assert all(key in note for key in levels)
    plan = make_plan(found, shipped_tables(), Options("transformers"))
    assert set(plan.filled) == set(levels)


def test_bfloat16_stays_what_it_is(place, tmp_path):
    state = converted(place, "s0", "transformers", "text", "bfloat16")
    found = told(saved(tmp_path, state))
    for key, tensor in tensors_of(found).items():
        original = source("s0")[key]
        assert same(tensor, original.bfloat16() if original.is_floating_point() else original), key


def test_two_copies_that_differ_are_refused_with_both_names(place, tmp_path):
    state = dict(converted(place, "s0", "transformers", "video"))
    keys = [next(key for key in state if key.startswith(start)) for start in TWICE]
    plan = make_plan(told(saved(tmp_path, state)), shipped_tables(), Options("original"))
    with open_source(plan.checkpoint) as file:
        check_twins(file, plan.twins)
    state[keys[1]] = flip_bit(state[keys[1]])
    plan = make_plan(told(saved(tmp_path, state)), shipped_tables(), Options("original"))
    with open_source(plan.checkpoint) as file, pytest.raises(Untrusted) as fault:
        check_twins(file, plan.twins)
    assert fault.value.code == "twins_differ" and all(key in fault.value.message for key in keys)
    assert "write it to both" in fault.value.message  # a folder without one of them would not load
    state[keys[1]] = state[keys[1]][:1]
    with pytest.raises(Untrusted, match="contradicts itself"):
        make_plan(told(saved(tmp_path, state)), shipped_tables(), Options("original"))


def test_a_file_of_torch_with_strides_of_its_own_is_told_too(place, tmp_path):
    state = dict(converted(place, "s0", "transformers", "text"))
    key = "projection.weight"
    state[key] = state[key].T.contiguous().T
    torch.save(state, tmp_path / "pytorch_model.bin")
    found = told(read_checkpoint(tmp_path / "pytorch_model.bin"))
    for name, tensor in tensors_of(found).items():
        assert same(tensor, source("s0")[name]), name
