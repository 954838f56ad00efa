"""Mistakes on the command line: the line that was meant, whole, ready to be pasted.

A correction is shown only where there is one: it is tried with the real parser, which runs nothing, and where two would
do none is shown.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any

import typer

from sam3lite_convert.cli.help import (
    argument_name,
    choices_of,
    every_command,
    examples,
    option_names,
    takes_value,
    value_name,
)
from sam3lite_convert.errors import CannotRun, Sam3LiteError
from sam3lite_convert.hub.aliases import ALIASES
from sam3lite_convert.quoting import shell_line
from sam3lite_convert.report import verbosity
from sam3lite_convert.report.verbosity import Verbosity

_NAME = "sam3lite"
SHOWN = ("--json", "--quiet", "--verbose")  # how a result is shown, which is not repeated
_ALIKE = 0.75  # of 1: names with one or two letters that are wrong, missing or swapped
_CLEARLY = 0.05  # by how much the best one has to be more alike than the next
_CHECKPOINTS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".index.json")
_ACTIVATIONS = (".npz", ".npy")
_LAYOUTS = ("packed", "transformers", "original")
_DASHES = "^[-\u2013\u2014]+"
# What other tools call it. Only one that the command has counts.
_OTHER_NAMES = {
    "-o": "--output", "--out": "--output", "--output-dir": "--output", "--force": "--overwrite", "-f": "--overwrite",
    "-n": "--dry-run", "-q": "--quiet", "-v": "--verbose", "-V": "--version", "--repo": "--repo-id",
    "--format": "--layout", "--html": "--report", "--fp16": "--dtype=float16", "--bf16": "--dtype=bfloat16",
    "-?": "--help",
}  # fmt: skip
# What a value behind a flag is: convert s0.pt --push-to-hub me/repo.
_OF_FLAGS = {
    "--push-to-hub": "--hub-model-id", "--all": "--pattern", "--overwrite": "--output", "--compact": "--output",
    "--fingerprint": "--output",
}  # fmt: skip
# Other tools take the token so; here nothing that was typed holds it.
_TOKENS = ("--token", "--hub-token", "--hf-token", "--api-token", "--auth-token", "--use-auth-token", "--api-key")
_YES, _NO = ("", "1", "true", "yes", "on"), ("0", "false", "no", "off")
_OTHER_VALUES = {
    "fp16": "float16", "half": "float16", "f16": "float16", "bf16": "bfloat16", "fp32": "float32", "f32": "float32",
    "float": "float32", "gpu": "cuda",
}  # fmt: skip
_OTHER_COMMANDS = {"help": "--help", "version": "--version", "info": "inspect", "check": "verify", "compare": "diff"}


class Mistake(CannotRun):
    """A wrong use that only the command itself can see, such as a missing checkpoint or arguments in the wrong order.

    ``meant``: the words of the right command line, from those that were typed. ``example``: whether it holds something
    that only shows how it is done. ``code``: as of any error.
    """

    def __init__(
        self, message: str, meant: Callable[[Line], list[str]], example: bool = False, code: str = "usage"
    ) -> None:
        super().__init__(message, code)
        self._meant, self._example = meant, example

    def error(self, root: Any, words: Sequence[str]) -> CannotRun:
        """The error with the right command line. ``root``: the command line as typer has it; ``words``: as typed."""
        meant = _in_one_shape(root, self._meant(Line.of(root, words)))
        return Correction(meant, example=self._example).error(self.message, self.code)


@dataclass(frozen=True)
class Correction:
    """What was meant. ``message``: what is wrong, if it can be said better than the parser does. ``example``: whether
    something was missing, which is filled in as an example."""

    words: list[str]
    message: str = ""
    example: bool = False

    @property
    def command(self) -> str:
        """The command line, quoted for a shell."""
        return shell_line([_NAME, *self.words])

    def error(self, message: str, code: str = "usage") -> CannotRun:
        """The error that shows it."""
        lead = "For example:" if self.example else "Did you mean:"
        return CannotRun(f"{message}\n{lead}\n  {self.command}", code, {"command": self.command})


@dataclass(frozen=True)
class _Fault:
    """Why a command line does not parse. ``kind``: the class of the parser's error, or "command"."""

    kind: str
    message: str
    parameter: Any = None


