"""A small packed folder and its model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.folders import convert, edit_config, tiny_state, write_safetensors

from sam3lite_convert.packed_detector import PackedModel


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole detector, packed, with other heads in every part than in the next; read only."""
    root = tmp_path_factory.mktemp("detector")
    folder = convert(write_safetensors(root, tiny_state()), root / "out")
    for part, heads in (("geometry_encoder", 1), ("detr_encoder", 4), ("mask_decoder", 16)):
        edit_config(folder, f"{part}_config", "num_attention_heads", value=heads)
    return folder


@pytest.fixture(scope="session")
def model(good: Path) -> PackedModel:
    with torch.inference_mode(False):
        return PackedModel.from_pretrained(good)
