"""What ``convert`` returns, for one checkpoint or for all, and what a push does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from sam3lite_convert.records.receipt import Losses, ParitySummary, SourceRecord
from sam3lite_convert.records.record import Document, Record, flat, optional
from sam3lite_convert.records.shared import (
    Accounting,
    ArchitectureRecord,
    ContextRecord,
    Counts,
    ErrorDetails,
    FileFacts,
    refuses,
)

if TYPE_CHECKING:
    from sam3lite_convert.records.parity import JudgementRecord, ParityDocument
    from sam3lite_convert.records.verify import VerifyDocument


FileState = Literal["new", "changed", "same", "kept"]


@dataclass(frozen=True, kw_only=True)
class PushedFile(Record):
    """One file of a push.

    bytes: its size.
    state: kept means that somebody edited it there.
    """

    bytes: int
    state: FileState


@dataclass(frozen=True, kw_only=True)
class PushPlanRecord(Record):
    """What a push changes.

    creates: the repository does not exist yet.
    revision: the branch or pull request that it is compared with.
    deleted: files of an earlier conversion.
    left: files of the folder that no conversion writes.
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
    """How a push ended.

    state: current means that all of it was there already; not pushed, that parity differs.
    plan: null for one that is not pushed.
    commit: the one that holds the folder.
    url: of a commit or pull request that was made.
    sent: names of the files that were sent.
    """

    repo: str
    state: Literal["pushed", "current", "not pushed"]
    plan: PushPlanRecord | None = field(default=None, metadata=flat())
    commit: str | None = None
    url: str | None = None
    sent: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PlannedConversion(Record):
    """The plan of a conversion, by component.

    kind: what the checkpoint is, in words.
    bytes: size of the tensors that it writes.
    """

    file: FileFacts = field(metadata=flat())
    kind: str
    accounting: Accounting = field(metadata=flat())
    bytes: int


@dataclass(frozen=True, kw_only=True)
class WrittenConversion(Record):
    """What lies in the folder.

    files: size in bytes by name.
    converted_from: the source as the receipt has it.
    missing_files: names of tokenizer files that could not be had.
    parity_verdict: of the receipt.
    graph_parity: of the receipt: what model.onnx computes, beside the original.
    not_read_allowed: --allow-not-read was given.
    late_notes: what the plan did not know yet.
    added: files that were added to a folder that was complete and current.
    loads_with: the Python that loads the folder.
    loads_also: further lines, which load parts of it as models of their own.
    """

    files: dict[str, int]
    loads_with: str
    loads_also: tuple[str, ...]
    converted_from: SourceRecord
    lost: Losses
    missing_files: tuple[str, ...]
    parity_verdict: str | None
    not_read_allowed: bool
    late_notes: tuple[str, ...]
    added: tuple[str, ...]
    verification: VerifyDocument | None
    parity: ParityDocument | ParitySummary | None
    graph_parity: ParitySummary | None = field(default=None, metadata=optional())
    push: PushRecord | None = None

    @property
    def judgement(self) -> JudgementRecord | ParitySummary | None:
        """Verdict and error of the parity run that this one made, or found in the receipt."""
        return self.parity if self.parity is None or isinstance(self.parity, ParitySummary) else self.parity.judgement

    @property
    def failed(self) -> bool:
        """Whether parity differs in this run, or kept it from pushing."""
        refused = self.push is not None and self.push.state == "not pushed"
        run = (self.judgement, self.graph_parity if self.judgement else None)
        return refused or any(side is not None and refuses(side.verdict, self.not_read_allowed) for side in run)

    @property
    def differs(self) -> bool:
        """Whether parity failed, in this run or in an earlier one that the receipt tells of."""
        verdicts = [self.parity_verdict, *(side.verdict for side in (self.judgement, self.graph_parity) if side)]
        return any(refuses(verdict, self.not_read_allowed) for verdict in verdicts)


@dataclass(frozen=True, kw_only=True)
class ConvertDocument(Document):
    """One conversion.

    output: the folder.
    plan: of a run that planned.
    written: of one that was not dry.
    mapping: the folder of --mapping.
    """

    state: Literal["planned", "converted", "current"]
    checkpoint: str
    option: str
    output: str
    dry_run: bool
    layout: str
    component: str
    dtype: str
    architecture: ArchitectureRecord
    context: ContextRecord
    counts: Counts
    notes: tuple[str, ...]
    mapping: str | None
    plan: PlannedConversion | None = field(default=None, metadata=flat())
    written: WrittenConversion | None = field(default=None, metadata=flat())

    @property
    def done(self) -> WrittenConversion:
        """What lies in the folder. Raises ValueError for a conversion that was planned alone."""
        if self.written is None:
            raise ValueError(f"{self.output} was planned and not written")
        return self.written


@dataclass(frozen=True, kw_only=True)
class FailureDetails(ErrorDetails):
    """Why one of several conversions failed.

    exit_code: what the command for it alone would have ended with.
    """

    exit_code: int


@dataclass(frozen=True, kw_only=True)
class FailedConversion(Record):
    """One of several conversions that failed."""

    checkpoint: str
    output: str
    state: Literal["failed"]
    error: FailureDetails


@dataclass(frozen=True, kw_only=True)
class ConvertAllDocument(Document):
    """Several conversions: of a repository, or of checkpoints that were named.

    repo, commit, pattern: what --all was asked for; left out where the checkpoints were named.
    left_out: paths that fit the pattern and are not of checkpoints.
    odd_entries: entries of the Hub's listing without a usable path, in words; left out if there are none.
    counts: conversions by state.
    """

    repo: str | None = field(default=None, metadata=optional())
    commit: str | None = field(default=None, metadata=optional())
    pattern: str | None = field(default=None, metadata=optional())
    output: str
    left_out: tuple[str, ...]
    results: tuple[ConvertDocument | FailedConversion, ...]
    counts: dict[str, int]
    verdict: Literal["done", "failed"]
    odd_entries: tuple[str, ...] | None = field(default=None, metadata=optional())
