"""The detector's three ONNX graphs as a candidate: run as they are, with taps as outputs, and cut at every tap."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import onnx
import torch
from torch import Tensor

from sam3lite_convert.errors import UnsoundPlan, Untrusted
from sam3lite_convert.graph.compare import taps_of
from sam3lite_convert.graph.cut import Cutter
from sam3lite_convert.parity.detector.inputs import DetectorCall
from sam3lite_convert.parity.detector.models import Recorded, See
from sam3lite_convert.parity.detector.taps import OUTPUTS, Tap
from sam3lite_convert.parity.onnx_session import OnnxSession

_CPU = torch.device("cpu")
_RESULT = "outputs."
# (graph) -> a session of it, in the folder that its weights lie in.
Load = Callable[[onnx.ModelProto], OnnxSession]


@dataclass(frozen=True)
class Graph:
    """One of the graphs that make up a detector.

    ``file``: its name. ``model``: as it lies in the file.
    ``taps``: tap -> value, of all taps of a detector that it computes and no graph before it does, results included.
    ``given``: value -> tap, of those that a graph before it computes.
    """

    file: str
    model: onnx.ModelProto
    taps: dict[str, str]
    given: dict[str, str]

    @property
    def half(self) -> bool:
        """Whether it computes in float16."""
        return any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in self.model.graph.initializer)

    @property
    def recorded(self) -> dict[str, str]:
        """Value -> tap, where a recorded activation can stand for it: the graph can be cut there."""
        return self.given | {value: tap for tap, value in self.taps.items() if not _is_result(tap)}


def detector_graphs(models: Mapping[str, onnx.ModelProto]) -> tuple[Graph, ...]:
    """The graphs of a detector, each with its taps. ``models``: in order of execution, by the names of their files.

    Raises UnsoundPlan if they do not give all of the result.
    """
    found: list[Graph] = []
    before: dict[str, str] = {}  # value -> tap, of an output
    seen: set[str] = set()
    for file, model in models.items():
        ends = [value.name for value in model.graph.output]
        stated = taps_of(model) | {f"outputs.{name}": name for name in ends if name in OUTPUTS}
        given = {value: tap for tap, value in stated.items() if tap in seen}
        given |= {value.name: before[value.name] for value in model.graph.input if value.name in before}
        taps = {tap: value for tap, value in stated.items() if tap not in seen}
        found.append(Graph(file, model, taps, given))
        seen |= taps.keys()
        before |= {value: tap for tap, value in taps.items() if value in ends}
    if missing := [name for name in OUTPUTS if f"outputs.{name}" not in seen]:
        raise UnsoundPlan(f"the graphs do not give {', '.join(missing)}: {', '.join(models)}", "bad_graph")
    return tuple(found)


@dataclass
class GraphSide:
    """Graphs of a detector, run one after the other; a graph reads what those before it give under the same name.

    ``name``: description for reports.
    ``graphs``: in order of execution.
    ``load``: makes a session; no more than one is there at a time.
    ``seconds``: of each graph as it is, by its file, once it ran.
    """

    name: str
    graphs: tuple[Graph, ...]
    load: Load
    seconds: dict[str, float] = field(default_factory=dict)
    _shapes: dict[str, torch.Size] = field(default_factory=dict)
    _beside: dict[str, Tensor] = field(default_factory=dict)

    timed = False

    def propagated(self, call: DetectorCall, taps: Mapping[str, Tap], see: See) -> dict[str, Tensor]:
        """See ``Candidate``: every graph runs as it lies in its file, which gives the result; and once more with its
        taps as further outputs, since that alone may change how a runtime rewrites it."""
        outputs = self._as_they_are(call)
        values = call.arguments(_CPU)
        for graph in self.graphs:
            own = [value.name for value in graph.model.graph.output]
            wanted = {tap: graph.taps[tap] for tap in taps if tap in graph.taps and not _is_result(tap)}
            found = self.load(with_outputs(graph.model, wanted.values())).run(_fed(graph, values))
            for name in own:
                values[name] = found[name]
            tapped = set(wanted.values())
            self._beside |= {name: found[name] for name in own if name not in tapped}
            for tap, value in wanted.items():
                self._shapes[tap] = found[value].shape
                see(tap, found[value].float())
        return outputs

    def isolated(self, call: DetectorCall, taps: Mapping[str, Tap], see: See, recorded: Recorded) -> dict[str, Tensor]:
        """See ``Candidate``: each graph is cut at every tap, and what is left reads recorded activations alone."""
        outputs: dict[str, Tensor] = {}
        inputs = call.arguments(_CPU) | self._beside
        for graph in self.graphs:
            cutter, stands_for = Cutter(graph.model), graph.recorded
            for tap in (name for name in taps if name in graph.taps):
                value = graph.taps[tap]
                at = stands_for.keys() - {value}
                read: dict[str, Tensor] = {}
                for name in cutter.reads(value, at):
                    other = recorded(stands_for[name]) if name in stands_for else None
                    read[name] = inputs[name] if other is None else self._shaped(stands_for[name], other)
                found = self.load(cutter.cut(value, at)).run(_fed(graph, read))[value].float()
                if _is_result(tap):
                    outputs[tap.removeprefix(_RESULT)] = found
                else:
                    see(tap, found)
        return outputs

    def _shaped(self, tap: str, recorded: Tensor) -> Tensor:
        """A recorded activation as the graph has this tap."""
        return recorded.reshape(self._shapes.get(tap, recorded.shape))

    def _as_they_are(self, call: DetectorCall) -> dict[str, Tensor]:
        """The result of the graphs as they lie in their files."""
        values = call.arguments(_CPU)
        for graph in self.graphs:
            session = self.load(graph.model)
            before = time.perf_counter()
            values |= session.run(_fed(graph, values))
            self.seconds[graph.file] = time.perf_counter() - before
            del session
        return {name: values[name].float() for name in OUTPUTS}


def _is_result(tap: str) -> bool:
    return tap.startswith(_RESULT)


def _fed(graph: Graph, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values with floating ones in the dtype of the graph."""
    dtype = torch.float16 if graph.half else torch.float32
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in values.items()}


def with_outputs(model: onnx.ModelProto, values: Iterable[str]) -> onnx.ModelProto:
    """The same graph with these values as outputs too. Raises Untrusted if it does not state their types."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    there = {value.name for value in made.graph.output}
    typed = {value.name: value for value in (*made.graph.value_info, *made.graph.input)}
    for name in dict.fromkeys(values):
        if name in there:
            continue
        if name not in typed:
            raise Untrusted(f"the graph does not state the type of {name}, which its metadata calls a tap", "bad_graph")
        made.graph.output.append(typed[name])
    return made
