"""Shows a verification."""

from __future__ import annotations

from sam3lite_convert.figures import human_bytes
from sam3lite_convert.records.verify import VerifyDocument
from sam3lite_convert.report.inspect import LISTED
from sam3lite_convert.report.terminal import say


def verified(r: VerifyDocument) -> None:
    """The verdict on a folder."""
    say(f"{r.folder}: layout {r.layout}, component {r.component}, {r.dtype}", "bold")
    _rows("wrong", [(m.key, m.why) for m in r.mismatched])
    _rows("missing", [(k, "") for k in r.missing])
    _rows("unexpected (the model has no such tensor)", [(k, "") for k in r.unexpected])
    counters = [n for n in r.notes if "BatchNorm does not read it" in n]
    if counters:
        say(f"note: {len(counters)} BatchNorm counters (num_batches_tracked) are absent or differ; nothing reads them")
    for text in r.notes:
        if text not in counters:
            say(f"note: {text}")
    for text in r.lost_words:
        say(f"not in the folder: {text}")
    up_to = f" up to {r.up_to}" if r.up_to and r.verdict != "mismatch" else ""
    if r.fetched:
        read, of = human_bytes(r.fetched.bytes), human_bytes(r.fetched.of)
        say(f"read by {r.fetched.requests:,} range requests: {read} of {of}")
    verdict = r.verdict.replace("_", " ")
    say(f"{verdict}{up_to}: {r.summary}", "bold red" if r.verdict == "mismatch" else "bold green")


def _rows(title: str, rows: list[tuple[str, str]]) -> None:
    if not rows:
        return
    say(f"{len(rows):,} {title}:", "red")
    for key, why in rows[:LISTED]:
        say(f"  {key}")
        if why:
            say(f"      {why}")
    if len(rows) > LISTED:
        say(f"  ... and {len(rows) - LISTED:,} more; --json lists all of them")
