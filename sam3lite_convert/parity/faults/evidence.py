"""The evidence that hypotheses are tried on: the reference, its recorded activations, runs of a changed module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from original_ref import TextReference
from sam3lite_convert.parity.encoders import Activations, hook_tap
from sam3lite_convert.parity.original import reference_kind
from sam3lite_convert.parity.taps import LAYER, layer_of, point_of, read_at

M = TypeVar("M", bound=nn.Module)

_WORK_OF_A_THREAD = 1 << 26  # multiplications of a square matrix with the rows: some milliseconds

_EPS = {1e-6: "1e-06", 1e-4: "0.0001", 1e-3: "0.001", 1e-12: "1e-08 or less"}
_ACTIVATIONS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "gelu_tanh": ("GELU is the tanh approximation; the original's is exact (erf)", lambda: nn.GELU("tanh")),
    "quick_gelu": ("the activation is quick GELU (x * sigmoid(1.702 x)); the original's is exact", lambda: _Quick()),
    "silu": ("the activation is a SiLU; the original's is an exact GELU", nn.SiLU),
    "relu": ("the activation is a ReLU; the original's is an exact GELU", nn.ReLU),
    "no_activation": ("the activation is left out; the original's is an exact GELU", nn.Identity),
}


class _Quick(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class _OtherNorm(nn.Module):
    """A LayerNorm with its weights that computes something else."""

    def __init__(self, norm: nn.LayerNorm, compute: Callable[[Tensor, float], Tensor]) -> None:
        super().__init__()
        self.weight, self.bias, self._eps, self._compute = norm.weight, norm.bias, norm.eps, compute

    def forward(self, x: Tensor) -> Tensor:
        return self._compute(x, self._eps) * self.weight + self.bias


def _unbiased(x: Tensor, eps: float) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) * (x.var(-1, keepdim=True) + eps).rsqrt()


def _not_centred(x: Tensor, eps: float) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


_NORMS: dict[str, tuple[str, Callable[[Tensor, float], Tensor]]] = {
    "layernorm_unbiased": ("LayerNorm divides the variance by n - 1; the original divides it by n", _unbiased),
    "rms_norm": (
        "the norm is an RMSNorm, which does not subtract the mean; the original's is a LayerNorm",
        _not_centred,
    ),
}


@dataclass(frozen=True)
class Hypothesis:
    """A fault that a port may have.

    ``key``: stable name, for the JSON.
    ``words``: the fault in one sentence.
    ``output``: computes the reference's activation at the tap with this fault; NaN where it predicts nothing.
    """

    key: str
    words: str
    output: Callable[[], Tensor]


@dataclass(frozen=True)
class Evidence:
    """The reference and its recorded activations.

    ``model``: the reference.
    ``recorded``: its activations by tap.
    ``ids``: the ids they were recorded for, (batch, sequence).
    ``full_table``: the checkpoint's position table before any cut.
    """

    model: TextReference
    recorded: Activations
    ids: Tensor
    full_table: Tensor | None = None

    def read_by(self, tap: str) -> Tensor:
        """The recorded input of a tap's module."""
        return self.recorded[read_at(tap, list(self.recorded))]

    def block(self, tap: str) -> nn.Module:
        """The reference's layer that a tap belongs to."""
        return self.model.parts.layers[layer_of(tap)]

    def seen_at(self, tap: str, hypotheses: Iterable[Hypothesis]) -> Iterator[Hypothesis]:
        """Hypotheses of the enclosing tap, with the activation that the reference would have at ``tap``."""
        point = point_of(tap)
        kind, layer = reference_kind(self.model), layer_of(tap) if point.per_layer else 0
        module = self.model.get_submodule(point.module(kind, layer))

        def seen(hypothesis: Hypothesis) -> Tensor:
            found: list[Tensor] = []

            def read(tap: str, value: Tensor) -> Tensor:
                found.append(value)
                return value

            handle = hook_tap(tap, module, read)
            try:
                hypothesis.output()
            finally:
                handle.remove()
            return found[0] if found else torch.empty(0)  # with this fault the module at this tap does not run

        for hypothesis in hypotheses:
            yield Hypothesis(hypothesis.key, hypothesis.words, partial(seen, hypothesis))


class Run:
    """Runs a tap's module with tensors or attributes replaced during the run."""

    def __init__(self, evidence: Evidence, tap: str, module: nn.Module) -> None:
        self._module = module
        self.read = evidence.read_by(tap)
        self.tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self.mask = evidence.model.causal_mask(self.read)
        self._args: tuple[Tensor | None, ...] = (self.mask,) if point_of(tap) is LAYER else ()

    def having(self, tensors: Mapping[str, Tensor], *args: Tensor | None) -> Callable[[], Tensor]:
        call = args or self._args
        return lambda: functional_call(self._module, dict(tensors), (self.read, *call))

    def zero(self, *names: str) -> Callable[[], Tensor]:
        return self.having({n: torch.zeros_like(self.tensors[n]) for n in names})

    def setting(self, changes: Sequence[tuple[nn.Module, str, object]]) -> Callable[[], Tensor]:
        def output() -> Tensor:
            with _set(changes):
                out: Tensor = self._module(self.read, *self._args)
                return out

        return output

    def eps(self, kind: type[nn.Module], name: str) -> Iterator[Hypothesis]:
        """Hypotheses that all modules of a kind use another eps."""
        norms = [m for m in self._module.modules() if isinstance(m, kind)]
        for eps, said in _EPS.items():
            words = f"{name} runs at eps {said}; the original's is {norms[0].eps:g}"
            yield Hypothesis(f"{name}_eps_{eps:g}".lower(), words, self.setting([(m, "eps", eps) for m in norms]))

    def biases(self) -> Iterator[Hypothesis]:
        for name in self.tensors:
            if name.endswith("bias"):
                yield Hypothesis(f"no_bias:{name}", f"{name} is missing (zero)", self.zero(name))

    def activations(self) -> Iterator[Hypothesis]:
        """Hypotheses that all GELUs are another activation."""
        for key, (words, make) in _ACTIVATIONS.items():
            changes = [(parent, name, make()) for parent, name, _ in self._children(nn.GELU)]
            yield Hypothesis(key, words, self.setting(changes))

    def other_norms(self) -> Iterator[Hypothesis]:
        """Hypotheses that all LayerNorms, the module itself or those in it, compute something else."""
        for key, (words, compute) in _NORMS.items():
            if isinstance(self._module, nn.LayerNorm):
                yield Hypothesis(key, words, partial(_OtherNorm(self._module, compute), self.read))
            else:
                found = self._children(nn.LayerNorm)
                changes = [(parent, name, _OtherNorm(norm, compute)) for parent, name, norm in found]
                yield Hypothesis(key, words, self.setting(changes))

    def _children(self, kind: type[M]) -> list[tuple[nn.Module, str, M]]:
        """Parent, name and module of those of a kind."""
        return [
            (parent, name, child)
            for parent in self._module.modules()
            for name, child in parent.named_children()
            if isinstance(child, kind)
        ]


@contextmanager
def few_threads(rows: int, width: int) -> Iterator[None]:
    """As many threads of torch as are fast for layers of this width on so many rows.

    Threads cost more than they save where a product takes less than a millisecond: on a machine that does other work
    too, hundreds of runs of small layers took ten times as long with all threads as with one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, rows * width * width // _WORK_OF_A_THREAD)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _set(changes: Sequence[tuple[nn.Module, str, object]]) -> Iterator[None]:
    before = [(module, name, getattr(module, name)) for module, name, _ in changes]
    try:
        for module, name, value in changes:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
