"""What ``parity --component detector`` returns."""

from __future__ import annotations

from dataclasses import dataclass, field

from sam3lite_convert.records.parity import ComparedSides, DiagnosisRecord, JudgementRecord
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
    seconds_candidate: wall time of the stage, in seconds.
    """

    name: str
    taps: tuple[str, ...]
    max_abs_diff: float
    relative_l2: float
    floors: float
    worst_tap: str
    diverges: bool
    seconds_reference: float
    seconds_candidate: float


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
class DetectorDocument(Document):
    """The original's detector and a candidate side by side.

    stages: in order of execution.
    outputs: final results of both sides compared, with all errors carried.
    pictures: with --report: the objects of the original, of the candidate, and the difference.
    not_read_allowed: --allow-not-read was given.
    page: with --report.
    """

    sides: ComparedSides = field(metadata=flat())
    inputs: DetectorInputs
    judgement: JudgementRecord = field(metadata=flat())
    stages: tuple[StageRecord, ...]
    outputs: tuple[OutputRecord, ...]
    diagnosis: DiagnosisRecord | None = None
    notes: tuple[str, ...] = ()
    not_read_allowed: bool = False
    source: HubOrigin | None = None
    fetched: Fetched | None = None
    pictures: tuple[Picture, ...] | None = field(default=None, metadata=optional())
    page: PageFacts | None = field(default=None, metadata=optional())
    report_error: str | None = field(default=None, metadata=optional())

    @property
    def failed(self) -> bool:
        """Whether the weights did not pass."""
        return refuses(self.judgement.verdict, self.not_read_allowed)
