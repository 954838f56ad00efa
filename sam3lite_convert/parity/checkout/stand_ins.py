"""What takes the place of what is not run or not installed when a checkout's encoder is loaded."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import NoReturn

from torch import Tensor, nn

from sam3lite_convert.errors import CannotRun


class _Unused(nn.Module):
    """A layer that drops paths in training and is the identity in evaluation."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__()

    def forward(self, x: Tensor, *args: object) -> Tensor:
        if self.training:
            raise CannotRun(f"{type(self).__name__} is stood in for, which holds in evaluation only", "original_repo")
        return x


def _leave(tensor: Tensor, *args: object, **kwargs: object) -> Tensor:
    return tensor  # weights are loaded afterwards


# Evaluation with loaded weights uses none of them.
STAND_INS: dict[str, dict[str, object]] = {
    "timm": {"DropPath": type("DropPath", (_Unused,), {}), "trunc_normal_": _leave},
    "torchvision": {"StochasticDepth": type("StochasticDepth", (_Unused,), {})},
}
SUBMODULES = {"models", "layers", "ops", "drop", "weight_init", "stochastic_depth"}


class _InertType(type):
    of: str

    def __getattr__(cls, name: str) -> object:
        return inert(f"{cls.of}.{name}", name)()


class _Inert(metaclass=_InertType):
    """Something of the checkout that is not run: takes any arguments, has any attribute, does nothing."""

    of = ""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __getattr__(self, name: str) -> object:
        return inert(f"{self.of}.{name}", name)()

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        raise CannotRun(
            f"the checkout's {self.of} was called, which is stood in for: of the checkout, only the modules of the "
            "text encoder are run",
            "original_repo",
        )


def inert(of: str, name: str) -> type:
    """A class that stands for the attribute ``name`` of a module that is not here, and does nothing."""
    if name.startswith("__"):
        raise AttributeError(name)  # nothing that Python itself looks for
    return _InertType(name, (_Inert,), {"of": of})


class NotHere(ImportError):
    """An import that cannot be served, in words for people."""


class AskedModule(ModuleType):
    """A module whose attributes are made when they are asked for."""

    def __init__(self, name: str, get: Callable[[str], object]) -> None:
        super().__init__(name)
        self.__dict__["_get"] = get

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.__dict__["_get"](name)
