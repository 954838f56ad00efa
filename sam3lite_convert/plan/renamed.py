"""Finds rules for keys that stand under other names: what ``spellings.ini`` lacks for a plan to be sound.

A key without a rule and a key that the tables know are compared part by part. What lies between the parts that they
share at both ends is a change of name, and a change that explains many keys is tried: the plan is made again with it.
Only a change with which more of the file has its place, and nothing is at fault that was not before, is proposed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from sam3lite_convert.plan.names import Names, spelled_key
from sam3lite_convert.plan.operations import OPERATIONS
from sam3lite_convert.plan.tables import SPELLINGS, Layout, Rule
from sam3lite_convert.plan.unsound import PlanFault

_MOST_RULES = 10
_TRIED, _TRIED_OF_A_WHOLE = 6, 2  # changes that are tried for one rule
_ALIKE = 8  # keys that differ in numbers only, and are compared
_COMPARED = 400  # keys in all
_FEW = 8  # keys that make a change likely although little else of their names is known
_LEAST = 50  # of so many keys that have no place, a change explains at least one
_PLAIN = re.compile(r"[A-Za-z0-9_\-.]+")
INDEX = "99999991"  # stands in a key for the number of a layer

Parts = tuple[str | None, ...]  # of a key; None for the number of a layer


class Trial(NamedTuple):
    """What planning gives with some spellings.

    ranks: by canonical name, the number of dimensions. faults: None if no architecture can be inferred.
    """

    names: Names
    ranks: Mapping[str, int]
    faults: Sequence[PlanFault] | None


@dataclass(frozen=True)
class Renaming:
    """A rule for ``spellings.ini`` that gives keys their known names.

    rule: to be put at the end of the table. old, new: the parts of a name that differ, as text; both may be empty.
    keys: the keys of the file that it takes in.
    becomes: the known names that it gives them.
    takes: the rules of the layout that then take them.
    instead: other names that fit as well.
    """

    rule: Rule
    old: str
    new: str
    keys: tuple[str, ...]
    becomes: tuple[str, ...]
    takes: tuple[Rule, ...]
    instead: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The rule as it stands in a table."""
        entries = {"source": self.rule.pattern, "target": self.rule.targets[0]}
        if self.rule.repeat:
            entries["repeat"] = "yes"
        entries["example"] = self.rule.example
        return "\n".join([f"[{self.rule.name}]", *(f"{name:<7} = {value}" for name, value in entries.items())])


class KnownKey(NamedTuple):
    """A source key that a layout has a place for.

    parts: its parts. rank: the number of dimensions of the tensor.
    """

    parts: Parts
    rank: int
    rule: Rule

    def named(self, numbers: Sequence[str]) -> str:
        """Its name, with these numbers for those of layers; 0 for those that are not given."""
        left = iter(numbers)
        return ".".join(next(left, "0") if part is None else part for part in self.parts)


def known_keys(layout: Layout) -> list[KnownKey]:
    """Every source key that fills a target of the layout."""
    out: dict[Parts, KnownKey] = {}
    for template, _, sizes in layout.shapes:
        target = template.replace("{i}", INDEX)
        for rule in layout.rules:
            for source in rule.sources(target) if rule.targets else ():
                parts = tuple(None if part == INDEX else part for part in source.split("."))
                out.setdefault(parts, KnownKey(parts, len(sizes), rule))
    return list(out.values())


def homeless(names: Iterable[str], layout: Layout) -> list[str]:
    """Those of these canonical names that no rule of the layout takes, or that a rule takes to a target that the layout
    does not have."""
    places = {folded(template.replace("{i}", "0")) for template, _, _ in layout.shapes}
    out = []
    for name in names:
        made = [targets for _, targets in layout.takers(name)]
        if not made or any(folded(target) not in places for targets in made for target in targets):
            out.append(name)
    return out


