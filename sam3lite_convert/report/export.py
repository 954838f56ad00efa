"""Shows exported graphs."""

from __future__ import annotations

from rich.table import Table

from sam3lite_convert.figures import human_bytes, number
from sam3lite_convert.records.export import ExportDocument, GraphLoss
from sam3lite_convert.report.terminal import conclude, say, say_command, show

_LISTED = 3  # changed neighbours
_APART = 2  # quartiles of a ratio that are this many times apart say little


def exported(r: ExportDocument) -> None:
    """The files that were written, their inputs and outputs."""
    for graph in r.graphs:
        conclude(f"{r.folder}/{graph.name}: {human_bytes(graph.size)}, {graph.nodes} nodes, {r.dtype}", "bold")
        for kind, values in (("in ", graph.inputs), ("out", graph.outputs)):
            for value in values:
                shape = " x ".join(map(str, value.shape))
                say(f"  {kind}  {value.name}  {value.dtype}  {shape}  {value.about}".rstrip())
    say(f"weights: {', '.join(r.weights)}, as they are")
    if r.verified is not None:
        say(f"proven: {r.verified}")
    for made in r.quantized:
        say()
        conclude(f"{r.folder}/{made.name}: {human_bytes(made.size)}, {made.method} weights of its own", "bold")
        _loss(made.loss, made.of)
    for note in r.notes:
        say(f"note: {note}")
    say_command("Next: ", r.next)


def _duration(milliseconds: float) -> str:
    return f"{milliseconds:.2f} ms" if milliseconds < 1e3 else f"{milliseconds / 1e3:.1f} s"


def _loss(loss: GraphLoss, of: str) -> None:
    """What a quantised graph loses and gains against the graph ``of``."""
    say(f"  against {of}, on {loss.inputs}:")
    before, after = human_bytes(loss.unquantised_bytes), human_bytes(loss.bytes)
    say(f"  size   {after}, was {before} with its weights: {loss.unquantised_bytes / loss.bytes:.1f}x smaller")
    low, high = loss.times_as_fast_quartiles
    spread = "one call" if loss.calls == 1 else f"half of {loss.calls} calls {low:.1f}x to {high:.1f}x"
    times = f"{_duration(loss.milliseconds)}, was {_duration(loss.unquantised_milliseconds)}"
    say(f"  time   {times} a call: {loss.times_as_fast:.1f}x as fast here, {spread}")
    if high > _APART * low:
        say("         the calls differ widely, as they do on a busy machine: measure again on a quiet one", "yellow")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("  tap", no_wrap=True)
    for head in ("relative L2", "cosine", "max abs diff"):
        table.add_column(head, justify="right", no_wrap=True)
    for tap in loss.taps:
        table.add_row(f"  {tap.name}", number(tap.relative_l2), f"{tap.cosine:.6f}", number(tap.max_abs_diff))
    show(table)
    budget = f"the budget of {loss.budget:g} (relative L2)"
    if loss.first_over_budget is None:
        say(f"  every tap is within {budget}", "green")
    else:
        say(f"  {loss.first_over_budget} is the first tap over {budget}", "yellow")
    for agreement in loss.agreement:
        what = "mean of the text features" if agreement.features == "tokens" else "pooled output"
        say(f"  nearest other prompt unchanged for {agreement.share:.1%} of {loss.rows:,} ({what})")
        for changed in agreement.changed[:_LISTED]:
            say(f"    {changed.prompt}: {changed.after}, was {changed.before}")
    if loss.batch_relative_l2 is not None:
        apart = f"{number(loss.batch_relative_l2)} (relative L2) between alone and in a batch of {loss.batch}"
        say(f"  a prompt's features depend on the others in its call: {apart}")
    if (found := loss.detection) is not None:
        say(f"  all graphs on the {found.picture} and {found.prompt!r}, the {found.queries} best queries:")
        say(f"    IoU of masks {found.mask_iou_mean:.3f} on average, {found.mask_iou_least:.3f} at least")
        crossed = f"{found.crossed} of all crossed 0.5"
        say(f"    scores changed by {number(found.score_max_abs_diff)} at most; {crossed}")
    if loss.random_weights:
        say("  the weights look random: this tells nothing about trained ones", "yellow")
