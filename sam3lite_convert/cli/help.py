"""Help as plain text: options under headings, and examples at the end. rich, which typer would use, is slow to import.

An option names its heading as ``rich_help_panel``. The examples of a command stand at the end of its docstring, behind
a line ``Examples:``: comments of the shell, and command lines.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from enum import Enum
from typing import Any, get_type_hints

from typer.core import TyperCommand, TyperGroup

HEADINGS = SOURCE, INPUT, OUTPUT, PROOF, HUB, GENERAL = "Source", "Input", "Output", "Proof", "Hub", "General"
_EXAMPLES = "Examples:"
_WIDTH = 80
_PLACES = re.compile("DIR|FILE|JSON|CHECKPOINT|OWNER/NAME")
_COLUMN = 26  # where texts begin


class _Help:
    """What commands and groups of commands have in common. Mixed into both classes of typer."""

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        """``Usage: sam3lite verify DIR [CHECKPOINT] [OPTIONS]``: in the order in which it is typed."""
        words = [argument_name(p) if p.required else f"[{argument_name(p)}]" for p in _arguments(self)]
        kind = ["COMMAND", "..."] if isinstance(self, TyperGroup) else []
        formatter.write(f"Usage: {' '.join([ctx.command_path, *kind, *words, '[OPTIONS]'])}\n")

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """The docstring, without its examples."""
        for paragraph in without_examples(self).split("\n\n"):
            formatter.write("\n" + _filled(paragraph, _width(formatter), "  ") + "\n")

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments and options, each under its heading."""
        rows: dict[str, list[tuple[str, str]]] = {heading: [] for heading in HEADINGS}
        for parameter in self.get_params(ctx):  # type: ignore[attr-defined]
            heading = getattr(parameter, "rich_help_panel", None) or GENERAL
            rows[heading].append((_left(parameter), _text(self, parameter)))
        if isinstance(self, TyperGroup):
            commands = [(name, _first_sentence(command)) for name, command in self.commands.items()]
            _write_rows(formatter, "Commands", commands, max(len(name) for name, _ in commands) + 4)
        for heading, found in rows.items():
            if found:
                _write_rows(formatter, heading, found, _COLUMN)
        if examples := _examples_text(self):
            formatter.write(f"\n{_EXAMPLES}\n{textwrap.indent(examples, '  ')}\n")


class Command(_Help, TyperCommand):
    """A command, with its help in this form."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer does, but an option is not taken for the value of the one before it."""
        if not ctx.resilient_parsing:
            if any("\0" in word for word in args):  # not from a shell; some versions of click raise ValueError
                ctx.fail("an argument holds a null byte")
            self._check_values(ctx, args)
        return super().parse_args(ctx, args)

    def _check_values(self, ctx: Any, words: list[str]) -> None:
        options, arguments = option_names(self), iter(_arguments(self))
        waits, ended, last = "", False, None
        for word in words:
            name, equals, value = word.partition("=")
            if waits:
                if word in options:
                    needs = f"{waits} needs a value: {value_name(options[waits])}"
                    ctx.fail(f"{needs}; {word} is an option. If it is the value: {waits}={word}")
                _check_place(ctx, options[waits], waits, word)
                waits = ""
            elif not ended and word == "--":
                ended = True
            elif ended or not word.startswith("-") or word == "-":
                argument = next(arguments, last)
                last = argument if argument is not None and argument.nargs == -1 else None
                if argument is not None and not word:
                    ctx.fail(f"{argument_name(argument)} is empty")
            elif word in options and takes_value(options[word]):
                waits = word
            elif equals and name in options:
                _check_place(ctx, options[name], name, value)


class Group(_Help, TyperGroup):
    """A command that has commands, with its help in this form."""


def _check_place(ctx: Any, option: Any, name: str, value: str) -> None:
    """An empty name of a file or folder, as a script has from an unset variable, would be the working directory."""
    if not value and _PLACES.search(value_name(option)):
        ctx.fail(f"{name} is empty; it needs a value: {value_name(option)}")


