"""``sam3lite export onnx --quantize``: the file, what is said of its loss, the budget, the prompts."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import onnx
import onnxruntime
import pytest
import torch
from support.folders import convert, receipt, sam3lite, snapshot, tiny_architecture, tiny_state, verify, write

from sam3lite_convert.convert.card import model_card
from sam3lite_convert.figures import human_bytes
from sam3lite_convert.parity.onnx_session import OnnxSession
from sam3lite_convert.plan import synthetic
from sam3lite_convert.records.receipt import Receipt


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A text encoder with CLIP's vocabulary, so that prompts can be run."""
    place = tmp_path_factory.mktemp("export")
    state = synthetic.state_dict(tiny_architecture(vocab=49408, text_hidden=64, text_heads=1), text_only=True)
    return convert(write(place, state), place / "out", "--component", "text", "--verify")


@pytest.fixture(scope="module")
def done(folder):
    return sam3lite("export", "onnx", folder, "--quantize", "int8-all", "--json")


def test_the_quantised_file_stands_alone_and_carries_its_loss(folder, done, tmp_path):
    assert done.code == 0, done  # over the default budget, which is only said
    record = done.json
    (made,) = record["quantized"]
    loss = made["loss"]
    assert (made["name"], made["of"], made["method"]) == ("model.int8-all.onnx", "model.onnx", "int8-all")
    assert record["within_budget"] is False and loss["first_over_budget"] == "embeddings"
    assert loss["random_weights"] is True and loss["rows"] == 1000
    assert loss["inputs"] == "1,000 built-in noun phrases"
    held = snapshot(folder)
    assert made["sha256"] == held[made["name"]] and made["size"] == (folder / made["name"]).stat().st_size
    assert not [name for name in held if name.startswith(".")]
    assert loss["unquantised_bytes"] > 2.5 * made["size"] > 2.5 * loss["bytes"] - 1
    shutil.copy(folder / made["name"], tmp_path)
    model = onnx.load(tmp_path / made["name"])
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(said["loss"]) == loss
    assert json.loads(said["quantized"])["graph"] == held["model.onnx"] == record["graphs"][0]["sha256"]
    assert json.loads(said["weights"]) == {"model.safetensors": held["model.safetensors"]}
    assert receipt(folder)["beside"][made["name"]] == made["sha256"]
    ids = torch.tensor([[49406, 736, 2368, 49407] + [0] * 12])
    alone = OnnxSession(model, tmp_path).run({"input_ids": ids})
    beside = OnnxSession(onnx.load(folder / "model.onnx", load_external_data=False), folder).run({"input_ids": ids})
    for name in ("text_features", "pooled"):
        off = (alone[name] - beside[name]).norm() / beside[name].norm()
        assert 1e-4 < off < 0.1
    assert torch.equal(alone["text_mask"], beside["text_mask"])


def test_a_budget_that_was_given_decides_the_exit_code_and_a_terminal_shows_a_table(folder, tmp_path):
    copy, prompts = shutil.copytree(folder, tmp_path / "copy"), tmp_path / "prompts.txt"
    prompts.write_text("a red bus\nA red  bus\n\na dog on a sofa\nthree cats\n")
    words = ("export", "onnx", copy, "--quantize", "int8", "--prompts-file", prompts)
    over = sam3lite(*words, "--budget", "1e-6", "--json")
    assert (over.code, over.json["within_budget"]) == (1, False)
    assert (copy / "model.int8.onnx").exists()  # the measured file may be looked at
    within = sam3lite(*words, "--budget", "0.5", "--taps")
    assert within.code == 0, within
    for said in (
        "against model.onnx, on 3 prompts, without 1 whose ids are another's",
        "every tap is within the budget of 0.5 (relative L2)",
        "the weights look random: this tells nothing about trained ones",
        *("final_layer_norm", "layers.5", "x as fast here", "% of 3 (pooled output)", "with its weights: 1."),
    ):
        assert said in within.out
    outputs = {value.name for value in onnx.load(copy / "model.int8.onnx").graph.output}
    assert {"embeddings", "layers.3", "text_features"} <= outputs


