"""What sam3lite parity prints, in text and JSON, and what stands beside the verdict."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support.folders import (
    LAYOUTS,
    PROJECTION,
    convert,
    edit,
    edit_config,
    right,
    sam3lite,
    tensors,
)
from support.parity_runs import FIELDS, KINDS, OUTPUTS, TAP_FIELDS, assert_exact, parity, state_of, swap, taps

from sam3lite_convert.records.parity import ParityDocument
from sam3lite_convert.report.parity import paritied

# ----

BIAS = "detector.backbone.language_backbone.projector.bias"


def printed(record: Any, *, debug: bool = False) -> list[str]:
    """The lines that a run with this record prints. Another run's figures may differ in their last bits."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        paritied(ParityDocument.from_json(record), debug)
    return out.getvalue().splitlines()


# ---- what is printed


def test_of_the_tensors_of_a_layer_those_at_fault_are_listed(saved):
    _, record = saved
    wrong = [t for t in record["diagnosis"]["tensors"] if t["fault"]]
    right_ones = len(record["diagnosis"]["tensors"]) - len(wrong)
    said = printed(record)
    assert wrong and right_ones and sum(" <- " in line for line in said) == len(wrong)
    assert f"  --verbose lists the {right_ones} others, in which nothing was found" in said


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("swapped", [False, True])
def test_the_json_has_every_field_of_the_contract(kind, swapped, sources, tmp_path):
    folder = convert(sources[kind], tmp_path / "out", "--layout", "transformers", "--component", "text")
    layer = min(3, KINDS[kind][1] - 2)
    if swapped:
        swap(folder, layer=layer)
    record = parity(sources[kind], "--converted", folder, code=int(swapped))
    assert record.keys() >= FIELDS
    assert [t["name"] for t in record["layers"]] == taps(KINDS[kind][1])
    assert all(t.keys() >= TAP_FIELDS for t in record["layers"])
    width = state_of(kind)[PROJECTION].shape[0]
    assert [t["shape"] for t in record["layers"]] == [
        *[[1, 16, width]] * (KINDS[kind][1] + 2),
        [1, 16, len(state_of(kind)[BIAS])],
        [1, width],
    ]
    assert record["verdict"] in ({"differs"} if swapped else right(record))
    assert record["first_divergence"] == (f"layers.{layer}" if swapped else None)
    assert (record["candidate"], record["attention"], record["dtype"]) == ("transformers", "eager", "float32")
    assert (record["diagnosis"] is not None) == swapped


# A difference in as many digits as there may be, and one that is no number.
FACTORS = {"scaled": -1000, "not a number": torch.nan}


def spoil(folder: Path, how: str) -> None:
    if how == "swapped":
        swap(folder, "packed")
    else:
        key = "text_encoder.layers.3.attention.in_proj_weight"
        edit(folder, {key: tensors(folder)[key] * FACTORS[how]})


@pytest.mark.parametrize("how", ["swapped", *FACTORS])
def test_eighty_columns_hold_the_table_and_mark_the_diverging_row(how, s0, bad, monkeypatch):
    folder = bad("packed")
    spoil(folder, how)
    monkeypatch.setenv("COLUMNS", "80")
    done = sam3lite("parity", "--checkpoint", s0, "--converted", folder, "--debug-intermediates")
    assert done.code == 1
    lines = done.out.splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("tap "))
    rows = lines[first : first + 11]
    assert [row.split()[0] for row in rows[1:]] == taps(6)  # one line a tap, none wrapped
    assert lines[first + 11] == ""
    assert max(map(len, rows)) <= 80
    assert "…" not in done.out
    assert [row.split()[0] for row in rows if "DIVERGES" in row] == ["layers.3"]
    assert [row.split()[0] for row in rows if "carried" in row] == ["layers.4", "layers.5", *OUTPUTS]
    assert [row.split()[0] for row in rows if "equal" in row] == taps(6)[:4]


