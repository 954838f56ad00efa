"""The table of taps: what it says of each, and that every encoder has what it names."""

from __future__ import annotations

import ast
import copy
import dataclasses
import re
from typing import Any

import pytest
import torch
from support.folders import LAYOUTS, ROOT, tiny_architecture, write_safetensors
from support.rows import shipped_tables
from torch import nn

from sam3lite_convert.checkpoint.reader import read_checkpoint
from sam3lite_convert.parity import encoders, taps
from sam3lite_convert.parity.encoders import tapped_modules
from sam3lite_convert.parity.judgement import FLOORS
from sam3lite_convert.parity.noise_floor import noise_floor
from sam3lite_convert.parity.original import wrap_reference
from sam3lite_convert.parity.run import compare_encoders, diagnose
from sam3lite_convert.parity.self_test import run_self_test
from sam3lite_convert.parity.setup import ParityOptions, Setup, set_up
from sam3lite_convert.parity.taps import (
    EMBEDDINGS,
    LAYER,
    ORIGINAL,
    OUTPUTS,
    PACKED,
    TAPS,
    TRANSFORMERS,
    TapPoint,
    are_complete,
    enclosing,
    layer_of,
    point_of,
    points,
    read_at,
    spelled,
    tensors_behind,
    text_features,
)
from sam3lite_convert.plan import synthetic

