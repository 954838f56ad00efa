"""How one tensor of a checkpoint is converted, and what the code of a finding means."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import replace

from sam3lite_convert.commands.sources import Source
from sam3lite_convert.commands.tables import held_by, options_of, place_words, places
from sam3lite_convert.errors import CannotRun, UnsoundPlan
from sam3lite_convert.plan.architecture import TEXT
from sam3lite_convert.plan.counts import mapped_names
from sam3lite_convert.plan.families import FAMILIES
from sam3lite_convert.plan.lookup import Meaning, Place, meanings
from sam3lite_convert.plan.names import released_key
from sam3lite_convert.plan.plan import Options, Plan, make_plan
from sam3lite_convert.plan.tables import Mappings, Rule
from sam3lite_convert.quoting import shell_word
from sam3lite_convert.records.explain import CodeDocument, ExplainDocument, RuleFacts, TensorFacts
from sam3lite_convert.verify.codes import CODES


def explain_code(name: str) -> CodeDocument:
    """What the code of a finding means; upper and lower case are the same.

    Raises CannotRun, with the nearest codes, if there is no such code.
    """
    code = CODES.get(name.upper())
    if code is None:
        wanted = name.upper() if name.upper().startswith("V-") else f"V-{name.upper()}"
        near = difflib.get_close_matches(wanted, CODES, 4, 0.5)
        hint = f" Nearest: {', '.join(near)}." if near else f" There are: {', '.join(CODES)}."
        raise CannotRun(
            f"{name} is not a code of verify.{hint} To explain a tensor: sam3lite explain CHECKPOINT KEY",
            "unknown_code",
            {"near": near},
        )
    return CodeDocument(
        code=code.name, title=code.title, meaning=code.meaning, seen=code.seen, cost=code.cost, mend=code.mend
    )


def explain_key(source: Source, key: str, mappings: Mappings, options: Options, stated: bool = True) -> ExplainDocument:
    """What happens to one tensor. ``key``: its name in the checkpoint, or that of its target in any layout, in any
    spelling.

    stated: whether the options state a layout or a component; if not, and the name is one of another layout, that one
        is shown.

    Raises CannotRun, with the nearest names, if it is neither.
    """
    held = held_by(source, mappings)
    plan = make_plan(held.checkpoint, mappings, options)
    shown = plan.layout, plan.options.component
    there = places(mappings, held.family, held.variants)
    there.sort(key=lambda place: place != shown)  # the one that is shown first
    found, meaning = _found(plan, key), None
    for one in meanings(key, mappings, there) if found is None else ():
        found = _found(plan, one.name) if one.place is None else _source_of(plan, one)
        if found is not None:
            meaning = one
            break
    if found is None:
        raise _unknown(source, plan, key, mappings)
    notes = []
    if meaning is not None:
        if meaning.name != key:
            notes.append(f"read as {meaning.name}")
        if meaning.place is not None and meaning.place != shown:
            way = f"sam3lite explain {source.option} {shell_word(key)} {options_of(meaning.place)}"
            other = None if stated else _planned(plan, mappings, meaning.place)
            if other is not None:
                plan = other
                notes.append(f"this is a name of {place_words(meaning.place)}, which is shown; as typed:\n{way}")
            else:
                notes.append(f"this is a name of {place_words(meaning.place)}:\n{way}")
    dropped = plan.dropped.get(found)
    if dropped is not None and not dropped.copy and dropped.label not in dict(plan.names.left.values()):
        notes += _written(dropped.canonical, there, (plan.layout, plan.options.component))
    return _explained(source, plan, key, found, tuple(notes))


def _found(plan: Plan, name: str) -> str | None:
    """The key of the tensor that a name is that of, or of whose target, in the terms of the plan; None if of none."""
    if name in plan.checkpoint.tensors:
        return name
    if name in plan.names.sources:
        return plan.names.sources[name][0]
    if piece := plan.mapped.get(name) or next((m for m in plan.mapped.values() if m.target == name), None):
        return piece.source.key
    parts = plan.checkpoint.turned_back.keys if plan.checkpoint.turned_back else {}
    return next((key for key, those in parts.items() if name in those), None)


def _source_of(plan: Plan, meaning: Meaning) -> str | None:
    """The key of the tensor that a name of a target means; None if the checkpoint lacks some of its sources."""
    keys = [plan.names.sources.get(name, (None,))[0] for name in meaning.sources]
    return None if None in keys else keys[0]


def _planned(plan: Plan, mappings: Mappings, place: Place) -> Plan | None:
    """The plan for another layout; None if there is none that is sound."""
    options = replace(plan.options, layout=place[0].name, component=place[1])
    try:
        return make_plan(plan.checkpoint, mappings, options)
    except UnsoundPlan:
        return None


def _written(canonical: str, there: Iterable[Place], shown: Place) -> Iterator[str]:
    """A note on where a tensor that is dropped is written; nothing if that is nowhere."""
    found = [
        options_of(place)
        for place in there
        if place != shown
        and (place[1] != "text" or canonical.startswith(TEXT))
        and any(targets for _, targets in place[0].taking(canonical))
    ]
    if found:
        yield f"not dropped with {', nor with '.join(found)}"


def _unknown(source: Source, plan: Plan, key: str, mappings: Mappings) -> CannotRun:
    """The error for a name that is neither a tensor's of the checkpoint nor its target's."""
    families = sorted(FAMILIES.values(), key=lambda family: family is not plan.layout.family)
    every = [place for family in families for place in places(mappings, family)]
    sources, targets = _nearest(key, plan.checkpoint.tensors), _nearest(key, plan.mapped)
    near = [*sources, *targets]
    hint = "\nNearest names of the checkpoint:\n  " + "\n  ".join(sources) if sources else ""
    hint += "\nNearest names of the conversion:\n  " + "\n  ".join(targets) if targets else ""
    hint = hint or _part_of_a_name(source, plan, key)
    lacks = ""
    for one in meanings(key, mappings, every):
        # The layout of the original's own names takes any name of a component, also a misspelt one.
        if one.place is not None and one.name not in (*one.sources, *map(released_key, one.sources)):
            layout = one.place[0]
            of = f" of {layout.family.name}" if layout.family is not plan.layout.family else ""
            lacks = (
                f"\nIt is a name of {place_words(one.place)}{of}, made of\n  {', '.join(one.sources)}\nwhich this "
                "checkpoint does not have."
            )
            break
    return CannotRun(
        f"{key} is not a tensor of the checkpoint, nor of its conversion.{lacks}{hint}", "unknown_key", {"near": near}
    )


def _nearest(key: str, names: Iterable[str]) -> list[str]:
    """Up to two of these names that are like the key, or whose last parts are, the most alike first."""
    depth = key.count(".") + 1
    ends: dict[str, list[str]] = {}
    for name in names:
        for form in {name, ".".join(name.split(".")[-depth:]) if depth > 1 else name}:
            ends.setdefault(form, []).append(name)
    found = (name for form in difflib.get_close_matches(key, ends, 2, 0.6) for name in ends[form])
    return list(dict.fromkeys(found))[:2]


def _part_of_a_name(source: Source, plan: Plan, key: str) -> str:
    """What to type for a word that names hold or nearly hold, or for the code of a finding; else nothing."""
    if key.upper().startswith("V-"):
        codes = difflib.get_close_matches(key.upper(), CODES, 1, 0.5)
        return f"\nFor the code of a finding: sam3lite explain {codes[0]}" if codes else ""
    held = [name for name in plan.checkpoint.tensors if key in name]
    parts = {part for name in plan.checkpoint.tensors for part in name.split(".")}
    word = key if held else next(iter(difflib.get_close_matches(key, parts, 1, 0.75)), "")
    return f"\nFor all names with {word}: sam3lite explain {source.option} '*{word}*'" if word.isidentifier() else ""


def _explained(source: Source, plan: Plan, key: str, found: str, notes: tuple[str, ...]) -> ExplainDocument:
    dropped = plan.dropped.get(found)
    pieces = [m for m in plan.mapped.values() if found in (m.source.key, *(s.key for s in m.sources))]
    filled = not dropped and pieces[0].source.absent
    rule = dropped.rule if dropped else pieces[0].rule
    stored = plan.checkpoint.tensors.get(found, pieces[0].source if pieces else None)
    if stored is None:
        raise ValueError(f"{found} is neither in the checkpoint nor in the plan")
    name = dropped.canonical if dropped else mapped_names(plan).get(found, pieces[0].canonical)
    joined = {s.key: None for piece in pieces for s in piece.sources} if pieces and len(pieces[0].sources) > 1 else {}
    return ExplainDocument(
        key=key,
        layout=plan.layout.name,
        component=plan.options.component,
        fetched=source.fetched(),
        outcome="dropped" if dropped else "filled" if filled else "mapped",
        source=TensorFacts(
            key=found,
            dtype=stored.dtype,
            shape=stored.shape,
            canonical=name,
        ),
        joined=tuple(joined) or None,
        operation=None if dropped else pieces[0].operation.name,
        operation_about=None if dropped else pieces[0].operation.about,
        reason=dropped.reason if dropped else None,
        rule=_rule(rule) if rule else None,
        targets=tuple(TensorFacts(key=p.key, dtype=p.dtype, shape=p.shape, part=p.part) for p in pieces),
        notes=notes,
    )


def _rule(rule: Rule) -> RuleFacts:
    return RuleFacts(name=rule.name, table=rule.table, pattern=rule.pattern, targets=tuple(rule.targets))
