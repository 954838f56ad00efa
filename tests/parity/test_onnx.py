"""A graph as the candidate of parity: beside the original's own activations, and with faults put into it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import onnx
import pytest
import torch
from onnx import helper
from support import clip_goldens, clip_runs
from support.folders import POSITIONS, convert, receipt, write, write_safetensors
from support.goldens import ATOL, golden
from support.graph_faults import GraphFault, bypass, set_attribute, text_faults
from support.graphs import put, text_graph
from support.parity_runs import state_of
from support.recipe import draw
from support.rows import TEXT, key_list, source_rows

from sam3lite_convert.checkpoint.reader import read_checkpoint
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.parity import onnx_session
from sam3lite_convert.parity.compared_graph import FoundGraph, beside_own
from sam3lite_convert.parity.graph_encoder import graph_encoder
from sam3lite_convert.parity.onnx_session import OnnxRuntime, OnnxSession
from sam3lite_convert.parity.openvino_session import OpenvinoRuntime
from sam3lite_convert.parity.run import compare_encoders, diagnosis, notes
from sam3lite_convert.parity.runtime import RuntimeChoice
from sam3lite_convert.parity.setup import ParityOptions, set_up
from sam3lite_convert.plan.tables import load_mappings

# ---- beside the activations of the real original


GOLDENS = [
    ("tiny_mct", "", "packed"), ("tiny_mct", "", "transformers"), ("tiny_base", "", "packed"),
    ("tiny_mct_eps", "end_padded.", "transformers"), ("tiny_mct_eps", "", "packed"), ("tiny_base", "", "transformers"),
    ("tiny_base_causal", "", "packed"), ("tiny_mct_eps", "end_padded.", "packed"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "run", "layout"), GOLDENS)
def test_every_activation_of_a_graph_is_the_originals(name, run, layout, tmp_path):
    of = golden(name)
    checkpoint = write_safetensors(tmp_path, {k: t for k, t in of.tensors.items() if k.startswith("detector.")})
    options = ["--causal"] if of.cfg["causal_masking"] else []
    folder = convert(checkpoint, tmp_path / layout, "--layout", layout, "--component", "text", *options)
    model, ids, wanted = text_graph(folder), of.ids(run), of.activations(run)
    for runtime in (OnnxRuntime(), OnnxRuntime(optimised=False), OpenvinoRuntime()):
        encoder = graph_encoder(model, folder, runtime, ids, wanted)
        for found in (encoder.record(ids), encoder.record(ids, wanted)):
            assert found.keys() == wanted.keys()
            for tap, tensor in wanted.items():
                torch.testing.assert_close(found[tap], tensor, atol=ATOL, rtol=0, msg=lambda m, t=tap: f"{t}: {m}")


@pytest.mark.stress
@pytest.mark.parametrize("name", ["s0_ctx16", "s0_ctx32", "s1_ctx16", "l_ctx16"])
def test_every_activation_of_a_full_size_graph_is_the_originals(name, tmp_path):
    of = golden(name)
    rows = source_rows(name.partition("_")[0])
    state = {k: draw(k, *row) for k, row in rows.items() if k.startswith(TEXT)}
    context = of.cfg["context_length"]
    state[POSITIONS] = draw(POSITIONS, "float32", (1, 1, context, of.cfg["dim"]))
    folder = convert(write_safetensors(tmp_path, state), tmp_path / "out", "--component", "text")
    ids, wanted = of.ids(), of.activations()
    encoder = graph_encoder(text_graph(folder), folder, OnnxRuntime(), ids, wanted)
    for found in (encoder.record(ids), encoder.record(ids, wanted)):
        assert found.keys() == wanted.keys()
        for tap, tensor in wanted.items():
            torch.testing.assert_close(found[tap], tensor, atol=ATOL, rtol=0, msg=lambda m, t=tap: f"{t}: {m}")


SAM3_RUNS = [
    ("", "transformers"), ("short.", "original"),
    pytest.param("short.", "transformers", marks=pytest.mark.stress),
    pytest.param("", "original", marks=pytest.mark.stress),
]  # fmt: skip


@pytest.mark.parametrize(("run", "layout"), SAM3_RUNS)
def test_every_activation_of_a_graph_of_sam3s_own_is_the_originals(run, layout, tmp_path):
    of = golden(clip_goldens.TINY)
    checkpoint = write_safetensors(tmp_path, {k: t for k, t in of.tensors.items() if k.startswith("detector.")})
    ids, wanted = of.ids(run), of.activations(run)
    context = ("--context", ids.shape[1])
    folder = convert(checkpoint, tmp_path / layout, "--layout", layout, "--component", "text", *context)
    # No weight tells the heads, which are narrower here than in any released model.
    said = receipt(folder)
    said["architecture"]["num_attention_heads"] = of.cfg["heads"]
    (folder / "conversion.json").write_text(json.dumps(said))
    every, padding = wanted.pop("pooled_all_tokens"), wanted.pop("mask")
    wanted["pooled"] = torch.stack([rows[row.index(95)] for rows, row in zip(every, ids.tolist(), strict=True)])
    model = text_graph(folder)
    for runtime in (OnnxRuntime(), OnnxRuntime(optimised=False), OpenvinoRuntime()):
        encoder = graph_encoder(model, folder, runtime, ids, wanted)
        for found in (encoder.record(ids), encoder.record(ids, wanted)):
            assert found.keys() == wanted.keys()
            for tap, tensor in wanted.items():
                torch.testing.assert_close(found[tap], tensor, atol=2e-5, rtol=0, msg=lambda m, t=tap: f"{t}: {m}")
        mask = runtime.load(model, folder).run({"input_ids": ids})["text_mask"]
        assert torch.equal(mask.bool(), padding == 0)


@pytest.mark.stress
def test_every_activation_of_a_full_size_graph_of_sam3s_own_is_the_originals(tmp_path):
    of, shapes = clip_goldens.full_size()
    rows = {k: row for k, row in key_list("sam3_teacher").items() if k.startswith(TEXT)}
    checkpoint = write_safetensors(tmp_path, {k: draw(k, *row) for k, row in rows.items()})
    folder = convert(checkpoint, tmp_path / "out", "--component", "text", "--layout", "transformers")
    taps = {tap: torch.empty(shape) for tap, (shape, _) in shapes.items() if tap not in ("pooled_all_tokens", "mask")}
    encoder = graph_encoder(text_graph(folder), folder, OnnxRuntime(), of.ids(), taps)
    off = clip_goldens.sampled_distances(encoder.record(of.ids()))
    assert off.keys() == taps.keys() and max(off.values()) < ATOL, off


# ---- faults


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """(kind, layout, further options of convert) -> the comparison of its right graph."""
    made = {}

    def of(kind: str = "s0", layout: str = "packed", *options: str):
        if (kind, layout, options) not in made:
            root = tmp_path_factory.mktemp("graph")
            checkpoint = write(root, clip_runs.state_of() if kind == "teacher" else state_of(kind))
            folder = put(convert(checkpoint, root / "out", "--layout", layout, "--component", "text", *options))
            asked = ParityOptions(seed=3, batch=4, causal="--causal" in options, runtime=RuntimeChoice("onnx"))
            made[kind, layout, options] = set_up(read_checkpoint(checkpoint), load_mappings(), asked, folder)
        return made[kind, layout, options]

    return of


def with_graph(setup, model: onnx.ModelProto):
    """The same comparison with another graph in the place of the folder's."""
    folder, runtime = setup.folder, setup.graph.encoder.runtime
    encoder = graph_encoder(model, folder.path, runtime, setup.inputs.ids, setup.recorded)
    found = FoundGraph(Path("model.onnx"), model, "", setup.graph.found.dtype)
    graph = beside_own(found, folder, load_mappings(), encoder)
    return replace(setup, graph=graph, notes=(*setup.notes, *graph.notes))


