"""sam3lite record --component detector, and sam3lite judge of what a port of the whole detector computed."""

from __future__ import annotations

import importlib.util
import json
import math
import shlex
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.detector_goldens import activations, tiny_weights
from support.folders import convert, sam3lite

from original_ref import load_detector
from original_ref.detector import prepare
from sam3lite_convert.checkpoint.hashing import sha256_of
from sam3lite_convert.packed_detector import PackedModel
from sam3lite_convert.parity.detector.recording import reading
from sam3lite_convert.parity.detector.taps import STAGES, ordered

Side = dict[str, torch.Tensor]
BOX = ("--box", "20,30,60,50")
INPUTS = ("image", "input_ids", "boxes", "box_labels")
# A few taps, and what the recordings of the real code call them. The original is sequence first at some.
THEIRS = {
    "trunk.blocks.3": "backbone.vision_backbone.trunk.blocks.3",
    "neck.0": "backbone.vision_backbone.convs.0",
    "text.layers.1": "backbone.language_backbone.encoder.transformer.1",
    "geometry.box_pooled": "geometry_encoder.boxes_pool_project",
    "geometry.output": "geometry_encoder.encode_norm",
    "encoder.layers.1": "transformer.encoder.layers.1",
    "decoder.rpb_x.1": "transformer.decoder.boxRPB_embed_x@1",
    "decoder.queries.2": "transformer.decoder.layers.2.0",
    "masks.pixel_decoder": "segmentation_head.pixel_decoder",
    "outputs.pred_masks": "output.pred_masks",
    "outputs.pred_boxes_xyxy": "output.pred_boxes_xyxy",
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("port") / "tiny-detector.pt"
    torch.save({"model": tiny_weights()}, path)
    return path


def record(checkpoint: Path, output: Path, *options: object):
    done = sam3lite("record", checkpoint, "--component", "detector", "--output", output, "--json", *options)
    assert (done.code, done.err) == (0, ""), done
    return done.json


@pytest.fixture(scope="module")
def recorded(tiny):
    """The file with a box, and its document; read only."""
    path = tiny.parent / "r.safetensors"
    return path, record(tiny, path, *BOX)


def about(path: Path):
    with safe_open(path, "pt") as opened:
        return json.loads(opened.metadata()["sam3lite_reference"])


def test_the_file_holds_the_inputs_and_what_the_original_computes_from_them(tiny, recorded):
    path, document = recorded
    held = load_file(path)
    taps = [tap["name"] for tap in document["taps"]]
    inputs = {"input_ids", "image", "picture", "boxes", "box_labels"}
    assert held.keys() == inputs | {f"reference.{tap}" for tap in taps}
    assert held["picture"].dtype == torch.uint8 and torch.equal(prepare(held["picture"], 140), held["image"])
    model = load_detector(tiny_weights(), {"geometry": 4, "encoder": 4, "mask": 4}, None, 140)
    wanted = activations(model, {name: held[name] for name in inputs - {"picture"}})
    for ours, theirs in THEIRS.items():
        assert torch.equal(held[f"reference.{ours}"].flatten(), wanted[theirs].flatten()), ours
    assert {t["name"]: t["shape"] for t in document["taps"]} == {t: [*held[f"reference.{t}"].shape] for t in taps}
    assert document["inputs"]["boxes"] == held["boxes"][0].tolist()
    assert document["size"] == path.stat().st_size and document["checkpoint_sha256"] == sha256_of(tiny)
    said = about(path)
    assert said["component"] == "detector" and list(said["taps"]) == taps
    assert shlex.split(document["next"])[-3:] == [str(tiny), "--name", "my port"]


def test_the_compact_form_is_small_and_says_where_its_values_stand(tiny, recorded, tmp_path):
    document = record(tiny, tmp_path / "c.safetensors", "--compact", *BOX)
    small, whole, said = (
        load_file(tmp_path / "c.safetensors"),
        load_file(recorded[0]),
        about(tmp_path / "c.safetensors"),
    )
    assert {name for name in small if "." not in name} == {"input_ids", "picture", "boxes", "box_labels"}
    assert torch.equal(prepare(small["picture"], 140), whole["image"])
    assert document["compact"] and document["size"] < recorded[1]["size"] / 2
    assert "crc32" in said["positions"]
    for tap, figures in said["taps"].items():
        flat = whole[f"reference.{tap}"].numpy().reshape(-1)
        seed = zlib.crc32(f"{said['variant']}.{tap}".encode())
        where = np.random.Generator(np.random.PCG64(seed)).integers(0, flat.size, 4096)
        values = flat[where] if flat.size > 4096 else flat
        assert np.array_equal(small[f"sampled.{tap}"].numpy(), values), tap
        wide = flat.astype("f8")
        assert figures["l2"] == pytest.approx(float(np.linalg.norm(wide)), rel=1e-12)
        assert (figures["max_abs"], figures["shape"]) == (np.abs(wide).max(), [*whole[f"reference.{tap}"].shape])
        assert figures["mean"] == pytest.approx(wide.mean(), rel=1e-9, abs=1e-12)
        assert figures["std"] == pytest.approx(wide.std(), rel=1e-9)
    # At 1008 pixels, with the layers of the largest released detector, only the picture is larger.
    sizes = {"trunk": 32, "neck": 3, "text": 12, "geometry": 3, "encoder": 6, "decoder": 6}
    assert len(ordered(dict.fromkeys(STAGES, 0) | sizes)) * 4096 * 4 + 3 * 1008**2 + 200_000 < 20e6


def test_without_boxes_their_taps_are_not_there(tiny, tmp_path):
    document = record(tiny, tmp_path / "r.safetensors", "--size", 56, "--seed", 3)
    held = load_file(tmp_path / "r.safetensors")
    assert (
        not {name for name in held if "box" in name}
        - {f"reference.decoder.box_delta.{i}" for i in range(3)}
        - {"reference.outputs.pred_boxes_xyxy"}
    )
    assert document["inputs"]["boxes"] == [] and held["image"].shape == (1, 3, 56, 56)
    assert all(math.prod(tap["shape"]) for tap in document["taps"])
    own = {k.removeprefix("reference."): t for k, t in held.items() if k.startswith("reference.")}
    document = judge(saved(tmp_path, own, held), tiny)
    assert document["verdict"] == "exact" and document["not_given"] == [] and document["inputs"]["size"] == 56
    assert any("the original ran on 56 x 56 pixels" in note for note in document["notes"])
    more = {"geometry.box_direct": torch.zeros(1, 1, 32)}
    assert refused(saved(tmp_path, more, held), tiny)[0] == "no_activations"
    document = judge(saved(tmp_path, own | more, held), tiny)
    assert any("which has no box: geometry.box_direct" in note for note in document["notes"])


def test_the_text_says_what_each_tap_is_and_what_comes_next(tiny, tmp_path):
    done = sam3lite("record", tiny, "--component", "detector", "--output", tmp_path / "r.safetensors", *BOX)
    assert done.code == 0
    for words in ("seen as 140 x 140", "box        centre", "trunk.blocks.3", "what block 3 returns", "reference.TAP"):
        assert words in done.out
    assert f'sam3lite judge mine.safetensors {shlex.quote(str(tiny))} --name "my port"' in done.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--output", "r.npz"], "must end in .safetensors"),
        (["--fingerprint"], "--fingerprint is of the text encoder alone"),
        (["--batch", 2], "--batch is of the text encoder alone"),
        (["--causal"], "--causal is of the text encoder alone"),
        (["--size", 100], "multiple of 14"),
    ],
)
def test_what_does_not_go_together_is_refused(tiny, options, words):
    done = sam3lite("record", tiny, "--component", "detector", *options)
    assert done.code == 2 and words in done.err


