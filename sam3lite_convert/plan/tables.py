"""The mapping tables: read from ``mappings/``, checked, and applied to single keys.

A rule matches whole keys and works in both directions: from a source key to its targets, and from a target back to its
source. ``patterns.py`` checks when a table is loaded that a pattern allows that.
"""

from __future__ import annotations

import configparser
import contextlib
import hashlib
import itertools
import re
from collections.abc import Collection, Container, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TypeVar

from sam3lite_convert.bounded import BoundedPattern
from sam3lite_convert.errors import CannotRun, UnsoundPlan, in_short
from sam3lite_convert.opened import read_small, read_small_text
from sam3lite_convert.plan.architecture import TEXT_ENCODER, component_of
from sam3lite_convert.plan.families import FAMILIES, SAM3_LITETEXT, Family
from sam3lite_convert.plan.loaders import LOADERS, Loader
from sam3lite_convert.plan.operations import OPERATIONS, Operation
from sam3lite_convert.plan.patterns import Backward, Template, read_backwards

SPELLINGS = "spellings.ini"
_OF_LAYOUTS = "spellings-"  # how the tables of other spellings of targets begin
_LAYOUT_ENTRIES = dict.fromkeys(
    (
        "about", "layout", "family", "component", "variant", "rules", "targets", "loader", "text_keys", "causal",
        "neck_levels", "spellings",
    )
)  # fmt: skip
_INSIDE = "inside "  # how a section of a layout's table begins whose targets stand under a prefix
_PROJECTION = "text projection"
_LONGEST_TABLE = 1 << 20  # bytes; the largest that ships has 30 kB
_MOST_REMEMBERED = 20_000  # names; a released file has 1,500
ANY = "*"  # in a table of targets: any tensor under this module


# Key template, name of the index list or None, shape expressions.
TargetRow = tuple[str, str | None, tuple[str, ...]]


@dataclass(frozen=True)
class Rule:
    """One rule of a table.

    name: the name of its section.
    table: the file name of its table.
    patterns: regular expressions for source keys: one, or, of an operation that joins, one for each source in the order
        of their rows.
    targets: one template of a target key for each label of the operation.
    example: a source key that the first pattern matches.
    reason: why the tensor is dropped; otherwise empty.
    repeat: of a spelling: applied for as long as it matches, together with those of its kind that follow each other.
    copies: of a spelling: what it takes off names a copy of the model, of which a file may hold several.
    base: of a spelling: what it takes off names the model that the file's own was trained from, which fills what that
        one lacks.
    beside: template of another target; where several rules write one target, it comes from this one if that other
        target is there too. Empty for none.
    own: whether it stands in a table of the user, whose patterns are matched within bounds.
    """

    name: str
    table: str
    operation: Operation
    patterns: tuple[str, ...]
    targets: tuple[str, ...]
    example: str
    reason: str = ""
    repeat: bool = False
    copies: bool = False
    base: bool = False
    beside: str = ""
    own: bool = False

    @property
    def pattern(self) -> str:
        """The regular expressions, one a line."""
        return "\n".join(self.patterns)

    @property
    def _where(self) -> str:
        return f"mapping table {self.table}, rule [{self.name}]"

    @cached_property
    def _forward(self) -> tuple[re.Pattern[str] | BoundedPattern, ...]:
        return tuple(BoundedPattern(p, self._where) if self.own else re.compile(p) for p in self.patterns)

    @cached_property
    def _templates(self) -> tuple[Template, ...]:
        return tuple(Template.read(t, self._forward[0].groupindex) for t in self.targets)

    @cached_property
    def _backward(self) -> tuple[tuple[Backward, ...], ...]:
        where = self._where if self.own else None
        return tuple(read_backwards(pattern, self._templates, where) for pattern in self.patterns)

    def check(self, backwards: bool) -> None:
        """Raises ValueError or re.error if the rule is wrong, or with ``backwards`` cannot be read backwards."""
        if self.apply(self.example) is None or not self._forward[0].fullmatch(self.example):
            raise ValueError(f"the pattern does not match its own example {self.example}")
        if self.repeat and len((self.apply(self.example) or ("",))[0]) >= len(self.example):
            raise ValueError("repeat = yes needs a target that is shorter than the key")
        if len({tuple(pattern.groupindex) for pattern in self._forward}) != 1:
            raise ValueError("the patterns of the sources that are joined need the same groups")
        Template.read(self.beside, self._forward[0].groupindex)
        if backwards and self.targets:
            try:
                _ = self._backward
            except ValueError as fault:
                raise ValueError(f"the pattern cannot be read backwards: {fault}") from fault

    def apply(self, key: str) -> tuple[str, ...] | None:
        """The target keys of ``key``; None if the rule does not match the whole key."""
        for pattern in self._forward:  # a plan calls this 140,000 times
            if (match := pattern.fullmatch(key)) is not None:
                return tuple(t.filled(match) for t in self._templates)
        return None

    def wrapper(self, key: str) -> str | None:
        """What the group ``wrapper`` of the pattern holds in ``key``; None if there is no such group, or no match."""
        (pattern,) = self._forward
        match = pattern.fullmatch(key) if "wrapper" in pattern.groupindex else None
        return None if match is None else match["wrapper"]

    def sources(self, target: str) -> tuple[str, ...]:
        """The source keys that this rule turns into ``target``, in the order of their rows; none if it writes it not.

        More than one only if the operation joins.
        """
        out: list[str | None] = []
        for backwards in self._backward if self.targets else ():
            read = (backward.read(target) for backward in backwards)
            found = (s for s in read if s is not None and target in (self.apply(s) or ()))
            out.append(next(found, None))
        return () if None in out else tuple(s for s in out if s is not None)

    def reverse(self, target: str) -> str | None:
        """The source key that this rule turns into ``target``, of several the first; None if there is none."""
        return next(iter(self.sources(target)), None)

    def beside_of(self, source: str) -> str:
        """The target that has to be there if this rule is to be read backwards to ``source``; empty for none."""
        match = self._forward[0].fullmatch(source) if self.beside else None
        return "" if match is None else Template.read(self.beside, self._forward[0].groupindex).filled(match)

    def under(self, prefix: str) -> Rule:
        """The rule with its targets under a prefix."""
        beside = prefix + self.beside if self.beside else ""
        return replace(self, targets=tuple(prefix + target for target in self.targets), beside=beside)


