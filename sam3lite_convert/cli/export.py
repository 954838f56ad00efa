"""``sam3lite export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sam3lite_convert.cli import options as o
from sam3lite_convert.errors import CannotRun

export = typer.Typer(help="Write graphs over the tensors of a converted folder.", no_args_is_help=True)


@export.command("onnx")
def onnx(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Converted folder, as it was written.")],
    component: o.ComparedOption = o.Compared.text,
    taps: Annotated[bool, typer.Option("--taps", help="Make every tap an output. Default: the results alone.")] = False,
    quantize: o.Quantize = None,
    budget: o.Budget = None,
    prompts_file: o.MeasuredPrompts = None,
    mapping: o.Mapping = None,
    json: o.Json = False,
) -> None:
    """Write ONNX graphs that compute the text encoder, or the whole detector, from the folder's own tensor files."""
    from sam3lite_convert.commands.export import Quantization, export_onnx
    from sam3lite_convert.commands.parity import read_prompts
    from sam3lite_convert.plan.tables import load_mappings
    from sam3lite_convert.report.export import exported
    from sam3lite_convert.report.terminal import as_json

    quantization = None
    if quantize is not None:
        quantization = Quantization(quantize.value, budget, read_prompts([], prompts_file))
    elif budget is not None or prompts_file is not None:
        raise CannotRun("--budget and --prompts-file need --quantize int8 or --quantize int8-all", "usage")
    document = export_onnx(folder, load_mappings(mapping), component.value, taps, quantization)
    (as_json if json else exported)(document)
    if budget is not None and not document.within_budget:
        raise typer.Exit(1)
