"""Wall time and peak memory of ``sam3lite parity --component detector`` on a full-size checkpoint.

    python benchmarks/detector.py [--checkpoint FILE] [--runs 1] [--json]

Every command runs in its own process, one after the other. Without --checkpoint, a checkpoint of S0's size is generated
(2.2 GB; deleted at the end). The checkpoint is in the page cache for all of them. Needs ``.[transformers]``, and some
twenty minutes for one run on two cores.
"""

from __future__ import annotations

import sys
from pathlib import Path

from harness import Results, Targets, benchmark, take_turns

# (layout, size) -> the longest time in seconds and the largest peak in MB that were aimed at.
AIMS = {
    ("packed", 336): (20, 4000),
    ("packed", 1008): (180, 4000),
    ("transformers", 336): (60, 5500),
    ("transformers", 1008): (300, 5500),
}


def run(checkpoint: Path, work: Path, runs: int) -> Results:
    """All commands in turn, ``runs`` times."""
    parity = [sys.executable, "-m", "sam3lite_convert", "parity", str(checkpoint), "--component", "detector"]
    commands = {f"{layout}, {size}": [*parity, "--candidate", layout, "--size", str(size)] for layout, size in AIMS}
    return take_turns(commands, work, runs)


def judge(results: Results) -> Targets:
    """Compare the results with the targets."""
    target = Targets(results)
    for (layout, size), (seconds, memory) in AIMS.items():
        name = f"{layout}, {size}"
        target.row(name, target.walls(name), seconds, "s")
        target.row(f"{name}: peak resident memory, worst", target.peaks(name), memory, "MB", worst=True)
    return target


if __name__ == "__main__":
    benchmark(__doc__, run, judge)
