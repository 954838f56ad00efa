"""The taps: the places at which the activations of both text encoders are recorded and compared.

This table is all that is known of a tap. To add one, add a row where it comes in the order of execution: recording,
isolated activations, noise floor, judgement, files of activations and the tensors behind it follow from the row.
Causes that the diagnosis can name at this tap alone are written in ``faults/layers.py`` or ``faults/ends.py`` and
registered in ``faults/hypotheses.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

ORIGINAL, PACKED, TRANSFORMERS = "original", "packed", "transformers"  # the kinds of encoders


@dataclass(frozen=True, eq=False)
class TapPoint:
    """A row of the table. In its strings ``{i}`` stands for the number of a layer: such a row is a tap of each layer.

    ``name``: in reports and files.
    ``tensors``: how the keys of its tensors start in the original's text encoder; the plan knows their target keys.
    ``reads``: names of rows. Its module reads the nearest tap before it that is of one of them; none: the ids.
    ``modules``: kind of encoder -> path of the module that is hooked. Empty: a value that ``Encoder.run`` returns.
    ``at_input``: what the module reads is recorded, not what it returns.
    ``read_by_detector``: the detector's result follows from it.
    ``has_positions``: the shape is (batch, sequence, width), else (batch, width).
    ``optional``: it exists only where the original has the module (not every layer is of one type).
    ``inside``: the row whose computation it is a step of: the causes known there are tried at this tap too.
    """

    name: str
    tensors: tuple[str, ...]
    reads: tuple[str, ...]
    modules: Mapping[str, str] = field(default_factory=dict)
    at_input: bool = False
    read_by_detector: bool = True
    has_positions: bool = True
    optional: bool = False
    inside: str = ""

    @property
    def per_layer(self) -> bool:
        """Whether the row is a tap of each layer."""
        return "{i}" in self.name

    def at(self, layer: int) -> str:
        """The tap's name in a layer; the same in every layer if it is not one of layers."""
        return _at(self.name, layer)

    def module(self, kind: str, layer: int = 0) -> str:
        """The path of its module in an encoder of this kind."""
        return _at(self.modules[kind], layer)


EMBEDDINGS = TapPoint(
    "embeddings",
    tensors=("encoder.embedding_layer.", "encoder.positional_embedding."),
    reads=(),
    modules={
        ORIGINAL: "encoder.transformer.0",
        PACKED: "text_encoder.layers.0",
        TRANSFORMERS: "text_encoder.layers.0",
    },
    at_input=True,
)
LAYER = TapPoint(
    "layers.{i}",
    tensors=("encoder.transformer.{i}.",),
    reads=("embeddings", "layers.{i}"),
    modules={
        ORIGINAL: "encoder.transformer.{i}",
        PACKED: "text_encoder.layers.{i}",
        TRANSFORMERS: "text_encoder.layers.{i}",
    },
)
FINAL_NORM = TapPoint(
    "final_layer_norm",
    tensors=("encoder.final_layer_norm.",),
    reads=("layers.{i}",),
    modules={
        ORIGINAL: "encoder.final_layer_norm",
        PACKED: "text_encoder.final_layer_norm",
        TRANSFORMERS: "text_encoder.final_layer_norm",
    },
)
PROJECTED = TapPoint("projected", tensors=("projector.",), reads=("final_layer_norm",))
POOLED = TapPoint(
    "pooled",
    tensors=("encoder.projection_layer",),
    reads=("final_layer_norm",),
    read_by_detector=False,
    has_positions=False,
)
TAPS = (EMBEDDINGS, LAYER, FINAL_NORM, PROJECTED, POOLED)  # in the order of execution
OUTPUTS = tuple(point for point in TAPS if not point.modules)  # in the order of what Encoder.run returns


def points(layers: int) -> Iterator[tuple[TapPoint, int]]:
    """Every tap of an encoder with so many layers, in the order of execution, with the number of its layer (0 for a
    tap that is not one of layers)."""
    for per_layer, rows in groupby(TAPS, key=lambda point: point.per_layer):
        group = list(rows)
        for layer in range(layers if per_layer else 1):
            yield from ((point, layer) for point in group)


def point_of(tap: str) -> TapPoint:
    """The row of a tap. Raises KeyError if there is none of this name."""
    return _BY_NAME[_row_name(tap)]


def layer_of(tap: str) -> int:
    """The number of the layer that a tap belongs to. Raises ValueError for a tap that is not one of layers."""
    number = _NUMBER.search(tap)
    if number is None:
        raise ValueError(f"{tap} is not a tap of a layer")
    return int(number[0])


def read_at(tap: str, taps: Sequence[str]) -> str:
    """The tap that the module of ``tap`` reads; ``taps``: all of an encoder, in the order of execution.

    Raises ValueError for a tap that reads the ids.
    """
    reads = point_of(tap).reads
    for before in reversed(taps[: taps.index(tap)]):
        if _row_name(before) in reads:
            return before
    raise ValueError(f"{tap} reads the ids")


def tensors_behind(tap: str) -> tuple[str, ...]:
    """How the keys of a tap's tensors start in the original's text encoder."""
    point = point_of(tap)
    return tuple(_at(start, layer_of(tap)) if point.per_layer else start for start in point.tensors)


def enclosing(tap: str) -> str | None:
    """The tap whose computation this one is a step of; None if there is none."""
    point = point_of(tap)
    return _at(point.inside, layer_of(tap) if point.per_layer else 0) or None


def text_features(taps: Sequence[str]) -> str:
    """The tap whose activation the detector gets: the last of those that it reads."""
    return [tap for tap in taps if point_of(tap).read_by_detector][-1]


def are_complete(names: Sequence[object]) -> bool:
    """Whether these are all taps of an encoder in their order, if without some that not every layer has."""
    layers = sum(isinstance(name, str) and _row_name(name) == LAYER.name for name in names)
    wanted = ((point, point.at(layer)) for point, layer in points(layers))
    return layers > 0 and [n for point, n in wanted if not point.optional or n in names] == list(names)


_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
_BY_NAME = {point.name: point for point in TAPS}


def _at(text: str, layer: int) -> str:
    return text.replace("{i}", str(layer))


def _row_name(tap: str) -> str:
    return _NUMBER.sub("{i}", tap)
