"""What ``diff`` returns."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from sam3lite_convert.records.receipt import NonFinite
from sam3lite_convert.records.record import Document, Record, flat
from sam3lite_convert.records.shared import FileFacts

DiffStatus = Literal["equal", "equal_up_to_cast", "cut", "changed", "integers_changed", "reshaped"]
DiffVerdict = Literal["equal", "equal_up_to_cast", "shared_equal", "changed", "nothing_shared"]


@dataclass(frozen=True, kw_only=True)
class DiffCounts(Record):
    """Numbers of tensors under canonical names: of each side, and what became of them. They add up.

    a, b: that the side holds; two names of one tensor count once.
    equal: equal to the bit; NaN at the same place on both sides counts as equal.
    equal_up_to_cast: of two dtypes, equal after the cast of one side to the other's.
    cut: equal, also up to a cast, in the rows that both hold: the longer table begins or ends with the shorter one.
    changed: of one shape and other values, floating or complex.
    integers_changed: the same of integers, as the counters of BatchNorm (num_batches_tracked).
    reshaped: of two shapes.

    Raises ValueError if they do not add up.
    """

    a: int
    b: int
    equal: int = 0
    equal_up_to_cast: int = 0
    cut: int = 0
    changed: int = 0
    integers_changed: int = 0
    reshaped: int = 0
    only_in_a: int = 0
    only_in_b: int = 0

    def __post_init__(self) -> None:
        for name, side, alone in (("A", self.a, self.only_in_a), ("B", self.b, self.only_in_b)):
            if side != self.shared + alone:
                raise ValueError(f"{side} tensors of {name} are not {self.shared} that both hold + {alone}")

    @property
    def shared(self) -> int:
        """Tensors that both sides hold."""
        same = self.equal + self.equal_up_to_cast + self.cut
        return same + self.changed + self.integers_changed + self.reshaped

    def __add__(self, other: DiffCounts) -> DiffCounts:
        names = [item.name for item in fields(self)]
        return DiffCounts(**{name: getattr(self, name) + getattr(other, name) for name in names})


@dataclass(frozen=True, kw_only=True)
class TensorDiff(Record):
    """One tensor that both sides hold and that is not equal to the bit.

    name: canonical, that of a released file without "detector.".
    keys_a, keys_b: its keys in the files; several where a file holds it in parts, as q, k and v that stand apart.
    layer: the part of the component that it belongs to, such as layers.0; its name if it belongs to none.
    cast: the dtype of the cast up to which it is equal, or cut; null otherwise.
    changed_values: elements that differ; null if they were not compared. Of tables of different numbers of rows, these
        and the following are over the rows that ``words`` names.
    changed_rows: rows that differ along the first dimension that has several, of ``rows``; null if not compared.
    parts: of fused rows of q, k and v, those that changed; null if the tensor is not fused, or all of them changed.
    relative_l2: norm of B - A over the norm of A, over the elements that are finite in both; null if not compared, or
        if A is zero there and B is not.
    cosine: of the angle between A and B; null if not compared, or if one of them is zero.
    not_finite_a, not_finite_b: NaN and infinity in each.
    words: what is different, in words.
    """

    name: str
    keys_a: tuple[str, ...]
    keys_b: tuple[str, ...]
    component: str
    layer: str
    status: DiffStatus
    dtype_a: str
    dtype_b: str
    shape_a: tuple[int, ...]
    shape_b: tuple[int, ...]
    cast: str | None
    changed_values: int | None
    rows: int | None
    changed_rows: int | None
    parts: tuple[str, ...] | None
    relative_l2: float | None
    max_abs_diff: float | None
    cosine: float | None
    not_finite_a: NonFinite | None
    not_finite_b: NonFinite | None
    words: str


@dataclass(frozen=True, kw_only=True)
class LayerDiff(Record):
    """One layer of a component, or another part of it.

    tensors: that both sides hold.
    changed: of these, the floating and complex ones with other values or another shape.
    relative_l2: of all its values that were compared, as of one vector; null if A is zero and B is not.
    """

    name: str
    tensors: int
    changed: int
    relative_l2: float | None


@dataclass(frozen=True, kw_only=True)
class LayerRun(Record):
    """Layers of a component that follow each other and in which the same tensors changed, in one row.

    name: a pattern of their names.
    what: which of their tensors changed, in words; empty if none did.
    """

    name: str
    layers: int
    tensors: int
    changed: int
    relative_l2: float | None
    what: str


@dataclass(frozen=True, kw_only=True)
class ComponentDiff(Record):
    """One component of the model.

    relative_l2: of all floating and complex values that were compared, as of one vector; null if A is zero and B is
        not.
    largest: name of the changed tensor with the largest relative L2; null if none changed.
    largest_relative_l2: of that tensor; null if none changed, or if A is zero there.
    layers: every layer that both sides hold tensors of.
    runs: the same in rows, with equal layers together; none if nothing of the component changed.
    """

    counts: DiffCounts = field(metadata=flat())
    relative_l2: float | None
    largest: str | None
    largest_relative_l2: float | None
    layers: tuple[LayerDiff, ...]
    runs: tuple[LayerRun, ...]


@dataclass(frozen=True, kw_only=True)
class OnlyIn(Record):
    """Tensors of one kind that only one side holds.

    side: a or b.
    kind: what a conversion calls them where it drops them, otherwise the part of the component.
    names: canonical.
    """

    side: Literal["a", "b"]
    component: str
    kind: str
    tensors: int
    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DiffDocument(Document):
    """Two checkpoints, tensor by tensor under canonical names.

    kind_a, kind_b: what each is, in words.
    sha256_a, sha256_b: of the files; of an index and its shards, that of their list.
    verdict: equal: the same tensors, equal to the bit. equal_up_to_cast: the same tensors, some of them cast.
        shared_equal: what both hold is equal, up to a cast or to rows that one side lacks. changed: tensors that both
        hold differ. nothing_shared: no name is in both.
    summary: the counts in words.
    touched: which components changed and where, which did not, and which only one side holds, in words; empty if no
        tensor changed.
    counts: of all components together.
    tensors: every tensor that both hold and that is not equal to the bit, those with the largest relative L2 first.

    Raises ValueError if the components do not add up to ``counts``.
    """

    a: FileFacts
    b: FileFacts
    kind_a: str
    kind_b: str
    sha256_a: str | None
    sha256_b: str | None
    verdict: DiffVerdict
    summary: str
    touched: str
    counts: DiffCounts
    components: dict[str, ComponentDiff]
    only_in: tuple[OnlyIn, ...]
    tensors: tuple[TensorDiff, ...]
    notes: tuple[str, ...]

    def __post_init__(self) -> None:
        total = sum((part.counts for part in self.components.values()), DiffCounts(a=0, b=0))
        if total != self.counts:
            raise ValueError(f"the components' counts add up to {total}, not to {self.counts}")
        if sum(kind.tensors for kind in self.only_in) != self.counts.only_in_a + self.counts.only_in_b:
            raise ValueError("the kinds of tensors that only one side holds do not add up")
        if len(self.tensors) != self.counts.shared - self.counts.equal:
            raise ValueError("the tensors that are not equal are not as many as are counted")
