"""The folder with ONNX graphs that parity runs as its candidate: the user's, or one that is made for the comparison."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sam3lite_convert.commands.sources import Source
from sam3lite_convert.convert import side_files
from sam3lite_convert.convert import write as conversion
from sam3lite_convert.convert.folder import read_folder
from sam3lite_convert.files import write_whole
from sam3lite_convert.plan.plan import Options, make_plan
from sam3lite_convert.plan.tables import Mappings

if TYPE_CHECKING:
    from sam3lite_convert.graph.folder_graphs import Component

ONNX = "onnx"  # the name of the candidate


@dataclass(frozen=True)
class OnnxOptions:
    """How graphs are run. ``provider``: of onnxruntime, None: its own of the processor. ``optimised``: whether
    onnxruntime may rewrite them."""

    provider: str | None = None
    optimised: bool = True


@contextmanager
def exported_folder(
    source: Source, mappings: Mappings, component: Component, size: int | None, options: Options
) -> Iterator[Path]:
    """A folder of the conversion, with the graphs of a component; it is deleted at the end.

    ``size``: of the pictures that a detector's graphs are for, in pixels. ``options``: of the conversion.

    Raises CannotRun if there is no room or no graph for it, UnsoundPlan and Untrusted as a conversion does.
    """
    from sam3lite_convert.graph.folder_graphs import graphs_of, layout_of, serialized

    with tempfile.TemporaryDirectory(prefix="sam3lite-") as place, source.hashing() as hashing:
        checkpoint = source.read(mappings)
        hashing.check(checkpoint)
        plan = make_plan(checkpoint, mappings, options)
        made = conversion.convert(plan, hashing, Path(place) / "converted", finish=side_files.with_config)
        found = read_folder(made.folder)
        graphs = graphs_of(found, layout_of(found.receipt or {}, mappings), component, {}, size=size)
        for name, model in graphs.items():
            write_whole(made.folder / name, serialized(model))
        yield made.folder
