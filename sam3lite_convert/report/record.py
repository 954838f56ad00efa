"""Shows what was recorded of the original: the ids, and what each tap is."""

from __future__ import annotations

from rich.table import Table

from sam3lite_convert.figures import human_bytes, ids_shown
from sam3lite_convert.records.detector import DetectorRecordDocument
from sam3lite_convert.records.fingerprint import FingerprintWritten
from sam3lite_convert.records.parity import RecordDocument, RecordedTap, ScriptWritten
from sam3lite_convert.report.detector import detector_inputs
from sam3lite_convert.report.terminal import conclude, say, say_command, say_text, show

_LISTED = 20


def fingerprinted(d: FingerprintWritten) -> None:
    """A fingerprint that was written, and what to do with it."""
    say(f"reference  the original text encoder ({d.variant}), from {d.checkpoint}")
    say(f"taps       {', '.join(d.taps)}")
    for ids in d.ids:
        say(f"  {ids_shown(ids)}")
    conclude(f"Wrote {d.output} ({human_bytes(d.size)})")
    _next("Run its ids through your port and save what it computes at the taps.", d.next)


def scripted(d: ScriptWritten) -> None:
    """A script that was written, and how to use it."""
    conclude(f"Wrote {d.output} ({human_bytes(d.size)}), which needs torch and safetensors alone.")
    say("Beside your model:")
    say()
    say(f"  from {d.module} import record")
    say('  record(model, lambda: model(ids), "mine.safetensors")')
    say()
    names = ", ".join(dict.fromkeys(table.name for table in d.tables))
    _next(f"It finds the modules of: {names}. For a model with other names, see the file.", d.next)


def recorded(d: RecordDocument) -> None:
    """What a port has to compute, and how it is judged then."""
    _reference(d)
    say(f"input      {d.inputs.what}; {d.dtype}")
    for ids in d.inputs.ids[:_LISTED]:
        say(f"  {ids_shown(ids)}")
    say()
    _taps(d.taps)
    say()
    conclude(f"Wrote {d.output} ({human_bytes(d.size)})")
    _next(
        "Save what your port computes from the same ids under the names of the taps, as many as you have: "
        ".safetensors, .npz, or a folder of .npy files, with the ids as input_ids.",
        d.next,
    )


def detector_recorded(d: DetectorRecordDocument) -> None:
    """What a port of the whole detector has to compute, and how it is judged then."""
    _reference(d)
    detector_inputs(d.inputs)
    say()
    _taps(d.taps)
    say()
    held = "its figures and some values" if d.compact else "its whole activation, reference.TAP"
    conclude(f"Wrote {d.output} ({human_bytes(d.size)}): the inputs and, of each tap, {held}")
    _next(
        "Save what your port computes from the same inputs under the names of the taps, as many as you have, with the "
        "inputs beside them or with --ids FILE: .safetensors, .npz, or a folder of .npy files.",
        d.next,
    )
    for text in d.notes:
        say(f"note: {text}")


def _next(what: str, command: str) -> None:
    """What to do with the file, and the command after that."""
    say_text(what)
    say_command("Next: ", command)


def _reference(d: RecordDocument | DetectorRecordDocument) -> None:
    say(f"reference  {d.reference} ({d.variant}), from {d.checkpoint}")
    if d.checkpoint_sha256:
        say(f"           SHA-256 {d.checkpoint_sha256}")


def _taps(taps: tuple[RecordedTap, ...]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("tap", no_wrap=True)
    table.add_column("shape", no_wrap=True)
    table.add_column("what it is")
    for tap in taps:
        table.add_row(tap.name, "x".join(map(str, tap.shape)), tap.what)
    show(table)
