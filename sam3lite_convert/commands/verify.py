"""Prove a converted folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sam3lite_convert.commands.sources import Source
from sam3lite_convert.plan.tables import Mappings
from sam3lite_convert.workers import Advance

Record = dict[str, Any]


def verify_folder(
    folder: Path,
    source: Source,
    mappings: Mappings,
    causal: bool = False,
    progress: Callable[[str], Advance] | None = None,
    report_of: str | None = None,
) -> Record:
    """Prove a folder; the record's ``verdict`` says whether it is. ``report_of``: the command as it was typed,
    where the record also has to hold what a report shows."""
    from sam3lite_convert.commands.provenance import provenance
    from sam3lite_convert.convert.folder import read_folder
    from sam3lite_convert.verify.recognise import recognise  # loads numpy; convert starts without
    from sam3lite_convert.verify.verify import verify  # loads numpy; convert starts without

    found = read_folder(folder)
    receipt = found.receipt.get("options") if found.receipt else None
    causal = causal or bool(isinstance(receipt, dict) and receipt.get("causal"))
    with source.trusted():
        plan = recognise(found, source.read(), mappings, causal)
        record = verify(found, plan, progress).record()
    return {
        "folder": str(folder),
        "checkpoint": source.name,
        "option": source.option,
        "source": origin.to_json() if (origin := source.provenance()) else None,
        "targets": plan.counts.target,
        **record,
        **(provenance(plan, found, report_of).to_json() if report_of is not None else {}),
    }
