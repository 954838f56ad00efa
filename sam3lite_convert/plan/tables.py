"""The mapping tables: read from ``mappings/``, checked, and applied to single keys.

A rule matches whole keys. Its pattern is made of escaped text and named groups, so it can be
read in both directions: from a source key to its targets, and from a target back to its source.
"""

from __future__ import annotations

import configparser
import hashlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from sam3lite_convert.errors import CannotRun
from sam3lite_convert.plan.architecture import TEXT, TEXT_ENCODER, component_of
from sam3lite_convert.plan.families import FAMILIES, Family
from sam3lite_convert.plan.loaders import LOADERS, Loader
from sam3lite_convert.plan.operations import OPERATIONS

SPELLINGS = "spellings.ini"
_LAYOUT_ENTRIES = dict.fromkeys(("about", "family", "rules", "targets", "loader", "text_keys", "causal"))
_PROJECTION = TEXT + "projector."
_GROUP = re.compile(r"\(\?P<(\w+)>((?:[^()]|\(\?:[^()]*\))*)\)")


@dataclass(frozen=True)
class Rule:
    """One row of a table. ``targets`` has one entry, three for a split (q, k, v), none for a drop."""

    name: str
    table: str
    operation: str
    pattern: str
    targets: tuple[str, ...]
    example: str
    reason: str = ""

    @cached_property
    def _forward(self) -> re.Pattern[str]:
        return re.compile(self.pattern)

    @cached_property
    def _groups(self) -> dict[str, str]:
        return dict(_GROUP.findall(self.pattern))

    @cached_property
    def _backward(self) -> tuple[re.Pattern[str], ...]:
        patterns = []
        for target in self.targets:
            text, seen = "", set()
            for literal, group in re.findall(r"([^{]*)(?:\{(\w+)\})?", target):
                text += re.escape(literal)
                if group:
                    text += f"(?P={group})" if group in seen else f"(?P<{group}>{self._groups[group]})"
                    seen.add(group)
            patterns.append(re.compile(text))
        return tuple(patterns)

    @property
    def template(self) -> str:
        """The source key with ``{group}`` where the pattern has a named group."""
        return re.sub(r"\\(.)", r"\1", _GROUP.sub(r"{\1}", self.pattern))

    def apply(self, key: str) -> tuple[str, ...] | None:
        """The target keys of ``key``, or None where the rule does not match the whole key."""
        match = self._forward.fullmatch(key)
        if match is None:
            return None
        return tuple(t.format(**match.groupdict()) for t in self.targets)

    def reverse(self, target: str) -> str | None:
        """The source key that this rule would turn into ``target``, or None."""
        for pattern in self._backward:
            match = pattern.fullmatch(target)
            if match:
                return self.template.format(**match.groupdict())
        return None


@dataclass(frozen=True)
class Layout:
    """A target layout: the rules that lead to it, the tensors that it must hold, and what loads them.

    ``shapes``: (key template, name of the index list or None, shape expressions), one per tensor. ``strips_text``:
    whether a text encoder alone is written without its prefix, and its projection into a file of its own; ``causal``:
    whether what reads the layout can be told to mask causally.
    """

    name: str
    about: str
    family: Family
    rules: tuple[Rule, ...]
    shapes: tuple[tuple[str, str | None, tuple[str, ...]], ...]
    loader: Loader
    strips_text: bool
    causal: bool

    @property
    def text_encoder(self) -> str:
        """What all target keys of the text encoder start with, its projection apart: what is stripped of them."""
        return _start(_common(self._heads.get(TEXT_ENCODER, [])), self._heads.get(TEXT_ENCODER, []))

    @property
    def text_projection(self) -> str:
        """What the target keys of the text projection start with, the layer that the detector reads."""
        return _start(_common(self._heads.get(_PROJECTION, [])), self._heads.get(_PROJECTION, []))

    def is_text(self, target: str) -> bool:
        """Whether a target key, or the template of one, belongs to ``--component text``."""
        return target.startswith(tuple(self._modules[c] for c in (TEXT_ENCODER, _PROJECTION) if c in self._modules))

    def module(self, target: str) -> str:
        """The part of the model that a target key belongs to, by its own name in this layout."""
        found = next((start for start in self._modules.values() if target.startswith(start)), target.split(".")[0])
        return found.removesuffix(".")

    @cached_property
    def _heads(self) -> dict[str, list[list[str]]]:
        """Component -> what stands before the first group of its targets, split at the dots.

        What the components are called in a layout is read off its rules: it is stated nowhere else.
        """
        heads: dict[str, list[list[str]]] = {}
        for rule in self.rules:
            component = _PROJECTION if rule.example.startswith(_PROJECTION) else component_of(rule.example)
            for target in rule.targets:
                heads.setdefault(component, []).append(target.partition("{")[0].split("."))
        return heads

    @cached_property
    def _modules(self) -> dict[str, str]:
        """Component -> the shortest start that all its target keys have and no others; left out if there is none."""
        out = {}
        for name, own in self._heads.items():
            # The projection may stand below the text encoder.
            same = (name, _PROJECTION) if name == TEXT_ENCODER else (name,)
            others = [head for other, heads in self._heads.items() if other not in same for head in heads]
            common = _common(own)
            for n in range(1, len(common) + 1):
                if all(head[:n] != common[:n] for head in others):
                    out[name] = _start(common[:n], own)
                    break
        return out

    def check(self) -> None:
        """Raises ValueError if the target keys of the text encoder cannot be told from others."""
        for name, what in ((TEXT_ENCODER, "encoder"), (_PROJECTION, "projection")):
            if name in self._heads and name not in self._modules:
                raise ValueError(
                    f"the targets of the text {what} need a prefix of their own, which no other target has"
                )


