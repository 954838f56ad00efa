"""Sizes and layers that the keys and shapes of a checkpoint show, and what is assumed where they show none."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from sam3lite_convert.errors import UnsoundPlan
from sam3lite_convert.plan.architecture import HEAD_DIM, Shapes

_MOST_LAYERS = 1000  # in one stack; a released model has 32


class Votes:
    """Sizes by majority vote of all tensors that show them; a tensor of the wrong rank has no vote."""

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes
        self._ranked: dict[int, Shapes] = {}

    def within(self, *prefixes: str) -> Votes:
        """The tensors of some modules: a pattern is tried on every key, and a detector has 1,500."""
        return Votes({key: shape for key, shape in self._shapes.items() if key.startswith(prefixes)})

    def _of(self, rank: int) -> Shapes:
        """The tensors that vote where ``rank`` is asked for, in the file's order."""
        if rank not in self._ranked:
            some = {k: s for k, s in self._shapes.items() if len(s) == (1 if k.endswith("bias") else rank)}
            self._ranked[rank] = some
        return self._ranked[rank]

    def __call__(self, *witnesses: tuple[str, int, int]) -> int | None:
        """``witnesses``: pattern of the keys, axis that shows the size, rank (a bias always has one axis)."""
        count: Counter[int] = Counter()
        for pattern, axis, rank in witnesses:
            matches = re.compile(pattern).fullmatch
            for key, shape in self._of(rank).items():
                if matches(key):
                    count[shape[axis]] += 1
        return count.most_common(1)[0][0] if count else None

    @property
    def names(self) -> Iterable[str]:
        return self._shapes

    def indices(self, pattern: str) -> tuple[int, ...]:
        """The layer numbers 0..n-1 of the keys. Gaps are filled, so that their tensors are reported missing.

        Numbers from 1,000 on are ignored: their keys then have no target.
        """
        seen = [n for n in self.showing(pattern) if n < _MOST_LAYERS]
        return tuple(range(max(seen) + 1)) if seen else ()

    def showing(self, pattern: str) -> set[int]:
        """The layer numbers whose keys match."""
        compiled = re.compile(pattern)
        return {int(m.group(1)) for m in map(compiled.match, self._shapes) if m}


def text_heads(hidden: int, assumed: dict[str, str]) -> int:
    """The attention heads of a text encoder of this width; an assumption is added to ``assumed``.

    Raises UnsoundPlan if the width is not a whole number of heads.
    """
    if hidden < HEAD_DIM:
        assumed["num_attention_heads"] = (
            f"1; known models have heads of width {HEAD_DIM}, and this one has width {hidden}"
        )
    elif hidden % HEAD_DIM:
        raise UnsoundPlan(
            f"unknown text encoder: its width {hidden} is not a multiple of the head width {HEAD_DIM}",
            "unknown_text_encoder",
        )
    return max(hidden // HEAD_DIM, 1)


def assume_missing(sizes: dict[str, int | None], usual: Mapping[str, int], assumed: dict[str, str]) -> None:
    """Give the sizes that no tensor shows their usual values, and say so in ``assumed``."""
    for name, value in usual.items():
        if sizes[name] is None:
            sizes[name] = value
            assumed[name] = f"{value}; the tensor with this size is missing"
