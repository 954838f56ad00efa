"""Tensors that are put together from ranges of others, in one file or in several, and written to a file of one kind."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sam3lite_convert.checkpoint import dtypes
from sam3lite_convert.checkpoint.index import StoredTensor
from sam3lite_convert.checkpoint.tensor_reader import ranges, read_pieces
from sam3lite_convert.convert.tensor_bytes import cast

_CHUNK = 512 << 10  # bytes; stays in the processor's cache between reading, the checksum and writing


@dataclass(frozen=True)
class Stretch:
    """Some of a tensor's elements, one after another in C order.

    path: of the open file that holds the tensor; what is absent needs none.
    begin, numel: the first of the elements, and how many they are.
    """

    path: Path
    tensor: StoredTensor
    begin: int
    numel: int


@dataclass(frozen=True)
class Assembled:
    """A tensor to write: ``stretches`` follow each other, each cast to ``dtype``."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    stretches: tuple[Stretch, ...]

    def __post_init__(self) -> None:
        """Raises ValueError if the elements are not as many as the shape has."""
        held = sum(stretch.numel for stretch in self.stretches)
        if held != math.prod(self.shape):
            raise ValueError(f"{self.key}: {held} elements are not those of a tensor of shape {self.shape}")

    @property
    def out_nbytes(self) -> int:
        return math.prod(self.shape) * dtypes.itemsize(self.dtype)

    def chunks(self, files: Mapping[Path, BinaryIO]) -> Iterator[bytes]:
        """Its bytes, in pieces of about half a megabyte.

        files: the open files by path. Raises Untrusted if one became shorter.
        """
        for stretch in self.stretches:
            dtype = stretch.tensor.dtype
            for chunk in _chunks(stretch, files):
                yield chunk if dtype == self.dtype else cast(chunk, dtype, self.dtype)


def _chunks(stretch: Stretch, files: Mapping[Path, BinaryIO]) -> Iterator[bytes]:
    tensor, width = stretch.tensor, dtypes.itemsize(stretch.tensor.dtype)
    begin, nbytes = stretch.begin * width, stretch.numel * width
    if tensor.absent:
        for _, length in ranges(0, nbytes, _CHUNK):
            yield bytes(length)
    else:
        yield from read_pieces(files[stretch.path], tensor, _CHUNK, begin, begin + nbytes)
