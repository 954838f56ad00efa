"""Index of a converted folder: its tensors, in one file or in shards, and its JSON files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from sam3lite_convert.checkpoint.index import StoredTensor
from sam3lite_convert.checkpoint.reader import read_checkpoint
from sam3lite_convert.convert.receipt import RECEIPT_NAME
from sam3lite_convert.convert.safetensors_writer import INDEX_NAME
from sam3lite_convert.errors import CannotRun, Untrusted, in_short
from sam3lite_convert.records.record import Json

_JSON_LIMIT = 16 << 20  # bytes; the receipt of 1,300 tensors takes 0.4 MB


@dataclass(frozen=True)
class Folder:
    """The tensors of a converted folder and its JSON files.

    tensors: key -> (file, tensor).
    listed: the keys in the index of shards, including those that no shard holds.
    faults: (key or file name, what is wrong with it).
    config: the content of config.json; None if there is no such file.
    receipt: the content of conversion.json; None if there is no such file.
    """

    path: Path
    tensors: dict[str, tuple[Path, StoredTensor]]
    listed: frozenset[str]
    faults: tuple[tuple[str, str], ...]
    config: Json | None
    receipt: Json | None


def read_folder(path: Path) -> Folder:
    """Index a converted folder. Raises CannotRun if there is none, Untrusted if a file is damaged."""
    if not path.is_dir():
        raise CannotRun(f"{path}: no such folder", "no_such_folder")
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise CannotRun(f"{path} holds no .safetensors file, so there is nothing to verify", "nothing_to_verify")
    tensors: dict[str, tuple[Path, StoredTensor]] = {}
    faults: list[tuple[str, str]] = []
    for file in files:
        for key, tensor in read_checkpoint(file).tensors.items():
            if key in tensors:
                faults.append((key, f"is in {tensors[key][0].name} and also in {file.name}"))
            tensors[key] = (file, tensor)
    index = _read_json(path / INDEX_NAME)
    places = _shards(index, path / INDEX_NAME)
    if index is not None:
        for key, name in places.items():
            if key in tensors and tensors[key][0].name != name:
                faults.append((key, f"the index says {name}, but it is in {tensors[key][0].name}"))
            elif key not in tensors and (path / name).exists():
                faults.append((key, f"the index says {name}, but it is not there"))
        gone = sorted({name for name in places.values() if not (path / name).exists()})
        faults += [(name, "the index names this shard, but it is missing") for name in gone]
        beside = [k for k, (f, _) in tensors.items() if k not in places and f.name != "text_projection.safetensors"]
        faults += [(k, "is in a shard but not in the index, so loaders do not see it") for k in beside]
    elif not any(f.name == "model.safetensors" for f in files):
        faults.append((INDEX_NAME, "is missing, and so is model.safetensors: loaders do not find the tensors"))
    return Folder(
        path,
        tensors,
        frozenset(places),
        tuple(faults),
        _read_json(path / "config.json"),
        _read_json(path / RECEIPT_NAME),
    )


def _shards(index: Json | None, path: Path) -> dict[str, str]:
    """Key -> name of its shard, from the index. Raises Untrusted if the index cannot be read."""
    places = (index or {}).get("weight_map") or {}
    if isinstance(places, dict):
        names = {key: name for key, name in places.items() if isinstance(name, str)}
        if len(names) == len(places):
            return names
    raise Untrusted(f"{path}: its weight_map cannot be read", "corrupt_file")


def _read_json(path: Path) -> Json | None:
    if not path.exists():
        return None
    if path.stat().st_size > _JSON_LIMIT:
        raise Untrusted(f"{path}: is too large to have been written by a conversion", "corrupt_file")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as fault:
        raise Untrusted(f"{path}: cannot be read as JSON ({in_short(fault)})", "corrupt_file") from fault
    if not isinstance(data, dict):
        raise Untrusted(f"{path}: is not a JSON object", "corrupt_file")
    return data