def renamings(
    first: Trial,
    spellings: tuple[Rule, ...],
    layout: Layout,
    known: Sequence[KnownKey],
    attempt: Callable[[tuple[Rule, ...]], Trial],
    aside: Collection[str] = (),
) -> tuple[list[Renaming], Trial]:
    """The rules that are found, in their order, and what planning gives with them.

    first: what planning gives with ``spellings`` alone.
    known: the keys of the layout.
    attempt: plans with other spellings.
    aside: names that are known to be something else.
    """
    found: list[Renaming] = []
    now = first
    while len(found) < _MOST_RULES:
        lost = [name for name in homeless(now.names.sources, layout) if name not in aside]
        good = _tried(lost, now, spellings, layout, known, attempt) if lost else []
        if not good:
            break
        (change, rule, then), others = good[0], good[1:]
        becomes = {name: new for name in lost if (new := spelled_key(name, (rule,)).name) != name}
        found.append(
            Renaming(
                rule,
                _text(change.old),
                _text(change.new),
                keys=tuple(key for name in becomes for key in now.names.sources[name][:1]),
                becomes=tuple(becomes.values()),
                takes=tuple(
                    dict.fromkeys(r for new in becomes.values() for r in layout.rules if r.apply(new) is not None)
                ),
                instead=tuple(_text(other.new) for other, _, _ in others),
            )
        )
        spellings, now = (*spellings, rule), then
    return found, now


def _takes(names: Iterable[str], layout: Layout) -> tuple[Rule, ...]:
    """The rules of the layout that take these names."""
    return tuple(dict.fromkeys(r for name in names for r in layout.rules if r.apply(name) is not None))


def _tried(
    lost: Sequence[str],
    now: Trial,
    spellings: tuple[Rule, ...],
    layout: Layout,
    known: Sequence[KnownKey],
    attempt: Callable[[tuple[Rule, ...]], Trial],
) -> list[tuple[_Change, Rule, Trial]]:
    """The likeliest change with which the plan is better, and others of the same parts with which it is as good."""
    good: list[tuple[_Change, Rule, Trial]] = []
    # A file that lacks nothing has rarely renamed anything: at most the last layers of a stack.
    whole = now.faults is not None and all(fault.kind == "unmatched" for fault in now.faults)
    for change in _changes(lost, known, now.ranks)[: _TRIED_OF_A_WHOLE if whole else _TRIED]:
        if good and (change.old != good[0][0].old or change.weight < good[0][0].weight):
            continue
        rule = change.rule(now.names.sources, lost, {r.name for r in spellings})
        if rule is None:
            continue
        then = attempt((*spellings, rule))
        if _better(then, now, layout) and (not good or _left(then) == _left(good[0][2])):
            good.append((change, rule, then))
    return good


def _left(trial: Trial) -> int | None:
    return None if trial.faults is None else len(trial.faults)


_OF_NAMES = ("unmatched", "unknown_target", "unfilled", "missing_component")


def _better(then: Trial, now: Trial, layout: Layout) -> bool:
    """Whether more of the file has its place, with no fault of a kind that was not there before."""
    if len(then.names.twins) > len(now.names.twins):
        return False
    if now.faults is None:
        lost = [len(homeless(trial.names.sources, layout)) for trial in (then, now)]
        return then.faults is not None or lost[0] < lost[1]
    if then.faults is None:
        return False
    wrong = [sum(fault.kind not in _OF_NAMES for fault in trial.faults or ()) for trial in (then, now)]
    return wrong[0] <= wrong[1] and len(then.faults) < len(now.faults)


