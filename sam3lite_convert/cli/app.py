"""The command line ``sam3lite``: its commands, its exit codes, and errors as messages.

Heavy packages are imported when a command needs them; ``--help`` and shell completion never import torch.
"""

from __future__ import annotations

import io
import os
import re
import sys
import traceback
import warnings
from typing import Annotated

import typer

from sam3lite_convert import progress
from sam3lite_convert.cli import interrupts
from sam3lite_convert.cli.convert import convert
from sam3lite_convert.cli.demo import demo
from sam3lite_convert.cli.diff import diff
from sam3lite_convert.cli.doctor import doctor
from sam3lite_convert.cli.explain import explain
from sam3lite_convert.cli.export import export
from sam3lite_convert.cli.help import GENERAL, Command, Group
from sam3lite_convert.cli.inspect import inspect
from sam3lite_convert.cli.judge import judge
from sam3lite_convert.cli.mistakes import ASKING, Mistake, corrected, said_better, with_commands
from sam3lite_convert.cli.parity import parity
from sam3lite_convert.cli.record import record
from sam3lite_convert.cli.restore import restore
from sam3lite_convert.cli.shared import typed_arguments
from sam3lite_convert.cli.tables import tables
from sam3lite_convert.cli.verify import verify
from sam3lite_convert.errors import CannotRun, Internal, Sam3LiteError
from sam3lite_convert.report import bars, verbosity
from sam3lite_convert.report.verbosity import Verbosity
from sam3lite_convert.unforeseen import expected

_NAME = "sam3lite"  # also where it runs as python -m sam3lite_convert
app = typer.Typer(
    name=_NAME,
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


_INTERRUPTED = 128 + 2  # as shells report SIGINT
_COMPLETION = ("--install-completion", "--show-completion")


@app.callback(invoke_without_command=True)
def top(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", is_eager=True, rich_help_panel=GENERAL),
    ] = False,
) -> None:
    """Convert SAM3-LiteText checkpoints to safetensors, and verify the result.

    sam3lite COMMAND --help shows what a command takes.

    Examples:
    # Convert a released file, and prove it:
    sam3lite convert s0 --layout transformers --output s0-sam3
    sam3lite verify s0-sam3 s0
    """
    if version:
        from sam3lite_convert import __version__

        sys.stdout.write(f"sam3lite-convert {__version__}\n")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        sys.stderr.write(context.get_help() + "\n")
        raise typer.Exit(2)


for command in (inspect, convert, explain, tables, verify, restore, diff, parity, judge, record, demo, doctor):
    app.command(cls=Command)(command)
app.add_typer(export, name="export")


def main() -> None:
    """Run the command line and exit; expected errors become one message and an exit code."""
    # The Hub's client warns of it when it is imported. It only chose a faster download, which is chosen otherwise now.
    warnings.filterwarnings("ignore", ".*HF_HUB_ENABLE_HF_TRANSFER", FutureWarning)
    sys.exit(run())


def run(arguments: list[str] | None = None) -> int:
    """Run with these arguments (default: those of the process) and return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in arguments
    typed_arguments[:] = arguments
    verbosity.choose(Verbosity.normal)
    interrupts.catch()
    _open_streams()
    try:
        with progress.shown_by(bars.opener(as_json, interrupts.check)):
            code = app(args=arguments, standalone_mode=False, prog_name=_NAME)
        sys.stdout.flush()
        if code and arguments[:1] and arguments[0] in _COMPLETION:
            return _fail(_unknown_shell(), as_json)
        # The command-line library returns this code after a KeyboardInterrupt.
        return _interrupted(as_json) if code == _INTERRUPTED else int(code or 0)
    except Mistake as mistake:
        return _fail(mistake.error(typer.main.get_command(app), arguments), as_json)
    except Sam3LiteError as fault:
        asks = isinstance(fault.details, dict) and not ASKING.isdisjoint(fault.details)
        return _fail(with_commands(typer.main.get_command(app), arguments, fault) if asks else fault, as_json)
    except KeyboardInterrupt:
        return _interrupted(as_json)
    except BrokenPipeError:
        # The reader of stdout is gone (for example head).
        _drop_output()
        return 0
    except SystemExit as end:
        # The command-line library exits so if the reader of --help is gone.
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        _drop_output()
        return 0
    except Exception as fault:
        if type(fault).__name__ == "ShellDetectionFailure":  # some versions of typer do not catch it
            return _fail(_unknown_shell(), as_json)
        # Usage errors of the command-line library. Recent versions of typer hold a copy of click: the class differs.
        if not hasattr(fault, "format_message"):
            error = expected(fault)
            return _internal(fault, error, as_json) if isinstance(error, Internal) else _fail(error, as_json)
        # Python's name for a wrong choice, which recent versions leave in the message.
        message = str(fault.format_message()).replace("Value error, ", "")
        return _fail(_with_correction(message, getattr(fault, "ctx", None), arguments), as_json)


def _with_correction(message: str, context: typer.Context | None, words: list[str]) -> CannotRun:
    """A usage error with the command line that was meant, or else with the usage of the command."""
    usage = f"\n{context.get_usage()}" if context is not None else ""
    root = typer.main.get_command(app)
    found = corrected(root, words)
    # What the parser proposes itself is a word, not the whole line.
    better = found.message if found is not None else said_better(root, words)
    said = better or re.split(r" Did you mean | \(Possible options", message)[0]
    if found is None:
        return CannotRun(f"{said}{usage}", "usage")
    return found.error(f"{said}{usage if found.example else ''}")


def _internal(fault: Exception, error: Internal, as_json: bool) -> int:
    """A fault of this tool: the traceback, on stderr, is for whoever mends it."""
    from sam3lite_convert.report import terminal

    sys.stderr.write(terminal.printable("".join(traceback.format_exception(fault))))
    if as_json:
        terminal.fault(error.message)  # for whoever reads the traceback; the document goes to stdout
    return _fail(error, as_json)


def _unknown_shell() -> CannotRun:
    return CannotRun(
        "the shell was not recognised; completion exists for bash, zsh, fish and PowerShell. This prints the script of "
        "one of them: _SAM3LITE_COMPLETE=source_bash sam3lite",
        "unknown_shell",
    )


def _open_streams() -> None:
    """Open the null device for a closed stdout or stderr; escape characters that their encoding does not have."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  as long as the process
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    from sam3lite_convert.report import terminal

    terminal.into_nothing()


def _interrupted(as_json: bool) -> int:
    _fail(Sam3LiteError("interrupted; finished folders are kept, unfinished ones were removed", "interrupted"), as_json)
    return _INTERRUPTED


def _fail(fault: Sam3LiteError, as_json: bool) -> int:
    """Show the error, without tokens that were typed, and return its exit code."""
    from sam3lite_convert.hub.log import without_tokens
    from sam3lite_convert.records.shared import ErrorDetails, ErrorDocument
    from sam3lite_convert.report import terminal

    message = without_tokens(fault.message)
    if as_json:
        details = fault.details
        if isinstance(details, dict):
            details = {name: without_tokens(v) if isinstance(v, str) else v for name, v in details.items()}
        error = ErrorDetails(code=fault.code, message=message, details=details)
        try:
            terminal.as_json(ErrorDocument(error=error))
            return fault.exit_code
        except OSError:
            _drop_output()  # stdout cannot be written to; the message goes to stderr
    terminal.fault(message)
    return fault.exit_code
