"""Shows a verification."""

from __future__ import annotations

from collections.abc import Sequence

from sam3lite_convert import __version__
from sam3lite_convert.figures import component_words, human_bytes, plural
from sam3lite_convert.records.verify import Finding, VerifyDocument
from sam3lite_convert.report import verbosity
from sam3lite_convert.report.markdown import as_code, as_text, headed, listed, print_markdown
from sam3lite_convert.report.terminal import conclude, say

_LISTED = 20  # causes
_CODES = 3  # that are named to read more of
PATTERNS = 6  # patterns of keys that are shown of one finding


def verified(r: VerifyDocument) -> None:
    """The verdict on a folder."""
    if r.verdict == "mismatch":
        say(r.summary, "bold red")
    say(f"{r.folder}: layout {r.layout}, component {r.component}, {r.dtype}", "bold")
    causes = _by_cause(r.findings)
    shown = causes[: verbosity.listed(_LISTED)]
    for findings in shown:
        _cause(findings)
    if len(causes) > len(shown):
        say(f"... and {len(causes) - len(shown):,} more causes; --verbose lists all of them")
    counters = [n for n in r.notes if "BatchNorm does not read it" in n]
    if counters:
        what = "BatchNorm counters (num_batches_tracked) are absent, have no source or differ; nothing reads them"
        say(f"note: {len(counters)} {what}")
    for note in r.notes:
        if note not in counters:
            say(f"note: {note}")
    for text in r.lost_words:
        say(f"not in the folder: {text}")
    if r.fetched:
        read, of = human_bytes(r.fetched.bytes), human_bytes(r.fetched.of)
        many = "request" if r.fetched.requests == 1 else "requests"
        say(f"read by {r.fetched.requests:,} range {many}: {read} of {of}")
    if r.verdict != "mismatch":
        conclude(f"{r.verdict.replace('_', ' ')}: {r.summary}", "bold green")
        return
    count = plural(len(r.findings), "finding")
    count += f" of {plural(len(causes), 'cause')}" if len(causes) < len(r.findings) else ""
    conclude(f"mismatch: {count}; {r.compared:,} of {r.targets:,} tensors were compared", "bold red")
    codes = list(dict.fromkeys(finding.code for finding in r.findings))[:_CODES]
    say(f"To read more: {', '.join(f'sam3lite explain {code}' for code in codes)}")


def verified_markdown(r: VerifyDocument) -> None:
    """The verdict in short, as Markdown: for the summary of a job, or an issue."""
    print_markdown(in_markdown(r))


def in_markdown(r: VerifyDocument) -> str:
    """The verdict in short: facts in a table, then each cause with some of its keys. Names from files stay text."""
    facts = {"folder": as_code(r.folder, cell=True)}
    if r.repository:
        facts["commit of the folder"] = as_code(r.repository.commit, cell=True)
    facts["checkpoint"] = as_code(r.checkpoint, cell=True)
    if r.source:
        facts["from"] = as_text(f"{r.source.repo}: {r.source.file} at commit {r.source.commit}")
    facts["layout"] = as_text(f"{r.layout}, component {r.component}, {r.dtype}")
    facts["values compared"] = f"{r.compared:,} of {r.targets:,} tensors"
    if r.fetched:
        facts["read"] = f"{human_bytes(r.fetched.bytes)} of {human_bytes(r.fetched.of)}"
    facts["tool"] = f"sam3lite-convert {__version__}"
    lines = headed(f"verify: {r.verdict.replace('_', ' ')}", r.summary, facts)
    causes = _by_cause(r.findings)
    if causes:
        lines += ["", f"**{plural(len(r.findings), 'finding')}**", ""]
    for findings in causes[:_LISTED]:
        components = ", ".join(f"{component_words(f.component)} ({len(f.keys):,})" for f in findings)
        lines.append(
            f"- {as_code(findings[0].code)} {as_text(components)}: {as_text('; '.join(_cause_words(findings)))}"
        )
        lines += [f"  - {as_code(pattern)}" for pattern in [p for f in findings for p in f.patterns][:PATTERNS]]
    if len(causes) > _LISTED:
        lines.append(f"- and {len(causes) - _LISTED:,} more causes")
    said = [f"note: {note}" for note in r.notes[:_LISTED]] + [f"not in the folder: {text}" for text in r.lost_words]
    lines += listed(said)
    return "\n".join(lines) + "\n"


def _by_cause(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Findings of one code and cause together, whatever their component and what was measured there."""
    causes: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        causes.setdefault((finding.code, finding.cause.partition(": ")[0]), []).append(finding)
    return list(causes.values())


def _cause_words(findings: Sequence[Finding]) -> list[str]:
    """A cause in lines: the sentence, and where the findings differ in what stands behind its colon, that of each."""
    if len({finding.cause for finding in findings}) == 1:
        return [findings[0].cause]
    measured = [f"{component_words(f.component)}: {f.cause.partition(': ')[2]}" for f in findings]
    return [findings[0].cause.partition(": ")[0], *measured]


def _cause(findings: Sequence[Finding]) -> None:
    components = [component_words(f.component) for f in findings]
    counted = [f"{name} ({len(f.keys):,})" for name, f in zip(components, findings, strict=True)]
    say(f"{findings[0].code}  {', '.join(counted if len(findings) > 1 else components)}", "red")
    sentence, *measured = _cause_words(findings)
    say(f"    {sentence}")
    for text in measured:
        say(f"    {text}")
    patterns = [pattern for f in findings for pattern in f.patterns]
    shown = patterns[: verbosity.listed(PATTERNS)]
    for pattern in shown:
        say(f"      {pattern}")
    more = len(patterns) - len(shown)
    if more > 0:
        keys = sum(len(f.keys) for f in findings)
        say(f"      ... and {more:,} more {'pattern' if more == 1 else 'patterns'}, {keys:,} keys in all")
