"""What is printed: how much, where lines are broken, and bars."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from support.folders import convert, edit, sam3lite, tensors, tiny_state, write
from support.plain_port import run_port
from support.terminals import on_a_terminal
from support.watched_bars import watch

from sam3lite_convert.report import bars, terminal


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with all the components of a released one."""
    return write(tmp_path_factory.mktemp("demo"), tiny_state(), "demo.pt")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


TEXT = "detector.backbone.language_backbone."
TENSORS = len(tiny_state())
LOADS = 'Loads with: sam3lite_convert.PackedModel.from_pretrained("out")'


def test_a_conversion_fits_a_terminal_and_ends_with_what_loads_it(demo, columns):
    convert = ["convert", demo, "--output", "out"]
    first = sam3lite(*convert, "--verify", "--parity").out.splitlines()
    assert len(first) <= 24 and max(map(len, first)) <= max(80, len(str(demo)))
    assert first[-1] == LOADS and sum("proven" in line for line in first) == 1
    again = sam3lite(*convert).out.splitlines()
    assert again == ["out is complete and current; no tensor was written.", LOADS]
    long = sam3lite(*convert, "--overwrite", "--verbose").out.splitlines()
    assert any(line.startswith("detr_decoder ") for line in long) and any(
        line.startswith("  model.safetensors  ") for line in long
    )
    assert not any(line.startswith("detr_decoder ") for line in first)


def test_the_short_form_drops_no_note_and_no_count(demo):
    short = sam3lite("convert", demo, "--output", "short").out.splitlines()
    long = sam3lite("convert", demo, "--output", "long", "--verbose").out.splitlines()
    kept = [line for line in long if line.startswith(("note:", f"{TENSORS} source", "kind:", "layout"))]
    assert len(kept) >= 4 and set(kept) <= set(short)
    (dropped,) = [line for line in short if line.startswith("dropped: ")]
    (counts,) = [line for line in short if line.startswith(f"{TENSORS} source tensors = ")]
    assert f" {sum(map(int, re.findall('[0-9]+ ', dropped)))} dropped;" in counts
    assert "tracker, " in dropped and "freqs_cis, " in dropped


@pytest.fixture(scope="module")
def made(demo: Path) -> dict[str, Path]:
    """What the commands below read: folders, one of them with faults of one cause, and activations of a port."""
    place = demo.parent
    folder, wrong = convert(demo, place / "folder"), convert(demo, place / "wrong", "--layout", "transformers")
    keys = [key for key in tensors(wrong) if key.endswith(("q_proj.weight", "k_proj.bias", "fc1.weight"))]
    edit(wrong, {key: tensors(wrong)[key] + 1 for key in keys})
    state = {k.removeprefix(TEXT): t for k, t in tiny_state().items() if k.startswith(TEXT)}
    ids = torch.tensor([[510, 32, 112, 511] + [0] * 12])
    taps = run_port(state, ids, faults_in={"tanh GELU": [3]})
    np.savez(place / "mine.npz", input_ids=ids.numpy(), **{tap: value.numpy() for tap, value in taps.items()})
    return {"CK": demo, "FOLDER": folder, "WRONG": wrong, "MINE": place / "mine.npz"}


# Command -> its verdict with --quiet.
COMMANDS = {
    "inspect CK": "kind: SAM3-LiteText detector",
    "convert CK --output out --overwrite --verify --parity": "Wrote out: 5 files, ",
    "convert CK --output out --overwrite --verbose": None,
    "convert CK --output new --dry-run": "Dry run: the plan is sound",
    "verify FOLDER CK": "proven: ",
    "verify WRONG CK": "mismatch: ",
    "verify WRONG CK --verbose": None,
    "parity CK --converted FOLDER --debug-intermediates": "verdict 1, weights: exact",
    "judge MINE CK": "verdict: differs",
    "diff CK CK": f"{TENSORS} tensors equal, 0 changed",
    "diff CK WRONG": None,
    "parity CK --component detector --size 56": None,
    "explain CK detector.dot_prod_scoring.hs_proj.bias": "target  dot_product_scoring.query_proj.bias",
    "explain V-TRANSPOSED": "V-TRANSPOSED: stored transposed",
    "tables CK": f"{TENSORS} tensors = ",
    "tables --layout original": "layout original of SAM3-LiteText",
    "tables CK *hs_proj*": f"2 of {TENSORS} tensors have names like *hs_proj*",
    "record CK --output ref.safetensors": "Wrote ref.safetensors",
    "record --script rec.py": "Wrote rec.py (",
    "restore FOLDER CK --output back.pt --overwrite": f"{TENSORS} tensors = ",
    "inspect nowhere.pt": "",
    "explain CK no.such.key": "",
    "convert CK --no-such-option": "",
}


