"""One storage to which the pickle gives two meanings: torch takes the first, so the file is refused."""

from __future__ import annotations

import pytest
import torch
from support.checkpoints import assert_index_is, refused, saved
from support.folders import python
from support.hostile import integer, pickled, state, tensor, text

from sam3lite_convert.checkpoint.torch_legacy import LEGACY_MAGIC


def stream(path, pickle: bytes, storages: list[str], nbytes: int = 48):
    """A file in the older format; each storage has 12 elements of 4 bytes."""
    keys = b"\x80\x02](" + b"".join(map(text, storages)) + b"e."
    stored = (12).to_bytes(8, "little") + bytes(range(nbytes))
    path.write_bytes(LEGACY_MAGIC[0] + b"\x80\x02M\xe9\x03." + b"\x80\x02}." + pickle + keys + stored * len(storages))
    return path


def test_torch_does_not_write_such_a_file(tmp_path):
    whole = torch.arange(6.0)
    for legacy in (False, True):
        with pytest.raises(RuntimeError, match="as different types"):
            saved(tmp_path, {"a": whole, "b": whole.view(torch.int32)}, legacy)


TYPES = [("FloatStorage", "IntStorage"), ("IntStorage", "FloatStorage"), ("HalfStorage", "ShortStorage")]
TYPES += [("FloatStorage", "DoubleStorage"), ("ByteStorage", "BoolStorage"), ("UntypedStorage", "FloatStorage")]
TYPES += [("QInt8Storage", "CharStorage")]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("types", TYPES, ids=lambda t: " then ".join(t))
def test_one_storage_under_two_element_types_is_refused(types, legacy, tmp_path):
    part = b"N" * legacy
    storages = [
        b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text("0") + text("cpu") + integer(4) + part + b"tQ"
        for kind in types
    ]
    weights = text("model"), b"}" + text("a.w") + tensor((2,), (1,), types[1], numel=4, part=part) + b"s"
    for content in (
        state(text("rest"), storages[0], *weights),
        state(*weights, text("rest"), storages[0]),
        state(*weights, text("rest"), storages[1], text("more"), storages[0]),
    ):
        path = stream(tmp_path / "a.pt", content, ["0"]) if legacy else pickled(tmp_path / "a.pt", content)
        fault = refused(path)
        assert fault.code == "storage_of_two_kinds" and "two element types" in fault.message
        assert "save a .clone()" in fault.message


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_torch_reads_the_second_as_the_first(legacy, tmp_path):
    part = b"N" * legacy
    content = state(text("a.w"), tensor(part=part), text("b.w"), tensor(kind="IntStorage", part=part))
    path = stream(tmp_path / "a.pt", content, ["0"]) if legacy else pickled(tmp_path / "a.pt", content)
    assert torch.load(path)["b.w"].dtype == torch.float32
    refused(path)


def test_a_storage_of_bytes_may_be_read_as_any_type(tmp_path):
    # torch writes these through the untyped storage, and says the type of each tensor.
    whole = torch.arange(16, dtype=torch.uint8)
    tensors = {"a": whole.view(torch.uint16), "b": whole.view(torch.float8_e5m2), "c": whole}
    path = saved(tmp_path, tensors)
    assert_index_is(path, torch.load(path))


def part(name: str, offset: int, numel: int = 4) -> bytes:
    return b"(" + text(name) + integer(offset) + integer(numel) + b"t"


def parts(tmp_path, *made: tuple[str, bytes], storages: tuple[str, ...] = ("0",)):
    tensors = [tensor((4,), (1,), key=key, part=place) for key, place in made]
    content = state(*(each for n, one in enumerate(tensors) for each in (text(f"t{n}.w"), one)))
    return stream(tmp_path / "a.pt", content, list(storages))


def test_parts_of_a_storage_are_read_as_torch_reads_them(tmp_path):
    path = parts(tmp_path, ("0", part("v", 2)), ("0", part("v", 2)), ("0", part("u", 6)), ("0", b"N"))
    assert_index_is(path, torch.load(path))


@pytest.mark.parametrize(
    "made",
    [
        [("0", part("v", 2)), ("0", part("v", 3))],
        [("0", part("v", 2)), ("1", part("v", 2))],
        [("0", part("v", 2)), ("0", part("v", 2, 5))],
        [("0", b"N"), ("1", part("0", 2))],
        [("1", part("0", 2)), ("0", b"N")],
        [("0", part("0", 2))],
    ],
)
def test_a_part_that_stands_at_two_places_is_refused(made, tmp_path):
    fault = refused(parts(tmp_path, *made, storages=("0", "1")))
    assert fault.code == "storage_of_two_kinds"


def test_what_rebuilds_a_tensor_is_checked_without_assertions_too(tmp_path):
    call = b"ctorch._tensor\n_rebuild_from_type_v2\n(" + b"N" + b"ctorch\nTensor\n" + b")}tR"
    path = pickled(tmp_path / "a.pt", state(text("w"), call))
    assert "no function" in refused(path).message
    code = f"""
import sys
from pathlib import Path
from sam3lite_convert.checkpoint.reader import read_checkpoint
from sam3lite_convert.errors import Untrusted
try:
    read_checkpoint(Path({str(path)!r}))
except Untrusted as fault:
    print(fault.code, sys.flags.optimize, fault.message)
"""
    assert python("-O", "-c", code).stdout.startswith("corrupt_file 1 a.pt: a tensor of the file is made by")
