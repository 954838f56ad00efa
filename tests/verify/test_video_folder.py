"""Video folders, those of SAM3 and those with filled tensors: recognised, proven, and told what is wrong with them."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from support import families
from support.folders import assert_proven, convert, edit, edit_config, tensors, verify

from sam3lite_convert.checkpoint.reader import read_checkpoint
from sam3lite_convert.plan.plan import Options, make_plan
from sam3lite_convert.verify.config_check import check_config

NECK = "vision_encoder.neck.fpn_layers."
TABLES = [
    "tracker_model.shared_image_embedding.positional_embedding",
    "tracker_model.prompt_encoder.shared_embedding.positional_embedding",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(kind, component) -> (checkpoint, folder) that no test changes."""
    root = tmp_path_factory.mktemp("families")
    done: dict[tuple[str, str], tuple[Path, Path]] = {}

    def make(kind: str, component: str = "all") -> tuple[Path, Path]:
        if (kind, component) not in done:
            path = root / f"{kind}.pt"
            path = path if path.exists() else families.write(path, kind)
            options = ("--layout", "transformers", "--component", component)
            done[kind, component] = path, convert(path, root / f"{kind}-{component}", *options)
        return done[kind, component]

    return make


@pytest.fixture
def foreign(made, tmp_path):
    """(kind, component) -> (checkpoint, folder): a copy without a receipt, for a test to spoil."""

    def make(kind: str, component: str = "all") -> tuple[Path, Path]:
        path, good = made(kind, component)
        folder = shutil.copytree(good, tmp_path / "foreign", ignore=shutil.ignore_patterns("conversion.json"))
        return path, folder

    return make


def rename(folder, name):
    """Rename the tensors of model.safetensors; ``name`` gives several names, or none."""
    state = {new: tensor.clone() for key, tensor in tensors(folder).items() for new in name(key)}
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def findings(folder, checkpoint):
    done = verify(folder, checkpoint)
    assert (done.code, done.json["verdict"]) == (1, "mismatch"), done
    return done.json["findings"]


# ---- which conversion it is ----------------------------------------------------------------------


KINDS = [("s0", "video"), ("teacher", "video"), ("teacher", "text"), ("s0-3.1", "all")]


@pytest.mark.parametrize(("kind", "component"), KINDS)
def test_a_right_folder_is_recognised_with_and_without_a_receipt(kind, component, made, foreign):
    for path, folder in (made(kind, component), foreign(kind, component)):
        record = assert_proven(folder, path)
        assert (record["layout"], record["component"]) == ("transformers", component)


def test_the_original_layout_of_a_file_with_an_image_student_is_recognised(tmp_path):
    path = families.write(tmp_path / "student.pt", "student")
    folder = convert(path, tmp_path / "out", "--layout", "original")
    (folder / "conversion.json").unlink()
    record = assert_proven(folder, path)
    assert (record["layout"], record["component"]) == ("original", "all")


def test_what_the_library_saves_of_a_video_model_is_proven_where_it_reads_it_back(made, tmp_path):
    """transformers 5.6 does not: it writes the names of the parts in front of each other."""
    path, folder = made("s0", "video")
    transformers.Sam3VideoModel.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    _, info = transformers.Sam3VideoModel.from_pretrained(tmp_path / "saved", output_loading_info=True)
    if info["missing_keys"]:
        assert transformers.__version__.startswith("5.6.")
        assert {f["code"] for f in findings(tmp_path / "saved", path)} == {"V-MISSING", "V-UNEXPECTED"}
    else:
        assert_proven(tmp_path / "saved", path)


def doubled(key):
    return [key.replace("tracker_model.", "tracker_model.tracker_model.", 1)]


def test_names_that_hold_the_trackers_twice_are_proven_and_told(foreign):
    path, folder = foreign("s0", "video")
    rename(folder, doubled)
    record = assert_proven(folder, path)
    (note,) = [n for n in record["notes"] if "tracker_model.tracker_model." in n]
    assert "307 keys" in note and "Sam3TrackerModel does not" in note
    # As the note says: the library itself reads them in the one and not in the other.
    for name, missing in (("Sam3VideoModel", 0), ("Sam3TrackerModel", 147)):
        _, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
        assert len(info["missing_keys"]) == missing


def test_one_tensor_under_both_names_is_told(foreign):
    path, folder = foreign("s0", "video")
    key = "tracker_model.no_object_pointer"
    rename(folder, lambda k: [k, *doubled(k)] if k == key else [k])
    (found,) = findings(folder, path)
    assert found["code"] == "V-TWICE"


