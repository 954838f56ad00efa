"""Writes an HTML report, which may replace an earlier report but no other file."""

from __future__ import annotations

import os
import re
from pathlib import Path

from sam3lite_convert.convert.receipt import RECEIPT_NAME
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.files import resolved, write_whole
from sam3lite_convert.opened import open_regular
from sam3lite_convert.report.html import GENERATOR
from sam3lite_convert.seen import Seen, look


def check_report_place(path: Path) -> Seen:
    """What stands at ``path``, with links followed, which may be replaced.

    Raises CannotRun if no report can be written there. To be called before the work, so that none is lost.
    """
    earlier = look(resolved(path))
    if path.is_dir():
        raise CannotRun(
            f"--report {path} is a folder; give the name of a file, for example {path / 'report.html'}", "usage"
        )
    if path.suffix.lower() not in (".html", ".htm"):
        raise CannotRun(f"--report {path}: the name must end in .html", "usage")
    folder = resolved(path).parent
    if not folder.is_dir():
        raise CannotRun(f"--report {path}: no such folder: {path.parent}", "no_such_folder")
    if (folder / RECEIPT_NAME).exists():
        raise CannotRun(
            f"--report {path}: {path.parent} is a converted folder, which holds no other files; choose another folder",
            "usage",
        )
    if not os.access(folder, os.W_OK):
        raise CannotRun(f"--report {path}: permission denied", "os_error")
    if path.exists() and not (path.is_file() and _is_report(path)):
        raise CannotRun(
            f"--report {path}: the file exists and is not a report of this tool; choose another name", "output_exists"
        )
    return earlier


def _is_report(path: Path) -> bool:
    with open_regular(path) as file:
        head = file.read(4096)
    mark = rb'<meta name="generator" content="' + re.escape(GENERATOR.encode()) + rb'">'
    return head.startswith(b"<!doctype html>") and re.search(mark, head) is not None


def write_report(path: Path, page: str) -> None:
    """Write the file as a whole or not at all. Raises CannotRun as ``check_report_place`` does."""
    earlier = check_report_place(path)
    # A link is kept, and the file that it points to is replaced.
    write_whole(resolved(path), page.encode("utf-8", "backslashreplace"), earlier)
