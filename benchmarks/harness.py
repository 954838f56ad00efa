"""Shared by the benchmarks: measure processes, compare with targets, print the two tables."""

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
from collections.abc import Callable
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
    """One process: wall and processor time in seconds, peak memory in megabytes of 10^6 bytes."""

    wall: float
    user_sys: float
    peak: float


Results = dict[str, list[Sample]]


def environment() -> dict[str, str]:
    """The environment of this process, with the checkout of this file first on the module path."""
    path = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path)}


def measure(command: list[str], cwd: Path, **variables: str) -> Sample:
    """Run one process to its end, with ``variables`` added to its environment."""
    os.sync()
    start = time.perf_counter()
    surroundings = environment() | variables
    process = subprocess.Popen(command, cwd=cwd, env=surroundings, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
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
    """Write a checkpoint in a separate process, since a child's peak memory starts at its parent's."""
    code = (
        "import sys, json, torch; from sam3lite_convert.plan.synthetic import small_architecture, state_dict; "
        "sizes = json.loads(sys.argv[2]); torch.save({'model': state_dict(small_architecture(**sizes))}, sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, str(path), json.dumps(sizes)], check=True, env=environment())


def clear(path: Path) -> None:
    """Remove what a command wrote."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def take_turns(commands: dict[str, list[str]], work: Path, runs: int) -> Results:
    """All commands in turn, ``runs`` times after one uncounted turn; each writes to ``out``."""
    results: Results = {}
    for turn in range(runs + 1):
        for name, command in commands.items():
            figures = measure(command, work)
            clear(work / "out")
            if turn:
                results.setdefault(name, []).append(figures)
    return results


def benchmark(
    about: str | None,
    run: Callable[[Path, Path, int], Results],
    judge: Callable[[Results], Targets],
    more: Callable[[Path, Path, int], dict[str, Any]] | None = None,
    more_table: Callable[[dict[str, Any]], Table] | None = None,
) -> None:
    """The command line of a benchmark: generate what is missing, measure, print, exit 0.

    ``run(checkpoint, work, runs)``: measures in the folder ``work``.
    ``judge``: compares the results with the targets.
    ``more``: an additional measurement.
    ``more_table``: makes its table.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
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
        beside = more(checkpoint.resolve(), work, max(arguments.runs, 1)) if more else {}
    target = judge(results)
    if arguments.json:
        samples = {name: [s._asdict() for s in found] for name, found in results.items()}
        print(json.dumps({"samples": samples, "targets": target.rows} | ({"more": beside} if beside else {}), indent=2))
    else:
        show(results, target.rows)
        if more_table:
            Console().print(more_table(beside))


class Targets:
    """The targets, the values measured in the turns, and whether the median meets each target."""

    def __init__(self, results: Results) -> None:
        self._results = results
        self.rows: list[dict[str, Any]] = []

    def walls(self, name: str) -> list[float]:
        return [s.wall for s in self._results[name]]

    def ratios(self, a: str, b: str) -> list[float]:
        return [x / y for x, y in zip(self.walls(a), self.walls(b), strict=True)]

    def more(self, a: str, b: str) -> list[float]:
        return [x - y for x, y in zip(self.walls(a), self.walls(b), strict=True)]

    def peaks(self, name: str) -> list[float]:
        return [s.peak for s in self._results[name]]

    def row(
        self, what: str, seen: list[float], limit: float, unit: str, at_least: bool = False, worst: bool = False
    ) -> None:
        value = max(seen) if worst else statistics.median(seen)
        held = value >= limit if at_least else value <= limit
        figures = {"seen": value, "min": min(seen), "max": max(seen)}
        self.rows.append({"what": what, "limit": limit, "unit": unit, "at_least": at_least, **figures, "held": held})


def show(results: Results, rows: list[dict[str, Any]]) -> None:
    """Print two tables: the measurements and the targets."""
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
