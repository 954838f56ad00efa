"""Shows the surroundings that the tool runs in, one line a check."""

from __future__ import annotations

from sam3lite_convert.figures import plural
from sam3lite_convert.records.doctor import DoctorDocument
from sam3lite_convert.report.terminal import say

_STYLES = {"ok": "green", "note": None, "warning": "yellow", "problem": "bold red"}


def examined(d: DoctorDocument) -> None:
    """Every check with its status, what to do below it, and the verdict last."""
    wide = max((len(c.name) for c in d.checks), default=0)
    for group in dict.fromkeys(c.group for c in d.checks):
        say(group if group != "hub" else "Hub", "bold")
        for c in d.checks:
            if c.group == group:
                say(f"  {c.status:8}{c.name:{wide}}  {c.found}", _STYLES[c.status])
                if c.advice:
                    say(f"  {'':8}{'':{wide}}  to do: {c.advice}")
    if not any(c.group == "imports" for c in d.checks):
        say("Packages were not imported; sam3lite doctor --imports does, in some seconds.")
    count = {status: sum(c.status == status for c in d.checks) for status in _STYLES}
    found = [plural(count[status], status) for status in ("problem", "warning") if count[status]]
    say(f"doctor: {', '.join(found) or 'no problem'}", _STYLES[d.verdict])
