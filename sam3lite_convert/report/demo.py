"""Shows the demo: each command as a user would type it, and its result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sam3lite_convert.report.convert import converted, planned
from sam3lite_convert.report.inspect import inspected
from sam3lite_convert.report.parity import paritied
from sam3lite_convert.report.push import converted_end
from sam3lite_convert.report.terminal import say
from sam3lite_convert.report.verify import verified


def demo_step(kind: str, command: str, record: Any) -> None:
    """One command that has run; ``record`` None: it was left out."""
    if kind == "checkpoint":
        say("A small checkpoint with the keys of a released one and random values: demo.pt")
        return
    say()
    say(f"$ sam3lite {command}", "bold cyan")
    if record is None:
        say("left out: it needs transformers (pip install 'sam3lite-convert[transformers]')")
    elif kind == "inspect":
        inspected(record)
    elif kind == "convert":
        planned(record)
        converted(record)
        converted_end(record)
    elif kind == "verify":
        verified(record)
    else:
        paritied(record, debug=True)


def demo_end(records: dict[str, Any], output: Path | None) -> None:
    """The verdicts, and what to type next."""
    compared = {
        name.removeprefix("parity "): r.judgement.verdict for name, r in records.items() if name.startswith("parity")
    }
    kept = f"The files are in {output}." if output else "The files were deleted; --output DIR keeps them."
    parity = ", ".join(f"{layout} {verdict.replace('_', ' ')}" for layout, verdict in compared.items())
    say()
    say(f"Demo done: both layouts {records['verdict']}; parity: {parity}. {kept}", "bold")
    say("Next: sam3lite inspect YOUR_CHECKPOINT.pt")
