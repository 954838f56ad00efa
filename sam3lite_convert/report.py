"""The one place that prints: tables and sentences on stdout, progress and faults on stderr."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.table import Table

from sam3lite_convert import notes
from sam3lite_convert.architecture import SAM3_TEXT_PARAMETERS
from sam3lite_convert.streams import Advance
from sam3lite_convert.summary import human_bytes, human_count

Record = dict[str, Any]
_LISTED = 20
_LONGEST_LINE = 2000  # characters; a name in a file may have a million


class _Console(Console):
    """Goes on where its reader went away (for example head): the exit code is still that of the checks."""

    def on_broken_pipe(self) -> None:
        into_nothing()


def into_nothing() -> None:
    """What is still said on stdout goes nowhere: its reader went away, or it cannot be written to."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _out() -> Console:
    # Made per call: the width and the stream are those of the moment.
    return _Console(highlight=False, markup=False)


def _err() -> Console:
    return _Console(stderr=True, highlight=False, markup=False)


def say(text: str = "", style: str | None = None) -> None:
    """A line of results."""
    _out().print(printable(text), style=style, soft_wrap=True)


def show(table: Table) -> None:
    """A table of results. Where no column of it wraps it keeps its width: a narrow place cuts no number."""
    console = _out()
    if all(column.no_wrap for column in table.columns):
        console.width = max(console.width, console.measure(table, options=_unbounded(console)).maximum)
    console.print(table)


def _unbounded(console: Console) -> ConsoleOptions:
    return console.options.update(width=10_000)


def width() -> int:
    """Columns of the place that results go to."""
    return _out().width


def note(text: str) -> None:
    """A line beside the results."""
    _err().print(printable(text), soft_wrap=True)


