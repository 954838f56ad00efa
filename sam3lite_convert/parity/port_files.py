"""Reads what a port dumped: safetensors, ``.npz``, a folder of ``.npy`` files, dumps of transformers' model debugger.

Nothing in a file is ever executed: arrays of Python objects and torch's own files, which are pickles, are refused.
"""

from __future__ import annotations

import difflib
import io
import lzma
import math
import re
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sam3lite_convert.checkpoint import dtypes
from sam3lite_convert.checkpoint.zip_directory import open_zip
from sam3lite_convert.errors import CannotRun, Untrusted, in_short
from sam3lite_convert.figures import human_bytes
from sam3lite_convert.json_text import parse_json
from sam3lite_convert.opened import check_regular, is_there, open_regular, read_small
from sam3lite_convert.parity.taps import (
    EMBEDDINGS,
    FINAL_NORM,
    LAYER,
    POOLED,
    PROJECTED,
    TAPS,
    layer_of,
    point_of,
    spelled,
)
from sam3lite_convert.records.record import JsonValue

IDS = ("input_ids", "ids")
SIDES = ("candidate", "isolated", "reference")
_FULL, _SUMMARY = "_debug_tree_FULL_TENSORS.json", "_debug_tree_SUMMARY.json"
_KINDS = "a .safetensors file, a .npz, a folder of .npy files, or a dump of transformers' model debugger"
_FULL_DUMP = "model_addition_debugger_context(model, debug_path=DIR, do_prune_layers=False, use_repr=False)"
_LISTED = 8
_MOST_LAYERS = 24  # of the taps that a misspelt name is compared with; SAM3's own text encoder has as many
# What activations have, and far more; a file of a few kB may promise any number of bytes.
_MOST_IN_ARRAY = 2 << 30  # bytes
_MOST_IN_ALL = 8 << 30  # bytes, of the arrays that are read
_MOST_NAMES = 100_000
_MOST_RATIO = 100  # activations shrink to no less than a half; zeros do
_ANY_RATIO = 16 << 20  # bytes up to which an array may shrink to nothing
_MOST_JSON = 32 << 20  # bytes; a dump of the debugger of a whole detector has 5 MB
_PIECE = 1 << 20
# What the libraries raise for damaged files.
_ZIP_FAULTS = (
    zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, RuntimeError,
)  # fmt: skip
_NPY_FAULTS = (
    ValueError, KeyError, TypeError, SyntaxError, OverflowError, RecursionError, EOFError, OSError, tokenize.TokenError,
)  # fmt: skip


@dataclass(frozen=True)
class PortFile:
    """What a file of a port holds.

    ``kind``: the format, in words.
    ``propagated``: the port's activations by tap, in the shape and dtype of the file.
    ``isolated``: those computed from the reference's recorded input, by tap.
    ``ids``: the ids of the file; None if it holds none.
    ``notes``: what was left out.
    ``of_reference``: the file's own activations of a reference, by tap. They are never taken for the port's.
    ``names``: by tap, what the file calls it, where that is spelled otherwise.
    """

    kind: str
    propagated: dict[str, Tensor]
    isolated: dict[str, Tensor]
    ids: Tensor | None = None
    notes: tuple[str, ...] = ()
    of_reference: tuple[str, ...] = ()
    names: dict[str, str] = field(default_factory=dict)


def read_port_file(path: Path) -> PortFile:
    """Read a port's activations, from a file or a folder.

    Raises CannotRun if there is no such file, its format is not supported or it holds no activations; Untrusted if it
    is damaged or holds Python objects.
    """
    if path.is_dir():
        if dumps := sorted(path.glob(f"*{_FULL}")) or sorted(path.glob(f"*{_SUMMARY}")):
            if len(dumps) > 1:
                raise CannotRun(f"{path} holds {len(dumps)} dumps of the debugger; name one of the files", "usage")
            return _dump(dumps[0])
    elif path.suffix == ".json" and is_there(path):
        return _dump(path)
    return _port(path, *read_arrays(path, lambda name: name in IDS or tap_of(name) is not None))


