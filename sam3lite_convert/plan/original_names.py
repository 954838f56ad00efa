"""A checkpoint in the names of a layout, such as a folder that transformers wrote, told in the original's names.

Nothing is read or copied: the tensors of the checkpoint that comes out are places in the same file. The q, k and v of
the file follow each other in one tensor, a transposed matrix is a view, a row is a part of a table. So every command
takes such a file as it takes the original.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from sam3lite_convert.checkpoint import dtypes
from sam3lite_convert.checkpoint.index import Checkpoint, StoredTensor, TurnedBack
from sam3lite_convert.checkpoint.selection import Selection
from sam3lite_convert.plan.architecture import TEXT
from sam3lite_convert.plan.names import released_key, spelled_key
from sam3lite_convert.plan.operations import Zeros
from sam3lite_convert.plan.tables import Layout, Mappings, Rule
from sam3lite_convert.plan.targets import target_of_text
from sam3lite_convert.plan.unsound import shown
from sam3lite_convert.records.record import Json

_LISTED = 5


class Beside(NamedTuple):
    """The JSON files beside a checkpoint, None for one that is not there: conversion.json and config.json."""

    receipt: Json | None = None
    config: Json | None = None


def in_original_names(checkpoint: Checkpoint, mappings: Mappings, beside: Callable[[], Beside] = Beside) -> Checkpoint:
    """The checkpoint under the keys of a released file; the same object if it has nobody's names, or the original's and
    is no folder of the layout that keeps them.

    It is in the names of a layout if more than half of its keys are targets of that layout, and more than are names of
    the original's. A key that no rule turns back stays as it is, for the plan to refuse.
    beside: reads the files beside it, of one that is or may be in the names of a layout: its receipt tells what was
        filled, its config.json what weights cannot tell.
    """
    stripped = {key: _without_prefix(checkpoint.selection, key) for key in checkpoint.tensors}
    known = _known(stripped.values(), mappings)
    if 2 * known >= len(stripped):
        # A conversion writes safetensors alone, so that only these may have a folder around them.
        there = beside() if checkpoint.format == "safetensors" else Beside()
        ours = (there.receipt or {}).get("layout") in list(mappings.names)
        return replace(checkpoint, config=there.config) if ours else checkpoint
    around = tuple(rule for rule in mappings.spellings if rule.repeat)
    bare = {key: spelled_key(short, around).name for key, short in stripped.items()}
    readings = [
        _Reading(layout, _targets(stripped, bare, layout, text))
        for layout in mappings.layouts.values()
        for text in ((False, True) if layout.strips_text else (False,))
    ]
    most = max(len(reading.targets) for reading in readings)
    if most <= max(known, len(stripped) // 2):
        return checkpoint
    there = beside()
    receipt = there.receipt or {}
    best = [reading for reading in readings if len(reading.targets) == most]
    named = (reading for reading in best if reading.layout.name == receipt.get("layout"))
    told = _told(checkpoint, next(named, best[0]), _filled(receipt), there.config)
    return replace(told, notes=(*told.notes, *_origin(receipt)))


@dataclass(frozen=True)
class _Reading:
    """A checkpoint taken for one in the names of a layout.

    targets: by key of the file, the target that it is, for each that a rule writes.
    """

    layout: Layout
    targets: dict[str, str]


def _without_prefix(chosen: Selection, key: str) -> str:
    """The key without a prefix that the user states."""
    return key.removeprefix(next((p for p in chosen.strip_prefix if key.startswith(p) and key != p), ""))


def _known(keys: Iterable[str], mappings: Mappings) -> int:
    """How many of the keys are names of the original's, in any spelling, that some rule knows. It stops counting where
    these are, or the others are, more than half of them all."""
    keys, count, rules = list(keys), 0, list(mappings.source_rules)
    for done, key in enumerate(keys):
        name = spelled_key(key, mappings.spellings).name
        at = next((n for n, rule in enumerate(rules) if rule.apply(name) is not None), None)
        if at is not None:
            rules.insert(0, rules.pop(at))  # keys of one module stand together
            count += 1
        if 2 * count > len(keys) or 2 * (done - count) > len(keys):
            break
    return count


def _targets(stripped: Mapping[str, str], bare: Mapping[str, str], layout: Layout, text: bool) -> dict[str, str]:
    """The target that each key is, for those that a rule of the layout writes. Of several keys for one target the one
    that needs no other spelling is taken, else the first.

    bare: the keys without what frameworks put around modules. text: whether they are those of a text encoder that was
    written without its prefix.
    """

    def target(key: str) -> str:
        return target_of_text(key, layout) if text else key

    # Without it the keys may be those of any text encoder of the kind, and the detector could not read them.
    if text and not any(target(key).startswith(layout.text_projection) for key in bare.values()):
        return {}
    found = {key: target(short) for key, short in stripped.items()}
    there = set(found.values())
    found = {key: name for key, name in found.items() if layout.written_by(name, there)}
    others = {key: target(spelled_key(short, layout.spellings).name) for key, short in bare.items() if key not in found}
    taken = set(found.values())
    there = taken | set(others.values())
    for key, name in others.items():
        if name not in taken and layout.written_by(name, there):
            found[key] = name
            taken.add(name)
    return {key: found[key] for key in stripped if key in found}


def _filled(receipt: Mapping[str, object]) -> frozenset[str]:
    """The keys of a folder that its receipt says were filled, and come from no source."""
    tensors = receipt.get("tensors")
    entries = tensors.items() if isinstance(tensors, Mapping) else ()
    return frozenset(k for k, e in entries if isinstance(e, Mapping) and e.get("operation") == Zeros.name)


def _origin(receipt: Mapping[str, object]) -> Iterator[str]:
    """What a receipt says of the checkpoint that a folder was made of: its tensors no longer tell each kind."""
    if isinstance(kind := receipt.get("kind"), str):
        yield f"its conversion.json says that it was made of this: {shown(kind)}"


def _told(checkpoint: Checkpoint, reading: _Reading, filled: frozenset[str], config: Json | None) -> Checkpoint:
    """The checkpoint in the original's names. ``filled``: keys of the file that come from no source."""
    held, layout, chosen = checkpoint.tensors, reading.layout, checkpoint.selection
    # A key that is to be dropped is dropped under its own name.
    stays = {key for _, _, found in chosen.dropped({key: key for key in held}) for key in found}
    left = [k for k in reading.targets if k in filled and dtypes.is_floating(held[k].dtype) and k not in stays]
    places = {target: key for key, target in reading.targets.items() if key not in stays and key not in left}
    made: dict[str, tuple[StoredTensor, ...]] = {}
    keys: dict[str, tuple[str, ...]] = {}
    copies: list[tuple[StoredTensor, StoredTensor]] = []
    why: dict[str, str] = {}
    unmade: set[str] = set()
    notes = list(checkpoint.notes)
    for rule, names in _groups(layout, places):
        targets = rule.apply(names[0]) or ()
        parts = [held[places[target]] for target in targets if target in places]
        missing = [target for target in targets if target not in places]
        sources = [released_key(name) for name in names]
        try:
            if there := [source for source in sources if source in held]:
                raise ValueError(f"{there[0]} is in the file too")
            if missing and not rule.operation.copies:
                raise ValueError(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
            made[parts[0].key] = rule.operation.turned_back(sources, parts)
        except ValueError as fault:
            why |= {part.key: f"belongs to {' and '.join(sources)}, but {fault}" for part in parts}
            unmade.update(sources)
            continue
        if rule.operation.copies:
            copies += [(parts[0], part) for part in parts[1:]]
            notes += [f"{target} is missing; its copy {parts[0].key} is there" for target in missing]
        keys |= {source: tuple(part.key for part in parts) for source in sources}
    used = {key for those in keys.values() for key in those}
    tensors: dict[str, StoredTensor] = {}
    for key, stored in held.items():
        if key in made:
            tensors |= {tensor.key: tensor for tensor in made[key]}
        elif key not in used and key not in left:
            tensors[key] = stored
    library = layout.loader.library
    component = layout.component or ("text" if all(key.startswith(released_key(TEXT)) for key in keys) else "all")
    words = f"{library} (layout {layout.name})" if library else f"the layout {layout.name}"
    notes.append(f"its tensors have the names of {words}; they are taken under the original's")
    if rows := [key for key, tensor in tensors.items() if any(part.absent for part in tensor.parts)]:
        notes.append(f"{', '.join(rows)}: the class row, which the file does not hold, is zeros: filled, not restored")
    if left:
        notes.append(f"left out, since the conversion filled them with zeros: {_listed(left)}")
    return replace(
        checkpoint,
        tensors=tensors,
        notes=tuple(notes),
        extents=checkpoint.extents | _extents(checkpoint, tensors, keys),
        # What the user states about keys of the file was followed here.
        selection=replace(chosen, passed_over=bool(chosen.strip_prefix) or chosen.passed_over),
        turned_back=TurnedBack(layout.name, component, words, keys, tuple(copies), why, frozenset(unmade)),
        config=config,
    )


def _groups(layout: Layout, places: Mapping[str, str]) -> Iterator[tuple[Rule, tuple[str, ...]]]:
    """Each rule that writes some of these targets, with the names of its sources there."""
    seen: set[tuple[str, ...]] = set()
    for target in places:
        found = layout.written_by(target, places)
        if found is not None and found[1] not in seen:
            seen.add(found[1])
            yield found


def _extents(
    checkpoint: Checkpoint, tensors: Mapping[str, StoredTensor], keys: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[int, int]]:
    """The byte ranges of a partial copy that contain the tensors, by their new keys; those that are made of several
    have one for each of their parts."""
    return {
        key: checkpoint.extents[keys[key][0]]
        for key, tensor in tensors.items()
        if key in keys and not tensor.parts and keys[key][0] in checkpoint.extents
    }


def _listed(keys: list[str]) -> str:
    more = f" and {len(keys) - _LISTED:,} more" if len(keys) > _LISTED else ""
    return ", ".join(keys[:_LISTED]) + more
