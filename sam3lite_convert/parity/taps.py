"""The taps: the places at which the activations of both text encoders are recorded and compared.

This table defines every tap. To add one, add a row at its place in the order of execution: recording, isolated
activations, noise floor, judgement, files of activations and the list of its tensors follow from the row. Write causes
that apply to this tap alone in ``faults/layers.py`` or ``faults/ends.py`` and register them in
``faults/hypotheses.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

# The kinds of encoders: of MobileCLIP, and of SAM3 itself (CLIP).
ORIGINAL, PACKED, TRANSFORMERS = "original", "packed", "transformers"
SAM3_ORIGINAL, SAM3_TRANSFORMERS = "sam3-original", "sam3-transformers"


@dataclass(frozen=True, eq=False)
class TapPoint:
    """A row of the table. ``{i}`` in its strings is the number of a layer: such a row is one tap in each layer.

    ``name``: in reports and files.
    ``what``: what the activation is, for the author of a port.
    ``tensors``: prefixes of the keys of its tensors in the original's text encoder.
    ``reads``: names of rows; its module reads the nearest earlier tap of one of them. Empty: it reads the ids.
    ``modules``: kind of encoder -> path of the hooked module. Empty: the value is returned by ``Encoder.run``.
    ``elsewhere``: the same without ``modules``, for models that run without this tool; kinds that have no such module
    are left out.
    ``at_input``: whether the module's input is recorded, instead of its output.
    ``read_by_detector``: whether the detector's result depends on it.
    ``has_positions``: whether the shape is (batch, sequence, width); otherwise it is (batch, width).
    ``optional``: whether the tap may be missing in a layer, because not all layers have the module.
    ``inside``: name of the row whose computation includes it; the causes of that row are tried at this tap too.
    """

    name: str
    tensors: tuple[str, ...]
    reads: tuple[str, ...]
    what: str = ""
    modules: Mapping[str, str] = field(default_factory=dict)
    elsewhere: Mapping[str, str] = field(default_factory=dict)
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
        """The tap's name in a layer; ``name`` itself if the row is not per layer."""
        return _at(self.name, layer)

    def module(self, kind: str, layer: int = 0) -> str:
        """The path of the hooked module in an encoder of this kind."""
        return _at(self.modules[kind], layer)


EMBEDDINGS = TapPoint(
    "embeddings",
    tensors=("encoder.embedding_layer.", "encoder.token_embedding.", "encoder.positional_embedding"),
    reads=(),
    what="token plus position embedding, as layer 0 reads it",
    modules={
        ORIGINAL: "encoder.transformer.0",
        PACKED: "text_encoder.layers.0",
        TRANSFORMERS: "text_encoder.layers.0",
        SAM3_ORIGINAL: "encoder.transformer.resblocks.0",
        SAM3_TRANSFORMERS: "text_encoder.text_model.encoder.layers.0",
    },
    at_input=True,
)
LAYER = TapPoint(
    "layers.{i}",
    tensors=("encoder.transformer.{i}.", "encoder.transformer.resblocks.{i}."),
    reads=("embeddings", "layers.{i}"),
    what="what layer {i} returns, residuals included",
    modules={
        ORIGINAL: "encoder.transformer.{i}",
        PACKED: "text_encoder.layers.{i}",
        TRANSFORMERS: "text_encoder.layers.{i}",
        SAM3_ORIGINAL: "encoder.transformer.resblocks.{i}",
        SAM3_TRANSFORMERS: "text_encoder.text_model.encoder.layers.{i}",
    },
)
FINAL_NORM = TapPoint(
    "final_layer_norm",
    tensors=("encoder.final_layer_norm.", "encoder.ln_final."),
    reads=("layers.{i}",),
    what="every token after the last LayerNorm",
    modules={
        ORIGINAL: "encoder.final_layer_norm",
        PACKED: "text_encoder.final_layer_norm",
        TRANSFORMERS: "text_encoder.final_layer_norm",
        SAM3_ORIGINAL: "encoder.ln_final",
        SAM3_TRANSFORMERS: "text_encoder.text_model.final_layer_norm",
    },
)
PROJECTED = TapPoint(
    "projected",
    tensors=("projector.", "resizer."),
    reads=("final_layer_norm",),
    what="final_layer_norm through the projector: the text features that the detector receives",
    elsewhere={
        ORIGINAL: "projector",
        PACKED: "text_projection",
        TRANSFORMERS: "text_projection",
        SAM3_ORIGINAL: "resizer",
        SAM3_TRANSFORMERS: "text_projection",
    },
)
POOLED = TapPoint(
    "pooled",
    tensors=("encoder.projection_layer", "encoder.text_projection"),
    reads=("final_layer_norm",),
    what="final_layer_norm at the greatest id, times the projection matrix; the detector does not read it",
    # A parameter in the others.
    elsewhere={TRANSFORMERS: "text_encoder.projection", SAM3_TRANSFORMERS: "text_encoder.text_projection"},
    read_by_detector=False,
    has_positions=False,
)
TAPS = (EMBEDDINGS, LAYER, FINAL_NORM, PROJECTED, POOLED)  # in the order of execution
# Kind of encoder -> path of the module that is called with the ids.
READS_IDS = {
    ORIGINAL: "encoder.embedding_layer",
    PACKED: "text_encoder.token_embedding",
    TRANSFORMERS: "text_encoder.embeddings.token_embedding",
    SAM3_ORIGINAL: "encoder.token_embedding",
    SAM3_TRANSFORMERS: "text_encoder.text_model.embeddings.token_embedding",
}
OUTPUTS = tuple(point for point in TAPS if not point.modules)  # in the order of what Encoder.run returns


