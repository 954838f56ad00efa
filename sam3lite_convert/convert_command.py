"""What the options of ``convert`` say together: which do not go together, where a push goes, and what is
shown while it runs.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from sam3lite_convert import hub_report, interrupts, report
from sam3lite_convert.aliases import ALIASES
from sam3lite_convert.errors import CannotRun


def check_together(asked: set[str], checkpoint: str | None, component: str, verify: bool | None) -> None:
    """Raises CannotRun for options that do not go together."""
    if checkpoint is None and "--all" not in asked:
        raise CannotRun(
            f"convert needs --checkpoint: a file, an alias ({', '.join(ALIASES)}) or a path on the Hub; or --all",
            "usage",
        )
    for one, other in (
        ("--all", "--checkpoint"), ("--all", "--dry-run"), ("--all", "--hub-model-id"), ("--all", "--partial"),
        ("--partial", "--push-to-hub"), ("--dry-run", "--push-to-hub"), ("--dry-run", "--parity"),
        ("--dry-run", "--verify"), ("--dry-run", "--fail-on-nonfinite"),
    ):  # fmt: skip
        if {one, other} <= asked | ({"--checkpoint"} if checkpoint is not None else set()):
            raise CannotRun(f"{one} and {other} do not go together", "usage")
    for one, needed in (
        ("--pattern", "--all"), ("--hub-namespace", "--all"), ("--hub-model-id", "--push-to-hub"),
        ("--hub-namespace", "--push-to-hub"), ("--private", "--push-to-hub"), ("--create-pr", "--push-to-hub"),
        ("--commit-message", "--push-to-hub"), ("--hub-overwrite", "--push-to-hub"),
    ):  # fmt: skip
        if one in asked and needed not in asked:
            raise CannotRun(f"{one} says something about {needed}, which was not given", "usage")
    if "--push-to-hub" in asked and verify is False:
        raise CannotRun("nothing is pushed that was not verified: leave --no-verify out", "usage")
    if "--partial" in asked and component != "text":
        raise CannotRun("--partial fetches the text tensors alone, so it goes with --component text", "usage")


class Destination:
    """Where a folder is pushed to, if it is: what the options say about it."""

    def __init__(
        self,
        asked: bool,
        repo: str | None,
        namespace: str | None,
        private: bool,
        pr: bool,
        message: str | None,
        replace: bool,
    ) -> None:
        self.asked, self._repo, self._namespace = asked, repo, namespace
        self._how = (private, pr, message, replace)

    def check(self) -> None:
        """Raises CannotRun where there is no token that the Hub accepts."""
        from sam3lite_convert.push import user_name

        user = user_name()
        self._namespace = self._namespace or user
        if self._repo is not None and "/" not in self._repo:
            self._repo = f"{user}/{self._repo}"

    def target(self, location: Any) -> Any:
        from sam3lite_convert.push import Target, check_name

        repo = self._repo or f"{self._namespace}/{location.path.stem}"
        check_name(repo)
        return Target(repo, *self._how)


def convert_one(location: Any, mappings: Any, request: Any, to: Destination, hashing: Any, json: bool) -> Any:
    """Convert one checkpoint, telling the terminal; returns its record."""
    from sam3lite_convert.batch import Told, publish
    from sam3lite_convert.conversions import find_current

    if to.asked:
        to.check()
    target = to.target(location) if to.asked else None
    bars = _Bars(json)
    quiet = (lambda record: None) if json else None
    told = Told(
        planned=quiet or bars.planned,
        written=quiet or bars.written,
        pushes=quiet or hub_report.push_planned,
        progress=bars.progress,
    )
    try:
        with hashing or nullcontext():
            found = find_current(location, mappings, request, hashing)
            return publish(location, mappings, request, found, target, told, hashing)
    finally:
        bars.close()


def convert_all(where: Any, pattern: str, mappings: Any, request: Any, to: Destination, json: bool) -> Any:
    """Convert every checkpoint that fits, telling the terminal; returns the record of all."""
    from sam3lite_convert import batch
    from sam3lite_convert.batch import Told

    target = None
    if to.asked:
        to.check()  # a missing token shows before the first download
        target = to.target
    bars = _Bars(json)
    if json:
        told = Told()
    else:
        told = Told(
            planned=bars.remember,
            pushes=hub_report.push_planned,
            begins=hub_report.batch_begins,
            ends=hub_report.batch_ends,
            progress=bars.progress,
        )
    try:
        return batch.convert_all(where, pattern, mappings, request, target, told)
    finally:
        bars.close()


class _Bars:
    """Bars that appear with the first byte, when the plan has been printed and the totals are known."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._totals = {"write": 0, "hash": 0}
        self._context: Any = None
        self._inner: Any = None

    def planned(self, record: dict[str, Any]) -> None:

        self.remember(record)
        report.planned(record)

    def remember(self, record: dict[str, Any]) -> None:
        self.close()
        self._totals = {"write": record["bytes"], "hash": record["size"]}

    def written(self, record: dict[str, Any]) -> None:

        self.close()
        report.converted(record)

    def progress(self, location: Any) -> Any:
        return self._advance

    def _advance(self, what: str) -> Any:

        if self._context is None:
            labels = {"write": "writing", "hash": "hashing the source"}
            self._context = report.byte_progress(self._totals, labels, self._quiet)
            self._inner = self._context.__enter__()
        advance = self._inner(what)

        def checked(n: int) -> None:
            interrupts.check()
            advance(n)

        return checked

    def close(self) -> None:
        if self._context is not None:
            self._context.__exit__(None, None, None)
            self._context = None