def test_options_of_the_detector_need_it_and_other_files_are_kept(tiny, tmp_path):
    done = sam3lite("record", tiny, "--box", "1,2,3,4", "--output", tmp_path / "r.safetensors")
    assert done.code == 2 and "--box needs --component detector" in done.err
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"mine")
    done = sam3lite("record", tiny, "--component", "detector", "--output", path)
    assert done.code == 2 and "was not overwritten" in done.err and path.read_bytes() == b"mine"


# ---- judge


@pytest.fixture(scope="module")
def packed(tiny):
    """The packed detector, which is written apart from the reference: a port. For a test to change and restore."""
    folder = convert(tiny, tiny.parent / "packed", "--layout", "packed")
    with torch.inference_mode(False):
        return PackedModel.from_pretrained(folder)


def computed(model: PackedModel, held: Side, feed: Side | None = None) -> Side:
    """What the packed detector computes at every tap. ``feed``: what its modules read in place of what it gives."""
    layers = {"trunk": 4, "neck": 3, "text": 3, "geometry": 2, "encoder": 2, "decoder": 3}
    taps = ordered(dict.fromkeys(STAGES, 0) | layers)
    assert {name.removeprefix("reference.") for name in held if name.startswith("reference.")} == taps.keys()
    seen: Side = {}

    def read(tap: str, value: torch.Tensor) -> torch.Tensor | None:
        seen[tap] = value.clone()
        return None if feed is None else feed[f"reference.{tap}"].reshape(value.shape)

    with torch.inference_mode(), reading(model, taps, "converted", read):
        found = model(**{name: held[name] for name in INPUTS})
    return seen | {tap: getattr(found, tap.removeprefix("outputs.")) for tap in taps if tap.startswith("outputs.")}


