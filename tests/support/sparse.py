"""Checkpoints in either torch format of which a storage is a hole in the file: gigabytes that take no disk."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from support.hostile import state, tensor, text

from sam3lite_convert.checkpoint.dtypes import STORAGE_CLASSES
from sam3lite_convert.checkpoint.torch_legacy import LEGACY_MAGIC

_CLASSES = {dtype: name for name, dtype in STORAGE_CLASSES.items()}


class Wide(NamedTuple):
    """A tensor whose elements lie far apart: ``values`` in their shape, and the stride in elements."""

    values: torch.Tensor
    stride: tuple[int, ...]

    @property
    def length(self) -> int:
        """Elements of its storage."""
        return 1 + sum((n - 1) * s for n, s in zip(self.values.shape, self.stride, strict=True))


def write_sparse(path: Path, tensors: dict[str, torch.Tensor | Wide], legacy: bool = False) -> Path:
    """A file {"model": tensors} as torch.save writes it; each tensor has a storage of its own."""
    wide = {k: v if isinstance(v, Wide) else Wide(v, tuple(v.contiguous().stride())) for k, v in tensors.items()}
    kinds = [_CLASSES[str(each.values.dtype).removeprefix("torch.")] for each in wide.values()]
    made = (
        text(key)
        + tensor(tuple(each.values.shape), each.stride, kind, str(n), numel=max(each.length, 0), part=b"N" * legacy)
        for n, ((key, each), kind) in enumerate(zip(wide.items(), kinds, strict=True))
    )
    pickle = state(text("model"), b"}(" + b"".join(made) + b"u")
    if legacy:
        _write_stream(path, pickle, list(wide.values()))
    else:
        _write_archive(path, pickle, list(wide.values()))
    return path


def _write_stream(path: Path, pickle: bytes, tensors: list[Wide]) -> None:
    keys = b"\x80\x02](" + b"".join(text(str(n)) for n in range(len(tensors))) + b"e."
    with open(path, "wb") as file:
        file.write(LEGACY_MAGIC[0] + b"\x80\x02M\xe9\x03." + b"\x80\x02}." + pickle + keys)
        for each in tensors:
            file.write(struct.pack("<q", max(each.length, 0)))
            _write_storage(file, each)


def _write_storage(file: BinaryIO, each: Wide) -> int:
    """Write what is not zero; returns the length of the storage in bytes."""
    width, start = each.values.element_size(), file.tell()
    nbytes = max(each.length, 0) * width
    data = each.values.detach().contiguous().flatten()
    if each.stride == tuple(each.values.contiguous().stride()):
        file.write(data.view(torch.uint8).numpy().tobytes() if len(data) else b"")
    else:
        for index, value in zip(torch.cartesian_prod(*(torch.arange(n) for n in each.values.shape)), data, strict=True):
            at = sum(int(i) * s for i, s in zip(index.reshape(-1), each.stride, strict=True))
            file.seek(start + at * width)
            file.write(value.reshape(1).view(torch.uint8).numpy().tobytes())
    file.seek(start + nbytes)
    file.truncate()
    return nbytes


def _write_archive(path: Path, pickle: bytes, tensors: list[Wide]) -> None:
    """The zip archive without checksums, as torch writes it with ``set_crc32_options(False)``."""
    entries: list[tuple[bytes, int, int]] = []
    with open(path, "wb") as file:
        for name, content in (
            ("data.pkl", pickle),
            ("byteorder", b"little"),
            *((f"data/{n}", each) for n, each in enumerate(tensors)),
            ("version", b"3\n"),
        ):
            full, start = f"archive/{name}".encode(), file.tell()
            file.seek(start + 30 + len(full))
            if isinstance(content, bytes):
                file.write(content)
                nbytes = len(content)
            else:
                nbytes = _write_storage(file, content)
            end = file.tell()
            file.seek(start)
            file.write(struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 33, 0, nbytes, nbytes, len(full), 0) + full)
            file.seek(end)
            entries.append((full, start, nbytes))
        begin = file.tell()
        for full, start, nbytes in entries:
            sizes = (0, nbytes, nbytes, len(full), 0, 0, 0, 0, 0, start)
            file.write(struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 33, *sizes) + full)
        count, length = len(entries), file.tell() - begin
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, length, begin, 0))
