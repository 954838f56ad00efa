"""The one place that prints: results on stdout, progress and faults on stderr."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console, ConsoleOptions
from rich.table import Table

from sam3lite_convert.quoting import visible
from sam3lite_convert.records.record import Document
from sam3lite_convert.report import verbosity
from sam3lite_convert.workers import Advance

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


def _err() -> Console:
    return _Console(stderr=True, highlight=False, markup=False)


def say(text: str = "", style: str | None = None) -> None:
    """Print a line of results on stdout; nothing if only the verdict is wanted. Long lines are broken between words."""
    if not verbosity.quiet():
        verdict(text, style)


def verdict(text: str, style: str | None = None) -> None:
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
    lines = _broken(start + printable(first), width(), indent)
    for line in [*lines, *(" " * indent + line for line in rest)]:
        say(line)


def say_command(start: str, command: str) -> None:
    """Print a command to copy behind ``start``. One that is too long for the line is broken as a shell continues it."""
    columns = _line_width(_out())
    lines = _broken(start + command, columns - 2, 4) if columns is not None else [start + command]
    say("\n".join(f"{line} \\" for line in lines[:-1]) + "\n" * (len(lines) > 1) + lines[-1])


def _line_width(console: Console) -> int | None:
    """Where lines are broken, in columns; None into a pipe or a file, unless the user states it with COLUMNS."""
    return console.width if console.is_terminal or "COLUMNS" in os.environ else None


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
    wide = max(columns, indent + 20)
    further = " " * indent
    return textwrap.wrap(
        line, wide, subsequent_indent=further, break_long_words=False, break_on_hyphens=False
    )  # fmt: skip


def show(table: Table) -> None:
    """Print a table of results. If no column may wrap, it keeps its full width, so that no number is cut."""
    if verbosity.quiet():
        return
    console = _out()
    if all(column.no_wrap for column in table.columns):
        console.width = max(console.width, console.measure(table, options=_unbounded(console)).maximum)
    console.print(table)


def _unbounded(console: Console) -> ConsoleOptions:
    return console.options.update(width=10_000)


def is_terminal() -> bool:
    """Whether notes and progress go to a terminal."""
    return _err().is_terminal


def width() -> int:
    """The width of stdout in columns."""
    return _out().width


def note(text: str) -> None:
    """Print a note on stderr; nothing if only the verdict is wanted."""
    if not verbosity.quiet():
        _err().print(_lines(text, _err()), soft_wrap=True)


def as_json(document: Document) -> None:
    """Print the document as JSON on stdout."""
    try:
        sys.stdout.write(json.dumps(document.to_json(), indent=2, allow_nan=False) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        into_nothing()


def fault(message: str) -> None:
    """Print an error message on stderr."""
    _err().print(_lines(f"error: {message}", _err()), style="red", soft_wrap=True)


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


@contextmanager
def byte_progress(
    totals: Mapping[str, int | None], labels: dict[str, str], quiet: bool
) -> Iterator[Callable[[str], Advance]]:
    """Progress bars in bytes, with rate and time left; shown only on a terminal."""
    console = _err()
    if quiet or not console.is_terminal:
        yield lambda what: lambda n: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bars:
        tasks = {what: bars.add_task(labels[what], total=totals[what]) for what in totals}
        yield lambda what: lambda n: bars.advance(tasks[what], n)


@contextmanager
def stage_progress(label: str, total: int, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A progress bar over ``total`` steps, which names the stage of each, with the time left; only on a terminal."""
    console = _err()
    if quiet or not console.is_terminal:
        yield lambda stage: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(label, total=total)

        def advance(stage: str) -> None:
            bars.update(task, advance=1, description=f"{label}: {stage}")

        yield advance


@contextmanager
def count_progress(label: str, total: int, quiet: bool) -> Iterator[Advance]:
    """A progress bar over ``total`` steps, with the time left; shown only on a terminal."""
    console = _err()
    if quiet or not console.is_terminal:
        yield lambda n: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(label, total=total)
        yield lambda n: bars.advance(task, n)
