"""Checks a converted folder against its checkpoint."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sam3lite_convert.commands.sources import Source
from sam3lite_convert.plan.tables import Mappings
from sam3lite_convert.records.receipt import Losses
from sam3lite_convert.records.shared import PageFacts
from sam3lite_convert.records.verify import Mismatch, VerifyDocument
from sam3lite_convert.workers import Advance

if TYPE_CHECKING:
    from sam3lite_convert.plan.plan import Plan
    from sam3lite_convert.verify.verify import Verification


def verify_folder(
    folder: Path,
    source: Source,
    mappings: Mappings,
    causal: bool = False,
    progress: Callable[[str], Advance] | None = None,
    report_of: str | None = None,
) -> VerifyDocument:
    """Prove a folder; ``verdict`` says whether it is its source. ``report_of``: the command as it was typed, if the
    document also has to hold what a page shows.

    Raises CannotRun if there is no folder, or none of a known layout; UnsoundPlan if no plan fits the checkpoint;
    Untrusted if a file is damaged.
    """
    from sam3lite_convert.commands.provenance import provenance
    from sam3lite_convert.convert.folder import read_folder
    from sam3lite_convert.verify.recognise import recognise  # loads numpy; convert starts without
    from sam3lite_convert.verify.verify import verify  # loads numpy; convert starts without

    found = read_folder(folder)
    options = found.receipt.get("options") if found.receipt else None
    causal = causal or bool(isinstance(options, dict) and options.get("causal"))
    with source.trusted():
        plan = recognise(found, source.read(), mappings, causal)
        outcome = verify(found, plan, progress, partial(_fingerprint, folder, plan))
    page = provenance(plan, found, report_of) if report_of is not None else None
    return _document(outcome, folder, source, page)


def _fingerprint(folder: Path, plan: Plan) -> str | None:
    """What is wrong with the folder's fingerprint, if it has one."""
    from sam3lite_convert.commands.fingerprint import FINGERPRINT_NAME, fault_of

    path = folder / FINGERPRINT_NAME
    if not path.exists() or importlib.util.find_spec("torch") is None:
        return None
    return fault_of(path, plan)


def _document(outcome: Verification, folder: Path, source: Source, page: PageFacts | None) -> VerifyDocument:
    plan, lost = outcome.plan, outcome.lost
    return VerifyDocument(
        folder=str(folder),
        checkpoint=source.name,
        option=source.option,
        source=source.provenance(),
        targets=plan.counts.target,
        verdict="proven" if outcome.proven else "mismatch",
        up_to=outcome.up_to,
        summary=_summary(outcome),
        layout=plan.layout.name,
        component=plan.options.component,
        dtype=plan.floating_dtype,
        checked=outcome.checked,
        findings=tuple(outcome.findings),
        mismatched=tuple(Mismatch(key=key, why=why) for key, why in outcome.mismatched),
        missing=tuple(outcome.missing),
        unexpected=tuple(outcome.unexpected),
        lost=lost,
        lost_words=tuple(_lost_words(lost)),
        notes=tuple(outcome.notes),
        page=page,
    )


def _summary(outcome: Verification) -> str:
    if not outcome.proven:
        return outcome.summary
    counted = f"{outcome.equal:,} of {outcome.plan.counts.target:,} tensors turn back into their source"
    return f"{counted}, up to {outcome.up_to}" if outcome.up_to else f"{counted} bit for bit"


def _lost_words(lost: Losses) -> Iterator[str]:
    if lost.dropped:
        kinds = ", ".join(f"{n} {label}" for label, n in lost.dropped.by_kind.items())
        yield f"{lost.dropped.tensors} dropped tensors ({kinds})"
    if lost.class_row:
        yield f"the class row of {lost.class_row.tensor}"
    if lost.positions:
        yield f"the last {lost.positions.rows} rows of {lost.positions.tensor}"
    if lost.cast:
        changed, error = lost.cast.changed_values, lost.cast.max_abs_error
        yield f"what the cast rounded off ({changed:,} values, max abs error {error:.3g})"
