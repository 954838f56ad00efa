"""The released library's detector around the tiny weights of the goldens, by way of the project's own plan."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from support.detector_goldens import HEADS, Case
from support.folders import write_safetensors
from torch import Tensor

from sam3lite_convert.checkpoint.reader import read_checkpoint
from sam3lite_convert.convert.config import make_config
from sam3lite_convert.convert.text_weights import planned_tensors
from sam3lite_convert.parity.detector.stock import stock_detector
from sam3lite_convert.plan.plan import Options, Plan, make_plan
from sam3lite_convert.plan.tables import load_mappings

_PARTS = {"geometry": "geometry_encoder_config", "encoder": "detr_encoder_config", "mask": "mask_decoder_config"}


class Converted(NamedTuple):
    """A golden's weights in the transformers layout."""

    plan: Plan
    config: Any
    weights: dict[str, Tensor]

    def model(self, **options: Any) -> Any:
        return stock_detector(self.plan.layout.family, self.config, self.weights, torch.float32, **options)


def converted(golden: Case) -> Converted:
    """The tiny detector converted. No weight tells its heads, which are not those of any released detector."""
    with tempfile.TemporaryDirectory() as place:
        path = write_safetensors(Path(place), golden.weights())
        plan = make_plan(read_checkpoint(path), load_mappings(), Options(layout="transformers"))
        config, weights = make_config(plan), planned_tensors(plan)
    for part, name in _PARTS.items():
        own = config[name]
        assert isinstance(own, dict)
        own["num_attention_heads"] = HEADS[part]
    return Converted(plan, config, weights)
