"""Gathers what is wrong with single keys into findings: one a cause and component."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from sam3lite_convert.figures import component_words
from sam3lite_convert.plan.architecture import component_of
from sam3lite_convert.plan.key_patterns import key_patterns
from sam3lite_convert.plan.plan import Plan
from sam3lite_convert.records.verify import Finding
from sam3lite_convert.verify.codes import CODES

# Correlation with the source from which values count as its own, trained further, and below which as another's. Two
# independent tensors of n elements have one of about 1/sqrt(n): 0.3 is more than four standard deviations for the
# smallest tensor that is asked (_ENOUGH), and 0.8 is a difference of 60 % of the source's spread.
_CLOSE, _UNRELATED, _ENOUGH = 0.8, 0.3, 256
_ROTARY = "rotary tables of the checkpoint"


@dataclass(frozen=True)
class Values:
    """How a tensor's values differ from the source's, as sums, so that those of several tensors can be added.

    elements, differing: numbers of elements, and of those that differ in any bit. The others are over the elements that
    are finite on both sides: squares of the differences and of the source, and the centred products of the source with
    itself, of the folder with itself, and of the two. max_abs: the largest absolute difference.
    """

    elements: int
    differing: int
    squares: float = 0.0
    source_squares: float = 0.0
    source_variance: float = 0.0
    variance: float = 0.0
    covariance: float = 0.0
    max_abs: float = 0.0

    def __add__(self, other: Values) -> Values:
        return Values(
            self.elements + other.elements,
            self.differing + other.differing,
            self.squares + other.squares,
            self.source_squares + other.source_squares,
            self.source_variance + other.source_variance,
            self.variance + other.variance,
            self.covariance + other.covariance,
            max(self.max_abs, other.max_abs),
        )

    @property
    def relative_l2(self) -> float:
        """Norm of the difference over the norm of the source; infinite if the source is zero."""
        return math.sqrt(self.squares / self.source_squares) if self.source_squares else math.inf

    @property
    def correlation(self) -> float:
        """Correlation with the source; 0 if one side is constant."""
        both = math.sqrt(self.source_variance) * math.sqrt(self.variance)
        return self.covariance / both if both else 0.0


@dataclass(frozen=True)
class Difference:
    """One key that is wrong, and why.

    code: of the catalogue (``codes.CODES``).
    component: of the model, or the file that the key belongs to.
    why: what is wrong with this key, in a sentence.
    cause: the same for all keys with this cause, without what holds of this key alone; empty if ``why`` does.
    holds: keys of tensors whose values this tensor holds.
    values: how its values differ, if no cause gives just these values. What they are like is told of a component as a
        whole (``gathered``).
    fatal: whether the folder is not its source because of it.
    """

    key: str
    code: str
    component: str
    why: str
    cause: str = ""
    holds: tuple[str, ...] = ()
    values: Values | None = None
    fatal: bool = True


def component_of_key(plan: Plan, key: str) -> str:
    """The component of a key of the folder, also of one that the plan does not write."""
    if key in plan.mapped:
        return component_of(plan.mapped[key].canonical)
    module = plan.layout.module(key)
    return next(
        (component_of(m.canonical) for m in plan.mapped.values() if plan.layout.module(m.target) == module), "other"
    )


def gathered(differences: Iterable[Difference]) -> tuple[list[Difference], list[Finding]]:
    """The differences with swaps and kinds of values named, and the findings: one a code, component and cause."""
    named = _values_named(_swaps_named(list(differences)))
    groups: dict[tuple[str, str, str], list[Difference]] = {}
    for one in named:
        groups.setdefault((one.code, one.component, one.cause or one.why), []).append(one)
    return named, [_finding(group) for group in groups.values()]


def _finding(group: Sequence[Difference]) -> Finding:
    first = group[0]
    keys = tuple(one.key for one in group)
    values = [one.values for one in group if one.values]
    total = sum(values[1:], values[0]) if values else None
    if len(group) == 1:
        cause = first.why
    elif total is not None:
        worst = max((one for one in group if one.values), key=lambda one: one.values.relative_l2 if one.values else 0.0)
        cause = (
            f"{first.cause}: relative L2 {total.relative_l2:.3g} over all, largest "
            f"{worst.values.relative_l2 if worst.values else 0.0:.3g} ({worst.key}); max abs diff {total.max_abs:.3g}"
        )
    else:
        cause = first.cause or first.why
    count = f"{len(keys):,} keys" if len(keys) > 1 else keys[0]
    return Finding(
        code=first.code,
        component=first.component,
        cause=cause,
        keys=keys,
        patterns=key_patterns(keys),
        summary=f"{component_words(first.component)}: {CODES[first.code].title} ({count}): {cause}",
        relative_l2=total.relative_l2 if total else None,
        max_abs_diff=total.max_abs if total else None,
    )


# ---- swaps


def _swaps_named(differences: list[Difference]) -> list[Difference]:
    """If two tensors hold each other's values, say so for both."""
    by_key = {one.key: one for one in differences if one.holds}
    out = []
    for one in differences:
        other = next((k for k in one.holds if k in by_key and one.key in by_key[k].holds), None)
        if other is not None:
            cause, parts = _swapped(one.key, other)
            why = f"{parts}swapped with {other}: {one.why}"
            one = replace(one, code="V-SWAPPED", why=why, cause=cause)
        out.append(one)
    return out