def read_arrays(path: Path, wanted: Callable[[str], bool]) -> tuple[str, dict[str, Tensor], list[str]]:
    """A file or folder of arrays: its format in words, the arrays whose names are wanted, the names of all.

    Raises CannotRun if there is no such file or its format is not supported; Untrusted if it is damaged or holds Python
    objects.
    """
    if path.is_dir():
        arrays = sorted(path.glob("*.npy"))
        if not arrays:
            raise CannotRun(f"{path} holds no .npy files; activations are read from {_KINDS}", "no_activations")
        budget = _Budget(str(path), len(arrays))
        found = {}
        for each in arrays:
            if wanted(each.stem):
                budget.take(each.stem, check_regular(each).st_size)
                found[each.stem] = _npy(read_small(each, _MOST_IN_ARRAY), str(each))
        return "a folder of .npy files", found, [each.stem for each in arrays]
    with open_regular(path) as file:
        head = file.read(9)
    if head.startswith(b"PK\x03\x04"):
        return ".npz", *_npz(path, wanted)
    if head.startswith(b"\x93NUMPY"):
        raise CannotRun(f"{path} is a single array; give a folder of .npy files, one for each tap", "no_activations")
    # A safetensors file begins with the length of its header, whose first byte may be that of a pickle.
    if head[:1] == b"\x80" and head[8:] != b"{":
        raise CannotRun(f"{path} is a pickle, which is not read: it could run code; save {_KINDS}", "no_activations")
    if path.suffix == ".npz":
        raise Untrusted(f"{path}: is not a .npz, which is a zip archive", "corrupt_file")
    return "safetensors", *read_safetensors(path, wanted)[:2]


def names_in(path: Path) -> list[str]:
    """The names of the arrays of a file or folder; none if it is no such file or is damaged. Nothing else is read."""
    from safetensors import SafetensorError, safe_open

    try:
        if path.is_dir():
            return [file.stem for file in path.glob("*.npy")]
        with open_regular(path) as file:
            if zipfile.is_zipfile(file):
                with open_zip(file) as archive:
                    return [name.removesuffix(".npy") for name in archive.namelist()]
        with safe_open(path, "pt") as held:
            return list(held.keys())
    except (*_ZIP_FAULTS, SafetensorError, CannotRun):
        return []


def given_activations(activations: Mapping[str, Tensor | np.ndarray]) -> PortFile:
    """Activations in memory, by tap, as a file would hold them.

    Raises CannotRun if none of the names is a tap, or if a value is not an array of numbers.
    """
    found = {}
    for name, value in activations.items():
        try:
            found[str(name)] = value.detach().cpu() if isinstance(value, Tensor) else _tensor(np.asarray(value))
        except (TypeError, ValueError, RuntimeError) as fault:
            raise CannotRun(f"{name} is not an array of numbers ({in_short(fault)})", "bad_activation") from fault
    return _port("the given activations", "memory", found, list(found))


def read_ids(path: Path) -> Tensor:
    """Ids from a ``.npy`` file, a ``.json`` file (rows of ids, or an object with ``ids``), or a file of activations.

    Raises CannotRun if there are none in it, Untrusted if it is damaged.
    """
    if not path.is_dir():
        check_regular(path)
    if path.suffix == ".json" and not path.name.endswith((_FULL, _SUMMARY)):
        data = _json(path)
        if isinstance(data, dict):
            data = next((data[name] for name in IDS if name in data), None)
        try:
            return torch.tensor(data)
        except (TypeError, ValueError, RuntimeError, OverflowError) as fault:
            raise CannotRun(f"{path}: no rows of ids in it ({in_short(fault)})", "bad_ids") from fault
    if path.suffix == ".npy":
        _Budget(str(path), 1).take(path.name, check_regular(path).st_size)
        return _npy(read_small(path, _MOST_IN_ARRAY), str(path))
    if path.is_dir() or path.suffix == ".json":
        ids = read_port_file(path).ids
    else:
        read = _npz if path.suffix == ".npz" else read_safetensors
        found = read(path, IDS.__contains__)[0]
        ids = next((found[name] for name in IDS if name in found), None)
    if ids is None:
        raise CannotRun(f"{path}: no ids in it; they are named {' or '.join(IDS)}", "bad_ids")
    return ids


