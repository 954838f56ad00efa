"""What the commands share: where CHECKPOINT is, the command as it was typed, how many threads."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

# Casts are done in small pieces beside the thread that hashes; more threads only get in its way.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
typed_arguments: list[str] = []


def locate(name: str, repo_id: str, revision: str, cache_dir: Path | None, quiet: bool) -> Any:
    """Where CHECKPOINT is; one on the Hub is looked up."""
    from sam3lite_convert.sources import locate

    return locate(name, where(repo_id, revision, cache_dir, quiet))


def where(repo_id: str, revision: str, cache_dir: Path | None, quiet: bool) -> Any:
    """The repository that names are looked up in."""
    from sam3lite_convert import report
    from sam3lite_convert.sources import Where

    report.quiet_hub(quiet)
    return Where(repo_id, revision, cache_dir)


def use_one_thread() -> None:
    """To be called before anything that computes is imported."""
    for name, value in _ONE_THREAD.items():
        os.environ.setdefault(name, value)


def typed() -> str:
    """The command as it was typed, to be typed again: without what would make the folder anew."""
    kept = [a for a in typed_arguments if a not in ("--json", "--overwrite")]
    return shlex.join(["sam3lite", *kept])
