"""Index of a converted folder as its reader takes it: which files, which tensors in them, and its JSON files.

What lies in a folder and what a program takes from it are two things. A file that the reader passes over counts as not
there, however right its tensors are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from sam3lite_convert.checkpoint.file_set import disagreements, leads_out, weight_map
from sam3lite_convert.checkpoint.index import Checkpoint, StoredTensor, stamp_of
from sam3lite_convert.checkpoint.place import LocalPlace, Place, read_json
from sam3lite_convert.convert.config import PACKED_MODEL_TYPE
from sam3lite_convert.convert.receipt import RECEIPT_NAME
from sam3lite_convert.convert.safetensors_writer import INDEX_NAME
from sam3lite_convert.errors import CannotRun, Sam3LiteError, Untrusted
from sam3lite_convert.hub.aliases import ALIASES
from sam3lite_convert.plan.families import FAMILIES, LibraryNames
from sam3lite_convert.plan.targets import MODEL, TEXT_PROJECTION
from sam3lite_convert.quoting import shell_path
from sam3lite_convert.records.record import Json
from sam3lite_convert.seen import MOST_ENTRIES, nearest, same_content

SAFETENSORS = ".safetensors"
_FOLDERS = 4  # converted folders that are named where one of them was meant
_SINGLE, _PROJECTION = MODEL + SAFETENSORS, TEXT_PROJECTION + SAFETENSORS
_BIN, _BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
# The order in which transformers looks, and our own reader with it: the first that is there is taken.
_ORDER = (_SINGLE, INDEX_NAME, _BIN, _BIN_INDEX)

# Codes of the faults of a folder.
NOT_TAKEN = "V-NOT-TAKEN"  # tensors lie in a file that the reader passes over
INDEX = "V-INDEX"  # an index of shards and the shards do not agree
TWICE = "V-TWICE"  # two of the files that are taken hold one key
WEIGHTS = "V-WEIGHTS"  # config.json names a file of weights that cannot be taken
FORMAT = "V-FORMAT"  # the content of a file is not what its name says, so that the reader does not open it
WRAPPED = "V-WRAPPED"  # the tensors of a .bin lie under an entry, where the reader does not look
PREFIX = "V-PREFIX"  # all keys share a prefix that the reader does not take off
DISTRIBUTED = "V-DISTRIBUTED"  # a file makes transformers read a distributed checkpoint
ADAPTER = "V-ADAPTER"  # a file makes transformers put an adapter into the model

# What training and saving put in front of every key.
_WRAPPERS = {
    "model", "module", "net", "network", "student", "ema", "ema_model", "model_ema", "base_model", "state_dict",
    "sam3_model", "sam3_video", "detector_model", "_orig_mod", "_forward_module", "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
}  # fmt: skip
# What save_pretrained writes of a video model that was built from its parts: its name for the tracker, twice.
_TRACKER = "tracker_model."
_VARIANT = re.compile(r"(?:model|pytorch_model)\.(\w+)\.(?:safetensors|bin)")
_DISTRIBUTED_FILE = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")


@dataclass(frozen=True)
class FolderFault:
    """One fault of a folder. ``key``: of the tensor, or the file's name; ``code``: its kind, such as ``V-INDEX``."""

    key: str
    why: str
    code: str


