"""The time of one conversion by stage.

    python benchmarks/stages.py FILE [--layout packed] [--runs 3] [--json]

The conversion runs in its own process, with timers around its functions. The time of a stage inside another
is counted for the inner stage only. Two threads run in parallel: their processor time is listed separately, and
"waiting for both" is the time that the main thread waits for them after writing.
"""

from __future__ import annotations

import argparse
import builtins
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

_STARTED = "SAM3LITE_BENCH_STARTED"
_BESIDE = ("SHA-256 (thread)", "checksums and finite (thread)")

Stages = dict[str, float]


class _Clock:
    """Seconds by stage in the main thread; the time of an inner stage is not counted for the outer one."""

    def __init__(self) -> None:
        self.seconds: Stages = {}
        self._open: list[str] = []
        self._since = 0.0

    def _turn(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def around(self, owner: Any, function: str, name: str) -> None:
        """Count the time of every call of ``owner.function`` under ``name``."""
        inner = getattr(owner, function)

        def call(*arguments: Any, **named: Any) -> Any:
            with self.stage(name):
                return inner(*arguments, **named)

        setattr(owner, function, call)


def _threaded(seconds: Stages, owner: Any, function: str, name: str) -> None:
    inner = getattr(owner, function)

    def call(*arguments: Any, **named: Any) -> Any:
        begun = time.thread_time()
        try:
            return inner(*arguments, **named)
        finally:
            seconds[name] = seconds.get(name, 0.0) + time.thread_time() - begun

    setattr(owner, function, call)


def _imports(clock: _Clock) -> Callable[..., Any]:
    inner, main, deep = builtins.__import__, get_ident(), [0]

    def call(*arguments: Any, **named: Any) -> Any:
        if deep[0] or get_ident() != main:
            return inner(*arguments, **named)
        deep[0] += 1
        try:
            with clock.stage("imports"):
                return inner(*arguments, **named)
        finally:
            deep[0] -= 1

    return call


def child(report: Path, arguments: list[str]) -> None:
    """Run one command in this process and write its stages to ``report``."""
    begun = time.time()
    clock, beside = _Clock(), Stages()
    clock.seconds["Python starts"] = begun - float(os.environ[_STARTED])
    with clock.stage("everything else"):
        builtins.__import__ = _imports(clock)
        from sam3lite_convert.checkpoint import hashing
        from sam3lite_convert.cli import app
        from sam3lite_convert.commands import convert as conversions
        from sam3lite_convert.commands import sources
        from sam3lite_convert.convert import safetensors_writer
        from sam3lite_convert.convert import write as convert
        from sam3lite_convert.plan import tables

        for owner, function, name in (
            (tables, "load_mappings", "tables"),
            (sources, "read_checkpoint", "index"),
            (conversions, "make_plan", "plan"),
            (convert, "write_shard", "writing"),
            (hashing.SourceHash, "result", "waiting for both"),
            (convert, "not_finite", "finite"),
            (safetensors_writer.os, "fsync", "sync"),
            (safetensors_writer.os, "rename", "rename"),
        ):
            clock.around(owner, function, name)
        _threaded(beside, hashing.SourceHash, "_hash", _BESIDE[0])
        _threaded(beside, hashing, "damaged_records", _BESIDE[1])
        code = app.run(arguments)
    report.write_text(json.dumps({"code": code, "stages": clock.seconds | beside, "ended": time.time()}))
    sys.exit(code)


def measure(arguments: list[str], work: Path) -> Stages:
    """Run ``sam3lite ARGUMENTS`` in a separate process; returns its stages and their total."""
    report = work / "stages.json"
    os.sync()
    started = time.time()
    surroundings = os.environ | {_STARTED: str(started), "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    command = [sys.executable, __file__, "--child", str(report), *arguments]
    done = subprocess.run(command, cwd=work, env=surroundings, capture_output=True, text=True, check=False)
    ended = time.time()
    if done.returncode:
        raise SystemExit(f"sam3lite {' '.join(arguments)} failed:\n{done.stderr}")
    record = json.loads(report.read_text())
    stages: Stages = record["stages"]
    beside = {name: stages.pop(name) for name in _BESIDE if name in stages}
    stages["Python ends"] = ended - record["ended"]
    return stages | {"in all": ended - started} | beside


def of_conversion(checkpoint: Path, layout: str, work: Path, runs: int) -> Stages:
    """Medians by stage, after one uncounted run."""
    seen: list[Stages] = []
    for turn in range(runs + 1):
        arguments = ["convert", "--checkpoint", str(checkpoint), "--output", "out", "--layout", layout]
        found = measure(arguments, work)
        shutil.rmtree(work / "out")
        if turn:
            seen.append(found)
    return {name: statistics.median(s.get(name, 0.0) for s in seen) for name in seen[0]}


def table(stages: dict[str, Stages]) -> Table:
    """A table with a row for each stage and a column for each conversion."""
    from rich.table import Table

    out = Table("stage", *[f"{name}: s" for name in stages], title="where the time goes")
    names = dict.fromkeys(name for found in stages.values() for name in found)
    order = [n for n in names if n not in ("in all", *_BESIDE)]
    for name in [*order, "in all", *_BESIDE]:
        style = "bold" if name == "in all" else "dim" if name in _BESIDE else None
        out.add_row(name, *[f"{found.get(name, 0.0):.2f}" for found in stages.values()], style=style)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--layout", action="append")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sam3lite-bench-") as work:
        layouts = asked.layout or ["packed", "transformers"]
        found = {x: of_conversion(asked.checkpoint.resolve(), x, Path(work), max(asked.runs, 1)) for x in layouts}
    if asked.json:
        print(json.dumps(found, indent=2))
    else:
        from rich.console import Console

        Console().print(table(found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()
