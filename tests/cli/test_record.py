"""sam3lite record: what the original computes, for the author of a port."""

from __future__ import annotations

import json
import shlex
import zlib

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.folders import sam3lite, tiny_architecture, write_safetensors
from support.goldens import activations

from original_ref import load_reference
from sam3lite_convert.checkpoint.hashing import sha256_of
from sam3lite_convert.parity.original import reference_cfg
from sam3lite_convert.plan import synthetic

TEXT = "detector.backbone.language_backbone."
TAPS = ["embeddings", *(f"layers.{i}" for i in range(6)), "final_layer_norm", "projected", "pooled"]


@pytest.fixture(scope="module")
def s0(tmp_path_factory):
    return write_safetensors(tmp_path_factory.mktemp("s 0"), synthetic.state_dict(tiny_architecture(), text_only=True))


def computed(ids):
    """The original's activations, run here."""
    weights = {k.removeprefix(TEXT): t for k, t in synthetic.state_dict(tiny_architecture(), text_only=True).items()}
    return activations(load_reference(reference_cfg(tiny_architecture(), 16), weights), torch.tensor(ids))


def record(checkpoint, output, *options):
    done = sam3lite("record", "--checkpoint", checkpoint, "--output", output, "--json", *options)
    assert (done.code, done.err) == (0, ""), done
    return done.json


def test_the_file_holds_ids_and_activations_of_the_original_alone(s0, tmp_path):
    document = record(s0, tmp_path / "r.safetensors", "--batch", 4)
    held = load_file(tmp_path / "r.safetensors")
    assert list(held) == sorted(["input_ids", *(f"reference.{tap}" for tap in TAPS)])
    assert (
        held["input_ids"].tolist() == document["inputs"]["ids"] and len({*map(tuple, held["input_ids"].tolist())}) == 4
    )
    wanted = computed(document["inputs"]["ids"])
    assert all(torch.equal(held[f"reference.{tap}"], wanted[tap]) for tap in TAPS)
    assert {t["name"]: t["shape"] for t in document["taps"]} == {tap: list(wanted[tap].shape) for tap in TAPS}
    assert document["checkpoint_sha256"] == sha256_of(s0) and document["format"] == "safetensors"
    with safe_open(tmp_path / "r.safetensors", "pt") as opened:
        about = json.loads(opened.metadata()["sam3lite_reference"])
    assert list(about["taps"]) == TAPS and about["checkpoint_sha256"] == sha256_of(s0)


def test_the_same_as_npz(s0, tmp_path):
    document = record(s0, tmp_path / "r.npz", "--seed", 3)
    wanted = computed(document["inputs"]["ids"])
    with np.load(tmp_path / "r.npz", allow_pickle=False) as held:
        assert held["input_ids"].tolist() == document["inputs"]["ids"]
        assert all(np.array_equal(held[f"reference.{tap}"], wanted[tap].numpy()) for tap in TAPS)
        assert list(json.loads(str(held["sam3lite_reference"]))["taps"]) == TAPS


def test_the_compact_form_has_norm_maximum_and_64_values_where_its_formula_says(s0, tmp_path):
    document = record(s0, tmp_path / "r.json", "--compact", "--seed", 3, "--batch", 2)
    held = json.loads((tmp_path / "r.json").read_text())
    assert (held["ids"], list(held["taps"])) == (document["inputs"]["ids"], TAPS)
    wanted = computed(held["ids"])
    for tap, found in held["taps"].items():
        flat = wanted[tap].numpy().reshape(-1)
        seed = zlib.crc32(f"{held['variant']}.{tap}".encode())
        where = np.random.Generator(np.random.PCG64(seed)).integers(0, flat.size, 64)
        assert found["positions"] == where.tolist() and found["values"] == flat[where].astype("f8").tolist()
        assert found["shape"] == list(wanted[tap].shape) and found["max_abs"] == float(np.abs(flat).max())
        assert found["l2"] == pytest.approx(float(np.linalg.norm(flat.astype("f8"))), rel=1e-14)
    assert document["size"] == (tmp_path / "r.json").stat().st_size < 50_000
    assert "crc32" in held["positions"]


def test_the_text_says_what_each_tap_is_and_what_comes_next(s0, tmp_path):
    done = sam3lite("record", s0, "--output", tmp_path / "r.npz")
    assert done.code == 0
    rows = [line for line in done.out.splitlines() if line.split()[:1] and line.split()[0] in TAPS]
    assert [row.split()[0] for row in rows] == TAPS
    assert all(len(row.split()) > 5 for row in rows) and "1x16x128  what layer 3 returns" in done.out
    assert "  510 320 511 0 x13\n" in done.out
    assert done.out.splitlines()[-1] == (f'Next: sam3lite judge mine.npz {shlex.quote(str(s0))} --name "my port"')


def test_a_port_that_fills_in_what_is_listed_is_judged_by_the_next_command(s0, tmp_path):
    document = record(s0, tmp_path / "r.safetensors", "--batch", 2)
    ids = load_file(tmp_path / "r.safetensors")["input_ids"]
    made = {tap["name"]: computed(ids.tolist())[tap["name"]].contiguous() for tap in document["taps"]}
    save_file({"input_ids": ids, **made}, tmp_path / "mine.safetensors")
    words = shlex.split(document["next"])[1:]
    words[words.index("mine.safetensors")] = str(tmp_path / "mine.safetensors")
    done = sam3lite(*words)
    assert done.code == 0 and "verdict: exact" in done.out and "my port" in done.out