@dataclass(frozen=True)
class Folder:
    """What the reader takes from a converted folder.

    tensors: key -> (file, tensor). The keys are without ``prefix``; those of the tensors are as they are stored.
    listed: further keys that the index names or that lie in files that are not taken.
    elsewhere: keys that are not taken -> the file that holds them.
    faults: what keeps the reader from taking what it should.
    config: the content of config.json; None if there is no such file.
    receipt: the content of conversion.json; None if there is no such file.
    reader: what reads the folder, in words.
    taken: names of the files whose tensors are taken, relative to the folder.
    prefix: what stands before every key, with its dot; empty for none.
    notes: what else is to be said of it.
    names: of the files at its top that decide what is taken, as it was read.
    stamps: identity, size and times of every file that was read; empty for a folder that is not on this machine.
    """

    path: Path
    tensors: dict[str, tuple[Path, StoredTensor]]
    listed: frozenset[str]
    faults: tuple[FolderFault, ...]
    config: Json | None
    receipt: Json | None
    elsewhere: dict[str, str] = field(default_factory=dict)
    reader: str = "transformers"
    taken: tuple[str, ...] = ()
    prefix: str = ""
    notes: tuple[str, ...] = ()
    names: frozenset[str] = frozenset()
    stamps: dict[Path, tuple[int, ...]] = field(default_factory=dict)

    def check_unchanged(self, but: str = "") -> None:
        """Raises Untrusted if a file was changed, replaced or deleted since the folder was read, or if another file
        of weights or JSON appeared in it. ``but``: the name of one that may have been."""
        for path, stamp in self.stamps.items():
            if path.name != but and (not path.exists() or not same_content(stamp, stamp_of(path))):
                raise Untrusted(f"{path}: the file changed while the folder was read", "changed_file")
        if self.stamps:
            new = sorted(frozenset(filter(_matters, LocalPlace(self.path).names())) - self.names)
            if new:
                raise Untrusted(f"{self.path}: {', '.join(new)} appeared while the folder was read", "changed_file")


def read_folder(path: Path) -> Folder:
    """Index a converted folder. Raises CannotRun if there is none, Untrusted if a file is damaged."""
    if not path.is_dir():
        if path.is_file():
            raise CannotRun(f"{path} is a file; {_folder_of(path)}", "not_a_folder")
        near = misspelt(path)
        hint = f". Did you mean {' or '.join(near)}?" if near else ""
        if not near and str(path) in ALIASES:
            hint = f"; {path} names a checkpoint on the Hub. Convert it first: sam3lite convert {path}"
        details = {"instead": {str(path): near}} if near else None
        raise CannotRun(f"{path}: no such folder{hint}", "no_such_folder", details)
    try:
        return read_place(LocalPlace(path))
    except CannotRun as fault:
        inside = [str(path / name) for name in _folders_in(path) if (path / name / RECEIPT_NAME).is_file()]
        if fault.code == "nothing_to_verify" and inside:
            few = inside[:_FOLDERS]
            named = ", ".join(few) + (f" and {len(inside) - len(few)} more" if len(inside) > len(few) else "")
            said = f"{path} is not a converted folder; in it are {named}"
            raise CannotRun(said, "nothing_to_verify", {"instead": {str(path): few}}) from fault
        raise


def misspelt(path: Path) -> list[str]:
    """The folders beside a missing one that are spelt much like it, the most alike first."""
    return [str(path.parent / name) for name in nearest(path.name, _folders_in(path.parent), 0.75)]


def _folders_in(folder: Path) -> list[str]:
    """The folders in a folder, sorted; none if it cannot be listed."""
    with suppress(OSError, ValueError), os.scandir(folder) as entries:
        return sorted(entry.name for entry in islice(entries, MOST_ENTRIES) if entry.is_dir())
    return []


def _folder_of(path: Path) -> str:
    """What to name in place of a file."""
    if any((path.parent / name).is_file() for name in (RECEIPT_NAME, "config.json")):
        return f"name the converted folder that holds it: {path.parent}"
    return (
        "a converted folder is expected here. If it is a checkpoint, convert it and name the folder that this writes: "
        f"sam3lite convert {shell_path(path)}"
    )


