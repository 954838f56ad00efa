"""How far long work is. Whoever does it opens a bar here; nothing is shown unless a program asks for it.

The command line shows bars on a terminal (``report/bars.py``). Threads that the work starts have none of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Literal, Protocol

Unit = Literal["byte", "step"]


class Bar(Protocol):
    """An open bar."""

    def __call__(self, n: int = 1, stage: str | None = None) -> None:
        """So much more is done. ``stage``: what is being done now, in words."""


# (what is done, in words; how much of it there is, None if that is not known; of what) -> a bar.
OpenBar = Callable[[str, int | None, Unit], AbstractContextManager[Bar]]

_open: ContextVar[OpenBar | None] = ContextVar("open", default=None)


@contextmanager
def shown_by(opener: OpenBar) -> Iterator[None]:
    """Inside it, bars are shown by ``opener``."""
    token = _open.set(opener)
    try:
        yield
    finally:
        _open.reset(token)


@contextmanager
def bar(label: str, total: int | None, unit: Unit = "step") -> Iterator[Bar]:
    """A bar for work that may take longer than two seconds, gone when the context is left.

    label: what is done, in words, such as "hashing the source".
    total: how much there is to do, in units; None if that is not known.
    """
    opener = _open.get()
    if opener is None:
        yield _nobody
        return
    with opener(label, total, unit) as advance:
        yield advance


def _nobody(n: int = 1, stage: str | None = None) -> None:
    """A bar that nobody sees."""
