"""Shows the verdict on a port: what was given, every tap, the likely cause."""

from __future__ import annotations

from rich.table import Table

from sam3lite_convert.figures import ids_shown, number
from sam3lite_convert.records.fingerprint import FingerprintDocument
from sam3lite_convert.records.parity import DiagnosisRecord, ParityDocument
from sam3lite_convert.report import parity
from sam3lite_convert.report.terminal import conclude, listed, say, show

_LISTED = 20


def judged(d: ParityDocument) -> None:
    """What a port computed beside the original."""
    sides, port = d.sides, d.port
    say(f"reference  {sides.reference}, from {sides.checkpoint}")
    if port and port.checkpoint_sha256:
        say(f"           SHA-256 {port.checkpoint_sha256}")
    say(f"candidate  {parity.candidate(d)}")
    say(f"input      {parity.computed_from(d)}")
    for ids in d.inputs.ids[:_LISTED]:
        say(f"  {ids_shown(ids)}")
    say()
    parity.tap_table(d.judgement.layers)
    say()
    parity.verdict(d.judgement, "verdict")
    parity.not_read(d.judgement.not_read, d.not_read_allowed)
    if d.diagnosis:
        port_diagnosis(d.diagnosis)
    for text in d.notes:
        say(f"note: {text}")


def judged_by_fingerprint(d: FingerprintDocument) -> None:
    """What a port computed beside a fingerprint."""
    say(f"reference  {d.fingerprint}, of {d.source.name}")
    if d.source.sha256:
        say(f"           SHA-256 {d.source.sha256}")
    say(f"candidate  {d.candidate}")
    say()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("tap", no_wrap=True)
    for name in ("max abs diff", "tolerance", "norm diff"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for tap in d.taps:
        difference = "-" if tap.max_abs_diff is None else number(tap.max_abs_diff)
        cells = (difference, number(tap.tolerance), number(tap.l2_diff))
        table.add_row(tap.name, *cells, "agrees" if tap.agrees else "OFF", style=None if tap.agrees else "bold red")
    show(table)
    say()
    conclude(f"verdict: {d.verdict}: {d.summary}", "bold green" if d.verdict == "agrees" else "bold red")
    for text in d.notes:
        say(f"note: {text}")


def port_diagnosis(d: DiagnosisRecord) -> None:
    """The likely cause, and the checkpoint's tensors behind it."""
    parity.cause(d)
    if d.tensors:
        sources = list(dict.fromkeys(t.source for t in d.tensors))
        start = parity.common_start(sources)
        say(f"the checkpoint's tensors that {d.tap} is computed from, {start}*:")
        listed(sources, lambda name: say(f"  {name.removeprefix(start)}"))
