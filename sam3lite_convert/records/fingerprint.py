"""fingerprint.json, and what comes of comparing a port with one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sam3lite_convert.records.record import Document, Record
from sam3lite_convert.records.shared import ArchitectureRecord

FingerprintVerdict = Literal["agrees", "differs"]


@dataclass(frozen=True, kw_only=True)
class FingerprintTap(Record):
    """One tap of a fingerprint, computed in float64 and given with 9 digits.

    shape: of the whole activation, (batch, sequence, width) or (batch, width).
    l2: its Euclidean norm.
    max_abs: its largest absolute value.
    values: at the positions of this shape, in that order.
    floor: max abs diff that rounding to float32 makes, rounded up to a power of two.
    floor_l2: norm of that difference, rounded up likewise.
    """

    name: str
    shape: tuple[int, ...]
    l2: float
    max_abs: float
    values: tuple[float, ...]
    floor: float
    floor_l2: float


@dataclass(frozen=True, kw_only=True)
class FingerprintSource(Record):
    """The checkpoint that was run. ``size`` in bytes.

    sha256: null if only ranges of a file on the Hub were read.
    """

    name: str
    size: int
    sha256: str | None


@dataclass(frozen=True, kw_only=True)
class Fingerprint(Document):
    """What the original text encoder computes with a checkpoint's weights, in a few numbers: enough to judge a port
    without the checkpoint.

    about: how to use it, in words.
    rows: what each row of ``ids`` is.
    ids: (batch, sequence); run them without an attention mask.
    tolerance: a value is right if it is within ``tolerance`` x ``floor`` of the one here; a norm, of ``floor_l2``.
    positions: by shape, joined with "x": indices into the flattened activation, the last dimension running fastest.
    not_read: text tensors of the file that no module of the reference reads.
    """

    about: str
    source: FingerprintSource
    architecture: ArchitectureRecord
    rows: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    tolerance: float
    positions: dict[str, tuple[int, ...]]
    taps: tuple[FingerprintTap, ...]
    not_read: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FingerprintWritten(Document):
    """A fingerprint that was written. ``size`` in bytes.

    output: the file.
    ids: what a port has to run, (batch, sequence).
    next: the command that judges a port.
    """

    checkpoint: str
    output: str
    size: int
    variant: str
    ids: tuple[tuple[int, ...], ...]
    taps: tuple[str, ...]
    next: str


@dataclass(frozen=True, kw_only=True)
class FingerprintCheck(Record):
    """A port at one tap of a fingerprint.

    max_abs_diff: at the positions; null if the shape is another.
    l2: the port's norm.
    l2_diff: from the fingerprint's.
    tolerance: largest ``max_abs_diff`` that agrees.
    l2_tolerance: largest ``l2_diff`` that agrees.
    why: what is off, null if it agrees.
    """

    name: str
    shape: tuple[int, ...]
    max_abs_diff: float | None
    l2: float
    l2_diff: float
    tolerance: float
    l2_tolerance: float
    agrees: bool
    why: str | None


@dataclass(frozen=True, kw_only=True)
class FingerprintDocument(Document):
    """A port compared with a fingerprint.

    candidate: its name.
    first_off: the first tap that does not agree.
    not_given: taps of the fingerprint that the port's file does not hold.
    summary: the verdict in words.
    """

    candidate: str
    fingerprint: str
    source: FingerprintSource
    verdict: FingerprintVerdict
    first_off: str | None
    taps: tuple[FingerprintCheck, ...]
    not_given: tuple[str, ...]
    notes: tuple[str, ...]
    summary: str


@dataclass(frozen=True, kw_only=True)
class ReleasedTap(Record):
    """One tap beside what was recorded of the released weights.

    max_abs_diff: at the recorded positions.
    l2_diff: from the recorded norm.
    tolerance: largest ``max_abs_diff`` that agrees.
    """

    name: str
    max_abs_diff: float
    l2_diff: float
    tolerance: float
    agrees: bool


@dataclass(frozen=True, kw_only=True)
class ReleasedCheck(Record):
    """The reference on this file beside what the original code computed on the released weights.

    variant: the released model, as the record names it.
    file: the released file.
    recorded_by: where the record comes from.
    first_off: the first tap that does not agree.
    summary: the outcome in words.
    request: what the reader is asked to do with it.
    """

    variant: str
    file: str
    recorded_by: str
    agrees: bool
    first_off: str | None
    taps: tuple[ReleasedTap, ...]
    summary: str
    request: str