def test_a_video_folder_that_lost_its_tracker_is_still_one(foreign):
    path, folder = foreign("s0", "video")
    rename(folder, lambda k: [k] if k.startswith("detector_model.") else [])
    assert {(f["code"], f["component"]) for f in findings(folder, path)} == {
        ("V-MISSING", "tracker"),
        ("V-MISSING", "vision_encoder"),
    }


# ---- tensors -------------------------------------------------------------------------------------


def test_necks_that_changed_places_are_told(foreign):
    path, folder = foreign("s0", "video")
    held = tensors(folder)
    one, other = f"detector_model.{NECK}2.proj1.weight", "tracker_neck.fpn_layers.2.proj1.weight"
    edit(folder, {one: held[other], other: held[one]})
    assert [(f["code"], sorted(f["keys"])) for f in findings(folder, path)] == [("V-SWAPPED", sorted([one, other]))]
    # Whole necks are one finding as well, not one for each pair of tensors.
    necks = [(k, k.replace("detector_model.vision_encoder.neck", "tracker_neck")) for k in held if NECK in k]
    edit(folder, {x: held[y] for a, b in necks for x, y in ((a, b), (b, a))})
    (found,) = findings(folder, path)
    assert found["code"] == "V-SWAPPED" and sorted(found["keys"]) == sorted(key for pair in necks for key in pair)
    assert found["cause"] == "detector_model.vision_encoder.neck and tracker_neck hold each other's tensors"
    edit(folder, {a: held[a] for a, _ in necks} | {b: held[a] for a, b in necks})
    (found,) = findings(folder, path)
    assert found["code"] == "V-OTHER-TENSOR" and sorted(found["keys"]) == sorted(b for _, b in necks)
    assert found["cause"] == "tracker_neck holds tensors of detector_model.vision_encoder.neck"


def test_the_trackers_neck_in_place_of_the_detectors_is_told(foreign):
    path, folder = foreign("s0")
    state = families.state_dict("s0")
    edit(folder, {f"{NECK}2.proj1.weight": state["detector.backbone.vision_backbone.sam2_convs.2.conv_1x1.weight"]})
    (found,) = findings(folder, path)
    assert found["code"] == "V-DROPPED-IN-PLACE" and "sam2_convs.2.conv_1x1" in found["cause"]


@pytest.mark.parametrize("table", TABLES)
def test_each_of_the_two_tables_is_compared(table, foreign):
    path, folder = foreign("s0", "video")
    edit(folder, {table: torch.randn_like(tensors(folder)[table])})
    assert [f["keys"] for f in findings(folder, path)] == [[table]]
    edit(folder, {table: None})
    assert [(f["code"], f["keys"]) for f in findings(folder, path)] == [("V-MISSING", [table])]


def test_embeddings_of_points_in_another_order_are_told(foreign):
    path, folder = foreign("s0", "video")
    key = "tracker_model.prompt_encoder.point_embed.weight"
    edit(folder, {key: tensors(folder)[key][[1, 0, 2, 3]]})
    (found,) = findings(folder, path)
    assert found["code"] == "V-ROW-ORDER" and "2nd, 1st, 3rd, 4th" in found["cause"]


# ---- tensors that are filled ---------------------------------------------------------------------


FILLED = [f"{NECK}3.{layer}.{part}" for layer in ("proj1", "proj2") for part in ("weight", "bias")]


def test_filled_tensors_are_named_and_not_called_converted(made):
    path, folder = made("s0-3.1")
    record = assert_proven(folder, path)
    assert record["summary"].startswith("1,200 of 1,204 tensors turn back into their source bit for bit; 4 are filled")
    (note,) = [n for n in record["notes"] if "filled, not converted" in n]
    assert all(key in note for key in FILLED)


def test_other_values_there_are_told_and_not_wrong(foreign):
    path, folder = foreign("s0-3.1")
    edit(folder, {key: torch.randn_like(tensors(folder)[key]) for key in FILLED[:2]})
    record = assert_proven(folder, path)
    (found,) = record["findings"]
    assert found["code"] == "V-FILLED" and sorted(found["keys"]) == sorted(FILLED[:2])


def test_a_filled_tensor_that_is_missing_or_of_another_shape_is_wrong(foreign):
    path, folder = foreign("s0-3.1")
    edit(folder, {FILLED[0]: None, FILLED[1]: torch.zeros(3)})
    assert {(f["code"], *f["keys"]) for f in findings(folder, path)} == {
        ("V-MISSING", FILLED[0]),
        ("V-SHAPE", FILLED[1]),
    }


