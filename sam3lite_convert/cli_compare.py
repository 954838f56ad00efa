"""``verify`` and ``parity`` on the command line: options in, the record to ``report`` and to a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from sam3lite_convert import cli_options as o
from sam3lite_convert.aliases import DEFAULT_REPO, DEFAULT_REVISION
from sam3lite_convert.cli_shared import locate, typed, use_one_thread
from sam3lite_convert.errors import CannotRun, Sam3LiteError


def verify(
    folder: o.FolderArgument,
    checkpoint: o.VerifiedCheckpoint,
    causal: o.Causal = False,
    mapping: o.Mapping = None,
    repo_id: o.RepoId = DEFAULT_REPO,
    revision: o.Revision = DEFAULT_REVISION,
    cache_dir: o.CacheDir = None,
    html: o.HtmlReport = None,
    json: o.Json = False,
) -> None:
    """Prove that a converted folder is its checkpoint, or say what is wrong with it."""
    from sam3lite_convert import report
    from sam3lite_convert.folder import read_folder
    from sam3lite_convert.report_file import check_report_place
    from sam3lite_convert.tables import load_mappings

    use_one_thread()
    if html is not None:
        check_report_place(html)
    # What is local comes first: a folder that is not there needs no download.
    read_folder(folder)
    source = locate(checkpoint, repo_id, revision, cache_dir, json).whole()
    record = _verify(folder, source, load_mappings(mapping), causal, json, typed() if html else None)
    written = _write_report(html, "verify_page", record)
    (report.as_json if json else report.verified)(record)
    _leave(record["verdict"] != "proven", written)


def _verify(
    folder: Path, source: Any, mappings: Any, causal: bool, json: bool, report_of: str | None
) -> dict[str, Any]:
    from sam3lite_convert import commands, report

    written = sum(p.stat().st_size for p in folder.glob("*.safetensors")) if folder.is_dir() else 0
    totals = {"write": written, "hash": source.path.stat().st_size}
    with report.byte_progress(totals, {"write": "comparing", "hash": "hashing the source"}, json) as progress:
        return commands.verify_folder(folder, source, mappings, causal, progress, report_of)


def parity(
    checkpoint: o.ParityCheckpoint = None,
    converted: o.Converted = None,
    candidate: o.CandidateOption = None,
    debug_intermediates: o.DebugIntermediates = False,
    attention: o.AttentionOption = o.Attention.eager,
    dtype: o.RunIn = None,
    tolerance: o.Tolerance = None,
    seed: o.Seed = None,
    batch: o.Batch = 1,
    length: o.Length = None,
    prompt: o.Prompts = None,
    prompts_file: o.PromptsFile = None,
    self_test: o.SelfTest = False,
    save_activations: o.SaveActivations = None,
    judge: o.Judge = None,
    as_used: o.AsUsed = False,
    strict_behaviour: o.StrictBehaviour = False,
    original_repo: o.OriginalRepo = None,
    html: o.HtmlReport = None,
    partial: o.Partial = False,
    causal: o.Causal = False,
    mapping: o.Mapping = None,
    repo_id: o.RepoId = DEFAULT_REPO,
    revision: o.Revision = DEFAULT_REVISION,
    cache_dir: o.CacheDir = None,
    json: o.Json = False,
) -> None:
    """Run original and converted text encoder side by side, layer by layer."""
    from sam3lite_convert import parity_commands, parity_report, report
    from sam3lite_convert.report_file import check_report_place
    from sam3lite_convert.tables import load_mappings

    if html is not None:
        check_report_place(html)
        if save_activations is not None and html.resolve() == save_activations.resolve():
            raise CannotRun("--report and --save-activations name one file", "usage")
    if judge is not None:
        given = [
            checkpoint, converted, candidate, dtype, seed, length, prompt, prompts_file, save_activations, mapping,
            self_test or None, partial or None, causal or None, batch if batch != 1 else None,
            attention if attention is not o.Attention.eager else None, as_used or strict_behaviour or None,
            original_repo,
        ]  # fmt: skip
        if any(value is not None for value in given):
            raise CannotRun("--judge reads saved activations; beside it go only --tolerance and --report", "usage")
        record = parity_commands.judge_activations(judge, tolerance)
    else:
        location = locate(checkpoint or "s0", repo_id, revision, cache_dir, json)
        from sam3lite_convert.parity_setup import ParityOptions  # torch: not before the name is known to be good

        original = _open_original(original_repo)
        options = ParityOptions(
            candidate.value if candidate else None, attention.value, dtype.value if dtype else None, tolerance, seed,
            batch, length, parity_commands.read_prompts(prompt or [], prompts_file), causal,
            original,
        )  # fmt: skip
        looks = parity_commands.Looks(
            as_used or strict_behaviour, html is not None, typed(),
            lambda label, total: report.count_progress(label, total, json),
        )  # fmt: skip
        if self_test and (save_activations or looks.as_used or html):
            raise CannotRun("--self-test makes many runs; what is kept or shown of one run goes without it", "usage")
        mappings = load_mappings(mapping)
        source = _parity_source(location, partial, mappings, causal, json)
        if self_test:
            _self_test(source, mappings, options, converted, json)
            return
        record = parity_commands.run_parity(source, mappings, options, converted, save_activations, looks)
    written = _write_report(html, "parity_page", record)
    if json:
        report.as_json(record)
    else:
        parity_report.paritied(record, debug_intermediates)
    behaves = record.get("verdicts", {}).get("behaviour") != "differs"
    _leave(record["verdict"] == "differs" or (strict_behaviour and not behaves), written)


def _write_report(path: Path | None, kind: str, record: dict[str, Any]) -> bool:
    """Whether the report is where it should be; a fault in that is said and loses nothing of the record."""
    if path is None:
        return True
    from sam3lite_convert import html_report, report
    from sam3lite_convert.report_file import write_report

    try:
        write_report(path, getattr(html_report, kind)(record))
    except Sam3LiteError as fault:
        record["report_error"] = fault.message
        report.fault(fault.message)
        return False
    report.note(f"Report: {path}")
    return True


def _leave(failed: bool, written: bool) -> None:
    """With exit code 1 where a check failed, and 2 where it held and its report could not be written."""
    if failed or not written:
        raise typer.Exit(1 if failed else 2)


def _open_original(path: Path | None) -> Any:
    if path is None:
        return None
    from sam3lite_convert import report
    from sam3lite_convert.original_repo import open_original

    report.note(f"note: --original-repo runs Python code of {path}")
    return open_original(path)


def _parity_source(location: Any, partial: bool, mappings: Any, causal: bool, json: bool) -> Any:
    from sam3lite_convert import report

    if not partial:
        return location.whole()
    totals = {"fetch": None}
    with report.byte_progress(totals, {"fetch": "fetching the text tensors"}, json) as progress:
        return location.text(mappings, causal, progress("fetch"))


def _self_test(source: Any, mappings: Any, options: Any, converted: Path | None, json: bool) -> None:
    from sam3lite_convert import parity_commands, parity_report, report

    quiet = (lambda record: None) if json else parity_report.tried
    record = parity_commands.self_test_parity(source, mappings, options, converted, quiet)
    (report.as_json if json else parity_report.self_tested)(record)
    if record["verdict"] != "passed":
        raise typer.Exit(1)
