"""All commands on a small generated checkpoint, offline: inspect, convert to both layouts, verify, parity."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sam3lite_convert.commands.convert import Request, convert_checkpoint
from sam3lite_convert.commands.inspect import inspect_checkpoint
from sam3lite_convert.commands.parity import run_parity
from sam3lite_convert.commands.sources import Location
from sam3lite_convert.commands.verify import verify_folder
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.parity.setup import ParityOptions
from sam3lite_convert.plan.plan import Options
from sam3lite_convert.plan.tables import load_mappings

LAYOUTS = ("packed", "transformers")
_CHECKPOINT = Path("demo.pt")
Step = Callable[[str, str, dict[str, Any] | None], None]


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run_demo(output: Path | None = None, step: Step = lambda kind, command, record: None) -> dict[str, Any]:
    """Run the commands as a user would and return their records; ``verdict`` covers both layouts.

    ``output``: a folder to keep the files in; None to delete them at the end. ``step`` is called after each command
    with its name, the command line, and its record (None if it needs a package that is not installed).
    Raises CannotRun if ``output`` exists and is not an empty folder.
    """
    with ExitStack() as stack:
        if output is not None:
            if output.exists() and (not output.is_dir() or any(output.iterdir())):
                raise CannotRun(f"{output} exists and is not an empty folder", "output_exists")
            output.mkdir(parents=True, exist_ok=True)
            place = output
        else:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sam3lite-demo-")))
        stack.enter_context(_working_in(place))
        records = _steps(step)
    proven = all(records[f"verify {layout}"]["verdict"] == "proven" for layout in LAYOUTS)
    compared = [records[f"parity {layout}"]["verdict"] for layout in LAYOUTS if f"parity {layout}" in records]
    records["verdict"] = "proven" if proven and "differs" not in compared else "mismatch"
    return records


def _steps(step: Step) -> dict[str, Any]:
    from sam3lite_convert.plan.synthetic import write_checkpoint

    mappings = load_mappings()
    records: dict[str, Any] = {}
    step("checkpoint", "", None)
    write_checkpoint(_CHECKPOINT)
    location = Location(str(_CHECKPOINT), _CHECKPOINT)
    source = location.whole()
    records["inspect"] = inspect_checkpoint(source, mappings)
    step("inspect", "inspect demo.pt", records["inspect"])
    for layout in LAYOUTS:
        record = convert_checkpoint(location, mappings, Request(Options(layout)))
        records[f"convert {layout}"] = record
        step("convert", f"convert --checkpoint demo.pt --layout {layout}", record)
        folder = Path(record["output"])
        records[f"verify {layout}"] = verify_folder(folder, source, mappings)
        step("verify", f"verify {folder} --checkpoint demo.pt", records[f"verify {layout}"])
    for layout in LAYOUTS:
        folder = Path(records[f"convert {layout}"]["output"])
        command = f"parity --checkpoint demo.pt --converted {folder}"
        if layout == "transformers" and importlib.util.find_spec("transformers") is None:
            step("parity", command, None)
            continue
        records[f"parity {layout}"] = run_parity(source, mappings, ParityOptions(), folder)
        step("parity", f"{command} --debug-intermediates", records[f"parity {layout}"])
    return records
