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
    size: o.GraphSize = None,
    mapping: o.Mapping = None,
    json: o.Json = False,
) -> None:
    """Write ONNX graphs that compute the text encoder, or the whole detector, from the folder's own tensor files."""
    from sam3lite_convert.commands.export import export_onnx
    from sam3lite_convert.plan.tables import load_mappings
    from sam3lite_convert.report.export import exported
    from sam3lite_convert.report.terminal import as_json

    if size is not None and component is o.Compared.text:
        raise CannotRun("--size needs --component detector", "usage")
    document = export_onnx(folder, load_mappings(mapping), component.value, taps, size)
    (as_json if json else exported)(document)
