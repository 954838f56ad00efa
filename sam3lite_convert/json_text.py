"""Parses the JSON of others within bounds: nesting, sizes of numbers, nothing but what JSON has."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

MOST_NESTED = 200  # levels; a dump of a model's calls has some 40
_MOST_DIGITS = 300  # of an integer, so that it is a finite float too
_ONE_DIGIT = bytes.maketrans(b"123456789", b"0" * 9)


def parse_json(
    data: bytes | str,
    encoding: str = "utf-8",
    nan: bool = False,
    pairs: Callable[[list[tuple[str, Any]]], object] | None = None,
) -> Any:
    """The value of a JSON text. ``nan``: whether NaN and infinity are taken, as Python writes them. ``pairs``: makes an
    object of its names and values, in place of ``dict``.

    Raises ValueError, in short words, if it is not JSON in this encoding, holds a number that no float can be, or NaN
    where that is not taken, or is nested more than 200 deep.
    """
    text = data.decode(encoding) if isinstance(data, bytes) else data
    try:
        found: Any = json.loads(
            text,
            parse_constant=float if nan else _constant,
            parse_float=_float,
            # Called for each of the 49,408 of a vocabulary, it would take longer than all the rest.
            parse_int=_integer if _has_long_number(text) else None,
            object_pairs_hook=pairs,
        )
    except RecursionError:
        raise _too_deep() from None
    _check_depth(found)
    return found


def _has_long_number(text: str) -> bool:
    return b"0" * _MOST_DIGITS in text.encode("utf-8", "surrogatepass").translate(_ONE_DIGIT)


def _check_depth(found: Any) -> None:
    level = [found]
    for _ in range(MOST_NESTED + 1):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> ValueError:
    return ValueError(f"it is nested more than {MOST_NESTED} deep")


def _constant(name: str) -> float:
    raise ValueError(f"it holds {name}, which JSON does not have")


def _float(text: str) -> float:
    found = float(text)
    if not math.isfinite(found):
        raise ValueError(f"it holds the number {text[:20]}, which is too large")
    return found


def _integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"it holds an integer of {len(text):,} digits")
    return int(text)
