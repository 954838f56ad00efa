"""Shows the demo: each command as a user would type it, and its result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sam3lite_convert.quoting import shell_path
from sam3lite_convert.records.convert import ConvertDocument
from sam3lite_convert.records.inspect import InspectDocument
from sam3lite_convert.records.verify import VerifyDocument
from sam3lite_convert.report import verbosity
from sam3lite_convert.report.convert import converted, planned
from sam3lite_convert.report.inspect import inspected
from sam3lite_convert.report.parity import paritied
from sam3lite_convert.report.push import converted_end
from sam3lite_convert.report.terminal import conclude, say
from sam3lite_convert.report.verify import verified

if TYPE_CHECKING:
    from sam3lite_convert.records.demo import DemoDocument, StepDocument


def demo_begins() -> None:
    """The checkpoint that the commands are run on."""
    say("A small checkpoint with the keys of a released one and random values: demo.pt")


def demo_step(command: str, document: StepDocument | None) -> None:
    """A command and its result; nothing if only the verdict on all is wanted. ``document``: None if it was skipped."""
    if verbosity.quiet():
        return
    say()
    say(f"$ sam3lite {command}", "bold cyan")
    if document is None:
        say("skipped: needs transformers (pip install 'sam3lite-convert[transformers]')")
    elif isinstance(document, InspectDocument):
        inspected(document)
    elif isinstance(document, ConvertDocument):
        if verbosity.verbose():
            planned(document)  # what inspect showed already
        converted(document)
        converted_end(document)
    elif isinstance(document, VerifyDocument):
        verified(document)
    else:
        paritied(document, debug=True)


def demo_end(d: DemoDocument, output: Path | None) -> None:
    """The verdicts, and the next command to try."""
    kept = f"The files are in {output}." if output else "The files were deleted; --output DIR keeps them."
    verdicts = {layout: document.judgement.verdict for layout, document in d.compared.items()}
    parity = ", ".join(f"{layout} {verdict.replace('_', ' ')}" for layout, verdict in verdicts.items())
    say()
    made = d.converted["transformers"]
    if output and "tokenizer.json" not in made.done.files:
        command = "sam3lite convert demo.pt --layout transformers --overwrite --tokenizer DIR_OR_REPO"
        say(f"{output / made.output} has no tokenizer. To add it, in {output}: {command}")
    conclude(f"Demo done: both layouts {d.verdict}; parity: {parity}. {kept}", "bold")
    if output:
        folder = shell_path(output / d.converted["packed"].output)
        say(f"For ONNX, with the extra onnx: sam3lite export onnx {folder}")
    say("Next: sam3lite inspect YOUR_CHECKPOINT.pt")
