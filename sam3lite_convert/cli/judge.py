"""``sam3lite judge``."""

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
    text_source,
    typed,
    write_report,
)
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.hub.aliases import ALIASES, DEFAULT_REPO, DEFAULT_REVISION

if TYPE_CHECKING:
    from sam3lite_convert.commands.sources import Location
    from sam3lite_convert.plan.tables import Mappings
    from sam3lite_convert.records.parity import ParityDocument


def judge(
    file: o.ActivationsArgument,
    source: o.SourceArgument = None,
    checkpoint: o.CheckpointOption = None,
    component: o.JudgedPart = None,
    name: o.PortName = None,
    ids: o.IdsFile = None,
    fingerprint: o.FingerprintFile = None,
    tolerance: o.Tolerance = None,
    html: o.HtmlReport = None,
    markdown: o.Markdown = False,
    partial: o.Partial = False,
    context: o.ContextOption = None,
    causal: o.Causal = False,
    state_dict_key: o.StateDictKey = None,
    strip_prefix: o.StripPrefix = None,
    drop: o.Drop = None,
    reason: o.Reason = None,
    mapping: o.Mapping = None,
    repo_id: o.RepoId = DEFAULT_REPO,
    revision: o.Revision = DEFAULT_REVISION,
    cache_dir: o.CacheDir = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    json: o.Json = False,
) -> None:
    """Judge what a port computed, in any framework, against the original.

    FILE holds its activations. Exits with code 1 if they differ by more than the tolerance.

    Examples:
    # What a port computed, against the released file:
    sam3lite judge mine.safetensors s0 --name "my port"
    # The same without the checkpoint, by the fingerprint of a folder:
    sam3lite judge mine.npz --fingerprint my-sam3
    """
    from sam3lite_convert.cli import detector as whole
    from sam3lite_convert.cli.report_place import check_report_place
    from sam3lite_convert.plan.tables import load_mappings

    one_format(json, markdown)
    chosen = selection(state_dict_key, strip_prefix, drop, reason)
    found = one_checkpoint(source, checkpoint)
    if found is not None and _is_swapped(str(file), found):
        swapped = (str(file), found)
        raise Mistake(f"{found} is a port's file, and comes before the checkpoint", lambda line: line.swapped(*swapped))
    if fingerprint is not None:
        others = [
            found,
            ids,
            tolerance,
            html,
            mapping,
            component,
            partial or None,
            context,
            causal or None,
            chosen.options or None,
        ]
        if any(value is not None for value in others):
            raise CannotRun(
                "--fingerprint takes the place of a checkpoint, and goes with --name, --json and --markdown", "usage"
            )
        _by_fingerprint(file, fingerprint, name, json, markdown)
        return
    if html is not None:
        check_report_place(html)
    from sam3lite_convert.parity.detector.port_files import is_detector

    if component is o.Compared.detector or (component is None and is_detector(file)):
        if found is None:
            raise CannotRun("FILE holds taps of a whole detector; give the checkpoint too", "usage")
        place, tables = locate(found, repo_id, revision, cache_dir, json, chosen), load_mappings(mapping)
        whole.judge(place, tables, file, name, ids, tolerance, partial, context, causal, html, json, markdown)
        return
    if found is None:
        if is_checkpoint(str(file)) and file.suffix not in (".safetensors", ".st", ".npz"):
            raise Mistake(
                f"{file} is a checkpoint; what a port computed comes before it",
                lambda line: line.with_argument(0, "mine.npz"),
                example=True,
            )
        if ids is not None:
            raise CannotRun("--ids needs the checkpoint: sam3lite judge FILE CHECKPOINT", "usage")
        from sam3lite_convert.commands.judge import judge_saved

        document = judge_saved(file, tolerance, name)
    else:
        location, mappings = locate(found, repo_id, revision, cache_dir, json, chosen), load_mappings(mapping)
        document = judge_port(file, location, mappings, name, ids, tolerance, partial, context, causal, html, json)
    show_judged(document, html, json, markdown)


def _is_swapped(file: str, checkpoint: str) -> bool:
    """Whether the checkpoint is surely a port's file. Formats that both may have tell nothing."""
    alias = file in ALIASES and not Path(file).exists()
    return Path(checkpoint).suffix in (".npz", ".npy") or (alias and Path(checkpoint).exists())


def _by_fingerprint(file: Path, fingerprint: Path, name: str | None, json: bool, markdown: bool) -> None:
    from sam3lite_convert.commands.fingerprint import judge_by_fingerprint
    from sam3lite_convert.parity.port_files import read_port_file
    from sam3lite_convert.report.judge import fingerprint_markdown, judged_by_fingerprint
    from sam3lite_convert.report.terminal import as_json

    document = judge_by_fingerprint(fingerprint, read_port_file(file), name or file.name)
    (as_json if json else fingerprint_markdown if markdown else judged_by_fingerprint)(document)
    leave(document.verdict != "agrees", True)


def judge_port(
    file: Path,
    location: Location,
    mappings: Mappings,
    name: str | None,
    ids: Path | None,
    tolerance: float | None,
    partial: bool,
    context: int | None,
    causal: bool,
    html: Path | None,
    json: bool,
) -> ParityDocument:
    """The verdict on a port's file. Raises as the command does."""
    from sam3lite_convert.commands import judge as judge_commands
    from sam3lite_convert.parity.port_files import read_ids, read_port_file

    port = read_port_file(file)  # first: a file that cannot be read needs no download
    given = read_ids(ids) if ids is not None else None
    if given is not None and given.dim() == 1:
        given = given.unsqueeze(0)
    read = text_source(location, partial, mappings, causal, json)
    return judge_commands.judge_port(
        read,
        mappings,
        port,
        file,
        ids=given,
        ids_from=f"the ids of {ids}",
        name=name,
        tolerance=tolerance,
        context=context,
        causal=causal,
        report_of=typed() if html is not None else None,
    )


def show_judged(document: ParityDocument, html: Path | None, json: bool, markdown: bool = False) -> None:
    """Show a port's verdict, write its page if one is asked for, and exit with its code."""
    from sam3lite_convert.report import terminal
    from sam3lite_convert.report.judge import judged, judged_markdown

    if html is not None:
        from sam3lite_convert.report.html.page import parity_page

        document = replace(document, report_error=write_report(html, lambda: parity_page(document)))
    (terminal.as_json if json else judged_markdown if markdown else judged)(document)
    leave(document.failed, document.report_error is None)
