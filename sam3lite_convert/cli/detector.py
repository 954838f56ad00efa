"""``--component detector`` of parity, record and judge: its options, the command, the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sam3lite_convert.cli.shared import leave, typed, write_report
from sam3lite_convert.errors import CannotRun

if TYPE_CHECKING:
    from sam3lite_convert.commands.sources import Location, Source
    from sam3lite_convert.parity.detector.inputs import DetectorOptions
    from sam3lite_convert.parity.setup import ParityOptions
    from sam3lite_convert.plan.tables import Mappings
    from sam3lite_convert.records.detector import DetectorDocument


def refuse(given: Mapping[str, object], why: str) -> None:
    """Raises CannotRun for the first option that was given. ``why``: with ``{}`` for its name."""
    for name, value in given.items():
        if value:
            raise CannotRun(why.format(name), "usage")


def detector_options(
    size: int | None, image: Path | None, prompts: list[str] | None, seed: int | None, boxes: list[str] | None
) -> DetectorOptions:
    """The options for the inputs. Raises CannotRun if they do not go together or a box is not four numbers."""
    from sam3lite_convert.parity.detector.inputs import DetectorOptions

    if prompts and len(prompts) > 1:
        raise CannotRun("--component detector takes one --prompt", "usage")
    found = []
    for text in boxes or []:
        try:
            x, y, w, h = map(float, text.split(","))
        except ValueError:
            raise CannotRun(f"--box {text}: a box is four numbers, x,y,width,height in pixels", "usage") from None
        found.append((x, y, w, h))
    return DetectorOptions(size, image, prompts[0] if prompts else None, seed, tuple(found))


def compare(
    source: Source,
    mappings: Mappings,
    options: ParityOptions,
    inputs: DetectorOptions,
    folder: Path | None,
    converted: str | None,
    device: str,
    allow_not_read: bool,
    html: Path | None,
    debug: bool,
    json: bool,
    as_used: bool,
    strict: bool,
) -> None:
    """Run the comparison and show it. Exits with code 1 if the sides differ; ``strict``: or the behaviour."""
    from sam3lite_convert.commands.detector import DetectorLooks, run_detector_parity

    looks = DetectorLooks(as_used, html is not None, typed(), allow_not_read)
    document = run_detector_parity(source, mappings, options, inputs, folder, looks, converted, device)
    show(document, html, debug, json, strict)


def show(
    document: DetectorDocument,
    html: Path | None,
    debug: bool,
    json: bool,
    strict: bool = False,
    markdown: bool = False,
) -> None:
    """Show a comparison, write its page if one is asked for, and exit with its code; ``strict``: or the behaviour's."""
    from sam3lite_convert.report import detector as detector_report
    from sam3lite_convert.report import terminal
    from sam3lite_convert.report.judge import judged_markdown

    if html is not None:
        from sam3lite_convert.report.html.page import detector_page

        document = replace(document, report_error=write_report(html, lambda: detector_page(document)))
        document = replace(document, pictures=None)  # they are in the page
    if json:
        terminal.as_json(document)
    elif markdown:
        judged_markdown(document)
    else:
        detector_report.compared(document, debug)
    used = document.behaviour
    failed = document.failed or (strict and used is not None and used.verdict == "differs")
    leave(failed, document.report_error is None)


def self_test(source: Source, mappings: Mappings, options: ParityOptions, inputs: DetectorOptions, json: bool) -> None:
    """Make known faults in the original and show whether each is found. Exits with code 1 if one is missed."""
    from sam3lite_convert.commands.detector import self_test_detector
    from sam3lite_convert.report import parity as parity_report
    from sam3lite_convert.report import terminal

    document = self_test_detector(
        source,
        mappings,
        options,
        inputs,
        (lambda trial: None) if json else parity_report.tried,
    )
    if json:
        terminal.as_json(document)
    else:
        parity_report.self_tested(document)
    leave(document.verdict != "passed", True)


def record(
    source: Source,
    mappings: Mappings,
    inputs: DetectorOptions,
    output: Path | None,
    compact: bool,
    context: int | None,
    json: bool,
) -> None:
    """Write what the original's detector computes, and show it."""
    from sam3lite_convert.commands.record import record_detector
    from sam3lite_convert.report import terminal
    from sam3lite_convert.report.record import detector_recorded

    document = record_detector(
        source,
        mappings,
        inputs,
        output,
        compact=compact,
        context=context,
    )
    (terminal.as_json if json else detector_recorded)(document)


def judge(
    location: Location,
    mappings: Mappings,
    file: Path,
    name: str | None,
    ids: Path | None,
    tolerance: float | None,
    partial: bool,
    context: int | None,
    causal: bool,
    html: Path | None,
    json: bool,
    markdown: bool = False,
) -> None:
    """Judge what a port of the whole detector computed. Exits with code 1 if it differs.

    Raises CannotRun for options that are of the text encoder alone.
    """
    from sam3lite_convert.commands.detector import DetectorLooks, judge_detector
    from sam3lite_convert.parity.detector.port_files import read_detector_inputs, read_detector_port

    refuse(
        {"--partial": partial, "--causal": causal},
        "{} is of the text encoder alone, and FILE holds taps of a whole detector",
    )
    port = read_detector_port(file)  # first: a file that cannot be read needs no download
    inputs = read_detector_inputs(ids) if ids is not None else None
    looks = DetectorLooks(report=html is not None, command=typed())
    document = judge_detector(location.whole(), mappings, port, file, inputs, ids, name, tolerance, context, looks)
    show(document, html, False, json, markdown=markdown)
