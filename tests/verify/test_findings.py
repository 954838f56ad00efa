"""Findings: one a cause and component, with a code that is explained, and all keys."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from support.folders import (
    POSITIONS,
    QKV,
    TEXT_POSITIONS,
    TRUNK,
    convert,
    edit,
    edit_config,
    flip_bit,
    raw,
    sam3lite,
    tensors,
    tiny_state,
    verify,
)

from sam3lite_convert.convert import folder as folders
from sam3lite_convert.plan.key_patterns import key_patterns
from sam3lite_convert.verify import recognise
from sam3lite_convert.verify.codes import CODES
from sam3lite_convert.verify.diagnose import _went_through

VERIFY = Path(recognise.__file__).parent
LAYER = "text_encoder.layers."
VIT = "vision_encoder.backbone.layers."
TOKENS = "text_encoder.embeddings.token_embedding.weight"
CLASS_TABLE = "vision_encoder.backbone.embeddings.position_embeddings"


@pytest.fixture(scope="module")
def good(tiny, tmp_path_factory):
    """layout -> a folder that no test changes."""
    root = tmp_path_factory.mktemp("good")
    return {layout: convert(tiny, root / layout, "--layout", layout) for layout in ("packed", "transformers")}


@pytest.fixture
def bad(good, tmp_path):
    """A folder in the transformers layout without a receipt, for a test to spoil."""
    folder = shutil.copytree(good["transformers"], tmp_path / "bad")
    (folder / "conversion.json").unlink()
    return folder


@pytest.fixture
def packed(good, tmp_path):
    folder = shutil.copytree(good["packed"], tmp_path / "packed")
    (folder / "conversion.json").unlink()
    return folder


def findings(folder, checkpoint, *options):
    """The findings of a folder that does not match."""
    done = verify(folder, checkpoint, *options)
    assert (done.code, done.json["verdict"]) == (1, "mismatch"), done
    return done.json["findings"]


def text_keys(folder):
    """The floating tensors of the text encoder and of its projection, as torch counts them."""
    held = tensors(folder)
    return [k for k, t in held.items() if k.startswith(("text_encoder.", "text_projection.")) and t.is_floating_point()]


# ---- one finding a cause -----------------------------------------------------------------------


def test_swapped_q_and_k_are_one_finding(bad, tiny):
    held, module = tensors(bad), LAYER + "2.self_attn."
    pairs = [(a, b) for a, b in ("qk", "kq")]
    edit(bad, {f"{module}{a}_proj.{x}": held[f"{module}{b}_proj.{x}"] for a, b in pairs for x in ("weight", "bias")})
    (finding,) = findings(bad, tiny)
    assert (finding["code"], finding["component"]) == ("V-SWAPPED", "text_encoder")
    assert finding["cause"] == "q and k are swapped"
    assert sorted(finding["keys"]) == sorted(f"{module}{p}_proj.{x}" for p in "qk" for x in ("weight", "bias"))
    assert finding["patterns"] == [module + "{q,k}_proj.{weight,bias} (4)"] or len(finding["patterns"]) == 1


def test_swapped_layers_are_one_finding(bad, tiny):
    held = tensors(bad)
    a, b = LAYER + "3.", LAYER + "4."
    edit(bad, {x + k.removeprefix(y): t for x, y in ((a, b), (b, a)) for k, t in held.items() if k.startswith(y)})
    (finding,) = findings(bad, tiny)
    assert finding["code"] == "V-SWAPPED"
    assert "text_encoder.layers.3 and .4" in finding["cause"]
    assert len(finding["keys"]) == 2 * sum(k.startswith(a) for k in held)


def test_a_round_trip_through_half_precision_is_one_finding_a_component(bad, tiny):
    held = tensors(bad)
    rounded = {k: t.half().float() for k, t in held.items() if t.is_floating_point()}
    edit(bad, rounded)
    done = verify(bad, tiny).json
    by_component = {f["component"]: f for f in done["findings"]}
    assert {f["code"] for f in done["findings"]} == {"V-HALF-PRECISION"}
    assert len(by_component) == len(done["findings"]) == 7
    assert len(done["mismatched"]) == sum(len(f["keys"]) for f in done["findings"]) == len(rounded)
    # Fewer lines than tensors: keys are patterns, all of them are in the JSON alone.
    out = sam3lite("verify", bad, "--checkpoint", tiny).out
    assert out.count("V-HALF-PRECISION") == 1 + 1  # one block for all components, and the line on how to read more
    assert len(out.splitlines()) < 20
    # The counters of BatchNorm, which are integers, are not counted.
    assert f"all {len(rounded):,} tensors differ, went through half precision" in done["summary"]


def test_a_fine_tune_is_one_finding_with_its_numbers(bad, tiny):
    held = {k: t.clone() for k, t in tensors(bad).items()}  # older safetensors maps the file, which is written to
    torch.manual_seed(0)
    keys = text_keys(bad)
    tuned = {k: held[k] + 0.01 * held[k].std(unbiased=False) * torch.randn(held[k].shape) for k in keys}
    edit(bad, tuned)
    done = verify(bad, tiny).json
    (finding,) = done["findings"]
    assert (finding["code"], finding["component"]) == ("V-FINE-TUNED", "text_encoder")
    assert sorted(finding["keys"]) == sorted(keys)
    a, b = (torch.cat([x[k].double().flatten() for k in keys]) for x in (held, tuned))
    assert finding["relative_l2"] == pytest.approx(float((a - b).norm() / a.norm()), rel=1e-9)
    assert finding["max_abs_diff"] == pytest.approx(float((a - b).abs().max()), rel=1e-9)
    counters = sum(k.startswith("text_encoder.") and k.endswith("num_batches_tracked") for k in held)
    others = len(held) - len(keys)
    assert counters == 8
    assert (
        done["summary"]
        == f"text encoder: all {len(keys)} differ, like a fine-tune; the other {others} are equal to the bit"
    )
    out = sam3lite("verify", bad, "--checkpoint", tiny).out.splitlines()
    assert out[0] == done["summary"]  # the summary comes first


def test_tensors_that_a_fine_tune_left_partly_alone_belong_to_it(bad, tiny):
    held = tensors(bad)
    torch.manual_seed(0)
    tuned = {k: held[k] + 0.01 * torch.randn(held[k].shape) for k in text_keys(bad) if held[k].dim() == 2}
    tuned[TOKENS][50:] = held[TOKENS][50:]  # rows of words that the training did not see
    edit(bad, tuned)
    (finding,) = findings(bad, tiny)
    assert finding["code"] == "V-FINE-TUNED" and len(finding["keys"]) == len(tuned)


def test_another_training_is_unrelated(bad, tiny):
    held = tensors(bad)
    torch.manual_seed(0)
    edit(
        bad,
        {k: torch.randn(held[k].shape) * 0.05 + (held[k].mean() if held[k].dim() == 1 else 0) for k in text_keys(bad)},
    )
    done = verify(bad, tiny).json
    (finding,) = done["findings"]
    assert finding["code"] == "V-UNRELATED" and "random initialisation" in finding["cause"]
    assert "unrelated to the source" in done["summary"]


def test_components_are_findings_of_their_own(bad, tiny):
    held = tensors(bad)
    keys = [LAYER + "2.mlp.fc1.weight", LAYER + "3.mlp.fc1.weight", "detr_decoder.layers.0.mlp.fc1.weight"]
    edit(bad, {k: held[k].bfloat16().float() for k in keys})
    found = findings(bad, tiny)
    assert [(f["code"], f["component"], len(f["keys"])) for f in found] == [
        ("V-HALF-PRECISION", "text_encoder", 2), ("V-HALF-PRECISION", "detr_decoder", 1),
    ]  # fmt: skip
    assert found[0]["patterns"] == [LAYER + "{2,3}.mlp.fc1.weight (2)"]
    assert "DETR decoder" in sam3lite("verify", bad, "--checkpoint", tiny).out


def test_counters_that_differ_are_not_said_to_be_equal(bad, tiny):
    counters = [k for k in tensors(bad) if k.endswith("num_batches_tracked")]
    edit(bad, dict.fromkeys(counters, torch.tensor(7)))
    done = verify(bad, tiny).json
    assert done["verdict"] == "proven"
    count = done["targets"]
    assert done["summary"].startswith(f"{count - len(counters)} of {count} tensors turn back")


# ---- every code is in the catalogue, and can be made ------------------------------------------------


def rolled(tensor):
    return torch.cat([tensor.chunk(3)[n] for n in (1, 0, 2)])


def by_head(tensor):
    return tensor.reshape(3, 2, -1).transpose(0, 1).reshape(tensor.shape)


def changes(folder, layout):
    """code -> the changes of tensors that make it, for the codes of tensors in this layout."""
    held, state = tensors(folder), tiny_state()
    fc1, q, k = LAYER + "2.mlp.fc1.weight", LAYER + "2.self_attn.q_proj.weight", LAYER + "2.self_attn.k_proj.weight"
    if layout == "packed":
        fused = LAYER + "1.attention.in_proj_weight"
        return {"V-QKV-ORDER": {fused: rolled(held[fused])}, "V-QKV-INTERLEAVED": {fused: by_head(held[fused])}}
    noisy = held[fc1].clone()
    noisy[0] += 1
    nan = held[fc1].clone()
    nan[0] = float("nan")
    points = state["detector.geometry_encoder.points_pool_project.bias"]
    return {
        "V-TRANSPOSED": {q: held[q].T},
        "V-RESHAPED": {fc1: held[fc1].reshape(held[fc1].shape[::-1]).T},
        "V-QKV-UNSPLIT": {LAYER + "1.self_attn.q_proj.weight": state[QKV]},
        "V-SWAPPED": {q: held[k], k: held[q]},
        "V-OTHER-TENSOR": {fc1: held[LAYER + "3.mlp.fc1.weight"]},
        "V-DROPPED-IN-PLACE": {"geometry_encoder.boxes_pool_project.bias": points},
        "V-CLASS-ROW": {CLASS_TABLE: state[TRUNK + "pos_embed"]},
        "V-ROWS": {TEXT_POSITIONS["transformers"]: torch.cat([state[POSITIONS]] * 2, 2)},
        "V-HALF-PRECISION": {fc1: held[fc1].half().float()},
        "V-SCALED": {fc1: held[fc1] * 3},
        "V-CONSTANT": {fc1: torch.zeros_like(held[fc1])},
        "V-NOT-FINITE": {fc1: nan},
        "V-ONE-BIT": {fc1: flip_bit(held[fc1], 5)},
        "V-FINE-TUNED": {x: held[x] + 1e-3 * torch.randn(held[x].shape) for x in (fc1, TOKENS)},
        "V-UNRELATED": {fc1: torch.randn(held[fc1].shape)},
        "V-OTHER-VALUES": {fc1: noisy},
        "V-MISSING": {fc1: None},
        "V-UNEXPECTED": {"extra": torch.zeros(1)},
        "V-SHAPE": {fc1: held[fc1][:-1]},
        "V-DTYPE": {fc1: held[fc1].half()},
    }


def spoil_class(folder):
    edit_config(folder, "architectures", value=["Sam3Model"])


def spoil_eps(folder):
    edit_config(folder, "vision_config", "backbone_config", "layer_norm_eps", value=1e-6)


def lose_config(folder):
    (folder / "config.json").unlink()


def spoil_heads(folder):
    edit_config(folder, "text_config", "num_attention_heads", value=4)


def spoil_fingerprint(folder):
    path = folder / "fingerprint.json"
    content = json.loads(path.read_text())
    content["taps"][3]["values"][5] += 0.5
    path.write_text(json.dumps(content))


def spoil_dtype(folder):
    edit_config(folder, "dtype", value="bfloat16")


def spoil_rope(folder):
    edit_config(folder, "vision_config", "backbone_config", "rope_theta", value=500.0)


def spoil_type(folder):
    edit_config(folder, "text_config", "num_attention_heads", value="2")


def spoil_processor(folder):
    path = folder / "preprocessor_config.json"
    path.write_text(path.read_text().replace("0.5", "0.4"))


def spoil_tokenizer(folder):
    (folder / "tokenizer_config.json").write_text('{"pad_token": "<|endoftext|>"}')


FILES = {
    "V-FINGERPRINT": spoil_fingerprint,
    "V-CONFIG-CLASS": spoil_class,
    "V-CONFIG-EPS": spoil_eps,
    "V-CONFIG-MISSING": lose_config,
    "V-CONFIG-FIELD": spoil_heads,
    "V-CONFIG-DTYPE": spoil_dtype,
    "V-CONFIG-ROPE": spoil_rope,
    "V-CONFIG-TYPE": spoil_type,
    "V-PROCESSOR": spoil_processor,
    "V-TOKENIZER": spoil_tokenizer,
}
PACKED = ("V-QKV-ORDER", "V-QKV-INTERLEAVED")
# Made in tests of their own; those of a folder in tests/verify/test_taken.py, V-LICENCE in tests/cli/test_licence.py.
OF_A_FOLDER = {
    folders.NOT_TAKEN, folders.INDEX, folders.TWICE, folders.WEIGHTS, folders.FORMAT, folders.WRAPPED,
    folders.PREFIX, folders.DISTRIBUTED, folders.ADAPTER,
}  # fmt: skip
OF_A_FAMILY = {"V-FILLED", "V-ROW-ORDER"}  # in tests/verify/test_video_folder.py
OF_A_GRAPH = {"V-GRAPH", "V-GRAPH-FILE", "V-GRAPH-WEIGHTS", "V-GRAPH-VERSION"}  # in tests/verify/test_graphs.py
ELSEWHERE = {"V-RECEIPT", "V-LICENCE", "V-CAST-OVERFLOW", "V-ROTARY", *OF_A_FOLDER, *OF_A_FAMILY, *OF_A_GRAPH}


def codes_in_the_code():
    """Every code that stands in the modules of verify and in that of folders, but for the catalogue."""
    return {
        code
        for path in (*VERIFY.glob("*.py"), Path(folders.__file__))
        if path.name != "codes.py"
        for code in re.findall(r"\"(V-[A-Z-]+)\"", path.read_text())
    } - {"V-CONFIG"}


def test_every_code_is_in_the_catalogue_and_the_other_way_round():
    assert codes_in_the_code() == CODES.keys()
    assert all(all(vars(code).values()) for code in CODES.values())


def test_every_code_has_a_test_that_makes_it(good):
    made = {*changes(good["transformers"], "transformers"), *PACKED, *FILES, *ELSEWHERE}
    assert made == CODES.keys()


@pytest.mark.parametrize("code", sorted(CODES.keys() - FILES.keys() - ELSEWHERE))
def test_the_code_of_a_wrong_tensor(code, bad, packed, tiny):
    torch.manual_seed(0)
    folder, layout = (packed, "packed") if code in PACKED else (bad, "transformers")
    change = changes(folder, layout)[code]
    edit(folder, change)
    (finding,) = findings(folder, tiny)
    assert finding["code"] == code, finding
    assert sorted(finding["keys"]) == sorted(change)


def test_wrong_tensors_have_their_codes_without_torch_too(bad, tiny, monkeypatch):
    held = tensors(bad)
    fc1 = [f"{LAYER}{i}.mlp.fc1.weight" for i in (2, 3)]
    fc2 = f"{LAYER}2.mlp.fc2.weight"
    positions = torch.cat([held[TEXT_POSITIONS["transformers"]] + 0.5] * 2, 2)
    edit(
        bad,
        {
            fc1[0]: held[fc1[0]].bfloat16().float(),
            fc1[1]: held[fc1[1]] + 0.1 * held[fc2].T.reshape(held[fc1[1]].shape),
            fc2: held[fc2].half(),
            TEXT_POSITIONS["transformers"]: positions,
        },
    )
    (bad / "fingerprint.json").unlink()
    monkeypatch.setitem(sys.modules, "torch", None)
    done = verify(bad, tiny)
    assert done.code == 1, done
    codes = {key: f["code"] for f in done.json["findings"] for key in f["keys"]}
    assert (codes[fc1[0]], codes[fc2]) == ("V-HALF-PRECISION", "V-DTYPE")
    assert codes[TEXT_POSITIONS["transformers"]] == "V-ROWS" and fc1[1] in codes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_told_as_torch_rounds(dtype):
    bits = torch.randint(-(2**31), 2**31 - 1, (200_000,), generator=torch.Generator().manual_seed(0)).int()
    edges = torch.tensor(
        [0.0, -0.0, float("inf"), 65504.0, 65519.9, 65520.0, 6e-8, 2e-8, 3.4e38, 1.00390625, 1.01171875]
    )
    values = torch.cat([bits.view(torch.float32), edges])
    rounded = values.to(dtype).float()
    name = str(dtype).removeprefix("torch.")
    assert _went_through(raw(values), name, raw(rounded))
    usual = values.abs().gt(1e-3) & values.abs().lt(1e3)
    for n in usual.nonzero().flatten()[:20].tolist():
        other = rounded.clone()
        other[n] = torch.nextafter(other[n], torch.tensor(float("inf")))
        assert not _went_through(raw(values), name, raw(other))


@pytest.mark.parametrize("code", FILES)
def test_the_code_of_a_wrong_file(code, bad, tiny):
    FILES[code](bad)
    found = findings(bad, tiny)
    assert {f["code"] for f in found} == {code}


def test_the_code_of_a_wrong_receipt(good, tiny, tmp_path):
    folder = shutil.copytree(good["packed"], tmp_path / "out")
    edit_receipt = (folder / "conversion.json").read_text().replace('"operation": "keep"', '"operation": "kept"')
    (folder / "conversion.json").write_text(edit_receipt)
    (finding,) = findings(folder, tiny)
    assert finding["code"] == "V-RECEIPT"


# ---- explain CODE ---------------------------------------------------------------------------------


@pytest.mark.parametrize("code", CODES)
def test_a_code_is_explained_in_full(code):
    done = sam3lite("explain", code.lower())
    assert done.code == 0, done
    record = sam3lite("explain", code, "--json").json
    assert record["code"] == code
    for field in ("title", "meaning", "seen", "cost", "mend"):
        assert record[field] in " ".join(done.out.split())  # lines end between words


def test_an_unknown_code_exits_with_2_and_names_the_nearest():
    done = sam3lite("explain", "v-transpose", "--json")
    assert done.code == 2
    assert "V-TRANSPOSED" in done.json["error"]["details"]["near"]
    assert "V-TRANSPOSED" in sam3lite("explain", "transposed").err
    assert "sam3lite explain s0 no.such.thing" in sam3lite("explain", "no.such.thing").err


# ---- patterns ----------------------------------------------------------------------------------------

PATTERNS = {
    ("a.b",): ("a.b",),
    ("a.0.w", "a.1.w", "a.2.w", "a.5.w"): ("a.{0..2,5}.w (4)",),
    ("a.0.w", "a.1.w", "b.w"): ("a.{0,1}.w (2)", "b.w"),
    ("a.0.x", "a.0.y", "a.1.x"): ("a.{0,1}.x (2)", "a.0.y"),
    ("l.0.q_proj", "l.0.k_proj", "l.1.q_proj", "l.1.k_proj"): ("l.{0,1}.{q,k}_proj (4)",),
    ("a.01.w", "a.1.w"): ("a.01.w", "a.1.w"),
    ("c.json: counts", "c.json: dropped"): ("c.json: {counts,dropped} (2)",),
}


@pytest.mark.parametrize("keys", PATTERNS)
def test_keys_as_patterns(keys):
    assert key_patterns(keys) == PATTERNS[keys]


def test_a_pattern_stands_for_its_keys_and_no_others(good):
    every = sorted(tensors(good["transformers"]))  # older safetensors give them in any order
    assert len(key_patterns(every)) < len(every) / 4
    keys = every[::3]
    shown = key_patterns(keys)
    out = []
    for pattern in shown:
        boxes = [""]
        for part in re.split(r"(\{[^}]*\})", pattern.partition(" ")[0]):
            values = part[1:-1].split(",") if part.startswith("{") else [part]
            values = [
                str(n)
                for v in values
                for n in (range(int(v.split("..")[0]), int(v.split("..")[1]) + 1) if ".." in v else [v])
            ]
            boxes = [box + v for box in boxes for v in values]
        count = re.search(r"\((\d+)\)", pattern)
        assert len(boxes) == (int(count[1]) if count else 1)
        out += boxes
    assert sorted(out) == sorted(keys)
