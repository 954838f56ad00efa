"""Records: to JSON and back, what is left out, what is refused, and sums that are checked."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from typing import Literal

import pytest

from sam3lite_convert.records.record import Document, JsonValue, Record, flat, optional
from sam3lite_convert.records.shared import Accounting, ComponentRecord, Counts


@dataclass(frozen=True, kw_only=True)
class Inner(Record):
    kind: Literal["a", "b"]
    sides: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Outer(Document):
    value: float
    inner: Inner
    beside: Inner | None = field(default=None, metadata=flat())
    maybe: str | None = field(default=None, metadata=optional())
    stated: str | None
    table: dict[str, Inner]
    anything: JsonValue


def outer(**changed: object) -> Outer:
    inner = Inner(kind="a", sides=(1, 2))
    values: dict[str, object] = {
        "value": 1.5,
        "inner": inner,
        "stated": None,
        "table": {"x": inner},
        "anything": [1, None],
    }
    return Outer(**(values | changed))  # type: ignore[arg-type]


def test_a_record_is_json():
    inner = {"kind": "a", "sides": [1, 2]}
    assert outer().to_json() == {
        "schema_version": 1, "value": 1.5, "inner": inner, "stated": None, "table": {"x": inner}, "anything": [1, None],
    }  # fmt: skip
    assert json.loads(json.dumps(outer(maybe="m").to_json()))["maybe"] == "m"
    assert outer(beside=Inner(kind="b", sides=())).to_json()["kind"] == "b"


def test_the_repr_of_a_record_is_one_short_line():
    assert repr(outer()) == "Outer(value=1.5, inner=Inner(...), table=<1 item>, anything=[1, None])"
    assert repr(Inner(kind="a", sides=())) == "Inner(kind='a')"
    assert repr(Inner(kind="a", sides=tuple(range(999)))) == "Inner(kind='a', sides=<999 items>)"
    assert len(repr(outer(stated="long " * 999))) < 300
    assert repr(Counts(source=1, mapped=1, dropped=0, target=1)).endswith("dropped=0, target=1)")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_has_neither_nan_nor_infinity(value):
    assert outer(value=value).to_json()["value"] is None


def test_what_has_no_place_in_json_is_refused():
    with pytest.raises(TypeError, match="object"):
        outer(anything=object()).to_json()


def test_a_record_is_read_back():
    for record in (outer(), outer(maybe="m"), outer(beside=Inner(kind="b", sides=(3,)))):
        assert Outer.from_json(record.to_json() | {"unknown": 1}) == record


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"value": "1"}, "value"),
        ({"value": True}, "value"),
        ({"inner": None}, "inner"),
        ({"inner": {"kind": "c", "sides": []}}, "inner.kind"),
        ({"inner": {"kind": "a", "sides": [1, "2"]}}, r"inner.sides\[1\]"),
        ({"inner": {"kind": "a", "sides": [True]}}, r"inner.sides\[0\]"),
        ({"table": {"x": []}}, "table.x"),
        ({"stated": 3}, "stated"),
    ],
)
def test_what_another_program_wrote_is_refused_by_place(change, place):
    with pytest.raises(ValueError, match=place):
        Outer.from_json(outer().to_json() | change)


def test_a_missing_field_is_named():
    data = outer().to_json()
    del data["stated"]
    with pytest.raises(ValueError, match="stated is missing"):
        Outer.from_json(data)


def test_counts_that_do_not_add_up_are_refused():
    assert Counts(source=3, mapped=2, dropped=1, target=4).to_json() == {
        "source": 3, "mapped": 2, "dropped": 1, "target": 4,
    }  # fmt: skip
    with pytest.raises(ValueError, match="3 source tensors are not 2 mapped"):
        Counts(source=3, mapped=2, dropped=2, target=4)


def test_components_that_do_not_add_up_are_refused():
    part = ComponentRecord(keys=2, parameters=10, mapped=1, dropped={"twin": 1})
    total = ComponentRecord(keys=4, parameters=20, mapped=2, dropped={"twin": 2})
    assert Accounting(components={"a": part, "b": part}, total=total, dropped_kinds=()).total is total
    with pytest.raises(ValueError, match="keys"):
        Accounting(components={"a": part}, total=total, dropped_kinds=())
    with pytest.raises(ValueError, match="dropped"):
        Accounting(components={"a": part, "b": part}, total=replace(total, dropped={"twin": 1}), dropped_kinds=())
