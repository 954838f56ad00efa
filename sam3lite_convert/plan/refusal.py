"""The error for a plan that is not sound: what is wrong by cause, with rules to paste where rules mend it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sam3lite_convert.errors import UnsoundPlan
from sam3lite_convert.plan.apart import Apart, taken_apart
from sam3lite_convert.plan.architecture import TEXT
from sam3lite_convert.plan.key_patterns import grouped, key_patterns
from sam3lite_convert.plan.renamed import KnownKey, Renaming, Trial, folded, homeless, known_keys, renamings
from sam3lite_convert.plan.tables import SPELLINGS, Layout, Mappings, Rule, builtin_directory
from sam3lite_convert.plan.unsound import ROWS, Cause, PlanFault, fault_groups, on_a_screen, rows, shown, title
from sam3lite_convert.quoting import shell_path, shell_word
from sam3lite_convert.records.record import Json, json_value

_GUESSED = 20  # groups of keys for which names like theirs are looked up
_LIKE = 0.5  # how much alike names are that are called near, from 0 to 1
_STYLES = 3  # ways of packing that are shown
_COMMAND = 1  # rows that are left for the command line behind the rules; a long one takes more
_GROUPED = 2000  # keys that a pattern for --drop is made of
_STATISTICS = ("running_mean", "running_var")
_BY_HAND = (
    "If they stand under other names, copy the mapping tables, add rules and pass their folder with --mapping DIR."
)


def refusal(
    file: str,
    trial: Trial,
    mappings: Mappings,
    layout: Layout,
    component: str,
    attempt: Callable[[tuple[Rule, ...]], Trial],
) -> UnsoundPlan | None:
    """The error that tells the faults of the plan for ``file`` by cause, and all of them under ``details``.

    trial: what planning gave. attempt: plans with other spellings.

    None if no architecture can be inferred, and no rule is found with which one can.
    """
    lost = homeless(trial.names.sources, layout) if _of_names(trial) else []
    known = known_keys(layout) if lost else []
    apart = taken_apart(trial.names, known, lost)
    aside = set(apart.keys) if apart else set()
    asides = [name for name, keys in trial.names.sources.items() if keys[0] in aside]
    found, then = renamings(trial, mappings.spellings, layout, known, attempt, asides) if lost else ([], trial)
    if then.faults is None:
        return None
    faults = trial.faults
    if faults is None:  # those of names, which are all that is known of the file as it is
        faults = [PlanFault("unmatched", trial.names.sources[name][0], "no rule matches this key") for name in lost]
    if found:
        apart = taken_apart(then.names, known, homeless(then.names.sources, layout))
    rest = list(then.faults)
    if apart:
        about = {*apart.keys, *(then.names.prefix + name for name in apart.packed)}
        rest = [fault for fault in rest if not about.issuperset(fault.sources or (fault.key,))]
    near = _Near(known, layout, then, found)
    drop = _drop(rest, near.canonical) if not apart else None
    details: Json = {
        "faults": [near.added(fault).record() for fault in faults],
        "groups": [group.record() for group in fault_groups(faults)],
        "rules": json_value([rule.record() for rule in _pasted(found, apart)]),
        "sound_with_rules": bool(found) and not then.faults,
        "drop": drop,
    }
    causes = [*_apart(apart), *map(_renamed, found), *_others(rest, near)]
    way = _way(then, rest, near.canonical, layout, component, drop)
    folder = mappings.directory or Path("tables")
    if found:
        details["options"] = ["--mapping", str(folder)]
    first = f"{file}: the plan is not sound, so nothing was written."
    for most in range(len(found), -1, -1):
        use = _rules(found, most, not then.faults, folder, there=mappings.directory is not None)
        room = ROWS - _COMMAND if found else ROWS
        message = on_a_screen(first, causes, [*way, *use], room)
        if rows(message) <= room:
            break
    return UnsoundPlan(message, "unsound_plan", details)


def _of_names(trial: Trial) -> bool:
    """Whether keys have no rule, or one that leads nowhere."""
    return trial.faults is None or any(fault.kind in ("unmatched", "unknown_target") for fault in trial.faults)


@dataclass(frozen=True)
class PastedRule:
    """A rule for a table, ready to paste: the text of its section, and the keys of the file that it takes in."""

    table: str
    text: str
    keys: tuple[str, ...]

    def record(self) -> Json:
        """The rule as JSON, for the details of an error."""
        return {"table": self.table, "text": self.text, "keys": json_value(self.keys)}


def _pasted(found: Sequence[Renaming], apart: Apart | None) -> list[PastedRule]:
    rules = [PastedRule(one.rule.table, one.text, one.keys) for one in found]
    return rules + [PastedRule(rule.table, text, apart.keys) for text, rule in apart.rules] if apart else rules


# ---- names like those without a rule


class _Near:
    """Known keys and targets like those that are at fault, looked up once for each group of keys that differ in numbers
    only, and for so many groups."""

    def __init__(self, known: Sequence[KnownKey], layout: Layout, trial: Trial, found: Sequence[Renaming]) -> None:
        self.canonical = {keys[0]: name for name, keys in trial.names.sources.items()}
        self._keys = {folded(one.named([])): one for one in reversed(known)}
        targets = [template.replace("{i}", "0") for template, _, _ in layout.shapes]
        self._targets = {folded(target): target for target in reversed(targets)}
        self._ranks = trial.ranks
        self._meant = {key: name for one in found for key, name in zip(one.keys, one.becomes, strict=True)}
        self._found: dict[tuple[str, str], tuple[str, ...]] = {}

    def added(self, fault: PlanFault) -> PlanFault:
        """The fault with the names that are like its own, two at most; with the one that a rule found gives it."""
        if fault.key in self._meant:
            return replace(fault, near=(self._meant[fault.key],))
        if fault.kind == "unmatched":
            name = self.canonical.get(fault.key, fault.key)
            return replace(fault, near=tuple(one.named(_numbers(name)) for one in self.keys(name)))
        if fault.kind == "unknown_target":
            forms = self._forms("targets", fault.key, self._targets)[:2]
            return replace(fault, near=tuple(_filled(form, fault.key, self._targets[form]) for form in forms))
        return fault

    def keys(self, name: str) -> list[KnownKey]:
        """The known keys like this canonical name, those whose tensors have as many dimensions first."""
        some = [self._keys[form] for form in self._forms("keys", name, self._keys)]
        return sorted(some, key=lambda one: one.rank != self._ranks.get(name))[:2]

    def rule(self, key: str) -> str:
        """The rule that takes the known key most like this key of the file, in words; empty if there is none."""
        name = self.canonical.get(key, key)
        for one in self.keys(name):
            return f"nearest rule: [{one.rule.name}] of {one.rule.table}, for {shown(one.named(_numbers(name)))}"
        return ""

    def _forms(self, kind: str, name: str, forms: Mapping[str, object]) -> tuple[str, ...]:
        asked = kind, folded(name)[:500]
        if asked not in self._found and len(self._found) < _GUESSED:
            self._found[asked] = tuple(difflib.get_close_matches(asked[1], forms, 4, _LIKE))
        return self._found.get(asked, ())


def _filled(form: str, like: str, literal: str) -> str:
    """A folded name with the numbers of another; ``literal``: the name with numbers of its own."""
    numbers = _numbers(like)
    if form.count("#") != len(numbers):
        return literal
    return re.sub("#", lambda _: numbers.pop(0), form)


# ---- causes


def _apart(apart: Apart | None) -> list[Cause]:
    if apart is None:
        return []
    packed = [
        f"{whole}weight = torch.cat([{q}weight, {k}weight, {v}weight])" for q, k, v, whole in apart.names[:_STYLES]
    ]
    way = ["Where it was written, pack them in this order, and their biases if they stand apart too:"]
    way += [f"  {line}" for line in packed]
    if apart.rules:
        many = len(apart.rules) > 1
        what, where = (
            (f"{len(apart.rules):,} rules", "copies of their tables") if many else ("rule", "a copy of its table")
        )
        way.append(f"Or paste the {what} that --json has under error.details.rules into {where}.")
    three = ", ".join(name[:-1] for name in apart.names[0][:3])
    whole = " or ".join(dict.fromkeys(name[:-1] for *_, name in apart.names))
    what = f"{three} stand apart ({len(apart.keys):,} keys), where the original packs them into {whole}"
    patterns = [f"  {shown(pattern)}" for pattern in key_patterns(apart.keys)]
    return [Cause(f"{what} ({len(apart.packed):,}):", patterns, way)]


def _renamed(one: Renaming) -> Cause:
    count = len(one.keys)
    rules = dict.fromkeys(f"[{rule.name}] of {rule.table}" for rule in one.takes)
    taken = next(iter(rules), "a rule") + (f" and {len(rules) - 1} more" if len(rules) > 1 else "")
    what = f"{one.old} -> {one.new or 'nothing (a wrapper)'}" if one.old else f"{one.new} left out"
    way = [f"  Check it: by their shapes they could as well be {' or '.join(one.instead)}."] if one.instead else []
    return Cause(
        f"{count:,} {'key' if count == 1 else 'keys'} renamed? {what}, as in rule {taken}:",
        [f"  {shown(pattern)}" for pattern in key_patterns(one.keys)],
        way,
    )


_ADDED = {"unfilled": "; missing in the file"}


def _others(faults: Sequence[PlanFault], near: _Near) -> list[Cause]:
    """A cause for each kind of fault that is left."""
    groups: dict[str, list[str]] = {}
    for group in fault_groups(faults):
        text = f"  {shown(group.pattern)}"
        if group.kind == "missing_component":
            text += f": {shown(group.detail)}"
        elif group.kind == "unmatched":
            if like := near.rule(group.first):
                text += f"\n      {like}"
        elif not (group.kind == "unfilled" and group.detail.endswith(" is missing")):
            text += f"\n      {shown(group.detail)}"
        groups.setdefault(group.kind, []).append(text)
    return [
        Cause(title(kind, [f for f in faults if f.kind == kind]) + _ADDED.get(kind, "") + ":", some)
        for kind, some in groups.items()
    ]


def _numbers(name: str) -> list[str]:
    return [part for part in name.split(".") if part.isdecimal()]


# ---- what to do


def _rules(found: Sequence[Renaming], most: int, sound: bool, folder: Path, there: bool) -> list[str]:
    """The rules, so many at most, as lines of a shell that put them into a table of ``folder``. The command to run then
    stands behind them, where there is a command line. there: whether the folder is one that the user gave."""
    if not found:
        return []
    this = "this rule" if len(found) == 1 else f"these {len(found)} rules"
    mends = "the plan is sound" if sound else "more of it has its place"
    table = folder / SPELLINGS
    copy = [] if there else [f"mkdir {shell_path(folder)}"]
    if not (there and table.exists()):
        copy.append(f"cp {shell_path(builtin_directory() / SPELLINGS)} {shell_path(folder)}")
    texts = [line for one in found[:most] for line in one.text.split("\n")]
    if most < len(found):
        return [
            f"With {this} at the end of a copy of {SPELLINGS}, {mends}:",
            *texts,
            f"and {len(found) - most} more: --json, under error.details.rules",
            f"To use them: {' && '.join([*copy, f'paste them at the end of {shell_path(table)}'])}, and then run",
        ]
    paste = " && ".join([*copy, f"cat >> {shell_path(table)} <<'END'"])
    apart = [""] if there else []  # the last line of a table of the user may have no end
    return [f"With {this} in {SPELLINGS}, {mends}. Paste these lines into a shell:", paste, *apart, *texts, "END"]


def _drop(faults: Sequence[PlanFault], canonical: Mapping[str, str]) -> str | None:
    """The pattern for ``--drop`` that takes in the keys without a rule, and no other; None if they are not all that is
    wrong, or if there is no short one."""
    if not faults or any(fault.kind != "unmatched" for fault in faults):
        return None
    keys = {fault.key for fault in faults}
    front = _common_front(list(keys))
    tries = [re.escape(front) + ".+"] if front else []
    tries.append("|".join(pattern.expression for pattern in grouped(sorted(keys)[:_GROUPED])))
    for text in tries:
        match = re.compile(text).fullmatch
        fits = {key for key, name in canonical.items() if match(key) or match(name)}
        if fits == keys and len(text) <= 160:
            return text
    return None


def _common_front(keys: Sequence[str]) -> str:
    """The whole parts that all keys begin with, up to a dot; empty if there are none, or if there is one key."""
    parts = [key.split(".")[:-1] for key in keys]
    common = []
    for some in zip(*parts, strict=False):
        if len(set(some)) > 1:
            break
        common.append(some[0])
    return ".".join(common) + "." if common and len(keys) > 1 else ""


def _of_text(fault: PlanFault, layout: Layout, canonical: Mapping[str, str]) -> bool:
    """Whether a fault is one of the text encoder, so that it stays with --component text."""
    return canonical.get(fault.key, fault.key).startswith(TEXT) or layout.is_text(f"{fault.key}.")


def _way(
    then: Trial,
    rest: Sequence[PlanFault],
    canonical: Mapping[str, str],
    layout: Layout,
    component: str,
    drop: str | None,
) -> list[str]:
    """The last lines: what to do about the faults that rules do not mend."""
    lines = []
    kinds = {fault.kind for fault in rest}
    unknown = set(homeless(then.names.sources, layout))
    of_text = all(name.startswith(TEXT) for name in then.names.sources if name not in unknown)
    sources = [source for fault in rest for source in fault.sources]
    if not rest:
        pass
    elif component != "text" and of_text:
        lines.append("If the file holds only a text encoder, convert it with --component text.")
    elif kinds == {"unfilled"} and sources and all(source.endswith(_STATISTICS) for source in sources):
        lines.append(
            "These are statistics of BatchNorm, which are no parameters: save the model's state_dict(), not its "
            "parameters alone."
        )
    elif drop:
        lines.append(f"If the model does without them: --drop {shell_word(drop)} --reason TEXT")
    elif component != "text" and "missing_component" in kinds and not any(_of_text(f, layout, canonical) for f in rest):
        lines.append("Give a checkpoint that holds them, or convert the text encoder alone with --component text.")
    elif kinds <= {"not_turned_back", "not_joined", "unfilled"} and kinds != {"unfilled"}:
        lines.append("Give the file that holds all parts of these tensors, in one shape and dtype.")
    elif kinds <= {"unfilled", "missing_component"}:
        lines.append(f"Give a checkpoint that holds them. {_BY_HAND}")
    elif kinds <= {"wrong_shape", "wrong_dtype"}:
        lines.append(
            "Give the checkpoint as it was trained. If a rule is wrong, copy the mapping tables, edit them and pass "
            "their folder with --mapping DIR."
        )
    else:
        lines.append("To convert it, copy the mapping tables, edit them and pass their folder with --mapping DIR.")
    return [*lines, "The whole list: --json"]
