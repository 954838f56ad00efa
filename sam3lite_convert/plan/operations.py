"""The operations that turn source tensors into targets, one class each, forwards and backwards.

The tables name an operation. The planner takes the targets' shapes and slices from it, the writer their bytes,
``verify`` the inverse, the receipt what is lost, and the generator of small checkpoints the source's shape. To add an
operation, write a class here, list it in ``OPERATIONS``, and name it in a table.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from sam3lite_convert.checkpoint import dtypes
from sam3lite_convert.checkpoint.index import StoredTensor, joined, zeros
from sam3lite_convert.plan.architecture import has_class_row

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Slice:
    """The range of a source that one target holds, in elements of the C-contiguous source.

    begin: index of its first element.
    held: its shape in the source.
    shape: the target's shape.
    label: which part of the source it is (q, k or v); None if there is only one part.
    """

    begin: int
    held: Shape
    shape: Shape
    label: str | None = None

    @property
    def numel(self) -> int:
        return math.prod(self.held)


@dataclass(frozen=True)
class Lost:
    """The part of a source that no target holds, although the source is not dropped.

    kind: its key under ``lost`` in the receipt.
    rows: the number of lost rows.
    numel: the number of elements in these rows.
    """

    kind: str
    rows: int
    numel: int


@dataclass(frozen=True)
class Operation(ABC):
    """One operation on one source tensor, or on several that are read as one.

    name: its name in the tables and in records.
    about: what is written, and why it differs from the source, in words.
    joins: whether it makes one target of several sources, whose bytes then follow each other in the order of the rule's
        patterns; the planner joins them, and the operation sees one source.
    labels: one entry per target, in the order in which a rule lists them: the name of the part, or None.
    needs_reason: whether a rule with this operation must give a reason.
    copies: whether each target holds the whole source, so that one of them tells it.
    verbatim: whether a target's bytes are those of its slice in the same order, so that they can be streamed and copied
        by the kernel. An operation that is not verbatim overrides ``forward`` and ``backward``.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    labels: ClassVar[tuple[str | None, ...]] = (None,)
    needs_reason: ClassVar[bool] = False
    verbatim: ClassVar[bool] = True
    joins: ClassVar[bool] = False
    copies: ClassVar[bool] = False

    @abstractmethod
    def slices(self, shape: Shape) -> tuple[Slice, ...]:
        """The slice of each target, for a source of this shape, in the order of ``labels``.

        Raises ValueError, saying why, if the shape does not allow the operation.
        """

    @abstractmethod
    def source_shape(self, shapes: Sequence[Shape]) -> Shape:
        """The shape of the source whose targets have these shapes, in the order of ``labels``."""

    def forward(self, data: bytes, part: Slice, dtype: str) -> bytes:
        """The target's bytes, from the slice's bytes in the source. Both are of ``dtype``: no cast is made."""
        return data

    def backward(self, data: bytes, part: Slice, dtype: str) -> bytes:
        """The slice's bytes in the source, from the target's bytes: the inverse of ``forward``."""
        return data

    def turned_back(self, keys: Sequence[str], targets: Sequence[StoredTensor]) -> tuple[StoredTensor, ...]:
        """The sources of these targets, which are not read: the inverse of the operation, on places in a file.

        keys: of the sources, several only if it joins. targets: in the order of ``labels``.
        Raises ValueError, saying why, if the targets do not allow it.
        """
        return tuple(replace(targets[0], key=key) for key in keys)

    def lost(self, shape: Shape) -> Lost | None:
        """The part of a source of this shape that no target holds; None if the targets hold all of it."""
        return None

    def cut(self, positions: int) -> Operation:
        """The operation for a text position table that is cut to its first ``positions`` rows.

        An operation that cannot cut rows returns itself; the planner then reports the target's shape as wrong.
        """
        return self


@dataclass(frozen=True)
class Keep(Operation):
    """Keeps the bytes; of a text position table only the first ``positions`` rows, unless that is None."""

    name = "keep"
    about = "the values as they are; of a text position table that --context cuts, the first rows"
    positions: int | None = None

    def slices(self, shape: Shape) -> tuple[Slice, ...]:
        kept = shape if self.positions is None else with_positions(shape, self.positions)
        return (Slice(0, kept, kept),)

    def source_shape(self, shapes: Sequence[Shape]) -> Shape:
        """The target's shape: after a cut it does not show how many positions the source had."""
        return shapes[0]

    def lost(self, shape: Shape) -> Lost | None:
        numel = math.prod(shape) - self.slices(shape)[0].numel
        if self.positions is None or not numel:
            return None
        return Lost("positions", (positions(shape) or 0) - self.positions, numel)

    def cut(self, positions: int) -> Operation:
        return Keep(positions)


