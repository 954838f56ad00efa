"""The command line: options in, one function of ``commands`` each, the record to ``report``.

Nothing heavy is imported before a command needs it; ``--help`` never imports torch.
"""

from __future__ import annotations

import os
import signal
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

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


class Component(str, Enum):
    all = "all"
    text = "text"


class Dtype(str, Enum):
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class Candidate(str, Enum):
    packed = "packed"
    transformers = "transformers"


class Attention(str, Enum):
    eager = "eager"
    sdpa = "sdpa"


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Mapping = Annotated[
    Path | None, typer.Option("--mapping", help="Folder with mapping tables; a table there replaces ours of its name.")
]
Causal = Annotated[
    bool, typer.Option("--causal", help="State that the text encoder masks causally (weights cannot tell).")
]
Layout = Annotated[str, typer.Option(help="packed, transformers, or one that --mapping adds.")]
ComponentOption = Annotated[Component, typer.Option(help="The whole detector, or its text encoder alone.")]
CheckpointArgument = Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A local .pt or .safetensors file.")]


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
    checkpoint: CheckpointArgument, causal: Causal = False, mapping: Mapping = None, json: Json = False
) -> None:
    """Say what a checkpoint is, without reading tensor data."""
    from sam3lite_convert import commands, report
    from sam3lite_convert.tables import load_mappings

    record = commands.inspect_checkpoint(commands.local_checkpoint(checkpoint), load_mappings(mapping), causal)
    (report.as_json if json else report.inspected)(record)


@app.command()
def convert(
    checkpoint: Annotated[str | None, typer.Option(help="A local .pt or .safetensors file.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every checkpoint of the Hub repository (not yet).")] = False,
    output: Annotated[Path | None, typer.Option(help="Folder to write; default converted/<stem>-<layout>.")] = None,
    layout: Layout = "packed",
    component: ComponentOption = Component.all,
    dtype: Annotated[Dtype | None, typer.Option(help="Cast floating tensors; default: as stored.")] = None,
    context: Annotated[int | None, typer.Option(help="Keep the first N rows of the text position table.")] = None,
    causal: Causal = False,
    max_shard_size: Annotated[str | None, typer.Option(help="Cut model.safetensors, for example 500MB.")] = None,
    mapping: Mapping = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Plan, show, write nothing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing converted folder.")] = False,
    push_to_hub: Annotated[bool, typer.Option("--push-to-hub", help="Not yet.")] = False,
    hub_model_id: Annotated[str | None, typer.Option(help="Not yet.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Not yet.")] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Not yet.")] = False,
    json: Json = False,
) -> None:
    """Convert a checkpoint to a safetensors folder with a receipt."""
    from sam3lite_convert.hashing import SourceHash

    # Hashing takes longest: it begins before the rest is even imported.
    hashing = SourceHash(Path(checkpoint)) if checkpoint and not dry_run else None
    from sam3lite_convert import commands, report
    from sam3lite_convert.plan import Options
    from sam3lite_convert.tables import load_mappings

    _use_one_thread()
    if all_ or push_to_hub or hub_model_id or private or create_pr:
        raise CannotRun("this version does not reach the Hub: convert local files with --checkpoint FILE", "no_hub_yet")
    if checkpoint is None:
        raise CannotRun(
            f"convert needs --checkpoint FILE (or, once the Hub is reached, an alias: {', '.join(commands.ALIASES)}; "
            "or --all)",
            "usage",
        )
    path = commands.local_checkpoint(checkpoint)
    shard = commands.parse_size(max_shard_size) if max_shard_size is not None else None
    options = Options(layout, component.value, dtype.value if dtype else None, context, causal)
    record = _convert(path, load_mappings(mapping), options, output, overwrite, shard, hashing, json)
    record["mapping"] = str(mapping) if mapping else None
    (report.as_json if json else report.converted)(record)


def _convert(
    path: Path,
    mappings: Any,
    options: Any,
    output: Path | None,
    overwrite: bool,
    shard: int | None,
    hashing: Any,
    json: bool,
) -> dict[str, Any]:
    from sam3lite_convert import commands, report

    totals = {"write": 0, "hash": path.stat().st_size}

    def planned(record: dict[str, Any]) -> None:
        totals["write"] = record["bytes"]
        if not json:
            report.planned(record)

    labels = {"write": "writing", "hash": "hashing the source"}
    lazy = _LazyProgress(totals, labels, json)
    try:
        return commands.convert_checkpoint(
            path, mappings, options, output, overwrite, shard, hashing is None, planned, lazy.advance, hashing
        )
    finally:
        lazy.close()


def _use_one_thread() -> None:
    for name, value in _ONE_THREAD.items():
        os.environ.setdefault(name, value)


class _LazyProgress:
    """Bars that appear with the first byte, when the plan has been printed and the totals are known."""

    def __init__(self, totals: dict[str, int], labels: dict[str, str], quiet: bool) -> None:
        self._arguments = (totals, labels, quiet)
        self._context: Any = None
        self._inner: Any = None

    def advance(self, what: str) -> Any:
        from sam3lite_convert import report

        if self._context is None:
            self._context = report.byte_progress(*self._arguments)
            self._inner = self._context.__enter__()
        return self._inner(what)

    def close(self) -> None:
        if self._context is not None:
            self._context.__exit__(None, None, None)


