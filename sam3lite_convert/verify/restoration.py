"""A converted folder turned back into the tensors of its checkpoint.

What the folder doesn't hold (dropped tensors, the class row, cut positions, what a cast rounded) comes from the
checkpoint where that is given. Without it the folder's receipt tells the names, and such tensors are absent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from sam3lite_convert.checkpoint import dtypes
from sam3lite_convert.checkpoint.index import Checkpoint, StoredTensor, zeros
from sam3lite_convert.checkpoint.one_file import open_file
from sam3lite_convert.checkpoint.tensor_reader import CHUNK, read_pieces, same_bytes
from sam3lite_convert.convert.assembled import Assembled, Stretch
from sam3lite_convert.convert.folder import Folder
from sam3lite_convert.errors import CannotRun, UnsoundPlan, Untrusted
from sam3lite_convert.plan.architecture import COUNTER
from sam3lite_convert.plan.operations import OPERATIONS, Operation, Slice, Zeros, joined_rows
from sam3lite_convert.plan.plan import Mapped, Plan
from sam3lite_convert.plan.twins import copies_differ, first_of
from sam3lite_convert.plan.unsound import listed, shape_text
from sam3lite_convert.records.receipt import Receipt
from sam3lite_convert.verify.verify import same_values
from sam3lite_convert.workers import Advance

_CLASS_ROW = "its class row is filled with zeros, not restored: the folder does not hold it"


@dataclass
class Restoration:
    """The tensors to write, and what became of them.

    equal: keys of tensors that equal the checkpoint's, up to a cast; what is written is the checkpoint's to the bit.
    changed: keys of tensors that differ from the checkpoint's; what is written is the folder's.
    from_checkpoint: by key the kind of what no tensor of the folder holds, and what is the checkpoint's.
    absent: number of tensors by kind that the checkpoint had and that are not written.
    partly: by key what is not as in the checkpoint, in words.
    unplaced: by key of the folder why a tensor has no place among those of the checkpoint.
    """

    tensors: list[Assembled] = field(default_factory=list)
    equal: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    from_checkpoint: dict[str, str] = field(default_factory=dict)
    absent: dict[str, int] = field(default_factory=dict)
    partly: dict[str, str] = field(default_factory=dict)
    unplaced: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Cover:
    """Elements ``begin`` to ``end`` of a tensor of the checkpoint, and where they are. ``target``: the key of the
    folder; ``same``: whether they are the checkpoint's too."""

    begin: int
    end: int
    stretch: Stretch
    target: str
    same: bool = False


# ---- by the receipt


def misfits(folder: Folder, receipt: Receipt) -> list[str]:
    """Why a folder is no longer what its receipt says: keys that are missing, new or of another shape, in words."""
    found, said = folder.tensors, receipt.tensors
    out = [f"{key} is missing" for key in said if key not in found]
    out += [f"{key} is not in the receipt" for key in found if key not in said]
    return out + [
        f"{key} is {shape_text(found[key][1].shape)}, in the receipt {shape_text(said[key].shape)}"
        for key in found
        if key in said and found[key][1].shape != said[key].shape
    ]


def restoration_by_receipt(folder: Folder, receipt: Receipt) -> Restoration:
    """The tensors of the checkpoint that the folder holds, under their names there.

    Raises Untrusted if two targets of one tensor differ, CannotRun if the receipt names an operation that this
    version doesn't know. The folder has to fit the receipt (``misfits``).
    """
    out = Restoration()
    targets: dict[tuple[str, ...], list[str]] = {}
    for key, said in receipt.tensors.items():
        path, found = folder.tensors[key]
        if said.operation == Zeros.name:
            _check_zero(out, key, path, found)
        else:
            targets.setdefault(said.sources or (said.source,), []).append(key)
    made: dict[str, Assembled] = {}
    for sources, keys in targets.items():
        for tensor in _of_receipt(folder, receipt, sources, keys, out):
            made[tensor.key] = tensor
    kinds = dict(receipt.lost.dropped.by_kind) if receipt.lost.dropped else {}
    for key, reason in receipt.dropped.items():
        first = first_of(reason)
        if first in made:
            made[key] = Assembled(key, made[first].dtype, made[first].shape, made[first].stretches)
            kinds["twin"] = kinds.get("twin", 0) - 1
    out.absent = {kind: count for kind, count in kinds.items() if count > 0}
    out.tensors = [made[key] for key in sorted(made)]
    return out


