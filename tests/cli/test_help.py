"""Help: an option says the same in every command and stands under a heading, and every command has examples."""

from __future__ import annotations

import re
import shlex

import pytest
import typer
from support.folders import python, sam3lite

from sam3lite_convert.cli.app import app
from sam3lite_convert.cli.help import (
    HEADINGS,
    choices_of,
    every_command,
    examples,
    help_of,
    option_names,
    takes_value,
    value_name,
    without_examples,
)
from sam3lite_convert.cli.mistakes import parse_fault

ROOT = typer.main.get_command(app)
COMMANDS = dict(every_command(ROOT))
# Options that are not the same in every command: what differs, and why.
DIFFERENT = {
    "--all": ("help heading default", "of convert every checkpoint; of explain and diff every line"),
    "--output": ("help metavar", "a folder of convert and demo, a file of restore and record"),
    "--component": ("help metavar default", "only convert knows the video model; judge goes by FILE"),
    "--size": ("default", "a graph is for use, a comparison for speed"),
    "--dtype": ("help heading", "of convert that of the output, of parity that of the run"),
    "--fingerprint": ("help metavar default heading", "judge reads the file that record writes"),
}  # fmt: skip


def test_an_option_is_the_same_in_every_command():
    seen: dict[str, dict[str, set[str]]] = {}
    for command in COMMANDS.values():
        for name, option in option_names(command).items():
            said = {
                "help": option.help,
                "metavar": value_name(option) if takes_value(option) else "",
                "default": f"{option.default} {option.show_default}",
                "heading": option.rich_help_panel,
            }
            for what, value in said.items():
                seen.setdefault(name, {}).setdefault(what, set()).add(value)
    differing = {name: {what for what, values in said.items() if len(values) > 1} for name, said in seen.items()}
    expected = {name: set(what.split()) for name, (what, _) in DIFFERENT.items()}
    assert {name: what for name, what in differing.items() if what} == expected


@pytest.mark.parametrize("name", COMMANDS)
def test_help_speaks_of_no_option_that_the_command_does_not_have(name):
    command = COMMANDS[name]
    texts = [without_examples(command), *(f"{help_of(command, p)} {p.show_default}" for p in command.params)]
    for before, option in re.findall(r"(?:(\w+)\s)?(--[a-z][\w-]*)", " ".join(texts)):
        of = COMMANDS.get(before, command)  # such as: convert --verify
        assert option in (*option_names(of), "--help"), (name, option)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_heading_and_every_value_a_name(name):
    for parameter in COMMANDS[name].params:
        assert parameter.rich_help_panel in HEADINGS, parameter.name
        if parameter.param_type_name == "argument" or not parameter.is_flag:
            assert parameter.metavar or choices_of(parameter), parameter.name


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("columns", [80, 64, 200])
def test_help_fits_the_terminal_under_headings_and_breaks_no_word(name, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    done = sam3lite(*name.split(), "--help")
    lines = done.out.partition("Examples:")[0].splitlines() if columns < 80 else done.out.splitlines()
    assert done.code == 0 and max(map(len, lines)) <= min(columns, 80)
    lines = done.out.splitlines()
    headings = [line[:-1] for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert headings == [h for h in HEADINGS if h in headings] + ["Examples"]  # in their order
    shown = done.out.split()
    for parameter in COMMANDS[name].params:
        assert set(help_of(COMMANDS[name], parameter).split()) <= set(shown), parameter.name
    assert set(option_names(COMMANDS[name])) <= set(shown)


def test_the_first_page_lists_every_command_with_a_whole_sentence():
    page = sam3lite("--help").out
    assert max(map(len, page.splitlines())) <= 80
    words = " ".join(page.split())
    assert "object at" not in words
    for name, command in ROOT.commands.items():
        sentence = " ".join(command.help.split("\n\n")[0].split()).partition(". ")[0].rstrip(".")
        assert f" {name} {sentence}." in words


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_two_examples_that_parse(name):
    assert len(examples(COMMANDS[name])) == 2
    for line in examples(COMMANDS[name]):
        words = shlex.split(line)
        assert words[: 1 + len(name.split())] == ["sam3lite", *name.split()]
        assert parse_fault(ROOT, words[1:]) is None, line


def test_the_examples_of_the_first_page_parse():
    lines = [shlex.split(line) for line in examples(ROOT)]
    assert lines and all(parse_fault(ROOT, words[1:]) is None for words in lines)


@pytest.mark.parametrize("line", ["convert s0 --no-such", "verify", "inspekt s0", "parity --batch x", "export"])
def test_an_example_that_does_not_parse_would_be_found(line):
    assert parse_fault(ROOT, line.split()) is not None


def test_help_imports_neither_rich_nor_torch():
    code = (
        "import sys\nfrom sam3lite_convert.cli.app import run\nassert run(['convert', '--help']) == 0\n"
        "assert not {'torch', 'numpy', 'rich.panel', 'rich.table'} & sys.modules.keys()\n"
    )
    done = python("-c", code)
    assert (done.returncode, done.stderr) == (0, "")
