"""The table of what each tap reads, measured on the reference."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from support.detector_goldens import HEADS, case, tiny_weights

from original_ref.detector import load_detector, prepare
from sam3lite_convert.parity.detector.reads import reads_of, upstream
from sam3lite_convert.parity.detector.recording import reading
from sam3lite_convert.parity.detector.taps import STAGES, ordered, taps_of
from sam3lite_convert.parity.picture_files import synthetic_picture

LAYERS = {"trunk": 4, "neck": 3, "text": 3, "geometry": 2, "encoder": 2, "decoder": 3}


def measured():
    """The tiny detector's taps, and of each the taps that change it if all others give what they did."""
    model = load_detector(tiny_weights(), HEADS, None, 56)
    inputs = case("box").inputs() | {"image": prepare(synthetic_picture(56).permute(2, 0, 1), 56)}
    taps = taps_of(model)

    def run(changed=None, kept=None):
        seen = {}

        def read(tap, value):
            seen[tap] = value.clone()
            if tap == changed:
                return value + 0.1 * torch.sin(torch.arange(value.numel()).reshape(value.shape) + 1.0)
            return kept[tap] if kept is not None else None

        with torch.inference_mode(), reading(model, taps, "original", read):
            out = model(**inputs)
        return seen | {tap: out[tap.removeprefix("outputs.")] for tap in taps if tap.startswith("outputs.")}

    first = run()
    found = defaultdict(set)
    for changed in taps:
        if not changed.startswith("outputs."):
            for tap, value in run(changed, first).items():
                if tap != changed and not torch.equal(value, first[tap]):
                    found[tap].add(changed)
    return taps, found


@pytest.mark.stress
def test_the_table_is_what_the_reference_reads():
    taps, found = measured()
    assert {tap: set(reads_of(tap, taps)) for tap in taps} == {tap: found[tap] for tap in taps}


def test_every_row_reads_rows_that_there_are():
    taps = ordered(dict.fromkeys(STAGES, 0) | LAYERS)
    assert all(set(reads_of(tap, taps)) <= set(list(taps)[: list(taps).index(tap)]) for tap in taps)
    # Without anything before them stand only arguments and what the weights give.
    first = {tap for tap in taps if not reads_of(tap, taps)}
    assert first == {
        "trunk.patch_embed", "neck.positions", "text.embeddings", "geometry.box_direct", "geometry.box_position",
        "geometry.box_label", "decoder.query_position.0", "decoder.rpb_x.0", "decoder.rpb_y.0",
    }  # fmt: skip


def test_what_is_between():
    taps = ordered(dict.fromkeys(STAGES, 0) | LAYERS)
    given = {"trunk.blocks.1", "text.projected", "geometry.output", "encoder.layers.0"}
    # The encoder reads text, geometry and the position map, which was not given.
    found = upstream("encoder.layers.0", taps, given, given)
    assert found.tap is None and "neck.positions" in found.unseen and found.agrees
    assert {"trunk.blocks.2", "trunk.blocks.3", "neck.2"} <= set(found.unseen)
    assert "text.layers.0" not in found.unseen and "decoder.queries.0" not in found.unseen
    assert not upstream("encoder.layers.0", taps, given, given - {"text.projected"}).agrees
    assert upstream("trunk.blocks.2", taps, given, given) == upstream("trunk.blocks.2", taps, {"trunk.blocks.1"}, given)
    assert upstream("trunk.blocks.2", taps, given, given).tap == "trunk.blocks.1"
    # A text tap explains nothing of the trunk.
    assert upstream("trunk.blocks.3", taps, given, {"trunk.blocks.1"}).agrees
