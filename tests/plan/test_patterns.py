"""Patterns read backwards: nested and optional groups, and what is refused because a target would not tell."""

from __future__ import annotations

import itertools
import re
import sys

import pytest
from hypothesis import HealthCheck, assume, event, example, given, settings
from hypothesis import strategies as st

from sam3lite_convert.plan.operations import OPERATIONS
from sam3lite_convert.plan.patterns import parse
from sam3lite_convert.plan.tables import Rule

SLOWLY = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


def rule(pattern: str, *targets: str, key: str) -> Rule:
    """A rule that was checked as a table is when it is loaded."""
    made = Rule("r", "t.ini", OPERATIONS["keep"], (pattern,), targets, key)
    made.check(backwards=True)
    return made


BOTH_WAYS = [  # pattern, target, then keys and what they become
    # nested groups: the target names the outer one, an inner one, or both
    (r"l\.(?P<a>x(?P<b>\d+))\.w", "m.{a}.w", {"l.x12.w": "m.x12.w"}),
    (r"l\.(?P<a>x(?P<b>\d+))\.w", "m.{b}.w", {"l.x12.w": "m.12.w"}),
    (r"l\.(?P<a>x(?P<b>\d+))\.w", "m.{b}.{a}", {"l.x12.w": "m.12.x12"}),
    (r"(?P<a>(?P<b>[ab])(?P<c>\d))", "{c}{b}", {"a1": "1a", "b2": "2b"}),
    # optional groups: absent, they are empty in the target
    (r"(?P<a>m\.)?w", "{a}v", {"m.w": "m.v", "w": "v"}),
    (r"(?P<a>m\.)??w", "{a}v", {"m.w": "m.v", "w": "v"}),
    (r"w(?P<a>\.\d+){0,1}", "v{a}", {"w.3": "v.3", "w": "v"}),
    (r"w(?:_(?P<b>\d+))?", "v{b}", {"w_3": "v3", "w": "v"}),
    (r"w(?P<a>x(?P<b>\d+))?", "v{b}", {"wx3": "v3", "w": "v"}),
    (r"w(?P<a>x(?P<b>\d+)?)?", "v{a}", {"wx3": "vx3", "wx": "vx", "w": "v"}),
    (r"w(?:x(?P<b>\d+)(?:y(?P<c>z))?)?", "v{b}{c}", {"wx3yz": "v3z", "wx3": "v3", "w": "v"}),
    # what varies inside of a group that the target names may be anything
    (r"(?P<a>(?:x(?P<b>\d))+|y|)w", "{a}v", {"x1x2w": "x1x2v", "yw": "yv", "w": "v"}),
    (r"(?P<a>[^.]+)\.w", "{a}", {"a b": None, "a b.w": "a b"}),
    (r"(?P<a>x{2}|y{1,}|z{0,2}).w".replace(".w", r"\.w"), "m{a}", {"xx.w": "mxx", "yyy.w": "myyy", "zz.w": "mzz"}),
    (r"(?P<a>[]x\]]+)\.w", "m.{a}", {"x]x.w": "m.x]x"}),
    (r"(?P<a>[^]x]+)\.w", "m.{a}", {"ab.w": "m.ab"}),
    # a group that the target names twice
    (r"(?P<a>\d+)\.w", "m{a}.n{a}", {"7.w": "m7.n7"}),
    # one part may be whatever is left between those that are told from the left and from the right
    (r"(?P<i>\d+)\.(?P<rest>.+)\.(?P<p>weight|bias)", "l{i}.{rest}.{p}", {"3.a.1.bias": "l3.a.1.bias"}),
    (r"(?P<rest>.+)\.(?P<n>[12])(?P<m>\d)", "{rest}{n}{m}", {"a.b.12": "a.b12"}),
    (r"(?P<a>[ab]+)(?P<b>_g|_v)?", "{a}{b}", {"aab_g": "aab_g", "ba": "ba"}),
    (r"plain\.name", "other", {"plain.name": "other", "plainxname": None}),
    (r"é\-(?P<p>.)", "{p}è", {"é-x": "xè"}),
]


