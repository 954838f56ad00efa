"""Proves that a converted folder matches its source: every tensor is converted back and compared bit for bit.

Works on folders written by this tool and by others; layout, component, dtype and context are recognised from the
folder's own keys and tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from sam3lite_convert.checkpoint import dtypes
from sam3lite_convert.checkpoint.hashing import SourceHash
from sam3lite_convert.checkpoint.index import StoredTensor
from sam3lite_convert.checkpoint.reader import open_file, open_source
from sam3lite_convert.checkpoint.tensor_reader import CHUNK, ranges, read_exactly, read_tensor
from sam3lite_convert.convert.folder import Folder
from sam3lite_convert.convert.receipt import RECEIPT_NAME, losses
from sam3lite_convert.convert.tensor_bytes import CastLoss, cast, source_bytes, source_chunks
from sam3lite_convert.plan.plan import Mapped, Plan
from sam3lite_convert.plan.twins import check_twins
from sam3lite_convert.records.receipt import Losses
from sam3lite_convert.records.record import Json
from sam3lite_convert.verify.config_check import check_config
from sam3lite_convert.verify.diagnose import Diagnoser, explain_shape
from sam3lite_convert.workers import Advance

COUNTER = "num_batches_tracked"


@dataclass
class Verification:
    """The outcome; ``commands.verify`` makes a document of it.

    checked: number of tensors whose shape and dtype were compared.
    compared: number of those whose values were compared too.
    mismatched: (key, why it is wrong).
    missing: keys that the plan writes and the folder does not hold.
    unexpected: keys that the folder holds and the plan does not write.
    loss: what the cast to the folder's dtype lost.
    """

    plan: Plan
    checked: int = 0
    compared: int = 0
    mismatched: list[tuple[str, str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    loss: CastLoss = field(default_factory=CastLoss)

    @property
    def proven(self) -> bool:
        return not (self.mismatched or self.missing or self.unexpected)

    @property
    def up_to(self) -> str | None:
        """The cast up to which the folder is proven equal, in words; None if there was no cast."""
        return f"the cast to {self.plan.options.dtype}" if self.loss.tensors else None

    @property
    def lost(self) -> Losses:
        """The parts of the source that the folder does not hold."""
        return losses(self.plan, self.loss)


def verify(
    folder: Folder,
    plan: Plan,
    progress: Callable[[str], Advance] | None = None,
    values: Set[str] | None = None,
) -> Verification:
    """Compare every tensor of the folder with the plan's source, and config.json with its sizes.

    values: the keys whose values are compared, where the bytes of the others are not here; None for all.

    Raises Untrusted if the source is damaged or if two names of one of its tensors hold different values.
    """
    advance = progress or (lambda what: lambda n: None)
    out = Verification(plan)
    out.mismatched += [(fault.key, fault.why) for fault in folder.faults]
    out.notes += folder.notes
    wrong: dict[str, bytes] = {}
    with ExitStack() as stack:
        source = stack.enter_context(open_source(plan.checkpoint))
        hashing = stack.enter_context(SourceHash(None if plan.checkpoint.partial else plan.checkpoint.path))
        hashing.check(plan.checkpoint)
        hashing.follow(advance("hash"))
        held = plan if values is None else _only(plan, values)
        check_twins(source, held.twins)
        opened: dict[Path, BinaryIO] = {}
        done = advance("write")
        diagnoser = Diagnoser(held, source)
        for key, piece in plan.mapped.items():
            if key not in folder.tensors:
                if piece.canonical.endswith(COUNTER):
                    out.notes.append(f"{key} is absent; BatchNorm does not read it in evaluation")
                else:
                    out.missing.append(key)
                    if key in folder.elsewhere:
                        place = folder.elsewhere[key]
                        out.mismatched.append((key, f"lies in {place}, which {folder.reader} does not take"))
                continue
            path, found = folder.tensors[key]
            out.checked += 1
            if key not in held.mapped:
                if why := _form_fault(piece, found):
                    out.mismatched.append((key, why))
                continue
            out.compared += 1
            if path not in opened:
                opened[path] = stack.enter_context(open_file(path))
            if piece.canonical.endswith(COUNTER):
                if not _same(source, piece, opened[path], found, None):
                    out.notes.append(f"{key} differs; BatchNorm does not read it in evaluation")
            elif why := _fault(source, piece, opened[path], found, diagnoser, out.loss):
                out.mismatched.append((key, why))
                if found.nbytes <= CHUNK:
                    wrong[key] = read_tensor(opened[path], found)
            done(found.nbytes)
        out.unexpected = sorted(set(folder.tensors) - set(plan.mapped))
        out.mismatched = _name_swaps(out.mismatched, wrong, plan, diagnoser)
        sha256, notes = hashing.result()
        if values is not None and plan.checkpoint.partial:
            notes = []  # on a download of the text tensors; what was read here is the caller's to say
    out.notes += notes
    _check_config(folder, plan, out)
    _check_receipt(folder, sha256, out)
    return out


def tensor_faults(folder: Folder, plan: Plan, keys: Iterable[str]) -> dict[str, str]:
    """What is wrong with these tensors of the folder, by key; correct ones are left out."""
    faults: dict[str, str] = {}
    with open_source(plan.checkpoint) as source:
        diagnoser = Diagnoser(plan, source)
        for key in keys:
            if key not in folder.tensors or plan.mapped[key].canonical.endswith(COUNTER):
                continue
            path, found = folder.tensors[key]
            with open_file(path) as file:
                if why := _fault(source, plan.mapped[key], file, found, diagnoser, None):
                    faults[key] = why
    return faults


def _fault(
    source: BinaryIO, piece: Mapped, file: BinaryIO, found: StoredTensor, diagnoser: Diagnoser, loss: CastLoss | None
) -> str | None:
    """Why a found tensor differs from what the plan writes; None if it does not."""
    if why := _form_fault(piece, found):
        return why
    if _same(source, piece, file, found, loss):
        return None
    return diagnoser.explain(piece, read_tensor(file, found))


def _form_fault(piece: Mapped, found: StoredTensor) -> str | None:
    """What is wrong with a found tensor's shape or dtype; None if nothing is."""
    if found.shape != piece.shape:
        return explain_shape(piece, found.shape)
    if found.dtype != piece.dtype:
        return f"is {found.dtype}; the rest of the folder is {piece.dtype}"
    return None