def _swapped(key: str, other: str) -> tuple[str, str]:
    """What two swapped tensors have in common with others that are swapped alike, and how one says so of this key."""
    place = one_place(key, other)
    if place is None:
        first, second = sorted(modules(key, other))
        return f"{first} and {second} hold each other's {'values' if first in (key, other) else 'tensors'}", ""
    a, b = (k.split(".")[place] for k in (key, other))
    if a.isdecimal():
        low, high = sorted(map(int, (a, b)))
        return f"{'.'.join(key.split('.')[:place])}.{low} and .{high} hold each other's tensors", ""
    parts = [p[0] for p in (a, b) if p[1:] == "_proj" and p[0] in "qkv"]
    if len(parts) < 2:
        first, second = sorted((a, b))
        return f"{first} and {second} hold each other's values", ""
    first, second = sorted(parts, key="qkv".index)
    return f"{first} and {second} are swapped", f"{parts[0]} and {parts[1]} are swapped; "


def one_place(key: str, other: str) -> int | None:
    """The place at which two keys differ, counted in parts between dots; None if it is not exactly one."""
    a, b = key.split("."), other.split(".")
    places = [n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y]
    return places[0] if len(a) == len(b) and len(places) == 1 else None


def modules(key: str, other: str) -> tuple[str, str]:
    """What is left of two keys without the parts between dots in which they end alike; they themselves if they end
    otherwise."""
    a, b = key.split("."), other.split(".")
    alike = 0
    while alike < min(len(a), len(b)) - 1 and a[-alike - 1] == b[-alike - 1]:
        alike += 1
    return ".".join(a[: len(a) - alike]), ".".join(b[: len(b) - alike])


# ---- values


def _values_named(differences: list[Difference]) -> list[Difference]:
    """Name what the values of each component are like: a fine-tune, unrelated, or just others."""
    kinds: dict[str, Counter[str]] = {}
    for one in differences:
        if one.values and (kind := _kind(one.values)):
            kinds.setdefault(one.component, Counter())[kind] += 1
    out = []
    for one in differences:
        if one.values:
            seen = kinds.get(one.component, Counter())
            code = _kind(one.values) or _joins(one.values, seen.most_common(1)[0][0] if seen else "")
            if code == "V-FINE-TUNED" and seen[code] < 2:
                code = ""
            code = code or "V-OTHER-VALUES"
            one = replace(one, code=code, cause=_VALUES[code])
        out.append(one)
    return out


_VALUES = {
    "V-FINE-TUNED": "values differ a little from the source and are correlated with it, like a fine-tune",
    "V-UNRELATED": "values are unrelated to the source, like another training or random initialisation",
    "V-OTHER-VALUES": "values differ",
}


def _kind(values: Values) -> str | None:
    """The code of a tensor whose values are like a fine-tune or unrelated; None if that cannot be told of it alone."""
    if 2 * values.differing < values.elements or values.elements < _ENOUGH:
        return None
    if values.correlation >= _CLOSE:
        return "V-FINE-TUNED"
    return "V-UNRELATED" if abs(values.correlation) < _UNRELATED and values.relative_l2 > _UNRELATED else None


