"""sam3lite parity of a video folder: its detector is compared, text encoder and whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import families
from support.folders import convert, edit, edit_config, sam3lite
from support.parity_runs import parity

pytest.importorskip("transformers")

PROJECTION = "detector_model.text_projection.weight"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.write(tmp_path_factory.mktemp("video") / "s0.pt", "s0")


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    return convert(checkpoint, tmp_path / "out", "--layout", "transformers", "--component", "video")


@pytest.mark.parametrize("options", [[], ["--component", "detector", "--size", 56]], ids=["text", "detector"])
def test_the_detector_of_a_video_folder_is_compared(options: list[object], checkpoint: Path, folder: Path) -> None:
    record = parity(checkpoint, "--converted", folder, *options)
    assert record["verdict"] in ("exact", "within_tolerance")
    assert any("without the 329 tensors beside it" in note for note in record["notes"])


def test_a_wrong_tensor_of_its_detector_is_found(checkpoint: Path, folder: Path) -> None:
    edit(folder, {PROJECTION: torch.randn(16, 64)})
    done = sam3lite("parity", "--checkpoint", checkpoint, "--converted", folder, "--json")
    assert (done.code, done.json["first_divergence"]) == (1, "projected")


def test_a_config_that_loads_it_in_another_way_is_refused(checkpoint: Path, folder: Path) -> None:
    edit_config(folder, "detector_config", "text_config", "return_dict", value=False)
    done = sam3lite("parity", "--checkpoint", checkpoint, "--converted", folder, "--json")
    assert done.code == 3 and "return_dict" in done.out + done.err
