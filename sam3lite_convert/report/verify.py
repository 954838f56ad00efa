"""Shows a verification."""

from __future__ import annotations

from collections.abc import Sequence

from sam3lite_convert.figures import component_words, human_bytes
from sam3lite_convert.records.verify import Finding, VerifyDocument
from sam3lite_convert.report.terminal import say

_LISTED = 20  # causes
PATTERNS = 6  # patterns of keys that are shown of one finding


def verified(r: VerifyDocument) -> None:
    """The verdict on a folder."""
    if r.verdict == "mismatch":
        say(r.summary, "bold red")
    say(f"{r.folder}: layout {r.layout}, component {r.component}, {r.dtype}", "bold")
    causes = _by_cause(r.findings)
    for findings in causes[:_LISTED]:
        _cause(findings)
    if len(causes) > _LISTED:
        say(f"... and {len(causes) - _LISTED:,} more causes; --json lists all of them")
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
        many = "request" if r.fetched.requests == 1 else "requests"
        say(f"read by {r.fetched.requests:,} range {many}: {read} of {of}")
    if r.verdict != "mismatch":
        say(f"{r.verdict.replace('_', ' ')}: {r.summary}", "bold green")
        return
    count = f"{len(r.findings):,} {'finding' if len(r.findings) == 1 else 'findings'}"
    say(f"mismatch: {count}; {r.compared:,} of {r.targets:,} tensors were compared", "bold red")
    say(f"To read more: sam3lite explain {r.findings[0].code}")


def _by_cause(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Findings of one code and cause together, whatever their component."""
    causes: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        causes.setdefault((finding.code, finding.cause), []).append(finding)
    return list(causes.values())


def _cause(findings: Sequence[Finding]) -> None:
    components = [component_words(f.component) for f in findings]
    counted = [f"{name} ({len(f.keys):,})" for name, f in zip(components, findings, strict=True)]
    say(f"{findings[0].code}  {', '.join(counted if len(findings) > 1 else components)}", "red")
    say(f"    {findings[0].cause}")
    patterns = [pattern for f in findings for pattern in f.patterns]
    for pattern in patterns[:PATTERNS]:
        say(f"      {pattern}")
    more = len(patterns) - PATTERNS
    if more > 0:
        keys = sum(len(f.keys) for f in findings)
        say(f"      ... and {more:,} more {'pattern' if more == 1 else 'patterns'}, {keys:,} keys in all")
