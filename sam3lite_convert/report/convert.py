"""Shows a conversion: its plan, and what was written."""

from __future__ import annotations

from sam3lite_convert.figures import human_bytes
from sam3lite_convert.records.convert import ConvertDocument, WrittenConversion
from sam3lite_convert.report.inspect import component_table, counts_line, fetched, headline, notes, text_encoder
from sam3lite_convert.report.terminal import say


def planned(r: ConvertDocument) -> None:
    """A conversion's plan; nothing if none was made because the folder is complete."""
    if r.plan is None:
        return
    headline(r.plan.file)
    say(f"kind: {r.plan.kind}")
    text_encoder(r.architecture, r.context, r.plan.file)
    say()
    component_table(r.plan.accounting)
    counts_line(r.counts)
    notes(r.architecture, r.notes)
    fetched(r.plan.file.fetched)
    say(f"layout {r.layout}, component {r.component}, {r.dtype}: {human_bytes(r.plan.bytes)} to write")


def converted(r: ConvertDocument) -> None:
    """What was written."""
    done = r.done
    say()
    for text in done.late_notes:
        say(f"note: {text}")
    if r.state == "converted":
        if cast := done.lost.cast:
            say(
                f"cast to {cast.dtype}: {cast.changed_values:,} values rounded, max abs error "
                f"{cast.max_abs_error:.3g}, {cast.overflowed_values:,} overflowed"
            )
        say(f"Wrote {r.output}", "bold green")
        for name, size in done.files.items():
            say(f"  {name}  {human_bytes(size)}")
    else:
        say(
            f"{r.output} is complete and current: same source, options and tables. No tensor was written.",
            "bold green",
        )
        if done.added:
            say(f"  added {', '.join(done.added)}")
    for line in (done.loads_with, *done.loads_also):
        say(f"Loads with: {line}")
    proofs(done)


def planned_alone(r: ConvertDocument) -> None:
    """The end of a dry run."""
    say()
    say(f"Dry run: the plan is sound, nothing was written. The output folder would be {r.output}")


def proofs(done: WrittenConversion) -> None:
    """The checks that ran on a conversion."""
    if v := done.verification:
        say(f"{v.verdict}{f' up to {v.up_to}' if v.up_to else ''}: {v.summary}")
    for what, p in (("parity", done.judgement), ("parity of model.onnx", done.graph_parity)):
        if p and done.judgement:
            style = {"differs": "bold red", "incomplete": "bold yellow"}.get(p.verdict)
            say(f"{what}: {p.verdict.replace('_', ' ')}, max abs diff {p.max_abs_diff:.3g}", style)
