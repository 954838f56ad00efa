"""Proves that the ONNX graphs of a folder are those that this version writes for it, over the folder's own tensors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sam3lite_convert.convert.folder import Folder
from sam3lite_convert.convert.graph_files import DETECTOR_MODELS, GRAPH_SUFFIX, QUANTIZED_MODELS, TEXT_MODEL
from sam3lite_convert.convert.proof import own_receipt
from sam3lite_convert.errors import CannotRun, Sam3LiteError
from sam3lite_convert.json_text import parse_json
from sam3lite_convert.plan.tables import Mappings
from sam3lite_convert.records.receipt import Receipt
from sam3lite_convert.verify.findings import Difference

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

    from sam3lite_convert.graph.folder_graphs import Component

OURS = (TEXT_MODEL, *DETECTOR_MODELS)
_FILE, _WEIGHTS, _GRAPH, _VERSION = "V-GRAPH-FILE", "V-GRAPH-WEIGHTS", "V-GRAPH", "V-GRAPH-VERSION"
_COMPONENT = "graphs"
_LISTED = 8  # differences of one graph
_AGAIN = "sam3lite export onnx writes it again"
_RIGHT = "its weights are the folder's own tensors, and it is the graph that this version writes for them"
_REMADE = (
    "quantised again from the folder's tensors, it comes out the same; the loss that it states was not measured again"
)


def graph_names(folder: Path) -> list[str]:
    """The names of the graphs in a folder, whoever wrote them."""
    return sorted(path.name for path in folder.iterdir() if path.suffix == GRAPH_SUFFIX)


def has_onnx() -> bool:
    """Whether graphs can be read."""
    try:
        import onnx  # noqa: F401
    except ImportError:
        return False
    return True


def check_graphs(
    folder: Folder,
    mappings: Mappings,
    hashes: Callable[[], dict[str, str]],
    notes: list[str],
    skipped: Collection[str] = (),
) -> Iterator[Difference]:
    """What is wrong with the graphs of a folder on this machine. Adds to ``notes`` which ones are right, and which
    ones were not checked.

    hashes: SHA-256 of the folder's tensor files by name; asked for if there is a graph to check. skipped: names of
        graphs of which nothing is said.
    """
    for name in graph_names(folder.path):
        if name in skipped:
            continue
        if name not in OURS and name not in QUANTIZED_MODELS:
            notes.append(f"{name} was not checked: it is no graph that sam3lite writes over the folder's tensors")
        elif not has_onnx():
            notes.append(f"{name} was not checked: pip install 'sam3lite-convert[onnx]'")
        else:
            try:
                model = _read(folder.path / name)
                if of_others := list(_of_other_weights(name, model, folder, hashes)):
                    yield from of_others
                elif name not in QUANTIZED_MODELS or _can_be_made(name, model, notes):
                    found = list(_faults(name, model, folder, mappings))
                    yield from found
                    if not found:
                        notes.append(f"{name}: {_REMADE if name in QUANTIZED_MODELS else _RIGHT}")
            except Sam3LiteError as fault:
                yield Difference(name, _FILE, _COMPONENT, fault.message)


def belongs_to(folder: Path) -> str | None:
    """In words, to which weights the graphs of a folder without weights belong; None if it holds none of ours, or if
    they cannot be read."""
    from sam3lite_convert.graph.metadata import SOURCE, stated_weights
    from sam3lite_convert.graph.read import metadata_of, read_graph

    for name in graph_names(folder):
        try:
            said = metadata_of(read_graph(folder / name, None))
        except Sam3LiteError:
            continue
        if weights := stated_weights(said):
            source = f", made of {_source(said[SOURCE])}" if SOURCE in said else ""
            return f"{name} there belongs to {_named(weights)}{source}: put it back beside them"
    return None


def _named(weights: Mapping[str, str]) -> str:
    return ", ".join(f"{name} (SHA-256 {digest})" for name, digest in weights.items())


def _source(said: str) -> str:
    """The source that a graph states, in words."""
    try:
        stated = parse_json(said)
    except ValueError:
        return "an unknown source"
    if not isinstance(stated, dict):
        return "an unknown source"
    digest = stated.get("sha256") or stated.get("etag")
    place = f"{stated['repo']}: {stated.get('file')}" if "repo" in stated else stated.get("name")
    return f"{place} (SHA-256 {digest})"


# ---- one graph


def _read(path: Path) -> ModelProto:
    """The graph, without a look at its weights; one that holds them is smaller than the folder's.

    Raises Untrusted if it is not safe to run, CannotRun if it cannot be opened.
    """
    from sam3lite_convert.graph.read import LIMIT, read_graph

    weights = [file.stat().st_size for file in path.parent.iterdir() if file.suffix == ".safetensors"]
    return read_graph(path, None, LIMIT + sum(weights) if path.name in QUANTIZED_MODELS else LIMIT)


def _can_be_made(name: str, model: ModelProto, notes: list[str]) -> bool:
    """Whether a quantised graph can be made again here, to compare it; adds to ``notes`` why not."""
    from sam3lite_convert.graph.quantize import installed, quantized_from

    stated, here = quantized_from(model), installed()
    if here is None:
        notes.append(f"{name} was not checked: pip install 'sam3lite-convert[onnx]'")
    elif stated is not None and (stated.onnxruntime, stated.onnx) != here:
        made, now = (
            f"onnxruntime {runtime} and onnx {onnx}" for runtime, onnx in ((stated.onnxruntime, stated.onnx), here)
        )
        notes.append(f"{name} was not checked: {made} made it, and {now} may make another of the same weights")
    else:
        return True
    return False


def _of_other_weights(
    name: str, model: ModelProto, folder: Folder, hashes: Callable[[], dict[str, str]]
) -> Iterator[Difference]:
    """That a graph belongs to other weights than the folder's, if it says so."""
    from sam3lite_convert.graph.metadata import stated_weights
    from sam3lite_convert.graph.read import metadata_of

    stated = stated_weights(metadata_of(model))
    if own_receipt(folder) is not None and stated and stated != (held := hashes()):
        why = f"belongs to {_named(stated)}; here is {_named(held)}"
        yield Difference(name, _WEIGHTS, _COMPONENT, why)


