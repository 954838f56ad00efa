"""The command line: options in, one function of ``commands`` each, the record to ``report``.

Nothing heavy is imported before a command needs it; ``--help`` never imports torch.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from sam3lite_convert import cli_compare, interrupts
from sam3lite_convert import cli_options as o
from sam3lite_convert.aliases import DEFAULT_PATTERN, DEFAULT_REPO, DEFAULT_REVISION
from sam3lite_convert.cli_shared import locate, typed, typed_arguments, use_one_thread, where
from sam3lite_convert.errors import CannotRun, Sam3LiteError

app = typer.Typer(
    name="sam3lite",
    help="Convert SAM3-LiteText checkpoints to safetensors, and prove the result.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


_INTERRUPTED = 128 + 2  # as shells report SIGINT


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

    source = locate(checkpoint, repo_id, revision, cache_dir, json).index()
    record = commands.inspect_checkpoint(source, load_mappings(mapping), causal)
    (report.as_json if json else report.inspected)(record)


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

    use_one_thread()
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
        command=typed(),
        strict=Strict(fail_on_nonfinite, not allow_overflow),
    )
    mappings = load_mappings(mapping)
    to = Destination(push_to_hub, hub_model_id, hub_namespace, private, create_pr, commit_message, hub_overwrite)
    if all_:
        record = convert_command.convert_all(
            where(repo_id, revision, cache_dir, json), pattern, mappings, request, to, json
        )
    else:
        location = locate(str(checkpoint), repo_id, revision, cache_dir, json)
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
    source = locate(checkpoint, repo_id, revision, cache_dir, json).index()
    record = commands.explain_key(source, key, load_mappings(mapping), options)
    (report.as_json if json else report.explained)(record)


app.command()(cli_compare.verify)
app.command()(cli_compare.parity)


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
    typed_arguments[:] = arguments
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
        _say_no_more()
        return 0
    except SystemExit as end:
        # The command-line library's answer to a reader of --help that went away.
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        _say_no_more()
        return 0
    except MemoryError:
        return _fail(CannotRun("this machine has not enough memory for that", "no_memory"), as_json)
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


def _say_no_more() -> None:
    from sam3lite_convert import report

    report.into_nothing()


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
            _say_no_more()  # stdout cannot be written to: it is said on stderr
    report.fault(fault.message)
    return fault.exit_code
