"""``sam3lite parity``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sam3lite_convert.checkpoint.selection import selection
from sam3lite_convert.cli import options as o
from sam3lite_convert.cli.shared import (
    check_choice,
    check_of_detector,
    leave,
    locate,
    one_checkpoint,
    text_source,
    typed,
    write_report,
)
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.hub.aliases import DEFAULT_REPO, DEFAULT_REVISION
from sam3lite_convert.quoting import shell_line

if TYPE_CHECKING:
    from sam3lite_convert.checkpoint.selection import Selection
    from sam3lite_convert.commands.parity import Looks
    from sam3lite_convert.commands.sources import Location, Source
    from sam3lite_convert.parity.checkout.original_repo import OriginalRepo
    from sam3lite_convert.parity.runtime import RuntimeChoice
    from sam3lite_convert.parity.setup import ParityOptions
    from sam3lite_convert.plan.tables import Mappings
    from sam3lite_convert.records.parity import TrialRecord

_RELEASED = "s0"  # what is compared where no checkpoint is given


def parity(
    source: o.ParityArgument = None,
    checkpoint: o.CheckpointOption = None,
    converted: o.Converted = None,
    component: o.PartOption = o.Compared.text,
    size: o.Size = None,
    image: o.Image = None,
    box: o.Boxes = None,
    device: o.DeviceOption = o.Device.cpu,
    candidate: o.CandidateOption = None,
    provider: o.Provider = None,
    graph_optimisation: o.GraphOptimisation = None,
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
    name: o.PortName = None,
    ids: o.IdsFile = None,
    as_used: o.AsUsed = False,
    strict_behaviour: o.StrictBehaviour = False,
    allow_not_read: o.AllowNotRead = False,
    original_repo: o.OriginalRepo = None,
    html: o.HtmlReport = None,
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
    """Compare the original and the converted text encoder layer by layer, or the whole detector stage by stage.

    Exits with code 1 if they differ by more than the tolerance.

    Examples:
    # A released file and its conversion for transformers, with a page:
    sam3lite parity s0 --candidate transformers --report parity.html
    # A folder that was written, on words of yours:
    sam3lite parity my.pt --converted my-sam3 --prompt "a red car"
    """
    from sam3lite_convert.cli import detector as whole
    from sam3lite_convert.cli.judge import judge_port, show_judged
    from sam3lite_convert.cli.report_place import check_report_place
    from sam3lite_convert.commands import parity as parity_commands
    from sam3lite_convert.commands.folders import locate_folder
    from sam3lite_convert.plan.tables import load_mappings
    from sam3lite_convert.report import parity as parity_report
    from sam3lite_convert.report import terminal

    chosen = selection(state_dict_key, strip_prefix, drop, reason)
    found = one_checkpoint(source, checkpoint)
    detector_only = {
        "--size": size, "--image": image, "--box": box, "--device": device if device is not o.Device.cpu else None,
    }  # fmt: skip
    if component is o.Compared.text:
        check_of_detector(detector_only)
    if html is not None:
        check_report_place(html)
        if save_activations is not None and html.resolve() == save_activations.resolve():
            raise CannotRun("--report and --save-activations name the same file", "usage")
    if judge is not None:
        given = [
            converted, candidate, dtype, seed, length, prompt, prompts_file, save_activations,
            self_test or None, batch if batch != 1 else None,
            attention if attention is not o.Attention.eager else None, as_used or strict_behaviour or None,
            original_repo, allow_not_read or None, provider, graph_optimisation,
        ]  # fmt: skip
        of_checkpoint = [ids, mapping, partial or None, context, causal or None, chosen.options or None]
        if any(value is not None for value in given + (of_checkpoint if found is None else [])):
            raise CannotRun(
                "--judge reads activations from a file and takes only --tolerance, --name and --report, and with "
                "--checkpoint also --ids, --context, --causal, --mapping and --partial",
                "usage",
            )
        if found is not None:
            from sam3lite_convert.parity.detector.port_files import is_detector

            place, tables = locate(found, repo_id, revision, cache_dir, json, chosen), load_mappings(mapping)
            if is_detector(judge):
                whole.judge(place, tables, judge, name, ids, tolerance, partial, context, causal, html, json)
                return
            document = judge_port(judge, place, tables, name, ids, tolerance, partial, context, causal, html, json)
            show_judged(document, html, json)
            return
        from sam3lite_convert.commands.judge import judge_saved

        document = judge_saved(judge, tolerance, name)
    else:
        if name is not None or ids is not None:
            raise CannotRun("--name and --ids need --judge FILE", "usage")
        mappings = load_mappings(mapping)
        runtime = _runtime(candidate, provider, graph_optimisation)
        if runtime is not None:
            candidate = None
            _refuse_with_a_graph(
                {
                    "--self-test": self_test,
                    "--as-used": as_used or strict_behaviour,
                    "--attention": attention is not o.Attention.eager,
                },
                runtime.name,
            )
        elif candidate is not None:
            _check_candidate(candidate, mappings)
        if found is None:
            location = _released(repo_id, revision, cache_dir, json, chosen)
        else:
            location = locate(found, repo_id, revision, cache_dir, json, chosen)
        from sam3lite_convert.parity.setup import ParityOptions  # imports torch: after the name was found

        original = _open_original(original_repo)
        options = ParityOptions(
            candidate, attention.value, dtype.value if dtype else None, tolerance, seed,
            batch, length, parity_commands.read_prompts(prompt or [], prompts_file), causal,
            original, context, runtime,
        )  # fmt: skip
        if component is o.Compared.detector:
            whole.refuse(
                {
                    "--save-activations": save_activations,
                    "--original-repo": original_repo,
                    "--batch": batch if batch != 1 else None,
                    "--length": length,
                    "--prompts-file": prompts_file,
                    "--partial": partial or None,
                    "--dtype": dtype,
                },
                "{} compares the text encoder alone; leave it out with --component detector",
            )
            chosen_inputs = whole.detector_options(size, image, prompt, seed, box)
            used = as_used or strict_behaviour
            if self_test:
                others = {"--report": html, "--converted": converted, "--candidate": candidate, "--as-used": used}
                whole.refuse(others, "--self-test cannot be combined with {}")
                whole.self_test(location.whole(), mappings, options, chosen_inputs, json)
                return
            folder = locate_folder(converted, cache_dir).whole()[0] if converted is not None else None
            whole.compare(
                location.whole(), mappings, options, chosen_inputs, folder, converted, device.value, allow_not_read,
                html, debug_intermediates, json, used, strict_behaviour,
            )  # fmt: skip
            return
        looks = parity_commands.Looks(as_used or strict_behaviour, html is not None, typed(), allow_not_read)
        if self_test and (save_activations or looks.as_used or html):
            raise CannotRun("--self-test cannot be combined with --save-activations, --as-used or --report", "usage")
        folder = locate_folder(converted, cache_dir).whole()[0] if converted is not None else None
        read = text_source(location, partial, mappings, causal, json)
        if self_test:
            _self_test(read, mappings, options, folder, converted, looks, json)
            return
        document = parity_commands.run_parity(read, mappings, options, folder, save_activations, looks, converted)
    if html is not None:
        from sam3lite_convert.report.html.page import parity_page

        document = replace(document, report_error=write_report(html, lambda: parity_page(document)))
    if json:
        terminal.as_json(document)
    else:
        parity_report.paritied(document, debug_intermediates)
    failed = document.failed or (strict_behaviour and document.verdicts.behaviour == "differs")
    leave(failed, document.report_error is None)


def _check_candidate(candidate: str, mappings: Mappings) -> None:
    """Raises CannotRun, before anything is looked up, if --candidate names neither a layout nor what runs a graph."""
    from sam3lite_convert.parity.runtime import RUNTIMES

    able = sorted({layout.name for layout in mappings.layouts.values() if layout.loader.targets})
    said = f"--candidate {candidate}: there are the layouts {', '.join(able)}, and {', '.join(RUNTIMES)} for graphs"
    if candidate not in mappings.names:
        check_choice("--candidate", candidate, [*able, *RUNTIMES], CannotRun(said, "usage"))


def _runtime(candidate: str | None, provider: str | None, optimisation: bool | None) -> RuntimeChoice | None:
    """What runs the graph that --candidate asks for; None if it asks for a model of torch.

    Raises CannotRun if other options need a graph.
    """
    from sam3lite_convert.parity.runtime import RUNTIMES, RuntimeChoice

    if candidate in RUNTIMES:
        return RuntimeChoice(candidate, provider, optimisation is not False)
    given = {"--provider": provider is not None, "--graph-optimisation": optimisation is not None}
    for option, is_given in given.items():
        if is_given:
            raise CannotRun(f"{option} needs --candidate {' or '.join(RUNTIMES)}", "usage")
    return None


# Why an option does not go with a graph as the candidate.
_NOT_OF_A_GRAPH = {
    "--self-test": "makes its faults in models of torch",
    "--as-used": "calls the model as the library that loads the folder does, and a graph is called in one way only",
    "--attention": "chooses how a model of torch computes attention; a graph states it",
}


def _refuse_with_a_graph(given: dict[str, bool], name: str) -> None:
    for option, is_given in given.items():
        if is_given:
            raise CannotRun(f"{option} {_NOT_OF_A_GRAPH[option]}: leave it or --candidate {name} out", "usage")


def _released(repo_id: str, revision: str, cache_dir: Path | None, json: bool, chosen: Selection) -> Location:
    """The checkpoint that is taken where none is given. Raises CannotRun, with what is there, if it cannot be had."""
    from sam3lite_convert.report.terminal import note

    try:
        location = locate(_RELEASED, repo_id, revision, cache_dir, json, chosen)
    except CannotRun as fault:
        if fault.code == "no_network":
            here = o.weights_like("")
            line = shell_line(["sam3lite", "parity", here[0] if here else "FILE.pt"])
            what = "that is here" if here else "of yours"
            fault.message = f"no checkpoint was given, and {fault.message} Of a file {what}: {line}"
        raise
    if not json:
        place = f"from {location.repository.repo} on the Hub" if location.repository else "which is here"
        note(f"no checkpoint was given, so {_RELEASED} is taken, {place}")
    return location


def _open_original(path: Path | None) -> OriginalRepo | None:
    if path is None:
        return None
    from sam3lite_convert.parity.checkout.original_repo import RunFile, open_original
    from sam3lite_convert.report import terminal

    def told(files: tuple[RunFile, ...]) -> None:
        terminal.note(f"note: --original-repo runs the code of these files of {path}, and of no other there:")
        for file in files:
            terminal.note(f"  {file.path}  SHA-256 {file.sha256}")

    return open_original(path, told)


def _self_test(
    source: Source,
    mappings: Mappings,
    options: ParityOptions,
    folder: Path | None,
    converted: str | None,
    looks: Looks,
    json: bool,
) -> None:
    from sam3lite_convert.commands import parity as parity_commands
    from sam3lite_convert.report import parity as parity_report
    from sam3lite_convert.report import terminal

    def tried(trial: TrialRecord) -> None:
        if not json:
            parity_report.tried(trial)

    document = parity_commands.self_test_parity(source, mappings, options, folder, tried, looks)
    document = replace(document, converted=converted)
    if json:
        terminal.as_json(document)
    else:
        parity_report.self_tested(document)
    if document.verdict != "passed":
        raise typer.Exit(1)
