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
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
S0 = {
    "vit_hidden": 1024, "vit_ffn": 4736, "vit_positions": 576, "hidden": 256, "fpn_hidden": 256, "text_hidden": 512,
    "text_ffn": 2048, "text_heads": 8, "projection_dim": 512, "output_dim": 256, "geometry_ffn": 2048,
    "detr_encoder_ffn": 2048, "detr_decoder_ffn": 2048, "queries": 200,
}  # fmt: skip


class Sample(NamedTuple):
    """One process, measured from outside: seconds, and megabytes of 10^6 bytes."""

    wall: float
    user_sys: float
    peak: float


Results = dict[str, list[Sample]]


def environment() -> dict[str, str]:
    """Ours, with the checkout that this file lies in first on the module path."""
    path = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path)}


def measure(command: list[str], cwd: Path) -> Sample:
    """Run one process to its end."""
    os.sync()
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=cwd, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = process.stderr.read() if process.stderr else b""
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors.decode()}")
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return Sample(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 1e6)


def generate(path: Path, sizes: dict[str, int]) -> None:
    """Write a checkpoint in a process of its own: a child's peak memory starts at its parent's."""
    code = (
        "import sys, json, torch; from sam3lite_convert.synthetic import small_architecture, state_dict; "
        "sizes = json.loads(sys.argv[2]); torch.save({'model': state_dict(small_architecture(**sizes))}, sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, str(path), json.dumps(sizes)], check=True, env=environment())


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
            out = work / "out"
            if out.is_dir():
                shutil.rmtree(out)
            else:
                out.unlink(missing_ok=True)
            if turn:
                results.setdefault(name, []).append(figures)
    return results


def judge(results: Results) -> list[dict[str, Any]]:
    """The targets: what was asked, what was seen in the turns, whether the median held."""
    rows: list[dict[str, Any]] = []

    def walls(name: str) -> list[float]:
        return [s.wall for s in results[name]]

    def ratios(a: str, b: str) -> list[float]:
        return [x / y for x, y in zip(walls(a), walls(b), strict=True)]

    def more(a: str, b: str) -> list[float]:
        return [x - y for x, y in zip(walls(a), walls(b), strict=True)]

    def peaks(name: str) -> list[float]:
        return [s.peak for s in results[name]]

    def row(what: str, seen: list[float], limit: float, unit: str, at_least: bool = False, worst: bool = False) -> None:
        value = max(seen) if worst else statistics.median(seen)
        held = value >= limit if at_least else value <= limit
        figures = {"seen": value, "min": min(seen), "max": max(seen)}
        rows.append({"what": what, "limit": limit, "unit": unit, "at_least": at_least, **figures, "held": held})

    for layout in ("packed", "transformers"):
        name = f"convert, {layout}"
        row(f"{name}: peak resident memory, worst", peaks(name), 450, "MB", worst=True)
        row(f"{name}: wall time against cp", ratios(name, "cp"), 3, "x")
        row(f"{name}: faster than the common way", ratios("the common way", name), 6, "x", at_least=True)
    grown = [x / y for x, y in zip(peaks("convert, packed"), peaks("convert, small checkpoint"), strict=True)]
    row("convert, packed: memory, full against small checkpoint", grown, 1.5, "x", worst=True)
    row("inspect: longer than import torch", more("inspect", "import torch"), 1.5, "s")
    row("convert --dry-run: longer than import torch", more("convert --dry-run", "import torch"), 1.5, "s")
    row("sam3lite --help", walls("sam3lite --help"), 0.4, "s")
    return rows


def show(results: Results, rows: list[dict[str, Any]], sizes: dict[str, int]) -> None:
    """Two tables: what was measured, and what was asked; then the line on memory."""
    console = Console()
    table = Table("command", "wall s, median", "min", "max", "user+sys s", "peak MB")
    for name, samples in results.items():
        walls = [s.wall for s in samples]
        numbers = (statistics.median(walls), min(walls), max(walls), statistics.median(s.user_sys for s in samples))
        table.add_row(name, *[f"{n:.2f}" for n in numbers], f"{max(s.peak for s in samples):.0f}")
    console.print(table)
    table = Table("target", "limit", "seen", "min", "max", "held")
    for r in rows:
        sign = "at least" if r["at_least"] else "at most"
        digits = 0 if r["unit"] == "MB" else 2
        seen = [f"{r[k]:.{digits}f} {r['unit']}" for k in ("seen", "min", "max")]
        table.add_row(r["what"], f"{sign} {r['limit']:g} {r['unit']}", *seen, "yes" if r["held"] else "NO")
    console.print(table)
    small, full = (max(s.peak for s in results[n]) for n in ("convert, small checkpoint", "convert, packed"))
    console.print(
        f"Memory does not grow with the checkpoint: {small:.0f} MB for {sizes['small'] / 1e6:.0f} MB, "
        f"{full:.0f} MB for {sizes['full'] / 1e6:.0f} MB."
        if full <= 1.5 * small
        else f"MEMORY GROWS WITH THE CHECKPOINT: {small:.0f} MB for the small one, {full:.0f} MB for the full one."
    )


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
        show(results, rows, sizes)


if __name__ == "__main__":
    main()
