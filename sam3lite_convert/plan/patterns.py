"""Patterns in the tables that can be read backwards: from a target key to the one source key that it comes from.

A pattern is a regular expression that matches whole keys. Forwards, any regular expression will do. To be read
backwards, the text that it matched must follow from the target. So a pattern is parsed here into literal text,
character classes, groups, alternations and repetitions, and every part that varies must be inside a named group that
the target uses. Groups may be nested and optional; an optional part is present if a group inside it has text. A pattern
that does not lead back to exactly one key is refused, and the message names the construct that prevents it.

The parser is our own because ``re._parser`` is private to Python and changes between versions, and because only this
small part of the language can be read backwards at all.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from itertools import combinations
from typing import NoReturn

from sam3lite_convert.bounded import BoundedPattern


@dataclass(frozen=True)
class Characters:
    """A set of characters: single ones, and classes as regular expressions of one character (``\\d``, ``[^.]``)."""

    single: frozenset[str] = frozenset()
    classes: frozenset[str] = frozenset()

    def __or__(self, other: Characters) -> Characters:
        return Characters(self.single | other.single, self.classes | other.classes)

    def apart(self, other: Characters) -> bool:
        """Whether the two sets certainly have no character in common; False if both contain classes."""
        if self.classes and other.classes:
            return False
        singles = [(self.single, other.classes), (other.single, self.classes)]
        shared = any(re.fullmatch(c, s) for single, classes in singles for s in single for c in classes)
        return not shared and not self.single & other.single


@dataclass(frozen=True)
class Node(ABC):
    """A part of a pattern.

    written: its text in the pattern.
    """

    written: str

    @property
    @abstractmethod
    def plain(self) -> str:
        """The same expression with unnamed groups."""

    @property
    @abstractmethod
    def width(self) -> tuple[int, int | None]:
        """The smallest and largest number of characters that it matches; None if there is no upper limit."""

    @property
    @abstractmethod
    def characters(self) -> Characters:
        """All characters that may occur in the text that it matches."""

    @abstractmethod
    def edge(self, last: bool) -> Characters:
        """The characters that the matched text may begin with; with ``last``, that it may end with."""

    @property
    def parts(self) -> tuple[Node, ...]:
        return ()

    @property
    def may_be_skipped(self) -> bool:
        """Whether a match may skip some of its parts."""
        return False

    def require(self, given: Collection[str]) -> None:
        """Raises ValueError if the text that it matched does not follow from the texts of the given groups."""
        _lost(self.written)

    def tells(self, given: Collection[str]) -> bool:
        """Whether one of the given groups has text whenever this node is part of a match."""
        return False

    def restored(self, texts: Mapping[str, str]) -> str:
        """The text that it matched, from the texts of the groups.

        Raises ValueError if ``require`` does for these groups.
        """
        _lost(self.written)


@dataclass(frozen=True)
class Text(Node):
    """Literal text.

    value: the text without the backslashes.
    """

    value: str

    @property
    def plain(self) -> str:
        return self.written

    @property
    def width(self) -> tuple[int, int | None]:
        return len(self.value), len(self.value)

    @property
    def characters(self) -> Characters:
        return Characters(frozenset(self.value))

    def edge(self, last: bool) -> Characters:
        return Characters(frozenset(self.value[-1:] if last else self.value[:1]))

    def require(self, given: Collection[str]) -> None:
        pass

    def restored(self, texts: Mapping[str, str]) -> str:
        return self.value


@dataclass(frozen=True)
class OneOf(Node):
    """One character of a class: ``\\d``, ``[^.]``, ``.``."""

    @property
    def plain(self) -> str:
        return self.written

    @property
    def width(self) -> tuple[int, int | None]:
        return 1, 1

    @property
    def characters(self) -> Characters:
        return Characters(classes=frozenset([self.written]))

    def edge(self, last: bool) -> Characters:
        return self.characters


@dataclass(frozen=True)
class Row(Node):
    """Nodes one after another."""

    items: tuple[Node, ...]

    @property
    def plain(self) -> str:
        return "".join(n.plain for n in self.items)

    @cached_property  # of nodes inside each other, each would be asked twice by the next
    def width(self) -> tuple[int, int | None]:
        most = [n.width[1] for n in self.items]
        return sum(n.width[0] for n in self.items), None if None in most else sum(m for m in most if m is not None)

    @property
    def characters(self) -> Characters:
        return _united(n.characters for n in self.items)

    def edge(self, last: bool) -> Characters:
        found = Characters()
        for node in reversed(self.items) if last else self.items:
            found |= node.edge(last)
            if node.width[0]:
                break
        return found

    @property
    def parts(self) -> tuple[Node, ...]:
        return self.items

    def require(self, given: Collection[str]) -> None:
        for node in self.items:
            node.require(given)

    def tells(self, given: Collection[str]) -> bool:
        return any(n.tells(given) for n in self.items)

    def restored(self, texts: Mapping[str, str]) -> str:
        return "".join(n.restored(texts) for n in self.items)


@dataclass(frozen=True)
class Choice(Node):
    """An alternation."""

    branches: tuple[Node, ...]

    @property
    def plain(self) -> str:
        return f"(?:{'|'.join(n.plain for n in self.branches)})"

    @cached_property
    def width(self) -> tuple[int, int | None]:
        most = [n.width[1] for n in self.branches]
        return min(n.width[0] for n in self.branches), None if None in most else max(m for m in most if m is not None)

    @property
    def characters(self) -> Characters:
        return _united(n.characters for n in self.branches)

    def edge(self, last: bool) -> Characters:
        return _united(n.edge(last) for n in self.branches)

    @property
    def parts(self) -> tuple[Node, ...]:
        return self.branches

    @property
    def may_be_skipped(self) -> bool:
        return True


@dataclass(frozen=True)
class Group(Node):
    """A named group."""

    name: str
    body: Node

    @property
    def plain(self) -> str:
        return f"(?:{self.body.plain})"

    @cached_property
    def width(self) -> tuple[int, int | None]:
        return self.body.width

    @property
    def characters(self) -> Characters:
        return self.body.characters

    def edge(self, last: bool) -> Characters:
        return self.body.edge(last)

    @property
    def parts(self) -> tuple[Node, ...]:
        return (self.body,)

    def require(self, given: Collection[str]) -> None:
        if self.name not in given:
            self.body.require(given)

    def tells(self, given: Collection[str]) -> bool:
        return (self.name in given and self.width[0] > 0) or self.body.tells(given)

    def restored(self, texts: Mapping[str, str]) -> str:
        return texts[self.name] if self.name in texts else self.body.restored(texts)


@dataclass(frozen=True)
class Repeat(Node):
    """A repeated node.

    low: the smallest number of repetitions.
    high: the largest; None if there is no limit.
    mark: the quantifier as written.
    """

    item: Node
    low: int
    high: int | None
    mark: str

    @property
    def plain(self) -> str:
        return f"(?:{self.item.plain}){self.mark}"

    @cached_property
    def width(self) -> tuple[int, int | None]:
        low, high = self.item.width
        return low * self.low, None if high is None or self.high is None else high * self.high

    @property
    def characters(self) -> Characters:
        return self.item.characters

    def edge(self, last: bool) -> Characters:
        return self.item.edge(last)

    @property
    def parts(self) -> tuple[Node, ...]:
        return (self.item,)

    @property
    def may_be_skipped(self) -> bool:
        return self.low == 0

    def require(self, given: Collection[str]) -> None:
        if (self.low, self.high) != (0, 1):
            _lost(self.written)
        if not self.item.tells(given):
            raise ValueError(f"the target does not show whether {self.written} was present")
        self.item.require(given)

    def tells(self, given: Collection[str]) -> bool:
        return self.low > 0 and self.item.tells(given)

    def restored(self, texts: Mapping[str, str]) -> str:
        return self.item.restored(texts) if any(texts.get(g.name) for g in _groups(self.item)) else ""


def _lost(written: str) -> NoReturn:
    raise ValueError(
        f"the text that {written} matched is not in the target; put it into a named group that the target uses"
    )


def _united(sets: Iterator[Characters]) -> Characters:
    return reduce(Characters.__or__, sets, Characters())


def _groups(node: Node) -> Iterator[Group]:
    """The named groups of a node, itself included."""
    if isinstance(node, Group):
        yield node
    for part in node.parts:
        yield from _groups(part)


def _skippable(node: Node) -> Iterator[str]:
    """Names of the groups that a match may skip."""
    for part in node.parts:
        if node.may_be_skipped:
            yield from (g.name for g in _groups(part))
        else:
            yield from _skippable(part)


# ---- parsing a pattern


_PLAIN = r"(?:[^\\.^$*+?{}\[\]|()]|\\[^A-Za-z0-9])"
_TEXT = re.compile(rf"(?:{_PLAIN}(?![*+?{{]))+|{_PLAIN}")
_CLASS = re.compile(r"\.|\\[dDsSwW]|\[\^?\]?(?:[^\]\\]|\\.)*\]", re.DOTALL)
_QUANTIFIER = re.compile(r"(?:[*+?]|\{(?P<low>\d+)(?P<more>,(?P<high>\d*))?\})\??")
_OPEN = re.compile(r"\(\?P<(?P<name>\w+)>|\(\?:")
_REFUSED = (  # start of a construct, what it is called
    ("(?=", "a lookahead"), ("(?!", "a negative lookahead"), ("(?<=", "a lookbehind"),
    ("(?<!", "a negative lookbehind"), ("(?P=", "a backreference"), ("(?(", "a conditional"), ("(?#", "a comment"),
    ("(?>", "an atomic group"), ("(?", "a flag"), ("(", "an unnamed group"), ("^", "an anchor"), ("$", "an anchor"),
    ("\\", "an escape that is neither a character nor a class"),
)  # fmt: skip


def parse(pattern: str) -> Node:
    """Parse a pattern that ``re`` can compile.

    Raises ValueError, naming the construct, if it cannot be read backwards.
    """
    return _Parser(pattern).choice()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def choice(self) -> Node:
        start = self._at
        branches = [self._row()]
        while self._text.startswith("|", self._at):
            self._at += 1
            branches.append(self._row())
        return branches[0] if len(branches) == 1 else Choice(self._text[start : self._at], tuple(branches))

    def _row(self) -> Node:
        start, items = self._at, []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            items.append(self._repeated())
        return items[0] if len(items) == 1 else Row(self._text[start : self._at], tuple(items))

    def _repeated(self) -> Node:
        start, item = self._at, self._item()
        found = _QUANTIFIER.match(self._text, self._at)
        if found is None:
            return item
        self._at = found.end()
        if self._text.startswith("+", self._at):
            raise ValueError(f"a possessive quantifier ({found[0]}+)")
        low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(found[0][0], (0, None))
        if found["low"]:
            low = int(found["low"])
            high = low if not found["more"] else int(found["high"]) if found["high"] else None
        return Repeat(self._text[start : self._at], item, low, high, found[0])

    def _item(self) -> Node:
        start = self._at
        if found := _TEXT.match(self._text, start):
            self._at = found.end()
            return Text(found[0], re.sub(r"\\(.)", r"\1", found[0], flags=re.DOTALL))
        if found := _CLASS.match(self._text, start):
            self._at = found.end()
            return OneOf(found[0])
        if found := _OPEN.match(self._text, start):
            self._at = found.end()
            body = self.choice()
            self._at += 1
            written = self._text[start : self._at]
            return Group(written, found["name"], body) if found["name"] else replace(body, written=written)
        for opening, kind in _REFUSED:
            if self._text.startswith(opening, start):
                raise ValueError(f"{kind} ({self._text[start : start + 12]})")
        raise ValueError(f"a bracket or a brace without a backslash ({self._text[start : start + 12]})")


# ---- targets


_MOST_SEGMENTS = 100  # texts and groups; the shipped tables have at most seven in a target
_SEGMENT = re.compile(r"(?P<text>[^{}]+)|\{(?P<group>\w+)\}")


@dataclass(frozen=True)
class Template:
    """A target in a table: text, and ``{group}`` for the text that a named group of the pattern matched.

    written: the target as written in the table.
    segments: (text, False) or (name of a group, True).
    """

    written: str
    segments: tuple[tuple[str, bool], ...]

    @classmethod
    def read(cls, target: str, names: Collection[str]) -> Template:
        """Parse a target. Raises ValueError for a brace outside ``{group}`` or a group that is not in ``names``."""
        segments: list[tuple[str, bool]] = []
        at = 0
        while at < len(target):
            found = _SEGMENT.match(target, at)
            if found is None:
                raise ValueError(f"the target {target} holds a brace that is not part of {{group}}")
            if found["group"] and found["group"] not in names:
                raise ValueError(f"the pattern has no group '{found['group']}'")
            segments.append((found[0], False) if found["text"] else (found["group"], True))
            at = found.end()
            if len(segments) > _MOST_SEGMENTS:
                raise ValueError(f"the target {target[:100]}... has more than {_MOST_SEGMENTS} parts")
        return cls(target, tuple(segments))

    def filled(self, match: re.Match[str]) -> str:
        """The target key for a match. A group that was skipped in the match counts as empty."""
        return "".join(match[text] or "" if is_group else text for text, is_group in self.segments)


@dataclass(frozen=True)
class Backward:
    """One target of a rule, read backwards, made from the source pattern and from the target's segments and nodes.

    ``_where``: of a pattern of others, whose matches are bounded in time, where it stands.
    """

    _source: Node
    _segments: tuple[tuple[str, bool], ...]
    _row: tuple[Node, ...]
    _where: str | None

    @cached_property
    def _target(self) -> re.Pattern[str] | BoundedPattern:
        # Compiled on first use; a conversion in which no tensor is missing never needs it.
        text, seen = "", set()
        for (name, is_group), node in zip(self._segments, self._row, strict=True):
            new = is_group and name not in seen
            text += f"(?P<{name}>{node.plain})" if new else node.plain
            seen |= {name} if new else set()
        compiled = re.compile(text)  # of a pattern that was compiled already
        return compiled if self._where is None else BoundedPattern(text, self._where, compiled)

    def read(self, target: str) -> str | None:
        """The source key that ``target`` comes from; None if the target does not have this form."""
        found = self._target.fullmatch(target)
        return None if found is None else self._source.restored({k: v or "" for k, v in found.groupdict().items()})


def read_backwards(pattern: str, templates: Sequence[Template], where: str | None = None) -> tuple[Backward, ...]:
    """One ``Backward`` for each target of a rule. ``where``: of a pattern of others,
    whose matches are bounded in time, where it stands.

    Raises ValueError, saying why, unless each target leads back to exactly one key.
    """
    source = parse(pattern)
    groups = {g.name: g for g in _groups(source)}
    skippable = set(_skippable(source))
    rows = []
    for template in templates:
        source.require({text for text, is_group in template.segments if is_group})
        row: list[Node] = []
        for text, is_group in template.segments:
            node = groups[text] if is_group else Text(re.escape(text), text)
            row.append(Repeat(f"{{{text}}}", node, 0, 1, "?") if is_group and text in skippable else node)
        _require_one_reading(template.written, row)
        rows.append(row)
    for (one, a), (other, b) in combinations(zip(templates, rows, strict=True), 2):
        if not _apart(a, b) and not _apart(a[::-1], b[::-1], last=True):
            raise ValueError(f"the targets {one.written} and {other.written} may give the same name")
    return tuple(Backward(source, t.segments, tuple(row), where) for t, row in zip(templates, rows, strict=True))


def _ends_clearly(node: Node, behind: Sequence[Node], last: bool = False) -> bool:
    """Whether the end of a node's match is unambiguous, however the nodes after it match.

    That is so if it has a fixed width, or if what follows cannot begin with one of its characters. ``last``: read from
    right to left.
    """
    low, high = node.width
    # What follows are the nodes up to the first that cannot be empty, or up to the end.
    return low == high or Row("", tuple(behind[::-1] if last else behind)).edge(last).apart(node.characters)


def _require_one_reading(target: str, row: Sequence[Node]) -> None:
    """Raises ValueError unless a name of this form can be divided into its parts in only one way.

    Parts are determined from the left, then from the right; a single part may remain between them.
    """
    left = 0
    while left < len(row) and _ends_clearly(row[left], row[left + 1 :]):
        left += 1
    right = len(row)
    while right > left and _ends_clearly(row[right - 1], row[: right - 1][::-1], last=True):
        right -= 1
    if right - left > 1:
        between = " and ".join(n.written for n in (row[left], row[right - 1]))
        raise ValueError(f"where {between} begin and end in the target {target} is ambiguous")


def _apart(one: Sequence[Node], other: Sequence[Node], last: bool = False) -> bool:
    """Whether names of the two forms always differ, read from the left. ``last``: both are given from right to left."""
    for n, (a, b) in enumerate(zip(one, other, strict=False)):
        if a == b and _ends_clearly(a, one[n + 1 :], last) and _ends_clearly(b, other[n + 1 :], last):
            continue
        if isinstance(a, Text) and isinstance(b, Text):
            width = min(len(a.value), len(b.value))
            return a.value[-width:] != b.value[-width:] if last else a.value[:width] != b.value[:width]
        return False
    return False
