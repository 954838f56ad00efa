"""How the loss of a quantised graph is shown."""

from __future__ import annotations

import pytest

from sam3lite_convert.records.export import GraphLoss, TapLoss
from sam3lite_convert.report.export import _loss

BUSY = "measure again on a quiet one"


@pytest.mark.parametrize(
    ("calls", "before", "quartiles", "shown", "busy"),
    [
        (1, 119635.0, (2.1, 2.1), "58.3 s, was 119.6 s a call: 2.1x as fast here, one call", False),
        (21, 25.73, (1.9, 3.7), "ms, was 25.73 ms a call: 2.1x as fast here, half of 21 calls 1.9x to 3.7x", False),
        (21, 25.73, (1.1, 12.3), "half of 21 calls 1.1x to 12.3x", True),
    ],
)
def test_times_are_shown_with_their_spread(calls, before, quartiles, shown, busy, capsys):
    loss = GraphLoss(
        runtime="onnxruntime 1.0",
        inputs="a picture",
        own_prompts=False,
        rows=1,
        batch=1,
        bytes=10,
        unquantised_bytes=40,
        calls=calls,
        milliseconds=58308.86 if before > 1e3 else 12.0,
        unquantised_milliseconds=before,
        times_as_fast=2.1,
        times_as_fast_quartiles=quartiles,
        budget=0.01,
        first_over_budget=None,
        taps=(TapLoss(name="t", shape=(1, 2), relative_l2=0.0, cosine=1.0, max_abs_diff=0.0),),
        agreement=(),
        batch_relative_l2=None,
        detection=None,
        random_weights=False,
    )
    _loss(loss, "model.onnx")
    out = capsys.readouterr().out
    assert shown in out and (BUSY in out) == busy
