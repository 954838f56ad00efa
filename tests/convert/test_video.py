"""The video folder and SAM3's: what released transformers makes of them, and their cards."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from support import families
from support.folders import convert, edit_config, sam3lite, same, tensors, write
from support.hub_files import clip_files

VIDEO = ("--layout", "transformers", "--component", "video")
DETECTOR, TRACKER = "detector_model.", "tracker_model."


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with CLIP's tokenizer in it."""
    root = tmp_path_factory.mktemp("video")
    (root / "clip").mkdir()
    for name, data in clip_files().items():
        (root / "clip" / name).write_bytes(data)
    return root


@pytest.fixture(scope="module")
def folders(root):
    """(kind, component) -> a folder, made once."""
    made: dict[tuple[str, str], Path] = {}

    def folder(kind: str, component: str = "all") -> Path:
        if (kind, component) not in made:
            path = root / f"{kind}.pt"
            path = path if path.exists() else families.write(path, kind)
            out = root / f"{kind}-{component}"
            made[kind, component] = convert(path, out, "--layout", "transformers", "--component", component)
        return made[kind, component]

    return folder


def load(name, folder):
    """Load a folder as this class. What the class does not find is reported as missing alone: parts of the video model
    ignore each other's keys, so that a misspelt one is never unexpected."""
    model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def assert_holds(model, folder, prefix):
    """Every tensor of the model is that of the folder, to the bit. The tracker alone has a vision encoder of its own:
    the detector's ViT with the tracker's neck on it."""
    held = tensors(folder)
    for key, tensor in model.state_dict().items():
        at = prefix + key
        if prefix == TRACKER and key.startswith("vision_encoder.neck."):
            at = key.replace("vision_encoder.neck.", "tracker_neck.")
        elif prefix == TRACKER and key.startswith("vision_encoder."):
            at = DETECTOR + key
        assert same(tensor, held[at]), key


# ---- loading -----------------------------------------------------------------------------------


CLASSES = [
    ("s0", "video", "Sam3VideoModel", ""),
    ("s0", "video", "Sam3LiteTextModel", DETECTOR),
    ("s0", "video", "Sam3TrackerVideoModel", TRACKER),
    ("s0", "video", "Sam3TrackerModel", TRACKER),
    ("teacher", "video", "AutoModel", ""),
    ("teacher", "video", "Sam3Model", DETECTOR),
    ("teacher", "all", "Sam3Model", ""),
    ("teacher", "text", "CLIPTextModelWithProjection", ""),
    ("s0-3.1", "all", "Sam3LiteTextModel", ""),
]


@pytest.mark.parametrize(("kind", "component", "name", "prefix"), CLASSES)
def test_a_class_finds_every_tensor_and_holds_the_folders(kind, component, name, prefix, folders):
    model = load(name, folders(kind, component))
    assert_holds(model, folders(kind, component), prefix)
    if name in ("AutoModel", "Sam3VideoModel"):
        inside = {"s0": "Sam3LiteTextModel", "teacher": "Sam3Model"}[kind]
        assert (type(model).__name__, type(model.detector_model).__name__) == ("Sam3VideoModel", inside)


def test_the_vits_norms_have_the_originals_eps_and_the_tracker_the_models_image_size(folders):
    folder = folders("s0", "video")
    model, alone = load("Sam3VideoModel", folder), load("Sam3TrackerVideoModel", folder)
    for vision in (model.detector_model.vision_encoder, alone.vision_encoder):
        norms = [m.eps for m in vision.backbone.modules() if isinstance(m, torch.nn.LayerNorm)]
        assert len(norms) > 32 and set(norms) == {1e-5}
    assert (model.config.image_size, model.low_res_mask_size) == (112, 32)
    for tracker in (model.tracker_model, alone):
        assert tracker.image_size == tracker.prompt_encoder.input_image_size == 112
        assert tracker.prompt_encoder.image_embedding_size == (8, 8)
        assert list(map(list, tracker.backbone_feature_sizes)) == [[32, 32], [16, 16], [8, 8]]


