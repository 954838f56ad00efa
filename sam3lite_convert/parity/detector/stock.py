"""transformers' own detector with given weights, built without a file and without a second copy of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from importlib.util import find_spec
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from original_ref.detector.geometry import RoiAlign
from sam3lite_convert.convert.text_weights import cast, load_all
from sam3lite_convert.errors import CannotRun, UnsoundPlan
from sam3lite_convert.plan.families import Family
from sam3lite_convert.records.record import Json

if TYPE_CHECKING:
    from transformers import Sam3LiteTextModel

_NOT_ITS = ("model_type", "architectures", "dtype", "transformers_version")
ROI_ALIGN = (
    "torchvision is not installed, so transformers' roi_align is original_ref's, which computes what torchvision's "
    "compiled operator does"
)


def stock_detector(
    family: Family,
    config: Json,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    text_attention: str = "eager",
    image_size: int | None = None,
) -> Sam3LiteTextModel:
    """The family's detector in transformers, in evaluation mode.

    ``config``: the content of config.json in the transformers layout.
    ``weights``: by target key; not copied.
    ``attention``: implementation of everything but the text encoder, which has ``text_attention``.
    ``image_size``: side of the square that it sees, in pixels. None: the config's.

    Raises CannotRun if transformers is not installed or has no such model, UnsoundPlan if config.json or the weights
    do not fit.
    """
    names = family.library
    try:
        import transformers

        Config, Model = getattr(transformers, names.model_config), getattr(transformers, names.model)
    except (ImportError, AttributeError):
        raise CannotRun(
            f"the transformers candidate needs transformers {names.since} or later: "
            "pip install 'sam3lite-convert[transformers]'. --candidate packed runs without it.",
            "no_transformers",
        ) from None
    stated = {k: v for k, v in copy.deepcopy(config).items() if k not in _NOT_ITS}
    if image_size is not None:
        _resize(stated, image_size)
    try:
        parsed = Config(**stated)
        parsed._attn_implementation = attention
        with torch.device("meta"):
            model = Model(parsed)
    except Exception as fault:  # config.json is untrusted: the library may raise anything
        said = str(fault).strip().splitlines() or [type(fault).__name__]
        raise UnsoundPlan(f"config.json does not give a detector in transformers: {said[0]}", "bad_config") from fault
    model.set_attn_implementation(attention)
    model.text_encoder.set_attn_implementation(text_attention)
    load_all(model, cast(weights, dtype), names.model)
    _fill_buffers(model)
    _stand_in_for_torchvision(model)
    model.requires_grad_(False)
    model.train(False)
    made: Sam3LiteTextModel = model
    return made


def _resize(config: dict[str, Any], size: int) -> None:
    """Set the side of the picture, and what follows from it."""
    vision = config.get("vision_config")
    if not isinstance(vision, dict) or not isinstance(vision.get("backbone_config"), dict):
        raise UnsoundPlan("config.json has no vision_config.backbone_config", "bad_config")
    backbone = vision["backbone_config"]
    grid = size // backbone.get("patch_size", 14)
    before = backbone.get("image_size", 1008) // backbone.get("patch_size", 14)
    backbone["image_size"] = size
    sizes = vision.get("backbone_feature_sizes", [[4 * before] * 2, [2 * before] * 2, [before] * 2])
    vision["backbone_feature_sizes"] = [[side * grid // before for side in pair] for pair in sizes]


def _fill_buffers(model: Any) -> None:
    """Compute what is no weight (positions, rotary frequencies), as the library does it after loading.

    Raises CannotRun if something is left without values.
    """
    filled = _filled(model, model)
    left = [name for name, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta]
    if left or any(bool(buffer.isnan().any()) for buffer in filled if buffer.is_floating_point()):
        raise CannotRun("this version of transformers leaves a part of the detector without values", "no_transformers")


def _filled(module: Any, owner: Any) -> list[Tensor]:
    """The buffers below a module that were filled. ``owner``: the model of the library that it belongs to."""
    owner = module if hasattr(module, "_init_weights") else owner
    empty = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
    for name in empty:
        like = getattr(module, name)
        setattr(module, name, torch.full_like(like, torch.nan if like.is_floating_point() else -1, device="cpu"))
    if empty:
        with torch.no_grad():
            owner._init_weights(module)
    found = [getattr(module, name) for name in empty]
    return found + [buffer for child in module.children() for buffer in _filled(child, owner)]


def _stand_in_for_torchvision(model: Any) -> None:
    """Give the library's module the one function of torchvision that it calls, where torchvision is missing."""
    import sys

    module = sys.modules[type(model).__module__]
    if find_spec("torchvision") is None and not hasattr(module, "torchvision"):
        module.torchvision = SimpleNamespace(ops=SimpleNamespace(roi_align=_roi_align))  # type: ignore[attr-defined]


def _roi_align(features: Tensor, boxes: list[Tensor], size: int) -> Tensor:
    """``features`` (n, C, h, w); ``boxes``: for each of them (K, 4), x0 y0 x1 y1 in cells; (n * K, C, size, size)."""
    found: Tensor = RoiAlign(size)(features, torch.stack(list(boxes)))
    return found.flatten(0, 1)
