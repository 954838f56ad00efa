"""The command line: options in, one function of ``commands`` each, the record to ``report``.

Nothing heavy is imported before a command needs it; ``--help`` never imports torch.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated

import typer

from sam3lite_convert.cli import interrupts
from sam3lite_convert.cli.convert import convert
from sam3lite_convert.cli.demo import demo
from sam3lite_convert.cli.explain import explain
from sam3lite_convert.cli.inspect import inspect
from sam3lite_convert.cli.parity import parity
from sam3lite_convert.cli.shared import typed_arguments
from sam3lite_convert.cli.verify import verify
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


for command in (inspect, convert, explain, verify, parity, demo):
    app.command()(command)


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
    from sam3lite_convert.report import terminal

    terminal.into_nothing()


def _interrupted(as_json: bool) -> int:
    _fail(
        Sam3LiteError("interrupted; nothing half-written is left, what was finished before stays", "interrupted"),
        as_json,
    )
    return _INTERRUPTED


def _fail(fault: Sam3LiteError, as_json: bool) -> int:
    from sam3lite_convert.records.shared import ErrorDetails, ErrorDocument
    from sam3lite_convert.report import terminal

    if as_json:
        error = ErrorDetails(code=fault.code, message=fault.message, details=fault.details)
        try:
            terminal.as_json(ErrorDocument(error=error))
            return fault.exit_code
        except OSError:
            _say_no_more()  # stdout cannot be written to: it is said on stderr
    terminal.fault(fault.message)
    return fault.exit_code
