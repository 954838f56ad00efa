"""Recorded activations on disk: both sides in one safetensors file, to be judged again without a model.

Tensors: ``input_ids``, and ``reference.TAP``, ``candidate.TAP`` and ``isolated.TAP`` for every tap.
What else a judgement needs stands as JSON under ``sam3lite_parity`` in the file's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sam3lite_convert import __version__
from sam3lite_convert.errors import CannotRun, Untrusted
from sam3lite_convert.judgement import Floor
from sam3lite_convert.output import write_whole

_METADATA = "sam3lite_parity"
_SIDES = ("reference", "candidate", "isolated")


@dataclass(frozen=True)
class Saved:
    """What a file holds. ``isolated`` is empty where its writer had none; ``about``: the names of both
    sides, attention, dtype, and where the ids came from."""

    input_ids: Tensor
    reference: dict[str, Tensor]
    candidate: dict[str, Tensor]
    isolated: dict[str, Tensor]
    floors: dict[str, Floor] | None
    about: dict[str, Any]


def save_activations(path: Path, saved: Saved) -> None:
    """Write one file, whole or not at all. Raises CannotRun where it cannot be written."""
    from safetensors.torch import save

    tensors = {"input_ids": saved.input_ids}
    for side in _SIDES:
        found: Mapping[str, Tensor] = getattr(saved, side)
        # Both columns may be one and the same tensor, which the format does not allow.
        tensors |= {f"{side}.{tap}": tensor.contiguous().clone() for tap, tensor in found.items()}
    floors = {tap: [f.propagated, f.isolated] for tap, f in (saved.floors or {}).items()} or None
    about = {
        "version": 1,
        "tool": f"sam3lite-convert {__version__}",
        "taps": list(saved.reference),
        "floors": floors,
        "about": saved.about,
    }
    write_whole(path, save(tensors, {"format": "pt", _METADATA: json.dumps(about)}))


def load_activations(path: Path) -> Saved:
    """Raises CannotRun for a file that is not there or is no such file, Untrusted for a damaged one."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CannotRun(f"{path}: no such file", "no_such_file")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as fault:
        raise Untrusted(f"{path}: cannot be read as safetensors ({fault})", "corrupt_file") from fault
    if _METADATA not in metadata:
        raise CannotRun(
            f"{path} holds no activations of a parity run (--save-activations writes them)", "no_activations"
        )
    try:
        said = json.loads(metadata[_METADATA])
        taps = [str(tap) for tap in said["taps"]]
        floors = said["floors"] and {tap: Floor(*map(float, said["floors"][tap])) for tap in taps}
        sides = {
            side: {tap: tensors[f"{side}.{tap}"] for tap in taps}
            for side in _SIDES
            if side != "isolated" or f"isolated.{taps[0]}" in tensors
        }
        return Saved(
            tensors["input_ids"],
            sides["reference"],
            sides["candidate"],
            sides.get("isolated", {}),
            floors,
            dict(said["about"]),
        )
    except (KeyError, ValueError, TypeError, IndexError) as fault:
        raise Untrusted(f"{path}: its activations are not complete ({fault})", "corrupt_file") from fault
