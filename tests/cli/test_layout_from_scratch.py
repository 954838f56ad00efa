"""A layout made as CONTRIBUTING.md says, without Python: every command works on it, and what they print runs."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from support.folders import (
    QKV,
    assert_equal_states,
    assert_proven,
    config,
    convert,
    edit,
    flip_bit,
    oracle,
    python,
    sam3lite,
    tensors,
    tiny_state,
    verify,
    write_safetensors,
)

from sam3lite_convert.plan.tables import builtin_directory

# The same targets as in the layout packed, but for the names of the text encoder's two parts.
NAMES = {"text_encoder.": "text_model.", "text_projection.": "text_proj."}
LAYOUT = """\
[layout]
about   = a port of mine
rules   = detector.ini text-mine.ini dropped.ini
targets = targets-detector.ini targets-text-mine.ini
"""
PROJECTOR = "detector.backbone.language_backbone.projector.weight"


def renamed(text: str) -> str:
    for old, new in NAMES.items():
        text = re.sub(rf"(?<![\w.]){re.escape(old)}", new, text.replace(f"[{old[:-1]}]", f"[{new[:-1]}]"))
    return text


def make_layout(folder: Path, entries: str = "") -> Path:
    """The three files of the layout ``mine``."""
    folder.mkdir()
    (folder / "layout-mine.ini").write_text(LAYOUT + entries)
    for name in ("text", "targets-text"):
        text = (builtin_directory() / f"{name}-packed.ini").read_text()
        (folder / f"{name}-mine.ini").write_text(renamed(text))
    return folder


@pytest.fixture(params=["", "text_keys = strip\n"], ids=["keep", "strip"])
def mine(request, tmp_path):
    # What is printed has to be quoted: there is a space in it.
    return make_layout(tmp_path / "my mappings", request.param)


@pytest.fixture
def checkpoint(tmp_path):
    return write_safetensors(tmp_path, tiny_state())


def converted(checkpoint, folder, mine, *options):
    return convert(checkpoint, folder, "--layout", "mine", "--mapping", mine, *options)


def written(component, mine):
    """What a folder has to hold, made with torch alone."""
    whole = {renamed(k): t for k, t in oracle("packed", tiny_state()).items()}
    if component == "all":
        return whole
    text = {k: t for k, t in whole.items() if k.startswith(tuple(NAMES.values()))}
    strip = "strip" in (mine / "layout-mine.ini").read_text()
    return {k.removeprefix("text_model.") if strip else k: t for k, t in text.items()}


def run(command: str, folder: Path):
    """A command that was printed, in a process of its own."""
    program, *arguments = shlex.split(command)
    assert program == "sam3lite"
    done = python("-m", "sam3lite_convert", *arguments, cwd=folder)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def one_sentence(done, code):
    """A refusal: this exit code, a message without a traceback, nothing else."""
    assert done.code == code, done
    assert done.out == "" and "Traceback" not in done.err
    return done.err


@pytest.mark.parametrize("component", ["all", "text"])
def test_it_is_converted_and_proven(component, checkpoint, mine, tmp_path):
    folder = converted(checkpoint, tmp_path / "out", mine, "--component", component)
    assert_equal_states(tensors(folder), written(component, mine))
    record = assert_proven(folder, checkpoint, "--mapping", mine)
    assert (record["layout"], record["component"]) == ("mine", component)
    assert record["checked"] == len(written(component, mine))
    assert config(folder)["model_type"] == "sam3lite_mine"


@pytest.mark.parametrize("component", ["all", "text"])
def test_a_fault_in_it_is_found(component, checkpoint, mine, tmp_path):
    folder = converted(checkpoint, tmp_path / "out", mine, "--component", component)
    key = next(k for k in tensors(folder) if k.endswith("layers.1.attention.in_proj_weight"))
    edit(folder, {key: flip_bit(tensors(folder)[key])})
    done = verify(folder, checkpoint, "--mapping", mine)
    assert done.code == 1
    assert [m["key"] for m in done.json["mismatched"]] == [key]


@pytest.mark.parametrize("component", ["all", "text"])
def test_without_its_tables_a_folder_is_not_taken_for_another_layout_s(component, checkpoint, mine, tmp_path):
    folder = converted(checkpoint, tmp_path / "out", mine, "--component", component)
    message = one_sentence(sam3lite("verify", folder, "--checkpoint", checkpoint), 2)
    assert "mine" in message and "--mapping" in message


@pytest.mark.parametrize("component", ["all", "text"])
def test_convert_proves_it_at_once(component, checkpoint, mine, tmp_path):
    options = ["--layout", "mine", "--mapping", mine, "--component", component, "--verify"]
    done = sam3lite("convert", "--checkpoint", checkpoint, "--output", tmp_path / "out", *options)
    assert done.code == 0, done
    assert "proven" in done.out


def test_names_are_explained_both_ways(checkpoint, mine):
    options = ["--layout", "mine", "--mapping", mine, "--component", "text", "--json"]
    strip = "strip" in (mine / "layout-mine.ini").read_text()
    for source, target in ((QKV, "text_model.layers.1.attention.in_proj_weight"), (PROJECTOR, "text_proj.weight")):
        key = target.removeprefix("text_model.") if strip else target
        for asked in {source, source.removeprefix("detector."), target, key}:
            record = sam3lite("explain", checkpoint, asked, *options).json
            assert record["source"]["key"] == source
            assert [t["key"] for t in record["targets"]] == [key]


@pytest.mark.parametrize("component", ["all", "text"])
def test_parity_says_that_nothing_runs_it(component, checkpoint, mine, tmp_path):
    folder = converted(checkpoint, tmp_path / "out", mine, "--component", component)
    tables = ["--checkpoint", checkpoint, "--mapping", mine]
    for options in (["--converted", folder], ["--candidate", "mine"], ["--converted", folder, "--as-used"]):
        message = one_sentence(sam3lite("parity", *tables, *options), 2)
        assert "parity has no encoder for the layout mine" in message and "sam3lite verify" in message
        assert "packed" in message and "transformers" in message


def test_convert_with_parity_is_refused_before_anything_is_written(checkpoint, mine, tmp_path):
    options = ["--layout", "mine", "--mapping", mine, "--parity"]
    done = sam3lite("convert", "--checkpoint", checkpoint, "--output", tmp_path / "out", *options)
    assert "parity has no encoder for the layout mine" in one_sentence(done, 2)
    assert not (tmp_path / "out").exists()


@pytest.mark.stress
@pytest.mark.parametrize("component", ["all", "text"])
@pytest.mark.parametrize("shards", [[], ["--max-shard-size", "2MB"]], ids=["one file", "shards"])
def test_what_the_card_offers_runs(component, shards, checkpoint, mine, tmp_path):
    folder = converted(checkpoint, tmp_path / "out", mine, "--component", component, *shards)
    card = (folder / "README.md").read_text()
    assert "a port of mine" in card
    assert "PackedTextModel" not in card and "Sam3" not in card
    (example,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    done = python("-c", example + "\nprint(*sorted(tensors), sep='\\n')", cwd=folder)
    assert done.stdout.split() == sorted(written(component, mine)), done.stderr
    (command,) = re.findall(r"```\n(sam3lite .*?)\n```", card)
    for placeholder, path in (("PATH/TO/MAPPINGS", mine), (f"PATH/TO/{checkpoint.name}", checkpoint)):
        assert placeholder in command
        command = command.replace(placeholder, shlex.quote(str(path)))
    done = run(command, folder)
    assert done.returncode == 0 and "proven" in done.stdout, done


@pytest.mark.stress
def test_every_next_line_runs_as_it_is_printed(checkpoint, mine, tmp_path):
    start = f"sam3lite inspect {checkpoint} --mapping {shlex.quote(str(mine))}"
    commands = [start, f"sam3lite convert {checkpoint} --layout mine --mapping {shlex.quote(str(mine))}"]
    seen = []
    while commands:
        done = run(commands.pop(0), tmp_path)
        assert done.returncode == 0, done
        found = re.findall(r"^Next: (sam3lite .*)$", done.stdout, re.MULTILINE)
        commands += found
        seen += found
    assert [command.split()[1] for command in seen] == ["convert", "verify", "verify"]
    assert all(f"--mapping {shlex.quote(str(mine))}" in command for command in seen)


def test_a_folder_of_two_layouts_with_the_same_keys_is_of_the_one_it_names(checkpoint, tmp_path):
    tables = tmp_path / "tables"
    tables.mkdir()
    for name in ("a-twin", "z-twin"):
        text = (builtin_directory() / "layout-packed.ini").read_text()
        (tables / f"layout-{name}.ini").write_text(text.replace("loader    = packed_model", "loader = none"))
    for name in ("packed", "a-twin", "z-twin"):
        folder = convert(checkpoint, tmp_path / name, "--layout", name, "--mapping", tables)
        assert assert_proven(folder, checkpoint, "--mapping", tables)["layout"] == name


def test_with_a_loader_of_ours_and_another_detector_parity_runs(checkpoint, tmp_path):
    """A layout that differs from packed outside the text encoder: the same encoder reads it."""
    tables = tmp_path / "tables"
    tables.mkdir()
    for name in ("detector", "targets-detector"):
        text = (builtin_directory() / f"{name}.ini").read_text()
        (tables / f"{name}-mine.ini").write_text(text.replace("dot_product_scoring", "scoring"))
    shutil.copy(builtin_directory() / "layout-packed.ini", tables / "layout-mine.ini")
    text = (tables / "layout-mine.ini").read_text()
    text = text.replace("targets-detector.ini", "targets-detector-mine.ini").replace(
        "= detector.ini", "= detector-mine.ini"
    )
    text = text.replace("= packed_model", "= packed_encoder")
    (tables / "layout-mine.ini").write_text(text)
    folder = converted(checkpoint, tmp_path / "out", tables)
    assert {k for k in tensors(folder) if "scoring" in k and "dot_product" in k} == set()
    assert_proven(folder, checkpoint, "--mapping", tables)
    for options in (["--converted", folder], ["--candidate", "mine"]):
        done = sam3lite("parity", "--checkpoint", checkpoint, "--mapping", tables, *options, "--json")
        assert (done.code, done.json["verdict"], done.json["candidate"]) == (0, "exact", "mine")
    (example,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    done = python("-c", example, cwd=folder)
    assert done.returncode == 0 and "[1, 16, " in done.stdout, done
    said = sam3lite("convert", checkpoint, "--output", folder, "--layout", "mine", "--mapping", tables)
    assert f'Loads with: sam3lite_convert.PackedTextModel.from_pretrained("{folder}")' in said.out
