"""The shortest code that reproduces the original's text features, and its detections, with the released library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sam3lite_convert.convert.processor_files import DEFAULT_TOKENIZER
from sam3lite_convert.plan.families import Family
from sam3lite_convert.quoting import python_text

if TYPE_CHECKING:
    from torch import Tensor

_LOADING = """\
import html

import ftfy
import torch
from transformers import AutoTokenizer, {model}

tokenizer = AutoTokenizer.from_pretrained({tokenizer})
model = {model}.from_pretrained({place}).eval()
model.text_encoder.set_attn_implementation("eager")  # rounds as the original does; the rest keeps its faster attention
prompts = ["a dog"]
"""
_OPENING = """\
picture = np.array(Image.open("picture.jpg").convert("RGB"))  # (height, width, 3)
"""
# For a config.json that leaves the eps of the vision trunk to the library, or states another, alone.
_NORMS = """\
for module in model.vision_encoder.backbone.modules():
    if isinstance(module, torch.nn.LayerNorm):
        module.eps = 1e-5  # the original's; the library's default is 1e-6
"""
# ``Detecting`` and the tests execute exactly these lines: the first once for a picture, the others for each prompt.
_PICTURE = """\
pixels = torch.from_numpy(picture).permute(2, 0, 1)[None]
size = [model.config.image_size] * 2
pixels = torch.nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True)  # in uint8, as the original
with torch.inference_mode():
    vision_embeds = model.get_vision_features((pixels * (1 / 255) - 0.5) / 0.5)
presence = []  # whether the picture shows such an object: the library clamps this logit, the original does not
model.detr_decoder.presence_head.register_forward_hook(lambda module, inputs, output: presence.append(output))
"""
_DETECT = """\
with torch.inference_mode():
    found = model(
        vision_embeds=vision_embeds,
        text_embeds=text_embeds,  # before transformers 5.9: text_embeds.pooler_output
        attention_mask=input_ids.ne(0).long(),  # padding is masked here
        input_boxes=torch.zeros(1, 1, 4),
        input_boxes_labels=torch.full((1, 1), -10),  # no box, but the class token, which the original always has
    )
scores = found.pred_logits.sigmoid()[0] * presence[-1].sigmoid().flatten()
kept = scores > 0.5
height, width = picture.shape[:2]
boxes = found.pred_boxes[0, kept] * torch.tensor([width, height, width, height])  # x0 y0 x1 y1
masks = found.pred_masks[0, kept, None]
masks = torch.nn.functional.interpolate(masks, (height, width), mode="bilinear")  # logits, as in the original
masks = masks[:, 0] > 0  # (objects, height, width)
"""
# ``run_recipe`` and the tests execute exactly these lines, the first of them for a table with more rows alone.
_CUT = """\
positions = model.text_encoder.embeddings.position_embedding
positions.position_embedding.data = positions.position_embedding.data[:, :, :{rows}]  # the original reads no other rows
"""
_USE = """\
cleaned = [html.unescape(html.unescape(ftfy.fix_text(prompt))) for prompt in prompts]
text = tokenizer(cleaned, padding="max_length", truncation=True, max_length={context}, return_tensors="pt")
input_ids = text.input_ids.masked_fill(text.attention_mask == 0, 0)  # the original pads with 0
with torch.inference_mode():
    text_embeds = model.get_text_features(input_ids=input_ids)  # no mask: the original attends to padding
