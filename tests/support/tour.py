"""docs/tour.ipynb, run as plain Python for the tests, or in Jupyter.

``python tests/support/tour.py`` (extra ``tour``) executes it as its readers do, and fails if it shows something else
than is stored or takes two minutes. ``--write`` stores what it shows.
"""

from __future__ import annotations

import base64
import difflib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "tour.ipynb"
LIMIT = 120  # seconds
ADVICE = "If that is right: python tests/support/tour.py --write, with the extra tour"
SAME_PIXELS = 0.99  # the edge of a mask is where a number changes its sign, which other processors round differently
# The tensors are tiny: where other programs run, a pool of threads only waits for itself.
SURROUNDINGS = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

Json = dict[str, Any]

_COLOUR = re.compile(r"\x1b\[[\d;]*m")

# Runs in a process of its own. The value of a cell's last line is shown, as Jupyter does.
_PLAIN = """
import ast, base64, contextlib, io, json, sys

names, shown = {"__name__": "__main__"}, []
for n, source in enumerate(json.load(sys.stdin)):
    body, last = ast.parse(source, f"cell {n}").body, None
    if isinstance(body[-1], ast.Expr):
        last = ast.Expression(body.pop().value)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(ast.Module(body, []), f"cell {n}", "exec"), names)
        value = None if last is None else eval(compile(last, f"cell {n}", "eval"), names)
    picture = value._repr_png_() if hasattr(value, "_repr_png_") else None
    text = "" if value is None or picture else repr(value) + "\\n"
    shown.append([out.getvalue() + text, base64.b64encode(picture).decode() if picture else None])
json.dump(shown, sys.stdout)
"""


class Shown(NamedTuple):
    """What a cell shows: its text, and a picture as PNG."""

    text: str
    picture: bytes | None


def notebook() -> Json:
    """The notebook as it is stored."""
    stored: Json = json.loads(PAGE.read_text(encoding="utf-8"))
    return stored


def code_cells(page: Json) -> list[Json]:
    """Its cells of code."""
    return [cell for cell in page["cells"] if cell["cell_type"] == "code"]


def source(cell: Json) -> str:
    """The text of a cell."""
    return "".join(cell["source"])


def stored(page: Json) -> list[Shown]:
    """What the outputs of each cell of code show."""
    return [_shown(cell["outputs"]) for cell in code_cells(page)]


def _shown(outputs: list[Json]) -> Shown:
    text, picture = "", None
    for output in outputs:
        data = output.get("data", {})
        if "image/png" in data:
            picture = base64.b64decode("".join(data["image/png"]))
        elif output["output_type"] == "stream" and output["name"] == "stdout":
            text += "".join(output["text"])
        elif "text/plain" in data:
            text += "".join(data["text/plain"]) + "\n"
        else:
            text += f"{output}\n"  # an error, or what was written to stderr: stored nowhere, so it is a difference
    return Shown(_COLOUR.sub("", text), picture)  # Jupyter asks the programs that it starts for colours


def run_plainly(page: Json, folder: Path) -> list[Shown]:
    """Run all cells in one process of plain Python. Raises AssertionError if one of them fails."""
    environment = os.environ | SURROUNDINGS | {"PYTHONPATH": str(ROOT)}
    environment.pop("COLUMNS", None)  # where a user states them, lines are broken in a pipe too
    cells = json.dumps([source(cell) for cell in code_cells(page)])
    command = [sys.executable, "-c", _PLAIN]
    done = subprocess.run(command, input=cells, capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    return [Shown(text, picture and base64.b64decode(picture)) for text, picture in json.loads(done.stdout)]


def differences(page: Json, shown: list[Shown]) -> list[str]:
    """How what was shown now differs from what is stored; nothing if it does not."""
    found = []
    for cell, before, now in zip(code_cells(page), stored(page), shown, strict=True):
        lines = difflib.unified_diff(before.text.splitlines(), now.text.splitlines(), "stored", "now", lineterm="")
        found += [f"{cell['id']}: {line}" for line in lines]
        if not _same_picture(before.picture, now.picture):
            found.append(f"{cell['id']}: another picture")
    return found


def _same_picture(before: bytes | None, now: bytes | None) -> bool:
    if before is None or now is None:
        return before is now
    import io

    import numpy as np
    from PIL import Image

    a, b = (np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) for png in (before, now))
    return a.shape == b.shape and bool((a == b).all(-1).mean() >= SAME_PIXELS)


def execute(page: Json) -> Json:
    """The notebook as Jupyter leaves it after running all cells, without times and the like."""
    import nbformat
    from nbclient import NotebookClient
    from traitlets.config import Config

    made = nbformat.reads(json.dumps(page), as_version=4)
    nbformat.validate(made)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            made,
            timeout=LIMIT,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": folder}},
            config=Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}}),  # no ports
        )
        client.execute()
    executed: Json = json.loads(nbformat.writes(made))
    executed["metadata"] = page["metadata"]  # without the version of Python
    return executed


def main(arguments: list[str]) -> None:
    """Execute the notebook; compare, or with ``--write`` store."""
    os.environ.update(SURROUNDINGS)
    os.environ.pop("COLUMNS", None)
    page, began = notebook(), time.monotonic()
    executed = execute(page)
    seconds = time.monotonic() - began
    if arguments == ["--write"]:
        PAGE.write_text(json.dumps(executed, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    elif found := differences(page, stored(executed)):
        sys.exit("\n".join([*found, ADVICE]))
    elif seconds > LIMIT:
        sys.exit(f"it took {seconds:.0f} s; {LIMIT} is the limit")
    print(f"docs/tour.ipynb: {len(code_cells(page))} cells of code in {seconds:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
