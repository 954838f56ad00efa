"""Size, time and loss of quantised text encoders, as ``sam3lite export onnx --quantize`` measures them.

    python benchmarks/quantize.py [--checkpoint FILE] [--runs 3] [--json]

Each method is exported ``--runs`` times, in turn; the ratios are those of one run, where both graphs are called one
after the other. The whole export is measured too: its wall time and peak memory. Without --checkpoint, a text encoder
of S0's size with random weights is generated: the losses then tell nothing about trained ones. Needs
``.[onnx,prompts]``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import S0, Sample, environment, measure
from rich.console import Console
from rich.table import Table

METHODS = ("int8", "int8-all")
_TEXT = (
    "import sys, json, torch; from sam3lite_convert.plan.synthetic import small_architecture, state_dict; "
    "state = state_dict(small_architecture(**json.loads(sys.argv[2])), text_only=True); "
    "torch.save({'model': state}, sys.argv[1])"
)


def exported(folder: Path, method: str, work: Path) -> tuple[Sample, dict[str, Any]]:
    """One export: what it took, and the loss that it measured."""
    command = [sys.executable, "-m", "sam3lite_convert", "export", "onnx", str(folder), "--quantize", method, "--json"]
    figures = measure(["sh", "-c", f"exec {shlex.join(command)} > exported.json"], work)
    return figures, json.loads((work / "exported.json").read_text())["quantized"][0]["loss"]


def main() -> None:
    """Generate what is missing, measure, print; exit 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    runs: dict[str, list[tuple[Sample, dict[str, Any]]]] = {method: [] for method in METHODS}
    with tempfile.TemporaryDirectory(prefix="sam3lite-bench-") as name:
        work = Path(name)
        checkpoint = asked.checkpoint and asked.checkpoint.resolve()
        if checkpoint is None:
            checkpoint = work / "text.pt"
            subprocess.run([sys.executable, "-c", _TEXT, checkpoint, json.dumps(S0)], check=True, env=environment())
        folder = work / "text"
        convert = [sys.executable, "-m", "sam3lite_convert", "convert", "--checkpoint", str(checkpoint), "--verify"]
        measure([*convert, "--component", "text", "--output", str(folder)], work)
        for _ in range(max(asked.runs, 1)):
            for method in METHODS:
                runs[method].append(exported(folder, method, work))
    if asked.json:
        found = {m: [{"export": sample._asdict(), "loss": loss} for sample, loss in each] for m, each in runs.items()}
        print(json.dumps(found, indent=2))
        return
    table = Table("method", "MB", "times as fast", "min", "max", "worst relative L2", "export s", "peak MB")
    for method, each in runs.items():
        losses = [loss for _, loss in each]
        ratios = [loss["times_as_fast"] for loss in losses]
        worst = max((tap["relative_l2"], tap["name"]) for tap in losses[0]["taps"])
        table.add_row(
            method,
            f"{losses[0]['bytes'] / 1e6:.1f} of {losses[0]['unquantised_bytes'] / 1e6:.1f}",
            *[f"{value:.2f}" for value in (statistics.median(ratios), min(ratios), max(ratios))],
            f"{worst[0]:.2e} ({worst[1]})",
            f"{statistics.median(sample.wall for sample, _ in each):.1f}",
            f"{max(sample.peak for sample, _ in each):.0f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
