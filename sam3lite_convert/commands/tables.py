"""The mapping tables of a layout, and which tensors of a checkpoint their rules take."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sam3lite_convert.checkpoint.index import Checkpoint
from sam3lite_convert.commands.sources import Source
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.figures import plural
from sam3lite_convert.plan.architecture import TEXT_ENCODER, component_of
from sam3lite_convert.plan.families import SAM3_LITETEXT, Family, Variant, family_named, family_of
from sam3lite_convert.plan.key_patterns import key_patterns
from sam3lite_convert.plan.lookup import Place, forms
from sam3lite_convert.plan.names import Names, canonical_names
from sam3lite_convert.plan.plan import takes
from sam3lite_convert.plan.tables import Layout, Mappings, Rule
from sam3lite_convert.plan.taken import Taken, glob, pieces, taken
from sam3lite_convert.plan.twins import first_of
from sam3lite_convert.quoting import shell_word
from sam3lite_convert.records.tables import (
    KeyLine,
    KeysDocument,
    TableRule,
    TablesDocument,
    TakenCounts,
    TakenKeys,
)

_ORDER = {"all": 0, "video": 1}
_TWIN = "second spelling of another tensor"
_OF_TEXT = (TEXT_ENCODER, "other")  # components of the keys that rules for --component text may take
_VIDEO = "transformers"  # the one layout with --component video


@dataclass(frozen=True)
class Choice:
    """Which tables are asked for.

    layout: None for the layout that the family is described by, or of a component the one that has it.
    family: as typed; None for that of the checkpoint, or else SAM3-LiteText.
    component: all, text or video.
    """

    layout: str | None = None
    family: str | None = None
    component: str = "all"

    @property
    def stated(self) -> bool:
        """Whether the user chose a layout or a component."""
        return self.layout is not None or self.component != "all"

    @property
    def name(self) -> str | None:
        """The name of the layout; None for that of the family."""
        return self.layout or (_VIDEO if self.component == "video" else None)

    def of(self, mappings: Mappings, family: Family, variants: Iterable[str] = ()) -> Layout:
        """The layout. Raises as ``Mappings.layout`` does."""
        return mappings.layout(self.name or family.layout, family, self.component, variants)


def list_tables(mappings: Mappings, choice: Choice, source: Source | None = None) -> TablesDocument:
    """The rules of a layout; of a checkpoint, how many keys each took. Reads no tensor data.

    A checkpoint of which no plan is sound is counted all the same.
    Raises CannotRun if there is no such layout or family, or the checkpoint is of another family; as ``Source.read``
    does if it cannot be read.
    """
    family = family_named(choice.family) if choice.family else SAM3_LITETEXT
    if source is None:
        layout = choice.of(mappings, family)
        return _document(mappings, layout, choice.component, ())
    held = held_by(source, mappings, choice.family)
    layout = choice.of(mappings, held.family, (v.name for v in held.variants))
    found = taken(held.checkpoint, held.names, layout, choice.component)
    return _document(mappings, layout, choice.component, held.variants, _taken(source, held, found), held.names, found)


def list_keys(source: Source, pattern: str, mappings: Mappings, choice: Choice, command: str) -> KeysDocument:
    """The tensors with a name that matches a shell pattern: in the checkpoint, or in the layout.

    Where no layout is stated and the one taken by default has no such name, it is the first that has.
    command: what the options of another layout are suggested for.
    Raises CannotRun if there is none.
    """
    held = held_by(source, mappings, choice.family)
    asked = choice.of(mappings, held.family, (v.name for v in held.variants)), choice.component
    # A text encoder that keeps its prefix has the names of the whole model.
    others = (p for p in places(mappings, held.family, held.variants) if p[1] != "text" or p[0].strips_text)
    there = [asked, *(place for place in others if place != asked)]
    every = {place_words(place): held.taken(*place) for place in there}
    shown, notes = asked, list[str]()
    again = f"sam3lite {command} {source.option} {shell_word(pattern)}"
    for form, attention in itertools.product(forms(pattern, mappings), (False, True)):
        found = _matching(every, glob(form, attention))
        if found and form != pattern:
            notes.append(f"read as {form}")
        if found and attention:
            notes.append("read with other names of attention: qkv, in_proj, q_proj")
        if found:
            break
    own = found.pop(place_words(asked), [])
    if not own and found and not choice.stated:
        shown = next(place for place in there if place_words(place) in found)
        own = found.pop(place_words(shown))
        notes.append(f"these are names of {place_words(shown)}; as typed:\n{again} {options_of(shown)}")
    ways = [
        f"{len(found[words]):,} more have such names in {words}:\n{again} {options_of(place)}"
        for place in there
        if (words := place_words(place)) in found
    ]
    if not own:
        raise _no_match(pattern, every[place_words(asked)], asked, ways)
    return KeysDocument(
        pattern=pattern,
        layout=shown[0].name,
        component=shown[1],
        fetched=source.fetched(),
        of=len(held.checkpoint.tensors),
        tensors=tuple(map(_line, own)),
        notes=(*notes, *ways),
    )


# ---- a checkpoint, and the layouts that there are for it


@dataclass(frozen=True)
class Held:
    """What a checkpoint is, by its names."""

    checkpoint: Checkpoint
    names: Names
    family: Family
    variants: tuple[Variant, ...]

    def taken(self, layout: Layout, component: str) -> list[Taken]:
        """What the rules of a layout make of its tensors."""
        return taken(self.checkpoint, self.names, layout, component)


def places(mappings: Mappings, family: Family, variants: Sequence[Variant] = ()) -> list[Place]:
    """Each layout that a checkpoint of this family and these variants can be converted to, with each component; whole
    models first."""
    fitting = mappings.fitting(family, [v.name for v in variants])
    found = [place for place in fitting if all(takes(place[0], variant, place[1]) for variant in variants)]
    return sorted(found, key=lambda place: _ORDER.get(place[1], len(_ORDER)))


def held_by(source: Source, mappings: Mappings, family: str | None = None) -> Held:
    """What a checkpoint is. ``family``: that it has to be of, as typed.

    Raises CannotRun if it is of another.
    """
    with source.trusted():
        checkpoint = source.read(mappings)
    names = canonical_names(checkpoint, mappings.spellings)
    own = family_of(names.sources)
    if family is not None and family_named(family) is not own:
        raise CannotRun(f"{source.name} is a {own.name} checkpoint; leave out --family {family}", "usage")
    return Held(checkpoint, names, own, tuple(own.variants_in(names.sources)))


def options_of(place: Place) -> str:
    """The options that ask for a layout and a component."""
    layout, component = place
    return f"--layout {layout.name}" + (f" --component {component}" if component != "all" else "")


def place_words(place: Place) -> str:
    """A layout and a component in words."""
    layout, component = place
    return f"the layout {layout.name}" + (f", component {component}" if component != "all" else "")


def _matching(every: Mapping[str, Sequence[Taken]], match: Callable[[Taken], bool]) -> dict[str, list[Taken]]:
    """By place, the tensors that match by a name that they have there, each under the first of these places alone; in
    all but the first place those that are written."""
    out: dict[str, list[Taken]] = {}
    seen: set[str] = set()
    for n, (words, some) in enumerate(every.items()):
        found = [one for one in some if one.key not in seen and (one.targets or n == 0) and match(one)]
        seen |= {one.key for one in found}
        if found:
            out[words] = found
    return out


def _no_match(pattern: str, some: Sequence[Taken], shown: Place, ways: Sequence[str]) -> CannotRun:
    """The error for a pattern that matches no name, with how many names hold each of its parts."""
    parts = {piece: sum(any(piece in name for name in one.names) for one in some) for piece in pieces(pattern)}
    held = ", ".join(f"{piece} in the names of {plural(count, 'tensor')}" for piece, count in parts.items())
    message = f"no tensor has a name like {pattern}, in the checkpoint or in {place_words(shown)}."
    if not ways and held:
        message += f" Its parts: {held}."
    return CannotRun("\n".join([message, *ways]).replace(" more have such", " have such"), "unknown_key")


# ---- records


def _document(
    mappings: Mappings,
    layout: Layout,
    component: str,
    variants: Sequence[Variant],
    done: TakenKeys | None = None,
    names: Names | None = None,
    found: Sequence[Taken] = (),
) -> TablesDocument:
    counts = Counter((one.rules[0].table, one.rules[0].name) for one in found if one.rules)
    layouts: dict[str, tuple[str, ...]] = {}
    for other, part in places(mappings, layout.family, variants):
        layouts[other.name] = (*layouts.get(other.name, ()), part)
    return TablesDocument(
        family=layout.family.name,
        layout=layout.name,
        component=component,
        variant=layout.variant,
        about=layout.about,
        layouts=layouts,
        spellings=tuple(_rule(r, names.applied.get(r.name, 0) if names else None) for r in mappings.spellings),
        rules=tuple(
            _rule(r, counts[r.table, r.name] if done else None)
            for r in layout.rules
            if component != "text" or counts[r.table, r.name] or component_of(r.example) in _OF_TEXT
        ),
        taken=done,
    )


def _rule(rule: Rule, keys: int | None) -> TableRule:
    spelling = rule.table.startswith("spellings")
    return TableRule(
        name=rule.name,
        table=rule.table,
        operation=None if spelling else rule.operation.name,
        sources=rule.patterns,
        targets=rule.targets,
        reason=rule.reason or None,
        keys=keys,
    )


def _taken(source: Source, held: Held, found: Sequence[Taken]) -> TakenKeys:
    counts = Counter(one.outcome for one in found)
    unmatched = tuple(one.key for one in found if one.outcome == "unmatched")
    reasons = Counter(_TWIN if first_of(one.reason) else one.reason for one in found if one.outcome == "left")
    return TakenKeys(
        checkpoint=source.name,
        kind=held.family.described(held.names.sources),
        fetched=source.fetched(),
        counts=TakenCounts(
            tensors=len(found),
            mapped=counts["mapped"],
            dropped=counts["dropped"],
            left=counts["left"],
            unmatched=counts["unmatched"],
        ),
        left=dict(reasons.most_common()),
        unmatched=unmatched,
        unmatched_patterns=key_patterns(unmatched),
        disputed=tuple(one.key for one in found if one.outcome == "mapped" and len(one.rules) > 1),
    )


def _line(one: Taken) -> KeyLine:
    rule = one.rules[0] if one.rules else None
    return KeyLine(
        key=one.key,
        canonical=one.canonical,
        outcome=one.outcome,
        operation=rule.operation.name if rule and one.targets else None,
        rule=rule.name if rule else None,
        table=rule.table if rule else None,
        targets=one.targets,
        target=", ".join(key_patterns(one.targets)) or None,
        reason=one.reason or None,
    )
