"""Which files make up a checkpoint: one file, or an index of shards with the shards that it names.

Imports nothing heavy: a conversion hashes these files before the rest of it is imported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from sam3lite_convert.checkpoint.index import check_names
from sam3lite_convert.checkpoint.kinds import WEIGHTS, kind_of_folder, refusal_of
from sam3lite_convert.errors import CannotRun, UnsoundPlan, Untrusted, in_short
from sam3lite_convert.json_text import parse_json
from sam3lite_convert.opened import is_there, read_small
from sam3lite_convert.records.record import Json

# Bytes of an index of shards; that of 1,300 tensors takes 0.15 MB.
SHARD_INDEX_LIMIT = 8 << 20
# Beside a text encoder that is written without its prefix: the layer through which the detector reads its tokens. It
# belongs to the file of the text encoder, or to the index of its shards.
PROJECTION = "text_projection.safetensors"
_WITH_PROJECTION = ("model.safetensors", "model.safetensors.index.json")
_LISTED = 20
_INDEX = re.compile(r".+\.index(?:\.\w+)?\.json")
_SHARD = re.compile(
    r"(?P<stem>.+)-(?P<number>\d{1,6})-of-(?P<count>\d{1,6})(?P<variant>\.\w+)??"
    r"(?P<kind>\.safetensors|\.bin|\.pt|\.pth|\.ckpt)"
)
# What a run of training keeps beside the weights.
_OF_A_RUN = re.compile(r"(?:optimi[sz]er|scheduler|scaler|sampler|rng_state|random_states|training_args)(?:[._-].*)?")


class ShardName(NamedTuple):
    """What the name of a shard says: how many there are, and what their index is called."""

    total: int
    index_name: str


def is_index(name: str) -> bool:
    """Whether a file of this name is an index of shards, such as ``model.safetensors.index.json``."""
    return _INDEX.fullmatch(name) is not None


def companion(name: str, has: Callable[[str], bool]) -> str | None:
    """The file that belongs to a file of weights, or to an index, of this name; None if it stands alone.

    ``has``: whether there is such a file beside it.
    """
    return PROJECTION if name in _WITH_PROJECTION and has(PROJECTION) else None


def shard_of(name: str) -> ShardName | None:
    """What ``model-00001-of-00002.safetensors`` says; None for another name, and for the only one of one."""
    match = _SHARD.fullmatch(name)
    if match is None or int(match["count"]) < 2:
        return None
    variant = match["variant"] or ""
    return ShardName(int(match["count"]), f"{match['stem']}{match['kind']}.index{variant}.json")


def stem_of(name: str) -> str:
    """What a conversion is named after: ``model`` for ``model.safetensors`` and for its index."""
    return Path(name.partition(".index.")[0] if is_index(name) else name).stem


def json_object(data: bytes, path: Path) -> Json:
    """The content of a JSON file. Raises Untrusted if it is not a JSON object."""
    try:
        found = parse_json(data)
    except ValueError as fault:
        raise Untrusted(f"{path}: cannot be read as JSON ({in_short(fault)})", "corrupt_file") from fault
    if not isinstance(found, dict):
        raise Untrusted(f"{path}: is not a JSON object", "corrupt_file")
    return found


def weight_map(index: Json, path: Path) -> dict[str, str]:
    """Key -> name of its shard, from an index. Raises Untrusted if the index cannot be read."""
    places = index.get("weight_map") or {}
    if isinstance(places, dict):
        names = {key: name for key, name in places.items() if isinstance(name, str)}
        if len(names) == len(places):
            return names
    raise Untrusted(f"{path}: its weight_map cannot be read", "corrupt_file")


def has_file(folder: Path, name: str) -> bool:
    """Whether something that is no folder stands under this name in a folder; what is no regular file is refused when
    it is read, and not passed over here."""
    return is_there(folder / name)


def leads_out(name: str) -> bool:
    """Whether the name of a shard leads out of the folder of its index."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name


def disagreements(
    places: Mapping[str, str], holders: Mapping[str, str], taken: Iterable[str]
) -> Iterable[tuple[str, str]]:
    """(key, why) for the tensors of which an index and the shards say different things.

    places: by key, the shard that the index names. holders: by key, the shard that holds it. taken: the shards that
    were read.
    """
    taken = frozenset(taken)
    for key, name in places.items():
        if key in holders and holders[key] != name:
            yield key, f"the index says {name}, but it is in {holders[key]}"
        elif key not in holders and name in taken:
            yield key, f"the index says {name}, but it is not there"
    for key, name in holders.items():
        if key not in places:
            yield key, f"is in {name} but not in the index, so readers that go by it do not see it"


def shard_map(data: bytes, path: Path, has: Callable[[str], bool]) -> dict[str, str]:
    """Key -> name of its shard, from the content of an index whose shards are all there.

    ``has``: whether there is such a file beside the index. Raises Untrusted if the index is too large, cannot be read,
    names nothing, or names a file outside of its folder; CannotRun if a shard is missing.
    """
    if len(data) > SHARD_INDEX_LIMIT:
        raise Untrusted(f"{path}: is too large for an index of shards", "corrupt_file")
    places = weight_map(json_object(data, path), path)
    if not places:
        raise Untrusted(f"{path}: its weight_map names no tensors", "corrupt_file")
    names = sorted(set(places.values()))
    check_names([*places, *names])
    if out := [name for name in names if leads_out(name)]:
        raise Untrusted(
            f"{path} names the shard {out[0][:200]!r}, which lies outside of its folder; it was not read",
            "outside_of_folder",
        )
    if gone := [name for name in names if not has(name)]:
        more = f" (and {len(gone) - 1} more)" if len(gone) > 1 else ""
        raise CannotRun(
            f"{path} names the shard {gone[0][:200]}{more}, of {len(names)}, which is not there. Put all of them "
            "beside the index.",
            "missing_shard",
            {"missing": gone},
        )
    return places