_Found = TypeVar("_Found")


def remember(names: dict[str, _Found], name: str, found: _Found) -> None:
    """Keep what was found for a name; all are forgotten before there are too many."""
    if len(names) >= _MOST_REMEMBERED:
        names.clear()  # files of others may hold any number of keys
    names[name] = found


class Spellings(tuple[Rule, ...]):
    """Rules for other spellings, in order, with what they made of names so far (``known``, for plan/names.py): a run of
    verify spells each key of a checkpoint three times."""

    known: dict[str, object]

    def __new__(cls, rules: Iterable[Rule] = ()) -> Spellings:
        made = super().__new__(cls, rules)
        made.known = {}
        return made


@dataclass(frozen=True)
class Layout:
    """A target layout of one family: its rules, the tensors that it must hold, and its loader.

    name: what users call it; layouts of several families, and of several components, have one name.
    component: the only component that it is for; None if it is for the detector and its text encoder.
    variant: the variant of the family that it is for; None if it is for all that need no layout of their own.
    inside: the prefix of the targets of the detector; empty if they have none.
    neck_levels: the number of levels that the neck has in what reads it; None for any number.
    about: what reads the layout, in words.
    shapes: (key template, name of the index list or None, shape expressions), one per tensor.
    spellings: the rules that turn other spellings of its keys into those that it writes.
    strips_text: whether a text encoder alone is written without its prefix, and its projection into a separate file.
    causal: whether config.json can tell the reader of the layout to mask causally.
    """

    name: str
    about: str
    family: Family
    rules: tuple[Rule, ...]
    shapes: tuple[TargetRow, ...]
    loader: Loader
    strips_text: bool
    causal: bool
    component: str | None = None
    variant: str | None = None
    neck_levels: int | None = None
    inside: str = ""
    spellings: tuple[Rule, ...] = ()

    def taking(self, key: str) -> tuple[tuple[Rule, tuple[str, ...]], ...]:
        """The rules that match a source key, in the layout's order, each with the targets that it makes of the key.

        Remembered: a command makes several plans, with the same keys in each.
        """
        if (found := self._taken.get(key)) is None:
            found = tuple((r, made) for r in self.rules if (made := r.apply(key)) is not None)
            remember(self._taken, key, found)
        return found

    def leading_to(self, target: str) -> tuple[tuple[Rule, tuple[str, ...]], ...]:
        """The rules that write a target, in the layout's order, each with the names of its sources. Remembered too."""
        if (found := self._led.get(target)) is None:
            rules = (rule for rule, starts in self._beginnings if target.startswith(starts))
            found = tuple((r, sources) for r in rules if (sources := r.sources(target)))
            remember(self._led, target, found)
        return found

    @cached_property
    def _taken(self) -> dict[str, tuple[tuple[Rule, tuple[str, ...]], ...]]:
        return {}

    @cached_property
    def _led(self) -> dict[str, tuple[tuple[Rule, tuple[str, ...]], ...]]:
        return {}

    @cached_property
    def _beginnings(self) -> tuple[tuple[Rule, tuple[str, ...]], ...]:
        """Each rule with the texts with which its targets begin, up to the first group."""
        return tuple((rule, tuple(target.partition("{")[0] for target in rule.targets)) for rule in self.rules)

    def written_by(self, target: str, there: Container[str]) -> tuple[Rule, tuple[str, ...]] | None:
        """The rule that writes a target, and the names of its sources, in the order of their rows; None if none does.

        there: the targets that are there, which tell of two rules with one target the right one.
        """
        first: tuple[Rule, tuple[str, ...]] | None = None
        for rule, found in self.leading_to(target):
            if rule.beside and rule.beside_of(found[0]) in there:
                return rule, found
            first = first or (None if rule.beside else (rule, found))
        return first

    @cached_property
    def open(self) -> tuple[str, ...]:
        """Prefixes of target keys under which the layout takes whatever tensors the file has, and requires none."""
        return tuple(key.removesuffix(ANY) for key, _, _ in self.shapes if key.endswith("." + ANY))

    @cached_property
    def text_encoder(self) -> str:
        """The common prefix of the text encoder's target keys (not of its projection), which may be stripped."""
        return _start(_common(self._heads.get(TEXT_ENCODER, [])), self._heads.get(TEXT_ENCODER, []))

    @cached_property
    def text_projection(self) -> str:
        """The common prefix of the target keys of the text projection, the layer that the detector reads."""
        return _start(_common(self._heads.get(_PROJECTION, [])), self._heads.get(_PROJECTION, []))

    def is_text(self, target: str) -> bool:
        """Whether a target key, or a template of one, belongs to ``--component text``."""
        return target.startswith(tuple(self._modules[c] for c in (TEXT_ENCODER, _PROJECTION) if c in self._modules))

    def module(self, target: str) -> str:
        """The part of the model that a target key belongs to, by its name in this layout."""
        found = next((start for start in self._modules.values() if target.startswith(start)), target.split(".")[0])
        return found.removesuffix(".")

    @cached_property
    def _heads(self) -> dict[str, list[list[str]]]:
        """Component -> the text before the first group in each of its targets, split at the dots.

        The names of the components in a layout follow from its rules and are stated nowhere else.
        """
        heads: dict[str, list[list[str]]] = {}
        projection = self.family.text_projection
        for rule in self.rules:
            component = _PROJECTION if rule.example.startswith(projection) else component_of(rule.example)
            for target in rule.targets:
                heads.setdefault(component, []).append(target.partition("{")[0].split("."))
        return heads

    @cached_property
    def _modules(self) -> dict[str, str]:
        """Component -> the shortest prefix that all its target keys have and no others; left out if there is none."""
        out = {}
        for name, own in self._heads.items():
            # The projection may be inside the text encoder.
            same = (name, _PROJECTION) if name == TEXT_ENCODER else (name,)
            others = [head for other, heads in self._heads.items() if other not in same for head in heads]
            common = _common(own)
            for n in range(1, len(common) + 1):
                if all(head[:n] != common[:n] for head in others):
                    out[name] = _start(common[:n], own)
                    break
        return out

    def check(self) -> None:
        """Raises ValueError if the target keys of the text encoder have no prefix of their own."""
        for name, what in ((TEXT_ENCODER, "encoder"), (_PROJECTION, "projection")):
            if name in self._heads and name not in self._modules:
                raise ValueError(
                    f"the targets of the text {what} need a prefix of their own, which no other target has"
                )


