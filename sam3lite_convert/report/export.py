"""Shows exported graphs."""

from __future__ import annotations

from sam3lite_convert.figures import human_bytes
from sam3lite_convert.records.export import ExportDocument
from sam3lite_convert.report.terminal import say


def exported(r: ExportDocument) -> None:
    """The files that were written, their inputs and outputs."""
    for graph in r.graphs:
        say(f"{r.folder}/{graph.name}: {human_bytes(graph.size)}, {graph.nodes} nodes, {r.dtype}", "bold")
        for kind, values in (("in ", graph.inputs), ("out", graph.outputs)):
            for value in values:
                shape = " x ".join(map(str, value.shape))
                say(f"  {kind}  {value.name}  {value.dtype}  {shape}  {value.about}".rstrip())
    say(f"weights: {', '.join(r.weights)}, as they are")
    for note in r.notes:
        say(f"note: {note}")
    say(f"Next: {r.next}")