def _only(plan: Plan, keys: Set[str]) -> Plan:
    """The part of a plan whose bytes are here."""
    mapped = {key: piece for key, piece in plan.mapped.items() if key in keys}
    sources = {piece.source.key for piece in mapped.values()}
    twins = tuple(twin for twin in plan.twins if twin.first.key in sources)
    return replace(plan, mapped=mapped, dropped={}, twins=twins)


def _same(source: BinaryIO, piece: Mapped, file: BinaryIO, found: StoredTensor, loss: CastLoss | None) -> bool:
    """Whether the inverse of the operation gives the source's bytes (cast, if the folder is)."""
    if found.shape != piece.shape or found.dtype != piece.dtype:
        return False
    if loss is not None and piece.casts:
        loss.tensors += 1
    if not (piece.operation.verbatim and piece.source.contiguous and found.contiguous):
        data = piece.operation.backward(read_tensor(file, found), piece.slice, found.dtype)
        original = source_bytes(source, piece)
        return data == (cast(original, piece.source.dtype, piece.dtype, loss) if piece.casts else original)
    width, wide = dtypes.itemsize(found.dtype), dtypes.itemsize(piece.source.dtype)
    # Both sides are read in steps of the same number of elements.
    step = CHUNK // wide
    theirs = ranges(found.offset, found.nbytes, step * width)
    for original, (start, length) in zip(source_chunks(source, piece, step * wide), theirs, strict=True):
        if piece.casts:
            original = cast(original, piece.source.dtype, piece.dtype, loss)
        if original != read_exactly(file, start, length):
            return False
    return True


def _name_swaps(
    mismatched: list[tuple[str, str]], wrong: dict[str, bytes], plan: Plan, diagnoser: Diagnoser
) -> list[tuple[str, str]]:
    """If two wrong tensors hold each other's bytes, say so for both."""
    sizes: dict[int, list[str]] = {}
    for key, data in wrong.items():
        sizes.setdefault(len(data), []).append(key)
    swapped: dict[str, str] = {}
    for keys in sizes.values():
        if len(keys) < 2:
            continue
        expected = {diagnoser.expected(plan.mapped[k]): k for k in keys}
        for key in keys:
            other = expected.get(wrong[key])
            if other and other != key and expected.get(wrong[other]) == key:
                swapped[key] = other
    out = []
    for key, why in mismatched:
        if key in swapped:
            a, b = plan.mapped[key], plan.mapped[swapped[key]]
            parts = f"{a.part} and {b.part} are swapped; " if a.part and b.part and a.source == b.source else ""
            why = f"{parts}swapped with {swapped[key]}: {why}"
        out.append((key, why))
    return out


def _check_config(folder: Folder, plan: Plan, out: Verification) -> None:
    if folder.config is None:
        out.mismatched.append(("config.json", "is missing; no library knows what these weights are"))
        return
    checked = check_config(plan, folder.config)
    out.mismatched += [(f"config.json: {path}", why) for path, why in checked.faults]
    if checked.unjudged:
        out.notes.append("config.json: unknown to this tool, so not checked: " + ", ".join(checked.unjudged))


def _check_receipt(folder: Folder, sha256: str | None, out: Verification) -> None:
    if folder.receipt is None:
        out.notes.append(f"no {RECEIPT_NAME}; another tool wrote this folder")
        return
    source = folder.receipt.get("source")
    # A conversion that read only ranges of the file records the hash that the Hub states.
    stated = (source.get("sha256") or source.get("etag")) if isinstance(source, dict) else None
    if stated != (sha256 or (out.plan.checkpoint.hub and out.plan.checkpoint.hub.etag)):
        out.notes.append(f"{RECEIPT_NAME} names another source file (SHA-256 {str(stated)[:16]}...)")
    plan = out.plan
    true: Json = {
        "layout": plan.layout.name,
        "component": plan.options.component,
        "dtype": plan.floating_dtype,
        "counts": plan.counts.to_json(),
        "architecture": plan.architecture.record().to_json(),
        "tensors": {key: piece.record().to_json() for key, piece in plan.mapped.items()},
        "dropped": {key: dropped.reason for key, dropped in plan.dropped.items()},
    }
    for name, value in true.items():
        if folder.receipt.get(name) != value:
            out.mismatched.append((f"{RECEIPT_NAME}: {name}", "does not match this conversion of this source"))