@contextmanager
def eps(*norms: torch.nn.LayerNorm) -> Iterator[None]:
    """Norms with another eps, as ports have by mistake."""
    before = [norm.eps for norm in norms]
    for norm in norms:
        norm.eps = 1e-2
    try:
        yield
    finally:
        for norm, value in zip(norms, before, strict=True):
            norm.eps = value


@pytest.fixture(scope="module")
def held(recorded):
    return load_file(recorded[0])


@pytest.fixture(scope="module")
def right(packed, held):
    return computed(packed, held)


@pytest.fixture(scope="module")
def wrong(packed, held):
    """A fault in block 2 of the trunk and one in layer 1 of the text encoder: propagated and isolated."""
    with eps(packed.vision_encoder.backbone.layers[2].layer_norm1, packed.text_encoder.layers[1].layer_norm2):
        return computed(packed, held), computed(packed, held, held)


def saved(folder: Path, taps: Side, inputs: Side, name: str = "mine.safetensors") -> Path:
    given = {k: t for k, t in inputs.items() if k in INPUTS}
    save_file({k: t.clone().contiguous() for k, t in (given | taps).items()}, folder / name)
    return folder / name


def judge(file: Path, checkpoint: Path, *options: object, code: int = 0) -> Any:
    done = sam3lite("judge", file, checkpoint, "--json", *options)
    assert done.code == code, done
    return done.json


def refused(file: Path, checkpoint: Path, *options: object) -> tuple[str, str]:
    """Code and message of a refusal."""
    error = judge(file, checkpoint, *options, code=2)["error"]
    return error["code"], error["message"]


def test_the_originals_own_activations_are_exact(tiny, held, tmp_path):
    own = {k.removeprefix("reference."): t for k, t in held.items() if k.startswith("reference.")}
    document = judge(saved(tmp_path, own, held), tiny, "--name", "my port")
    assert (document["verdict"], document["candidate"], document["not_given"]) == ("exact", "my port", [])
    done = sam3lite("parity", tiny, "--judge", tmp_path / "mine.safetensors")
    assert done.code == 0 and "verdict: exact" in done.out and "vision trunk" in done.out
    assert [t["name"] for s in document["stages"] for t in [{"name": n} for n in s["taps"]]] == list(own)
    assert all(s["seconds_candidate"] is None for s in document["stages"])
    port = document["port"]
    assert (port["format"], port["dtypes"], port["isolated"]) == ("safetensors", {"float32": len(own)}, 0)
    assert port["checkpoint_sha256"] == sha256_of(tiny)