def _common(heads: list[list[str]]) -> list[str]:
    """The words with which all heads begin."""
    parts = zip(*heads, strict=False)
    return [part[0] for part in itertools.takewhile(lambda part: len(set(part)) == 1, parts)]


def _start(words: list[str], heads: list[list[str]]) -> str:
    """The words joined to a prefix of keys, with a dot at the end if all keys continue."""
    return ".".join(words) + ("." if words and all(len(head) > len(words) for head in heads) else "")


@dataclass(frozen=True)
class Mappings:
    """All mapping tables.

    spellings: the rules that turn other spellings of the original's keys into canonical ones.
    layouts: label of its table -> layout. Several have one name.
    sha256: hash over all tables, for the receipt.
    own: whether a folder of the user changed any table.
    directory: the folder of the user, if one was given.
    """

    spellings: tuple[Rule, ...]
    layouts: dict[str, Layout]
    sha256: str
    own: bool = False
    directory: Path | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of layouts, sorted."""
        return tuple(sorted({layout.name for layout in self.layouts.values()}))

    @cached_property
    def source_rules(self) -> tuple[Rule, ...]:
        """The rules of all layouts, each once, whatever they make of a key; those that keep names come first."""
        rules = sorted((r for x in self.layouts.values() for r in x.rules), key=lambda r: r.operation.name != "keep")
        return tuple({(rule.table, rule.name): rule for rule in rules}.values())

    def of_family(self, family: Family = SAM3_LITETEXT) -> tuple[Layout, ...]:
        """The layouts of the detector of a family, by name."""
        own = [x for x in self.layouts.values() if x.family == family and not (x.component or x.variant)]
        return tuple(sorted(own, key=lambda x: x.name))

    def check_name(self, name: str) -> None:
        """Raises CannotRun if no layout has the name."""
        if name not in self.names:
            raise CannotRun(f"no layout {name!r}; there are: {', '.join(self.names)}", "unknown_layout")

    def layout(
        self, name: str, family: Family = SAM3_LITETEXT, component: str = "all", variants: Iterable[str] = ()
    ) -> Layout:
        """The layout of this name for a component of a family.

        variants: of the checkpoint. A layout that is for one of them comes first; text encoders have none.
        Raises CannotRun if no layout has the name, or none of that name is for the component, UnsoundPlan if none of
        them is for the family.
        """
        self.check_name(name)
        own = component if component not in ("all", "text") else None
        named = [x for x in self.layouts.values() if x.name == name and x.component == own]
        if not named:
            able = sorted({x.name for x in self.layouts.values() if x.component == own})
            raise CannotRun(
                f"the layout {name} has no --component {component}; "
                + (f"use --layout {' or '.join(able)}" if able else "no layout has"),
                "unknown_component",
            )
        of_family = [x for x in named if x.family == family]
        if not of_family:
            able = sorted({x.name for x in self.layouts.values() if x.component == own and x.family == family})
            raise UnsoundPlan(
                f"this is a {family.name} checkpoint, of which there is no layout {name}"
                + (f"; use --layout {' or '.join(able)}" if able else ""),
                "unsupported_checkpoint",
                {"kind": family.name, "kinds": [family.name], "component_text": False},
            )
        held = () if component == "text" else tuple(variants)
        fitting = [x for x in of_family if x.variant in (None, *held)]
        return max(fitting or of_family, key=lambda x: x.variant is not None)

    def fitting(self, family: Family, variants: Collection[str] = ()) -> Iterator[tuple[Layout, str]]:
        """Each layout that there is for a checkpoint of this family and these variants, with each component."""
        others = {layout.component for layout in self.layouts.values() if layout.component}
        for name in self.names:
            for component in ("all", "text", *sorted(others)):
                with contextlib.suppress(CannotRun, UnsoundPlan):
                    yield self.layout(name, family, component, variants), component


def builtin_directory() -> Path:
    """The folder of the shipped tables: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "mappings"
    return inside if inside.is_dir() else package.parent / "mappings"