def rows(folder):
    """The claims of a card by file, with what shows each."""
    lines = (folder / "README.md").read_text().splitlines()
    return [tuple(line.strip("| ").split(" | ")) for line in lines if line.startswith("| ") and " | `sam3lite " in line]


def test_the_card_claims_of_it_what_was_measured_and_nothing_more(folder, done):
    card, loss = (folder / "README.md").read_text(), done.json["quantized"][0]["loss"]
    of_it = [(claim, shown.strip("`")) for claim, shown in rows(folder) if claim.startswith("`model.int8-all.onnx`")]
    assert [shown.split(" . ")[0] for _, shown in of_it] == ["sam3lite verify", *["sam3lite export onnx"] * 3]
    assert {shown for _, shown in of_it[1:]} == {"sam3lite export onnx . --quantize int8-all"}
    claims = [claim for claim, _ in of_it]
    assert f"onnxruntime {onnxruntime.__version__} makes of `model.onnx`" in claims[0]
    assert human_bytes(loss["bytes"]) in claims[1] and human_bytes(loss["unquantised_bytes"]) in claims[1]
    worst = max(loss["taps"], key=lambda tap: tap["relative_l2"])
    assert f"relative L2 {worst['relative_l2']:.3g} at the worst tap (`{worst['name']}`)" in claims[2]
    assert "the first over 0.01 is `embeddings`" in claims[2]
    assert all(f"{each['share']:.1%}" in claims[3] for each in loss["agreement"]) and "1,000 built-in" in claims[3]
    for claim in claims:
        assert not any(word in claim for word in ("exact", "proven", "bit for bit", "within_tolerance"))
    assert "what is measured of int8 graphs tells nothing about trained ones" in card
    stated = Receipt.from_json(receipt(folder))
    assert stated.graph_losses is not None and stated.graph_losses["model.int8-all.onnx"].to_json() == loss
    trained = {name: replace(each, random_weights=False) for name, each in stated.graph_losses.items()}
    assert "trained ones" not in model_card(replace(stated, graph_losses=trained))


@pytest.mark.stress
def test_what_quantised_graphs_lose_outlives_other_runs_and_goes_with_the_file(tmp_path):
    tiny = write(tmp_path, tiny_state())
    there = convert(tiny, tmp_path / "text", "--component", "text", "--onnx")
    assert sam3lite("export", "onnx", there, "--quantize", "int8").code == 0
    before, again = snapshot(there), ("convert", tiny, "--output", there, "--component", "text")
    for more in ((), ("--onnx",)):
        done = sam3lite(*again, *more, "--json")
        assert (done.code, done.json["state"], snapshot(there)) == (0, "current", before), done
    # Another graph beside it, and then none: what was measured of the quantised one still is so.
    assert sam3lite("export", "onnx", there, "--taps").code == 0
    (there / "model.onnx").unlink()
    assert sam3lite(*again).code == 0 and verify(there, tiny).code == 0
    claims = [claim for claim, _ in rows(there)]
    assert len(claims) == 5 and sum(claim.startswith("`model.int8.onnx`") for claim in claims) == 4
    assert "a graph without weights" not in (there / "README.md").read_text()
    replaced = sam3lite(*again, "--overwrite", "--dry-run", "--json")
    assert "model.int8.onnx of the folder that is replaced: sam3lite export onnx" in "\n".join(replaced.json["notes"])
    # A wrong one is told, though another graph is written.
    model = onnx.load(there / "model.int8.onnx")
    scale = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("_scale"))
    scale.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) * 2, scale.name))
    onnx.save(model, there / "model.int8.onnx")
    done = sam3lite(*again, "--onnx")
    assert done.code == 1 and "model.int8.onnx" in done.err
    (there / "model.int8.onnx").unlink()
    assert sam3lite(*again).code == 0
    assert "graph_losses" not in receipt(there) and "onnx" not in (there / "README.md").read_text().lower()