def _of_receipt(
    folder: Folder, receipt: Receipt, sources: tuple[str, ...], keys: Sequence[str], out: Restoration
) -> Iterator[Assembled]:
    """The tensors ``sources`` of the checkpoint, from those of the folder that were made of them."""
    name = receipt.tensors[keys[0]].operation
    operation = OPERATIONS.get(name)
    if operation is None or len(keys) != len(operation.labels):
        raise CannotRun(f"the receipt names an operation that this version does not know: {name}", "unknown_operation")
    if operation.labels[0] is not None:
        if {receipt.tensors[key].part for key in keys} != set(operation.labels):
            raise Untrusted(
                f"the receipt does not say which part of {sources[0]} each of {listed(keys)} is; convert the "
                "checkpoint again",
                "bad_receipt",
            )
        keys = sorted(keys, key=lambda key: operation.labels.index(receipt.tensors[key].part))
    found = [folder.tensors[key] for key in keys]
    row, cut = receipt.lost.class_row, receipt.lost.positions
    shape = operation.source_shape([tensor.shape for _, tensor in found])
    if name == "drop_class_row" and (row is None or row.tensor not in sources):
        shape = found[0][1].shape  # it had none
    dtype = _widest(tensor.dtype for _, tensor in found)
    parts = operation.slices(shape)
    covers = [
        _Cover(part.begin, part.begin + part.numel, _stretch(path, tensor, operation, part), key)
        for key, (path, tensor), part in zip(keys, found, parts, strict=True)
    ]
    _check_duplicates(covers)
    each = joined_rows(shape, len(sources)) if operation.joins else shape
    for number, source in enumerate(sources):

        def filler(begin: int, end: int, key: str = source) -> Stretch:
            return Stretch(folder.path, zeros(key, dtype, (end - begin,)), 0, end - begin)

        numel = math.prod(each)
        yield Assembled(source, dtype, each, _filled(_within(covers, number * numel, numel), each, filler))
        if row is not None and row.tensor == source:
            out.partly[source] = _CLASS_ROW
        if cut is not None and cut.tensor == source:
            out.partly[source] = f"its last {cut.rows} rows are not restored: the folder does not hold them"


# ---- with the checkpoint


def restoration_with_checkpoint(
    folder: Folder, plan: Plan, source: BinaryIO, advance: Advance = lambda n: None
) -> Restoration:
    """Every tensor of the checkpoint, in its order: with its own bytes where the folder's equal what the plan makes of
    them, else with the folder's values, turned back.

    plan: of the conversion that the folder is. source: the checkpoint, open. advance: called with each number of bytes
    of the folder that was compared.

    Raises UnsoundPlan if the folder lacks tensors, holds others than the plan writes, or ones of another shape;
    Untrusted if two targets of one tensor differ.
    """
    _check_form(folder, plan)
    out = Restoration()
    covers: dict[str, list[_Cover]] = {}
    with ExitStack() as stack:
        opened: dict[Path, BinaryIO] = {}
        for key, piece in plan.mapped.items():
            if key not in folder.tensors:
                continue  # a counter, which is then the checkpoint's
            path, found = folder.tensors[key]
            if path not in opened:
                opened[path] = stack.enter_context(open_file(path))
            if piece.source.absent:
                _check_zero(out, key, path, found)
            else:
                same = _same_sources(source, piece, opened[path], found)
                for own, cover in _covers(piece, _stretch(path, found, piece.operation, piece.slice), same):
                    covers.setdefault(own, []).append(cover)
            advance(found.nbytes)
    checkpoint = plan.checkpoint
    made: dict[str, Assembled] = {}
    for key, tensor in checkpoint.tensors.items():
        if key in covers:
            made[key] = _with_original(checkpoint.path, tensor, covers[key], out)
        elif key not in plan.dropped:  # its counter is not in the folder
            out.from_checkpoint[key] = "counter"
    firsts = {twin.second.key: twin.first.key for twin in plan.twins}
    for key, dropped in plan.dropped.items():
        first = firsts.get(key)
        if first in made and first in out.changed:
            made[key] = Assembled(key, made[first].dtype, made[first].shape, made[first].stretches)
            out.changed.append(key)
        elif first in made:
            out.equal.append(key)
        else:
            out.from_checkpoint[key] = dropped.label
    for key, tensor in checkpoint.tensors.items():
        whole = (Stretch(checkpoint.path, tensor, 0, tensor.numel),)
        out.tensors.append(made.get(key) or Assembled(key, tensor.dtype, tensor.shape, whole))
    return out


