"""What becomes of every tensor: the components, their sum, and why tensors are dropped."""

from __future__ import annotations

import pytest
from support.rows import TEXT, fake, plan_of, shipped_tables

from sam3lite_convert.plan.counts import accounting
from sam3lite_convert.plan.names import canonical_names


@pytest.mark.parametrize("component", ["all", "text"])
def test_components_add_up_to_the_file(component, small_rows):
    plan = plan_of(small_rows, component=component)
    found = accounting(plan.checkpoint, plan.names, plan)
    assert found.total.keys == len(small_rows)
    assert found.total.mapped == plan.counts.mapped
    assert sum(found.total.dropped.values()) == plan.counts.dropped == len(small_rows) - plan.counts.mapped
    assert found.components["text_encoder"].keys == sum(key.startswith(TEXT) for key in small_rows)
    assert {kind.kind: kind.tensors for kind in found.dropped_kinds} == found.total.dropped
    assert all(kind.reason for kind in found.dropped_kinds)
    if component == "text":
        (kind,) = found.dropped_kinds
        assert kind.tensors == sum(not key.startswith(TEXT) for key in small_rows) and "--component text" in kind.reason


def test_a_second_spelling_is_a_key_and_no_parameter(small_rows):
    second = ("language_backbone.", "language_backbone.tensor_runner.")
    twins = {k.replace(*second): row for k, row in small_rows.items() if k.startswith(TEXT)}
    plan = plan_of(small_rows | twins)
    once = plan_of(small_rows)
    alone, twice = (accounting(p.checkpoint, p.names, p) for p in (once, plan))
    assert twice.total.parameters == alone.total.parameters
    assert twice.total.keys == alone.total.keys + len(twins)
    (kind,) = (k for k in twice.dropped_kinds if k.kind == "twin")
    assert (kind.tensors, kind.reason) == (len(twins), "second spelling of a tensor, equal to the bit")


def test_without_a_plan_nothing_is_mapped_or_dropped(small_rows):
    checkpoint = fake(small_rows)
    found = accounting(checkpoint, canonical_names(checkpoint, shipped_tables().spellings), None)
    assert (found.total.keys, found.total.mapped, found.total.dropped) == (len(small_rows), 0, {})
    assert found.dropped_kinds == ()
