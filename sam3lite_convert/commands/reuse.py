"""The folder of an earlier run: whether it is up to date, and adding what is missing."""

from __future__ import annotations

from sam3lite_convert.checkpoint.hashing import SourceHash, sha256_of
from sam3lite_convert.commands.convert import Record, Request, _add_parity, _finished, _sizes, _verified, fetch
from sam3lite_convert.commands.sources import Location
from sam3lite_convert.convert import processor_files, side_files, up_to_date
from sam3lite_convert.convert.card import CARD_NAME
from sam3lite_convert.convert.folder import Folder
from sam3lite_convert.convert.receipt import RECEIPT_NAME
from sam3lite_convert.convert.strict import refuse
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.files import clear_leftovers
from sam3lite_convert.plan.plan import make_plan
from sam3lite_convert.plan.tables import Mappings


def find_current(
    location: Location, mappings: Mappings, request: Request, hashing: SourceHash | None = None
) -> Folder | None:
    """The folder of an earlier run if it holds what this one would write; None if nothing is there.

    A file on the Hub is not read: its etag is compared. ``hashing``: the hash of a local file, being computed.
    Raises CannotRun if the folder holds anything else and ``overwrite`` is not set.
    """
    folder = request.folder(location)
    clear_leftovers(folder)
    if request.overwrite or not up_to_date.present(folder):
        return None
    found = up_to_date.earlier(folder)
    why: str | None
    if isinstance(found, str):
        why = found
    else:
        receipt = found.receipt or {}
        why = up_to_date.difference(receipt, request.options, request.max_shard_size, mappings)
        if why is None:
            identity = location.file.etag if location.file else None
            if identity is None:  # a local file, or a cache without symbolic links, which tell the etag
                identity = hashing.digest() if hashing else sha256_of(location.here())
            if up_to_date.same_source(receipt, identity):
                return found
            why = f"it was converted from another file ({receipt['source'].get('name')})"
    raise CannotRun(
        f"{folder} exists and was not changed: {why}. Replace it with --overwrite, or choose another folder with "
        "--output DIR.",
        "output_exists",
    )


def complete(location: Location, mappings: Mappings, request: Request, found: Folder) -> Record:
    """The record of a folder that is up to date, after adding what is missing: tokenizer files, verification, parity.

    Raises CannotRun if a file that was edited would be pushed.
    """
    folder, receipt = found.path, found.receipt or {}
    record: Record = {
        "state": "current", "checkpoint": location.name, "option": location.option, "output": str(folder),
        "dry_run": False,
        **{k: receipt.get(k) for k in ("layout", "component", "dtype", "architecture", "counts")},
        "notes": [], "verification": None, "parity": None,
    }  # fmt: skip
    before = {n: (folder / n).stat().st_mtime_ns for n in _sizes(folder)}
    gone = side_files.missing(folder, receipt, request.tokenizer is not None)
    # An interrupted run may have written files that the receipt does not list.
    unknown = request.tokenizer is not None and not receipt.get("tokenizer")
    wants_tokenizer = request.tokenizer_named or unknown or not processor_files.TOKENIZER_NAMES.isdisjoint(gone)
    wants_files = (wants_tokenizer or bool(gone)) and receipt.get("library") == "transformers"
    if request.strict.nonfinite and (special := receipt.get("nonfinite")):
        refuse(special, ", ".join(list(special)[:5]))
    changed = side_files.edited(folder, receipt)
    if changed and request.model_id:
        raise CannotRun(
            f"not pushed: {', '.join(changed)} in {folder} was edited after the conversion. --overwrite converts "
            "again.",
            "edited",
        )
    why = None
    if request.verify or request.parity or wants_files:
        whole = (request.verify or request.parity) and not request.partial
        source = fetch(location, mappings, request) if whole or request.partial else location.index()
        with source.trusted():
            if wants_files:
                plan = make_plan(source.read(), mappings, request.options)
                tokenizer = side_files.fetch_tokenizer(
                    plan, request.tokenizer if wants_tokenizer else None, request.cache
                )
                why = side_files.add_processor_files(folder, receipt, plan, tokenizer)
                side_files.write_receipt(folder, receipt)
            if request.verify:
                record["verification"] = _verified(folder, source, mappings, request, folder)
            if request.parity:
                record["parity"] = _add_parity(folder, receipt, source, mappings, request)
    changed = side_files.edited(folder, receipt)
    late = [f"{', '.join(changed)}: edited after the conversion, and kept"] if changed else []
    receipt["model_id"] = request.model_id or receipt.get("model_id")
    if location.file is not None and receipt["source"].get("licence") is None and receipt["source"].get("repo"):
        receipt["source"]["licence"] = location.file.licence
    note = side_files.write_receipt(folder, receipt)
    late += [note] if note else []
    record = _finished(record, folder, receipt, location, request, why, late)
    added = sorted(n for n in record["files"] if before.get(n) != (folder / n).stat().st_mtime_ns)
    return record | {"added": [n for n in added if n not in (RECEIPT_NAME, CARD_NAME)]}


def has_all(found: Folder, request: Request) -> bool:
    """Whether an up-to-date folder also has all files and results that the request asks for, unedited."""
    receipt = found.receipt or {}
    if side_files.missing(found.path, receipt, request.tokenizer is not None) or side_files.edited(found.path, receipt):
        return False
    return not request.tokenizer_named and not (request.parity and not receipt.get("parity"))
