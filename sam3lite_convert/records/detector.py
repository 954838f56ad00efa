"""What ``parity --component detector`` returns, and ``record`` of a whole detector."""

from __future__ import annotations

from dataclasses import dataclass, field

from sam3lite_convert.records.parity import (
    ComparedSides,
    DiagnosisRecord,
    GraphRecord,
    JudgementRecord,
    NoCause,
    PortRecord,
    RecordedTap,
    Verdict,
)
from sam3lite_convert.records.record import Document, Record, flat, optional
from sam3lite_convert.records.shared import Fetched, HubOrigin, PageFacts, refuses


@dataclass(frozen=True, kw_only=True)
class DetectorInputs(Record):
    """What both sides were run on.

    what: in words.
    size: side of the square that the detector sees, in pixels.
    image: name of the file, or "built-in picture".
    prompt: null if only ids were given.
    ids: (prompts, sequence).
    boxes: box prompts, each cx, cy, width and height as shares of the picture.
    box_labels: one a box: true for what is sought, false for what is not.
    """

    what: str
    size: int
    image: str
    prompt: str | None
    ids: tuple[tuple[int, ...], ...]
    boxes: tuple[tuple[float, ...], ...]
    box_labels: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class StageRecord(Record):
    """One stage of the detector.

    name: in words, such as "vision trunk".
    taps: names of its taps, in order of execution.
    max_abs_diff: the largest at one of its taps.
    relative_l2: the largest at one of its taps.
    floors: the largest error of its taps divided by its noise floor.
    worst_tap: the tap of ``floors``; where no floors were measured, of ``max_abs_diff``.
    diverges: whether one of its taps diverges.
    seconds_reference: wall time of the stage, in seconds.
    seconds_candidate: wall time of the stage, in seconds; null for a port, of which only activations are known, and for
        graphs, whose times are those of whole graphs.
    """

    name: str
    taps: tuple[str, ...]
    max_abs_diff: float
    relative_l2: float
    floors: float
    worst_tap: str
    diverges: bool
    seconds_reference: float
    seconds_candidate: float | None


@dataclass(frozen=True, kw_only=True)
class OutputRecord(Record):
    """One of the detector's results, such as pred_masks."""

    name: str
    max_abs_diff: float
    relative_l2: float


@dataclass(frozen=True, kw_only=True)
class Picture(Record):
    """A picture of the page.

    caption: what it shows and how many, such as "7 objects above 0.5".
    alt: what it shows, for those who do not see it.
    width: in pixels.
    height: in pixels.
    png: the file in base64.
    """

    title: str
    caption: str
    alt: str
    width: int
    height: int
    png: str


@dataclass(frozen=True, kw_only=True)
class DetectionError(Record):
    """How far detections are from the original's, over all prompts. Queries correspond one to one, by their number.

    objects_original: objects above the threshold, which the original calls found.
    objects: the same of this call, at its own threshold.
    objects_on_one_side: objects that only one of the two has.
    mask_iou: mean intersection over union of the masks of objects that both have, in the picture's pixels; null if
        there are none.
    box_l1: mean over the same objects of the sum of the absolute differences of x0, y0, x1 and y1, as shares of the
        picture's sides; null if there are none.
    max_score_diff: of all queries, found or not.
    max_box_diff: of all queries, as a share of the picture's side.
    max_mask_logit_diff: of all queries.
    prompts: how many moved.
    calls_failed: prompts on which the call raises an error, because its ids are more than the position table has rows.
    """

    objects_original: int
    objects: int
    objects_on_one_side: int
    mask_iou: float | None
    box_l1: float | None
    max_score_diff: float
    max_box_diff: float
    max_mask_logit_diff: float
    prompts: int
    calls_failed: int = 0


@dataclass(frozen=True, kw_only=True)
class DetectionCause(Record):
    """One difference of the two calls, switched on alone."""

    name: str
    words: str
    error: DetectionError = field(metadata=flat())


@dataclass(frozen=True, kw_only=True)
class DetectionLimits(Record):
    """The largest differences that pass."""

    score: float
    box: float
    mask_logit: float


