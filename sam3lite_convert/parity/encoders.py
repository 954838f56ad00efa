"""One interface for both text encoders of a comparison: run on ids, and record activations at the taps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sam3lite_convert.parity.taps import FINAL_NORM, LAYER, OUTPUTS, point_of, points
from sam3lite_convert.progress import bar

Activations = dict[str, Tensor]


class Candidate(Protocol):
    """What is compared with the original, whatever runs it."""

    @property
    def name(self) -> str:
        """Description for reports."""

    @property
    def taps(self) -> tuple[str, ...]:
        """The names of the taps that it gives, in the order of execution."""

    def record(self, input_ids: Tensor, fed: Mapping[str, Tensor] | None = None) -> Activations:
        """The activation at every tap. With ``fed``, activations of the reference by tap, each module reads these, and
        taps may be missing of which the module can't be told from those before it."""


@dataclass(frozen=True)
class Encoder:
    """One text encoder of a comparison.

    ``name``: description for reports.
    ``model``: the module that holds all weights.
    ``modules``: tap -> the module that is hooked for it (see ``tapped_modules``).
    ``run``: ids -> the taps without a module: projected (batch, sequence, output_dim), pooled (batch, projection_dim).
    ``in_place``: whether its layers may overwrite tensors made earlier, so that activations must be copied.
    """

    name: str
    model: nn.Module
    modules: Mapping[str, nn.Module]
    run: Callable[[Tensor], tuple[Tensor, Tensor]]
    in_place: bool = False

    def run_quietly(self, input_ids: Tensor) -> None:
        """Run one forward pass and discard the result, to see whether it raises."""
        with torch.inference_mode():
            self.run(input_ids)

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        """The layers: modules that read and return (batch, sequence, hidden)."""
        return tuple(module for tap, module in self.modules.items() if point_of(tap) is LAYER)

    @property
    def final_layer_norm(self) -> nn.Module:
        """The LayerNorm after the last layer."""
        return self.modules[FINAL_NORM.name]

    @property
    def taps(self) -> tuple[str, ...]:
        """The names of the taps in the order of execution."""
        names = (point.at(i) for point, i in points(len(self.layers)))
        return tuple(name for name in names if name in self.modules or point_of(name) in OUTPUTS)

    def record(self, input_ids: Tensor, fed: Mapping[str, Tensor] | None = None) -> Activations:
        """Record the activation at every tap in one forward pass.

        ``fed``: activations of another encoder, by tap. Each module then reads these instead of the output of the
        module before it, so that its output shows its own error alone.
        """
        seen: Activations = {}

        def read(tap: str, value: Tensor) -> Tensor:
            advance(stage=tap)
            seen[tap] = value.clone() if self.in_place and isinstance(value, Tensor) else value
            return value if fed is None else fed[tap].to(value.dtype)

        handles = [hook_tap(tap, module, read) for tap, module in self.modules.items()]
        try:
            with bar(f"running {self.name}", len(self.modules)) as advance, torch.inference_mode():
                seen |= zip((point.name for point in OUTPUTS), self.run(input_ids), strict=True)
        finally:
            for handle in handles:
                handle.remove()
        return {tap: seen[tap] for tap in self.taps}


def tapped_modules(model: nn.Module, kind: str) -> dict[str, nn.Module]:
    """Tap -> module, for the modules that the table of taps names in an encoder of this kind.

    Raises AttributeError if a module that is not optional is missing.
    """
    depth = next(i for i in itertools.count() if not _has(model, LAYER.module(kind, i)))
    return {
        point.at(i): model.get_submodule(point.module(kind, i))
        for point, i in points(depth)
        if point.modules and not (point.optional and not _has(model, point.module(kind, i)))
    }


def _has(model: nn.Module, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


def hook_tap(tap: str, module: nn.Module, read: Callable[[str, Tensor], Tensor]) -> RemovableHandle:
    """Call ``read(tap, activation)`` whenever the module runs; its result replaces the activation."""

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (read(tap, args[0]), *args[1:]), kwargs
        name = next(name for name, value in kwargs.items() if isinstance(value, Tensor))
        return args, kwargs | {name: read(tap, kwargs[name])}

    if point_of(tap).at_input:
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(lambda module, args, output: read(tap, output))