@dataclass(frozen=True)
class _Token:
    """An argument, or an option with its value. ``kind``: ``argument``, ``option``, ``unknown`` or ``end`` (--)."""

    kind: str
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.words[0].partition("=")[0]


@dataclass(frozen=True)
class Line:
    """A command line in parts. ``head``: the words that name the command. ``tokens``: its arguments and options."""

    command: Any
    head: tuple[str, ...]
    tokens: tuple[_Token, ...]

    @classmethod
    def of(cls, root: Any, words: Sequence[str]) -> Line:
        command, head = root, 0
        while head < len(words) and words[head] in getattr(command, "commands", {}):
            command = command.commands[words[head]]
            head += 1
        return cls(command, tuple(words[:head]), tuple(_tokens(command, words[head:])))

    @property
    def words(self) -> list[str]:
        return [*self.head, *(word for token in self.tokens for word in token.words)]

    @property
    def arguments(self) -> list[int]:
        """Where the arguments stand among the tokens."""
        return [i for i, token in enumerate(self.tokens) if token.kind == "argument"]

    def with_tokens(self, at: int, *new: _Token, instead_of: int = 1) -> Line:
        """The line with new tokens in the place of one, or of so many."""
        return replace(self, tokens=(*self.tokens[:at], *new, *self.tokens[at + instead_of :]))

    def with_argument(self, place: int, value: str) -> list[str]:
        """The words with one more argument, which is the one at this place among the arguments."""
        there = self.arguments
        after = there[place] if place < len(there) else there[-1] + 1 if there else 0
        return self.with_tokens(after, _Token("argument", (value,)), instead_of=0).words

    def with_option(self, name: str, value: str) -> list[str]:
        """The words with this value of an option, in the place of another one if it has one."""
        given = [i for i, token in enumerate(self.tokens) if token.name == name]
        new = _Token("option", (name, value))
        return self.with_tokens(given[-1], new).words if given else [*self.words, *new.words]

    def as_option(self, argument: str, name: str, value: str | None = None) -> list[str]:
        """The words with an argument as the value of an option. ``value``: how it is spelled there."""
        at = next(i for i in self.arguments if self.tokens[i].words[0] == argument)
        return self.with_tokens(at, _Token("option", (name, value or argument))).words

    def swapped(self, one: str, other: str) -> list[str]:
        """The words with these two, arguments or values of options, in each other's place."""
        change = {one: other, other: one}
        return [*self.head, *(_exchanged(word, change) for token in self.tokens for word in token.words)]


def _exchanged(word: str, change: dict[str, str]) -> str:
    name, equals, value = word.partition("=")
    if name.startswith("-") and equals:
        return f"{name}={change.get(value, value)}"
    return change.get(word, word)


def _tokens(command: Any, words: Sequence[str]) -> Iterator[_Token]:
    options = option_names(command)
    at = 0
    while at < len(words):
        word = words[at]
        if word == "--":
            yield _Token("end", (word,))
            yield from (_Token("argument", (w,)) for w in words[at + 1 :])
            return
        if not word.startswith("-") or word == "-":
            yield _Token("argument", (word,))
        elif word in ("-h", "--help"):
            yield _Token("option", (word,))
        elif word.partition("=")[0] not in options:
            yield _Token("unknown", (word,))
        elif "=" not in word and takes_value(options[word]) and at + 1 < len(words):
            at += 1
            yield _Token("option", (word, words[at]))
        else:
            yield _Token("option", (word,))
        at += 1


# ---- what does not parse, and why ---------------------------------------------------------------------


