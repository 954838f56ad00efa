"""One conversion, from the checkpoint that is named to the folder in its place: what is there already,
the download, the writing, the proof.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sam3lite_convert import convert as conversion
from sam3lite_convert import current, extras, processor_files
from sam3lite_convert.architecture import SAM3_TEXT_PARAMETERS
from sam3lite_convert.card import CARD_NAME
from sam3lite_convert.errors import CannotRun, Sam3LiteError
from sam3lite_convert.folder import Folder
from sam3lite_convert.hashing import SourceHash, sha256_of
from sam3lite_convert.nonfinite import Strict, refuse
from sam3lite_convert.output import check_destination, check_space, clear_leftovers, leftovers, same_disk
from sam3lite_convert.plan import Options, Plan, make_plan
from sam3lite_convert.receipt import RECEIPT_NAME
from sam3lite_convert.sources import Location, Source
from sam3lite_convert.streams import Advance
from sam3lite_convert.summary import components, dtype_counts, text_parameters
from sam3lite_convert.tables import Mappings

Record = dict[str, Any]
Progress = Callable[[str], Advance]


class NotProven(Sam3LiteError):
    """Exit 1: the folder that was written is not its source."""

    exit_code = 1


@dataclass(frozen=True)
class Request:
    """What is asked beside the plan. ``max_shard_size`` in bytes; ``verify`` and ``parity``: checks to run on the
    folder; ``tokenizer``: folder or repository to take one from, None to leave it out, and ``tokenizer_named``
    where the user named it; ``model_id``: the repository that the card names; ``partial``: fetch the text
    tensors alone; ``strict``: which values are refused; ``command``: what the user typed, to be typed again."""

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

    def folder(self, location: Location) -> Path:
        """Where the conversion goes."""
        return self.output or conversion.default_output(location.path, self.options)


def plan_record(source: Source, plan: Plan) -> Record:
    """The summary of a planned conversion, by component."""
    checkpoint = plan.checkpoint
    return {
        "checkpoint": source.name,
        "option": source.option,
        "source": source.provenance(),
        "fetched": source.fetched(),
        "size": checkpoint.size,
        "format": checkpoint.format,
        "wrapper": checkpoint.wrapper,
        "prefix": plan.names.prefix,
        "dtypes": dtype_counts(checkpoint),
        "layout": plan.layout.name,
        "component": plan.options.component,
        "dtype": plan.floating_dtype,
        "architecture": plan.architecture.record(),
        "text_parameters": text_parameters(plan),
        "sam3_text_parameters": int(SAM3_TEXT_PARAMETERS),
        "components": {k: c.record() for k, c in components(checkpoint, plan.names, plan).items()},
        "counts": plan.counts,
        "dropped": {d.label: d.reason for d in plan.dropped.values()},
        "bytes": plan.out_nbytes,
        "notes": conversion.plan_notes(plan),
    }


def plan_conversion(location: Location, mappings: Mappings, request: Request) -> Record:
    """The record of a dry run: nothing is written, and of a file on the Hub only the index is read."""
    source = location.index()
    with source.trusted():
        plan = make_plan(source.read(), mappings, request.options)
    return _planned(source, plan, request, request.folder(location)) | {"state": "planned", "dry_run": True}


def _planned(source: Source, plan: Plan, request: Request, folder: Path) -> Record:
    record = plan_record(source, plan) | {"output": str(folder), "dry_run": False}
    record["notes"] += [
        f"left over from an interrupted run; the next conversion to this place removes it: {p}"
        for p in leftovers(folder)
    ]
    if folder.exists() and not request.overwrite:
        record["notes"].append(f"{folder} exists; without --overwrite it is kept")
    return record


def find_current(
    location: Location, mappings: Mappings, request: Request, hashing: SourceHash | None = None
) -> Folder | None:
    """The folder of an earlier run that already is what this one would write; None where there is none.

    Raises CannotRun where something else lies there and may not be replaced. Of a file on the Hub
    nothing is read: its etag says what it is. ``hashing``: under way over a local file.
    """
    folder = request.folder(location)
    clear_leftovers(folder)
    if request.overwrite or not current.present(folder):
        return None
    found = current.earlier(folder)
    why: str | None
    if isinstance(found, str):
        why = found
    else:
        receipt = found.receipt or {}
        why = current.difference(receipt, request.options, request.max_shard_size, mappings)
        if why is None:
            identity = location.file.etag if location.file else None
            if identity is None:  # a local file, or a cache without symbolic links, which tell the etag
                identity = hashing.digest() if hashing else sha256_of(location.here())
            if current.same_source(receipt, identity):
                return found
            why = f"it was converted from another file ({receipt['source'].get('name')})"
    raise CannotRun(
        f"{folder} exists and was kept as it is: {why}. Replace it with --overwrite, or name another folder with "
        "--output DIR.",
        "output_exists",
    )


def fetch(location: Location, mappings: Mappings, request: Request, beside: int = 0) -> Source:
    """The checkpoint on this machine, with room left for what is made of it. ``beside``: bytes that
    something else is about to write.

    Raises CannotRun where there is no room for both, before anything is downloaded.
    """
    if request.partial:
        return location.text(mappings, request.options.causal)
    if location.repository is None or location.file is None or location.file.here:
        return location.whole()
    # A conversion writes about as much as it reads. Where both go to one disk, both have to fit.
    beside += location.file.size
    place = request.folder(location).parent
    check_space(place, beside, f"the conversion of {location.name} is to be written")
    return location.whole(beside if same_disk(place, location.repository.place) else 0)


def convert_checkpoint(
    location: Location,
    mappings: Mappings,
    request: Request,
    planned: Callable[[Record], None] = lambda record: None,
    progress: Progress | None = None,
    hashing: SourceHash | None = None,
) -> Record:
    """Plan and write, and prove if asked to. For a place where nothing is, or ``overwrite``.

    ``planned`` is told the plan before the first byte moves. ``hashing``: one that has begun with this
    (local) file already.
    """
    folder = request.folder(location)
    with ExitStack() as stack:
        if hashing is not None:
            stack.enter_context(hashing)
        # What stands in the way is said before anything is downloaded.
        check_destination(folder, request.overwrite, location.path, 0)
        source = fetch(location, mappings, request)
        hashing = hashing or stack.enter_context(source.hashing())
        stack.enter_context(source.trusted())
        checkpoint = source.read()
        hashing.check(checkpoint)
        plan = make_plan(checkpoint, mappings, request.options)
        record = _planned(source, plan, request, folder)
        planned(record)
        record |= {"state": "converted", "verification": None, "parity": None}
        tokenizer = extras.fetch_tokenizer(plan, request.tokenizer, request.cache)
        why: list[str | None] = []

        def finish(work: Path, receipt: Record) -> None:
            extras.note_config(work, receipt)
            why.append(extras.add_processor_files(work, receipt, plan, tokenizer))
            if request.verify:
                record["verification"] = _verified(work, source, mappings, request, folder)

        done = conversion.convert(
            plan,
            hashing,
            folder,
            request.overwrite,
            request.max_shard_size,
            progress,
            finish,
            request.model_id,
            request.strict,
        )
        if request.parity:
            record["parity"] = _add_parity(folder, done.receipt, source, mappings, request)
            extras.write_receipt(folder, done.receipt)
    late = [n for n in done.receipt["notes"] if n not in record["notes"]]
    return _finished(record, folder, done.receipt, location, request, why[0], late)


def complete(location: Location, mappings: Mappings, request: Request, found: Folder) -> Record:
    """The record of a folder that is current. Added is only what an earlier run could not do or was not
    asked for: tokenizer files, a proof, parity."""
    folder, receipt = found.path, found.receipt or {}
    record: Record = {
        "state": "current", "checkpoint": location.name, "option": location.option, "output": str(folder),
        "dry_run": False,
        **{k: receipt.get(k) for k in ("layout", "component", "dtype", "architecture", "counts")},
        "notes": [], "verification": None, "parity": None,
    }  # fmt: skip
    before = {n: (folder / n).stat().st_mtime_ns for n in _sizes(folder)}
    gone = extras.missing(folder, receipt, request.tokenizer is not None)
    # A run that was cut off may have left files that the receipt does not know of.
    unknown = request.tokenizer is not None and not receipt.get("tokenizer")
    wants_tokenizer = request.tokenizer_named or unknown or not processor_files.TOKENIZER_NAMES.isdisjoint(gone)
    wants_files = (wants_tokenizer or bool(gone)) and receipt.get("library") == "transformers"
    if request.strict.nonfinite and (special := receipt.get("nonfinite")):
        refuse(special, ", ".join(list(special)[:5]))
    changed = extras.edited(folder, receipt)
    if changed and request.model_id:
        raise CannotRun(
            f"{', '.join(changed)} in {folder} was edited since the conversion, so it is not pushed. --overwrite makes "
            "the folder anew.",
            "edited",
        )
    why = None
    if request.verify or request.parity or wants_files:
        whole = (request.verify or request.parity) and not request.partial
        source = fetch(location, mappings, request) if whole or request.partial else location.index()
        with source.trusted():
            if wants_files:
                plan = make_plan(source.read(), mappings, request.options)
                tokenizer = extras.fetch_tokenizer(plan, request.tokenizer if wants_tokenizer else None, request.cache)
                why = extras.add_processor_files(folder, receipt, plan, tokenizer)
                extras.write_receipt(folder, receipt)
            if request.verify:
                record["verification"] = _verified(folder, source, mappings, request, folder)
            if request.parity:
                record["parity"] = _add_parity(folder, receipt, source, mappings, request)
    changed = extras.edited(folder, receipt)
    late = [f"{', '.join(changed)}: edited since the conversion, and kept as it is"] if changed else []
    receipt["model_id"] = request.model_id or receipt.get("model_id")
    if location.file is not None and receipt["source"].get("licence") is None and receipt["source"].get("repo"):
        receipt["source"]["licence"] = location.file.licence
    note = extras.write_receipt(folder, receipt)
    late += [note] if note else []
    record = _finished(record, folder, receipt, location, request, why, late)
    added = sorted(n for n in record["files"] if before.get(n) != (folder / n).stat().st_mtime_ns)
    return record | {"added": [n for n in added if n not in (RECEIPT_NAME, CARD_NAME)]}


def _finished(
    record: Record,
    folder: Path,
    receipt: Record,
    location: Location,
    request: Request,
    why: str | None,
    late: list[str],
) -> Record:
    """The record with what is in the folder, and what is missing there and how to add it."""
    if receipt.get("library") == "transformers" and request.tokenizer is not None:
        absent = extras.missing(folder, receipt, True)
    else:
        absent = []
    if absent:
        command = request.command or f"sam3lite convert --checkpoint {location.option} --layout {receipt['layout']}"
        because = f" ({why})" if why else ""
        late = [
            *late,
            f"no tokenizer in the folder: {', '.join(absent)} missing{because}. To add them, run this where the Hub is "
            f"reached, or with a folder that holds CLIP's tokenizer: {command} --tokenizer DIR_OR_REPO",
        ]
    record["notes"] += late
    return record | {
        "files": _sizes(folder),
        "source": receipt["source"],
        "lost": receipt["lost"],
        "missing_files": absent,
        "parity_verdict": (receipt.get("parity") or {}).get("verdict"),
        "late_notes": late,
    }


def has_all(found: Folder, request: Request) -> bool:
    """Whether a current folder also has what the request adds to the tensors, as it was written."""
    receipt = found.receipt or {}
    if extras.missing(found.path, receipt, request.tokenizer is not None) or extras.edited(found.path, receipt):
        return False
    return not request.tokenizer_named and not (request.parity and not receipt.get("parity"))


def _sizes(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_size for p in sorted(folder.iterdir()) if p.is_file()}


def _verified(work: Path, source: Source, mappings: Mappings, request: Request, folder: Path) -> Record:
    """The record of a proof. Raises NotProven where it does not succeed."""
    from sam3lite_convert.commands import verify_folder

    record = verify_folder(work, source, mappings, request.options.causal) | {"folder": str(folder)}
    if record["verdict"] != "proven":
        faults = [f"{m['key']}: {m['why']}" for m in record["mismatched"]]
        faults += [f"{key} is missing" for key in record["missing"]]
        faults += [f"{key} is not part of the model" for key in record["unexpected"]]
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise NotProven(f"{folder} does not verify: {'; '.join(faults[:3])}{more}", "not_proven", record)
    return record


def _add_parity(folder: Path, receipt: Record, source: Source, mappings: Mappings, request: Request) -> Record:
    """Run parity on the folder, and keep what a reader of the card wants of it in the receipt."""
    from sam3lite_convert.parity_commands import run_parity
    from sam3lite_convert.parity_setup import ParityOptions

    record = run_parity(source, mappings, ParityOptions(causal=request.options.causal), folder)
    kept = ("verdict", "reference", "candidate_encoder", "attention", "dtype", "tolerance", "max_abs_diff")
    taps = ("name", "max_abs_diff", "isolated_max_abs_diff", "relative_l2")
    receipt["parity"] = {key: record[key] for key in kept} | {
        "inputs": record["inputs"]["what"],
        "layers": [{key: layer[key] for key in taps} for layer in record["layers"]],
    }
    return record
