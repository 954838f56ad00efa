"""A checkpoint on disk as an index: names, dtypes, shapes and where the bytes lie.

No tensor data is read. Three formats come to one record: the zip that ``torch.save`` writes
since 1.6, the stream of pickles that it wrote before, and safetensors.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

from sam3lite_convert import dtypes, pickles
from sam3lite_convert.errors import CannotRun, UnsoundPlan, Untrusted

if TYPE_CHECKING:
    from sam3lite_convert.hub import HubFile
    from sam3lite_convert.partial import PartialCopy

WRAPPERS = ("model", "state_dict")
_LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_LEGACY_INDEX_LIMIT = 8 << 20  # an index of 1,300 tensors takes 0.2 MB
_MOST_ELEMENTS = 1 << 40  # no tensor has more, however often it repeats one value
_PICKLE_LIMIT = 8 << 20  # likewise
_SAFETENSORS_HEADER_LIMIT = 100_000_000  # the limit of the safetensors library


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file. ``offset`` is the byte position of its first element in the file;
    ``stride`` counts elements, and is the C-contiguous one for nearly every tensor."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    stride: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * dtypes.itemsize(self.dtype)

    @property
    def contiguous(self) -> bool:
        return self.stride == contiguous_stride(self.shape) or self.numel <= 1

    @property
    def span(self) -> int:
        """Elements from the first to behind the last one, as they lie in the file."""
        if self.numel == 0:
            return 0
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))


@dataclass(frozen=True)
class Record:
    """A stretch of the file with the CRC-32 that its zip directory states."""

    name: str
    offset: int
    nbytes: int
    crc32: int


@dataclass(frozen=True)
class Checkpoint:
    """The index of one file. ``wrapper`` is the entry that held the state dict, None for a bare one;
    ``others`` are the state dict's entries that are no tensors.

    ``hub``: where the file came from, None for a local one. ``partial``: the file has holes; then
    ``records`` are those that have been fetched, ``extents`` gives by key of a tensor the bytes of the
    file (start, end) that its zip record lies in, and the offset of a tensor whose record has not been
    fetched is only a lower bound.
    """

    path: Path
    size: int
    format: str  # "zip", "legacy" or "safetensors"
    wrapper: str | None
    tensors: dict[str, StoredTensor]
    records: tuple[Record, ...] = ()
    notes: tuple[str, ...] = ()
    others: frozenset[str] = frozenset()
    metadata: dict[str, str] = field(default_factory=dict)
    extents: dict[str, tuple[int, int]] = field(default_factory=dict)
    hub: HubFile | None = None
    partial: bool = False


def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The stride, in elements, of a C-contiguous tensor of this shape."""
    steps, step = [], 1
    for n in reversed(shape):
        steps.append(step)
        step *= max(n, 1)
    return tuple(reversed(steps))


@contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """The file opened for reading; raises CannotRun where that is not possible."""
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise CannotRun(f"{path} is no regular file", "not_a_file")
        with open(path, "rb") as file:
            yield file
    except FileNotFoundError:
        raise CannotRun(f"{path}: no such file", "no_such_file") from None
    except IsADirectoryError:
        raise CannotRun(f"{path} is a folder; a checkpoint is one file", "not_a_file") from None
    except PermissionError:
        raise CannotRun(f"{path}: no permission to read it", "no_permission") from None
    except (NotADirectoryError, OSError) as fault:
        if fault.filename is None:
            raise
        raise CannotRun(f"{path}: {fault.strerror}", "cannot_open") from None


def read_checkpoint(path: Path, copy: PartialCopy | None = None) -> Checkpoint:
    """Index a ``.pt`` or ``.safetensors`` file. ``copy``: the file, where it is one with holes.

    Raises CannotRun for a file that cannot be opened, Untrusted for one that is empty, truncated,
    corrupt, hostile or no checkpoint at all, UnsoundPlan for one without a state dict.
    """
    with open_file(path) if copy is None else nullcontext(cast(BinaryIO, copy)) as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(0)
        head = file.read(512)
        file.seek(0)
        try:
            if head.startswith(b"PK\x03\x04"):
                return _read_zip(path, file, size, copy)
            if head.startswith(_LEGACY_MAGIC):
                return _read_legacy(path, file, size)
            if head[8:9] == b"{":
                return replace(_read_safetensors(path, file, size), partial=copy is not None)
        except (Untrusted, UnsoundPlan) as fault:
            fault.message = f"{path.name}: {fault.message}"
            raise
    raise Untrusted(f"{path.name}: {_not_a_checkpoint(head, size)}", "not_a_checkpoint")


