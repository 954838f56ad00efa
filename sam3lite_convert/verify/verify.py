"""Proves that a converted folder matches its source: every tensor is converted back and compared bit for bit.

Works on folders written by this tool and by others; layout, component, dtype and context are recognised from the
folder's own keys and tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from sam3lite_convert.checkpoint import dtypes
from sam3lite_convert.checkpoint.hashing import SourceHash
from sam3lite_convert.checkpoint.index import StoredTensor
from sam3lite_convert.checkpoint.one_file import open_file
from sam3lite_convert.checkpoint.reader import open_source
from sam3lite_convert.checkpoint.tensor_reader import CHUNK, read_pieces, read_tensor
from sam3lite_convert.convert.folder import Folder
from sam3lite_convert.convert.receipt import RECEIPT_NAME, losses
from sam3lite_convert.convert.side_files import FINGERPRINT_NAME
from sam3lite_convert.convert.tensor_bytes import CastLoss, cast, source_bytes, source_chunks
from sam3lite_convert.convert.write import levels_words
from sam3lite_convert.plan.architecture import COUNTER, Architecture, component_of
from sam3lite_convert.plan.plan import Mapped, Plan
from sam3lite_convert.plan.rotary import check_rotary
from sam3lite_convert.plan.twins import check_twins
from sam3lite_convert.records.receipt import Losses
from sam3lite_convert.records.record import Json, JsonValue
from sam3lite_convert.records.verify import Finding
from sam3lite_convert.verify.config_check import check_config
from sam3lite_convert.verify.diagnose import Cause, Diagnoser, explain_rows, explain_shape, one_row
from sam3lite_convert.verify.findings import Difference, component_of_key, gathered, summary_of
from sam3lite_convert.verify.side_files_check import check_side_files
from sam3lite_convert.workers import Advance

MISSING, UNEXPECTED = "V-MISSING", "V-UNEXPECTED"
_MOST_IN_TABLE = 64 << 20  # bytes of a text position table; one of 77 rows takes some 200 kB
_FILLED = (
    "holds other values than the zeros of a conversion: the checkpoint has no such tensor. The model computes this "
    "level of the neck and throws it away, so detections are the same"
)


@dataclass
class Verification:
    """The outcome; ``commands.verify`` makes a document of it.

    checked: number of tensors whose shape and dtype were compared.
    compared: number of those whose values were compared too.
    equal: number of tensors that equal their source, to the bit or up to the cast.
    differences: what is wrong, by key.
    findings: the same by cause.
    loss: what the cast to the folder's dtype lost.
    named: whether the folder's receipt names this source.
    """

    plan: Plan
    checked: int = 0
    compared: int = 0
    equal: int = 0
    differences: list[Difference] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    loss: CastLoss = field(default_factory=CastLoss)
    named: bool = False

    @property
    def missing(self) -> list[str]:
        """Keys that the plan writes and the folder does not hold."""
        return [d.key for d in self.differences if d.code == MISSING]

    @property
    def unexpected(self) -> list[str]:
        """Keys that the folder holds and the plan does not write."""
        return [d.key for d in self.differences if d.code == UNEXPECTED]

    @property
    def mismatched(self) -> list[tuple[str, str]]:
        """All else that is wrong: (key, why)."""
        return [(d.key, d.why) for d in self.differences if d.fatal and d.code not in (MISSING, UNEXPECTED)]

    @property
    def proven(self) -> bool:
        return not any(d.fatal for d in self.differences)

    @property
    def up_to(self) -> str | None:
        """The cast up to which the folder is proven equal, in words; None if there was no cast."""
        if not self.loss.tensors:
            return None
        count = self.loss.overflowed_values
        lost = f", which made {count:,} {'value' if count == 1 else 'values'} infinite" if count else ""
        return f"the cast to {self.plan.options.dtype}{lost}"

    @property
    def lost(self) -> Losses:
        """The parts of the source that the folder does not hold."""
        return losses(self.plan, self.loss)

    @property
    def summary(self) -> str:
        """What differs by component, and what does not."""
        tensors: Counter[str] = Counter()
        counters: Counter[str] = Counter()
        for piece in self.plan.mapped.values():
            tensors[component_of(piece.canonical)] += 1
            counters[component_of(piece.canonical)] += piece.canonical.endswith(COUNTER)
        return summary_of(self.findings, tensors, counters, self.equal, self.up_to)


def verify(
    folder: Folder,
    plan: Plan,
    progress: Callable[[str], Advance] | None = None,
    values: Set[str] | None = None,
    fingerprint: Callable[[], str | None] = lambda: None,
    graphs: Callable[[list[str]], Iterable[Difference]] = lambda notes: (),
) -> Verification:
    """Compare every tensor of the folder with the plan's source, and config.json with its sizes.

    values: the keys whose values are compared, where the bytes of the others are not here; None for all.
    fingerprint: what is wrong with the folder's fingerprint, in words; None if nothing is, or if there is none.
    graphs: what is wrong with the folder's graphs; adds to the notes that it is given.

    Raises Untrusted if the source is damaged or if two names of one of its tensors hold different values.
    """
    advance = progress or (lambda what: lambda n: None)
    out = Verification(plan)
    if said := plan.context.beside(plan.architecture.sizes["context"]):
        out.notes.append(said)
    out.notes += [plan.checkpoint.taken] if plan.checkpoint.taken else []
    out.notes += [*folder.notes, *levels_words(plan)]
    found_out = [Difference(fault.key, fault.code, "files", fault.why) for fault in folder.faults]
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
            component = component_of(piece.canonical)
            if key not in folder.tensors:
                if piece.canonical.endswith(COUNTER):
                    out.notes.append(f"{key} is absent; BatchNorm does not read it in evaluation")
                else:
                    place = folder.elsewhere.get(key)
                    if place is None:
                        found_out.append(Difference(key, MISSING, component, "is missing", "tensors are missing"))
                    else:
                        why = f"lies in {place}, which {folder.reader} does not take"
                        found_out.append(Difference(key, MISSING, component, f"is missing: it {why}", why))
                continue
            path, found = folder.tensors[key]
            out.checked += 1
            if key not in held.mapped:
                if form := _form_fault(piece, found):
                    found_out.append(_difference(key, component, form))
                continue
            out.compared += 1
            if path not in opened:
                opened[path] = stack.enter_context(open_file(path))
            if piece.canonical.endswith(COUNTER) and found.shape == piece.shape:
                if piece.source.absent:
                    out.notes.append(f"{key} has no source in the checkpoint; BatchNorm does not read it in evaluation")
                elif same_values(source, piece, opened[path], found, None):
                    out.equal += 1
                else:
                    out.notes.append(f"{key} differs; BatchNorm does not read it in evaluation")
            elif piece.source.absent and (found.shape, found.dtype) == (piece.shape, piece.dtype):
                if not same_values(source, piece, opened[path], found, None):
                    found_out.append(Difference(key, "V-FILLED", component, _FILLED, fatal=False))
            elif cause := _fault(source, piece, opened[path], found, diagnoser, out.loss):
                found_out.append(_difference(key, component, cause))
            else:
                out.equal += 1
            done(found.nbytes)
        for key in sorted(set(folder.tensors) - set(plan.mapped)):
            component = component_of_key(plan, key)
            why = "is not part of the model"
            found_out.append(Difference(key, UNEXPECTED, component, why, "tensors are not part of the model"))
        found_out += _rotary_differences(held, source, out.notes)
        sha256, notes = hashing.result()
        if values is not None and plan.checkpoint.partial:
            notes = []  # on a download of the text tensors; what was read here is the caller's to say
    out.notes += notes
    out.named = _names(folder.receipt, plan, sha256)
    beyond = [*_cut_differences(folder, plan), *_overflow_differences(folder, plan, out.loss)]
    out.equal -= sum(one.fatal for one in beyond)  # of tensors that are what the plan writes
    found_out += beyond
    found_out += _config_differences(folder, plan, out.notes)
    found_out += _receipt_differences(folder, plan, sha256, hashing.files, out.notes)
    for fault in check_side_files(folder, plan):
        key = f"{fault.name}: {fault.field}" if fault.field else fault.name
        found_out.append(Difference(key, fault.code, fault.component, fault.why, f"{key} {fault.why}"))
    if other := fingerprint():
        found_out.append(Difference(FINGERPRINT_NAME, "V-FINGERPRINT", "files", other))
    found_out += graphs(out.notes)
    out.differences, out.findings = gathered(found_out)
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
                if cause := _fault(source, plan.mapped[key], file, found, diagnoser, None):
                    faults[key] = cause.why
    return faults


def _difference(key: str, component: str, cause: Cause) -> Difference:
    return Difference(key, cause.code, component, cause.why, cause.cause, cause.holds, cause.values)


def _fault(
    source: BinaryIO, piece: Mapped, file: BinaryIO, found: StoredTensor, diagnoser: Diagnoser, loss: CastLoss | None
) -> Cause | None:
    """Why a found tensor differs from what the plan writes; None if it does not."""
    alike = found.dtype == piece.dtype and found.nbytes <= _MOST_IN_TABLE
    if found.shape != piece.shape and piece.position_table and alike:
        rows = explain_rows(piece, source, found.shape, read_tensor(file, found))
        if rows is not None:
            return rows
    if why := _form_fault(piece, found):
        return diagnoser.explain_dtype(piece, found, read_tensor(file, found)) if why.code == "V-DTYPE" else why
    if same_values(source, piece, file, found, loss):
        return None
    return diagnoser.explain(piece, read_tensor(file, found))


def _form_fault(piece: Mapped, found: StoredTensor) -> Cause | None:
    """What is wrong with a found tensor's shape or dtype; None if nothing is."""
    if found.shape != piece.shape:
        return explain_shape(piece, found.shape)
    if found.dtype != piece.dtype:
        return Cause("V-DTYPE", f"is {found.dtype}; the rest of the folder is {piece.dtype}")
    return None


