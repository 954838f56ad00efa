"""An activation in a few numbers, against the formula that the recorded activations of the released weights state."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
import torch

from sam3lite_convert.parity.compact import COUNT, CompactTap, compact, positions


@pytest.mark.parametrize(("variant", "tap", "numel"), [("s0", "layers.0", 8192), ("l", "projected_at_end_token", 256)])
def test_positions_follow_from_both_names_and_the_size(variant, tap, numel):
    seed = zlib.crc32(f"{variant}.{tap}".encode())
    assert (
        list(positions(tap, numel, variant))
        == np.random.Generator(np.random.PCG64(seed)).integers(0, numel, 64).tolist()
    )
    assert positions(tap, numel, "other") != positions(tap, numel, variant) != positions("pooled", numel, variant)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_numbers_are_those_of_numpy(dtype):
    tensor = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = compact("layers.1", tensor.transpose(0, 1), "s1")  # in the order of the shape, not of memory
    flat = tensor.double().numpy().swapaxes(0, 1).reshape(-1)
    assert found.shape == (16, 2, 8) and found.max_abs == np.abs(flat).max()
    assert found.l2 == pytest.approx(np.linalg.norm(flat), rel=1e-15)
    assert list(found.values) == flat[list(found.positions)].tolist() and len(found.values) == COUNT


def test_what_is_not_finite_stays_so_and_survives_json():
    found = compact("pooled", torch.tensor([math.nan, math.inf]), "s0")
    assert math.isnan(found.l2) and {str(v) for v in found.values} == {"nan", "inf"}
    right = compact("pooled", torch.tensor([1.0, -2.0]), "s0")
    assert CompactTap.from_json(right.to_json()) == right and right.max_abs == 2.0


def test_an_empty_tensor_has_no_values():
    with pytest.raises(ValueError, match="high"):
        compact("pooled", torch.zeros(0), "s0")
