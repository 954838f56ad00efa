"""The encoders that are compared with the original."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sam3lite_convert.convert.text_weights import cast, load_all
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.packed_encoder import PackedTextConfig, PackedTextModel
from sam3lite_convert.parity.encoders import Encoder, tapped_modules
from sam3lite_convert.parity.taps import PACKED, TRANSFORMERS
from sam3lite_convert.records.record import JsonValue


def packed_encoder(
    config: Mapping[str, JsonValue], weights: Mapping[str, Tensor], dtype: torch.dtype, attention: str
) -> Encoder:
    """The project's own encoder. ``config``: ``text_config`` of a packed config.json."""
    parsed = PackedTextConfig.from_dict(config)
    model = PackedTextModel.from_weights(parsed, cast(weights, dtype), attention)
    return Encoder(
        f"packed, {attention} attention",
        model,
        tapped_modules(model, PACKED),
        lambda ids: (lambda out: (out.projected, out.pooled))(model(ids)),
    )


def transformers_encoder(
    config: Mapping[str, JsonValue], weights: Mapping[str, Tensor], dtype: torch.dtype, attention: str
) -> Encoder:
    """``Sam3LiteTextTextModel`` with the text projection. ``config``: ``text_config`` of its config.json.

    Raises CannotRun where transformers is missing or does not have the model.
    """
    try:
        from transformers import Sam3LiteTextTextConfig, Sam3LiteTextTextModel, __version__
    except ImportError:
        raise CannotRun(
            "the transformers candidate needs transformers 5.6 or later: pip install 'sam3lite-convert[transformers]'. "
            "--candidate packed runs without it.",
            "no_transformers",
        ) from None
    stated: dict[str, Any] = {k: v for k, v in config.items() if k != "model_type"}  # the library checks the values
    parsed = Sam3LiteTextTextConfig(**stated)
    parsed._attn_implementation = attention
    state = cast(weights, dtype)
    own = {k.removeprefix("text_encoder."): t for k, t in state.items() if k.startswith("text_encoder.")}
    beside = {k.removeprefix("text_projection."): t for k, t in state.items() if k.startswith("text_projection.")}
    with torch.device("meta"):
        model = Sam3LiteTextTextModel(parsed)
        output_dim, hidden = beside["weight"].shape if "weight" in beside else (256, parsed.hidden_size)
        projection = nn.Linear(hidden, output_dim)
    load_all(model, own, "Sam3LiteTextTextModel")
    load_all(projection, beside, "the text projection")
    for part in (model, projection):
        part.requires_grad_(False)
        part.train(False)

    def run(input_ids: Tensor) -> tuple[Tensor, Tensor]:
        out = model(input_ids=input_ids, return_dict=True)
        return projection(out.last_hidden_state), out.pooler_output

    both = nn.ModuleDict({"text_encoder": model, "text_projection": projection})
    name = f"Sam3LiteTextTextModel (transformers {__version__}), {attention} attention"
    return Encoder(name, both, tapped_modules(both, TRANSFORMERS), run)


CANDIDATES: dict[str, Callable[[Mapping[str, JsonValue], Mapping[str, Tensor], torch.dtype, str], Encoder]] = {
    "packed": packed_encoder,
    "transformers": transformers_encoder,
}
