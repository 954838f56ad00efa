"""All commands on a small generated checkpoint, offline: inspect, convert to the layouts that parity can run, verify,
parity."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sam3lite_convert.commands.convert import Request, convert_checkpoint
from sam3lite_convert.commands.inspect import inspect_checkpoint
from sam3lite_convert.commands.parity import run_parity
from sam3lite_convert.commands.sources import Location
from sam3lite_convert.commands.verify import verify_folder
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.parity.candidates import CANDIDATES
from sam3lite_convert.parity.setup import ParityOptions
from sam3lite_convert.plan.plan import Options
from sam3lite_convert.plan.tables import load_mappings
from sam3lite_convert.records.demo import DemoDocument

if TYPE_CHECKING:
    from sam3lite_convert.records.convert import ConvertDocument
    from sam3lite_convert.records.demo import StepDocument
    from sam3lite_convert.records.parity import ParityDocument
    from sam3lite_convert.records.verify import VerifyDocument

_CHECKPOINT = Path("demo.pt")
Step = Callable[[str, "StepDocument | None"], None]


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run_demo(
    output: Path | None = None,
    begins: Callable[[], None] = lambda: None,
    step: Step = lambda command, document: None,
) -> DemoDocument:
    """Run the commands as a user would and return what they returned; ``verdict`` covers all layouts.

    ``output``: a folder to keep the files in; without one they are deleted at the end. ``begins`` is called before the
    checkpoint is made. ``step`` is told of each command when it is done: what a user would type, and what it returned,
    None if it needs a package that is not installed.
    Raises CannotRun if ``output`` is not an empty folder.
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
        begins()
        return _run(step)


def _run(step: Step) -> DemoDocument:
    from sam3lite_convert.plan.synthetic import write_checkpoint

    mappings = load_mappings()
    layouts = [layout for layout in mappings.of_family() if layout.loader.name in CANDIDATES]
    write_checkpoint(_CHECKPOINT)
    location = Location(str(_CHECKPOINT), _CHECKPOINT)
    source = location.whole()
    inspected = inspect_checkpoint(source, mappings)
    step("inspect demo.pt", inspected)
    converted: dict[str, ConvertDocument] = {}
    verified: dict[str, VerifyDocument] = {}
    compared: dict[str, ParityDocument] = {}
    for layout in (x.name for x in layouts):
        converted[layout] = convert_checkpoint(location, mappings, Request(Options(layout)))
        step(f"convert demo.pt --layout {layout}", converted[layout])
        folder = Path(converted[layout].output)
        verified[layout] = verify_folder(folder, source, mappings)
        step(f"verify {folder} demo.pt", verified[layout])
    for layout, loader in ((x.name, x.loader) for x in layouts):
        folder = Path(converted[layout].output)
        command = f"parity demo.pt --converted {folder}"
        if loader.library and importlib.util.find_spec(loader.library) is None:
            step(command, None)
            continue
        compared[layout] = run_parity(source, mappings, ParityOptions(), folder)
        step(f"{command} --debug-intermediates", compared[layout])
    proven = all(document.verdict == "proven" for document in verified.values())
    differs = any(document.failed for document in compared.values())
    return DemoDocument(
        inspected=inspected,
        converted=converted,
        verified=verified,
        compared=compared,
        verdict="proven" if proven and not differs else "mismatch",
    )