def _only(plan: Plan, keys: Set[str]) -> Plan:
    """The part of a plan whose bytes are here."""
    mapped = {key: piece for key, piece in plan.mapped.items() if key in keys}
    sources = [source for piece in mapped.values() for source in piece.sources]
    twins = tuple(twin for twin in plan.twins if twin.of(sources))
    return replace(plan, mapped=mapped, dropped={}, twins=twins)


def same_values(source: BinaryIO, piece: Mapped, file: BinaryIO, found: StoredTensor, loss: CastLoss | None) -> bool:
    """Whether the inverse of the operation gives the source's bytes (cast, if the folder is)."""
    if found.shape != piece.shape or found.dtype != piece.dtype:
        return False
    if loss is not None and piece.casts:
        loss.tensors += 1
    if not piece.operation.verbatim:
        data = piece.operation.backward(read_tensor(file, found), piece.slice, found.dtype)
        original = source_bytes(source, piece)
        return data == (cast(original, piece.source.dtype, piece.dtype, loss, piece.key) if piece.casts else original)
    width, wide = dtypes.itemsize(found.dtype), dtypes.itemsize(piece.source.dtype)
    # Both sides are read in steps of the same number of elements.
    step = CHUNK // wide
    theirs = read_pieces(file, found, step * width)
    for original, held in zip(source_chunks(source, piece, step * wide), theirs, strict=True):
        if piece.casts:
            original = cast(original, piece.source.dtype, piece.dtype, loss, piece.key)
        if original != held:
            return False
    return True


