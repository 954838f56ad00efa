"""Mistakes on the command line: the whole line that was meant is shown, ready to be pasted, where it is clear."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.folders import sam3lite
from support.schemas import check_document

from sam3lite_convert.cli import app
from sam3lite_convert.cli.mistakes import corrected, parse_fault
from sam3lite_convert.report import verbosity

ROOT = typer.main.get_command(app.app)

# What was typed -> what was meant. s0.pt, mine.npz and the folder DIR exist.
MEANT = {
    # options
    "convert s0.pt --ouput out": "convert s0.pt --output out",
    "convert s0.pt --ouput=out": "convert s0.pt --output=out",
    "convert s0.pt --out x": "convert s0.pt --output x",
    "convert s0.pt -o x": "convert s0.pt --output x",
    "convert s0.pt --dry_run": "convert s0.pt --dry-run",
    "convert s0.pt --Dry-Run": "convert s0.pt --dry-run",
    "inspect s0.pt -v": "inspect s0.pt --verbose",
    "convert s0.pt --force": "convert s0.pt --overwrite",
    "inspect s0.pt -json": "inspect s0.pt --json",
    "inspect s0.pt json": "inspect s0.pt --json",
    "convert s0.pt \u2014dry-run": "convert s0.pt --dry-run",
    "convert s0.pt --json=yes": "convert s0.pt --json",
    "convert s0.pt --output 'my out' --dry_run": "convert s0.pt --output 'my out' --dry-run",
    # options of other commands, and in the wrong place
    "inspect s0.pt --layout packed": "inspect s0.pt",
    "inspect s0.pt --layout=packed --json": "inspect s0.pt --json",
    "inspect s0.pt --dry-run": "inspect s0.pt",
    "--json inspect s0.pt": "inspect s0.pt --json",
    "--output out convert s0.pt": "convert s0.pt --output out",
    "convert --version": "--version",
    "explain --checkpoint s0.pt KEY": "explain s0.pt KEY",
    "convert --chekpoint s0.pt": "convert s0.pt",
    "convert --checkpoint=s0.pt --dry_run": "convert s0.pt --dry-run",
    "explain s0.pt --key KEY": "explain s0.pt KEY",
    "verify --converted DIR s0.pt": "verify DIR s0.pt",
    # commands
    "convrt s0.pt": "convert s0.pt",
    "convrt s0.pt --ouput out": "convert s0.pt --output out",
    "Convert s0.pt": "convert s0.pt",
    "s0.pt": "convert s0.pt",
    "s0.pt --layout packed": "convert s0.pt --layout packed",
    "s0.pt --candidate transformers": "parity s0.pt --candidate transformers",
    "s0.pt convert": "convert s0.pt",
    "s0": "convert s0",
    "DIR": "inspect DIR",
    "DIR s0.pt": "verify DIR s0.pt",
    "help": "--help",
    "help convert": "convert --help",
    "version": "--version",
    "--verson": "--version",
    "s0.pt --family SAM3": "tables s0.pt --family SAM3",
    "s0.pt --as-used --seed 3": "parity s0.pt --as-used --seed 3",
    "s0.pt s0.pt --exit-code": "diff s0.pt s0.pt --exit-code",
    "--family SAM3 s0.pt": "tables s0.pt --family SAM3",
    "DIR --taps": "export onnx DIR --taps",
    "mine.npz s0.pt --name port": "judge mine.npz s0.pt --name port",
    "--json mine.npz --fingerprint DIR": "judge mine.npz --fingerprint DIR --json",
    "--json s0.pt explain KEY": "explain --json s0.pt KEY",
    "export DIR onnx": "export onnx DIR",
    "export help": "export onnx --help",
    "inspect --hlep": "inspect --help",
    "inspect s0.pt -?": "inspect s0.pt --help",
    "inspect s0.pt help": "inspect --help",
    "inspect help": "inspect --help",
    "export DIR": "export onnx DIR",
    "export --taps DIR": "export onnx --taps DIR",
    "export onxx DIR": "export onnx DIR",
    "onnx DIR": "export onnx DIR",
    # values
    "convert s0.pt out": "convert s0.pt --output out",
    "convert s0.pt packed": "convert s0.pt --layout packed",
    "convert s0.pt DIR": "convert s0.pt --output DIR",
    "convert s0.pt b.pt out": "convert s0.pt b.pt --output out",
    "record s0.pt taps.npz": "record s0.pt --output taps.npz",
    "parity s0.pt DIR": "parity s0.pt --converted DIR",
    "parity s0.pt DIR --converted": "parity s0.pt --converted DIR",
    "parity s0.pt DIR --converted --json": "parity s0.pt --converted DIR --json",
    "convert s0.pt --dtype fp16": "convert s0.pt --dtype float16",
    "convert s0.pt --dtype=bfloat61": "convert s0.pt --dtype=bfloat16",
    "convert s0.pt output out": "convert s0.pt --output out",
    "convert s0.pt layout packed": "convert s0.pt --layout packed",
    "convert s0.pt output=out": "convert s0.pt --output=out",
    "restore DIR output new.pt": "restore DIR --output new.pt",
    "convert s0.pt --push-to-hub me/x": "convert s0.pt --push-to-hub --hub-model-id me/x",
    "convert s0.pt --push-to-hub=me/x": "convert s0.pt --push-to-hub --hub-model-id me/x",
    "convert s0.pt --overwrite out": "convert s0.pt --overwrite --output out",
    "convert s0.pt --verify=false": "convert s0.pt --no-verify",
    "inspect s0.pt --verbose=0": "inspect s0.pt",
    # what a command sees itself
    "verify s0.pt DIR": "verify DIR s0.pt",
    "verify s0.pt --checkpoint=DIR --json": "verify DIR s0.pt --json",
    "verify s0 DIR": "verify DIR s0",
    "export onnx s0.pt DIR --taps": "export onnx DIR s0.pt --taps",
    "restore s0.pt DIR --output new.pt": "restore DIR s0.pt --output new.pt",
    "restore DIR new.pt": "restore DIR --output new.pt",
    "convert s0.pt --layout Transformer": "convert s0.pt --layout transformers",
    "explain s0.pt KEY --layout=orginal": "explain s0.pt KEY --layout original",
    "tables --layout pakced": "tables --layout packed",
    "parity s0.pt --candidate onxx": "parity s0.pt --candidate onnx",
    "parity s0.pt --size 56": "parity s0.pt --size 56 --component detector",
    "record s0.pt --component text --box 1,2,3,4": "record s0.pt --component detector --box 1,2,3,4",
    "convert s0 --partial": "convert s0 --partial --component text",
    "parity DIR s0.pt": "parity --converted DIR s0.pt",
    "tables *qkv* s0.pt": "tables s0.pt '*qkv*'",
    "tables Packed": "tables --layout packed",
    "tables SAM3 --json": "tables --family SAM3 --json",
    "tables --family sam3-litetxt": "tables --family SAM3-LiteText",
    "explain KEY s0.pt": "explain s0.pt KEY",
    "judge s0.pt mine.npz --name x": "judge mine.npz s0.pt --name x",
    "judge s0 mine.npz": "judge mine.npz s0",
}
# What was typed -> how it is done, where something is missing.
EXAMPLE = {
    "inspect": "inspect s0",
    "inspect --json": "inspect s0 --json",
    "convert --layout original": "convert s0 --layout original",
    "record --seed 3": "record s0 --seed 3",
    "verify": "verify my-sam3 my.pt",
    "verify DIR": "verify DIR s0",
    "verify --checkpoint s0.pt": "verify DIR s0.pt",
    "restore DIR": "restore DIR --output restored.pt",
    "diff s0.pt": "diff s0.pt my.pt",
    "diff my.pt": "diff my.pt s0",
    "restore s0.pt": "restore my-sam3 s0.pt --output restored.pt",
    "restore s0 --output x.pt": "restore my-sam3 s0 --output x.pt",
    "judge s0.pt": "judge mine.npz s0.pt",
    "explain s0.pt --layout packed": "explain s0.pt '*qkv_proj*' --layout packed",
    "explain detector.x.weight": "explain s0 detector.x.weight",
    "explain *qkv*": "explain s0 '*qkv*'",
    "tables *qkv*": "tables s0 '*qkv*'",
    "explain --layout packed": "explain s0 --layout packed",
    "parity s0.pt --converted": "parity s0.pt --converted DIR",
    "parity s0.pt --converted --json": "parity s0.pt --converted DIR --json",
    "convert s0.pt --dtype": "convert s0.pt --dtype float32",
    "export": "export onnx my-sam3",
}
# What may have been meant in two ways, or in none.
UNCLEAR = [
    "frobnicate", "convert x --no-such-option", "convert s0.pt b --output c", "parity --batch many",
    "convert s0.pt --sha 3", "diff s0.pt s0.pt --state-dict-key-c x", "--json", "convert s0.pt --hub x",
]  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path / "s0.pt").write_bytes(b"not read")
    (tmp_path / "mine.npz").write_bytes(b"not read")
    (tmp_path / "DIR").mkdir()
    (tmp_path / "DIR" / "conversion.json").write_text("{}")
    monkeypatch.chdir(tmp_path)


def last_line(text):
    """The words of the command line that a message ends with."""
    return shlex.split(text.rstrip("\n").split("\n")[-1])


@pytest.mark.parametrize("typed", MEANT)
def test_the_line_that_was_meant_is_shown(typed):
    done = sam3lite(*shlex.split(typed))
    asked, words = "--json" in shlex.split(typed), shlex.split(MEANT[typed])
    message = json.loads(done.out)["error"]["message"] if asked else done.err.removeprefix("error: ")
    assert done.code == 2 and (done.err == "" if asked else done.out == "")
    assert message.split("\n")[-2 - (not asked)] == "Did you mean:"
    assert last_line(message) == ["sam3lite", *words]
    assert "error" not in message and "Usage:" not in message
    if words[0] != "--version" and words[-1] != "--help":
        assert parse_fault(ROOT, words) is None


@pytest.mark.parametrize("typed", EXAMPLE)
def test_what_is_missing_is_shown_in_an_example(typed):
    done = sam3lite(*shlex.split(typed))
    error = json.loads(done.out)["error"] if "--json" in typed else {"message": done.err}
    assert done.code == 2
    assert "For example:\n" in error["message"] and "Did you mean" not in error["message"]
    assert last_line(error["message"]) == ["sam3lite", *shlex.split(EXAMPLE[typed])]


@pytest.mark.parametrize("typed", UNCLEAR)
def test_where_it_is_not_clear_nothing_is_proposed(typed):
    assert corrected(ROOT, shlex.split(typed)) is None
    done = sam3lite(*shlex.split(typed))
    shown = done.out + done.err
    assert done.code == 2 and "Did you mean:" not in shown and "For example:" not in shown


def test_the_line_is_quoted_and_stands_in_the_details_too():
    done = sam3lite("convert", "my file.pt", "--ouput", "a; rm -rf $HOME\n'b'", "--json")
    error = json.loads(done.out)["error"]
    check_document(["convert", "--json"], json.loads(done.out))
    assert error["code"] == "usage" and error["message"].endswith(error["details"]["command"])
    assert error["details"]["command"].count("\n") == 0
    assert error["details"]["command"].startswith(
        "sam3lite convert 'my file.pt' --output $'a; rm -rf $HOME\\012\\'b\\''"
    )


def test_an_option_of_other_commands_is_said_to_be_theirs():
    assert (
        "inspect has no option --seed; it is an option of parity and record\n"
        in sam3lite("inspect", "x", "--seed", 1).err
    )
    assert (
        "inspect has no option --report; it is an option of other commands\n"
        in sam3lite("inspect", "x", "--report", 1).err
    )


@pytest.mark.parametrize("words", [
    ["convert", ""], ["convert", "--checkpoint="], ["convert", "s0.pt", "--output", ""], ["verify", "", "s0.pt"],
    ["verify", "--", "", "s0.pt"], ["convert", "s0.pt", ""], ["convert", "s0", "--cache-dir", ""],
    ["diff", "s0.pt", ""],
])  # fmt: skip
def test_an_empty_name_as_of_an_unset_variable_is_not_the_working_directory(words):
    done = sam3lite(*words)
    assert done.code == 2 and " is empty" in done.err
    assert sorted(path.name for path in Path().iterdir()) == ["DIR", "mine.npz", "s0.pt"]


def test_trying_a_line_leaves_how_much_is_printed():
    """--verbose of one line is not in the way of --quiet of the next."""
    for option in ("--verbose", "--quiet", "--verbose"):
        assert parse_fault(ROOT, ["inspect", "s0.pt", option]) is None
    assert not verbosity.quiet() and not verbosity.verbose()


def test_other_values_may_be_empty():
    assert parse_fault(ROOT, ["parity", "s0.pt", "--prompt", "", "--prompt="]) is None


@pytest.mark.parametrize("typed", ["--token {}", "--token={}", "--hf-token {}", "{}", "--hub-tokn {}", "--layout {}"])
@pytest.mark.parametrize("more", [[], ["--json"]], ids=["text", "json"])
def test_a_token_that_was_typed_is_not_shown(typed, more, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "not of the usual form")
    for token in ("hf_" + "AbCdEfGh12" * 3 + "xyz1", "not of the usual form"):
        words = [word.format(token) for word in typed.split()]
        done = sam3lite("convert", "s0.pt", *words, *more)
        assert done.code == 2 and token not in done.out + done.err
        if "--token" in typed:
            assert "the token is that of HF_TOKEN" in done.out + done.err
            assert "Did you mean:" in done.out + done.err and "tokenizer" not in done.out + done.err


def test_an_option_as_a_value_is_given_with_an_equals_sign():
    fault = parse_fault(ROOT, ["parity", "s0.pt", "--prompt", "--json"])
    assert fault is not None and fault.message.endswith("If it is the value: --prompt=--json")
    assert parse_fault(ROOT, ["parity", "s0.pt", "--prompt=--json"]) is None
    assert parse_fault(ROOT, ["parity", "s0.pt", "--tolerance", "-1"]) is None


WORDS = st.sampled_from(
    [
        "convert", "inspect", "export", "onnx", "verify", "diff", "parity", "help", "s0", "s0.pt", "DIR", "KEY", "-x",
        "--json", "--jsn", "-o", "--output", "--output=x", "--layout", "packed", "--", "-", "--=", "=", "", "-h",
        "--dtype", "fp16", "--dtype=", "\u2014json", "--box", "--checkpoint", "--no-verify", "--verify=1", "--version",
        "--component", "--converted", "--prompt", "--all=", "\udcff", "--\udcff", "--batch",
    ]
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(WORDS, max_size=7))
def test_whatever_is_typed_a_correction_parses(words):
    found = corrected(ROOT, words)
    assert found is None or parse_fault(ROOT, found.words) is None


def test_trying_a_correction_runs_nothing(monkeypatch, tmp_path, capsys):
    """--install-completion acts when it is parsed, and --help prints."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    found = corrected(ROOT, ["--instal-completion"])
    assert found is not None and found.words == ["--install-completion"]
    assert corrected(ROOT, ["convrt", "--help"]).words == ["convert", "--help"]
    assert capsys.readouterr() == ("", "") and not (tmp_path / "home").exists()


def test_a_misspelt_checkpoint_is_compared_with_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tuned.pt").touch()
    for typed, meant in {"tuned.p": "tuned.pt", "Tuned.PT": "tuned.pt", "./tuned.tp": "tuned.pt", "S0": "s0"}.items():
        said = sam3lite("inspect", typed, "--json").json["error"]["message"]
        assert f" Did you mean {meant}?" in said, typed
    assert "Did you mean" not in sam3lite("inspect", "nothing-like-it", "--json").json["error"]["message"]


def test_verify_proposes_the_checkpoint_that_the_receipt_names_if_it_is_there(tmp_path: Path) -> None:
    for name, meant in {"s0.pt": "s0.pt", "moved.pt": "s0", "/etc/passwd": "s0"}.items():
        (tmp_path / "DIR" / "conversion.json").write_text(json.dumps({"source": {"name": name}}))
        assert last_line(sam3lite("verify", "DIR").err) == ["sam3lite", "verify", "DIR", meant]
