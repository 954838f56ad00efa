"""The look of refusals: what the file is and what to do, in a screen at most, without the names of our own classes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import hostile
from support.checkpoints import tensors
from support.folders import ENCODER, TRUNK, State, sam3lite, tiny_architecture, write_safetensors

from sam3lite_convert.plan import synthetic

BIAS = "detector.dot_prod_scoring.hs_proj.bias"
FIRST = TRUNK + "blocks.0.mlp.fc1."
ANEW, WEIGHTS = "Get the file again, or save it anew", "Give the (?:PyTorch )?checkpoint"
SAVE, ONLY = "Give the file that holds the model's weights", "save only its state dict"
HOLDS, TRAINED = (
    r"Give a checkpoint that holds them\. If they stand under other names",
    "Give the checkpoint as it was trained",
)
PLAIN, MADE = r"torch\.nn\.utils\.", "parametrizations.weight.original"
PARAMETRIZE = PLAIN + r"parametrize\.remove_parametrizations\("
Maker = Callable[[Path, State], Path]


@pytest.fixture(scope="module")
def state() -> State:
    sizes = {"vit_layers": 1, "vocab": 64, "text_hidden": 64, "text_heads": 1, "projection_dim": 64}
    made = synthetic.state_dict(tiny_architecture(**sizes))
    return {k: t for k, t in made.items() if not k.startswith("tracker.")}


def written(data: bytes) -> Maker:
    def make(folder: Path, state: State) -> Path:
        (folder / "file.pt").write_bytes(data)
        return folder / "file.pt"

    return make


def saved(content: object) -> Maker:
    def make(folder: Path, state: State) -> Path:
        torch.save(content, folder / "file.pt")
        return folder / "file.pt"

    return make


def changed(change: Callable[[State], State]) -> Maker:
    return lambda folder, state: write_safetensors(folder, change(state))


def evil(name: str) -> Maker:
    """A file of the list of hostile ones."""

    def make(folder: Path, state: State) -> Path:
        return hostile.UNTRUSTED[name](folder / "file.pt") and folder / "file.pt"

    return make


def truncated(folder: Path, state: State) -> Path:
    path = saved(tensors())(folder, state)
    path.write_bytes(path.read_bytes()[:700])
    return path


def renamed(pattern: str, new: str) -> Maker:
    return changed(lambda state: {re.sub(pattern, new, key): value for key, value in state.items()})


def without(*parts: str) -> Maker:
    return changed(lambda state: {k: value for k, value in state.items() if not any(part in k for part in parts)})


def given(*endings: str) -> Maker:
    """A weight of the ViT in the parts that torch makes it from."""

    def change(state: State) -> State:
        own = {f"{FIRST}{ending}": torch.ones(2) for ending in endings}
        return {key: value for key, value in state.items() if key != f"{FIRST}weight"} | own

    return changed(change)


def many(state: State) -> State:
    """Every key under a name of its own, which follows no pattern."""
    return {f"{key}{n * 7919 % 1009}x": value for n, (key, value) in enumerate(state.items())}


Z = torch.zeros
# What it is -> (the file, options, exit code, what it is called, what to do)
REFUSALS = {
    "nothing": (written(b""), (), 4, "the file is empty", "Give a file that torch.save or safetensors wrote"),
    "zeros": (written(bytes(99)), (), 4, "starts with zeros", "Give a file"),
    "text": (written(b"hello"), (), 4, "a text file", "Give a file"),
    "noise": (written(bytes(range(1, 200))), (), 4, "unknown format", "Give a file"),
    "LFS": (written(b"version https://git-lfs.github.com/spec/v1"), (), 4, "Git LFS pointer", "git lfs pull"),
    "page": (written(b"<!DOCTYPE html><html>"), (), 4, "a web page", "Download the file itself"),
    "gzip": (written(b"\x1f\x8b" + bytes(50)), (), 3, "a gzip archive", "gunzip FILE"),
    "GGUF": (written(b"GGUF" + bytes(100)), (), 3, "a GGUF file", WEIGHTS),
    "HDF5": (written(b"\x89HDF\r\n\x1a\n" + bytes(99)), (), 3, "an HDF5 file", WEIGHTS),
    "truncated": (truncated, (), 4, "truncated or damaged", "download it again"),
    "list": (saved([torch.ones(2)]), (), 3, "without names", r"save model\.state_dict\(\)"),
    "tensor": (saved(torch.ones(2)), (), 3, "a single tensor", SAVE),
    "numbers": (saved({"epoch": 3}), (), 3, "no state dict", SAVE),
    "module": (saved(torch.nn.Linear(2, 2)), (), 4, "Linear, where a dict of tensors belongs", ONLY),
    "optimizer": (saved({"state": {0: {"step": Z(1)}}, "param_groups": []}), (), 3, "state of an optimizer", WEIGHTS),
    "scheduler": (saved({"last_epoch": 3, "_last_lr": [1e-4]}), (), 3, "learning rate scheduler", WEIGHTS),
    "sparse": (saved({"model": {"odd": torch.eye(3).to_sparse()}}), (), 3, "a sparse tensor", r"save \.to_dense\(\)"),
    "numpy": (saved({"model": {"odd": Z(2).numpy()}}), (), 3, "a numpy array", r"save torch\.from_numpy"),
    "meta": (saved({"model": {"odd": torch.empty(3, device="meta")}}), (), 3, "meta device", "assign=True"),
    "flat": (saved({"_fsdp_wrapped_module._flat_param": Z(9)}), (), 3, "FSDP with flat", "Save it again with FSDP"),
    "adapter": (saved({f"a.{n}.lora_A.weight": Z(4) for n in range(9)}), (), 3, "LoRA adapter alone", "Merge it"),
    "SAM 2": (saved({"memory_attention.layers.0.norm1.weight": Z(4)}), (), 3, "a SAM 2", "sam3lite inspect s0"),
    "another": (saved(tensors()), (), 3, "no MobileCLIP text encoder", "--strip-prefix PREFIX"),
    "two dicts": (saved({"a": tensors(), "b": tensors()}), (), 3, "2 dicts of tensors", "--state-dict-key a"),
    "os.system": (evil("os.system"), (), 4, "runs commands of the system", ONLY),
    "eval": (evil("eval"), (), 4, "runs code that the file brings", ONLY),
    "huge": (evil("2^60 elements"), (), 4, "exceeds the data that is stored", ANEW),
    "outside": (evil("a storage outside the archive"), (), 4, "its data is not in the file", ANEW),
    "twice": (evil("repeats a key"), (), 4, "sets the key 'w' twice", ANEW),
    "memory": (evil("a memo index beyond reason"), (), 4, "far more memory than its size", ONLY),
    "digits": (evil("an integer of a million digits"), (), 4, "the file's pickle is invalid", ANEW),
    "encrypted": (evil("encrypted"), (), 3, "compressed or encrypted", "Unzip the file"),
    "other order": (evil("a byte order of 32 MB"), (), 4, "big-endian", "save it with safetensors"),
    "st overlap": (evil("safetensors: overlaps"), (), 4, "overlap, or there is a gap", ANEW),
    "st dtype": (evil("safetensors: a dtype of a megabyte"), (), 4, "the unknown dtype", ANEW),
    "st name": (evil("safetensors: a name of several lines"), (), 4, "an invalid name", ANEW),
    "prefix": (renamed("^", "net_g."), (), 3, "start with net_g.", r"--strip-prefix net_g\."),
    "copies": (changed(lambda s: {a + k: v for k, v in s.items() for a in ("ema.", "student.")}), (), 3,
               "2 copies of the model", "--strip-prefix ema"),
    "twins": (changed(lambda s: s | {"module." + BIAS: s[BIAS] + 1}), (), 4, "contradicts itself", "Find out which"),
    "LoRA": (changed(lambda s: s | {FIRST + "lora_A.weight": Z(4)}), (), 3, "not merged", "Merge it"),
    "weight_norm": (given(MADE + "0", MADE + "1"), (), 3, "weight_norm", PARAMETRIZE),
    "spectral_norm": (given(MADE, "parametrizations.weight.0._u"), (), 3, "spectral_norm", PARAMETRIZE),
    "parametrized": (given(MADE), (), 3, "parametrize", PARAMETRIZE),
    "old weight_norm": (given("weight_g", "weight_v"), (), 3, "weight_norm", PLAIN + r"remove_weight_norm\("),
    "old spectral_norm": (given("weight_orig", "weight_u", "weight_v"), (), 3, "spectral_norm",
                          PLAIN + r"remove_spectral_norm\("),
    "pruned": (given("weight_orig", "weight_mask"), (), 3, "prune", PLAIN + r"prune\.remove\("),
    "observers": (given("weight", "weight_fake_quant.scale"), (), 3, "quantisation-aware", "before it was prepared"),
    "teacher": (changed(lambda s: s | {ENCODER + "transformer.resblocks.0.attn.in_proj_weight": Z(12, 4)}), (), 3,
                "two text encoders", "give a SAM3 checkpoint"),
    "other blocks": (changed(lambda s: s | {ENCODER + "transformer.2.token_mixer.layer_scale": Z(64, 1, 1)}), (), 3,
                     "RepMixer blocks at layers", TRAINED),
    "text alone": (changed(lambda s: {k: v for k, v in s.items() if k.startswith(ENCODER[:-8])}), (), 3,
                   "components? missing", "--component text"),
    "no vision": (without("vision_backbone"), (), 3, "vision_encoder: the file has none", "--component text"),
    "no statistics": (without("running_"), (), 3, "statistics of BatchNorm", r"save the model's state_dict\(\)"),
    "no scoring, and text": (
        without("dot_prod", "encoder.final_layer_norm.bias"), (), 3, "scoring: the file has none", HOLDS),
    "one missing": (without(BIAS), (), 3, "1 target without a source", HOLDS),
    "shape": (changed(lambda s: s | {BIAS: Z(3)}), (), 3, "of the wrong shape", TRAINED),
    "dtype": (changed(lambda s: s | {BIAS: Z(32, dtype=torch.int8)}), (), 3, "of the wrong dtype", TRAINED),
    "extra": (changed(lambda s: s | {f"detector.aux.{n}.w": Z(2) for n in range(500)}), (), 3,
              r"detector\.aux\.\{0\.\.499\}\.w \(500\)", r"--drop 'detector\\\.aux\\\..+' --reason TEXT"),
    "wall": (changed(many), (), 3, "no MobileCLIP text encoder", "give another file"),
    "wall beside": (changed(lambda s: s | many(s)), (), 3, "source keys without a rule", "--mapping DIR"),
    "renamed": (renamed("token_mixer", "mixing"), (), 3, "renamed[?] mixing -> token_mixer", "a copy of spellings"),
    "much renamed": (renamed(r"(norm|linear)(?=\d)|(self)_|(mlp)\.", r"x\1\2\3."), (), 3, r"\d+ keys renamed\?",
                     "With these . rules at the end of a copy of spellings.ini, the plan is sound"),
    "causal": (changed(dict), ("--causal", "--layout", "transformers"), 3, "no causal attention mask", "Use --layout"),
}  # fmt: skip
# Names of classes and instructions that say something only to who wrote the code.
OURS = re.compile(
    r"CannotRun|BadCheckpoint|UnsoundPlan|Untrusted|Sam3LiteError|PlanFault|StoredTensor|Opaque|TensorRecord|Traceback"
    r"|\b\w+Error\b|_rebuild_\w+|sam3lite_convert\.|STACK_GLOBAL|BINGET|BINPUT|LONG_BINPUT|opcode|\bREDUCE\b|sys\.set_"
)


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_says_what_it_is_and_what_to_do_on_one_screen(name, state, tmp_path):
    make, options, code, what, do = REFUSALS[name]
    done = sam3lite("convert", make(tmp_path, state), "--output", tmp_path / "out", *options)
    assert done.code == code, done
    assert done.err.startswith("error: ")
    rows = sum(max(1, -(-len(line) // 80)) for line in done.err.removesuffix("\n").split("\n"))
    assert rows <= 25, done.err
    assert re.search(what, done.err), done.err
    assert re.search(do, done.err), done.err
    assert not OURS.search(done.err), done.err
    assert done.err.count("Give ") <= 1, done.err
    assert not (tmp_path / "out").exists()


def test_there_are_forty_refusals():
    assert len(REFUSALS) >= 40
    assert len({tuple(row[2:]) for row in REFUSALS.values()}) >= 40


def test_every_command_tells_a_wall_of_keys_on_one_screen(state, tmp_path):
    file = renamed("token_mixer", "mixing")(tmp_path, state)
    said = {}
    for command in (("convert", file), ("explain", file, BIAS), ("verify", tmp_path, file), ("parity", file),
                    ("record", file, "--output", tmp_path / "r.safetensors")):  # fmt: skip
        done = sam3lite(*command)
        said[command[0]] = done
        assert done.code in (2, 3), done
        assert len(done.err.splitlines()) <= 25, done.err
    # The last line is the command itself, to be run again.
    told = {name: done.err.splitlines() for name, done in said.items() if name != "verify"}
    assert all(lines[:-1] == told["convert"][:-1] for lines in told.values())
    assert all(lines[-1].startswith(f"  sam3lite {name} ") for name, lines in told.items())
    inspected = sam3lite("inspect", file)
    assert inspected.code == 0
    assert "[mixing is token_mixer]\n" in inspected.out and len(inspected.out.splitlines()) <= 60
