"""What ``verify`` returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sam3lite_convert.records.receipt import Losses
from sam3lite_convert.records.record import Document, Record, optional
from sam3lite_convert.records.shared import HubOrigin, PageFacts


@dataclass(frozen=True, kw_only=True)
class Mismatch(Record):
    """A tensor, or a field of a file, that is not what the plan writes, and what is wrong with it."""

    key: str
    why: str


@dataclass(frozen=True, kw_only=True)
class VerifyDocument(Document):
    """Whether a folder is its checkpoint.

    up_to: the cast that the proof allows for.
    checked: tensors that were compared.
    targets: tensors that the model has.
    summary: the verdict in words.
    lost_words: ``lost`` in words.
    page: with --report alone.
    """

    folder: str
    checkpoint: str
    option: str
    source: HubOrigin | None
    targets: int
    verdict: Literal["proven", "mismatch"]
    up_to: str | None
    summary: str
    layout: str
    component: str
    dtype: str
    checked: int
    mismatched: tuple[Mismatch, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    lost: Losses
    lost_words: tuple[str, ...]
    notes: tuple[str, ...]
    page: PageFacts | None = field(default=None, metadata=optional())
    report_error: str | None = field(default=None, metadata=optional())
