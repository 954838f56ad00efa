"""Checks a converted folder, on this machine or on the Hub, against its checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sam3lite_convert.checkpoint.hashing import FilesHash
from sam3lite_convert.checkpoint.place import LocalPlace, read_json
from sam3lite_convert.commands.fingerprint import fault_of
from sam3lite_convert.commands.folders import FolderLocation, origin, with_bytes
from sam3lite_convert.commands.sources import Location, Source
from sam3lite_convert.convert.graph_files import GRAPH_SUFFIX
from sam3lite_convert.convert.receipt import RECEIPT_NAME
from sam3lite_convert.errors import CannotRun, Sam3LiteError
from sam3lite_convert.figures import human_bytes, plural
from sam3lite_convert.plan.architecture import TEXT
from sam3lite_convert.plan.plan import Plan
from sam3lite_convert.plan.tables import Mappings
from sam3lite_convert.quoting import visible
from sam3lite_convert.records.receipt import Losses
from sam3lite_convert.records.shared import Fetched, PageFacts
from sam3lite_convert.records.verify import Mismatch, VerifyDocument
from sam3lite_convert.workers import Advance, Worker

if TYPE_CHECKING:
    from sam3lite_convert.checkpoint.index import Checkpoint
    from sam3lite_convert.convert.folder import Folder
    from sam3lite_convert.hub.folder import HubFolder
    from sam3lite_convert.records.fingerprint import Fingerprint
    from sam3lite_convert.verify.verify import Verification

PARTIAL_LIMIT = 400_000_000  # bytes of values that --partial downloads, of both sides together


def verify_folder(
    folder: Path,
    source: Source,
    mappings: Mappings,
    causal: bool = False,
    progress: Callable[[str], Advance] | None = None,
    report_of: str | None = None,
    proven: Callable[[Folder], None] = lambda folder: None,
    made: Worker[Fingerprint] | None = None,
    record: bool = True,
    unchecked: Collection[str] = (),
) -> VerifyDocument:
    """Prove a folder; ``verdict`` says whether it is its source. ``report_of``: the command as it was typed, if the
    document also has to hold what a page shows. ``proven``: called with what was read of the folder if it is.
    ``made``: the checkpoint's fingerprint, if this process makes it anyway. ``record``: write what was proven into the
    receipt of the folder, if it is of this tool and names this checkpoint. ``unchecked``: names
    of graphs that are not looked at.

    Raises CannotRun if there is no folder, or none of a known layout; UnsoundPlan if no plan fits the checkpoint;
    Untrusted if a file is damaged.
    """
    from sam3lite_convert.commands.provenance import provenance
    from sam3lite_convert.convert.proof import own_receipt
    from sam3lite_convert.verify.graphs import check_graphs
    from sam3lite_convert.verify.recognise import recognise  # loads numpy; convert starts without
    from sam3lite_convert.verify.verify import verify  # loads numpy; convert starts without

    found = read_with_weights(folder)
    own = own_receipt(found) is not None
    source = source.as_stated(found.receipt)
    with FilesHash([folder / name for name in found.taken] if own else []) as hashing:
        with source.trusted():
            plan = recognise(found, source.read(mappings), mappings, causal or _states_causal(found))
            outcome = verify(
                found,
                plan,
                progress,
                fingerprint=partial(fault_of, folder, plan, made),
                graphs=partial(check_graphs, found, mappings, hashing.result, skipped=unchecked),
            )
        hashes = hashing.result() if own and outcome.named and outcome.proven else None
    found.check_unchanged()  # neither while it was compared nor while it was hashed
    if outcome.proven:
        proven(found)
    if hashes is not None and record:
        outcome.notes += _recorded(found, hashes)
    page = provenance(plan, found, report_of) if report_of is not None else None
    return replace(_document(outcome, folder, source, page), proven=hashes)


def checkpoint_of(folder: Path) -> str | None:
    """The file that the receipt of a folder on this machine names as its source, if it lies here or beside the
    folder."""
    with suppress(Sam3LiteError, OSError):
        match read_json(LocalPlace(folder), RECEIPT_NAME):
            case {"source": {"name": str(name)}} if name == visible(Path(name).name) and not name.startswith("-"):
                return next((str(p) for p in (Path(name), folder.parent / name) if os.path.isfile(p)), None)
    return None


def read_with_weights(folder: Path) -> Folder:
    """``read_folder``; of a folder that holds graphs and no weights it says which weights they belong to.

    Raises as ``read_folder`` does.
    """
    from sam3lite_convert.convert.folder import read_folder
    from sam3lite_convert.verify.graphs import belongs_to, has_onnx

    try:
        return read_folder(folder)
    except CannotRun as fault:
        if fault.code == "nothing_to_verify" and has_onnx() and (where := belongs_to(folder)):
            raise CannotRun(f"{fault.message}. {where}", fault.code) from fault
        raise


def _recorded(folder: Folder, proven: dict[str, str]) -> Iterator[str]:
    """Write what was proven into the folder's receipt; yields a note where that cannot be."""
    from sam3lite_convert.convert.proof import record_proof

    try:
        record_proof(folder, proven)
    except CannotRun as fault:
        yield f"the proof was not written into conversion.json: {fault.message}"


