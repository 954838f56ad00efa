"""What ``tables`` returns, and ``explain`` of a pattern."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sam3lite_convert.records.record import Document, Record, optional
from sam3lite_convert.records.shared import Fetched


@dataclass(frozen=True, kw_only=True)
class TableRule(Record):
    """One rule, in the words of its table.

    name: of its section.
    table: the file name of its table.
    operation: null for a spelling, which only gives a key another name.
    sources: regular expressions that match whole keys: one, or of a join one for each source, in the order of rows.
    targets: one for each part that the operation makes, with {group} for what a named group matched.
    reason: why what it takes is dropped.
    keys: number of the checkpoint's keys that it took; absent without a checkpoint.
    """

    name: str
    table: str
    operation: str | None
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    reason: str | None = field(default=None, metadata=optional())
    keys: int | None = field(default=None, metadata=optional())


@dataclass(frozen=True, kw_only=True)
class TakenCounts(Record):
    """The tensors of a checkpoint by what the rules make of them; they add up to ``tensors``.

    mapped: taken by a rule with targets.
    dropped: taken by a rule that drops them.
    left: left out before the rules: second spellings, keys outside of the component, and by the user's choice.
    unmatched: taken by no rule.

    Raises ValueError if they do not add up.
    """

    tensors: int
    mapped: int
    dropped: int
    left: int
    unmatched: int

    def __post_init__(self) -> None:
        if self.tensors != self.mapped + self.dropped + self.left + self.unmatched:
            raise ValueError(f"the tensors by outcome do not add up to {self.tensors}")


@dataclass(frozen=True, kw_only=True)
class TakenKeys(Record):
    """What the rules make of one checkpoint.

    checkpoint: as it was named.
    kind: what it is, in words.
    fetched: null if all of the file is here.
    left: number of keys by the reason why they are left out.
    unmatched: keys that no rule takes.
    unmatched_patterns: the same as patterns, each with its number of keys if that is more than one.
    disputed: keys that more than one rule takes, of which not all drop it.
    """

    checkpoint: str
    kind: str
    fetched: Fetched | None
    counts: TakenCounts
    left: dict[str, int]
    unmatched: tuple[str, ...]
    unmatched_patterns: tuple[str, ...]
    disputed: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TablesDocument(Document):
    """The mapping tables of one layout.

    family: of checkpoints.
    component: all, text or video.
    variant: the variant of the family that this layout is for; null for all that need none of their own.
    about: what reads the layout.
    layouts: the layouts that there are for the family or the checkpoint, with their components.
    spellings: rules that give other spellings of keys the original's names, applied first, from top to bottom.
    rules: of the layout; each key is taken by one of them.
    taken: what they make of the checkpoint; null without one.

    Raises ValueError if the rules' keys are not those that ``taken`` counts as mapped or dropped.
    """

    family: str
    layout: str
    component: str
    variant: str | None
    about: str
    layouts: dict[str, tuple[str, ...]]
    spellings: tuple[TableRule, ...]
    rules: tuple[TableRule, ...]
    taken: TakenKeys | None

    def __post_init__(self) -> None:
        if self.taken is not None:
            counts, keys = self.taken.counts, sum(rule.keys or 0 for rule in self.rules)
            if keys != counts.mapped + counts.dropped:
                raise ValueError(f"the rules took {keys} keys, not {counts.mapped} mapped + {counts.dropped} dropped")


@dataclass(frozen=True, kw_only=True)
class KeyLine(Record):
    """One tensor of a checkpoint, and what becomes of it.

    outcome: left if it is left out before the rules, unmatched if no rule takes it.
    operation: null if it is not mapped.
    rule: the section of the rule that takes it, ``table`` the file name of its table.
    targets: their keys in the written folder.
    target: the same as one pattern; null if there are none.
    reason: why it has no target.
    """

    key: str
    canonical: str
    outcome: Literal["mapped", "dropped", "left", "unmatched"]
    operation: str | None
    rule: str | None
    table: str | None
    targets: tuple[str, ...]
    target: str | None
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class KeysDocument(Document):
    """The tensors of a checkpoint with a name that matches a pattern: their own, or that of a target.

    of: number of tensors in the checkpoint.
    notes: other layouts in which tensors have such names.
    """

    pattern: str
    layout: str
    component: str
    fetched: Fetched | None
    of: int
    tensors: tuple[KeyLine, ...]
    notes: tuple[str, ...]
