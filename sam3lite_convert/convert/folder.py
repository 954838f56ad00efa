"""A converted folder on disk as an index: its tensors, in one file or in shards, and its JSON files."""

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
    """The tensors of a converted folder: key -> (file, tensor), and its JSON files.

    ``listed``: the keys that an index of shards names, also those that are not there.
    """

    path: Path
    tensors: dict[str, tuple[Path, StoredTensor]]
    listed: frozenset[str]
    faults: tuple[tuple[str, str], ...]
    config: Json | None
    receipt: Json | None


def read_folder(path: Path) -> Folder:
    """Index a converted folder. Raises CannotRun where there is none, Untrusted for damaged files."""
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
                faults.append((key, f"stands in {tensors[key][0].name} and again in {file.name}"))
            tensors[key] = (file, tensor)
    index = _read_json(path / INDEX_NAME)
    places = _shards(index, path / INDEX_NAME)
    if index is not None:
        for key, name in places.items():
            if key in tensors and tensors[key][0].name != name:
                faults.append((key, f"the index says {name}; it stands in {tensors[key][0].name}"))
            elif key not in tensors and (path / name).exists():
                faults.append((key, f"the index says {name}; it is not there"))
        gone = sorted({name for name in places.values() if not (path / name).exists()})
        faults += [(name, "the index names this shard, and it is not there") for name in gone]
        beside = [k for k, (f, _) in tensors.items() if k not in places and f.name != "text_projection.safetensors"]
        faults += [(k, "is in a shard and not in the index, so loaders do not see it") for k in beside]
    elif not any(f.name == "model.safetensors" for f in files):
        faults.append((INDEX_NAME, "is missing and so is model.safetensors: loaders do not find the tensors"))
    return Folder(
        path,
        tensors,
        frozenset(places),
        tuple(faults),
        _read_json(path / "config.json"),
        _read_json(path / RECEIPT_NAME),
    )


def _shards(index: Json | None, path: Path) -> dict[str, str]:
    """The shard of each key, as the index names it."""
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
        raise Untrusted(f"{path}: is too large to be what a conversion wrote", "corrupt_file")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as fault:
        raise Untrusted(f"{path}: cannot be read as JSON ({in_short(fault)})", "corrupt_file") from fault
    if not isinstance(data, dict):
        raise Untrusted(f"{path}: holds no JSON object", "corrupt_file")
    return data
