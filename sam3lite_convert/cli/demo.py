"""``sam3lite demo``."""

from __future__ import annotations

import typer

from sam3lite_convert.cli import options as o


def demo(
    output: o.DemoOutput = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    json: o.Json = False,
) -> None:
    """Try the main commands on a small generated checkpoint, offline.

    Runs inspect, convert, verify and parity for each layout.

    Examples:
    # Everything, in a minute:
    sam3lite demo
    # The same, and its files are kept:
    sam3lite demo --output demo
    """
    from sam3lite_convert.commands.demo import run_demo
    from sam3lite_convert.report.demo import demo_begins, demo_end, demo_step
    from sam3lite_convert.report.terminal import as_json

    if json:
        document = run_demo(output)
        as_json(document)
    else:
        document = run_demo(output, demo_begins, demo_step)
        demo_end(document, output)
    if document.verdict != "proven":
        raise typer.Exit(1)
