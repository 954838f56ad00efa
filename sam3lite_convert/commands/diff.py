"""Compares two checkpoints tensor by tensor under canonical names."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

import numpy as np

from sam3lite_convert.checkpoint import dtypes
from sam3lite_convert.checkpoint.index import Checkpoint, StoredTensor
from sam3lite_convert.checkpoint.nonfinite import words_of
from sam3lite_convert.checkpoint.reader import open_source
from sam3lite_convert.commands.sources import Source
from sam3lite_convert.figures import component_words, number, plural
from sam3lite_convert.plan.architecture import COMPONENTS, COUNTER, TEXT, component_of
from sam3lite_convert.plan.copies import check_copies
from sam3lite_convert.plan.counts import parameters
from sam3lite_convert.plan.families import family_of
from sam3lite_convert.plan.key_patterns import key_patterns, listed, number_ranges
from sam3lite_convert.plan.names import Names, canonical_names
from sam3lite_convert.plan.tables import Mappings, Rule
from sam3lite_convert.plan.twins import check_twins, twins_of
from sam3lite_convert.plan.unsound import shape_text
from sam3lite_convert.records.diff import (
    ComponentDiff,
    DiffCounts,
    DiffDocument,
    DiffStatus,
    DiffVerdict,
    LayerDiff,
    LayerRun,
    OnlyIn,
    TensorDiff,
)
from sam3lite_convert.records.receipt import NonFinite
from sam3lite_convert.records.shared import FileFacts
from sam3lite_convert.verify.tensor_comparison import (
    Comparison,
    OpenTensor,
    Rows,
    Sums,
    compare_tensors,
    lacking_rows,
    leading_rows,
)
from sam3lite_convert.workers import Advance

_STARTS = dict(COMPONENTS)
_COMPONENTS = (*_STARTS, "other")
# As they are listed: what a reader has to know first.
_ORDER: tuple[DiffStatus, ...] = ("reshaped", "changed", "integers_changed", "cut", "equal_up_to_cast")
_NAMED = 3  # modules that the sentence on a component names


@dataclass
class _Side:
    """One of the two checkpoints. ``label``: how it is called, A or B."""

    label: str
    source: Source
    index: Checkpoint
    names: Names
    sha256: str | None = None
    notes: list[str] = field(default_factory=list)

    def keys(self, name: str) -> tuple[str, ...]:
        """The keys of the file that hold a tensor of this canonical name."""
        key = self.names.sources[name][0]
        told = self.index.turned_back
        return told.keys.get(key, (key,)) if told else (key,)


@dataclass(frozen=True)
class _Place:
    """Where in its component a tensor stands.

    module: the list of layers that it belongs to, or the module. number: of the layer; None outside of a list.
    leaf: the rest of its name.
    """

    module: str
    number: int | None
    leaf: str

    @property
    def layer(self) -> str:
        """The name of the layer or module."""
        return self.module if self.number is None else f"{self.module}.{self.number}"


@dataclass(frozen=True)
class _Compared:
    """A tensor that both sides hold.

    counted: whether its values count in sums: those that are floating or complex do. diff: None if it is equal.
    """

    name: str
    component: str
    place: _Place
    status: DiffStatus
    counted: bool
    sums: Sums
    nan: NonFinite | None
    diff: TensorDiff | None = None

    @property
    def changed(self) -> bool:
        return self.status in ("changed", "reshaped")


def diff_checkpoints(
    a: Source, b: Source, mappings: Mappings, progress: Callable[[str], Advance] | None = None
) -> DiffDocument:
    """Compare two checkpoints, whole files on this machine; ``verdict`` says whether they are equal.

    progress: called with "compare" and "hash".
    Raises UnsoundPlan if a file holds several copies of the model, Untrusted if one is damaged, or holds one tensor
    under two names with different values.
    """
    advance = progress or (lambda what: lambda n: None)
    with ExitStack() as stack:
        stack.enter_context(a.trusted())
        stack.enter_context(b.trusted())
        hashes = [stack.enter_context(source.hashing()) for source in (a, b)]
        sides = [_read(label, source, mappings) for label, source in (("A", a), ("B", b))]
        for side, hashing in zip(sides, hashes, strict=True):
            hashing.check(side.index)
            hashing.follow(advance("hash"))
        opened = [_open(side, stack) for side in sides]
        compared = list(_compared(sides, opened, _rules(mappings, "split"), advance("compare")))
        for side, hashing in zip(sides, hashes, strict=True):
            side.sha256, notes = hashing.result()
            side.notes += notes
    return _document(sides[0], sides[1], compared, mappings)


def _read(label: str, source: Source, mappings: Mappings) -> _Side:
    index = source.read(mappings)
    names = canonical_names(index, mappings.spellings)
    check_copies(index, names)
    side = _Side(label, source, index, names)
    side.notes += index.notes
    for kind, n in Counter(kind for kind, _ in names.left.values()).items():
        side.notes.append(f"{plural(n, 'key')} left out: {kind}")
    if names.twins:
        side.notes.append(f"{plural(len(names.twins), 'tensor')} under two names, equal to the bit")
    return side


def _open(side: _Side, stack: ExitStack) -> dict[str, OpenTensor]:
    """The tensors by canonical name, with their file, which the stack closes. Raises Untrusted for unequal twins."""
    file = stack.enter_context(open_source(side.index))
    check_twins(file, tuple(twins_of(side.index, side.names)))
    return {name: OpenTensor(file, side.index.tensors[keys[0]]) for name, keys in side.names.sources.items()}


def _rules(mappings: Mappings, operation: str) -> tuple[Rule, ...]:
    """The rules of all layouts with this operation."""
    found = (rule for layout in mappings.layouts.values() for rule in layout.rules if rule.operation.name == operation)
    return tuple(dict.fromkeys(found))


# ---- one tensor


def _compared(
    sides: Sequence[_Side], opened: Sequence[Mapping[str, OpenTensor]], fused: tuple[Rule, ...], advance: Advance
) -> Iterator[_Compared]:
    """Compare every tensor that both sides hold. ``fused``: the rules that tell fused rows of q, k and v."""
    first, second = opened
    for name, one in first.items():
        if name in second:
            rule = next((rule for rule in fused if rule.apply(name) is not None), None)
            yield _compare(name, [side.keys(name) for side in sides], one, second[name], rule)
        advance(one.stored.nbytes)


def _compare(
    name: str, keys: Sequence[tuple[str, ...]], one: OpenTensor, other: OpenTensor, fused: Rule | None
) -> _Compared:
    a, b = one.stored, other.stored
    component, place = component_of(name), _place(name)
    counted = any(dtypes.is_floating(t.dtype) or t.dtype.startswith("complex") for t in (a, b))
    found, rows, where = _found(one, other)
    status, words, parts = _judged(a, b, found, rows, where, counted, fused)
    sums = found.sums if found and counted else Sums()
    nan = found.not_finite[0] if found and (found.not_finite[0].nan or found.not_finite[0].infinite) else None
    if status == "equal":
        return _Compared(name, component, place, status, counted, sums, nan)
    valued = found if found and found.same_kind else None
    changed_rows = int(found.changed_rows.sum()) if found and found.changed_rows is not None else None
    diff = TensorDiff(
        name=name,
        keys_a=keys[0],
        keys_b=keys[1],
        component=component,
        layer=place.layer,
        status=status,
        dtype_a=a.dtype,
        dtype_b=b.dtype,
        shape_a=a.shape,
        shape_b=b.shape,
        cast=found.casts[0] if found and found.casts else None,
        changed_values=valued.differing if valued else None,
        rows=valued.rows if valued and changed_rows is not None else None,
        changed_rows=changed_rows if valued else None,
        parts=parts,
        relative_l2=valued.sums.relative_l2 if valued else None,
        max_abs_diff=valued.sums.max_abs if valued else None,
        cosine=valued.sums.cosine if valued else None,
        not_finite_a=found.not_finite[0] if found else None,
        not_finite_b=found.not_finite[1] if found else None,
        words=words,
    )
    return _Compared(name, component, place, status, counted, sums, nan, diff)


def _found(one: OpenTensor, other: OpenTensor) -> tuple[Comparison | None, Rows | None, str]:
    """The comparison, of which rows if not of all, and these in words. None if the shapes are of different kinds.

    Of a shorter table it is compared whether it begins the longer one, and then whether it ends it; if it does neither,
    the comparison is that of the beginning.
    """
    a, b = one.stored, other.stored
    lengths = leading_rows(a.shape, b.shape)
    if lengths is None:
        return None, None, ""
    if a.shape == b.shape:
        lacking = {"A": lacking_rows(a), "B": lacking_rows(b)}
        if lacking["A"] == lacking["B"]:
            return compare_tensors(one, other), None, ""
        side = max(lacking, key=lambda label: lacking[label])
        rows = Rows(lacking[side], lacking[side], lengths[0] - lacking[side])
        return (
            compare_tensors(one, other, rows),
            rows,
            f"the last {rows.length:,} of {lengths[0]:,} rows, all that {side} holds",
        )
    count, most = sorted(lengths)
    ends = {"first": Rows(0, 0, count), "last": Rows(lengths[0] - count, lengths[1] - count, count)}
    found = {end: compare_tensors(one, other, rows) for end, rows in ends.items()}
    end = next((end for end in ends if not found[end].differing or found[end].casts), "first")
    return found[end], ends[end], f"the {end} {count:,} of {most:,} rows"


def _judged(
    a: StoredTensor,
    b: StoredTensor,
    found: Comparison | None,
    rows: Rows | None,
    where: str,
    counted: bool,
    fused: Rule | None,
) -> tuple[DiffStatus, str, tuple[str, ...] | None]:
    """The status of a tensor, what is different in words, and which parts of a fused one changed, if not all did."""
    shapes = f"{shape_text(a.shape)} in A, {shape_text(b.shape)} in B" if a.shape != b.shape else ""
    types = f"{a.dtype} in A, {b.dtype} in B" if a.dtype != b.dtype else ""
    known = [text for text in (shapes, types) if text]
    if found is None:
        return "reshaped", "; ".join(known), None
    equal = f"equal after the cast to {found.casts[0]}" if found.casts else "equal" if not found.differing else ""
    if equal and rows is not None:
        return "cut", "; ".join([*known, f"{where}, are {equal}" if "," in where else f"{where} are {equal}"]), None
    if equal:
        return ("equal_up_to_cast", f"{types}: {equal}", None) if types else ("equal", "", None)
    parts = _parts(found, fused) if rows is None else None
    size = _measured(found, counted) if found.same_kind else "not compared"
    said = [*known, f"{where}: {size}" if where else size, *_places(found, parts)]
    status: DiffStatus = "reshaped" if shapes else "changed" if counted else "integers_changed"
    return status, "; ".join(said), parts


def _parts(found: Comparison, fused: Rule | None) -> tuple[str, ...] | None:
    """Of fused rows of q, k and v, those that changed; None if the tensor is not fused or all of them changed."""
    if fused is None or found.changed_rows is None:
        return None
    labels = [label for label in fused.operation.labels if label]
    if len(found.changed_rows) % len(labels):
        return None
    changed = [
        label for label, rows in zip(labels, np.split(found.changed_rows, len(labels)), strict=True) if rows.any()
    ]
    return None if len(changed) == len(labels) else tuple(changed)


def _measured(found: Comparison, counted: bool) -> str:
    sums = found.sums
    if counted and not sums.squares and not any(n.nan or n.infinite for n in found.not_finite):
        return "the sign of zeros alone"
    size = "A is zero" if math.isinf(sums.relative_l2) else f"relative L2 {number(sums.relative_l2)}"
    cosine = "" if sums.cosine is None else f", cosine {sums.cosine:.6f}"
    return f"{size}, max abs diff {number(sums.max_abs)}{cosine}"


def _places(found: Comparison, parts: tuple[str, ...] | None) -> Iterator[str]:
    """Where a tensor differs, and its values that are not finite, in words."""
    if parts is not None:
        yield f"only rows of {' and '.join(parts)}"
    elif found.differing < found.elements:
        rows = 0 if found.changed_rows is None else int(found.changed_rows.sum())
        among = f" in {rows:,} of {found.rows:,} rows" if 0 < rows < found.rows else ""
        yield f"{found.differing:,} of {found.elements:,} values{among}"
    for label, counts in zip("AB", found.not_finite, strict=True):
        if counts.nan or counts.infinite:
            yield f"{counts.nan:,} NaN and {counts.infinite:,} infinite in {label}"
    if found.nan_in_both:
        yield f"{found.nan_in_both:,} NaN at the same places, counted as equal"


def _place(name: str) -> _Place:
    parts = name.removeprefix(_STARTS.get(component_of(name), "")).split(".")
    n = next((n for n, part in enumerate(parts) if n and part.isdecimal()), None)
    if n is not None:
        return _Place(".".join(parts[:n]), int(parts[n]), ".".join(parts[n + 1 :]))
    module = parts[:-1][:2] if parts[-1].endswith(("weight", "bias")) else parts
    return _Place(".".join(module), None, ".".join(parts[len(module) :]))


# ---- all of them


def _document(a: _Side, b: _Side, compared: list[_Compared], mappings: Mappings) -> DiffDocument:
    alone = [*_only_in("a", a, b, mappings), *_only_in("b", b, a, mappings)]
    present = {c.component for c in compared} | {kind.component for kind in alone}
    components = {
        name: _component([c for c in compared if c.component == name], [k for k in alone if k.component == name])
        for name in sorted(present, key=_COMPONENTS.index)
    }
    counts = sum((part.counts for part in components.values()), DiffCounts(a=0, b=0))
    diffs = sorted((c for c in compared if c.diff is not None), key=_weight)
    notes = [f"{side.label}: {note}" for side in (a, b) for note in side.notes]
    same_nan = {c.name: c.nan for c in compared if c.nan and c.status == "equal"}
    if same_nan:
        notes.append(f"NaN or infinity at the same places on both sides, counted as equal: {words_of(same_nan)}")
    return DiffDocument(
        a=_facts(a),
        b=_facts(b),
        kind_a=_kind(a),
        kind_b=_kind(b),
        sha256_a=a.sha256,
        sha256_b=b.sha256,
        verdict=_verdict(counts),
        summary=_summary(counts, compared),
        touched=_touched(compared, components),
        counts=counts,
        components=components,
        only_in=tuple(alone),
        tensors=tuple(c.diff for c in diffs if c.diff is not None),
        notes=tuple(notes),
    )


def _facts(side: _Side) -> FileFacts:
    text = [side.index.tensors[keys[0]] for name, keys in side.names.sources.items() if name.startswith(TEXT)]
    return side.source.facts(side.index, side.names, parameters(text))


def _kind(side: _Side) -> str:
    """What a side is, in words, as far as the names of its tensors tell."""
    names = side.names.sources
    family, told = family_of(names), side.index.turned_back
    if all(component_of(name) == "other" for name in names):
        return "not a checkpoint of this family"
    if found := family.relatives_in(names):
        return " and ".join(relative.kind for relative in found)
    if not any(name.startswith(TEXT) for name in names):
        return "part of a SAM3 checkpoint, without a text encoder"
    return family.described(names) + (f" in the names of {told.names}" if told else "")


def _weight(c: _Compared) -> tuple[int, float]:
    """By which tensors are sorted: values that are no longer finite come before all finite changes."""
    lost = c.diff is not None and c.diff.not_finite_a != c.diff.not_finite_b
    return _ORDER.index(c.status), -math.inf if lost else -c.sums.relative_l2


def _only_in(side: Literal["a", "b"], own: _Side, other: _Side, mappings: Mappings) -> Iterator[OnlyIn]:
    """The tensors of ``own`` that ``other`` lacks, by component and kind."""
    drops, groups = _rules(mappings, "drop"), dict[tuple[str, str], list[str]]()
    for name in own.names.sources:
        if name not in other.names.sources:
            reasons = (rule.reason for rule in drops if rule.apply(name) is not None)
            reason = next(reasons, None)
            kind = _place(name).module if reason is None else reason.partition(":")[0]
            groups.setdefault((component_of(name), kind), []).append(name)
    for (component, kind), names in groups.items():
        yield OnlyIn(side=side, component=component, kind=kind, tensors=len(names), names=tuple(names))


def _counts(compared: Iterable[_Compared], alone: Iterable[OnlyIn] = ()) -> DiffCounts:
    found = Counter(c.status for c in compared)
    only = Counter[str]()
    for kind in alone:
        only[kind.side] += kind.tensors
    return DiffCounts(
        a=found.total() + only["a"],
        b=found.total() + only["b"],
        only_in_a=only["a"],
        only_in_b=only["b"],
        **{str(status): n for status, n in found.items()},
    )


def _relative_l2(compared: Iterable[_Compared]) -> float:
    total = Sums()
    for c in compared:
        total.add(c.sums)
    return total.relative_l2


def _component(compared: list[_Compared], alone: list[OnlyIn]) -> ComponentDiff:
    layers = dict[_Layer, list[_Compared]]()
    for c in compared:
        layers.setdefault((c.place.module, c.place.number), []).append(c)
    changed = sorted((c for c in compared if c.status == "changed"), key=_weight)
    return ComponentDiff(
        counts=_counts(compared, alone),
        relative_l2=_relative_l2(compared),
        largest=changed[0].name if changed else None,
        largest_relative_l2=changed[0].sums.relative_l2 if changed else None,
        layers=tuple(
            LayerDiff(
                name=own[0].place.layer,
                tensors=len(own),
                changed=sum(c.changed for c in own),
                relative_l2=_relative_l2(own),
            )
            for own in layers.values()
        ),
        runs=tuple(_runs(layers)) if any(c.changed for c in compared) else (),
    )


# ---- layers in rows

_Layer = tuple[str, int | None]  # its list or module, and its number


def _runs(layers: Mapping[_Layer, list[_Compared]]) -> Iterator[LayerRun]:
    """Rows: layers that follow each other with the same tensors changed; and all modules without a change in one."""
    modules = dict[tuple[str, bool], dict[int, list[_Compared]]]()
    for (module, n), own in layers.items():
        modules.setdefault((module, n is None), {})[n or 0] = own
    equal: list[_Compared] = []
    for numbered in modules.values():
        if not any(c.changed for own in numbered.values() for c in own):
            equal += [c for own in numbered.values() for c in own]
            continue
        for _, same in groupby((numbered[n] for n in sorted(numbered)), _signature):
            yield _run(list(same))
    if equal:
        yield LayerRun(
            name="everything else",
            layers=len({c.place.layer for c in equal}),
            tensors=len(equal),
            changed=0,
            relative_l2=_relative_l2(equal),
            what="",
        )


def _signature(layer: list[_Compared]) -> frozenset[tuple[str, tuple[str, ...] | None]]:
    """Which tensors of a layer changed, and of fused ones which parts."""
    return frozenset((c.place.leaf, c.diff.parts if c.diff else None) for c in layer if c.changed)


def _run(layers: list[list[_Compared]]) -> LayerRun:
    own = [c for layer in layers for c in layer]
    changed = [c for c in own if c.changed]
    (name,) = key_patterns(layer[0].place.layer for layer in layers)
    reshaped = changed and all(c.status == "reshaped" for c in changed)
    return LayerRun(
        name=name,
        layers=len(layers),
        tensors=len(own),
        changed=len(changed),
        relative_l2=_relative_l2(own),
        what=_what(own, changed) + (" (another shape, not compared)" if reshaped else ""),
    )


def _what(own: list[_Compared], changed: list[_Compared]) -> str:
    """Which of the tensors of some layers changed, in words."""
    parts = {c.place.leaf: c.diff.parts if c.diff else None for c in changed}
    if not changed:
        return ""
    if not any(parts.values()) and len(changed) == sum(c.counted for c in own):
        return "all tensors"
    groups = dict[tuple[str, ...] | None, list[str]]()
    for leaf, some in parts.items():
        groups.setdefault(some, []).append(leaf)
    return "; ".join(
        listed(leaves) + (f" (rows of {', '.join(some)})" if some else "") for some, leaves in groups.items()
    )


# ---- words


def _verdict(counts: DiffCounts) -> DiffVerdict:
    if not counts.shared and (counts.a or counts.b):
        return "nothing_shared"
    if counts.changed or counts.integers_changed or counts.reshaped:
        return "changed"
    if counts.only_in_a or counts.only_in_b or counts.cut:
        return "shared_equal"
    return "equal_up_to_cast" if counts.equal_up_to_cast else "equal"


def _summary(counts: DiffCounts, compared: list[_Compared]) -> str:
    if not counts.shared:
        return f"no tensor is in both: {plural(counts.a, 'tensor')} in A, {plural(counts.b, 'tensor')} in B"
    integers = [c for c in compared if c.status == "integers_changed"]
    counters = all(c.name.endswith(COUNTER) for c in integers)
    casts = {c.diff.cast for c in compared if c.diff and c.status == "equal_up_to_cast"}
    said = [
        (counts.equal_up_to_cast, f"equal up to the cast to {' or '.join(sorted(filter(None, casts)))}"),
        (counts.cut, "equal in the rows that both hold"),
        (counts.integers_changed, f"counters ({COUNTER}) changed" if counters else "of integers changed"),
        (counts.reshaped, "of another shape"),
        (counts.only_in_a, "only in A"),
        (counts.only_in_b, "only in B"),
    ]
    first = f"{plural(counts.equal, 'tensor')} equal, {counts.changed:,} changed"
    return ", ".join([first, *(f"{n:,} {what}" for n, what in said if n)])


def _touched(compared: list[_Compared], components: Mapping[str, ComponentDiff]) -> str:
    """Which components changed and where, which did not, and which only one side holds; empty if none changed."""
    of = {name: own for name in _COMPONENTS if (own := [c for c in compared if c.component == name])}
    changed = {name: own for name, own in of.items() if any(c.changed for c in own)}
    if not changed:
        return ""
    lists = {
        "changed": [f"{component_words(name)} ({_where(own)})" for name, own in changed.items()],
        "equal": [component_words(name) for name in of if name not in changed],
        "only in A": [component_words(name) for name, part in components.items() if not part.counts.b],
        "only in B": [component_words(name) for name, part in components.items() if not part.counts.a],
    }
    if all(c.changed for c in compared if c.counted):
        lists["changed"] = ["every component, all of it"]
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in lists.items() if names)


def _where(own: list[_Compared]) -> str:
    """Which part of a component changed: of its longest list of layers these, or else its modules."""
    changed = [c for c in own if c.changed]
    if len(changed) == sum(c.counted for c in own):
        return "all of it"
    lists = Counter(c.place.module for c in own if c.place.number is not None)
    longest = max(lists, key=lambda name: lists[name], default="")
    every = {c.place.number for c in own if c.place.module == longest}
    some = {c.place.number for c in changed if c.place.module == longest}
    modules = list(dict.fromkeys(c.place.module for c in changed if c.place.module != longest))
    said = []
    if some:
        name = longest.rpartition(".")[2]
        numbers = number_ranges(n for n in some if n is not None)
        part = f"{name} {numbers} of {len(every)}"
        if len(some) == 1:  # "blocks 31 of 32" would be 31 blocks
            part = f"{name.removesuffix('s')} {numbers}, of {len(every)}"
        said.append(f"all {len(every)} {name}" if some == every else part)
    said += modules[:_NAMED]
    return ", ".join(said) + (f" and {len(modules) - _NAMED} more" if len(modules) > _NAMED else "")
