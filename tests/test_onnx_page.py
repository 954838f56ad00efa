"""docs/onnx.md: its commands run, and its Python and JavaScript make the original's ids and call the graphs."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from support import clip_runs
from support.folders import ROOT, sam3lite, tiny_architecture
from support.hub_files import clip_files
from support.rows import DATA

from sam3lite_convert import PackedModel, PackedTextModel
from sam3lite_convert.convert.processor_files import TokenizerFiles, tokenizer_json
from sam3lite_convert.packed_detector import prepare_image
from sam3lite_convert.plan import synthetic

pytest.importorskip("ftfy")
pytest.importorskip("tokenizers")
PAGE = (ROOT / "docs" / "onnx.md").read_text(encoding="utf-8")
CASES = json.loads((DATA / "goldens" / "tokens.json").read_text(encoding="utf-8"))["cases"]
PACKAGES = "SAM3LITE_NODE_MODULES"


def code(language: str, what: str) -> str:
    (found,) = re.findall(rf"^<!-- {language} {what} -->\n```{language}\n(.*?)^```$", PAGE, re.S | re.M)
    return found


def commands(marker: str) -> list[list[str]]:
    (block,) = re.findall(rf"^<!-- {marker} -->\n```\n(.*?)^```$", PAGE, re.S | re.M)
    lines = [shlex.split(line) for line in block.splitlines() if not line.startswith("pip ")]
    assert lines and all(line[0] == "sam3lite" for line in lines)
    return [line[1:] for line in lines]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder in which the page's commands were run, with CLIP's vocabulary at hand."""
    place = tmp_path_factory.mktemp("page")
    (place / "clip").mkdir()
    for name, data in clip_files().items():
        (place / "clip" / name).write_bytes(data)
    sizes = tiny_architecture(vocab=49408, text_hidden=64, text_heads=1, projection_dim=64)
    torch.save({"model": synthetic.state_dict(sizes)}, place / "s0.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        (first,) = commands("first commands")
        for command in ([*first, "--tokenizer", "clip"], ["convert", "s0.pt"], *commands("commands")):
            done = sam3lite(*command)
            assert done.code == 0, done
    return place


@pytest.fixture
def here(place, monkeypatch) -> Path:
    monkeypatch.chdir(place)
    return place


def test_a_folder_of_graphs_holds_the_tokenizer_that_it_was_given(here):
    text, whole = (here / "converted" / name for name in ("s0-packed-text", "s0-packed"))
    receipt = json.loads((text / "conversion.json").read_text())
    assert receipt["tokenizer"]["source"] == "clip" and "tokenizer.json" in receipt["beside"]
    assert not (text / "vocab.json").exists() and not (text / "tokenizer_config.json").exists()
    # To one that was exported without, it is added by the command that export names.
    said = sam3lite("export", "onnx", whole).out
    (note,) = re.findall(r"^note: .* holds no tokenizer\.json, .*: sam3lite (.*)$", said, re.M)
    before = (whole / "model.onnx").read_bytes(), (whole / "model.safetensors").read_bytes()
    command = shlex.split(note.replace("CHECKPOINT", "s0.pt").replace("DIR_OR_REPO", "clip"))
    assert sam3lite(*command).code == 0
    assert (whole / "tokenizer.json").read_bytes() == (text / "tokenizer.json").read_bytes()
    assert before == ((whole / "model.onnx").read_bytes(), (whole / "model.safetensors").read_bytes())


def test_another_vocabulary_beside_a_graph_is_found(here, tmp_path):
    folder = shutil.copytree(here / "converted" / "s0-packed-text", tmp_path / "folder")
    file = folder / "tokenizer.json"
    file.write_text(
        file.read_text().replace('"dog</w>": 1929', '"dog</w>": 320').replace('"a</w>": 320', '"a</w>": 1929')
    )
    done = sam3lite("verify", folder, "s0.pt", "--json")
    assert [(f["code"], f["keys"]) for f in done.json["findings"]] == [("V-TOKENIZER", ["tokenizer.json"])]


def test_the_python_makes_the_ids_of_the_original_tokenizer(here):
    names: dict[str, object] = {}
    exec(compile(code("python", "ids"), "docs/onnx.md", "exec"), names)
    from tokenizers import Tokenizer

    tokenizer, make_ids = Tokenizer.from_file("converted/s0-packed-text/tokenizer.json"), names["make_ids"]
    for case in CASES:
        for prompt, ids in zip(case["prompts"], case["input_ids"], strict=True):
            assert make_ids(tokenizer, prompt, case["context_length"]) == ids, prompt


@pytest.mark.stress
def test_with_a_folder_of_sam3_itself_it_gives_what_the_original_computes_of_the_prompts(here, tmp_path):
    checkpoint, folder = clip_runs.write_text(tmp_path, 49408), tmp_path / "sam3"
    options = ("--layout", "transformers", "--component", "text", "--tokenizer", "clip", "--onnx")
    assert sam3lite("convert", checkpoint, "--output", folder, *options).code == 0
    (case,) = (case for case in CASES if case["context_length"] == clip_runs.ROWS)
    program = code("python", "text").replace('"converted/s0-packed-text"', repr(str(folder)))
    names: dict[str, object] = {}
    exec(compile(code("python", "ids"), "docs/onnx.md", "exec"), names)
    given = f"prompts = {case['prompts']!r}"
    program = re.sub(r"^prompts = .*$", lambda match: given, program, flags=re.M)
    exec(compile(program, "docs/onnx.md", "exec"), names)
    assert names["ids"].tolist() == case["input_ids"]
    wanted = clip_runs.reference(49408).features(torch.tensor(case["input_ids"]))
    torch.testing.assert_close(torch.from_numpy(names["text_features"]), wanted, atol=1e-5, rtol=0)


def test_the_padding_token_of_an_earlier_user_is_no_token_of_a_prompt(here):
    from tokenizers import Tokenizer

    whole = json.loads(Path("converted/s0-packed-text/tokenizer.json").read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    whole["added_tokens"] = [{"id": 0, "content": "!", **flags}, *whole["added_tokens"]]
    assert Tokenizer.from_str(json.dumps(whole)).encode("a!").ids == [49406, 320, 0, 49407]
    mended = tokenizer_json(TokenizerFiles("saved", None, {"tokenizer.json": json.dumps(whole).encode()}))
    assert Tokenizer.from_str(mended.decode()).encode("a!").ids == [49406, 320, 256, 49407]


def test_the_python_calls_the_graphs(here):
    image = pytest.importorskip("PIL.Image")
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    image.fromarray(noise).save("street.jpg")
    names: dict[str, object] = {}
    for what in ("ids", "text", "detector"):
        exec(compile(code("python", what), "docs/onnx.md", "exec"), names)
        if what == "text":
            packed = PackedTextModel.from_pretrained("converted/s0-packed-text")
            wanted = packed(torch.from_numpy(names["ids"])).projected
            torch.testing.assert_close(torch.from_numpy(names["text_features"]), wanted, atol=1e-5, rtol=0)
    model = PackedModel.from_pretrained("converted/s0-packed")
    pixels = prepare_image(image.open("street.jpg"), model.image_size)
    # Pillow resizes like the original, up to the last of its 256 steps.
    assert np.abs(names["image"] - pixels.numpy()).max() < 2.1 / 127.5
    with torch.inference_mode():
        out = model(torch.from_numpy(names["image"]), torch.from_numpy(names["ids"]))
    for mine, theirs in ((names["boxes"], out.pred_boxes_xyxy), (names["masks"], out.pred_masks)):
        torch.testing.assert_close(torch.from_numpy(mine), theirs, atol=1e-4, rtol=1e-4)
    found = model.segment(image.open("street.jpg"), torch.from_numpy(names["ids"][0]), threshold=0)
    torch.testing.assert_close(torch.from_numpy(names["scores"][0]), found.scores, atol=5e-3, rtol=0)
    before = names["masks"]
    exec(compile(code("python", "less memory"), "docs/onnx.md", "exec"), names)
    for _ in range(2):
        maps = dict(zip(names["levels"], names["vision"].run(names["levels"], {"image": names["image"]}), strict=True))
        (masks,) = names["decode"].run(["pred_masks"], {**maps, **names["words"], **names["no_boxes"]})
        np.testing.assert_array_equal(masks, before)
    exec(compile(code("python", "boxes"), "docs/onnx.md", "exec"), names)
    around = torch.tensor([[[28 / 64, 20 / 48, 32 / 64, 24 / 48]]])  # 12, 8 to 44, 32 in a picture of 64 x 48
    torch.testing.assert_close(torch.from_numpy(names["given"]["boxes"][:1]), around)  # few weights read it
    with torch.inference_mode():
        pixels, ids = torch.from_numpy(names["image"]), torch.from_numpy(names["ids"])
        for prompt, box in enumerate((around, None)):
            alone = model(pixels, ids[prompt : prompt + 1], box)
            for mine, theirs in ((names["boxes"], alone.pred_boxes_xyxy), (names["masks"], alone.pred_masks)):
                torch.testing.assert_close(torch.from_numpy(mine[prompt]), theirs[0], atol=1e-4, rtol=1e-4)


TEXT_PARITY, DETECTOR_PARITY = commands("parity")


@pytest.mark.parametrize("command", [TEXT_PARITY, pytest.param(DETECTOR_PARITY, marks=pytest.mark.stress)])
def test_the_page_says_how_parity_judges_the_graphs(command, here):
    done = sam3lite(*command, *(["--size", "112"] if "detector" in command else []))
    assert done.code == 0, done
    assert "within tolerance" in done.out


@pytest.mark.skipif(
    shutil.which("node") is None or PACKAGES not in os.environ,
    reason=f"runs the JavaScript of docs/onnx.md, which needs node and {PACKAGES}: the folder that npm ci makes in a "
    "copy of tests/javascript (.ci/run does)",
)
def test_the_javascript_makes_the_same_ids_and_calls_the_graph(here):
    if not Path("node_modules").exists():
        Path("node_modules").symlink_to(os.environ[PACKAGES])
    Path("ids.mjs").write_text(code("javascript", "ids"))
    Path("cases.json").write_text(json.dumps(CASES))
    Path("text.mjs").write_text(
        code("javascript", "text")
        + """
const made = JSON.parse(await readFile("cases.json")).map((c) =>
  c.prompts.map((prompt) => makeIds(tokenizer, prompt, c.context_length)));
console.log("RESULT " + JSON.stringify({ made, features: [...text_features.data], dims: text_features.dims }));
"""
    )
    done = subprocess.run(["node", "text.mjs"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.rpartition("RESULT ")[2])
    assert result["made"] == [case["input_ids"] for case in CASES]
    names: dict[str, object] = {}
    for what in ("ids", "text"):
        exec(compile(code("python", what), "docs/onnx.md", "exec"), names)
    mine = torch.tensor(result["features"]).reshape(result["dims"])
    torch.testing.assert_close(mine, torch.from_numpy(names["text_features"]), atol=1e-5, rtol=0)
