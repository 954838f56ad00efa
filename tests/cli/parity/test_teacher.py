"""sam3lite parity of SAM3 itself: its CLIP text encoder beside the one of transformers."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.clip_runs import LAYERS, PREFIX, reference, state_of, write_text
from support.folders import convert, edit, edit_config, sam3lite, tensors
from support.original_checkout import STAND_IN
from support.parity_runs import assert_exact, errors, parity, rewrite, taps
from support.rows import TEXT, shipped_tables

from sam3lite_convert.checkpoint.reader import read_checkpoint
from sam3lite_convert.parity.setup import ParityOptions, set_up

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def folder(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text encoder, converted; read only."""
    place = tmp_path_factory.mktemp("converted") / "out"
    return convert(teacher, place, "--layout", "transformers", "--component", "text")


def test_transformers_is_the_default_candidate_and_exact(teacher: Path) -> None:
    record = parity(teacher, "--seed", 1, "--batch", 3)
    assert_exact(record, "transformers")
    assert [t["name"] for t in record["layers"]] == taps(LAYERS)
    assert record["reference"] == "original CLIP text encoder of SAM3"
    assert record["candidate_encoder"].startswith("CLIPTextModelWithProjection (transformers ")
    shapes = {t["name"]: t["shape"] for t in record["layers"]}
    assert (shapes["embeddings"], shapes["projected"], shapes["pooled"]) == ([3, 32, 128], [3, 32, 32], [3, 64])


@pytest.mark.parametrize("options", [[], ["--attention", "sdpa"], ["--dtype", "bfloat16"], ["--context", 20]])
def test_a_converted_folder_is_right_in_every_way_that_it_runs(
    options: list[object], folder: Path, teacher: Path
) -> None:
    record = parity(teacher, "--converted", folder, *options)
    assert record["verdict"] in ("exact", "within_tolerance")
    assert record["first_divergence"] is None


def test_the_reference_is_the_original_computed_by_itself(teacher: Path, tmp_path: Path) -> None:
    parity(teacher, "--seed", 1, "--batch", 2, "--save-activations", tmp_path / "a.st")
    saved = load_file(tmp_path / "a.st")
    model, ids = reference(), saved["input_ids"]
    with torch.no_grad():
        tokens = model.encoder(ids)
        assert torch.equal(saved["reference.final_layer_norm"], tokens)
        assert torch.equal(saved["reference.projected"], model.resizer(tokens))
    swapped = rewrite(tmp_path / "a.st", tmp_path / "b.st", candidate__projected=saved["candidate.projected"] + 1)
    done = sam3lite("parity", "--judge", swapped, "--json")
    assert (done.code, done.json["first_divergence"]) == (1, "projected")


def test_packed_is_refused_with_what_there_is(teacher: Path) -> None:
    said = errors(sam3lite("parity", "--checkpoint", teacher, "--candidate", "packed"), 2)
    assert "is a SAM3 checkpoint, of which there is no layout packed. Use --candidate transformers" in said


