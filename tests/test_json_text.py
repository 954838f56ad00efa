"""JSON of others: what is parsed, and what is refused in short words."""

from __future__ import annotations

import json

import pytest

from sam3lite_convert.json_text import MOST_NESTED, parse_json


@pytest.mark.parametrize("value", [{"a": [1, -2.5, None, True, "ä\ud800"]}, 10**299, -(2**70), 1e308, [[]] * 5, "", 0])
def test_json_is_parsed(value):
    assert parse_json(json.dumps(value).encode()) == value == parse_json(json.dumps(value))


def nested(depth, opened="[", closed="]"):
    return opened * depth + closed * depth


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (nested(MOST_NESTED + 2), "nested more than 200 deep"), (nested(100_000), "nested more than 200 deep"),
        (nested(5_000, '{"a":', "}").replace(":}", ":1}"), "nested more than 200 deep"),
        ("[NaN]", "holds NaN"), ("[-Infinity]", "holds -Infinity"), ("[1e999]", "the number 1e999"),
        ("[1" + "0" * 400 + "]", "an integer of 401 digits"), ("[1" + "0" * 5000 + "]", "an integer of 5,001 digits"),
        ("", "Expecting value"), ("[1", "delimiter"), ("\ufeff[]", "BOM"),
    ],
)  # fmt: skip
def test_what_is_refused(text, why):
    with pytest.raises(ValueError, match=why) as fault:
        parse_json(text)
    assert len(str(fault.value)) < 200


def test_up_to_the_bound_it_is_parsed():
    assert json.dumps(parse_json(nested(MOST_NESTED))) == nested(MOST_NESTED)


@pytest.mark.parametrize("data", ["[]".encode("utf-16"), b"\xff[]", b'"\xed\xa0\x80"'])
def test_other_encodings_are_refused(data):
    with pytest.raises(ValueError, match="utf-8"):
        parse_json(data)
    assert parse_json(b"\xef\xbb\xbf[]", "utf-8-sig") == []
    assert parse_json("[Infinity, -Infinity]", nan=True) == [float("inf"), float("-inf")]