def _faults(name: str, model: ModelProto, folder: Folder, mappings: Mappings) -> Iterator[Difference]:
    """What is wrong with one graph that does not say that it belongs to other weights. Raises Untrusted if it is not
    safe to run."""
    from sam3lite_convert.graph.metadata import TOOL, TOOL_NOW, stated_weights
    from sam3lite_convert.graph.read import check_places, metadata_of

    said = metadata_of(model)
    receipt, stated = own_receipt(folder), stated_weights(said)
    check_places(model, folder.path, name)
    yield from _misplaced(name, model, folder)
    if receipt is None or not stated:
        lacks = "the folder has no receipt of its tensors" if receipt is None else "it states no weights"
        yield Difference(name, _GRAPH, _COMPONENT, f"is not a graph that sam3lite wrote for this folder: {lacks}")
        return
    of, _ = QUANTIZED_MODELS.get(name, (name, None))
    if receipt.component == "text" and of in DETECTOR_MODELS:
        yield Difference(name, _GRAPH, _COMPONENT, "is one of a whole detector's, and the folder is a text encoder")
        return
    differing = list(_differing(name, model, said, folder, receipt, mappings, stated))
    written = said.get(TOOL, "")
    if differing and written != TOOL_NOW:
        by = f"was written by {written[:80]}" if written else "does not say which version wrote it"
        why = f"{by}; {TOOL_NOW} writes another ({differing[0].key}: {differing[0].why}). {_AGAIN}"
        yield Difference(name, _VERSION, _COMPONENT, why)
        return
    yield from differing[:_LISTED]
    if len(differing) > _LISTED:
        more = len(differing) - _LISTED
        yield Difference(name, _GRAPH, _COMPONENT, f"has {more:,} more differences from the graph of this version")


