"""What several commands return."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from sam3lite_convert.records.record import Document, JsonValue, Record, optional


@dataclass(frozen=True, kw_only=True)
class Counts(Record):
    """Source tensors in all, mapped and dropped (they add up), and target tensors.

    filled: target tensors that no source fills and that hold zeros; left out if there are none.

    Raises ValueError if they do not add up.
    """

    source: int
    mapped: int
    dropped: int
    target: int
    filled: int | None = field(default=None, metadata=optional())

    def __post_init__(self) -> None:
        if self.source != self.mapped + self.dropped:
            raise ValueError(f"{self.source} source tensors are not {self.mapped} mapped + {self.dropped} dropped")


@dataclass(frozen=True, kw_only=True)
class ComponentRecord(Record):
    """One component of a checkpoint: its tensors and parameters, and what the plan does with them.

    dropped: number of tensors by kind.
    """

    keys: int
    parameters: int
    mapped: int
    dropped: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class DroppedKind(Record):
    """One kind of dropped tensors: how many there are, and why."""

    kind: str
    tensors: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Accounting(Record):
    """What becomes of every tensor, by component. ``total`` is the sum of the components.

    Raises ValueError if ``total`` is not that sum.
    """

    components: dict[str, ComponentRecord]
    total: ComponentRecord
    dropped_kinds: tuple[DroppedKind, ...]

    def __post_init__(self) -> None:
        parts = self.components.values()
        for name in ("keys", "parameters", "mapped"):
            if sum(getattr(part, name) for part in parts) != getattr(self.total, name):
                raise ValueError(f"the components' {name} do not add up to the total")
        dropped = sum((Counter(part.dropped) for part in parts), Counter[str]())
        if dropped != Counter(self.total.dropped):
            raise ValueError("the components' dropped tensors do not add up to the total")


@dataclass(frozen=True, kw_only=True)
class HubOrigin(Record):
    """The file on the Hub that a checkpoint came from.

    etag: SHA-256 of a large file, git's blob id of a small one; null if the cache does not tell. ``size`` in bytes.
    """

    repo: str
    file: str
    commit: str
    etag: str | None
    size: int


@dataclass(frozen=True, kw_only=True)
class Fetched(Record):
    """How much of a file on the Hub was read by range requests. ``bytes`` and ``of`` (the whole file) in bytes."""

    bytes: int
    requests: int
    of: int


ContextOrigin = Literal["meta", "name", "option", "unknown"]


@dataclass(frozen=True, kw_only=True)
class ContextRecord(Record):
    """The context that the model is called with, beside the rows of its position table.

    called: in tokens.
    rows: of the checkpoint's text position table.
    origin: what states ``called``: the checkpoint's meta, its name, or --context; unknown: nothing, so it is the rows.
    """

    called: int
    rows: int
    origin: ContextOrigin


@dataclass(frozen=True, kw_only=True)
class ArchitectureRecord(Record):
    """What the shapes say the model is.

    context_length: the context that the model is called with.

    num_hidden_layers: all text blocks.
    projection_dim: width of the pooled projection.
    output_dim: width of what the detector reads.
    detector: sizes of the detector's other components.
    tracker: sizes of the video tracker.
    assumed: what weights cannot tell, with the value taken and where it comes from.
    """

    variant: str
    model_name: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    context_length: int
    vocab_size: int
    projection_dim: int
    output_dim: int
    causal_masking: bool
    repmixer_kernel_size: int | None = field(default=None, metadata=optional())
    detector: dict[str, JsonValue] | None = field(default=None, metadata=optional())
    tracker: dict[str, JsonValue] | None = field(default=None, metadata=optional())
    assumed: dict[str, str] | None = field(default=None, metadata=optional())


@dataclass(frozen=True, kw_only=True)
class FileFacts(Record):
    """A checkpoint file and what its index says.

    checkpoint: as the user named it.
    option: what to type to name it again.
    source: where on the Hub it came from, null for a local file.
    fetched: null if all of the file is here. ``size`` in bytes, of shards with that of their index.
    shards: number of files that hold the tensors; 1 if it is no index of shards.
    format: zip, legacy or safetensors.
    wrapper: the entry that holds the state dict, null for a bare one.
    left: number of tensors in other entries of the file, by path.
    layout: the layout in whose names the file is, null for the original's. Its tensors are taken under the original's,
        of which ``prefix`` and all counts are.
    prefix: what stands before most keys.
    taken_off: number of keys by wrapper, or prefix of --strip-prefix, that was taken off them.
    dtypes: number of tensors by dtype.
    text_parameters: parameters of the text encoder.
    sam3_text_parameters: those of SAM3's own.
    """

    checkpoint: str
    option: str
    source: HubOrigin | None
    fetched: Fetched | None
    size: int
    shards: int
    format: str
    wrapper: str | None
    left: dict[str, int]
    layout: str | None
    prefix: str
    taken_off: dict[str, int]
    dtypes: dict[str, int]
    text_parameters: int
    sam3_text_parameters: int


@dataclass(frozen=True, kw_only=True)
class ErrorDetails(Record):
    """What failed: ``code`` is stable and short, ``message`` is for people, ``details`` depend on the code."""

    code: str
    message: str
    details: JsonValue


@dataclass(frozen=True, kw_only=True)
class ErrorDocument(Document):
    """What a command prints under --json if it failed."""

    error: ErrorDetails


@dataclass(frozen=True, kw_only=True)
class PageFacts(Record):
    """What a page shows beside its command's result.

    accounting: of the plan, null without one.
    counts: of the plan, null without one.
    receipt: the folder's, without its tensors.
    versions: of packages; null for one that is not installed.
    command: as it was typed.
    made: the date.
    """

    accounting: Accounting | None
    counts: Counts | None
    receipt: dict[str, JsonValue] | None
    versions: dict[str, str | None]
    command: str
    made: str


def refuses(verdict: str | None, not_read_allowed: bool) -> bool:
    """Whether a verdict on the weights means that they did not pass."""
    return verdict == "differs" or (verdict == "incomplete" and not not_read_allowed)