def tap_of(
    name: str, spelled: Callable[[str], str | None] = spelled, sides: Sequence[str] = SIDES
) -> tuple[str, str] | None:
    """The side and the tap that a name stands for; None if it stands for no tap.

    A name is a tap's, with ``candidate``, ``isolated`` or ``reference`` in front or not (the candidate's, then), and
    with any of ``. _ - /`` between its words: ``layers.0``, ``layers_0``, ``isolated/layers-0``.

    ``spelled``: the tap that a name without a side stands for; None if it stands for none.
    """
    match = re.fullmatch(rf"({'|'.join(sides)})[._/-]+(.+)", name)
    side, rest = (match[1], match[2]) if match else ("candidate", name)
    tap = spelled(rest)
    return (side, tap) if tap else None


def _port(path: Path | str, kind: str, found: Mapping[str, Tensor], names: list[str]) -> PortFile:
    """The tensors of a file sorted by what they are. ``names``: of all that it holds."""
    sides: dict[str, dict[str, Tensor]] = {side: {} for side in SIDES}
    owner: dict[tuple[str, str], str] = {}
    ids = None
    for name, tensor in found.items():
        if name in IDS:
            if ids is not None and not torch.equal(ids, tensor):
                raise Untrusted(f"{path}: {' and '.join(IDS)} differ", "corrupt_file")
            ids = tensor
        elif place := tap_of(name):
            if place in owner:
                raise Untrusted(f"{path}: {owner[place]} and {name} are both {place[1]}", "corrupt_file")
            owner[place] = name
            sides[place[0]][place[1]] = tensor
    # The script of record writes a text tap of a whole detector twice, as text.layers.0 and layers.0.
    twins = {name for name in names if tap_of(name.removeprefix("text.")) in owner}
    others = [name for name in names if name not in IDS and not tap_of(name) and name not in twins]
    if not sides["candidate"]:
        if sides["reference"]:
            raise CannotRun(
                f"{path} holds the reference's side alone; save your port's activations under the names of the taps, "
                f"such as {next(iter(sides['reference']))}",
                "no_activations",
            )
        held = f"it holds {some(others)}" if others else "it is empty"
        if kind == "memory":
            held = f"they are {some(others)}" if others else "there are none"
        taps = ", ".join(point.name.replace("{i}", "0") for point in TAPS)
        what = "hold none at a tap" if kind == "memory" else "is not a file of activations"
        raise CannotRun(f"{path} {what}: {held}; taps are named {taps}", "no_activations")
    known = [
        point.name.replace("{i}", str(n)) for point in TAPS for n in range(_MOST_LAYERS if "{i}" in point.name else 1)
    ]
    notes = (f"not taps, and so not read: {some([meant(name, known) for name in others])}",) if others else ()
    return PortFile(
        kind, sides["candidate"], sides["isolated"], ids, notes, tuple(sides["reference"]), own_names(owner)
    )


def own_names(owner: Mapping[tuple[str, str], str]) -> dict[str, str]:
    """By tap, the candidate's name in a file, where it is spelled otherwise. ``owner``: side and tap -> name."""
    return {
        tap: name
        for (side, tap), name in owner.items()
        if side == "candidate" and name not in (tap, f"candidate.{tap}")
    }


def meant(name: str, known: Sequence[str]) -> str:
    """A name that is no tap, with the tap that it is spelt much like, if there is one."""
    near = difflib.get_close_matches(name, known, 1, 0.8) or [
        tap for tap in known if name.endswith((f".{tap}", f"/{tap}"))
    ]
    return f"{name} (did you mean {near[0]}?)" if near else name


