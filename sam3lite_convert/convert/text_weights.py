"""Tensors as torch tensors, mostly those of the text encoder: from the source, through the plan, or from a folder.

Only their byte ranges are read. A candidate's keys are the full target keys of its layout, even if a folder of the text
encoder alone stores them without their prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO

import torch
from torch import Tensor, nn

from sam3lite_convert.checkpoint.index import Checkpoint, StoredTensor
from sam3lite_convert.checkpoint.one_file import open_file
from sam3lite_convert.checkpoint.reader import open_source
from sam3lite_convert.checkpoint.tensor_reader import CHUNK, read_pieces, read_range
from sam3lite_convert.convert.folder import Folder
from sam3lite_convert.convert.tensor_bytes import target_chunks
from sam3lite_convert.errors import UnsoundPlan, Untrusted
from sam3lite_convert.plan.architecture import COUNTER, TEXT, WORD_TABLES
from sam3lite_convert.plan.key_patterns import listed
from sam3lite_convert.plan.plan import Mapped, Plan
from sam3lite_convert.plan.tables import Layout
from sam3lite_convert.plan.targets import target_of_text
from sam3lite_convert.progress import bar

_POSITION_IDS = "position_ids"
_LISTED = 10  # shapes that a message names


class SourceText:
    """The tensors of the original's text encoder in an open checkpoint, as stored and uncut; each is read on request.

    ``file``: the checkpoint, as ``open_source`` gives it.
    ``words``: the rows of the token embedding that are read, most of the encoder's memory at S0; None for all.
    """

    def __init__(self, file: BinaryIO, plan: Plan, words: Sequence[int] | None = None) -> None:
        mapped = (m for m in plan.mapped.values() if m.canonical.startswith(TEXT))
        self._sources = {m.canonical.removeprefix(TEXT): m.source for m in mapped}
        self._file, self._words = file, words

    def __iter__(self) -> Iterator[str]:
        """The original's keys: ``encoder.*``, ``projector.*`` or ``resizer.*``."""
        return iter(self._sources)

    def read(self, name: str) -> Tensor:
        """A tensor's values. Raises Untrusted if the file ends too soon."""
        source = self._sources[name]
        if self._words is None or TEXT + name not in WORD_TABLES:
            return read_stored(self._file, source)
        return _rows(self._file, source, self._words)

    def nbytes(self, name: str) -> int:
        """Bytes of a tensor in the file, all of its rows."""
        return self._sources[name].nbytes

    def outline(self, name: str) -> Tensor:
        """A tensor of the same shape and dtype without values, on the meta device."""
        source = self._sources[name]
        return torch.empty(source.shape, dtype=getattr(torch, source.dtype), device="meta")


def source_weights(plan: Plan) -> dict[str, Tensor]:
    """The original's state dict (``encoder.*``, ``projector.*``), as stored and uncut."""
    with open_source(plan.checkpoint) as file:
        text = SourceText(file, plan)
        return dict(_read("reading the original", {name: text.nbytes(name) for name in text}, text.read))


def planned_weights(plan: Plan) -> dict[str, Tensor]:
    """The candidate's state dict, made in memory with the code that writes folders; keys as in the detector alone."""
    inside = plan.layout.inside
    pieces = {m.target.removeprefix(inside): m for m in plan.mapped.values() if m.canonical.startswith(TEXT)}
    return _planned(plan, pieces)


def folder_weights(folder: Folder, layout: Layout) -> dict[str, Tensor]:
    """The candidate's state dict, read from a folder; keys as in the detector alone, stored without a prefix or not."""
    stripped = layout.strips_text and not any(k.startswith(layout.text_encoder) for k in folder.tensors)
    own = {k: target_of_text(k, layout) if stripped else k for k in folder.tensors}
    text = (k for k in own if layout.is_text(own[k]))
    return {own[k].removeprefix(layout.inside): tensor for k, tensor in folder_tensors(folder, text)}


