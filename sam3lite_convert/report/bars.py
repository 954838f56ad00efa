"""Bars on stderr for long work, with rate and time left; on a terminal alone. All of them are in one display."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from sam3lite_convert.progress import Bar, OpenBar, Unit
from sam3lite_convert.report import verbosity
from sam3lite_convert.workers import Advance

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, Task
    from rich.text import Text

_BESIDE_LABEL = 48  # columns: a short bar, how much is done, rate and time


class _Display:
    """What is on the terminal: it appears with the first bar and goes with the last one."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._bars: Progress | None = None
        self._open = 0

    @contextmanager
    def bar(self, label: str, total: int | None, unit: Unit) -> Iterator[Bar]:
        with self._lock:
            if self._bars is None:
                self._bars = _progress()
                self._bars.start()
            bars, self._open = self._bars, self._open + 1
            task = bars.add_task(label, total=total, unit=unit)

        def advance(n: int = 1, stage: str | None = None) -> None:
            with suppress(KeyError):  # a thread may tell of its last piece when the bar is gone
                bars.update(task, advance=n, description=label if stage is None else f"{label}: {stage}")

        try:
            yield advance
        finally:
            with self._lock:
                bars.remove_task(task)
                self._open -= 1
                if not self._open:
                    self._bars = None
                    bars.stop()


_display = _Display()


def shows_bars(quiet: bool) -> bool:
    """Whether progress is shown: on a terminal, and if not only the verdict is wanted."""
    from sam3lite_convert.report.terminal import error_console

    return error_console().is_terminal and not quiet and not verbosity.quiet()


def opener(quiet: bool, check: Callable[[], None] = lambda: None) -> OpenBar:
    """What shows bars for ``progress.shown_by``. ``check``: called whenever some work is done."""

    @contextmanager
    def open_bar(label: str, total: int | None, unit: Unit) -> Iterator[Bar]:
        with ExitStack() as stack:
            # At this moment: --quiet may stand anywhere on the command line.
            shown = stack.enter_context(_display.bar(label, total, unit)) if shows_bars(quiet) else None

            def advance(n: int = 1, stage: str | None = None) -> None:
                check()
                if shown is not None:
                    shown(n, stage)

            yield advance

    return open_bar


@contextmanager
def byte_progress(
    totals: Mapping[str, int | None], labels: Mapping[str, str], quiet: bool
) -> Iterator[Callable[[str], Advance]]:
    """Bars in bytes for commands that name their work: called with a key of ``totals``, it opens that bar."""
    show, opened = opener(quiet), dict[str, Advance]()
    with ExitStack() as stack:

        def begin(what: str) -> Advance:
            if what not in opened:
                opened[what] = stack.enter_context(show(labels[what], totals[what], "byte"))
            return opened[what]

        yield begin


def _progress() -> Progress:
    from rich.progress import BarColumn, Progress

    from sam3lite_convert.report.terminal import error_console, stdout_is_terminal

    label, done, rate, left = _columns()
    # What is printed meanwhile goes above the bars, unless it goes elsewhere than to the terminal.
    return Progress(
        label, BarColumn(), done, rate, left, console=error_console(), transient=True,
        redirect_stdout=stdout_is_terminal(),
    )  # fmt: skip


def _columns() -> tuple[ProgressColumn, ...]:
    """What stands beside a bar: its label, how much is done, the rate and the time."""
    from rich.progress import (
        DownloadColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.text import Text

    from sam3lite_convert.report.terminal import error_console

    most = max(error_console().width - _BESIDE_LABEL, 12)
    in_bytes, in_steps, byte_rate = DownloadColumn(), MofNCompleteColumn(), TransferSpeedColumn()
    remaining, elapsed = TimeRemainingColumn(), TimeElapsedColumn()

    class Label(TextColumn):
        def render(self, task: Task) -> Text:
            # Where the line is too short, the label is cut, and not the figures behind it.
            return Text(task.description if len(task.description) <= most else task.description[: most - 1] + "…")

    class Done(TextColumn):
        def render(self, task: Task) -> Text:
            if task.total is None and not task.completed:
                return Text("")
            return (in_bytes if task.fields["unit"] == "byte" else in_steps).render(task)

    class Rate(TextColumn):
        def render(self, task: Task) -> Text:
            if task.fields["unit"] == "byte":
                return byte_rate.render(task) if task.speed or task.finished_speed else Text("")
            speed = task.finished_speed or task.speed
            return Text("" if not speed else f"{speed:.1f} step/s" if speed >= 1 else f"{1 / speed:.1f} s/step")

    class Left(TextColumn):
        def render(self, task: Task) -> Text:
            return (elapsed if task.total is None else remaining).render(task)

    return Label(""), Done(""), Rate(""), Left("")