def _rotary_differences(plan: Plan, source: BinaryIO, notes: list[str]) -> Iterator[Difference]:
    """Rotary tables of the checkpoint that the target would compute otherwise. Adds those whose values don't tell to
    ``notes``."""
    faults, more = check_rotary(plan, source)
    notes += more
    for fault in faults:
        yield Difference(fault.key, "V-ROTARY", "vision_encoder", fault.why, fault.cause)


def _cut_differences(folder: Folder, plan: Plan) -> Iterator[Difference]:
    """A text position table of one row, unless the receipt says that this was asked for."""
    options = folder.receipt.get("options") if folder.receipt else None
    stated = options.get("context") if isinstance(options, dict) else None
    for key, piece in plan.mapped.items():
        if key in folder.tensors and stated != 1 and (cause := one_row(piece)):
            yield _difference(key, component_of(piece.canonical), cause)


def _overflow_differences(folder: Folder, plan: Plan, loss: CastLoss) -> Iterator[Difference]:
    """Values that the cast made infinite or NaN. ``convert`` refuses them unless --allow-overflow is given, which the
    receipt then shows: so they are fatal unless it states the same."""
    dtype = plan.options.dtype
    record = loss.record(dtype).to_json().get("overflows")
    stated: JsonValue = folder.receipt
    for name in ("lost", "cast", "overflows"):
        stated = stated.get(name) if isinstance(stated, dict) else None
    for key, (count, largest) in loss.overflows.items():
        why = f"{count:,} values became infinite by the cast to {dtype}, the largest of them {largest:.6g}"
        cause = f"values became infinite by the cast to {dtype}, in all {loss.overflowed_values:,}"
        component = component_of(plan.mapped[key].canonical)
        yield Difference(key, "V-CAST-OVERFLOW", component, why, cause, fatal=record != stated)


