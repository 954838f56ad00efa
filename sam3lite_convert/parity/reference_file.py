"""Writes the reference's side alone, so that the author of a port knows what to compute: ids, taps, activations.

Tensors: ``input_ids``, and ``reference.TAP`` for every tap; what they are stands as JSON beside them, under
``sam3lite_reference``. The compact form is JSON with a few numbers of each tap (``compact.py``).
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from sam3lite_convert.checkpoint.one_file import read_file
from sam3lite_convert.checkpoint.zip_directory import open_zip
from sam3lite_convert.errors import CannotRun, Sam3LiteError
from sam3lite_convert.files import json_bytes, resolved, write_whole
from sam3lite_convert.json_text import parse_json
from sam3lite_convert.opened import open_regular, read_small
from sam3lite_convert.parity.compact import POSITIONS, compact
from sam3lite_convert.records.record import Json
from sam3lite_convert.seen import Seen, look

ABOUT = "sam3lite_reference"  # key of what stands beside the tensors
_MOST_JSON = 32 << 20  # bytes; the compact form has some kB
ReferenceFormat = Literal["safetensors", "npz", "compact"]
_SUFFIXES: dict[str, ReferenceFormat] = {".safetensors": "safetensors", ".npz": "npz", ".json": "compact"}


def format_of(path: Path, small: bool) -> ReferenceFormat:
    """The format that a file is written in, by its name. ``small``: whether the compact form is asked for.

    Raises CannotRun if the name does not say it, or says another.
    """
    found = _SUFFIXES.get(path.suffix.lower())
    if found is None or (found == "compact") != small:
        wanted = ".json with --compact" if small else ".safetensors or .npz, or .json with --compact"
        raise CannotRun(f"--output {path}: the name must end in {wanted}", "usage")
    return found


def replaceable(path: Path) -> Seen:
    """What stands there, which may be replaced. Raises CannotRun if it is a file that was not written here."""
    earlier = look(resolved(path))
    if path.exists() and not _is_ours(path):
        raise CannotRun(
            f"{path} exists and is not a file of sam3lite record, so it was not overwritten; choose another name",
            "output_exists",
        )
    return earlier


def save_reference(
    path: Path,
    earlier: Seen,
    form: ReferenceFormat,
    about: Json,
    ids: Tensor,
    recorded: Mapping[str, Tensor],
    seed_name: str,
) -> int:
    """Write the file as a whole; returns its size in bytes.

    ``earlier``: what stood there when the run began.
    ``about``: what the activations are of.
    ``seed_name``: the model's name, which fixes the positions of the compact form.

    Raises CannotRun if it cannot be written.
    """
    if form == "compact":
        taps: Json = {tap: compact(tap, value, seed_name).to_json() for tap, value in recorded.items()}
        said: Json = {ABOUT: about, "positions": POSITIONS, "variant": seed_name, "ids": ids.tolist(), "taps": taps}
        data = json_bytes(said)
    elif form == "npz":
        arrays = {f"reference.{tap}": value.numpy() for tap, value in recorded.items()}
        stream = io.BytesIO()
        np.savez(stream, input_ids=ids.numpy(), **{ABOUT: np.array(json.dumps(about))}, **arrays)  # type: ignore[arg-type]
        data = stream.getvalue()
    else:
        from safetensors.torch import save

        tensors = {f"reference.{tap}": value.contiguous().clone() for tap, value in recorded.items()}
        data = save({"input_ids": ids} | tensors, {"format": "pt", ABOUT: json.dumps(about)})
    write_whole(resolved(path), data, earlier)
    return len(data)


def _is_ours(path: Path) -> bool:
    """Whether a file was written here, so that it may be replaced."""
    if not path.is_file():
        return False
    try:
        with open_regular(path) as file:
            if zipfile.is_zipfile(file):
                with open_zip(file) as archive:
                    return f"{ABOUT}.npy" in archive.namelist()
        if path.suffix.lower() == ".json":
            data = parse_json(read_small(path, _MOST_JSON), nan=True)
            return isinstance(data, dict) and ABOUT in data
        return ABOUT in read_file(path).metadata
    except (OSError, ValueError, RecursionError, zipfile.BadZipFile, Sam3LiteError):
        return False
