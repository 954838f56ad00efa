"""The main job on a small generated checkpoint, offline: inspect, convert to both layouts, verify, parity."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sam3lite_convert import commands, hub_report, parity_report, report
from sam3lite_convert.conversions import Request, convert_checkpoint
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.parity_commands import run_parity
from sam3lite_convert.parity_setup import ParityOptions
from sam3lite_convert.plan import Options
from sam3lite_convert.sources import Location
from sam3lite_convert.tables import load_mappings

LAYOUTS = ("packed", "transformers")
_CHECKPOINT = Path("demo.pt")


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run_demo(output: Path | None = None, quiet: bool = False) -> dict[str, Any]:
    """Run the commands as a user would and return their records; ``verdict`` covers both layouts.

    ``output``: a folder to keep the files in; without one they are deleted at the end.
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
        records = _steps(quiet)
    proven = all(records[f"verify {layout}"]["verdict"] == "proven" for layout in LAYOUTS)
    compared = {layout: records[f"parity {layout}"]["verdict"] for layout in LAYOUTS if f"parity {layout}" in records}
    records["verdict"] = "proven" if proven and "differs" not in compared.values() else "mismatch"
    if not quiet:
        report.say()
        kept = f"The files are in {output}." if output else "The files were deleted; --output DIR keeps them."
        parity = ", ".join(f"{layout} {verdict.replace('_', ' ')}" for layout, verdict in compared.items())
        report.say(f"Demo done: both layouts {records['verdict']}; parity: {parity}. {kept}", "bold")
        report.say("Next: sam3lite inspect YOUR_CHECKPOINT.pt")
    return records


def _steps(quiet: bool) -> dict[str, Any]:
    from sam3lite_convert.synthetic import write_checkpoint

    mappings = load_mappings()
    records: dict[str, Any] = {}
    if not quiet:
        report.say("A small checkpoint with the keys of a released one and random values: demo.pt")
    write_checkpoint(_CHECKPOINT)
    location = Location(str(_CHECKPOINT), _CHECKPOINT)
    source = location.whole()

    def show(command: str, printer: Any, record: dict[str, Any]) -> None:
        if not quiet:
            report.say()
            report.say(f"$ sam3lite {command}", "bold cyan")
            printer(record)

    records["inspect"] = commands.inspect_checkpoint(source, mappings)
    show("inspect demo.pt", report.inspected, records["inspect"])
    for layout in LAYOUTS:
        record = convert_checkpoint(location, mappings, Request(Options(layout)))
        records[f"convert {layout}"] = record
        show(f"convert --checkpoint demo.pt --layout {layout}", _plan_and_result, record)
        folder = Path(record["output"])
        records[f"verify {layout}"] = commands.verify_folder(folder, source, mappings)
        show(f"verify {folder} --checkpoint demo.pt", report.verified, records[f"verify {layout}"])
    for layout in LAYOUTS:
        command = f"parity --checkpoint demo.pt --converted {records[f'convert {layout}']['output']}"
        if layout == "transformers" and importlib.util.find_spec("transformers") is None:
            if not quiet:
                report.say()
                report.say(f"$ sam3lite {command}", "bold cyan")
                report.say("left out: it needs transformers (pip install 'sam3lite-convert[transformers]')")
            continue
        folder = Path(records[f"convert {layout}"]["output"])
        records[f"parity {layout}"] = run_parity(source, mappings, ParityOptions(), folder)
        show(f"{command} --debug-intermediates", _layers, records[f"parity {layout}"])
    return records


def _layers(record: dict[str, Any]) -> None:
    parity_report.paritied(record, debug=True)


def _plan_and_result(record: dict[str, Any]) -> None:
    report.planned(record)
    report.converted(record)
    hub_report.converted_end(record)
