"""Shows a restored checkpoint."""

from __future__ import annotations

from sam3lite_convert.figures import human_bytes
from sam3lite_convert.records.restore import RestoreDocument
from sam3lite_convert.report.terminal import conclude, listed, say, say_command


def restored(r: RestoreDocument) -> None:
    """What was written, and where each tensor came from."""
    by = {"checkpoint": f"with {r.checkpoint}", "receipt": "by its receipt", "layout": "by its layout"}[r.basis]
    say(f"{r.folder}: layout {r.layout}, component {r.component}, turned back {by}", "bold")
    _list("changed", r.changed)
    for kind, count in r.from_checkpoint.items():
        say(f"  from the original  {count:>4}  {kind}")
    for kind, count in r.absent.items():
        say(f"  not in the folder  {count:>4}  {kind}")
    _list("", [f"{remark.key}: {remark.why}" for remark in (*r.partly, *r.unplaced)])
    for text in r.notes:
        say(f"note: {text}")
    where = f", under {r.wrapper!r}" if r.wrapper else ""
    say(f"{r.kind}; names of a {r.family} checkpoint, prefix {r.prefix!r}{where}")
    conclude(r.summary, "bold green")
    say()
    conclude(f"Wrote {r.output}  {human_bytes(r.size)}")
    say_command("Next: ", r.next)


def _list(what: str, lines: tuple[str, ...] | list[str]) -> None:
    listed(lines, lambda line: say(f"  {what}  {line}" if what else f"  {line}"))
