"""The noise floor: how much the reference's activations change when only its arithmetic changes.

Measured in each run: the reference in the dtype under test against the same weights in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from original_ref import TextReference
from sam3lite_convert.parity.compare import greatest_and_row_mean
from sam3lite_convert.parity.encoders import Activations
from sam3lite_convert.parity.judgement import Floor
from sam3lite_convert.parity.original import wrap_reference

_LARGE = 1 << 20  # values


def noise_floor(model: TextReference, recorded: Activations, input_ids: Tensor) -> dict[str, Floor]:
    """Noise floors by tap. ``recorded``: the reference's own activations for these ids."""
    reference = wrap_reference(model)
    with in_float64(model):
        propagated = reference.record(input_ids)
        isolated = reference.record(input_ids, recorded)
    return {tap: _floor(value, propagated[tap], isolated[tap]) for tap, value in recorded.items()}


def _floor(recorded: Tensor, propagated: Tensor, isolated: Tensor) -> Floor:
    (far, mean_far), (near, mean_near) = (greatest_and_row_mean(recorded, exact) for exact in (propagated, isolated))
    return Floor(far, near, mean_far, mean_near)


def _in_strips(module: nn.Conv2d, x: Tensor) -> Tensor:
    """A 3 x 3 convolution, some rows at a time: in float64 torch unfolds all that it reads at once, nine times a map
    of 288 x 288."""
    padded = functional.pad(x, (1, 1, 1, 1))
    rows = max(_LARGE // (x.shape[1] * x.shape[3]), 1)
    strips = (padded[:, :, top : top + rows + 2] for top in range(0, x.shape[2], rows))
    return torch.cat([functional.conv2d(strip, module.weight, module.bias) for strip in strips], 2)


@contextmanager
def in_float64(model: nn.Module) -> Iterator[None]:
    """Run the model in float64 inside this context."""
    convolutions = [
        module
        for module in model.modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and module.padding == (1, 1)
    ]
    for module in convolutions:
        module.forward = partial(_in_strips, module)  # type: ignore[method-assign]
    try:
        with _with_weights(model, Tensor.double):
            yield
    finally:
        for module in convolutions:
            del module.forward


@contextmanager
def rounded_to(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Run the model inside this context with its weights, and what each module returns, rounded to a shorter dtype.

    Inside a module the arithmetic stays that of its inputs: not every operator computes in halves on a processor.
    """

    def rounded(value: object) -> object:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.to(dtype).to(value.dtype)
        return tuple(map(rounded, value)) if type(value) is tuple else value

    handles = [module.register_forward_hook(lambda module, args, made: rounded(made)) for module in model.modules()]
    try:
        with _with_weights(model, lambda weight: weight.to(dtype).to(weight.dtype)):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _with_weights(model: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Run the model with other weights inside this context.

    A module's weights are changed when it is called and restored when it returns, so that there is no second copy of
    the model in memory.
    """
    # What a module in a layer holds is read by its own forward alone.
    in_layers = set(model.parts.layers.modules() if isinstance(model, TextReference) else ())
    held: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}

    def other(module: nn.Module) -> None:
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        held[module] = [(tensor, tensor.data) for tensor in own if tensor.is_floating_point()]
        with torch.inference_mode(False):  # a tensor made in inference mode cannot be a parameter's
            for tensor, data in held[module]:
                tensor.data = change(data)

    def restore(module: nn.Module) -> None:
        for tensor, data in held.pop(module, ()):
            tensor.data = data

    handles = []
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.weight.numel() > _LARGE:
            # Changing the rows of a large table gives the same result.
            handles.append(module.register_forward_hook(lambda module, args, rows: change(rows)))
        elif isinstance(module, nn.Embedding) or (
            module not in in_layers and next(module.children(), None) is not None
        ):
            other(module)  # it may have a few weights of its own, which are also read outside its forward
        else:
            handles.append(module.register_forward_pre_hook(lambda module, args: other(module)))
            handles.append(module.register_forward_hook(lambda module, args, output: restore(module)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module in list(held):
            restore(module)
