"""The released library's whole detector, built around given weights."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from original_ref.detector.geometry import RoiAlign
from sam3lite_convert.convert.text_weights import cast, load_all
from sam3lite_convert.errors import CannotRun, UnsoundPlan
from sam3lite_convert.parity.candidates import without_library
from sam3lite_convert.plan.families import Family
from sam3lite_convert.plan.key_patterns import listed

if TYPE_CHECKING:
    from transformers import Sam3LiteTextModel

    from sam3lite_convert.records.record import JsonValue


def stock_detector(
    family: Family,
    config: Mapping[str, JsonValue],
    weights: Mapping[str, Tensor],
    dtype: torch.dtype,
    attention: str = "sdpa",
    text_attention: str = "eager",
    image_size: int | None = None,
) -> Sam3LiteTextModel:
    """The family's model in transformers, in evaluation mode, with exactly these weights.

    ``config``: the whole of a config.json in the transformers layout.
    ``weights``: every tensor of the folder by its key; not copied if they have ``dtype`` already.
    ``attention``: attention implementation of all parts but the text encoder.
    ``text_attention``: that of the text encoder.
    ``image_size``: in pixels, of the square pictures that it is to take. None: the config's. The library needs only
        the number: rotary positions are computed from it, the position table is tiled, and maps follow the picture.

    Where torchvision is not installed, the library's module of the model gets a ``roi_align`` that computes what
    torchvision's compiled operator computes (``give_roi_align``): without it the model fails on boxes.

    Raises CannotRun if transformers is not installed, does not have the model or refuses the config; UnsoundPlan if
    the model does not get all of its weights.
    """
    model: Sam3LiteTextModel = _without_weights(family, config, dtype, attention, image_size)
    load_all(model, cast(weights, dtype), family.library.model)
    held = (*model.named_parameters(), *model.named_buffers())
    if left := [name for name, tensor in held if tensor.is_meta]:
        raise UnsoundPlan(
            f"{family.library.model} computes {listed(left)} itself, in a way that is not known here: use another "
            "version of transformers",
            "weights_not_loaded",
            {"missing": left},
        )
    model.text_encoder.set_attn_implementation(text_attention)
    give_roi_align(type(model))
    model.requires_grad_(False)
    model.train(False)
    return model


def text_argument(features: Any) -> Any:
    """What the model takes as ``text_embeds``: the whole result of ``get_text_features``; its tensor before
    transformers 5.9."""
    from transformers import __version__

    major, minor = map(int, __version__.split(".")[:2])
    return features if (major, minor) >= (5, 9) else features.pooler_output


def give_roi_align(model: type) -> None:
    """Let the library's module of this class use the reference's roi_align, if torchvision is not installed."""
    if stands_in_for_torchvision():
        sys.modules[model.__module__].torchvision = SimpleNamespace(  # type: ignore[attr-defined]
            ops=SimpleNamespace(roi_align=_roi_align)
        )


def stands_in_for_torchvision() -> bool:
    """Whether the reference's roi_align runs in the library's model, because torchvision is not installed."""
    return importlib.util.find_spec("torchvision") is None


def _roi_align(features: Tensor, boxes: Sequence[Tensor], size: int) -> Tensor:
    """``features`` (n, C, h, w); ``boxes``: for each of them (K, 4), x0 y0 x1 y1 in cells; (n * K, C, size, size)."""
    out: Tensor = RoiAlign(size)(features, torch.stack(tuple(boxes))).flatten(0, 1)
    return out


def _without_weights(
    family: Family, config: Mapping[str, JsonValue], dtype: torch.dtype, attention: str, image_size: int | None
) -> Any:
    """The model with computed buffers, whose parameters have no values."""
    names = family.library
    try:
        import transformers

        Config, Model = getattr(transformers, names.model_config), getattr(transformers, names.model)
    except (ImportError, AttributeError):
        raise CannotRun(
            f"the transformers candidate needs transformers {names.since} or later: "
            f"pip install 'sam3lite-convert[transformers]'.{without_library(family)}",
            "no_transformers",
        ) from None
    try:
        parsed = Config.from_dict(dict(config))
        if image_size is not None:
            parsed.image_size = image_size
        parsed._attn_implementation = attention
        with _default_dtype(dtype), _WeightsOnMeta():
            return Model(parsed)
    except Exception as fault:  # a config from a folder: the library may raise anything
        said = str(fault).strip().splitlines() or [type(fault).__name__]
        raise CannotRun(f"{names.model} cannot be built from this config.json: {said[0]}", "bad_config") from fault


class _WeightsOnMeta(TorchFunctionMode):
    """Uninitialised tensors, which is how torch makes weights, take no memory; computed ones are computed.

    So the library's buffers that no file holds (rotary tables, positions) are there whatever its version calls them.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func is torch.empty:
            given["device"] = "meta"
        return func(*args, **given)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """As ``from_pretrained`` does: computed buffers have the dtype that the model is loaded in."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
