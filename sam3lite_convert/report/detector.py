"""Shows a comparison of whole detectors: the stages, the results, the verdict, the likely cause."""

from __future__ import annotations

from rich.table import Table

from sam3lite_convert.figures import ids_shown, number
from sam3lite_convert.records.detector import DetectorDocument, DetectorInputs, StageRecord
from sam3lite_convert.report import verbosity
from sam3lite_convert.report.as_used import detections
from sam3lite_convert.report.judge import judged_verdict, next_step
from sam3lite_convert.report.parity import diagnosis, not_read, tap_table, verdict
from sam3lite_convert.report.terminal import say, show, width


def compared(d: DetectorDocument, debug: bool) -> None:
    """The comparison of two detectors; with ``debug`` also a row for each tap."""
    sides = d.sides
    say(f"reference  {sides.reference}, from {sides.checkpoint}")
    full = d.port is None or verbosity.verbose()
    if d.port and d.port.checkpoint_sha256 and full:
        say(f"           SHA-256 {d.port.checkpoint_sha256}")
    same = d.port is not None and d.port.file == sides.candidate_encoder
    where = f"{d.port.file} ({d.port.format})" if d.port else sides.converted or "the plan, converted in memory"
    if d.graphs and sides.converted is None:
        where = "the plan, written for this run"
    say(f"candidate  {where if same else f'{sides.candidate_encoder}, from {where}'}")
    for g in d.graphs or ():
        say(f"           {g.part}, SHA-256 {g.graph.sha256[:12]}: {g.seconds:.2f} s")
    shown = f"original float32, candidate {sides.dtype}" if d.graphs and sides.dtype != "float32" else "float32"
    detector_inputs(d.inputs, f"; {shown}, compared in float64")
    say()
    if debug or (d.port and full):
        tap_table(d.judgement.layers)
        say()
    _stages(d.stages)
    say()
    for output in d.outputs if full else ():
        say(f"{output.name:<20} max abs diff {number(output.max_abs_diff)}, rel. L2 {number(output.relative_l2)}")
    if d.outputs and full:
        say()
    if d.port:
        judged_verdict(d.judgement, d.port, d.diagnosis, full)
    else:
        verdict(d.judgement, "verdict")
        not_read(d.judgement.not_read, d.not_read_allowed)
        if d.diagnosis:
            diagnosis(d.diagnosis)
    if d.behaviour:
        detections(d.behaviour)
    for text in d.notes:
        say(f"note: {text}")
    if d.port:
        say(f"Next: {next_step(d)}")
    elif d.judgement.verdict == "differs" and not debug:
        say("Next: the same command with --debug-intermediates shows every tap")


def detector_inputs(inputs: DetectorInputs, how: str = "; float32") -> None:
    """What a detector runs on. ``how``: how it runs."""
    say(f"picture    {inputs.image}, seen as {inputs.size} x {inputs.size}{how}")
    prompt = f"{inputs.prompt!r}: " if inputs.prompt else f"{inputs.what}: "
    say(f"prompt     {prompt}{ids_shown(inputs.ids[0])}")
    for box in inputs.boxes:
        say(f"box        centre {box[0]:.3f} {box[1]:.3f}, size {box[2]:.3f} x {box[3]:.3f} of the picture")


def _stages(stages: tuple[StageRecord, ...]) -> None:
    """One row for each stage; narrow terminals get fewer columns."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("stage", no_wrap=True)
    names = ["taps", "max abs", "rel. L2", "x floor", "orig. s"]
    names += ["cand. s"] if any(s.seconds_candidate is not None for s in stages) else []
    for name in names if width() >= 80 else names[:2]:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for s in stages:
        over = f"{s.floors:.2g}" if s.floors else "-"
        cells = [str(len(s.taps)), number(s.max_abs_diff), number(s.relative_l2), over]
        cells += [f"{s.seconds_reference:.1f}"]
        cells += [] if s.seconds_candidate is None else [f"{s.seconds_candidate:.1f}"]
        mark = "DIVERGES" if s.diverges else "equal" if s.max_abs_diff == 0 else ""
        style = "bold red" if s.diverges else None
        table.add_row(s.name, *(cells if width() >= 80 else cells[:2]), mark, style=style)
    show(table)
