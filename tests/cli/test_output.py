"""What is printed: how much, where lines are broken, and bars."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.folders import sam3lite

from sam3lite_convert.plan import synthetic


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with all the keys of a released one."""
    path = tmp_path_factory.mktemp("demo") / "demo.pt"
    synthetic.write_checkpoint(path)
    return path


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


LOADS = 'Loads with: sam3lite_convert.PackedModel.from_pretrained("out")'


def test_a_conversion_fits_a_terminal_and_ends_with_what_loads_it(demo, columns):
    convert = ["convert", demo, "--output", "out"]
    first = sam3lite(*convert, "--verify", "--parity").out.splitlines()
    assert len(first) <= 24 and max(map(len, first)) <= max(80, len(str(demo)))
    assert first[-1] == LOADS and sum("proven" in line for line in first) == 1
    again = sam3lite(*convert).out.splitlines()
    assert again == ["out is complete and current; no tensor was written.", LOADS]
    long = sam3lite(*convert, "--overwrite", "--verbose").out.splitlines()
    assert any(line.startswith("detr_decoder ") for line in long) and "  model.safetensors  30.8 MB" in long
    assert not any(line.startswith("detr_decoder ") for line in first)


def test_the_short_form_drops_no_note_and_no_count(demo):
    short = sam3lite("convert", demo, "--output", "short").out.splitlines()
    long = sam3lite("convert", demo, "--output", "long", "--verbose").out.splitlines()
    kept = [line for line in long if line.startswith(("note:", "1,281", "kind:", "layout"))]
    assert kept and set(kept) <= set(short)
    assert "dropped: 309 tracker, 32 freqs_cis, 22 sam2_convs, 6 points projectors" in short
