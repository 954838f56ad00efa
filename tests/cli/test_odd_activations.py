"""Activations that no port dumps, given to `judge`, `parity --judge`, --ids and the Python API: a documented exit code,
one message, no traceback."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.folders import sam3lite, tiny_state, write

HUGE = 10**400


@pytest.fixture(scope="module", params=["saved", pytest.param("recorded", marks=pytest.mark.stress)])
def recorded(request, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor], dict[str, str]]:
    """A checkpoint, and what `parity --save-activations` or `record` writes of it: tensors and metadata."""
    from safetensors import safe_open

    place = tmp_path_factory.mktemp("odd")
    checkpoint = write(place, tiny_state(), "s0.pt")
    written = place / "ref.safetensors"
    if request.param == "saved":
        done = sam3lite("parity", checkpoint, "--save-activations", written)
    else:
        done = sam3lite("record", checkpoint, "--output", written)
    assert done.code == 0, done
    with safe_open(written, "pt") as file:
        return checkpoint, {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def one_of(every: Iterable[Any], plain: Any) -> list[Any]:
    """Of all of these the suite tries one."""
    return [pytest.param(each, marks=() if each == plain else pytest.mark.stress) for each in every]


def deep(n: int) -> str:
    return "[" * n + "]" * n


METADATA: dict[str, Callable[[dict[str, str]], dict[str, str]]] = {
    "deep": lambda m: {k: deep(100_000) for k in m},
    "an integer of 401 digits": lambda m: {k: str(HUGE) for k in m},
    "a float beyond doubles": lambda m: dict.fromkeys(m, "1e400"),
    "an integer of 5,000 digits in an object": lambda m: {
        k: json.dumps({"x": 1})[:-1] + ',"y":' + "9" * 5000 + "}" for k in m
    },
    "NaN": lambda m: dict.fromkeys(m, "NaN"),
    "null": lambda m: dict.fromkeys(m, "null"),
    "a list": lambda m: dict.fromkeys(m, "[]"),
    "an object": lambda m: dict.fromkeys(m, "{}"),
    "true": lambda m: dict.fromkeys(m, "true"),
    "empty": lambda m: dict.fromkeys(m, ""),
    "text": lambda m: dict.fromkeys(m, '"x"'),
    "a lone surrogate": lambda m: dict.fromkeys(m, '"\\ud800"'),
    "control characters": lambda m: dict.fromkeys(m, '"\\u001b[31m\\u0000\\n"'),
    "a megabyte": lambda m: dict.fromkeys(m, '"' + "x" * 1000000 + '"'),
    "none": lambda m: {},
    "other names": lambda m: {f"{k}\n": v for k, v in m.items()},
}


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=() if k in ("deep",) else pytest.mark.stress) for k in METADATA]
)
def test_odd_metadata(kind, recorded, tmp_path):
    checkpoint, tensors, metadata = recorded
    save_file(tensors, tmp_path / "x.safetensors", METADATA[kind](metadata))
    held(tmp_path / "x.safetensors", checkpoint)
    for key in metadata:  # each field alone, so that the ones before it are right
        changed = METADATA[kind]({key: metadata[key]})
        save_file(tensors, tmp_path / "x.safetensors", metadata | changed)
        held(tmp_path / "x.safetensors", checkpoint)


def held(file: Path, checkpoint: Path) -> None:
    for words in (
        ("parity", "--judge", file, checkpoint),
        ("judge", file, checkpoint, "--name", "x"),
        ("judge", file, checkpoint, "--name", "x", "--ids", file),
        ("judge", file, checkpoint, "--component", "detector"),
    ):
        done = sam3lite(*words, "--json")
        assert done.code in (0, 1, 2, 4), (words, done)
        assert "Traceback" not in done.err, (words, done)
        if done.code >= 2:
            error = done.json["error"]
            assert error["code"] not in ("internal", "unforeseen") and 0 < len(error["message"]) < 4000, error
            assert done.err.count("\n") <= 8


def raw(name: str, dtype: str, shape: list[int], nbytes: int) -> bytes:
    header = json.dumps({name: {"dtype": dtype, "shape": shape, "data_offsets": [0, nbytes]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"\0" * nbytes


DTYPES = (
    "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F4", "F6_E2M3", "BOOL", "U8", "I8", "U16", "U32", "U64", "C64",
    "I64",
)  # fmt: skip
WIDTHS = {"U16": 2, "U32": 4, "U64": 8, "C64": 8, "I64": 8}


@pytest.mark.parametrize("dtype", one_of(DTYPES, "F8_E4M3"))
def test_odd_dtypes_of_safetensors(dtype, recorded, tmp_path):
    checkpoint, tensors, _ = recorded
    name = next(n for n in tensors if "layers" in n)
    shape = list(tensors[name].shape)
    nbytes = int(np.prod(shape)) * WIDTHS.get(dtype, 1)
    nbytes = {"F4": nbytes // 2, "F6_E2M3": nbytes * 6 // 8}.get(dtype, nbytes)
    (tmp_path / "x.safetensors").write_bytes(raw(name, dtype, shape, nbytes))
    held(tmp_path / "x.safetensors", checkpoint)


STRUCTURED = np.zeros((2, 3), np.dtype([("a", "f4"), ("b", "i8")]))
ARRAYS: dict[str, Any] = {
    "objects": np.array([[1, None], ["x", HUGE]], dtype=object),
    "structured": STRUCTURED,
    "text": np.array([["a", "b"]]),
    "bytes": np.array([[b"a", b"b"]]),
    "complex": np.zeros((1, 16, 8), np.complex64),
    "bool": np.zeros((1, 16, 8), np.bool_),
    "dates": np.zeros((1, 16, 8), "datetime64[s]"),
    "long double": np.zeros((1, 16, 8), np.longdouble),
    "big-endian": np.zeros((1, 16, 8), ">f4"),
    "scalar": np.float32(1.0),
    "no rows": np.zeros((0, 16, 8), np.float32),
    "no numbers": np.zeros((1, 0, 0), np.float32),
    "many axes": np.zeros((1,) * 32, np.float32),
    "NaN": np.full((1, 16, 8), np.nan, np.float32),
    "infinity": np.full((1, 16, 8), np.inf, np.float32),
    "void": np.zeros((2, 2), "V8"),
    "half": np.full((1, 16, 8), 6e4, np.float16),
    "unsigned": np.full((1, 16, 8), 2**64 - 1, np.uint64),
}


@pytest.mark.parametrize("kind", one_of(ARRAYS, "objects"))
@pytest.mark.parametrize(
    "where", ["npz", *(pytest.param(k, marks=pytest.mark.stress) for k in ("folder", "ids", "memory"))]
)
def test_odd_arrays(kind, where, recorded, tmp_path):
    import sam3lite_convert as s3

    checkpoint, tensors, _ = recorded
    name = next(n for n in tensors if "layers" in n)
    array = ARRAYS[kind]
    if where == "memory":
        try:
            s3.judge_activations({name: array}, s3.open_checkpoint(str(checkpoint)), name="x")
        except s3.Sam3LiteError as fault:
            assert fault.message
        return
    if where == "npz":
        file = tmp_path / "x.npz"
        np.savez(file, **{name: array})
    elif where == "folder":
        file = tmp_path / "x"
        file.mkdir()
        np.save(file / f"{name}.npy", array)
    else:
        file = tmp_path / "ids.npy"
        np.save(file, array)
        save_file({name: tensors[name]}, tmp_path / "x.safetensors")
        done = sam3lite("judge", tmp_path / "x.safetensors", checkpoint, "--name", "x", "--ids", file, "--json")
        assert done.code in (0, 1, 2, 4) and "Traceback" not in done.err, done
        return
    held(file, checkpoint)


IDS = (
    deep(100_000), str(HUGE), f"[[{HUGE}]]", "[[1e400]]", "[[1.5]]", "[[NaN]]", "[[-1]]", "[[99999999999]]", "[]",
    "[[]]", "[[1],[1,2]]", '["a"]', "null", "{}", '{"ids": null}', "[[true]]", "[[null]]", '"\\ud800"', "", "\0",
    "[[49406]]" * 2,
)  # fmt: skip


@pytest.mark.parametrize(
    "number", [pytest.param(i, marks=() if i == 2 else pytest.mark.stress) for i in range(len(IDS))]
)
def test_odd_ids(number, recorded, tmp_path):
    checkpoint, tensors, _ = recorded
    name = next(n for n in tensors if "layers" in n)
    save_file({name: tensors[name]}, tmp_path / "x.safetensors")
    (tmp_path / "ids.json").write_text(IDS[number])
    done = sam3lite(
        "judge", tmp_path / "x.safetensors", checkpoint, "--name", "x", "--ids", tmp_path / "ids.json", "--json"
    )
    assert done.code in (0, 1, 2, 4) and "Traceback" not in done.err, done
    if done.code >= 2:
        assert done.json["error"]["code"] not in ("internal", "unforeseen")
        assert len(done.json["error"]["message"]) < 4000