def one_shard(name: str, shard: ShardName, index: str | None) -> UnsoundPlan:
    """The error for one shard given in place of the checkpoint. ``index``: what to give for it, if it is there."""
    what = f"{name}: this is one of {shard.total} shards of a checkpoint"
    if index is not None:
        return UnsoundPlan(f"{what}. Give their index: {index}", "one_shard")
    return UnsoundPlan(
        f"{what}, and their index ({shard.index_name}) is not beside it. Put the index and all {shard.total} shards "
        "into one folder and give that folder.",
        "one_shard",
    )


def the_checkpoint(names: Iterable[str], where: str, read: Callable[[str], bytes]) -> str:
    """The name of the one checkpoint among the files of a folder: an index of shards, or a file of weights.

    where: the folder, for messages. read: the content of a small file.
    Raises UnsoundPlan for shards without an index, CannotRun if there are several checkpoints or none.
    """
    names = sorted(name for name in names if not name.startswith("."))
    indexes = [name for name in names if is_index(name)]
    files = [name for name in names if name.endswith(WEIGHTS)]
    shards = [name for name in files if shard_of(name)]
    files = [name for name in files if name not in shards]
    if len(indexes) == 1 and files:
        named = set(weight_map(json_object(read(indexes[0]), Path(where) / indexes[0]), Path(indexes[0])).values())
        files = [name for name in files if name not in named]
    if any(companion(name, files.__contains__) for name in (*indexes, *files)):
        files.remove(PROJECTION)
    weights = [name for name in files if not _OF_A_RUN.fullmatch(name)]
    candidates = [*indexes, *weights] or files
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        listed = ", ".join(candidates[:_LISTED])
        more = f" and {len(candidates) - _LISTED} more" if len(candidates) > _LISTED else ""
        raise CannotRun(
            f"{where} holds {len(candidates)} checkpoints: {listed}{more}. Give one of them.",
            "several_checkpoints",
            {"checkpoints": candidates},
        )
    if shards and (shard := shard_of(shards[0])):
        raise one_shard(f"{where}/{shards[0]}", shard, None)
    raise CannotRun(f"{where} is a folder, not a checkpoint file, and holds none", "not_a_file")


def checkpoint_file(path: Path) -> Path:
    """The file that stands for a local CHECKPOINT: of a folder, the one checkpoint in it; else the path itself.

    Raises as ``the_checkpoint`` does, UnsoundPlan for one shard of several, and for a folder that is no checkpoint but
    of another kind, or the index in it; CannotRun if the path cannot be looked at.
    """
    try:
        return _in_folder(path) if path.is_dir() else _in_place(path)
    except OSError as fault:
        raise CannotRun(f"{path}: {fault.strerror or fault}", "cannot_open") from None


def _in_folder(path: Path) -> Path:
    if kind := kind_of_folder(path):
        raise refusal_of(kind, path)
    names = [p.name for p in path.iterdir() if p.is_file()]
    return path / the_checkpoint(names, str(path), lambda name: _read_small(path / name))


def _in_place(path: Path) -> Path:
    """The path, unless its name and what lies beside it say that it is not the file that is meant."""
    shard = shard_of(path.name)
    if shard and path.is_file():
        index = path.parent / shard.index_name
        raise one_shard(str(path), shard, str(index) if index.is_file() else None)
    return path


def members(path: Path) -> list[Path]:
    """The files of a local CHECKPOINT: the file alone, or an index and its shards, by name, and last the projection of
    a text encoder if it lies in a file of its own.

    Raises as ``checkpoint_file`` and ``shard_map`` do, and Untrusted if a shard is a link to a file outside of the
    folder.
    """
    path = checkpoint_file(path)
    if not os.path.isfile(path):
        return [path]
    folder, names = path.parent, list[str]()
    if is_index(path.name):
        places = shard_map(_read_small(path), path, lambda name: has_file(folder, name))
        names = sorted(set(places.values()))
    if beside := companion(path.name, lambda name: has_file(folder, name)):
        names.append(beside)
    if out := [name for name in names if not is_inside(folder, name)]:
        raise Untrusted(
            f"{path} names the shard {out[0][:200]}, a link to a file outside of its folder; it was not read",
            "outside_of_folder",
        )
    return [path, *(folder / name for name in names)]


def is_inside(folder: Path, name: str) -> bool:
    """Whether a file of a folder, with links followed, lies in it."""
    home, real = folder.resolve(), (folder / name).resolve()
    if real.is_relative_to(home):
        return True
    # A snapshot in the cache of huggingface_hub holds links to the blobs beside it.
    snapshots = next((p for p in home.parents if p.name == "snapshots"), None)
    return snapshots is not None and real.parent == snapshots.parent / "blobs"


def _read_small(path: Path) -> bytes:
    try:
        return read_small(path, SHARD_INDEX_LIMIT)
    except CannotRun as fault:
        if fault.code == "too_large":
            raise Untrusted(f"{path}: is too large for an index of shards", "corrupt_file") from None
        raise
