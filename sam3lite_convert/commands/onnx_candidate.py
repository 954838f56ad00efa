"""The folder whose graphs parity runs where the user gives none: made for the comparison, and deleted after it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sam3lite_convert.checkpoint.index import Checkpoint
from sam3lite_convert.commands.sources import Source
from sam3lite_convert.convert.folder import read_folder
from sam3lite_convert.convert.write import convert
from sam3lite_convert.files import write_whole
from sam3lite_convert.plan.plan import Options, make_plan
from sam3lite_convert.plan.tables import Mappings

if TYPE_CHECKING:
    from sam3lite_convert.graph.folder_graphs import Component


@contextmanager
def exported_folder(
    source: Source,
    checkpoint: Checkpoint,
    mappings: Mappings,
    options: Options,
    component: Component,
    size: int | None = None,
) -> Iterator[Path]:
    """A folder with a conversion and its graphs, as ``convert`` and ``export`` write them; it is deleted at the end.

    ``checkpoint``: what ``source`` holds. ``size``: of the pictures that a detector's graphs are for, in pixels.

    Raises as they do.
    """
    from sam3lite_convert.graph.folder_graphs import graphs_of, serialized

    with tempfile.TemporaryDirectory(prefix="sam3lite-parity-") as place:
        with source.hashing() as hashing:
            hashing.check(checkpoint)
            plan = make_plan(checkpoint, mappings, options)
            folder = convert(plan, hashing, Path(place) / "converted").folder
        graphs = graphs_of(read_folder(folder), plan.layout, component, {}, size=size)
        for name, model in graphs.items():
            write_whole(folder / name, serialized(model))
        yield folder
