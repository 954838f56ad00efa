"""Save recorded activations of both encoders to one safetensors file, which can be judged again without a model.

Tensors: ``input_ids``, and ``reference.TAP``, ``candidate.TAP`` and ``isolated.TAP`` for every tap.
Everything else a judgement needs is stored as JSON under ``sam3lite_parity`` in the file's metadata.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
from torch import Tensor

from sam3lite_convert import __version__
from sam3lite_convert.checkpoint.one_file import read_file
from sam3lite_convert.errors import CannotRun, Sam3LiteError, Untrusted
from sam3lite_convert.files import write_whole
from sam3lite_convert.json_text import parse_json
from sam3lite_convert.parity.inputs import Inputs
from sam3lite_convert.parity.judgement import Floor
from sam3lite_convert.parity.port_files import read_safetensors, tap_of
from sam3lite_convert.parity.taps import are_complete, point_of
from sam3lite_convert.quoting import shell_path
from sam3lite_convert.records.parity import ComparedSides
from sam3lite_convert.records.record import Json, JsonValue
from sam3lite_convert.seen import Seen, look

_METADATA = "sam3lite_parity"
_SIDES = ("reference", "candidate", "isolated")


@dataclass(frozen=True)
class SavedActivations:
    """The content of one file.

    ``sides``: description of the two encoders.
    ``inputs``: the ids that the activations were recorded for.
    ``prompts_total``: number of prompts in the run; ``inputs`` may be a subset of them.
    ``reference``: the original's activations by tap.
    ``candidate``: the candidate's activations by tap.
    ``isolated``: the candidate's isolated activations by tap; empty if they were not recorded.
    ``floors``: noise floors by tap; None if they were not measured.
    ``foreign``: whether the candidate's tensors are not those that were saved: somebody put a port's in their place.
    ``not_read``: source keys of text tensors that no module of the reference read.
    """

    sides: ComparedSides
    inputs: Inputs
    prompts_total: int
    reference: dict[str, Tensor]
    candidate: dict[str, Tensor]
    isolated: dict[str, Tensor]
    floors: dict[str, Floor] | None
    foreign: bool = False
    not_read: tuple[str, ...] = ()


def save_activations(path: Path, earlier: Seen, saved: SavedActivations) -> None:
    """Write one file atomically. ``earlier``: what stood there when the run began, as ``replaceable`` gave it.

    Raises CannotRun if the file cannot be written, or if something else stands there by now.
    """
    from safetensors.torch import save

    tensors = {"input_ids": saved.inputs.ids}
    for side in _SIDES:
        found: Mapping[str, Tensor] = getattr(saved, side)
        # Both columns may be one and the same tensor, which the format does not allow.
        tensors |= {f"{side}.{tap}": tensor.contiguous().clone() for tap, tensor in found.items()}
    floors: Json = {tap: list(f.record().to_json().values()) for tap, f in (saved.floors or {}).items()}
    prompts: list[JsonValue] = list(saved.inputs.prompts)
    inputs: Json = {"what": saved.inputs.what, "prompts": prompts, "prompts_total": saved.prompts_total}
    metadata: Json = {
        "version": 1,
        "tool": f"sam3lite-convert {__version__}",
        "taps": list(saved.reference),
        "floors": floors or None,
        "candidate_sha256": _digest(saved.candidate),
        "not_read": list(saved.not_read),
        "about": saved.sides.to_json() | {"inputs": inputs},
    }
    write_whole(path, save(tensors, {"format": "pt", _METADATA: json.dumps(metadata)}), earlier)


def replaceable(path: Path) -> Seen:
    """What stands there, which may be replaced. Raises CannotRun if it is not a file of activations."""
    earlier = look(path)
    if path.exists() and not _holds_activations(path):
        raise CannotRun(
            f"{path} exists and is not a file of activations, so it was not overwritten; choose another name",
            "output_exists",
        )
    return earlier


def _holds_activations(path: Path) -> bool:
    try:
        return path.is_file() and _METADATA in read_file(path).metadata
    except Sam3LiteError:
        return False


def load_activations(path: Path) -> SavedActivations:
    """Read a file of activations.

    Raises CannotRun if the file does not exist or is not a file of activations, Untrusted if it is damaged.
    """
    if path.is_dir() or (path.is_file() and path.suffix in (".npz", ".json")):
        raise _needs_checkpoint(path)
    if not path.is_file():
        raise CannotRun(f"{path}: no such file", "no_such_file")
    _, names, metadata = read_safetensors(path, lambda name: False)
    if _METADATA not in metadata:
        if any(map(tap_of, names)):
            raise _needs_checkpoint(path)
        raise CannotRun(f"{path} is not a file of activations; parity --save-activations writes one", "no_activations")
    tensors = read_safetensors(path)[0]
    try:
        said = parse_json(metadata[_METADATA], nan=True)
        taps, about, floors = list(said["taps"]), said["about"], said["floors"]
        if not are_complete(taps):
            raise ValueError("unexpected tap names")
        compared = ComparedSides.from_json({"converted": None, **about})
        ids = tensors["input_ids"]
        if ids.dtype != torch.int64 or ids.dim() != 2 or not ids.numel():
            raise ValueError("input_ids is not an int64 tensor of shape (batch, sequence)")
        sides = {
            side: {tap: _activation(tensors[f"{side}.{tap}"], tap, ids.shape) for tap in taps}
            for side in _SIDES
            if side != "isolated" or any(key.startswith("isolated.") for key in tensors)
        }
        inputs, prompts_total = _read_inputs(about["inputs"], ids)
        not_read = tuple(said.get("not_read", ()))
        if not all(isinstance(key, str) for key in not_read):
            raise ValueError("invalid list of tensors that were not read")
        measured = None if floors is None else {tap: _read_floor(floors[tap]) for tap in taps}
    except (KeyError, ValueError, TypeError, IndexError, AttributeError) as fault:
        raise Untrusted(f"{path}: incomplete or invalid activations ({fault})", "corrupt_file") from fault
    isolated = sides.get("isolated", {})
    candidate = sides["candidate"]
    # A file of an older version, or one that others wrote, has no digest.
    foreign = said.get("candidate_sha256") not in (None, _digest(candidate))
    columns = (sides["reference"], candidate, isolated)
    return SavedActivations(compared, inputs, prompts_total, *columns, measured, foreign, not_read)


def _needs_checkpoint(path: Path) -> CannotRun:
    return CannotRun(
        f"{path} is not a file of parity --save-activations (plain save_file writes no metadata): judge it with the "
        f"checkpoint, sam3lite judge {shell_path(path)} CHECKPOINT",
        "no_checkpoint",
    )


def _digest(activations: Mapping[str, Tensor]) -> str:
    """SHA-256 of the tensors, in the order of the taps."""
    digest = hashlib.sha256()
    for tap, tensor in activations.items():
        digest.update(f"{tap} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read_inputs(inputs: dict[str, object], ids: Tensor) -> tuple[Inputs, int]:
    """The inputs, and the number of prompts in the run (by default, the number of prompts in the file).

    Raises ValueError, KeyError or TypeError if the description of the inputs is missing or invalid.
    """
    what, prompts = inputs["what"], inputs["prompts"]
    if not isinstance(what, str) or not isinstance(prompts, list) or not all(isinstance(p, str) for p in prompts):
        raise ValueError("invalid description of the ids")
    total = inputs.get("prompts_total", len(prompts))
    if not isinstance(total, int):
        raise ValueError("invalid number of prompts")
    return Inputs(ids, what, tuple(prompts)), total


def _activation(tensor: Tensor, tap: str, rows: torch.Size) -> Tensor:
    wanted = rows if point_of(tap).has_positions else rows[:1]
    if not tensor.is_floating_point() or tensor.shape[:-1] != wanted or not tensor.numel():
        raise ValueError(f"{tap} is {tensor.dtype} {tuple(tensor.shape)}")
    return tensor


def _read_floor(numbers: list[float | None]) -> Floor:
    """A floor from its JSON list: propagated, isolated and, except in older files, the mean of each."""
    floor = Floor(*(math.inf if n is None else float(n) for n in numbers))
    if not all(n >= 0 for n in astuple(floor)) or not math.isfinite(floor.propagated + floor.isolated):
        raise ValueError("a noise floor is not a finite number from 0 on")
    return floor