@app.command()
def explain(
    checkpoint: CheckpointArgument,
    key: Annotated[str, typer.Argument(metavar="KEY", help="A source key or a target key.")],
    layout: Layout = "packed",
    component: ComponentOption = Component.all,
    causal: Causal = False,
    mapping: Mapping = None,
    json: Json = False,
) -> None:
    """Show what happens to one key: rule, operation, names and shapes, or why it is dropped."""
    from sam3lite_convert import commands, report
    from sam3lite_convert.plan import Options
    from sam3lite_convert.tables import load_mappings

    options = Options(layout, component.value, causal=causal)
    record = commands.explain_key(commands.local_checkpoint(checkpoint), key, load_mappings(mapping), options)
    (report.as_json if json else report.explained)(record)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A converted folder, also one of another tool.")],
    checkpoint: Annotated[str, typer.Option(help="The checkpoint that it was converted from.")],
    causal: Causal = False,
    mapping: Mapping = None,
    json: Json = False,
) -> None:
    """Prove that a converted folder is its checkpoint, or say what is wrong with it."""
    from sam3lite_convert import commands, report
    from sam3lite_convert.tables import load_mappings

    _use_one_thread()
    path = commands.local_checkpoint(checkpoint)
    record = _verify(folder, path, load_mappings(mapping), causal, json)
    (report.as_json if json else report.verified)(record)
    if record["verdict"] != "proven":
        raise typer.Exit(1)


def _verify(folder: Path, path: Path, mappings: Any, causal: bool, json: bool) -> dict[str, Any]:
    from sam3lite_convert import commands, report

    written = sum(p.stat().st_size for p in folder.glob("*.safetensors")) if folder.is_dir() else 0
    totals = {"write": written, "hash": path.stat().st_size}
    with report.byte_progress(totals, {"write": "comparing", "hash": "hashing the source"}, json) as progress:
        return commands.verify_folder(folder, path, mappings, causal, progress)


@app.command()
def parity(
    checkpoint: Annotated[str | None, typer.Option(help="The original; default s0, from the Hub.")] = None,
    converted: Annotated[Path | None, typer.Option(metavar="DIR", help="Compare what is in this folder.")] = None,
    candidate: Annotated[Candidate | None, typer.Option(help="Encoder to compare; default packed, or DIR's.")] = None,
    debug_intermediates: Annotated[bool, typer.Option("--debug-intermediates", help="A row for every layer.")] = False,
    attention: Annotated[Attention, typer.Option(help="Of the candidate.")] = Attention.eager,
    dtype: Annotated[Dtype | None, typer.Option(help="Both sides; default float32, or what DIR was cast to.")] = None,
    tolerance: Annotated[float | None, typer.Option(help="In place of the measured noise floors.")] = None,
    seed: Annotated[int | None, typer.Option(help="Random ids instead of the dummy input.")] = None,
    batch: Annotated[int, typer.Option(help="Rows of ids.")] = 1,
    length: Annotated[int | None, typer.Option(help="Sequence length; default the context.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; repeatable (extra: prompts).")] = None,
    prompts_file: Annotated[Path | None, typer.Option(metavar="FILE", help="One prompt a line.")] = None,
    self_test: Annotated[bool, typer.Option("--self-test", help="Make known faults, show that each is found.")] = False,
    save_activations: Annotated[Path | None, typer.Option(metavar="FILE", help="Keep both sides' activations.")] = None,
    judge: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The verdict again, from saved activations.")
    ] = None,
    causal: Causal = False,
    mapping: Mapping = None,
    json: Json = False,
) -> None:
    """Run original and converted text encoder side by side, layer by layer."""
    from sam3lite_convert import commands, parity_report, report
    from sam3lite_convert.parity_setup import ParityOptions
    from sam3lite_convert.tables import load_mappings

    if judge is not None:
        others = (
            checkpoint,
            converted,
            self_test,
            save_activations,
            candidate,
            dtype,
            seed,
            length,
            prompt,
            prompts_file,
        )
        if any(o not in (None, False) for o in others) or batch != 1:
            raise CannotRun("--judge reads saved activations; beside it there is only --tolerance", "usage")
        record = commands.judge_activations(judge, tolerance)
    else:
        options = ParityOptions(
            candidate.value if candidate else None, attention.value, dtype.value if dtype else None, tolerance, seed,
            batch, length, commands.read_prompts(prompt or [], prompts_file), causal,
        )  # fmt: skip
        path, mappings = commands.local_checkpoint(checkpoint or "s0"), load_mappings(mapping)
        if self_test:
            if save_activations:
                raise CannotRun("--self-test makes many runs; --save-activations keeps one. Choose", "usage")
            _self_test(path, mappings, options, converted, json)
            return
        record = commands.run_parity(path, mappings, options, converted, save_activations)
    if json:
        report.as_json(record)
    else:
        parity_report.paritied(record, debug_intermediates)
    if record["verdict"] == "differs":
        raise typer.Exit(1)


def _self_test(path: Path, mappings: Any, options: Any, converted: Path | None, json: bool) -> None:
    from sam3lite_convert import commands, parity_report, report

    quiet = (lambda record: None) if json else parity_report.tried
    record = commands.self_test_parity(path, mappings, options, converted, quiet)
    (report.as_json if json else parity_report.self_tested)(record)
    if record["verdict"] != "passed":
        raise typer.Exit(1)


@app.command()
def demo(
    output: Annotated[Path | None, typer.Option(help="Keep the demo's files in this new folder.")] = None,
    json: Json = False,
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
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _interrupt)
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
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


def _interrupt(*ignored: object) -> None:
    raise KeyboardInterrupt


def _interrupted(as_json: bool) -> int:
    _fail(Sam3LiteError("interrupted; nothing was written", "interrupted"), as_json)
    return _INTERRUPTED


def _fail(fault: Sam3LiteError, as_json: bool) -> int:
    from sam3lite_convert import report

    if as_json:
        report.as_json({"error": {"code": fault.code, "message": fault.message, "details": fault.details}})
    else:
        report.fault(fault.message)
    return fault.exit_code
