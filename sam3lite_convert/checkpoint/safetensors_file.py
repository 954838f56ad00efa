"""The index of a safetensors file: its JSON header, checked against the file's length."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, BinaryIO

from sam3lite_convert.checkpoint import dtypes
from sam3lite_convert.checkpoint.index import INDEX_LIMIT, Checkpoint, StoredTensor, check_names, contiguous_stride
from sam3lite_convert.errors import Untrusted, in_short


def read_safetensors(path: Path, file: BinaryIO, size: int) -> Checkpoint:
    """Index the file. Raises Untrusted."""
    # 8 bytes: length of the header; the header: JSON; then the tensors, offsets from the header's end.
    length = struct.unpack("<Q", file.read(8))[0]
    if length > size - 8:
        raise Untrusted("the safetensors header is longer than the file: truncated or damaged", "truncated_file")
    if length > INDEX_LIMIT:
        raise Untrusted(f"the safetensors header takes {length:,} bytes; that is no checkpoint of this kind")
    try:
        header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_no_duplicates)
        check_names(header)
        metadata = dict(header.pop("__metadata__", None) or {})
        tensors, extents = {}, []
        for key, entry in header.items():
            dtype = dtypes.from_safetensors(entry["dtype"])
            if dtype is None:
                raise Untrusted(f"{key} has the dtype {str(entry['dtype'])[:100]!r}, which this tool does not know")
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
        raise Untrusted(f"the safetensors header cannot be read: {in_short(fault)}", "corrupt_file") from fault
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