def parse_fault(root: Any, words: Sequence[str]) -> _Fault | None:
    """Why the command line does not parse; None if it does. Runs no command, and prints nothing."""
    line, chosen = Line.of(root, words), verbosity.chosen()
    if hasattr(line.command, "commands"):
        rest = line.words[len(line.head) :]
        if not rest:
            return _Fault("command", "Missing command.")
        known = {*option_names(line.command), "-h", "--help"}
        # The options of the program itself act when they are parsed: --install-completion writes to your shell's files.
        if all(word in known for word in rest):
            return None
        wrong = next(word for word in rest if word not in known)
        kind = "NoSuchOption" if wrong.startswith("-") else "command"
        return _Fault(kind, f"No such {'option:' if kind == 'NoSuchOption' else 'command'} {wrong}")
    try:
        verbosity.choose(Verbosity.normal)
        with contextlib.redirect_stdout(io.StringIO()):  # of --help
            context, command = None, root
            for name, following in zip((_NAME, *line.head), (*line.head, None), strict=True):
                given = list(words[len(line.head) :]) if following is None else [following]
                context = command.make_context(name, given, parent=context)
                command = command.commands[following] if following is not None else command
    except typer.Exit:
        return None
    except Exception as fault:
        if not hasattr(fault, "format_message"):
            raise
        return _Fault(type(fault).__name__, str(getattr(fault, "message", "")), getattr(fault, "param", None))
    finally:
        verbosity.choose(chosen)  # --quiet and --verbose act when they are parsed
    return None


# ---- what was meant -----------------------------------------------------------------------------------


def corrected(root: Any, words: Sequence[str]) -> Correction | None:
    """What was meant by a command line that does not parse; None where that is not clear."""
    first = parse_fault(root, words)
    if first is None:
        return None
    found = _meant(root, list(words), first, 3)
    if found:
        shaped = [_in_one_shape(root, line) for line in found]
        once = [line for i, line in enumerate(shaped) if line not in shaped[:i]]
        return Correction(once[0], _better_said(root, words, first)) if len(once) == 1 else None
    filled = _filled(Line.of(root, words), first)
    while filled is not None:
        fault = parse_fault(root, filled)
        if fault is None:
            return Correction(_in_one_shape(root, filled), _better_said(root, words, first), example=True)
        filled = _filled(Line.of(root, filled), fault)
    return None


def _value_of(token: _Token) -> str:
    return token.words[1] if len(token.words) > 1 else token.words[0].partition("=")[2]


ASKING = frozenset(("options", "instead"))  # details of an error that asks for command lines


def with_commands(root: Any, words: Sequence[str], fault: Sam3LiteError) -> Sam3LiteError:
    """The error, and behind its message the whole command lines that its details ask for.

    ``options``: a name and a value that are to be added; nothing is for a command whose two checkpoints have options of
    their own. ``instead``: a path that was typed, and those that may be meant, of which each gets its line.
    """
    details = fault.details if isinstance(fault.details, dict) else {}
    line = Line.of(root, [word for word in words if word not in SHOWN])
    lines = []
    if isinstance(asked := details.get("options"), list):
        name, value = map(str, asked)
        if f"{name}-a" not in option_names(line.command):
            lines.append(_with_one_more(line, name, value))
    if isinstance(asked := details.get("instead"), dict):
        meant = [(path, str(name)) for path, names in asked.items() if isinstance(names, list) for name in names]
        changed = [_in_place_of(line, path, name) for path, name in meant]
        lines += [one for one in changed if one != line.words]
    commands = [shell_line([_NAME, *one]) for one in lines if parse_fault(root, one) is None]
    if commands:
        fault.message = "\n  ".join([fault.message, *commands])
        fault.details = {**details, "command": commands[0]}
    return fault


def _with_one_more(line: Line, name: str, value: str) -> list[str]:
    options = option_names(line.command)
    if name not in options or not options[name].multiple:
        return line.with_option(name, value)
    # Of prefixes, the longer one takes the place of its beginning.
    kept = tuple(t for t in line.tokens if t.name != name or not value.startswith(_value_of(t)))
    return [*replace(line, tokens=kept).words, name, value]


def _in_place_of(line: Line, path: str, meant: str) -> list[str]:
    """The words with another path in the place of this one, however that one was typed."""
    typed = {word for token in line.tokens for word in (token.words[-1], _value_of(token))}
    change = {word: meant for word in typed if word and os.path.normpath(word) == os.path.normpath(path)}
    return [*line.head, *(_exchanged(word, change) for token in line.tokens for word in token.words)]