def _misplaced(name: str, model: ModelProto, folder: Folder) -> Iterator[Difference]:
    """Initializers that are not a tensor of the folder, or the first rows of one."""
    from onnx import TensorProto

    from sam3lite_convert.graph.read import place_of

    tensors = {(path.name, tensor.offset): tensor for path, tensor in folder.tensors.values() if tensor.contiguous}
    dtypes = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}
    for initializer in model.graph.initializer:
        if initializer.data_location != TensorProto.EXTERNAL:
            continue
        place = place_of(initializer)
        found, dtype = tensors.get((place.file, place.offset)), dtypes.get(initializer.data_type)
        why = None
        if found is None:
            why = f"lies at {place.offset:,} of {place.file}, where no tensor of the folder begins"
        elif found.key != initializer.name:
            why = f"lies where {found.key} does"
        elif dtype != found.dtype or place.length > found.nbytes:
            why = f"is {_kind(initializer)}, and the folder's is {found.dtype} {list(found.shape)}"
        if why is not None:
            yield Difference(f"{name}: {initializer.name}", _WEIGHTS, _COMPONENT, why)


def _kind(tensor: TensorProto) -> str:
    from onnx import TensorProto

    return f"{TensorProto.DataType.Name(tensor.data_type).lower()} {list(tensor.dims)}"


def _differing(
    name: str,
    model: ModelProto,
    said: Mapping[str, str],
    folder: Folder,
    receipt: Receipt,
    mappings: Mappings,
    weights: Mapping[str, str],
) -> Iterator[Difference]:
    """How a graph differs from the one that this version writes for the folder."""
    from sam3lite_convert.graph.compare import differences, first_unlike
    from sam3lite_convert.graph.folder_graphs import graphs_of, layout_of
    from sam3lite_convert.graph.metadata import graph_metadata
    from sam3lite_convert.graph.quantize import LOSS, quantized
    from sam3lite_convert.graph.read import metadata_of

    layout, stated = layout_of(receipt.to_json(), mappings), graph_metadata(receipt, weights)
    of, method = QUANTIZED_MODELS.get(name, (name, None))
    component: Component = "text" if of == TEXT_MODEL else "detector"
    side = _side(said.get("image_size", ""))

    def ours(taps: bool) -> ModelProto:
        return graphs_of(folder, layout, component, stated, taps, side)[of]

    own = ours(False)
    if len(model.graph.output) > len(own.graph.output):
        own = ours(True)
    if method is not None:
        own = quantized(own, folder.path, method)
        model = _without(model, LOSS)  # measured: another each time
        said = metadata_of(model)
    alike = True
    for one in differences(model, own):
        alike = False
        yield Difference(f"{name}: {one.name}" if one.name else name, _GRAPH, _COMPONENT, one.words)
    wanted = metadata_of(own)
    for key in dict.fromkeys((*wanted, *said)):
        if said.get(key) != wanted.get(key):
            alike = False
            why = f"says {_short(said.get(key))}; the folder's is {_short(wanted.get(key))}"
            yield Difference(f"{name}: {key}", _GRAPH, _COMPONENT, why)
    if alike and (where := first_unlike(model, own)) is not None:
        why = f"computes what the graph of this version does, but its file is another: {where or 'an unknown field'}"
        yield Difference(name, _GRAPH, _COMPONENT, f"{why} differs")


def _without(model: ModelProto, key: str) -> ModelProto:
    """A copy of a graph without an entry of its metadata."""
    copy = type(model)()
    copy.CopyFrom(model)
    kept = [entry for entry in model.metadata_props if entry.key != key]
    del copy.metadata_props[:]
    copy.metadata_props.extend(kept)
    return copy


def _side(said: str) -> int | None:
    """The side of the pictures that a graph states, in pixels. Raises CannotRun if it states none that can be."""
    if said and not (said.isascii() and said.isdecimal() and len(said) < 6):
        raise CannotRun(f"it states pictures of {said[:40]!r} pixels", "bad_graph")
    return int(said) if said else None


def _short(text: str | None) -> str:
    if text is None:
        return "nothing"
    return repr(text if len(text) <= 120 else f"{text[:120]}...")
