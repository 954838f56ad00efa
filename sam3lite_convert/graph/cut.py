"""Cuts graphs at values: what computes one value from others that are given; and shows values between."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import onnx
from onnx.utils import Extractor

from sam3lite_convert.errors import Untrusted


class Cutter:
    """Cuts one graph, as often as it is asked.

    model: the graph; its weights stay where it says that they are.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        typed = onnx.ModelProto()
        typed.CopyFrom(model)
        between = {value.name for value in model.graph.value_info}
        # Older versions look for the types of values between there alone, and an output may be one.
        typed.graph.value_info.extend(value for value in model.graph.output if value.name not in between)
        self._extractor = Extractor(typed)
        graph = self._extractor.model.graph
        self._maker = {name: node for node in graph.node for name in node.output}
        self._typed = {value.name for value in (*graph.value_info, *graph.input, *graph.output)}

    def reads(self, value: str, given: Collection[str]) -> tuple[str, ...]:
        """The given values, and inputs of the graph, that a value is computed from with no other of them between."""
        found: dict[str, None] = {}
        seen: set[str] = set()
        ahead = [value]
        while ahead:
            name = ahead.pop()
            for before in self._maker[name].input if name in self._maker else ():
                if before in given or (before not in self._maker and before in self._typed):
                    found[before] = None
                elif before not in seen:
                    seen.add(before)
                    ahead.append(before)
        return tuple(found)

    def cut(self, value: str, given: Collection[str]) -> onnx.ModelProto:
        """The graph that computes a value from what ``reads`` lists."""
        model: onnx.ModelProto = self._extractor.extract_model(list(self.reads(value, given)), [value])
        return model


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