@dataclass(frozen=True, kw_only=True)
class DetectionRecipe(Record):
    """The code that calls the model as the original is called, and how far its detections are off.

    summary: what stands behind the verdict's name, in words.
    """

    code: str
    verdict: Verdict
    summary: str
    error: DetectionError = field(metadata=flat())


@dataclass(frozen=True, kw_only=True)
class DetectorBehaviour(Record):
    """The verdict on the detector as people call it.

    summary: what stands behind the verdict's name, in words.
    emulated: parts of the library's call that could not be run here, and what was run in their place.
    limits: largest differences that pass: four times those of ``matched``.
    candidate: the library's model and its version.
    size: side of the square that the detector sees, in pixels.
    prompts: as given.
    matched: the library's model with every setting the original's, against the original: rounding, if the weights are
        right.
    causes: each against ``matched``.
    absent: causes in which both calls agree.
    together: the stock call against the original.
    recipe: the recipe against the original.
    seconds: wall time of all runs.
    """

    verdict: Verdict
    summary: str
    emulated: tuple[str, ...]
    limits: DetectionLimits
    candidate: str
    size: int
    prompts: tuple[str, ...]
    matched: DetectionError
    causes: tuple[DetectionCause, ...]
    absent: tuple[NoCause, ...]
    together: DetectionError
    recipe: DetectionRecipe
    seconds: float


@dataclass(frozen=True, kw_only=True)
class DetectorGraphRecord(Record):
    """One of the graphs that were run as the candidate.

    part: the name of its file.
    seconds: wall time of one run of it, as it is.
    """

    part: str
    seconds: float
    graph: GraphRecord = field(metadata=flat())


@dataclass(frozen=True, kw_only=True)
class DetectorDocument(Document):
    """The original's detector and a candidate side by side.

    stages: in order of execution.
    outputs: final results of both sides compared, with all errors carried.
    pictures: with --report: the objects of the original, of the candidate, and the difference.
    not_read_allowed: --allow-not-read was given.
    behaviour: with --as-used.
    page: with --report.
    port: with judge: the candidate that ran elsewhere.
    graphs: with graphs as the candidate, in order of execution.
    """

    sides: ComparedSides = field(metadata=flat())
    inputs: DetectorInputs
    judgement: JudgementRecord = field(metadata=flat())
    stages: tuple[StageRecord, ...]
    outputs: tuple[OutputRecord, ...]
    diagnosis: DiagnosisRecord | None = None
    notes: tuple[str, ...] = ()
    not_read_allowed: bool = False
    behaviour: DetectorBehaviour | None = None
    source: HubOrigin | None = None
    fetched: Fetched | None = None
    pictures: tuple[Picture, ...] | None = field(default=None, metadata=optional())
    page: PageFacts | None = field(default=None, metadata=optional())
    port: PortRecord | None = field(default=None, metadata=optional())
    graphs: tuple[DetectorGraphRecord, ...] | None = field(default=None, metadata=optional())
    report_error: str | None = field(default=None, metadata=optional())

    @property
    def failed(self) -> bool:
        """Whether the weights did not pass."""
        return refuses(self.judgement.verdict, self.not_read_allowed)


@dataclass(frozen=True, kw_only=True)
class DetectorRecordDocument(Document):
    """What the original's detector computes: what a port has to compute.

    checkpoint_sha256: null if the checkpoint is no single file.
    taps: those that hold something: without a box there is nothing at the taps of boxes.
    output: the file that was written, safetensors. ``size`` in bytes.
    compact: figures and some values of each tap were written, not whole activations.
    next: the command that judges a port.
    """

    checkpoint: str
    checkpoint_sha256: str | None
    source: HubOrigin | None
    fetched: Fetched | None
    reference: str
    variant: str
    dtype: str
    inputs: DetectorInputs
    taps: tuple[RecordedTap, ...]
    output: str
    compact: bool
    size: int
    next: str
    notes: tuple[str, ...] = ()
