"""Shows what a checkpoint is; other commands use parts of it."""

from __future__ import annotations

from rich.table import Table

from sam3lite_convert.figures import human_bytes, human_count, plural
from sam3lite_convert.quoting import shell_path
from sam3lite_convert.records.inspect import InspectDocument
from sam3lite_convert.records.shared import (
    Accounting,
    ArchitectureRecord,
    ComponentRecord,
    ContextRecord,
    Counts,
    Fetched,
    FileFacts,
)
from sam3lite_convert.report.terminal import conclude, say, say_command, show

_DEFAULT_LAYOUT = "packed"  # of convert
_SAM3_OWN = "clip"  # the model name of SAM3's own text encoder


def inspected(d: InspectDocument) -> None:
    """The kind of a checkpoint, its contents, and whether it converts."""
    headline(d.file)
    conclude(f"kind: {d.kind}")
    text_encoder(d.architecture, d.context, d.file)
    for name, n in d.spellings.items():
        say(f"spelling: {name} ({n} keys)")
    say()
    component_table(d.accounting)
    counts_line(d.counts)
    notes(d.architecture, d.notes)
    fetched(d.file.fetched)
    say()
    tables = f" --mapping {shell_path(d.mapping)}" if d.mapping else ""
    layout = f" --layout {d.converts_to}" if d.converts_to != _DEFAULT_LAYOUT else ""
    if d.convert["all"] == "yes":
        say_command("Next: ", f"sam3lite convert {d.file.option}{layout}{tables}")
    else:
        conclude("convert refuses the whole file: " + d.convert["all"])
        if d.convert["text"] == "yes":
            command = f"sam3lite convert {d.file.option}{layout} --component text{tables}"
            say_command("Next: ", command)


def headline(file: FileFacts, label: str = "", dtypes: bool = True) -> None:
    """The file: size, format, wrapper, prefix, where it came from, dtypes. ``label`` stands before its name."""
    wrapper = f"wrapped in {file.wrapper!r}" if file.wrapper else "bare state dict"
    prefix = f"prefix {file.prefix!r}" if file.prefix else "no prefix"
    prefix = f"names of the layout {file.layout}" if file.layout else prefix
    form = f"{file.format} in {file.shards} shards" if file.shards > 1 else file.format
    say(f"{label}{file.checkpoint}: {human_bytes(file.size)}, {form}, {wrapper}, {prefix}", "bold")
    if file.source:
        say(f"from {file.source.repo}: {file.source.file} at commit {file.source.commit[:12]}")
    if dtypes:
        say("tensors: " + ", ".join(f"{n} {d}" for d, n in file.dtypes.items()))
    if file.left:
        say("not read: " + ", ".join(f"{plural(n, 'tensor')} in {path}" for path, n in file.left.items()))
    if file.taken_off:
        say("taken off: " + ", ".join(f"{name} ({plural(n, 'key')})" for name, n in file.taken_off.items()))


def text_encoder(
    architecture: ArchitectureRecord | None, context: ContextRecord | None, file: FileFacts, compared: bool = True
) -> None:
    """The text encoder's sizes, ``compared`` with SAM3's; nothing if no text encoder was recognised."""
    a = architecture
    if a is None or context is None:
        return
    count, whole = file.text_parameters, file.sam3_text_parameters
    say(
        f"text encoder: {a.variant}, {a.num_hidden_layers} layers, {a.hidden_size} wide, "
        f"{plural(a.num_attention_heads, 'head')}, {_context(context)}" + (", causal" if a.causal_masking else "")
    )
    if not compared:
        return
    fewer = f"; SAM3's has {whole / 1e6:.2f} M, so {100 * (1 - count / whole):.0f} % fewer"
    say(f"  {human_count(count)} parameters{'' if a.model_name == _SAM3_OWN else fewer}")


def _context(c: ContextRecord) -> str:
    """What the model is called with, and the rows of its table where that is another number or all that is known."""
    if c.origin == "unknown":
        return f"context {c.called} (rows of its table; what it is called with is not stated)"
    return f"context {c.called}" + (f" of {c.rows} rows" if c.called != c.rows else "")


def component_table(accounting: Accounting) -> None:
    """How many tensors are mapped and dropped, by component, and why tensors are dropped."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("component", no_wrap=True)
    for name in ("keys", "mapped", "dropped", "parameters"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, component in accounting.components.items():
        table.add_row(name, *_cells(component))
    table.add_section()
    table.add_row("total", *_cells(accounting.total), style="bold")
    show(table)
    for kind in accounting.dropped_kinds:
        say(f"  dropped {kind.tensors:>4}  {kind.reason}")


def _cells(c: ComponentRecord) -> list[str]:
    return [f"{c.keys:,}", f"{c.mapped:,}", f"{sum(c.dropped.values()):,}", human_count(c.parameters)]


def counts_line(counts: Counts | None) -> None:
    """The totals of the plan; nothing if there is no plan."""
    if counts:
        say(
            f"{counts.source:,} source tensors = {counts.mapped:,} mapped + {counts.dropped:,} dropped; "
            f"{counts.target:,} target tensors" + (f", {counts.filled:,} of them filled" if counts.filled else "")
        )


def notes(architecture: ArchitectureRecord | None, notes: tuple[str, ...]) -> None:
    """The notes, and the assumptions about what the weights do not show."""
    assumed = (architecture.assumed if architecture else None) or {}
    said = [f"assumed {name}: {what}" for name, what in assumed.items()]
    for text in [*notes, *(s for s in said if s not in notes)]:
        say(f"note: {text}")


def fetched(fetched: Fetched | None) -> None:
    """How much of a file on the Hub was read; nothing if the whole file is on disk."""
    if fetched:
        read = (
            f"{human_bytes(fetched.bytes)} of {human_bytes(fetched.of)}"
            if fetched.bytes
            else "nothing, all of it was cached"
        )
        say(f"note: read by range requests from the Hub, not downloaded: {read}")
