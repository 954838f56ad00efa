"""The processor and tokenizer files of a folder are part of the proof."""

from __future__ import annotations

import json
import shutil

import pytest
import transformers
from support.folders import assert_proven, convert, verify
from support.hub_files import clip_files

CONFIG, MAP = "tokenizer_config.json", "special_tokens_map.json"
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"


@pytest.fixture(scope="module")
def good(tiny, tmp_path_factory):
    """A folder with tokenizer and processor files."""
    root = tmp_path_factory.mktemp("good")
    (root / "clip").mkdir()
    for name, data in clip_files().items():
        (root / "clip" / name).write_bytes(data)
    return convert(tiny, root / "out", "--layout", "transformers", "--tokenizer", root / "clip")


@pytest.fixture
def folder(good, tmp_path):
    return shutil.copytree(good, tmp_path / "folder")


@pytest.fixture
def foreign(folder):
    """The same without a receipt."""
    (folder / "conversion.json").unlink()
    return folder


def change(folder, name, *path, value):
    data = json.loads((folder / name).read_text())
    section = data
    for part in path[:-1]:
        section = section[part]
    section.pop(path[-1], None)
    if value is not None:
        section[path[-1]] = value
    (folder / name).write_text(json.dumps(data))


def findings(folder, checkpoint):
    done = verify(folder, checkpoint)
    assert (done.code, done.json["verdict"]) == (1, "mismatch"), done
    return [(f["code"], f["keys"]) for f in done.json["findings"]]


IMAGE = {
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "size": {"height": 224, "width": 224},
    "rescale_factor": 1.0,
    "do_rescale": False,
    "do_normalize": False,
    "do_resize": False,
    "do_convert_rgb": False,
    "do_center_crop": True,
    "do_pad": True,
    "resample": 3,
    "image_processor_type": "CLIPImageProcessor",
}
WRONG_TYPES = [("size", 112), ("size", {"shortest_edge": 112}), ("image_mean", 0.5), ("image_mean", ["0.5"] * 3)]
TOKENIZER = {
    "pad_token": "<|endoftext|>",
    "bos_token": "!",
    "eos_token": "<|startoftext|>",
    "model_max_length": 77,
    "padding_side": "left",
    "truncation_side": "left",
    "do_lower_case": False,
}


def test_right_files_are_proven_with_and_without_a_receipt(good, foreign, tiny):
    assert_proven(good, tiny)
    assert_proven(foreign, tiny)


def test_what_the_library_writes_of_the_right_files_is_proven(good, foreign, tiny):
    transformers.AutoTokenizer.from_pretrained(good).save_pretrained(foreign)
    for name in (PREPROCESSOR, PROCESSOR):
        (foreign / name).unlink()
    assert_proven(foreign, tiny)


@pytest.mark.parametrize(("field", "value"), [*IMAGE.items(), *WRONG_TYPES], ids=str)
@pytest.mark.parametrize(("name", "path"), [(PREPROCESSOR, ()), (PROCESSOR, ("image_processor",))])
def test_a_field_of_the_image_processor_is_named(name, path, field, value, foreign, tiny):
    change(foreign, name, *path, field, value=value)
    assert findings(foreign, tiny) == [("V-PROCESSOR", [f"{name}: {'.'.join([*path, field])}"])]


def test_a_size_that_is_left_out_is_the_librarys(foreign, tiny):
    change(foreign, PREPROCESSOR, "size", value=None)
    assert findings(foreign, tiny) == [("V-PROCESSOR", [f"{PREPROCESSOR}: size"])]


@pytest.mark.parametrize(("field", "value"), [("target_size", 1008), ("point_pad_value", 0)])
def test_a_field_of_the_processor_is_named(field, value, foreign, tiny):
    change(foreign, PROCESSOR, field, value=value)
    assert findings(foreign, tiny) == [("V-PROCESSOR", [f"{PROCESSOR}: {field}"])]


@pytest.mark.parametrize("field", TOKENIZER)
def test_a_field_of_the_tokenizer_is_named(field, foreign, tiny):
    change(foreign, CONFIG, field, value=TOKENIZER[field])
    assert findings(foreign, tiny) == [("V-TOKENIZER", [f"{CONFIG}: {field}"])]


def test_a_padding_token_that_is_left_out_is_the_librarys(foreign, tiny):
    change(foreign, CONFIG, "pad_token", value=None)
    assert findings(foreign, tiny) == [("V-TOKENIZER", [f"{CONFIG}: pad_token"])]


def test_the_padding_token_of_the_other_file_is_judged_too(foreign, tiny):
    change(foreign, MAP, "pad_token", value={"content": "<|endoftext|>", "lstrip": False})
    assert findings(foreign, tiny) == [("V-TOKENIZER", [f"{MAP}: pad_token"])]


def test_another_vocabulary_is_named(foreign, tiny):
    words = json.loads((foreign / "vocab.json").read_text())
    words["dog</w>"], words["cat</w>"] = words["cat</w>"], words["dog</w>"]
    (foreign / "vocab.json").write_text(json.dumps(words))
    ((code, _),) = findings(foreign, tiny)
    assert code == "V-TOKENIZER"
    assert "dog" in verify(foreign, tiny).json["findings"][0]["cause"]


@pytest.mark.parametrize("name", [PREPROCESSOR, PROCESSOR, CONFIG, MAP, "vocab.json"])
@pytest.mark.parametrize("content", ["{", "[]", "\udcff"])
def test_a_file_that_cannot_be_read_is_named(name, content, foreign, tiny):
    (foreign / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    found = findings(foreign, tiny)
    assert (("V-PROCESSOR" if name in (PREPROCESSOR, PROCESSOR) else "V-TOKENIZER"), [name]) in found


@pytest.mark.parametrize("name", [PREPROCESSOR, MAP, "merges.txt"])
def test_a_file_that_is_not_the_one_in_the_receipt_is_named(name, folder, tiny):
    with open(folder / name, "a") as file:
        file.write("\n")
    ((code, keys),) = findings(folder, tiny)
    assert keys == [name] and code == ("V-PROCESSOR" if name == PREPROCESSOR else "V-TOKENIZER")


def test_a_file_of_the_receipt_that_is_gone_is_named(folder, tiny):
    (folder / PREPROCESSOR).unlink()
    assert findings(folder, tiny) == [("V-PROCESSOR", [PREPROCESSOR])]


def test_a_folder_without_such_files_is_proven(foreign, tiny):
    for name in (PREPROCESSOR, PROCESSOR, CONFIG, MAP, "vocab.json", "merges.txt"):
        (foreign / name).unlink()
    assert_proven(foreign, tiny)