def outcome_of(setup):
    return compare_encoders(setup, setup.compared())


def assert_found(setup, fault: GraphFault) -> None:
    """In its layer, by its node, and by its cause where the diagnosis knows one."""
    spoiled = with_graph(setup, fault.put_into(setup.graph.found.model))
    told = diagnosis(spoiled, outcome_of(spoiled))
    assert told is not None, fault.words
    assert told.tap == fault.tap, (fault.words, told.tap)
    assert fault.named in {d.name for d in told.graph}, (fault.words, told.graph)
    assert fault.named in told.cause and len(told.graph) <= 3, (fault.words, told)
    if fault.cause:
        assert told.fits and told.fits[0].key == fault.cause, (fault.words, told.fits)


QUICK = {
    "s0": {"q and k are swapped", "layer_scale is missing", "LayerNorm at eps 1e-6", "the wrong token is picked"},
    "teacher": {"q and k are swapped", "the causal mask is missing"},
}
FAULTY = [
    ("s0", "packed"), ("s0", "transformers"), ("base", "packed"), ("s0-lite", "transformers"),
    ("teacher", "transformers"), ("teacher", "original"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "layout"), [("s0", "packed"), ("teacher", "transformers")])
def test_a_fault_put_into_a_graph_is_found_in_its_layer_and_named(compared, kind, layout):
    setup = compared(kind, layout)
    tried = [f for f in text_faults(setup.graph.found.model, setup.inputs.ids.shape[1]) if f.words in QUICK[kind]]
    assert len(tried) == len(QUICK[kind])
    for fault in tried:
        assert_found(setup, fault)


