"""The detector's graphs of a folder as they are compared: beside those that this version writes for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sam3lite_convert.convert.folder import Folder
from sam3lite_convert.errors import Sam3LiteError
from sam3lite_convert.figures import number
from sam3lite_convert.graph.compare import GraphDifference
from sam3lite_convert.graph.folder_graphs import graphs_of, layout_of
from sam3lite_convert.parity.compared_graph import difference_record, told_apart, with_differences
from sam3lite_convert.parity.detector.graphs import Graph, GraphSide, open_graphs
from sam3lite_convert.parity.detector.inputs import DetectorCall
from sam3lite_convert.parity.judgement import Judgement
from sam3lite_convert.parity.runtime import Runtime
from sam3lite_convert.plan.tables import Mappings
from sam3lite_convert.records.detector import DetectorGraphRecord
from sam3lite_convert.records.parity import DiagnosisRecord, GraphRecord


@dataclass
class ComparedGraphs:
    """Makes a candidate of a folder's graphs, and says what tells them from those that this version writes for it.

    ``side``: the candidate, once it was made.
    ``differences``: by file; None if they cannot be told.
    ``notes``: on the verdict.
    """

    runtime: Runtime
    mappings: Mappings
    side: GraphSide | None = None
    differences: dict[str, tuple[GraphDifference, ...]] | None = None
    notes: list[str] = field(default_factory=list)

    def __call__(self, folder: Folder, call: DetectorCall) -> GraphSide:
        """The candidate. Raises what ``open_graphs`` raises."""
        self.side = GraphSide(open_graphs(folder.path, call), folder.path, self.runtime)
        self.differences, self.notes = _differences(self.side.graphs, folder, self.mappings, call.size)
        return self.side

    @property
    def dtype(self) -> str:
        """The floating dtype that they compute in, or several."""
        return " and ".join(dict.fromkeys(graph.dtype for graph in self.side.graphs)) if self.side else ""

    def diagnosed(self, told: DiagnosisRecord | None, judgement: Judgement) -> DiagnosisRecord | None:
        """A diagnosis with the nodes and tensors at the first divergence that are not those of our graphs."""
        if told is None or judgement.first is None or self.differences is None:
            return told
        every = (d for found in self.differences.values() for d in found)
        return with_differences(told, every, (*judgement.unseen, judgement.first.name))

    def said(self, judgement: Judgement) -> list[str]:
        """What is said of the graphs beside the verdict."""
        floors = {tap.name: tap.floor.propagated if tap.floor else 0.0 for tap in judgement.taps}
        said = list(self.notes)
        for name, most in (self.side.moved if self.side else {}).items():
            floor = floors.get(f"outputs.{name}", 0.0)
            if most > floor:
                said.append(
                    f"{name} of the graphs as they are is up to {number(most)} off that of the same graphs with their "
                    f"taps as outputs, more than the noise floor of {number(floor)}: {self.runtime.name} rewrites the "
                    "two in different ways, and the taps before it may not be what the graphs themselves compute"
                )
        return said

    def record(self, kept: bool) -> tuple[DetectorGraphRecord, ...]:
        """The graphs for the JSON. ``kept``: whether they are the user's, and not made for this run."""
        if self.side is None:
            return ()
        return tuple(
            DetectorGraphRecord(
                part=graph.file,
                seconds=self.side.seconds[graph.file],
                graph=GraphRecord(
                    runtime=self.runtime.name,
                    provider=self.runtime.provider,
                    optimised=self.runtime.optimised,
                    file=graph.file if kept else None,
                    sha256=graph.sha256,
                    differences=None
                    if self.differences is None
                    else tuple(map(difference_record, self.differences[graph.file])),
                ),
            )
            for graph in self.side.graphs
        )


def _differences(
    graphs: Sequence[Graph], folder: Folder, mappings: Mappings, size: int
) -> tuple[dict[str, tuple[GraphDifference, ...]] | None, list[str]]:
    """What tells the graphs from those that this version writes for the folder, by file, and what is said of it.

    ``size``: of the pictures that they are for.
    """
    if folder.receipt is None:
        return None, ["the folder has no conversion.json, so its graphs were not compared with what they should be"]
    try:
        layout = layout_of(folder.receipt, mappings)
        own = [graphs_of(folder, layout, "detector", {}, taps, size) for taps in (False, True)]
    except Sam3LiteError as fault:
        return None, [f"the graphs were not compared with those that this version writes: {fault.message}"]
    found, notes = {}, []
    for graph in graphs:
        # With its taps as outputs, a graph is one that this version writes too.
        told = found[graph.file] = told_apart(graph.model, [each[graph.file] for each in own], folder)
        if told:
            more = f", and {len(told) - 1:,} more" if len(told) > 1 else ""
            notes.append(f"{graph.file} is not the graph that this version writes: {told[0].words}{more}")
    return found, notes