def _config_differences(folder: Folder, plan: Plan, notes: list[str]) -> Iterator[Difference]:
    """What is wrong with config.json. Adds to ``notes`` the fields that this tool does not know."""
    if folder.config is None:
        why = "is missing; no library knows what these weights are"
        yield Difference("config.json", "V-CONFIG-MISSING", "config", why)
        return
    checked = check_config(plan, folder.config)
    for fault in checked.faults:
        cause = fault.cause or f"{fault.path} {fault.why}"
        yield Difference(f"config.json: {fault.path}", fault.code, fault.component, fault.why, cause)
    if checked.unjudged:
        notes.append("config.json: unknown to this tool, so not checked: " + ", ".join(checked.unjudged))


def _stated_architecture(receipt: Json, plan: Plan) -> Architecture:
    """The architecture as the receipt has to state it: where the file was renamed since, with the context that its
    name stated then, if that gives the rows that the folder holds."""
    said, source, context = receipt.get("context"), receipt.get("source"), plan.context
    if not isinstance(said, dict) or not isinstance(source, dict):
        return plan.architecture
    called, origin = said.get("called"), said.get("origin")
    renamed = context.meta is None and source.get("name") != plan.checkpoint.path.name
    if not renamed or type(called) is not int or min(called, context.rows) != context.held:
        return plan.architecture
    for name in ("name", "option", "unknown"):
        if origin == name:
            return plan.architecture.with_context(replace(context, called=called, origin=name))
    return plan.architecture


def _names(receipt: Json | None, plan: Plan, sha256: str | None) -> bool:
    """Whether a receipt names the source of a plan. ``sha256``: of that source."""
    stated = _stated_source(receipt)
    return stated is not None and stated == (sha256 or (plan.checkpoint.hub and plan.checkpoint.hub.etag))


def _stated_source(receipt: Json | None) -> JsonValue:
    """The hash of the source that a receipt names. A conversion that read only ranges of the file records the one that
    the Hub states."""
    source = receipt.get("source") if receipt else None
    return (source.get("sha256") or source.get("etag")) if isinstance(source, dict) else None


def _receipt_differences(
    folder: Folder, plan: Plan, sha256: str | None, hashes: Mapping[str, str], notes: list[str]
) -> Iterator[Difference]:
    """What is wrong with the receipt. Adds to ``notes`` whether there is one, and whether it is of another source.

    sha256, hashes: of the source, and of the files of a source in shards.
    """
    if folder.receipt is None:
        notes.append(f"no {RECEIPT_NAME}; another tool wrote this folder")
        return
    if not _names(folder.receipt, plan, sha256):
        source, stated = folder.receipt.get("source"), _stated_source(folder.receipt)
        there = source.get("files") if isinstance(source, dict) else None
        others = [
            name for name, digest in sorted(hashes.items()) if isinstance(there, dict) and there.get(name) != digest
        ]
        which = f"; {', '.join(others)} differ{'s' * (len(others) == 1)}" if others else ""
        notes.append(f"{RECEIPT_NAME} names another source file (SHA-256 {str(stated)[:16]}...){which}")
    architecture = _stated_architecture(folder.receipt, plan)
    true: Json = {
        "layout": plan.layout.name,
        "component": plan.options.component,
        "dtype": plan.floating_dtype,
        "counts": plan.counts.to_json(),
        "architecture": architecture.record().to_json(),
        "context": architecture.context.record().to_json() if architecture.context else None,
        "tensors": {key: piece.record().to_json() for key, piece in plan.mapped.items()},
        "dropped": {key: dropped.reason for key, dropped in plan.dropped.items()},
        "not_read": list(plan.not_read),
    }
    for name, value in true.items():
        if folder.receipt.get(name) != value:
            why = "does not match this conversion of this source"
            yield Difference(f"{RECEIPT_NAME}: {name}", "V-RECEIPT", "receipt", why)
