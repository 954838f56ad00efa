"""Moving bytes: the same result whatever the file system can do and wherever a chunk ends."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support.folders import (
    ENCODER,
    LAYOUTS,
    QKV,
    assert_proven,
    convert,
    flip_bit,
    oracle,
    overwrite_bytes,
    raw,
    record_offset,
    sam3lite,
    snapshot,
    tensors,
    tiny_state,
    verify,
    write,
    write_safetensors,
)  # fmt: skip

from sam3lite_convert.checkpoint import tensor_reader
from sam3lite_convert.checkpoint.dtypes import FLOATING, safetensors_code
from sam3lite_convert.checkpoint.tensor_reader import ranges
from sam3lite_convert.commands import sources
from sam3lite_convert.convert import tensor_bytes
from sam3lite_convert.convert import write as conversion
from sam3lite_convert.convert.tensor_bytes import CastLoss, cast
from sam3lite_convert.plan import twins
from sam3lite_convert.verify import verify as verification


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write(tmp_path_factory.mktemp("tiny"), tiny_state())


@pytest.fixture(scope="module")
def plain(tiny, tmp_path_factory):
    root = tmp_path_factory.mktemp("plain")
    return {layout: convert(tiny, root / layout, "--layout", layout) for layout in LAYOUTS}


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks that end inside of tensors and records, at a multiple of every element width."""
    monkeypatch.setattr(tensor_reader, "CHUNK", 1008)
    monkeypatch.setattr(verification, "CHUNK", 1008)
    monkeypatch.setattr(tensor_bytes, "_COPY_CHUNK", 1001)
    for function in (tensor_reader.ranges, tensor_bytes.source_chunks):
        defaults = tuple(1008 if d == 4 << 20 else d for d in function.__defaults__)
        monkeypatch.setattr(function, "__defaults__", defaults)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_small_chunks_make_the_same_folder(layout, tiny, plain, tmp_path, small_chunks):
    folder = convert(tiny, tmp_path / "out", "--layout", layout)
    assert snapshot(folder) == snapshot(plain[layout])
    assert_proven(folder, tiny)


def test_small_chunks_of_a_folder_whose_parts_are_joined_make_the_same(plain, tmp_path, small_chunks):
    folder = convert(plain["transformers"], tmp_path / "out", "--layout", "packed")
    found, wanted = tensors(folder), tensors(plain["packed"])
    assert found.keys() == wanted.keys()
    assert all(torch.equal(t, wanted[k]) for k, t in found.items())
    assert_proven(folder, plain["transformers"])


def test_small_chunks_cast_the_same(tiny, tmp_path, small_chunks):
    folder = convert(tiny, tmp_path / "out", "--component", "text", "--dtype", "float16")
    wanted = {k: t.half() for k, t in oracle("packed", tiny_state()).items() if t.is_floating_point()}
    found = {k: t for k, t in tensors(folder).items() if t.is_floating_point()}
    assert all(torch.equal(t, wanted[k]) for k, t in found.items())
    assert_proven(folder, tiny)


def test_small_chunks_find_a_damaged_record(tiny, tmp_path, small_chunks):
    path = shutil.copyfile(tiny, tmp_path / "bad.pt")
    offset = record_offset(path, raw(tiny_state()[QKV])) + 150_000
    overwrite_bytes(path, offset, bytes([path.read_bytes()[offset] ^ 128]))
    assert sam3lite("convert", "--checkpoint", path, "--output", tmp_path / "out").code == 4


def test_small_chunks_find_a_flipped_bit(tiny, plain, tmp_path, small_chunks):
    from support.folders import edit

    folder = shutil.copytree(plain["packed"], tmp_path / "out")
    key = "text_encoder.layers.1.attention.in_proj_weight"
    edit(folder, {key: flip_bit(tensors(folder)[key], 40_000)})
    assert [m["key"] for m in verify(folder, tiny).json["mismatched"]] == [key]


def refusing(*arguments):
    raise OSError(errno.EXDEV, "Invalid cross-device link")


def half_way(real):
    """A file system that copies a little, then no more."""

    def copy(source, target, count, *offsets):
        done.append(count)
        return real(source, target, min(count, 4096), *offsets) if len(done) % 2 else 0

    done: list[int] = []
    return copy