def test_without_transformers_no_candidate_is_offered_that_there_is_not(
    teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    said = errors(sam3lite("parity", "--checkpoint", teacher), 2)
    assert "the transformers candidate needs transformers" in said and "--candidate packed" not in said


@pytest.mark.parametrize("command", ["parity", "record"])
def test_a_context_longer_than_the_table_is_refused(command: str, teacher: Path) -> None:
    said = errors(sam3lite(command, "--checkpoint", teacher, "--context", 40), 2)
    assert "--context 40: must be from 1 to 32" in said


def test_a_clone_of_the_students_code_is_refused(teacher: Path) -> None:
    done = sam3lite("parity", "--checkpoint", teacher, "--original-repo", STAND_IN / "sam3")
    assert (done.code, done.out) == (2, "")
    assert "runs the TextStudentEncoder of a clone; the text encoder of this checkpoint is SAM3's own" in done.err


def test_a_wrong_folder_is_found_in_its_layer_named_and_led_back_to_the_source(
    folder: Path, teacher: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    q, k = (f"text_model.encoder.layers.2.self_attn.{name}_proj." for name in "qk")
    held = tensors(copy)
    edit(copy, {a + leaf: held[b + leaf] for a, b in ((q, k), (k, q)) for leaf in ("weight", "bias")})
    record = parity(teacher, "--converted", copy, code=1)
    assert (record["verdict"], record["first_divergence"]) == ("differs", "layers.2")
    diagnosis = record["diagnosis"]
    assert diagnosis["cause"] == "q and k are swapped"
    suspects = {t["target"]: t for t in diagnosis["tensors"]}
    suspect = suspects[f"{PREFIX}encoder.layers.2.self_attn.q_proj.weight"]
    assert suspect["source"] == f"{TEXT}encoder.transformer.resblocks.2.attn.in_proj_weight"
    assert suspect["fault"]


def test_a_config_of_clips_own_activation_is_found(folder: Path, teacher: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    edit_config(copy, "hidden_act", value="quick_gelu")
    record = parity(teacher, "--converted", copy, code=1)
    assert record["first_divergence"] == "layers.0"
    assert record["diagnosis"]["fits"][0]["key"] == "quick_gelu"


# ---- a port, judged elsewhere


def recorded(teacher: Path, place: Path) -> dict[str, torch.Tensor]:
    done = sam3lite("record", "--checkpoint", teacher, "--output", place, "--json")
    assert done.code == 0, done
    assert done.json["reference"] == "original CLIP text encoder of SAM3"
    return {k.removeprefix("reference."): t for k, t in load_file(place).items()}


def test_a_port_is_judged_by_what_was_recorded(teacher: Path, tmp_path: Path) -> None:
    held = recorded(teacher, tmp_path / "r.safetensors")
    compact = sam3lite("record", "--checkpoint", teacher, "--output", tmp_path / "c.json", "--compact", "--json")
    about = compact.json
    assert [tap["name"] for tap in about["taps"]] == taps(LAYERS)
    save_file(held, tmp_path / "mine.safetensors")
    done = sam3lite("judge", tmp_path / "mine.safetensors", "--checkpoint", teacher, "--json")
    assert (done.code, done.json["verdict"]) == (0, "exact")
    model = reference()
    model.encoder.transformer.resblocks[1].register_forward_pre_hook(lambda module, args: (args[0], None))
    with torch.no_grad():
        held["layers.1"] = model.encoder.transformer.resblocks[1](held["layers.0"], None)
    save_file(held, tmp_path / "mine.safetensors")
    done = sam3lite("judge", tmp_path / "mine.safetensors", "--checkpoint", teacher, "--json")
    assert (done.code, done.json["first_divergence"]) == (1, "layers.1")
    assert done.json["diagnosis"]["cause"] == "there is no causal mask; the original has one"


def test_a_fingerprint_judges_a_port_without_the_checkpoint(folder: Path, teacher: Path, tmp_path: Path) -> None:
    stated = json.loads((folder / "fingerprint.json").read_text())
    ids = torch.tensor(stated["ids"])
    model = reference()
    with torch.no_grad():
        tokens = model.encoder(ids)
        mine = {"input_ids": ids, "final_layer_norm": tokens, "projected": model.resizer(tokens)}
    save_file(mine, tmp_path / "mine.safetensors")
    done = sam3lite("judge", tmp_path / "mine.safetensors", "--fingerprint", folder / "fingerprint.json", "--json")
    assert (done.code, done.json["verdict"]) == (0, "agrees")
    save_file(mine | {"projected": mine["projected"] * 1.001}, tmp_path / "mine.safetensors")
    done = sam3lite("judge", tmp_path / "mine.safetensors", "--fingerprint", folder / "fingerprint.json", "--json")
    assert (done.code, done.json["first_off"]) == (1, "projected")
    assert state_of().keys() == {TEXT + key for key in model.state_dict()}


@pytest.mark.parametrize("kind", ["original", "transformers"])
def test_the_recording_script_finds_the_modules_of_either_model(kind: str, teacher: Path, tmp_path: Path) -> None:
    script = tmp_path / "teacher_hooks.py"
    assert sam3lite("record", "--script", script).code == 0
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec and spec.loader
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    setup = set_up(read_checkpoint(teacher), shipped_tables(), ParityOptions(seed=1))
    side = setup.reference if kind == "original" else setup.candidate()
    outer = torch.nn.ModuleDict({"inside": side.model})
    hooks.record(outer, lambda: side.run(setup.inputs.ids), tmp_path / "mine.safetensors")
    done = sam3lite("judge", tmp_path / "mine.safetensors", "--checkpoint", teacher, "--json")
    assert done.code == 0, done
    assert done.json["verdict"] in ("exact", "within_tolerance")
    last = [] if kind == "original" else ["pooled"]  # a parameter there, which no hook reads
    assert [tap["name"] for tap in done.json["layers"]] == [*taps(LAYERS)[:-1], *last]
