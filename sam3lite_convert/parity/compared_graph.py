"""The graph of a converted folder as it is compared: read with care, and beside the one that this version writes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sam3lite_convert.checkpoint.hashing import FilesHash
from sam3lite_convert.convert.folder import Folder
from sam3lite_convert.errors import CannotRun, Sam3LiteError
from sam3lite_convert.parity.taps import OUTPUTS, point_of
from sam3lite_convert.plan.tables import Mappings
from sam3lite_convert.quoting import shell_path
from sam3lite_convert.records.parity import DiagnosisRecord, GraphDifferenceRecord, GraphRecord

if TYPE_CHECKING:
    import onnx

    from sam3lite_convert.graph.compare import GraphDifference
    from sam3lite_convert.parity.graph_encoder import GraphEncoder

_NAMED = 3  # differences that a cause names


@dataclass(frozen=True)
class FoundGraph:
    """A graph as it lies in a folder.

    ``sha256``: of its file.
    ``dtype``: floating dtype that it computes in.
    """

    path: Path
    model: onnx.ModelProto
    sha256: str
    dtype: str


@dataclass(frozen=True)
class ComparedGraph:
    """The graph that is compared with the original.

    ``differences``: from the graph that this version writes for the folder; None if there is none, see ``notes``.
    ``notes``: how it was read.
    """

    found: FoundGraph
    encoder: GraphEncoder
    differences: tuple[GraphDifference, ...] | None
    notes: tuple[str, ...]

    def record(self, kept: bool) -> GraphRecord:
        """The graph for the JSON. ``kept``: whether it is the user's, and not made for this run."""
        runtime = self.encoder.runtime
        return GraphRecord(
            runtime=runtime.name,
            provider=runtime.provider,
            optimised=runtime.optimised,
            file=self.found.path.name if kept else None,
            sha256=self.found.sha256,
            differences=None if self.differences is None else tuple(map(difference_record, self.differences)),
        )


def with_differences(
    told: DiagnosisRecord, differences: Iterable[GraphDifference], taps: tuple[str, ...]
) -> DiagnosisRecord:
    """A diagnosis with what differs in the graph in the parts of these taps, or in none in particular."""
    there = tuple(d for d in differences if not d.taps or set(d.taps) & set(taps))
    if there:
        words = "; ".join(d.words for d in there[:_NAMED])
        more = f"; and {len(there) - _NAMED:,} more" if len(there) > _NAMED else ""
        if any(d.misplaced for d in there):
            told = replace(told, fits=())  # what stands there is another tap's, of which no fault is known
        known = f"{told.cause}. " if told.fits else ""
        told = replace(told, cause=f"{known}In the graph, {words}{more}")
    return replace(told, graph=tuple(map(difference_record, there)))


def difference_record(difference: GraphDifference) -> GraphDifferenceRecord:
    """A difference of two graphs for the JSON."""
    d = difference
    return GraphDifferenceRecord(name=d.name, taps=d.taps, what=d.words, tensors=d.keys)


def told_apart(model: onnx.ModelProto, own: Sequence[onnx.ModelProto], folder: Folder) -> tuple[GraphDifference, ...]:
    """What tells a graph from the nearest of those that this version writes for a folder; first, if it belongs to other
    weights, that.

    own: with and without its taps as outputs, or one of them.
    """
    from sam3lite_convert.graph.compare import differences, stated_taps_differ

    nodes = min((differences(model, each) for each in own), key=len)
    told = (*stated_taps_differ(model, own[0]), *nodes)
    of_others = _of_other_weights(model, folder) if told else None
    return (of_others, *told) if of_others else told


def _of_other_weights(model: onnx.ModelProto, folder: Folder) -> GraphDifference | None:
    """The difference of a graph that states other tensor files than the folder's; None if it states these, or none.
    Reads the files, for their hashes."""
    from sam3lite_convert.graph.compare import GraphDifference
    from sam3lite_convert.graph.metadata import stated_weights
    from sam3lite_convert.graph.read import metadata_of

    stated = stated_weights(metadata_of(model))
    if not stated:
        return None
    with FilesHash(folder.path / name for name in folder.taken) as hashing:
        held = hashing.result()
    if stated == held:
        return None
    files = ", ".join(f"{name} (SHA-256 {digest[:12]})" for name, digest in stated.items())
    return GraphDifference("", (), f"the weights that it says it belongs to are not those of the folder: {files}")


def find_graph(folder: Path) -> FoundGraph:
    """The text encoder's graph of a folder. Needs onnx.

    Raises CannotRun if the folder has none, Untrusted as ``read_graph`` does.
    """
    from sam3lite_convert.graph.folder_graphs import TEXT_MODEL
    from sam3lite_convert.graph.read import check_places, read_with_hash
    from sam3lite_convert.parity.graph_encoder import dtype_of

    path = folder / TEXT_MODEL
    if not path.is_file():
        raise CannotRun(
            f"{folder} holds no {TEXT_MODEL}; sam3lite export onnx {shell_path(folder)} writes it", "no_graph"
        )
    model, sha256 = read_with_hash(path)
    check_places(model, folder, TEXT_MODEL)
    return FoundGraph(path, model, sha256, dtype_of(model))


def beside_own(found: FoundGraph, folder: Folder, mappings: Mappings, encoder: GraphEncoder) -> ComparedGraph:
    """The graph with what tells it from the one that this version writes for the folder."""
    from sam3lite_convert.graph.folder_graphs import TEXT_MODEL, graphs_of, layout_of

    notes = list(encoder.notes)
    told: tuple[GraphDifference, ...] | None = None
    if folder.receipt is None:
        notes.append("the folder has no conversion.json, so its graph was not compared with the one that it should be")
    else:
        ends = {value.name for value in found.model.graph.output}
        tapped = any(value in ends for tap, value in encoder.values.items() if point_of(tap) not in OUTPUTS)
        try:
            own = graphs_of(folder, layout_of(folder.receipt, mappings), "text", {}, tapped)[TEXT_MODEL]
            told = told_apart(found.model, (own,), folder)
        except Sam3LiteError as fault:
            notes.append(f"the graph was not compared with the one that this version writes: {fault.message}")
    if told:
        more = f", and {len(told) - 1:,} more differences" if len(told) > 1 else ""
        notes.append(f"the graph is not the one that this version writes: {told[0].words}{more}")
    return ComparedGraph(found, encoder, told, tuple(notes))
