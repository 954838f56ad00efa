"""conversion.json, and what a conversion loses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sam3lite_convert.records.export import GraphLoss
from sam3lite_convert.records.record import Document, JsonValue, Record, optional
from sam3lite_convert.records.shared import ArchitectureRecord, ContextRecord, Counts

LoaderName = Literal["transformers", "packed_model", "packed_encoder", "none"]
LibraryName = Literal["transformers"]


@dataclass(frozen=True, kw_only=True)
class LostTensors(Record):
    """Dropped tensors: how many, their size in bytes, and how many of each kind."""

    tensors: int
    bytes: int
    by_kind: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class LostRows(Record):
    """Rows of one tensor that the target does not hold.

    bytes: their size.
    """

    tensor: str
    rows: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Overflow(Record):
    """Values of one tensor that do not fit into the dtype, and the largest of them."""

    values: int
    largest: float


@dataclass(frozen=True, kw_only=True)
class LostByCast(Record):
    """What a cast lost.

    overflows: by target key.
    """

    dtype: str | None
    tensors: int
    changed_values: int
    overflowed_values: int
    max_abs_error: float
    overflows: dict[str, Overflow] | None = field(default=None, metadata=optional())


@dataclass(frozen=True, kw_only=True)
class Losses(Record):
    """What cannot be turned back, by kind; a kind that does not occur is left out."""

    dropped: LostTensors | None = field(default=None, metadata=optional())
    class_row: LostRows | None = field(default=None, metadata=optional())
    positions: LostRows | None = field(default=None, metadata=optional())
    cast: LostByCast | None = field(default=None, metadata=optional())


@dataclass(frozen=True, kw_only=True)
class NonFinite(Record):
    """NaN and infinite values of one tensor."""

    nan: int
    infinite: int


@dataclass(frozen=True, kw_only=True)
class SourceRecord(Record):
    """The file that was converted, or the index of the shards that were. ``size`` in bytes, of all of them.

    wrapper: the entry that holds the state dict. ``left``: number of tensors in other entries, by path. ``taken_off``:
        number of keys by wrapper, or prefix of --strip-prefix, that was taken off them.
    layout: the layout in whose names the file is, absent for the original's. Its tensors were taken under those.
    files: of shards alone, SHA-256 of the index and of every shard, by name; null if only ranges were read.
    sha256: null if only ranges of a file on the Hub were read. Of shards, that of the lines "<sha256>  <name>" of
        ``files``, sorted by name, as sha256sum prints them. ``repo``, ``file``, ``commit``, ``etag`` and ``licence``
        (fields of the repository's card): of a file on the Hub alone.
    """

    name: str
    size: int
    sha256: str | None
    files: dict[str, str] | None = field(default=None, metadata=optional())
    format: str
    wrapper: str | None
    left: dict[str, int] | None = field(default=None, metadata=optional())
    layout: str | None = field(default=None, metadata=optional())
    prefix: str
    taken_off: dict[str, int] | None = field(default=None, metadata=optional())
    repo: str | None = field(default=None, metadata=optional())
    file: str | None = field(default=None, metadata=optional())
    commit: str | None = field(default=None, metadata=optional())
    etag: str | None = field(default=None, metadata=optional())
    licence: dict[str, JsonValue] | None = field(default=None, metadata=optional())


@dataclass(frozen=True, kw_only=True)
class ToolRecord(Record):
    """What converted: name, version, and the SHA-256 over the mapping tables."""

    name: str
    version: str
    mappings_sha256: str


@dataclass(frozen=True, kw_only=True)
class OptionsRecord(Record):
    """Options of a conversion that the receipt does not hold elsewhere. ``max_shard_size`` in bytes.

    state_dict_key: path of the entry. ``drop``: reason by pattern.
    """

    dtype: str | None
    context: int | None
    causal: bool
    max_shard_size: int | None
    state_dict_key: str | None = None
    strip_prefix: tuple[str, ...] = ()
    drop: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MappedTensor(Record):
    """The source and the operation of one target tensor.

    source: its key; of several that were joined, the first.
    sources: the keys of those that were joined, in the order of their rows.
    part: q, k or v of a split.
    """

    source: str
    sources: tuple[str, ...] | None = field(default=None, metadata=optional())
    operation: str
    part: str | None = field(default=None, metadata=optional())
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class TokenizerRecord(Record):
    """Where the tokenizer came from: folder or repository, commit, and the SHA-256 of each file."""

    source: str
    commit: str | None
    files: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class LicenceFile(Record):
    """A licence file of the repository that the source came from.

    path: in that repository. commit: of the repository, from which it was taken.
    name: in this folder; null if it is not there. why: the reason, null if it is there.
    blob_id: git's id of its content as it was written, null if it is not there.
    """

    path: str
    commit: str
    name: str | None
    why: str | None
    blob_id: str | None


@dataclass(frozen=True, kw_only=True)
class TapSummary(Record):
    """One row of the parity table of a model card."""

    name: str
    max_abs_diff: float
    isolated_max_abs_diff: float
    relative_l2: float


@dataclass(frozen=True, kw_only=True)
class ParitySummary(Record):
    """What the receipt keeps of a parity run.

    inputs: in words.
    not_read_allowed: --allow-not-read was given.
    """

    verdict: str
    reference: str
    candidate_encoder: str
    attention: str
    dtype: str
    tolerance: float
    max_abs_diff: float
    inputs: str
    layers: tuple[TapSummary, ...]
    not_read_allowed: bool = False


@dataclass(frozen=True, kw_only=True)
class Receipt(Document):
    """conversion.json: what was done, enough to redo it and to check it.

    family: of checkpoints, for people.
    kind: what the checkpoint is, in words.
    reader: what reads the layout, in words.
    loader: what loads the folder, as the layout's table names it.
    library: the library that the loader belongs to, null for our own or none.
    own_tables: whether mapping tables of the user's took part.
    files: names of the tensor files.
    licences: licence files of the source's repository; left out if none were looked for, or one could not be fetched.
    beside: SHA-256 by name of the other files.
    proven: SHA-256 by name of the tensor files, as a verification found them equal to the source; left out if there was
        none.
    graph_parity: what the graph of the text encoder computes, beside the original; left out if it was not run.
    graph_losses: of quantised graphs, by name, as they were measured when they were written; left out if there is none.
    nonfinite: by source key.
    tensors: by target key.
    dropped: reason by source key.
    not_read: dropped keys of the text encoder; the architecture that is known here has no place for them.
    model_id: the repository that the card names.
    card_blob_id: git's id of the card as it was written.
    edited_card_blob_id: of one that somebody edited in the folder.
    """

    tool: ToolRecord
    source: SourceRecord
    layout: str
    family: str
    kind: str = field(default="", metadata=optional())
    reader: str
    loader: LoaderName
    library: LibraryName | None
    own_tables: bool
    component: str
    dtype: str
    options: OptionsRecord
    architecture: ArchitectureRecord
    context: ContextRecord
    text_parameters: int
    counts: Counts
    files: tuple[str, ...]
    lost: Losses
    notes: tuple[str, ...]
    nonfinite: dict[str, NonFinite]
    model_id: str | None
    tokenizer: TokenizerRecord | None = field(default=None, metadata=optional())
    licences: tuple[LicenceFile, ...] | None = field(default=None, metadata=optional())
    parity: ParitySummary | None = field(default=None, metadata=optional())
    graph_parity: ParitySummary | None = field(default=None, metadata=optional())
    graph_losses: dict[str, GraphLoss] | None = field(default=None, metadata=optional())
    beside: dict[str, str] = field(default_factory=dict)
    proven: dict[str, str] | None = field(default=None, metadata=optional())
    card_blob_id: str | None = field(default=None, metadata=optional())
    edited_card_blob_id: str | None = field(default=None, metadata=optional())
    tensors: dict[str, MappedTensor]
    dropped: dict[str, str]
    not_read: tuple[str, ...] = ()
