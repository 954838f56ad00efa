"""Shows what a checkpoint is, and the parts of that which other commands show too."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from sam3lite_convert.figures import human_bytes, human_count
from sam3lite_convert.records.inspect import InspectDocument
from sam3lite_convert.records.shared import Accounting, ArchitectureRecord, Counts, Fetched, FileFacts
from sam3lite_convert.report.terminal import say, show

LISTED = 20


def fetched(f: Fetched | None) -> None:
    """How much of a file on the Hub was read."""
    if f is not None:
        read = f"{human_bytes(f.bytes)} of {human_bytes(f.of)}" if f.bytes else "nothing, it was fetched before"
        say(f"note: read by range requests from the Hub, not downloaded: {read}")


def headline(file: FileFacts) -> None:
    """The file, where it came from, and its dtypes."""
    dtypes = ", ".join(f"{n} {d}" for d, n in file.dtypes.items())
    wrapper = f"wrapped in {file.wrapper!r}" if file.wrapper else "bare state dict"
    prefix = f"prefix {file.prefix!r}" if file.prefix else "no prefix"
    say(f"{file.checkpoint}: {human_bytes(file.size)}, {file.format}, {wrapper}, {prefix}", "bold")
    if file.source:
        say(f"from {file.source.repo}: {file.source.file} at commit {file.source.commit[:12]}")
    say(f"tensors: {dtypes}")


def text_encoder(a: ArchitectureRecord | None, file: FileFacts) -> None:
    """The text encoder's sizes; nothing without one."""
    if a is None:
        return
    count, whole = file.text_parameters, file.sam3_text_parameters
    say(
        f"text encoder: {a.variant}, {a.num_hidden_layers} layers, {a.hidden_size} wide, "
        f"{plural(a.num_attention_heads, 'head')}, context {a.context_length}" + (", causal" if a.causal_masking else "")
    )
    fewer = 100 * (1 - count / whole)
    say(f"  {human_count(count)} parameters; SAM3's has {whole / 1e6:.2f} M, so {fewer:.0f} % fewer")


def plural(n: int, noun: str) -> str:
    """1 head, 2 heads."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def component_table(a: Accounting) -> None:
    """What becomes of every tensor, by component, and why tensors are dropped."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("component", no_wrap=True)
    for name in ("keys", "mapped", "dropped", "parameters"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, c in [*a.components.items(), ("total", a.total)]:
        if c is a.total:
            table.add_section()
        counted = [f"{n:,}" for n in (c.keys, c.mapped, sum(c.dropped.values()))]
        table.add_row(name, *counted, human_count(c.parameters), style="bold" if c is a.total else None)
    show(table)
    for kind in a.dropped_kinds:
        say(f"  dropped {kind.tensors:>4}  {kind.reason}")


def counts_line(c: Counts | None) -> None:
    """How the source tensors add up; nothing without a plan."""
    if c is not None:
        say(
            f"{c.source:,} source tensors = {c.mapped:,} mapped + {c.dropped:,} dropped; {c.target:,} target tensors"
        )


def inspected(r: InspectDocument) -> None:
    """What a checkpoint is."""
    headline(r.file)
    say(f"kind: {r.kind}")
    text_encoder(r.architecture, r.file)
    for name, n in r.spellings.items():
        say(f"spelling: {name} ({n} keys)")
    say()
    component_table(r.accounting)
    counts_line(r.counts)
    notes(r.architecture, r.notes)
    fetched(r.file.fetched)
    say()
    if r.convert["all"] == "yes":
        say(f"Next: sam3lite convert --checkpoint {r.file.option}")
    else:
        say("convert refuses the whole file: " + _short(r.convert["all"]))
        if r.convert["text"] == "yes":
            say(f"Next: sam3lite convert --checkpoint {r.file.option} --component text")


def _short(message: str) -> str:
    lines = message.splitlines()
    if len(lines) <= LISTED:
        return message
    return "\n".join([*lines[:LISTED], f"... ({len(lines) - LISTED} more lines)"])


def notes(a: ArchitectureRecord | None, said: tuple[str, ...]) -> None:
    """Notes, and what was assumed about the architecture."""
    assumed = (a.assumed if a else None) or {}
    more = [f"assumed {name}: {what}" for name, what in assumed.items()]
    for text in [*said, *(s for s in more if s not in said)]:
        say(f"note: {text}")


def tensor_words(t: dict[str, Any]) -> str:
    """Dtype and shape of a tensor."""
    return f"{t['dtype']} {'x'.join(map(str, t['shape'])) or 'scalar'}"
