"""Which rule of a layout takes each tensor of a checkpoint, whether a plan of it is sound or not."""

from __future__ import annotations

import fnmatch
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sam3lite_convert.checkpoint.index import Checkpoint
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.plan.apart import other_attention
from sam3lite_convert.plan.architecture import TEXT
from sam3lite_convert.plan.names import Names, released_key
from sam3lite_convert.plan.plan import OUTSIDE_TEXT
from sam3lite_convert.plan.tables import Layout, Rule
from sam3lite_convert.plan.targets import written_name
from sam3lite_convert.plan.twins import reason_of

Outcome = Literal["mapped", "dropped", "left", "unmatched"]


@dataclass(frozen=True)
class Taken:
    """What the rules of a layout make of one tensor of a checkpoint.

    key: its key in the checkpoint. canonical: its name without the spelling of the file.
    outcome: mapped; dropped by a rule; left out (a second spelling, outside of the component, by the user's choice);
        or unmatched, if no rule takes it.
    rules: that take it; more than one is a fault, unless all of them drop it.
    targets: their keys in the written files. names: these, and all that the tensor and its targets are called.
    reason: why it has no target; empty if it has one.
    """

    key: str
    canonical: str
    outcome: Outcome
    rules: tuple[Rule, ...] = ()
    targets: tuple[str, ...] = ()
    names: frozenset[str] = frozenset()
    reason: str = ""


def taken(checkpoint: Checkpoint, names: Names, layout: Layout, component: str) -> list[Taken]:
    """Every tensor of a checkpoint, in its order."""
    found: dict[str, Taken] = {}
    turned = checkpoint.turned_back
    for canonical, keys in names.sources.items():
        for key in keys:
            parts = turned.keys.get(key, ()) if turned else ()
            called = frozenset({key, canonical, released_key(canonical), *parts})
            if key is not keys[0]:
                found[key] = Taken(key, canonical, "left", names=called, reason=reason_of(keys[0]))
            elif component == "text" and not canonical.startswith(TEXT):
                found[key] = Taken(key, canonical, "left", names=called, reason=OUTSIDE_TEXT)
            else:
                why = turned.why.get(key) if turned else None
                found[key] = _by_rules(key, canonical, layout, component, called, why or "no rule takes it")
    for key, (_, reason) in names.left.items():
        found[key] = Taken(key, key, "left", names=frozenset({key}), reason=reason)
    return [found[key] for key in checkpoint.tensors]


def _by_rules(key: str, canonical: str, layout: Layout, component: str, called: frozenset[str], why: str) -> Taken:
    takers = layout.takers(canonical)
    rules = tuple(rule for rule, _ in takers)
    if not takers:
        return Taken(key, canonical, "unmatched", names=called, reason=why)
    if not any(targets for _, targets in takers):
        return Taken(key, canonical, "dropped", rules, names=called, reason=rules[0].reason)
    targets = tuple(target for _, made in takers for target in made)
    written = tuple(written_name(target, layout, component)[1] for target in targets)
    return Taken(key, canonical, "mapped", rules, written, called.union(targets, written))


def glob(pattern: str, attention: bool = False) -> Callable[[Taken], bool]:
    """Whether a shell pattern matches one of the names of a tensor as a whole; upper and lower case differ.

    attention: whether names under which the same attention could stand, packed or apart, count too.
    Raises CannotRun if it is not a pattern.
    """
    try:
        match = re.compile(fnmatch.translate(pattern)).match
    except re.error as fault:
        raise CannotRun(f"{pattern} is not a pattern: {fault}", "usage") from fault

    def matches(one: Taken) -> bool:
        others = (other for name in one.names for other in other_attention(name)) if attention else ()
        return any(map(match, itertools.chain(one.names, others)))

    return matches


def pieces(pattern: str) -> list[str]:
    """The texts of a shell pattern between the characters that stand for others."""
    return [piece for piece in re.split(r"[*?]|\[[^]]*\]", pattern) if piece]


def is_glob(text: str) -> bool:
    """Whether a text holds a character that stands for others in a shell pattern."""
    return any(character in text for character in "*?[")
