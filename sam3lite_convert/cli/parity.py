"""``sam3lite parity``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sam3lite_convert.cli import options as o
from sam3lite_convert.cli.shared import leave, locate, one_checkpoint, typed, write_report
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.hub.aliases import DEFAULT_REPO, DEFAULT_REVISION

if TYPE_CHECKING:
    from sam3lite_convert.commands.sources import Location, Source
    from sam3lite_convert.parity.checkout.original_repo import OriginalRepo
    from sam3lite_convert.parity.setup import ParityOptions
    from sam3lite_convert.plan.tables import Mappings
    from sam3lite_convert.records.parity import TrialRecord


def parity(
    source: o.ParityArgument = None,
    checkpoint: o.CheckpointOption = None,
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
    """Compare the original and the converted text encoder, layer by layer.

    Exits with code 1 if they differ by more than the tolerance.
    """
    from sam3lite_convert.cli.report_place import check_report_place
    from sam3lite_convert.commands import parity as parity_commands
    from sam3lite_convert.commands.folders import locate_folder
    from sam3lite_convert.plan.tables import load_mappings
    from sam3lite_convert.report import parity as parity_report
    from sam3lite_convert.report import terminal

    name = one_checkpoint(source, checkpoint)
    if html is not None:
        check_report_place(html)
        if save_activations is not None and html.resolve() == save_activations.resolve():
            raise CannotRun("--report and --save-activations name the same file", "usage")
    if judge is not None:
        given = [
            name, converted, candidate, dtype, seed, length, prompt, prompts_file, save_activations, mapping,
            self_test or None, partial or None, causal or None, batch if batch != 1 else None,
            attention if attention is not o.Attention.eager else None, as_used or strict_behaviour or None,
            original_repo,
        ]  # fmt: skip
        if any(value is not None for value in given):
            raise CannotRun("--judge reads saved activations and takes only --tolerance and --report", "usage")
        document = parity_commands.judge_activations(judge, tolerance)
    else:
        mappings = load_mappings(mapping)
        if candidate is not None:
            mappings.layout(candidate)  # a layout that does not exist is told before anything is looked up
        location = locate(name or "s0", repo_id, revision, cache_dir, json)
        from sam3lite_convert.parity.setup import ParityOptions  # imports torch: after the name was found

        original = _open_original(original_repo)
        options = ParityOptions(
            candidate, attention.value, dtype.value if dtype else None, tolerance, seed,
            batch, length, parity_commands.read_prompts(prompt or [], prompts_file), causal,
            original,
        )  # fmt: skip
        looks = parity_commands.Looks(
            as_used or strict_behaviour, html is not None, typed(),
            lambda label, total: terminal.count_progress(label, total, json),
        )  # fmt: skip
        if self_test and (save_activations or looks.as_used or html):
            raise CannotRun("--self-test cannot be combined with --save-activations, --as-used or --report", "usage")
        folder = locate_folder(converted, cache_dir).whole()[0] if converted is not None else None
        read = _parity_source(location, partial, mappings, causal, json)
        if self_test:
            _self_test(read, mappings, options, folder, converted, json)
            return
        document = parity_commands.run_parity(read, mappings, options, folder, save_activations, looks, converted)
    if html is not None:
        from sam3lite_convert.report.html.page import parity_page

        document = replace(document, report_error=write_report(html, lambda: parity_page(document)))
    if json:
        terminal.as_json(document)
    else:
        parity_report.paritied(document, debug_intermediates)
    verdicts = document.verdicts
    failed = verdicts.weights == "differs" or (strict_behaviour and verdicts.behaviour == "differs")
    leave(failed, document.report_error is None)


def _open_original(path: Path | None) -> OriginalRepo | None:
    if path is None:
        return None
    from sam3lite_convert.parity.checkout.original_repo import open_original
    from sam3lite_convert.report import terminal

    terminal.note(f"note: --original-repo runs Python code of {path}")
    return open_original(path)


def _parity_source(location: Location, partial: bool, mappings: Mappings, causal: bool, json: bool) -> Source:
    from sam3lite_convert.report import terminal

    if not partial:
        return location.whole()
    totals = {"fetch": None}
    with terminal.byte_progress(totals, {"fetch": "fetching the text tensors"}, json) as progress:
        return location.text(mappings, causal, progress("fetch"))


def _self_test(
    source: Source,
    mappings: Mappings,
    options: ParityOptions,
    folder: Path | None,
    converted: str | None,
    json: bool,
) -> None:
    from sam3lite_convert.commands import parity as parity_commands
    from sam3lite_convert.report import parity as parity_report
    from sam3lite_convert.report import terminal

    def tried(trial: TrialRecord) -> None:
        if not json:
            parity_report.tried(trial)

    document = replace(parity_commands.self_test_parity(source, mappings, options, folder, tried), converted=converted)
    if json:
        terminal.as_json(document)
    else:
        parity_report.self_tested(document)
    if document.verdict != "passed":
        raise typer.Exit(1)
