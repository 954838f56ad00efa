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
    """Print a line of results on stdout."""
    _out().print(printable(text), style=style, soft_wrap=True)


def say_words(words: Sequence[str], indent: int = 2) -> None:
    """Print words, each of which may hold spaces, on one line of results; on a terminal that is too narrow, one below
    the other. No word is broken.

    indent: of the lines behind the first, in columns.
    """
    out = _out()
    line = " ".join(words)
    say(line if not out.is_terminal or len(line) <= out.width else ("\n" + " " * indent).join(words))


def say_text(text: str, start: str = "", indent: int | None = None) -> None:
    """Print a sentence of results, broken between words where the line ends. What stands behind a line feed, such as a
    command to copy, is printed as it stands.

    start: what it begins with.
    indent: of further lines, in columns. Default: that of the end of ``start``.
    """
    wrap = textwrap.TextWrapper(
        max(width(), 40),
        initial_indent=start,
        subsequent_indent=" " * (len(start) if indent is None else indent),
        break_long_words=False,
        break_on_hyphens=False,
    )
    first, *rest = text.split("\n")
    for line in [*wrap.wrap(printable(first)), *(wrap.subsequent_indent + line for line in rest)]:
        say(line)


def show(table: Table) -> None:
    """Print a table of results. If no column may wrap, it keeps its full width, so that no number is cut."""
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
    """Print a note on stderr."""
    _err().print(printable(text), soft_wrap=True)


def as_json(document: Document) -> None:
    """Print the document as JSON on stdout."""
    try:
        sys.stdout.write(json.dumps(document.to_json(), indent=2, allow_nan=False) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        into_nothing()


def fault(message: str) -> None:
    """Print an error message on stderr."""
    _err().print(printable(f"error: {message}"), style="red", soft_wrap=True)


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
