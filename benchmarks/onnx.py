"""Time and memory of the ONNX graphs in onnxruntime beside torch and transformers, in one run.

    python benchmarks/onnx.py [--checkpoint FILE] [--sizes 336 1008] [--runs 3] [--json]

Every model runs in its own process, one after the other, on the same inputs and as many threads. Without --checkpoint,
a checkpoint of S0's size is generated (2.2 GB; deleted at the end); two folders are converted from it. Needs
``.[transformers,onnx]``, 9 GB of disk, and some twenty minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import S0, environment, generate
from rich.console import Console
from rich.table import Table

CALLS = {"text": 20, "detector": 1}  # calls per run that is asked for


def sam3lite(*arguments: object) -> None:
    """Run a command; its output is shown only if it fails."""
    command = [sys.executable, "-m", "sam3lite_convert", *map(str, arguments)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")


def measured(kind: str, folder: Path, checkpoint: Path, size: int, runs: int, work: Path) -> dict[str, float]:
    """What one kind took: seconds by step, and its peak memory."""
    out = work / "measured.json"
    calls = runs * CALLS[kind.split()[-1]]
    command = [sys.executable, "-m", "benchmarks.onnx_worker", kind, folder, checkpoint, size, calls, out]
    subprocess.run(list(map(str, command)), cwd=work, env=environment(), check=True)
    found: dict[str, float] = json.loads(out.read_text())
    return found


def main() -> None:
    """Generate what is missing, measure, print; exit 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--sizes", type=int, nargs="*", default=[336, 1008])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="sam3lite-bench-") as name:
        work = Path(name)
        checkpoint = (asked.checkpoint or work / "full.pt").resolve()
        if asked.checkpoint is None:
            generate(checkpoint, S0)
        folders = {layout: work / layout for layout in ("packed", "transformers")}
        for layout, folder in folders.items():
            sam3lite("convert", checkpoint, "--layout", layout, "--output", folder, "--verify")
        sam3lite("export", "onnx", folders["packed"])
        for kind in ("onnx", "packed", "transformers"):
            folder = folders["transformers" if kind == "transformers" else "packed"]
            results[f"{kind} text"] = measured(f"{kind} text", folder, checkpoint, 0, asked.runs, work)
        for size in asked.sizes:
            sam3lite("export", "onnx", folders["packed"], "--component", "detector", "--size", size)
            for kind in ("onnx", "packed", "transformers", "reference"):
                folder = folders["transformers" if kind == "transformers" else "packed"]
                found = measured(f"{kind} detector", folder, checkpoint, size, asked.runs, work)
                whole = found.get("image and prompt")
                found["image and prompt"] = found["image"] + found["prompt"] if whole is None else whole
                results[f"{kind} detector {size}"] = found
    if asked.json:
        print(json.dumps(results, indent=2))
        return
    table = Table("model", "step", "s", "x onnxruntime", "load s", "peak MB")
    for kind, found in results.items():
        ours = results["onnx" + kind[kind.index(" ") :]]
        for step, seconds in found.items():
            if step not in ("load", "peak MB"):
                ratio = f"{seconds / ours[step]:.2f}"
                table.add_row(kind, step, f"{seconds:.4f}", ratio, f"{found['load']:.1f}", f"{found['peak MB']:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
