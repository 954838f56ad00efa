"""The one place that prints: results on stdout, progress and faults on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console, ConsoleOptions
from rich.table import Table

from sam3lite_convert.records.record import Document
from sam3lite_convert.workers import Advance

_LONGEST_LINE = 2000  # characters; a name in a file may have a million


class _Console(Console):
    """Goes on where its reader went away (for example head): the exit code is still that of the checks."""

    def on_broken_pipe(self) -> None:
        into_nothing()


def into_nothing() -> None:
    """What is still said on stdout goes nowhere: its reader went away, or it cannot be written to."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _out() -> Console:
    # Made per call: the width and the stream are those of the moment.
    return _Console(highlight=False, markup=False)


def _err() -> Console:
    return _Console(stderr=True, highlight=False, markup=False)


def say(text: str = "", style: str | None = None) -> None:
    """A line of results."""
    _out().print(printable(text), style=style, soft_wrap=True)


def show(table: Table) -> None:
    """A table of results. Where no column of it wraps it keeps its width: a narrow place cuts no number."""
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
    """Columns of the place that results go to."""
    return _out().width


def note(text: str) -> None:
    """A line beside the results."""
    _err().print(printable(text), soft_wrap=True)


def as_json(document: Document) -> None:
    """The one JSON document on stdout."""
    try:
        sys.stdout.write(json.dumps(document.to_json(), indent=2, allow_nan=False) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        into_nothing()


def fault(message: str) -> None:
    """A foreseeable failure."""
    _err().print(printable(f"error: {message}"), style="red", soft_wrap=True)


def printable(text: str) -> str:
    """Names come out of files: what would steer the terminal is shown, not sent, and no line is endless."""
    shown = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
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
    """Bars by bytes with rate and time left, on a terminal only."""
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
def count_progress(label: str, total: int, quiet: bool) -> Iterator[Advance]:
    """A bar over things that are counted, with the time left, on a terminal only."""
    console = _err()
    if quiet or not console.is_terminal:
        yield lambda n: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(label, total=total)
        yield lambda n: bars.advance(task, n)