def load_mappings(directory: Path | None = None) -> Mappings:
    """Read the tables; a file in ``directory`` replaces the shipped one of the same name. The shipped ones alone
    are read once in a process.

    Raises CannotRun if the folder has no tables, or if a table has a fault, naming the place.
    """
    return _read(builtin_directory(), directory) if directory else _shipped(builtin_directory())


@cache
def _shipped(place: Path) -> Mappings:
    return _read(place, None)


def _read(place: Path, directory: Path | None) -> Mappings:
    files = shipped = {p.name: p for p in place.glob("*.ini")}
    if directory is not None:
        own = {p.name: p for p in directory.glob("*.ini")} if directory.is_dir() else {}
        if not own:
            raise CannotRun(f"{directory}: no mapping tables (*.ini) there", "no_tables")
        files = shipped | own
    tables = {name: _parse(path, own=path is not shipped.get(name)) for name, path in sorted(files.items())}
    spellings = _spellings(SPELLINGS, tables)
    rules: dict[str, tuple[Rule, ...]] = {}  # by table: layouts share them
    layouts = {}
    for name, table in tables.items():
        if name.startswith("layout-"):
            label = name[len("layout-") : -len(".ini")]
            layouts[label] = _layout(label, table, tables, rules)
    sha256 = _hash(files)
    return Mappings(spellings, layouts, sha256, directory is not None and sha256 != _hash(shipped), directory)


