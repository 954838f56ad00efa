"""NaN and infinity in weights: found by name and count, in every format and dtype, and refused if asked."""

from __future__ import annotations

import pytest
import torch
from support.folders import ENCODER, TRUNK, convert, receipt, sam3lite, snapshot, tiny_state, write, write_safetensors

from sam3lite_convert.checkpoint import dtypes
from sam3lite_convert.checkpoint.nonfinite import not_finite
from sam3lite_convert.checkpoint.reader import read_checkpoint

KEY = ENCODER + "final_layer_norm.weight"
OTHER = TRUNK + "blocks.0.attn.qkv.weight"


def spoilt() -> dict[str, torch.Tensor]:
    """Three values of one tensor and one of another that a split takes apart."""
    state = tiny_state()
    state[KEY] = state[KEY].clone()
    state[KEY][:3] = torch.tensor([float("inf"), float("-inf"), float("nan")])
    state[OTHER] = state[OTHER].clone()
    state[OTHER][-1, -1] = float("nan")
    return state


FOUND = {KEY: {"nan": 1, "infinite": 2}, OTHER: {"nan": 1, "infinite": 0}}


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_they_are_reported_by_name_and_count(form, tmp_path):
    if form == "safetensors":
        path = write_safetensors(tmp_path, spoilt())
    else:
        path = tmp_path / "a.pt"
        torch.save({"model": spoilt()}, path, _use_new_zipfile_serialization=form == "zip")
    done = sam3lite("convert", "--checkpoint", path, "--output", tmp_path / "out")
    assert done.code == 0
    assert (
        f"note: the checkpoint holds NaN or infinity, which are kept: {KEY}: 1 NaN and 2 infinite; {OTHER}: "
        in done.out
    )
    assert receipt(tmp_path / "out")["nonfinite"] == FOUND


def test_they_are_refused_if_asked_and_nothing_is_written(tmp_path):
    path = write(tmp_path, spoilt())
    options = ["--checkpoint", path, "--output", tmp_path / "out", "--fail-on-nonfinite"]
    done = sam3lite("convert", *options, "--json")
    assert (done.code, done.json["error"]["code"]) == (1, "not_finite")
    assert done.json["error"]["details"] == FOUND and KEY in done.json["error"]["message"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name]
    # What was converted before is not passed off as sound, and stays.
    convert(path, tmp_path / "out")
    before = snapshot(tmp_path / "out")
    assert sam3lite("convert", *options).code == 1
    assert snapshot(tmp_path / "out") == before


def test_a_dry_run_reads_no_values_so_it_cannot_say(tmp_path):
    path = write(tmp_path, tiny_state())
    done = sam3lite("convert", "--checkpoint", path, "--dry-run", "--fail-on-nonfinite")
    assert done.code == 2 and "--dry-run cannot be combined with --fail-on-nonfinite" in done.err


def test_finite_weights_pass_and_dropped_tensors_do_not_count(tmp_path):
    state = tiny_state()
    dropped = next(k for k in state if k.startswith("tracker.") and state[k].is_floating_point())
    state[dropped] = torch.full_like(state[dropped], float("nan"))
    folder = convert(write(tmp_path, state), tmp_path / "out", "--fail-on-nonfinite")
    assert receipt(folder)["nonfinite"] == {}


def test_an_earlier_folder_survives_a_cast_that_overflows(tmp_path):
    good = write(tmp_path, tiny_state(), "good.pt")
    folder = convert(good, tmp_path / "out", "--dtype", "float16")
    before = snapshot(folder)
    bad = write(tmp_path, tiny_state() | {KEY: torch.full_like(tiny_state()[KEY], 7e4)}, "bad.pt")
    options = ["--checkpoint", bad, "--output", folder, "--dtype", "float16", "--overwrite"]
    done = sam3lite("convert", *options, "--json")
    assert (done.code, done.json["error"]["code"]) == (1, "overflow")
    assert done.json["error"]["details"] == {"text_encoder.final_layer_norm.weight": {"values": 128, "largest": 7e4}}
    assert snapshot(folder) == before
    assert sam3lite("convert", *options, "--allow-overflow").code == 0


FLOAT8 = [d for d in dtypes.FLOAT8 if hasattr(torch, d)]  # the lowest torch lacks float8_e8m0fnu
NUMBERS = ["float64", "float32", "float16", "bfloat16", "complex32", "complex64", "complex128"]


@pytest.mark.parametrize("dtype", [*NUMBERS, *FLOAT8])
def test_every_dtype_is_counted_as_torch_counts_it(dtype, tmp_path):
    generator = torch.Generator().manual_seed(0)
    if dtype.startswith("float8"):
        tensor = torch.randint(0, 256, (1000,), generator=generator, dtype=torch.uint8).view(getattr(torch, dtype))
        wide = tensor.float()
    else:
        wide = torch.randn(1000, generator=generator)
        wide[::7] = float("inf")
        wide[3::11] = float("nan")
        wide[5::13] = float("-inf")
        tensor = wide.to(getattr(torch, dtype))
    torch.save({"a": tensor, "sound": torch.ones(5)}, tmp_path / "a.pt")
    checkpoint = read_checkpoint(tmp_path / "a.pt")
    found = not_finite(checkpoint, checkpoint.tensors.values())
    assert list(found) == ["a"]
    assert found["a"].to_json() == {"nan": int(wide.isnan().sum()), "infinite": int(wide.isinf().sum())}
    assert not_finite(checkpoint, [checkpoint.tensors["sound"]]) == {}


def test_a_strided_tensor_and_one_that_spans_pieces(tmp_path):
    big = torch.zeros(700_000)
    big[[0, 262_143, 262_144, 699_999]] = float("inf")
    square = torch.zeros(8, 8)
    square[2, 5] = float("nan")
    torch.save({"big": big, "turned": square.T, "same": big}, tmp_path / "a.pt")
    checkpoint = read_checkpoint(tmp_path / "a.pt")
    found = not_finite(checkpoint, checkpoint.tensors.values())
    assert {key: c.to_json() for key, c in found.items()} == {
        "big": {"nan": 0, "infinite": 4},
        "turned": {"nan": 1, "infinite": 0},
        "same": {"nan": 0, "infinite": 4},
    }