def _not_a_checkpoint(head: bytes, size: int) -> str:
    if size == 0:
        return "the file is empty"
    if head.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer, not the weights; fetch them with 'git lfs pull'"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "this is a web page, not a checkpoint; the download went to a page about the file"
    if not any(head):
        return "the file starts with zeros; the download did not finish"
    if all(32 <= b < 127 or b in b"\t\r\n" or b >= 0xC2 for b in head):
        return "this is a text file, not a checkpoint"
    if head[:1] == b"\x80":
        return "this is a pickle, but not one that torch.save wrote; it was not opened"
    return "this is neither a torch checkpoint (zip or the older stream) nor safetensors"


# ---- torch zip ------------------------------------------------------------------------


def _read_zip(path: Path, file: BinaryIO, size: int, copy: PartialCopy | None) -> Checkpoint:
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as fault:
        raise Untrusted(
            f"the zip archive has no readable directory at its end: the file is truncated or damaged ({fault}). "
            f"It has {size:,} bytes; compare that with the original and fetch it again.",
            "truncated_file",
        ) from fault
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        if entry.filename in entries:
            raise Untrusted(f"the archive holds {entry.filename} twice", "corrupt_file")
        entries[entry.filename] = entry
    pickle_names = [n for n in entries if n == "data.pkl" or (n.endswith("/data.pkl") and n.count("/") == 1)]
    if len(pickle_names) != 1:
        raise Untrusted("a zip archive, but not one that torch.save wrote (it holds no data.pkl)", "not_a_checkpoint")
    root = pickle_names[0][: -len("data.pkl")]
    if root + "constants.pkl" in entries:
        raise Untrusted(
            "this is a TorchScript archive: a program, not a state dict. Save the module's state_dict() instead.",
            "hostile_pickle",
        )
    # Of a copy with holes, only the headers of what is read here are worth a request.
    fetched = {
        n
        for n, entry in entries.items()
        if copy is None or not n.startswith(root + "data/") or copy.present(entry.header_offset, 30)
    }
    records = {n: _zip_record(file if n in fetched else None, entry, size) for n, entry in entries.items()}
    position = 0
    for record in sorted(records.values(), key=lambda r: r.offset):
        if record.offset < position:
            raise Untrusted(f"the archive's entry {record.name} overlaps another one", "corrupt_file")
        position = record.offset + record.nbytes
    order = records.get(root + "byteorder")
    if order and _pread(file, order.offset, order.nbytes) != b"little":
        raise Untrusted("the tensors are stored in big-endian order, which this tool does not read", "big_endian")
    index = records[pickle_names[0]]
    if index.nbytes > _PICKLE_LIMIT:
        raise Untrusted(f"the archive's index takes {index.nbytes:,} bytes; that is no checkpoint of this kind")
    tree = pickles.load(io.BytesIO(_pread(file, index.offset, index.nbytes)))

    storages = {}
    for name, record in records.items():
        if name.startswith(root + "data/"):
            storages[name[len(root + "data/") :]] = (record.offset, record.nbytes)
    found = _state_dict(tree)
    tensors = _locate(found.tensors, storages)
    # A copy is checked where it is whole: a record of which only the header came along is not.
    known = (r for n, r in records.items() if n in fetched and (copy is None or copy.present(r.offset, r.nbytes)))
    checkpoint = Checkpoint(
        path, size, "zip", found.wrapper, tensors, tuple(known), found.notes, frozenset(found.others)
    )
    if copy is None:
        return checkpoint
    # A record ends where the next one begins, or the directory.
    starts = [*sorted(e.header_offset for e in entries.values()), archive.start_dir]
    ends = dict(itertools.pairwise(starts))
    begins = {n[len(root + "data/") :]: entries[n].header_offset for n in records if n.startswith(root + "data/")}
    places = {k: begins[t.storage.key] for k, t in found.tensors.items()}
    return replace(checkpoint, partial=True, extents={k: (at, ends[at]) for k, at in places.items()})


