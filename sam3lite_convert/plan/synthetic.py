"""A small checkpoint with the complete key structure of a released one, for the demo and the tests.

The names come out of the mapping tables read backwards (the tests hold them against the key list
of a real checkpoint); the values are random, each tensor drawn from its own name.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np
import torch

from sam3lite_convert.files import whole_file
from sam3lite_convert.plan.architecture import TEXT, VISION, Architecture
from sam3lite_convert.plan.names import released_key
from sam3lite_convert.plan.operations import joined_rows
from sam3lite_convert.plan.rotary import axial_table
from sam3lite_convert.plan.tables import Layout, load_mappings
from sam3lite_convert.plan.targets import expected_targets

_TRACKER = ("tracker_model.", "tracker_neck.")  # how its target keys begin

SMALL_SIZES = {
    "text_hidden": 64, "text_ffn": 256, "text_heads": 1, "vocab": 49408, "context": 16, "projection_dim": 64,
    "output_dim": 32, "kernel": 11, "vit_hidden": 128, "vit_ffn": 192, "channels": 3, "patch": 14,
    "vit_positions": 16, "fpn_hidden": 32, "hidden": 32, "roi": 7, "geometry_ffn": 64, "detr_encoder_ffn": 64,
    "detr_decoder_ffn": 64, "queries": 10, "detr_heads": 8, "tracker_hidden": 32, "tracker_memory": 64,
    "tracker_memories": 7, "tracker_attention_ffn": 64, "tracker_fuser_ffn": 64, "tracker_fuser_kernel": 7,
    "tracker_mask_channels": 16, "tracker_mask_tokens": 4, "tracker_iou_hidden": 32, "tracker_decoder_width": 16,
    "tracker_decoder_ffn": 64,
}  # fmt: skip
_WINDOW, _GRID = 4, 8  # patches along a window and along the image


def small_architecture(
    model_name: str = "mct", transformer_layers: int = 4, vit_layers: int = 32, **sizes: int
) -> Architecture:
    """The structure of a released model with small sizes; ``sizes`` overrides single ones."""
    total = transformer_layers + 2 if model_name == "mct" else transformer_layers
    ends = {0, total - 1} if model_name == "mct" else set()
    blocks = {
        "repmixer_blocks": tuple(i for i in range(total) if i in ends),
        "transformer_blocks": tuple(i for i in range(total) if i not in ends), "clip_blocks": (),
        "vit_blocks": tuple(range(vit_layers)), "fpn_levels": (0, 1, 2, 3), "fpn_4x": (0,), "fpn_2x": (1,),
        "fpn_1x": (2, 3), "geometry_layers": tuple(range(3)), "detr_encoder_layers": tuple(range(6)),
        "detr_decoder_layers": tuple(range(6)), "upsampling_stages": tuple(range(3)),
        "tracker_attention_layers": tuple(range(4)), "tracker_fuser_layers": (0, 1), "tracker_decoder_layers": (0, 1),
        "tracker_mask_mlps": tuple(range(4)),
    }  # fmt: skip
    return Architecture(SMALL_SIZES | sizes, blocks, model_name, "custom", False)


def source_shapes(architecture: Architecture, layout: Layout | None = None) -> dict[str, tuple[int, ...]]:
    """Canonical key -> shape of every source tensor that such a model's checkpoint holds.

    ``layout``: whose tables are read backwards, the shipped ``packed`` if None; the result is the same for each.
    """
    tables = load_mappings()
    shapes: dict[str, tuple[int, ...]] = {}
    _add_sources(shapes, layout or tables.layout("packed"), "all", architecture)
    _add_sources(shapes, tables.layout("transformers", component="video"), "video", architecture, _TRACKER)
    width = architecture.sizes["hidden"]
    for kind, columns in (("direct", 2), ("pool", width), ("pos_enc", width)):
        shapes[f"geometry_encoder.points_{kind}_project.weight"] = (width, columns)
        shapes[f"geometry_encoder.points_{kind}_project.bias"] = (width,)
    for i in architecture.blocks["vit_blocks"]:
        side = _GRID if i % 8 == 7 else _WINDOW
        shapes[f"{VISION}trunk.blocks.{i}.attn.freqs_cis"] = (side * side, 32)
    return shapes


def _add_sources(
    shapes: dict[str, tuple[int, ...]],
    layout: Layout,
    component: str,
    architecture: Architecture,
    starts: tuple[str, ...] = ("",),
) -> None:
    """Adds the sources of the layout's targets, of those whose keys begin with one of ``starts``."""
    targets = {
        target: tuple(n for n in sides if n is not None)
        for target, sides in expected_targets(layout, architecture, component)
        if target.startswith(starts)
    }
    for target in targets:
        for rule, sources in layout.leading_to(target):
            if sources[0] in shapes or _other_level(sources[0], architecture):
                continue
            whole = rule.operation.source_shape([targets[t] for t in rule.apply(sources[0]) or ()])
            shapes.update(dict.fromkeys(sources, joined_rows(whole, len(sources)) if len(sources) > 1 else whole))


def _other_level(source: str, architecture: Architecture) -> bool:
    """Two neck rules lead to ``scale_layers.0``: dconv_2x2_0 at levels that grow by 4, dconv_2x2 by 2."""
    by_four = {f"{VISION}{neck}.{i}" for neck in ("convs", "sam2_convs") for i in architecture.blocks["fpn_4x"]}
    module, _, leaf = source.removesuffix(".weight").removesuffix(".bias").rpartition(".")
    return (leaf == "dconv_2x2" and module in by_four) or (leaf == "dconv_2x2_0" and module not in by_four)


def draw(key: str, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Random values for one tensor: float32, but for the counters, and the rotary tables, which are computed."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()) + seed))
    if key.endswith("num_batches_tracked"):
        return torch.tensor(1000, dtype=torch.int64)
    if key.endswith("freqs_cis"):
        return torch.from_numpy(axial_table(math.isqrt(shape[0]), shape[1], _WINDOW).astype(np.complex64))
    if key.endswith("running_var"):
        return torch.from_numpy(rng.random(shape, dtype=np.float32) + np.float32(0.5))
    scale = np.float32(0.1 if len(shape) <= 1 else max(math.prod(shape) / shape[0], 1) ** -0.5)
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32) * scale)


def state_dict(
    architecture: Architecture | None = None, seed: int = 0, text_only: bool = False
) -> dict[str, torch.Tensor]:
    """A whole checkpoint under the names of a released file (``detector.*``, ``tracker.*``)."""
    out = {}
    for key, shape in source_shapes(architecture or small_architecture()).items():
        if text_only and not key.startswith(TEXT):
            continue
        name = released_key(key)
        out[name] = draw(name, shape, seed)
    return out


def write_checkpoint(path: Path, seed: int = 0) -> None:
    """Write the small checkpoint as a released one is written: ``{"model": state dict}``.

    Raises CannotRun as ``whole_file`` does.
    """
    with whole_file(path) as file:
        torch.save({"model": state_dict(seed=seed)}, file)
