"""What the real detector computed, sampled, and the reference's activations under the same names.

``python tests/support/detector_goldens.py FOLDER`` makes the files in ``tests/data/goldens`` from the whole goldens.
"""

from __future__ import annotations

import functools
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from original_ref import Detector, load_detector

GOLDENS = Path(__file__).parents[1] / "data" / "goldens"
HEADS = {"geometry": 2, "encoder": 4, "mask": 8}  # of the tiny detector, whose modules all differ
CASES = (
    "text", "box", "boxes3", "batch2", "partial", "three", "tall", "prompts2", "context5", "context12", "loud", "small",
)  # fmt: skip
ROWS = 8  # of the tiny detector's text position table
SAMPLES = 256  # values kept of a tap
_WHOLE = ("input.", "override.", "post.", "pre.")
_INPUTS = {"boxes": "boxes", "labels": "box_labels", "box_mask": "box_mask", "img_ids": "image_ids"}


class Case(NamedTuple):
    """One pass of the real code.

    ``tensors``: inputs, overridden weights and whole results, by their names in the golden.
    ``taps``: boundary taps and outputs -> (shape, L2 norm, sampled values).
    ``context``: the context that the text encoder was called with.
    ``metadata``: heights, widths and thresholds of the processor.
    """

    tensors: dict[str, Tensor]
    taps: dict[str, tuple[tuple[int, ...], float, Tensor]]
    context: int
    metadata: dict[str, str]

    def weights(self) -> dict[str, Tensor]:
        """The tiny detector's, with this case's overrides."""
        own = {k.removeprefix("override."): t for k, t in self.tensors.items() if k.startswith("override.")}
        return tiny_weights() | own

    def detector(self) -> Detector:
        """The reference with these weights, called as the real code was."""
        return load_detector(self.weights(), HEADS, self.context if self.context < ROWS else None)

    def inputs(self) -> dict[str, Tensor]:
        """The arguments of a call of the detector."""
        given = {_INPUTS[k]: self.tensors[f"input.{k}"] for k in _INPUTS if f"input.{k}" in self.tensors}
        return {"image": self.tensors["input.image"], "input_ids": self.tensors["input.ids"]} | given


@functools.cache
def _tiny() -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(GOLDENS / "detector_tiny.safetensors", "pt") as held:
        return {k: held.get_tensor(k) for k in held.keys()}, held.metadata()  # noqa: SIM118


@functools.cache
def tiny_weights() -> dict[str, Tensor]:
    """The tiny detector's weights under the keys of a file; read only."""
    found = {k.removeprefix("weights."): t for k, t in _tiny()[0].items() if k.startswith("weights.")}
    tables = {k.removesuffix(".real") for k in found if k.endswith(".real")}
    whole = {k: torch.complex(found[f"{k}.real"], found[f"{k}.imag"]) for k in tables}
    return whole | {k: t for k, t in found.items() if not k.endswith((".real", ".imag"))}


@functools.cache
def case(name: str) -> Case:
    """One of CASES; read only."""
    tensors, metadata = _tiny()
    about = json.loads(metadata[name])
    own = {k.removeprefix(f"{name}."): t for k, t in tensors.items() if k.startswith(f"{name}.")}
    taps = {tap: (tuple(shape), norm, own.pop(f"values.{tap}")) for tap, (shape, norm) in about["taps"].items()}
    images = {"input.image": tensors[f"images.{about['images']}"]}
    return Case(own | images, taps, int(about["metadata"]["context"]), about["metadata"])


def sample(tap: str, count: int, numel: int) -> np.ndarray:
    """The places of the sampled values of a flattened tap; all of them if there are no more than ``count``."""
    if numel <= count:
        return np.arange(numel)
    return np.random.Generator(np.random.PCG64(zlib.crc32(tap.encode()))).integers(0, numel, count)


def distance(tap: str, golden: tuple[tuple[int, ...], float, Tensor], ours: Tensor) -> float:
    """How far a tap is from the golden, in units of what the rule allows: up to 1 passes."""
    shape, norm, values = golden
    assert tuple(ours.shape) == shape, f"{tap}: {tuple(ours.shape)}, the original's is {shape}"
    flat = ours.double().flatten()
    found = flat[torch.from_numpy(sample(tap, SAMPLES, flat.numel()))]
    wanted = values.double()
    at_values = float((found - wanted).norm()) / allowed(float(wanted.norm()), len(wanted))
    of_norms = abs(float(flat.norm()) - norm) / allowed(norm, flat.numel())
    return max(at_values, of_norms)