@pytest.mark.stress
@pytest.mark.parametrize("runtime", [OnnxRuntime, partial(OnnxRuntime, optimised=False), OpenvinoRuntime])
@pytest.mark.parametrize(("kind", "layout"), FAULTY)
def test_every_fault_put_into_a_graph_is_found_in_its_layer_and_named(compared, kind, layout, runtime):
    setup = compared(kind, layout)
    encoder = replace(setup.graph.encoder, runtime=runtime())
    setup = replace(setup, graph=replace(setup.graph, encoder=encoder))
    tried = list(text_faults(setup.graph.found.model, setup.inputs.ids.shape[1]))
    assert len(tried) >= 14
    for fault in tried:
        assert_found(setup, fault)


def test_a_fault_that_a_runtime_makes_is_found_without_a_difference_of_graphs(compared):
    """A runtime that computes one node wrongly: the tap is named, and the graph is said to be ours."""

    class Wrong(OnnxRuntime):
        def load(self, model, folder):
            copy = onnx.ModelProto()
            copy.CopyFrom(model)
            if any(n.name == "layers.2.norm1" for n in copy.graph.node):
                bypass("layers.2.norm1")(copy)
            return super().load(copy, folder)

    setup = compared()
    encoder = replace(setup.graph.encoder, runtime=Wrong())
    setup = replace(setup, graph=replace(setup.graph, encoder=encoder))
    told = diagnosis(setup, outcome_of(setup))
    assert (told.tap, told.graph) == ("layers.2", ()) and "In the graph" not in told.cause


def test_it_is_said_if_outputs_for_the_taps_change_what_the_graph_computes(compared):
    class Fusing(OnnxRuntime):
        def load(self, model, folder):
            copy = onnx.ModelProto()
            copy.CopyFrom(model)
            if len(copy.graph.output) == 3:  # the graph as it is
                set_attribute("layers.4.gelu", approximate="tanh")(copy)
            return super().load(copy, folder)

    setup = compared()
    right = notes(setup, outcome_of(setup))
    assert not [note for note in right if "rewrites the two" in note]
    encoder = replace(setup.graph.encoder, runtime=Fusing(), moved={})
    setup = replace(setup, graph=replace(setup.graph, encoder=encoder))
    outcome = outcome_of(setup)
    assert [note for note in notes(setup, outcome) if note.startswith("projected of the graph as it lies in its file")]
    assert outcome.judgement.verdict == "differs"  # what users run is what is judged


def test_a_graph_that_names_its_taps_as_outputs_is_ours_too(compared):
    setup = compared()
    setup = with_graph(setup, text_graph(setup.folder.path, taps=True))
    assert setup.graph.differences == ()
    outcome = outcome_of(setup)
    assert outcome.judgement.verdict == "within_tolerance" and setup.graph.encoder.moved == {}


