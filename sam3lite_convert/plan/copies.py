"""Several copies of a model in one file, and prefixes that no table knows: refused, with the option that chooses."""

from __future__ import annotations

import re
from collections import Counter

from sam3lite_convert.checkpoint.index import Checkpoint
from sam3lite_convert.errors import UnsoundPlan
from sam3lite_convert.plan.names import Names, spelled_key
from sam3lite_convert.plan.tables import Layout, Rule
from sam3lite_convert.quoting import shell_word
from sam3lite_convert.records.record import JsonValue

_DEEPEST = 4  # parts of a prefix
_TRIED = 8  # prefixes of each depth


def check_copies(checkpoint: Checkpoint, names: Names) -> None:
    """Raises UnsoundPlan, with the list and the option that chooses, if the file holds several copies of the model."""
    named = [copy for copy in names.copies if copy]
    if not named or len(names.copies) == 1:
        return
    of = {key: copy for copy, keys in names.copies.items() for key in keys}
    shared = [{of[key] for key in keys} for keys in names.twins.values()]
    bare = any("" in copies and len(copies) > 1 for copies in shared)
    if len(named) > 1 or bare:
        raise _several(checkpoint, {copy: keys for copy, keys in names.copies.items() if copy or bare})


def unknown_prefix(checkpoint: Checkpoint, spellings: tuple[Rule, ...], layout: Layout, names: Names) -> None:
    """Raises UnsoundPlan, with the command that takes it off, if most keys would be known without their prefix.

    ``names``: those under which the tables know too few keys.
    """
    known = {key: _known(name, layout) for name, keys in names.sources.items() for key in keys}
    found: dict[str, tuple[str, ...]] = {}
    for depth in range(1, _DEEPEST + 1):
        starts = Counter(start for key in known if (start := _start(key, depth)))
        for start, n in starts.most_common(_TRIED):
            some = tuple(key for key in known if key.startswith(start))
            if 4 * n < len(known) or start.startswith(tuple(found)) or 2 * sum(known[key] for key in some) > n:
                continue
            fits = sum(_known(spelled_key(key.removeprefix(start), spellings).name, layout) for key in some)
            if 2 * fits > n:
                found[start] = some
    if not found:
        return
    plain = tuple(key for key, is_known in known.items() if is_known and not key.startswith(tuple(found)))
    own = {spelled_key(key, spellings).name for key in plain}
    if any(2 * len(own & _names(some, prefix, spellings)) >= len(some) for prefix, some in found.items()):
        found[""] = plain
    if len(found) > 1:
        raise _several(checkpoint, found)
    ((prefix, some),) = found.items()
    which = f"all {len(some):,} keys" if len(some) == len(known) else f"{len(some):,} of {len(known):,} keys"
    option = f"--strip-prefix {shell_word(prefix)}"
    raise UnsoundPlan(
        f"{checkpoint.path.name}: {which} start with {prefix}, which no table knows. Take it off: {option}",
        "unknown_prefix",
        {"prefix": prefix, "keys": len(some), "option": option, "options": ["--strip-prefix", prefix]},
    )


def _names(keys: tuple[str, ...], prefix: str, spellings: tuple[Rule, ...]) -> set[str]:
    """The canonical names of these keys without the prefix."""
    return {spelled_key(key.removeprefix(prefix), spellings).name for key in keys}


def _start(key: str, depth: int) -> str:
    parts = key.split(".")
    return ".".join(parts[:depth]) + "." if len(parts) > depth else ""


def _known(name: str, layout: Layout) -> bool:
    return bool(layout.taking(name))


def _several(checkpoint: Checkpoint, copies: dict[str, tuple[str, ...]]) -> UnsoundPlan:
    """The refusal of several copies; ``copies``: keys by prefix, which is empty for keys without one."""
    lines = [f"{checkpoint.path.name}: the file holds {len(copies)} copies of the model, which are not merged:"]
    counts: dict[str, JsonValue] = {}
    for prefix, keys in copies.items():
        numel = sum(checkpoint.tensors[key].numel for key in keys)
        counts[prefix] = {"tensors": len(keys), "parameters": numel}
        lines.append(f"  {prefix or '(no prefix)'}: {len(keys):,} tensors, {numel:,} parameters")
    named = [prefix for prefix in copies if prefix]
    lines.append("Choose one: " + " or ".join(f"--strip-prefix {shell_word(prefix)}" for prefix in named))
    if "" in copies:
        others = shell_word("(" + "|".join(map(re.escape, named)) + ").+")
        lines[-1] += f"; or, for those without a prefix, --drop {others} --reason TEXT"
    return UnsoundPlan("\n".join(lines), "several_copies", {"copies": counts})