def _in_one_shape(root: Any, words: list[str]) -> list[str]:
    """The line with the checkpoint of ``--checkpoint`` as the argument, if those before it are given."""
    line = Line.of(root, words)
    places = [p.name for p in getattr(line.command, "params", []) if p.param_type_name == "argument"]
    given = [i for i, token in enumerate(line.tokens) if token.kind == "option" and token.name == "--checkpoint"]
    place = next((i for i, name in enumerate(places) if name in ("source", "sources")), None)
    if len(given) != 1 or place is None or place != len(line.arguments):
        return words
    token = line.tokens[given[0]]
    value = token.words[1] if len(token.words) > 1 else token.words[0].partition("=")[2]
    if not value or value.startswith("-"):
        return words
    shaped = line.with_tokens(given[0], instead_of=1).with_argument(place, value)
    return shaped if parse_fault(root, shaped) is None else words


def _meant(root: Any, words: list[str], fault: _Fault, steps: int) -> list[list[str]]:
    """The lines that parse and that these words may have been meant as: of the first kind of change that gives any."""
    changes = [
        [(line, parse_fault(root, line)) for line in all_] for all_ in _changes(root, Line.of(root, words), fault)
    ]
    for change in changes:
        if found := [line for line, still in change if still is None]:
            return found
    for change in changes if steps else []:  # there may be a second mistake
        deeper = [_meant(root, line, still, steps - 1) for line, still in change if still is not None]
        if found := [line for lines in deeper for line in lines]:
            return found
    return []


def _changes(root: Any, line: Line, fault: _Fault) -> Iterator[list[list[str]]]:
    """What may be changed, the likeliest first; each change in all the ways that there are."""
    if fault.kind == "command":
        yield from _commands(root, line)
    elif fault.kind == "NoSuchOption":
        yield from _options(root, line)
    elif fault.message.startswith("Got unexpected extra argument"):
        yield from _extra_arguments(line)
    elif fault.kind == "BadParameter":
        yield _values(line, fault.parameter)
    elif fault.message.endswith("does not take a value."):
        yield _flags_with_values(line)
    elif _waits(line) is not None:
        yield _folders(line)


def _commands(root: Any, line: Line) -> Iterator[list[list[str]]]:
    """No command, or an unknown one."""
    head, rest = list(line.head), line.words[len(line.head) :]
    commands = line.command.commands
    word = rest[0] if rest else ""
    behind = [i for i, other in enumerate(rest) if other in commands]
    plain = word.lower().replace("_", "-")
    if head and len(commands) == 1:  # export: it writes onnx
        (only,) = commands
        yield [[*head, only, "--help"]] if plain == "help" else []
        yield [[*head, only, *rest[: behind[0]], *rest[behind[0] + 1 :]]] if behind else []
        yield [[*head, only, *rest[1:]]] if alike(word, [only]) else []
        yield [[*head, only, *rest]]
        return
    if plain in _OTHER_COMMANDS:
        meant = _OTHER_COMMANDS[plain]
        yield [[*rest[1:], meant] if meant.startswith("--") else [meant, *rest[1:]]]
    if behind and len(rest) > 1:
        yield [[rest[behind[0]], *rest[: behind[0]], *rest[behind[0] + 1 :]]]
    if not word or word.startswith("-"):
        return
    if is_source(word):
        for name in _commands_for(root, rest):
            yield [[*name.split(), *rest]]
        return
    inside = [[group, name] for group, c in commands.items() for name in getattr(c, "commands", {})]
    if plain in commands:
        yield [[plain, *rest[1:]]]
    yield [[*path, *rest[1:]] for path in inside if plain in (path[-1], "-".join(path))]
    yield [[name, *rest[1:]] for name in alike(plain, list(commands))]


def _commands_for(root: Any, words: list[str]) -> list[str]:
    """The commands that may be meant by a line that begins with a file, the likeliest first: those that have all of its
    options. Of the others only if there are none."""
    first, has_two = words[0], len(words) > 1 and is_source(words[1])
    if first.endswith(_ACTIVATIONS):
        likely, others = ["judge"], []
    elif os.path.isfile(os.path.join(first, "conversion.json")):
        likely, others = ["inspect", "verify", "restore"], ["export onnx", "parity", "diff"]
    else:
        likely, others = ["convert", "parity", "inspect", *(["diff"] if has_two else [])], ["record", "diff", "tables"]
    fitting = [name for name in likely if not _of_others(root, [*name.split(), *words])]
    return fitting or [name for name in others if not _of_others(root, [*name.split(), *words])]


