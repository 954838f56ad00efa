"""Work in a thread: its result or its exception reaches the one that asks, who waits for it."""

from __future__ import annotations

import threading

import pytest

from sam3lite_convert.workers import Worker


def test_the_result_is_waited_for():
    begun, go = threading.Event(), threading.Event()

    def work() -> int:
        begun.set()
        assert go.wait(10)
        return 3

    worker = Worker(work)
    assert begun.wait(10)  # nobody asked yet
    go.set()
    assert worker.result() == 3 and worker.result() == 3


def test_an_exception_is_raised_where_the_result_is_asked_for():
    worker = Worker(lambda: 1 // 0)
    worker.join()
    with pytest.raises(ZeroDivisionError):
        worker.result()


def test_no_result_is_a_result():
    assert Worker(lambda: None).result() is None