def _common(heads: list[list[str]]) -> list[str]:
    """The words that all heads begin with."""
    parts = zip(*heads, strict=False)
    return [part[0] for part in itertools.takewhile(lambda part: len(set(part)) == 1, parts)]


def _start(words: list[str], heads: list[list[str]]) -> str:
    """The words as the start of keys, with the dot behind them where all go on."""
    return ".".join(words) + ("." if words and all(len(head) > len(words) for head in heads) else "")


@dataclass(frozen=True)
class Mappings:
    """Every table that is in force, and one hash over all of them for the receipt.

    ``own``: whether a folder of the user's changed any.
    """

    spellings: tuple[Rule, ...]
    layouts: dict[str, Layout]
    sha256: str
    own: bool = False

    def layout(self, name: str) -> Layout:
        """Raises CannotRun for a name that no ``layout-NAME.ini`` defines."""
        if name not in self.layouts:
            raise CannotRun(f"no layout {name!r}; there are: {', '.join(sorted(self.layouts))}", "unknown_layout")
        return self.layouts[name]


def builtin_directory() -> Path:
    """Where the shipped tables lie: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "mappings"
    return inside if inside.is_dir() else package.parent / "mappings"


def load_mappings(directory: Path | None = None) -> Mappings:
    """Read the tables; a file in ``directory`` takes the place of the shipped one of that name.

    Raises CannotRun for a folder without tables, and for a table with a fault, naming the place.
    """
    files = shipped = {p.name: p for p in builtin_directory().glob("*.ini")}
    if directory is not None:
        own = {p.name: p for p in directory.glob("*.ini")} if directory.is_dir() else {}
        if not own:
            raise CannotRun(f"{directory}: no mapping tables (*.ini) there", "no_tables")
        files = shipped | own
    tables = {name: _parse(path) for name, path in sorted(files.items())}
    spellings = tuple(_rule(s, "keep", SPELLINGS) for s in _sections(tables[SPELLINGS]))
    layouts = {}
    for name, table in tables.items():
        if name.startswith("layout-"):
            label = name[len("layout-") : -len(".ini")]
            layouts[label] = _layout(label, table, tables)
    sha256 = _hash(files)
    return Mappings(spellings, layouts, sha256, directory is not None and sha256 != _hash(shipped))


def _hash(files: dict[str, Path]) -> str:
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + files[name].read_bytes() + b"\0")
    return digest.hexdigest()


def _parse(path: Path) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(
        delimiters=("=",), comment_prefixes=("#",), inline_comment_prefixes=None, default_section="\0"
    )
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        parser.read_string(path.read_text(encoding="utf-8"), source=path.name)
    except (configparser.Error, UnicodeDecodeError) as fault:
        raise CannotRun(f"mapping table {path.name}: {fault}", "bad_table") from fault
    return parser


def _sections(table: configparser.RawConfigParser) -> Iterator[configparser.SectionProxy]:
    return (table[name] for name in table.sections())


def _layout(name: str, table: configparser.RawConfigParser, tables: dict[str, configparser.RawConfigParser]) -> Layout:
    where = f"mapping table layout-{name}.ini"
    try:
        head = table["layout"]
        unknown = set(head) - set(_LAYOUT_ENTRIES)
        if unknown:
            raise ValueError(f"unknown entry {', '.join(sorted(unknown))}; there are: {', '.join(_LAYOUT_ENTRIES)}")
        rules = [_rule(s, None, f) for f in head["rules"].split() for s in _sections(tables[f])]
        targets = head["targets"].split()
        shapes = [row for f in targets for row in _target_rows(tables[f])]
        loader = _loader(head.get("loader", "none"), targets)
        text_keys = head.get("text_keys", "strip" if loader.strips_text else "keep")
        causal = head.getboolean("causal", fallback=loader.causal is not False)
        if text_keys not in ("keep", "strip"):
            raise ValueError(f"text_keys is keep or strip, not {text_keys!r}")
        strips = text_keys == "strip"
        if loader.strips_text not in (None, strips):
            raise ValueError(f"loader {loader.name} does not load text_keys = {text_keys}")
        if loader.causal not in (None, causal):
            raise ValueError(f"loader {loader.name} cannot do with causal = {'yes' if causal else 'no'}")
        family = _named(FAMILIES, "family", head.get("family", next(iter(FAMILIES))))
        layout = Layout(name, head.get("about", ""), family, tuple(rules), tuple(shapes), loader, strips, causal)
        layout.check()
    except KeyError as fault:
        raise CannotRun(f"{where}: no entry or no table {fault}", "bad_table") from fault
    except ValueError as fault:
        raise CannotRun(f"{where}: {fault}", "bad_table") from fault
    return layout


def _loader(name: str, targets: list[str]) -> Loader:
    """The loader of a layout with these tables of targets. Raises ValueError if it would not load them."""
    loader = _named(LOADERS, "loader", name)
    lacking = [table for table in loader.targets if table not in targets]
    if lacking:
        raise ValueError(
            f"loader {name} loads the tensors of {' and '.join(lacking)}, which targets does not name; without a "
            "loader of its own a layout has none"
        )
    return loader


_Known = TypeVar("_Known", Family, Loader)


def _named(known: dict[str, _Known], what: str, name: str) -> _Known:
    if name not in known:
        raise ValueError(f"no {what} {name!r}; there are: {', '.join(known)}")
    return known[name]


def _rule(section: configparser.SectionProxy, operation: str | None, table: str) -> Rule:
    where = f"mapping table {table}, rule [{section.name}]"
    unknown = set(section) - {"op", "source", "target", "reason", "example"}
    if unknown:
        raise CannotRun(f"{where}: unknown entry {', '.join(sorted(unknown))}", "bad_table")
    operation = operation or section.get("op", "")
    targets = tuple(section.get("target", "").split())
    source, example = section.get("source", ""), section.get("example", "")
    if operation not in OPERATIONS:
        raise CannotRun(f"{where}: op is one of {', '.join(OPERATIONS)}, not {operation!r}", "bad_table")
    if len(targets) != OPERATIONS[operation]:
        raise CannotRun(f"{where}: {operation} has {OPERATIONS[operation]} targets, not {len(targets)}", "bad_table")
    if not example or (operation == "drop" and not section.get("reason")):
        raise CannotRun(f"{where}: an example key is missing, or the reason of a drop", "bad_table")
    rule = Rule(section.name, table, operation, source, targets, example, section.get("reason", ""))
    try:
        made = rule.apply(example)
        # A spelling is only ever read forwards.
        reversible = made is None or table == SPELLINGS or all(rule.reverse(t) == example for t in made)
    except KeyError as fault:
        raise CannotRun(f"{where}: the pattern has no group {fault}", "bad_table") from fault
    except (re.error, IndexError, ValueError, AttributeError) as fault:
        raise CannotRun(f"{where}: {fault}", "bad_table") from fault
    if made is None:
        raise CannotRun(f"{where}: the pattern does not match its own example {example}", "bad_table")
    if not reversible:
        raise CannotRun(f"{where}: the target does not lead back to the example; is a group missing?", "bad_table")
    return rule


def _target_rows(table: configparser.RawConfigParser) -> Iterator[tuple[str, str | None, tuple[str, ...]]]:
    for section in _sections(table):
        module = section.name.split()[0]
        for leaf, shape in section.items():
            if leaf != "each":
                sizes = () if shape == "scalar" else tuple(part.strip() for part in shape.split(","))
                yield f"{module}.{leaf}", section.get("each"), sizes
