"""A graph of the text encoder as a candidate: run as it lies in its file, with its taps, and cut at every tap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import onnx
import torch
from torch import Tensor

from sam3lite_convert.errors import CannotRun
from sam3lite_convert.graph.compare import taps_of
from sam3lite_convert.graph.cut import Cutter, with_outputs
from sam3lite_convert.graph.text import FEATURES
from sam3lite_convert.parity.compare import max_abs
from sam3lite_convert.parity.encoders import Activations
from sam3lite_convert.parity.port import fitted
from sam3lite_convert.parity.runtime import Runtime, Session
from sam3lite_convert.parity.taps import OUTPUTS, PROJECTED, point_of, read_at, spelled

_INTEGERS: dict[int, torch.dtype] = {onnx.TensorProto.INT64: torch.int64, onnx.TensorProto.INT32: torch.int32}


@dataclass(frozen=True)
class GraphEncoder:
    """A graph as one side of a comparison.

    ``model``: the graph, as ``read_graph`` or ``graphs_of`` gives it.
    ``folder``: that its weights lie in.
    ``runtime``: what runs it.
    ``ends``: tap -> output of the graph, in order of execution.
    ``values``: tap -> value, of the taps that it names or gives, in order of execution.
    ``like``: activations of the reference, for the shapes of a row.
    ``notes``: how its inputs and outputs were read.
    ``moved``: tap -> the greatest difference seen between the graph as it is and the same with further outputs.
    """

    model: onnx.ModelProto
    folder: Path
    runtime: Runtime
    ends: dict[str, str]
    values: dict[str, str]
    like: Activations
    notes: tuple[str, ...] = ()
    moved: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Description for reports."""
        how = "" if self.runtime.optimised else ", not optimised"
        return f"ONNX graph in {self.runtime.name} ({self.runtime.provider}{how})"

    @property
    def taps(self) -> tuple[str, ...]:
        """The names of the taps that it gives, in the order of execution."""
        return tuple(self.values)

    def record(self, input_ids: Tensor, fed: Mapping[str, Tensor] | None = None) -> Activations:
        """The activation at every tap; with ``fed``, activations of the reference, at those taps where the graph can
        be cut so that it reads nothing else: see ``Encoder.record``.

        Outputs of the graph are those of the graph as it is: further outputs may change how a runtime rewrites it.

        Raises CannotRun if the graph does not take the ids or does not run, or if an activation has another shape.
        """
        tokens = _ids(self.model).type.tensor_type.shape.dim[1:2]
        if tokens and tokens[0].dim_value not in (0, input_ids.shape[1]):
            raise CannotRun(
                f"the graph takes {tokens[0].dim_value} tokens a prompt, and these ids are {input_ids.shape[1]}: leave "
                "--length out, or convert with another --context",
                "usage",
            )
        if fed is not None:
            return self._alone(input_ids, fed)
        ids = self._given(input_ids)
        found = self._run(self._plain, ids, list(self.ends.values()))
        if set(self.values.values()) <= set(found):
            return self._shaped({tap: found[value] for tap, value in self.values.items()}, len(input_ids))
        tapped = self._run(self._tapped, ids, list(dict.fromkeys(self.values.values())))
        for tap, value in self.ends.items():
            self.moved[tap] = max(self.moved.get(tap, 0.0), max_abs(tapped[value], found[value]))
        both = tapped | found
        return self._shaped({tap: both[value] for tap, value in self.values.items()}, len(input_ids))

    def _alone(self, input_ids: Tensor, fed: Mapping[str, Tensor]) -> Activations:
        ids = self._given(input_ids)
        stands_for = {value: tap for tap, value in self.values.items()}
        cutter, every = Cutter(self.model), list(self.like)
        made: Activations = {}
        for tap, value in self.values.items():
            try:
                if read_at(tap, every) not in self.values:
                    continue  # what it reads is not known, so that it can't be given
            except ValueError:
                pass  # it reads the ids
            others = stands_for.keys() - {value}
            read = cutter.reads(value, others)
            given = {name: fed[stands_for[name]].to(self._dtype) for name in read if name in stands_for}
            session = self.runtime.load(cutter.cut(value, others), self.folder)
            made |= {tap: self._run(session, ids | given, [value])[value]}
        return self._shaped(made, len(input_ids))

    def _given(self, input_ids: Tensor) -> dict[str, Tensor]:
        value = _ids(self.model)
        return {value.name: input_ids.to(_INTEGERS[value.type.tensor_type.elem_type])}

    @cached_property
    def _plain(self) -> Session:
        return self.runtime.load(self.model, self.folder)

    @cached_property
    def _tapped(self) -> Session:
        return self.runtime.load(with_outputs(self.model, self.values.values()), self.folder)

    @cached_property
    def _dtype(self) -> torch.dtype:
        return getattr(torch, dtype_of(self.model))  # type: ignore[no-any-return]

    def _run(self, session: Session, given: Mapping[str, Tensor], outputs: list[str]) -> dict[str, Tensor]:
        """Run all rows, in parts where the graph takes a fixed number."""
        return run_rows(session, {name: given[name] for name in session.inputs}, outputs, fixed_batch(self.model))

    def _shaped(self, found: Activations, rows: int) -> Activations:
        """The activations in the reference's shapes. Raises CannotRun if they have others."""
        out: Activations = {}
        for tap, value in found.items():
            wanted = torch.Size((rows, *self.like[tap].shape[1:]))
            shaped, _ = fitted(value, wanted, point_of(tap).has_positions)
            if shaped is None:
                raise CannotRun(
                    f"the graph gives {tuple(value.shape)} at {tap}; the original's is {tuple(wanted)}", "other_shape"
                )
            out[tap] = shaped
        return out


