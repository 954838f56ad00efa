"""Reads the index of a safetensors file: its JSON header, checked against the file's length."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import BinaryIO

from sam3lite_convert.checkpoint import dtypes
from sam3lite_convert.checkpoint.index import INDEX_LIMIT, Checkpoint, StoredTensor, check_names, contiguous_stride
from sam3lite_convert.checkpoint.kinds import Kind
from sam3lite_convert.errors import Untrusted, in_short
from sam3lite_convert.json_text import parse_json

_BLOCKS = ("F4", "F6_E2M3", "F6_E3M2", "F8_E8M0")  # parts of formats that share a scale between numbers
_DIGITS = re.compile(r"[0-9]{1,18}")


def read_safetensors(path: Path, file: BinaryIO, size: int) -> Checkpoint:
    """Index the file. Raises Untrusted if its header is invalid or does not match the file's length."""
    # 8 bytes: length of the header; the header: JSON; then the tensors, offsets from the header's end.
    length = struct.unpack("<Q", file.read(8))[0]
    if length > size - 8:
        raise Untrusted(
            "the safetensors header is longer than the file, which is truncated or damaged", "truncated_file"
        )
    if length > INDEX_LIMIT:
        raise Untrusted(f"the safetensors header has {length:,} bytes; at most {INDEX_LIMIT:,} are accepted")
    try:
        header = parse_json(file.read(length), pairs=_no_duplicates)
        check_names(header)
        metadata = dict(header.pop("__metadata__", None) or {})
        tensors, extents = {}, []
        for key, entry in header.items():
            dtype = dtypes.from_safetensors(entry["dtype"])
            if entry["dtype"] in _BLOCKS:
                raise Kind(
                    f"a quantised checkpoint ({key[:200]} is {entry['dtype']})",
                    "Give the weights before they were quantised",
                ).refusal()
            if dtype is None:
                raise Untrusted(f"{key} has the unknown dtype {str(entry['dtype'])[:100]!r}")
            shape = tuple(entry["shape"])
            begin, end = entry["data_offsets"]
            if not all(type(n) is int for n in (*shape, begin, end)):
                raise Untrusted(
                    f"{key}: its shape or byte range holds something other than whole numbers", "corrupt_file"
                )
            tensor = StoredTensor(key, dtype, shape, 8 + length + begin, contiguous_stride(shape))
            if not 0 <= begin <= end or end - begin != tensor.nbytes or not all(n >= 0 for n in shape):
                raise Untrusted(f"{key}: its byte range does not match its shape", "corrupt_file")
            tensors[key] = tensor
            extents.append((begin, end))
    except (KeyError, TypeError, AttributeError) as fault:
        # Python's own words for these name its types.
        message = "the safetensors header is invalid: each tensor needs dtype, shape and data_offsets"
        raise Untrusted(message, "corrupt_file") from fault
    except (ValueError, RecursionError) as fault:
        raise Untrusted(f"the safetensors header is invalid: {in_short(fault)}", "corrupt_file") from fault
    position = 0
    for begin, end in sorted(extents):
        if begin != position:
            raise Untrusted("tensors of the safetensors file overlap, or there is a gap between them", "corrupt_file")
        position = end
    if 8 + length + position > size:
        raise Untrusted("the safetensors file is truncated: it ends before its last tensor", "truncated_file")
    if 8 + length + position != size:
        raise Untrusted("the safetensors file has extra bytes after its last tensor", "corrupt_file")
    # A header holds text alone: a whole number of the meta stands there as its digits.
    meta = {key: int(value) for key, value in metadata.items() if _DIGITS.fullmatch(str(value))}
    return Checkpoint(path, size, "safetensors", None, tensors, metadata=metadata, meta=meta)


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a name appears twice")
    return out
