"""The converted encoders that parity compares with the original."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sam3lite_convert.convert.packed_config import PackedTextConfig
from sam3lite_convert.convert.text_weights import cast, load_all
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.packed_encoder import PackedTextModel
from sam3lite_convert.parity.encoders import Encoder, tapped_modules
from sam3lite_convert.parity.taps import PACKED, SAM3_TRANSFORMERS, TRANSFORMERS
from sam3lite_convert.plan.families import SAM3, SAM3_LITETEXT, Family
from sam3lite_convert.plan.tables import Layout, Mappings
from sam3lite_convert.records.record import JsonValue

# Class of a text encoder -> its kind in the table of taps, and the output that holds the pooled token.
_CLASSES = {
    SAM3_LITETEXT.library.text_model: (TRANSFORMERS, "pooler_output"),
    SAM3.library.text_model: (SAM3_TRANSFORMERS, "text_embeds"),
}


def without_library(family: Family) -> str:
    """What a message ends with that says that transformers is needed: what runs without it, if anything does."""
    return " --candidate packed runs without it." if family is SAM3_LITETEXT else ""


def packed_encoder(
    family: Family, config: Mapping[str, JsonValue], weights: Mapping[str, Tensor], dtype: torch.dtype, attention: str
) -> Encoder:
    """The packed encoder of this project. ``config``: ``text_config`` of a packed config.json."""
    parsed = PackedTextConfig.from_dict(config)
    model = PackedTextModel.from_weights(parsed, cast(weights, dtype), attention)
    return Encoder(
        f"packed, {attention} attention",
        model,
        tapped_modules(model, PACKED),
        lambda ids: (lambda out: (out.projected, out.pooled))(model(ids)),
    )


def transformers_encoder(
    family: Family, config: Mapping[str, JsonValue], weights: Mapping[str, Tensor], dtype: torch.dtype, attention: str
) -> Encoder:
    """The family's text model in transformers, with the text projection.

    ``config``: ``text_config`` of a config.json in the transformers layout.

    Raises CannotRun if transformers is not installed or does not have the model.
    """
    names = family.library
    try:
        import transformers

        Config, Model = getattr(transformers, names.text_model_config), getattr(transformers, names.text_model)
    except (ImportError, AttributeError):
        raise CannotRun(
            f"the transformers candidate needs transformers {names.since} or later: "
            f"pip install 'sam3lite-convert[transformers]'.{without_library(family)}",
            "no_transformers",
        ) from None
    stated: dict[str, Any] = {k: v for k, v in config.items() if k != "model_type"}  # the library checks the values
    parsed = Config(**stated)
    parsed._attn_implementation = attention
    state = cast(weights, dtype)
    own = {k.removeprefix("text_encoder."): t for k, t in state.items() if k.startswith("text_encoder.")}
    beside = {k.removeprefix("text_projection."): t for k, t in state.items() if k.startswith("text_projection.")}
    with torch.device("meta"):
        model = Model(parsed)
        output_dim, hidden = beside["weight"].shape if "weight" in beside else (256, parsed.hidden_size)
        projection = nn.Linear(hidden, output_dim)
    load_all(model, own, names.text_model)
    load_all(projection, beside, "the text projection")
    for part in (model, projection):
        part.requires_grad_(False)
        part.train(False)

    kind, pooled = _CLASSES[names.text_model]

    def run(input_ids: Tensor) -> tuple[Tensor, Tensor]:
        out = model(input_ids=input_ids, return_dict=True)
        return projection(out.last_hidden_state), out[pooled]

    both = nn.ModuleDict({"text_encoder": model, "text_projection": projection})
    name = f"{names.text_model} (transformers {transformers.__version__}), {attention} attention"
    return Encoder(name, both, tapped_modules(both, kind), run)


# Loader of a layout -> the function that builds its encoder.
CANDIDATES: dict[str, Callable[[Family, Mapping[str, JsonValue], Mapping[str, Tensor], torch.dtype, str], Encoder]] = {
    "packed_model": packed_encoder,
    "packed_encoder": packed_encoder,
    "transformers": transformers_encoder,
}


def check_candidate(layout: Layout, mappings: Mappings) -> None:
    """Raises CannotRun if parity has no encoder for the layout."""
    if layout.loader.name not in CANDIDATES:
        able = ", ".join(x.name for x in mappings.of_family(layout.family) if x.loader.name in CANDIDATES)
        raise CannotRun(
            f"parity has no encoder for the layout {layout.name} (loader = {layout.loader.name}); it has one for: "
            f"{able}. sam3lite verify checks the tensors of a folder in any layout.",
            "no_candidate",
        )
