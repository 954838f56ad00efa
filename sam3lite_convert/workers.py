"""Runs work in a thread and returns its result later."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Worker(threading.Thread, Generic[T]):
    """A thread that starts at once and keeps the result of its work, or its exception, for the caller."""

    _result: T

    def __init__(self, work: Callable[[], T]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._fault: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as fault:
            self._fault = fault

    def result(self) -> T:
        """Wait for the work and return its result. Raises what the work raised."""
        self.join()
        if self._fault is not None:
            raise self._fault
        return self._result


Advance = Callable[[int], None]
