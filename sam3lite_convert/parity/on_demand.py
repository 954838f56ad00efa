"""Runs a reference whose layers stay in the checkpoint: a module's weights are in memory while it runs, and no longer.

So the memory that it takes is that of its widest module, however many layers there are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def read_on_demand(model: nn.Module, read: Callable[[str], Tensor]) -> None:
    """From now on read the weights without values, those on the meta device, whenever their module is called.

    Each call reads them anew, and they are dropped when it returns.

    ``read``: gives a tensor by its key in the model's state dict; it is cast to the dtype that the model has there.
    """
    for path, module in model.named_modules():
        names = [name for name, tensor in _own(module) if tensor.is_meta]
        if names:
            _attach(module, {name: f"{path}.{name}" if path else name for name in names}, read)


def _own(module: nn.Module) -> list[tuple[str, Tensor]]:
    """The tensors of a module that are not those of a module in it."""
    return [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]


def _attach(module: nn.Module, keys: dict[str, str], read: Callable[[str], Tensor]) -> None:
    outlines = {name: tensor for name, tensor in _own(module) if name in keys}

    def put(name: str, value: Tensor) -> None:
        if name in module._parameters:
            module._parameters[name] = nn.Parameter(value, requires_grad=False)
        else:
            module._buffers[name] = value

    def fill(module: nn.Module, args: object) -> None:
        with torch.inference_mode(False):  # a tensor made in inference mode cannot be a parameter's
            for name, key in keys.items():
                put(name, read(key).to(outlines[name].dtype))

    def drop(module: nn.Module, args: object, output: object) -> None:
        for name, outline in outlines.items():
            put(name, outline)

    module.register_forward_pre_hook(fill)
    module.register_forward_hook(drop)
