"""The command line: options in, one function of ``commands`` each, the record to ``report``.

Nothing heavy is imported before a command needs it; ``--help`` never imports torch.
"""

from __future__ import annotations

import io
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sam3lite_convert import cli_options as o
from sam3lite_convert import interrupts
from sam3lite_convert.aliases import DEFAULT_PATTERN, DEFAULT_REPO, DEFAULT_REVISION
from sam3lite_convert.errors import CannotRun, Sam3LiteError

app = typer.Typer(
    name="sam3lite",
    help="Convert SAM3-LiteText checkpoints to safetensors, and prove the result.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


# Casts are done in small pieces beside the thread that hashes; more threads only get in its way.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

_INTERRUPTED = 128 + 2  # as shells report SIGINT
_typed_arguments: list[str] = []


@app.callback(invoke_without_command=True)
def top(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    """Convert SAM3-LiteText checkpoints to safetensors, and prove the result."""
    if version:
        from sam3lite_convert import __version__

        sys.stdout.write(f"sam3lite-convert {__version__}\n")
        raise typer.Exit()


@app.command()
def inspect(
    checkpoint: o.CheckpointArgument,
    causal: o.Causal = False,
    mapping: o.Mapping = None,
    repo_id: o.RepoId = DEFAULT_REPO,
    revision: o.Revision = DEFAULT_REVISION,
    cache_dir: o.CacheDir = None,
    json: o.Json = False,
) -> None:
    """Say what a checkpoint is, without reading tensor data."""
    from sam3lite_convert import commands, report
    from sam3lite_convert.tables import load_mappings

    source = _locate(checkpoint, repo_id, revision, cache_dir, json).index()
    record = commands.inspect_checkpoint(source, load_mappings(mapping), causal)
    (report.as_json if json else report.inspected)(record)


def _locate(name: str, repo_id: str, revision: str, cache_dir: Path | None, quiet: bool) -> Any:
    """Where CHECKPOINT is; one on the Hub is looked up."""
    from sam3lite_convert.sources import locate

    return locate(name, _where(repo_id, revision, cache_dir, quiet))


def _where(repo_id: str, revision: str, cache_dir: Path | None, quiet: bool) -> Any:
    from sam3lite_convert import report
    from sam3lite_convert.sources import Where

    report.quiet_hub(quiet)
    return Where(repo_id, revision, cache_dir)


@app.command()
def convert(
    checkpoint: o.CheckpointOption = None,
    all_: o.All = False,
    pattern: o.Pattern = DEFAULT_PATTERN,
    output: o.OutputOption = None,
    layout: o.Layout = "packed",
    component: o.ComponentOption = o.Component.all,
    dtype: o.CastTo = None,
    context: o.ContextOption = None,
    causal: o.Causal = False,
    max_shard_size: o.MaxShardSize = None,
    fail_on_nonfinite: o.FailOnNonfinite = False,
    allow_overflow: o.AllowOverflow = False,
    tokenizer: o.Tokenizer = None,
    mapping: o.Mapping = None,
    dry_run: o.DryRun = False,
    overwrite: o.Overwrite = False,
    verify: o.VerifyOption = None,
    parity: o.ParityOption = False,
    partial: o.Partial = False,
    repo_id: o.RepoId = DEFAULT_REPO,
    revision: o.Revision = DEFAULT_REVISION,
    cache_dir: o.CacheDir = None,
    push_to_hub: o.PushToHub = False,
    hub_model_id: o.HubModelId = None,
    hub_namespace: o.HubNamespace = None,
    hub_overwrite: o.HubOverwrite = False,
    private: o.Private = False,
    create_pr: o.CreatePr = False,
    commit_message: o.CommitMessage = None,
    json: o.Json = False,
) -> None:
    """Convert a checkpoint to a safetensors folder with a receipt."""
    from sam3lite_convert.hashing import SourceHash

    # Hashing takes longest: it begins before the rest is even imported.
    local = checkpoint is not None and not all_ and not dry_run and os.path.exists(checkpoint)
    hashing = SourceHash(Path(str(checkpoint))) if local else None
    from sam3lite_convert import commands, convert_command, hub_report, report
    from sam3lite_convert.conversions import Request, plan_conversion
    from sam3lite_convert.convert_command import Destination, check_together
    from sam3lite_convert.nonfinite import Strict
    from sam3lite_convert.plan import Options
    from sam3lite_convert.processor_files import DEFAULT_TOKENIZER
    from sam3lite_convert.tables import load_mappings

    _use_one_thread()
    asked = {
        "--all": all_, "--dry-run": dry_run, "--pattern": pattern != DEFAULT_PATTERN, "--push-to-hub": push_to_hub,
        "--hub-model-id": hub_model_id, "--hub-namespace": hub_namespace, "--private": private,
        "--create-pr": create_pr, "--commit-message": commit_message, "--hub-overwrite": hub_overwrite,
        "--partial": partial, "--parity": parity,
        "--verify": verify, "--fail-on-nonfinite": fail_on_nonfinite, "--allow-overflow": allow_overflow,
    }  # fmt: skip
    check_together({name for name, value in asked.items() if value}, checkpoint, component.value, verify)
    if push_to_hub:
        verify = True
    request = Request(
        Options(layout, component.value, dtype.value if dtype else None, context, causal),
        output,
        overwrite,
        commands.parse_size(max_shard_size) if max_shard_size is not None else None,
        bool(verify),
        parity,
        tokenizer or DEFAULT_TOKENIZER,
        tokenizer is not None,
        cache_dir,
        partial=partial,
        command=_typed(),
        strict=Strict(fail_on_nonfinite, not allow_overflow),
    )
    mappings = load_mappings(mapping)
    to = Destination(push_to_hub, hub_model_id, hub_namespace, private, create_pr, commit_message, hub_overwrite)
    if all_:
        record = convert_command.convert_all(
            _where(repo_id, revision, cache_dir, json), pattern, mappings, request, to, json
        )
    else:
        location = _locate(str(checkpoint), repo_id, revision, cache_dir, json)
        if dry_run:
            record = plan_conversion(location, mappings, request)
            if not json:
                report.planned(record)
                report.planned_alone(record)
        else:
            record = convert_command.convert_one(location, mappings, request, to, hashing, json)
        record["mapping"] = str(mapping) if mapping else None
    if json:
        report.as_json(record)
    elif all_:
        hub_report.converted_all(record)
    elif not dry_run:
        hub_report.converted_end(record)
    refused = (record.get("push") or {}).get("state") == "not pushed"
    if refused or record.get("verdict") == "failed" or (record.get("parity") or {}).get("verdict") == "differs":
        raise typer.Exit(1)


def _use_one_thread() -> None:
    for name, value in _ONE_THREAD.items():
        os.environ.setdefault(name, value)


@app.command()
def explain(
    checkpoint: o.CheckpointArgument,
    key: o.KeyArgument,
    layout: o.Layout = "packed",
    component: o.ComponentOption = o.Component.all,
    causal: o.Causal = False,
    mapping: o.Mapping = None,
    repo_id: o.RepoId = DEFAULT_REPO,
    revision: o.Revision = DEFAULT_REVISION,
    cache_dir: o.CacheDir = None,
    json: o.Json = False,
) -> None:
    """Show what happens to one key: rule, operation, names and shapes, or why it is dropped."""
    from sam3lite_convert import commands, report
    from sam3lite_convert.plan import Options
    from sam3lite_convert.tables import load_mappings

    options = Options(layout, component.value, causal=causal)
    source = _locate(checkpoint, repo_id, revision, cache_dir, json).index()
    record = commands.explain_key(source, key, load_mappings(mapping), options)
    (report.as_json if json else report.explained)(record)


@app.command()
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

    _use_one_thread()
    if html is not None:
        check_report_place(html)
    # What is local comes first: a folder that is not there needs no download.
    read_folder(folder)
    source = _locate(checkpoint, repo_id, revision, cache_dir, json).whole()
    record = _verify(folder, source, load_mappings(mapping), causal, json, _typed() if html else None)
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


@app.command()
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
        location = _locate(checkpoint or "s0", repo_id, revision, cache_dir, json)
        from sam3lite_convert.parity_setup import ParityOptions  # torch: not before the name is known to be good

        original = _open_original(original_repo)
        options = ParityOptions(
            candidate.value if candidate else None, attention.value, dtype.value if dtype else None, tolerance, seed,
            batch, length, parity_commands.read_prompts(prompt or [], prompts_file), causal,
            original,
        )  # fmt: skip
        looks = parity_commands.Looks(
            as_used or strict_behaviour, html is not None, _typed(),
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


@app.command()
def demo(
    output: o.DemoOutput = None,
    json: o.Json = False,
) -> None:
    """Run the main job on a small generated checkpoint, offline."""
    from sam3lite_convert import report
    from sam3lite_convert.demo import run_demo

    record = run_demo(output, quiet=json)
    if json:
        report.as_json(record)
    if record["verdict"] != "proven":
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; foreseeable faults become one message and an exit code."""
    sys.exit(run())


def run(arguments: list[str] | None = None) -> int:
    """Run with these arguments (the process's own by default) and return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in arguments
    _typed_arguments[:] = arguments
    interrupts.catch()
    _open_streams()
    try:
        code = app(args=arguments, standalone_mode=False)
        sys.stdout.flush()
        # What the command-line library makes of a KeyboardInterrupt.
        return _interrupted(as_json) if code == _INTERRUPTED else int(code or 0)
    except Sam3LiteError as fault:
        return _fail(fault, as_json)
    except KeyboardInterrupt:
        return _interrupted(as_json)
    except BrokenPipeError:
        # The reader went away (for example head); nothing more can be said to it.
        _stdout_into_nothing()
        return 0
    except SystemExit as end:
        # The command-line library's answer to a reader of --help that went away.
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        _stdout_into_nothing()
        return 0
    except OSError as fault:
        return _fail(CannotRun(f"{fault.filename or ''}: {fault.strerror or fault}".lstrip(": "), "os_error"), as_json)
    except Exception as fault:
        # Usage faults of the command-line library, whichever copy of it raised them.
        if hasattr(fault, "format_message"):
            context = getattr(fault, "ctx", None)
            usage = f"\n{context.get_usage()}" if context is not None else ""
            return _fail(CannotRun(f"{fault.format_message()}{usage}", "usage"), as_json)
        raise


def _open_streams() -> None:
    """A closed stdout or stderr becomes the null device; what their encoding lacks is shown as an escape."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  as long as the process
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _stdout_into_nothing() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _typed() -> str:
    """The command as it was typed, to be typed again: without what would make the folder anew."""
    kept = [a for a in _typed_arguments if a not in ("--json", "--overwrite")]
    return shlex.join(["sam3lite", *kept])


def _interrupted(as_json: bool) -> int:
    _fail(
        Sam3LiteError("interrupted; nothing half-written is left, what was finished before stays", "interrupted"),
        as_json,
    )
    return _INTERRUPTED


def _fail(fault: Sam3LiteError, as_json: bool) -> int:
    from sam3lite_convert import report

    if as_json:
        try:
            report.as_json({"error": {"code": fault.code, "message": fault.message, "details": fault.details}})
            return fault.exit_code
        except OSError:
            _stdout_into_nothing()  # stdout cannot be written to: it is said on stderr
    report.fault(fault.message)
    return fault.exit_code