@dataclass(frozen=True)
class _Change:
    """A change of name: the parts ``old`` of a key are ``new`` in the known one.

    old, new: parts; None for the number of a layer, in both in the same order.
    at: the parts in front of it in each key, and behind it.
    weight: the number of keys that it explains. likeness: of the two names, from 0 to 1.
    """

    old: Parts
    new: Parts
    at: tuple[tuple[Parts, Parts], ...] = ()
    weight: int = 0
    everywhere: bool = False

    @property
    def likeness(self) -> float:
        return difflib.SequenceMatcher(None, _text(self.old), _text(self.new)).ratio()

    @property
    def rule_name(self) -> str:
        return f"{_text(self.old)} is {_text(self.new)}" if self.new else f"without {_text(self.old)}"

    def rule(self, names: Iterable[str], meant: Sequence[str], taken: set[str]) -> Rule | None:
        """The shortest spelling rule that makes the change in keys that are meant and in no other name.

        taken: names of rules that there are. None if no rule does it.
        """
        others = set(names) - set(meant)
        fronts = [front for front, _ in self.at]
        behind = [rest for _, rest in self.at]
        for head, rest in ((False, False), (True, False), (True, True))[: 1 if self.everywhere else 3]:
            source, target = self._sides(fronts if head else None, behind if rest else None)
            fitting = re.compile(source).fullmatch
            fits = [name for name in meant if fitting(name)]
            if not fits or any(map(fitting, others)):
                continue
            example = min(fits, key=len)
            label = self.rule_name if self.old else f"in front of {_text((behind[0] or ('?',))[:1])}: {_text(self.new)}"
            while label in taken:
                label += "_"
            rule = Rule(label, SPELLINGS, OPERATIONS["keep"], (source,), (target,), example, repeat=self.everywhere)
            try:
                rule.check(backwards=False)
            except (ValueError, re.error):
                continue
            return rule
        return None

    def _sides(self, fronts: Sequence[Parts] | None, behind: Sequence[Parts] | None) -> tuple[str, str]:
        """The source and the target of the rule, for keys with exactly these parts in front and behind if given."""
        numbers = iter(f"n{n}" for n in range(1, 9))
        old = r"\.".join(rf"(?P<{next(numbers)}>\d+)" if p is None else re.escape(p) for p in self.old)
        numbers = iter(f"n{n}" for n in range(1, 9))
        new = ".".join("{" + next(numbers) + "}" if part is None else part for part in self.new)
        front = {bool(front) for front, _ in self.at}
        rest = {bool(rest) for _, rest in self.at}
        if not self.old:  # nothing tells where it is but what stands beside it
            fronts = fronts or [front for front, _ in self.at]
            behind = behind or [rest[:1] for _, rest in self.at]
        if fronts is not None and True in front:
            head = _either(fronts) + r"\."
        else:
            head = r"(?:.+?\.)??" if self.everywhere else r".+\." if front == {True} else r"(?:.+\.)?"
        tail = ".+" if behind is None else _either(behind) + ("" if self.old else r"(?:\..+)?")
        if not self.new and rest == {False}:
            return rf"(?P<head>{head.removesuffix(chr(92) + '.')})\.{old}", "{head}"
        source = f"(?P<head>{head})" if front != {False} else ""
        source += old + (r"\." if old and rest != {False} else "")
        target = ("{head}" if front != {False} else "") + new
        if rest == {True}:
            source += f"(?P<rest>{tail})"
            target += ".{rest}" if new else "{rest}"
        elif rest == {True, False}:
            source = source.removesuffix(r"\.") + rf"(?P<rest>\.{tail}|)"
            target += "{rest}"
        return source, target


def _either(every: Sequence[Parts]) -> str:
    """A regular expression for one of these rows of parts."""
    texts = dict.fromkeys(r"\.".join(r"\d+" if p is None else re.escape(p) for p in parts) for parts in every)
    return next(iter(texts)) if len(texts) == 1 else f"(?:{'|'.join(texts)})"


def _text(parts: Parts) -> str:
    return ".".join("N" if part is None else part for part in parts)


def folded(name: str) -> str:
    """The name with every number that is a whole part written as ``#``."""
    return ".".join("#" if part.isdecimal() else part for part in name.split("."))


