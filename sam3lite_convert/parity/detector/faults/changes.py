"""What a fault is, and how it is made in the reference and taken back.

Weights are shared with the loaded checkpoint, so nothing is written in place: attributes are set to other values and
back, and only the tensors that a fault touches are made anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn

from original_ref import Detector

M = TypeVar("M", bound=nn.Module)
Change = AbstractContextManager[None]
Inputs = Mapping[str, Tensor]  # the arguments of a call of the detector


@dataclass(frozen=True)
class Need:
    """What must be there for a fault to show.

    words: what, to end the sentence "not revealed: it needs ...".
    holds: of a reference, a layer and inputs; False: the fault cannot show; True: it may.
    """

    words: str
    holds: Callable[[Detector, int, Inputs], bool]


NOTHING = Need("nothing", lambda model, layer, inputs: True)


@dataclass(frozen=True)
class DetectorFault:
    """A fault that a port may have, as a change of the reference.

    key: stable name for the JSON.
    words: the fault in one sentence.
    row: the row of the table of taps at which it shows first, or ``outputs.NAME``.
    change: makes the fault in a reference, and takes it back on exit. It acts between the taps before the row's and the
        row's own. The number is the layer if the row is one tap in each layer; a module that all layers share is
        changed for all of them.
    needs: what must be there for it to show.
    applies: whether a reference can have it in a layer.
    """

    key: str
    words: str
    row: str
    change: Callable[[Detector, int], Change]
    needs: Need = NOTHING
    applies: Callable[[Detector, int], bool] = lambda model, layer: True


@contextmanager
def setting(holder: object, **attributes: object) -> Iterator[None]:
    """The holder with other attributes, parameters, submodules or methods until the end of the block."""
    own = {name for name in attributes if name in vars(holder)}
    kept = {name: getattr(holder, name) for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(holder, name, value)
        yield
    finally:
        for name, value in kept.items():
            if name in own or not callable(value) or isinstance(value, nn.Module):
                setattr(holder, name, value)
            else:  # a method of the class, which the instance must not hold
                delattr(holder, name)


def replacing(module: nn.Module, tensors: Mapping[str, Tensor]) -> Change:
    """The module with other tensors, by their names in its state dict."""
    stack = []
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        holder = module.get_submodule(path)
        is_parameter = leaf in dict(holder.named_parameters(recurse=False))
        value = nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor
        stack.append(setting(holder, **{leaf: value}))
    return together(*stack)


def computing(module: nn.Module, forward: Callable[..., object]) -> Change:
    """The module with another ``forward``; hooks on it still run."""
    return setting(module, forward=forward)


@contextmanager
def together(*changes: Change) -> Iterator[None]:
    """All these changes at once."""
    with ExitStack() as stack:
        for change in changes:
            stack.enter_context(change)
        yield


def part(model: Detector, path: str, layer: int, kind: type[M]) -> M:
    """A module of the reference; ``{i}`` in the path is the layer."""
    found = model.get_submodule(path.replace("{i}", str(layer)))
    assert isinstance(found, kind), f"{path} is a {type(found).__name__}"
    return found