def read_place(place: Place) -> Folder:
    """Index a folder wherever it lies. Raises CannotRun if it holds no weights, Untrusted if a file is damaged."""
    names = place.names()
    lying = [n for n in names if _is_weights(n)]
    if not lying and not any(place.has(n) for n in _ORDER):
        raise CannotRun(
            f"{place.path} holds no .safetensors file and no pytorch_model.bin, so there is nothing to verify",
            "nothing_to_verify",
        )
    config, receipt = read_json(place, "config.json"), read_json(place, RECEIPT_NAME)
    reader = _Reader.of(config)
    chosen = _choose(place, config, reader)
    faults = list(chosen.faults)
    tensors: dict[str, tuple[Path, StoredTensor]] = {}
    holders: dict[str, str] = {}
    for name in chosen.files:
        path, checkpoint = place.index(name)
        faults += _content_faults(name, checkpoint, reader)
        for key, tensor in checkpoint.tensors.items():
            if key in tensors:
                faults.append(FolderFault(key, f"is in {holders[key]} and also in {name}", TWICE))
            tensors[key], holders[key] = (path, tensor), name
    faults += _index_faults(chosen, holders, {fault.key for fault in faults if fault.code == TWICE})
    prefix = _common_prefix(tensors, receipt, reader)
    notes = []
    if twice := [key for key in tensors if key.startswith(2 * _TRACKER)]:
        named = {key: key.removeprefix(_TRACKER) for key in twice}
        faults += [
            FolderFault(key, f"and {one} are one tensor to {reader.name}, which takes either", TWICE)
            for key, one in named.items()
            if one in tensors
        ]
        tensors = {named.get(key, key): found for key, found in tensors.items()}
        notes.append(
            f"{len(twice):,} keys start with {2 * _TRACKER!r}, as save_pretrained writes them of a model that was not "
            "loaded from plain names. Sam3VideoModel and Sam3TrackerVideoModel read them; Sam3TrackerModel does not: "
            "its tensors would be left at random values"
        )
    if prefix:
        tensors = {key.removeprefix(prefix): found for key, found in tensors.items()}
        if prefix == reader.prefix:
            notes.append(f"every key starts with {prefix!r}, which {reader.name} takes off")
        else:
            faults.append(
                FolderFault(
                    prefix,
                    f"every key starts with {prefix!r}, which {reader.name} does not take off: the model would be left "
                    "at random values. The tensors are judged without it",
                    PREFIX,
                )
            )
    elif reader.prefix:
        faults += [
            FolderFault(key, f"and {reader.prefix}{key} are one tensor to {reader.name}, which takes either", TWICE)
            for key in tensors
            if f"{reader.prefix}{key}" in tensors
        ]
    taken = list(chosen.files)
    if reader.reads_projection and _PROJECTION in lying and _PROJECTION not in taken:
        path, checkpoint = place.index(_PROJECTION)
        taken.append(_PROJECTION)
        for key, tensor in checkpoint.tensors.items():
            if key in tensors:
                faults.append(FolderFault(key, f"is in {chosen.what} and also in {_PROJECTION}", TWICE))
            tensors[key] = (path, tensor)
    aside = [n for n in lying if n not in taken]
    elsewhere: dict[str, str] = {}
    for name in aside if not (place.remote and chosen.files) else ():
        try:
            held = place.index(name)[1].tensors
        except Sam3LiteError as fault:
            notes.append(f"{name} cannot be read ({fault.message})")
            continue
        stripped = _common_prefix(held, receipt, reader)
        elsewhere |= {key.removeprefix(stripped): name for key in held}
    elsewhere = {key: name for key, name in elsewhere.items() if key not in tensors}
    if aside and chosen.files:
        notes.append(f"not read, since {reader.name} takes {chosen.what}: {', '.join(aside)}")
    faults += _other_files(names, reader)
    return Folder(
        path=place.path,
        tensors=tensors,
        listed=frozenset([*(k.removeprefix(prefix) for k in chosen.places), *elsewhere]),
        # Where nothing at all is taken, that is the fault, and not each of the tensors.
        elsewhere=elsewhere if chosen.files else {},
        faults=tuple(faults),
        config=config,
        receipt=receipt,
        reader=reader.name,
        taken=tuple(taken),
        prefix=prefix,
        notes=tuple(notes),
        names=frozenset(filter(_matters, names)),
        stamps=place.stamps if isinstance(place, LocalPlace) else {},
    )


