"""What ``convert`` returns, for one checkpoint or for all, and what a push does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from sam3lite_convert.records.receipt import Losses, ParitySummary, SourceRecord
from sam3lite_convert.records.record import Document, Record, flat, optional
from sam3lite_convert.records.shared import Accounting, ArchitectureRecord, Counts, ErrorDetails, FileFacts

if TYPE_CHECKING:
    from sam3lite_convert.records.parity import ParityDocument
    from sam3lite_convert.records.verify import VerifyDocument


@dataclass(frozen=True, kw_only=True)
class PushedFile(Record):
    """One file of a push. ``bytes``: its size. ``state``: kept means that somebody edited it there."""

    bytes: int
    state: Literal["new", "changed", "same", "kept"]


@dataclass(frozen=True, kw_only=True)
class PushPlanRecord(Record):
    """What a push changes.

    ``creates``: the repository does not exist yet. ``revision``: the branch or pull request that it is compared with.
    ``deleted``: files of an earlier conversion. ``left``: files of the folder that no conversion writes.
    """

    repo: str
    creates: bool
    private: bool
    pull_request: bool
    revision: str
    files: dict[str, PushedFile]
    deleted: tuple[str, ...]
    left: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PushRecord(Record):
    """How a push ended. ``not pushed``: parity differs. ``sent``: names of the files that were sent."""

    repo: str
    state: Literal["pushed", "current", "not pushed"]
    plan: PushPlanRecord | None = field(default=None, metadata=flat())
    commit: str | None = field(default=None, metadata=optional())
    url: str | None = field(default=None, metadata=optional())
    sent: tuple[str, ...] | None = field(default=None, metadata=optional())


@dataclass(frozen=True, kw_only=True)
class PlannedConversion(Record):
    """The plan of a conversion, by component. ``bytes``: size of the tensors that it writes."""

    file: FileFacts = field(metadata=flat())
    accounting: Accounting = field(metadata=flat())
    bytes: int


@dataclass(frozen=True, kw_only=True)
class WrittenConversion(Record):
    """What lies in the folder.

    ``files``: size in bytes by name. ``converted_from``: the source as the receipt has it. ``missing_files``: names of
    tokenizer files that could not be had. ``parity_verdict``: of the receipt. ``late_notes``: what the plan did not
    know yet. ``added``: files that were added to a folder that was complete and current.
    """

    files: dict[str, int]
    converted_from: SourceRecord
    lost: Losses
    missing_files: tuple[str, ...]
    parity_verdict: str | None
    late_notes: tuple[str, ...]
    added: tuple[str, ...]
    verification: VerifyDocument | None
    parity: ParityDocument | ParitySummary | None
    push: PushRecord | None


@dataclass(frozen=True, kw_only=True)
class ConvertDocument(Document):
    """One conversion. ``output``: the folder. ``plan``: of a run that planned; ``written``: of one that was not dry.
    ``mapping``: the folder of --mapping."""

    state: Literal["planned", "converted", "current"]
    checkpoint: str
    option: str
    output: str
    dry_run: bool
    layout: str
    component: str
    dtype: str
    architecture: ArchitectureRecord
    counts: Counts
    notes: tuple[str, ...]
    mapping: str | None
    plan: PlannedConversion | None = field(default=None, metadata=flat())
    written: WrittenConversion | None = field(default=None, metadata=flat())


@dataclass(frozen=True, kw_only=True)
class FailedConversion(Record):
    """One of several conversions that failed. ``exit_code``: what the command alone would have ended with."""

    checkpoint: str
    output: str
    state: Literal["failed"]
    error: ErrorDetails
    exit_code: int


@dataclass(frozen=True, kw_only=True)
class ConvertAllDocument(Document):
    """Several conversions. ``counts``: conversions by state."""

    repo: str
    commit: str
    pattern: str
    output: str
    results: tuple[ConvertDocument | FailedConversion, ...]
    counts: dict[str, int]
    verdict: Literal["done", "failed"]