def test_a_right_port_is_within_its_noise_whatever_it_gives(tiny, right, held, tmp_path):
    document = judge(saved(tmp_path, right, held), tiny)
    assert document["verdict"] in ("exact", "within_tolerance") and document["first_divergence"] is None
    results = {tap: value for tap, value in right.items() if tap.startswith("outputs.")}
    alone = judge(saved(tmp_path, results, held), tiny)
    assert alone["verdict"] in ("exact", "within_tolerance") and len(alone["not_given"]) == len(right) - len(results)
    assert "trunk.patch_embed" in alone["not_given"] and "; not compared: " in alone["summary"]
    # The rounding of all that lies before a result is in its floor, though none of it was given.
    model = load_detector(tiny_weights(), {"geometry": 4, "encoder": 4, "mask": 4}, None, 140).double()
    wide = {k: held[k].double() if held[k].is_floating_point() else held[k] for k in INPUTS}
    with torch.inference_mode():
        exact = model(**wide)["pred_masks"]
    rounding = float((exact - held["reference.outputs.pred_masks"].double()).abs().max())
    floor = next(t["floor"]["propagated"] for t in alone["layers"] if t["name"] == "outputs.pred_masks")
    assert floor == pytest.approx(rounding, rel=1e-3) and rounding > 0


def test_a_fault_is_found_at_its_tap_and_text_explains_nothing_of_the_picture(tiny, held, wrong, tmp_path):
    carried, alone = wrong
    document = judge(saved(tmp_path, carried, held), tiny, code=1)
    assert document["verdict"] == "differs" and document["first_divergence"] == "trunk.blocks.2"
    assert document["also_diverging"] == ["text.layers.1"]
    status = {t["name"]: t["status"] for t in document["layers"]}
    assert status["encoder.layers.0"] == status["geometry.box_pooled"] == "unknown"
    assert {status["geometry.box_direct"], status["text.layers.0"]} <= {"equal", "within"}
    sources = {t["source"] for t in document["diagnosis"]["tensors"]}
    assert sources and all("trunk.blocks.2." in source for source in sources)
    isolated = {f"isolated.{tap}": value for tap, value in alone.items() if not tap.startswith("outputs.")}
    document = judge(saved(tmp_path, carried | isolated, held), tiny, code=1)
    assert (document["first_divergence"], document["also_diverging"]) == ("trunk.blocks.2", ["text.layers.1"])
    assert {t["name"]: t["status"] for t in document["layers"]}["encoder.layers.0"] == "carried"
    assert {t["judged_by"] for t in document["layers"] if not t["name"].startswith("outputs.")} == {"isolated"}


@pytest.mark.parametrize(
    ("first", "alone"),
    [
        ("text.layers.1", False),
        ("trunk.blocks.2", True),
        pytest.param("text.layers.1", True, marks=pytest.mark.stress),
        pytest.param("trunk.blocks.2", False, marks=pytest.mark.stress),
    ],
)
def test_the_cause_is_named_with_and_without_isolated_activations(first, alone, tiny, packed, held, tmp_path):
    layer = packed.text_encoder.layers[1] if first.startswith("text") else packed.vision_encoder.backbone.layers[2]
    (gelu,) = (m for m in layer.modules() if isinstance(m, torch.nn.GELU))
    gelu.approximate = "tanh"
    try:
        taps = computed(packed, held)
        if alone:
            taps |= {f"isolated.{tap}": value for tap, value in computed(packed, held, held).items()}
    finally:
        gelu.approximate = "none"
    document = judge(saved(tmp_path, taps, held), tiny, code=1)
    assert document["first_divergence"] == first
    judged = next(t["judged_by"] for t in document["layers"] if t["name"] == first)
    assert judged == ("isolated" if alone else "propagated")
    assert document["diagnosis"]["fits"][0]["key"].endswith("gelu_tanh") and "tanh" in document["diagnosis"]["cause"]


