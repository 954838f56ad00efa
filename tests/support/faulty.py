"""Candidates that are wrong in one way, for tests of what is found and named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sam3lite_convert.parity.encoders import Encoder
from sam3lite_convert.parity.setup import Setup

Make = Callable[[Setup], Encoder]


def said(**config: Any) -> Make:
    """The candidate by another config."""
    return lambda setup: setup.candidate(config=setup.config | config)


def spoilt(spoil: Callable[[Encoder], object]) -> Make:
    """The candidate, changed when it is finished."""

    def make(setup: Setup) -> Encoder:
        candidate = setup.candidate()
        spoil(candidate)
        return candidate

    return make