@dataclass(frozen=True)
class Zeros(Operation):
    """Zeros for a target that no source fills: a counter that evaluation does not read, or a level of the neck that
    what reads the layout throws away. No table names it: the planner does."""

    name = "zeros"
    about = "zeros, since no tensor of the checkpoint fills the target and nothing that the model returns needs it"

    def slices(self, shape: Shape) -> tuple[Slice, ...]:
        return (Slice(0, shape, shape),)

    def source_shape(self, shapes: Sequence[Shape]) -> Shape:
        return shapes[0]


@dataclass(frozen=True)
class Split(Operation):
    """Splits fused attention rows: the first third is q, the second k, the last v."""

    name = "split"
    about = (
        "q, k and v, one after another in the rows of the source, as three tensors, which is how the layout has them"
    )
    labels = ("q", "k", "v")

    def slices(self, shape: Shape) -> tuple[Slice, ...]:
        if not shape or shape[0] % len(self.labels):
            raise ValueError("q, k and v cannot be split if the number of rows is not a multiple of three")
        rows = (shape[0] // len(self.labels), *shape[1:])
        return tuple(Slice(n * math.prod(rows), rows, rows, label) for n, label in enumerate(self.labels))

    def source_shape(self, shapes: Sequence[Shape]) -> Shape:
        return (sum(s[0] for s in shapes), *shapes[0][1:])

    def turned_back(self, keys: Sequence[str], targets: Sequence[StoredTensor]) -> tuple[StoredTensor, ...]:
        shapes = [target.shape for target in targets]
        if not shapes[0] or len(set(shapes)) != 1:
            raise ValueError("q, k and v are not of one shape")
        return (joined(keys[0], self.source_shape(shapes), targets),)


@dataclass(frozen=True)
class Join(Operation):
    """Puts the rows of several sources (dimension 0) one after another into one target, in the order of the rule."""

    name = "join"
    about = "the rows of several tensors one after another, since the layout has them in one"
    joins = True

    def slices(self, shape: Shape) -> tuple[Slice, ...]:
        """The one slice, for sources that make a tensor of this shape together."""
        return (Slice(0, shape, shape),)

    def source_shape(self, shapes: Sequence[Shape]) -> Shape:
        """The shape of all sources together."""
        return shapes[0]

    def turned_back(self, keys: Sequence[str], targets: Sequence[StoredTensor]) -> tuple[StoredTensor, ...]:
        (target,) = targets
        shape = joined_rows(target.shape, len(keys))
        step = shape[0] * target.stride[0] * dtypes.itemsize(target.dtype)
        return tuple(
            replace(target, key=key, shape=shape, offset=target.offset + n * step) for n, key in enumerate(keys)
        )


def joined_shape(shapes: Sequence[Shape]) -> Shape:
    """The shape of tensors that are put one after another along dimension 0.

    Raises ValueError, saying why, if they do not fit.
    """
    if not all(shapes) or len({shape[1:] for shape in shapes}) != 1:
        raise ValueError("their rows cannot be joined: they have no rows, or rows of several shapes")
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def joined_rows(shape: Shape, count: int) -> Shape:
    """The shape of each of ``count`` equal sources that make a tensor of this shape. Raises ValueError if none does."""
    if not shape or shape[0] % count:
        raise ValueError(f"its rows cannot come from {count} tensors of one shape")
    return (shape[0] // count, *shape[1:])


@dataclass(frozen=True)
class Duplicate(Operation):
    """Writes the source to two targets, which are not tied in the model that loads them."""

    name = "duplicate"
    about = "the values twice, since the layout has two parameters that are not tied to each other"
    labels = (None, None)
    copies = True

    def slices(self, shape: Shape) -> tuple[Slice, ...]:
        return (Slice(0, shape, shape),) * 2

    def source_shape(self, shapes: Sequence[Shape]) -> Shape:
        return shapes[0]


@dataclass(frozen=True)
class Transpose(Operation):
    """Transposes a matrix."""

    name = "transpose"
    about = "rows and columns swapped, since the layout multiplies by this matrix from the other side"
    verbatim = False

    def slices(self, shape: Shape) -> tuple[Slice, ...]:
        if len(shape) != 2:
            raise ValueError("only a matrix can be transposed")
        return (Slice(0, shape, shape[::-1]),)

    def source_shape(self, shapes: Sequence[Shape]) -> Shape:
        return shapes[0][::-1]

    def forward(self, data: bytes, part: Slice, dtype: str) -> bytes:
        return _transposed(data, part.held, dtype)

    def backward(self, data: bytes, part: Slice, dtype: str) -> bytes:
        return _transposed(data, part.shape, dtype)

    def turned_back(self, keys: Sequence[str], targets: Sequence[StoredTensor]) -> tuple[StoredTensor, ...]:
        target = targets[0]
        if len(target.shape) != 2:
            raise ValueError("only a matrix can be transposed")
        return (replace(target, key=keys[0], shape=target.shape[::-1], stride=target.stride[::-1]),)


@dataclass(frozen=True)
class DropClassRow(Operation):
    """Removes the class row, the first, from a ViT position table (1, rows, width); a table without one is kept."""

    name = "drop_class_row"
    about = "without the first row where the table has one for a class token, which the model does not use"

    def slices(self, shape: Shape) -> tuple[Slice, ...]:
        if len(shape) != 3:
            raise ValueError("a position table has three dimensions")
        if has_class_row(shape[1]):
            grid = (shape[0], shape[1] - 1, shape[2])
            return (Slice(shape[2], grid, grid),)
        if math.isqrt(shape[1]) ** 2 != shape[1]:
            raise ValueError("its rows are not a square grid, with or without a class position")
        return (Slice(0, shape, shape),)

    def source_shape(self, shapes: Sequence[Shape]) -> Shape:
        """The shape with a class row, as in released checkpoints."""
        first, rows, width = shapes[0]
        return (first, rows + 1, width)

    def turned_back(self, keys: Sequence[str], targets: Sequence[StoredTensor]) -> tuple[StoredTensor, ...]:
        """The table with a class row of zeros, which the original's code needs to be there and does not use."""
        target = targets[0]
        if len(target.shape) != 3 or target.shape[0] != 1 or math.isqrt(target.shape[1]) ** 2 != target.shape[1]:
            raise ValueError("it is no table of a square grid of positions without a class row")
        row = zeros(keys[0], target.dtype, (1, 1, target.shape[2]))
        return (joined(keys[0], self.source_shape([target.shape]), (row, target)),)

    def lost(self, shape: Shape) -> Lost | None:
        return Lost("class_row", 1, shape[0] * shape[2]) if has_class_row(shape[1]) else None


@dataclass(frozen=True)
class Drop(Operation):
    """Drops the tensor: it has no target. The rule's reason is shown and kept in the receipt."""

    name = "drop"
    about = "not written"
    labels = ()
    needs_reason = True

    def slices(self, shape: Shape) -> tuple[Slice, ...]:
        return ()

    def source_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Raises ValueError: without a target the shape is unknown."""
        raise ValueError("a dropped tensor has no target that shows its shape")


OPERATIONS: dict[str, Operation] = {
    o.name: o for o in (Keep(), Split(), Join(), Duplicate(), Transpose(), DropClassRow(), Drop())
}

# The axis of the positions, by the number of dimensions of a text position table: MobileCLIP's is
# (1, 1, positions, width), CLIP's (positions, width).
_POSITION_AXES = {4: 2, 2: 0}


def positions(shape: Shape) -> int | None:
    """The rows of a text position table of this shape; None if it is not the shape of a position table."""
    axis = _POSITION_AXES.get(len(shape))
    return None if axis is None else shape[axis]


def with_positions(shape: Shape, count: int) -> Shape:
    """The shape of a text position table with another number of rows.

    Raises ValueError if ``shape`` is not the shape of a position table.
    """
    axis = _POSITION_AXES.get(len(shape))
    if axis is None:
        raise ValueError("a text position table has four dimensions, or two")
    return (*shape[:axis], count, *shape[axis + 1 :])


def _transposed(data: bytes, shape: Shape, dtype: str) -> bytes:
    """The bytes of a matrix of this shape (rows, columns), transposed."""
    import numpy as np  # here, so that a conversion is hashing before numpy is loaded

    elements = np.frombuffer(data, dtype=f"V{dtypes.itemsize(dtype)}")
    return np.ascontiguousarray(elements.reshape(shape).T).tobytes()
