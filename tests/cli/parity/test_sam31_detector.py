"""sam3lite parity --component detector of SAM3.1: the level of the neck that is filled changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.families import write
from support.folders import convert, edit, sam3lite

SMALL = ("--component", "detector", "--size", 56, "--json")
FILLED = [f"vision_encoder.neck.fpn_layers.3.{layer}.{p}" for layer in ("proj1", "proj2") for p in ("weight", "bias")]
SHAPES = [(16, 64, 1, 1), (16,), (16, 16, 3, 3), (16,)]


@pytest.mark.parametrize("candidate", ["packed", pytest.param("transformers", marks=pytest.mark.stress)])
def test_the_filled_level_is_thrown_away(candidate: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    checkpoint = write(tmp_path / "in.pt", "s0-3.1")
    folder = convert(checkpoint, tmp_path / "out", "--layout", candidate)
    right = sam3lite("parity", checkpoint, "--converted", folder, *SMALL)
    assert (right.code, right.json["verdict"]) == (0, "within_tolerance"), right
    edit(folder, {key: torch.randn(shape) for key, shape in zip(FILLED, SHAPES, strict=True)})
    other = sam3lite("parity", checkpoint, "--converted", folder, *SMALL)
    assert (other.code, other.json["verdict"]) == (0, "within_tolerance"), other
    errors = [{tap["name"]: tap["max_abs_diff"] for tap in run.json["layers"]} for run in (right, other)]
    assert errors[0] == errors[1]
    # Of a level that is read, the same change is a difference.
    edit(folder, {FILLED[0].replace("layers.3", "layers.2"): torch.randn(SHAPES[0])})
    assert sam3lite("parity", checkpoint, "--converted", folder, *SMALL).code == 1
