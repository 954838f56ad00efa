"""The command line's contract: exit codes, one JSON document, messages without tracebacks."""

from __future__ import annotations

import json
import pickle
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from support import families
from support.folders import (
    ENCODER,
    LAYOUTS,
    POSITIONS,
    PROJECTION,
    QKV,
    TRACKER_KEYS,
    TRUNK,
    convert,
    edit,
    environment,
    flip_bit,
    overwrite_bytes,
    python,
    raw,
    receipt,
    record_offset,
    sam3lite,
    snapshot,
    tensors,
    tiny_architecture,
    tiny_state,
    write,
)
from support.rows import MODELS, fake, source_rows

from sam3lite_convert.plan import synthetic
from sam3lite_convert.plan.architecture import TEXT
from sam3lite_convert.plan.counts import accounting, parameters, text_parameters
from sam3lite_convert.plan.names import canonical_names
from sam3lite_convert.plan.plan import Options, make_plan
from sam3lite_convert.plan.tables import load_mappings
from sam3lite_convert.workers import Worker

COMMANDS = (
    "inspect", "convert", "explain", "tables", "verify", "restore", "diff", "parity", "judge", "record", "demo",
    "doctor", "export",
)  # fmt: skip
ALIASES = (
    "s0", "s1", "l", "s0-32", "s1-32", "l-32",
    "s0-3.1", "s1-3.1", "l-3.1", "s0-3.1-32", "s1-3.1-32", "l-3.1-32",
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write(tmp_path_factory.mktemp("tiny"), tiny_state())


class Hostile:
    def __reduce__(self):
        return (Path("hostile-ran").touch, ())


def spoilt_file(name, tiny, folder):
    """A file with one fault; its name is that of the fault."""
    path = folder / "x.pt"
    data = tiny.read_bytes()
    state = tiny_state()
    if name == "text file":
        path.write_text("this is no checkpoint\n" * 50)
    elif name == "empty file":
        path.write_bytes(b"")
    elif name == "truncated":
        path.write_bytes(data[: len(data) * 3 // 4])
    elif name == "zeros":
        path.write_bytes(bytes(5000))
    elif name == "web page":
        path.write_text("<!DOCTYPE html><html><body>Not found</body></html>")
    elif name == "random bytes":
        path.write_bytes(bytes(range(256)) * 40)
    elif name == "plain pickle":
        path.write_bytes(pickle.dumps({"a": 1}))
    elif name == "hostile":
        torch.save({"model": {**state, "x": Hostile()}}, path)
    elif name == "damaged record":
        path.write_bytes(data)
        overwrite_bytes(path, record_offset(path, raw(state[PROJECTION])), b"\x12\x34\x56\x78")
    elif name == "twins":
        twin = QKV.replace("language_backbone.", "language_backbone.tensor_runner.")
        torch.save({"model": state | {twin: flip_bit(state[QKV])}}, path)
    elif name == "unknown key":
        torch.save({"model": state | {"detector.new.weight": torch.ones(1)}}, path)
    elif name == "missing key":
        torch.save({"model": {k: t for k, t in state.items() if k != PROJECTION}}, path)
    elif name == "wrong shape":
        torch.save({"model": state | {TRUNK + "ln_pre.bias": torch.ones(7)}}, path)
    elif name == "image student":
        torch.save({"model": state | {TRUNK + "model.stem.weight": torch.ones(7)}}, path)
    elif name == "clip teacher":
        torch.save({"model": state | {ENCODER + "transformer.resblocks.0.ln_1.weight": torch.ones(7)}}, path)
    elif name == "no tensors":
        torch.save({"model": {"epoch": 3}}, path)
    elif name == "another model":
        torch.save(torch.nn.Linear(3, 3).state_dict(), path)
    else:
        raise AssertionError(name)
    return path


CODES = {
    "text file": 4, "empty file": 4, "truncated": 4, "zeros": 4, "web page": 4, "random bytes": 4, "plain pickle": 4,
    "hostile": 4, "damaged record": 4, "twins": 4,
    "unknown key": 3, "missing key": 3, "wrong shape": 3, "image student": 3, "clip teacher": 3, "no tensors": 3,
    "another model": 3,
}  # fmt: skip


# ---- exit codes and messages ------------------------------------------------------------------


@pytest.mark.parametrize("name", CODES)
def test_each_fault_of_a_file_has_its_exit_code_and_leaves_nothing(name, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = spoilt_file(name, tiny, tmp_path)
    before = snapshot(tmp_path)
    done = sam3lite("convert", "--checkpoint", path)
    assert done.code == CODES[name], done
    assert done.err.startswith("error: ")
    assert "x.pt" in done.err or "this is " in done.err  # a relative is called by its name
    assert "Wrote" not in done.out
    assert snapshot(tmp_path) == before
    assert not (tmp_path / "converted").exists() or not list((tmp_path / "converted").iterdir())


@pytest.mark.parametrize("name", ["text file", "truncated", "hostile", "damaged record", "twins", "wrong shape"])
def test_each_fault_is_one_json_document(name, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = sam3lite("convert", "--checkpoint", spoilt_file(name, tiny, tmp_path), "--json")
    assert done.code == CODES[name]
    error = one_error(done.out)
    assert error["message"]


def one_error(out):
    record = json.loads(out)
    assert record.keys() == {"schema_version", "error"}
    assert {"code", "message", "details"} <= record["error"].keys()
    assert isinstance(record["error"]["code"], str) and isinstance(record["error"]["message"], str)
    return record["error"]


@pytest.mark.parametrize("name", ["hostile", "truncated", "unknown key", "text file", "image student"])
def test_a_fault_in_a_process_of_its_own_has_no_traceback(name, tiny, tmp_path):
    path = spoilt_file(name, tiny, tmp_path)
    done = python("-m", "sam3lite_convert", "convert", "--checkpoint", path, cwd=tmp_path)
    assert done.returncode == CODES[name]
    assert "Traceback" not in done.stderr + done.stdout
    assert not (tmp_path / "hostile-ran").exists()


@pytest.mark.parametrize("where", ["here", "in a thread"])
def test_a_fault_of_the_tool_itself_is_reported_as_such(where, tiny, monkeypatch):
    def fault(*arguments):
        return Worker(lambda: {}["not there"]).result() if where == "in a thread" else [][0]

    monkeypatch.setattr("sam3lite_convert.commands.sources.Source.read", fault)
    done = sam3lite("inspect", tiny, "--json")
    assert done.code == 70
    assert one_error(done.out)["code"] == "internal"
    for text in (done.err, sam3lite("inspect", tiny).err):
        assert "Traceback (most recent call last)" in text and "Please report it" in text
    assert ("KeyError: 'not there'" in done.err) == (where == "in a thread")


def test_an_image_student_still_gives_its_text_encoder(tiny, tmp_path):
    path = spoilt_file("image student", tiny, tmp_path)
    done = sam3lite("convert", "--checkpoint", path, "--output", tmp_path / "out")
    assert "--component text" in done.err
    convert(path, tmp_path / "out", "--component", "text")


USAGE = [
    [],
    ["convert"],
    ["convert", "--checkpoint"],
    ["convert", "--checkpoint", "nowhere.pt"],
    ["convert", "--checkpoint", "."],
    ["convert", "--checkpoint", "CHECKPOINT", "--layout", "none"],
    ["convert", "--checkpoint", "CHECKPOINT", "--component", "vision"],
    ["convert", "--checkpoint", "CHECKPOINT", "--dtype", "int4"],
    ["convert", "--checkpoint", "CHECKPOINT", "--context", "many"],
    ["convert", "--checkpoint", "CHECKPOINT", "--mapping", "nowhere"],
    ["convert", "--checkpoint", "CHECKPOINT", "--no-such-option"],
    ["convert", "--all"],
    ["convert", "--checkpoint", "CHECKPOINT", "--push-to-hub"],
    ["convert", "--checkpoint", "CHECKPOINT", "--hub-model-id", "me/x"],
    *(["convert", "--checkpoint", alias] for alias in ALIASES),
    ["inspect"],
    ["inspect", "s0"],
    ["inspect", "nowhere.pt"],
    ["explain", "CHECKPOINT"],
    ["explain", "CHECKPOINT", "no.such.key"],
    ["explain", "CHECKPOINT", "no.such.*"],
    ["tables", "CHECKPOINT", "no.such.*"],
    ["tables", "--family", "sam4"],
    ["verify"],
    ["verify", "nowhere", "--checkpoint", "CHECKPOINT"],
    ["verify", "."],
    ["frobnicate"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", USAGE, ids=lambda a: " ".join(a) or "nothing")
def test_what_cannot_run_exits_with_2_and_is_one_json_document(arguments, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [str(tiny) if a == "CHECKPOINT" else a for a in arguments]
    done = sam3lite(*arguments)
    assert done.code == 2, done
    assert done.err or done.out
    if arguments:
        done = sam3lite(*arguments, "--json")
        assert done.code == 2
        one_error(done.out)
    assert list(tmp_path.iterdir()) == []


def test_convert_without_a_checkpoint_lists_the_aliases():
    error = one_error(sam3lite("convert", "--json").out)
    assert all(alias in error["message"] for alias in ALIASES)


def test_a_local_file_comes_before_an_alias(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny, "s0")
    assert sam3lite("inspect", "s0").code == 0


@pytest.mark.stress
def test_json_is_the_only_thing_on_stdout(tiny, tmp_path):
    folder = tmp_path / "out"
    for arguments in (
        ["inspect", tiny],
        ["convert", "--checkpoint", tiny, "--output", folder],
        ["verify", folder, "--checkpoint", tiny],
        ["explain", tiny, QKV],
    ):
        done = python("-m", "sam3lite_convert", *arguments, "--json")
        assert done.returncode == 0, done.stderr
        assert isinstance(json.loads(done.stdout), dict)
        assert "Traceback" not in done.stderr


def test_a_mismatch_exits_with_1_and_prints_its_record(tiny, tmp_path):
    folder = convert(tiny, tmp_path / "out")
    edit(folder, {"text_projection.bias": torch.zeros(32)})
    done = sam3lite("verify", folder, "--checkpoint", tiny, "--json")
    assert done.code == 1
    record = done.json
    fields = {"verdict", "checked", "mismatched", "missing", "unexpected", "lost"}
    assert fields <= record.keys()
    assert [m.keys() >= {"key", "why"} for m in record["mismatched"]] == [True]


def test_results_go_to_stdout_and_faults_to_stderr(tiny, tmp_path):
    good = sam3lite("inspect", tiny)
    assert good.out and not good.err
    bad = sam3lite("inspect", tmp_path / "nowhere.pt")
    assert bad.err and not bad.out


def test_a_reader_that_goes_away_is_no_fault(tiny):
    code = (
        "import os, subprocess, sys\n"
        f"p = subprocess.Popen([sys.executable, '-m', 'sam3lite_convert', 'inspect', {str(tiny)!r}, '--json'],"
        " stdout=subprocess.PIPE, stderr=subprocess.PIPE)\n"
        "p.stdout.close()\n"
        "said = p.stderr.read().decode()\n"
        "assert 'Traceback' not in said and 'Exception' not in said, said\n"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


# ---- help ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "as_json"),
    [
        pytest.param(False, False, marks=pytest.mark.stress),
        (True, False),
        pytest.param(True, True, marks=pytest.mark.stress),
    ],
)
def test_a_reader_that_goes_away_leaves_the_exit_code_of_the_check(fault, as_json, tiny, tmp_path):
    folder = convert(tiny, tmp_path / "out")
    if fault:
        config = json.loads((folder / "config.json").read_text())
        config["vision_config"]["backbone_config"]["layer_norm_eps"] = 1e-6
        (folder / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "sam3lite_convert", "verify", str(folder), "--checkpoint", str(tiny)]
    process = subprocess.Popen(
        [*command, *(["--json"] if as_json else [])], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )
    assert process.stdout and process.stderr
    process.stdout.close()
    said = process.stderr.read()
    assert (process.wait(), said) == (int(fault), b"")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([c, "--help"] for c in COMMANDS)], ids=" ".join)
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys\nfrom sam3lite_convert.cli.app import run\n"
        f"code = run({arguments!r})\n"
        "heavy = {'torch', 'numpy', 'safetensors', 'transformers', 'huggingface_hub'} & sys.modules.keys()\n"
        "assert code == 0 and not heavy, (code, heavy)\n"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("command", ["judge", "record", "parity", "convert"])
def test_help_of_partial_speaks_of_its_own_command(command):
    words = " ".join(sam3lite(command, "--help").out.split())
    assert "download only the bytes of the text tensors" in words
    assert ("--partial needs --component text" in words) == (command == "convert")


def test_help_names_every_command_and_option():
    done = sam3lite("--help")
    assert done.code == 0
    assert all(command in done.out for command in COMMANDS)
    options = (
        "--checkpoint", "--output", "--layout", "--component", "--dtype", "--dry-run", "--overwrite", "--push-to-hub",
        "--hub-model-id", "--private", "--create-pr", "--all", "--context", "--max-shard-size", "--causal", "--mapping",
        "--json",
    )  # fmt: skip
    text = sam3lite("convert", "--help").out
    assert all(option in text for option in options)


# ---- inspect ------------------------------------------------------------------------------------


def test_inspect_says_what_the_file_is(tiny):
    record = sam3lite("inspect", tiny, "--json").json
    state = tiny_state()
    assert (record["wrapper"], record["prefix"]) == ("model", "detector.")
    kinds = [str(t.dtype).removeprefix("torch.") for t in state.values()]
    assert record["dtypes"] == {k: kinds.count(k) for k in set(kinds)}
    wanted = {
        "variant": "custom", "model_name": "mct", "hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 2,
        "context_length": 16, "vocab_size": 512, "projection_dim": 128, "output_dim": 32, "causal_masking": False,
    }  # fmt: skip
    assert wanted.items() <= record["architecture"].items()
    counts = record["counts"]
    assert counts["source"] == len(state) == counts["mapped"] + counts["dropped"]
    parts = record["components"]
    assert sum(c["keys"] for c in parts.values()) == len(state)
    assert parts["tracker"]["keys"] == TRACKER_KEYS
    text = {k: t for k, t in state.items() if k.startswith("detector." + TEXT)}
    assert parts["text_encoder"]["keys"] == len(text)
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    assert parts["text_encoder"]["parameters"] == sum(t.numel() for k, t in text.items() if not k.endswith(buffers))
    assert parts["geometry_encoder"]["dropped"] == {"points projectors": 6}


@pytest.mark.parametrize(
    ("wrapper", "prefix"),
    [(None, ""), ("state_dict", "detector."), (None, "module.detector."), ("model", "sam3_model.")],
)
def test_inspect_names_wrapper_and_prefix(wrapper, prefix, tmp_path):
    state = {
        k if k.startswith("tracker.") else prefix + k.removeprefix("detector."): t for k, t in tiny_state().items()
    }
    record = sam3lite("inspect", write(tmp_path, state, wrapper=wrapper), "--json").json
    assert (record["wrapper"], record["prefix"]) == (wrapper, prefix)


@pytest.mark.parametrize("model", MODELS)
def test_the_numbers_of_the_released_models(model):
    checkpoint = fake(source_rows(model))
    mappings = load_mappings()
    plan = make_plan(checkpoint, mappings, Options())
    names = canonical_names(checkpoint, mappings.spellings)
    text = [t for k, t in checkpoint.tensors.items() if k.startswith("detector." + TEXT)]
    millions = {"s0": 42.54, "s1": 63.53, "l": 123.80}[model]
    for count in (
        parameters(text),
        text_parameters(plan),
        accounting(checkpoint, names, plan).components["text_encoder"].parameters,
    ):
        assert round(count / 1e6, 2) == millions
    # Beside SAM3's 353.72 M.
    fewer = {"s0": 88, "s1": 82, "l": 65}[model]
    assert round(100 * (1 - parameters(text) / 353.72e6)) == fewer
    architecture = plan.architecture.record().to_json()
    assert (
        architecture["variant"], architecture["model_name"], architecture["hidden_size"],
        architecture["num_hidden_layers"], architecture["num_attention_heads"],
    ) == {
        "s0": ("MobileCLIP-S0", "mct", 512, 6, 8),
        "s1": ("MobileCLIP-S1", "base", 512, 12, 8),
        "l": ("MobileCLIP2-L", "base", 768, 12, 12),
    }[model]  # fmt: skip
    assert (architecture["context_length"], architecture["vocab_size"], architecture["output_dim"]) == (16, 49408, 256)


def test_inspect_shows_the_text_encoder_beside_sam3s(tiny):
    out = sam3lite("inspect", tiny).out
    assert "353.72 M" in out
    assert "6 layers, 128 wide" in out
    assert f"Next: sam3lite convert {tiny}" in out


def test_inspect_describes_a_relative_and_says_which_way_is_open(tiny, tmp_path):
    record = sam3lite("inspect", spoilt_file("image student", tiny, tmp_path), "--json")
    assert record.code == 0
    assert "image student" in record.json["kind"]
    assert record.json["convert"]["text"] == "yes"
    assert record.json["convert"]["all"] != "yes"


@pytest.mark.parametrize("name", ["text file", "truncated", "hostile", "empty file"])
def test_inspect_does_not_trust_a_spoilt_file(name, tiny, tmp_path):
    assert sam3lite("inspect", spoilt_file(name, tiny, tmp_path)).code == 4


def test_inspect_of_a_text_encoder_alone(tmp_path):
    state = synthetic.state_dict(tiny_architecture(), text_only=True)
    record = sam3lite("inspect", write(tmp_path, state), "--json").json
    assert record["components"].keys() == {"text_encoder"}
    assert record["architecture"]["hidden_size"] == 128


# ---- explain ------------------------------------------------------------------------------------

# key -> (operation, source, targets)
SHARED = {
    "detector.transformer.decoder.layers.1.norm1.weight": (
        "keep",
        "detector.transformer.decoder.layers.1.norm1.weight",
        ["detr_decoder.layers.1.vision_cross_attn_layer_norm.weight"],
    ),
    TRUNK + "blocks.3.attn.qkv.bias": (
        "split",
        TRUNK + "blocks.3.attn.qkv.bias",
        [f"vision_encoder.backbone.layers.3.attention.{p}_proj.bias" for p in "qkv"],
    ),
    "vision_encoder.backbone.embeddings.position_embeddings": (
        "drop_class_row",
        TRUNK + "pos_embed",
        ["vision_encoder.backbone.embeddings.position_embeddings"],
    ),
}
EXPLAINED = {
    "packed": {
        QKV: ("keep", QKV, ["text_encoder.layers.1.attention.in_proj_weight"]),
        PROJECTION: ("keep", PROJECTION, ["text_encoder.projection"]),
        "text_encoder.position_embedding.position_embedding": (
            "keep",
            POSITIONS,
            ["text_encoder.position_embedding.position_embedding"],
        ),
    },
    "transformers": {
        QKV: ("split", QKV, [f"text_encoder.layers.1.self_attn.{p}_proj.weight" for p in "qkv"]),
        "text_encoder.layers.1.self_attn.k_proj.weight": (
            "split",
            QKV,
            [f"text_encoder.layers.1.self_attn.{p}_proj.weight" for p in "qkv"],
        ),
        PROJECTION: ("transpose", PROJECTION, ["text_encoder.projection.weight"]),
        PROJECTION.removeprefix("detector."): ("transpose", PROJECTION, ["text_encoder.projection.weight"]),
    },
}


@pytest.mark.parametrize(
    ("layout", "key"), [(layout, key) for layout in LAYOUTS for key in [*SHARED, *EXPLAINED[layout]]]
)
def test_explain_says_what_happens_to_a_key(layout, key, tiny):
    operation, source, targets = (SHARED | EXPLAINED[layout])[key]
    done = sam3lite("explain", tiny, key, "--layout", layout, "--json")
    assert done.code == 0, done
    record = done.json
    assert record["outcome"] == "mapped"
    assert record["operation"] == operation
    assert record["source"]["key"] == source
    assert record["source"]["shape"] == list(tiny_state()[source].shape)
    assert [t["key"] for t in record["targets"]] == targets
    shape = list(tiny_state()[source].shape)
    if operation == "split":
        shape[0] //= 3
    elif operation == "drop_class_row":
        shape[1] -= 1
    assert all(t["shape"] == shape for t in record["targets"])
    assert record["rule"]["name"] and record["rule"]["table"].endswith(".ini")


def test_explain_shows_rule_operation_and_names_as_text(tiny):
    text = sam3lite("explain", tiny, QKV, "--layout", "transformers").out
    _, source, targets = EXPLAINED["transformers"][QKV]
    assert all(word in text for word in (source, "split", *targets, "text-transformers.ini"))


@pytest.mark.parametrize(
    ("key", "word"),
    [
        (TRUNK + "blocks.0.attn.freqs_cis", "freqs_cis"),
        ("detector.backbone.vision_backbone.sam2_convs.0.conv_1x1.weight", "sam2_convs"),
        ("detector.geometry_encoder.points_direct_project.weight", "points"),
    ],
)
def test_explain_says_why_a_key_is_dropped(key, word, tiny):
    record = sam3lite("explain", tiny, key, "--json").json
    assert record["outcome"] == "dropped"
    assert word in record["reason"]
    assert record["source"]["key"] == key
    assert word in sam3lite("explain", tiny, key).out


def test_explain_of_an_unknown_key_gives_the_nearest_names(tiny):
    wrong = PROJECTION.replace("projection_layer", "projection_laier")
    done = sam3lite("explain", tiny, wrong)
    assert done.code == 2
    assert PROJECTION in done.err
    assert PROJECTION in one_error(sam3lite("explain", tiny, wrong, "--json").out)["details"]["near"]


def test_explain_follows_a_twin_to_the_tensor_that_counts(tmp_path):
    twin = QKV.replace("language_backbone.", "language_backbone.tensor_runner.")
    path = write(tmp_path, tiny_state() | {twin: tiny_state()[QKV].clone()})
    record = sam3lite("explain", path, twin, "--json").json
    assert record["outcome"] == "dropped"
    assert QKV in record["reason"]
    # Both spellings have one canonical name, that of a released file without its prefix.
    of_both = [sam3lite("explain", path, key, "--json").json["source"]["canonical"] for key in (QKV, twin)]
    assert of_both == [QKV.removeprefix("detector.")] * 2


def test_explain_of_the_text_encoder_alone_uses_its_names(tiny):
    options = ("--layout", "transformers", "--component", "text", "--json")
    for key in (PROJECTION, "projection.weight", "text_encoder.projection.weight"):
        record = sam3lite("explain", tiny, key, *options).json
        assert [t["key"] for t in record["targets"]] == ["projection.weight"]
    assert sam3lite("explain", tiny, TRUNK + "ln_pre.weight", *options).json["outcome"] == "dropped"


# ---- convert ------------------------------------------------------------------------------------


def test_convert_as_json_gives_the_plan_and_the_files(tiny, tmp_path):
    record = sam3lite("convert", "--checkpoint", tiny, "--output", tmp_path / "out", "--json").json
    assert record["counts"] == receipt(tmp_path / "out")["counts"]
    assert record["files"] == {p.name: p.stat().st_size for p in (tmp_path / "out").iterdir()}
    assert record["bytes"] == sum(t.nbytes for t in tensors(tmp_path / "out").values())


def test_convert_shows_components_reasons_and_what_to_type_next(tiny, tmp_path):
    out = sam3lite("convert", "--checkpoint", tiny, "--output", tmp_path / "out", "--verbose").out
    for word in ("text_encoder", "vision_encoder", "sam2_convs", "points", "freqs_cis", "tracker", "353.72 M"):
        assert word in out
    assert out.rstrip().splitlines()[-2].startswith("Next: sam3lite verify")
    out = sam3lite("convert", "--checkpoint", tiny, "--output", tmp_path / "out", "--verify").out
    assert out.rstrip().splitlines()[-2].startswith("Next: sam3lite parity") and "Next: sam3lite verify" not in out


def test_a_mapping_folder_takes_the_place_of_a_table(tiny, tmp_path, edited_tables):
    tables = edited_tables("text-packed.ini", ("target  = text_projection.{p}", "target  = text_project.{p}"))
    done = sam3lite("convert", "--checkpoint", tiny, "--output", tmp_path / "out", "--mapping", tables)
    assert done.code == 3
    assert "text_project.{" in done.err


# ---- demo ---------------------------------------------------------------------------------------


def test_the_demo_proves_both_layouts_and_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path)
    done = sam3lite("demo")
    assert done.code == 0, done.err
    assert [p.name for p in tmp_path.iterdir()] == ["tmp"]
    # Importing transformers' models makes torch create its compiler's cache folder.
    assert [p for p in (tmp_path / "tmp").iterdir() if not p.name.startswith("torchinductor_")] == []
    assert done.out.count("proven") >= 2
    assert re.search("parity: packed exact, transformers (exact|within tolerance)", done.out)  # as it rounds here
    for command in ("inspect", "convert", "verify", "parity"):
        assert f"$ sam3lite {command}" in done.out
    assert done.out.count("kind: ") == 1  # what the file is stands there once


@pytest.mark.stress
def test_the_demo_can_keep_its_files(tmp_path):
    done = sam3lite("demo", "--output", tmp_path / "kept", "--json")
    assert (done.code, done.json["verdict"]) == (0, "proven")
    assert (tmp_path / "kept" / "demo.pt").exists()
    said = sam3lite("demo", "--output", tmp_path / "shown").out
    assert said.count("has no tokenizer. To add it, ") == 1 and "packed has no tokenizer" not in said
    (export,) = re.findall("^For ONNX, with the extra onnx: sam3lite (.*)$", said, re.M)
    assert sam3lite(*shlex.split(export)).code == 0
    (tmp_path / "kept" / "mine.txt").write_text("x")
    assert sam3lite("demo", "--output", tmp_path / "kept").code == 2


def test_a_narrow_terminal_cuts_no_number(tiny, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = sam3lite("inspect", tiny).out
    table = [line for line in out.splitlines() if line.startswith(("text_encoder ", "total "))]
    assert len(table) == 2
    assert not any("…" in line for line in out.splitlines())
    assert str(len(tiny_state())) in table[1]


def test_the_console_script_and_the_module_are_the_same():
    assert python("-m", "sam3lite_convert", "--version").stdout.startswith("sam3lite-convert ")
    assert sam3lite("--version").out.startswith("sam3lite-convert ")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("s0-3.1", "SAM3.1, with the text encoder of SAM3-LiteText"),
        ("teacher", "SAM3 detector"),
        ("student", "EfficientSAM3 with an image student (RepViT), with the text encoder of SAM3-LiteText"),
    ],
)
def test_the_command_that_inspect_ends_with_converts_and_both_say_what_the_file_is(kind, said, tmp_path):
    path = families.write(tmp_path / f"{kind}.pt", kind)
    lines = sam3lite("inspect", path).out.strip().splitlines()
    words = shlex.split(lines[-1])
    assert words[:3] == ["Next:", "sam3lite", "convert"]
    done = sam3lite(*words[2:], "--dry-run")
    assert done.code == 0
    assert f"kind: {said}" in lines and f"kind: {said}" in done.out.splitlines()