def as_json(record: Record) -> None:
    """The record as the one JSON document on stdout."""
    try:
        sys.stdout.write(json.dumps(_finite(record), indent=2, allow_nan=False) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        into_nothing()


def _finite(value: Any) -> Any:
    """The record with null in the place of infinities and not-a-numbers, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def fault(message: str) -> None:
    """A foreseeable failure."""
    _err().print(printable(f"error: {message}"), style="red", soft_wrap=True)


def printable(text: str) -> str:
    """Names come out of files: what would steer the terminal is shown, not sent, and no line is endless."""
    shown = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
    if len(shown) <= _LONGEST_LINE:
        return shown
    return "\n".join(
        line
        if len(line) <= _LONGEST_LINE
        else f"{line[: _LONGEST_LINE // 2]} [... {len(line):,} characters] {line[-200:]}"
        for line in shown.split("\n")
    )


@contextmanager
def byte_progress(
    totals: Mapping[str, int | None], labels: dict[str, str], quiet: bool
) -> Iterator[Callable[[str], Advance]]:
    """Bars by bytes with rate and time left, on a terminal only."""
    console = _err()
    if quiet or not console.is_terminal:
        yield lambda what: lambda n: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bars:
        tasks = {what: bars.add_task(labels[what], total=totals[what]) for what in totals}
        yield lambda what: lambda n: bars.advance(tasks[what], n)


@contextmanager
def count_progress(label: str, total: int, quiet: bool) -> Iterator[Advance]:
    """A bar over things that are counted, with the time left, on a terminal only."""
    console = _err()
    if quiet or not console.is_terminal:
        yield lambda n: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(label, total=total)
        yield lambda n: bars.advance(task, n)


def quiet_hub(quiet: bool) -> None:
    """Have the Hub's library speak through this module: bars on a terminal only, notes on stderr."""
    notes.send_to(None if quiet else note)
    if quiet or not _err().is_terminal:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _fetched(r: Record) -> None:
    if r.get("fetched"):
        f = r["fetched"]
        read = (
            f"{human_bytes(f['bytes'])} of {human_bytes(f['of'])}" if f["bytes"] else "nothing, it was fetched before"
        )
        say(f"note: read by range requests from the Hub, not downloaded: {read}")


def _headline(r: Record) -> None:
    dtypes = ", ".join(f"{n} {d}" for d, n in r["dtypes"].items())
    wrapper = f"wrapped in {r['wrapper']!r}" if r["wrapper"] else "bare state dict"
    prefix = f"prefix {r['prefix']!r}" if r["prefix"] else "no prefix"
    say(f"{r['checkpoint']}: {human_bytes(r['size'])}, {r['format']}, {wrapper}, {prefix}", "bold")
    _origin(r)
    say(f"tensors: {dtypes}")


def _origin(r: Record) -> None:
    source = r.get("source")
    if source and source.get("repo"):
        say(f"from {source['repo']}: {source['file']} at commit {source['commit'][:12]}")


def _text_encoder(r: Record) -> None:
    a = r["architecture"]
    if a is None:
        return
    count = r["text_parameters"]
    fewer = 100 * (1 - count / SAM3_TEXT_PARAMETERS)
    say(
        f"text encoder: {a['variant']}, {a['num_hidden_layers']} layers, {a['hidden_size']} wide, "
        f"{_plural(a['num_attention_heads'], 'head')}, context {a['context_length']}"
        + (", causal" if a["causal_masking"] else "")
    )
    say(f"  {human_count(count)} parameters; SAM3's has {SAM3_TEXT_PARAMETERS / 1e6:.2f} M, so {fewer:.0f} % fewer")


def _plural(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _component_table(r: Record) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("component", no_wrap=True)
    for name in ("keys", "mapped", "dropped", "parameters"):
        table.add_column(name, justify="right", no_wrap=True)
    total = [0, 0, 0, 0]
    for name, c in r["components"].items():
        row = [c["keys"], c["mapped"], sum(c["dropped"].values()), c["parameters"]]
        total = [a + b for a, b in zip(total, row, strict=True)]
        table.add_row(name, *[f"{n:,}" for n in row[:3]], human_count(row[3]))
    table.add_section()
    table.add_row("total", *[f"{n:,}" for n in total[:3]], human_count(total[3]), style="bold")
    show(table)
    by_label: dict[str, int] = {}
    for c in r["components"].values():
        for label, n in c["dropped"].items():
            by_label[label] = by_label.get(label, 0) + n
    for label, n in by_label.items():
        reason = r["dropped"].get(label, label)
        say(f"  dropped {n:>4}  " + ("second spelling of a tensor, equal to the bit" if label == "twin" else reason))


def _sum(r: Record) -> None:
    c = r["counts"]
    if "mapped" in c:
        say(
            f"{c['source']:,} source tensors = {c['mapped']:,} mapped + {c['dropped']:,} dropped; "
            f"{c['target']:,} target tensors"
        )


def inspected(r: Record) -> None:
    """What a checkpoint is."""
    _headline(r)
    say(f"kind: {r['kind']}")
    _text_encoder(r)
    for name, n in r["spellings"].items():
        say(f"spelling: {name} ({n} keys)")
    say()
    _component_table(r)
    _sum(r)
    _notes(r)
    _fetched(r)
    say()
    if r["convert"]["all"] == "yes":
        say(f"Next: sam3lite convert --checkpoint {r['option']}")
    else:
        say("convert refuses the whole file: " + _short(r["convert"]["all"]))
        if r["convert"]["text"] == "yes":
            say(f"Next: sam3lite convert --checkpoint {r['option']} --component text")


def _short(message: str) -> str:
    lines = message.splitlines()
    if len(lines) <= _LISTED:
        return message
    return "\n".join([*lines[:_LISTED], f"... ({len(lines) - _LISTED} more lines)"])


def _notes(r: Record) -> None:
    assumed = (r["architecture"] or {}).get("assumed", {})
    said = [f"assumed {name}: {what}" for name, what in assumed.items()]
    for text in [*r["notes"], *(s for s in said if s not in r["notes"])]:
        say(f"note: {text}")


def planned(r: Record) -> None:
    """A conversion's plan."""
    _headline(r)
    _text_encoder(r)
    say()
    _component_table(r)
    _sum(r)
    _notes(r)
    _fetched(r)
    say(f"layout {r['layout']}, component {r['component']}, {r['dtype']}: {human_bytes(r['bytes'])} to write")


def converted(r: Record) -> None:
    """What was written."""
    say()
    for text in r["late_notes"]:
        say(f"note: {text}")
    cast = r["lost"].get("cast") if r["state"] == "converted" else None
    if cast:
        say(
            f"cast to {cast['dtype']}: {cast['changed_values']:,} values rounded, max abs error "
            f"{cast['max_abs_error']:.3g}, {cast['overflowed_values']:,} overflowed"
        )
    if r["state"] == "converted":
        say(f"Wrote {r['output']}", "bold green")
        for name, size in r["files"].items():
            say(f"  {name}  {human_bytes(size)}")
    else:
        say(
            f"{r['output']} is complete and current: same source, options and tables. No tensor was written.",
            "bold green",
        )
        if r["added"]:
            say(f"  added {', '.join(r['added'])}")
    proofs(r)


def planned_alone(r: Record) -> None:
    """The end of a dry run."""
    say()
    say(f"Dry run: the plan is sound, nothing was written. It would go to {r['output']}")


def proofs(r: Record) -> None:
    """The checks that ran on a conversion."""
    if r["verification"]:
        v = r["verification"]
        up_to = f" up to {v['up_to']}" if v["up_to"] else ""
        say(f"proven{up_to}: {v['checked']:,} of {v['targets']:,} tensors turn back into their source bit for bit")
    if r["parity"]:
        p = r["parity"]
        style = "bold red" if p["verdict"] == "differs" else None
        say(f"parity: {p['verdict'].replace('_', ' ')}, max abs diff {p['max_abs_diff']:.3g}", style)


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


def explained(r: Record) -> None:
    """One key."""
    source = r["source"]
    say(f"source  {source['key']}  {_tensor(source)}")
    if source.get("canonical") != source["key"]:
        say(f"        canonical name {source['canonical']}")
    if r["outcome"] == "dropped":
        say(f"dropped {r['reason']}")
    else:
        say(f"op      {r['operation']}")
    for target in r["targets"]:
        say(f"target  {target['key']}  {_tensor(target)}" + (f"  ({target['part']})" if "part" in target else ""))
    if r["rule"]:
        say(f"rule    [{r['rule']['name']}] in {r['rule']['table']}")
        say(f"        {r['rule']['pattern']}")
    _fetched(r)


def _tensor(t: Record) -> str:
    return f"{t['dtype']} {'x'.join(map(str, t['shape'])) or 'scalar'}"