def allowed(norm: float, count: int) -> float:
    """The rule of the reference data: the largest L2 distance from a tap of this norm and number of values."""
    return 2e-5 * norm + 6e-6 * count**0.5


# ---- the reference's activations under the goldens' names

_GEOMETRY = r"geometry_encoder\.(?:~sequence|final_proj|norm|encode\.\d+|encode_norm|0)"
_BOXES = r"geometry_encoder\.(?:boxes_direct_project|boxes_pos_enc_project|label_embed)"
_DECODER = (
    r"transformer\.decoder\.(?:~query_sine|ref_point_head|~inverse_sigmoid|norm|bbox_embed|presence_token_out_norm|"
    r"presence_token_head|layers\.\d+\.[01])(?:@\d+)?"
)
# The real code is sequence first here. The last call of bbox_embed is on all layers at once, batch first.
_SEQUENCE_FIRST = re.compile(
    rf"{_GEOMETRY}|{_BOXES}|{_DECODER}|dot_prod_scoring\.prompt_mlp|segmentation_head\.cross_att\w+|"
    r"~prompt|~encoder_hidden_states"
)


def _as_golden(tap: str, value: Tensor) -> Tensor:
    """A batch-first activation in the shape that the real code has."""
    if _SEQUENCE_FIRST.fullmatch(tap) and value.dim() == 3:
        return value.transpose(0, 1)
    if tap == "geometry_encoder.img_pre_norm":
        return value.flatten(1, 2).transpose(0, 1)
    if tap == "geometry_encoder.~encode_boxes":
        return value.transpose(0, 1).flatten(0, 1)
    if tap == "geometry_encoder.~roi_align":
        return value.flatten(0, 1)
    if tap in ("transformer.decoder.0", "transformer.decoder.1", "transformer.decoder.2"):
        return value.transpose(1, 2)
    return value


@torch.inference_mode()
def activations(
    model: Detector, inputs: Mapping[str, Tensor], wanted: Collection[str] | None = None
) -> dict[str, Tensor]:
    """Every activation of one pass, and the outputs as ``output.NAME``, under the goldens' names.

    ``wanted``: the taps that are needed; the others are not kept, which at full size do not fit into memory.
    """
    seen: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], object], None]:
        def read(module: nn.Module, args: tuple[Tensor, ...], output: object) -> None:
            number, calls[name] = calls[name], calls[name] + 1
            parts = output if isinstance(output, tuple) else (output,)
            for n, part in enumerate(parts):
                if isinstance(part, Tensor):
                    key = name + (f".{n}" if len(parts) > 1 else "")
                    seen[key if number == 0 else f"{key}@{number}"] = part

        return read

    needed = None if wanted is None else _modules_of(model, wanted)
    handles = [
        module.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if name and (needed is None or name in needed)
    ]
    try:
        output = model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    named = dict(_renamed(model, inputs, seen))
    found = {tap: _as_golden(tap, value) for tap, value in named.items()}
    return found | {f"output.{name}": value for name, value in output.items()}


_PARTS = {
    "backbone.vision_backbone.trunk.abs_pos": "backbone.vision_backbone.trunk.~abs_pos",
    "geometry_encoder.roi_align": "geometry_encoder.~roi_align",
    "geometry_encoder.encode_boxes": "geometry_encoder.~encode_boxes",
    "geometry_encoder.sequence.0": "geometry_encoder.~sequence",
    "transformer.decoder.query_sine": "transformer.decoder.~query_sine",
    "transformer.decoder.rpb": "transformer.decoder.~rpb",
    "transformer.decoder.inverse_sigmoid": "transformer.decoder.~inverse_sigmoid",
    "segmentation_head.encoder_map": "segmentation_head.~encoder_map",
    "prompt.0": "~prompt",
    "prompt.1": "~prompt_mask",
    "transformer.encoder": "~encoder_hidden_states",
}
_CALLED_OFTEN = (
    "transformer.decoder.~query_sine", "transformer.decoder.~rpb", "transformer.decoder.~inverse_sigmoid",
    "transformer.decoder.ref_point_head", "transformer.decoder.boxRPB_embed_x", "transformer.decoder.boxRPB_embed_y",
    "transformer.decoder.norm", "transformer.decoder.bbox_embed", "transformer.decoder.presence_token_out_norm",
    "transformer.decoder.presence_token_head", "backbone.vision_backbone.position_encoding",
)  # fmt: skip


