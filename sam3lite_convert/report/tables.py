"""Shows mapping tables, what their rules took of a checkpoint, and its tensors one by one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from sam3lite_convert.figures import plural
from sam3lite_convert.records.tables import KeyLine, KeysDocument, TableRule, TablesDocument, TakenKeys
from sam3lite_convert.report.inspect import fetched
from sam3lite_convert.report.terminal import conclude, say, say_text, say_words
from sam3lite_convert.report.verbosity import quiet

_PATTERNS = 20  # of keys that no rule takes


def tables(d: TablesDocument) -> None:
    """The spellings and the rules of a layout; with a checkpoint those that took keys, and then the sums."""
    variant = f", {d.variant}" if d.variant else ""
    component = f", component {d.component}" if d.component != "all" else ""
    (say if d.taken else conclude)(f"layout {d.layout} of {d.family}{variant}{component}", "bold")
    say_text(d.about)
    say_text(", ".join(f"{name} ({', '.join(parts)})" for name, parts in d.layouts.items()), "layouts: ")
    if d.taken:
        say(f"checkpoint {d.taken.checkpoint}")
        say_text(f"{d.taken.kind}, {plural(d.taken.counts.tensors, 'tensor')}", "  ")
    _table(d.spellings, ": other names of the same keys, applied first")
    _table(d.rules)
    if d.taken:
        _sums(d.taken, [*d.spellings, *d.rules])
        fetched(d.taken.fetched)


def keys(d: KeysDocument, most: int | None = None) -> None:
    """One line a tensor, ``most`` of them, and the number of those that are left. A reason that all of them have
    is said once, behind them."""
    rows, count = [_words(line) for line in d.tensors], len(d.tensors)
    alike = count > 1 and d.tensors[0].target is None and all(row[1:] == rows[0][1:] for row in rows)
    for row in rows[:most]:
        say_words(row[:1] if alike else row, 4)
    if alike:
        say_text(" ".join(["all", *rows[0][1:]]))
    say()
    where = f"layout {d.layout}" + (f", component {d.component}" if d.component != "all" else "")
    conclude(f"{count:,} of {plural(d.of, 'tensor')} have names like {d.pattern} ({where})")
    if most is not None and count > most:
        say(f"{count - most:,} more: --all lists them")
    for note in d.notes:
        say_text(note, "note: ")
    fetched(d.fetched)


def _words(line: KeyLine) -> list[str]:
    if line.outcome == "mapped":
        return [line.key, f"-> {line.target}", f"{line.operation} [{line.rule}]"]
    if line.outcome == "dropped":
        return [line.key, f"dropped [{line.rule}]:", line.reason or ""]
    return [line.key, "left out:" if line.outcome == "left" else "not mapped:", line.reason or ""]


def _table(rules: Sequence[TableRule], what: str = "") -> None:
    """The rules that took keys, or all of them without a checkpoint, under the names of their tables."""
    shown = [rule for rule in rules if rule.keys is None or rule.keys]
    for table, some in groupby(shown, lambda rule: rule.table):
        say()
        say(f"{table}{what}", "bold")
        for rule in some:
            _rule(rule)


def _rule(rule: TableRule) -> None:
    words = [f"[{rule.name}]"]
    words += [rule.operation] if rule.operation else []
    words += [plural(rule.keys, "key")] if rule.keys is not None else []
    say("  ".join(words))
    for source in rule.sources:
        say(f"  {source}")
    for target in rule.targets:
        say(f"  -> {target}")
    if rule.reason:
        say_text(rule.reason, "  reason: ")


def _sums(d: TakenKeys, rules: Sequence[TableRule]) -> None:
    say()
    idle = [f"[{rule.name}]" for rule in rules if not rule.keys]
    if idle:
        say_text(", ".join(idle), f"{plural(len(idle), 'rule')} took no key: ", 2)
    for reason, count in d.left.items():
        say_text(f"{plural(count, 'key')} left out: {reason}")
    if d.disputed:
        say_text(f"{plural(len(d.disputed), 'key')} that more than one rule takes: {', '.join(d.disputed[:5])}")
    if d.unmatched:
        say(f"{plural(len(d.unmatched), 'key')} that no rule takes:", "bold")
        for pattern in d.unmatched_patterns[:_PATTERNS]:
            say(f"  {pattern}")
        if len(d.unmatched_patterns) > _PATTERNS:
            say(f"  and {len(d.unmatched_patterns) - _PATTERNS:,} more patterns: --json")
    n = d.counts
    (conclude if quiet() else say_text)(
        f"{n.tensors:,} tensors = {n.mapped:,} mapped + {n.dropped:,} dropped by rules + {n.left:,} left out + "
        f"{n.unmatched:,} that no rule takes"
    )