def test_what_cannot_be_quantised_is_refused_and_nothing_is_written(folder, tmp_path):
    half = convert(
        write(tmp_path, tiny_state()), tmp_path / "half", "--component", "text", "--dtype", "float16", "--verify"
    )
    before = snapshot(half)
    files = {"two": b"a dog\na dog\na cat\n", "empty": b"", "blank": b"\n \n", "latin": b"caf\xe9\n", "folder": None}
    for name, data in files.items():
        (tmp_path / name).mkdir() if data is None else (tmp_path / name).write_bytes(data)
    os.mkfifo(tmp_path / "pipe")  # that nothing writes to
    written = snapshot(folder)
    for words, said in (
        ((half, "--quantize", "int8"), "--quantize needs a float32 folder"),
        ((half, "--budget", "0.1"), "--budget and --prompts-file need --quantize"),
        *(
            ((folder, "--quantize", "int8", "--prompts-file", tmp_path / name), said)
            for name, said in (
                ("two", "three prompts whose ids differ, to compare neighbours; it has 2"),
                ("empty", "no prompts in it"),
                ("blank", "no prompts in it"),
                ("latin", "cannot be read as UTF-8 text"),
                ("folder", "is not a regular file but a folder"),
                ("pipe", "no prompts in it"),
                ("absent", "no such file"),
            )
        ),
        ((folder, "--quantize", "int8", "--budget", "nan"), "--budget must be"),
    ):
        done = sam3lite("export", "onnx", *words)
        assert done.code == 2 and said in done.err, done
    assert snapshot(half) == before and snapshot(folder) == written


@pytest.mark.stress
def test_prompts_of_any_length_and_kind_are_measured_and_shown_shortened(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    prompts = ["a | b `c` <i>", "\x1b[31mred bus", "word " * 50_000, "[x](http://e) \U0001f984", "a cat", "a dog"]
    (tmp_path / "odd.txt").write_text("\r\n".join(prompts))
    read, write = os.pipe()
    os.write(write, (tmp_path / "odd.txt").read_bytes()[:400])  # as <(...) of a shell
    os.close(write)
    piped = sam3lite("export", "onnx", copy, "--quantize", "int8", "--prompts-file", f"/dev/fd/{read}", "--json")
    os.close(read)
    assert piped.code == 0 and piped.json["quantized"][0]["loss"]["inputs"] == "3 prompts"
    done = sam3lite("export", "onnx", copy, "--quantize", "int8", "--prompts-file", tmp_path / "odd.txt")
    assert done.code == 0 and "on 6 prompts:" in done.out and "\x1b" not in done.out
    assert max(map(len, done.out.splitlines())) < 400
    made = [shown for claim, shown in rows(copy) if claim.startswith("`model.int8.onnx`")][1:]
    assert set(made) == {"`sam3lite export onnx . --quantize int8 --prompts-file FILE`"}
    for each in receipt(copy)["graph_losses"]["model.int8.onnx"]["agreement"]:
        assert all(len(text) < 90 for changed in each["changed"] for text in changed.values())


@pytest.mark.stress
def test_the_graphs_of_a_detector_are_quantised_each(tmp_path):
    checkpoint = write(tmp_path, tiny_state())
    folder = convert(checkpoint, tmp_path / "all", "--verify")
    done = sam3lite("export", "onnx", folder, "--component", "detector", "--size", "56", "--quantize", "int8", "--json")
    assert done.code == 0, done
    made = {file["name"]: file["of"] for file in done.json["quantized"]}
    assert made == {f"{name}.int8.onnx": f"{name}.onnx" for name in ("vision", "text", "decode")}
    assert [file["loss"]["detection"] is None for file in done.json["quantized"]] == [True, True, False]
    assert {*made, *made.values()} <= receipt(folder)["beside"].keys() & snapshot(folder).keys()
    assert verify(folder, checkpoint).json["verdict"] == "proven"
    shown = sam3lite("export", "onnx", folder, "--component", "detector", "--size", "56", "--quantize", "int8-all").out
    assert "all graphs on the built-in picture and 'red car', the 10 best queries:" in shown and "IoU of masks" in shown
