"""Placeholders for modules that are not run or not installed when a checkout's encoder is loaded."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import NoReturn

from torch import Tensor, nn

from sam3lite_convert.errors import CannotRun


class _Unused(nn.Module):
    """Placeholder for a layer that drops paths in training and is the identity in evaluation."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__()

    def forward(self, x: Tensor, *args: object) -> Tensor:
        if self.training:
            raise CannotRun(
                f"{type(self).__name__} is a placeholder that works in evaluation mode only", "original_repo"
            )
        return x


def _leave(tensor: Tensor, *args: object, **kwargs: object) -> Tensor:
    return tensor  # weights are loaded afterwards


# In evaluation mode with loaded weights these have no effect.
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
    """Placeholder for an object of the checkout that is not run: takes any arguments, has any attribute."""

    of = ""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __getattr__(self, name: str) -> object:
        return inert(f"{self.of}.{name}", name)()

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        raise CannotRun(
            f"the checkout's {self.of} was called, which is a placeholder: only the modules of the text encoder are "
            "run",
            "original_repo",
        )


def inert(of: str, name: str) -> type:
    """A placeholder class for the attribute ``name`` of a module that is not run."""
    if name.startswith("__"):
        raise AttributeError(name)  # Python looks these up itself and must not find them
    return _InertType(name, (_Inert,), {"of": of})


class NotHere(ImportError):
    """An import that cannot be resolved; its message is shown to the user."""


class AskedModule(ModuleType):
    """A module whose attributes are computed by a function on access."""

    def __init__(self, name: str, get: Callable[[str], object]) -> None:
        super().__init__(name)
        self.__dict__["_get"] = get

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.__dict__["_get"](name)
