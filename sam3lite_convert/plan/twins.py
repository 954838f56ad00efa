"""Twins: two names of one tensor in one file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from sam3lite_convert.checkpoint.index import Checkpoint, StoredTensor
from sam3lite_convert.checkpoint.tensor_reader import same_bytes
from sam3lite_convert.errors import Untrusted
from sam3lite_convert.plan.names import Names
from sam3lite_convert.plan.unsound import shape_text


def check_twins(file: BinaryIO, twins: tuple[Twin, ...]) -> None:
    """Raises Untrusted, naming both keys, if the two tensors of a pair are not bit for bit equal."""
    for twin in twins:
        first, second = twin.first, twin.second
        if [(t.offset, t.stride) for t in first.stored] == [(t.offset, t.stride) for t in second.stored]:
            continue
        if not same_bytes(file, first, file, second):
            if twin.written_twice:
                raise copies_differ(first.key, second.key)
            raise Untrusted(
                f"{os.path.basename(str(file.name))} contradicts itself: {first.key} and {second.key} are two names of "
                "the same tensor, but their values differ. Find out which one was trained, and save a file without the "
                "other one.",
                "twins_differ",
                {"keys": [first.key, second.key]},
            )


def copies_differ(first: str, second: str) -> Untrusted:
    """The error for two tensors of a folder to which a conversion wrote one tensor, and which are no longer equal."""
    return Untrusted(
        f"{first} and {second} are two copies of one tensor of the original, but their values differ. Find out which "
        "one was trained, and write it to both.",
        "twins_differ",
        {"keys": [first, second]},
    )


@dataclass(frozen=True)
class Twin:
    """Two names of one tensor: the plan uses ``first`` and drops ``second``.

    written_twice: whether the layout that the file is in holds it twice, as the model needs it.
    """

    first: StoredTensor
    second: StoredTensor
    written_twice: bool = False

    def of(self, tensors: Iterable[StoredTensor]) -> bool:
        """Whether the bytes of ``first`` are in one of these tensors."""
        begins = {stored.offset for stored in self.first.stored}
        return any(stored.offset in begins for tensor in tensors for stored in tensor.stored)


def twins_of(checkpoint: Checkpoint, names: Names) -> Iterator[Twin]:
    """The twins of a checkpoint; their bytes are not compared yet.

    Raises Untrusted, naming both keys, if the two tensors of a pair are of different shapes or dtypes.
    """
    named = (
        (checkpoint.tensors[keys[0]], checkpoint.tensors[key]) for keys in names.twins.values() for key in keys[1:]
    )
    copies = checkpoint.turned_back.copies if checkpoint.turned_back else ()
    for twice, (first, second) in [*((False, pair) for pair in named), *((True, pair) for pair in copies)]:
        if (first.shape, first.dtype) != (second.shape, second.dtype):
            one, other = (f"{t.dtype} {shape_text(t.shape)}" for t in (first, second))
            raise Untrusted(
                f"{checkpoint.path.name} contradicts itself: {first.key} is {one}, and {second.key}, another name "
                f"of the same tensor, is {other}",
                "twins_differ",
                {"keys": [first.key, second.key]},
            )
        yield Twin(first, second, twice)


_REASON = "second name of {}, bit for bit equal"


def reason_of(first: str) -> str:
    """Why a twin is dropped, in the receipt. ``first``: the key whose tensor it is another name of."""
    return _REASON.format(first)


def first_of(reason: str) -> str | None:
    """The key of the tensor that another one, dropped for this reason, is a second name of; None for other reasons."""
    before, after = _REASON.split("{}")
    if not (reason.startswith(before) and reason.endswith(after)):
        return None
    return reason[len(before) : -len(after)]