def files_of(place: Place) -> list[str]:
    """The files that a reader takes, and those that decide which; no weights are read.

    Raises CannotRun if it takes none, Untrusted if a JSON file is damaged.
    """
    config = read_json(place, "config.json")
    reader, names = _Reader.of(config), place.names()
    chosen = _choose(place, config, reader)
    if not chosen.files:
        why = "; ".join(f"{fault.key} {fault.why}" for fault in chosen.faults)
        raise CannotRun(f"{place.path} holds no weights that {reader.name} takes: {why}", "nothing_to_verify")
    beside = [_PROJECTION] if reader.reads_projection and _PROJECTION in names else []
    index = [chosen.index] if chosen.index else []
    return [*chosen.files, *beside, *index, *(fault.key for fault in _other_files(names, reader))]


@dataclass(frozen=True)
class _Reader:
    """What reads a folder, by its config.json.

    name: in words.
    library: whether it is transformers.
    prefix: what it takes off the front of keys, once.
    parts: names of parts of the model that otherwise are prefixes of a wrapper's.
    reads_projection: whether ``text_projection.safetensors`` belongs to the folder.
    """

    name: str
    library: bool
    prefix: str = ""
    reads_projection: bool = False
    parts: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: Json | None) -> _Reader:
        kind = (config or {}).get("model_type")
        if kind == PACKED_MODEL_TYPE:
            return cls("PackedTextModel", False)
        if isinstance(kind, str) and kind.startswith("sam3lite_"):  # of a layout that no program of ours loads
            return cls("a reader of such folders", False, reads_projection=True)
        for names in (family.library for family in FAMILIES.values()):
            if kind == names.video_model_type:
                return cls("transformers", True, f"{names.video_prefix}.", parts=(names.prefix,))
            if kind in (names.model_type, names.text_model_type):
                return cls._of_library(names, kind == names.text_model_type)
        return cls("transformers", True, reads_projection=kind is None)

    @classmethod
    def _of_library(cls, names: LibraryNames, text: bool) -> _Reader:
        return cls("transformers", True, f"{names.text_prefix if text else names.prefix}.", text)


@dataclass(frozen=True)
class _Choice:
    """The files that a reader takes. ``what``: the file that it looked for first, in words; ``index``: its name if it
    is an index of shards; ``places``: by key, the shard that the index names."""

    files: tuple[str, ...]
    what: str
    faults: tuple[FolderFault, ...] = ()
    index: str | None = None
    places: Mapping[str, str] = field(default_factory=dict)


def _choose(place: Place, config: Json | None, reader: _Reader) -> _Choice:
    stated = (config or {}).get("transformers_weights") if reader.library else None
    if stated is not None:
        if why := _not_takable(stated, place):
            return _Choice((), "", (FolderFault("config.json: transformers_weights", why, WEIGHTS),))
        name = str(stated)
    else:
        name = next((n for n in _ORDER if place.has(n)), "")
    if not name:
        why = f"is missing, and so is {_SINGLE}: {reader.name} finds no tensors{_passed_over(place.names(), reader)}"
        return _Choice((), "", (FolderFault(INDEX_NAME, why, NOT_TAKEN),))
    if not name.endswith(".index.json"):
        return _Choice((name,), name)
    index = read_json(place, name) or {}
    places = weight_map(index, place.path / name)
    faults = []
    if reader.library and not isinstance(index.get("metadata"), dict):
        faults.append(FolderFault(name, f"has no 'metadata', without which {reader.name} does not load it", INDEX))
    files = sorted(set(places.values()))
    outside = [n for n in files if leads_out(n)]
    faults += [FolderFault(n, f"{name} names this shard, which lies outside of the folder", INDEX) for n in outside]
    gone = [n for n in files if n not in outside and not place.has(n)]
    faults += [FolderFault(n, "the index names this shard, but it is missing", INDEX) for n in gone]
    there = tuple(n for n in files if n not in outside and n not in gone)
    if len({n.endswith(SAFETENSORS) for n in files}) > 1:
        faults.append(FolderFault(name, "names shards of two formats", INDEX))
    if not places:
        faults.append(FolderFault(name, "names no tensors", INDEX))
    return _Choice(there, name, tuple(faults), name, places)


