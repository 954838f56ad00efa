"""A streaming writer for files of ``torch.save``: a zip archive of a pickle and one entry for each tensor.

torch is not imported: the pickle is written opcode by opcode. The same tensors give the same bytes.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from sam3lite_convert.checkpoint.dtypes import STORAGE_CLASSES, itemsize
from sam3lite_convert.checkpoint.index import contiguous_stride
from sam3lite_convert.convert.assembled import Assembled
from sam3lite_convert.workers import Advance

_ROOT = "archive/"  # torch takes any folder; one that is not the file's name, so that a file may be renamed
_ALIGNMENT = 64  # bytes, of a tensor's first element in the file, as torch does it
_LOCAL_HEADER, _ZIP64_EXTRA, _EXTRA_HEADER = 30, 20, 4  # bytes
_STORAGE_CLASS = {dtype: name for name, dtype in STORAGE_CLASSES.items()}


def write_torch_file(
    out: BinaryIO,
    wrapper: Sequence[str],
    tensors: Sequence[Assembled],
    files: Mapping[Path, BinaryIO],
    advance: Advance,
    meta: Mapping[str, int] | None = None,
) -> None:
    """Write tensors as ``torch.save`` writes a state dict, to be read by ``torch.load`` and memory-mapped by it.

    out: a new file, open for writing.
    wrapper: names of the dicts that lead to the state dict; none if the file is the state dict itself.
    files: what the tensors are read from, by path.
    advance: called with each number of bytes written.
    meta: whole numbers that stand under ``meta`` beside the outermost of the dicts; they need a wrapper.
    """
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        _write_entry(archive, "data.pkl", [_pickle(wrapper, tensors, meta or {})], 0)
        _write_entry(archive, "byteorder", [b"little"], 0)
        for number, tensor in enumerate(tensors):
            chunks = tensor.chunks(files)
            _write_entry(archive, f"data/{number}", chunks, tensor.out_nbytes, advance)
        _write_entry(archive, "version", [b"3\n"], 0)


def _write_entry(
    archive: zipfile.ZipFile, name: str, chunks: Iterable[bytes], nbytes: int, advance: Advance = lambda n: None
) -> None:
    """Write one entry, whose data begins at a multiple of 64 bytes. ``nbytes``: its size, as far as it may matter."""
    entry = zipfile.ZipInfo(_ROOT + name)  # of 1980: a time would make each file another one
    entry.create_system = 3  # Unix, on every system
    entry.file_size = nbytes
    large = nbytes > zipfile.ZIP64_LIMIT // 2  # the library itself leaves some room below the limit
    fp = archive.fp
    assert fp is not None  # as the archive is open
    begin = fp.tell() + _LOCAL_HEADER + len(entry.filename) + _EXTRA_HEADER + (_ZIP64_EXTRA if large else 0)
    padding = -begin % _ALIGNMENT
    entry.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding  # the tag that torch uses
    with archive.open(entry, "w", force_zip64=large) as out:
        for chunk in chunks:
            out.write(chunk)
            advance(len(chunk))
    entry.extra = b""  # the directory at the end needs no padding


# ---- the pickle, of protocol 2

_PROTOCOL, _STOP = b"\x80\x02", b"."
_MARK, _DICT, _SET_ITEMS, _TUPLE, _EMPTY_TUPLE = b"(", b"}", b"u", b"t", b")"
_CALL, _PERSISTENT, _FALSE = b"R", b"Q", b"\x89"


class _Memo:
    """The names of classes and functions, written out once and then referred to."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def name(self, module: str, name: str) -> bytes:
        full = f"{module}\n{name}\n"
        if full in self._numbers:
            return b"h" + bytes([self._numbers[full]])
        number = self._numbers[full] = len(self._numbers)
        return b"c" + full.encode() + b"q" + bytes([number])


def _pickle(wrapper: Sequence[str], tensors: Sequence[Assembled], meta: Mapping[str, int]) -> bytes:
    memo = _Memo()
    content = _dict({t.key: _tensor(memo, number, t) for number, t in enumerate(tensors)})
    for depth, name in reversed(list(enumerate(wrapper))):
        beside = {"meta": _dict({k: _integer(v) for k, v in meta.items()})} if meta and not depth else {}
        content = _dict(beside | {name: content})
    return _PROTOCOL + content + _STOP


def _dict(items: Mapping[str, bytes]) -> bytes:
    return _DICT + _MARK + b"".join(_text(key) + value for key, value in items.items()) + _SET_ITEMS


def _tensor(memo: _Memo, number: int, tensor: Assembled) -> bytes:
    """A call of the function by which torch makes a tensor of a storage. A dtype without a class of storages, as all
    that are newer, is named behind a storage of bytes."""
    numel = tensor.out_nbytes // itemsize(tensor.dtype)
    known = _STORAGE_CLASS.get(tensor.dtype)
    kind = memo.name("torch", known) if known else memo.name("torch.storage", "UntypedStorage")
    size = _integer(numel if known else tensor.out_nbytes)
    storage = _MARK + _text("storage") + kind + _text(str(number)) + _text("cpu") + size + _TUPLE + _PERSISTENT
    form = _integers(tensor.shape) + _integers(contiguous_stride(tensor.shape))
    hooks = memo.name("collections", "OrderedDict") + _EMPTY_TUPLE + _CALL
    arguments = storage + _integer(0) + form + _FALSE + hooks  # no offset, no gradient
    if known:
        return memo.name("torch._utils", "_rebuild_tensor_v2") + _MARK + arguments + _TUPLE + _CALL
    dtype = memo.name("torch", tensor.dtype)
    return memo.name("torch._utils", "_rebuild_tensor_v3") + _MARK + arguments + dtype + _TUPLE + _CALL


def _text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + len(data).to_bytes(4, "little") + data


def _integer(value: int) -> bytes:
    if 0 <= value < 1 << 8:
        return b"K" + bytes([value])
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + value.to_bytes(4, "little", signed=True)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def _integers(values: Sequence[int]) -> bytes:
    return _MARK + b"".join(map(_integer, values)) + _TUPLE if values else _EMPTY_TUPLE