# ---- config.json ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checked(made, mappings):
    """(kind, component) -> check a changed config.json, which has all fields that the library writes."""
    plans: dict[tuple[str, str], tuple[object, dict]] = {}

    def check(change, kind="s0", component="video"):
        if (kind, component) not in plans:
            path, folder = made(kind, component)
            plan = make_plan(read_checkpoint(path), mappings, Options("transformers", component))
            whole = transformers.AutoConfig.from_pretrained(folder).to_dict()
            plans[kind, component] = plan, json.loads(json.dumps(whole))
        plan, whole = plans[kind, component]
        config = copy.deepcopy(whole)
        change(config)
        return [(f.code, f.path) for f in check_config(plan, config).faults], check_config(plan, config).unjudged

    return check


def setting(path, value):
    def change(config):
        *parts, name = path.split(".")
        for part in parts:
            config = config[part]
        config[name] = value

    return change


def leaving_out(path):
    def change(config):
        *parts, name = path.split(".")
        for part in parts:
            config = config[part]
        del config[name]

    return change


WRONG = [
    ("tracker_config.vision_config.backbone_config.layer_norm_eps", 1e-6, "V-CONFIG-EPS"),
    ("detector_config.vision_config.backbone_config.layer_norm_eps", 1e-6, "V-CONFIG-EPS"),
    ("detector_config.model_type", "sam3", "V-CONFIG-CLASS"),
    ("tracker_config.model_type", "sam2_video", "V-CONFIG-CLASS"),
    ("tracker_config.image_size", 1008, "V-CONFIG-FIELD"),
    ("tracker_config.num_maskmem", 6, "V-CONFIG-FIELD"),
    ("tracker_config.memory_attention_num_layers", 2, "V-CONFIG-FIELD"),
    ("tracker_config.memory_attention_num_attention_heads", 2, "V-CONFIG-FIELD"),
    ("tracker_config.memory_attention_rope_feat_sizes", [72, 72], "V-CONFIG-FIELD"),
    ("tracker_config.rope_parameters", {"rope_type": "axial", "rope_theta": 500.0}, "V-CONFIG-ROPE"),
    ("tracker_config.sigmoid_scale_for_mem_enc", 1.0, "V-CONFIG-FIELD"),
    ("tracker_config.max_object_pointers_in_encoder", 4, "V-CONFIG-FIELD"),
    ("tracker_config.multimask_output_for_tracking", False, "V-CONFIG-FIELD"),
    ("tracker_config.enable_occlusion_spatial_embedding", False, "V-CONFIG-FIELD"),
    ("tracker_config.mask_downsampler_total_stride", 8, "V-CONFIG-FIELD"),
    ("tracker_config.prompt_encoder_config.layer_norm_eps", 1e-5, "V-CONFIG-FIELD"),
    ("tracker_config.prompt_encoder_config.hidden_act", "relu", "V-CONFIG-FIELD"),
    ("tracker_config.mask_decoder_config.num_attention_heads", 4, "V-CONFIG-FIELD"),
    ("tracker_config.mask_decoder_config.dynamic_multimask_via_stability", False, "V-CONFIG-FIELD"),
    ("detector_config.mask_decoder_config.num_attention_heads", 4, "V-CONFIG-FIELD"),
    ("low_res_mask_size", 288, "V-CONFIG-FIELD"),
    ("score_threshold_detection", 0.3, "V-CONFIG-FIELD"),
    ("trk_assoc_iou_thresh", 0.1, "V-CONFIG-FIELD"),
    ("recondition_on_trk_masks", False, "V-CONFIG-FIELD"),
    ("hotstart_delay", 0, "V-CONFIG-FIELD"),
    ("max_num_objects", 5, "V-CONFIG-FIELD"),
]


@pytest.mark.parametrize(("path", "value", "code"), WRONG, ids=str)
def test_a_field_that_changes_the_video_model_is_named(path, value, code, checked):
    faults, _ = checked(setting(path, value))
    assert len(faults) == 1 and faults[0][0] == code and faults[0][1].startswith(path), faults


LEFT_OUT = [
    ("tracker_config.vision_config.backbone_config.layer_norm_eps", "V-CONFIG-EPS"),
    ("tracker_config.image_size", "V-CONFIG-FIELD"),
    ("detector_config.model_type", "V-CONFIG-CLASS"),
    ("tracker_config.vision_config.backbone_config.model_type", "V-CONFIG-FIELD"),
    ("low_res_mask_size", "V-CONFIG-FIELD"),
]


