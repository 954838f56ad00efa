"""How commands are called: the checkpoint as an argument, usage errors, help, shell completion."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import typing

import pytest
import shellingham
import typer
from support.folders import convert, environment, python, sam3lite, snapshot, tiny_state, write
from typer.models import OptionInfo

from sam3lite_convert.cli import app
from sam3lite_convert.cli.options import parse_size
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.hub.aliases import ALIASES

COMMANDS = (
    "inspect", "convert", "explain", "tables", "verify", "restore", "diff", "parity", "judge", "record", "demo",
    "doctor", "export",
)  # fmt: skip
MAIN = [sys.executable, "-m", "sam3lite_convert"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write(tmp_path_factory.mktemp("usage"), tiny_state(), "s0.pt")


@pytest.fixture(scope="module")
def folder(tiny):
    return convert(tiny, tiny.parent / "folder")


# ---- the checkpoint as an argument ------------------------------------------------------------------


def test_convert_takes_the_checkpoint_as_an_argument(tiny, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny.parent)
    done = sam3lite("convert", "s0.pt", "--output", tmp_path / "out")
    assert done.code == 0, done
    assert snapshot(tmp_path / "out") == snapshot(folder)


def test_verify_takes_the_checkpoint_behind_the_folder(tiny, folder):
    assert sam3lite("verify", folder, tiny, "--json").json["verdict"] == "proven"


def test_parity_takes_the_checkpoint_as_an_argument(tiny, folder):
    record = sam3lite("parity", tiny, "--converted", folder, "--json").json
    assert (record["verdict"], record["checkpoint"]) == ("exact", str(tiny))


@pytest.mark.parametrize("words", [["convert", "--dry-run"], ["verify", "FOLDER"], ["parity"]], ids=lambda w: w[0])
def test_the_checkpoint_may_be_given_both_ways_if_it_is_the_same(words, tiny, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [str(folder) if word == "FOLDER" else word for word in words]
    assert sam3lite(*words, tiny, "--checkpoint", tiny).code == 0
    done = sam3lite(*words, tiny, "--checkpoint", "s1")
    assert (done.code, done.err) == (2, f"error: two checkpoints: {tiny} and --checkpoint s1; give one of them\n")


def test_all_takes_no_checkpoint_and_judge_no_seed(tiny, tmp_path):
    assert "--all cannot be combined with a checkpoint" in sam3lite("convert", tiny, "--all").err
    done = sam3lite("parity", tiny, "--judge", tmp_path / "file", "--seed", 1)
    assert done.code == 2 and "takes only --tolerance, --name and --report" in done.err


def test_verify_without_a_checkpoint_says_how_to_give_it(folder):
    done = sam3lite("verify", folder)
    assert done.code == 2
    assert "sam3lite verify DIR CHECKPOINT" in done.err


# ---- usage errors -----------------------------------------------------------------------------------

# Command line -> what the message says. Nothing of it is a name of Python's.
WRONG = {
    ("parity", "--batch", "many"): "Invalid value for '--batch': 'many' is not a whole number.",
    ("parity", "--seed", "1.5"): "Invalid value for '--seed': '1.5' is not a whole number.",
    ("parity", "--length", ""): "Invalid value for '--length': '' is not a whole number.",
    ("parity", "--tolerance", "small"): "Invalid value for '--tolerance': 'small' is not a number.",
    ("convert", "x", "--context", "8 tokens"): "Invalid value for '--context': '8 tokens' is not a whole number.",
    ("convert", "x", "--dtype", "int4"): "'--dtype': 'int4' is not one of 'float32', 'float16', 'bfloat16'.",
    ("convert", "x", "--component", "vision"): "'--component': 'vision' is not one of 'all', 'text', 'video'.",
    ("parity", "--attention", "flash"): "'--attention': 'flash' is not one of 'eager', 'sdpa'.",
    ("diff", "x"): "Missing argument 'B'.",
    ("frobnicate",): "No such command 'frobnicate'.",
    ("convert", "x", "--no-such-option"): "convert has no option --no-such-option",
}


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_a_usage_error_is_one_message_in_words_and_one_usage(words):
    done = sam3lite(*words)
    assert (done.code, done.out) == (2, "")
    assert WRONG[words] in done.err
    assert (done.err.count("error:"), done.err.count("Usage:")) == (1, 1)
    assert not any(leak in done.err for leak in ("Value error", "None", "Input should", "ValueError", "<", "Enum"))


def test_without_a_command_the_help_is_printed_once():
    done = sam3lite()
    assert (done.code, done.out) == (2, "")
    assert done.err == sam3lite("--help").out
    assert done.err.count("Usage: sam3lite ") == 1
    assert "error" not in done.err


NEEDS = {
    "--pattern": ("x", "--all"),
    "--hub-namespace": ("x", "--all"),
    "--hub-model-id": ("x", "--push-to-hub"),
    "--private": (None, "--push-to-hub"),
    "--create-pr": (None, "--push-to-hub"),
    "--commit-message": ("x", "--push-to-hub"),
    "--hub-overwrite": (None, "--push-to-hub"),
}


@pytest.mark.parametrize("option", NEEDS)
def test_an_option_names_the_one_that_it_needs(option, tiny):
    value, needed = NEEDS[option]
    done = sam3lite("convert", tiny, option, *([value] if value else []))
    assert (done.code, done.err) == (2, f"error: {option} needs {needed}\n")


# ---- sizes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("500MB", 500_000_000), ("500 mb", 500_000_000), ("2G", 2_000_000_000), ("1.5GiB", 1_610_612_736),
        ("300kB", 300_000), ("500B", 500), ("1000000", 1_000_000),
    ],
)  # fmt: skip
def test_a_size_in_bytes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["500", "999999", "2"])
def test_a_small_size_without_a_unit_is_refused(text, tiny, tmp_path):
    done = sam3lite("convert", tiny, "--output", tmp_path / "out", "--max-shard-size", text)
    assert (done.code, not (tmp_path / "out").exists()) == (2, True)
    assert f"--max-shard-size {text} has no unit; write {text}MB" in done.err


@pytest.mark.parametrize("text", ["5i", "5iB", "0", "0.5B", "MB", "5XB", "-1MB"])
def test_what_is_not_a_size_is_refused(text):
    with pytest.raises(CannotRun, match=r"is not a size|less than one byte"):
        parse_size(text)


# ---- help -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], *([c] for c in COMMANDS)], ids=lambda w: w[0] if w else "top")
def test_h_is_help(words):
    short, long = sam3lite(*words, "-h"), sam3lite(*words, "--help")
    assert short.code == 0
    assert short == long


# Nothing happens without them, so that there is no default to state.
OFF_UNLESS_GIVEN = {"checkpoint", "html", "prompt", "prompts_file", "save_activations", "judge", "script"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is_and_its_default(name):
    # ``export`` is a group; its command is ``export onnx``.
    command = getattr(importlib.import_module(f"sam3lite_convert.cli.{name}"), {"export": "onnx"}.get(name, name))
    defaults = {p.name: p.default for p in inspect.signature(command).parameters.values()}
    hints = typing.get_type_hints(command, include_extras=True)
    options = {n: h.__metadata__[0] for n, h in hints.items() if n != "return"}
    assert "json" in options
    for option, info in options.items():
        assert info.help.endswith(".") and len(info.help.split()) > 2, option
        if isinstance(info, typer.models.OptionInfo) and defaults[option] is None and option not in OFF_UNLESS_GIVEN:
            assert "Default: " in info.help or isinstance(info.show_default, str), option


# ---- shell completion -------------------------------------------------------------------------------


def completed(shell, line, cwd, **more):
    """What the shell gets for a line whose last word is to be completed."""
    words = line.split(" ")
    asked = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
        "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    env = environment() | asked | {"_SAM3LITE_COMPLETE": f"complete_{shell}"} | more
    done = subprocess.run(MAIN, cwd=cwd, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_bash_completes_commands_options_and_values(tmp_path):
    def of(line):
        return completed("bash", line, tmp_path).split()

    assert of("sam3lite ") == list(COMMANDS)
    assert of("sam3lite in") == ["inspect"]
    assert of("sam3lite convert --che") == ["--checkpoint"]
    assert of("sam3lite convert --dtype f") == ["float32", "float16"]
    assert {"packed", "transformers"} <= set(of("sam3lite explain s0 key --layout "))
    assert of("sam3lite explain s0 key --layout tr") == ["transformers"]
    assert of("sam3lite explain V-SH") == ["V-SHAPE"]
    assert of("sam3lite parity --candidate o") == ["original", "onnx", "openvino"]


@pytest.mark.parametrize(
    "line", ["inspect ", "convert ", "convert --checkpoint ", "verify out ", "parity ", "explain "]
)
def test_every_checkpoint_is_completed_to_an_alias(line, tmp_path):
    assert completed("bash", "sam3lite " + line, tmp_path).split() == list(ALIASES)


def test_files_are_completed_beside_aliases_and_alone_where_no_alias_fits(tmp_path):
    for name in ("s0.pt", "s0.txt", "other.pt"):
        (tmp_path / name).touch()
    assert completed("bash", "sam3lite inspect s0", tmp_path).split() == ["s0", "s0-32", "s0-3.1", "s0-3.1-32", "s0.pt"]
    # An empty answer has the shell complete file names: the script says "-o default".
    assert completed("bash", "sam3lite inspect oth", tmp_path).split() == []


def test_zsh_and_fish_complete(tmp_path):
    assert completed("zsh", "sam3lite inspect s1", tmp_path).count('"s1') == 4
    assert completed("fish", "sam3lite convert --layout pa", tmp_path).split() == ["packed"]
    assert '"verify":"Check every tensor' in completed("zsh", "sam3lite ver", tmp_path)


MARKS = {"bash": "complete -o default -F", "zsh": "#compdef sam3lite", "fish": "complete --command sam3lite"}


@pytest.mark.parametrize("shell", MARKS)
def test_each_shell_has_its_script(shell, tmp_path):
    env = environment() | {"_SAM3LITE_COMPLETE": f"source_{shell}"}
    done = subprocess.run(MAIN, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert MARKS[shell] in done.stdout
    assert "_SAM3LITE_COMPLETE=complete_" + shell in done.stdout


def test_the_script_for_the_shell_that_asks(tmp_path):
    command = f"{sys.executable} -m sam3lite_convert --show-completion; exit $?"
    done = subprocess.run(["bash", "-c", command], env=environment(), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert MARKS["bash"] in done.stdout


# The script in the shell itself, and what it then proposes for "sam3lite con". zsh completes in its line editor alone:
# what the script hands to it is printed.
IN_A_SHELL = {
    "bash": (
        ["bash", "-c"],
        'eval "$(_SAM3LITE_COMPLETE=source_bash sam3lite)"; COMP_WORDS=(sam3lite con); COMP_CWORD=1\n'
        '_sam3lite_completion sam3lite con sam3lite; echo "${COMPREPLY[@]}"',
        "convert",
    ),
    "zsh": (
        ["zsh", "-f", "-c"],
        "compdef() { }\n_arguments() { print -r -- $@ }\n"
        'eval "$(_SAM3LITE_COMPLETE=source_zsh sam3lite)"; words=(sam3lite con); CURRENT=2; _sam3lite_completion',
        '*: :(("convert":"Convert a checkpoint to a safetensors folder."))',
    ),
    "fish": (
        ["fish", "-N", "-c"],
        '_SAM3LITE_COMPLETE=source_fish sam3lite | source; complete -C "sam3lite con"',
        "convert\tConvert a checkpoint to a safetensors folder.",
    ),
}


@pytest.mark.parametrize("shell", IN_A_SHELL)
def test_the_shell_itself_completes_with_the_script(shell, tmp_path):
    call, lines, proposed = IN_A_SHELL[shell]
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    program = tmp_path / "sam3lite"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m sam3lite_convert "$@"\n')
    program.chmod(0o755)
    env = environment() | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    done = subprocess.run([*call, lines], env=env, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == (f"{proposed}\n", "")


@pytest.mark.parametrize("option", ["--show-completion", "--install-completion"])
def test_an_unknown_shell_is_a_message(option, tmp_path, monkeypatch):
    def none():
        raise shellingham.ShellDetectionFailure

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(shellingham, "detect_shell", none)
    done = sam3lite(option)
    assert done.code == 2
    assert "the shell was not recognised" in done.err and "source_bash" in done.err
    assert list(tmp_path.iterdir()) == []


def test_completing_a_line_imports_nothing_heavy(tmp_path):
    code = (
        "import os, sys\nfrom sam3lite_convert.cli.app import run\n"
        "os.environ.update(_SAM3LITE_COMPLETE='complete_bash', COMP_WORDS='sam3lite inspect ', COMP_CWORD='2')\n"
        "try:\n    run([])\nexcept SystemExit as end:\n    assert not end.code\n"
        # rich is imported by some versions of typer themselves; here only the module counts that we import it in.
        "heavy = {'torch', 'numpy', 'safetensors', 'transformers', 'huggingface_hub'}\n"
        "heavy.add('sam3lite_convert.report.terminal')\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n"
    )
    done = python("-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == list(ALIASES)


def test_a_size_error_is_json_where_json_is_asked_for(tiny, tmp_path):
    out = sam3lite("convert", tiny, "--output", tmp_path / "out", "--max-shard-size", "500", "--json").out
    assert json.loads(out)["error"]["code"] == "bad_size"


def test_a_candidate_that_is_no_layout_is_told_before_anything_is_looked_up():
    done = sam3lite("parity", "--candidate", "coreml")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "error: --candidate coreml: there are the layouts packed, transformers, and onnx, openvino for graphs\n"
    )


def test_an_option_with_its_name_in_capitals_as_metavar_is_named():
    """typer 0.27 makes --CHECKPOINT of a parameter ``checkpoint`` with the metavar CHECKPOINT and no other name."""
    commands = [command.callback for command in app.app.registered_commands]
    commands += [c.callback for group in app.app.registered_groups for c in group.typer_instance.registered_commands]
    alike = []
    for command in commands:
        for name, hint in typing.get_type_hints(command, include_extras=True).items():
            for option in getattr(hint, "__metadata__", ()):
                metavar = getattr(option, "metavar", None) or ""
                if isinstance(option, OptionInfo) and metavar.lower().replace("-", "_") == name:
                    # In Annotated the first name stands where a default would.
                    assert f"--{name}" in (option.default, *option.param_decls), command.__name__
                    alike.append(name)
    assert set(alike) >= {"checkpoint", "revision"}


def test_a_tokenizer_that_is_a_path_is_looked_for_here_alone(tiny, tmp_path):
    options = ("--layout", "transformers", "--output", tmp_path / "out", "--tokenizer", "./none")
    done = sam3lite("convert", tiny, *options)
    assert done.code == 0 and "the folder has no tokenizer: --tokenizer ./none: no such folder. " in done.out


def test_who_reads_patterns_is_said():
    done = sam3lite("inspect", "*.pt")
    assert done.code == 2 and "Without quotes a shell puts the names of the files in its place." in done.err


def test_transformers_stock_call_is_not_left_without_a_word(tiny, tmp_path):
    said = {
        (layout, component): sam3lite(
            "convert",
            tiny,
            "--layout",
            layout,
            "--component",
            component,
            "--output",
            tmp_path / f"{layout}-{component}",
        ).out
        for layout, component in (("transformers", "all"), ("transformers", "text"), ("packed", "all"))
    }
    assert {key: "Its README.md has the call" in out for key, out in said.items()} == {
        ("transformers", "all"): True, ("transformers", "text"): False, ("packed", "all"): False,
    }  # fmt: skip
