"""The shortest code that reproduces the original's text features with the released library."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sam3lite_convert.convert.processor_files import DEFAULT_TOKENIZER
from sam3lite_convert.plan.families import Family

if TYPE_CHECKING:
    from torch import Tensor

_LOADING = """\
import html

import ftfy
import torch
from transformers import AutoTokenizer, {model}

tokenizer = AutoTokenizer.from_pretrained({tokenizer})
model = {model}.from_pretrained({place}, attn_implementation="eager").eval()
prompts = ["a dog"]
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


PLACEHOLDER = "FOLDER-OF-THE-DETECTOR"  # printed if no folder in the layout transformers was given


def recipe(family: Family, context: int, place: str, own_tokenizer: bool = True, rows: int | None = None) -> str:
    """The code for a checkpoint of this family that is called with this context.

    place: the folder or repository of the model.
    own_tokenizer: whether ``place`` holds tokenizer files; if not, the code loads CLIP's tokenizer.
    rows: to cut the position table to, where the folder's has more than the original reads.
    """
    tokenizer = json.dumps(place if own_tokenizer else DEFAULT_TOKENIZER)
    loading = _LOADING.format(model=family.library.model, tokenizer=tokenizer, place=json.dumps(place))
    return f"{loading}\n{_lines(context, rows)}{_AFTER}"


def _lines(context: int, rows: int | None) -> str:
    return (_CUT.format(rows=rows) if rows is not None else "") + _USE.format(context=context)


def run_recipe(
    context: int, tokenizer: Any, model: Any, prompts: Sequence[str], rows: int | None = None
) -> tuple[Tensor, Tensor]:
    """Run the printed lines; returns the input ids (batch, context) and the features (batch, context, output_dim).

    model: a loaded model with eager attention. ``rows``: as in ``recipe``; the model's table stays cut.
    """
    import html

    import ftfy
    import torch

    names: dict[str, Any] = {
        "html": html, "ftfy": ftfy, "torch": torch, "tokenizer": tokenizer, "model": model, "prompts": list(prompts),
    }  # fmt: skip
    exec(_lines(context, rows), names)
    return names["input_ids"], names["text_embeds"].pooler_output
