"""Wall time, processor time and peak memory of the commands on a full-size checkpoint, side by side in one run.

    python benchmarks/convert.py [--checkpoint FILE] [--runs 3] [--json]

Every command is a process of its own, timed from outside; the commands take turns, and the disk is
synced before each, so that none pays for what another one left to be written. Ratios are medians of
the turns' ratios, with the least and the greatest beside them. Without --checkpoint, one of S0's
sizes is generated (2.2 GB; deleted at the end).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import HERE, S0, Results, Targets, clear, generate, measure, show


def commands(checkpoint: Path, small: Path, reference: Path) -> dict[str, list[str]]:
    """Name -> command line; what a command writes is called ``out`` and removed after each turn."""
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
    """All commands in turn, ``runs`` times after one turn that is not counted."""
    small, reference = work / "small.pt", work / "reference"
    generate(small, {})
    first = [sys.executable, "-m", "sam3lite_convert", "convert", "--layout", "transformers", "--checkpoint"]
    measure([*first, str(checkpoint), "--output", str(reference)], work)
    results: Results = {}
    for turn in range(runs + 1):
        for name, command in commands(checkpoint, small, reference).items():
            figures = measure(command, work)
            clear(work / "out")
            if turn:
                results.setdefault(name, []).append(figures)
    return results


def judge(results: Results) -> list[dict[str, Any]]:
    """The targets: what was asked, what was seen in the turns, whether the median held."""
    target = Targets(results)
    for layout in ("packed", "transformers"):
        name = f"convert, {layout}"
        target.row(f"{name}: peak resident memory, worst", target.peaks(name), 450, "MB", worst=True)
        target.row(f"{name}: wall time against cp", target.ratios(name, "cp"), 3, "x")
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
    return target.rows


def main() -> None:
    """Measure, print, exit 0: a benchmark, not a test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sam3lite-bench-") as name:
        work = Path(name)
        checkpoint = arguments.checkpoint
        if checkpoint is None:
            checkpoint = work / "full.pt"
            generate(checkpoint, S0)
        results = run(checkpoint.resolve(), work, max(arguments.runs, 1))
        sizes = {"full": checkpoint.stat().st_size, "small": (work / "small.pt").stat().st_size}
    rows = judge(results)
    if arguments.json:
        samples = {name: [s._asdict() for s in found] for name, found in results.items()}
        print(json.dumps({"checkpoint_bytes": sizes, "samples": samples, "targets": rows}, indent=2))
    else:
        show(results, rows)
        small, full = (max(s.peak for s in results[n]) for n in ("convert, small checkpoint", "convert, packed"))
        grows = "does not grow" if full <= 1.5 * small else "GROWS"
        print(
            f"Memory {grows} with the checkpoint: {small:.0f} MB for {sizes['small'] / 1e6:.0f} MB, "
            f"{full:.0f} MB for {sizes['full'] / 1e6:.0f} MB."
        )


if __name__ == "__main__":
    main()