def _changes(names: Sequence[str], known: Sequence[KnownKey], ranks: Mapping[str, int]) -> list[_Change]:
    """Changes of names that would make known keys of some of these, the likeliest first.

    ranks: of all canonical names in the file. A known key that is there already is not meant, nor one of another rank.
    """
    alike: dict[str, list[str]] = {}
    for name in names:
        if _PLAIN.fullmatch(name):
            alike.setdefault(folded(name), []).append(name)
    some = [name for group in alike.values() for name in group[:_ALIKE]][:_COMPARED]
    places: dict[tuple[Parts, Parts], dict[tuple[Parts, Parts], None]] = {}
    weights: dict[tuple[Parts, Parts], set[str]] = {}
    for name in some:
        parts = name.split(".")
        for one in known:
            found = _between(parts, one.parts) if one.rank == ranks[name] else None
            if found is None or not _plausible(found) or one.named(found.numbers) in ranks:
                continue
            places.setdefault((found.old, found.new), {})[found.front, found.rest] = None
            weights.setdefault((found.old, found.new), set()).add(name)
    changes = [
        _Change(*change, at=tuple(at), weight=sum(len(alike[f]) for f in {folded(n) for n in weights[change]}))
        for change, at in places.items()
    ]
    enough = len(names) // _LEAST
    likely = [c for c in changes if c.weight >= _FEW or any(len(front) + len(rest) > 1 for front, rest in c.at)]
    likely += _inserted(alike, known)
    likely = sorted((c for c in likely if c.weight >= enough), key=lambda c: (-c.weight, len(c.old) + len(c.new)))
    return sorted(likely[:_COMPARED], key=lambda c: (-c.weight, len(c.old) + len(c.new), -c.likeness))


class _Between(NamedTuple):
    old: Parts
    new: Parts
    front: Parts
    rest: Parts
    numbers: tuple[str, ...]


def _between(parts: Sequence[str], known: Parts) -> _Between | None:
    """What lies between the ends that two keys share; None if they are the same, or the numbers of layers do not
    correspond."""
    most = min(len(parts), len(known))
    n = 0
    while n < most and _same(parts[n], known[n]):
        n += 1
    m = 0
    while m < most - n and _same(parts[-1 - m], known[len(known) - 1 - m]):
        m += 1
    old, new = tuple(parts[n : len(parts) - m]), known[n : len(known) - m]
    if not old and not new:
        return None
    layers = new.count(None)
    if layers and sum(part.isdecimal() for part in old) != layers:
        return None
    general: Parts = tuple(None if layers and part.isdecimal() else part for part in old)
    front, rest = known[:n], known[len(known) - m :]
    shared = [a for a, b in zip((*parts[:n], *parts[len(parts) - m :]), (*front, *rest), strict=True) if b is None]
    inside = [part for part in old if part.isdecimal()] if layers else []
    numbers = [*shared[: front.count(None)], *inside, *shared[front.count(None) :]]
    return _Between(general, new, front, rest, tuple(numbers))


def _same(part: str, known: str | None) -> bool:
    return part == known or (known is None and part.isdecimal())


def _plausible(found: _Between) -> bool:
    """Whether two keys share more than the last part of their names."""
    return bool(found.front or found.rest) and len(found.old) <= 4 and len(found.new) <= 4


def _inserted(alike: Mapping[str, Sequence[str]], known: Sequence[KnownKey]) -> list[_Change]:
    """Parts that no known key has, wherever and however often they stand, without which keys are known."""
    words = {part for one in known for part in one.parts}
    forms = {".".join("#" if p is None or p.isdecimal() else p for p in one.parts) for one in known}
    found: dict[str, list[tuple[Parts, Parts]]] = {}
    weights: dict[str, int] = {}
    for form, names in alike.items():
        parts = form.split(".")
        for word in dict.fromkeys(part for part in parts if part not in words and part != "#"):
            rest = [part for part in parts if part != word]
            if parts.count(word) > 1 and ".".join(rest) in forms and len(parts) - parts.index(word) > 1:
                found.setdefault(word, []).append((("in front",), ("behind",)))
                weights[word] = weights.get(word, 0) + len(names)
    return [
        replace(_Change((word,), ()), at=tuple(at), weight=weights[word], everywhere=True) for word, at in found.items()
    ]