def test_inputs_that_are_not_ids_are_refused(compared):
    setup = compared()
    for spoil, says in (
        (lambda m: m.graph.input.append(helper.make_tensor_value_info("mask", 9, ["batch", 16])), "input_ids, mask"),
        (lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 1), "token ids alone"),
    ):
        model = onnx.ModelProto()
        model.CopyFrom(setup.graph.found.model)
        spoil(model)
        with pytest.raises(CannotRun, match=says):
            with_graph(setup, model)


def test_rows_of_a_fixed_batch_are_run_in_parts(compared):
    setup = compared()
    model = onnx.ModelProto()
    model.CopyFrom(setup.graph.found.model)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        value.type.tensor_type.shape.dim[0].dim_value = 3
    spoiled = with_graph(setup, model)
    right, found = setup.compared(), spoiled.compared()
    for fed in (None, setup.recorded):
        wanted, made = right.record(setup.inputs.ids, fed), found.record(setup.inputs.ids, fed)
        for tap, tensor in wanted.items():
            torch.testing.assert_close(made[tap], tensor, atol=1e-6, rtol=0)


def test_metadata_that_is_not_true_is_not_believed(compared):
    """Taps that name no value, or the value of another tap."""
    setup = compared()
    model = onnx.ModelProto()
    model.CopyFrom(setup.graph.found.model)
    entry = next(e for e in model.metadata_props if e.key == "taps")
    taps = json.loads(entry.value)
    entry.value = json.dumps(taps | {"layers.1": "nothing", "layers.3": taps["layers.2"], "more": "text_mask"})
    outcome = outcome_of(with_graph(setup, model))
    assert outcome.judgement.not_given == ("layers.1",)
    assert outcome.judgement.first_divergence == "layers.3"
    entry.value = "[" * 100_000
    outcome = outcome_of(with_graph(setup, model))
    assert list(outcome.recorded) == ["projected", "pooled"]


def test_a_tap_whose_type_is_not_stated_is_not_compared(compared):
    setup = compared()
    model = onnx.ModelProto()
    model.CopyFrom(setup.graph.found.model)
    del model.graph.value_info[:]
    model.graph.output.pop()
    outcome = outcome_of(with_graph(setup, model))
    assert list(outcome.recorded) == ["projected"] and len(outcome.judgement.not_given) == 9


def test_a_provider_that_runs_nothing_is_not_said_to_have_run(compared):
    setup = compared()
    with pytest.raises(CannotRun, match=r"AzureExecutionProvider: it runs no node .*; CPUExecutionProvider runs all"):
        record_with(setup, OnnxRuntime("AzureExecutionProvider"))


def test_nodes_that_a_provider_leaves_to_another_are_counted(compared, monkeypatch):
    """As where OpenVINO or CUDA runs some nodes and the processor the others."""
    ran = Counter({"AzureExecutionProvider": 9, "CPUExecutionProvider": 3})
    monkeypatch.setattr(onnx_session, "_nodes_of", lambda profile: ran)
    encoder = record_with(compared(), OnnxRuntime("AzureExecutionProvider"))
    # Of two sessions: the graph as it is, and with its taps as outputs.
    assert encoder.name.endswith("(AzureExecutionProvider; CPUExecutionProvider ran 6 of 24 nodes)")


def test_a_profile_tells_what_ran_the_nodes(compared, tmp_path):
    setup = compared()
    found = []
    model, folder = setup.graph.found.model, setup.folder.path
    session = OnnxSession(model, folder, False, "AzureExecutionProvider", found.append)
    for _ in range(2):
        session.run({"input_ids": setup.inputs.ids})
    assert found == [Counter({"CPUExecutionProvider": len(model.graph.node)})]


def record_with(setup, runtime):
    """A graph's activations in another runtime; returns the encoder."""
    encoder = replace(setup.graph.encoder, runtime=runtime)
    for kept in ("_plain", "_tapped"):
        encoder.__dict__.pop(kept, None)
    encoder.record(setup.inputs.ids)
    return encoder
