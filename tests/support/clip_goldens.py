"""What SAM3's own text encoder computed, and the reference's activations under the same names.

``python tests/support/clip_goldens.py FOLDER`` samples the golden at full size into ``tests/data/goldens``.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.detector_goldens import GOLDENS, sample
from support.goldens import Golden, golden
from torch import Tensor

from original_ref import ClipText, load_clip_text

TINY = "tiny_teacher"
FULL = "teacher_ctx32"
RUNS = ("", "short.")
SAMPLES = 1024  # values kept of an activation at full size


def tiny() -> ClipText:
    """The reference on the golden's weights, which it does not copy: replace a tensor, never write into it."""
    return load_clip_text(golden(TINY).cfg, golden(TINY).weights())


@torch.no_grad()
def activations(model: ClipText, ids: Tensor) -> dict[str, Tensor]:
    """Every activation of one run, under the goldens' names."""
    found: dict[str, Tensor] = {}
    layers = model.encoder.transformer.resblocks
    handles = [layers[0].register_forward_pre_hook(lambda module, inputs: found.update(embeddings=inputs[0]))]
    for i, layer in enumerate(layers):
        name = f"layers.{i}"
        handles.append(layer.register_forward_hook(lambda module, inputs, out, n=name: found.update({n: out})))
    tokens = model.encoder(ids)
    for handle in handles:
        handle.remove()
    pooled = tokens @ model.encoder.text_projection
    rows = {"final_layer_norm": tokens, "projected": model.resizer(tokens), "pooled_all_tokens": pooled}
    return found | rows | {"mask": ids == 0}


def distances(model: ClipText, of: Golden, run: str = "") -> dict[str, float]:
    """The greatest difference of every activation of a golden that is whole."""
    found, wanted = activations(model, of.ids(run)), of.activations(run)
    assert found.keys() == wanted.keys()
    assert all(found[k].shape == wanted[k].shape for k in wanted)
    return {k: float((found[k].double() - wanted[k].double()).abs().max()) for k in wanted}


@functools.cache
def full_size() -> tuple[Golden, dict[str, tuple[tuple[int, ...], float]]]:
    """The golden at full size: its sampled values, and tap -> (shape, L2 norm)."""
    of = golden(FULL)
    return of, {tap: (tuple(shape), norm) for tap, (shape, norm) in json.loads(of.metadata["taps"]).items()}


def sampled_distances(found: Mapping[str, Tensor]) -> dict[str, float]:
    """The same of activations at full size, where the golden has them: over the sampled values, and of the norms in
    units of one value."""
    of, taps = full_size()
    off = {}
    for tap in found.keys() & taps.keys():
        shape, norm = taps[tap]
        assert tuple(found[tap].shape) == shape
        flat = found[tap].double().flatten()
        places = torch.from_numpy(sample(tap, SAMPLES, flat.numel()))
        values = (flat[places] - of.activations()[tap].double()).abs().max()
        off[tap] = max(float(values), abs(float(flat.norm()) - norm) / flat.numel() ** 0.5)
    return off


def make(source: Path) -> None:
    """Sample the golden at full size."""
    with safe_open(source / f"{FULL}.safetensors", "pt") as held:
        said, keys = held.metadata(), list(held.keys())
        tensors, taps = {"input_ids": held.get_tensor("input_ids")}, {}
        for key in (k for k in keys if k.startswith("activations.")):
            value, tap = held.get_tensor(key), key.removeprefix("activations.")
            flat = value.flatten()
            taps[tap] = list(value.shape), float(flat.double().norm())
            tensors[key] = flat[torch.from_numpy(sample(tap, SAMPLES, flat.numel()))].clone()
    save_file(tensors, GOLDENS / f"{FULL}.safetensors", said | {"taps": json.dumps(taps)})


if __name__ == "__main__":
    make(Path(sys.argv[1]))