def test_where_taps_between_are_missing_the_fault_is_only_narrowed_down(tiny, held, wrong, tmp_path):
    some = {tap: wrong[0][tap] for tap in ("trunk.blocks.0", "neck.2", "encoder.layers.0")}
    document = judge(saved(tmp_path, some, held), tiny, code=1)
    assert document["first_divergence"] == "neck.2" and document["place"] == "between trunk.blocks.0 and neck.2"
    assert document["unseen"] == [f"trunk.blocks.{i}" for i in (1, 2, 3)] and document["also_diverging"] == []
    assert document["diagnosis"]["cause"].startswith(
        "not found: the fault was made in trunk.blocks.1, trunk.blocks.2, trunk.b"
    )
    assert document["diagnosis"]["tensors"] == []
    done = sam3lite("judge", saved(tmp_path, {"outputs.pred_masks": wrong[0]["outputs.pred_masks"]}, held), tiny)
    assert done.code == 1 and "at or before outputs.pred_masks" in done.out


@pytest.mark.parametrize(
    ("taps", "verdict"),
    [
        (lambda tap: tap.startswith("outputs."), "exact"),
        (lambda tap: tap == "outputs.pred_masks", "within_tolerance"),
        (lambda tap: not tap.startswith("outputs."), "within_tolerance"),
    ],
)
def test_exact_is_said_only_where_all_results_were_given(taps, verdict, tiny, held, tmp_path):
    own = {k.removeprefix("reference."): t for k, t in held.items() if k.startswith("reference.")}
    some = {tap: value for tap, value in own.items() if taps(tap)}
    document = judge(saved(tmp_path, some, held), tiny)
    assert document["verdict"] == verdict
    assert f"{len(some)} of {len(own)} taps" in document["summary"] and "; not compared: " in document["summary"]


def test_names_shapes_and_formats_of_other_frameworks(tiny, held, tmp_path):
    own = {k.removeprefix("reference."): t for k, t in held.items() if k.startswith("reference.")}
    taps = {
        "candidate/trunk-blocks-1": own["trunk.blocks.1"].flatten(1, 2),
        "neck_0": own["neck.0"].permute(0, 2, 3, 1),
        "layers.0": own["text.layers.0"],
        "projected": own["text.projected"].transpose(0, 1),
        "geometry/output": own["geometry.output"].transpose(0, 1),
        "decoder.box_delta.1": own["decoder.box_delta.1"][0].double(),
        "pooled": torch.zeros(1, 3),
    }
    read = ["trunk.blocks.1", "neck.0", "text.layers.0", "text.projected", "geometry.output", "decoder.box_delta.1"]
    inputs = {k: held[k].numpy() for k in ("input_ids", "picture", "boxes", "box_labels")}
    np.savez(tmp_path / "mine.npz", **inputs, **{k: v.numpy() for k, v in taps.items()})
    document = judge(tmp_path / "mine.npz", tiny)
    assert [t["name"] for t in document["layers"]] == read and document["max_abs_diff"] == 0
    assert not any("--size" in note or "pixels" in note for note in document["notes"])  # it is the detector's own
    assert any("not taps, and so not read: pooled" in note for note in document["notes"])
    assert any("neck.0: read as (batch, rows, columns, channels)" in note for note in document["notes"])
    (tmp_path / "folder").mkdir()
    for name, value in (inputs | {"encoder_layers_0": own["encoder.layers.0"].numpy()}).items():
        np.save(tmp_path / "folder" / f"{name}.npy", value)
    document = judge(tmp_path / "folder", tiny)
    assert document["port"]["format"] == "a folder of .npy files" and document["max_abs_diff"] == 0