@pytest.mark.parametrize(("pattern", "target", "keys"), BOTH_WAYS, ids=lambda x: x if isinstance(x, str) else "")
def test_a_pattern_is_read_in_both_directions(pattern, target, keys):
    checked = rule(pattern, target, key=next(k for k, made in keys.items() if made))
    for key, made in keys.items():
        assert checked.apply(key) == (None if made is None else (made,))
        if made is not None:
            assert checked.reverse(made) == key


def test_texts_of_one_group_that_differ_are_no_target_of_the_rule():
    assert rule(r"(?P<a>\d+)\.w", "m{a}.n{a}", key="7.w").reverse("m7.n8") is None
    assert rule(r"l(?P<a>x(?P<b>\d+))", "{b}.{a}", key="lx1").reverse("1.x2") is None


def test_a_target_that_the_pattern_would_cut_in_another_way_is_none_of_the_rule():
    """Forwards (?P<a>\\d+) takes every digit, so no key leads to a target with digits for both."""
    checked = rule(r"(?P<a>\d+)(?P<b>\d*)x", "{a}.{b}", key="1x")
    assert checked.reverse("12.") == "12x"
    assert checked.reverse("1.2") is None


REFUSED = [  # pattern, target, a key, words of the reason
    (r"(?:foo)?w", "v", "w", r"the target does not show whether (?:foo)? was present"),
    (r"(?P<a>foo)?w", "v", "w", r"whether (?P<a>foo)? was present"),
    (r"(?P<a>x(?P<b>\d+)?)?w", "v{b}", "xw", r"whether (?P<a>x(?P<b>\d+)?)? was present"),
    (r"(?:x(?P<b>\d*))?w", "v{b}", "xw", r"whether (?:x(?P<b>\d*))? was present"),
    (r"(?:x(?:y|(?P<b>\d)))?w", "v{b}", "xyw", r"whether (?:x(?:y|(?P<b>\d)))? was present"),
    (r"(?:foo|bar)\.w", "v", "foo.w", r"the text that (?:foo|bar) matched is not in the target"),
    (r"foo|bar", "v", "foo", r"the text that foo|bar matched"),
    (r"(?:a(?P<x>\d)|b(?P<y>\d))", "v{x}{y}", "a1", r"the text that (?:a(?P<x>\d)|b(?P<y>\d)) matched"),
    (r"(?:a(?P<x>\d))+", "v{x}", "a1", r"the text that (?:a(?P<x>\d))+ matched"),
    (r"a+", "v", "a", "the text that a+ matched"),
    (r"a{2}", "v", "aa", "the text that a{2} matched"),
    (r"(?P<p>weight|bias)", "v", "bias", "the text that weight|bias matched"),
    (r"l\.\d+\.(?P<p>w)", "v{p}", "l.1.w", r"the text that \d+ matched"),
    (r"l.(?P<p>w)", "v{p}", "l.w", "the text that . matched"),
    (r"[ab](?P<p>w)", "v{p}", "aw", "the text that [ab] matched"),
    (r"(x)w", "v", "xw", "an unnamed group ((x)w)"),
    (r"(?=x)xw", "v", "xw", "a lookahead ((?=x)xw)"),
    (r"(?!y)xw", "v", "xw", "a negative lookahead"),
    (r"x(?<=x)w", "v", "xw", "a lookbehind"),
    (r"x(?<!y)w", "v", "xw", "a negative lookbehind"),
    (r"(?P<a>\d)(?P=a)", "v{a}", "11", "a backreference"),
    (r"(?P<a>x)(?(a)y|z)", "v{a}", "xy", "a conditional"),
    (r"(?#note)x", "v", "x", "a comment"),
    (r"(?i)x", "v", "x", "a flag ((?i)x)"),
    (r"(?i:x)", "v", "x", "a flag"),
    (r"^x", "v", "x", "an anchor (^x)"),
    (r"x$", "v", "x", "an anchor ($)"),
    (r"\bx", "v", "x", "an escape that is neither a character nor a class"),
    (r"(?P<a>x\Z)", "v{a}", "x", "an escape that is neither"),
    (r"x{w}", "v", "x{w}", "a bracket or a brace without a backslash ({w})"),
    (r"x]", "v", "x]", "a bracket or a brace without a backslash"),
    (r"(?P<a>\d+)x(?P<b>\d+)", "{a}{b}", "1x2", "where (?P<a>\\d+) and (?P<b>\\d+) begin and end"),
    (r"(?P<a>.+)x(?P<b>.+)", "{a}.{b}", "axb", "begin and end in the target {a}.{b} is ambiguous"),
    (r"(?P<a>[a-c]+)x(?P<b>[^d]+)", "{a}{b}", "axb", "is ambiguous"),
    (r"(?P<a>x\.)?(?P<b>x\.)?w", "{a}{b}w", "w", "where {a} and {b} begin and end"),
    (r"(?P<a>\d+)w(?P<b>x)?(?P<c>1)?", "{a}{b}{c}", "1w", "begin and end in the target {a}{b}{c}"),
    (r"(?P<a>\d+)w", "v{b}", "1w", "the pattern has no group 'b'"),
    (r"(?P<a>\d+)w", "v{a", "1w", "holds a brace that is not part of {group}"),
    (r"(?P<a>\d+)w", "v}{a}", "1w", "holds a brace"),
    (r"(?P<a>\d+)w", "v{a!r}", "1w", "holds a brace"),
    (r"(?P<a>\d+)w", "v{0}", "1w", "the pattern has no group '0'"),
    (r"(?P<a>\d+)w", "v{a}", "w", "does not match its own example"),
]


