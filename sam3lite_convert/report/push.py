"""What people see of the Hub: what a push would change, where it went, and the verdicts on many files."""

from __future__ import annotations

import shlex
from typing import Any

from rich.table import Table

from sam3lite_convert.figures import human_bytes
from sam3lite_convert.report import convert as report
from sam3lite_convert.report.terminal import fault, printable, say, show

Record = dict[str, Any]


def converted_end(r: Record) -> None:
    """Where it was pushed to, or what to type next."""
    if r.get("push"):
        pushed(r["push"])
    elif not r["verification"]:
        tables = f" --mapping {shlex.quote(r['mapping'])}" if r.get("mapping") else ""
        say(f"Next: sam3lite verify {shlex.quote(r['output'])} --checkpoint {r['option']}{tables}")


def push_planned(p: Record) -> None:
    """What a push would change, before it goes."""
    say()
    how = "a new repository" if p["creates"] else "a repository that exists"
    seen = "private" if p["private"] else "public"
    request = ", as a pull request" if p["pull_request"] else ""
    say(f"To {p['repo']} on the Hub ({how}, {seen}{request}):", "bold")
    for name, f in p["files"].items():
        say(f"  {f['state']:<8} {name}  {human_bytes(f['bytes'])}")
    for name in p["deleted"]:
        say(f"  delete   {name}, of an earlier conversion")
    if p["left"]:
        say(f"  not sent, since no conversion writes it: {', '.join(p['left'])}")
    kept = [name for name, f in p["files"].items() if f["state"] == "kept"]
    if kept:
        say(f"  {', '.join(kept)} there was not written by a conversion and is kept; --hub-overwrite replaces it")


def pushed(p: Record) -> None:
    """Where a push went."""
    if p["state"] == "current":
        where = f"at commit {p['commit'][:12]}" + ("" if p["revision"] == "main" else f", {p['revision']}")
        kept = [name for name, f in p["files"].items() if f["state"] == "kept"]
        but = f", but for {', '.join(kept)}, which was edited there" if kept else ""
        say(f"{p['repo']} on the Hub holds exactly this {where}{but}; nothing was pushed.", "bold green")
    elif p["state"] == "not pushed":
        say(f"Not pushed to {p['repo']}: parity with the original is what it lacks.", "bold red")
    else:
        say(f"Pushed to {p['repo']}, commit {p['commit'][:12]}: {p['url']}", "bold green")


def batch_begins(number: int, total: int, location: Any, what: str) -> None:
    """Which file of several it is about now."""
    size = f", {human_bytes(location.file.size)}" if what == "convert" else ""
    say(f"[{number}/{total}] {location.name}{size}", "bold")


def batch_ends(r: Record) -> None:
    """The verdict on one of several."""
    if r["state"] == "failed":
        fault(f"{r['checkpoint']}: {r['error']['message']}")
        return
    for text in r.get("late_notes", []):
        say(f"note: {text}")
    report.proofs(r)
    if r.get("push"):
        pushed(r["push"])


def converted_all(r: Record) -> None:
    """All verdicts at the end."""
    say()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("checkpoint", "verdict", "proof"):
        table.add_column(name, overflow="fold")
    pushes = any(result.get("push") for result in r["results"])
    if pushes:
        table.add_column("on the Hub", overflow="fold")
    for result in r["results"]:
        failed = result["state"] == "failed"
        proof = "" if failed or not result["verification"] else result["verification"]["verdict"]
        verdict = {"current": "complete, current", "failed": "FAILED"}
        row = [result["checkpoint"].rpartition("/")[2], verdict.get(result["state"], result["state"]), proof]
        if pushes:
            push = result.get("push")
            row.append(
                f"{push['repo']} ({'as it was' if push['state'] == 'current' else push['state']})" if push else ""
            )
        table.add_row(*map(printable, row), style="red" if failed else None)
    show(table)
    say(f"Folders are in {r['output']}.")
    counts = ", ".join(f"{n} {state}" for state, n in r["counts"].items() if n)
    say(
        f"{counts}, of {r['repo']} at commit {r['commit'][:12]}",
        "bold red" if r["verdict"] == "failed" else "bold green",
    )
