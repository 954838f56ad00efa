"""What several commands need: finding CHECKPOINT, the command line as typed, threads, reports and exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sam3lite_convert.cli.mistakes import SHOWN, Mistake, alike
from sam3lite_convert.errors import CannotRun, Sam3LiteError
from sam3lite_convert.hub.aliases import ALIASES
from sam3lite_convert.quoting import shell_line
from sam3lite_convert.unforeseen import expected

if TYPE_CHECKING:
    from sam3lite_convert.checkpoint.selection import Selection
    from sam3lite_convert.commands.sources import HubLocation, Location, Source
    from sam3lite_convert.plan.tables import Mappings

# Casts are done in small pieces beside the thread that hashes; more threads only get in its way.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
typed_arguments: list[str] = []


def one_checkpoint(argument: str | None, option: str | None) -> str | None:
    """CHECKPOINT, which may be given as an argument or as ``--checkpoint``; None if neither is given.

    Raises CannotRun if both are given and differ.
    """
    if argument is not None and option is not None and argument != option:
        raise CannotRun(f"two checkpoints: {argument} and --checkpoint {option}; give one of them", "usage")
    return argument if argument is not None else option


def many_checkpoints(arguments: Sequence[str] | None, option: str | None) -> list[str]:
    """The checkpoints of a command that takes several, each once; empty if none is given.

    Raises CannotRun if ``--checkpoint`` is given too and differs.
    """
    names = list(dict.fromkeys(arguments or ()))
    if len(names) > 1 and option is not None:
        raise CannotRun(f"give --checkpoint {option} as an argument, like the others", "usage")
    name = one_checkpoint(names[0] if names else None, option)
    return names or ([name] if name is not None else [])


def needed_checkpoint(name: str | None, command: str, instead: str = "") -> str:
    """CHECKPOINT, which is the first argument of ``command``. ``instead``: what else could be given.

    Raises Mistake if it is None.
    """
    if name is None:
        raise Mistake(
            f"{command} needs a checkpoint: a file or folder, an alias ({', '.join(ALIASES)}), or a path or page on "
            f"the Hub{instead}",
            lambda line: line.with_argument(0, "s0"),
            example=True,
        )
    return name


def check_choice(option: str, value: str | None, names: Sequence[str], fault: CannotRun) -> None:
    """Raises the fault unless the value of an option is one of the names; with the name that was meant, if it is clear.

    For options whose names are known only when the tables are read.
    """
    if value is not None and value not in names:
        lower = {name.lower(): name for name in names}
        if len(meant := alike(value.lower(), list(lower))) == 1:
            raise Mistake(fault.message, lambda line: line.with_option(option, lower[meant[0]]), code=fault.code)
        raise fault


def check_layout(layout: str | None, mappings: Mappings) -> None:
    """Raises CannotRun, before anything is looked up, if ``--layout`` names no layout."""
    try:
        if layout is not None:
            mappings.check_name(layout)
    except CannotRun as fault:
        check_choice("--layout", layout, mappings.names, fault)


def check_family(family: str | None) -> None:
    """Raises CannotRun, before anything is looked up, if ``--family`` names no family."""
    from sam3lite_convert.plan.families import FAMILIES, family_named

    try:
        if family is not None:
            family_named(family)
    except CannotRun as fault:
        check_choice("--family", family, list(FAMILIES), fault)


def check_of_detector(given: Mapping[str, object]) -> None:
    """Raises CannotRun if one of these options of ``--component detector`` is given: to be called without it."""
    for name, value in given.items():
        if value:
            raise Mistake(
                f"{name} needs --component detector", lambda line: line.with_option("--component", "detector")
            )


def is_checkpoint(name: str) -> bool:
    """Whether the name is that of a file, or an alias, where a folder is expected."""
    return Path(name).is_file() or (name in ALIASES and not Path(name).is_dir())


def wrong_order(first: str, second: str) -> Mistake:
    """The error for a checkpoint that stands where the folder should, and the other way round."""
    return Mistake(
        f"{first} is a checkpoint and {second} a folder: swap them", lambda line: line.swapped(first, second)
    )


def locate(
    name: str, repo_id: str, revision: str, cache_dir: Path | None, quiet: bool, selection: Selection
) -> Location:
    """Find CHECKPOINT, on this machine or on the Hub. Raises CannotRun if it does not exist."""
    from sam3lite_convert.commands.sources import locate

    if name == "help" and not Path(name).exists():
        raise Mistake("help is not a checkpoint", lambda line: [*line.head, "--help"])
    return locate(name, where(repo_id, revision, cache_dir, quiet), selection)


def found_or_fault(
    name: str, repo_id: str, revision: str, cache_dir: Path | None, quiet: bool, selection: Selection
) -> Location | Sam3LiteError:
    """As ``locate``, for one of several, whose fault does not stop the others: it is returned."""
    from sam3lite_convert.unforeseen import expected

    try:
        return locate(name, repo_id, revision, cache_dir, quiet, selection)
    except Exception as fault:
        return expected(fault)


def text_source(location: Location, partial: bool, mappings: Mappings, causal: bool, json: bool) -> Source:
    """The checkpoint: whole, or with the bytes of the text tensors alone."""
    from sam3lite_convert.report.bars import byte_progress

    if not partial:
        return location.whole()
    totals = {"fetch": None}
    with byte_progress(totals, {"fetch": "fetching the text tensors"}, json) as progress:
        return location.text(mappings, causal, progress("fetch"))


def tensor_bytes(folder: Path) -> int | None:
    """Bytes of a folder's files of tensors; None if it is no folder."""
    if not folder.is_dir():
        return None
    return sum(p.stat().st_size for p in folder.iterdir() if p.suffix in (".safetensors", ".bin"))


