"""Shows how two checkpoints differ."""

from __future__ import annotations

from collections.abc import Callable

from rich.table import Table

from sam3lite_convert import __version__
from sam3lite_convert.figures import component_words, number
from sam3lite_convert.records.diff import ComponentDiff, DiffCounts, DiffDocument, OnlyIn, TensorDiff
from sam3lite_convert.report import verbosity
from sam3lite_convert.report.inspect import headline
from sam3lite_convert.report.markdown import as_code, as_text, headed, listed, print_markdown
from sam3lite_convert.report.terminal import conclude, say, show, width

# Without --verbose, so that the summary fits a terminal:
_LISTED = 1  # tensors
_ROWS = 4  # of the tables of components, which are shown if all of them are no longer than that
_CELL = 40  # characters in a line of these tables, about
_NOTES = 20  # in Markdown
_TOUCHED = 240  # characters of what changed where
_WIDTH = 75  # of what is said of one, in characters, without the space before it
_STYLES = {"equal": "bold green", "equal_up_to_cast": "bold green", "shared_equal": "bold green"}

# Heading, the number, and whether the column is shown where all of its numbers are zero.
_COLUMNS: tuple[tuple[str, Callable[[DiffCounts], int], bool], ...] = (
    ("equal", lambda c: c.equal, True),
    ("cast", lambda c: c.equal_up_to_cast, False),
    ("cut", lambda c: c.cut, False),
    ("changed", lambda c: c.changed, True),
    ("integers", lambda c: c.integers_changed, False),
    ("reshaped", lambda c: c.reshaped, False),
    ("only in A", lambda c: c.only_in_a, False),
    ("only in B", lambda c: c.only_in_b, False),
)


def compared(d: DiffDocument, every: bool = False) -> None:
    """What is equal, what changed, and by how much. ``every``: list all tensors that differ, not the first of them."""
    for label, file, kind in (("A", d.a, d.kind_a), ("B", d.b, d.kind_b)):
        headline(file, f"{label}  ")
        if d.kind_a != d.kind_b or label == "B":
            say(f"kind: {kind}" if d.kind_a != d.kind_b else f"both: {kind}")
    for text in d.notes:
        say(f"note: {text}")
    say()
    conclude(d.summary, _STYLES.get(d.verdict, "bold"))
    full = every or verbosity.verbose()
    if d.touched and (full or len(d.touched) <= _TOUCHED):
        say(d.touched)
    say()
    _component_table(d)
    changed = {name: component for name, component in d.components.items() if component.runs}
    rows = sum(1 + len(run.what) // _CELL for component in changed.values() for run in component.runs)
    if full or rows <= _ROWS:
        for name, component in changed.items():
            say()
            _component(name, component)
    else:
        say("--verbose shows which layers changed, and by how much")
    _alone(d)
    _tensors(d, every)


def compared_markdown(d: DiffDocument) -> None:
    """What changed in short, as Markdown: a row for each component."""
    facts = {
        "A": as_code(d.a.checkpoint, cell=True),
        "B": as_code(d.b.checkpoint, cell=True),
        "kind": as_text(d.kind_a if d.kind_a == d.kind_b else f"{d.kind_a}; {d.kind_b}"),
        "tool": f"sam3lite-convert {__version__}",
    }
    columns = _shown_columns(d)
    lines = headed(f"diff: {d.verdict.replace('_', ' ')}", d.summary, facts)
    lines += ["", f"| component | {' | '.join(head for head, _ in columns)} | relative L2 |"]
    lines += [f"|---|{'---:|' * (len(columns) + 1)}"]
    for name, part in d.components.items():
        cells = [f"{count(part.counts):,}" for _, count in columns]
        size = number(part.relative_l2) if part.layers else ""
        lines.append(f"| {as_text(component_words(name))} | {' | '.join(cells)} | {size} |")
    said = [d.touched] if d.touched else []
    said += [f"only in {kind.side.upper()}: {kind.tensors:,} {_kind_words(kind)}" for kind in d.only_in[:_NOTES]]
    said += [f"note: {note}" for note in d.notes[:_NOTES]]
    print_markdown("\n".join([*lines, *listed(said)]))


def _kind_words(kind: OnlyIn) -> str:
    return f"{component_words(kind.component)}: {kind.kind}"


def _shown_columns(d: DiffDocument) -> list[tuple[str, Callable[[DiffCounts], int]]]:
    return [(head, count) for head, count, always in _COLUMNS if always or count(d.counts)]


def _component_table(d: DiffDocument) -> None:
    columns = _shown_columns(d)
    table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=width() < 66)
    table.add_column("component", no_wrap=True)
    for head, _ in columns:
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("relative L2", justify="right", no_wrap=True)
    for name, component in d.components.items():
        cells = [f"{count(component.counts):,}" for _, count in columns]
        table.add_row(name, *cells, number(component.relative_l2) if component.layers else "")
    table.add_section()
    table.add_row("total", *(f"{count(d.counts):,}" for _, count in columns), "", style="bold")
    show(table)


def _component(name: str, component: ComponentDiff) -> None:
    say(f"{component_words(name)}: relative L2 {number(component.relative_l2)}", "bold")
    if component.largest is not None:
        say(f"  largest: {number(component.largest_relative_l2)}  {component.largest}")
    # Lines and no table: what does not fit goes on below, and no pattern of names is broken.
    rows = [
        (run.name, f"{run.changed:,}/{run.tensors:,}", number(run.relative_l2), run.what)
        if run.changed
        else (run.name, f"{run.tensors:,}", "", "equal")
        for run in component.runs
    ]
    names, counts, sizes = (max((len(row[n]) for row in rows), default=0) for n in range(3))
    for pattern, count, size, what in rows:
        say(f"  {pattern:<{names}}  {count:>{counts}}  {size:>{sizes}}  {what}".rstrip())


def _alone(d: DiffDocument) -> None:
    for side in ("a", "b"):
        kinds = [kind for kind in d.only_in if kind.side == side]
        if kinds:
            say()
            say(f"only in {side.upper()}:", "bold")
        for kind in kinds:
            say(f"  {kind.tensors:>4,}  {_kind_words(kind)}")


def _tensors(d: DiffDocument, every: bool) -> None:
    every = every or verbosity.verbose()
    listed = [t for t in d.tensors if every or t.status != "equal_up_to_cast"]
    shown = listed if every else listed[:_LISTED]
    if shown:
        say()
        say("tensors that are not the same:", "bold")
    for tensor in shown:
        _tensor(tensor)
    if len(listed) > len(shown):
        say(f"... and {len(listed) - len(shown):,} more; --all lists them, and --json has all of them")


def _tensor(tensor: TensorDiff) -> None:
    say(tensor.name)
    lines = [""]
    for clause in tensor.words.split("; "):
        joined = f"{lines[-1]}; {clause}" if lines[-1] else clause
        lines[-1:] = [joined] if not lines[-1] or len(joined) <= _WIDTH else [f"{lines[-1]};", clause]
    for line in lines:
        say(f"    {line}")
