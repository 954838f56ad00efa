"""A streaming writer for safetensors files: header, shards, index."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

from sam3lite_convert.checkpoint import dtypes
from sam3lite_convert.convert.assembled import Assembled
from sam3lite_convert.convert.tensor_bytes import CastLoss, write_piece
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.files import write_json
from sam3lite_convert.plan.plan import Mapped
from sam3lite_convert.records.record import Json
from sam3lite_convert.swap import sync_file
from sam3lite_convert.workers import Advance

INDEX_NAME = "model.safetensors.index.json"


class _Form(Protocol):
    """What a header says of a tensor."""

    @property
    def key(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def out_nbytes(self) -> int: ...


_Tensor = TypeVar("_Tensor", bound=_Form)


@dataclass(frozen=True)
class Shard:
    """A safetensors file to write: its name, and its tensors in the order of writing."""

    name: str
    pieces: tuple[Mapped, ...]


def plan_shards(pieces: Sequence[Mapped], stem: str, limit: int | None) -> list[Shard]:
    """Divide the tensors among files of at most ``limit`` bytes of data; a larger tensor gets a file of its own."""
    groups: list[list[Mapped]] = [[]]
    filled = 0
    for piece in pieces:
        if limit and groups[-1] and filled + piece.out_nbytes > limit:
            groups.append([])
            filled = 0
        groups[-1].append(piece)
        filled += piece.out_nbytes
    if len(groups) == 1:
        return [Shard(f"{stem}.safetensors", tuple(_aligned(groups[0])))]
    total = len(groups)
    return [Shard(f"{stem}-{n:05d}-of-{total:05d}.safetensors", tuple(_aligned(g))) for n, g in enumerate(groups, 1)]


def _aligned(pieces: Sequence[_Tensor]) -> list[_Tensor]:
    # Widest elements first, like the safetensors library: every tensor is then aligned to its element width.
    return sorted(pieces, key=lambda p: (-dtypes.itemsize(p.dtype), p.key))


def safetensors_header(pieces: Sequence[_Form]) -> bytes:
    """Length and JSON header of a safetensors file, with the metadata that transformers requires."""
    header: Json = {"__metadata__": {"format": "pt"}}
    position = 0
    for piece in pieces:
        end = position + piece.out_nbytes
        header[piece.key] = {
            "dtype": dtypes.safetensors_code(piece.dtype),
            "shape": [*piece.shape],
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_shard(folder: Path, shard: Shard, source: BinaryIO, advance: Advance, loss: CastLoss | None) -> None:
    """Stream one safetensors file and sync it."""
    with open(folder / shard.name, "wb") as out:
        header = safetensors_header(shard.pieces)
        _reserve(out, len(header) + sum(p.out_nbytes for p in shard.pieces))
        out.write(header)
        for piece in shard.pieces:
            write_piece(source, piece, out, advance, loss)
        out.flush()
        sync_file(out.fileno())


def write_safetensors_file(
    out: BinaryIO, tensors: Sequence[Assembled], files: Mapping[Path, BinaryIO], advance: Advance
) -> None:
    """Write one safetensors file. ``out``: a new file, open for writing; ``files``: what the tensors are read from, by
    path; ``advance``: called with each number of bytes written.

    Raises CannotRun if the format has no such dtype.
    """
    nameless = {t.dtype: t.key for t in tensors if dtypes.safetensors_code(t.dtype) is None}
    for dtype, key in nameless.items():
        raise CannotRun(f"{key} is {dtype}, which safetensors cannot hold; write a .pt file", "dtype_has_no_place")
    ordered = _aligned(tensors)
    header = safetensors_header(ordered)
    _reserve(out, len(header) + sum(t.out_nbytes for t in ordered))
    out.write(header)
    for tensor in ordered:
        for chunk in tensor.chunks(files):
            out.write(chunk)
            advance(len(chunk))


def _reserve(out: BinaryIO, nbytes: int) -> None:
    """Reserve the space at once: a full disk is noticed before the first byte, and the copy is a third faster."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(out.fileno(), 0, nbytes)
        except OSError as fault:
            if fault.errno == errno.ENOSPC:
                raise  # a file system that cannot reserve space can still be written to


def write_index(folder: Path, shards: Sequence[Shard]) -> None:
    """Write the index that tells loaders which shard holds which tensor; a single file needs none."""
    if len(shards) < 2:
        return
    weight_map: Json = {p.key: s.name for s in shards for p in s.pieces}
    total = sum(p.out_nbytes for s in shards for p in s.pieces)
    write_json(folder / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})
