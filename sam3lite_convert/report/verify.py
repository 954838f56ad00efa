"""Shows a verification."""

from __future__ import annotations

from collections.abc import Iterator

from sam3lite_convert.report.inspect import _LISTED, _plural
from sam3lite_convert.report.terminal import Record, say


def verified(r: Record) -> None:
    """The verdict on a folder."""
    say(f"{r['folder']}: layout {r['layout']}, component {r['component']}, {r['dtype']}", "bold")
    _rows("wrong", [(m["key"], m["why"]) for m in r["mismatched"]])
    _rows("missing", [(k, "") for k in r["missing"]])
    _rows("unexpected, since the model has no such tensor", [(k, "") for k in r["unexpected"]])
    counters = [n for n in r["notes"] if "BatchNorm does not read it" in n]
    if counters:
        say(f"note: {len(counters)} BatchNorm counters (num_batches_tracked) are absent or differ; nothing reads them")
    for text in r["notes"]:
        if text not in counters:
            say(f"note: {text}")
    for text in _lost(r["lost"]):
        say(f"not in the folder: {text}")
    if r["verdict"] == "proven":
        up_to = f" up to {r['up_to']}" if r["up_to"] else ""
        counted = f"{r['checked']:,} of {r['targets']:,} tensors"
        say(f"proven{up_to}: {counted} turn back into their source bit for bit", "bold green")
    else:
        faults = len(r["mismatched"]) + len(r["missing"]) + len(r["unexpected"])
        say(
            f"mismatch: {_plural(faults, 'fault')}; {r['checked']:,} of {r['targets']:,} tensors were compared",
            "bold red",
        )


def _lost(lost: Record) -> Iterator[str]:
    if "dropped" in lost:
        kinds = ", ".join(f"{n} {label}" for label, n in lost["dropped"]["by_kind"].items())
        yield f"{lost['dropped']['tensors']} dropped tensors ({kinds})"
    if "class_row" in lost:
        yield f"the class row of {lost['class_row']['tensor']}"
    if "positions" in lost:
        yield f"the last {lost['positions']['rows']} rows of {lost['positions']['tensor']}"
    if "cast" in lost:
        c = lost["cast"]
        yield f"what the cast rounded off ({c['changed_values']:,} values, max abs error {c['max_abs_error']:.3g})"


def _rows(title: str, rows: list[tuple[str, str]]) -> None:
    if not rows:
        return
    say(f"{len(rows):,} {title}:", "red")
    for key, why in rows[:_LISTED]:
        say(f"  {key}")
        if why:
            say(f"      {why}")
    if len(rows) > _LISTED:
        say(f"  ... and {len(rows) - _LISTED:,} more; --json lists all of them")