THREE = ["embeddings", "layers.0", "layers.1", "layers.2", "final_layer_norm", "projected", "pooled"]
SIZES = {"text_hidden": 128, "text_heads": 2, "projection_dim": 128, "output_dim": 128, "vocab": 128}
# The two taps that somebody may want next: one before the first, one inside the layers that have attention.
TOKENS = TapPoint(
    "tokens",
    tensors=("encoder.embedding_layer.",),
    reads=(),
    modules={
        ORIGINAL: "encoder.embedding_layer",
        PACKED: "text_encoder.token_embedding",
        TRANSFORMERS: "text_encoder.embeddings.token_embedding",
    },
    inside="embeddings",
)
ATTENTION = TapPoint(
    "layers.{i}.attention",
    tensors=("encoder.transformer.{i}.pre_norm_mha.",),
    reads=("embeddings", "layers.{i}"),
    modules={
        ORIGINAL: "encoder.transformer.{i}.pre_norm_mha.1.out_proj",
        PACKED: "text_encoder.layers.{i}.attention.out_proj",
        TRANSFORMERS: "text_encoder.layers.{i}.self_attn.out_proj",
    },
    optional=True,
    inside="layers.{i}",
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    state = synthetic.state_dict(tiny_architecture(**SIZES), text_only=True)
    return read_checkpoint(write_safetensors(tmp_path_factory.mktemp("taps"), state))


@pytest.fixture
def more(monkeypatch):
    """A table with two rows more."""
    rows = (TOKENS, EMBEDDINGS, ATTENTION, *TAPS[1:])
    monkeypatch.setattr(taps, "TAPS", rows)
    monkeypatch.setattr(taps, "_BY_NAME", {point.name: point for point in rows})


def compared(source: Any, layout: str, **options: Any) -> Setup:
    return set_up(source, shipped_tables(), ParityOptions(candidate=layout, seed=1, batch=3, **options))


def target(setup: Setup, leaf: str) -> str:
    """The candidate's key of a tensor of the original's transformer, by the end of its name."""
    return next(m.target for m in setup.plan.mapped.values() if m.canonical.endswith(f"transformer.{leaf}"))


# ---- the table ----------------------------------------------------------------------------------


def test_the_rows_in_the_order_of_execution():
    assert [point.at(i) for point, i in points(3)] == THREE
    assert [point.name for point in OUTPUTS] == ["projected", "pooled"]
    for name in THREE:
        assert point_of(name).at(layer_of(name) if point_of(name).per_layer else 0) == name


def test_what_a_tap_reads_and_what_is_behind_it():
    assert {tap: read_at(tap, THREE) for tap in THREE[1:]} == {
        "layers.0": "embeddings",
        "layers.1": "layers.0",
        "layers.2": "layers.1",
        "final_layer_norm": "layers.2",
        "projected": "final_layer_norm",
        "pooled": "final_layer_norm",
    }
    assert [enclosing(tap) for tap in THREE] == [None] * len(THREE)
    with pytest.raises(ValueError, match="embeddings reads the ids"):
        read_at("embeddings", THREE)
    assert tensors_behind("layers.12") == ("encoder.transformer.12.", "encoder.transformer.resblocks.12.")
    assert tensors_behind("projected") == ("projector.", "resizer.")


def test_what_the_detector_reads():
    assert [tap for tap in THREE if not point_of(tap).read_by_detector] == ["pooled"]
    assert text_features(THREE) == "projected"


@pytest.mark.parametrize("name", ["layers", "layers.x", "layers.1.fc1", "layers.1\n", "Pooled", ""])
def test_other_names_are_no_taps(name):
    with pytest.raises(KeyError):
        point_of(name)


def test_a_tap_that_is_not_one_of_layers_has_no_number():
    with pytest.raises(ValueError, match="pooled is not a tap of a layer"):
        layer_of("pooled")


def test_which_lists_of_taps_are_whole():
    assert are_complete(THREE)
    for n in range(len(THREE)):
        if n != 3:  # without the last layer these are the taps of two layers
            assert not are_complete(THREE[:n] + THREE[n + 1 :])
    assert not are_complete(["embeddings", "final_layer_norm", "projected", "pooled"])
    assert not are_complete([*THREE, "pooled"])
    assert not are_complete([THREE[0], THREE[2], THREE[1], *THREE[3:]])
    assert not are_complete([*THREE[:3], "layers.02", *THREE[4:]])
    assert not are_complete([*THREE[:3], ["layers.2"], *THREE[4:]])
    assert not are_complete([])


def test_taps_that_not_every_layer_has_may_be_missing(more):
    whole = ["tokens", "embeddings", "layers.0", "layers.1.attention", "layers.1", "layers.2", *THREE[4:]]
    assert are_complete(whole)
    assert are_complete([tap for tap in whole if tap != "layers.1.attention"])
    assert not are_complete(whole[1:])
    assert not are_complete([*whole[:4], "layers.1.attention", *whole[4:]])


def test_no_other_module_names_a_tap():
    """A literal elsewhere would be a second place to edit. Words of people and keys of configs are others."""
    names = {point.name.partition("{i}")[0] for point in TAPS}
    literal = re.compile("|".join(f"{re.escape(name)}" if name.endswith(".") else f"{name}$" for name in names))
    found = []
    for room in ("parity", "commands", "report", "cli"):
        for path in (ROOT / "sam3lite_convert" / room).rglob("*.py"):
            if path.name == "taps.py":
                continue
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            texts = [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
            found += [f"{path.name}: {text}" for text in texts if literal.match(text)]
    assert found == []


# ---- encoders -----------------------------------------------------------------------------------


def test_a_module_that_is_missing_is_an_error():
    model = nn.ModuleDict({"text_encoder": nn.ModuleDict({"layers": nn.ModuleList([nn.Identity()])})})
    with pytest.raises(AttributeError, match="final_layer_norm"):
        tapped_modules(model, PACKED)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_sides_have_every_tap(layout, source, more):
    setup = compared(source, layout)
    layers = len(setup.reference.layers)
    attention = [i for i in range(layers) if f"layers.{i}.attention" in setup.reference.taps]
    assert attention == list(range(1, layers - 1))  # the first and the last are RepMixer blocks
    names = [n for i in range(layers) for n in ([ATTENTION.at(i)] if i in attention else []) + [LAYER.at(i)]]
    wanted = ("tokens", "embeddings", *names, "final_layer_norm", "projected", "pooled")
    assert setup.reference.taps == setup.candidate().taps == tuple(setup.recorded) == wanted


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_new_row_is_recorded_where_it_says(layout, source, more):
    setup = compared(source, layout)
    ids, found = setup.inputs.ids, setup.recorded
    model = setup.evidence.model.encoder
    with torch.inference_mode():
        assert torch.equal(found["tokens"], model.embedding_layer(ids))
        norm, attention = model.transformer[2].pre_norm_mha
        assert torch.equal(found["layers.2.attention"], attention(norm(found["layers.1"])))
    candidate = setup.candidate().record(ids)
    for tap, value in found.items():
        torch.testing.assert_close(candidate[tap], value, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_fault_behind_a_new_row_is_found_there_and_nowhere_else(layout, source, more):
    setup = compared(source, layout)
    key = target(setup, "3.pre_norm_mha.1.out_proj.bias")
    outcome = compare_encoders(setup, setup.candidate(setup.weights | {key: setup.weights[key] + 0.1}))
    judged = {t.name: t for t in outcome.judgement.taps}
    assert [tap for tap, t in judged.items() if t.diverges] == ["layers.3.attention"]
    assert not judged["layers.3"].within  # it is carried on
    found = diagnose(setup, outcome)
    assert found is not None and (found.tap, found.fits) == ("layers.3.attention", ())
    behind = {m.canonical for m in found.tensors}
    start = "backbone.language_backbone.encoder.transformer.3.pre_norm_mha."
    assert behind == {m.canonical for m in setup.plan.mapped.values() if m.canonical.startswith(start)} != set()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("leaf", "tap", "cause"),
    [
        ("3.pre_norm_mha.1.out_proj.bias", "layers.3.attention", "no_bias:pre_norm_mha.1.out_proj.bias"),
        ("3.pre_norm_mha.0.bias", "layers.3.attention", "no_bias:pre_norm_mha.0.bias"),
        ("3.pre_norm_ffn.4.bias", "layers.3", "no_bias:pre_norm_ffn.4.bias"),
    ],
)
def test_causes_known_for_a_layer_are_named_at_a_step_of_it_too(leaf, tap, cause, layout, source, more):
    setup = compared(source, layout)
    key = target(setup, leaf)
    outcome = compare_encoders(setup, setup.candidate(setup.weights | {key: 0 * setup.weights[key]}))
    found = diagnose(setup, outcome)
    assert found is not None and (found.tap, [fit.key for fit in found.fits][:1]) == (tap, [cause])
    assert not setup.evidence.model.encoder.transformer[3].pre_norm_mha[1].out_proj._forward_hooks


def test_a_tensor_of_another_layer_is_named_at_a_step_too(source, more):
    setup = compared(source, "packed")
    here, there = (target(setup, f"{i}.pre_norm_mha.1.out_proj.weight") for i in (3, 1))
    found = diagnose(setup, compare_encoders(setup, setup.candidate(setup.weights | {here: setup.weights[there]})))
    assert found is not None and found.tap == "layers.3.attention"
    assert found.fits[0].key == "layer:1:pre_norm_mha.1.out_proj.weight"


def test_the_self_test_takes_a_step_for_the_place_of_its_layer(source, more):
    trials = {trial.fault.cause: trial for trial in run_self_test(compared(source, "packed"))}
    trial = trials["transposed:out_proj"]
    assert (trial.fault.tap, trial.first_divergence, trial.outcome) == ("layers.3", "layers.3.attention", "found")
    assert trials["no_bias:pre_norm_ffn.4.bias"].first_divergence == "layers.3"
    # Scaled tokens do not come by the embedding of the reference, so nothing is said of them at its tap.
    missed = {cause for cause, trial in trials.items() if trial.outcome == "missed"}
    assert missed == {"scaled:sqrt", "scaled:rsqrt"}


def test_a_new_row_has_a_noise_floor(source, more):
    setup = compared(source, "packed")
    floors = noise_floor(setup.evidence.model, setup.recorded, setup.inputs.ids)
    assert tuple(floors) == setup.reference.taps
    assert floors["tokens"].propagated == 0.0  # rows of a table
    floor = floors["layers.3.attention"]
    assert 0 < floor.isolated < 1e-4 and 0 < floor.propagated < 1e-4
    layer = setup.evidence.model.encoder.transformer[3]
    norm, attention = (part.double() for part in layer.pre_norm_mha)
    with torch.inference_mode():
        exact = attention(norm(setup.recorded["layers.2"].double()))
    made = (setup.recorded["layers.3.attention"].double() - exact).abs().max()
    assert floor.isolated == pytest.approx(float(made), rel=1e-9)


# ---- the noise floor ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_floors_are_those_of_the_whole_model_in_float64(dtype, source):
    setup = compared(source, "packed", dtype=dtype)
    ids, recorded = setup.inputs.ids, setup.recorded
    floors = noise_floor(setup.evidence.model, recorded, ids)
    exact = wrap_reference(copy.deepcopy(setup.evidence.model).double()).record(ids)
    for tap, value in recorded.items():
        difference = (value.double() - exact[tap]).abs()
        assert exact[tap].dtype == torch.float64
        assert floors[tap].propagated == float(difference.max())
        assert floors[tap].mean_propagated == pytest.approx(float(difference.flatten(1).mean(1).max()), rel=1e-9)
    assert max(f.propagated for f in floors.values()) > 0


def test_measuring_leaves_the_reference_as_it_was_even_if_it_fails(source, monkeypatch):
    setup = compared(source, "packed")
    model = setup.evidence.model
    held = {name: (t.data_ptr(), t.dtype, t.clone()) for name, t in model.state_dict().items()}

    def unchanged() -> bool:
        now = model.state_dict()
        hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
        same = all((now[k].data_ptr(), now[k].dtype) == h[:2] and torch.equal(now[k], h[2]) for k, h in held.items())
        return same and not hooks

    noise_floor(model, setup.recorded, setup.inputs.ids)
    assert unchanged()

    def fails(*args: object) -> None:
        raise RuntimeError("in the middle of a module")

    monkeypatch.setattr(model.encoder.transformer[2].pre_norm_ffn[1], "forward", fails)
    with pytest.raises(RuntimeError, match="in the middle"):
        noise_floor(model, setup.recorded, setup.inputs.ids)
    assert unchanged()


# ---- what reads it ------------------------------------------------------------------------------


def test_a_row_that_the_detector_does_not_read_is_held_to_its_floor(source, monkeypatch):
    """The verdict follows from the flag and not from a name."""
    setup = compared(source, "packed")
    candidate = setup.candidate()
    floors = noise_floor(setup.evidence.model, setup.recorded, setup.inputs.ids)
    tiny = FLOORS * floors["projected"].propagated / 8

    def run(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        projected, pooled = candidate.run(ids)
        off = torch.zeros_like(projected)
        off[0, 0, 0] = tiny
        return projected + off, pooled

    moved = dataclasses.replace(candidate, run=run)
    before = compare_encoders(setup, moved).judgement
    assert (before.verdict, before.first_divergence) == ("within_tolerance", None)
    assert [t.read_by_detector for t in before.record().layers][-2:] == [True, False]
    unread = dataclasses.replace(taps.PROJECTED, read_by_detector=False)
    monkeypatch.setattr(taps, "_BY_NAME", taps._BY_NAME | {"projected": unread})
    monkeypatch.setattr(encoders, "OUTPUTS", (unread, taps.POOLED))
    assert compare_encoders(setup, moved).judgement.verdict == "exact"


# ---- names in files of others -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tap"),
    [
        ("layers.0", "layers.0"), ("layers_11", "layers.11"), ("layers/3", "layers.3"), ("layers-03", "layers.3"),
        ("final_layer_norm", "final_layer_norm"), ("final-layer-norm", "final_layer_norm"), ("pooled", "pooled"),
        ("layers", None), ("layers.0.weight", None), ("text_encoder.layers.0", None), ("layers.x", None),
        ("Layers.0", None), ("pooled2", None), ("", None), ("layers.99999", None),
    ],
)  # fmt: skip
def test_names_of_taps_in_files_of_others(name, tap):
    assert spelled(name) == tap


def test_a_new_row_is_found_in_files_of_others_too(more):
    assert spelled("layers_2_attention") == "layers.2.attention" and spelled("tokens") == "tokens"


def test_every_row_says_what_it_is():
    assert all(len(point.what.split()) > 3 for point in TAPS)