def test_the_inputs_may_stand_in_the_file_that_record_wrote(tiny, recorded, held, right, tmp_path):
    file = saved(tmp_path, right, {})
    assert refused(file, tiny)[0] == "no_inputs"
    assert judge(file, tiny, "--ids", recorded[0])["verdict"] in ("exact", "within_tolerance")
    record(tiny, tmp_path / "c.safetensors", "--compact", *BOX)
    document = judge(file, tiny, "--ids", tmp_path / "c.safetensors")
    assert document["verdict"] in ("exact", "within_tolerance")
    assert document["port"]["ids"] == f"the inputs of {tmp_path / 'c.safetensors'}"
    other = saved(tmp_path, right, held | {"input_ids": held["input_ids"] + 1}, "other.safetensors")
    assert refused(other, tiny, "--ids", recorded[0])[0] == "bad_ids"


def test_what_cannot_be_judged_is_refused(tiny, recorded, held, right, tmp_path):
    one = {"encoder.layers.0": right["encoder.layers.0"]}
    small = {"image": held["image"][..., :56, :56]}
    for taps, inputs, code in (
        (one, held | small, "other_shape"),  # taps of another size than the picture
        (one, held | {"image": held["image"][..., :60, :60]}, "other_shape"),
        (one, {"image": held["image"]}, "no_inputs"),
        (one, held | {"input_ids": held["input_ids"].repeat(2, 1)}, "bad_ids"),
        (one, held | {"boxes": held["boxes"][..., :3]}, "bad_boxes"),
        (one, held | {"box_labels": held["box_labels"] + 1}, "bad_boxes"),
        ({"trunk.blocks.9": right["trunk.blocks.3"]}, held, "unknown_tap"),
        ({"trunk.blocks.3": right["trunk.blocks.3"].long()}, held, "other_shape"),
    ):
        assert refused(saved(tmp_path, taps, inputs), tiny)[0] == code, code
    assert refused(recorded[0], tiny)[0] == "no_activations"
    record(tiny, tmp_path / "c.safetensors", "--compact", *BOX)
    assert refused(tmp_path / "c.safetensors", tiny)[0] == "no_activations"
    done = sam3lite("judge", saved(tmp_path, one, held))
    assert done.code == 2 and "give the checkpoint too" in done.err
    done = sam3lite("judge", saved(tmp_path, one, held), tiny, "--causal")
    assert done.code == 2 and "--causal is of the text encoder alone" in done.err


def test_nan_is_named_and_never_within_a_tolerance(tiny, held, right, tmp_path):
    taps = {tap: right[tap].clone() for tap in ("neck.1", "encoder.layers.1")}
    taps["encoder.layers.1"][0, 3, :2] = math.nan
    for options in ((), ("--tolerance", 1000)):
        document = judge(saved(tmp_path, taps, held), tiny, *options, code=1)
        assert document["first_divergence"] == "encoder.layers.1"
        count = taps["encoder.layers.1"].numel()
        assert (
            document["diagnosis"]["cause"] == f"encoder.layers.1 holds 2 values that are NaN or infinite, of {count:,}"
        )


def test_half_precision_is_said(tiny, held, right, tmp_path):
    half = {tap: value.half() for tap, value in right.items() if tap.startswith("trunk.")}
    document = judge(saved(tmp_path, half, held), tiny, "--tolerance", 0.05)
    assert document["verdict"] == "within_tolerance" and document["port"]["dtypes"] == {"float16": len(half)}
    assert any("the port's values are float16" in note for note in document["notes"])


def test_the_text_and_the_page(tiny, held, wrong, tmp_path):
    file = saved(tmp_path, wrong[0], held)
    done = sam3lite("judge", file, tiny, "--name", "my port", "--report", tmp_path / "page.html")
    assert done.code == 1
    for words in (
        "vision trunk",
        "DIVERGES",
        "first divergence: trunk.blocks.2",
        "Next: ",
    ):
        assert words in done.out
    assert len(done.out.splitlines()) <= 24 and "trunk.blocks.1" not in done.out
    every = sam3lite("judge", file, tiny, "--verbose").out
    assert "trunk.blocks.1 " in every and "the checkpoint's tensors that trunk.blocks.2 is computed from" in every
    assert "[bold" not in done.out and "cand. s" not in done.out
    page = (tmp_path / "page.html").read_text()
    assert "my port, which ran elsewhere" in page and "data:image/png;base64," in page and "trunk.blocks.2" in page