def _same_sources(source: BinaryIO, piece: Mapped, file: BinaryIO, found: StoredTensor) -> tuple[bool, ...]:
    """Of each source of a target, whether what the target holds of it is the checkpoint's."""
    same = same_values(source, piece, file, found, None)
    if same or not piece.operation.joins:
        return (same,) * len(piece.sources)
    parts = piece.operation.turned_back([own.key for own in piece.sources], [found])
    return tuple(
        same_values(source, replace(piece, source=own, slice=Slice(0, own.shape, own.shape)), file, part, None)
        for own, part in zip(piece.sources, parts, strict=True)
    )


def _covers(piece: Mapped, stretch: Stretch, same: Sequence[bool]) -> Iterator[tuple[str, _Cover]]:
    """What a target covers of each of its sources, by their keys. ``same``: of each source (``_same_sources``)."""
    begin, base = piece.slice.begin, 0
    whole = _Cover(begin, begin + piece.slice.numel, stretch, piece.key)
    for own, equal in zip(piece.sources, same, strict=True):
        for cover in _within([whole], base, own.numel):
            yield own.key, replace(cover, same=equal)
        base += own.numel


def _with_original(path: Path, original: StoredTensor, covers: list[_Cover], out: Restoration) -> Assembled:
    """One tensor of the checkpoint. ``path``: of the checkpoint."""

    def filler(begin: int, end: int) -> Stretch:
        return Stretch(path, original, begin, end - begin)

    _check_duplicates(covers)
    key = original.key
    if all(cover.same for cover in covers):
        out.equal.append(key)
        return Assembled(key, original.dtype, original.shape, (filler(0, original.numel),))
    out.changed.append(key)
    differing = [cover for cover in covers if not cover.same]
    dtype = _widest(cover.stretch.tensor.dtype for cover in differing)
    if _holds(original.dtype, dtype):
        dtype = original.dtype
    else:
        out.partly[key] = f"is {dtype} as in the folder; in the checkpoint it is {original.dtype}"
    return Assembled(key, dtype, original.shape, _filled(differing, original.shape, filler))


def _check_form(folder: Folder, plan: Plan) -> None:
    """Raises UnsoundPlan if the folder's keys or shapes are not those that the plan writes."""
    held = folder.tensors
    faults = [f"{key} is missing" for key in plan.mapped if key not in held and not key.endswith(COUNTER)]
    faults += [f"{key} is not part of the model" for key in held if key not in plan.mapped]
    faults += [
        f"{key} is {shape_text(held[key][1].shape)}, not {shape_text(piece.shape)}"
        for key, piece in plan.mapped.items()
        if key in held and held[key][1].shape != piece.shape
    ]
    if faults:
        raise UnsoundPlan(
            f"{folder.path}: cannot be turned back: {listed(faults)}. sam3lite verify says more.",
            "not_turned_back",
            {"faults": faults},
        )


# ---- by the layout's tables


