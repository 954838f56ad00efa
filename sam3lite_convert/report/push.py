"""Shows what a push to the Hub would change and where it went, and the verdicts on several files."""

from __future__ import annotations

from rich.table import Table

from sam3lite_convert.figures import human_bytes
from sam3lite_convert.quoting import shell_path
from sam3lite_convert.records.convert import (
    ConvertAllDocument,
    ConvertDocument,
    FailedConversion,
    PushPlanRecord,
    PushRecord,
)
from sam3lite_convert.report import convert as report
from sam3lite_convert.report.terminal import fault, printable, say, show

_LISTED = 5  # paths


def converted_end(r: ConvertDocument) -> None:
    """Where the folder was pushed to, or the next command to try."""
    if r.done.push:
        pushed(r.done.push)
        return
    tables = f" --mapping {shell_path(r.mapping)}" if r.mapping else ""
    if not r.done.verification:
        say(f"Next: sam3lite verify {shell_path(r.output)} --checkpoint {r.option}{tables}")
    elif not r.done.graph_parity and any(name.endswith(".onnx") for name in r.done.files):
        where = f"--converted {shell_path(r.output)} --candidate onnx"
        say(f"Next: sam3lite parity --checkpoint {r.option} {where}{tables}")


def push_planned(p: PushPlanRecord) -> None:
    """What a push will change, before anything is sent."""
    say()
    how = "a new repository" if p.creates else "a repository that exists"
    seen = "private" if p.private else "public"
    request = ", as a pull request" if p.pull_request else ""
    say(f"To {p.repo} on the Hub ({how}, {seen}{request}):", "bold")
    for name, f in p.files.items():
        say(f"  {f.state:<8} {name}  {human_bytes(f.bytes)}")
    for name in p.deleted:
        say(f"  delete   {name}, from an earlier conversion")
    if p.left:
        say(f"  not sent, because conversions do not write it: {', '.join(p.left)}")
    if kept := _kept(p):
        say(f"  {', '.join(kept)} there was not written by a conversion and is kept; --hub-overwrite replaces it")


def _kept(p: PushPlanRecord) -> list[str]:
    return [name for name, f in p.files.items() if f.state == "kept"]


def pushed(p: PushRecord) -> None:
    """Where a push went."""
    if p.plan is None or p.commit is None:
        say(f"Not pushed to {p.repo}: the text encoder differs from the original.", "bold red")
    elif p.state == "current":
        where = f"at commit {p.commit[:12]}" + ("" if p.plan.revision == "main" else f", {p.plan.revision}")
        kept = _kept(p.plan)
        but = f", except for {', '.join(kept)}, which was edited there" if kept else ""
        say(f"{p.repo} on the Hub already holds these files {where}{but}; nothing was pushed.", "bold green")
    else:
        say(f"Pushed to {p.repo}, commit {p.commit[:12]}: {p.url}", "bold green")


def batch_begins(number: int, total: int, name: str, size: int | None) -> None:
    """The start of one of several conversions. ``size``: of the file in bytes; None if it is not converted."""
    say(f"[{number}/{total}] {name}" + (f", {human_bytes(size)}" if size is not None else ""), "bold")


def batch_ends(r: ConvertDocument | FailedConversion) -> None:
    """The verdict on one of several conversions."""
    if isinstance(r, FailedConversion):
        fault(f"{r.checkpoint}: {r.error.message}")
        return
    for text in r.done.late_notes:
        say(f"note: {text}")
    report.proofs(r.done)
    if r.done.push:
        pushed(r.done.push)


def converted_all(r: ConvertAllDocument) -> None:
    """The verdicts on all conversions."""
    say()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("checkpoint", "verdict", "proof"):
        table.add_column(name, overflow="fold")
    pushes = any(isinstance(result, ConvertDocument) and result.done.push for result in r.results)
    if pushes:
        table.add_column("on the Hub", overflow="fold")
    for result in r.results:
        row = [result.checkpoint.rpartition("/")[2], *_verdict(result)]
        table.add_row(*map(printable, row[: 3 + pushes]), style="red" if result.state == "failed" else None)
    show(table)
    if r.left_out:
        more = f" and {len(r.left_out) - _LISTED} more" if len(r.left_out) > _LISTED else ""
        say(f"Left out, because they are not checkpoints: {', '.join(r.left_out[:_LISTED])}{more}")
    say(f"Folders are in {r.output}.")
    counts = ", ".join(f"{n} {state}" for state, n in r.counts.items() if n)
    say(f"{counts}, of {r.repo} at commit {r.commit[:12]}", "bold red" if r.verdict == "failed" else "bold green")


def _verdict(result: ConvertDocument | FailedConversion) -> list[str]:
    """The cells of a row: verdict, proof and push."""
    if isinstance(result, FailedConversion):
        return ["FAILED", "", ""]
    proof, push = result.done.verification, result.done.push
    state = "complete, current" if result.state == "current" else result.state
    where = f"{push.repo} ({'as it was' if push.state == 'current' else push.state})" if push else ""
    return [state, proof.verdict if proof else "", where]