def some(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


# ---- formats


class _Budget:
    """How much is read of one file or folder. ``names``: the number of names in it.

    Raises CannotRun if these, or what is taken, are more than any port's activations have.
    """

    def __init__(self, where: str, names: int) -> None:
        self._where = where
        self._left = _MOST_IN_ALL
        if names > _MOST_NAMES:
            raise CannotRun(f"{where} holds {names:,} arrays; save those at the taps alone", "too_large")

    def take(self, name: str, nbytes: int) -> None:
        """Count an array that is about to be read."""
        self._left -= nbytes
        if nbytes > _MOST_IN_ARRAY:
            what = f"{self._where}: {name} has {human_bytes(nbytes)}; of an activation at most"
            raise CannotRun(f"{what} {human_bytes(_MOST_IN_ARRAY)} are read; save it of fewer prompts", "too_large")
        if self._left < 0:
            what = f"{self._where}: its arrays have more than {human_bytes(_MOST_IN_ALL)} together"
            raise CannotRun(f"{what}; save them of fewer prompts", "too_large")


def read_safetensors(
    path: Path, wanted: Callable[[str], bool] = lambda name: True
) -> tuple[dict[str, Tensor], list[str], dict[str, str]]:
    """The tensors of a safetensors file whose names are wanted, the names of all, and the metadata.

    Raises Untrusted if it is damaged, CannotRun if they are larger than activations are.
    """
    from safetensors import SafetensorError, safe_open

    found = {}
    check_regular(path)
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            budget = _Budget(str(path), len(names))
            for name in filter(wanted, names):
                held = file.get_slice(name)
                budget.take(name, math.prod(held.get_shape()) * _width(held.get_dtype()))
                found[name] = file.get_tensor(name)
            return found, names, file.metadata() or {}
    except (SafetensorError, OSError) as fault:
        raise Untrusted(f"{path}: cannot be read as safetensors ({in_short(fault)})", "corrupt_file") from fault


def _width(code: str) -> int:
    """Bytes of an element, by its name in a safetensors header."""
    name = dtypes.from_safetensors(code)
    return dtypes.itemsize(name) if name else 1


def _npz(path: Path, wanted: Callable[[str], bool]) -> tuple[dict[str, Tensor], list[str]]:
    """The arrays of a ``.npz`` whose names are wanted, and the names of all."""
    found = {}
    try:
        with open_regular(path) as file, open_zip(file) as archive:
            entries = archive.infolist()
            if any(not entry.filename.endswith(".npy") for entry in entries):
                raise CannotRun(
                    f"{path} is a zip archive and not a .npz (torch.save makes such; its pickle is not read, as it "
                    f"could run code); save {_KINDS}",
                    "no_activations",
                )
            names = [entry.filename.removesuffix(".npy") for entry in entries]
            budget = _Budget(str(path), len(names))
            for name, entry in zip(names, entries, strict=True):
                if name in found:
                    raise Untrusted(f"{path}: {name} stands in it twice", "corrupt_file")
                if wanted(name):
                    budget.take(name, entry.file_size)
                    found[name] = _npy(_entry(archive, entry, f"{path}: {name}"), f"{path}: {name}")
    except _ZIP_FAULTS as fault:
        raise Untrusted(f"{path}: cannot be read as a .npz ({in_short(fault)})", "corrupt_file") from fault
    return found, names


def _entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, where: str) -> bytes:
    """The bytes of an entry, which are as many as the directory says. Raises Untrusted for a bomb, BadZipFile if it is
    damaged or compressed as numpy does not."""
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise zipfile.BadZipFile("it is compressed in another way than numpy does")
    if entry.file_size > max(_ANY_RATIO, _MOST_RATIO * entry.compress_size):
        raise Untrusted(
            f"{where} has {human_bytes(entry.file_size)} in {human_bytes(entry.compress_size)}, as no activation has",
            "hostile_archive",
        )
    out = bytearray()
    with archive.open(entry) as part:
        while piece := part.read(_PIECE):
            out += piece
    if len(out) != entry.file_size:
        raise zipfile.BadZipFile("an entry is shorter than the directory says")
    return bytes(out)


