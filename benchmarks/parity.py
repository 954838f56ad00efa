"""Wall time and peak memory of ``sam3lite parity`` on a full-size checkpoint, compared with importing its libraries.

    python benchmarks/parity.py [--checkpoint FILE] [--runs 3] [--json]

Every command runs in its own process; the commands take turns. Without --checkpoint, a checkpoint of S0's
size is generated (2.2 GB; deleted at the end). The checkpoint is in the page cache for all of them.
Needs ``.[transformers]``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from harness import Results, Targets, benchmark, measure, take_turns

TORCH, BOTH = "import torch", "import torch, transformers"


def commands(checkpoint: Path, converted: Path) -> dict[str, list[str]]:
    """Name -> command line."""
    sam3lite = [sys.executable, "-m", "sam3lite_convert"]
    parity = [*sam3lite, "parity", "--checkpoint", str(checkpoint), "--debug-intermediates"]
    return {
        TORCH: [sys.executable, "-c", "import torch"],
        BOTH: [sys.executable, "-c", "import torch, transformers"],
        "parity, packed": parity,
        "parity, packed, sdpa": [*parity, "--attention", "sdpa"],
        "parity, transformers": [*parity, "--candidate", "transformers"],
        "parity --converted, packed": [*parity, "--converted", str(converted)],
        "parity --self-test, packed": [*parity[:-1], "--self-test"],
    }


def run(checkpoint: Path, work: Path, runs: int) -> Results:
    """All commands in turn, ``runs`` times after one uncounted turn."""
    converted = work / "converted"
    sam3lite = [sys.executable, "-m", "sam3lite_convert"]
    measure([*sam3lite, "convert", "--checkpoint", str(checkpoint), "--output", str(converted)], work)
    return take_turns(commands(checkpoint, converted), work, runs)


def judge(results: Results) -> Targets:
    """Compare the results with the targets."""
    target = Targets(results)
    target.row("parity, packed: longer than import torch", target.more("parity, packed", TORCH), 2.5, "s")
    target.row("parity, packed: peak resident memory, worst", target.peaks("parity, packed"), 900, "MB", worst=True)
    longer = target.more("parity, transformers", BOTH)
    target.row("parity, transformers: longer than importing both", longer, 4, "s")
    return target


if __name__ == "__main__":
    benchmark(__doc__, run, judge)