def every_command(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every command by its name, those of groups as ``export onnx``."""
    for name, inner in getattr(group, "commands", {}).items():
        yield from every_command(inner, f"{path}{name} ") if hasattr(inner, "commands") else [(path + name, inner)]


def option_names(command: Any) -> dict[str, Any]:
    """Every name of an option of the command -> its parameter."""
    return {
        name: p for p in command.params if p.param_type_name == "option" for name in (*p.opts, *p.secondary_opts)
    }  # fmt: skip


def takes_value(option: Any) -> bool:
    """Whether a value follows the option."""
    return not (option.is_flag or option.count)


def value_name(option: Any) -> str:
    """What help and messages call the value of an option: its metavar, or its choices as ``int8|int8-all``."""
    return str(option.metavar or "|".join(choices_of(option)) or option.name.upper())


def choices_of(option: Any) -> list[str]:
    """The values that an option may have, if they are listed; where they stand depends on the version of typer."""
    described = getattr(option, "type_descriptor", None) or getattr(option, "type", None)
    return [str(getattr(choice, "value", choice)) for choice in getattr(described, "choices", None) or ()]


def argument_name(argument: Any) -> str:
    """What help and messages call an argument."""
    return str(argument.metavar or argument.name.upper())


def without_examples(command: Any) -> str:
    """The docstring of a command, without its examples."""
    return (command.help or "").partition(_EXAMPLES)[0].strip()


def examples(command: Any) -> list[str]:
    """The command lines at the end of the help of a command."""
    return [line for line in _examples_text(command).splitlines() if line and not line.startswith("#")]


def _examples_text(command: Any) -> str:
    return textwrap.dedent((command.help or "").partition(_EXAMPLES)[2].strip("\n")).rstrip()


def _arguments(command: Any) -> list[Any]:
    return [p for p in command.params if p.param_type_name == "argument"]


def _first_sentence(command: Any) -> str:
    return re.split(r"(?<=\.)\s", without_examples(command), maxsplit=1)[0].replace("\n", " ")


def _left(parameter: Any) -> str:
    """The name of an argument; the names of an option, and what its value is called."""
    if parameter.param_type_name == "argument":
        return argument_name(parameter)
    names = ", ".join(sorted(parameter.opts, key=len))
    if takes_value(parameter):
        return f"{names} {value_name(parameter)}"
    return " / ".join([names, *parameter.secondary_opts])


def _text(command: Any, parameter: Any) -> str:
    """The help of a parameter, which ends with its default."""
    text, default = help_of(command, parameter), parameter.default
    shown = default.value if isinstance(default, Enum) else default
    if isinstance(parameter.show_default, str):
        shown = parameter.show_default
    if isinstance(shown, bool) or not isinstance(shown, (str, int, float)) or "Default:" in text:
        return text
    return f"{text} Default: {shown}."


def help_of(command: Any, parameter: Any) -> str:
    """The help of a parameter, as written. Recent versions of click forget that of arguments of older typer."""
    if not parameter.help and parameter.param_type_name == "argument":
        hint = get_type_hints(command.callback, include_extras=True)[parameter.name]
        return str(next(mark.help for mark in hint.__metadata__ if hasattr(mark, "help")))
    return str(parameter.help or "")


def _write_rows(formatter: Any, heading: str, rows: list[tuple[str, str]], column: int) -> None:
    formatter.write(f"\n{heading}:\n")
    for left, text in rows:
        lines = _filled(text, _width(formatter), " " * column)
        fits = len(left) + 4 <= column
        formatter.write(f"  {left:<{column - 2}}{lines.lstrip()}\n" if fits else f"  {left}\n{lines}\n")


def _width(formatter: Any) -> int:
    return min(_WIDTH, int(formatter.width) + 2)  # the formatter leaves two columns free


def _filled(text: str, width: int, indent: str) -> str:
    """The text in lines, with no word broken: not at a hyphen either, so that names can be searched for and copied."""
    width = max(width, len(indent) + 20)
    return textwrap.fill(
        " ".join(text.split()), width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False,
        break_long_words=False,
    )  # fmt: skip