def _modules_of(model: Detector, taps: Collection[str]) -> set[str]:
    """The modules whose activations give these taps."""
    named = {tap: path for path, tap in _PARTS.items()}
    bases = {tap.partition("@")[0] for tap in taps}
    paths = {named.get(base, base) for base in bases}
    last = f"transformer.decoder.layers.{len(model.transformer.decoder.layers) - 1}"
    always = {"backbone.language_backbone.projector", "backbone.vision_backbone.convs.2", "transformer.decoder", last}
    return paths | {re.sub(r"\.\d$", "", path) for path in paths} | always


def _renamed(model: Detector, inputs: Mapping[str, Tensor], seen: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    pictures = len(inputs["image"])
    for key, value in seen.items():
        path, _, number = key.partition("@")
        name = _PARTS.get(path, path)
        if name == "transformer.decoder.norm":  # the real code calls it twice in each layer, on the same queries
            yield f"{name}@{2 * int(number or 0)}", value
            yield f"{name}@{2 * int(number or 0) + 1}", value
        elif name in _CALLED_OFTEN:
            whole = value.expand(pictures, -1, -1, -1) if name.endswith("position_encoding") else value
            yield f"{name}@{int(number or 0)}", whole
        else:
            yield name + (f"@{number}" if number else ""), value
    text, ids = model.backbone.language_backbone, inputs["input_ids"]
    yield "backbone.language_backbone.0", ids == 0
    yield "backbone.language_backbone.1", seen["backbone.language_backbone.projector"].transpose(0, 1)
    yield "backbone.language_backbone.2", text.encoder.forward_embedding(ids).transpose(0, 1)
    last = len(model.transformer.decoder.layers) - 1
    yield "transformer.decoder.3", seen[f"transformer.decoder.layers.{last}.1"].transpose(0, 1)
    yield "~queries", seen["transformer.decoder.0"][-1]
    if "geometry_encoder.img_pre_norm" not in seen:  # the real code computes it for nothing where there is no box
        coarsest = seen["backbone.vision_backbone.convs.2"]
        rows = inputs.get("image_ids", torch.zeros(len(ids), dtype=torch.int64))
        yield "geometry_encoder.img_pre_norm", model.geometry_encoder.img_pre_norm(coarsest[rows].permute(0, 2, 3, 1))


# ---- making the files


def make(source: Path) -> None:
    """Sample the goldens of the reference data into ``tests/data/goldens``."""
    tensors = {f"weights.{k}": t for k, t in load_file(source / "tiny_weights.safetensors").items()}
    metadata: dict[str, str] = {}
    for name in CASES:
        with safe_open(source / f"tiny_{name}.safetensors", "pt") as held:
            said, keys = held.metadata(), sorted(held.keys())
            boundary = set(json.loads(said["boundary"]))
            taps: dict[str, tuple[list[int], float]] = {}
            for key in keys:
                value = held.get_tensor(key)
                tap = key.removeprefix("taps.")
                if key == "input.image":
                    images = f"{len(value)}"
                    tensors[f"images.{images}"] = value
                elif key.startswith(_WHOLE):
                    tensors[f"{name}.{key}"] = value
                elif tap in boundary or key.startswith("output."):
                    flat = value.double().flatten()
                    taps[tap] = list(value.shape), float(flat.norm())
                    tensors[f"{name}.values.{tap}"] = value.flatten()[sample(tap, SAMPLES, flat.numel())].clone()
        kept = {k: v for k, v in said.items() if k.startswith("post_") or k in ("context", "source", "torch", "seed")}
        metadata[name] = json.dumps({"taps": taps, "images": images, "metadata": kept})
    save_file(tensors, GOLDENS / "detector_tiny.safetensors", metadata)
    for size in ("336", "1008"):
        with safe_open(source / f"s0_{size}.safetensors", "pt") as held:
            own = {k: held.get_tensor(k) for k in held.keys()}  # noqa: SIM118
            said = held.metadata()
        kept_full: dict[str, Tensor] = {}
        for key, value in own.items():
            if ".output." in key and value.numel() > 4096:
                kept_full[key] = value.flatten()[sample(key, 4096, value.numel())].clone()
                said[f"shape.{key}"] = json.dumps(list(value.shape))
            elif ".shape." not in key:
                kept_full[key] = value
        save_file(kept_full, GOLDENS / f"detector_s0_{size}.safetensors", said)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
