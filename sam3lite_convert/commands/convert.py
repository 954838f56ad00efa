"""One conversion, from the name of a checkpoint to the finished folder: download, plan, write, verify."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sam3lite_convert.checkpoint.hashing import SourceHash
from sam3lite_convert.commands.sources import Location, Source
from sam3lite_convert.convert import side_files
from sam3lite_convert.convert import write as conversion
from sam3lite_convert.convert.strict import Strict
from sam3lite_convert.convert.whole_folder import check_destination
from sam3lite_convert.errors import Sam3LiteError
from sam3lite_convert.files import check_space, leftovers, same_disk
from sam3lite_convert.plan.architecture import SAM3_TEXT_PARAMETERS
from sam3lite_convert.plan.counts import components, dtype_counts, text_parameters
from sam3lite_convert.plan.plan import Options, Plan, make_plan
from sam3lite_convert.plan.tables import Mappings
from sam3lite_convert.workers import Advance

Record = dict[str, Any]
Progress = Callable[[str], Advance]


class NotProven(Sam3LiteError):
    """Exit 1: the verification of a written folder failed."""

    exit_code = 1


@dataclass(frozen=True)
class Request:
    """What is asked of a conversion.

    ``options``: what the plan depends on.
    ``output``: folder to write; None for the default one.
    ``overwrite``: replace an earlier conversion.
    ``max_shard_size``: in bytes; None for one file.
    ``verify``, ``parity``: checks to run on the folder.
    ``tokenizer``: folder or Hub repository with CLIP's tokenizer; None to leave it out.
    ``tokenizer_named``: whether the user named it.
    ``cache``: folder for downloads; None for the cache of huggingface_hub.
    ``model_id``: the repository that the model card names.
    ``partial``: download only the text tensors.
    ``command``: the command line as typed, for messages.
    ``strict``: which values are refused.
    """

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
        """The folder to write."""
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
    """The record of a dry run. Nothing is written; of a file on the Hub only the index is downloaded."""
    source = location.index()
    with source.trusted():
        plan = make_plan(source.read(), mappings, request.options)
    return _planned(source, plan, request, request.folder(location)) | {"state": "planned", "dry_run": True}


def _planned(source: Source, plan: Plan, request: Request, folder: Path) -> Record:
    record = plan_record(source, plan) | {"output": str(folder), "dry_run": False}
    record["notes"] += [
        f"left over from an interrupted run; the next conversion to this folder removes it: {p}"
        for p in leftovers(folder)
    ]
    if folder.exists() and not request.overwrite:
        record["notes"].append(f"{folder} exists; --overwrite replaces it")
    return record


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
    planned: Callable[[Record], None] = lambda record: None,
    progress: Progress | None = None,
    hashing: SourceHash | None = None,
) -> Record:
    """Plan and write one conversion; verify it and run parity if asked to.

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
        tokenizer = side_files.fetch_tokenizer(plan, request.tokenizer, request.cache)
        why: list[str | None] = []

        def finish(work: Path, receipt: Record) -> None:
            side_files.note_config(work, receipt)
            why.append(side_files.add_processor_files(work, receipt, plan, tokenizer))
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
            side_files.write_receipt(folder, done.receipt)
    late = [n for n in done.receipt["notes"] if n not in record["notes"]]
    return _finished(record, folder, done.receipt, location, request, why[0], late)


def _finished(
    record: Record,
    folder: Path,
    receipt: Record,
    location: Location,
    request: Request,
    why: str | None,
    late: list[str],
) -> Record:
    """The record completed with the files of the folder, and a note on missing tokenizer files."""
    if receipt.get("library") == "transformers" and request.tokenizer is not None:
        absent = side_files.missing(folder, receipt, True)
    else:
        absent = []
    if absent:
        command = request.command or f"sam3lite convert --checkpoint {location.option} --layout {receipt['layout']}"
        because = f" ({why})" if why else ""
        late = [
            *late,
            f"the tokenizer is incomplete, {', '.join(absent)} missing{because}. To add it, run this with access to "
            f"the Hub, or with a folder that holds CLIP's tokenizer: {command} --tokenizer DIR_OR_REPO",
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


def _sizes(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_size for p in sorted(folder.iterdir()) if p.is_file()}


def _verified(work: Path, source: Source, mappings: Mappings, request: Request, folder: Path) -> Record:
    """The record of a verification. Raises NotProven if it fails."""
    from sam3lite_convert.commands.verify import verify_folder

    record = verify_folder(work, source, mappings, request.options.causal) | {"folder": str(folder)}
    if record["verdict"] != "proven":
        faults = [f"{m['key']}: {m['why']}" for m in record["mismatched"]]
        faults += [f"{key} is missing" for key in record["missing"]]
        faults += [f"{key} is not part of the model" for key in record["unexpected"]]
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise NotProven(f"verification of {folder} failed: {'; '.join(faults[:3])}{more}", "not_proven", record)
    return record


def _add_parity(folder: Path, receipt: Record, source: Source, mappings: Mappings, request: Request) -> Record:
    """Run parity on the folder; the results that the model card shows go into the receipt."""
    from sam3lite_convert.commands.parity import run_parity
    from sam3lite_convert.parity.setup import ParityOptions

    record = run_parity(source, mappings, ParityOptions(causal=request.options.causal), folder)
    kept = ("verdict", "reference", "candidate_encoder", "attention", "dtype", "tolerance", "max_abs_diff")
    taps = ("name", "max_abs_diff", "isolated_max_abs_diff", "relative_l2")
    receipt["parity"] = {key: record[key] for key in kept} | {
        "inputs": record["inputs"]["what"],
        "layers": [{key: layer[key] for key in taps} for layer in record["layers"]],
    }
    return record