def _of_others(root: Any, words: list[str]) -> list[str]:
    """The options of a line that its command does not have, but others have."""
    tokens = Line.of(root, words).tokens
    names = [_plain(token.name) for token in tokens if token.kind == "unknown" and token.name not in _OTHER_NAMES]
    own = option_names(Line.of(root, words).command)
    return [name for name in names if name not in own and _elsewhere(root, name)]


def _flags_with_values(line: Line) -> list[list[str]]:
    """--json=yes, --verify=false, --push-to-hub=me/repo."""
    found, options = [], option_names(line.command)
    for at, token in enumerate(line.tokens):
        name, equals, value = token.words[0].partition("=")
        if token.kind != "option" or not equals or takes_value(options[name]):
            continue
        new = [_Token("option", (name,))]
        if value.lower() in _NO:
            # Of a flag without an opposite, leaving it out says no.
            new = [_Token("option", (opposite,)) for opposite in options[name].secondary_opts[:1]]
        elif value.lower() not in _YES and _OF_FLAGS.get(name) in options:
            new.append(_Token("option", (_OF_FLAGS[name], value)))
        found.append(line.with_tokens(at, *new).words)
    return found


def _options(root: Any, line: Line) -> Iterator[list[list[str]]]:
    """An unknown option."""
    if hasattr(line.command, "commands"):
        rest = line.words[len(line.head) :]
        at = next((i for i, word in enumerate(rest) if word in line.command.commands), None)
        if at is not None:
            before = [word for word in rest[:at] if word != "--"]
            moved = Line.of(root, [*line.head, rest[at], *before])
            # Arguments keep their order; options alone stand at the end.
            behind = [*before, *rest[at + 1 :]] if moved.arguments else [*rest[at + 1 :], *before]
            yield [[*line.head, rest[at], *behind]]
            return
        source = next((i for i, word in enumerate(rest) if is_source(word)), 0)
        if source and not line.head:
            yield [[*rest[source:], *rest[:source]]]
            return
        if line.head and len(line.command.commands) == 1:
            yield [[*line.head, next(iter(line.command.commands)), *rest]]
            return
    at = next((i for i, token in enumerate(line.tokens) if token.kind == "unknown"), -1)
    if at < 0:
        return
    if _plain(line.tokens[at].name) in _TOKENS:
        value = next((token.words[0] for token in line.tokens[at + 1 :][:1] if token.kind == "argument"), None)
        follows = "=" not in line.tokens[at].words[0] and value is not None and not is_source(value)
        yield [line.with_tokens(at, instead_of=2 if follows else 1).words]
        return
    names = option_names(line.command)
    known = [*names, "--help"]
    word, equals, value = line.tokens[at].words[0].partition("=")
    plain = _plain(word)

    def named(*new: str) -> list[list[str]]:
        return [line.with_tokens(at, _Token("unknown", (f"{name}{equals}{value}",))).words for name in new]

    if plain in known:
        yield named(plain)
    for other in (word, plain):
        if _OTHER_NAMES.get(other, "").partition("=")[0] in known:
            yield named(_OTHER_NAMES[other])
    if word in ("-V", "--version") and not hasattr(line.command, "commands"):
        yield [["--version"]]
    elsewhere = _elsewhere(root, plain) if plain not in names else {}
    if not elsewhere:
        long = [name for name in known if name.startswith("--")]
        if len(begin := [name for name in long if name.startswith(plain)]) == 1 and len(plain) > 4:
            yield named(*begin)
        yield named(*alike(plain, long))
    yield _as_argument(line, at, plain)
    if elsewhere and line.head:
        follows = at + 1 < len(line.tokens) and line.tokens[at + 1].kind == "argument"
        with_value = not equals and follows and all(map(takes_value, elsewhere.values()))
        yield [line.with_tokens(at, instead_of=2 if with_value else 1).words]


def _elsewhere(root: Any, name: str) -> dict[str, Any]:
    """The options of this name, by the commands that have one."""
    return {path: names[name] for path, command in every_command(root) if name in (names := option_names(command))}