def folder_tensors(folder: Folder, keys: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """These tensors of a folder, by key, in the dtype of the file."""

    def read(key: str) -> Tensor:
        path, stored = folder.tensors[key]
        with open_file(path) as file:
            return read_stored(file, stored)

    yield from _read("reading the folder", {key: folder.tensors[key][1].nbytes for key in keys}, read)


def _read(label: str, sizes: Mapping[str, int], read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Tensors by name, under a bar. ``sizes``: bytes of each of them."""
    with bar(label, sum(sizes.values()), "byte") as advance:
        for name, size in sizes.items():
            value = read(name)
            advance(size)
            yield name, value


def read_stored(file: BinaryIO, stored: StoredTensor) -> Tensor:
    """A tensor of an open checkpoint, as stored. Raises Untrusted if the file ends too soon."""
    if stored.absent or not stored.contiguous:
        return _tensor(read_pieces(file, stored, CHUNK), stored.nbytes, stored.dtype, stored.shape)
    buffer = bytearray(stored.nbytes)
    file.seek(stored.offset)
    if file.readinto(buffer) != stored.nbytes:  # type: ignore[attr-defined]
        raise Untrusted(f"{file.name}: the file ended while it was read; was it changed?", "truncated_file")
    return _view(buffer, stored.dtype, stored.shape)


def _rows(file: BinaryIO, stored: StoredTensor, rows: Sequence[int]) -> Tensor:
    """These rows of a matrix."""
    width = stored.nbytes // stored.shape[0]
    chunks = (read_range(file, stored, n * width, (n + 1) * width) for n in rows)
    return _tensor(chunks, len(rows) * width, stored.dtype, (len(rows), *stored.shape[1:]))


def _tensor(chunks: Iterable[bytes], nbytes: int, dtype: str, shape: tuple[int, ...]) -> Tensor:
    buffer, position = bytearray(nbytes), 0
    for chunk in chunks:
        buffer[position : position + len(chunk)] = chunk
        position += len(chunk)
    return _view(buffer, dtype, shape)


def _view(buffer: bytearray, dtype: str, shape: tuple[int, ...]) -> Tensor:
    if not buffer:
        return torch.empty(shape, dtype=getattr(torch, dtype))
    return torch.frombuffer(buffer, dtype=getattr(torch, dtype)).reshape(shape)


def cast(weights: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights with floating tensors cast to ``dtype``; tensors that have it already are not copied."""
    return {k: t.to(dtype) if t.is_floating_point() else t for k, t in weights.items()}


def load_all(model: nn.Module, weights: Mapping[str, Tensor], who: str) -> None:
    """Load the weights into a model, without copying them. Position ids, which a file does not hold, are made.

    who: the name of the model, for messages.

    Raises UnsoundPlan, naming the keys, if one is missing, is not part of the model or has another shape: an encoder
    that is not fully loaded must not be compared. BatchNorm counters may be absent.
    """
    wanted = model.state_dict()
    absent = {k: torch.zeros((), dtype=torch.int64) for k in wanted if k.endswith(COUNTER) and k not in weights}
    missing = [k for k in wanted if k not in weights and k not in absent]
    extra = [k for k in weights if k not in wanted]
    shapes = [
        f"{k} is {tuple(weights[k].shape)} where the model has {tuple(t.shape)}"
        for k, t in wanted.items()
        if k in weights and weights[k].shape != t.shape
    ]
    if missing or extra or shapes:
        parts = [f"missing: {listed(missing)}"] if missing else []
        parts += [f"not part of it: {listed(extra)}"] if extra else []
        more = f" and {len(shapes) - _LISTED:,} more" if len(shapes) > _LISTED else ""
        parts += [f"of another shape: {'; '.join(shapes[:_LISTED])}{more}"] if shapes else []
        raise UnsoundPlan(
            f"{who} did not get all of its weights, so there is nothing to compare. {'. '.join(parts)}",
            "weights_not_loaded",
            {"missing": missing, "unexpected": extra, "shapes": shapes},
        )
    model.load_state_dict({**weights, **absent}, strict=True, assign=True)
    for module in model.modules():
        # The only buffer that a text encoder has beside its weights; made on a device without memory, it holds nothing.
        ids = module._buffers.get(_POSITION_IDS)
        if ids is not None and ids.is_meta:
            module._buffers[_POSITION_IDS] = torch.arange(ids.shape[-1]).expand(ids.shape)


def stored_tensor(checkpoint: Checkpoint, key: str) -> Tensor:
    """One tensor of a checkpoint, as stored. Raises Untrusted if the file changed since it was indexed."""
    with open_source(checkpoint) as file:
        return read_stored(file, checkpoint.tensors[key])


def planned_tensors(plan: Plan) -> dict[str, Tensor]:
    """Every target of a plan, by its key in the written file, made with the code that writes folders."""
    return _planned(plan, plan.mapped)


def _planned(plan: Plan, pieces: Mapping[str, Mapped]) -> dict[str, Tensor]:
    with open_source(plan.checkpoint) as file:

        def make(name: str) -> Tensor:
            piece = pieces[name]
            return _tensor(target_chunks(file, piece), piece.out_nbytes, piece.dtype, piece.shape)

        return dict(_read("making the conversion", {name: piece.out_nbytes for name, piece in pieces.items()}, make))
