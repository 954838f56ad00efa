"""The folder of an earlier run: whether it is up to date, and adding what is missing."""

from __future__ import annotations

from dataclasses import replace

from sam3lite_convert.checkpoint.hashing import SourceHash, sha256_of_checkpoint
from sam3lite_convert.commands.convert import (
    Progress,
    Request,
    add_parity,
    check_onnx,
    fetch,
    finished,
    sizes,
    start_licences,
    verified,
)
from sam3lite_convert.commands.fingerprint import add_fingerprint, start_fingerprint
from sam3lite_convert.commands.graphs import with_text_graph
from sam3lite_convert.commands.sources import HubLocation, Location
from sam3lite_convert.convert import processor_files, side_files, up_to_date
from sam3lite_convert.convert.card import CARD_NAME
from sam3lite_convert.convert.graph_files import TEXT_MODEL
from sam3lite_convert.convert.receipt import RECEIPT_NAME
from sam3lite_convert.convert.strict import refuse
from sam3lite_convert.convert.up_to_date import EarlierConversion
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.files import resolved
from sam3lite_convert.hub.licences import LicenceText
from sam3lite_convert.plan.context import context_in_name
from sam3lite_convert.plan.plan import make_plan
from sam3lite_convert.plan.tables import Mappings
from sam3lite_convert.records.convert import ConvertDocument
from sam3lite_convert.records.receipt import Receipt
from sam3lite_convert.workers import Worker
from sam3lite_convert.working_places import clear_leftovers


def find_current(
    location: Location, mappings: Mappings, request: Request, hashing: SourceHash | None = None
) -> EarlierConversion | None:
    """The folder of an earlier run that already is what this one would write; None where there is none.

    A file on the Hub is not read: its etag is compared. ``hashing``: the hash of a local file, being computed. Tensors
    that were touched since are compared with the checkpoint, which is downloaded for that, unless ``request.trust`` is
    set or ``request.verify`` compares them anyway.
    Raises CannotRun if the folder holds anything else and ``overwrite`` is not set, or if it is the one that is read.
    """
    request.check_folder(location)
    folder = request.folder(location)
    clear_leftovers(resolved(folder))
    if request.overwrite or not up_to_date.present(folder):
        return None
    found = up_to_date.earlier(folder)
    why: str | None
    if isinstance(found, str):
        why = found
    else:
        why = up_to_date.difference(
            found.receipt, request.options, location.selection, request.max_shard_size, mappings
        )
        if why is None:
            identity = location.file.etag if location.file else None
            if identity is None:  # a local file, or a cache without symbolic links, which tell the etag
                identity = hashing.digest() if hashing else sha256_of_checkpoint(location.here())
            if not up_to_date.same_source(found.receipt, identity):
                why = f"it was converted from another file ({found.receipt.source.name})"
            elif (
                why := _other_context(found.receipt, location)
                or _other_facts(found.receipt, location, mappings, request)
            ) is None:
                return _vouched(found, location, mappings, request)
    raise CannotRun(
        f"{folder} exists and was not changed: {why}. Replace it with --overwrite, or choose another folder with "
        "--output DIR.",
        "output_exists",
    )


def _other_context(receipt: Receipt, location: Location) -> str | None:
    """How the context of the receipt differs from the one that the file's name states now, in words; None if it does
    not. The bytes, and so the meta and the rows, are the same."""
    context = receipt.context
    if receipt.options.context is not None or context.origin == "meta":
        return None
    now = context_in_name(location.path) or context.rows
    return None if now == context.called else f"the file had another name (context: {context.called} there, {now} now)"


def _other_facts(receipt: Receipt, location: Location, mappings: Mappings, request: Request) -> str | None:
    """How a plan of the same bytes differs from the receipt, in words; None if it does not. It can where the source is
    in the names of a layout: what lies beside the file then counts too."""
    if receipt.source.layout is None:
        return None
    source = location.index()
    with source.trusted():
        plan = make_plan(source.read(mappings), mappings, request.options)
    tensors = {key: piece.record() for key, piece in plan.mapped.items()}
    if plan.architecture.record() == receipt.architecture and tensors == receipt.tensors:
        return None
    return "the config.json or conversion.json beside the file that it was converted from says something else now"


def _vouched(found: EarlierConversion, location: Location, mappings: Mappings, request: Request) -> EarlierConversion:
    """The folder, with what was done about files of tensors that were touched since the receipt was written.

    Raises CannotRun if they are not what was converted.
    """
    if not found.touched or request.verify:
        return found
    files = f"{', '.join(found.touched)} changed or {'were' if len(found.touched) > 1 else 'was'} copied"
    since = f"{files} after {RECEIPT_NAME} was written"
    if request.trust:
        return replace(found, note=f"{since}; trusted, and not read (--trust)")
    from sam3lite_convert.commands.verify import verify_folder

    source = fetch(location, mappings, request)
    proof = verify_folder(found.path, source, mappings, request.options.causal, record=False)
    if proof.verdict != "proven":
        raise CannotRun(
            f"{found.path} exists and was not changed: {since}, and is not what this checkpoint converts to "
            f"({proof.summary}). Replace it with --overwrite, or choose another folder with --output DIR.",
            "output_exists",
        )
    return replace(found, note=f"{since}; compared with the checkpoint: every tensor is as it was converted")


