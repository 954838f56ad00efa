"""The detector's three ONNX graphs as a candidate: run as they are, with taps as outputs, and cut at every tap."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import torch
from torch import Tensor

from sam3lite_convert.errors import CannotRun, UnsoundPlan
from sam3lite_convert.graph.compare import taps_of
from sam3lite_convert.graph.cut import Cutter, with_outputs
from sam3lite_convert.graph.decode import BOX_LABELS, BOX_MASK, BOXES
from sam3lite_convert.graph.folder_graphs import DETECTOR_MODELS
from sam3lite_convert.graph.read import check_places, read_graph, read_with_hash
from sam3lite_convert.graph.text import IDS
from sam3lite_convert.graph.vision import IMAGE
from sam3lite_convert.parity.compare import max_abs
from sam3lite_convert.parity.detector.inputs import DetectorCall
from sam3lite_convert.parity.detector.models import Recorded, See
from sam3lite_convert.parity.detector.taps import OUTPUTS, Tap
from sam3lite_convert.parity.graph_encoder import dtype_of
from sam3lite_convert.parity.runtime import Runtime
from sam3lite_convert.quoting import shell_path

_CPU = torch.device("cpu")
_RESULT = "outputs."
_ARGUMENTS = (IMAGE, IDS, BOXES, BOX_LABELS, BOX_MASK)


@dataclass(frozen=True)
class Graph:
    """One of the graphs that make up a detector.

    ``file``: its name. ``model``: as it lies in the file. ``sha256``: of the file.
    ``taps``: tap -> value, of all taps of a detector that it computes and no graph before it does, results included.
    ``given``: value -> tap, of those that a graph before it computes.
    """

    file: str
    model: onnx.ModelProto
    sha256: str
    taps: dict[str, str]
    given: dict[str, str]

    @property
    def dtype(self) -> str:
        """The floating dtype that it computes in."""
        return dtype_of(self.model)

    @property
    def recorded(self) -> dict[str, str]:
        """Value -> tap, where a recorded activation can stand for it: the graph can be cut there."""
        return self.given | {value: tap for tap, value in self.taps.items() if not _is_result(tap)}


def detector_graphs(models: Mapping[str, onnx.ModelProto], sha256: Mapping[str, str]) -> tuple[Graph, ...]:
    """The graphs of a detector, each with its taps.

    ``models``: in order of execution, by the names of their files. ``sha256``: of these.

    Raises UnsoundPlan if they do not give all of the result, or read what a call of a detector does not have.
    """
    found: list[Graph] = []
    before: dict[str, str] = {}  # value -> tap, of an output
    seen: set[str] = set()
    made: set[str] = set()
    for file, model in models.items():
        ends = [value.name for value in model.graph.output]
        held = {*_ARGUMENTS, *made, *(tensor.name for tensor in model.graph.initializer)}
        if foreign := [value.name for value in model.graph.input if value.name not in held]:
            raise UnsoundPlan(f"{file} reads {', '.join(foreign)}, which nothing gives it", "bad_graph")
        made |= set(ends)
        stated = taps_of(model) | {f"outputs.{name}": name for name in ends if name in OUTPUTS}
        given = {value: tap for tap, value in stated.items() if tap in seen}
        given |= {value.name: before[value.name] for value in model.graph.input if value.name in before}
        taps = {tap: value for tap, value in stated.items() if tap not in seen}
        found.append(Graph(file, model, sha256[file], taps, given))
        seen |= taps.keys()
        before |= {value: tap for tap, value in taps.items() if value in ends}
    if missing := [name for name in OUTPUTS if f"outputs.{name}" not in seen]:
        raise UnsoundPlan(f"the graphs do not give {', '.join(missing)}: {', '.join(models)}", "bad_graph")
    return tuple(found)


def open_graphs(folder: Path, call: DetectorCall) -> tuple[Graph, ...]:
    """The graphs of a folder, in order of execution.

    Raises CannotRun if one is not there, or is for other pictures or another number of tokens; Untrusted if it is not
    safe to run; UnsoundPlan if they do not give all of the result.
    """
    command = f"sam3lite export onnx {shell_path(folder)} --component detector"
    if missing := [name for name in DETECTOR_MODELS if not (folder / name).is_file()]:
        raise CannotRun(f"{folder} has no {', '.join(missing)}: write the graphs with {command}", "no_graph")
    read = {name: read_with_hash(folder / name) for name in DETECTOR_MODELS}
    models = {name: model for name, (model, _) in read.items()}
    for name, model in models.items():
        check_places(model, folder, name)
    size, tokens = (_last_of_input(models, name) for name in (IMAGE, IDS))
    if size not in (None, call.size):
        raise CannotRun(
            f"the graphs of {folder} are for pictures of {size} x {size} pixels, and the comparison is at {call.size}: "
            f"give --size {size}, or write them with {command} --size {call.size}",
            "other_size",
        )
    if tokens not in (None, call.input_ids.shape[1]):
        raise CannotRun(
            f"the graphs of {folder} are for {tokens} tokens, and the original is called with "
            f"{call.input_ids.shape[1]}: give --context {tokens}",
            "other_size",
        )
    return detector_graphs(models, {name: sha256 for name, (_, sha256) in read.items()})


def size_of(folder: Path) -> int | None:
    """The side of the pictures that a folder's graphs are for, in pixels; None if there is none that says it.

    Raises Untrusted if one is not safe to run.
    """
    there = {name: read_graph(folder / name, folder) for name in DETECTOR_MODELS if (folder / name).is_file()}
    return _last_of_input(there, IMAGE)


def _last_of_input(models: Mapping[str, onnx.ModelProto], name: str) -> int | None:
    """The last dimension of an input, if it is fixed."""
    for model in models.values():
        for value in model.graph.input:
            dims = value.type.tensor_type.shape.dim
            if value.name == name and dims and dims[-1].dim_value:
                return int(dims[-1].dim_value)
    return None


@dataclass
class GraphSide:
    """Graphs of a detector, run one after the other; a graph reads what those before it give under the same name.

    ``graphs``: in order of execution.
    ``folder``: that their weights lie in.
    ``runtime``: what runs them; no more than one of them is loaded at a time.
    ``seconds``: of each graph as it is, by its file, once it ran.
    ``moved``: the greatest difference of each entry of the result from that of the graphs with taps as outputs.
    """

    graphs: tuple[Graph, ...]
    folder: Path
    runtime: Runtime
    seconds: dict[str, float] = field(default_factory=dict)
    moved: dict[str, float] = field(default_factory=dict)
    _shapes: dict[str, torch.Size] = field(default_factory=dict)
    _beside: dict[str, Tensor] = field(default_factory=dict)

    timed = False

    @property
    def dtype(self) -> torch.dtype:
        """See ``Candidate``: the shortest of the graphs'."""
        return torch.float16 if any(graph.dtype == "float16" for graph in self.graphs) else torch.float32

    @property
    def name(self) -> str:
        """Description for reports."""
        how = "" if self.runtime.optimised else ", not optimised"
        return f"ONNX graphs in {self.runtime.name} ({self.runtime.provider}{how})"

    def propagated(self, call: DetectorCall, taps: Mapping[str, Tap], see: See) -> dict[str, Tensor]:
        """See ``Candidate``: every graph runs as it lies in its file, which gives the result; and once more with its
        taps as further outputs, since that alone may change how a runtime rewrites it."""
        outputs = self._as_they_are(call)
        values = call.arguments(_CPU)
        for graph in self.graphs:
            own = [value.name for value in graph.model.graph.output]
            wanted = {tap: graph.taps[tap] for tap in taps if tap in graph.taps and not _is_result(tap)}
            session = self.runtime.load(with_outputs(graph.model, wanted.values()), self.folder)
            found = session.run(_fed(graph, values))
            del session
            for name in own:
                values[name] = found[name]
            tapped = set(wanted.values())
            self._beside |= {name: found[name] for name in own if name not in tapped}
            for tap, value in wanted.items():
                self._shapes[tap] = found[value].shape
                see(tap, found[value].float())
        self.moved = {name: max_abs(values[name].float(), value) for name, value in outputs.items()}
        return outputs

    def isolated(self, call: DetectorCall, taps: Mapping[str, Tap], see: See, recorded: Recorded) -> dict[str, Tensor]:
        """See ``Candidate``: each graph is cut at every tap, and what is left reads recorded activations alone."""
        outputs: dict[str, Tensor] = {}
        inputs = call.arguments(_CPU) | self._beside
        for graph in self.graphs:
            cutter = Cutter(graph.model)
            stands_for = {value: tap for value, tap in graph.recorded.items() if tap in taps}
            for tap in (name for name in taps if name in graph.taps):
                value = graph.taps[tap]
                at = stands_for.keys() - {value}
                read: dict[str, Tensor] = {}
                for name in cutter.reads(value, at):
                    read[name] = self._given(stands_for[name], recorded) if name in stands_for else inputs[name]
                session = self.runtime.load(cutter.cut(value, at), self.folder)
                found = session.run(_fed(graph, read))[value].float()
                if _is_result(tap):
                    outputs[tap.removeprefix(_RESULT)] = found
                else:
                    see(tap, found)
        return outputs

    def _given(self, tap: str, recorded: Recorded) -> Tensor:
        """The recorded activation in the shape that the graph has at this tap. Raises UnsoundPlan if there is none."""
        found = recorded(tap)
        if found is None:
            raise UnsoundPlan(f"the graphs have {tap}, of which nothing was recorded", "bad_graph")
        return found.reshape(self._shapes[tap])

    def _as_they_are(self, call: DetectorCall) -> dict[str, Tensor]:
        """The result of the graphs as they lie in their files."""
        values = call.arguments(_CPU)
        for graph in self.graphs:
            session = self.runtime.load(graph.model, self.folder)
            before = time.perf_counter()
            values |= session.run(_fed(graph, values))
            self.seconds[graph.file] = time.perf_counter() - before
            del session
        return {name: values[name].float() for name in OUTPUTS}


def _is_result(tap: str) -> bool:
    return tap.startswith(_RESULT)


def _fed(graph: Graph, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values with floating ones in the dtype of the graph."""
    dtype = torch.float16 if graph.dtype == "float16" else torch.float32
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in values.items()}