def _spellings(name: str, tables: dict[str, configparser.RawConfigParser]) -> Spellings:
    return Spellings(_rule(section, "keep", name) for section in _sections(tables[name]))


def _hash(files: dict[str, Path]) -> str:
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + read_small(files[name], _LONGEST_TABLE) + b"\0")
    return digest.hexdigest()


class _OwnTable(configparser.RawConfigParser):
    """A table of the user."""


def _parse(path: Path, own: bool) -> configparser.RawConfigParser:
    parser = (_OwnTable if own else configparser.RawConfigParser)(
        delimiters=("=",), comment_prefixes=("#",), inline_comment_prefixes=None, default_section="\0"
    )
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        parser.read_string(read_small_text(path, _LONGEST_TABLE), source=path.name)
    except (configparser.Error, UnicodeDecodeError) as fault:
        raise CannotRun(f"mapping table {path.name}: {in_short(fault)}", "bad_table") from fault
    return parser


def _sections(table: configparser.RawConfigParser) -> Iterator[configparser.SectionProxy]:
    return (table[name] for name in table.sections())


def _layout(
    name: str,
    table: configparser.RawConfigParser,
    tables: dict[str, configparser.RawConfigParser],
    read: dict[str, tuple[Rule, ...]],
) -> Layout:
    """The layout of a table. ``read``: rules by table, which layouts share; rules that are not in it yet are added."""
    where = f"mapping table layout-{name}.ini"
    try:
        head = table["layout"]
        unknown = set(head) - set(_LAYOUT_ENTRIES)
        if unknown:
            raise ValueError(f"unknown entry {', '.join(sorted(unknown))}; there are: {', '.join(_LAYOUT_ENTRIES)}")
        rules, shapes, targets, inside = list[Rule](), list[TargetRow](), list[str](), ""
        for section in _sections(table):
            prefix = f"{section.name.removeprefix(_INSIDE)}." if section.name.startswith(_INSIDE) else ""
            if section is not head and (not prefix or set(section) - {"rules", "targets"}):
                raise ValueError(f"[{section.name}]: only 'inside PREFIX' with rules and targets may follow [layout]")
            inside = prefix or inside
            for f in section["rules"].split():
                read[f] = read.get(f) or tuple(_rule(s, None, f) for s in _sections(tables[f]))
                rules += [rule.under(prefix) for rule in read[f]] if prefix else read[f]
            for f in section["targets"].split():
                targets.append(f)
                shapes += [(prefix + key, each, sizes) for key, each, sizes in _target_rows(tables[f])]
        family = _named(FAMILIES, "family", head.get("family", SAM3_LITETEXT.name))
        loader = _loader(head.get("loader", "none"), family, targets)
        levels = head.getint("neck_levels", fallback=None)
        text_keys = head.get("text_keys", "strip" if loader.strips_text else "keep")
        causal = head.getboolean("causal", fallback=loader.causal is not False)
        if text_keys not in ("keep", "strip"):
            raise ValueError(f"text_keys is keep or strip, not {text_keys!r}")
        strips = text_keys == "strip"
        if loader.strips_text not in (None, strips):
            raise ValueError(f"loader {loader.name} does not load text_keys = {text_keys}")
        if loader.causal not in (None, causal):
            raise ValueError(f"loader {loader.name} does not support causal = {'yes' if causal else 'no'}")
        component, variant = head.get("component"), head.get("variant")
        if component in ("all", "text"):
            raise ValueError("component is left out, or the name of another component than all and text")
        if variant not in (None, *(v.name for v in family.variants)):
            raise ValueError(f"no variant {variant!r} of {family.name}")
        label = head.get("layout", name)
        layout = Layout(
            label, head.get("about", ""), family, tuple(rules), tuple(shapes), loader, strips, causal,
            component, variant, levels, inside,
            Spellings(rule for f in head.get("spellings", "").split() for rule in _spellings(f, tables)),
        )  # fmt: skip
        layout.check()
    except KeyError as fault:
        raise CannotRun(f"{where}: no entry or no table {fault}", "bad_table") from fault
    except ValueError as fault:
        raise CannotRun(f"{where}: {fault}", "bad_table") from fault
    return layout


