"""A folder that was trained with transformers, restored: the original's code has to compute what was trained."""

from __future__ import annotations

import pytest
import torch
from support.detector_goldens import HEADS, case
from support.folders import sam3lite, write_safetensors
from support.tiny_stock import converted, outputs

from original_ref import load_detector


@pytest.fixture(scope="module")
def trained():
    """The library's detector, every parameter moved a little, and what it computes."""
    golden = case("text")
    model = converted(golden).model()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02 * parameter.abs().mean())
    return model, outputs(model, golden)


def computed(path):
    """What the original's code computes with the weights of a file, under the names of the goldens."""
    golden = case("text")
    weights = torch.load(path, weights_only=True)
    weights = weights.get("model", weights)
    # What the library's model has no place for, rotary tables and points projectors, is as it was before.
    assert weights.keys() <= golden.weights().keys()
    detector = load_detector(golden.weights() | weights, HEADS)
    with torch.inference_mode():
        found = detector(**golden.inputs())
    return {f"output.{name}": value for name, value in found.items()}


@pytest.mark.parametrize("given", [True, False], ids=["with the checkpoint", "alone"])
def test_what_was_trained_runs_in_the_originals_code(given, trained, tmp_path):
    model, wanted = trained
    original = write_safetensors(tmp_path, case("text").weights())
    model.save_pretrained(tmp_path / "trained")
    options = ["--checkpoint", original] if given else []
    done = sam3lite("restore", tmp_path / "trained", *options, "--output", tmp_path / "back.pt", "--json")
    assert done.code == 0, done
    assert len(done.json["changed"]) > 300 if given else done.json["basis"] == "layout"
    found, before = computed(tmp_path / "back.pt"), case("text").detector()
    with torch.inference_mode():
        before = before(**case("text").inputs())
    for name, value in wanted.items():
        largest = found[name].abs().max()
        assert (value - found[name]).abs().max() < 2e-5 * largest, name
        assert (value - before[name.removeprefix("output.")]).abs().max() > 0.02 * largest, name