def _states_causal(folder: Folder) -> bool:
    options = folder.receipt.get("options") if folder.receipt else None
    return bool(isinstance(options, dict) and options.get("causal"))


def check_extent(folder: FolderLocation, partial: bool, whole: bool) -> None:
    """Raises CannotRun if ``--partial`` and ``--whole`` do not go with this folder or with each other."""
    if folder.where is None and (partial or whole):
        raise CannotRun("--partial and --whole are for a DIR on the Hub; of a local one all is compared", "usage")
    if partial and whole:
        raise CannotRun("--partial and --whole exclude each other", "usage")


def verify_repository(
    folder: FolderLocation,
    checkpoint: Location,
    mappings: Mappings,
    causal: bool = False,
    partial: bool = False,
    progress: Callable[[str], Advance] | None = None,
    report_of: str | None = None,
) -> VerifyDocument:
    """Judge a folder on the Hub without downloading it: names, shapes, dtypes and config.json, by range requests.

    partial: compare the values of the text encoder too, at most 400 MB of both sides together. ``progress``: called
    with "fetch", "write" and "hash". Raises as ``verify_folder`` does, and CannotRun if the Hub cannot be read.
    """
    from sam3lite_convert.commands.provenance import provenance
    from sam3lite_convert.convert.folder import read_place
    from sam3lite_convert.verify.recognise import recognise  # loads numpy; convert starts without
    from sam3lite_convert.verify.verify import verify  # loads numpy; convert starts without

    with folder.opened() as hub:
        found = read_place(hub)
        causal = causal or _states_causal(found)
        source = checkpoint.index().as_stated(found.receipt)
        with source.trusted():
            index = source.read(mappings)
            plan = recognise(found, index, mappings, causal)
            text = _text_keys(found, plan)
            cost = {key: _cost(key, found, plan, hub, source) for key in text}
            keys = list(_within(cost, PARTIAL_LIMIT)) if partial else []
            if keys:
                advance = progress("fetch") if progress else lambda n: None
                whole = _with_sources(source, mappings, index, plan, keys, advance)
                found = with_bytes(hub, found, keys, advance)
                plan = recognise(found, whole, mappings, causal)
            outcome = verify(found, plan, progress, frozenset(keys))
            graphs = [name for name in hub.names() if name.endswith(GRAPH_SUFFIX)]
            outcome.notes += [f"{name} was not checked; --whole does" for name in graphs]
        page = provenance(plan, found, report_of) if report_of is not None else None
        document = _document(outcome, found.path, source, page)
        copy = source.copy
        fetched = Fetched(
            bytes=hub.received + (copy.received if copy else 0),
            requests=hub.requests + (copy.requests if copy else 0),
            of=sum(hub.files[name].size for name in found.taken) + (copy.file.size if copy else 0),
        )
        return replace(
            document,
            verdict=document.verdict if document.verdict == "mismatch" else _partial_verdict(outcome),
            summary=_partial_summary(outcome, document, sum(cost.values()), fetched.of),
            repository=origin(hub),
            fetched=fetched,
        )


def _text_keys(folder: Folder, plan: Plan) -> list[str]:
    """Keys of the text encoder whose shape and dtype fit, so that their values can be compared."""
    held = folder.tensors
    return [
        key
        for key, piece in plan.mapped.items()
        if piece.canonical.startswith(TEXT) and key in held
        if (held[key][1].shape, held[key][1].dtype) == (piece.shape, piece.dtype)
    ]


def _cost(key: str, folder: Folder, plan: Plan, hub: HubFolder, source: Source) -> int:
    """Bytes to download to compare the values of one tensor."""
    there = folder.tensors[key][1].nbytes if hub.fetched_by_ranges(folder.tensors[key][0]) else 0
    return there + (plan.mapped[key].nbytes if source.copy is not None else 0)


