"""Where a report goes: one HTML file, which takes the place of an earlier report and of nothing else."""

from __future__ import annotations

from pathlib import Path

from sam3lite_convert.errors import CannotRun
from sam3lite_convert.output import write_whole

GENERATOR = "sam3lite-convert report"  # stands in every report's head


def check_report_place(path: Path) -> None:
    """Raises CannotRun where no report can go: before the work, so that none is lost."""
    if path.is_dir():
        raise CannotRun(f"{path} is a folder; name the report's file, for example {path / 'report.html'}", "usage")
    if not path.parent.is_dir():
        raise CannotRun(f"{path.parent}: no such folder for the report", "no_such_folder")
    if path.exists() and not _is_report(path):
        raise CannotRun(f"{path} exists and is no report of ours, so it was kept; name another file", "output_exists")


def _is_report(path: Path) -> bool:
    with path.open("rb") as file:
        return GENERATOR.encode() in file.read(4096)


def write_report(path: Path, page: str) -> None:
    """Write it whole or not at all. Raises CannotRun as ``check_report_place`` does."""
    check_report_place(path)
    write_whole(path, page.encode("utf-8", "backslashreplace"))
