"""Conversions with an optional push: one checkpoint, several, or all of a repository."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from sam3lite_convert.checkpoint.file_set import stem_of
from sam3lite_convert.checkpoint.hashing import SourceHash
from sam3lite_convert.commands.convert import Progress, Request, convert_checkpoint, fetch
from sam3lite_convert.commands.reuse import complete, find_current, has_all
from sam3lite_convert.commands.sources import HubLocation, Location, Source
from sam3lite_convert.convert import write as conversion
from sam3lite_convert.convert.up_to_date import EarlierConversion
from sam3lite_convert.errors import CannotRun, Sam3LiteError
from sam3lite_convert.plan.tables import Mappings
from sam3lite_convert.records.convert import (
    ConvertAllDocument,
    ConvertDocument,
    FailedConversion,
    FailureDetails,
    PushPlanRecord,
    PushRecord,
)
from sam3lite_convert.records.receipt import ParitySummary
from sam3lite_convert.unforeseen import expected
from sam3lite_convert.workers import Worker

if TYPE_CHECKING:
    from sam3lite_convert.commands.push import PushTarget
    from sam3lite_convert.convert.folder import Folder


@dataclass(frozen=True)
class Callbacks:
    """Called while conversions run; each does nothing by default.

    ``planned``: with a plan's document, before the first byte is written.
    ``written``: with the document of a finished folder.
    ``pushes``: with a push plan's record, before anything is sent.
    ``begins``: with number, total, location and what is done, before each of several files.
    ``ends``: with the result of each of several files.
    ``hashes``: with the hash of a local file and its path, where that file is read before there is a plan.
    ``progress``: returns the progress callback for a location, or None.
    """

    planned: Callable[[ConvertDocument], None] = lambda document: None
    written: Callable[[ConvertDocument], None] = lambda document: None
    pushes: Callable[[PushPlanRecord], None] = lambda plan: None
    begins: Callable[[int, int, Location, str], None] = lambda number, total, location, what: None
    ends: Callable[[ConvertDocument | FailedConversion], None] = lambda result: None
    hashes: Callable[[SourceHash, Path], None] = lambda hashing, path: None
    progress: Callable[[Location], Progress | None] = lambda location: None


def publish(
    location: Location,
    mappings: Mappings,
    request: Request,
    found: EarlierConversion | None,
    target: PushTarget | None,
    callbacks: Callbacks,
    hashing: SourceHash | None = None,
) -> ConvertDocument:
    """Convert, and push where there is a ``target``. What is converted and pushed already is not read again.

    ``found``: the folder of an earlier run that is up to date (``find_current``). Raises as ``convert_checkpoint``
    and ``push`` do; after a failed push the folder is kept.
    """

    def made(request: Request) -> ConvertDocument:
        progress = callbacks.progress(location)
        if found is not None:
            document = complete(location, mappings, request, found, progress)
        else:
            document = convert_checkpoint(location, mappings, request, callbacks.planned, progress, hashing)
        callbacks.written(document)
        return document

    if target is None:
        return made(request)
    from sam3lite_convert.commands.push import plan_push, push

    if found is not None and has_all(found, request) and (plan := plan_push(found.path, target)).nothing:
        document = made(replace(request, verify=False, parity=False))
        parity = found.receipt.parity if request.parity else None
        return _with_push(document, push(found.path, plan, None), parity=parity)
    proven: list[Folder] = []
    document = made(replace(request, verify=True, model_id=target.repo, proven=proven.append))
    if document.done.differs:
        # What does not do as the original does is not for others.
        return _with_push(document, PushRecord(repo=target.repo, state="not pushed"))
    plan = plan_push(Path(document.output), target)
    callbacks.pushes(plan.record())
    return _with_push(document, push(Path(document.output), plan, document.done.verification, proven[0]))


def _with_push(document: ConvertDocument, pushed: PushRecord, parity: ParitySummary | None = None) -> ConvertDocument:
    """``parity``: what an earlier run found, where this one did not run it."""
    return replace(document, written=replace(document.done, push=pushed, parity=parity or document.done.parity))


def convert_all(
    where: HubLocation,
    pattern: str,
    mappings: Mappings,
    request: Request,
    target: Callable[[Location], PushTarget] | None = None,
    callbacks: Callbacks | None = None,
) -> ConvertAllDocument:
    """Every checkpoint of the repository that fits ``pattern``, as ``convert_several`` does.

    Raises CannotRun where nothing fits, and where two files would go into one folder.
    """
    repository = where.repository()
    found_there = repository.matching(pattern)
    found: dict[str, Location | Sam3LiteError] = dict(sorted(found_there.failed.items()))
    found |= {f.path: Location(f.path, Path(f.path), repository, f, where=where) for f in found_there.files}
    advice = "choose a --pattern that matches only one of them"
    return replace(
        convert_several(found, mappings, request, target, callbacks, advice),
        repo=where.repo,
        commit=found_there.commit,
        pattern=pattern,
        left_out=found_there.left_out,
        odd_entries=found_there.odd or None,
    )


def convert_several(
    found: Mapping[str, Location | Sam3LiteError],
    mappings: Mappings,
    request: Request,
    target: Callable[[Location], PushTarget] | None = None,
    callbacks: Callbacks | None = None,
    advice: str = "convert each with an --output of its own",
) -> ConvertAllDocument:
    """Checkpoints by their names, each into a folder of its own under ``request.output``. While one is converted the
    next one is downloaded, and no more than that.

    One that fails, or that was not found, does not stop the rest: its result holds the fault. Raises CannotRun where
    two would go into one folder; ``advice`` says how to go on.
    """
    callbacks = callbacks or Callbacks()
    root = request.output or Path("converted")

    def output(stem: str) -> Path:
        return root / conversion.default_output(stem, request.options).name

    locations = [location for location in found.values() if isinstance(location, Location)]
    requests = [replace(request, output=request.folder_in(root, location)) for location in locations]
    _check_distinct(locations, requests, advice)
    states: list[EarlierConversion | Sam3LiteError | None] = []
    targets: list[PushTarget | None] = []
    for location, own in zip(locations, requests, strict=True):
        try:
            targets.append(None)
            targets[-1] = target(location) if target else None
            states.append(find_current(location, mappings, own) if location.file is not None else None)
        except Exception as fault:
            states.append(expected(fault))
    waiting = [i for i, state in enumerate(states) if state is None and locations[i].file is not None]
    ahead: dict[int, Worker[Source]] = {}
    results: list[ConvertDocument | FailedConversion] = []
    for name, why in found.items():
        if isinstance(why, Sam3LiteError):
            results.append(_failed(name, output(stem_of(PurePosixPath(name).name)), why))
            callbacks.ends(results[-1])
    for i, (location, own) in enumerate(zip(locations, requests, strict=True)):
        state = states[i]
        callbacks.begins(i + 1, len(locations), location, "convert" if state is None else "look at")
        result: ConvertDocument | FailedConversion
        try:
            if isinstance(state, Sam3LiteError):
                raise state
            if location.file is None:
                result = convert_one(location, mappings, own, targets[i], callbacks)
            else:
                if state is None:
                    source = ahead.pop(i).result() if i in ahead else fetch(location, mappings, own)
                    location = replace(location, file=replace(source.hub, cached=source.path) if source.hub else None)
                    later = [n for n in waiting if n > i]
                    # What matches patterns of others is done in this thread, where the time that they take is bounded.
                    if later and not (own.partial and mappings.own):
                        # The output of this checkpoint is not written yet when the next download starts.
                        room = location.file.size if location.file else 0
                        job = partial(fetch, locations[later[0]], mappings, requests[later[0]], room)
                        ahead[later[0]] = Worker(job)
                result = publish(location, mappings, own, state, targets[i], callbacks)
        except Exception as fault:
            result = _failed(location.name, own.output, expected(fault))
        callbacks.ends(result)
        results.append(result)
    counts = Counter(result.state for result in results)
    return ConvertAllDocument(
        output=str(root),
        left_out=(),
        results=tuple(results),
        counts={state: counts[state] for state in ("converted", "current", "failed")},
        verdict="failed" if any(isinstance(r, FailedConversion) or r.done.differs for r in results) else "done",
    )


def convert_one(
    location: Location,
    mappings: Mappings,
    request: Request,
    target: PushTarget | None,
    callbacks: Callbacks,
    hashing: SourceHash | None = None,
) -> ConvertDocument:
    """Convert, and push where there is a ``target``, one checkpoint; what lies there already is held against its hash.

    ``hashing``: the hash of its file, if it was begun before. Raises as ``publish`` does.
    """
    if hashing is None and location.file is None:
        hashing = SourceHash(location.path)
    with hashing or nullcontext():
        if hashing is not None and request.folder(location).exists():
            callbacks.hashes(hashing, location.path)
        found = find_current(location, mappings, request, hashing)
        return publish(location, mappings, request, found, target, callbacks, hashing)


def _failed(checkpoint: str, output: Path | None, fault: Sam3LiteError) -> FailedConversion:
    error = FailureDetails(code=fault.code, message=fault.message, details=fault.details, exit_code=fault.exit_code)
    return FailedConversion(checkpoint=checkpoint, output=str(output), state="failed", error=error)


def _check_distinct(locations: list[Location], requests: list[Request], advice: str) -> None:
    taken: dict[Path | None, Location] = {}
    for location, request in zip(locations, requests, strict=True):
        other = taken.setdefault(request.output, location)
        if other is not location:
            raise CannotRun(
                f"{other.name} and {location.name} would both be written to {request.output}; {advice}",
                "same_output",
            )
