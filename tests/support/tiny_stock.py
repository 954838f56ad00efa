"""The released library's detector around the tiny weights of the goldens, by way of the project's own plan."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from support.detector_goldens import HEADS, ROWS, Case
from support.folders import write_safetensors
from torch import Tensor

from sam3lite_convert.checkpoint.reader import read_checkpoint
from sam3lite_convert.convert.config import make_config
from sam3lite_convert.convert.text_weights import planned_tensors
from sam3lite_convert.parity.detector.stock import stock_detector, text_argument
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


def outputs(model: Any, golden: Case) -> dict[str, Tensor]:
    """Its results under the goldens' names, called as the original is: no mask in the text encoder, a class token."""
    given = golden.inputs()
    ids, image = given["input_ids"], given["image"]
    if golden.context < ROWS:
        table = model.text_encoder.embeddings.position_embedding.position_embedding
        table.data = table.data[:, :, : golden.context]
    boxes, labels = given.get("boxes"), given.get("box_labels")
    if boxes is None or labels is None:
        boxes, labels = torch.zeros(len(ids), 1, 4), torch.full((len(ids), 1), -10)
    if "box_mask" in given:
        labels = labels.masked_fill(given["box_mask"], -10)
    rows = given.get(
        "image_ids", torch.arange(len(ids)) if len(image) > 1 else torch.zeros(len(ids), dtype=torch.int64)
    )
    with torch.inference_mode():
        out = model(
            pixel_values=image[rows],
            text_embeds=text_argument(model.get_text_features(input_ids=ids)),
            attention_mask=ids.ne(0).long(),
            input_boxes=boxes,
            input_boxes_labels=labels,
        )
    return {
        "output.pred_logits": out.pred_logits[..., None],
        "output.pred_boxes_xyxy": out.pred_boxes,
        "output.presence_logit_dec": out.presence_logits,
        "output.pred_masks": out.pred_masks,
        "output.semantic_seg": out.semantic_seg,
    }
