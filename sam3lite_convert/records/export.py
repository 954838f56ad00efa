"""What ``export`` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sam3lite_convert.records.record import Document, Record


@dataclass(frozen=True, kw_only=True)
class GraphValue(Record):
    """An input or output of a graph. shape: a dimension that is a word is free."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    about: str


@dataclass(frozen=True, kw_only=True)
class GraphFile(Record):
    """One graph that was written. ``size`` in bytes, of the graph alone: its weights stay in the folder's files."""

    name: str
    size: int
    sha256: str
    nodes: int
    inputs: tuple[GraphValue, ...]
    outputs: tuple[GraphValue, ...]


@dataclass(frozen=True, kw_only=True)
class TapLoss(Record):
    """How far a quantised graph is from the graph that it was made of at one tap, over the rows that were run.

    relative_l2: null if it is not finite.
    """

    name: str
    shape: tuple[int, ...]
    relative_l2: float
    cosine: float
    max_abs_diff: float


@dataclass(frozen=True, kw_only=True)
class ChangedNeighbour(Record):
    """A prompt whose nearest other prompt changed. before: by the graph; after: by the quantised one.

    Of long prompts their beginning.
    """

    prompt: str
    before: str
    after: str


@dataclass(frozen=True, kw_only=True)
class Agreement(Record):
    """Whether each prompt still has the same nearest other prompt, by cosine.

    features: what is compared: the mean of the text features over a prompt's tokens, or the end token's pooled output.
    share: of the prompts whose nearest one is the same, 0 to 1.
    changed: the first of the others.
    """

    features: Literal["tokens", "end"]
    share: float
    changed: tuple[ChangedNeighbour, ...]


@dataclass(frozen=True, kw_only=True)
class DetectionLoss(Record):
    """What quantising all graphs of a detector does to its result on one picture.

    prompt: what was looked for. size: side of the picture, in pixels.
    queries: how many are compared: those whose score is over 0.5 before, at least the ten best.
    mask_iou_mean, mask_iou_least: intersection over union of a query's mask before and after; 1 if both are empty.
    score_max_abs_diff: over all queries. crossed: queries whose score is over 0.5 before or after, and not both.
    """

    picture: str
    prompt: str
    size: int
    queries: int
    mask_iou_mean: float
    mask_iou_least: float
    score_max_abs_diff: float
    crossed: int


@dataclass(frozen=True, kw_only=True)
class GraphLoss(Record):
    """What a quantised graph costs and gains, measured when it was written, on that machine and those inputs.

    runtime: what both graphs ran in, with its version. inputs: what they ran on. own_prompts: whether the prompts were
        the user's. rows: how many. batch: rows a call, but for the times.
    bytes: of the quantised graph, with its weights. unquantised_bytes: of the graph and the weights that it reads.
    calls: that times are of, one row each. milliseconds: of one, median. unquantised_milliseconds: likewise.
        times_as_fast: the median of their ratios, call by call in turn.
    taps: over some of the rows, in order of execution. first_over_budget: the first tap whose relative L2 is over the
        budget, or null.
    agreement: of prompts; empty for graphs that read none.
    batch_relative_l2: of the features of some rows run alone against the same rows in a batch, of the quantised graph:
        its scales are those of a whole call. Null for graphs that read no prompts.
    detection: of the last of a detector's graphs: all of them one after another. Null for others.
    random_weights: whether the largest matrix looks like random draws: the loss then tells nothing about trained
        weights.
    """

    runtime: str
    inputs: str
    own_prompts: bool
    rows: int
    batch: int
    bytes: int
    unquantised_bytes: int
    calls: int
    milliseconds: float
    unquantised_milliseconds: float
    times_as_fast: float
    times_as_fast_quartiles: tuple[float, ...]
    budget: float
    first_over_budget: str | None
    taps: tuple[TapLoss, ...]
    agreement: tuple[Agreement, ...]
    batch_relative_l2: float | None
    detection: DetectionLoss | None
    random_weights: bool


@dataclass(frozen=True, kw_only=True)
class QuantizedFile(Record):
    """A quantised graph that was written; it holds its weights itself. of: the graph that it was made of."""

    name: str
    of: str
    method: Literal["int8", "int8-all"]
    size: int
    sha256: str
    loss: GraphLoss


@dataclass(frozen=True, kw_only=True)
class ExportDocument(Document):
    """ONNX graphs over the tensors of a converted folder.

    component: what the graphs compute. taps: whether every tap is an output.
    weights: SHA-256 of each tensor file that the graphs read, by name.
    verified: what the verification of this run found, in words; null if the folder's receipt says that it is proven.
    quantized: the graphs with int8 weights that were written beside them.
    within_budget: whether every tap of these is within the budget; null if there are none.
    """

    folder: str
    component: Literal["text", "detector"]
    layout: str
    dtype: str
    taps: bool
    weights: dict[str, str]
    verified: str | None
    graphs: tuple[GraphFile, ...]
    quantized: tuple[QuantizedFile, ...]
    within_budget: bool | None
    notes: tuple[str, ...]
    next: str
