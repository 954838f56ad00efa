"""One conversion, from the name of a checkpoint to the finished folder: download, plan, write, verify."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sam3lite_convert.checkpoint.hashing import SourceHash
from sam3lite_convert.checkpoint.place import LocalPlace, read_json
from sam3lite_convert.commands.fingerprint import add_fingerprint, start_fingerprint
from sam3lite_convert.commands.graphs import need_onnx, with_text_graph
from sam3lite_convert.commands.sources import Location, Source
from sam3lite_convert.convert import side_files
from sam3lite_convert.convert import write as conversion
from sam3lite_convert.convert.card import loads_with
from sam3lite_convert.convert.graph_files import GRAPH_SUFFIX, TEXT_MODEL
from sam3lite_convert.convert.processor_files import TOKENIZER
from sam3lite_convert.convert.receipt import RECEIPT_NAME
from sam3lite_convert.convert.strict import Strict
from sam3lite_convert.convert.whole_folder import check_destination
from sam3lite_convert.errors import CannotRun, Sam3LiteError
from sam3lite_convert.files import check_space, resolved, same_disk
from sam3lite_convert.plan.counts import accounting, text_parameters
from sam3lite_convert.plan.families import SAM3_LITETEXT
from sam3lite_convert.plan.plan import Options, Plan, make_plan
from sam3lite_convert.plan.tables import Mappings
from sam3lite_convert.quoting import quoted_words
from sam3lite_convert.records.convert import ConvertDocument, PlannedConversion, WrittenConversion
from sam3lite_convert.records.receipt import ParitySummary, Receipt, TapSummary
from sam3lite_convert.workers import Advance, Worker
from sam3lite_convert.working_places import alike, leftovers

if TYPE_CHECKING:
    from sam3lite_convert.convert.folder import Folder
    from sam3lite_convert.hub.licences import LicenceText
    from sam3lite_convert.records.fingerprint import Fingerprint
    from sam3lite_convert.records.parity import ParityDocument
    from sam3lite_convert.records.verify import VerifyDocument

Progress = Callable[[str], Advance]


class NotProven(Sam3LiteError):
    """Exit 1: the verification of a written folder failed."""

    exit_code = 1


@dataclass(frozen=True)
class Request:
    """What is asked beside the plan. ``max_shard_size`` in bytes; ``verify`` and ``parity``: checks to run on the
    folder; ``tokenizer``: folder or repository to take one from, None to leave it out, and ``tokenizer_named``
    where the user named it; ``model_id``: the repository that the card names; ``partial``: fetch the text
    tensors alone; ``strict``: which values are refused; ``command``: what the user typed, to be typed again;
    ``mapping``: the folder of tables that the user named; ``not_read_allowed``: as in ``commands.parity.Looks``;
    ``trust``: take the tensors of an earlier run as they are where sizes and times don't vouch for them; ``proven``:
    called with the folder as it was read when it was proven; ``onnx``: write the text encoder's graph, for which
    ``verify`` has to be set."""

    options: Options
    output: Path | None = None
    overwrite: bool = False
    max_shard_size: int | None = None
    verify: bool = False
    parity: bool = False
    tokenizer: str | None = None
    tokenizer_named: bool = False
    cache: Path | None = None
    model_id: str | None = None
    partial: bool = False
    command: str | None = None
    strict: Strict = field(default_factory=Strict)
    mapping: Path | None = None
    not_read_allowed: bool = False
    trust: bool = False
    proven: Callable[[Folder], None] = lambda folder: None
    onnx: bool = False

    @property
    def tokenizer_asked(self) -> bool:
        """Whether the folder gets a tokenizer even if its loader reads none: for those who call its graph."""
        return self.tokenizer_named or self.onnx

    def folder(self, location: Location) -> Path:
        """The folder to write."""
        return self.output or self.folder_in(Path("converted"), location)

    def folder_in(self, root: Path, location: Location) -> Path:
        """The folder to write below ``root``, named after the checkpoint; of a converted folder, after its own."""
        return root / conversion.default_output(_stem(location), self.options).name

    def check_folder(self, location: Location) -> None:
        """Raises CannotRun if the folder to write is the converted folder that is read."""
        folder = self.folder(location)
        own = folder == self.folder_in(folder.parent, location) and location.folder and location.repository is None
        if own and resolved(folder) == resolved(location.path.parent):
            raise CannotRun(
                f"{location.name} is a converted folder, of the layout {self.options.layout}, already. For another "
                "one: --layout. To write it again, to another place: --output DIR.",
                "already_converted",
            )


def _stem(location: Location) -> str:
    """The stem of a checkpoint; of a folder that was converted, without what its conversion put behind it."""
    if location.folder is None or location.repository is not None:
        return location.stem
    try:
        stated = read_json(LocalPlace(location.path.parent), RECEIPT_NAME)
        receipt = Receipt.from_json(stated) if stated else None
    except (Sam3LiteError, ValueError, KeyError, TypeError):
        return location.stem
    if receipt is None:
        return location.stem
    behind = conversion.default_output("", Options(receipt.layout, receipt.component, receipt.dtype)).name
    return location.stem.removesuffix(behind) or location.stem


def plan_conversion(location: Location, mappings: Mappings, request: Request) -> ConvertDocument:
    """The document of a dry run: nothing is written, and of a file on the Hub only the index is read."""
    request.check_folder(location)
    source = location.index()
    with source.trusted():
        plan = make_plan(source.read(mappings), mappings, request.options)
    return replace(_planned(source, plan, request, request.folder(location)), dry_run=True)


def _planned(source: Source, plan: Plan, request: Request, folder: Path) -> ConvertDocument:
    """The document of a plan before anything is written."""
    notes = conversion.plan_notes(plan)
    notes += [
        f"left over from an interrupted run; the next conversion to this place removes it: {p}"
        for p in leftovers(resolved(folder))
    ]
    notes += [
        f"looks like something that an earlier version left over, and is kept; if you do not know it, remove it: {p}"
        for p in alike(resolved(folder))
    ]
    if folder.exists() and not request.overwrite:
        notes.append(f"{folder} exists; without --overwrite it is kept")
    if request.overwrite and (gone := _graphs_replaced(folder, request)):
        notes.append(f"{', '.join(gone)} of the folder that is replaced: sam3lite export onnx writes graphs again")
    return ConvertDocument(
        state="planned",
        checkpoint=source.name,
        option=source.option,
        output=str(folder),
        dry_run=False,
        layout=plan.layout.name,
        component=plan.options.component,
        dtype=plan.floating_dtype,
        architecture=plan.architecture.record(),
        context=plan.context.record(),
        counts=plan.counts,
        notes=tuple(notes),
        mapping=str(request.mapping) if request.mapping else None,
        plan=PlannedConversion(
            file=source.facts(plan.checkpoint, plan.names, text_parameters(plan)),
            kind=plan.kind,
            accounting=accounting(plan.checkpoint, plan.names, plan),
            bytes=plan.out_nbytes,
        ),
    )


def _graphs_replaced(folder: Path, request: Request) -> list[str]:
    """The names of graphs of an earlier folder that the new one does not have."""
    there = sorted(path.name for path in folder.glob(f"*{GRAPH_SUFFIX}"))
    return [name for name in there if not (request.onnx and name == TEXT_MODEL)]


def fetch(location: Location, mappings: Mappings, request: Request, beside: int = 0) -> Source:
    """The checkpoint on this machine, downloaded if necessary. ``beside``: bytes that something else is about to write.

    Raises CannotRun, before anything is downloaded, if the disk has no space for the download and the conversion.
    """
    if request.partial:
        return location.text(mappings, request.options.causal)
    if location.repository is None or location.file is None or location.file.here:
        return location.whole()
    # A conversion writes about as much as it reads. If both go to one disk, both have to fit.
    beside += location.file.size
    place = request.folder(location).parent
    check_space(place, beside, f"to write the conversion of {location.name}")
    return location.whole(beside if same_disk(place, location.repository.place) else 0)


def convert_checkpoint(
    location: Location,
    mappings: Mappings,
    request: Request,
    planned: Callable[[ConvertDocument], None] = lambda document: None,
    progress: Progress | None = None,
    hashing: SourceHash | None = None,
) -> ConvertDocument:
    """Plan and write, and prove if asked to. For a place where nothing is, or ``overwrite``.

    ``planned`` is called with the plan's record before the first byte is written. ``hashing``: the hash of this
    (local) file, if it is computed already.
    Raises CannotRun if the output folder holds anything and ``overwrite`` is not set, and as ``make_plan`` and
    ``convert`` do.
    """
    folder = request.folder(location)
    with ExitStack() as stack:
        if hashing is not None:
            stack.enter_context(hashing)
        # Checked before anything is downloaded.
        check_onnx(request)
        if request.parity:
            from sam3lite_convert.parity.candidates import check_candidate

            # Of a family that is not known before the file is, parity itself tells whether it can run.
            check_candidate(mappings.layout(request.options.layout or SAM3_LITETEXT.layout), mappings)
        place = check_destination(folder, request.overwrite, location.path, 0)
        source = fetch(location, mappings, request)
        hashing = hashing or stack.enter_context(source.hashing())
        stack.enter_context(source.trusted())
        checkpoint = source.read(mappings)
        hashing.check(checkpoint)
        plan = make_plan(checkpoint, mappings, request.options)
        document = _planned(source, plan, request, folder)
        planned(document)
        tokenizer = side_files.fetch_tokenizer(plan, request.tokenizer, request.tokenizer_asked, request.cache)
        licences = start_licences(location)
        fingerprint = start_fingerprint(plan)
        why: str | None = None
        unlicensed: str | None = None
        unprinted: str | None = None
        verification: VerifyDocument | None = None

        def finish(work: Path, receipt: Receipt) -> Receipt:
            nonlocal why, unlicensed, unprinted, verification
            receipt = side_files.with_config(work, receipt)
            receipt, why = side_files.add_processor_files(work, receipt, plan, tokenizer)
            receipt, unlicensed = side_files.add_licences(work, receipt, licences)
            receipt, unprinted = add_fingerprint(work, receipt, fingerprint)
            if request.verify:
                verification = verified(work, source, mappings, request, folder, fingerprint, progress)
                receipt = replace(receipt, proven=verification.proven)
            if request.onnx:
                receipt = with_text_graph(work, receipt, mappings)
            return receipt

        done = conversion.convert(
            plan,
            hashing,
            folder,
            request.overwrite,
            place,
            request.max_shard_size,
            progress,
            finish,
            request.model_id,
            request.strict,
        )
        receipt, parity = done.receipt, None
        if request.parity:
            receipt, parity = add_parity(folder, receipt, source, mappings, request)
            receipt, _ = side_files.write_receipt(folder, receipt)
    late = [n for n in receipt.notes if n not in document.notes] + [n for n in (unlicensed, unprinted) if n]
    document = replace(document, state="converted")
    return finished(document, folder, receipt, location, request, why, late, verification, parity)


def check_onnx(request: Request) -> None:
    """Raises CannotRun if a package is not installed that writing the graph, or running it, needs."""
    if not request.onnx:
        return
    need_onnx("--onnx")
    if request.parity:
        from sam3lite_convert.parity.runtime import RuntimeChoice

        RuntimeChoice("onnx").open()


def start_licences(location: Location) -> Worker[list[LicenceText]] | None:
    """Start to fetch the licence files that go with a checkpoint on the Hub; None if they are not known."""
    if location.repository is None or location.file is None:
        return None
    return side_files.fetch_licences(location.repository, location.file.licence_files)


def finished(
    document: ConvertDocument,
    folder: Path,
    receipt: Receipt,
    location: Location,
    request: Request,
    why: str | None,
    late: list[str],
    verification: VerifyDocument | None,
    parity: ParityDocument | None,
) -> ConvertDocument:
    """The document with what is in the folder, and what is missing there and how to add it. ``why``: the reason why a
    tokenizer cannot be had; ``late``: notes that the plan did not have yet."""
    absent: list[str] = []
    if side_files.wants_tokenizer(receipt, request.tokenizer, request.tokenizer_asked):
        gone = side_files.missing_licences(folder, receipt)
        absent = [name for name in side_files.missing(folder, receipt, True) if name not in gone]
    if absent:
        command = request.command or f"sam3lite convert {location.option} --layout {receipt.layout}"
        lacks = "the folder has no tokenizer"
        if not set(TOKENIZER) <= set(absent):
            lacks = f"the tokenizer is incomplete, {', '.join(absent)} missing"
        late = [
            *late,
            f"{lacks}{_because(why)}. To add it, with access to the Hub or to a folder that holds CLIP's tokenizer: "
            f"{_without_tokenizer(command)} --tokenizer DIR_OR_REPO",
        ]
    loading, *parts = loads_with(receipt, str(folder))
    written = WrittenConversion(
        files=sizes(folder),
        loads_with=loading,
        loads_also=tuple(parts),
        converted_from=receipt.source,
        lost=receipt.lost,
        missing_files=tuple(absent),
        parity_verdict=receipt.parity.verdict if receipt.parity else None,
        not_read_allowed=bool(receipt.parity and receipt.parity.not_read_allowed),
        late_notes=tuple(late),
        added=(),
        verification=verification,
        parity=parity,
        graph_parity=receipt.graph_parity,
    )
    return replace(document, notes=(*document.notes, *late), written=written)


def _because(why: str | None) -> str:
    """Behind what is missing, the reason. What its message proposes is left out: the note has advice of its own."""
    if not why:
        return ""
    from sam3lite_convert.hub.requests import NO_NETWORK  # loads the client of the Hub

    return f": {why.removesuffix(NO_NETWORK).rstrip(' .')}"


def _without_tokenizer(command: str) -> str:
    """A command line without its --tokenizer."""
    words = iter(quoted_words(command))
    kept = []
    for word in words:
        if word == "--tokenizer":
            next(words, None)
        elif not word.startswith("--tokenizer="):
            kept.append(word)
    return " ".join(kept)


def sizes(folder: Path) -> dict[str, int]:
    """The size in bytes of every file in a folder."""
    return {p.name: p.stat().st_size for p in sorted(folder.iterdir()) if p.is_file()}


def verified(
    work: Path,
    source: Source,
    mappings: Mappings,
    request: Request,
    folder: Path,
    made: Worker[Fingerprint] | None = None,
    progress: Progress | None = None,
) -> VerifyDocument:
    """The proof of a folder that lies in ``work`` and belongs to ``folder``. ``made``: its fingerprint, if this run
    makes it; ``progress``: called with "verify". Raises NotProven if the folder is not its source."""
    from sam3lite_convert.commands.verify import verify_folder

    held: list[Folder] = []
    document = verify_folder(
        work,
        source,
        mappings,
        request.options.causal,
        (lambda what: progress("verify") if what == "write" else lambda n: None) if progress else None,
        proven=held.append,
        made=made,
        record=False,
        unchecked=(TEXT_MODEL,) if request.onnx else (),  # it is written after this
    )
    document = replace(document, folder=str(folder))
    if document.verdict != "proven":
        faults = [f"{m.key}: {m.why}" for m in document.mismatched]
        faults += [f"{key} is missing" for key in document.missing]
        faults += [f"{key} is not part of the model" for key in document.unexpected]
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        message = f"verification of {folder} failed: {'; '.join(faults[:3])}{more}"
        raise NotProven(message, "not_proven", document)
    for each in held:
        request.proven(each)
    return document


def add_parity(
    folder: Path, receipt: Receipt, source: Source, mappings: Mappings, request: Request
) -> tuple[Receipt, ParityDocument]:
    """Run parity on the folder, and on its graph if that was asked for; returns the receipt with what a reader of the
    card wants of them, and the document of the folder's."""
    from sam3lite_convert.commands.parity import Looks, run_parity
    from sam3lite_convert.parity.runtime import RuntimeChoice
    from sam3lite_convert.parity.setup import ParityOptions

    options, looks = (
        ParityOptions(causal=request.options.causal, context=request.options.context),
        Looks(not_read_allowed=request.not_read_allowed),
    )
    document = run_parity(source, mappings, options, folder, looks=looks)
    receipt = replace(receipt, parity=_summary(document, request))
    if request.onnx:
        graph = run_parity(source, mappings, replace(options, runtime=RuntimeChoice("onnx")), folder, looks=looks)
        receipt = replace(receipt, graph_parity=_summary(graph, request))
    return receipt, document


def _summary(document: ParityDocument, request: Request) -> ParitySummary:
    """What the receipt keeps of a parity run."""
    sides, judgement = document.sides, document.judgement
    return ParitySummary(
        verdict=judgement.verdict,
        reference=sides.reference,
        candidate_encoder=sides.candidate_encoder,
        attention=sides.attention,
        dtype=sides.dtype,
        tolerance=judgement.tolerance,
        max_abs_diff=judgement.max_abs_diff,
        inputs=document.inputs.what,
        layers=tuple(
            TapSummary(
                name=tap.name,
                max_abs_diff=tap.max_abs_diff,
                # Both encoders ran here, so that null is an error that is not finite.
                isolated_max_abs_diff=math.inf if tap.isolated_max_abs_diff is None else tap.isolated_max_abs_diff,
                relative_l2=tap.relative_l2,
            )
            for tap in judgement.layers
        ),
        not_read_allowed=request.not_read_allowed,
    )
