"""What ``explain`` returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sam3lite_convert.records.record import Document, Record, optional
from sam3lite_convert.records.shared import Fetched


@dataclass(frozen=True, kw_only=True)
class TensorFacts(Record):
    """One tensor.

    canonical: its name without the spelling of the file.
    part: q, k or v of a split.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    canonical: str | None = field(default=None, metadata=optional())
    part: str | None = field(default=None, metadata=optional())


@dataclass(frozen=True, kw_only=True)
class RuleFacts(Record):
    """The rule of a table that matched: its section, its table, its pattern and the names of its targets."""

    name: str
    table: str
    pattern: str
    targets: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ExplainDocument(Document):
    """What happens to one key.

    outcome: "filled" if no tensor of the checkpoint fills the target, which holds zeros; then ``source`` is the one
        that other checkpoints have.
    joined: the keys of all sources that are joined into the target, in the order of their rows.
    operation_about: what the operation writes and why, in words; null if it is dropped.
    reason: why it is dropped.
    rule: null for a second spelling of a tensor.
    notes: how ``key`` was read, and the options of the layout that it is a name of.
    """

    key: str
    layout: str
    component: str
    fetched: Fetched | None
    outcome: Literal["mapped", "dropped", "filled"]
    source: TensorFacts
    joined: tuple[str, ...] | None = field(default=None, metadata=optional())
    operation: str | None
    operation_about: str | None
    reason: str | None
    rule: RuleFacts | None
    targets: tuple[TensorFacts, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CodeDocument(Document):
    """One code of a finding of ``verify``.

    title: what is wrong, in a few words.
    meaning: what is wrong, in full.
    seen: how ``verify`` tells it.
    cost: what a user of the folder gets.
    mend: what to do.
    """

    code: str
    title: str
    meaning: str
    seen: str
    cost: str
    mend: str
