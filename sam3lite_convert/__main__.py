"""Where the command line starts, as ``sam3lite`` and as ``python -m sam3lite_convert``.

No failed import, and no failure while a failure is told, ends in a traceback.
"""

from __future__ import annotations

import os
import sys

# Told where nothing more can be imported: nothing but a lack of memory keeps a few lines of ours from it.
_NO_MEMORY = "not enough memory to start; end other programs, or raise the limit of this one (ulimit -v)"


def main() -> None:
    """Run the command line and exit; expected errors become one message and an exit code."""
    try:
        from sam3lite_convert.cli.app import main as run

        run()
    except Exception as fault:
        code, message, exit_code = _told(fault)
        _say(code, message)
        os._exit(exit_code)  # what runs at the end of a process may fail for the same reason


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
