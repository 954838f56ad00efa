"""Attention whose q, k and v stand in the file one by one where the original packs them into one tensor."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from sam3lite_convert.plan.names import Names
from sam3lite_convert.plan.operations import Split
from sam3lite_convert.plan.renamed import INDEX, KnownKey, folded
from sam3lite_convert.plan.tables import Rule

_ONE = re.compile(
    r"(?P<module>.+\.)(?P<a>|to_|w|W|lin(?:ear)?_)(?P<which>[qkv]|query|key|value)(?P<b>|_proj|_lin(?:ear)?)"
    r"(?P<dot>[._])(?P<p>weight|bias)"
)
_PACKED = re.compile(r"(?P<module>.+\.)(?P<name>in_proj|qkv|qkv_proj)[._](?P<p>weight|bias)")
_WHOLE = ("in_proj_", "qkv_proj.", "qkv.", "q_proj.")  # names of the three, or of the first
_ATTENTION = ("self_attn", "attn", "attention")  # names of the module
_LETTER = re.compile(r"\b[qkv](?=_proj\b)")
_DOT = r"\."
_ORDER = {"q": 0, "k": 1, "v": 2, "query": 0, "key": 1, "value": 2}


class Apart(NamedTuple):
    """Keys that hold q, k and v one by one.

    keys: of the file. packed: canonical names of the tensors that the original has in their place.
    names: how the three are called, and then the packed one, each up to ``weight`` or ``bias``; several where the
        attentions of the model differ.
    rules: a rule for each attention of the model, for the table of ``rule``; none if the layout packs them too.
    """

    keys: tuple[str, ...]
    packed: tuple[str, ...]
    names: tuple[tuple[str, str, str, str], ...]
    rules: tuple[tuple[str, Rule], ...]


def taken_apart(names: Names, known: Sequence[KnownKey], unmatched: Iterable[str]) -> Apart | None:
    """The attention among ``unmatched``, canonical names without a rule, that stands apart; None if there is none."""
    packed: dict[tuple[str, str], tuple[str, KnownKey]] = {}
    for one in known:
        if found := _PACKED.fullmatch(one.named([])):
            packed[folded(found["module"]), found["p"]] = found["name"], one
    trios: dict[tuple[str, str, str, str, bool], dict[int, re.Match[str]]] = {}
    for found in filter(None, map(_ONE.fullmatch, unmatched)):
        style = (found["module"], found["a"], found["b"], found["p"], len(found["which"]) > 1)
        trios.setdefault(style, {})[_ORDER[found["which"]]] = found
    keys: list[str] = []
    into: dict[str, tuple[KnownKey, tuple[re.Match[str], ...]]] = {}
    called: dict[tuple[str, str, str, str], None] = {}
    for (module, *_, p, _), three in trios.items():
        parent = module.removesuffix(".").rpartition(".")[0] + "."
        place = packed.get((folded(module), p)) or packed.get((folded(parent), p))
        if len(three) < 3 or place is None:
            continue
        name, one = place
        numbers = [number for number, part in zip(module.split("."), one.parts, strict=False) if part is None]
        if (whole := one.named(numbers)) in names.sources or whole in into:
            continue
        parts = (three[0], three[1], three[2])
        into[whole] = one, parts
        keys += [key for part in parts for key in names.sources[part[0]]]
        q, k, v = (part["a"] + part["which"] + part["b"] + part["dot"] for part in parts)
        called[q, k, v, name + ("_" if name == "in_proj" else ".")] = None
    return Apart(tuple(keys), tuple(into), tuple(called), _rules(into.values())) if into else None


def other_attention(name: str) -> Iterator[str]:
    """Other names under which the same attention may stand: packed where q, k or v stands apart, and the reverse. Most
    of them exist nowhere. The first part stands for all three."""
    found = _ONE.fullmatch(name) or _PACKED.fullmatch(name)
    if found is None:
        return
    parent, _, called = found["module"].removesuffix(".").rpartition(".")
    starts = [found["module"]]
    if called in _ATTENTION:
        starts += [f"{parent}.", *(f"{parent}.{other}." for other in _ATTENTION)]
    for start in starts:
        yield from (start + whole + found["p"] for whole in _WHOLE)


def _rules(found: Iterable[tuple[KnownKey, tuple[re.Match[str], ...]]]) -> tuple[tuple[str, Rule], ...]:
    """Rules that keep each of the three where the layout has q, k and v apart."""
    out: dict[str, Rule] = {}
    for one, parts in found:
        if not isinstance(one.rule.operation, Split):
            return ()
        targets = [
            t.replace(INDEX, "{i}").removesuffix(parts[0]["p"]) for t in one.rule.apply(one.named([INDEX])) or ()
        ]
        letters = {_LETTER.sub("{x}", target) for target in targets}
        alike = len(letters) == 1 and all(part["which"] in "qkv" for part in parts)
        for part, target in zip(parts[:1], letters, strict=True) if alike else zip(parts, targets, strict=True):
            pattern = [re.escape(key) for key in part[0].split(".")]
            if None in one.parts:
                pattern[one.parts.index(None)] = r"(?P<i>\d+)"
            which = "(?P<x>[qkv])" if alike else part["which"]
            ends = _DOT.join(pattern).rindex(re.escape(part["a"] + part["which"] + part["b"] + part["dot"] + part["p"]))
            dot = re.escape(part["dot"])
            source = f"{_DOT.join(pattern)[:ends]}{part['a']}{which}{part['b']}{dot}(?P<p>weight|bias)"
            label = f"{one.rule.name}, {'q k v' if alike else part['which']} apart"
            entries = f"op      = keep\nsource  = {source}\ntarget  = {target}{{p}}\nexample = {part[0]}"
            if not any(text.startswith(f"[{label}]") for text in out):
                out[f"[{label}]\n{entries}"] = one.rule
    return tuple(out.items())