def complete(
    location: Location,
    mappings: Mappings,
    request: Request,
    found: EarlierConversion,
    progress: Progress | None = None,
) -> ConvertDocument:
    """The document of a folder that is up to date. Added is only what an earlier run could not do or was not
    asked for: tokenizer files, licence files, a proof, parity. ``progress``: called with "verify"."""
    folder, receipt = found.path, side_files.without_lost_graphs(found.path, found.receipt)
    check_onnx(request)
    said = [found.note] if found.note else []
    before = {n: (folder / n).stat().st_mtime_ns for n in sizes(folder)}
    reads = side_files.takes_processor_files(receipt)
    wanted = side_files.wants_tokenizer(receipt, request.tokenizer, request.tokenizer_asked)
    gone = set(side_files.missing(folder, receipt, wanted))
    gone -= set(side_files.missing_licences(folder, receipt))
    # A run that was cut off may have left files that the receipt does not know of.
    unknown = wanted and receipt.tokenizer is None
    wants_tokenizer = request.tokenizer_named or unknown or not processor_files.TOKENIZER_NAMES.isdisjoint(gone)
    wants_files = wants_tokenizer or (bool(gone) and reads)
    if request.strict.nonfinite and receipt.nonfinite:
        refuse(receipt.nonfinite)
    changed = side_files.edited(folder, receipt)
    if changed and request.model_id:
        raise CannotRun(
            f"not pushed: {', '.join(changed)} in {folder} was edited after the conversion. --overwrite converts "
            "again.",
            "edited",
        )
    if side_files.wants_licences(folder, receipt):
        receipt, unlicensed = side_files.add_licences(folder, receipt, _licences(receipt, location, request))
        receipt, _ = side_files.write_receipt(folder, receipt)
        lost = side_files.missing_licences(folder, receipt)
        if lost and unlicensed is None:
            unlicensed = f"{', '.join(lost)} is missing. To add it, run this with access to the Hub"
        said += [unlicensed] if unlicensed else []
    why = verification = parity = None
    wants_fingerprint = side_files.FINGERPRINT_NAME in gone
    if request.verify or request.parity or wants_files or wants_fingerprint:
        whole = (request.verify or request.parity or wants_fingerprint) and not request.partial
        source = fetch(location, mappings, request) if whole or request.partial else location.index()
        with source.trusted():
            plan = (
                make_plan(source.read(mappings), mappings, request.options)
                if wants_files or wants_fingerprint
                else None
            )
            if plan is not None and wants_fingerprint:
                receipt, _ = add_fingerprint(folder, receipt, start_fingerprint(plan))
                receipt, _ = side_files.write_receipt(folder, receipt)
            if plan is not None and wants_files:
                tokenizer = side_files.fetch_tokenizer(
                    plan, request.tokenizer if wants_tokenizer else None, True, request.cache
                )
                receipt, why = side_files.add_processor_files(folder, receipt, plan, tokenizer)
                receipt, _ = side_files.write_receipt(folder, receipt)
            if request.verify:
                verification = verified(folder, source, mappings, request, folder, progress=progress)
                receipt = replace(receipt, proven=verification.proven)
            if request.onnx:
                receipt = with_text_graph(folder, receipt, mappings)
            if request.parity:
                receipt, parity = add_parity(folder, receipt, source, mappings, request)
    changed = side_files.edited(folder, receipt)
    late = [*said, *([f"{', '.join(changed)}: edited since the conversion, and kept as it is"] if changed else [])]
    receipt, note = side_files.write_receipt(folder, _renewed(receipt, location, request))
    late += [note] if note else []
    document = ConvertDocument(
        state="current",
        checkpoint=location.name,
        option=location.option,
        output=str(folder),
        dry_run=False,
        layout=receipt.layout,
        component=receipt.component,
        dtype=receipt.dtype,
        architecture=receipt.architecture,
        context=receipt.context,
        counts=receipt.counts,
        notes=(),
        mapping=str(request.mapping) if request.mapping else None,
    )
    document = finished(document, folder, receipt, location, request, why, late, verification, parity)
    added = sorted(n for n in document.done.files if before.get(n) != (folder / n).stat().st_mtime_ns)
    added = [n for n in added if n not in (RECEIPT_NAME, CARD_NAME)]
    return replace(document, written=replace(document.done, added=tuple(added)))


def _licences(receipt: Receipt, location: Location, request: Request) -> Worker[list[LicenceText]] | None:
    """Start to fetch the licence files of the folder's source; None if they are not known.

    Of a folder that is pushed they are looked up where its receipt says that the source is.
    """
    source = receipt.source
    if location.file is not None and location.file.repo == source.repo:
        return start_licences(location)
    if not request.model_id or source.repo is None or source.file is None or source.commit is None:
        return None
    repository, file = HubLocation(source.repo, source.commit, request.cache).repository(), source.file
    return Worker(lambda: repository.licence_texts(repository.licence_files(file)))


def _renewed(receipt: Receipt, location: Location, request: Request) -> Receipt:
    """The receipt with the repository that the card is to name now, and with the licence if it could not be read
    before."""
    licence = receipt.source.licence
    if licence is None and receipt.source.repo and location.file is not None and location.file.licence is not None:
        licence = dict(location.file.licence)
    source = replace(receipt.source, licence=licence)
    return replace(receipt, source=source, model_id=request.model_id or receipt.model_id)


def has_all(found: EarlierConversion, request: Request) -> bool:
    """Whether a current folder also has what the request adds to the tensors, as it was written."""
    receipt = found.receipt
    if side_files.wants_licences(found.path, receipt):
        return False
    wanted = side_files.wants_tokenizer(receipt, request.tokenizer, request.tokenizer_asked)
    if side_files.missing(found.path, receipt, wanted) or side_files.edited(found.path, receipt):
        return False
    if request.onnx and TEXT_MODEL not in receipt.beside:
        return False
    if request.onnx and request.parity and receipt.graph_parity is None:
        return False
    return not request.tokenizer_named and not (request.parity and receipt.parity is None)
