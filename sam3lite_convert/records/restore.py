"""What ``restore`` returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sam3lite_convert.records.record import Document, Record, optional
from sam3lite_convert.records.shared import HubOrigin
from sam3lite_convert.records.verify import RepositoryRecord


@dataclass(frozen=True, kw_only=True)
class Remark(Record):
    """What is to be said of one tensor."""

    key: str
    why: str


@dataclass(frozen=True, kw_only=True)
class RestoreDocument(Document):
    """A checkpoint that was made of a converted folder.

    output: the file. format: what wrote such files first. ``size`` in bytes.
    basis: what tells the names: the checkpoint, the folder's receipt, or the layout's tables.
    checkpoint: the one that was given, as it was named, or null; ``source``: where on the Hub it came from.
    repository: where a folder on the Hub was read.
    family: of checkpoints, whose names these are. kind: what the original is, in words.
    layout, component: of the folder.
    wrapper: the entry that holds the state dict, null for a bare one; ``prefix``: of most keys.
    tensors: number of those in the file: the sum of ``equal`` (what the folder holds equals what the checkpoint is
        converted to, so the checkpoint's bytes are written), ``changed`` (by key; the folder's values), ``turned_back``
        (of the folder, without a checkpoint) and ``from_checkpoint`` (what the folder does not hold, by kind).
    absent: without a checkpoint: number of tensors by kind that the original had.
    partly: tensors that are not as in the original, although nobody changed them.
    unplaced: tensors of the folder that have no place in the original.

    Raises ValueError if the tensors do not add up.
    """

    folder: str
    output: str
    format: Literal["torch", "safetensors"]
    size: int
    basis: Literal["checkpoint", "receipt", "layout"]
    checkpoint: str | None
    source: HubOrigin | None
    repository: RepositoryRecord | None = field(default=None, metadata=optional())
    family: str
    kind: str
    layout: str
    component: str
    wrapper: str | None
    prefix: str
    tensors: int
    equal: int
    changed: tuple[str, ...]
    from_checkpoint: dict[str, int]
    turned_back: int
    absent: dict[str, int]
    partly: tuple[Remark, ...]
    unplaced: tuple[Remark, ...]
    summary: str
    notes: tuple[str, ...]
    next: str

    def __post_init__(self) -> None:
        parts = self.equal + len(self.changed) + sum(self.from_checkpoint.values()) + self.turned_back
        if parts != self.tensors:
            raise ValueError(f"{self.tensors} tensors are not the {parts} that are accounted for")