@pytest.mark.parametrize("name", ["r.safetensors", "r.npz"])
def test_the_references_own_side_is_not_taken_for_a_port(name, s0, tmp_path):
    record(s0, tmp_path / name)
    done = sam3lite("judge", tmp_path / name, s0)
    assert done.code == 2 and "holds the reference's side alone" in done.err


@pytest.mark.parametrize("name", ["r.safetensors", "r.npz", "r.json"])
def test_only_a_file_of_its_own_is_replaced(name, s0, tmp_path):
    options = ["--compact"] if name.endswith(".json") else []
    record(s0, tmp_path / name, *options)
    first = (tmp_path / name).read_bytes()
    record(s0, tmp_path / name, *options, "--seed", 1)
    assert (tmp_path / name).read_bytes() != first
    (tmp_path / name).write_text('{"precious": 1}')
    done = sam3lite("record", s0, "--output", tmp_path / name, *options)
    assert done.code == 2 and "was not overwritten" in done.err
    assert (tmp_path / name).read_text() == '{"precious": 1}'


def test_by_default_it_is_named_after_the_checkpoint(s0, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sam3lite("record", s0).code == sam3lite("record", s0, "--compact").code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny-reference.json", "tiny-reference.safetensors"]


WRONG = {
    "no checkpoint": ["record"],
    "a name that says no format": ["record", "S0", "--output", "r.txt"],
    "compact into tensors": ["record", "S0", "--compact", "--output", "r.npz"],
    "tensors into json": ["record", "S0", "--output", "r.json"],
    "no rows": ["record", "S0", "--output", "r.npz", "--batch", "0"],
    "prompts and a seed": ["record", "S0", "--output", "r.npz", "--prompt", "a dog", "--seed", "1"],
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_usage(case, s0, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = sam3lite(*(str(s0) if word == "S0" else word for word in WRONG[case]))
    assert done.code == 2 and done.err.startswith("error: ") and list(tmp_path.iterdir()) == []


def test_an_original_that_is_not_finite_is_not_recorded(s0, tmp_path):
    state = load_file(s0)
    name = f"{TEXT}encoder.final_layer_norm.weight"
    broken = write_safetensors(tmp_path, state | {name: torch.full_like(state[name], torch.inf)})
    done = sam3lite("record", broken, "--output", tmp_path / "r.npz")
    assert done.code == 2 and "NaN or infinity from final_layer_norm" in done.err
    assert not (tmp_path / "r.npz").exists()


# ---- the script ----------------------------------------------------------------------------------


def test_a_script_is_written_without_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = sam3lite("record", "--script", "my_hooks.py")
    assert (done.code, done.err) == (0, "")
    assert "\n  from my_hooks import record\n" in done.out and "original, packed, transformers" in done.out
    assert done.out.splitlines()[-1].startswith("Next: sam3lite judge mine.safetensors CHECKPOINT")
    text = (tmp_path / "my_hooks.py").read_text()
    assert "    from my_hooks import record\n" in text and "sam3lite_hooks import" not in text
    document = sam3lite("record", "--script", "my_hooks.py", "--json").json  # over one of its own
    assert (document["output"], document["module"]) == ("my_hooks.py", "my_hooks")
    assert document["size"] == len(text.encode())
    assert [(table["name"], table["component"], "projected" in table["taps"]) for table in document["tables"]] == [
        ("original", "text", True), ("packed", "text", True), ("transformers", "text", True),
        ("sam3-original", "text", True), ("sam3-transformers", "text", True),
        ("original", "detector", False), ("packed", "detector", False), ("transformers", "detector", False),
        ("sam3-original", "detector", False), ("sam3-transformers", "detector", False),
    ]  # fmt: skip
    assert all("trunk.blocks.{i}" in table["taps"] for table in document["tables"][5:])


@pytest.mark.parametrize("content", ["import model\n", "\udcff"])
def test_a_script_of_somebody_else_is_not_overwritten(content, tmp_path):
    data = content.encode("utf-8", "surrogateescape")
    (tmp_path / "model.py").write_bytes(data)
    done = sam3lite("record", "--script", tmp_path / "model.py", "--json")
    assert done.code == 2 and done.json["error"]["code"] == "output_exists"
    assert (tmp_path / "model.py").read_bytes() == data
    (tmp_path / "folder.py").mkdir()
    assert sam3lite("record", "--script", tmp_path / "folder.py").code == 2


@pytest.mark.parametrize(
    "words",
    [
        ["--script", "sam3lite-hooks.py"],
        ["--script", "hooks.txt"],
        ["--script", "class.py"],
        ["s0.pt", "--script", "h.py"],
        ["--script", "h.py", "--output", "o.safetensors"],
        ["--script", "h.py", "--compact"],
        ["--script", "h.py", "--fingerprint"],
        ["--script", "h.py", "--batch", "2"],
        ["--script", "h.py", "--prompt", "a dog"],
        ["--script", "h.py", "--causal"],
        ["--script", "h.py", "--strip-prefix", "net."],
    ],
    ids=" ".join,
)
def test_a_script_that_nothing_could_import_or_with_other_options(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = sam3lite("record", *words)
    assert done.code == 2 and done.err.startswith("error: --script ") and list(tmp_path.iterdir()) == []
