"""``sam3lite verify``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sam3lite_convert.checkpoint.selection import selection
from sam3lite_convert.cli import options as o
from sam3lite_convert.cli.mistakes import Mistake
from sam3lite_convert.cli.shared import (
    is_checkpoint,
    leave,
    locate,
    one_checkpoint,
    one_format,
    quiet_hub,
    tensor_bytes,
    typed,
    use_one_thread,
    write_report,
    wrong_order,
)
from sam3lite_convert.hub.aliases import DEFAULT_REPO, DEFAULT_REVISION

if TYPE_CHECKING:
    from sam3lite_convert.commands.folders import FolderLocation
    from sam3lite_convert.commands.sources import Location, Source
    from sam3lite_convert.plan.tables import Mappings
    from sam3lite_convert.records.verify import VerifyDocument


def verify(
    folder: o.FolderArgument,
    source: o.SourceArgument = None,
    checkpoint: o.CheckpointOption = None,
    partial: o.Partial = False,
    whole: o.WholeFolder = False,
    causal: o.Causal = False,
    state_dict_key: o.StateDictKey = None,
    strip_prefix: o.StripPrefix = None,
    drop: o.Drop = None,
    reason: o.Reason = None,
    mapping: o.Mapping = None,
    repo_id: o.RepoId = DEFAULT_REPO,
    revision: o.Revision = DEFAULT_REVISION,
    cache_dir: o.CacheDir = None,
    html: o.HtmlReport = None,
    markdown: o.Markdown = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    json: o.Json = False,
) -> None:
    """Check every tensor of a converted folder against its checkpoint.

    Of a folder on the Hub, names, shapes, dtypes and config.json are checked by range requests; --partial compares the
    values of the text encoder too (at most 400 MB), --whole all. Of a local folder the ONNX graphs are checked too, and
    if it is proven its conversion.json says so from then on, which export onnx asks for. Exits with code 1, and lists
    the differences, if the folder does not match.

    Examples:
    # A folder against the file that it was converted from:
    sam3lite verify my-sam3 my.pt
    # A repository on the Hub, with its values, and a page of the result:
    sam3lite verify me/my-sam3 my.pt --whole --report proof.html
    """
    from sam3lite_convert.cli.report_place import check_report_place
    from sam3lite_convert.commands.folders import locate_folder
    from sam3lite_convert.commands.verify import check_extent, checkpoint_of, read_with_weights
    from sam3lite_convert.plan.tables import load_mappings
    from sam3lite_convert.report.terminal import as_json
    from sam3lite_convert.report.verify import verified, verified_markdown

    one_format(json, markdown)
    chosen = selection(state_dict_key, strip_prefix, drop, reason)
    use_one_thread()
    name = one_checkpoint(source, checkpoint)
    if name is None:
        there = checkpoint_of(Path(folder))
        raise Mistake(
            "verify needs the checkpoint that DIR was converted from: sam3lite verify DIR CHECKPOINT",
            lambda line: line.with_argument(1, there or "s0"),
            example=there is None,
        )
    if html is not None:
        check_report_place(html)
    if is_checkpoint(folder) and Path(name).is_dir():
        raise wrong_order(folder, name)
    place = locate_folder(folder, cache_dir)
    check_extent(place, partial, whole)
    quiet_hub(json)
    mappings, report_of = load_mappings(mapping), typed() if html else None
    if place.where is None or whole:
        path, repository = place.whole()
        read_with_weights(path)  # first: a folder that cannot be read needs no download of the checkpoint
        found = locate(name, repo_id, revision, cache_dir, json, chosen).whole()
        # A repository's copy belongs to the cache, and is not written to.
        document = _verify(path, found, mappings, causal, json, report_of, place.where is None)
        document = replace(document, folder=place.name, repository=repository)
    else:
        location = locate(name, repo_id, revision, cache_dir, json, chosen)
        document = _verify_repository(place, location, mappings, causal, partial, json, report_of)
    if html is not None:
        from sam3lite_convert.report.html.page import verify_page

        document = replace(document, report_error=write_report(html, lambda: verify_page(document)))
    (as_json if json else verified_markdown if markdown else verified)(document)
    leave(document.verdict == "mismatch", document.report_error is None)


def _verify(
    folder: Path, source: Source, mappings: Mappings, causal: bool, json: bool, report_of: str | None, record: bool
) -> VerifyDocument:
    from sam3lite_convert.commands.verify import verify_folder
    from sam3lite_convert.report.bars import byte_progress

    totals = {"write": tensor_bytes(folder), "hash": source.size}
    with byte_progress(totals, {"write": "comparing", "hash": "hashing the source"}, json) as progress:
        return verify_folder(folder, source, mappings, causal, progress, report_of, record=record)


def _verify_repository(
    folder: FolderLocation,
    checkpoint: Location,
    mappings: Mappings,
    causal: bool,
    partial: bool,
    json: bool,
    report_of: str | None,
) -> VerifyDocument:
    from sam3lite_convert.commands.verify import verify_repository
    from sam3lite_convert.report.bars import byte_progress

    totals = dict.fromkeys(("fetch", "write", "hash"))
    labels = {"fetch": "fetching values", "write": "comparing", "hash": "hashing the source"}
    with byte_progress(totals, labels, json) as progress:
        return verify_repository(folder, checkpoint, mappings, causal, partial, progress, report_of)
