"""``sam3lite restore``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sam3lite_convert.checkpoint.selection import selection
from sam3lite_convert.cli import options as o
from sam3lite_convert.cli.mistakes import Mistake
from sam3lite_convert.cli.shared import (
    is_checkpoint,
    locate,
    one_checkpoint,
    quiet_hub,
    tensor_bytes,
    use_one_thread,
    wrong_order,
)
from sam3lite_convert.hub.aliases import DEFAULT_REPO, DEFAULT_REVISION

if TYPE_CHECKING:
    from sam3lite_convert.commands.sources import Source
    from sam3lite_convert.plan.tables import Mappings
    from sam3lite_convert.records.restore import RestoreDocument


def restore(
    folder: o.RestoredFolder,
    source: o.RestoredSource = None,
    checkpoint: o.CheckpointOption = None,
    output: o.RestoreTo = None,
    overwrite: o.Overwrite = False,
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
    """Turn a converted folder back into a checkpoint under the original's names.

    With the checkpoint that it was converted from, all of its tensors are written: those that the folder holds
    unchanged are equal to the bit, and those that were trained since are the folder's. The file is written as a whole
    or not at all.

    Examples:
    # What the folder holds, under the original's names:
    sam3lite restore my-sam3 --output back.pt
    # All tensors of the original, those trained since from the folder:
    sam3lite restore my-sam3 my.pt --output back.pt
    """
    from sam3lite_convert.commands.folders import locate_folder
    from sam3lite_convert.commands.restore import check_restored_place
    from sam3lite_convert.convert.folder import read_folder
    from sam3lite_convert.plan.tables import load_mappings
    from sam3lite_convert.report.restore import restored
    from sam3lite_convert.report.terminal import as_json

    chosen = selection(state_dict_key, strip_prefix, drop, reason)
    use_one_thread()
    name = one_checkpoint(source, checkpoint)
    if name is None and is_checkpoint(folder) and not folder.endswith(".safetensors"):
        to_write = ["--output", "restored.pt"] if output is None else []
        raise Mistake(
            f"{folder} is a checkpoint; restore takes the folder that was made of one before it",
            lambda line: [*line.with_argument(0, "my-sam3"), *to_write],
            example=True,
        )
    if output is None:
        message = "restore needs a file to write: sam3lite restore DIR --output FILE.pt"
        if source is not None and not Path(source).exists() and Path(source).suffix in (".pt", ".pth", ".safetensors"):
            raise Mistake(message, lambda line: line.as_option(source, "--output"))
        raise Mistake(message, lambda line: line.with_option("--output", "restored.pt"), example=True)
    if name is not None and is_checkpoint(folder) and Path(name).is_dir():
        raise wrong_order(folder, name)
    place = locate_folder(folder, cache_dir)
    check_restored_place(output, overwrite, Path(folder))  # before anything is downloaded
    quiet_hub(json)
    mappings = load_mappings(mapping)
    path, repository = place.whole()
    read_folder(path)  # first: a folder that cannot be read needs no download of the checkpoint
    original = None if name is None else locate(name, repo_id, revision, cache_dir, json, chosen).whole()
    document = _restore(path, output, mappings, original, overwrite, causal, json)
    (as_json if json else restored)(replace(document, folder=place.name, repository=repository))


def _restore(
    folder: Path,
    output: Path,
    mappings: Mappings,
    original: Source | None,
    overwrite: bool,
    causal: bool,
    json: bool,
) -> RestoreDocument:
    from sam3lite_convert.commands.restore import restore_checkpoint
    from sam3lite_convert.report.bars import byte_progress

    held = tensor_bytes(folder)
    totals = {"write": held if original is None else original.size}
    labels = {"compare": "comparing", "hash": "hashing the checkpoint", "write": "writing"}
    if original is not None:
        totals = {"compare": held, "hash": original.size} | totals
    with byte_progress(totals, labels, json) as progress:
        return restore_checkpoint(folder, output, mappings, original, overwrite, causal, progress)
