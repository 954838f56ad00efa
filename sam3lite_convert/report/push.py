"""Shows what a push to the Hub would change and where it went, and the verdicts on several files."""

from __future__ import annotations

from collections import Counter

from sam3lite_convert.figures import human_bytes, plural
from sam3lite_convert.quoting import shell_path
from sam3lite_convert.records.convert import (
    ConvertAllDocument,
    ConvertDocument,
    FailedConversion,
    PushPlanRecord,
    PushRecord,
)
from sam3lite_convert.report import convert as report
from sam3lite_convert.report import verbosity
from sam3lite_convert.report.terminal import conclude, fault, say, say_command

_LISTED = 5  # paths
_COMPUTED = ("packed", "transformers")  # layouts whose text encoder parity can run


def converted_end(r: ConvertDocument) -> None:
    """Where the folder was pushed to, or the next command to try after a conversion; and what loads the folder."""
    done, tables = r.done, f" --mapping {shell_path(r.mapping)}" if r.mapping else ""
    if done.push:
        pushed(done.push)
    elif r.state == "converted" and not done.verification:
        say_command("Next: ", f"sam3lite verify {shell_path(r.output)} {r.option}{tables}")
    elif done.verification and not done.graph_parity and any(name.endswith(".onnx") for name in done.files):
        where = f"--converted {shell_path(r.output)} --candidate onnx"
        say_command("Next: ", f"sam3lite parity {r.option} {where}{tables}")
    elif done.verification and not done.parity and r.layout in _COMPUTED and r.component != "video":
        say_command("Next: ", f"sam3lite parity {r.option} --converted {shell_path(r.output)}{tables}")
    report.loads_with(r)


def push_planned(p: PushPlanRecord) -> None:
    """What a push will change, before anything is sent."""
    say()
    how = "a new repository" if p.creates else "a repository that exists"
    seen = "private" if p.private else "public"
    request = ", as a pull request" if p.pull_request else ""
    say(f"To {p.repo} on the Hub ({how}, {seen}{request}):", "bold")
    for name, f in p.files.items():
        if verbosity.verbose() or f.state != "same":
            say(f"  {f.state:<8} {name}  {human_bytes(f.bytes)}")
    if (same := sum(f.state == "same" for f in p.files.values())) and not verbosity.verbose():
        say(f"  {plural(same, 'file')} there are the same already")
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
        conclude(f"Not pushed to {p.repo}: the text encoder differs from the original.", "bold red")
    elif p.state == "current":
        where = f"at commit {p.commit[:12]}" + ("" if p.plan.revision == "main" else f", {p.plan.revision}")
        kept = _kept(p.plan)
        but = f", except for {', '.join(kept)}, which was edited there" if kept else ""
        conclude(f"{p.repo} on the Hub already holds these files {where}{but}; nothing was pushed.", "bold green")
    else:
        conclude(f"Pushed to {p.repo}, commit {p.commit[:12]}: {p.url}", "bold green")


def batch_begins(number: int, total: int, name: str, size: int | None) -> None:
    """The start of one of several conversions. ``size``: of the file in bytes; None if it is not converted."""
    say(f"[{number}/{total}] {name}" + (f", {human_bytes(size)}" if size is not None else ""), "bold")


def batch_ends(r: ConvertDocument | FailedConversion) -> None:
    """The verdict on one of several conversions, in a line. Notes come at the end, each once."""
    if isinstance(r, FailedConversion):
        fault(f"{r.checkpoint}: {r.error.message.removeprefix(f'{r.checkpoint}: ')}")
        return
    done = r.done
    words: list[str] = ["complete and current" if r.state == "current" else r.state]
    if proof := done.verification:
        words += [f"{proof.verdict}{f' up to {proof.up_to}' if proof.up_to else ''}, {proof.compared:,} tensors"]
    for what, p in (("parity", done.judgement), ("parity of model.onnx", done.graph_parity)):
        if p and done.judgement:
            words += [f"{what} {p.verdict.replace('_', ' ')}"]
    if verbosity.verbose() or done.differs:
        say(f"  {r.output}: {'; '.join(words)}", "bold red" if done.differs else None)
        report.proofs(done, "  ")
    else:
        say(f"  {r.output}: {'; '.join(words)}")
    if done.push:
        pushed(done.push)


def converted_all(r: ConvertAllDocument) -> None:
    """The notes on all conversions, and how many there are of each state."""
    made = [result for result in r.results if isinstance(result, ConvertDocument)]
    said = Counter(text for result in made for text in result.done.late_notes)
    for text, times in said.items():
        say(f"note{f' on {times} files' if times > 1 else ''}: {text}")
    if r.left_out:
        shown = r.left_out[: verbosity.listed(_LISTED)]
        more = f" and {len(r.left_out) - len(shown)} more" if len(r.left_out) > len(shown) else ""
        say(f"Left out, because they are not checkpoints: {', '.join(shown)}{more}")
    for failed in (result for result in r.results if isinstance(result, FailedConversion)):
        conclude(f"FAILED  {failed.checkpoint}", "red")
    say(f"Folders are in {r.output}.")
    counts = ", ".join(f"{n} {state}" for state, n in r.counts.items() if n)
    of = f", of {r.repo} at commit {r.commit[:12]}" if r.commit is not None else ""
    conclude(f"{counts}{of}", "bold red" if r.verdict == "failed" else "bold green")
    if loading := {result.done.loads_with.partition("(")[0] for result in made}:
        say(f"Each loads with: {' or '.join(sorted(loading))}(FOLDER)")
