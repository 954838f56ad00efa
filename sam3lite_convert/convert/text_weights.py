"""The text encoder's tensors as torch tensors: from the source, through the plan, or from a folder.

Only their byte ranges are read. Keys of a candidate are target keys (``text_encoder.*``,
``text_projection.*``), whatever a folder of one component calls them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import BinaryIO

import torch
from torch import Tensor, nn

from sam3lite_convert.checkpoint.index import Checkpoint, StoredTensor
from sam3lite_convert.checkpoint.reader import open_file, open_source
from sam3lite_convert.checkpoint.tensor_reader import read_tensor
from sam3lite_convert.convert.folder import Folder
from sam3lite_convert.convert.tensor_bytes import target_chunks
from sam3lite_convert.errors import UnsoundPlan, Untrusted
from sam3lite_convert.plan.architecture import TEXT
from sam3lite_convert.plan.plan import Plan
from sam3lite_convert.plan.targets import TEXT_TARGETS

COUNTER = "num_batches_tracked"  # of a BatchNorm; evaluation does not read it


def source_weights(plan: Plan) -> dict[str, Tensor]:
    """The original's state dict (``encoder.*``, ``projector.*``), as stored and uncut."""
    sources = {m.canonical: m.source for m in plan.mapped.values() if m.canonical.startswith(TEXT)}
    with open_source(plan.checkpoint) as file:
        return {name.removeprefix(TEXT): _stored(file, source) for name, source in sources.items()}


def planned_weights(plan: Plan) -> dict[str, Tensor]:
    """The candidate's state dict, made in memory by the code that writes the folder."""
    out = {}
    with open_source(plan.checkpoint) as file:
        for piece in plan.mapped.values():
            if piece.target.startswith(TEXT_TARGETS):
                chunks = target_chunks(file, piece)
                out[piece.target] = _tensor(chunks, piece.out_nbytes, piece.dtype, piece.shape)
    return out


def folder_weights(folder: Folder, layout: str) -> dict[str, Tensor]:
    """The candidate's state dict as it lies on disk; a text model's own keys get their prefix back."""
    stripped = layout != "packed" and not any(k.startswith("text_encoder.") for k in folder.tensors)
    out = {}
    for key, (path, stored) in folder.tensors.items():
        target = f"text_encoder.{key}" if stripped and not key.startswith(TEXT_TARGETS) else key
        if target.startswith(TEXT_TARGETS):
            with open_file(path) as file:
                out[target] = _stored(file, stored)
    return out


def _stored(file: BinaryIO, stored: StoredTensor) -> Tensor:
    if not stored.contiguous:
        return _tensor([read_tensor(file, stored)], stored.nbytes, stored.dtype, stored.shape)
    buffer = bytearray(stored.nbytes)
    file.seek(stored.offset)
    if file.readinto(buffer) != stored.nbytes:  # type: ignore[attr-defined]
        raise Untrusted(f"{file.name}: the file ended while it was read; was it changed?", "truncated_file")
    return _view(buffer, stored.dtype, stored.shape)


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
    """Floating tensors in ``dtype``; those that are in it already are not copied."""
    return {k: t.to(dtype) if t.is_floating_point() else t for k, t in weights.items()}


def load_all(model: nn.Module, weights: Mapping[str, Tensor], who: str) -> None:
    """Give a model its weights, taking them over without a copy.

    Raises UnsoundPlan, naming the keys, where one is missing, left over or of another shape: an
    encoder that is not fully loaded is not compared. BatchNorm counters may be absent.
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
        parts = [f"missing: {', '.join(missing)}"] if missing else []
        parts += [f"not part of it: {', '.join(extra)}"] if extra else []
        parts += [f"of another shape: {'; '.join(shapes)}"] if shapes else []
        raise UnsoundPlan(
            f"{who} did not get all of its weights, so there is nothing to compare. {'. '.join(parts)}",
            "weights_not_loaded",
            {"missing": missing, "unexpected": extra, "shapes": shapes},
        )
    model.load_state_dict({**weights, **absent}, strict=True, assign=True)


def stored_tensor(checkpoint: Checkpoint, key: str) -> Tensor:
    """One tensor of a checkpoint, as stored. Raises Untrusted if the file changed since it was indexed."""
    with open_source(checkpoint) as file:
        return _stored(file, checkpoint.tensors[key])


def planned_tensors(plan: Plan) -> dict[str, Tensor]:
    """Every target of a plan, by key of the written file, made by the code that writes the folder."""
    with open_source(plan.checkpoint) as file:
        return {
            key: _tensor(target_chunks(file, piece), piece.out_nbytes, piece.dtype, piece.shape)
            for key, piece in plan.mapped.items()
        }
