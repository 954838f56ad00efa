"""A graph as the candidate of parity: beside the original's own activations, and with faults put into it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from onnx import helper
from support.folders import LAYOUTS, convert, write, write_safetensors
from support.goldens import ATOL, golden
from support.graph_faults import GraphFault, bypass, initializer, maker, set_attribute, text_faults
from support.graphs import put, text_graph
from support.parity_runs import state_of

from sam3lite_convert.checkpoint.reader import read_checkpoint
from sam3lite_convert.errors import CannotRun, Untrusted
from sam3lite_convert.parity.compared_graph import FoundGraph, beside_own
from sam3lite_convert.parity.graph_encoder import graph_encoder
from sam3lite_convert.parity.onnx_session import OnnxRuntime
from sam3lite_convert.parity.run import compare_encoders, diagnosis, notes
from sam3lite_convert.parity.runtime import RuntimeChoice
from sam3lite_convert.parity.setup import ParityOptions, set_up
from sam3lite_convert.plan.tables import load_mappings

# ---- beside the activations of the real original


GOLDENS = [
    ("tiny_mct", "", "packed"), ("tiny_mct_eps", "end_padded.", "transformers"), ("tiny_base_causal", "", "packed"),
    ("tiny_mct", "", "transformers"), ("tiny_mct_eps", "", "packed"), ("tiny_base", "", "transformers"),
    ("tiny_base", "", "packed"), ("tiny_mct_eps", "end_padded.", "packed"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "run", "layout"), GOLDENS)
def test_every_activation_of_a_graph_is_the_originals(name, run, layout, tmp_path):
    of = golden(name)
    checkpoint = write_safetensors(tmp_path, {k: t for k, t in of.tensors.items() if k.startswith("detector.")})
    options = ["--causal"] if of.cfg["causal_masking"] else []
    folder = convert(checkpoint, tmp_path / layout, "--layout", layout, "--component", "text", *options)
    model, ids, wanted = text_graph(folder), of.ids(run), of.activations(run)
    for optimised in (True, False):
        encoder = graph_encoder(model, folder, OnnxRuntime(optimised=optimised), ids, wanted)
        for found in (encoder.record(ids), encoder.record(ids, wanted)):
            assert found.keys() == wanted.keys()
            for tap, tensor in wanted.items():
                torch.testing.assert_close(found[tap], tensor, atol=ATOL, rtol=0, msg=lambda m, t=tap: f"{t}: {m}")


# ---- faults


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """(kind, layout, further options of convert) -> the comparison of its right graph."""
    made = {}

    def of(kind: str = "s0", layout: str = "packed", *options: str):
        if (kind, layout, options) not in made:
            root = tmp_path_factory.mktemp("graph")
            checkpoint = write(root, state_of(kind))
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


QUICK = {"q and k are swapped", "layer_scale is missing", "LayerNorm at eps 1e-6", "the wrong token is picked"}
FAULTY = [("s0", "packed"), ("s0", "transformers"), ("base", "packed"), ("s0-lite", "transformers")]


def test_a_fault_put_into_a_graph_is_found_in_its_layer_and_named(compared):
    setup = compared()
    tried = [f for f in text_faults(setup.graph.found.model, 16) if f.words in QUICK]
    assert len(tried) == len(QUICK)
    for fault in tried:
        assert_found(setup, fault)


@pytest.mark.stress
@pytest.mark.parametrize("optimised", [True, False])
@pytest.mark.parametrize(("kind", "layout"), FAULTY)
def test_every_fault_put_into_a_graph_is_found_in_its_layer_and_named(compared, kind, layout, optimised):
    setup = compared(kind, layout)
    encoder = replace(setup.graph.encoder, runtime=OnnxRuntime(optimised=optimised))
    setup = replace(setup, graph=replace(setup.graph, encoder=encoder))
    tried = list(text_faults(setup.graph.found.model, 16))
    assert len(tried) >= 14
    for fault in tried:
        assert_found(setup, fault)