def _zip_record(file: BinaryIO | None, entry: zipfile.ZipInfo, size: int) -> Record:
    """Where an entry's bytes lie; without a ``file`` to read its header in, the least it can be."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        raise Untrusted(f"{entry.filename} is compressed or encrypted inside the archive; torch.save does neither")
    name_length, extra_length = len(entry.orig_filename.encode("utf-8", "replace")), 0
    if file is not None:
        local = _pread(file, entry.header_offset, 30)
        if len(local) < 30 or local[:4] != b"PK\x03\x04":
            raise Untrusted(f"the archive's entry {entry.filename} is damaged", "corrupt_file")
        name_length, extra_length = struct.unpack("<HH", local[26:30])
    offset = entry.header_offset + 30 + name_length + extra_length
    if offset + entry.file_size > size:
        raise Untrusted(f"the archive's entry {entry.filename} runs past the end of the file", "truncated_file")
    return Record(entry.filename, offset, entry.file_size, entry.CRC)


# ---- torch before 1.6 -------------------------------------------------------------------


def _read_legacy(path: Path, file: BinaryIO, size: int) -> Checkpoint:
    # magic number, protocol, system info, the object, the storage keys: five pickles in a row.
    # Then each storage in the order of the keys: its length as int64, and its elements.
    stream = io.BytesIO(file.read(_LEGACY_INDEX_LIMIT))
    pickles.load(stream)
    pickles.load(stream)
    system = pickles.load(stream)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise Untrusted("the tensors are stored in big-endian order, which this tool does not read", "big_endian")
    tree = pickles.load(stream)
    keys = pickles.load(stream)
    found = _state_dict(tree)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise Untrusted("the file's list of storages cannot be read", "corrupt_file")
    kinds = {t.storage.key: t.storage.dtype for t in _all_tensors(tree)}
    storages, position = {}, stream.tell()
    for key in keys:
        head = _pread(file, position, 8)
        if key not in kinds or kinds[key] is None or len(head) < 8:
            raise Untrusted("the file ends before its last tensor, or lists a tensor it never names", "truncated_file")
        nbytes = struct.unpack("<q", head)[0] * dtypes.itemsize(kinds[key] or "")
        if nbytes < 0 or position + 8 + nbytes > size:
            raise Untrusted("the file ends before its last tensor: it is truncated", "truncated_file")
        storages[key] = (position + 8, nbytes)
        position += 8 + nbytes
    note = "written by torch before 1.6 (no zip archive, so no checksums inside); read by byte range all the same"
    tensors = _locate(found.tensors, storages)
    return Checkpoint(path, size, "legacy", found.wrapper, tensors, (), (note, *found.notes), frozenset(found.others))


def _all_tensors(tree: Any) -> Iterator[pickles.TensorRecord]:
    stack, seen = [tree], set()
    while stack:
        item = stack.pop()
        if isinstance(item, pickles.TensorRecord):
            yield item
        elif isinstance(item, Mapping | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            stack.extend(item.values() if isinstance(item, Mapping) else item)


# ---- safetensors ------------------------------------------------------------------------


def _read_safetensors(path: Path, file: BinaryIO, size: int) -> Checkpoint:
    # 8 bytes: length of the header; the header: JSON; then the tensors, offsets from the header's end.
    length = struct.unpack("<Q", file.read(8))[0]
    if length > min(size - 8, _SAFETENSORS_HEADER_LIMIT):
        raise Untrusted("the safetensors header is longer than the file: truncated or damaged", "truncated_file")
    try:
        header = json.loads(file.read(length), object_pairs_hook=_no_duplicates)
        metadata = dict(header.pop("__metadata__", None) or {})
        tensors, extents = {}, []
        for key, entry in header.items():
            dtype = dtypes.from_safetensors(entry["dtype"])
            if dtype is None:
                raise Untrusted(f"{key} has the dtype {entry['dtype']}, which this tool does not know")
            shape = tuple(entry["shape"])
            begin, end = entry["data_offsets"]
            if not all(type(n) is int for n in (*shape, begin, end)):
                raise Untrusted(f"{key}: its shape or byte range is not made of whole numbers", "corrupt_file")
            tensor = StoredTensor(key, dtype, shape, 8 + length + begin, contiguous_stride(shape))
            if not 0 <= begin <= end or end - begin != tensor.nbytes or not all(n >= 0 for n in shape):
                raise Untrusted(f"{key}: its byte range does not fit its shape", "corrupt_file")
            tensors[key] = tensor
            extents.append((begin, end))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as fault:
        raise Untrusted(f"the safetensors header cannot be read: {fault}", "corrupt_file") from fault
    position = 0
    for begin, end in sorted(extents):
        if begin != position:
            raise Untrusted("the safetensors file has tensors that overlap, or a gap between them", "corrupt_file")
        position = end
    if 8 + length + position > size:
        raise Untrusted("the safetensors file ends before its last tensor: it is truncated", "truncated_file")
    if 8 + length + position != size:
        raise Untrusted("the safetensors file has bytes behind its last tensor", "corrupt_file")
    return Checkpoint(path, size, "safetensors", None, tensors, metadata=metadata)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a name stands there twice")
    return out


# ---- shared -----------------------------------------------------------------------------


def _pread(file: BinaryIO, offset: int, nbytes: int) -> bytes:
    if not 0 <= offset < 1 << 63:
        raise Untrusted("the archive's directory points outside the file", "corrupt_file")
    file.seek(offset)
    return file.read(nbytes)


class _StateDict(NamedTuple):
    """The wrapper's name, the tensors by key, notes on what else the file holds, and the keys of
    what is no tensor."""

    wrapper: str | None
    tensors: dict[str, pickles.TensorRecord]
    notes: tuple[str, ...]
    others: list[str]


def _state_dict(tree: Any) -> _StateDict:
    if not isinstance(tree, Mapping):
        raise UnsoundPlan(f"the file holds a {type(tree).__name__}, not a state dict", "no_state_dict")
    holders = [w for w in WRAPPERS if isinstance(tree.get(w), Mapping)]
    if len(holders) > 1:
        raise UnsoundPlan("the file holds both 'model' and 'state_dict'; save the one that counts", "two_state_dicts")
    wrapper = holders[0] if holders else None
    inner = tree[wrapper] if wrapper else tree
    notes = []
    if wrapper and len(tree) > 1:
        notes.append("left unread beside the state dict: " + ", ".join(sorted(str(k) for k in tree if k != wrapper)))
    tensors, others = {}, []
    for key, value in inner.items():
        if isinstance(value, pickles.TensorRecord) and isinstance(key, str):
            tensors[key] = value
        else:
            others.append(str(key))
    if not tensors:
        raise UnsoundPlan(
            "the file holds no tensors under names, so there is no state dict in it" + _hidden_state_dicts(inner),
            "no_state_dict",
        )
    if others:
        notes.append(
            f"{len(others)} entries of the state dict are no tensors and were left out: " + ", ".join(others[:5])
        )
    return _StateDict(wrapper, tensors, tuple(notes), others)


def _hidden_state_dicts(tree: Mapping[Any, Any]) -> str:
    """Where tensors lie one level below, in words; wrappers other than the known ones are not guessed."""
    counts = {
        k: n
        for k, v in tree.items()
        if isinstance(k, str) and isinstance(v, Mapping)
        if (n := sum(isinstance(t, pickles.TensorRecord) for t in v.values()))
    }
    if not counts:
        return ""
    held = ", ".join(f"{name!r} holds {n} tensors" for name, n in counts.items())
    return f". The entry {held}; save the one that counts alone, or under 'model' or 'state_dict'"


def _locate(found: dict[str, pickles.TensorRecord], storages: dict[str, tuple[int, int]]) -> dict[str, StoredTensor]:
    """Byte positions of the tensors; raises Untrusted where one points outside its storage."""
    out = {}
    for key, tensor in found.items():
        if tensor.storage.key not in storages:
            raise Untrusted(f"{key}: its data is missing from the file", "truncated_file")
        base, available = storages[tensor.storage.key]
        width = dtypes.itemsize(tensor.dtype)
        unit = dtypes.itemsize(tensor.storage.dtype) if tensor.storage.dtype else width
        start = tensor.storage.start * unit + tensor.offset * width
        stored = StoredTensor(key, tensor.dtype, tensor.shape, base + start, tensor.stride)
        if start + stored.span * width > available or stored.numel > _MOST_ELEMENTS:
            raise Untrusted(f"{key}: its shape {tensor.shape} points outside the data that is stored", "corrupt_file")
        if stored.numel > stored.span:
            raise UnsoundPlan(f"{key}: is an overlapping view; save it again after .contiguous()", "overlapping_view")
        out[key] = stored
    return out
