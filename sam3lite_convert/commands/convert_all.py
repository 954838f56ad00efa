"""Conversions with an optional push: one checkpoint, or all of a repository."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam3lite_convert.checkpoint.hashing import SourceHash
from sam3lite_convert.commands.convert import Progress, Record, Request, convert_checkpoint, fetch
from sam3lite_convert.commands.reuse import complete, find_current, has_all
from sam3lite_convert.commands.sources import HubLocation, Location, Source
from sam3lite_convert.convert import write as conversion
from sam3lite_convert.convert.folder import Folder
from sam3lite_convert.errors import CannotRun, Sam3LiteError
from sam3lite_convert.plan.tables import Mappings
from sam3lite_convert.workers import Worker

if TYPE_CHECKING:
    from sam3lite_convert.commands.push import PushTarget


@dataclass(frozen=True)
class Callbacks:
    """Called while conversions run; each does nothing by default.

    ``planned``: with a plan's record, before the first byte is written.
    ``written``: with the record of a finished folder.
    ``pushes``: with a push plan's record, before anything is sent.
    ``begins``: with number, total, location and what is done, before each file of ``convert_all``.
    ``ends``: with the record of each file of ``convert_all``.
    ``progress``: returns the progress callback for a location, or None.
    """

    planned: Callable[[Record], None] = lambda record: None
    written: Callable[[Record], None] = lambda record: None
    pushes: Callable[[Record], None] = lambda record: None
    begins: Callable[[int, int, Location, str], None] = lambda number, total, location, what: None
    ends: Callable[[Record], None] = lambda record: None
    progress: Callable[[Location], Progress | None] = lambda location: None


def publish(
    location: Location,
    mappings: Mappings,
    request: Request,
    found: Folder | None,
    target: PushTarget | None,
    callbacks: Callbacks,
    hashing: SourceHash | None = None,
) -> Record:
    """Convert, and push if there is a ``target``. A checkpoint that is converted and pushed already is not read again.

    ``found``: the folder of an earlier run that is up to date (``find_current``). Raises as ``convert_checkpoint``
    and ``push`` do; after a failed push the folder is kept.
    """

    def made(request: Request) -> Record:
        if found is not None:
            record = complete(location, mappings, request, found)
        else:
            progress = callbacks.progress(location)
            record = convert_checkpoint(location, mappings, request, callbacks.planned, progress, hashing)
        callbacks.written(record)
        return record

    if target is None:
        return made(request) | {"push": None}
    from sam3lite_convert.commands.push import plan_push, push

    if found is not None and has_all(found, request) and (plan := plan_push(found.path, target)).nothing:
        record = made(replace(request, verify=False, parity=False))
        record["parity"] = (found.receipt or {}).get("parity") if request.parity else None
        return record | {"push": push(found.path, plan, None)}
    record = made(replace(request, verify=True, model_id=target.repo))
    if differs(record):
        # A folder that fails parity is not published.
        return record | {"push": {"repo": target.repo, "state": "not pushed"}}
    plan = plan_push(Path(record["output"]), target)
    callbacks.pushes(plan.record())
    return record | {"push": push(Path(record["output"]), plan, record["verification"])}


def convert_all(
    where: HubLocation,
    pattern: str,
    mappings: Mappings,
    request: Request,
    target: Callable[[Location], PushTarget] | None = None,
    callbacks: Callbacks | None = None,
) -> Record:
    """Convert every checkpoint of the repository that matches ``pattern``, each to a folder under ``request.output``.

    While one is converted, the next one is downloaded, but not more than one. A failure does not stop the others; the
    record of that checkpoint holds the error. Raises CannotRun if nothing matches, or if two files would be written
    to the same folder.
    """
    callbacks = callbacks or Callbacks()
    repository = where.repository()
    files = repository.matching(pattern)
    locations = [Location(f.path, Path(f.path), repository, f) for f in files]
    root = request.output or Path("converted")
    requests = [
        replace(request, output=root / conversion.default_output(x.path, request.options).name) for x in locations
    ]
    _check_distinct(locations, requests)
    found: list[Folder | Sam3LiteError | None] = []
    targets: list[PushTarget | None] = []
    for location, own in zip(locations, requests, strict=True):
        try:
            targets.append(None)
            targets[-1] = target(location) if target else None
            found.append(find_current(location, mappings, own))
        except Sam3LiteError as fault:
            found.append(fault)
    waiting = [i for i, state in enumerate(found) if state is None]
    ahead: dict[int, Worker] = {}
    results = []
    for i, (location, own) in enumerate(zip(locations, requests, strict=True)):
        to_do = "convert" if found[i] is None else "look at"
        callbacks.begins(i + 1, len(locations), location, to_do)
        result: Record = {"checkpoint": location.name, "output": str(own.output)}
        try:
            state = found[i]
            if isinstance(state, Sam3LiteError):
                raise state
            if state is None:
                source: Source = ahead.pop(i).result() if i in ahead else fetch(location, mappings, own)
                location = replace(location, file=replace(source.hub, cached=source.path) if source.hub else None)
                later = [n for n in waiting if n > i]
                if later:
                    # The output of this checkpoint is not written yet when the next download starts.
                    room = location.file.size if location.file else 0
                    job = partial(fetch, locations[later[0]], mappings, requests[later[0]], room)
                    ahead[later[0]] = Worker(job)
            result |= publish(location, mappings, own, state, targets[i], callbacks)
        except Sam3LiteError as fault:
            result |= {"state": "failed", "error": _error(fault)}
        except OSError as fault:
            result |= {
                "state": "failed",
                "error": _error(CannotRun(f"{fault.filename or ''}: {fault.strerror or fault}")),
            }
        callbacks.ends(result)
        results.append(result)
    counts = Counter(r["state"] for r in results)
    return {
        "repo": where.repo,
        "commit": files[0].commit,
        "pattern": pattern,
        "output": str(root),
        "results": results,
        "counts": {state: counts[state] for state in ("converted", "current", "failed")},
        "verdict": "failed" if counts["failed"] or any(map(differs, results)) else "done",
    }


def differs(record: Record) -> bool:
    """Whether parity failed, now or in an earlier run."""
    return "differs" in ((record.get("parity") or {}).get("verdict"), record.get("parity_verdict"))


def _error(fault: Sam3LiteError) -> dict[str, Any]:
    return {"code": fault.code, "message": fault.message, "exit_code": fault.exit_code}


def _check_distinct(locations: list[Location], requests: list[Request]) -> None:
    taken: dict[Path | None, Location] = {}
    for location, request in zip(locations, requests, strict=True):
        other = taken.setdefault(request.output, location)
        if other is not location:
            raise CannotRun(
                f"{other.name} and {location.name} would both be written to {request.output}; choose a --pattern that "
                "matches only one of them",
                "same_output",
            )