def said_better(root: Any, words: Sequence[str]) -> str:
    """What is wrong with a command line that does not parse, where it can be said better than the parser does."""
    fault = parse_fault(root, words)
    return _better_said(root, words, fault) if fault is not None else ""


def _better_said(root: Any, words: Sequence[str], fault: _Fault) -> str:
    """What is wrong, where it can be said better than the parser does."""
    line = Line.of(root, words)
    name = next((token.name for token in line.tokens if token.kind == "unknown"), "")
    if fault.kind == "command" and line.tokens and not line.head and is_source(line.tokens[0].words[0]):
        return f"a command is missing before {line.tokens[0].words[0]}"
    if fault.kind == "BadOptionUsage" and (at := _waits(line)) is not None:
        option = line.tokens[at].name
        return f"{option} needs a value: {value_name(option_names(line.command)[option])}"
    if fault.kind != "NoSuchOption" or not name:
        return ""
    if not line.head:
        behind = any(word in root.commands for word in words)
        return f"{name} belongs behind the command" if behind else f"{_NAME} has no option {name}"
    if _plain(name) in _TOKENS:
        return f"{' '.join(line.head)} has no option {name}; the token is that of HF_TOKEN, or of hf auth login"
    having = list(_elsewhere(root, _plain(name))) if _plain(name) not in option_names(line.command) else []
    others = f"; it is an option of {' and '.join(having) if len(having) < 3 else 'other commands'}" if having else ""
    return f"{' '.join(line.head)} has no option {name}{others}"


def _plain(option: str) -> str:
    """A name as ours are written: -dry_run as --dry-run."""
    return "--" + option.lstrip("-").lower().replace("_", "-")


def _as_argument(line: Line, at: int, plain: str) -> list[list[str]]:
    """What was given as an option, but is an argument: explain --checkpoint s0 KEY, verify --dir DIR s0."""
    asked = {"--folder": "dir", "--converted": "dir", "--source": "checkpoint", "--input": "checkpoint"}
    asked_name = asked.get(plain, plain[2:])
    arguments = [p for p in line.command.params if p.param_type_name == "argument"]
    places = [i for i, p in enumerate(arguments) if asked_name in argument_name(p).lower().rstrip(".").split("|")]
    equals, value = line.tokens[at].words[0].partition("=")[1:]
    if len(places) != 1:
        return []
    if equals:
        return [line.with_tokens(at, instead_of=1).with_argument(places[0], value)]
    if at + 1 < len(line.tokens) and line.tokens[at + 1].kind == "argument":
        return [line.with_tokens(at, instead_of=2).with_argument(places[0], line.tokens[at + 1].words[0])]
    return []


def _extra_arguments(line: Line) -> Iterator[list[list[str]]]:
    """One argument more than the command takes: most often the value of an option."""
    options, given = option_names(line.command), {token.name for token in line.tokens}
    arguments = line.arguments
    for at in reversed(arguments):
        word = line.tokens[at].words[0]
        name, equals, _ = word.partition("=")
        spelled = "--" + re.sub(_DASHES, "", name)
        dashes = word.startswith(("\u2013", "\u2014"))  # as word processors write two hyphens
        if word == "help":
            yield [[*line.head, "--help"]]
        # A name with its value: output out, output=out.
        named = equals or at + 1 in arguments
        if spelled in options and (dashes or named or not takes_value(options[spelled])):
            yield [line.with_tokens(at, _Token("option", (word.replace(name, spelled, 1),))).words]
    last = arguments[-1]
    word = line.tokens[last].words[0]
    flag = line.tokens[last - 1].name if last else ""

    def as_value(name: str) -> list[list[str]]:
        return [line.with_tokens(last, _Token("option", (name, word))).words] if name not in given else []

    if "--converted" in options and len(arguments) == 2 and os.path.isdir(line.tokens[arguments[0]].words[0]):
        at = arguments[0]  # parity DIR s0.pt
        yield [line.with_tokens(at, _Token("option", ("--converted", line.tokens[at].words[0]))).words]
    if _OF_FLAGS.get(flag) in options and flag in options and not takes_value(options[flag]):
        yield as_value(_OF_FLAGS[flag])
    elif "--converted" in options and os.path.isdir(word):
        yield as_value("--converted")
    elif "--output" in options and os.path.isdir(word) and line.tokens[arguments[0]].words[0] != word:
        yield as_value("--output")
    elif "--layout" in options and word in _LAYOUTS:
        yield as_value("--layout")
    elif "--output" in options and (value_name(options["--output"]) == "FILE" or not is_source(word)):
        yield as_value("--output")


