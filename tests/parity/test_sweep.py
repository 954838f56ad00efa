"""Thousands of prompts: the same verdicts and figures as in one go, and the worst prompts by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from support.folders import ROUNDING, convert, edit, right, sam3lite, tensors, tiny_architecture, write_safetensors

from sam3lite_convert.parity import inputs
from sam3lite_convert.parity.compare import Running, compare
from sam3lite_convert.parity.judgement import Floor, judge
from sam3lite_convert.parity.setup import Setup
from sam3lite_convert.parity.sweep import Sweep
from sam3lite_convert.plan import synthetic

SMALL = {"vocab": 49408, "text_hidden": 64, "text_heads": 1, "projection_dim": 64}
COLOURS = ("red", "green", "blue", "black", "white", "grey", "brown", "orange", "pink")
THINGS = ("dog", "cat", "bus", "car", "tree", "house", "bird", "boat", "chair", "lamp", "shoe", "cup", "hat", "book")
PROMPTS = [f"a {c} {t}" + " by the sea" * n for n in range(3) for c in COLOURS for t in THINGS]  # 378
ZEBRA = 200  # the place of the one prompt with a zebra in it


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    pytest.importorskip("instant_clip_tokenizer")
    pytest.importorskip("ftfy")
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def s0(root) -> Path:
    return write_safetensors(root, synthetic.state_dict(tiny_architecture(**SMALL), text_only=True))


@pytest.fixture(scope="module")
def file(root) -> Path:
    prompts = [*PROMPTS[:ZEBRA], "a zebra", *PROMPTS[ZEBRA:]]
    (root / "prompts.txt").write_text("\n".join(prompts), encoding="utf-8")
    return root / "prompts.txt"


@pytest.fixture(scope="module")
def folder(s0, root) -> Path:
    return convert(s0, root / "tf", "--layout", "transformers", "--component", "text")


@pytest.fixture
def bad(s0, root, tmp_path) -> Path:
    """A folder in which the embedding of one word is off."""
    from sam3lite_convert.convert.prompts import tokenize

    token = int(tokenize(["zebra"], 16)[0, 1])
    made = convert(s0, tmp_path / "bad", "--component", "text")
    table = tensors(made)["text_encoder.token_embedding.weight"].clone()
    table[token, 5] += 0.5
    edit(made, {"text_encoder.token_embedding.weight": table})
    return made


def parity(path: Path, *options: object, code: int = 0) -> dict[str, Any]:
    done = sam3lite("parity", "--checkpoint", path, "--json", *options)
    assert done.code == code, done
    return done.json


def test_all_of_them_are_exact(s0, file):
    record = parity(s0, "--prompts-file", file)
    assert (record["verdict"], record["max_abs_diff"]) == ("exact", 0.0)
    assert record["inputs"]["prompts_total"] == len(PROMPTS) + 1 and record["inputs"]["shape"] == [379, 16]
    assert [t["shape"] for t in record["layers"][-2:]] == [[379, 16, 32], [379, 64]]
    assert record["worst_prompts"] == []
    assert any(note.startswith("both encoders ran on all 379 rows") for note in record["notes"])


@pytest.mark.parametrize("which", ["folder", "bad"])
def test_the_figures_are_those_of_one_go(which, s0, file, request, monkeypatch):
    other = request.getfixturevalue(which)
    code = 1 if which == "bad" else 0
    batched = parity(s0, "--prompts-file", file, "--converted", other, code=code)
    monkeypatch.setattr(inputs, "BATCH", 1000)
    for name in ("setup", "sweep"):
        monkeypatch.setattr(f"sam3lite_convert.parity.{name}.BATCH", 1000)
    whole = parity(s0, "--prompts-file", file, "--converted", other, code=code)
    assert len(whole["inputs"]["ids"]) == 379 and len(batched["inputs"]["ids"]) <= 128
    assert (batched["verdict"], batched["first_divergence"]) == (whole["verdict"], whole["first_divergence"])
    for ours, theirs in zip(batched["layers"], whole["layers"], strict=True):
        assert ours["shape"] == theirs["shape"]
        places = ["valid_max_abs_diff", "padded_max_abs_diff"] if ours["name"] != "pooled" else []
        for key in ["max_abs_diff", "mean_abs_diff", "relative_l2", *places]:
            # The last bits of a product follow from how many rows are multiplied at once.
            last_bits = ROUNDING if key.endswith("max_abs_diff") else 1e-6
            assert ours[key] == pytest.approx(theirs[key], rel=1e-3, abs=last_bits), (ours["name"], key)
        assert ours["cosine"] == pytest.approx(theirs["cosine"], abs=1e-6)
        if which == "bad":
            assert ours["position"][0] == theirs["position"][0] == ZEBRA


def test_the_worst_prompt_is_named_wherever_it_stands(s0, file, bad):
    record = parity(s0, "--prompts-file", file, "--converted", bad, code=1)
    assert record["first_divergence"] == "embeddings"
    (worst,) = record["worst_prompts"]
    assert (worst["prompt"], worst["index"], worst["tap"]) == ("a zebra", ZEBRA, "projected")
    projected = next(t for t in record["layers"] if t["name"] == "projected")
    assert worst["max_abs_diff"] == pytest.approx(projected["max_abs_diff"], rel=1e-3)
    assert record["inputs"]["prompts"] == [
        "a zebra"
    ]  # the other prompts are equal, so only this one is compared closely
    out = sam3lite("parity", "--checkpoint", s0, "--prompts-file", file, "--converted", bad).out
    assert "the worst prompts, by max abs diff at projected:" in out and "no. 201: 'a zebra'" in out


def test_a_fault_that_few_prompts_show_is_found_in_the_last_batch_too(s0, bad, tmp_path):
    (tmp_path / "file").write_text("\n".join([*PROMPTS, "zebra"]))
    record = parity(s0, "--prompts-file", tmp_path / "file", "--converted", bad, code=1)
    assert record["worst_prompts"][0]["index"] == len(PROMPTS)


def test_random_rows_run_in_batches_too(s0, folder):
    record = parity(s0, "--seed", "3", "--batch", "300", "--converted", folder)
    assert record["verdict"] in ("exact", "within_tolerance")
    assert record["inputs"]["shape"] == [300, 16] and record["worst_prompts"] == []


def test_activations_are_kept_of_those_that_are_looked_at(s0, file, bad, tmp_path):
    record = parity(s0, "--prompts-file", file, "--converted", bad, "--save-activations", tmp_path / "a", code=1)
    assert any("activations in the file" in note for note in record["notes"])
    with safe_open(tmp_path / "a", "pt") as saved:
        assert saved.get_tensor("input_ids").shape == (1, 16)
    again = sam3lite("parity", "--judge", tmp_path / "a", "--json")
    assert (again.code, again.json["first_divergence"]) == (1, "embeddings")


def test_behaviour_over_many_prompts_is_that_of_each(s0, folder, file):
    record = parity(s0, "--prompts-file", file, "--converted", folder, "--as-used")
    used = record["behaviour"]
    assert used["prompts_total"] == 379 and len(used["prompts"]) == 20
    alone = [
        parity(s0, "--prompt", p["prompt"], "--converted", folder, "--as-used")["behaviour"]["together"]
        for p in used["prompts"][:2]
    ]
    for listed, single in zip(used["prompts"], alone, strict=False):
        assert listed["relative_l2"] == pytest.approx(single["relative_l2"], rel=1e-3)
    figures = [p["relative_l2"] for p in used["prompts"]]
    assert figures == sorted(figures, reverse=True) and used["recipe"]["verdict"] in right(record)


def test_the_shape_of_many_prompts_survives_a_file_of_lines_that_are_none(s0, tmp_path):
    (tmp_path / "file").write_text("\n\n".join(["dog"] * 200) + "\n \n")
    assert parity(s0, "--prompts-file", tmp_path / "file")["inputs"]["shape"] == [200, 16]


def test_last_bits_that_only_show_in_a_full_batch_are_judged_by_their_floor(s0, file, monkeypatch):
    """Products of other row counts round otherwise: what differed in the sweep may be equal among the worst."""
    whole = Setup.candidate

    def rounds_otherwise(setup, *arguments):
        made = whole(setup, *arguments)

        def run(ids):
            projected, pooled = made.run(ids)
            off = torch.zeros_like(pooled)
            if len(ids) == inputs.BATCH:
                off[:40] = 1e-8
            return projected, pooled + off

        return replace(made, run=run)

    monkeypatch.setattr(Setup, "candidate", rounds_otherwise)
    record = parity(s0, "--prompts-file", file)
    assert 0 < record["max_abs_diff"] < 1e-7 and len(record["inputs"]["ids"]) < inputs.BATCH
    assert record["verdict"] == "exact" and record["first_divergence"] is None


def test_the_worst_of_every_tap_are_looked_at_by_max_and_by_mean():
    generator = torch.Generator().manual_seed(0)
    taps = ["embeddings", *(f"layers.{n}" for n in range(12)), "final_layer_norm", "projected", "pooled"]
    greatest = {tap: torch.rand(500, generator=generator) for tap in taps}
    means = {tap: torch.rand(500, generator=generator) for tap in taps}
    swept = Sweep(inputs.Inputs(torch.zeros(500, 3), ""), {}, greatest, means, {}, {})
    worst = swept.worst()
    assert len(worst) == len(set(worst)) <= inputs.BATCH
    assert worst[0] == int(greatest["projected"].argmax())
    for figures in (*greatest.values(), *means.values()):
        assert int(figures.argmax()) in worst


def test_one_bad_row_is_not_thinned_out_by_many_good_ones():
    """A great channel sets the floor of the greatest element, so the row is found by its mean alone."""
    generator = torch.Generator().manual_seed(0)
    taps = ["embeddings", "layers.0", "final_layer_norm", "projected", "pooled"]
    reference = {tap: torch.randn(200, 4, 8, generator=generator) for tap in taps}
    candidate = {tap: value.clone() for tap, value in reference.items()}
    candidate["embeddings"][150] += 1e-5
    floors = {tap: Floor(1e-3, 1e-3, 1e-6, 1e-6) for tap in taps}
    padded = torch.zeros(200, 4, dtype=torch.bool)
    found = judge(reference, candidate, candidate, floors, padded)
    assert (found.verdict, found.first_divergence) == ("differs", "embeddings")
    assert found.taps[0].difference.row_mean == pytest.approx(1e-5, rel=0.1)
    assert found.taps[0].difference.mean_abs < 1e-7
    swept = replace(found.taps[0], isolated=0.0, mean_isolated=0.0)  # as where that was measured on other rows
    assert not swept.within and not swept.diverges


def test_a_byte_order_mark_and_odd_separators_are_no_prompts(s0, tmp_path):
    (tmp_path / "file").write_bytes("\ufeffa dog\r\na\u2028cat\x0c\n".encode())
    record = parity(s0, "--prompts-file", tmp_path / "file")
    assert record["inputs"]["prompts"] == ["a dog", "a\u2028cat\x0c"]


# ---- sums -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(7,), (3, 4), (1, 1, 5), (6, 1)])
def test_a_difference_added_up_in_parts_is_that_of_the_whole(sizes):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(7, 3, 5, generator=generator)
    b = a + 1e-3 * torch.randn(7, 3, 5, generator=generator)
    whole, running = compare(a, b), Running()
    for ours, theirs in zip(a.split(sizes), b.split(sizes), strict=True):
        running.add(ours, theirs)
    found = running.difference()
    assert (found.shape, found.max_abs, found.position) == (whole.shape, whole.max_abs, whole.position)
    assert (found.reference, found.candidate) == (whole.reference, whole.candidate)
    for name in ("mean_abs", "relative_l2", "cosine"):
        assert getattr(found, name) == pytest.approx(getattr(whole, name), rel=1e-12)


def test_equal_parts_count_in_the_norms():
    a = torch.arange(12.0).reshape(4, 3)
    b = a.clone()
    b[3, 1] += 0.5
    running = Running()
    running.add_equal(a[:2])
    running.add(a[2:], b[2:])
    found, whole = running.difference(), compare(a, b)
    assert (found.max_abs, found.position, found.mean_abs) == (0.5, (3, 1), whole.mean_abs)
    assert (found.relative_l2, found.cosine) == pytest.approx((whole.relative_l2, whole.cosine), rel=1e-12)
    running = Running()
    running.add_equal(a)
    assert running.difference() == compare(a, a)


def test_one_part_that_is_not_finite_marks_the_whole():
    a = torch.ones(2, 3)
    b = a.clone()
    b[0, 0] = float("nan")
    running = Running()
    running.add(a, b)
    running.add_equal(a)
    assert not running.difference().finite and running.difference().max_abs == float("inf")
