"""Wall time, processor time and peak memory of the commands on a full-size checkpoint, side by side in one run.

    python benchmarks/convert.py [--checkpoint FILE] [--runs 3] [--json]

Every command runs in its own process; the commands take turns, and the disk is synced before each, so that
none waits for another's writes. Ratios are medians over the turns, shown with minimum and maximum. Without
--checkpoint, a checkpoint of S0's size is generated (2.2 GB; deleted at the end).
"""

from __future__ import annotations

import sys
from pathlib import Path

import stages
from harness import HERE, Results, Targets, benchmark, generate, measure, take_turns


def commands(checkpoint: Path, small: Path, reference: Path) -> dict[str, list[str]]:
    """Name -> command line. A command writes to ``out``, which is removed after each turn."""
    sam3lite = [sys.executable, "-m", "sam3lite_convert"]
    convert = [*sam3lite, "convert", "--output", "out", "--checkpoint"]
    return {
        "cp": ["cp", str(checkpoint), "out"],
        "convert, packed": [*convert, str(checkpoint)],
        "convert, transformers": [*convert, str(checkpoint), "--layout", "transformers"],
        "convert, small checkpoint": [*convert, str(small)],
        "the common way": [sys.executable, str(HERE / "common_way.py"), str(checkpoint), str(reference), "out"],
        "verify": [*sam3lite, "verify", str(reference), "--checkpoint", str(checkpoint)],
        "import torch": [sys.executable, "-c", "import torch"],
        "inspect": [*sam3lite, "inspect", str(checkpoint)],
        "convert --dry-run": [*convert, str(checkpoint), "--dry-run"],
        "sam3lite --help": [*sam3lite, "--help"],
    }


def run(checkpoint: Path, work: Path, runs: int) -> Results:
    """All commands in turn, ``runs`` times after one uncounted turn."""
    small, reference = work / "small.pt", work / "reference"
    generate(small, {})
    first = [sys.executable, "-m", "sam3lite_convert", "convert", "--layout", "transformers", "--checkpoint"]
    measure([*first, str(checkpoint), "--output", str(reference)], work)
    return take_turns(commands(checkpoint, small, reference), work, runs)


def by_stage(checkpoint: Path, work: Path, runs: int) -> dict[str, stages.Stages]:
    """Time by stage of the conversion to each layout."""
    return {layout: stages.of_conversion(checkpoint, layout, work, runs) for layout in ("packed", "transformers")}


def judge(results: Results) -> Targets:
    """Compare the results with the targets."""
    target = Targets(results)
    for layout in ("packed", "transformers"):
        name = f"convert, {layout}"
        target.row(f"{name}: peak resident memory, worst", target.peaks(name), 450, "MB", worst=True)
        start = target.walls("convert --dry-run")
        beyond = [max(x - s, 0) / y for x, s, y in zip(target.walls(name), start, target.walls("cp"), strict=True)]
        target.row(f"{name}: wall time beyond start-up (that of --dry-run) against cp", beyond, 1.5, "x")
        faster = target.ratios("the common way", name)
        target.row(f"{name}: faster than the common way", faster, 6, "x", at_least=True)
    grown = [
        x / y for x, y in zip(target.peaks("convert, packed"), target.peaks("convert, small checkpoint"), strict=True)
    ]
    target.row("convert, packed: memory, full against small checkpoint", grown, 1.5, "x", worst=True)
    target.row("inspect: longer than import torch", target.more("inspect", "import torch"), 1.5, "s")
    target.row(
        "convert --dry-run: longer than import torch", target.more("convert --dry-run", "import torch"), 1.5, "s"
    )
    target.row("sam3lite --help", target.walls("sam3lite --help"), 0.4, "s")
    return target


if __name__ == "__main__":
    benchmark(__doc__, run, judge, by_stage, stages.table)
