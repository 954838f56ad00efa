"""Matches regular expressions of others within bounds: their length, their nesting, and the time that a match takes."""

from __future__ import annotations

import re
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from sam3lite_convert.errors import CannotRun

LONGEST_PATTERN = 2000  # characters; the longest of the shipped tables has some 300
MOST_NESTED = 50  # groups inside each other; the shipped tables have at most four
LONGEST_MATCH = 5.0  # seconds of processor time that the matches of one pattern take altogether
_SKIPPED = re.compile(r"\\.|\[\^?\]?(?:[^\]\\]|\\.)*\]", re.DOTALL)  # escapes and classes: no group begins in them
_MARKS = re.compile(r"[*+?]|\{\d*,?\d*\}")
_REPEATED_GROUP = re.compile(r"\)(?:[*+]|\{\d*,?\d*\})")
_FEW_MARKS = 2  # so many repetitions on a name of 1,000 characters take milliseconds


def compile_pattern(text: str) -> re.Pattern[str]:
    """The compiled pattern.

    Raises ValueError, in short words, if it is no regular expression, has more than 2,000 characters, or groups more
    than 50 deep.
    """
    if len(text) > LONGEST_PATTERN:
        raise ValueError(f"the pattern has {len(text):,} characters; at most {LONGEST_PATTERN:,} are taken")
    if _depth(text) > MOST_NESTED:
        raise ValueError(f"the groups of the pattern are nested more than {MOST_NESTED} deep")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of what a later Python may read otherwise
            return re.compile(text)
    except (re.error, OverflowError) as fault:
        raise ValueError(str(fault)) from fault


def _depth(text: str) -> int:
    depth = deepest = 0
    for c in _SKIPPED.sub("", text):
        depth += (c == "(") - (c == ")")
        deepest = max(deepest, depth)
    return deepest


class BoundedPattern:
    """A compiled pattern whose matches take at most 5 seconds of processor time altogether.

    The bound holds in the main thread, where Python's matching can be interrupted, and where the system has timers of
    processor time (all but Windows). Elsewhere the length and the nesting of a pattern are bounded alone; what matches
    patterns of others in a thread of its own does it in the main thread first or not at all.
    """

    def __init__(self, text: str, where: str, compiled: re.Pattern[str] | None = None) -> None:
        """``where``: where the pattern stands, for messages. ``compiled``: the pattern, if it is already.

        Raises as ``compile_pattern``.
        """
        self._where = where
        self._compiled = compiled or compile_pattern(text)
        self._left = LONGEST_MATCH
        plain = _SKIPPED.sub("x", self._compiled.pattern)
        self._harmless = len(_MARKS.findall(plain)) <= _FEW_MARKS and not _REPEATED_GROUP.search(plain)

    @property
    def groupindex(self) -> Mapping[str, int]:
        return self._compiled.groupindex

    def fullmatch(self, text: str) -> re.Match[str] | None:
        """The match of the whole text. Raises CannotRun if the matches of this pattern take too long."""
        if self._harmless or not _can_interrupt():
            return self._compiled.fullmatch(text)
        with self._timer():
            return self._compiled.fullmatch(text)

    @contextmanager
    def _timer(self) -> Iterator[None]:
        before = signal.signal(signal.SIGVTALRM, self._stop)
        outer = signal.setitimer(signal.ITIMER_VIRTUAL, max(self._left, 0.001))
        try:
            yield
        finally:
            self._left = signal.setitimer(signal.ITIMER_VIRTUAL, *outer)[0]
            signal.signal(signal.SIGVTALRM, _ignore if before is signal.SIG_DFL else before)

    def _stop(self, *ignored: object) -> None:
        if signal.getitimer(signal.ITIMER_VIRTUAL)[0]:
            return  # the signal of an earlier match that comes late: the time of this one is not over
        shown = self._compiled.pattern
        raise CannotRun(
            f"{self._where}: matching the pattern {shown[:100]}{'...' if len(shown) > 100 else ''} took more than "
            f"{LONGEST_MATCH:.0f} seconds; write it so that each repetition ends at a character that cannot be part of "
            "it, as [^.]+ at a dot",
            "slow_pattern",
        )


def _ignore(*ignored: object) -> None:
    """Takes the place of the default, which ends the process: a signal may come after its timer was stopped."""


def _can_interrupt() -> bool:
    return (
        hasattr(signal, "setitimer")
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGVTALRM) is not None  # else a library in C waits for it, and could not go on
    )
