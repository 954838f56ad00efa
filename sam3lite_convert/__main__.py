"""Where the command line starts, as ``sam3lite`` and as ``python -m sam3lite_convert``.

No failed import, and no failure while a failure is told, ends in a traceback. Under a limit of memory the work is done
in a process of its own, since libraries in C end the process that they get no memory in.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

# Told where nothing more can be imported: nothing but a lack of memory keeps a few lines of ours from it.
_NO_MEMORY = "not enough memory; end other programs, or raise the limit of this one (ulimit -v)"


def main() -> None:
    """Run the command line and exit; expected errors become one message and an exit code."""
    watcher = None
    try:
        watcher = _watched() if _limited() else None
        from sam3lite_convert.cli.app import main as run

        run()
    except SystemExit as end:
        if watcher is not None:
            os.write(watcher, bytes([end.code if isinstance(end.code, int) else bool(end.code)]))
        raise
    except Exception as fault:
        code, message, exit_code = _told(fault)
        _say(code, message)
        if watcher is not None:
            os.write(watcher, bytes([exit_code]))
        os._exit(exit_code)  # what runs at the end of a process may fail for the same reason


def _limited() -> bool:
    """Whether this process has a limit of memory (ulimit -v)."""
    try:
        import resource
    except ImportError:  # Windows
        return False
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def _watched() -> int:
    """Go on in a new process, and return there where to write the exit code; the old one waits, and exits with it.

    If there comes none, the new process was ended by a library that got no memory, and the old one says so.
    """
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        os.close(reads)
        sys.excepthook = lambda *ignored: None  # whatever fails, the old process says it
        return writes
    os.close(writes)
    passed: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        passed.append(number)
        if number != signal.SIGINT or not os.isatty(0):  # a terminal sends it to both
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, pass_on)
    code = os.read(reads, 1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code or passed:
        os._exit(code[0] if code else 130)
    how = f"signal {-status}" if status < 0 else f"exit code {status}"
    _say("no_memory", f"{_NO_MEMORY}. A library ended the work with {how}")
    os._exit(2)


def _told(fault: Exception) -> tuple[str, str, int]:
    try:
        from sam3lite_convert.unforeseen import expected

        error = expected(fault)
        return error.code, error.message, error.exit_code
    except Exception:
        return "no_memory", _NO_MEMORY, 2


def _say(code: str, message: str) -> None:
    try:
        if "--json" in sys.argv:
            # The document of records.shared, without what makes documents.
            shown = "".join(
                c if " " <= c <= "~" and c not in '"\\' else f"\\u{min(ord(c), 0xFFFD):04x}" for c in message
            )
            error = f'{{"code": "{code}", "message": "{shown}", "details": null}}'
            os.write(1, f'{{"schema_version": 1, "error": {error}}}\n'.encode())
        else:
            os.write(2, f"error: {message}\n".encode("ascii", "backslashreplace"))
    except OSError:
        pass  # nobody reads it


if __name__ == "__main__":
    main()