@pytest.mark.parametrize(("pattern", "target", "key", "says"), REFUSED, ids=lambda x: x)
def test_what_does_not_lead_back_is_refused_with_the_construct(pattern, target, key, says):
    with pytest.raises(ValueError) as refusal:
        rule(pattern, target, key=key)
    assert says in str(refusal.value)


@pytest.mark.parametrize("pattern", [r"\d", "a|b"])
def test_what_was_lost_is_never_made_up(pattern):
    with pytest.raises(ValueError, match="is not in the target"):
        parse(pattern).restored({})


@pytest.mark.parametrize(("pattern", "says"), [("x++", "a possessive quantifier (++)"), ("(?>x)", "an atomic group")])
def test_what_came_with_python_3_11_is_refused(pattern, says):
    with pytest.raises((ValueError, re.error)) as refusal:
        rule(pattern, "v", key="x")
    if sys.version_info >= (3, 11):  # before, it is not a regular expression at all
        assert says in str(refusal.value)


@pytest.mark.parametrize(
    ("targets", "good"),
    [
        (("{i}.q.{p}", "{i}.k.{p}"), True),
        (("q.{i}.{p}", "k.{i}.{p}"), True),
        (("{i}.{p}.q", "{i}.{p}.k"), True),
        (("{p}.{i}", "{p}.x{i}"), True),
        (("{p}.{i}", "{i}.{p}"), False),
        (("{i}.{p}", "{i}.{p}"), False),
        (("{i}.{p}", "{i}.{p}.q"), False),
        (("a.{i}.{p}", "ab.{i}.{p}"), True),
        (("ab.{i}.{p}", "b.{i}.{p}"), True),
    ],
)
def test_targets_of_one_rule_have_names_apart(targets, good):
    """Else one name would lead back to two keys."""
    made = Rule("r", "t.ini", OPERATIONS["split"], (r"l\.(?P<i>\d+)\.(?P<p>.+)",), targets, "l.1.w")
    if good:
        made.check(backwards=True)
        assert [made.reverse(t) for t in made.apply("l.2.x") or ()] == ["l.2.x"] * 2
        return
    with pytest.raises(ValueError, match="may give the same name"):
        made.check(backwards=True)


@pytest.mark.parametrize("pattern", [p for p, _, _, says in REFUSED[:30] if "brace" not in says])
def test_a_rule_that_is_read_forwards_alone_may_hold_any_of_it(pattern):
    """Spellings have a target and are never read backwards; a drop has no target."""
    key = next(k for p, _, k, _ in REFUSED if p == pattern)
    for targets in ((), ("v",)):
        made = Rule("r", "t.ini", OPERATIONS["drop"], (pattern,), targets, key)
        made.check(backwards=not targets)
        assert made.apply(key) == targets


