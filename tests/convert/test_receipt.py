"""conversion.json as a typed record: read back without loss, and a card that does not change by that."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from support.folders import convert, receipt, tiny_state, write_safetensors

from sam3lite_convert.convert.card import model_card
from sam3lite_convert.records.receipt import ParitySummary, Receipt, TapSummary

KINDS = {
    "packed": [],
    "transformers": ["--layout", "transformers"],
    "text": ["--component", "text"],
    "cast and cut": ["--dtype", "float16", "--context", "8"],
    "with parity": ["--parity"],
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_safetensors(tmp_path_factory.mktemp("tiny"), tiny_state())


@pytest.mark.parametrize("kind", KINDS)
def test_a_receipt_is_read_back_without_loss(kind, tiny, tmp_path):
    data = receipt(convert(tiny, tmp_path / "out", *KINDS[kind]))
    assert data["schema_version"] == 1
    read = Receipt.from_json(data)
    assert read.to_json() == data
    assert len(read.tensors) == data["counts"]["target"] and len(read.dropped) == data["counts"]["dropped"]


@pytest.mark.parametrize("error", [0.0, 1.5e-7, math.inf, math.nan])
def test_the_card_is_the_same_before_and_after_a_receipt_is_read_back(error, tiny, tmp_path):
    read = Receipt.from_json(receipt(convert(tiny, tmp_path / "out")))
    tap = TapSummary(name="projected", max_abs_diff=error, isolated_max_abs_diff=error, relative_l2=error)
    summary = ParitySummary(
        verdict="differs", reference="r", candidate_encoder="c", attention="eager", dtype="float32", tolerance=1e-6,
        max_abs_diff=error, inputs="ids", layers=(tap,),
    )  # fmt: skip
    compared = replace(read, parity=summary)
    card = model_card(compared)
    assert f"| `projected` | {' | '.join([format(error, '.3g') if error == error else 'inf'] * 3)} |" in card
    assert model_card(Receipt.from_json(compared.to_json())) == card
