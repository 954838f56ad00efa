"""What ``inspect`` returns."""

from __future__ import annotations

from dataclasses import dataclass, field

from sam3lite_convert.records.record import Document, flat
from sam3lite_convert.records.shared import Accounting, ArchitectureRecord, ContextRecord, Counts, FileFacts


@dataclass(frozen=True, kw_only=True)
class InspectDocument(Document):
    """What a checkpoint is. Nothing but its index was read.

    kind: in words.
    prefixes: number of keys by prefix and by spelling rule.
    spellings: number of keys by prefix and by spelling rule.
    twins: tensors that the file holds under two spellings.
    architecture: null if there is no text encoder that is known.
    context: null with the architecture.
    converts_to: the layout that is planned, from which the counts are, and whose refusals are under convert.
    convert: by component, "yes" or why convert refuses it.
    mapping: the folder of --mapping.
    """

    file: FileFacts = field(metadata=flat())
    kind: str
    prefixes: dict[str, int]
    spellings: dict[str, int]
    twins: int
    architecture: ArchitectureRecord | None
    context: ContextRecord | None
    accounting: Accounting = field(metadata=flat())
    counts: Counts | None
    converts_to: str
    convert: dict[str, str]
    notes: tuple[str, ...]
    mapping: str | None
