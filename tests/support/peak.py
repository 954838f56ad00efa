"""The command line in a process of its own, of which the greatest memory is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from support.folders import environment

# What a process takes before it becomes another program counts as its own with the system, so it is asked itself.
COMMAND = """
import re, sys
from sam3lite_convert.cli.app import main
try:
    main()
finally:
    try:
        status = open("/proc/self/status").read()
    except OSError:
        status = "VmHWM: 0 kB"
    print(re.search(r"VmHWM:\\s+(\\d+)", status)[1], file=open(sys.argv[0] + "peak", "w"))
"""


class Ended(NamedTuple):
    code: int
    out: str
    err: str
    peak: int  # bytes


def run(folder: Path, *arguments: object, seconds: float = 20, environ: dict[str, str] | None = None) -> Ended:
    """The command line in a process of its own, killed where it takes too long."""
    code = COMMAND.replace("sys.argv[0] + ", repr(str(folder)) + " + '/' + ")
    command = [sys.executable, "-c", code, *map(str, arguments)]
    surroundings = environment() | {"COLUMNS": "100"} | (environ or {})
    done = subprocess.run(command, capture_output=True, cwd=folder, env=surroundings, timeout=seconds, check=False)
    peak = folder / "peak"
    size = int(peak.read_text())
    peak.unlink()
    return Ended(done.returncode, done.stdout.decode(), done.stderr.decode(), size * 1024)
