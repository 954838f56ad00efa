"""Shows a conversion: a summary of its plan, and what was written. The long tables come with ``--verbose``."""

from __future__ import annotations

from collections.abc import Sequence

from sam3lite_convert.figures import human_bytes, plural
from sam3lite_convert.records.convert import ConvertDocument, PlannedConversion, WrittenConversion
from sam3lite_convert.report import verbosity
from sam3lite_convert.report.inspect import component_table, counts_line, fetched, headline, notes, text_encoder
from sam3lite_convert.report.terminal import conclude, say, say_text

_KINDS = 6  # of what is dropped


def planned(r: ConvertDocument, whole: bool = False) -> None:
    """A conversion's plan; nothing if none was made because the folder is complete. ``whole``: with its tables."""
    if r.plan is None:
        return
    whole = whole or verbosity.verbose()
    headline(r.plan.file, dtypes=whole)
    say(f"kind: {r.plan.kind}")
    text_encoder(r.architecture, r.context, r.plan.file, compared=whole)
    if whole:
        say()
        component_table(r.plan.accounting)
    counts_line(r.counts)
    if not whole:
        _dropped(r.plan)
    notes(r.architecture, r.notes)
    fetched(r.plan.file.fetched)
    say(f"layout {r.layout}, component {r.component}, {r.dtype}: {human_bytes(r.plan.bytes)} to write")


def _dropped(plan: PlannedConversion) -> None:
    """What is dropped, in few words: what stands before the colon of each reason."""
    kinds = sorted(plan.accounting.dropped_kinds, key=lambda kind: -kind.tensors)
    words = [f"{kind.tensors:,} {kind.reason.partition(':')[0]}" for kind in kinds]
    if words:
        rest = [f"and {plural(len(words) - _KINDS, 'more kind')}"] if len(words) > _KINDS else []
        say_text(", ".join([*words[:_KINDS], *rest]), "dropped: ", 2)


def converted(r: ConvertDocument) -> None:
    """What was written, and the checks that ran on it."""
    done = r.done
    late_notes(done.late_notes)
    if r.state == "converted":
        if cast := done.lost.cast:
            say(
                f"cast to {cast.dtype}: {cast.changed_values:,} values rounded, max abs error "
                f"{cast.max_abs_error:.3g}, {cast.overflowed_values:,} overflowed"
            )
        total = human_bytes(sum(done.files.values()))
        conclude(f"Wrote {r.output}: {plural(len(done.files), 'file')}, {total}", "bold green")
        if verbosity.verbose():
            for name, size in done.files.items():
                say(f"  {name}  {human_bytes(size)}")
    else:
        conclude(f"{r.output} is complete and current; no tensor was written.", "bold green")
        if done.added:
            say(f"  added {', '.join(done.added)}")
    proofs(done)


def late_notes(texts: Sequence[str]) -> None:
    """Notes that the plan did not have yet."""
    for text in texts:
        say(f"note: {text}")


def loads_with(r: ConvertDocument) -> None:
    """The lines of Python that load the folder."""
    for line in (r.done.loads_with, *r.done.loads_also):
        say(f"Loads with: {line}")
    if r.done.loads_with.startswith("transformers.") and r.component != "text":
        say("Its README.md has the call that does what the original does; the stock call does not.")


def planned_alone(r: ConvertDocument) -> None:
    """The end of a dry run."""
    say()
    conclude(f"Dry run: the plan is sound, nothing was written. The output folder would be {r.output}")


def proofs(done: WrittenConversion, start: str = "") -> None:
    """The checks that ran on a conversion. ``start``: of each line."""
    if v := done.verification:
        conclude(f"{start}{v.verdict}{f' up to {v.up_to}' if v.up_to else ''}: {v.summary}")
    for what, p in (("parity", done.judgement), ("parity of model.onnx", done.graph_parity)):
        if p and done.judgement:
            style = {"differs": "bold red", "incomplete": "bold yellow"}.get(p.verdict)
            conclude(f"{start}{what}: {p.verdict.replace('_', ' ')}, max abs diff {p.max_abs_diff:.3g}", style)
