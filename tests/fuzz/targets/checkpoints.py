"""A checkpoint: a file is made of the input and read, and what comes out is held against the file.

The first byte says which part of a file the others are: a whole file, the pickle in a sound zip archive,
what follows the magic number of the format before torch 1.6, or the header of a safetensors file.
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

from sam3lite_convert.checkpoint import dtypes
from sam3lite_convert.checkpoint.index import StoredTensor
from sam3lite_convert.checkpoint.reader import read_checkpoint
from sam3lite_convert.checkpoint.tensor_reader import read_tensor
from sam3lite_convert.checkpoint.torch_legacy import LEGACY_MAGIC
from sam3lite_convert.errors import UnsoundPlan, Untrusted
from targets import check_refusal

NAME = "file.pt"
KINDS = ("whole", "zip", "legacy", "safetensors")
_MOST_READ = 16 << 20
STORAGE = bytes(range(64))


def content(data: bytes) -> bytes:
    """The bytes of the file."""
    kind, rest = KINDS[data[0] % len(KINDS)] if data else "whole", data[1:]
    if kind == "legacy":
        return LEGACY_MAGIC[0] + rest
    if kind == "safetensors":
        return struct.pack("<Q", len(rest)) + rest + STORAGE
    return rest


def write(folder: Path, data: bytes) -> None:
    """Write the file that the input stands for."""
    path = folder / NAME
    if data and KINDS[data[0] % len(KINDS)] == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, part in (("data.pkl", data[1:]), ("byteorder", b"little"), ("data/0", STORAGE)):
                archive.writestr(zipfile.ZipInfo(f"archive/{name}"), part)
    else:
        path.write_bytes(content(data))


def check(folder: Path) -> None:
    """Read the file: it is refused in words, or every tensor lies inside it. Raises AssertionError otherwise."""
    path = folder / NAME
    try:
        found = read_checkpoint(path)
    except (Untrusted, UnsoundPlan) as fault:
        check_refusal(fault, 3, 4)
        return
    assert found.tensors or found.format == "safetensors"
    for key, tensor in found.tensors.items():
        assert key == tensor.key and len(key) <= 1000 and len(key.splitlines()) <= 1
        assert len(tensor.shape) == len(tensor.stride) and min((*tensor.shape, *tensor.stride), default=0) >= 0
        end = tensor.offset + tensor.span * dtypes.itemsize(tensor.dtype)
        assert 0 <= tensor.offset <= end <= found.size == path.stat().st_size
        if tensor.numel > max(tensor.span, 0, _MOST_READ):
            _assert_not_read(path, tensor)
        elif tensor.numel < 10_000:
            with open(path, "rb") as file:
                assert len(read_tensor(file, tensor)) == tensor.nbytes
    for record in found.records:
        assert 0 <= record.offset <= record.offset + record.nbytes <= found.size


def _assert_not_read(path: Path, tensor: StoredTensor) -> None:
    """An expanded tensor may state any size in a few bytes, so nobody may read it."""
    with open(path, "rb") as file:
        try:
            read_tensor(file, tensor)
        except UnsoundPlan:
            return
    raise AssertionError(f"{tensor.numel} elements of {tensor.span} were read")