def _passed_over(names: list[str], reader: _Reader) -> str:
    """In words, the files of weights that are there under names that the reader does not look for."""
    lying = [n for n in names if _is_weights(n)]
    if not lying:
        return ""
    shown = ", ".join(lying[:3]) + (f" and {len(lying) - 3} more" if len(lying) > 3 else "")
    variant = _VARIANT.fullmatch(lying[0])
    how = f" (it takes {lying[0]} with variant={variant[1]!r})" if variant and reader.library else ""
    return f"; it does not look for {shown}{how}"


def _not_takable(stated: object, place: Place) -> str | None:
    """Why transformers does not load the file that config.json names; None if it does."""
    if not isinstance(stated, str) or not stated.endswith((SAFETENSORS, SAFETENSORS + ".index.json")):
        return f"is {stated!r}; transformers takes the name of a .safetensors file or of its index"
    if leads_out(stated):
        return f"is {stated!r}, which lies outside of the folder"
    return None if place.has(stated) else f"names {stated}, which is missing; transformers looks for no other file"


def _content_faults(name: str, checkpoint: Checkpoint, reader: _Reader) -> Iterable[FolderFault]:
    if name.endswith(SAFETENSORS) != (checkpoint.format == "safetensors"):
        holds = "safetensors" if checkpoint.format == "safetensors" else "a pickle of torch.save"
        yield FolderFault(name, f"holds {holds} in spite of its name, so {reader.name} does not open it", FORMAT)
    if checkpoint.wrapper is not None:
        why = f"its tensors lie under the entry {checkpoint.wrapper!r}, where {reader.name} does not look"
        yield FolderFault(name, why, WRAPPED)


def _index_faults(chosen: _Choice, holders: Mapping[str, str], twice: set[str]) -> Iterable[FolderFault]:
    """``holders``: by key, the file that it was taken from; ``twice``: keys that several files hold."""
    if chosen.index is None:
        return
    for key, why in disagreements(chosen.places, holders, chosen.files):
        if key not in twice:
            yield FolderFault(key, why, INDEX)


def _other_files(names: list[str], reader: _Reader) -> Iterable[FolderFault]:
    """Files that make transformers load something else, or something more."""
    if not reader.library:
        return
    for name in names:
        if _DISTRIBUTED_FILE.fullmatch(name):
            why = "its name makes transformers read the folder as a distributed checkpoint, from whatever lies in it"
            yield FolderFault(name, why, DISTRIBUTED)
        if name == "adapter_config.json":
            yield FolderFault(name, "makes transformers put an adapter into the model where peft is installed", ADAPTER)


def _common_prefix(keys: Iterable[str], receipt: Json | None, reader: _Reader) -> str:
    """What training or saving put before every key, with its dots; empty if there is nothing of the kind."""
    rest = list(keys)
    stated = (receipt or {}).get("tensors")
    if isinstance(stated, dict) and any(key in stated for key in rest):
        return ""  # the layout's own names begin so
    prefix = ""
    while rest:
        first = rest[0].partition(".")[0]
        if first not in _WRAPPERS or first in reader.parts or not all(key.startswith(first + ".") for key in rest):
            break
        prefix += first + "."
        rest = [key[len(first) + 1 :] for key in rest]
    return prefix


def _is_weights(name: str) -> bool:
    return name.endswith(SAFETENSORS) or (name.startswith("pytorch_model") and name.endswith(".bin"))


def _matters(name: str) -> bool:
    return _is_weights(name) or name in (*_ORDER, "config.json", RECEIPT_NAME, "adapter_config.json")
