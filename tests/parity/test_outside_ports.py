"""Ports that share no code with us: each fault made in one is named in its layer, and no right one is suspected.

The port is ``support.plain_port``; it is judged through the library, by its activations alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import goldens
from support.folders import tiny_architecture, write_safetensors
from support.plain_port import FAULTS, VARIATIONS, run_port
from torch import Tensor

import sam3lite_convert as s3
from original_ref import load_reference
from sam3lite_convert.parity.faults.evidence import Evidence
from sam3lite_convert.parity.faults.hypotheses import explain
from sam3lite_convert.parity.original import wrap_reference
from sam3lite_convert.plan import synthetic

# Square matrices everywhere, so that each may be transposed, and more than one head.
SIZES = {"text_hidden": 128, "text_heads": 2, "projection_dim": 128, "output_dim": 128, "vocab": 128}
START, END = 126, 127
# Rows that end at different positions; none ends at the last one. The table has 16 rows.
WORDS = [[5, 17, 99], [3, 3, 8, 120, 64, 31, 7], [44], [9, 81, 2, 2, 50]]
LENGTHS = {"": 16, "short": 10, "length": 10, "long": 24}

State = dict[str, Tensor]


def ids_of(length: int) -> Tensor:
    rows = [[START, *words, END] for words in WORDS]
    return torch.tensor([row + [0] * (length - len(row)) for row in rows])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("outside_ports")


@pytest.fixture(scope="module")
def states() -> dict[str, State]:
    """kind -> weights by the original's keys; never changed in place."""
    base = {"model_name": "base", "transformer_layers": 3}
    kinds: dict[str, dict[str, Any]] = {"mct": {}, "base": base}
    return {
        kind: synthetic.state_dict(tiny_architecture(**(SIZES | sizes)), text_only=True)
        for kind, sizes in kinds.items()
    }


@pytest.fixture(scope="module")
def checkpoints(root, states) -> dict[str, s3.OpenCheckpoint]:
    def opened(kind: str) -> s3.OpenCheckpoint:
        (root / kind).mkdir()
        path: Path = write_safetensors(root / kind, states[kind])
        return s3.open_checkpoint(path)

    return {kind: opened(kind) for kind in states}


@pytest.fixture
def judged(checkpoints):
    def judge(kind: str, taps: State, ids: Tensor, **options: Any) -> Any:
        return s3.judge_activations(taps, checkpoints[kind], ids=ids, name="a port", **options)

    return judge


def test_the_port_computes_what_the_original_computed():
    for name, runs in goldens.RUNS.items():
        of = goldens.golden(name)
        for run in runs:
            heads, causal = of.cfg["n_heads_per_layer"], of.cfg["causal_masking"]
            found = run_port(of.weights(), of.ids(run), heads, causal=causal)
            wanted = of.activations(run)
            assert goldens.furthest(found, wanted) < 2e-5, (name, run)


# ---- faults


def named(doc: Any, causes: set[str]) -> bool:
    """Whether one of the causes is the closest, or one of several that fit as well."""
    return bool(causes & {fit.key for fit in doc.diagnosis.fits if fit.likely})


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.needs != "cut"])
def test_a_fault_is_named_in_its_layer(name, states, judged):
    """Made in every layer that can have it, in float64, so that the rounding is another one everywhere."""
    fault = FAULTS[name]
    kind = "base" if fault.part == "transformer" else "mct"
    ids = ids_of(LENGTHS.get(fault.needs, 16))
    doc = judged(kind, run_port(states[kind], ids, fault=name, variation="float64, rounded"), ids)
    assert (doc.judgement.verdict, doc.judgement.first_divergence) == ("differs", fault.tap(states[kind]))
    # Behind it nothing is known, unless it is so small that the last block's input agrees again.
    assert doc.judgement.also_diverging in ((), ("layers.5",) if fault.part == "repmixer" else ())
    assert named(doc, {cause.format(heads=4) for cause in fault.causes}), doc.diagnosis


def test_a_table_that_is_read_in_full_is_named(states):
    """The original keeps the first 16 of 24 rows; the port stretches all of them."""
    ids, state = ids_of(16), states["mct"]
    (key,) = [k for k in state if k.endswith("pos_embed.pos_embed")]
    longer = torch.cat([state[key], state[key].flip(2)[:, :, :8]], 2)
    port = run_port(state | {key: longer}, ids, fault="positions stretched", context=16)
    assert torch.equal(run_port(state | {key: longer}, ids, context=16)["projected"], run_port(state, ids)["projected"])
    stripped = {k.partition("language_backbone.")[2]: t for k, t in state.items()}
    cfg = {"dim": 128, "n_heads_per_layer": 2, "n_transformer_layers": 4, "ffn_multiplier_per_layer": 2.0}
    model = load_reference(cfg | {"vocab_size": 128, "context_length": 16, "model_name": "mct"}, stripped)
    recorded = wrap_reference(model).record(ids)
    fits = explain(Evidence(model, recorded, ids, longer), "embeddings", port["embeddings"], 1e-6, propagated=True)
    assert [fit.key for fit in fits] == list(FAULTS["positions stretched"].causes)


