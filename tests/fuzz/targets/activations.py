"""A file or folder of a port's activations, or of ids: read by everything that reads such files.

The first byte says which part of it the input is: a whole file, one array, the names of arrays, a header, the tree of
a dump, what stands beside saved activations.
"""

from __future__ import annotations

import functools
import io
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from sam3lite_convert.errors import Sam3LiteError
from sam3lite_convert.parity.activations import load_activations
from sam3lite_convert.parity.detector.port_files import is_detector, read_detector_inputs, read_detector_port
from sam3lite_convert.parity.port_files import IDS, PortFile, names_in, read_ids, read_port_file
from sam3lite_convert.parity.taps import points
from targets import check_refusal

KINDS = (
    "whole.npz", "whole.safetensors", "one.npz", "names.npz", "folder", "header.safetensors", "saved.safetensors",
    "dump_debug_tree_FULL_TENSORS.json", "ids.json", "ids.npy", "deflated.npz",
)  # fmt: skip
DATA = bytes(range(64))


@functools.cache
def array() -> bytes:
    """A sound array."""
    out = io.BytesIO()
    np.save(out, np.arange(6, dtype=np.float32).reshape(1, 2, 3))
    return out.getvalue()


@functools.cache
def taps() -> dict[str, torch.Tensor]:
    """A sound tensor at every tap of a text encoder of two layers, and ids of two prompts."""
    return {p.at(n): torch.ones(2, 3, 4) if p.has_positions else torch.ones(2, 4) for p, n in points(2)}


def saved(metadata: bytes) -> bytes:
    """A file of saved activations with these bytes as what stands beside them."""
    held = {f"{side}.{tap}": value.clone() for side in ("reference", "candidate") for tap, value in taps().items()}
    held |= {"input_ids": torch.zeros(2, 3, dtype=torch.int64)}
    return save(held, {"format": "pt", "sam3lite_parity": metadata.decode("utf-8", "replace")})


def _zipped(path: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two entries of one name
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)


def _dump(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    (path.parent / "value.safetensors").write_bytes(save({"data": torch.ones(1, 2, 3)}))


def write(folder: Path, data: bytes) -> None:
    """Make the file or folder that the input stands for, as the only thing in ``given``."""
    given = folder / "given"
    shutil.rmtree(given, ignore_errors=True)
    given.mkdir()
    kind, rest = KINDS[data[0] % len(KINDS)] if data else KINDS[0], data[1:]
    path = given / kind
    if kind in ("one.npz", "deflated.npz"):
        method = zipfile.ZIP_DEFLATED if kind == "deflated.npz" else zipfile.ZIP_STORED
        _zipped(path, {"layers.0.npy": rest, "input_ids.npy": array()}, method)
    elif kind == "names.npz":
        names = rest.decode("utf-8", "replace").split("\n")[:50]
        _zipped(path, {f"{name}.npy": array() for name in names})
    elif kind == "folder":
        path.mkdir()
        (path / "layers.0.npy").write_bytes(rest)
        (path / "ids.npy").write_bytes(array())
    elif kind == "header.safetensors":
        path.write_bytes(struct.pack("<Q", len(rest)) + rest + DATA)
    elif kind == "saved.safetensors":
        path.write_bytes(saved(rest))
    elif kind.startswith("dump"):
        _dump(path, rest)
    else:
        path.write_bytes(rest)


READERS: tuple[Callable[[Path], object], ...] = (
    read_port_file, read_ids, load_activations, read_detector_port, read_detector_inputs,
)  # fmt: skip


def check(folder: Path) -> None:
    """Every reader refuses it in words, or gives tensors that are not larger than the file."""
    given = next(path for path in (folder / "given").iterdir() if path.name != "value.safetensors")
    most = 200 * sum(path.stat().st_size for path in (folder / "given").rglob("*") if path.is_file()) + (1 << 20)
    names = names_in(given)
    assert all(isinstance(name, str) for name in names)
    is_detector(given)
    for reader in READERS:
        try:
            found = reader(given)
        except Sam3LiteError as fault:
            check_refusal(fault, 2, 4)
            continue
        values = [found] if isinstance(found, torch.Tensor) else _tensors(found)
        assert sum(value.numel() * value.element_size() for value in values) <= most
        if isinstance(found, PortFile):
            assert found.propagated and not set(found.propagated) & set(IDS)


def _tensors(found: object) -> list[torch.Tensor]:
    groups = [found] if isinstance(found, dict) else vars(found).values()
    values = [v for group in groups for v in (group.values() if isinstance(group, dict) else [group])]
    return [value for value in values if isinstance(value, torch.Tensor)]
