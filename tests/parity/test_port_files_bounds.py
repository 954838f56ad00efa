"""Files of activations that promise more than they hold, or hold more than any port dumps: refused before memory is
taken."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sam3lite_convert.errors import CannotRun, Sam3LiteError, Untrusted
from sam3lite_convert.parity import port_files
from sam3lite_convert.parity.activations import load_activations
from sam3lite_convert.parity.port_files import names_in, read_ids, read_port_file

GIGABYTE = 1 << 30


def npy(shape: tuple[int, ...], data: bytes = b"") -> bytes:
    """The bytes of a ``.npy`` file of float32 that promises this shape."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return out.getvalue() + data


def archive(path: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as made:
        for name, data in entries.items():
            made.writestr(name, data)
    return path


def bomb(path: Path) -> Path:
    return archive(path, {"layers.0.npy": npy((5 << 20,), bytes(20 << 20))})


def lying(path: Path) -> Path:
    """A bomb whose directory says that it is small."""
    whole = bytearray(bomb(path).read_bytes())
    at = whole.index(b"PK\1\2") + 24
    whole[at : at + 4] = struct.pack("<I", 1 << 20)
    path.write_bytes(whole)
    return path


def other_method(path: Path) -> Path:
    return archive(path, {"layers.0.npy": npy((8,), bytes(32))}, zipfile.ZIP_LZMA)


def endless(path: Path) -> Path:
    """A directory of 10 MB."""
    return archive(path, {f"{n:0900d}.npy": b"" for n in range(11_000)}, zipfile.ZIP_STORED)


def sparse(path: Path, header: bytes, nbytes: int) -> Path:
    path.write_bytes(header)
    with path.open("r+b") as file:
        file.truncate(len(header) + nbytes)
    return path


def safetensors(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    entries, at = {}, 0
    for name, shape in shapes.items():
        nbytes = 4 * int(np.prod(shape))
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + nbytes]}
        at += nbytes
    header = json.dumps(entries).encode()
    return sparse(path, struct.pack("<Q", len(header)) + header, at)


def folder(path: Path) -> Path:
    path.mkdir()
    sparse(path / "layers.0.npy", npy((GIGABYTE,)), 4 * GIGABYTE)
    return path


FILES = {
    "a zip bomb": ("a.npz", bomb, Untrusted, "hostile_archive"),
    "a zip bomb that lies": ("a.npz", lying, Untrusted, "corrupt_file"),
    "compressed in another way": ("a.npz", other_method, Untrusted, "corrupt_file"),
    "a directory of 10 MB": ("a.npz", endless, Untrusted, "corrupt_file"),
    "an array of 4 GB": ("a.safetensors", lambda p: safetensors(p, {"layers.0": (GIGABYTE,)}), CannotRun, "too_large"),
    "five arrays of 2 GB": (
        "a.safetensors",
        lambda p: safetensors(p, {f"layers.{n}": (GIGABYTE // 2,) for n in range(5)}),
        CannotRun,
        "too_large",
    ),
    "an array of 4 GB in a folder": ("a", folder, CannotRun, "too_large"),
    "a tree of 40 MB": ("a.json", lambda p: sparse(p, b"[", 40 << 20), CannotRun, "too_large"),
}


@pytest.mark.parametrize("kind", FILES)
def test_what_no_port_dumps_is_refused_before_memory_is_taken(kind, tmp_path, monkeypatch):
    name, make, error, code = FILES[kind]
    path = make(tmp_path / name)
    if kind == "five arrays of 2 GB":  # none of which is read here
        monkeypatch.setattr(port_files, "_MOST_IN_ALL", 0)
    tracemalloc.start()
    try:
        with pytest.raises(error) as fault:
            read_port_file(path)
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()
    assert fault.value.code == code
    assert len(fault.value.message) < 500


@pytest.mark.parametrize("name", ["ids.npy", "ids.json"])
def test_ids_of_gigabytes_are_refused(name, tmp_path):
    with pytest.raises(CannotRun) as fault:
        read_ids(sparse(tmp_path / name, npy((GIGABYTE,)), 4 * GIGABYTE))
    assert fault.value.code == "too_large"


def test_saved_activations_of_gigabytes_are_refused(tmp_path, monkeypatch):
    save_file({"candidate.layers.0": torch.ones(600)}, tmp_path / "a.safetensors", {"sam3lite_parity": "{}"})
    monkeypatch.setattr(port_files, "_MOST_IN_ARRAY", 2000)
    with pytest.raises(CannotRun) as fault:
        load_activations(tmp_path / "a.safetensors")
    assert fault.value.code == "too_large"


def test_names_are_read_of_a_sane_directory_alone(tmp_path):
    assert names_in(endless(tmp_path / "a.npz")) == []
    assert names_in(archive(tmp_path / "b.npz", {"layers.0.npy": b""})) == ["layers.0"]


def test_zeros_that_shrink_are_read(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", **{"layers.0": np.zeros((3 << 20,), np.float32)})
    assert read_port_file(tmp_path / "a.npz").propagated["layers.0"].numel() == 3 << 20


def test_more_names_than_a_port_has(tmp_path, monkeypatch):
    monkeypatch.setattr(port_files, "_MOST_NAMES", 3)
    np.savez(tmp_path / "a.npz", **{f"layers.{n}": np.zeros(1) for n in range(4)})
    save_file({f"layers.{n}": torch.ones(1) for n in range(4)}, tmp_path / "a.safetensors")
    for name in ("a.npz", "a.safetensors"):
        with pytest.raises(Sam3LiteError) as fault:
            read_port_file(tmp_path / name)
        assert fault.value.code == "too_large"


def dump(folder: Path, *modules: str) -> Path:
    """A dump of the debugger with a call of each of these parts of the text encoder; the layers' values alone are
    whole tensors."""
    save_file({"data": torch.ones(1, 2, 3)}, folder / "value.safetensors")
    value = {"shape": "(1, 2, 3)", "dtype": "float32", "value": "./value.safetensors"}
    calls = [
        {"module_path": f"M.text_encoder.{name}", "inputs": {"args": [value] * name.startswith("layers")}}
        for name in modules
    ]
    path = folder / "a_debug_tree_FULL_TENSORS.json"
    path.write_text(json.dumps({"module_path": "M", "children": calls}))
    return path


def test_a_dump_without_the_output_of_a_layer_is_read_and_says_so(tmp_path):
    found = read_port_file(dump(tmp_path, "layers.0", "final_layer_norm"))
    assert list(found.propagated) == ["embeddings"]
    assert any("left out layers" in note for note in found.notes)


def test_a_layer_of_5000_digits_is_no_layer(tmp_path):
    with pytest.raises(CannotRun, match="no layers"):
        read_port_file(dump(tmp_path, f"layers.{'9' * 5000}", "final_layer_norm"))
