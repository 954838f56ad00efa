"""What holds for any plan and any key, whatever hypothesis makes of a checkpoint's names and shapes."""

from __future__ import annotations

import functools
import itertools
import math

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.folders import tiny_state
from support.rows import LAYOUTS, Rows, fake, plan_of, rows_of, shipped_tables

from sam3lite_convert.checkpoint import dtypes
from sam3lite_convert.errors import CannotRun, UnsoundPlan, Untrusted
from sam3lite_convert.plan.names import canonical_names
from sam3lite_convert.plan.plan import Plan
from sam3lite_convert.plan.tables import Rule

SLOWLY = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@functools.cache
def rows() -> Rows:
    return rows_of(tiny_state())


@functools.cache
def sound(layout: str) -> Plan:
    return plan_of(rows(), layout=layout)


def assert_sound(plan: Plan, source: Rows) -> None:
    """Every source is mapped or dropped, every byte that is mapped goes to one place, every target is there once."""
    mapped = {m.source.key for m in plan.mapped.values() if not m.source.absent}
    assert all(key.endswith("num_batches_tracked") for key in plan.filled)
    assert mapped | plan.dropped.keys() == source.keys() and not mapped & plan.dropped.keys()
    assert all(d.reason for d in plan.dropped.values())
    taken: dict[str, list[tuple[int, int]]] = {}
    for key, m in plan.mapped.items():
        assert key == m.key and m.nbytes == math.prod(m.shape) * dtypes.itemsize(m.source.dtype)
        assert 0 <= m.begin <= m.begin + m.nbytes <= m.source.nbytes
        if not m.source.absent:
            taken.setdefault(m.source.key, []).append((m.begin, m.begin + m.nbytes))
    for key, ranges in taken.items():
        ranges.sort()
        assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))
        assert ranges[-1][1] == plan.checkpoint.tensors[key].nbytes  # only a class row in front may be left out
    assert len({(m.file, m.target) for m in plan.mapped.values()}) == len(plan.mapped)


@st.composite
def edits(draw: st.DrawFn) -> Rows:
    """The rows of a checkpoint after some edits of the kind that people and programs make."""
    out = dict(rows())
    names = sorted(out)
    for _ in range(draw(st.integers(1, 4))):
        key = draw(st.sampled_from(names))
        kind = draw(st.sampled_from(["remove", "rename", "shape", "dtype", "add", "copy", "prefix", "layer"]))
        if key not in out:
            continue
        dtype, shape = out[key]
        if kind == "remove":
            del out[key]
        elif kind == "rename":
            out[draw(st.text(max_size=30)) or key] = out.pop(key)
        elif kind == "shape":
            out[key] = (dtype, tuple(draw(st.lists(st.integers(0, 700), max_size=5))))
        elif kind == "dtype":
            out[key] = (draw(st.sampled_from(sorted(dtypes.NAMES))), shape)
        elif kind == "add":
            out[draw(st.text(st.characters(codec="utf-8"), max_size=60))] = (dtype, shape)
        elif kind == "copy":
            out[draw(st.sampled_from(names))] = (dtype, shape)
        elif kind == "prefix":
            out[draw(st.sampled_from(["module.", "detector.", "model.", "x."])) + key] = out.pop(key)
        else:
            out[key.replace(".0.", f".{draw(st.integers(0, 10**12))}.")] = (dtype, shape)
    return out


@SLOWLY
@given(edits(), st.sampled_from(LAYOUTS), st.sampled_from(["all", "text"]))
def test_any_checkpoint_is_planned_soundly_or_refused_by_name(source, layout, component):
    try:
        plan = plan_of(source, layout=layout, component=component)
    except UnsoundPlan as fault:
        assert fault.message
        if fault.code == "unsound_plan":
            faults = fault.details["faults"]
            assert faults and all((f["key"] and f["detail"]) or f["key"] == "" for f in faults)
            about_sources = ("unmatched", "overlap", "wrong_dtype")
            assert all(f["key"] in source for f in faults if f["kind"] in about_sources)
        return
    except Untrusted as fault:
        assert fault.code == "twins_differ"
        return
    assert_sound(plan, source)


