"""parity --original-repo: the user's own checkout as the reference, and original_ref held against it."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from support.folders import convert, edit, sam3lite, tensors, tiny_architecture, write_safetensors
from support.original_checkout import CLIP, LIBRARIES, STAND_IN, STUDENT, TOKENIZED
from support.original_checkout import edit as edit_checkout

from sam3lite_convert.plan import synthetic

SIZES = {"s0": {}, "base": {"model_name": "base", "transformer_layers": 3}}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    return {
        kind: write_safetensors(
            tmp_path_factory.mktemp(kind), synthetic.state_dict(tiny_architecture(**sizes), text_only=True)
        )
        for kind, sizes in SIZES.items()
    }


@pytest.fixture
def checkout(tmp_path) -> Path:
    return Path(shutil.copytree(STAND_IN, tmp_path / "checkout", ignore=shutil.ignore_patterns("__pycache__")))


def parity(path: Path, checkout: Path, *options: object, code: int = 0) -> dict:
    done = sam3lite("parity", "--checkpoint", path, "--original-repo", checkout, "--json", *options)
    assert done.code == code, done
    return done.json


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("layout", ["packed", "transformers"])
def test_the_checkout_is_the_reference(kind, layout, files, checkout):
    record = parity(files[kind], checkout, "--candidate", layout, "--seed", "1", "--batch", "3")
    # A stand-in written by other hands may round otherwise; the reference may not.
    assert record["verdict"] in ("exact", "within_tolerance")
    assert record["reference"] == f"TextStudentEncoder of {checkout}"
    found = record["original_repo"]
    assert (found["path"], found["commit"]) == (str(checkout), None)
    assert sorted(found["files"]) == sorted([STUDENT, CLIP])
    assert set(found["stood_in"]) >= {*LIBRARIES, TOKENIZED}
    assert found["against_original_ref"]["verdict"] in ("exact", "within_tolerance")


def test_what_was_run_is_said(files, checkout):
    done = sam3lite("parity", "--checkpoint", files["s0"], "--original-repo", checkout)
    first, *listed = done.err.partition("note: --original-repo runs")[2].splitlines()[:3]
    assert first == f" the code of these files of {checkout}, and of no other there:"
    hashed = (
        f"  {file}  SHA-256 {hashlib.sha256((checkout / file).read_bytes()).hexdigest()}" for file in (STUDENT, CLIP)
    )
    assert listed == list(hashed)
    assert (
        STUDENT in done.out
        and "not run, replaced by stand-ins: timm" in done.out
        and "compared with original_ref: " in done.out
    )
    plain = sam3lite("parity", "--checkpoint", files["s0"])
    assert "--original-repo" not in plain.err and "original_ref" not in plain.out


def test_a_checkout_that_computes_otherwise_is_not_taken_for_a_fault_in_the_weights_alone(files, checkout):
    edit_checkout(checkout, CLIP, ("weight, bias, self.eps)", "weight, bias, 0.5)"))
    record = parity(files["s0"], checkout, code=1)
    assert (record["verdict"], record["first_divergence"]) == ("differs", "layers.1")
    against = record["original_repo"]["against_original_ref"]
    assert (against["verdict"], against["first_divergence"]) == ("differs", "layers.1")
    done = sam3lite("parity", "--checkpoint", files["s0"], "--original-repo", checkout)
    assert "original_ref: differs" in done.out and "first at layers.1" in done.out


def test_a_fault_in_the_folder_is_found_against_the_checkout(files, checkout, tmp_path):
    folder = convert(files["s0"], tmp_path / "out", "--component", "text")
    key = "text_encoder.layers.2.attention.out_proj.bias"
    edit(folder, {key: tensors(folder)[key] * 0})
    record = parity(files["s0"], checkout, "--converted", folder, code=1)
    assert record["first_divergence"] == "layers.2" and "out_proj.bias is missing" in record["diagnosis"]["cause"]
    assert record["original_repo"]["against_original_ref"]["verdict"] != "differs"


def test_many_rows_and_a_shorter_context(files, checkout, tmp_path):
    record = parity(files["s0"], checkout, "--seed", "2", "--batch", "200")
    assert record["verdict"] != "differs" and record["inputs"]["shape"] == [200, 16]
    assert record["original_repo"]["against_original_ref"]["verdict"] != "differs"
    folder = convert(files["s0"], tmp_path / "cut", "--component", "text", "--context", "8")
    if "def set_context_length" in (checkout / STUDENT).read_text():
        assert parity(files["s0"], checkout, "--converted", folder)["verdict"] != "differs"
    else:
        done = sam3lite(
            "parity", "--checkpoint", files["s0"], "--original-repo", checkout, "--converted", folder, "--json"
        )
        assert done.code == 2 and "set_context_length" in done.json["error"]["message"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_in_half_precision(dtype, files, checkout):
    record = parity(files["base"], checkout, "--dtype", dtype)
    assert record["verdict"] in ("exact", "within_tolerance") and record["dtype"] == dtype


def test_the_self_test_passes_against_it(files, checkout):
    record = parity(files["base"], checkout, "--self-test", "--seed", "1", "--batch", "4")
    assert record["verdict"] == "passed"


def test_a_folder_that_is_no_checkout_is_a_clear_error(files, tmp_path):
    done = sam3lite("parity", "--checkpoint", files["s0"], "--original-repo", tmp_path, "--json")
    assert done.code == 2 and done.json["error"]["code"] == "no_original_repo"
    assert str(tmp_path) in done.json["error"]["message"] and "\n" not in done.json["error"]["message"]


def test_code_that_fails_while_it_runs_is_a_clear_error(files, checkout):
    edit_checkout(
        checkout, CLIP, ("def forward(self, x, mask=None):\n", "def forward(self, x, mask=None):\n        1 / 0\n")
    )
    done = sam3lite("parity", "--checkpoint", files["s0"], "--original-repo", checkout, "--json")
    assert done.code == 2 and done.json["error"]["code"] == "original_repo_failed"
    assert "division by zero" in done.json["error"]["message"] and "mobile_clip.py" in done.json["error"]["message"]


EMBED = "        x = self.embedding_layer(ids)"
LAYER = "        x = x + self.drop_path(dropout(attention(norm(x), mask)))\n"
IN_PLACE = "        x.add_(self.drop_path(dropout(attention(norm(x), mask))))\n"
RETURN = "return x + self.drop_path(self.pre_norm_ffn(x))"
CALL = "x = layer(x, mask)"
IMPORT = "import torch.nn.functional as F\n"
# Code that does something to what it shares with others, put before the embedding.
MEDDLING = {
    "its weights": "self.embedding_layer.weight.data[0].zero_()",
    "its weights, again and again": "self.embedding_layer.weight.data.mul_(1.5)",
    "its ids": "ids[ids == 320] = 5",
}


@pytest.mark.parametrize("what", MEDDLING)
def test_code_that_changes_what_it_was_given_changes_nothing_else(what, files, checkout):
    edit_checkout(checkout, CLIP, (EMBED, f"        {MEDDLING[what]}\n{EMBED}"))
    record = parity(files["s0"], checkout, code=1)
    assert (record["verdict"], record["first_divergence"]) == ("differs", "embeddings")
    assert record["original_repo"]["against_original_ref"]["verdict"] == "differs"
    assert record["inputs"]["ids"][0][:4] == [510, 320, 511, 0]


def test_layers_that_write_over_their_input_are_recorded_as_they_were(files, checkout):
    edit_checkout(checkout, CLIP, (LAYER, IN_PLACE), (RETURN, "return x.add_(self.pre_norm_ffn(x))"))
    record = parity(files["base"], checkout, "--seed", "1", "--batch", "3")
    assert record["verdict"] in ("exact", "within_tolerance")
    assert record["original_repo"]["against_original_ref"]["verdict"] != "differs"


def test_layers_that_are_called_by_keyword_are_recorded(files, checkout):
    edit_checkout(checkout, CLIP, (CALL, "x = layer(x=x, mask=mask)"))
    edit_checkout(checkout, CLIP, ("def forward(self, x, mask=None)", "def forward(self, *, x, mask=None)"))
    assert parity(files["base"], checkout)["verdict"] in ("exact", "within_tolerance")


PAIR = [(RETURN, f"{RETURN}, 1"), (CALL, "x, _ = layer(x, mask)")]
NORM = [("self.final_layer_norm(x)", "self.final_layer_norm.forward(x)")]
AXES = [("            return x\n", "            return x.transpose(0, 1)\n")]
NARROW = [("@ self.projection_layer", "@ self.projection_layer[:, :4]")]
POOLED = [("@ self.projection_layer", "@ self.projection_layer, 1")]
NAMED = [("nn.ModuleList(layers)", "nn.ModuleDict({str(n): l for n, l in enumerate(layers)})")]
MUTE = [(EMBED, f"        class Mute(Exception):\n            __str__ = None\n        raise Mute\n{EMBED}")]
# name -> (changes, what is said)
OTHERWISE = {
    "a layer that gives a pair": (PAIR, "at layers.0 its activation is tuple"),
    "a layer whose forward is called": ([(CALL, "x = layer.forward(x, mask)")], "no activation at "),
    "a norm whose forward is called": (NORM, "no activation at final_layer_norm"),
    "another order of axes": (AXES, "at projected its activation is"),
    "a narrower pooled output": (NARROW, "at pooled its activation is"),
    "a pair of pooled outputs": (POOLED, "at pooled its activation is tuple"),
    "no list of layers": (NAMED, "is not a list of layers"),
    "an exception that cannot be read": (MUTE, "Mute"),
    "a leave": ([(EMBED, f"        raise GeneratorExit\n{EMBED}")], "GeneratorExit"),
}


@pytest.mark.parametrize("what", OTHERWISE)
def test_a_checkout_that_is_built_otherwise_is_a_clear_error(what, files, checkout):
    changes, said = OTHERWISE[what]
    edit_checkout(checkout, CLIP, *changes)
    done = sam3lite("parity", "--checkpoint", files["base"], "--original-repo", checkout, "--json")
    assert done.code == 2 and done.json["error"]["code"] == "original_repo_failed", done
    assert said in done.json["error"]["message"] and "\n" not in done.json["error"]["message"]
    assert "Traceback" not in done.err


def test_settings_that_its_code_makes_do_not_outlive_it(files, checkout):
    text = (
        "import os, sys\nos.environ['LEFT'] = 'x'\nsys.path.insert(0, 'left')\ntorch.set_default_dtype(torch.float64)\n"
    )
    edit_checkout(checkout, CLIP, ("import torch.nn.functional as F\n", f"import torch.nn.functional as F\n{text}"))
    parity(files["base"], checkout)
    assert "LEFT" not in os.environ and "left" not in sys.path and torch.get_default_dtype() is torch.float32


def test_files_that_import_everything_of_each_other_take_no_time(files, checkout):
    names = [f"star{n}" for n in range(12)]
    for name in names:
        others = "".join(f"from .{other} import *\n" for other in names if other != name)
        (checkout / CLIP).with_name(f"{name}.py").write_text(others)
    edit_checkout(
        checkout,
        CLIP,
        ("import torch.nn.functional as F\n", "import torch.nn.functional as F\nfrom .star0 import gone\n"),
    )
    assert parity(files["base"], checkout)["verdict"] != "differs"


def test_it_does_not_go_with_judge(tmp_path, checkout):
    done = sam3lite("parity", "--judge", tmp_path / "a", "--original-repo", checkout)
    assert done.code == 2 and "--judge" in done.err
