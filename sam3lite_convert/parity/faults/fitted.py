"""Faults that are a number: another eps, or a factor. The number is fitted to what the candidate computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from original_ref.blocks import MultiHeadAttention, RepMixerBlock
from sam3lite_convert.parity.faults.evidence import Evidence, Hypothesis, Run
from sam3lite_convert.parity.faults.layers import layer_parts
from sam3lite_convert.parity.taps import EMBEDDINGS, FINAL_NORM, LAYER, point_of

_STEPS = 12  # of Gauss and Newton, which halve the distance at least where they lead anywhere
_SLOPE = 1e-2  # of the logarithm: the step that a derivative is measured over
_EPS_STARTS = tuple(10.0**n for n in range(-12, 0))
_FACTOR_STARTS = (0.125, 0.35, 1.5, 8.0)
_SAME = 1e-3  # of a factor: what a known number may differ from it


@dataclass(frozen=True)
class Family:
    """Faults that differ in one positive number.

    ``key``: stable name. ``words``: the fault in one sentence, with ``{}`` for the number.
    ``output``: what the reference computes with the number. ``starts``: where the search for it begins.
    """

    key: str
    words: str
    output: Callable[[float], Tensor]
    starts: Sequence[float] = _FACTOR_STARTS

    def fitted(self, candidate: Tensor, said: Callable[[float], str]) -> Hypothesis:
        """The fault with the number that comes closest to the candidate, as far as the search finds it.

        ``said``: the number in words.
        """
        wanted = candidate.double()

        def rest(log: float) -> Tensor:
            return self.output(math.exp(log)).double() - wanted

        def size(log: float) -> float:
            return float(rest(log).square().sum())

        with torch.inference_mode():
            log = min((math.log(start) for start in self.starts), key=size)
            for _ in range(_STEPS):
                now = rest(log)
                slope = (rest(log + _SLOPE) - now) / _SLOPE
                steep = float(slope.square().sum())
                step = -float((now * slope).sum()) / steep if steep else math.nan
                if not math.isfinite(step):
                    break  # the number changes nothing here
                log += max(-2.0, min(2.0, step))
                if abs(step) < 1e-7:
                    break
        number = math.exp(log)
        return Hypothesis(self.key, self.words.format(said(number)), partial(self.output, number))


def factor_in_words(factor: float, widths: Sequence[int]) -> str:
    """1.414 (sqrt(2)). ``widths``: sizes whose roots a factor may be."""
    known = {"2": 2.0, "1/2": 0.5, "sqrt(2)": 2**0.5, "1/sqrt(2)": 0.5**0.5}
    for width in widths:
        known |= {f"sqrt({width})": width**0.5, f"1/sqrt({width})": width**-0.5, f"{width}": float(width)}
    name = next((name for name, value in known.items() if abs(factor / value - 1) < _SAME), None)
    return f"{factor:.4g}" + (f" ({name})" if name else "")


def fitted_faults(evidence: Evidence, tap: str, candidate: Tensor) -> Iterator[Hypothesis]:
    """The faults of a tap that are a number, each with the number that explains the candidate best."""
    right = evidence.recorded[tap]
    widths = [right.shape[-1]]
    families = [Family("scaled_output", "what it returns is that of the original times {}", lambda by: right * by)]
    point = point_of(tap)
    if point is EMBEDDINGS:
        families += _of_the_embeddings(evidence)
    elif point is FINAL_NORM:
        families += _eps(Run(evidence, tap, evidence.model.parts.norm), evidence.model.parts.norm)
    elif point is LAYER:
        block = evidence.block(tap)
        families += list(_of_a_layer(Run(evidence, tap, block), block))
        heads = [m.head_dim for m in block.modules() if isinstance(m, MultiHeadAttention)]
        widths += heads[:1]
    for family in families:
        said = "{:.3g}".format if "_eps" in family.key else partial(factor_in_words, widths=widths)
        yield family.fitted(candidate, said)


def _of_the_embeddings(evidence: Evidence) -> list[Family]:
    tokens, found = evidence.model.parts.embedding(evidence.ids), evidence.model.positions(evidence.ids.shape[1])
    if found is None:
        return []
    rows = found.to(tokens.dtype)
    return [
        Family("scaled_tokens", "the token embedding is scaled by {}", lambda by: tokens * by + rows),
        Family("scaled_positions", "the position embedding is scaled by {}", lambda by: tokens + rows * by),
    ]


def _eps(run: Run, module: nn.Module) -> Iterator[Family]:
    """Another eps of all norms of a kind, and of each alone."""
    for kind, name in ((nn.LayerNorm, "LayerNorm"), (nn.BatchNorm2d, "BatchNorm")):
        norms = {path: norm for path, norm in module.named_modules() if isinstance(norm, kind)}
        chosen = {name: list(norms.values())} if norms else {}
        chosen |= {path: [norm] for path, norm in norms.items()} if len(norms) > 1 else {}
        for called, some in chosen.items():

            def output(eps: float, some: Sequence[nn.Module] = some) -> Tensor:
                return run.setting([(norm, "eps", eps) for norm in some])()

            key = f"{name}_eps".lower() + ("" if called == name else f":{called}")
            words = f"{called} runs at eps {{}}; the original's is {some[0].eps:g}"
            yield Family(key, words, output, _EPS_STARTS)


def _of_a_layer(run: Run, block: nn.Module) -> Iterator[Family]:
    yield from _eps(run, block)

    def scaled(*names: str) -> Callable[[float], Tensor]:
        return lambda by: run.having({name: run.tensors[name] * by for name in names})()

    if isinstance(block, RepMixerBlock):
        for name, what in (("token_mixer.layer_scale", "the token mixer"), ("layer_scale", "the feed-forward")):
            yield Family(f"scaled:{name}", f"what {what} adds is scaled by {{}}", scaled(name))
        return
    where = layer_parts(block)
    fused = [f"{where.qkv}{leaf}" for leaf in ("weight", "bias")]

    def query(by: float) -> Tensor:
        made = {}
        for name in fused:
            q, k, v = run.tensors[name].chunk(3)
            made[name] = torch.cat([q * by, k, v])
        return run.having(made)()

    yield Family("scaled_scores", "attention's scores are those of the original times {}", query)
    for path, what in ((where.out, "attention"), (where.fc2, "the feed-forward")):
        words = f"what {what} adds is scaled by {{}}"
        yield Family(f"scaled:{path}", words, scaled(f"{path}.weight", f"{path}.bias"))
