"""The bars that a command opens, without a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from sam3lite_convert.progress import Bar, Unit
from sam3lite_convert.report import bars


@dataclass
class Watched:
    """One bar. ``done``: of ``total``, when it was closed."""

    label: str
    total: int | None
    unit: Unit
    done: int = 0
    closed: bool = False


def watch(monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    """The list to which every bar is added that a command opens from here on."""
    found: list[Watched] = []

    @contextmanager
    def open_bar(label: str, total: int | None, unit: Unit) -> Iterator[Bar]:
        each = Watched(label, total, unit)
        found.append(each)

        def advance(n: int = 1, stage: str | None = None) -> None:
            each.done += n

        yield advance
        each.closed = True

    monkeypatch.setattr(bars, "opener", lambda quiet, check=None: open_bar)
    return found
