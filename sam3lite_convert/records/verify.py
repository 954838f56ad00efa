"""What ``verify`` returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sam3lite_convert.records.receipt import Losses
from sam3lite_convert.records.record import Document, Record, optional
from sam3lite_convert.records.shared import Fetched, HubOrigin, PageFacts


@dataclass(frozen=True, kw_only=True)
class Mismatch(Record):
    """A tensor, or a field of a file, that is not what the plan writes, and what is wrong with it."""

    key: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Finding(Record):
    """One cause of what is wrong in one component.

    code: of the catalogue; ``sam3lite explain CODE`` tells it in full.
    component: of the model, or the kind of file.
    cause: what is wrong, in words.
    keys: all keys that have this cause; those of a field of a file are ``FILE: FIELD``.
    patterns: the same keys as patterns, with a count where one stands for several.
    summary: component, title of the code and cause in one line.
    relative_l2: norm of the difference over the norm of the source, over all keys. max_abs_diff: the largest
        difference. Both of values that no known cause gives to the bit.
    """

    code: str
    component: str
    cause: str
    keys: tuple[str, ...]
    patterns: tuple[str, ...]
    summary: str
    relative_l2: float | None = field(default=None, metadata=optional())
    max_abs_diff: float | None = field(default=None, metadata=optional())


@dataclass(frozen=True, kw_only=True)
class RepositoryRecord(Record):
    """The repository on the Hub that holds the folder; ``commit``: the one that was read."""

    repo: str
    revision: str
    commit: str


@dataclass(frozen=True, kw_only=True)
class PlaceRecord(Record):
    """A layer of a component, and what is wrong in it.

    stack, layer: the name and number of the layer in the checkpoint, such as blocks and 3; an empty text and null for
        the tensors of the component that are in none.
    tensors: those that the model has here. off: of these, missing or not what the plan writes. filled: of these, in the
        plan without a source.
    relative_l2, max_abs_diff: of values that no known cause gives to the bit, over all tensors of the layer; null if
        there are none.
    """

    component: str
    stack: str
    layer: int | None
    tensors: int
    off: int
    filled: int
    relative_l2: float | None
    max_abs_diff: float | None


@dataclass(frozen=True, kw_only=True)
class VerifyDocument(Document):
    """Whether a folder is its checkpoint.

    verdict: proven: every tensor was turned back into its source. partly_proven: some of them were, and of the others
        names, shapes and dtypes fit. structure_only: names, shapes, dtypes and config.json fit, and no values were
        compared. mismatch: something is wrong.
    up_to: the cast that the proof allows for.
    checked: tensors whose shape and dtype were compared.
    compared: tensors whose values were compared, to the bit.
    not_compared: tensors of which only name, shape and dtype were compared.
    targets: tensors that the model has.
    summary: what was compared, and what differs by component, in one sentence.
    findings: what is wrong, one a cause and component.
    mismatched: the same by key, without missing and unexpected ones.
    proven: SHA-256 by name of the tensor files, if all that they hold was proven and the folder's receipt is of this
        tool and names this checkpoint.
    repository: where a folder on the Hub was read.
    fetched: how much of the folder, and of a checkpoint on the Hub, was read by range requests; left out if all of it
        is here.
    lost_words: ``lost`` in words.
    places: what is wrong by component and layer; with --report alone.
    page: with --report alone.
    """

    folder: str
    checkpoint: str
    option: str
    source: HubOrigin | None
    targets: int
    verdict: Literal["proven", "partly_proven", "structure_only", "mismatch"]
    up_to: str | None
    summary: str
    layout: str
    component: str
    dtype: str
    checked: int
    findings: tuple[Finding, ...]
    compared: int
    not_compared: int
    mismatched: tuple[Mismatch, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    lost: Losses
    lost_words: tuple[str, ...]
    notes: tuple[str, ...]
    proven: dict[str, str] | None = field(default=None, metadata=optional())
    repository: RepositoryRecord | None = field(default=None, metadata=optional())
    fetched: Fetched | None = field(default=None, metadata=optional())
    places: tuple[PlaceRecord, ...] | None = field(default=None, metadata=optional())
    page: PageFacts | None = field(default=None, metadata=optional())
    report_error: str | None = field(default=None, metadata=optional())
