"""Time and peak memory of ``cp``, ``convert`` and ``verify`` for checkpoints of several sizes.

    python benchmarks/scale.py [--runs 3] [--sizes 0.5 1 2.2 8] [--six] [--json]

The files have S0's sizes with more or fewer layers in the ViT, so both bytes and tensors grow. ``--six`` also
measures ``convert --all`` over six full-size files, compared with one of them, from a server on loopback that speaks
the Hub's protocol. Needs disk space for three times the largest file; with --six about 45 GB.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import HERE, S0, Results, Sample, clear, environment, generate, measure, take_turns
from rich.console import Console
from rich.table import Table

SAM3LITE = [sys.executable, "-m", "sam3lite_convert"]
REST, LAYER = 0.43e9, 55.7e6  # bytes of an S0 file without its ViT, and of one layer of that


def layers(gigabytes: float) -> int:
    """The number of ViT layers that gives a file of about this size."""
    return max(2, round((gigabytes * 1e9 - REST) / LAYER))


def measured(checkpoint: Path, work: Path, runs: int) -> Results:
    """Measure each command on one file."""
    reference = work / "reference"
    measure([*SAM3LITE, "convert", "--checkpoint", str(checkpoint), "--output", str(reference)], work)
    commands = {
        "cp": ["cp", str(checkpoint), "out"],
        "convert": [*SAM3LITE, "convert", "--checkpoint", str(checkpoint), "--output", "out"],
        "verify": [*SAM3LITE, "verify", str(reference), "--checkpoint", str(checkpoint)],
        "dry run": [*SAM3LITE, "convert", "--checkpoint", str(checkpoint), "--output", "out", "--dry-run"],
    }
    results = take_turns(commands, work, runs)
    clear(reference)
    return results


def by_size(sizes: list[float], work: Path, runs: int) -> dict[str, dict[str, float]]:
    """Median times and worst peaks by file."""
    rows = {}
    for size in sizes:
        path = work / "scale.pt"
        generate(path, S0 | {"vit_layers": layers(size)})
        results = measured(path, work, runs)

        def median(name: str, results: Results = results) -> float:
            return statistics.median(s.wall for s in results[name])

        nbytes = path.stat().st_size
        beyond = [
            (c.wall - d.wall) / p.wall
            for c, d, p in zip(results["convert"], results["dry run"], results["cp"], strict=True)
        ]
        rows[f"{nbytes / 1e9:.2f} GB"] = {
            "layers": layers(size),
            "cp s": median("cp"),
            "convert s": median("convert"),
            "s/GB *": (median("convert") - median("dry run")) / nbytes * 1e9,
            "x cp *": statistics.median(beyond),
            "verify s": median("verify"),
            "convert MB": max(s.peak for s in results["convert"]),
            "verify MB": max(s.peak for s in results["verify"]),
        }
        path.unlink()
    return rows


VARIANTS = (
    "import sys, torch; state = torch.load(sys.argv[1]); last = list(state['model'])[-1]\n"
    "for n in range(6):\n"
    "    state['model'][last] = torch.full_like(state['model'][last], n); torch.save(state, sys.argv[2] % n)"
)
REPO = "Simon7108528/EfficientSAM3"


def six(work: Path) -> dict[str, Sample]:
    """``convert --all`` over six full-size files, and ``convert`` of one of them, downloads included."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    from hub_server import HubServer

    first = work / "one.pt"
    generate(first, S0)
    subprocess.run(
        [sys.executable, "-c", VARIANTS, str(first), str(work / "variant-%d.pt")], check=True, env=environment()
    )
    first.unlink()
    names = [
        f"sam3_litetext/sam3_litetext_mobileclip{name}_ctx{context}.pt"
        for name in ("_s0", "_s1", "2_l")
        for context in (16, 32)
    ]
    found = {}
    with HubServer() as hub:
        hub.add_repo(REPO, {name: work / f"variant-{n}.pt" for n, name in enumerate(names)})
        variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(work / "cache"), "HF_HUB_DISABLE_XET": "1"}
        for what, options in (("one", ["--checkpoint", names[0]]), ("six", ["--all"])):
            found[what] = measure([*SAM3LITE, "convert", *options], work, **variables)
            made = len(list((work / "converted").iterdir()))
            if made != (1 if what == "one" else 6):
                raise SystemExit(f"{made} folders after converting {what}")
            shutil.rmtree(work / "converted")
            shutil.rmtree(work / "cache")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--sizes", type=float, nargs="*", default=[0.5, 1, 2.2, 8])
    parser.add_argument("--six", action="store_true")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sam3lite-bench-") as name:
        rows = by_size(asked.sizes, Path(name), max(asked.runs, 1))
        all_of_them = six(Path(name)) if asked.six else {}
    if asked.json:
        print(json.dumps({"sizes": rows, "all": {k: s._asdict() for k, s in all_of_them.items()}}, indent=2))
        return
    console = Console(width=110)
    if rows:
        table = Table("file", *next(iter(rows.values())))
        for file, row in rows.items():
            table.add_row(file, *[f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()])
        console.print(table, "* without start-up, which is the time of --dry-run")
    if all_of_them:
        table = Table("convert from the Hub", "wall s", "user+sys s", "peak MB")
        for what, sample in all_of_them.items():
            table.add_row(what, *[f"{v:.1f}" for v in sample])
        console.print(table)


if __name__ == "__main__":
    main()