_SLOW = ("verify WRONG CK --verbose", "parity CK --component detector --size 56")


@pytest.mark.parametrize("columns", [80, pytest.param(60, marks=pytest.mark.stress)])
@pytest.mark.parametrize("command", [pytest.param(c, marks=pytest.mark.stress if c in _SLOW else ()) for c in COMMANDS])
def test_80_columns_break_no_word_and_quiet_prints_the_verdict(command, columns, made, monkeypatch):
    words = [str(made.get(word, word)) for word in command.split()]
    monkeypatch.setenv("COLUMNS", "300")
    wide = sam3lite(*words)
    monkeypatch.setenv("COLUMNS", str(columns))
    narrow = sam3lite(*words)
    for of_narrow, of_wide in ((narrow.out, wide.out), (narrow.err, wide.err)):
        assert set(of_narrow.split()) - {"\\"} <= set(of_wide.split())
    # Only a line that cannot be broken is longer: a word that is too long, such as a hash, with little before it.
    long = [line for line in (narrow.out + narrow.err).splitlines() if len(line) > columns]
    assert [line for line in long if len(line) - max(map(len, line.split())) > 13] == []
    if columns != 80:
        return
    if COMMANDS[command] is None:
        return
    quiet = sam3lite(*words, "--quiet")
    assert quiet.code == narrow.code and len(quiet.out.splitlines()) <= 3
    assert quiet.out.startswith(COMMANDS[command]) and bool(quiet.out) != bool(quiet.err)


