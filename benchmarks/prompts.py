"""Wall time and peak memory of ``sam3lite parity`` on thousands of prompts, against one side's forward passes.

    python benchmarks/prompts.py [--checkpoint FILE] [--runs 3] [--json]

The baseline is the time of a process that loads the original encoder and runs it over the same ids in the same
batches, minus that of one that only loads it. Every command runs in its own process; they take turns.
Needs ``.[transformers,prompts]``.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from harness import Results, Targets, benchmark, measure, take_turns

COUNT = 10_000
FORWARD, LOAD = "load, and one side's forward passes", "load alone"
WORDS = (
    "a the red green blue old small big wooden yellow dog cat bus car tree house bird boat chair lamp shoe cup hat "
    "book person woman child with on near behind holding running sitting parked street river table window umbrella"
)
_PASSES = """
import sys
from pathlib import Path
from sam3lite_convert.checkpoint.reader import read_checkpoint
from sam3lite_convert.parity.inputs import BATCH
from sam3lite_convert.commands.parity import read_prompts
from sam3lite_convert.parity.setup import ParityOptions, set_up
from sam3lite_convert.plan.tables import load_mappings
prompts = read_prompts([], Path(sys.argv[2]))
setup = set_up(read_checkpoint(Path(sys.argv[1])), load_mappings(None), ParityOptions(prompts=prompts))
for ids in setup.every.ids.split(BATCH) if sys.argv[3] == "run" else ():
    setup.reference.run_quietly(ids)
"""


def prompts_file(work: Path) -> Path:
    """Ten thousand prompts of one to fourteen words, the same on every machine."""
    draw = random.Random(0)
    lines = [" ".join(draw.choices(WORDS.split(), k=draw.randint(1, 14))) for _ in range(COUNT)]
    path = work / "prompts.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def run(checkpoint: Path, work: Path, runs: int) -> Results:
    """All commands in turn, ``runs`` times after one uncounted turn."""
    file, converted = prompts_file(work), work / "converted"
    sam3lite = [sys.executable, "-m", "sam3lite_convert"]
    convert = [*sam3lite, "convert", "--checkpoint", str(checkpoint), "--output", str(converted)]
    measure([*convert, "--layout", "transformers", "--component", "text"], work)
    parity = [*sam3lite, "parity", "--checkpoint", str(checkpoint), "--prompts-file", str(file)]
    (work / "thousand.txt").write_text("\n".join(file.read_text().splitlines()[:1000]))
    thousand = [*parity[:-1], str(work / "thousand.txt"), "--converted", str(converted), "--as-used"]
    commands = {
        FORWARD: [sys.executable, "-c", _PASSES, str(checkpoint), str(file), "run"],
        LOAD: [sys.executable, "-c", _PASSES, str(checkpoint), str(file), "load"],
        "parity, packed": parity,
        "parity, transformers": [*parity, "--converted", str(converted)],
        "parity --as-used, 1,000 prompts": thousand,
    }
    return take_turns(commands, work, runs)


def judge(results: Results) -> Targets:
    """Compare the time of the whole command, relative to the passes alone, and its memory with the targets."""
    target = Targets(results)
    passes = target.more(FORWARD, LOAD)
    for name in ("parity, packed", "parity, transformers"):
        ratios = [whole / alone for whole, alone in zip(target.walls(name), passes, strict=True)]
        target.row(f"{name}: times one side's forward passes", ratios, 3, "x")
        target.row(f"{name}: peak resident memory, worst", target.peaks(name), 1500, "MB", worst=True)
    return target


if __name__ == "__main__":
    benchmark(__doc__, run, judge)