def _within(cost: dict[str, int], limit: int) -> Iterator[str]:
    """As many of these keys, in their order, as cost no more than the limit together."""
    for key, nbytes in cost.items():
        if nbytes <= limit:
            limit -= nbytes
            yield key


def _with_sources(
    source: Source, mappings: Mappings, index: Checkpoint, plan: Plan, keys: list[str], advance: Advance
) -> Checkpoint:
    """The index of the checkpoint with the bytes that these keys come from."""
    wanted = {source.key: source for key in keys for source in plan.mapped[key].sources}
    twins = [t for twin in plan.twins if twin.of(wanted.values()) for t in (twin.first, twin.second)]
    return source.with_bytes_of(mappings, index, [*wanted.values(), *twins], advance)


def _partial_verdict(outcome: Verification) -> Literal["proven", "partly_proven", "structure_only"]:
    if outcome.compared == 0:
        return "structure_only"
    return "proven" if outcome.compared == outcome.checked else "partly_proven"


def _partial_summary(outcome: Verification, document: VerifyDocument, text: int, of: int) -> str:
    """``text``: bytes to fetch for the values of the text encoder; ``of``: for all of them."""
    whole = f"--whole compares all of them ({human_bytes(of)})"
    rest = outcome.checked - outcome.compared
    if document.verdict == "mismatch" and outcome.compared == 0:
        return f"{outcome.summary}; no values were compared; {whole}"
    if document.verdict == "mismatch":
        fit = f"{outcome.summary}; the values of {outcome.compared:,} tensors were compared"
    elif outcome.compared == 0:
        partial = f"--partial compares the text encoder's values ({human_bytes(text)}), --whole all of them"
        return f"names, shapes, dtypes and config.json fit; no values were compared; {partial} ({human_bytes(of)})"
    else:
        how = f", up to {outcome.up_to}" if outcome.up_to else " bit for bit"
        fit = f"the values of {outcome.compared:,} tensors turn back into their source{how}"
    return f"{fit}; of {rest:,} others no values were compared; {whole}" if rest else fit


def _document(outcome: Verification, folder: Path, source: Source, page: PageFacts | None) -> VerifyDocument:
    from sam3lite_convert.verify.places import places  # loads numpy; convert starts without

    plan, lost = outcome.plan, outcome.lost
    return VerifyDocument(
        folder=str(folder),
        checkpoint=source.name,
        option=source.option,
        source=source.provenance(),
        targets=plan.counts.target,
        verdict="proven" if outcome.proven else "mismatch",
        up_to=outcome.up_to,
        summary=_summary(outcome),
        layout=plan.layout.name,
        component=plan.options.component,
        dtype=plan.floating_dtype,
        checked=outcome.checked,
        findings=tuple(outcome.findings),
        compared=outcome.compared,
        not_compared=outcome.checked - outcome.compared,
        mismatched=tuple(Mismatch(key=key, why=why) for key, why in outcome.mismatched),
        missing=tuple(outcome.missing),
        unexpected=tuple(outcome.unexpected),
        lost=lost,
        lost_words=tuple(_lost_words(lost)),
        notes=tuple(outcome.notes),
        places=places(outcome) if page is not None else None,
        page=page,
    )


def _summary(outcome: Verification) -> str:
    if not outcome.proven:
        return outcome.summary
    counted = f"{outcome.equal:,} of {outcome.plan.counts.target:,} tensors turn back into their source"
    counted += f", up to {outcome.up_to}" if outcome.up_to else " bit for bit"
    if filled := len(outcome.plan.filled_levels):
        counted += f"; {filled} are filled, not converted"
    if beside := len(outcome.plan.not_read):
        # By their names alone: one that the user drops may be of any part of the model.
        were = f"{plural(beside, 'more tensor')} of the source {'was' if beside == 1 else 'were'} dropped"
        counted += f"; {were} that the original's text encoder may read"
    return counted


def _lost_words(lost: Losses) -> Iterator[str]:
    if lost.dropped:
        kinds = ", ".join(f"{n} {label}" for label, n in lost.dropped.by_kind.items())
        yield f"{lost.dropped.tensors} dropped tensors ({kinds})"
    if lost.class_row:
        yield f"the class row of {lost.class_row.tensor}"
    if lost.positions:
        yield f"the last {lost.positions.rows} rows of {lost.positions.tensor}"
    if lost.cast:
        changed, error = lost.cast.changed_values, lost.cast.max_abs_error
        yield f"what the cast rounded off ({changed:,} values, max abs error {error:.3g})"
