"""Wall time and peak memory of the commands on a full-size checkpoint, side by side in one run.

    python benchmarks/convert.py [--checkpoint FILE] [--runs 3] [--json]

Every command is a process of its own, timed from outside; the commands take turns, and the disk is
synced before each, so that none pays for what another one left to be written. Ratios are medians of
the turns' ratios. Without --checkpoint, one of S0's sizes is generated (2.2 GB; deleted at the end).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
S0 = {
    "vit_hidden": 1024, "vit_ffn": 4736, "vit_positions": 576, "hidden": 256, "fpn_hidden": 256, "text_hidden": 512,
    "text_ffn": 2048, "text_heads": 8, "projection_dim": 512, "output_dim": 256, "geometry_ffn": 2048,
    "detr_encoder_ffn": 2048, "detr_decoder_ffn": 2048, "queries": 200,
}  # fmt: skip


def measure(command: list[str], cwd: Path) -> tuple[float, float]:
    """Wall seconds and peak resident megabytes of one process."""
    os.sync()
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = process.stderr.read() if process.stderr else b""
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors.decode()}")
    return wall, usage.ru_maxrss / 1024


def generate(path: Path, sizes: dict[str, int]) -> None:
    """Write a checkpoint in a process of its own: a child's peak memory starts at its parent's."""
    code = (
        "import sys, json, torch; from sam3lite_convert.synthetic import small_architecture, state_dict; "
        "sizes = json.loads(sys.argv[2]); torch.save({'model': state_dict(small_architecture(**sizes))}, sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, str(path), json.dumps(sizes)], check=True)


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


def run(checkpoint: Path, work: Path, runs: int) -> dict[str, list[tuple[float, float]]]:
    """All commands in turn, ``runs`` times after one turn that is not counted."""
    small, reference = work / "small.pt", work / "reference"
    generate(small, {})
    first = [sys.executable, "-m", "sam3lite_convert", "convert", "--layout", "transformers", "--checkpoint"]
    subprocess.run([*first, str(checkpoint), "--output", str(reference)], check=True, stdout=subprocess.DEVNULL)
    results: dict[str, list[tuple[float, float]]] = {}
    for turn in range(runs + 1):
        for name, command in commands(checkpoint, small, reference).items():
            figures = measure(command, work)
            out = work / "out"
            if out.is_dir():
                shutil.rmtree(out)
            else:
                out.unlink(missing_ok=True)
            if turn:
                results.setdefault(name, []).append(figures)
    return results


def judge(results: dict[str, list[tuple[float, float]]]) -> list[dict[str, object]]:
    """The targets: what was asked, what was seen, whether it held."""

    def ratio(a: str, b: str) -> float:
        return statistics.median(x[0] / y[0] for x, y in zip(results[a], results[b], strict=True))

    def more(a: str, b: str) -> float:
        return statistics.median(x[0] - y[0] for x, y in zip(results[a], results[b], strict=True))

    def peak(name: str) -> float:
        return max(m for _, m in results[name])

    rows: list[dict[str, object]] = []

    def row(what: str, seen: float, limit: float, unit: str, at_least: bool = False) -> None:
        held = seen >= limit if at_least else seen <= limit
        rows.append({"what": what, "seen": seen, "limit": limit, "unit": unit, "at_least": at_least, "held": held})

    for layout in ("packed", "transformers"):
        name = f"convert, {layout}"
        row(f"{name}: peak resident memory", peak(name), 450, "MB")
        row(f"{name}: wall time against cp", ratio(name, "cp"), 3, "x")
        row(f"{name}: faster than the common way", ratio("the common way", name), 6, "x", at_least=True)
    row("memory, full size against small", peak("convert, packed") / peak("convert, small checkpoint"), 1.5, "x")
    row("inspect: longer than import torch", more("inspect", "import torch"), 1.5, "s")
    row("convert --dry-run: longer than import torch", more("convert --dry-run", "import torch"), 1.5, "s")
    row("sam3lite --help", statistics.median(w for w, _ in results["sam3lite --help"]), 0.4, "s")
    return rows


def show(results: dict[str, list[tuple[float, float]]], rows: list[dict[str, object]]) -> None:
    """Two tables: what was measured, and what was asked."""
    console = Console()
    table = Table("command", "wall s, median", "min", "max", "peak MB")
    for name, figures in results.items():
        walls = [w for w, _ in figures]
        numbers = (statistics.median(walls), min(walls), max(walls))
        table.add_row(name, *[f"{n:.2f}" for n in numbers], f"{max(m for _, m in figures):.0f}")
    console.print(table)
    table = Table("target", "limit", "seen", "held")
    for r in rows:
        sign = "at least" if r["at_least"] else "at most"
        table.add_row(
            str(r["what"]),
            f"{sign} {r['limit']:g} {r['unit']}",
            f"{r['seen']:.2f} {r['unit']}",
            "yes" if r["held"] else "NO",
        )
    console.print(table)


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
        results = run(checkpoint.resolve(), work, arguments.runs)
    rows = judge(results)
    if arguments.json:
        print(json.dumps({"seconds_and_megabytes": results, "targets": rows}, indent=2))
    else:
        show(results, rows)


if __name__ == "__main__":
    main()