def points(layers: int) -> Iterator[tuple[TapPoint, int]]:
    """Every tap of an encoder with this number of layers, in the order of execution.

    Yields the row and the number of the layer, which is 0 for a row that is not per layer.
    """
    for per_layer, rows in groupby(TAPS, key=lambda point: point.per_layer):
        group = list(rows)
        for layer in range(layers if per_layer else 1):
            yield from ((point, layer) for point in group)


def point_of(tap: str) -> TapPoint:
    """The row of a tap. Raises KeyError if no tap has this name."""
    return _BY_NAME[_row_name(tap)]


def spelled(name: str) -> str | None:
    """The tap that a name in a port's file stands for; None if it is no tap's.

    Between its words may stand any of ``. _ - /``: ``layers.0``, ``layers_0``, ``final-layer-norm``.
    """
    words = _SEPARATORS.sub(".", name)
    for point in TAPS:
        pattern = re.escape(_SEPARATORS.sub(".", point.name)).replace(re.escape("{i}"), r"(\d{1,4})")
        if match := re.fullmatch(pattern, words):
            return point.at(int(match[1])) if point.per_layer else point.name
    return None


def layer_of(tap: str) -> int:
    """The number of the layer that a tap belongs to. Raises ValueError if it does not belong to one."""
    number = _NUMBER.search(tap)
    if number is None:
        raise ValueError(f"{tap} is not a tap of a layer")
    return int(number[0])


def read_at(tap: str, taps: Sequence[str]) -> str:
    """The tap that the module of ``tap`` reads.

    ``taps``: all taps of the encoder, in the order of execution.

    Raises ValueError if the module reads the ids.
    """
    reads = point_of(tap).reads
    for before in reversed(taps[: taps.index(tap)]):
        if _row_name(before) in reads:
            return before
    raise ValueError(f"{tap} reads the ids")


def tensors_behind(tap: str) -> tuple[str, ...]:
    """The prefixes of the keys of a tap's tensors in the original's text encoder."""
    point = point_of(tap)
    return tuple(_at(start, layer_of(tap)) if point.per_layer else start for start in point.tensors)


def belongs_to_layer(key: str) -> bool:
    """Whether a key of the original's text encoder is that of a layer's tensor, whichever layer."""
    return key.startswith(tuple(start.partition("{i}")[0] for start in LAYER.tensors))


def enclosing(tap: str) -> str | None:
    """The tap whose computation includes this one; None if there is no such tap."""
    point = point_of(tap)
    return _at(point.inside, layer_of(tap) if point.per_layer else 0) or None


def text_features(taps: Sequence[str]) -> str:
    """The tap whose activation the detector receives: the last one that it reads, or the last of all if it reads none
    of these."""
    return ([tap for tap in taps if point_of(tap).read_by_detector] or list(taps))[-1]


def are_complete(names: Sequence[object]) -> bool:
    """Whether these are all taps of an encoder, in order; optional taps may be missing."""
    layers = sum(isinstance(name, str) and _row_name(name) == LAYER.name for name in names)
    wanted = ((point, point.at(layer)) for point, layer in points(layers))
    return layers > 0 and [n for point, n in wanted if not point.optional or n in names] == list(names)


_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
_SEPARATORS = re.compile(r"[._/-]+")
_BY_NAME = {point.name: point for point in TAPS}


def _at(text: str, layer: int) -> str:
    return text.replace("{i}", str(layer))


def _row_name(tap: str) -> str:
    return _NUMBER.sub("{i}", tap)