def test_lines_into_a_pipe_are_whole(made, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    for command in ("explain V-TRANSPOSED", "diff CK WRONG", "record CK --output whole.safetensors"):
        words = [str(made.get(word, word)) for word in command.split()]
        piped = sam3lite(*words).out
        with monkeypatch.context() as wide:
            wide.setenv("COLUMNS", "5000")
            Path("whole.safetensors").unlink(missing_ok=True)
            assert [line.split() for line in piped.splitlines()] == [
                line.split() for line in sam3lite(*words).out.splitlines()
            ]
        assert max(map(len, piped.splitlines())) > 80


def test_one_cause_in_several_components_is_said_once(made):
    done = sam3lite("verify", made["WRONG"], made["CK"])
    said = [line for line in done.out.splitlines() if line.startswith("V-")]
    assert [line.split()[0] for line in said] == sorted({line.split()[0] for line in said})
    assert done.out.count("correlated with it, like a fine-tune") == 1
    assert "vision encoder (24), geometry encoder (5)" in said[0]
    assert "    vision encoder: relative L2 " in done.out and "    text encoder: relative L2 " in done.out
    assert "mismatch: 6 findings of 2 causes; " in done.out


# Command -> the bars that it opens, by their beginnings: what takes long on a checkpoint of 2 GB.
BARS = {
    "convert CK --output out --overwrite --verify --parity": [
        "hashing the source", "writing", "verifying", "reading the original", "running ",
    ],
    "verify FOLDER CK": ["hashing the source", "comparing", "hashing the folder"],
    "diff CK FOLDER": ["checking both files", "comparing"],
    "restore FOLDER CK --output back.pt --overwrite": ["hashing the checkpoint", "comparing", "writing"],
    "record CK --output ref.safetensors": ["hashing the source", "reading the original", "running original"],
    "record CK --fingerprint --output print.json": ["hashing the source", "running original"],
    "parity CK --converted WRONG": [
        "checking the checksums", "reading the folder", "reading the original", "running original",
        "trying known faults of layers.0",
    ],
    "parity CK": ["making the conversion"],
    "judge MINE CK": ["hashing the source", "reading the original", "trying known faults of layers.3"],
    "export onnx FOLDER CK": ["comparing", "hashing the folder", "building graphs", "writing and checking graphs"],
    "record CK --component detector --size 56 --output d.safetensors": ["hashing the source", "original"],
    "parity CK --component detector --size 56 --converted WRONG": [
        "reading the original", "reading the folder", "candidate", "trying known faults of trunk.blocks.0",
    ],
}  # fmt: skip
_NO_TOTAL = ["building graphs"]  # a time is shown instead of that left


@pytest.mark.parametrize("command", [pytest.param(c, marks=pytest.mark.stress if "WRONG" in c else ()) for c in BARS])
def test_long_work_has_a_bar(command, made, monkeypatch):
    found = watch(monkeypatch)
    if command.startswith("export"):
        pytest.importorskip("onnx")
    if "WRONG" in command:
        pytest.importorskip("transformers")
    words = [str(made.get(word, word)) for word in command.split()]
    done = sam3lite(*words)
    assert done.code == ("WRONG" in command or "MINE" in command), done
    for label in BARS[command]:
        assert [bar for bar in found if bar.label.startswith(label)], (label, found)
    for bar in found:
        assert bar.closed
        if bar.label not in _NO_TOTAL:
            # Files also hold headers, which are not compared.
            assert bar.total and 0.9 * bar.total <= bar.done <= bar.total, bar


def test_hashing_before_a_push_has_a_bar(made, monkeypatch):
    from sam3lite_convert import progress
    from sam3lite_convert.checkpoint import hashing

    found = watch(monkeypatch)
    with progress.shown_by(bars.opener(False)):
        hashing.sha256_of(made["CK"])
        assert found == []  # a small file
        monkeypatch.setattr(hashing, "_LONG", 0)
        hashing.sha256_of(made["CK"])
    assert [(bar.label, bar.done) for bar in found] == [("hashing demo.pt", made["CK"].stat().st_size)]


def test_nothing_shows_bars_unless_a_program_asks_for_them(monkeypatch):
    from sam3lite_convert import progress

    found = watch(monkeypatch)
    with progress.bar("long work", 2) as advance:
        advance()
    assert found == []


def test_bars_are_in_one_display_with_rate_and_time_left(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(terminal, "error_console", lambda: Console(file=shown, force_terminal=True, width=80))
    show = bars.opener(quiet=False)
    # At a low rate the display would not be drawn again by itself.
    with show("hashing the source", 2_000_000, "byte") as in_bytes, show("running the original", 4, "step") as steps:
        for _ in range(3):
            time.sleep(0.11)
            in_bytes(500_000)
            steps(stage="layers.0")
        time.sleep(0.25)
    seen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue())
    assert re.search(r"hashing the source +[━╸╺ ]+ 1\.5/2\.0 MB +[0-9.]+ MB/s +0:00:0", seen), seen
    assert re.search(r"running the original: layers\.0 [━╸╺ ]+ 3/4 +[0-9.]+ step/s +0:00:0", seen)
    assert all(len(line) <= 80 for line in re.split(r"[\r\n]", seen))
    with bars.opener(quiet=True)("hashing", 1, "byte"):
        pass
    assert "hashing " not in re.sub("hashing the", "", seen) and bars._display._open == 0


@pytest.mark.stress
@pytest.mark.parametrize(
    ("command", "bars"),
    [
        ("convert CK --output out --verify", ["writing", "hashing the source", "verifying"]),
        ("verify FOLDER CK", ["comparing", "hashing the source"]),
        ("diff CK CK", ["comparing", "checking both files"]),
        ("restore FOLDER CK --output back.pt", ["comparing", "writing"]),
        ("parity CK --self-test", ["making faults"]),
    ],
)
def test_long_work_has_a_bar_on_a_terminal_alone(command, bars, made, tmp_path):
    words = [str(made.get(word, word)) for word in command.split()]
    terminal = {"TERM": "xterm-256color", "COLUMNS": "80"}
    seen = on_a_terminal(words, tmp_path, **terminal).decode()
    assert all(bar in seen for bar in bars) and re.search(r"[kM]?B/s|step/s|s/step", seen)
    assert re.search(r"\d:\d\d:\d\d|-:--:--", seen)  # the time left
    over = ["--overwrite"] if words[0] in ("convert", "restore") else []
    for option in ("--quiet", "--json"):
        said = on_a_terminal([*words, *over, option], tmp_path, **terminal).decode()
        assert not any(f"{bar} " in said for bar in bars), option
