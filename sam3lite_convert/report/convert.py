"""Shows a conversion: its plan and what was written."""

from __future__ import annotations

from sam3lite_convert.figures import human_bytes
from sam3lite_convert.records.shared import Accounting, ArchitectureRecord, Counts, FileFacts
from sam3lite_convert.report.inspect import component_table, counts_line, fetched, headline, notes, text_encoder
from sam3lite_convert.report.terminal import Record, say


def planned(r: Record) -> None:
    """A conversion's plan."""
    file, architecture = FileFacts.from_json(r), ArchitectureRecord.from_json(r["architecture"])
    headline(file)
    text_encoder(architecture, file)
    say()
    component_table(Accounting.from_json(r))
    counts_line(Counts.from_json(r["counts"]))
    notes(architecture, tuple(r["notes"]))
    fetched(file.fetched)
    say(f"layout {r['layout']}, component {r['component']}, {r['dtype']}: {human_bytes(r['bytes'])} to write")


def converted(r: Record) -> None:
    """What was written."""
    say()
    for text in r["late_notes"]:
        say(f"note: {text}")
    cast = r["lost"].get("cast") if r["state"] == "converted" else None
    if cast:
        say(
            f"cast to {cast['dtype']}: {cast['changed_values']:,} values rounded, max abs error "
            f"{cast['max_abs_error']:.3g}, {cast['overflowed_values']:,} overflowed"
        )
    if r["state"] == "converted":
        say(f"Wrote {r['output']}", "bold green")
        for name, size in r["files"].items():
            say(f"  {name}  {human_bytes(size)}")
    else:
        say(
            f"{r['output']} is complete and current: same source, options and tables. No tensor was written.",
            "bold green",
        )
        if r["added"]:
            say(f"  added {', '.join(r['added'])}")
    proofs(r)


def planned_alone(r: Record) -> None:
    """The end of a dry run."""
    say()
    say(f"Dry run: the plan is sound, nothing was written. It would go to {r['output']}")


def proofs(r: Record) -> None:
    """The checks that ran on a conversion."""
    if r["verification"]:
        v = r["verification"]
        up_to = f" up to {v['up_to']}" if v["up_to"] else ""
        say(f"proven{up_to}: {v['checked']:,} of {v['targets']:,} tensors turn back into their source bit for bit")
    if r["parity"]:
        p = r["parity"]
        style = "bold red" if p["verdict"] == "differs" else None
        say(f"parity: {p['verdict'].replace('_', ' ')}, max abs diff {p['max_abs_diff']:.3g}", style)
