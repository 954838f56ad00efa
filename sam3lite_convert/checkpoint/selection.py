"""What the user states about a checkpoint: which of its dicts holds the weights, a prefix to take off, keys to drop."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from sam3lite_convert.bounded import BoundedPattern, compile_pattern
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.quoting import shell_word


@dataclass(frozen=True)
class Selection:
    """How a file is to be read, where the file itself leaves it open.

    state_dict_key: path of the dict that holds the weights, its parts joined with dots; None if there is only one.
    strip_prefix: text that is taken off the front of keys. Keys without it that hold another copy of the model are
        left out.
    drop: regular expression that matches whole keys, and the reason why these may go.
    passed_over: whether what the file has nothing for is passed over, as where a receipt states it.
    """

    state_dict_key: str | None = None
    strip_prefix: tuple[str, ...] = ()
    drop: tuple[tuple[str, str], ...] = ()
    passed_over: bool = False

    def dropped(self, names: Mapping[str, str]) -> Iterator[tuple[str, str, list[str]]]:
        """Each pattern with its reason and the keys that it matches. ``names``: another name of each key, which may
        match as well.

        Raises CannotRun if a match takes too long.
        """
        for pattern, reason in self.drop:
            match = BoundedPattern(pattern, "--drop").fullmatch
            yield pattern, reason, [key for key, name in names.items() if match(key) or match(name)]

    @property
    def options(self) -> str:
        """The options that state it, as typed, each with a space before it."""
        words = [] if self.state_dict_key is None else ["--state-dict-key", self.state_dict_key]
        for prefix in self.strip_prefix:
            words += ["--strip-prefix", prefix]
        for pattern, reason in self.drop:
            words += ["--drop", pattern, "--reason", reason]
        return "".join(f" {shell_word(word)}" for word in words)


_MOST_PATTERNS = 100  # a receipt of others states them too
NOTHING_STATED = Selection()


def selection(
    state_dict_key: str | None = None,
    strip_prefix: Iterable[str] | None = None,
    drop: Iterable[str] | None = None,
    reason: Iterable[str] | None = None,
) -> Selection:
    """The selection that these options state.

    Raises CannotRun if a prefix is empty, if a pattern is no regular expression, or if patterns and reasons are not
    as many.
    """
    prefixes, patterns, reasons = tuple(strip_prefix or ()), tuple(drop or ()), tuple(reason or ())
    if "" in prefixes:
        raise CannotRun("--strip-prefix is empty", "usage")
    if len(patterns) != len(reasons) or not all(r.strip() for r in reasons):
        raise CannotRun(
            f"each --drop needs a --reason, which is kept in the receipt: there are {len(patterns)} and {len(reasons)}",
            "usage",
        )
    if len(patterns) > _MOST_PATTERNS:
        raise CannotRun(f"there are {len(patterns):,} --drop; at most {_MOST_PATTERNS} are taken", "usage")
    for pattern in patterns:
        shown = pattern if len(pattern) <= 100 else f"{pattern[:100]}..."
        try:
            compile_pattern(pattern)
        except ValueError as fault:
            meant = re.escape(shown).replace(r"\*", ".*")
            raise CannotRun(
                f"--drop {shown}: not a regular expression ({fault}). It has to match whole keys, as in the mapping "
                f"tables; with * for any text that is {meant}",
                "usage",
            ) from fault
    return Selection(state_dict_key, prefixes, tuple(zip(patterns, reasons, strict=True)))


def stated(receipt: Mapping[str, object] | None) -> Selection:
    """The selection that a receipt states; none where it states none, or in another form than this tool's."""
    options = (receipt or {}).get("options")
    if not isinstance(options, Mapping):
        return Selection()
    key, prefixes, drop = (options.get(name) for name in ("state_dict_key", "strip_prefix", "drop"))
    pairs = drop.items() if isinstance(drop, Mapping) else ()
    found = selection(
        key if isinstance(key, str) else None,
        [p for p in prefixes if isinstance(p, str)] if isinstance(prefixes, list) else (),
        [p for p, r in pairs if isinstance(p, str) and isinstance(r, str)],
        [r for p, r in pairs if isinstance(p, str) and isinstance(r, str)],
    )
    return replace(found, passed_over=True)
