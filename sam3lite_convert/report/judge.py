"""Shows the verdict on a port: what was given, every tap, the likely cause."""

from __future__ import annotations

from dataclasses import replace

from rich.table import Table

from sam3lite_convert import __version__
from sam3lite_convert.figures import ids_shown, in_sentence, number, plural
from sam3lite_convert.records.detector import DetectorDocument
from sam3lite_convert.records.fingerprint import FingerprintDocument
from sam3lite_convert.records.parity import DiagnosisRecord, JudgementRecord, ParityDocument, PortRecord
from sam3lite_convert.report import parity, verbosity
from sam3lite_convert.report.markdown import as_code, as_text, headed, listed, print_markdown
from sam3lite_convert.report.terminal import conclude, say, show

_TAPS = 10  # rows of the table of taps
_PROMPTS = 1  # rows of ids
_NOTES = 20  # in Markdown
_NAMED = 4  # taps in a sentence


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
    for note in d.notes:
        say(f"note: {note}")
    say(f"Next: {next_step(d)}")


def judged_verdict(
    j: JudgementRecord, port: PortRecord | None, diagnosis: DiagnosisRecord | None, explain: bool = True
) -> None:
    """The verdict on what a port computed, and the likely cause. ``explain``: a table of taps stands above."""
    parity.verdict(j, "verdict", port.names if port else {}, verbosity.verbose(), explain)
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
        return f"compare the code of your port at {j.first_divergence} with the original's"
    if j.verdict == "incomplete":
        return "find out in the original's code what reads these tensors"
    if j.needed:
        return f"save {in_sentence(j.needed[:_NAMED])} too, {again}"
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
    for note in d.notes:
        say(f"note: {note}")
    again = "and run the same command again"
    if d.verdict != "agrees":
        say("Next: the checkpoint tells the cause: sam3lite judge FILE CHECKPOINT")
    elif d.not_given:
        say(f"Next: save {in_sentence(d.not_given[:_NAMED])} too, {again}")
    else:
        say("Next: put the same command into the tests of your port; it exits with 1 once they differ")


def judged_markdown(d: ParityDocument | DetectorDocument) -> None:
    """The verdict in short, as Markdown."""
    j, sides, verdict = d.judgement, d.sides, d.judgement.verdict.replace("_", " ")
    given = len(j.layers)
    facts = {
        "port": as_code(sides.candidate_encoder, cell=True),
        "checkpoint": as_code(sides.checkpoint, cell=True),
        "reference": as_text(sides.reference),
        "taps compared": f"{given} of {given + len(j.not_given)}",
        "max abs diff": number(j.max_abs_diff),
    }
    if j.place:
        facts["first divergence"] = as_code(j.place, cell=True)
    said = [f"likely cause: {d.diagnosis.cause}"] if d.diagnosis else []
    said += [f"note: {note}" for note in d.notes[:_NOTES]]
    _print_markdown(f"judge: {verdict}", j.summary, facts, [*said, f"Next: {next_step(d)}"])


def fingerprint_markdown(d: FingerprintDocument) -> None:
    """The verdict by a fingerprint in short, as Markdown."""
    facts = {
        "port": as_code(d.candidate, cell=True),
        "fingerprint": as_code(d.fingerprint, cell=True),
        "of": as_code(d.source.name, cell=True),
        "taps compared": f"{len(d.taps)} of {len(d.taps) + len(d.not_given)}",
    }
    _print_markdown(f"judge: {d.verdict}", d.summary, facts, [f"note: {note}" for note in d.notes[:_NOTES]])


def _print_markdown(title: str, summary: str, facts: dict[str, str], said: list[str]) -> None:
    facts["tool"] = f"sam3lite-convert {__version__}"
    print_markdown("\n".join([*headed(title, summary, facts), *listed(said)]))


def port_diagnosis(d: DiagnosisRecord) -> None:
    """The likely cause; the checkpoint's tensors behind it if no cause is known, or all is to be printed."""
    sources = list(dict.fromkeys(t.source for t in d.tensors))
    if not verbosity.verbose():
        if sources and not d.fits:
            count = plural(len(sources), "tensor")
            cause = f"{d.cause.partition(';')[0]}; --verbose lists the {count} that {d.tap} is computed from"
            d = replace(d, cause=cause)
        sources = []
    parity.cause(d)
    if sources:
        start = parity.common_start(sources)
        say(f"the checkpoint's tensors that {d.tap} is computed from, {start}*:")
        for name in sources:
            say(f"  {name.removeprefix(start)}")
