"""``sam3lite verify``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sam3lite_convert.cli import options as o
from sam3lite_convert.cli.shared import leave, locate, one_checkpoint, typed, use_one_thread, write_report
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.hub.aliases import DEFAULT_REPO, DEFAULT_REVISION

if TYPE_CHECKING:
    from sam3lite_convert.commands.sources import Source
    from sam3lite_convert.plan.tables import Mappings
    from sam3lite_convert.records.verify import VerifyDocument


def verify(
    folder: o.FolderArgument,
    source: o.SourceArgument = None,
    checkpoint: o.CheckpointOption = None,
    causal: o.Causal = False,
    mapping: o.Mapping = None,
    repo_id: o.RepoId = DEFAULT_REPO,
    revision: o.Revision = DEFAULT_REVISION,
    cache_dir: o.CacheDir = None,
    html: o.HtmlReport = None,
    json: o.Json = False,
) -> None:
    """Check every tensor of a converted folder against its checkpoint.

    Exits with code 1, and lists the differences, if the folder does not match.
    """
    from sam3lite_convert.cli.report_place import check_report_place
    from sam3lite_convert.convert.folder import read_folder
    from sam3lite_convert.plan.tables import load_mappings
    from sam3lite_convert.report.terminal import as_json
    from sam3lite_convert.report.verify import verified

    use_one_thread()
    name = one_checkpoint(source, checkpoint)
    if name is None:
        raise CannotRun(
            "verify needs the checkpoint that DIR was converted from: sam3lite verify DIR CHECKPOINT", "usage"
        )
    if html is not None:
        check_report_place(html)
    # Read first: a folder that cannot be read needs no download.
    read_folder(folder)
    found = locate(name, repo_id, revision, cache_dir, json).whole()
    document = _verify(folder, found, load_mappings(mapping), causal, json, typed() if html else None)
    if html is not None:
        from sam3lite_convert.report.html.page import verify_page

        document = replace(document, report_error=write_report(html, lambda: verify_page(document)))
    (as_json if json else verified)(document)
    leave(document.verdict != "proven", document.report_error is None)


def _verify(
    folder: Path, source: Source, mappings: Mappings, causal: bool, json: bool, report_of: str | None
) -> VerifyDocument:
    from sam3lite_convert.commands.verify import verify_folder
    from sam3lite_convert.report.terminal import byte_progress

    written = sum(p.stat().st_size for p in folder.glob("*.safetensors")) if folder.is_dir() else 0
    totals = {"write": written, "hash": source.path.stat().st_size}
    with byte_progress(totals, {"write": "comparing", "hash": "hashing the source"}, json) as progress:
        return verify_folder(folder, source, mappings, causal, progress, report_of)
