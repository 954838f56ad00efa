"""What fuzzing does with one input: make a file of it, have it read, and hold what comes out against the file.

The first byte says which part of a file the others are: a whole file, the pickle in a sound zip archive,
what follows the magic number of the format before torch 1.6, or the header of a safetensors file.
"""

from __future__ import annotations

import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

from sam3lite_convert.checkpoint import dtypes
from sam3lite_convert.checkpoint.index import StoredTensor
from sam3lite_convert.checkpoint.reader import read_checkpoint
from sam3lite_convert.checkpoint.tensor_reader import read_tensor
from sam3lite_convert.checkpoint.torch_legacy import LEGACY_MAGIC
from sam3lite_convert.errors import UnsoundPlan, Untrusted

KINDS = ("whole", "zip", "legacy", "safetensors")
_MOST_READ = 16 << 20
STORAGE = bytes(range(64))
_WRITES = ("os.system", "os.exec", "os.posix_spawn", "os.remove", "os.rename", "os.mkdir", "subprocess.Popen", "socket")
_RUNS = ("exec", "compile", "marshal.loads", "ctypes.dlopen")


class Executed(BaseException):
    """Something was run, opened or imported that reading a file has no use for."""


def content(data: bytes) -> bytes:
    """The bytes of the file."""
    kind, rest = KINDS[data[0] % len(KINDS)] if data else "whole", data[1:]
    if kind == "legacy":
        return LEGACY_MAGIC[0] + rest
    if kind == "safetensors":
        return struct.pack("<Q", len(rest)) + rest + STORAGE
    return rest


def write(path: Path, data: bytes) -> None:
    """Write the file that the input stands for."""
    if data and KINDS[data[0] % len(KINDS)] == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, part in (("data.pkl", data[1:]), ("byteorder", b"little"), ("data/0", STORAGE)):
                archive.writestr(zipfile.ZipInfo(f"archive/{name}"), part)
    else:
        path.write_bytes(content(data))


def check(path: Path) -> None:
    """Read the file: it is refused in words, or every tensor lies inside it. Raises AssertionError otherwise."""
    try:
        found = read_checkpoint(path)
    except (Untrusted, UnsoundPlan) as fault:
        assert len(fault.message) < 5000, "an endless message"
        assert fault.exit_code in (3, 4)
        return
    assert found.tensors or found.format == "safetensors"
    for key, tensor in found.tensors.items():
        assert key == tensor.key and len(key) <= 1000 and len(key.splitlines()) <= 1
        assert len(tensor.shape) == len(tensor.stride) and min((*tensor.shape, *tensor.stride), default=0) >= 0
        end = tensor.offset + tensor.span * dtypes.itemsize(tensor.dtype)
        assert 0 <= tensor.offset <= end <= found.size == path.stat().st_size
        if tensor.numel > max(tensor.span, 0, _MOST_READ):
            _assert_not_read(path, tensor)
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


def forbid() -> None:
    """From now on, running, writing or importing anything ends the process: nothing in a file may cause it."""
    for codec in ("ascii", "cp437", "latin-1", "raw-unicode-escape", "utf-8"):
        "".encode(codec)  # imported when first used, and these are used
    seen = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if seen:
            return  # printing what was found compiles and imports
        foreign = event == "import" and arguments[0] not in sys.modules
        if foreign or event in _RUNS or event.startswith(_WRITES):
            seen.append(event)
            raise Executed(f"{event} {arguments!r}"[:300])

    sys.addaudithook(watch)
