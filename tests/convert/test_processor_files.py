"""Tokenizer and processor files: the ids that the original gets, the fields that the classes read."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import shutil
from pathlib import Path

import pytest
from support.folders import sam3lite, snapshot, tiny_architecture, write
from support.hub_files import PINNED, TOKENIZER, clip_files, clip_merges, one_line
from support.hub_server import HubServer
from support.rows import DATA

from sam3lite_convert.convert.processor_files import TOKENIZER as FILES
from sam3lite_convert.plan import synthetic

GOLDENS = json.loads((DATA / "goldens" / "tokens.json").read_text())["cases"]
# The library's tokenizer does not clean text as the original does: HTML, ligatures, full-width letters, and
# the names that the original's vocabulary gives its two special tokens.
CLEANED = ("&", "ﬁ", "\uff26", "<end_of_text>", "<start_of_text>")
TF = ["--layout", "transformers"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("tiny"), synthetic.state_dict(tiny_architecture()))


def convert(tiny: Path, *options: object, output: str = "out") -> Path:
    done = sam3lite("convert", "--checkpoint", tiny, "--output", output, *TF, *options)
    assert done.code == 0, done
    return Path(output)


def content(path: Path) -> dict:
    return json.loads(path.read_text())


# ---- the tokenizer ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", GOLDENS, ids=lambda c: f"context {c['context_length']}")
def test_the_ids_are_the_originals(case, hub, clip, tmp_path):
    from transformers import AutoTokenizer

    path = write(tmp_path, synthetic.state_dict(tiny_architecture(context=case["context_length"])))
    tokenizer = AutoTokenizer.from_pretrained(convert(path, "--tokenizer", clip))
    assert tokenizer.model_max_length == case["context_length"]
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("!", 0)
    compared = 0
    for prompt, ids in zip(case["prompts"], case["input_ids"], strict=True):
        if not any(mark in prompt for mark in CLEANED):
            assert tokenizer(prompt, padding="max_length", truncation=True).input_ids == ids, prompt
            compared += 1
    assert compared >= 28
    # Saved and loaded again it is the same: "!" in a prompt is not padding.
    tokenizer.save_pretrained(tmp_path / "again")
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again("a dog!").input_ids == [49406, 320, 1929, 256, 49407]


def test_from_the_one_file_of_newer_libraries(hub, clip, tiny, tmp_path):
    from transformers import AutoTokenizer, CLIPTokenizer

    old = CLIPTokenizer.from_pretrained(clip)
    old("a", padding="max_length", max_length=77, truncation=True)  # leaves its lengths in the file
    old.save_pretrained(tmp_path / "saved")
    folder = convert(tiny, "--tokenizer", tmp_path / "saved")
    assert not (folder / "vocab.json").exists()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("a dog!").input_ids == [49406, 320, 1929, 256, 49407]
    assert tokenizer.model_max_length == 16 and tokenizer.pad_token_id == 0
    assert content(folder / "tokenizer.json")["truncation"] is None


def test_of_a_vocabulary_in_two_parts_the_one_file_is_made_that_the_library_makes(hub, clip, tiny, tmp_path):
    from tokenizers import Tokenizer
    from transformers import CLIPTokenizer

    CLIPTokenizer.from_pretrained(clip).save_pretrained(tmp_path / "saved")
    theirs = Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json"))
    ours = Tokenizer.from_file(str(convert(tiny, "--tokenizer", clip) / "tokenizer.json"))
    assert ours.get_vocab() == theirs.get_vocab()
    for prompt in GOLDENS[0]["prompts"]:
        assert ours.encode(prompt).ids == theirs.encode(prompt).ids, prompt


def test_the_default_comes_from_the_hub_pinned(hub, tiny):
    hub.add_repo(TOKENIZER, {**clip_files(), "flax_model.msgpack": b"large"}, commit=PINNED)
    hub.commit(TOKENIZER, {"vocab.json": b"{}"})  # what is there later does not matter
    folder = convert(tiny)
    assert (folder / "vocab.json").read_bytes() == clip_files()["vocab.json"]
    assert not (folder / "flax_model.msgpack").exists()
    tokenizer = content(folder / "conversion.json")["tokenizer"]
    assert tokenizer["source"] == TOKENIZER and tokenizer["commit"] == PINNED
    assert tokenizer["files"].keys() == clip_files().keys()


def test_another_repository(hub, tiny):
    hub.add_repo("somebody/clip", clip_files())
    folder = convert(tiny, "--tokenizer", "somebody/clip")
    assert content(folder / "conversion.json")["tokenizer"]["source"] == "somebody/clip"


def test_where_it_cannot_be_had_the_conversion_completes_and_says_so(hub, tiny, clip):
    done = sam3lite("convert", "--checkpoint", tiny, "--output", "out", *TF, "--json")
    assert done.code == 0 and set(done.json["missing_files"]) == set(FILES)
    (note,) = [n for n in done.json["notes"] if n.startswith("the folder has no tokenizer: ")]
    assert "sam3lite demo" not in note
    assert sam3lite("verify", "out", "--checkpoint", tiny).code == 0
    before = (Path("out") / "model.safetensors").stat().st_mtime_ns
    # The command that it names, with a folder in place of the placeholder, adds them.
    command = note.partition("sam3lite ")[2].replace("DIR_OR_REPO", str(clip)).split()
    added = sam3lite(*command, "--json")
    assert added.code == 0, added
    assert added.json["state"] == "current" and "tokenizer_config.json" in added.json["added"]
    assert (Path("out") / "model.safetensors").stat().st_mtime_ns == before
    assert "AutoTokenizer" in (Path("out") / "README.md").read_text()
    assert sam3lite("verify", "out", "--checkpoint", tiny).code == 0


def test_the_hub_that_comes_back_adds_them(hub, tiny):
    convert(tiny)
    hub.add_repo(TOKENIZER, clip_files(), commit=PINNED)
    convert(tiny)
    before = snapshot(Path("out"))
    assert "vocab.json" in before
    hub.clear_log()
    convert(tiny)
    assert snapshot(Path("out")) == before and hub.log == []


def test_another_file_of_the_tokenizers_repository_in_the_cache(hub, tiny):
    # As after loading another model from it: offline, that is no tokenizer that was refused.
    from huggingface_hub import hf_hub_download

    hub.add_repo(TOKENIZER, {**clip_files(), "config.json": b"{}"}, commit=PINNED)
    hf_hub_download(TOKENIZER, "config.json", revision=PINNED)
    hub.fail("status", match="/api/models/", status=429, retry_after=3600, times=None)
    done = sam3lite("convert", "--checkpoint", tiny, "--output", "out", *TF)
    assert done.code == 0 and "note: the folder has no tokenizer: " in done.out
    done = sam3lite("convert", "--checkpoint", tiny, "--output", "out", *TF, "--tokenizer", "nobody/none", "--json")
    (note,) = [n for n in done.json["notes"] if n.startswith("the folder has no tokenizer: ")]
    assert note.endswith("--tokenizer DIR_OR_REPO") and note.count("--tokenizer") == 1


def test_one_lost_file_of_a_tokenizer_in_both_forms_comes_back(hub, tiny, clip, tmp_path):
    from transformers import CLIPTokenizer

    CLIPTokenizer.from_pretrained(clip).save_pretrained(tmp_path / "saved")
    both = {**clip_files(), "tokenizer.json": (tmp_path / "saved" / "tokenizer.json").read_bytes()}
    hub.add_repo(TOKENIZER, both, commit=PINNED)
    before = snapshot(convert(tiny))
    for name in ("tokenizer.json", "vocab.json", "special_tokens_map.json", "processor_config.json"):
        (Path("out") / name).unlink()
        convert(tiny)
        assert set(snapshot(Path("out"))) == set(before)


def test_a_run_that_was_cut_off_while_adding_files_is_healed(hub, tiny, clip, monkeypatch):
    from sam3lite_convert.convert import side_files

    convert(tiny)
    inner, count = side_files.write_whole, []

    def cut_off(path, data):
        count.append(path)
        if len(count) == 3:
            raise KeyboardInterrupt
        inner(path, data)

    monkeypatch.setattr(side_files, "write_whole", cut_off)
    assert sam3lite("convert", "--checkpoint", tiny, "--output", "out", *TF, "--tokenizer", clip).code == 130
    monkeypatch.setattr(side_files, "write_whole", inner)
    hub.add_repo(TOKENIZER, clip_files(), commit=PINNED)
    folder = convert(tiny)
    assert content(folder / "conversion.json")["tokenizer"]["commit"] == PINNED
    assert {"vocab.json", "merges.txt"} <= content(folder / "conversion.json")["beside"].keys()


def test_text_and_packed(hub, tiny, clip):
    text = convert(tiny, "--tokenizer", clip, "--component", "text", output="text")
    assert (text / "tokenizer_config.json").exists() and not (text / "processor_config.json").exists()
    done = sam3lite("convert", "--checkpoint", tiny, "--output", "packed", "--tokenizer", clip)
    assert done.code == 0 and not (Path("packed") / "tokenizer_config.json").exists()
    assert hub.log == []


def exchange(folder: Path, one: str, other: str) -> None:
    vocabulary = json.loads((folder / "vocab.json").read_text())
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (folder / "vocab.json").write_text(json.dumps(vocabulary))


OTHERS = {
    "a file": lambda folder: (shutil.rmtree(folder), folder.write_text("x")),
    "an empty folder": lambda folder: [p.unlink() for p in folder.iterdir()],
    "one of the two": lambda folder: (folder / "merges.txt").unlink(),
    "no JSON": lambda folder: (folder / "vocab.json").write_text("{"),
    "no object": lambda folder: (folder / "vocab.json").write_text("[1]"),
    "another vocabulary": lambda folder: (folder / "vocab.json").write_text('{"a": 0, "b": 1}'),
    "shifted ids": lambda folder: (folder / "vocab.json").write_text(
        json.dumps({k: v + 1 for k, v in json.loads(clip_files()["vocab.json"]).items()})
    ),
    "two words exchanged": lambda folder: exchange(folder, "dog</w>", "cat</w>"),
    "two rare tokens exchanged": lambda folder: exchange(folder, "jekyll</w>", "dora</w>"),
    "merges of something else": lambda folder: (folder / "merges.txt").write_text("#version: 0.2\nx y\n"),
    "merges in another order": lambda folder: (folder / "merges.txt").write_text(
        "\n".join(reversed((folder / "merges.txt").read_text().splitlines()))
    ),
    "nested deeply": lambda folder: (folder / "vocab.json").write_text("[" * 100_000),
    "a word of its own": lambda folder: (folder / "tokenizer.json").write_text(
        json.dumps(
            {
                "added_tokens": [{"id": 1929, "content": "bus"}],
                "model": {"vocab": json.loads(clip_files()["vocab.json"]), "merges": list(clip_merges())},
            }
        )
    ),
    "two that differ": lambda folder: (folder / "tokenizer.json").write_text(
        json.dumps({"model": {"vocab": {"a": 0}}})
    ),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_no_clip_tokenizer_is_refused(what, hub, tiny, clip):
    OTHERS[what](clip)
    done = sam3lite("convert", "--checkpoint", tiny, "--output", "out", *TF, "--tokenizer", clip)
    assert "clip" in one_line_after_plan(done)[0]
    assert not Path("out").exists()


def one_line_after_plan(done) -> list[str]:
    assert done.code == 2 and done.err.count("error: ") == 1 and "Traceback" not in done.err, done
    return done.err.splitlines()


def test_a_wrong_vocabulary_on_the_hub_is_refused(hub, tiny):
    hub.add_repo("somebody/bert", {"vocab.json": b'{"a": 0}', "merges.txt": b"#version: 0.2\n"})
    done = sam3lite("convert", "--checkpoint", tiny, "--output", "out", *TF, "--tokenizer", "somebody/bert")
    assert "CLIP's" in one_line_after_plan(done)[0]


def test_a_file_in_the_place_of_the_checkpoint_is_no_tokenizer(hub: HubServer):
    assert "no such file" in one_line(sam3lite("convert", "--checkpoint", "./x", "--tokenizer", "y"), 2)


# ---- the processor ----------------------------------------------------------------------------------


def class_fields() -> dict:
    """The class attributes of ``Sam3ImageProcessor``, read from its source: importing it needs torchvision."""
    spec = importlib.util.find_spec("transformers.models.sam3.image_processing_sam3")
    assert spec is not None and spec.origin
    tree = ast.parse(Path(spec.origin).read_text())
    (body,) = [n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Sam3ImageProcessor"]
    # Bilinear is 2 in Pillow, which is not here.
    named = {"IMAGENET_STANDARD_MEAN": [0.5] * 3, "IMAGENET_STANDARD_STD": [0.5] * 3, "PILImageResampling.BILINEAR": 2}
    found = {}
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            text = ast.unparse(node.value)
            found[node.targets[0].id] = named[text] if text in named else _literal(node.value)
    return found


def _literal(node: ast.expr) -> object:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def test_the_image_processors_fields_are_those_of_its_class(hub, tiny):
    from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD

    assert (IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD) == ([0.5] * 3, [0.5] * 3)
    fields = class_fields()
    folder = convert(tiny)
    image = content(folder / "processor_config.json")["image_processor"]
    assert image == {k: v for k, v in content(folder / "preprocessor_config.json").items() if k != "processor_class"}
    assert image.pop("image_processor_type") == "Sam3ImageProcessor"
    assert image.pop("rescale_factor") == pytest.approx(1 / 255)
    size = content(folder / "config.json")["vision_config"]["backbone_config"]["image_size"]
    for name in ("size", "mask_size"):
        # The class says it for the released size; this checkpoint is smaller.
        assert {k: round(v * size / 1008) for k, v in fields.pop(name).items()} == image.pop(name)
    given = {k: v for k, v in fields.items() if v is not None}
    assert given == image


def test_at_the_released_size_they_are_the_class_defaults(mappings):
    from support.rows import plan_of, source_rows

    from sam3lite_convert.convert.processor_files import processor_files

    plan = plan_of(source_rows("s0"), mappings, layout="transformers")
    image = json.loads(processor_files(plan)["processor_config.json"])["image_processor"]
    fields = class_fields()
    assert (image["size"], image["mask_size"]) == (fields["size"], fields["mask_size"])


def test_the_processors_arguments_are_those_of_its_class(hub, tiny):
    from transformers.models.sam3.processing_sam3 import Sam3Processor

    config = content(convert(tiny) / "processor_config.json")
    arguments = inspect.signature(Sam3Processor.__init__).parameters
    assert config.pop("processor_class") == Sam3Processor.__name__
    assert set(config) - {"image_processor"} <= set(arguments)
    assert config["point_pad_value"] == arguments["point_pad_value"].default
    assert set(Sam3Processor.get_attributes()) == {"image_processor", "tokenizer"}


@pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None,
    reason="needs torchvision, which this project never depends on; its files are held against its fields above",
)
def test_the_processor_loads(hub, tiny, clip):
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(convert(tiny, "--tokenizer", clip))
    assert type(processor).__name__ == "Sam3Processor" and processor.tokenizer.pad_token_id == 0
