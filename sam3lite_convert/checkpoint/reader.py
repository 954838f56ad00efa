"""Opens a checkpoint, of one file or of an index and its shards, and reads its index. No tensor data is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from sam3lite_convert.checkpoint.file_set import members
from sam3lite_convert.checkpoint.index import Checkpoint, check_unchanged, files_of
from sam3lite_convert.checkpoint.one_file import open_file, read_file
from sam3lite_convert.checkpoint.place import LocalPlace
from sam3lite_convert.checkpoint.selection import NOTHING_STATED, Selection
from sam3lite_convert.checkpoint.shards import JoinedFile, read_files


@contextmanager
def open_source(checkpoint: Checkpoint) -> Iterator[BinaryIO]:
    """The file of an index, opened for reading; shards are read as one file, in which each follows the one before.

    Raises Untrusted if it is not the file that was indexed, or if it changes before it is closed.
    """
    with ExitStack() as stack:
        if checkpoint.shards:
            opened = [(stack.enter_context(open_file(shard.path)), shard) for shard in checkpoint.shards]
            for part, shard in opened:
                check_unchanged(shard, part)
            joined = JoinedFile(checkpoint.path, [(part, shard.size) for part, shard in opened])
            yield cast(BinaryIO, joined)
        else:
            file = stack.enter_context(open_file(checkpoint.path))
            check_unchanged(checkpoint, file)
            yield file
            check_unchanged(checkpoint, file)
        for each in files_of(checkpoint):
            check_unchanged(each, each.path)


def read_checkpoint(path: Path, selection: Selection = NOTHING_STATED) -> Checkpoint:
    """Index a local checkpoint: a file, an index of shards, or a folder that holds one of them; with it the projection
    of a text encoder that lies beside it.

    ``selection``: what the user states about it.

    Raises CannotRun if a file cannot be opened, or has no entry of the stated path, or if there are several in the
    folder; Untrusted if one is empty, truncated, corrupt, hostile or not a checkpoint, or if index and shards do not
    agree; UnsoundPlan if it holds no state dict, or several, or is one shard alone.
    """
    path, *others = members(path)  # which checks that none lies elsewhere
    if not others:
        return read_file(path, selection=selection)
    return read_files(LocalPlace(path.parent), path.name, selection)
