"""What the commands share: where CHECKPOINT is, the command as it was typed, how many threads."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sam3lite_convert.errors import Sam3LiteError

if TYPE_CHECKING:
    from sam3lite_convert.commands.sources import HubLocation, Location

# Casts are done in small pieces beside the thread that hashes; more threads only get in its way.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
typed_arguments: list[str] = []


def locate(name: str, repo_id: str, revision: str, cache_dir: Path | None, quiet: bool) -> Location:
    """Where CHECKPOINT is; one on the Hub is looked up."""
    from sam3lite_convert.commands.sources import locate

    return locate(name, where(repo_id, revision, cache_dir, quiet))


def where(repo_id: str, revision: str, cache_dir: Path | None, quiet: bool) -> HubLocation:
    """The repository that names are looked up in."""
    from sam3lite_convert.commands.sources import HubLocation

    quiet_hub(quiet)
    return HubLocation(repo_id, revision, cache_dir)


def use_one_thread() -> None:
    """To be called before anything that computes is imported."""
    for name, value in _ONE_THREAD.items():
        os.environ.setdefault(name, value)


def typed() -> str:
    """The command as it was typed, to be typed again: without what would make the folder anew."""
    kept = [a for a in typed_arguments if a not in ("--json", "--overwrite")]
    return shlex.join(["sam3lite", *kept])


def quiet_hub(quiet: bool) -> None:
    """Have the Hub's library speak through this module: bars on a terminal only, notes on stderr."""
    from sam3lite_convert.hub import log
    from sam3lite_convert.report.terminal import is_terminal, note

    log.send_to(None if quiet else note)
    if client := sys.modules.get("sam3lite_convert.hub.requests"):
        client.take_over_client()  # imported before, by a program that runs the command line in itself
    if quiet or not is_terminal():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def write_report(path: Path, page: Callable[[], str]) -> str | None:
    """Write the page and say where it is. Returns what went wrong, which is said too: nothing of the result is lost."""
    from sam3lite_convert.cli import report_place
    from sam3lite_convert.report import terminal

    try:
        report_place.write_report(path, page())
    except Sam3LiteError as fault:
        terminal.fault(fault.message)
        return fault.message
    terminal.note(f"Report: {path}")
    return None


def leave(failed: bool, written: bool) -> None:
    """With exit code 1 where a check failed, and 2 where it held and its report could not be written."""
    if failed or not written:
        raise typer.Exit(1 if failed else 2)