def test_a_wide_terminal_shows_shape_position_and_both_values(s0, bad, monkeypatch):
    folder = bad("packed")
    swap(folder, "packed")
    monkeypatch.setenv("COLUMNS", "200")
    record = parity(s0, "--converted", folder, code=1)
    row = next(line for line in printed(record, debug=True) if line.startswith("layers.3 "))
    tap = record["layers"][4]
    cells = row.replace(str(tap["position"]), "AT").split()
    assert cells[1] == "1x16x128"
    values = [f"{tap[name]:.9g}" for name in ("reference_value", "candidate_value")]
    assert cells[-4:] == ["AT", *values, "DIVERGES"]
    out = sam3lite("parity", "--checkpoint", s0, "--converted", folder, "--debug-intermediates").out
    assert re.search(r"^layers\.3 +1x16x128 .* \[0, \d+, \d+\] +-?[\d.e-]+ +-?[\d.e-]+ +DIVERGES$", out, re.M)


def test_the_text_says_verdict_first_divergence_cause_and_tensors(s0, bad):
    folder = bad("transformers")
    swap(folder)
    record = parity(s0, "--converted", folder, code=1)
    assert f"smallest tolerance that would have passed: {record['smallest_passing_tolerance']:.2e}" in printed(record)
    for options in ([], ["--debug-intermediates"]):
        done = sam3lite("parity", "--checkpoint", s0, "--converted", folder, *options)
        assert (done.code, done.err) == (1, "")
        assert "first divergence: layers.3" in done.out
        assert "q and k are swapped" in done.out
        assert "differs" in done.out
        assert "self_attn.q_proj.weight" in done.out
        assert "text attention qkv" in done.out  # the rule
        assert re.search(r"^smallest tolerance that would have passed: \d\.\d\de[+-]\d\d$", done.out, re.M)
        assert "\nlayers.3 " in done.out if options else "\nlayers.3 " not in done.out


def test_without_the_table_the_final_differences_and_a_few_values_are_shown(s0):
    record = parity(s0)
    out = sam3lite("parity", "--checkpoint", s0).out
    assert "projected: max abs diff 0.0" in out
    assert "pooled: max abs diff 0.0" in out
    shown = printed(record)
    for name, sides in record["values"].items():
        start = next(n for n, line in enumerate(shown) if line.startswith(f"{name}: "))
        for line, (side, values) in zip(shown[start + 1 :], sides.items(), strict=False):
            assert line.split() == [side, *(f"{value:.7f}" for value in values), "..."]
    assert [*record["values"]] == ["projected", "pooled"]
    assert "exact" in out
    assert "embeddings" not in out


# ---- what stands beside the verdict


def test_there_is_nothing_to_say_of_a_folder_that_is_right(s0, good):
    for layout in LAYOUTS:
        assert parity(s0, "--converted", good[layout])["notes"] == []
    assert parity(s0)["notes"] == []


def test_tensors_that_the_inputs_do_not_reach_are_named(s0, bad):
    folder = bad("packed")
    table = tensors(folder)["text_encoder.token_embedding.weight"].clone()
    table[7] += 1  # no word of the dummy
    edit(folder, {"text_encoder.token_embedding.weight": table})
    record = parity(s0, "--converted", folder)
    assert_exact(record, "packed")
    (note,) = record["notes"]
    assert "text_encoder.token_embedding.weight" in note
    assert note in sam3lite("parity", "--checkpoint", s0, "--converted", folder).out


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fields_of_the_config_that_the_inputs_do_not_show_are_named(layout, s0, bad):
    folder = bad(layout)
    edit_config(folder, *(["text_config"] if layout == "packed" else []), "layer_norm_eps", value=1.0001e-5)
    record = parity(s0, "--converted", folder, "--tolerance", 1)
    assert [note for note in record["notes"] if "layer_norm_eps" in note]


def test_what_was_cast_cut_or_taken_from_the_receipt_is_said(s0, sources, tmp_path):
    half = convert(s0, tmp_path / "half", "--component", "text", "--dtype", "float16")
    assert "cast to float16" in parity(s0, "--converted", half, "--dtype", "float32", code=1)["notes"][0]
    cut = convert(s0, tmp_path / "cut", "--component", "text", "--context", 8)
    assert "first 8 of 16" in parity(s0, "--converted", cut)["notes"][0]
    causal = convert(sources["base"], tmp_path / "causal", "--component", "text", "--causal")
    assert "causal" in parity(sources["base"], "--converted", causal)["notes"][0]
    assert parity(sources["base"], "--converted", causal, "--causal")["notes"] == []