# text_embeds.pooler_output holds the features, (prompts, {context}, width)
"""
_AFTER = """\
# For the detector the mask stays:
# model(pixel_values=pixel_values, text_embeds=text_embeds, attention_mask=input_ids.ne(0).long())
# Before transformers 5.9: text_embeds=text_embeds.pooler_output
"""


_ATTENDED = "# no mask: the original attends to padding"
_CAUSAL = "# no mask: attention is causal, so no word reads padding"


PLACEHOLDER = "FOLDER-OF-THE-DETECTOR"  # printed if no folder in the layout transformers was given


def recipe(family: Family, context: int, place: str, own_tokenizer: bool = True, rows: int | None = None) -> str:
    """The code for a checkpoint of this family that is called with this context.

    place: the folder or repository of the model.
    own_tokenizer: whether ``place`` holds tokenizer files; if not, the code loads CLIP's tokenizer.
    rows: to cut the position table to, where the folder's has more than the original reads.
    """
    tokenizer = python_text(place if own_tokenizer else DEFAULT_TOKENIZER)
    loading = _LOADING.format(model=family.library.model, tokenizer=tokenizer, place=python_text(place))
    return _commented(f"{loading}\n{_lines(context, rows)}{_AFTER}", family)


def detector_recipe(
    family: Family,
    context: int,
    place: str,
    own_tokenizer: bool = True,
    rows: int | None = None,
    norms: bool = False,
) -> str:
    """The code that finds the objects that one prompt names in a picture, as the original does. It needs torchvision,
    as the model itself does. Arguments as for ``recipe``.

    norms: whether the eps of the vision trunk has to be set, because the folder's config.json does not.
    """
    tokenizer = python_text(place if own_tokenizer else DEFAULT_TOKENIZER)
    loading = _LOADING.format(model=family.library.model, tokenizer=tokenizer, place=python_text(place))
    loading = loading.replace("import torch\n", "import numpy as np\nimport torch\nfrom PIL import Image\n")
    code = f"{loading}{_OPENING}\n{_NORMS if norms else ''}{_PICTURE}{_lines(context, rows)}{_DETECT}"
    return _commented(code, family)


def _commented(code: str, family: Family) -> str:
    """The code with the comment on the mask that is right for the family."""
    return code.replace(_ATTENDED, _CAUSAL) if family.causal else code


class Detecting:
    """Runs the printed lines of ``detector_recipe`` on one picture."""

    def __init__(
        self, context: int, tokenizer: Any, model: Any, picture: Any, rows: int | None = None, norms: bool = False
    ) -> None:
        """Encode the picture.

        model: loaded, its text encoder with eager attention. picture: array (height, width, 3), uint8.
        """
        import html

        import ftfy
        import torch
        import transformers

        self._names: dict[str, Any] = {
            "html": html, "ftfy": ftfy, "torch": torch, "tokenizer": tokenizer, "model": model, "picture": picture,
        }  # fmt: skip
        lines = _lines(context, rows) + _DETECT
        major, minor = map(int, transformers.__version__.split(".")[:2])
        if (major, minor) < (5, 9):  # as the code itself says
            lines = lines.replace("text_embeds=text_embeds,", "text_embeds=text_embeds.pooler_output,")
        self._lines = lines
        exec((_NORMS if norms else "") + _PICTURE, self._names)  # lines of this module  # nosec B102

    def __call__(self, prompt: str) -> dict[str, Any]:
        """The names that the lines set: ``found``, the model's output; ``scores`` of all queries; ``kept``, the
        queries above the threshold; their ``boxes`` in pixels; their ``masks``."""
        names = self._names | {"prompts": [prompt]}
        exec(self._lines, names)  # lines of this module  # nosec B102
        return names


def _lines(context: int, rows: int | None) -> str:
    return (_CUT.format(rows=rows) if rows is not None else "") + _USE.format(context=context)


def run_recipe(
    context: int, tokenizer: Any, model: Any, prompts: Sequence[str], rows: int | None = None
) -> tuple[Tensor, Tensor]:
    """Run the printed lines; returns the input ids (batch, context) and the features (batch, context, output_dim).

    model: a loaded model, its text encoder with eager attention. ``rows``: as in ``recipe``; the model's table stays
    cut.
    """
    import html

    import ftfy
    import torch

    names: dict[str, Any] = {
        "html": html, "ftfy": ftfy, "torch": torch, "tokenizer": tokenizer, "model": model, "prompts": list(prompts),
    }  # fmt: skip
    exec(_lines(context, rows), names)  # lines of this module  # nosec B102
    return names["input_ids"], names["text_embeds"].pooler_output