def test_an_optional_group_of_a_spelling_is_empty_where_it_is_absent():
    made = Rule("r", "spellings.ini", OPERATIONS["keep"], (r"(?P<a>m\.)?w",), ("{a}v",), "w")
    assert (made.apply("w"), made.apply("m.w")) == (("v",), ("m.v",))


# ---- whatever hypothesis writes -----------------------------------------------------------------------

PARTS = [
    r"x", r"\.", r"ab", r"_", r"1", r"\d", r"\d+", r"\d*", r"[^.]+", r"[ab]", r"[ab]*", r".+", r"a|b", r"a|ab", r"x|",
]  # fmt: skip


@st.composite
def rules(draw: st.DrawFn) -> tuple[str, tuple[str, ...]]:
    """A pattern of nested and optional groups, alternations and repetitions, and one or two targets."""
    names = (f"g{n}" for n in itertools.count())
    outer: list[str] = []
    inner: list[str] = []
    endless = [None] * 3  # as many parts of any length may still come: more of them take Python's re too long

    def row(depth: int, inside: bool) -> str:
        return "".join(node(depth, inside) for _ in range(draw(st.integers(1, 3))))

    def node(depth: int, inside: bool) -> str:
        kind = draw(st.integers(0, 11))
        if kind < 4 or depth == 0:
            parts = [p for p in PARTS if endless or not set("*+") & set(p)] if inside or kind == 0 else PARTS[:5]
            part = draw(st.sampled_from(parts))
            del endless[: len(set("*+") & set(part))]
            return f"(?:{part})" if "|" in part else part
        if kind == 4 and inside:
            return f"(?:{row(depth - 1, inside)}|{row(depth - 1, inside)})"
        name = next(names) if kind > 6 else ""
        if name:
            (inner if inside else outer).append(name)
        body = row(depth - 1, inside or bool(name))
        often = inside and not set("*+?|{") & set(body.replace("(?", ""))  # the same: (?:a|ab)* takes ages
        mark = draw(st.sampled_from(["", "", "", "", "?", "??", "*" if often else "?", "{2}" if often else ""]))
        return f"(?P<{name}>{body}){mark}" if name else f"(?:{body}){mark}"

    pattern = row(3, False)
    assume(outer)
    targets = []
    for _ in range(draw(st.integers(1, 2))):
        told = draw(st.permutations(outer)) + draw(
            st.lists(st.sampled_from(inner), max_size=1) if inner else st.just([])
        )
        between = st.sampled_from(["", ".", ".", "_", "x", "ab", "1", ":"])
        targets.append("".join(draw(between) + f"{{{name}}}" for name in told) + draw(between))
    return pattern, tuple(targets)


@SLOWLY
@example((r"(?P<g0>\d+)x(?P<g1>\d+)", ("{g0}{g1}",)), None)
@given(rules(), st.data())
def test_each_target_of_an_accepted_rule_leads_back_to_its_key(written, data):
    pattern, targets = written
    keys = st.from_regex(pattern, fullmatch=True)
    made = Rule("r", "t.ini", OPERATIONS["keep"], (pattern,), targets, data.draw(keys) if data else "1x2")
    try:
        made.check(backwards=True)
    except ValueError:
        event("refused")
        return
    event(f"accepted, {'with' if '?' in pattern.replace('(?', '') else 'without'} an optional part")
    for _ in range(5):
        key = data.draw(keys)
        found = made.apply(key)
        assert found is not None
        assert [made.reverse(t) for t in found] == [key] * len(targets), found


@SLOWLY
@given(rules(), st.text("x.ab_1", max_size=8))
def test_what_is_read_backwards_leads_there(written, target):
    pattern, targets = written
    made = Rule("r", "t.ini", OPERATIONS["keep"], (pattern,), targets, "")
    try:
        source = made.reverse(target)
    except ValueError:
        return
    assert source is None or target in (made.apply(source) or ())
