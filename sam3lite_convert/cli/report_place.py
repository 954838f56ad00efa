"""Where a report goes: one HTML file, which takes the place of an earlier report and of nothing else."""

from __future__ import annotations

import os
import re
from pathlib import Path

from sam3lite_convert.convert.receipt import RECEIPT_NAME
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.files import resolved, write_whole
from sam3lite_convert.report.html import GENERATOR


def check_report_place(path: Path) -> None:
    """Raises CannotRun where no report can go: before the work, so that none is lost."""
    if path.is_dir():
        raise CannotRun(f"{path} is a folder; name the report's file, for example {path / 'report.html'}", "usage")
    if path.suffix.lower() not in (".html", ".htm"):
        raise CannotRun(f"--report {path}: the report is a page, so name it FILE.html", "usage")
    folder = resolved(path).parent
    if not folder.is_dir():
        raise CannotRun(f"{path.parent}: no such folder for the report", "no_such_folder")
    if (folder / RECEIPT_NAME).exists():
        raise CannotRun(
            f"{path.parent} is a converted folder and holds the conversion's own files alone; put the report beside it",
            "usage",
        )
    if not os.access(folder, os.W_OK):
        raise CannotRun(f"{path.parent}: no report can be written there (permission denied)", "os_error")
    if path.exists() and not (path.is_file() and _is_report(path)):
        raise CannotRun(f"{path} exists and is no report of ours, so it was kept; name another file", "output_exists")


def _is_report(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(4096)
    mark = rb'<meta name="generator" content="' + re.escape(GENERATOR.encode()) + rb'">'
    return head.startswith(b"<!doctype html>") and re.search(mark, head) is not None


def write_report(path: Path, page: str) -> None:
    """Write it whole or not at all. Raises CannotRun as ``check_report_place`` does."""
    check_report_place(path)
    # Through a link, to the file that it names.
    write_whole(resolved(path), page.encode("utf-8", "backslashreplace"))