def test_a_tracker_of_other_sizes_loads(root):
    state = {
        key: tensor
        for key, tensor in families.runnable().items()
        if not re.search(r"^tracker\.(transformer\.encoder\.layers\.[23]|maskmem_backbone\.fuser\.layers\.1)\.", key)
    }
    for key in [k for k in state if ".fuser.layers.0.dwconv.weight" in k]:
        state[key] = state[key][:, :, 1:-1, 1:-1].contiguous()  # a kernel of 5
    for key in [k for k in state if "maskmem_tpos_enc" in k]:
        state[key] = state[key][:5].contiguous()
    folder = convert(write(root, state, "other.pt"), root / "other", *VIDEO)
    model = load("Sam3VideoModel", folder)
    assert_holds(model, folder, "")
    tracker = model.tracker_model
    assert (len(tracker.memory_attention.layers), tracker.num_maskmem) == (2, 5)


@torch.no_grad()
def test_sam3s_text_encoder_pools_the_row_of_the_end_token(folders):
    model = load("CLIPTextModelWithProjection", folders("teacher", "text"))
    end = families.VOCAB - 1
    ids = torch.tensor([[end - 1, 3, 4, end] + [0] * 28, [end - 1, 9, end] + [0] * 29])
    out = model(input_ids=ids)
    projection = families.state_dict("teacher")["detector.backbone.language_backbone.encoder.text_projection"]
    wanted = out.last_hidden_state[torch.arange(2), torch.tensor([3, 2])] @ projection
    torch.testing.assert_close(out.text_embeds, wanted, rtol=1e-4, atol=1e-5)


def test_a_configuration_without_the_trackers_image_size_would_be_silently_another(folders, tmp_path):
    """What the field is written for: the library then takes 1008, and says nothing."""
    folder = tmp_path / "out"
    folder.mkdir()
    for file in folders("s0", "video").glob("*.*"):
        (folder / file.name).write_bytes(file.read_bytes())
    edit_config(folder, "tracker_config", "image_size")
    assert load("Sam3VideoModel", folder).tracker_model.image_size == 1008


# ---- files of the processor --------------------------------------------------------------------


def test_the_processor_files_are_those_of_the_video_processor(folders):
    folder = folders("s0", "video")
    said = json.loads((folder / "processor_config.json").read_text())
    assert (said["processor_class"], said["target_size"]) == ("Sam3VideoProcessor", 112)
    frames, image = said["video_processor"], said["image_processor"]
    assert (frames["video_processor_type"], image["image_processor_type"]) == (
        "Sam2VideoVideoProcessor",
        "Sam3ImageProcessor",
    )
    for part in (frames, image):
        assert (part["image_mean"], part["image_std"]) == ([0.5] * 3, [0.5] * 3)
        assert part["size"] == {"height": 112, "width": 112}


# ---- what convert says -------------------------------------------------------------------------


def test_convert_ends_with_the_three_classes_that_load_a_video_folder(folders, root):
    folders("s0", "video")
    done = sam3lite("convert", root / "s0.pt", "--output", root / "said", *VIDEO)
    lines = re.findall(r"^Loads with: transformers\.(\w+)\.from_pretrained", done.out, re.MULTILINE)
    assert lines == ["Sam3VideoModel", "Sam3LiteTextModel", "Sam3TrackerVideoModel"]
    again = sam3lite("convert", root / "s0.pt", "--output", root / "said", *VIDEO, "--json")
    assert again.json["state"] == "current" and len(again.json["loads_also"]) == 2


def test_a_dry_run_counts_what_is_mapped_dropped_and_filled(folders, root):
    folders("s0-3.1")
    done = sam3lite("convert", root / "s0-3.1.pt", "--layout", "transformers", "--dry-run")
    counted = "1,439 source tensors = 908 mapped + 531 dropped; 1,204 target tensors, 4 of them filled"
    assert done.code == 0 and counted in done.out
    assert "4 tensors are filled, not converted: vision_encoder.neck.fpn_layers.3.proj1.weight" in done.out


