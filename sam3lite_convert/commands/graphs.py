"""Puts ONNX graphs into converted folders."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from sam3lite_convert.checkpoint.file_set import is_inside
from sam3lite_convert.convert.folder import Folder, read_folder
from sam3lite_convert.convert.receipt import RECEIPT_NAME
from sam3lite_convert.convert.side_files import with_graphs
from sam3lite_convert.errors import CannotRun, in_short
from sam3lite_convert.files import place_of_file, whole_file
from sam3lite_convert.plan.tables import Mappings
from sam3lite_convert.progress import bar
from sam3lite_convert.records.export import GraphFile, GraphValue
from sam3lite_convert.records.receipt import Receipt
from sam3lite_convert.seen import Seen
from sam3lite_convert.unforeseen import lacks_memory

if TYPE_CHECKING:
    import onnx

    from sam3lite_convert.graph.folder_graphs import Component


def need_onnx(what: str = "export onnx") -> None:
    """Raises CannotRun, saying what to install, if the package onnx is not there."""
    try:
        import onnx  # noqa: F401
    except ImportError as fault:
        if lacks_memory(fault):
            raise
        raise CannotRun(f"{what} needs onnx: pip install 'sam3lite-convert[onnx]'", "no_onnx") from None


def replaceable_graphs(folder: Path, receipt: Receipt, names: Iterable[str]) -> dict[str, Seen]:
    """What stands under these names in a folder, which may be replaced.

    Raises CannotRun if one is somebody else's graph, or may be: it says that another program wrote it, or cannot be
    read and is not one that the receipt lists."""
    from sam3lite_convert.graph.builder import PRODUCER
    from sam3lite_convert.graph.read import producer_of

    earlier = {name: place_of_file(folder / name) for name in names}
    for name in earlier:
        path = folder / name
        if not path.exists() or (producer := producer_of(path)) == PRODUCER:
            continue
        if producer is not None or name not in receipt.beside:
            raise CannotRun(
                f"{path} is not a graph that sam3lite wrote, and was not changed. Move it, or delete it, and run this "
                "again.",
                "output_not_ours",
            )
    return earlier


def add_graphs(
    folder: Folder,
    receipt: Receipt,
    weights: Mapping[str, str],
    mappings: Mappings,
    component: Component,
    taps: bool = False,
    size: int | None = None,
) -> dict[str, tuple[bytes, GraphFile]]:
    """Write the graphs of a folder into it, all of them or none; returns by name their bytes and what is said of them.
    Earlier graphs of ours are replaced.

    receipt, weights: the folder's, and the SHA-256 of its tensor files by name, as they were proven.

    Raises CannotRun, UnsoundPlan and Untrusted as ``export_onnx`` does.
    """
    from sam3lite_convert.graph.folder_graphs import graphs_of, layout_of, serialized
    from sam3lite_convert.graph.metadata import graph_metadata
    from sam3lite_convert.graph.read import read_graph

    layout = layout_of(receipt.to_json(), mappings)
    with bar("building graphs", None):
        graphs = graphs_of(folder, layout, component, graph_metadata(receipt, weights), taps, size)
    earlier = replaceable_graphs(folder.path, receipt, graphs)
    if outside := [name for name in folder.taken if not is_inside(folder.path, name)]:
        raise CannotRun(
            f"{folder.path / outside[0]} is a link to a file outside of the folder, which runtimes do not follow. Copy "
            "the folder with its files (cp -rL), and export there.",
            "linked_weights",
        )
    with ExitStack() as stack:
        advance = stack.enter_context(bar("writing and checking graphs", 2 * len(graphs)))
        made = {}
        for name, model in graphs.items():
            made[name] = (data := serialized(model), _graph_file(name, model, data))
            advance(stage=name)
        for name, (data, _) in made.items():
            out = stack.enter_context(whole_file(folder.path / name, earlier[name]))
            out.write(data)
            out.flush()
            _check(read_graph(Path(out.name), folder.path), name)
            advance(stage=name)
        folder.check_unchanged()
    return made


def with_text_graph(folder: Path, receipt: Receipt, mappings: Mappings) -> Receipt:
    """Write the graph of the text encoder into a folder that was proven just now; the receipt that lists it.

    Raises CannotRun if the receipt does not say what was proven, and as ``add_graphs`` does.
    """
    if receipt.proven is None:
        raise CannotRun(
            f"{folder} was proven by another file than its {RECEIPT_NAME} names, so no graph is written: convert again "
            "with --overwrite",
            "not_proven",
        )
    graphs = add_graphs(read_folder(folder), receipt, receipt.proven, mappings, "text")
    return with_graphs(receipt, {name: data for name, (data, _) in graphs.items()})


def _check(model: onnx.ModelProto, name: str) -> None:
    """Raises CannotRun if onnx does not take a graph whose weights were found in their place."""
    import onnx

    # As inputs, the weights are not looked at again: onnx refuses a file that has a second name, as backups make it.
    checked = onnx.ModelProto()
    checked.CopyFrom(model)
    del checked.graph.initializer[:]
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            checked.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        else:
            checked.graph.initializer.append(tensor)
    try:
        onnx.checker.check_model(checked, full_check=True)
    except Exception as fault:  # of several classes, by what is wrong
        raise CannotRun(f"{name} was not written: onnx does not take it ({in_short(fault)})", "bad_graph") from fault


def _graph_file(name: str, model: onnx.ModelProto, data: bytes) -> GraphFile:
    return GraphFile(
        name=name,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        nodes=len(model.graph.node),
        inputs=tuple(map(_value, model.graph.input)),
        outputs=tuple(map(_value, model.graph.output)),
    )


def _value(value: onnx.ValueInfoProto) -> GraphValue:
    import onnx

    kind = value.type.tensor_type
    return GraphValue(
        name=value.name,
        dtype=onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name,
        shape=tuple(d.dim_param or d.dim_value for d in kind.shape.dim),
        about=value.doc_string,
    )