def _npy(data: bytes, where: str) -> Tensor:
    """The array of a ``.npy`` file. Raises Untrusted if it is damaged or holds Python objects."""
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, _, dtype = read(stream)
        if dtype.hasobject:
            raise Untrusted(f"{where} holds Python objects (a pickle), which are not read: they could run code")
        # A header may promise more than there is, which would be allocated before it is missed.
        if math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
            raise ValueError("its size is not that of its header")
        stream.seek(0)
        array = np.lib.format.read_array(stream, allow_pickle=False)
    except _NPY_FAULTS as fault:
        raise Untrusted(f"{where}: cannot be read as a .npy array ({in_short(fault)})", "corrupt_file") from fault
    try:
        return _tensor(array)
    except TypeError as fault:
        raise CannotRun(f"{where} holds {array.dtype}; save floating-point numbers", "bad_activation") from fault


def _tensor(array: np.ndarray) -> Tensor:
    """An array as a tensor of its own; unsigned integers, which torch hardly knows, as int64.

    Raises TypeError for a dtype that torch does not have.
    """
    dtype = np.dtype(np.int64) if array.dtype.kind == "u" else array.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(array, dtype=dtype, order="C"))


def _json(path: Path) -> JsonValue:
    try:
        found: JsonValue = parse_json(read_small(path, _MOST_JSON), "utf-8-sig")
    except ValueError as fault:
        raise Untrusted(f"{path}: cannot be read as JSON ({in_short(fault)})", "corrupt_file") from fault
    return found


# ---- transformers' model debugger


def _dump(path: Path) -> PortFile:
    """A tree of calls as ``transformers.model_debugging_utils`` writes it, with a safetensors file for each value."""
    if path.name.endswith(_SUMMARY):
        raise CannotRun(
            f"{path.name} is a summary without values; the full dump lies beside it, and is made with {_FULL_DUMP}",
            "no_activations",
        )
    tree = _json(path)
    if not isinstance(tree, dict) or not isinstance(tree.get("module_path"), str):
        raise CannotRun(f"{path} is not a dump of transformers' model debugger", "no_activations")
    root = str(tree["module_path"])
    calls = dict(_calls(tree))
    places, modules = _places(calls, root)
    found = {name: _value(path, value) for name, value in places.items()}
    made = _port(path, f"a dump of transformers' model debugger, of {root}", found, list(found))
    made = replace(made, names={tap: module for tap, module in modules.items() if tap in found})
    layers = [layer_of(name) for name in found if name not in IDS and point_of(name) is LAYER]
    if len(layers) <= max(layers, default=0):
        note = f"the debugger left out layers, as it does by default; to record all: {_FULL_DUMP}"
        made = replace(made, notes=(*made.notes, note))
    if any(re.search(r"\.layers\.\d+$", name) and _text_path(name) and _masked(call) for name, call in calls.items()):
        note = "the model was called with an attention mask, which the original does not have"
        made = replace(made, notes=(*made.notes, note))
    return made


def _calls(node: dict[str, JsonValue]) -> Iterator[tuple[str, dict[str, JsonValue]]]:
    """Every call of a tree: the path of its module, and the call."""
    stack: list[JsonValue] = [node]
    while stack:
        call = stack.pop()
        if isinstance(call, dict) and isinstance(call.get("module_path"), str):
            yield str(call["module_path"]), call
            children = call.get("children")
            stack += reversed(children) if isinstance(children, list) else []


