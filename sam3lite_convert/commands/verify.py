"""Checks a converted folder against its checkpoint."""

from __future__ import annotations

from pathlib import Path

from sam3lite_convert.commands.inspect import Progress, Record
from sam3lite_convert.commands.sources import Source
from sam3lite_convert.plan.tables import Mappings


def verify_folder(
    folder: Path,
    source: Source,
    mappings: Mappings,
    causal: bool = False,
    progress: Progress | None = None,
    report_of: str | None = None,
) -> Record:
    """Compare every tensor of a folder with its checkpoint; the record's ``verdict`` is ``proven`` or ``mismatch``.

    ``report_of``: the command line as typed, if the record must also hold what an HTML report shows.
    """
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
        "source": source.provenance(),
        "targets": plan.counts["target"],
        **record,
        **(provenance(plan, found, report_of) if report_of is not None else {}),
    }