@pytest.mark.parametrize("kind", ["absent", "refuses", "answers 0", "stops half way", "copies little"])
def test_without_help_of_the_kernel_the_folder_is_the_same(kind, tiny, plain, tmp_path, monkeypatch):
    real = os.copy_file_range
    if kind == "absent":
        monkeypatch.delattr(os, "copy_file_range")
    else:
        function = {
            "refuses": refusing,
            "answers 0": lambda *a: 0,
            "stops half way": half_way(real),
            "copies little": lambda s, t, n, *o: real(s, t, min(n, 5000), *o),
        }[kind]
        monkeypatch.setattr(os, "copy_file_range", function)
    folder = convert(tiny, tmp_path / "out", "--layout", "transformers")
    assert snapshot(folder) == snapshot(plain["transformers"])


def test_a_full_disk_is_not_tried_again_another_way(tiny, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "copy_file_range", full)
    done = sam3lite("convert", "--checkpoint", tiny, "--output", tmp_path / "out")
    assert done.code == 2
    assert "No space left" in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_shrinks_while_it_is_read_is_not_trusted(tiny, tmp_path, monkeypatch):
    path = shutil.copyfile(tiny, tmp_path / "tiny.pt")
    real = twins.check_twins

    def cut(*arguments):
        os.truncate(path, path.stat().st_size // 2)
        real(*arguments)

    monkeypatch.setattr("sam3lite_convert.convert.write.check_twins", cut)
    assert sam3lite("convert", "--checkpoint", path, "--output", tmp_path / "out").code == 4
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.pt"]


def overwritten(path: Path) -> None:
    """The same size, other weights."""
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(100_000))


