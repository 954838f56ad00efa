"""The two text encoders of a comparison, behind one interface: run on ids, and record at the taps.

A tap is a place that both have: ``embeddings``, ``layers.N``, ``final_layer_norm``, ``projected``
(what the detector reads) and ``pooled``. Activations are recorded by hooks on the modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

EMBEDDINGS, FINAL, PROJECTED, POOLED = "embeddings", "final_layer_norm", "projected", "pooled"
Activations = dict[str, Tensor]


@dataclass(frozen=True)
class Encoder:
    """One side. ``run(ids)`` gives projected (batch, sequence, output_dim) and pooled (batch,
    projection_dim); ``layers`` and ``final_layer_norm`` are modules on (batch, sequence, hidden)."""

    name: str
    model: nn.Module
    layers: tuple[nn.Module, ...]
    final_layer_norm: nn.Module
    run: Callable[[Tensor], tuple[Tensor, Tensor]]
    in_place: bool = False  # its layers may write over what they or others made before

    def run_quietly(self, input_ids: Tensor) -> None:
        """One forward pass for its faults alone."""
        with torch.inference_mode():
            self.run(input_ids)

    @property
    def taps(self) -> tuple[str, ...]:
        """The names of the taps in the order of execution."""
        return (EMBEDDINGS, *(f"layers.{i}" for i in range(len(self.layers))), FINAL, PROJECTED, POOLED)


def record(encoder: Encoder, input_ids: Tensor, fed: Mapping[str, Tensor] | None = None) -> Activations:
    """Every tap's activation in one forward pass.

    ``fed``: activations of another encoder, by tap. Each module then reads those instead of what the
    module before it made: what it makes of them is its own doing, errors made earlier do not reach it.
    """
    seen: Activations = {}

    def read(name: str, value: Tensor) -> Tensor:
        seen[name] = value.clone() if encoder.in_place and isinstance(value, Tensor) else value
        return value if fed is None else fed[name].to(value.dtype)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (read(EMBEDDINGS, args[0]), *args[1:]), kwargs
        name = next(name for name, value in kwargs.items() if isinstance(value, Tensor))
        return args, kwargs | {name: read(EMBEDDINGS, kwargs[name])}

    def after(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        return lambda module, args, output: read(name, output)

    handles = [encoder.layers[0].register_forward_pre_hook(before, with_kwargs=True)]
    handles += [m.register_forward_hook(after(f"layers.{i}")) for i, m in enumerate(encoder.layers)]
    handles.append(encoder.final_layer_norm.register_forward_hook(after(FINAL)))
    try:
        with torch.inference_mode():
            seen[PROJECTED], seen[POOLED] = encoder.run(input_ids)
    finally:
        for handle in handles:
            handle.remove()
    return {name: seen[name] for name in encoder.taps}