@SLOWLY
@given(st.data(), st.sampled_from(LAYOUTS))
def test_a_tensor_that_is_missing_is_never_missed(data, layout):
    """Whatever tensor goes: the plan is refused and names it, or it was dropped, or it is a counter that is filled."""
    whole = sound(layout)
    key = data.draw(st.sampled_from(sorted(rows())))
    rest = {k: v for k, v in rows().items() if k != key}
    if key in whole.dropped:
        assert plan_of(rest, layout=layout).mapped.keys() == whole.mapped.keys()
        return
    if key.endswith("num_batches_tracked"):  # a counter that evaluation does not read
        plan = plan_of(rest, layout=layout)
        assert [plan.mapped[target].canonical for target in plan.filled] == [key.removeprefix("detector.")]
        return
    with pytest.raises(UnsoundPlan) as refusal:
        plan_of(rest, layout=layout)
    targets = {m.target for m in whole.mapped.values() if m.source.key == key}
    faults = {f["key"] for f in refusal.value.details["faults"]}
    assert targets <= faults or key in refusal.value.message


@settings(SLOWLY, max_examples=10)
@given(st.permutations(sorted(rows())), st.sampled_from(LAYOUTS))
def test_the_order_of_a_file_does_not_matter(order, layout):
    plan = plan_of({key: rows()[key] for key in order}, layout=layout)
    assert {k: m.record() for k, m in plan.mapped.items()} == {k: m.record() for k, m in sound(layout).mapped.items()}
    assert plan.architecture == sound(layout).architecture


@SLOWLY
@given(st.integers(-3, 99), st.sampled_from(LAYOUTS), st.sampled_from([None, "float16", "float64"]))
def test_any_context_is_a_cut_or_refused(context, layout, dtype):
    have = sound(layout).architecture.sizes["context"]
    try:
        plan = plan_of(rows(), layout=layout, context=context, dtype=dtype)
    except CannotRun:
        assert not 1 <= context <= have
        return
    assert 1 <= context <= have and plan.counts == sound(layout).counts
    assert {m.dtype for m in plan.mapped.values()} == {dtype or "float32", "int64"}


# ---- the tables ---------------------------------------------------------------------------------------

RULES = [(layout, rule) for layout in LAYOUTS for rule in shipped_tables().layout(layout).rules]


# A level of the neck enlarges by 4 or by 2; one that has tensors for both is a collision, which the planner reports.
ONE_OF_TWO = {"neck upsampling by 4, first", "neck upsampling by 2"}


def keys_of(rule: Rule) -> st.SearchStrategy[str]:
    return st.from_regex(rule.pattern, fullmatch=True)


@settings(SLOWLY, max_examples=10)
@pytest.mark.parametrize(("layout", "rule"), RULES, ids=lambda x: getattr(x, "name", x))
@given(data=st.data())
def test_a_rule_can_be_read_in_both_directions(layout, rule, data):
    """Any key that a rule matches is matched by that rule alone, and each target leads back to it and to it alone."""
    key = data.draw(keys_of(rule))
    made = rule.apply(key)
    assert made is not None and len(made) == len(set(made)) == {"split": 3, "drop": 0}.get(rule.operation.name, 1)
    assert all(rule.reverse(target) == key for target in made)
    others = [r for r in shipped_tables().layout(layout).rules if r is not rule]
    assert [r.name for r in others if r.apply(key) is not None] == []
    also = {r.name for r in others for target in made if r.reverse(target) is not None}
    assert also <= ONE_OF_TWO and (not also or rule.name in ONE_OF_TWO)


@SLOWLY
@example("")
@example("module." * 9)
@given(st.text(max_size=80))
def test_any_text_is_a_key_or_none(text):
    for _, rule in RULES:
        made = rule.apply(text)
        assert made is None or all(rule.reverse(t) == text for t in made)


@SLOWLY
@given(st.sampled_from(sorted(rows())), st.sampled_from(["module.", "sam3_model.", "module.sam3_model."]))
def test_a_known_prefix_never_changes_where_a_tensor_goes(key, prefix):
    names = [canonical_names(fake({k: rows()[key]}), shipped_tables().spellings) for k in (key, prefix + key)]
    assert list(names[0].sources) == list(names[1].sources)
    assert list(names[0].sources) == [n for n, keys in sound("packed").names.sources.items() if key in keys]


def test_a_level_that_enlarges_both_ways_is_a_collision():
    key = "detector.backbone.vision_backbone.convs.1.dconv_2x2.weight"
    with pytest.raises(UnsoundPlan) as refusal:
        plan_of(rows() | {key.replace("dconv_2x2", "dconv_2x2_0"): rows()[key]})
    assert "collision" in {f["kind"] for f in refusal.value.details["faults"]}