# ---- the card ----------------------------------------------------------------------------------


def card_of(folder):
    return (folder / "README.md").read_text()


TITLES = {
    ("s0", "video"): "SAM3-LiteText video model",
    ("s0", "text"): "SAM3-LiteText text encoder",
    ("teacher", "all"): "SAM3 detector",
    ("teacher", "video"): "SAM3 video model",
    ("teacher", "text"): "SAM3 text encoder",
    ("s0-3.1", "all"): "SAM3.1, with the text encoder of SAM3-LiteText",
    ("s0-3.1", "text"): "SAM3-LiteText text encoder, from SAM3.1",
    ("student", "text"): "SAM3-LiteText text encoder, from EfficientSAM3 with an image student (RepViT)",
}


@pytest.mark.parametrize(("kind", "component"), TITLES)
def test_the_title_says_what_the_source_is(kind, component, folders):
    card = card_of(folders(kind, component))
    assert f"\n# {TITLES[kind, component]}, " in card
    assert "layers may be missing" not in card
    assert ("SAM3's own: 353.72 M" in card) is (kind != "teacher")


def test_filled_tensors_are_counted_and_named(folders):
    card = card_of(folders("s0-3.1"))
    assert "| of these filled, not converted | 4 |" in card
    for layer in ("proj1", "proj2"):
        for part in ("weight", "bias"):
            assert f"vision_encoder.neck.fpn_layers.3.{layer}.{part}" in card
    assert "filled" not in card_of(folders("s0", "video"))


def test_how_each_is_used(folders):
    video, own, own_video = (
        " ".join(card_of(folders(*k)).split()) for k in (("s0", "video"), ("teacher", "all"), ("teacher", "video"))
    )
    for said in ("token of the single mask", "1.2 %", "0.17 %", "10 %", "4.5 %", "`kernels`", "bfloat16"):
        assert said in video and said in own_video and said not in own
    assert "table of 16 positions is stretched" in video
    for said in ("stretched", "49407", "masks padding"):
        assert said not in own and said not in own_video
    assert "presence logit" in own and "-10" in own
    assert "5.10.1" in own_video and "5.10.1" not in own and "5.10.1" not in video


def test_two_frames_run_as_the_card_of_a_video_folder_says(root, tmp_path, monkeypatch, capsys):
    from PIL import Image

    path = write(tmp_path, families.runnable(vocab=49408))
    folder = convert(path, tmp_path / "out", *VIDEO, "--tokenizer", root / "clip")
    monkeypatch.chdir(folder)
    Path("frames").mkdir()
    for name, colour in (("0", "olive"), ("1", "navy")):
        Image.new("RGB", (30, 20), colour).save(f"frames/{name}.jpg")
    (example,) = re.findall(r"```python\n(.*?)```", card_of(folder), re.DOTALL)
    assert len(example.splitlines()) <= 25
    # Random weights find anything at this threshold, and one object is as good as many.
    lower = "model.score_threshold_detection = model.new_det_thresh = 0.0; model.max_num_objects = 1\n"
    names: dict = {}
    exec(compile(example.replace("prompt = session", lower + "prompt = session"), "README.md", "exec"), names)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in rows] == [["0", "0"], ["1", "0"]]  # one object, carried to the second frame
    session, model = names["session"], names["model"]
    assert session.prompt_input_ids[0].tolist() == [[49406, 320, 1929, 49407] + [0] * 12]
    memories = session.output_dict_per_obj[0]
    kept = [*memories["cond_frame_outputs"].values(), *memories["non_cond_frame_outputs"].values()]
    assert len(kept) == 2  # the second frame was computed from the memory of the first
    for frame in kept:
        assert frame["object_pointer"].shape[-1] == 128 and frame["object_pointer"].isfinite().all()
        assert frame["maskmem_features"].shape[-1] == 64 and frame["maskmem_features"].isfinite().all()
    assert model.tracker_model.vision_encoder is None
