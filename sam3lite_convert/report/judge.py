"""Shows the verdict on a port: what was given, every tap, the likely cause."""

from __future__ import annotations

from rich.table import Table

from sam3lite_convert.figures import ids_shown, in_sentence, number, plural
from sam3lite_convert.records.detector import DetectorDocument
from sam3lite_convert.records.fingerprint import FingerprintDocument
from sam3lite_convert.records.parity import DiagnosisRecord, JudgementRecord, ParityDocument, PortRecord
from sam3lite_convert.report import parity, verbosity
from sam3lite_convert.report.terminal import conclude, say, show

_TAPS = 10  # rows of the table of taps
_PROMPTS = 1  # rows of ids
_NAMED = 4  # taps in a sentence
_OUTPUTS = ("projected",)  # what the detector receives of the text encoder


def judged(d: ParityDocument) -> None:
    """What a port computed beside the original."""
    sides, port = d.sides, d.port
    say(f"reference  {sides.reference}, from {sides.checkpoint}")
    if port and port.checkpoint_sha256 and verbosity.verbose():
        say(f"           SHA-256 {port.checkpoint_sha256}")
    say(f"candidate  {parity.candidate(d)}")
    say(f"input      {parity.computed_from(d)}")
    rows = d.inputs.ids[: verbosity.listed(_PROMPTS)]
    for n, ids in enumerate(rows, 1):
        more = len(d.inputs.ids) - n if n == len(rows) else 0
        say(f"  {ids_shown(ids)}" + (f", and {plural(more, 'more row')}" if more else ""))
    say()
    parity.tap_table(d.judgement.layers, _TAPS)
    say()
    judged_verdict(d.judgement, port, d.diagnosis)
    for text in d.notes:
        say(f"note: {text}")
    say(f"Next: {next_step(d)}")


def judged_verdict(j: JudgementRecord, port: PortRecord | None, diagnosis: DiagnosisRecord | None) -> None:
    """The verdict on what a port computed, and the likely cause."""
    parity.verdict(j, "verdict", port.names if port else {}, verbosity.verbose())
    parity.not_read(j.not_read, True)  # judge has no option that accepts them
    if diagnosis:
        port_diagnosis(diagnosis)
    if j.not_given and verbosity.verbose():
        say(f"not compared: {', '.join(j.not_given)}")


def next_step(d: ParityDocument | DetectorDocument) -> str:
    """What the author of a port does now, in words."""
    j, found = d.judgement, d.diagnosis
    again = "and run the same command again"
    if j.misshapen:
        names = in_sentence([t.called for t in j.misshapen[:_NAMED]])
        return f"save {names} in the shape of the original's, {again}"
    if j.verdict == "differs":
        if j.first_divergence is None:
            return f"if your port may differ by so much, --tolerance {number(j.smallest_passing_tolerance)} passes it"
        if found is None:
            return "with the checkpoint, judge also looks for the cause: sam3lite judge FILE CHECKPOINT"
        if found.fits:
            return f"correct this in your port, {again}"
        if j.unseen:
            more = f" and {len(j.unseen) - _NAMED} more" if len(j.unseen) > _NAMED else ""
            names = in_sentence(j.unseen[:_NAMED]) if not more else ", ".join(j.unseen[:_NAMED]) + more
            return f"save {names} too, {again}"
        return f"compare the code of your port at {j.first_divergence} with the original's, {again}"
    if j.verdict == "incomplete":
        return "find out in the original's code what reads these tensors"
    if missing := [t for t in j.not_given if t in _OUTPUTS]:
        return f"save {in_sentence(missing[:_NAMED])} too, {again}"
    return "put the same command into the tests of your port; it exits with 1 once they differ"


def judged_by_fingerprint(d: FingerprintDocument) -> None:
    """What a port computed beside a fingerprint."""
    say(f"reference  {d.fingerprint}, of {d.source.name}")
    if d.source.sha256 and verbosity.verbose():
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
    again = "and run the same command again"
    if d.verdict != "agrees":
        say("Next: the checkpoint tells the cause: sam3lite judge FILE CHECKPOINT")
    elif d.not_given:
        say(f"Next: save {in_sentence(d.not_given[:_NAMED])} too, {again}")
    else:
        say("Next: put the same command into the tests of your port; it exits with 1 once they differ")


def port_diagnosis(d: DiagnosisRecord) -> None:
    """The likely cause; the checkpoint's tensors behind it if no cause is known, or all is to be printed."""
    parity.cause(d)
    if not d.tensors or (d.fits and not verbosity.verbose()):
        return
    sources = list(dict.fromkeys(t.source for t in d.tensors))
    start = parity.common_start(sources)
    if verbosity.verbose():
        say(f"the checkpoint's tensors that {d.tap} is computed from, {start}*:")
        for name in sources:
            say(f"  {name.removeprefix(start)}")
    else:
        say(f"{d.tap} is computed from {plural(len(sources), 'tensor')} of the checkpoint; --verbose lists them")
