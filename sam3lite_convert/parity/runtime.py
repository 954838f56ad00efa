"""What runs graphs in place of torch: the runtimes that ``--candidate`` names, behind one interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import onnx
    from torch import Tensor


class Session(Protocol):
    """One graph, loaded. ``inputs``, ``outputs``: names of what it reads and gives."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str] | None = None) -> dict[str, Tensor]:
        """The outputs by name; of ``inputs`` those that the graph has are read. Raises CannotRun if it fails."""


class Runtime(Protocol):
    """A runtime that is installed, set up as the user chose.

    ``name``: with its version. ``optimised``: whether it may rewrite graphs.
    """

    name: str
    optimised: bool

    @property
    def provider(self) -> str:
        """What computes in it, in its own word; once graphs ran, with what else had to."""

    def load(self, model: onnx.ModelProto, folder: Path) -> Session:
        """Load a graph whose weights lie in a folder. Raises CannotRun if the runtime does not take it."""


@dataclass(frozen=True)
class RuntimeChoice:
    """The user's choice of what runs the graph.

    ``name``: of a row of ``RUNTIMES``.
    ``provider``: what computes in it, in its own word; None for its own choice of a CPU.
    ``optimised``: whether it may rewrite graphs.
    """

    name: str
    provider: str | None = None
    optimised: bool = True

    def open(self) -> Runtime:
        """The runtime. Raises CannotRun if it is not installed, or does not have the provider."""
        return RUNTIMES[self.name](self)


def _onnxruntime(choice: RuntimeChoice) -> Runtime:
    from sam3lite_convert.parity.onnx_session import CPU, OnnxRuntime

    return OnnxRuntime(choice.provider or CPU, choice.optimised)


def _openvino(choice: RuntimeChoice) -> Runtime:
    from sam3lite_convert.parity.openvino_session import CPU, OpenvinoRuntime

    return OpenvinoRuntime(choice.provider or CPU, choice.optimised)


# Candidate -> what opens its runtime.
RUNTIMES: dict[str, Callable[[RuntimeChoice], Runtime]] = {"onnx": _onnxruntime, "openvino": _openvino}
