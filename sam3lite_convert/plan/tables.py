"""The mapping tables: read from ``mappings/``, checked, and applied to single keys.

A rule matches whole keys and is read in both directions: from a source key to its targets, and from
a target back to its source. Which patterns allow that, ``patterns.py`` decides when a table is loaded.
"""

from __future__ import annotations

import configparser
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sam3lite_convert.errors import CannotRun
from sam3lite_convert.plan.operations import OPERATIONS, Operation
from sam3lite_convert.plan.patterns import Backward, Template, read_backwards

SPELLINGS = "spellings.ini"


@dataclass(frozen=True)
class Rule:
    """One row of a table. ``targets`` has one entry for each label of the operation."""

    name: str
    table: str
    operation: Operation
    pattern: str
    targets: tuple[str, ...]
    example: str
    reason: str = ""

    @cached_property
    def _forward(self) -> re.Pattern[str]:
        return re.compile(self.pattern)

    @cached_property
    def _templates(self) -> tuple[Template, ...]:
        return tuple(Template.read(t, self._forward.groupindex) for t in self.targets)

    @cached_property
    def _backward(self) -> tuple[Backward, ...]:
        return read_backwards(self.pattern, self._templates)

    def check(self, backwards: bool) -> None:
        """Raises ValueError or re.error if the rule cannot be read, forwards alone or in both directions."""
        if self.apply(self.example) is None:
            raise ValueError(f"the pattern does not match its own example {self.example}")
        if backwards and self.targets:
            try:
                _ = self._backward
            except ValueError as fault:
                raise ValueError(f"the pattern cannot be read backwards: {fault}") from fault

    def apply(self, key: str) -> tuple[str, ...] | None:
        """The target keys of ``key``, or None where the rule does not match the whole key."""
        match = self._forward.fullmatch(key)
        return None if match is None else tuple(t.filled(match) for t in self._templates)

    def reverse(self, target: str) -> str | None:
        """The source key that this rule would turn into ``target``, or None."""
        for backward in self._backward:
            source = backward.read(target)
            if source is not None and target in (self.apply(source) or ()):
                return source
        return None


@dataclass(frozen=True)
class Layout:
    """A target layout: the rules that lead to it and the tensors that it must hold.

    ``shapes``: (key template, name of the index list or None, shape expressions), one per tensor.
    """

    name: str
    about: str
    rules: tuple[Rule, ...]
    shapes: tuple[tuple[str, str | None, tuple[str, ...]], ...]
    config: str
    strip_text_prefix: bool
    causal: bool


@dataclass(frozen=True)
class Mappings:
    """Every table that is in force, and one hash over all of them for the receipt."""

    spellings: tuple[Rule, ...]
    layouts: dict[str, Layout]
    sha256: str

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
    files = {p.name: p for p in builtin_directory().glob("*.ini")}
    if directory is not None:
        own = {p.name: p for p in directory.glob("*.ini")} if directory.is_dir() else {}
        if not own:
            raise CannotRun(f"{directory}: no mapping tables (*.ini) there", "no_tables")
        files |= own
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + files[name].read_bytes() + b"\0")
    tables = {name: _parse(path) for name, path in sorted(files.items())}
    spellings = tuple(_rule(s, "keep", SPELLINGS) for s in _sections(tables[SPELLINGS]))
    rules: dict[str, tuple[Rule, ...]] = {}  # by table: layouts share them
    layouts = {}
    for name, table in tables.items():
        if name.startswith("layout-"):
            label = name[len("layout-") : -len(".ini")]
            layouts[label] = _layout(label, table, tables, rules)
    return Mappings(spellings, layouts, digest.hexdigest())


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


def _layout(
    name: str,
    table: configparser.RawConfigParser,
    tables: dict[str, configparser.RawConfigParser],
    read: dict[str, tuple[Rule, ...]],
) -> Layout:
    """The layout of a table; the rules of each table that it names are added to ``read``, or taken from there."""
    try:
        head = table["layout"]
        for f in head["rules"].split():
            read[f] = read.get(f) or tuple(_rule(s, None, f) for s in _sections(tables[f]))
        rules = [rule for f in head["rules"].split() for rule in read[f]]
        shapes = [row for f in head["targets"].split() for row in _target_rows(tables[f])]
        config = head.get("config", "own")
        return Layout(
            name,
            head.get("about", ""),
            tuple(rules),
            tuple(shapes),
            config,
            head.get("text_keys", "keep") == "strip",
            head.getboolean("causal", fallback=True),
        )
    except (KeyError, ValueError) as fault:
        raise CannotRun(f"mapping table layout-{name}.ini: missing or wrong entry {fault}", "bad_table") from fault


def _rule(section: configparser.SectionProxy, op: str | None, table: str) -> Rule:
    where = f"mapping table {table}, rule [{section.name}]"
    unknown = set(section) - {"op", "source", "target", "reason", "example"}
    if unknown:
        raise CannotRun(f"{where}: unknown entry {', '.join(sorted(unknown))}", "bad_table")
    op = op or section.get("op", "")
    targets = tuple(section.get("target", "").split())
    source, example = section.get("source", ""), section.get("example", "")
    if op not in OPERATIONS:
        raise CannotRun(f"{where}: op is one of {', '.join(OPERATIONS)}, not {op!r}", "bad_table")
    operation = OPERATIONS[op]
    if len(targets) != len(operation.labels):
        raise CannotRun(f"{where}: {op} has {len(operation.labels)} targets, not {len(targets)}", "bad_table")
    if not example:
        raise CannotRun(f"{where}: an example key is missing", "bad_table")
    if operation.needs_reason and not section.get("reason"):
        raise CannotRun(f"{where}: {op} needs a reason", "bad_table")
    rule = Rule(section.name, table, operation, source, targets, example, section.get("reason", ""))
    try:
        rule.check(backwards=table != SPELLINGS)  # a spelling is only ever read forwards
    except (re.error, ValueError) as fault:
        raise CannotRun(f"{where}: {fault}", "bad_table") from fault
    return rule


def _target_rows(table: configparser.RawConfigParser) -> Iterator[tuple[str, str | None, tuple[str, ...]]]:
    for section in _sections(table):
        module = section.name.split()[0]
        for leaf, shape in section.items():
            if leaf != "each":
                sizes = () if shape == "scalar" else tuple(part.strip() for part in shape.split(","))
                yield f"{module}.{leaf}", section.get("each"), sizes
