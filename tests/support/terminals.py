"""Commands on a terminal of their own."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from support.folders import environment


def on_a_terminal(words: Sequence[str], cwd: Path, **variables: str) -> bytes:
    """What a command sends to a terminal, which has to end well."""
    ours, theirs = pty.openpty()
    env = {k: v for k, v in environment().items() if k not in ("NO_COLOR", "TERM", "FORCE_COLOR", "COLUMNS")}
    command = [sys.executable, "-m", "sam3lite_convert", *words]
    process = subprocess.Popen(command, cwd=cwd, env=env | variables, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    try:
        while part := os.read(ours, 65536):
            said += part
    except OSError:
        pass  # how the end of a terminal reads
    os.close(ours)
    assert process.wait(60) == 0, said.decode()
    return said
