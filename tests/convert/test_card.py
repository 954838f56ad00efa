"""The model card: metadata that the hub takes, what it says, and examples that run."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, get_session
from huggingface_hub.utils import hf_raise_for_status
from support.families import write as write_kind
from support.folders import picture, raw, sam3lite, tiny_architecture, tiny_state, write
from support.hub_files import OLD, REPO, publish
from support.hub_server import HubServer

from sam3lite_convert.convert.card import model_card
from sam3lite_convert.plan import synthetic
from sam3lite_convert.records.receipt import Receipt

S0 = OLD["s0"]
ODD = {"license": "other", "license_name": "a\n---\n\U0001f984\x85b"}
LAYOUTS = {
    "packed": ["--layout", "packed"],
    "packed text": ["--layout", "packed", "--component", "text"],
    "transformers": ["--layout", "transformers"],
    "transformers text": ["--layout", "transformers", "--component", "text"],
    "original": ["--layout", "original"],
    "original text": ["--layout", "original", "--component", "text"],
}


@pytest.fixture
def s0(hub: HubServer, tmp_path: Path) -> Path:
    return publish(hub, tmp_path, {"s0": S0})["s0"]


def card_of(folder: Path | str) -> str:
    return (Path(folder) / "README.md").read_text()


def metadata(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def examples(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


# ---- metadata ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LAYOUTS)
def test_the_metadata_is_what_the_hub_takes(kind, s0, hub):
    done = sam3lite("convert", "--checkpoint", "s0", "--output", "out", *LAYOUTS[kind])
    assert done.code == 0, done
    card = ModelCard(card_of("out"))
    # As card.validate() asks; that of old clients knows one hub only.
    asked = {"repoType": "model", "content": str(card)}
    hf_raise_for_status(get_session().post(f"{hub.url}/api/validate-yaml", json=asked))
    found = card.data.to_dict()
    assert found["base_model"] == REPO
    assert (found["license"], found["license_name"], found["license_link"]) == ("other", "some-license", "LICENSE")
    assert found["library_name"] == ("transformers" if "transformers" in kind else "sam3lite-convert")
    assert found["pipeline_tag"] == ("feature-extraction" if "text" in kind else "mask-generation")
    assert {"sam3", "sam3-litetext", "mobileclip"} <= set(found["tags"])


@pytest.mark.parametrize(
    ("front", "licence"),
    [
        ("license: apache-2.0", {"license": "apache-2.0"}),
        ("license: other\nlicense_name: 'a: b # c'", {"license": "other", "license_name": "a: b # c"}),
        ("license: [mit, other]", {"license": ["mit", "other"]}),
        ("license: 1.0", {"license": "1.0"}),
        ('license: other\nlicense_name: "a\\n---\\n\\U0001F984\\x85b"', ODD),
        ("tags: [a]", {}),
    ],
)
def test_the_licence_is_named_as_the_source_names_it(front, licence, s0, hub):
    hub.commit(REPO, {"README.md": f"---\n{front}\n---\n# x\n".encode()})
    sam3lite("convert", "--checkpoint", "s0", "--output", "out")
    card = card_of("out")
    found = metadata(card)
    assert card.count("\n---\n") == 1
    assert {k: v for k, v in found.items() if k.startswith("license")} == licence
    assert ("names no licence" in card) is (not licence)


def test_a_local_file_names_no_repository(s0):
    sam3lite("convert", "--checkpoint", s0, "--output", "out")
    assert not {"base_model", "license"} & metadata(card_of("out")).keys()
    assert f"`{s0.name}`" in card_of("out")


# ---- what it says -----------------------------------------------------------------------------------


def test_provenance_and_accounting(s0, hub):
    sam3lite("convert", "--checkpoint", "s0", "--output", "out")
    card, receipt = card_of("out"), json.loads(Path("out/conversion.json").read_text())
    source = receipt["source"]
    for said in (REPO, S0, hub.head(REPO), source["sha256"], f"{source['size']:,}", receipt["tool"]["version"]):
        assert said in card
    for name, count in receipt["counts"].items():
        assert re.search(rf"\| {count} \|", card), name
    assert f"sam3lite verify . {S0} --repo-id {REPO} --revision {hub.head(REPO)}" in card


def test_the_check_that_it_names_succeeds(s0, monkeypatch):
    sam3lite("convert", "--checkpoint", "s0", "--output", "out")
    command = re.search(r"```\nsam3lite (.*?)\n```", card_of("out"))
    assert command
    monkeypatch.chdir("out")
    assert sam3lite(*command[1].split()).code == 0


def test_how_the_stock_processor_uses_it(s0):
    sam3lite("convert", "--checkpoint", "s0", "--output", "tf", "--layout", "transformers")
    sam3lite("convert", "--checkpoint", "s0", "--output", "packed")
    card = " ".join(card_of("tf").split())
    for said in ("length of 32", "49407", "attention mask", "-10", "presence logit", "table of 16 positions"):
        assert said in card
    assert "presence logit" not in card_of("packed")


def test_a_context_of_32_is_not_stretched(tmp_path):
    path = write(tmp_path, synthetic.state_dict(tiny_architecture(context=32)))
    sam3lite("convert", "--checkpoint", path, "--output", tmp_path / "tf", "--layout", "transformers")
    assert "stretched" not in card_of(tmp_path / "tf") and "length of 32" in card_of(tmp_path / "tf")


def test_the_card_of_sam3_itself_says_where_the_stock_call_fails(tmp_path):
    path = write_kind(tmp_path / "teacher.pt", "teacher")
    for options, rows in ((), 32), (("--context", 16), 16):
        folder = tmp_path / f"tf{rows}"
        sam3lite("convert", "--checkpoint", path, "--output", folder, "--layout", "transformers", *options)
        card = " ".join(card_of(folder).split())
        assert f"the model fails on more than {rows} tokens" in card
        assert ("pads every prompt to a length of 32" in card) == (rows < 32)
        for wrong in ("stretched", "attends to padding", "the original masks nothing"):
            assert wrong not in card


def test_parity_stands_there_if_it_was_run(s0):
    sam3lite("convert", "--checkpoint", "s0", "--output", "out")
    assert "Parity" not in card_of("out")
    done = sam3lite("convert", "--checkpoint", "s0", "--output", "out", "--parity", "--json")
    assert done.json["state"] == "current" and done.json["parity"]["verdict"] == "exact"
    card = card_of("out")
    for layer in done.json["parity"]["layers"]:
        assert f"| `{layer['name']}` | 0 | 0 | 0 |" in card
    assert "`exact`" in card
    # It is kept, and a new conversion starts without it.
    sam3lite("convert", "--checkpoint", "s0", "--output", "out")
    assert card_of("out") == card
    sam3lite("convert", "--checkpoint", "s0", "--output", "out", "--overwrite")
    assert "Parity" not in card_of("out")


def test_a_card_is_made_from_the_receipt_alone(s0):
    sam3lite("convert", "--checkpoint", "s0", "--output", "out", "--parity")
    receipt = Receipt.from_json(json.loads(Path("out/conversion.json").read_text()))
    assert model_card(receipt) == card_of("out")


# ---- examples ---------------------------------------------------------------------------------------


def test_a_prompt_finds_masks_in_a_picture_as_the_card_of_a_detector_says(tmp_path, monkeypatch, capsys):
    pytest.importorskip("instant_clip_tokenizer")  # it has no wheel for every Python
    path = write(tmp_path, tiny_state() | synthetic.state_dict(tiny_architecture(vocab=49408), text_only=True))
    done = sam3lite("convert", "--checkpoint", path, "--output", tmp_path / "out", "--json")
    monkeypatch.chdir(tmp_path / "out")
    picture(Path())
    (example,) = examples(card_of("."))
    assert '"a dog"' in example and len(example.splitlines()) <= 10
    names: dict = {}
    exec(compile(example.replace('"a dog")', '"a dog", threshold=0)'), "README.md", "exec"), names)
    found = names["found"]
    assert len(found.scores) == 10 and found.masks.shape == (10, 20, 30) and found.masks.dtype == torch.bool
    assert len(capsys.readouterr().out.splitlines()) == 10
    assert done.json["loads_with"] == f'sam3lite_convert.PackedModel.from_pretrained("{tmp_path / "out"}")'


@pytest.mark.parametrize("kind", LAYOUTS)
def test_the_line_that_convert_ends_with_loads_the_folder(kind, s0):
    pytest.importorskip("transformers")
    done = sam3lite("convert", "--checkpoint", s0, "--output", "out", *LAYOUTS[kind])
    (line,) = re.findall(r"^Loads with: (.*)$", done.out, re.MULTILINE)
    package = line.partition(".")[0]
    loaded = eval(line, {package: importlib.import_module("safetensors.torch") and importlib.import_module(package)})
    held = loaded if isinstance(loaded, dict) else loaded.state_dict()
    written = json.loads(Path("out/conversion.json").read_text())["tensors"]
    beside = {"text_projection.weight", "text_projection.bias"} if kind == "transformers text" else set()
    assert held.keys() - {"text_model.embeddings.position_ids"} == written.keys() - beside


def test_of_shards_it_names_the_first(s0):
    sharded = ["--max-shard-size", "2MB", "--layout", "original"]
    done = sam3lite("convert", "--checkpoint", s0, "--output", "out", *sharded)
    (line,) = re.findall(r"^Loads with: (.*)$", done.out, re.MULTILINE)
    count = len(list(Path("out").glob("*.safetensors")))
    name = f"out/model-00001-of-{count:05}.safetensors"
    assert line == f'safetensors.torch.load_file("{name}")  # and the other {count - 1}' and Path(name).exists()


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("place", ["folder", "hub"])
def test_the_loading_example_runs(kind, place, s0, clip, tmp_path, monkeypatch):
    options = ["--checkpoint", "s0", "--output", "out", "--tokenizer", clip, *LAYOUTS[kind]]
    push = ["--push-to-hub", "--hub-model-id", "porter/own"] if place == "hub" else []
    done = sam3lite("convert", *options, *push)
    assert done.code == 0, done
    card = card_of("out")
    (example,) = examples(card)
    assert ('"porter/own"' in example) is (place == "hub")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("out" if place == "folder" else "elsewhere")
    picture(Path())
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    if "original" in kind:
        source = torch.load(s0)["model"]
        assert {k: raw(t) for k, t in names["tensors"].items()} == {k: raw(source[k]) for k in names["tensors"]}
    else:
        assert type(names["model"]).__name__.endswith("Model")
    if "transformers" in kind:
        assert names["ids"].tolist() == [[49406, 320, 1929, 49407] + [0] * 12]
    if kind == "transformers text":
        key = "detector.backbone.language_backbone.projector.weight"
        assert set(names["projection"]) and tiny_state()[key].shape in {t.shape for t in names["projection"].values()}


def test_without_a_tokenizer_it_says_how_to_add_one(s0):
    sam3lite("convert", "--checkpoint", "s0", "--output", "out", "--layout", "transformers")
    card = card_of("out")
    assert "--tokenizer" in card and "AutoTokenizer" not in card


def test_a_licence_that_was_not_read_is_not_denied(s0, hub):
    sam3lite("convert", "--checkpoint", "s0", "--output", "first")
    hub.fail("status", match="/api/models/", status=429, retry_after=3600, times=None)
    assert sam3lite("convert", "--checkpoint", "s0", "--output", "out").code == 0
    assert "names no licence" not in card_of("out") and "not read" in card_of("out")
    hub.clear_faults()
    sam3lite("convert", "--checkpoint", "s0", "--output", "out")
    assert "some-license" in card_of("out")


def test_a_card_that_somebody_edited_stays(s0):
    sam3lite("convert", "--checkpoint", "s0", "--output", "out")
    path = Path("out/README.md")
    path.write_text(path.read_text() + "my words\n")
    done = sam3lite("convert", "--checkpoint", "s0", "--output", "out", "--parity")
    assert "edited" in done.out and path.read_text().endswith("my words\n")
    done = sam3lite("convert", "--checkpoint", "s0", "--output", "out", "--overwrite")
    assert "my words" not in path.read_text()