def _places(calls: Mapping[str, dict[str, JsonValue]], root: str) -> tuple[dict[str, JsonValue], dict[str, str]]:
    """Tap or ids -> the recorded value that it is, in the calls of the library's text encoder; tap -> the module that
    made it.

    The debugger keeps outputs of modules without parts alone, so that a layer's is the input of what follows it.
    """
    final = next((path for path in calls if path.endswith(f".{FINAL_NORM.name}") and _text_path(path)), None)
    if final is None:
        raise CannotRun(
            f"the dump of {root} holds no call of the text encoder (no {FINAL_NORM.name})", "no_activations"
        )
    encoder = final.removesuffix(f".{FINAL_NORM.name}")
    layers = {
        int(match[1]): path
        for path in calls
        if (match := re.fullmatch(rf"{re.escape(encoder)}\.layers\.(\d{{1,4}})", path))
    }
    if not layers:
        raise CannotRun(f"the dump of {root} holds no layers of the text encoder", "no_activations")
    out: dict[str, JsonValue] = {
        "input_ids": _first(calls[encoder], "inputs", IDS[0]) if encoder in calls else None,
        FINAL_NORM.name: _first(calls[final], "outputs"),
    }
    for layer, path in layers.items():
        out[LAYER.at(layer - 1) if layer else EMBEDDINGS.name] = _first(calls[path], "inputs")
    out[LAYER.at(max(layers))] = _first(calls[final], "inputs")
    if (pooled := f"{encoder}.projection") in calls:
        out[POOLED.name] = _first(calls[pooled], "outputs")
    projection = next((path for path in calls if path.endswith(".text_projection")), None)
    if projection:
        out[PROJECTED.name] = _first(calls[projection], "outputs")
    modules = {LAYER.at(layer): path for layer, path in layers.items()}
    modules |= {FINAL_NORM.name: final, POOLED.name: pooled, PROJECTED.name: projection or ""}
    return {name: value for name, value in out.items() if value is not None}, modules


def _text_path(path: str) -> bool:
    """Whether a module can be the text encoder's: a detector has other modules of these names."""
    return path.partition(".")[2].startswith((LAYER.at(0)[:-1], FINAL_NORM.name)) or ".text_encoder." in path


def _masked(call: dict[str, JsonValue]) -> bool:
    """Whether a call got an attention mask."""
    inputs = call.get("inputs")
    named = inputs.get("kwargs") if isinstance(inputs, dict) else None
    return isinstance(named, dict) and isinstance(named.get("attention_mask"), dict)


def _first(call: dict[str, JsonValue], side: str, name: str = "") -> JsonValue:
    """The first tensor among the inputs or outputs of a call; the one of this name, if it was given by name."""
    values = call.get(side)
    named = values.get("kwargs") if isinstance(values, dict) else None
    if isinstance(named, dict) and name in named:
        values = named[name]
    stack = [values]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            if "shape" in value and "dtype" in value:
                return value
            stack += reversed(list(value.values()))
        elif isinstance(value, list):
            stack += reversed(value)
    return None


def _value(path: Path, value: JsonValue) -> Tensor:
    """A recorded value from its file beside the tree. Raises CannotRun if only printed digits were kept."""
    held = value.get("value") if isinstance(value, dict) else None
    if not isinstance(held, str) or not held.endswith(".safetensors"):
        raise CannotRun(
            f"{path.name} holds printed numbers of a few digits, which prove nothing; record whole tensors with "
            f"{_FULL_DUMP}",
            "no_activations",
        )
    name = held.removeprefix("./")
    if "/" in name or "\\" in name:
        raise Untrusted(f"{path}: names the file {held}, which does not lie beside it", "corrupt_file")
    file = path.parent / name
    if not is_there(file):
        raise CannotRun(f"{path} names {name}, which is not beside it; keep the whole folder", "no_such_file")
    tensors = read_safetensors(file)[0]
    if list(tensors) != ["data"]:
        raise Untrusted(f"{file}: holds {some(list(tensors))}, not a recorded value", "corrupt_file")
    return tensors["data"]
