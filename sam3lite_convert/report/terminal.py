"""The one place that prints: results on stdout, notes and faults on stderr. Bars are in ``bars``."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import TypeVar

from rich.console import Console, ConsoleOptions
from rich.table import Table

from sam3lite_convert.quoting import visible
from sam3lite_convert.records.record import Document
from sam3lite_convert.report import verbosity

T = TypeVar("T")
_LISTED = 20
_LONGEST_LINE = 2000  # characters; a key in a file may be a million long


class _Console(Console):
    """Continues after a broken pipe (as with ``| head``), so that the exit code is still that of the checks."""

    def on_broken_pipe(self) -> None:
        into_nothing()


def into_nothing() -> None:
    """Discard further output on stdout, whose reader has closed it or which cannot be written to."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _out() -> Console:
    # Made for each call, since the width and the stream may change.
    return _Console(highlight=False, markup=False)


def error_console() -> Console:
    """The console on stderr. It is made for each call too."""
    return _Console(stderr=True, highlight=False, markup=False)


def say(text: str = "", style: str | None = None) -> None:
    """Print a line of results on stdout; nothing if only the verdict is wanted. Long lines are broken between words."""
    if not verbosity.quiet():
        conclude(text, style)


def conclude(text: str, style: str | None = None) -> None:
    """Print a line that says how a command ended, on stdout. It is printed with ``--quiet`` too."""
    _out().print(_lines(text, _out()), style=style, soft_wrap=True)


def say_words(words: Sequence[str], indent: int = 2) -> None:
    """Print words, each of which may hold spaces, on one line of results; on a terminal that is too narrow, one below
    the other. No word is broken.

    indent: of the lines behind the first, in columns.
    """
    line = " ".join(words)
    say(line if len(line) <= (_line_width(_out()) or len(line)) else ("\n" + " " * indent).join(words))


def say_text(text: str, start: str = "", indent: int | None = None) -> None:
    """Print a sentence of results, broken between words where the line ends. What stands behind a line feed, such as a
    command to copy, is printed as it stands.

    start: what it begins with.
    indent: of further lines, in columns. Default: that of the end of ``start``.
    """
    first, *rest = text.split("\n")
    indent = len(start) if indent is None else indent
    line, columns = start + printable(first), _line_width(_out())
    lines = [line] if columns is None else _broken(line, columns, indent)
    for line in [*lines, *(" " * indent + line for line in rest)]:
        say(line)


def listed(lines: Sequence[T], each: Callable[[T], None]) -> None:
    """Print what ``each`` prints of these, at most 20 of them without ``--verbose``, and how many there are besides."""
    shown = lines[: verbosity.listed(_LISTED)]
    for line in shown:
        each(line)
    if len(lines) > len(shown):
        say(f"  ... and {len(lines) - len(shown):,} more; --verbose lists all of them")


def say_command(start: str, command: str) -> None:
    """Print a command to copy behind ``start``. One that is too long for the line is broken as a shell continues it."""
    columns = _line_width(_out())
    lines = _broken(start + command, columns - 2, 4) if columns is not None else [start + command]
    say("\n".join(f"{line} \\" for line in lines[:-1]) + "\n" * (len(lines) > 1) + lines[-1])


def _line_width(console: Console) -> int | None:
    """Where lines are broken, in columns; None into a pipe or a file, unless the user states it with COLUMNS."""
    # FORCE_COLOR, which notebooks set, makes a pipe a terminal for rich.
    return console.width if console.file.isatty() or "COLUMNS" in os.environ else None


def _lines(text: str, console: Console) -> str:
    """The text as it is printed. A first line that is too long is broken, since a terminal would break words; further
    lines, such as code and rules to copy, stay as they are."""
    text, columns = printable(text), _line_width(console)
    first, feed, rest = text.partition("\n")
    if columns is None or len(first) <= columns:
        return text
    indent = len(first) - len(first.lstrip()) + 2
    return "\n".join(_broken(first, columns, indent)) + feed + rest


def _broken(line: str, columns: int, indent: int) -> list[str]:
    """The line in lines of at most so many columns, broken at spaces alone: a longer word is kept whole."""
    words = line.lstrip()
    wide, first, further = max(columns, indent + 20), line[: len(line) - len(words)], " " * indent
    return textwrap.wrap(
        words, wide, initial_indent=first, subsequent_indent=further, break_long_words=False, break_on_hyphens=False
    )


def show(table: Table) -> None:
    """Print a table of results. If no column may wrap, it keeps its full width, so that no number is cut; into a pipe
    or a file, every row is one line."""
    if verbosity.quiet():
        return
    console = _out()
    if _line_width(console) is None or all(column.no_wrap for column in table.columns):
        console.width = max(console.width, console.measure(table, options=_unbounded(console)).maximum)
    console.print(table)


def _unbounded(console: Console) -> ConsoleOptions:
    return console.options.update(width=10_000)


def stdout_is_terminal() -> bool:
    """Whether results are read on a terminal."""
    return _out().is_terminal


def width() -> int:
    """The width of stdout in columns; 80 into a pipe, where it only says which columns a table has."""
    return _out().width


def note(text: str) -> None:
    """Print a note on stderr; nothing if only the verdict is wanted."""
    if not verbosity.quiet():
        error_console().print(_lines(text, error_console()), soft_wrap=True)


def as_json(document: Document) -> None:
    """Print the document as JSON on stdout."""
    try:
        sys.stdout.write(json.dumps(document.to_json(), indent=2, allow_nan=False) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        into_nothing()


def fault(message: str) -> None:
    """Print an error message on stderr."""
    error_console().print(_lines(f"error: {message}", error_console()), style="red", soft_wrap=True)


def printable(text: str) -> str:
    """The text with control characters escaped and long lines shortened, since names come from untrusted files."""
    shown = "\n".join(map(visible, text.split("\n")))
    if len(shown) <= _LONGEST_LINE:
        return shown
    return "\n".join(
        line
        if len(line) <= _LONGEST_LINE
        else f"{line[: _LONGEST_LINE // 2]} [... {len(line):,} characters] {line[-200:]}"
        for line in shown.split("\n")
    )