def graph_encoder(
    model: onnx.ModelProto, folder: Path, runtime: Runtime, input_ids: Tensor, recorded: Activations
) -> GraphEncoder:
    """A graph as a candidate, whoever wrote it. Its taps are those that its metadata names, and its outputs; these are
    told by their names, or else by their shapes. It is run once on ``input_ids``.

    ``recorded``: the reference's activations for them.

    Raises CannotRun if it does not read ids alone, if none of its outputs is one of the encoder's, or if it does not
    run.
    """
    _ids(model)
    made = {value for node in model.graph.node for value in node.output}
    typed = {value.name for value in (*model.graph.value_info, *model.graph.output)}  # else no graph can be cut there
    values = {tap: value for tap, value in taps_of(model).items() if tap in recorded and value in made & typed}
    held = dict.fromkeys(value.name for value in model.graph.output)
    stated = {value: tap for tap, value in values.items()}
    # What an output is called counts before what the metadata says of it: it is what the output will be taken for.
    ends = {tap: name for name in held if (tap := stated.get(name)) in recorded} | _by_name(held, recorded)
    notes = []
    left = [name for name in held if name not in ends.values()]
    if left and not stated:
        bare = GraphEncoder(model, folder, runtime, {}, {}, recorded)
        found = bare._run(bare._plain, bare._given(input_ids), left)
        for tap in (point.name for point in OUTPUTS):
            alike = [name for name in left if found[name].shape == recorded[tap].shape]
            if tap not in ends and len(alike) == 1 and found[alike[0]].is_floating_point():
                ends[tap] = alike[0]
                notes.append(f"the output {alike[0]} was read as {tap}, by its shape")
        left = [name for name in left if name not in ends.values()]
        if left:
            notes.append(f"outputs of the graph that no tap is known for, and so not compared: {', '.join(left)}")
    if not ends:
        raise CannotRun(
            f"none of the graph's outputs is the encoder's ({', '.join(held)}): name them {FEATURES} and "
            f"{', '.join(tap for tap in recorded if tap != PROJECTED.name)}",
            "bad_graph",
        )
    all_values = values | ends
    return GraphEncoder(
        model,
        folder,
        runtime,
        {tap: ends[tap] for tap in recorded if tap in ends},
        {tap: all_values[tap] for tap in recorded if tap in all_values},
        recorded,
        tuple(notes),
    )


def _by_name(outputs: Iterable[str], recorded: Activations) -> dict[str, str]:
    """Tap -> the output that is named so. Raises CannotRun if two are, of which a reader may take either."""
    found: dict[str, str] = {}
    for name in outputs:
        if (tap := _named(name)) not in recorded:
            continue
        if tap in found:
            raise CannotRun(f"the graph's outputs {found[tap]} and {name} are both named as {tap}", "bad_graph")
        found[tap] = name
    return found


def _named(output: str) -> str | None:
    """The tap that an output's name stands for."""
    return PROJECTED.name if output == FEATURES else spelled(output)


def _ids(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    """The input for the ids. Raises CannotRun if the graph reads anything else."""
    held = {tensor.name for tensor in model.graph.initializer}
    inputs: list[onnx.ValueInfoProto] = [value for value in model.graph.input if value.name not in held]
    if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type not in _INTEGERS:
        raise CannotRun(
            f"the graph reads {', '.join(value.name for value in inputs) or 'nothing'}; a text encoder that can be "
            "compared reads token ids alone, int64 or int32",
            "bad_graph",
        )
    return inputs[0]


def dtype_of(model: onnx.ModelProto) -> str:
    """The floating dtype that a graph computes in: float16 if any of its weights or outputs is, as their rounding is
    then in all that follows."""
    half = onnx.TensorProto.FLOAT16
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    kinds |= {value.type.tensor_type.elem_type for value in model.graph.output}
    return "float16" if half in kinds else "float32"


def fixed_batch(model: onnx.ModelProto) -> int | None:
    """The number of rows that a graph takes at once; None if it takes any."""
    dims = _ids(model).type.tensor_type.shape.dim
    return (dims[0].dim_value or None) if dims else None


def run_rows(
    session: Session, given: Mapping[str, Tensor], outputs: list[str], batch: int | None = None
) -> dict[str, Tensor]:
    """Run a session on all rows. ``batch``: as many at a time, the last ones with repetitions; None: all at once."""
    if batch is None:
        return session.run(given, outputs)
    rows = len(next(iter(given.values())))
    parts = []
    for first in range(0, rows, batch):
        at = torch.arange(first, first + batch).clamp(max=rows - 1)
        parts.append(session.run({name: value[at] for name, value in given.items()}, outputs))
    return {name: torch.cat([part[name] for part in parts])[:rows] for name in outputs}