@pytest.mark.parametrize(("path", "code"), LEFT_OUT)
def test_a_field_that_has_to_be_written_is_missed(path, code, checked):
    assert checked(lambda config: None) == ([], [])
    assert checked(leaving_out(path))[0] == [(code, path)]


def test_what_may_be_another_is_not_wrong(checked):
    def without_disambiguation(config):
        for name in ("hotstart_delay", "hotstart_unmatch_thresh", "hotstart_dup_thresh", "recondition_every_nth_frame"):
            config[name] = 0

    for change in (
        without_disambiguation,
        setting("tracker_config.memory_attention_dropout", 0.0),
        setting("tracker_config.prompt_encoder_config.scale", 2),
        leaving_out("tracker_config.model_type"),
        leaving_out("recondition_on_trk_masks"),
    ):
        assert checked(change) == ([], [])


def test_a_section_that_is_left_out_is_told_once(foreign):
    path, folder = foreign("s0", "video")
    edit_config(folder, "tracker_config")
    (found,) = [f for f in findings(folder, path) if f["code"] == "V-CONFIG-FIELD"]
    assert found["component"] == "tracker" and "tracker_config is left out" in found["cause"]


def test_the_config_of_the_detector_beside_a_video_folder_and_the_other_way_round(foreign, made):
    path, folder = foreign("s0", "video")
    image, video = (json.loads((made("s0", c)[1] / "config.json").read_text()) for c in ("all", "video"))
    (folder / "config.json").write_text(json.dumps(image))
    for found in findings(folder, path):
        assert found["code"] == "V-CONFIG-CLASS", found
    rename(folder, lambda k: [k.removeprefix("detector_model.")] if k.startswith("detector_model.") else [])
    (folder / "config.json").write_text(json.dumps(video))
    found = findings(folder, path)
    assert {f["code"] for f in found} == {"V-CONFIG-CLASS", "V-PROCESSOR"}


def test_the_fields_of_sam3s_text_encoder(checked):
    def fault(change, component="all"):
        return checked(change, "teacher", component)

    assert fault(lambda c: None) == ([], [])
    assert fault(setting("text_config.eos_token_id", 2)) == ([], [])  # pools the greatest id, which is the end token
    assert fault(setting("text_config.bos_token_id", 0)) == ([], [])
    for change, path in (
        (leaving_out("text_config.hidden_act"), "text_config.hidden_act"),  # the library's is quick_gelu
        (setting("text_config.eos_token_id", 7), "text_config.eos_token_id"),
        (setting("text_config.num_attention_heads", 2), "text_config.num_attention_heads"),
    ):
        assert fault(change)[0] == [("V-CONFIG-FIELD", path)]


# ---- processor files -----------------------------------------------------------------------------


def edit_processor(folder, change):
    said = json.loads((folder / "processor_config.json").read_text())
    change(said)
    (folder / "processor_config.json").write_text(json.dumps(said))


PROCESSOR = [
    (lambda said: said["video_processor"].update(image_mean=[0.485, 0.456, 0.406]), "video_processor.image_mean"),
    (lambda said: said["video_processor"].pop("image_std"), "video_processor.image_std"),
    (lambda said: said["video_processor"].pop("size"), "video_processor.size"),
    (lambda said: said["image_processor"].update(do_rescale=False), "image_processor.do_rescale"),
    (lambda said: said.pop("video_processor"), "video_processor"),
    (lambda said: said.update(video_processor=[]), "video_processor"),
    (lambda said: said.update(processor_class="Sam3Processor"), "processor_class"),
]


@pytest.mark.parametrize(("change", "field"), PROCESSOR, ids=[f"{i}-{f}" for i, (_, f) in enumerate(PROCESSOR)])
def test_a_field_of_the_video_processor_is_named(change, field, foreign):
    path, folder = foreign("s0", "video")
    edit_processor(folder, change)
    assert [(f["code"], f["keys"]) for f in findings(folder, path)] == [
        ("V-PROCESSOR", [f"processor_config.json: {field}"])
    ]


def test_the_frames_may_have_a_file_of_their_own(foreign):
    path, folder = foreign("s0", "video")
    said = json.loads((folder / "processor_config.json").read_text())
    frames = said.pop("video_processor")
    (folder / "processor_config.json").write_text(json.dumps(said))
    (folder / "video_preprocessor_config.json").write_text(json.dumps(frames))
    assert_proven(folder, path)
    (folder / "video_preprocessor_config.json").write_text(json.dumps(frames | {"resample": 3}))
    assert [f["keys"] for f in findings(folder, path)] == [["video_preprocessor_config.json: resample"]]
