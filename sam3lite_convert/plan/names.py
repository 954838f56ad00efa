"""Canonical names of the tensors in a file; twins are two names of one tensor."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from sam3lite_convert.checkpoint.index import Checkpoint
from sam3lite_convert.plan.tables import Rule


@dataclass(frozen=True)
class Names:
    """The canonical names of a file.

    ``sources``: canonical name -> its keys in the file, in the file's order.
    ``prefix``: the most frequent prefix of detector keys.
    ``prefixes``: prefix -> number of keys.
    ``spellings``: name of another spelling rule -> number of keys that it rewrote.
    """

    sources: dict[str, tuple[str, ...]]
    prefix: str
    prefixes: dict[str, int]
    spellings: dict[str, int]

    @property
    def twins(self) -> dict[str, tuple[str, ...]]:
        """Canonical names with more than one key in the file."""
        return {name: keys for name, keys in self.sources.items() if len(keys) > 1}


def canonical_names(checkpoint: Checkpoint, rules: tuple[Rule, ...]) -> Names:
    """Apply the spelling rules, in order, to every key of the file."""
    sources: dict[str, list[str]] = {}
    prefixes: Counter[str] = Counter()
    spellings: Counter[str] = Counter()
    for key in checkpoint.tensors:
        name, taken_off = key, 0
        for rule in rules:
            made = rule.apply(name)
            if made is None:
                continue
            if rule.name.startswith("prefix "):
                taken_off += len(name) - len(made[0])
            else:
                spellings[rule.name] += 1
            name = made[0]
        if not name.startswith("tracker."):
            prefixes[key[:taken_off]] += 1
        sources.setdefault(name, []).append(key)
    prefix = prefixes.most_common(1)[0][0] if prefixes else ""
    return Names({n: tuple(keys) for n, keys in sources.items()}, prefix, dict(prefixes), dict(spellings))
