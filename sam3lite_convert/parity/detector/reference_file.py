"""Writes what the original's detector computes to one file, so that the author of a port knows what to compute.

Inputs are tensors by name: ``picture`` in uint8, (3, S, S), before it is normalised; ``input_ids``; ``boxes`` and
``box_labels``, if there are boxes. The whole form also holds ``image``, the normalised picture, and ``reference.TAP``
for every tap. The compact form has ``sampled.TAP`` instead: some values at positions that the tap's name fixes. What
they are stands as JSON beside them, in the metadata.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sam3lite_convert.checkpoint import dtypes
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.files import check_space, resolved, write_pieces
from sam3lite_convert.parity.compact import positions
from sam3lite_convert.parity.detector.inputs import DetectorCall
from sam3lite_convert.parity.detector.store import TapStore
from sam3lite_convert.parity.reference_file import ABOUT, replaceable
from sam3lite_convert.records.record import Json
from sam3lite_convert.seen import Seen

SAMPLED = 4096  # values of a tap in the compact form
_POSITIONS = (
    "numpy.random.Generator(numpy.random.PCG64(zlib.crc32(b'VARIANT.TAP'))).integers(0, numel, 4096), flattened; "
    "all values of a tap that has no more"
)


def replaceable_output(path: Path) -> Seen:
    """What stands there, which may be replaced. Raises CannotRun if the name is not that of a safetensors file, or if
    another file is there."""
    if path.suffix.lower() != ".safetensors":
        raise CannotRun(f"--output {path}: the name must end in .safetensors for --component detector", "usage")
    return replaceable(path)


def inputs_of(call: DetectorCall) -> dict[str, Tensor]:
    """The tensors that fix a call. ``picture``: as ``prepare`` makes it before it is normalised."""
    found = {"input_ids": call.input_ids, "picture": call.squared}
    kept = ~call.box_mask[0]
    if bool(kept.any()):
        found |= {"boxes": call.boxes[:, kept], "box_labels": call.box_labels[:, kept]}
    return found


def save_detector_reference(
    path: Path,
    earlier: Seen,
    about: Json,
    call: DetectorCall,
    store: TapStore,
    taps: Sequence[str],
    seed_name: str,
    compact: bool,
) -> int:
    """Write the file as a whole; returns its size in bytes. In memory at any time: the activation of one tap.

    ``earlier``: what stood there when the run began.
    ``about``: what the activations are of.
    ``taps``: those that are written, of the store.
    ``seed_name``: the model's name, which fixes the positions of the compact form.

    Raises CannotRun if it cannot be written or the disk has no room.
    """
    held = inputs_of(call)
    if compact:
        held |= {f"sampled.{tap}": sampled(tap, store.read(tap), seed_name) for tap in taps}
        about = about | {"compact": True, "positions": _POSITIONS}
    else:
        held["image"] = call.image
    shapes = {name: (value.dtype, tuple(value.shape)) for name, value in held.items()}
    if not compact:
        for tap in taps:
            value = store.read(tap)
            shapes[f"reference.{tap}"] = (value.dtype, tuple(value.shape))
    shapes = dict(sorted(shapes.items(), key=lambda item: -item[1][0].itemsize))  # every tensor is then aligned
    header = _header(shapes, {"format": "pt", ABOUT: json.dumps(about)})
    size = len(header) + sum(_nbytes(*shape) for shape in shapes.values())
    check_space(path, size, f"to write {path}")

    def pieces() -> Iterator[bytes]:
        yield header
        for name in shapes:
            value = held[name] if name in held else store.read(name.removeprefix("reference."))
            yield value.contiguous().numpy().tobytes()

    write_pieces(resolved(path), pieces(), earlier)
    return size


def sampled(tap: str, value: Tensor, seed_name: str) -> Tensor:
    """The values of a tap in the compact form, in the order of their positions. ``seed_name``: the model's name."""
    flat = value.reshape(-1)
    if len(flat) <= SAMPLED:
        return flat.clone()
    return flat[torch.tensor(positions(tap, len(flat), seed_name, SAMPLED))]


def figures(value: Tensor) -> Json:
    """Mean, standard deviation (of all values), Euclidean norm and largest absolute value, computed in float64."""
    wide = value.double()
    return {
        "shape": list(value.shape),
        "mean": float(wide.mean()),
        "std": float(wide.std(correction=0)),
        "l2": float(wide.norm()),
        "max_abs": float(wide.abs().max()),
    }


def _header(shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """The length and the header of a safetensors file."""
    entries: Json = {"__metadata__": dict(metadata)}
    position = 0
    for name, (dtype, shape) in shapes.items():
        end = position + _nbytes(dtype, shape)
        code = dtypes.safetensors_code(str(dtype).removeprefix("torch."))
        entries[name] = {"dtype": code, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _nbytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return dtype.itemsize * math.prod(shape)
