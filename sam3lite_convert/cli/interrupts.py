"""Turns signals into KeyboardInterrupt, also where Python drops the exception."""

from __future__ import annotations

import signal
import threading

_asked_to_stop = threading.Event()


def catch() -> None:
    """Make SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt, except those that this process ignores."""
    _asked_to_stop.clear()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN:
            signal.signal(getattr(signal, name), _interrupt)


def _interrupt(*ignored: object) -> None:
    _asked_to_stop.set()
    raise KeyboardInterrupt


def check() -> None:
    """Raise KeyboardInterrupt, in the main thread, if a signal came.

    An exception that a signal raises inside a callback of the interpreter is lost; this raises it again.
    """
    if _asked_to_stop.is_set() and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt
