"""Canonical names of the tensors in a file; twins are two names of one tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from sam3lite_convert.checkpoint.index import Checkpoint
from sam3lite_convert.checkpoint.selection import Selection
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.plan.architecture import TEXT, VISION
from sam3lite_convert.plan.tables import Rule, Spellings, remember

OTHER_COPY = "other copy"  # the kind of dropped tensors that belong to another copy of the model


# Encoders that come in two kinds: what keys of the one and of the other begin with, behind the prefix of both.
_ENCODERS = {TEXT: ("projector.", "resizer."), f"{VISION}trunk.": ("blocks.", "model.")}


@dataclass(frozen=True)
class Names:
    """The canonical names of a file.

    ``sources``: canonical name -> its keys in the file, in the file's order.
    ``prefix``: the most frequent prefix of detector keys.
    ``prefixes``: prefix -> number of keys.
    ``spellings``: name of another spelling rule -> number of keys that it rewrote.
    ``taken_off``: name of a wrapper, or prefix of ``--strip-prefix`` -> number of keys that it was taken off.
    ``copies``: prefix that names a copy of the model, empty for none -> the keys with it.
    ``left``: key that the user's selection leaves out -> its kind and the reason.
    ``applied``: name of a spelling rule, prefixes included -> number of keys that it rewrote.
    """

    sources: dict[str, tuple[str, ...]]
    prefix: str
    prefixes: dict[str, int]
    spellings: dict[str, int]
    taken_off: dict[str, int]
    copies: dict[str, tuple[str, ...]]
    left: dict[str, tuple[str, str]]
    applied: dict[str, int]

    @property
    def twins(self) -> dict[str, tuple[str, ...]]:
        """Canonical names with more than one key in the file."""
        return {name: keys for name, keys in self.sources.items() if len(keys) > 1}


def canonical_names(checkpoint: Checkpoint, rules: tuple[Rule, ...]) -> Names:
    """Apply the user's selection, and then the spelling rules in order, to every key of the file.

    Raises CannotRun if no key has a prefix, or matches a pattern, that the user states.
    """
    sources: dict[str, list[str]] = {}
    prefixes: Counter[str] = Counter()
    spellings: Counter[str] = Counter()
    applied: Counter[str] = Counter()
    taken_off: Counter[str] = Counter()
    copies: dict[str, list[str]] = {}
    chosen = checkpoint.selection
    stripped = chosen.strip_prefix
    spelled = {}
    for key in checkpoint.tensors:
        prefix = next((p for p in stripped if key.startswith(p) and key != p), "")
        spelled[key] = prefix, spelled_key(key.removeprefix(prefix), rules)
    left = _dropped(chosen, {key: s.name for key, (_, s) in spelled.items()})
    if stripped:
        rest = [key for key in spelled if key not in left]
        found = {key: s.copy for key, (prefix, s) in spelled.items() if s.copy and not prefix}
        for key, copy in (_other_copies(rest, stripped) | found).items():
            of = f"under {copy}" if copy else "without a prefix"
            left.setdefault(key, (f"{OTHER_COPY} ({of})", f"another copy of the model, {of}"))
    lost = [p for p in stripped if p not in {prefix for prefix, _ in spelled.values()}]
    if lost and not chosen.passed_over:
        raise CannotRun(f"{checkpoint.path.name}: no key starts with {lost[0]} (--strip-prefix)", "unknown_prefix")
    own = {made.name for key, (_, made) in spelled.items() if key not in left and not made.base}
    replaced = _replaced(own, {made.name for _, made in spelled.values() if made.base})
    for key, (_, made) in spelled.items():
        if made.base and (made.name in own or made.name.startswith(replaced)):
            left.setdefault(key, (f"{OTHER_COPY} (base model)", "of the base model; the file has its own"))
    for key, (prefix, made) in spelled.items():
        if key in left:
            continue
        spellings.update(made.spellings)
        applied.update(made.rules)
        stated = (prefix.removesuffix("."),) if prefix else ()
        taken_off.update(list(dict.fromkeys(stated + made.wrappers)))
        if not made.name.startswith("tracker."):
            prefixes[key[: len(prefix) + made.front]] += 1
        sources.setdefault(made.name, []).append(key)
        copies.setdefault(made.copy, []).append(key)
    most = prefixes.most_common(1)[0][0] if prefixes else ""
    return Names(
        {n: tuple(keys) for n, keys in sources.items()}, most, dict(prefixes), dict(spellings),
        dict(taken_off.most_common()), {c: tuple(keys) for c, keys in copies.items()}, left,
        dict(applied),
    )  # fmt: skip


def _replaced(own: set[str], base: set[str]) -> tuple[str, ...]:
    """Prefixes of encoders of which the file has its own, and the model that it was trained from has another kind: that
    is no part of the file's model. ``own``, ``base``: canonical names of both."""

    def kinds(names: set[str], prefix: str, marks: tuple[str, ...]) -> set[str]:
        return {mark for mark in marks for name in names if name.startswith(prefix + mark)}

    found = ((prefix, kinds(own, prefix, marks), kinds(base, prefix, marks)) for prefix, marks in _ENCODERS.items())
    return tuple(prefix for prefix, mine, theirs in found if mine and theirs and mine.isdisjoint(theirs))


def released_key(name: str) -> str:
    """The key of a canonical name in a released file."""
    return name if name.startswith("tracker.") else f"detector.{name}"


def _dropped(chosen: Selection, names: dict[str, str]) -> dict[str, tuple[str, str]]:
    """The keys that ``--drop`` leaves out. ``names``: canonical name by key; a pattern may match either.

    Raises CannotRun if a pattern matches none.
    """
    out: dict[str, tuple[str, str]] = {}
    for pattern, reason, found in chosen.dropped(names):
        if not found and not chosen.passed_over:
            raise CannotRun(f"no key matches {pattern} (--drop); it has to match a whole key", "unknown_pattern")
        for key in found:
            out.setdefault(key, (f"--drop {pattern}", reason))
    return out


class Spelled(NamedTuple):
    """A key under its canonical name.

    front: length of the prefix that was taken off.
    spellings: names of the other rules that rewrote it. wrappers: what was taken off, anywhere. Both in the order in
        which the rules applied, each once.
    copy: what stands in the key up to the name of a copy of the model; empty without one.
    base: whether it belongs to the model that the file's own was trained from.
    rules: names of all rules that rewrote it, each once.
    """

    name: str
    front: int
    spellings: tuple[str, ...]
    wrappers: tuple[str, ...]
    copy: str
    base: bool
    rules: tuple[str, ...]


_LONGEST_NAME = 10_000  # characters; a key has at most 1,000


def spelled_key(key: str, rules: tuple[Rule, ...]) -> Spelled:
    """Apply the spelling rules, in order, to one key."""
    if not isinstance(rules, Spellings):
        return _spelled(key, rules)
    found = rules.known.get(key)
    if not isinstance(found, Spelled):
        found = _spelled(key, rules)
        remember(rules.known, key, found)
    return found


def _spelled(key: str, rules: tuple[Rule, ...]) -> Spelled:
    name, front, copy, base = key, 0, "", False
    spellings: dict[str, None] = {}
    applied: dict[str, None] = {}
    wrappers: dict[str, None] = {}
    for repeated, group in groupby(rules, lambda rule: rule.repeat):
        some, again = tuple(group), True
        while again:
            again = False
            for rule in some:
                made = rule.apply(name)
                if made is not None and len(made[0]) > _LONGEST_NAME:
                    raise CannotRun(
                        f"mapping table {rule.table}, rule [{rule.name}]: of {key[:100]} it makes a name of "
                        f"{len(made[0]):,} characters",
                        "bad_table",
                    )
                if made is None or (repeated and len(made[0]) >= len(name)):
                    continue
                applied[rule.name] = None
                if wrapper := rule.wrapper(name):
                    wrappers[wrapper] = None
                elif not rule.name.startswith("prefix "):
                    spellings[rule.name] = None
                if (rule.name.startswith("prefix ") or wrapper) and name.endswith(made[0]):
                    front += len(name) - len(made[0])
                    copy = key[:front] if rule.copies else copy
                    base = base or rule.base
                name = made[0]
                if repeated:
                    again = True  # what stands in front is taken off first, so that it is told from what stands behind
                    break
    return Spelled(name, front, tuple(spellings), tuple(wrappers), copy, base, tuple(applied))


def _other_copies(keys: Iterable[str], stripped: tuple[str, ...]) -> dict[str, str]:
    """The keys without these prefixes that belong to another copy of what has them, with the prefix of that copy.

    Another copy holds at least half of the names under another prefix, or under none.
    """
    rests = {key[len(p) :] for key in keys for p in stripped if key.startswith(p)}
    others = [key for key in keys if not key.startswith(stripped)]
    found: Counter[str] = Counter()
    for key in others:
        at = 0
        while at < len(key):
            if key[at:] in rests:
                found[key[:at]] += 1
                break
            at = key.find(".", at) + 1 or len(key)
    copies = [prefix for prefix, n in found.items() if 2 * n >= len(rests)]
    out = {}
    for key in others:
        of = next((p for p in copies if key.startswith(p) and (p or key in rests)), None)
        if of is not None:
            out[key] = of
    return out