def where(repo_id: str, revision: str, cache_dir: Path | None, quiet: bool) -> HubLocation:
    """The Hub repository in which names are looked up."""
    from sam3lite_convert.commands.sources import HubLocation

    quiet_hub(quiet)
    return HubLocation(repo_id, revision, cache_dir)


def use_one_thread() -> None:
    """Limit numerical libraries to one thread; must be called before they are imported."""
    for name, value in _ONE_THREAD.items():
        os.environ.setdefault(name, value)


def typed() -> str:
    """The command line as typed, for messages that suggest to run it again: without ``--overwrite``, and without what
    only says how the result is shown."""
    kept = [a for a in typed_arguments if a not in (*SHOWN, "--overwrite")]
    return shell_line(["sam3lite", *kept])


def quiet_hub(quiet: bool) -> None:
    """Send messages of huggingface_hub to stderr, or nowhere if ``quiet``; progress bars only on a terminal."""
    from sam3lite_convert.hub import log
    from sam3lite_convert.report.bars import shows_bars
    from sam3lite_convert.report.terminal import note

    log.send_to(None if quiet else note)
    if client := sys.modules.get("sam3lite_convert.hub.requests"):
        client.take_over_client()  # imported before, by a program that runs the command line in itself
    if not shows_bars(quiet):
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def write_report(path: Path, page: Callable[[], str]) -> str | None:
    """Write the page; returns what went wrong, which is also said on stderr. The result is kept."""
    from sam3lite_convert.cli import report_place
    from sam3lite_convert.report import terminal

    try:
        report_place.write_report(path, page())
    except (Sam3LiteError, OSError) as fault:
        message = expected(fault).message
        terminal.fault(message)
        return message
    terminal.note(f"Report: {path}")
    return None


def leave(failed: bool, written: bool) -> None:
    """Exit with code 1 if a check failed, or 2 if the report was not written; return otherwise."""
    if failed or not written:
        raise typer.Exit(1 if failed else 2)


def one_format(json: bool, markdown: bool) -> None:
    """Raises CannotRun if the result is asked for in two formats."""
    if json and markdown:
        raise CannotRun("--json and --markdown exclude each other", "usage")