def _loader(name: str, family: Family, targets: list[str]) -> Loader:
    """The loader of a layout with these target tables. Raises ValueError if it cannot load them."""
    loader = _named(LOADERS, "loader", name)
    needed = (*loader.targets, family.library.text_targets) if loader.library else loader.targets
    lacking = [table for table in needed if table not in targets]
    if lacking:
        raise ValueError(
            f"loader {name} loads the tensors of {' and '.join(lacking)}, which the entry targets does not name; leave "
            "out the entry loader if no program loads this layout"
        )
    return loader


_Known = TypeVar("_Known", Family, Loader)


def _named(known: dict[str, _Known], what: str, name: str) -> _Known:
    if name not in known:
        raise ValueError(f"no {what} {name!r}; there are: {', '.join(known)}")
    return known[name]


def _rule(section: configparser.SectionProxy, op: str | None, table: str) -> Rule:
    where = f"mapping table {table}, rule [{section.name}]"
    spelling = table == SPELLINGS or table.startswith(_OF_LAYOUTS)
    known = {"op", "source", "target", "reason", "example", "beside"}
    known |= {"repeat", "copies", "base"} if spelling else set()
    unknown = set(section) - known
    if unknown:
        raise CannotRun(f"{where}: unknown entry {', '.join(sorted(unknown))}", "bad_table")
    op = op or section.get("op", "")
    targets = tuple(section.get("target", "").split())
    sources, example = tuple(section.get("source", "").split("\n")), section.get("example", "")
    if op not in OPERATIONS:
        raise CannotRun(f"{where}: op is one of {', '.join(OPERATIONS)}, not {op!r}", "bad_table")
    operation = OPERATIONS[op]
    if len(targets) != len(operation.labels):
        raise CannotRun(f"{where}: {op} has {len(operation.labels)} targets, not {len(targets)}", "bad_table")
    if (len(sources) > 1) is not operation.joins:
        many = "several patterns, one a line" if operation.joins else "one pattern"
        raise CannotRun(f"{where}: {op} has {many} under source", "bad_table")
    if not example:
        raise CannotRun(f"{where}: an example key is missing", "bad_table")
    if operation.needs_reason and not section.get("reason"):
        raise CannotRun(f"{where}: {op} needs a reason", "bad_table")
    try:
        repeat, copies, base = (section.getboolean(name, fallback=False) for name in ("repeat", "copies", "base"))
        rule = Rule(
            section.name, table, operation, sources, targets, example, section.get("reason", ""), repeat, copies, base,
            section.get("beside", ""), own=isinstance(section.parser, _OwnTable),
        )  # fmt: skip
        rule.check(backwards=not spelling)  # spellings are only read forwards
    except (re.error, ValueError) as fault:
        raise CannotRun(f"{where}: {fault}", "bad_table") from fault
    return rule


def _target_rows(table: configparser.RawConfigParser) -> Iterator[TargetRow]:
    """Raises ValueError for a section without a name."""
    for section in _sections(table):
        module = next(iter(section.name.split()), "")
        if not module:
            raise ValueError(f"[{section.name}] of a table of targets names no module")
        for leaf, shape in section.items():
            if leaf != "each":
                sizes = () if shape == "scalar" else tuple(part.strip() for part in shape.split(","))
                yield f"{module}.{leaf}", section.get("each"), sizes
