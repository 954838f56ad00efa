"""Shows a verification."""

from __future__ import annotations

from sam3lite_convert.figures import component_words, human_bytes
from sam3lite_convert.records.verify import Finding, VerifyDocument
from sam3lite_convert.report.inspect import LISTED
from sam3lite_convert.report.terminal import say

PATTERNS = 6  # patterns of keys that are shown of one finding


def verified(r: VerifyDocument) -> None:
    """The verdict on a folder."""
    say(f"{r.folder}: layout {r.layout}, component {r.component}, {r.dtype}", "bold")
    if r.verdict != "proven":
        say(r.summary, "bold red")
    for finding in r.findings[:LISTED]:
        _finding(finding)
    if len(r.findings) > LISTED:
        say(f"... and {len(r.findings) - LISTED:,} more findings; --json lists all of them")
    counters = [n for n in r.notes if "BatchNorm does not read it" in n]
    if counters:
        what = "BatchNorm counters (num_batches_tracked) are absent, have no source or differ; nothing reads them"
        say(f"note: {len(counters)} {what}")
    for text in r.notes:
        if text not in counters:
            say(f"note: {text}")
    for text in r.lost_words:
        say(f"not in the folder: {text}")
    if r.fetched:
        read, of = human_bytes(r.fetched.bytes), human_bytes(r.fetched.of)
        say(f"read by {r.fetched.requests:,} range requests: {read} of {of}")
    if r.verdict != "mismatch":
        up_to = f" up to {r.up_to}" if r.up_to else ""
        say(f"{r.verdict.replace('_', ' ')}{up_to}: {r.summary}", "bold green")
        return
    count = f"{len(r.findings):,} {'finding' if len(r.findings) == 1 else 'findings'}"
    say(f"mismatch: {count}; {r.checked:,} of {r.targets:,} tensors were compared", "bold red")
    say(f"To read more: sam3lite explain {r.findings[0].code}")


def _finding(finding: Finding) -> None:
    say(f"{finding.code}  {component_words(finding.component)}", "red")
    say(f"    {finding.cause}")
    for pattern in finding.patterns[:PATTERNS]:
        say(f"      {pattern}")
    if len(finding.patterns) > PATTERNS:
        say(f"      ... and {len(finding.patterns) - PATTERNS:,} more patterns, {len(finding.keys):,} keys in all")
