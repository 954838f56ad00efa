"""``sam3lite export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from sam3lite_convert.checkpoint.selection import selection
from sam3lite_convert.cli import options as o
from sam3lite_convert.cli.help import OUTPUT, SOURCE, Command, Group
from sam3lite_convert.cli.shared import (
    check_of_detector,
    locate,
    one_checkpoint,
    tensor_bytes,
    use_one_thread,
    wrong_order,
)
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.hub.aliases import DEFAULT_REPO, DEFAULT_REVISION
from sam3lite_convert.quoting import shell_path

if TYPE_CHECKING:
    from sam3lite_convert.commands.sources import Source

export = typer.Typer(cls=Group, help="Write graphs over the tensors of a converted folder.")


@export.command("onnx", cls=Command)
def onnx(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Converted folder, as it was written.", rich_help_panel=SOURCE)
    ],
    source: o.ExportSource = None,
    checkpoint: o.CheckpointOption = None,
    component: o.PartOption = o.Compared.text,
    taps: Annotated[
        bool,
        typer.Option("--taps", help="Make every tap an output. Default: the results alone.", rich_help_panel=OUTPUT),
    ] = False,
    size: o.GraphSize = None,
    quantize: o.Quantize = None,
    budget: o.Budget = None,
    prompts_file: o.PromptsFile = None,
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
    """Write ONNX graphs that compute the text encoder, or the whole detector, from the folder's own tensor files.

    Writes model.onnx, or with --component detector vision.onnx, text.onnx and decode.onnx. The folder has to be
    proven: by convert --verify, by verify, or here, if the checkpoint is given. Exits with code 1 if it is not.

    Examples:
    # The text encoder of a folder that is proven:
    sam3lite export onnx my-sam3
    # The whole detector of one that is verified first:
    sam3lite export onnx my-sam3 my.pt --component detector
    """
    from sam3lite_convert.commands.export import export_onnx
    from sam3lite_convert.commands.quantized_graphs import Quantization
    from sam3lite_convert.plan.tables import load_mappings
    from sam3lite_convert.report.bars import byte_progress
    from sam3lite_convert.report.export import exported
    from sam3lite_convert.report.terminal import as_json

    if component is o.Compared.text:
        check_of_detector({"--size": size is not None})
    quantization = None
    if quantize is not None:
        from sam3lite_convert.commands.parity import read_prompts

        quantization = Quantization(quantize.value, budget, read_prompts([], prompts_file))
    elif budget is not None or prompts_file is not None:
        raise CannotRun("--budget and --prompts-file need --quantize int8 or --quantize int8-all", "usage")
    chosen = selection(state_dict_key, strip_prefix, drop, reason)
    if quantization is None:  # of which times are measured
        use_one_thread()
    name, mappings = one_checkpoint(source, checkpoint), load_mappings(mapping)
    if folder.is_file() and folder.suffix != ".safetensors":
        _refuse_file(folder, name)
    found: Source | None = None
    if name is not None:
        found = locate(name, repo_id, revision, cache_dir, json, chosen).whole()
    totals = {"write": tensor_bytes(folder), "hash": found.size if found else None}
    with byte_progress(totals, {"write": "comparing", "hash": "hashing the source"}, json) as progress:
        document = export_onnx(folder, mappings, component.value, taps, size, found, causal, progress, quantization)
    (as_json if json else exported)(document)
    if budget is not None and not document.within_budget:
        raise typer.Exit(1)


def _refuse_file(file: Path, checkpoint: str | None) -> NoReturn:
    """Raises CannotRun for a file where the folder should be, most often the checkpoint."""
    if checkpoint is not None and Path(checkpoint).is_dir():
        raise wrong_order(str(file), checkpoint)
    raise CannotRun(
        f"{file} is a file, and export takes a folder that convert wrote. To convert a checkpoint and write its text "
        f"encoder's graph: sam3lite convert {shell_path(file)} --onnx",
        "usage",
    )
