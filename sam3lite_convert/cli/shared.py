"""What the commands share: where CHECKPOINT is, the command as it was typed, how many threads."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import typer

from sam3lite_convert.errors import Sam3LiteError

# Casts are done in small pieces beside the thread that hashes; more threads only get in its way.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
typed_arguments: list[str] = []


def locate(name: str, repo_id: str, revision: str, cache_dir: Path | None, quiet: bool) -> Any:
    """Where CHECKPOINT is; one on the Hub is looked up."""
    from sam3lite_convert.commands.sources import locate

    return locate(name, where(repo_id, revision, cache_dir, quiet))


def where(repo_id: str, revision: str, cache_dir: Path | None, quiet: bool) -> Any:
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


def write_report(path: Path | None, kind: str, record: dict[str, Any]) -> bool:
    """Whether the report is where it should be; a fault in that is said and loses nothing of the record."""
    if path is None:
        return True
    from sam3lite_convert.cli import report_place
    from sam3lite_convert.report import terminal
    from sam3lite_convert.report.html import page as html_report

    try:
        report_place.write_report(path, getattr(html_report, kind)(record))
    except Sam3LiteError as fault:
        record["report_error"] = fault.message
        terminal.fault(fault.message)
        return False
    terminal.note(f"Report: {path}")
    return True


def leave(failed: bool, written: bool) -> None:
    """With exit code 1 where a check failed, and 2 where it held and its report could not be written."""
    if failed or not written:
        raise typer.Exit(1 if failed else 2)
