"""Time and peak memory of ``cp``, ``convert`` and ``verify`` for checkpoints of several sizes and kinds.

    python benchmarks/scale.py [--runs 3] [--sizes 0.5 1 2.2 8] [--kinds [KIND ...]] [--six] [--json]

The files of ``--sizes`` have S0's sizes with more or fewer layers in the ViT, so both bytes and tensors grow. Those of
``--kinds`` have all tensors of a released file of the family, at full size (3.5 GB of the teacher); without a name, of
every kind. ``--six`` also measures ``convert --all`` over six full-size files, compared with one of them, from a server
on loopback that speaks the Hub's protocol. Needs disk space for three times the largest file; with --six about 45 GB.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from harness import HERE, S0, Results, Sample, clear, environment, generate, measure, take_turns
from rich.console import Console
from rich.table import Table

SAM3LITE = [sys.executable, "-m", "sam3lite_convert"]
REST, LAYER = 0.43e9, 55.7e6  # bytes of an S0 file without its ViT, and of one layer of that


def layers(gigabytes: float) -> int:
    """The number of ViT layers that gives a file of about this size."""
    return max(2, round((gigabytes * 1e9 - REST) / LAYER))


class Kind(NamedTuple):
    """A conversion of a kind of the family: the key list of its file, in the tests' data, and the options."""

    keys: str
    options: tuple[str, ...]


_TRANSFORMERS = ("--layout", "transformers")
_VIDEO = (*_TRANSFORMERS, "--component", "video")
KINDS = {
    "s0-packed": Kind("s0_ctx16", ()),
    "s0-transformers": Kind("s0_ctx16", _TRANSFORMERS),
    "s0-video": Kind("s0_ctx16", _VIDEO),
    "s0-3.1-packed": Kind("sam3p1_s0_ctx16", ()),
    "s0-3.1-transformers": Kind("sam3p1_s0_ctx16", _TRANSFORMERS),
    "teacher-transformers": Kind("sam3_teacher", _TRANSFORMERS),
    "teacher-video": Kind("sam3_teacher", _VIDEO),
}
_WRITE_KIND = (
    "import sys, torch; sys.path.insert(0, sys.argv[1]); from support.recipe import draw; "
    "from support.rows import key_list; "
    "torch.save({'model': {k: draw(k, d, s) for k, (d, s) in key_list(sys.argv[2]).items()}}, sys.argv[3])"
)
# The command line of an installation without torch, which makes no fingerprint.
_NO_FINGERPRINT = (
    "import sys; from sam3lite_convert.commands import fingerprint; fingerprint._can_make = lambda: False; "
    "from sam3lite_convert.cli import app; sys.exit(app.run(sys.argv[1:]))"
)


def measured(checkpoint: Path, work: Path, runs: int, options: Sequence[str] = ()) -> Results:
    """Measure each command on one file. ``options``: of the conversion."""
    reference = work / "reference"
    to = ["convert", "--checkpoint", str(checkpoint), "--tokenizer", "none", *options, "--output"]
    measure([*SAM3LITE, *to, str(reference)], work)
    convert = [*to, "out"]
    verify = ["verify", str(reference), "--checkpoint", str(checkpoint)]
    bare = [sys.executable, "-c", _NO_FINGERPRINT]
    commands = {
        "cp": ["cp", str(checkpoint), "out"],
        "cp, sync": ["sh", "-c", 'cp "$0" out && sync out', str(checkpoint)],
        "convert": [*SAM3LITE, *convert],
        "verify": [*SAM3LITE, *verify],
        "dry run": [*SAM3LITE, *convert, "--dry-run"],
        "convert, no fingerprint": [*bare, *convert],
        "verify, no fingerprint": [*bare, *verify],
    }
    results = take_turns(commands, work, runs)
    clear(reference)
    return results