def _joins(values: Values, most: str) -> str:
    """The code of most tensors of a component, if a tensor that is too small or too even to tell by itself may be of
    that kind too; otherwise an empty string."""
    if most == "V-FINE-TUNED":
        alike = values.elements < _ENOUGH or values.correlation >= _CLOSE or values.relative_l2 <= _UNRELATED
        return most if alike else ""
    return most if 2 * values.differing >= values.elements else ""


# ---- the summary


_SPREAD = 4  # components that differ alike, from which they are told together
_MISSING, _UNEXPECTED = "V-MISSING", "V-UNEXPECTED"


def summary_of(
    findings: Sequence[Finding], totals: Mapping[str, int], counters: Mapping[str, int], equal: int, up_to: str | None
) -> str:
    """One sentence: what differs by component, and what does not.

    totals: number of tensors by component, in the plan's order.
    counters: how many of them are counters of batches, which stay equal where all weights differ.
    equal: number of tensors that equal their source.
    """
    said = []
    if any(f.code == "V-CONFIG-CLASS" for f in findings):
        said.append("config.json names another model, whose tensors would be randomly initialised")
    said += [f.cause.partition(":")[0] for f in findings if f.code == "V-PREFIX"]
    of_tensors = [f for f in findings if not _beside(f)]
    alike = {f.code for f in of_tensors}
    if len(of_tensors) > 1 and len(alike) == 1 and alike.isdisjoint((_MISSING, _UNEXPECTED)):
        keys = {k for f in of_tensors for k in f.keys}
        total, weights = sum(totals.values()), sum(totals.values()) - sum(counters.values())
        if len(keys) in (total, weights) or len({f.component for f in of_tensors}) >= _SPREAD:
            count = f"all {len(keys):,}" if len(keys) in (total, weights) else f"{len(keys):,} of {total:,}"
            said.append(f"{count} tensors differ, {CODES[alike.pop()].title}")
            totals, of_tensors = {}, []
    for component in dict.fromkeys([*totals, *(f.component for f in of_tensors)]):
        own = [f for f in of_tensors if f.component == component]
        if differing := [f for f in own if f.code not in (_MISSING, _UNEXPECTED)]:
            keys = {k for f in differing for k in f.keys}
            titles = list(dict.fromkeys(CODES[f.code].title for f in differing))
            total = totals.get(component, len(keys))
            whole = len(keys) in (total, total - counters.get(component, 0)) and len(keys) > 1
            count = f"all {len(keys):,}" if whole else f"{len(keys):,} of {total:,}"
            verb = "differs" if len(keys) == 1 else "differ"
            what = titles[0] if len(titles) == 1 else f"by {len(differing)} causes"
            said.append(f"{component_words(component)}: {count} {verb}, {what}")
        for code, word in ((_MISSING, "missing"), (_UNEXPECTED, "unexpected")):
            if absent := sum(len(f.keys) for f in own if f.code == code):
                said.append(f"{component_words(component)}: {absent:,} {word}")
    files: Counter[str] = Counter()
    for f in findings:
        if _beside(f) and f.code != "V-PREFIX":
            files[_ROTARY if f.code == "V-ROTARY" else f.keys[0].partition(":")[0]] += len(f.keys)
    said += [f"{name}: {n} {'fault' if n == 1 else 'faults'}" for name, n in files.items()]
    tensors = any(not _beside(f) for f in findings)
    same = f"equal up to {up_to}" if up_to else "equal to the bit"
    if equal:
        said.append(f"the {'other ' if tensors else ''}{equal:,} {'' if tensors else 'tensors '}are {same}")
    return "; ".join(said)


def _beside(finding: Finding) -> bool:
    """Whether a finding is about a file beside the tensors, or about the source, rather than about a tensor."""
    beside = ("V-CONFIG", "V-RECEIPT", "V-PROCESSOR", "V-TOKENIZER", "V-ROTARY", "V-GRAPH")
    return finding.component == "files" or finding.code.startswith(beside)