def _values(line: Line, parameter: Any) -> list[list[str]]:
    """A value that is not one of the choices."""
    choices = choices_of(parameter)
    found = []
    for at, token in enumerate(line.tokens):
        if token.kind == "option" and token.name in parameter.opts and choices:
            name, equals, value = token.words[0].partition("=")
            wrong = value if equals else token.words[-1]
            meant = _OTHER_VALUES.get(wrong.lower(), wrong.lower())
            for right in [meant] if meant in choices else alike(meant, choices):
                new = (f"{name}={right}",) if equals else (name, right)
                found.append(line.with_tokens(at, _Token("option", new)).words)
    return found


def _waits(line: Line) -> int | None:
    """Where an option stands that has no value."""
    options = option_names(line.command)
    for at, token in enumerate(line.tokens):
        if token.kind == "option" and token.name in options and takes_value(options[token.name]):
            value = token.words[-1] if len(token.words) > 1 else None
            if "=" not in token.words[0] and (value is None or value in options):
                return at
    return None


def _folders(line: Line) -> list[list[str]]:
    """An option without its folder, where there is a folder among the arguments: parity s0.pt DIR --converted."""
    at = _waits(line)
    assert at is not None
    token = line.tokens[at]
    if "DIR" not in value_name(option_names(line.command)[token.name]).split("|"):
        return []
    found = []
    for other in line.arguments:
        word = line.tokens[other].words[0]
        if os.path.isdir(word):
            tokens = list(line.tokens)
            tokens[at : at + 1] = [_Token("option", (token.name, word)), *_value_tokens(token)]
            del tokens[other if other < at else other + len(_value_tokens(token))]
            found.append(replace(line, tokens=tuple(tokens)).words)
    return found


def _value_tokens(token: _Token) -> list[_Token]:
    """The option that was taken for the value of another."""
    return [_Token("option", token.words[1:])] if len(token.words) > 1 else []


def _filled(line: Line, fault: _Fault) -> list[str] | None:
    """The line with what is missing, as an example: s0 for a checkpoint, or else the name of the argument or value."""
    if (at := _waits(line)) is not None:
        token = line.tokens[at]
        value = value_name(option_names(line.command)[token.name]).partition("|")[0]
        return line.with_tokens(at, _Token("option", (token.name, value)), *_value_tokens(token)).words
    if fault.kind == "MissingParameter" and fault.parameter is not None:
        if not line.tokens:
            return _first_example(line.command)
        arguments = [p for p in line.command.params if p.param_type_name == "argument"]
        place = [p.name for p in arguments].index(fault.parameter.name)
        example = example_of(argument_name(fault.parameter))
        given = [line.tokens[at].words[0] for at in line.arguments]
        return line.with_argument(place, "s0" if example in given else example)  # diff my.pt: not with itself
    if fault.kind == "command" and not line.tokens and line.head:
        return _first_example(next(every_command(line.command))[1])
    return None


def _first_example(command: Any) -> list[str]:
    return shlex.split(examples(command)[0])[1:]


def example_of(argument: str) -> str:
    """A value for an argument, to show how it is given."""
    return {"A": "s0", "B": "my.pt"}.get(argument, "s0" if argument.startswith("CHECKPOINT") else argument)


def is_source(word: str) -> bool:
    """Whether the word is, or looks like, a checkpoint."""
    return word in ALIASES or word.endswith(_CHECKPOINTS) or "://" in word or os.path.exists(word)


def alike(word: str, names: Sequence[str]) -> list[str]:
    """The name that the word was most likely meant as; several if they are as likely, or none."""
    ratios = sorted(((SequenceMatcher(None, word, name).ratio(), name) for name in names), reverse=True)
    if not ratios or ratios[0][0] < _ALIKE:
        return []
    return [name for ratio, name in ratios if ratio > ratios[0][0] - _CLEARLY]