def row(results: Results, nbytes: int) -> dict[str, float]:
    """Median times and ratios, and worst peaks. ``nbytes``: of the file."""

    def walls(name: str) -> list[float]:
        return [s.wall for s in results[name]]

    def ratio(a: str, b: str, less: str | None = None) -> float:
        off = walls(less) if less else [0.0] * len(walls(a))
        return statistics.median((x - y) / z for x, y, z in zip(walls(a), off, walls(b), strict=True))

    def peak(name: str) -> float:
        return max(s.peak for s in results[name])

    times = {f"{name} s": statistics.median(walls(name)) for name in ("cp", "cp, sync", "convert", "verify")}
    bare = [f"{name}, no fingerprint" for name in ("convert", "verify")]
    return {
        **times,
        **{f"{name} user+sys s": statistics.median(s.user_sys for s in results[name]) for name in ("convert", *bare)},
        "s/GB *": (times["convert s"] - statistics.median(walls("dry run"))) / nbytes * 1e9,
        "convert x cp": ratio("convert", "cp"),
        "x cp *": ratio("convert", "cp", "dry run"),
        "x cp, sync": ratio("convert", "cp, sync"),
        "verify x cp": ratio("verify", "cp"),
        **{f"{name} x cp": ratio(name, "cp") for name in bare},
        **{f"{name} MB": peak(name) for name in ("convert", "verify", *bare)},
    }


def by_size(sizes: list[float], work: Path, runs: int) -> dict[str, dict[str, float]]:
    """A row for each size of a file."""
    rows = {}
    for size in sizes:
        path = work / "scale.pt"
        generate(path, S0 | {"vit_layers": layers(size)})
        nbytes = path.stat().st_size
        rows[f"{nbytes / 1e9:.2f} GB, {layers(size)} ViT layers"] = row(measured(path, work, runs), nbytes)
        path.unlink()
    return rows


def by_kind(names: Sequence[str], work: Path, runs: int) -> dict[str, dict[str, float]]:
    """A row for each kind; those of one file share it."""
    rows = {}
    for keys in dict.fromkeys(KINDS[name].keys for name in names):
        path = work / f"{keys}.pt"
        command = [sys.executable, "-c", _WRITE_KIND, str(HERE.parent / "tests"), keys, str(path)]
        subprocess.run(command, check=True, env=environment())
        for name in names:
            if KINDS[name].keys == keys:
                found = measured(path, work, runs, KINDS[name].options)
                rows[f"{name}, {path.stat().st_size / 1e9:.2f} GB"] = row(found, path.stat().st_size)
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
    from support.hub_server import HubServer

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
    parser.add_argument("--sizes", type=float, nargs="*")
    parser.add_argument("--kinds", nargs="*", choices=tuple(KINDS))
    parser.add_argument("--six", action="store_true")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    sizes = asked.sizes if asked.sizes is not None else [] if asked.kinds is not None else [0.5, 1, 2.2, 8]
    kinds = asked.kinds or (list(KINDS) if asked.kinds is not None else [])
    runs = max(asked.runs, 1)
    with tempfile.TemporaryDirectory(prefix="sam3lite-bench-") as name:
        rows = by_size(sizes, Path(name), runs) | by_kind(kinds, Path(name), runs)
        all_of_them = six(Path(name)) if asked.six else {}
    if asked.json:
        print(json.dumps({"sizes": rows, "all": {k: s._asdict() for k, s in all_of_them.items()}}, indent=2))
        return
    console = Console(width=110)
    if rows:
        # A column a file: there are more figures than files.
        table = Table("", *rows)
        for figure in next(iter(rows.values())):
            digits = 0 if figure.endswith(" MB") else 2
            table.add_row(figure, *[f"{found[figure]:.{digits}f}" for found in rows.values()])
        console.print(table, "* without start-up, which is the time of --dry-run")
    if all_of_them:
        table = Table("convert from the Hub", "wall s", "user+sys s", "peak MB")
        for what, sample in all_of_them.items():
            table.add_row(what, *[f"{v:.1f}" for v in sample])
        console.print(table)


if __name__ == "__main__":
    main()