def restoration_of_names(folder: Folder, checkpoint: Checkpoint) -> Restoration:
    """The tensors of a folder that is read as a checkpoint under the original's names (``in_original_names``)."""
    out, used = Restoration(), set[str]()
    for key, tensor in checkpoint.tensors.items():
        whole = (Stretch(checkpoint.path, tensor, 0, tensor.numel),)
        out.tensors.append(Assembled(key, tensor.dtype, tensor.shape, whole))
        used |= {part.key for part in tensor.stored}
        if any(part.absent for part in tensor.parts):
            out.partly[key] = _CLASS_ROW
    if (made := checkpoint.turned_back) is not None:
        used |= {key for keys in made.keys.values() for key in keys}
    for key, (path, found) in folder.tensors.items():
        if found.key not in used:
            _check_zero(out, key, path, found)
    return out


# ---- what both need


def _stretch(path: Path, found: StoredTensor, operation: Operation, part: Slice) -> Stretch:
    """The elements of a target in the order of the slice of its source."""
    view = found if operation.verbatim else operation.turned_back([found.key], [found])[0]
    return Stretch(path, view, 0, part.numel)


def _within(covers: Iterable[_Cover], base: int, numel: int) -> list[_Cover]:
    """What is covered of a tensor whose elements are those from ``base`` on of what the covers are of."""
    out = []
    for cover in covers:
        begin, end = max(cover.begin, base), min(cover.end, base + numel)
        if begin < end or begin == end == cover.begin == cover.end:
            stretch = replace(cover.stretch, begin=cover.stretch.begin + begin - cover.begin, numel=end - begin)
            out.append(replace(cover, begin=begin - base, end=end - base, stretch=stretch))
    return out


def _filled(
    covers: Iterable[_Cover], shape: tuple[int, ...], filler: Callable[[int, int], Stretch]
) -> tuple[Stretch, ...]:
    """All elements of a tensor: those that are covered, once, and between them what ``filler`` gives."""
    numel, position, out = math.prod(shape), 0, list[Stretch]()
    for cover in sorted(covers, key=lambda c: c.begin):
        if cover.begin < position:
            continue  # of two equal ones the first
        if cover.begin > position:
            out.append(filler(position, cover.begin))
        out.append(cover.stretch)
        position = cover.end
    if position < numel:
        out.append(filler(position, numel))
    return tuple(out)


def _check_duplicates(covers: Sequence[_Cover]) -> None:
    """Raises Untrusted, with both keys, if two tensors of the folder hold the same elements and are not equal."""
    first: dict[int, _Cover] = {}
    for cover in covers:
        other = first.setdefault(cover.begin, cover)
        if other is cover or (other.same and cover.same):
            continue
        if not _same(other.stretch, cover.stretch):
            raise copies_differ(other.target, cover.target)


def _same(one: Stretch, other: Stretch) -> bool:
    """Whether the tensors of two stretches are equal to the bit."""
    with open_file(one.path) as file, open_file(other.path) as other_file:
        return one.tensor.dtype == other.tensor.dtype and same_bytes(file, one.tensor, other_file, other.tensor)


def _check_zero(out: Restoration, key: str, path: Path, found: StoredTensor) -> None:
    """Notes a tensor that the conversion filled with zeros, and that is not zero any more."""
    with open_file(path) as file:
        zero = not any(map(any, read_pieces(file, found, CHUNK)))
    if not zero:
        out.unplaced[key] = "was filled with zeros by the conversion and is not zero any more; the checkpoint has no "
        out.unplaced[key] += "such tensor"


def _widest(found: Iterable[str]) -> str:
    kinds = list(dict.fromkeys(found))
    return next((dtype for dtype in dtypes.FLOATING if dtype in kinds), kinds[0])


def _holds(wide: str, narrow: str) -> bool:
    """Whether a dtype holds all values of another one exactly."""
    if wide == narrow:
        return True
    floats = dtypes.FLOATING
    return wide in ("float64", "float32") and narrow in floats and floats.index(wide) < floats.index(narrow)