@pytest.mark.stress
@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.part in ("layer", "transformer")])
def test_a_fault_in_one_late_layer_is_named_behind_the_rounding_of_all_before(name, states, judged):
    ids = ids_of(16)
    doc = judged("mct", run_port(states["mct"], ids, variation="LayerNorm by hand", faults_in={name: [3]}), ids)
    assert (doc.judgement.verdict, doc.judgement.first_divergence) == ("differs", "layers.3")
    assert named(doc, {cause.format(heads=4) for cause in FAULTS[name].causes}), doc.diagnosis


@pytest.mark.parametrize(
    ("first", "tap", "second", "layer"),
    [
        ("tanh GELU", 0, "no attention scale", 3),
        ("q and k swapped", 1, "no out_proj bias", 4),
        ("no FFN residual", 2, "no layer scale", 5),
    ],
)
def test_of_two_faults_the_first_is_named_and_nothing_is_said_of_the_second(first, tap, second, layer, states, judged):
    ids = ids_of(16)
    doc = judged("mct", run_port(states["mct"], ids, faults_in={first: [tap], second: [layer]}), ids)
    assert doc.judgement.first_divergence == f"layers.{tap}"
    assert doc.judgement.also_diverging == ()
    assert named(doc, set(FAULTS[first].causes))
    assert not any(fit.key in FAULTS[second].causes for fit in doc.diagnosis.fits)
    status = {t.name: t.status for t in doc.judgement.layers}
    later = list(status)[list(status).index(f"layers.{tap}") + 1 :]
    assert {status[tap] for tap in later} == {"unknown"}


def test_two_faults_in_one_layer_are_not_taken_for_one(states, judged):
    ids = ids_of(16)
    both = {"ReLU": [3], "no attention residual": [3]}
    doc = judged("mct", run_port(states["mct"], ids, faults_in=both), ids)
    assert (doc.judgement.first_divergence, doc.diagnosis.fits) == ("layers.3", ())
    assert "no known fault explains it" in doc.diagnosis.cause


def test_where_two_faults_fit_equally_both_are_named(states, judged):
    """Padded with the end id, the last of several greatest ids is the last position."""
    ids = ids_of(16)
    ids = ids.where(ids != 0, END)
    doc = judged("mct", run_port(states["mct"], ids, fault="pooled at the last position"), ids)
    likely = [fit for fit in doc.diagnosis.fits if fit.likely]
    assert {fit.key for fit in likely} == {"pool_last", "argmax_last"}
    assert doc.diagnosis.cause == "; or ".join(fit.cause for fit in likely)


def test_a_fault_is_named_in_half_precision(states, judged):
    ids = ids_of(16)
    state = {k: t.bfloat16() if t.is_floating_point() else t for k, t in states["mct"].items()}
    for name, tap in (("no layer scales", "layers.0"), ("post-norm", "layers.1"), ("mean pooled", "pooled")):
        doc = judged("mct", run_port(state, ids, fault=name), ids)
        assert doc.judgement.first_divergence == tap
        assert named(doc, set(FAULTS[name].causes)), (name, doc.diagnosis)


# ---- right ports


@pytest.mark.parametrize("variation", [None, *VARIATIONS])
def test_a_right_port_is_not_suspected(variation, states, judged):
    for kind, length in (("mct", 16), ("base", 10 if variation != "positions by hand" else 24)):
        ids = ids_of(length)
        doc = judged(kind, run_port(states[kind], ids, variation=variation), ids)
        assert doc.judgement.verdict in ("exact", "within_tolerance"), (kind, doc.judgement.summary)
        assert doc.diagnosis is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_right_port_in_half_precision_is_not_suspected(dtype, states, judged):
    ids = ids_of(16)
    state = {k: t.to(dtype) if t.is_floating_point() else t for k, t in states["mct"].items()}
    for variation in (None, "sdpa", "scores scaled", "row by row", "pointwise as linear"):
        doc = judged("mct", run_port(state, ids, variation=variation), ids)
        assert doc.judgement.verdict in ("exact", "within_tolerance"), (variation, doc.judgement.summary)


def test_the_variations_do_compute_in_other_ways(states):
    """At least 20 of them give other bits, so that the tolerances are tried."""
    ids = ids_of(10)
    plain = run_port(states["mct"], ids)
    other = [
        name
        for name in VARIATIONS
        if not all(torch.equal(plain[t], v) for t, v in run_port(states["mct"], ids, variation=name).items())
    ]
    assert len(other) >= 20, sorted(set(VARIATIONS) - set(other))