def test_what_the_script_records_is_judged(tiny, packed, held, tmp_path):
    assert sam3lite("record", "--script", tmp_path / "script_of_record.py").code == 0
    spec = importlib.util.spec_from_file_location("script_of_record", tmp_path / "script_of_record.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.record(packed, lambda: packed(**{name: held[name] for name in INPUTS}), tmp_path / "mine.safetensors")
    document = judge(tmp_path / "mine.safetensors", tiny)
    assert document["verdict"] == "within_tolerance" and len(document["layers"]) > 60
    assert set(document["not_given"]) == {t for t in document["not_given"] if t.startswith("outputs.")}
    # The same file is a text encoder's too.
    document = judge(tmp_path / "mine.safetensors", tiny, "--component", "text")
    assert document["verdict"] == "exact" and {"layers.0", "projected"} <= {t["name"] for t in document["layers"]}


def test_what_the_script_records_of_a_run_of_the_text_encoder_is_judged_as_that(tiny, packed, held, tmp_path, capfd):
    assert sam3lite("record", "--script", tmp_path / "script_of_text.py").code == 0
    spec = importlib.util.spec_from_file_location("script_of_text", tmp_path / "script_of_text.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    path, ids = tmp_path / "mine.safetensors", held["input_ids"]
    script.record(packed, lambda: packed.text_projection(packed.text_encoder(ids)[0]), path)
    proposed = shlex.split(capfd.readouterr().err.rpartition("next: sam3lite ")[2])
    document = sam3lite(*(tiny if word == "CHECKPOINT" else word for word in proposed), "--json").json
    assert document["verdict"] == "exact" and document["reference"] == "original TextStudentEncoder"
    assert not any("not taps" in note for note in document["notes"])
    message = refused(path, tiny, "--component", "detector")[1]
    assert "holds no image" in message and "--component text" in message
    # Without their plain names they are those of a whole detector, whose picture is missing.
    taps = {"text.layers.0": load_file(path)["text.layers.0"]}
    assert refused(saved(tmp_path, taps, {"input_ids": ids}), tiny)[0] == "no_inputs"


def test_two_names_of_one_tap_are_refused(tiny, held, right, tmp_path):
    both = {"neck.0": right["neck.0"], "neck_0": right["neck.0"]}
    assert judge(saved(tmp_path, both, held), tiny, code=4)["error"]["code"] == "corrupt_file"


def test_a_padded_box_is_left_out(tiny, packed, held, tmp_path):
    """As transformers' detector is called without boxes, so that it computes the class token."""
    padded = {"boxes": torch.full((1, 1, 4), 0.5), "box_labels": torch.zeros(1, 1, dtype=torch.int64)}
    mask = torch.ones(1, 1, dtype=torch.bool)
    seen: Side = {}

    def read(module: torch.nn.Module, args: object, output: torch.Tensor) -> None:
        seen["geometry.output"] = output.clone()

    handle = packed.geometry_encoder.output_layer_norm.register_forward_hook(read)
    with torch.inference_mode():
        found = packed(image=held["image"], input_ids=held["input_ids"], box_mask=mask, **padded)
    handle.remove()
    seen |= {"outputs.pred_masks": found.pred_masks, "geometry.box_direct": torch.zeros(1, 1, 32)}
    document = judge(saved(tmp_path, seen | {"box_mask": mask.long()}, held | padded), tiny)
    assert document["verdict"] == "within_tolerance" and document["inputs"]["boxes"] == []
    assert [t["name"] for t in document["layers"]] == ["geometry.output", "outputs.pred_masks"]
    assert any("has no box: geometry.box_direct" in note for note in document["notes"])
    assert judge(saved(tmp_path, seen, held | padded), tiny, code=1)["verdict"] == "differs"
