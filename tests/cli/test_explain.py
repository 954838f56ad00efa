"""``explain`` of a video folder, in both directions, held against the map that was made from the two models."""

from __future__ import annotations

import csv
import gzip

import pytest
from support import families
from support.folders import DATA, sam3lite

VIDEO = ("--component", "video", "--layout", "transformers", "--json")


@pytest.fixture(scope="module")
def mapped() -> dict[str, list[str]]:
    """Source key -> its targets."""
    with gzip.open(DATA / "map_video.tsv.gz", "rt", encoding="utf-8") as lines:
        rows = csv.DictReader(lines, delimiter="\t")
        return {row["source"]: row["target(s)"].split() for row in rows}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return families.write(tmp_path_factory.mktemp("explain") / "s0.pt", "s0")


@pytest.mark.parametrize(
    "source",
    [
        "tracker.maskmem_tpos_enc",
        # one source, two targets; four sources, one target
        "tracker.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        "tracker.sam_prompt_encoder.point_embeddings.2.weight",
        "detector.backbone.vision_backbone.sam2_convs.1.conv_3x3.weight",
        "detector.transformer.decoder.layers.0.self_attn.in_proj_weight",
    ],
)
def test_a_tensor_is_explained_from_both_ends(checkpoint, mapped, source):
    targets = mapped[source]
    together = [key for key, to in mapped.items() if to == targets]
    for asked in (source, *targets):
        said = sam3lite("explain", checkpoint, asked, *VIDEO).json
        assert [target["key"] for target in said["targets"]] == targets
        assert said["source"]["key"] in together and (said.get("joined") or [source]) == together
        assert asked != source or said["source"]["key"] == source


def test_what_no_model_takes_is_dropped_with_its_reason(checkpoint, mapped):
    dropped = next(key for key, targets in mapped.items() if not targets and "points_" in key)
    said = sam3lite("explain", checkpoint, dropped, *VIDEO).json
    assert not said["targets"] and said["reason"]
