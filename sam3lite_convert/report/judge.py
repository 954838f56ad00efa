"""Shows the verdict on a port: what was given, every tap, the likely cause."""

from __future__ import annotations

from sam3lite_convert.figures import ids_shown
from sam3lite_convert.records.parity import DiagnosisRecord, ParityDocument
from sam3lite_convert.report import parity
from sam3lite_convert.report.terminal import say

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
    if d.diagnosis:
        _diagnosis(d.diagnosis)
    for text in d.notes:
        say(f"note: {text}")


def _diagnosis(d: DiagnosisRecord) -> None:
    parity.cause(d)
    if d.tensors:
        sources = list(dict.fromkeys(t.source for t in d.tensors))
        start = parity.common_start(sources)
        say(f"the checkpoint's tensors that {d.tap} is computed from, {start}*:")
        for name in sources[:_LISTED]:
            say(f"  {name.removeprefix(start)}")
        if len(sources) > _LISTED:
            say(f"  ... and {len(sources) - _LISTED:,} more; --json lists all of them")