def overwritten_with_its_time(path: Path) -> None:
    before = path.stat()
    overwritten(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def exchanged(path: Path) -> None:
    shutil.copyfile(path, path.with_name("other"))
    os.replace(path.with_name("other"), path)


def exchanged_and_back(path: Path) -> None:
    shutil.copyfile(path, path.with_name("other"))
    os.rename(path, path.with_name("kept"))
    os.rename(path.with_name("other"), path)
    os.replace(path.with_name("kept"), path)


def gone(path: Path) -> None:
    path.unlink()


def at_a_moment(monkeypatch: pytest.MonkeyPatch, moment: str, change: Callable[[], object]) -> None:
    """Something happens to the source when the step with this name is done."""
    module = sources if moment == "read_checkpoint" else conversion
    real = getattr(module, moment)

    def meanwhile(*arguments):
        result = real(*arguments)
        change()
        return result

    monkeypatch.setattr(module, moment, meanwhile)


@pytest.mark.parametrize("change", [overwritten, overwritten_with_its_time, exchanged, exchanged_and_back, gone])
@pytest.mark.parametrize("kind", ["zip", "safetensors"])
@pytest.mark.parametrize("moment", ["read_checkpoint", "check_twins", "write_index"])
def test_a_source_that_changes_while_it_is_read_is_not_trusted(moment, kind, change, tiny, tmp_path, monkeypatch):
    path = shutil.copyfile(tiny, tmp_path / "tiny.pt") if kind == "zip" else write_safetensors(tmp_path, tiny_state())
    at_a_moment(monkeypatch, moment, lambda: change(path))
    done = sam3lite("convert", "--checkpoint", path, "--output", tmp_path / "out")
    assert done.code == (2 if change is gone and moment == "read_checkpoint" else 4), done
    assert [p.name for p in tmp_path.iterdir()] == ([] if change is gone else [path.name])


def linked(path: Path) -> None:
    if not path.with_name("backup").exists():
        os.link(path, path.with_name("backup"))


def of_another_mode(path: Path) -> None:
    if not path.stat().st_mode & 1:
        path.chmod(path.stat().st_mode | 1)


@pytest.mark.parametrize("change", [linked, of_another_mode])
@pytest.mark.parametrize("kind", ["zip", "safetensors"])
@pytest.mark.parametrize("moment", ["read_checkpoint", "check_twins", "write_index"])
def test_another_link_or_mode_of_the_source_is_no_change_of_it(moment, kind, change, tiny, tmp_path, monkeypatch):
    path = shutil.copyfile(tiny, tmp_path / "tiny.pt") if kind == "zip" else write_safetensors(tmp_path, tiny_state())
    at_a_moment(monkeypatch, moment, lambda: change(path))
    done = sam3lite("convert", "--checkpoint", path, "--output", tmp_path / "out", "--verify")
    assert done.code == 0, done


def test_a_link_does_not_hide_a_change(tiny, tmp_path, monkeypatch):
    # It explains the time of change, and the time of writing is set back; the hash tells.
    path, real = shutil.copyfile(tiny, tmp_path / "tiny.pt"), conversion.write_index

    def meanwhile(*arguments):
        overwritten_with_its_time(path)
        linked(path)
        return real(*arguments)

    monkeypatch.setattr(conversion, "write_index", meanwhile)
    assert sam3lite("convert", "--checkpoint", path, "--output", tmp_path / "out").code == 4


@pytest.mark.parametrize("command", ["verify", "parity", "restore"])
def test_another_link_meanwhile_stops_no_command(command, tiny, tmp_path, monkeypatch):
    path = shutil.copyfile(tiny, tmp_path / "tiny.pt")
    folder = convert(path, tmp_path / "out")
    real = sources.read_checkpoint

    def meanwhile(*arguments):
        result = real(*arguments)
        linked(path)
        return result

    monkeypatch.setattr(sources, "read_checkpoint", meanwhile)
    arguments = {
        "verify": ["verify", folder, "--checkpoint", path],
        "parity": ["parity", "--checkpoint", path],
        "restore": ["restore", folder, "--checkpoint", path, "--output", tmp_path / "back.pt"],
    }[command]
    assert sam3lite(*arguments).code == 0 and (tmp_path / "backup").exists()


@pytest.mark.parametrize("command", ["verify", "parity"])
def test_a_source_that_changes_while_it_is_compared_is_not_trusted(command, tiny, tmp_path, monkeypatch):
    path = shutil.copyfile(tiny, tmp_path / "tiny.pt")
    folder = convert(path, tmp_path / "out")
    real = sources.read_checkpoint

    def meanwhile(*arguments):
        result = real(*arguments)
        overwritten(path)
        return result

    monkeypatch.setattr(sources, "read_checkpoint", meanwhile)
    arguments = ["verify", folder, "--checkpoint", path] if command == "verify" else ["parity", "--checkpoint", path]
    assert sam3lite(*arguments).code == 4


def test_the_hash_in_the_receipt_is_that_of_the_whole_file(tiny, tmp_path, small_chunks):
    from support.folders import receipt

    folder = convert(tiny, tmp_path / "out")
    assert receipt(folder)["source"]["sha256"] == hashlib.sha256(tiny.read_bytes()).hexdigest()


# ---- small functions ------------------------------------------------------------------------


@given(offset=st.integers(0, 99), nbytes=st.integers(0, 500), step=st.integers(1, 99))
def test_ranges_cover_every_byte_once(offset, nbytes, step):
    covered = [n for start, length in ranges(offset, nbytes, step) for n in range(start, start + length)]
    assert covered == list(range(offset, offset + nbytes))


FLOATS = [dtype for dtype in FLOATING if hasattr(torch, dtype)]  # the lowest torch lacks float8_e8m0fnu


@settings(deadline=None, max_examples=100)
@given(data=st.data(), source=st.sampled_from(FLOATS), target=st.sampled_from(FLOATS))
def test_a_cast_of_any_bits_is_torchs(data, source, target):
    width = torch.empty(0, dtype=getattr(torch, source)).element_size()
    data = data.draw(st.binary(max_size=64).map(lambda b: b[: len(b) // width * width]))
    before = torch.frombuffer(bytearray(data), dtype=getattr(torch, source)) if data else torch.empty(0)
    # Of float8 torch makes NaN of another sign on the straight road, in some of its vector code.
    before = before.float() if "float8" in source + target else before
    wanted = raw(before.to(getattr(torch, target)))
    loss = CastLoss()
    assert cast(data, source, target, loss) == wanted
    assert loss.overflowed_values <= loss.changed_values <= len(data) // width


STORED = [dtype for dtype in FLOATS if safetensors_code(dtype)]


@pytest.fixture(scope="module")
def every_dtype(tmp_path_factory):
    """A text encoder whose matrices have the dtypes in turn."""
    state = {k: t for k, t in tiny_state().items() if k.startswith(ENCODER.removesuffix("encoder."))}
    matrices = [k for k, t in state.items() if t.ndim >= 2]
    state |= {k: state[k].to(getattr(torch, STORED[i % len(STORED)])) for i, k in enumerate(matrices)}
    return write(tmp_path_factory.mktemp("dtypes"), state), state


def stored(file: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Dtype, shape and bytes of every tensor, read here: the lowest safetensors does not know every kind of float8."""
    data = file.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    header.pop("__metadata__", None)
    return {
        key: (entry["dtype"], entry["shape"], data[begin + entry["data_offsets"][0] : begin + entry["data_offsets"][1]])
        for key, entry in header.items()
    }


@pytest.mark.parametrize("dtype", [None, "float32", "float16", "bfloat16"])
def test_every_pair_of_dtypes_is_cast_as_torch_casts_it_and_proven(dtype, every_dtype, tmp_path):
    path, state = every_dtype
    options = ["--dtype", dtype] if dtype else []
    folder = convert(path, tmp_path / "out", "--component", "text", *options)
    assert_proven(folder, path)
    written, wanted = stored(folder / "model.safetensors"), oracle("packed", state)
    assert written.keys() == wanted.keys()
    assert {str(t.dtype).removeprefix("torch.") for t in wanted.values()} >= set(STORED)
    for key, tensor in wanted.items():
        cast = tensor.to(getattr(torch, dtype)) if dtype and tensor.is_floating_point() else tensor
        code = safetensors_code(str(cast.dtype).removeprefix("torch."))
        assert written[key] == (code, list(cast.shape), raw(cast)), key


@pytest.mark.parametrize("kind", [kind for kind in FLOATS if kind not in STORED])
def test_a_dtype_that_no_folder_holds_is_refused_and_can_be_cast(kind, every_dtype, tmp_path):
    state = {k: t.to(getattr(torch, kind)) if t.is_floating_point() else t for k, t in every_dtype[1].items()}
    path = write(tmp_path, state)
    done = sam3lite("convert", path, "--component", "text", "--output", tmp_path / "out")
    assert done.code == 3 and kind in done.err and "--dtype float32" in done.err and done.err.count("\n") < 4
    assert_proven(convert(path, tmp_path / "out", "--component", "text", "--dtype", "float16"), path)


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2"])
def test_a_folder_that_somebody_cast_to_float8_is_proven_up_to_the_cast(kind, every_dtype, tmp_path):
    path = write(tmp_path, {k: t.float() if t.is_floating_point() else t for k, t in every_dtype[1].items()})
    folder = convert(path, tmp_path / "out", "--component", "text")
    (folder / "conversion.json").unlink()
    small = {k: t.to(getattr(torch, kind)) if t.is_floating_point() else t for k, t in tensors(folder).items()}
    save_file(small, folder / "model.safetensors", metadata={"format": "pt"})
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"dtype": "float32"', f'"dtype": "{kind}"'))
    assert assert_proven(folder, path)["lost"]["cast"]["dtype"] == kind
    key = next(k for k, t in small.items() if t.ndim == 2)
    small[key].view(torch.uint8)[0, 0] ^= 1
    save_file(small, folder / "model.safetensors", metadata={"format": "pt"})
    assert [m["key"] for m in verify(folder, path).json["mismatched"]] == [key]


def test_a_folder_in_which_only_the_matrices_were_cast_is_told_once_and_with_its_values(every_dtype, tmp_path):
    state = {k: t.float() if t.is_floating_point() else t for k, t in tiny_state().items()}
    path = write(tmp_path, state)
    folder = convert(path, tmp_path / "out")
    (folder / "conversion.json").unlink()
    mixed = {k: t.to(torch.float8_e4m3fn) if t.ndim >= 2 else t for k, t in tensors(folder).items()}
    key = next(k for k, t in mixed.items() if t.ndim == 2)
    mixed[key] = torch.zeros_like(mixed[key].float()).to(torch.float8_e4m3fn)
    save_file(mixed, folder / "model.safetensors", metadata={"format": "pt"})
    record = verify(folder, path).json
    small = [k for k, t in mixed.items() if t.dtype == torch.float8_e4m3fn]
    differ = [f for f in record["findings"] if f["code"] == "V-DTYPE"]
    assert sorted(k for f in differ for k in f["keys"]) == sorted(small)
    cast = "is float8_e4m3fn; the rest of the folder is float32. Its values are the source's, cast to that"
    assert {f["cause"] for f in differ if key not in f["keys"]} == {cast}
    (other,) = [f["cause"] for f in differ if key in f["keys"]]
    assert other.endswith("Its values are not the source's either, cast to that")
    assert record["summary"].startswith(
        f"{len(small)} of {len(mixed)} tensors differ, of another dtype than the rest; the"
    )
    shown = sam3lite("verify", folder, "--checkpoint", path)
    assert shown.code == 1 and shown.out.count("\n") <= 25 and max(map(len, shown.out.splitlines())) < 300


def test_what_overflows_a_float8_without_infinity_is_named():
    """Which of these saturate and which become NaN differs between versions of torch."""
    values = torch.tensor([1.0, 1e5, -1e6, float("nan")])
    loss = CastLoss()
    made = values.to(torch.float8_e4m3fnuz)
    assert cast(raw(values), "float32", "float8_e4m3fnuz", loss, "w") == raw(made)
    lost = int(made.float().isnan().sum()) - 1
    assert loss.overflowed_values == lost and loss.changed_values == 2
    assert loss.overflows == ({"w": (2, 1e6)} if lost else {})
