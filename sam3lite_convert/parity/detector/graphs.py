"""The detector's three ONNX graphs as a candidate: run as they are, with taps as outputs, and cut at every tap."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import torch
from torch import Tensor

from sam3lite_convert.errors import CannotRun, UnsoundPlan, Untrusted
from sam3lite_convert.graph.compare import taps_of
from sam3lite_convert.graph.cut import Cutter
from sam3lite_convert.graph.read import read_graph
from sam3lite_convert.parity.detector.inputs import DetectorCall
from sam3lite_convert.parity.detector.models import Recorded, See
from sam3lite_convert.parity.detector.taps import OUTPUTS, Tap
from sam3lite_convert.parity.onnx_session import CPU, OnnxSession

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


def open_graphs(folder: Path, files: Sequence[str], call: DetectorCall) -> tuple[Graph, ...]:
    """The graphs of a folder, in order of execution.

    Raises CannotRun if one is not there, or is for other pictures or another number of tokens; Untrusted if it is not
    safe to run; UnsoundPlan if they do not give all of the result.
    """
    command = f"sam3lite export onnx {shlex.quote(str(folder))} --component detector"
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise CannotRun(f"{folder} has no {', '.join(missing)}: write the graphs with {command}", "no_graph")
    models = {name: read_graph(folder / name, folder) for name in files}
    size, tokens = (_last_of_input(models, name) for name in ("image", "input_ids"))
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
    return detector_graphs(models)


def graph_side(
    folder: Path, files: Sequence[str], call: DetectorCall, optimised: bool = True, provider: str | None = None
) -> GraphSide:
    """The graphs of a folder, run by onnxruntime. ``provider``: of onnxruntime; None: the processor's.

    Raises what ``open_graphs`` raises.
    """
    import onnxruntime

    graphs, chosen = open_graphs(folder, files, call), provider or CPU
    how = "optimised" if optimised else "as written"
    name = f"{', '.join(files)} (onnxruntime {onnxruntime.__version__}, {chosen}, {how})"
    return GraphSide(name, graphs, lambda model: OnnxSession(model, folder, optimised, chosen))


def size_of(folder: Path, files: Sequence[str]) -> int | None:
    """The side of the pictures that a folder's graphs are for, in pixels; None if there is none that says it.

    Raises Untrusted if one is not safe to run.
    """
    there = {name: read_graph(folder / name, folder) for name in files if (folder / name).is_file()}
    return _last_of_input(there, "image")


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
            cutter = Cutter(graph.model)
            stands_for = {value: tap for value, tap in graph.recorded.items() if tap in taps}
            for tap in (name for name in taps if name in graph.taps):
                value = graph.taps[tap]
                at = stands_for.keys() - {value}
                read: dict[str, Tensor] = {}
                for name in cutter.reads(value, at):
                    read[name] = self._given(stands_for[name], recorded) if name in stands_for else inputs[name]
                found = self.load(cutter.cut(value, at)).run(_fed(graph, read))[value].float()
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
