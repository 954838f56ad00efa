"""sam3lite parity --as-used: what the stock call does otherwise, cause by cause, and the recipe that mends it."""

from __future__ import annotations

import ast
import contextlib
import html
import importlib.util
import io
import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from support.folders import (
    DATA,
    ENCODER,
    OLD_NAME,
    ROUNDING,
    TEXT_POSITIONS,
    convert,
    edit,
    old_state,
    right,
    right_verdicts,
    rounding,
    sam3lite,
    tensors,
    tiny_architecture,
    write,
    write_safetensors,
)
from support.hub_files import clip_files

from original_ref import TextStudentEncoder, load_detector, load_reference
from original_ref.detector import prepare
from sam3lite_convert.convert.calling_recipe import detector_recipe, recipe
from sam3lite_convert.parity.as_used.behaviour import PROMPTS, Moved, verdict_of
from sam3lite_convert.parity.as_used.clip_vocabulary import clip_vocabulary
from sam3lite_convert.parity.as_used.stock_model import STOCK_LENGTH
from sam3lite_convert.parity.detector.stock import give_roi_align
from sam3lite_convert.plan import synthetic
from sam3lite_convert.plan.families import SAM3_LITETEXT

pytest.importorskip("instant_clip_tokenizer")
pytest.importorskip("ftfy")

GOLDENS = json.loads((DATA / "goldens" / "tokens.json").read_text(encoding="utf-8"))["cases"]
START, END = 49406, 49407
TF = ("--layout", "transformers")
SMALL = {"vocab": 49408, "text_hidden": 64, "text_heads": 1, "projection_dim": 64}
# The structures of the released variants, in small.
KINDS: dict[str, dict[str, Any]] = {
    "s0": SMALL,
    "s0 at 32": SMALL | {"context": 32},
    "s1": SMALL | {"model_name": "base", "transformer_layers": 4},
    "l": SMALL
    | {"model_name": "base", "transformer_layers": 3, "text_hidden": 128, "text_heads": 2}
    | {"projection_dim": 128},
}
RARE = ["table_rows"]  # a folder whose position table has more rows than the original reads
CAUSES = ["text_cleaning", "truncation", "sequence_length", "pad_id", "mask", "attention"]


def state_of(kind: str) -> dict[str, torch.Tensor]:
    return synthetic.state_dict(tiny_architecture(**KINDS[kind]))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """kind -> a checkpoint of a whole small detector; read only."""
    return {kind: write_safetensors(tmp_path_factory.mktemp("kind"), state_of(kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def s0(files) -> Path:
    return files["s0"]


@pytest.fixture(scope="module")
def folder(s0, tmp_path_factory) -> Path:
    """s0 in the transformers layout, with its tokenizer; read only."""
    clip = tmp_path_factory.mktemp("clip")
    for name, data in clip_files().items():
        (clip / name).write_bytes(data)
    return convert(s0, tmp_path_factory.mktemp("own") / "out", *TF, "--tokenizer", clip)


def as_used(path: Path, *options: object, code: int = 0) -> dict:
    done = sam3lite("parity", "--checkpoint", path, "--as-used", "--json", *options)
    assert done.code == code, done
    return done.json


def prompt_options(prompts: Sequence[str]) -> list[str]:
    return [option for prompt in prompts for option in ("--prompt", prompt)]


def reference(kind: str) -> TextStudentEncoder:
    """The original, from the checkpoint's own tensors: nothing of the comparison has a hand in it."""
    start = ENCODER.removesuffix("encoder.")
    weights = {k.removeprefix(start): t for k, t in state_of(kind).items() if k.startswith(start)}
    sizes = KINDS[kind]
    cfg = {
        "dim": sizes["text_hidden"],
        "n_transformer_layers": sizes.get("transformer_layers", 4),
        "n_heads_per_layer": sizes["text_heads"],
        "context_length": sizes.get("context", 16),
        "model_name": sizes.get("model_name", "mct"),
    }
    return load_reference(cfg, weights)


# ---- two verdicts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_are_exact_the_behaviour_differs_and_the_recipe_is_exact(kind, files):
    record = as_used(files[kind])
    assert record["verdict"] in right(record) and record["candidate"] == "transformers"
    used = record["behaviour"]
    assert record["verdicts"] == {"weights": record["verdict"], "behaviour": "differs"} and used["verdict"] == "differs"
    assert used["recipe"]["verdict"] in right(record) and used["recipe"]["max_abs_diff"] <= rounding(record)
    assert (used["recipe"]["verdict"] == "exact") == (used["recipe"]["prompts"] == 0)
    assert used["remedy"] == "The weights are not the cause. Call the model as in the recipe."
    wanted = [c for c in CAUSES if not ("32" in kind and c == "sequence_length")]
    assert [c["name"] for c in used["causes"]] == wanted
    assert [c["name"] for c in used["absent"]] == RARE + [c for c in CAUSES if c not in wanted]
    for cause in [*used["causes"][:-1], used["together"]]:
        assert cause["relative_l2"] > 1e-3 and cause["prompts"] > 0 and 0 < cause["cosine"] < 1, cause
    assert used["causes"][-1]["relative_l2"] < 1e-5
    assert used["tolerance"] < 1e-5
    assert used["notes"] == []  # the causes add up to the stock call's own ids


def test_the_exit_code_is_that_of_the_weights_unless_behaviour_is_to_count(s0):
    assert sam3lite("parity", "--checkpoint", s0, "--as-used").code == 0
    done = sam3lite("parity", "--checkpoint", s0, "--strict-behaviour", "--json")
    assert (done.code, done.json["verdicts"]["behaviour"]) == (1, "differs")
    assert done.json["verdicts"]["weights"] in right(done.json)


def test_a_fault_in_the_weights_is_in_the_first_verdict_and_not_in_the_causes(s0, folder, tmp_path):
    good = as_used(s0, "--converted", folder)
    bad = tmp_path / "bad"
    shutil.copytree(folder, bad)
    edit(bad, {"text_projection.bias": tensors(bad)["text_projection.bias"] + 1})
    record = as_used(s0, "--converted", bad, code=1)
    assert record["verdicts"] == {"weights": "differs", "behaviour": "differs"}
    assert record["first_divergence"] == "projected"
    assert record["behaviour"]["recipe"]["verdict"] == "differs"
    assert record["behaviour"]["remedy"].startswith("Fix the weights first")
    assert record["behaviour"]["recipe"]["max_abs_diff"] == pytest.approx(1, abs=1e-4)
    # All together is held against the original, so the fault is in that.
    far = good["behaviour"]["together"]["max_abs_diff"]
    assert 1 < record["behaviour"]["together"]["max_abs_diff"] <= 1 + far + 1e-4
    for before, after in zip(good["behaviour"]["causes"], record["behaviour"]["causes"], strict=True):
        # Relative to features that are moved by 1 themselves, so only the absolute figure stays.
        if before["name"] != "attention":
            assert after["max_abs_diff"] == pytest.approx(before["max_abs_diff"], rel=1e-3), before["name"]


def test_both_verdicts_stand_on_lines_of_their_own(s0):
    out = sam3lite("parity", "--checkpoint", s0).out
    assert re.search(r"^verdict 1, weights: exact", out, re.M)
    assert re.search(r"^verdict 2, behaviour: not compared; --as-used", out, re.M)
    assert sam3lite("parity", "--checkpoint", s0, "--json").json["verdicts"] == {"weights": "exact", "behaviour": None}
    out = sam3lite("parity", "--checkpoint", s0, "--as-used", "--prompt", "a dog").out
    either = "|".join(right_verdicts("transformers", (1, 16, 64))).replace("_", " ")
    assert re.search(rf"^verdict 1, weights: ({either})", out, re.M)
    assert re.search(r"^verdict 2, behaviour: differs: .*relative L2", out, re.M)
    assert f"original  {START} 320 1929 {END} 0 x12\n" in out
    assert f"as used   {START} 320 1929 {END} {END} x28\n" in out
    assert "The weights are not the cause. Call the model as in the recipe." in out
    assert (
        re.search(f"^with the recipe: ({either})", out, re.M)
        and recipe(SAM3_LITETEXT, 16, "FOLDER-OF-THE-DETECTOR", False).splitlines()[-1] in out
    )


# ---- the causes, against what is worked out here ------------------------------------------------------


def features(kind: str, ids: Sequence[Sequence[int]], masked: Sequence[int] | None = None) -> list[np.ndarray]:
    """The reference's text features. ``masked``: how many tokens of each row its attention may look at, which
    this reference is told through the mask that it takes for causal encoders."""
    model = reference(kind)
    out = []
    for n, row in enumerate(ids):
        if masked is not None:
            mask = torch.zeros(len(row))
            mask[masked[n] :] = float("-inf")
            model.encoder.causal_mask = lambda x, mask=mask: mask  # type: ignore[method-assign,misc]
        with torch.inference_mode():
            tokens = model.encoder(torch.tensor([list(row)]), return_all_tokens=True)
            out.append(model.projector(tokens)[0].double().numpy())
    return out


def relative(ours: list[np.ndarray], theirs: list[np.ndarray], valid: Sequence[tuple[int, int]]) -> float:
    """Relative L2 over the tokens that both have."""
    pairs = [(a[: min(v)], b[: min(v)]) for a, b, v in zip(ours, theirs, valid, strict=True)]
    error = np.sqrt(sum(((a - b) ** 2).sum() for a, b in pairs))
    return float(error / np.sqrt(sum((a**2).sum() for a, _ in pairs)))


def padded(words: Sequence[int], length: int, pad: int) -> list[int]:
    return [*words, *[pad] * (length - len(words))]


DOG = [START, 320, 1929, END]
LONG = "a yellow school bus that is parked in front of the old brick house across the street"
LONG_IDS = [START, 320, 4481, 1228, 2840, 682, 533, 16487, 530, 2184, 539, 518, 896, 9518, 1212, 2500, 518, 2012, END]
CUT = [*LONG_IDS[:15], END]


@pytest.mark.parametrize("kind", [pytest.param("s0", marks=pytest.mark.stress), "s1"])
def test_each_cause_moves_the_features_as_far_as_worked_out_by_hand(kind, files):
    found = as_used(files[kind], *prompt_options(["a dog", LONG, "a &amp; b"]))["behaviour"]
    by_name = {c["name"]: c for c in found["causes"]} | {"together": found["together"]}
    # "a & b": the tokens were looked up in CLIP's vocabulary, "&</w>" and "&" "amp</w>" ";</w>".
    vocabulary = json.loads(clip_files()["vocab.json"])
    a, b, amp = vocabulary["a</w>"], vocabulary["b</w>"], vocabulary["&</w>"]
    clean = [START, a, amp, b, END]
    raw = [START, a, vocabulary["&"], *found["prompts"][0]["as_used"][3:3], END]
    stock = next(p for p in found["prompts"] if "amp" in p["prompt"])
    raw = stock["as_used"][: stock["valid"]["as_used"]]
    assert raw[:2] == [START, a] and raw[-2:] == [b, END] and len(raw) > len(clean)
    original = [padded(DOG, 16, 0), CUT, padded(clean, 16, 0)]
    ours = features(kind, original)
    sizes = [len(DOG), len(CUT), len(clean)]
    same = [(n, n) for n in sizes]
    expected: dict[str, Callable[[], float]] = {
        "text_cleaning": lambda: relative(
            ours, features(kind, [*original[:2], padded(raw, 16, 0)]), [*same[:2], (len(clean), len(raw))]
        ),
        "truncation": lambda: relative(
            ours, features(kind, [original[0], LONG_IDS, original[2]]), [same[0], (16, len(LONG_IDS)), same[2]]
        ),
        "sequence_length": lambda: relative(
            ours, features(kind, [padded(row[:n], 32, 0) for row, n in zip(original, sizes, strict=True)]), same
        ),
        "pad_id": lambda: relative(
            ours, features(kind, [padded(row[:n], 16, END) for row, n in zip(original, sizes, strict=True)]), same
        ),
        "mask": lambda: relative(ours, features(kind, original, sizes), same),
        "together": lambda: relative(
            ours,
            features(kind, [padded(w, 32, END) for w in (DOG, LONG_IDS, raw)], [4, len(LONG_IDS), len(raw)]),
            [same[0], (16, len(LONG_IDS)), (len(clean), len(raw))],
        ),
    }
    for name, value in expected.items():
        assert by_name[name]["relative_l2"] == pytest.approx(value(), rel=1e-4), name
    assert by_name["truncation"]["tokens_without_counterpart"] == len(LONG_IDS) - 16
    assert by_name["text_cleaning"]["tokens_without_counterpart"] == len(raw) - len(clean)
    moved = {name: c["prompts"] for name, c in by_name.items()}
    assert moved.pop("attention") <= 3  # in how many of them a bit differs is the processor's affair
    assert moved == {
        "text_cleaning": 1, "truncation": 1, "sequence_length": 3, "pad_id": 2, "mask": 2, "together": 3,
    }  # fmt: skip


def test_the_ids_as_used_are_those_of_the_processors_own_tokenizer_call(s0, clip):
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(clip)
    for prompt in as_used(s0)["behaviour"]["prompts"]:
        stock = tokenizer(prompt["prompt"], padding="max_length", max_length=32)
        assert prompt["as_used"] == stock.input_ids
        assert prompt["valid"]["as_used"] == sum(stock.attention_mask)


def test_the_processor_calls_its_tokenizer_as_is_assumed_here():
    """Sam3Processor needs torchvision, so its own source is what the assumption is held against."""
    spec = importlib.util.find_spec("transformers.models.sam3.processing_sam3")
    assert spec is not None and spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text())
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "self.tokenizer"]
    (call,) = [c for c in calls if any(k.arg == "padding" for k in c.keywords)]
    given = {k.arg: ast.unparse(k.value) for k in call.keywords}
    assert given == {"return_tensors": "return_tensors", "padding": "'max_length'", "max_length": str(STOCK_LENGTH)}


def test_prompts_that_the_processor_does_not_cut_are_counted(s0):
    used = as_used(s0)["behaviour"]
    (cause,) = [c for c in used["causes"] if c["name"] == "truncation"]
    assert used["longer_than_the_processor_pads"] == 1 and "the processor fails on a batch with one" in cause["words"]
    assert max(len(p["as_used"]) for p in used["prompts"]) > 32


def test_the_prompts_for_want_of_others_have_every_cause(s0):
    """Otherwise a cause could be missing from the table without anybody seeing it."""
    causes = as_used(s0)["behaviour"]["causes"]
    # All but the last, sdpa, which may have the very bits of eager attention.
    assert [c["name"] for c in causes] == CAUSES and all(c["prompts"] for c in causes[:-1])
    assert len(PROMPTS) == len(set(PROMPTS))


@pytest.mark.parametrize("case", GOLDENS, ids=lambda c: f"context {c['context_length']}")
def test_the_originals_ids_are_those_of_its_tokenizer(case, files):
    kind = "s0" if case["context_length"] == 16 else "s0 at 32"
    for first in range(0, len(case["prompts"]), 20):  # as many as a record lists
        part = case["prompts"][first : first + 20]
        found = as_used(files[kind], *prompt_options(part))["behaviour"]["prompts"]
        ids = {p["prompt"]: p["original"] for p in found}
        assert [ids[prompt] for prompt in part] == case["input_ids"][first : first + 20]


def test_a_folder_with_a_tokenizer_is_used_with_that(s0, folder):
    record = as_used(s0, "--converted", folder)
    used = record["behaviour"]
    assert "padding id 0" in used["tokenizer"]
    assert [c["name"] for c in used["absent"]] == [*RARE, "pad_id"] and "pad with id 0" in used["absent"][1]["words"]
    assert used["verdict"] == "differs" and used["recipe"]["verdict"] in right(record)
    assert all(p["as_used"][-1] in (0, END) for p in used["prompts"])


def test_what_the_words_rest_on_is_said(s0, folder, tmp_path):
    """Verdict 1 is of the text encoder; a cast is on both sides; a fault in the weights comes first."""
    out = sam3lite("parity", "--checkpoint", s0, "--as-used", "--converted", folder).out
    assert re.search(
        r"only the text encoder was compared; for the folder's other [\d,]+ tensors: sam3lite verify ", out
    )
    assert "built-in prompts" in out and "both pad with id 0" in out
    out = sam3lite("parity", "--checkpoint", s0, "--as-used", "--prompt", "dog").out
    assert "built-in" not in out and "HTML entities" not in out and "other tensors" not in out
    half = convert(s0, tmp_path / "half", *TF, "--dtype", "float16")
    out = sam3lite("parity", "--checkpoint", s0, "--as-used", "--converted", half).out
    assert re.search("^verdict 1, weights: .*, both sides in float16", out, re.M)
    assert re.search("^with the recipe: .* the original's.*, both in float16", out, re.M)
    card = (half / "README.md").read_text()
    assert "the original's, rounded to float16" in card and "what the original run in float16 finds" in card
    bad = tmp_path / "bad"
    shutil.copytree(folder, bad)
    edit(bad, {"text_projection.bias": tensors(bad)["text_projection.bias"] + 1})
    out = sam3lite("parity", "--checkpoint", s0, "--as-used", "--converted", bad).out
    assert "Fix the weights first" in out and "not the cause" not in out


@pytest.mark.parametrize(("ours", "theirs"), [(3, 5), (5, 3)])
def test_tokens_that_one_side_lacks_are_a_difference_even_where_all_others_are_equal(ours, theirs):
    tokens = torch.arange(20.0).reshape(5, 4)
    moved = Moved()
    moved.add(tokens[:ours], tokens[:theirs])
    found = moved.record()
    assert (found.prompts, found.tokens_without_counterpart, found.max_abs_diff) == (1, 2, 0.0)
    assert not moved.zero and verdict_of(moved, 1.0) == "differs"
    moved = Moved()
    moved.add(tokens, tokens)
    assert moved.zero and verdict_of(moved, 0.0) == "exact"
    moved.add(tokens, tokens + 0.25)
    assert (verdict_of(moved, 0.25), verdict_of(moved, 0.2)) == ("within_tolerance", "differs")


# ---- the recipe -------------------------------------------------------------------------------------


def run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    with contextlib.redirect_stderr(io.StringIO()):
        exec(compile(code, "recipe", "exec"), names)
    return names


def with_prompts(code: str, prompts: Sequence[str]) -> str:
    assert code.count('prompts = ["a dog"]') == 1
    return code.replace('prompts = ["a dog"]', f"prompts = {list(prompts)!r}")


# The original's vocabulary gives its special tokens names that the library's gives them not.
SPELT = ("<end_of_text>", "<start_of_text>")


def test_the_recipe_as_printed_gives_the_originals_text_features(s0, folder):
    code = as_used(s0, "--converted", folder)["behaviour"]["recipe"]["code"]
    golden = [p for p in GOLDENS[0]["prompts"] if not any(s in html.unescape(p) for s in SPELT)]
    assert len(golden) >= 30
    names = run(with_prompts(code, [*PROMPTS, *golden]))
    model = reference("s0")
    with torch.inference_mode():
        tokens = model.encoder(names["input_ids"], return_all_tokens=True)
        alike = right_verdicts("transformers", tokens.shape) == {"exact"}
        off = 0.0 if alike else ROUNDING
        torch.testing.assert_close(names["text_embeds"].pooler_output, model.projector(tokens), atol=off, rtol=0)
    wanted = [ids for p, ids in zip(GOLDENS[0]["prompts"], GOLDENS[0]["input_ids"], strict=True) if p in golden]
    assert names["input_ids"][len(PROMPTS) :].tolist() == wanted


def test_the_recipe_of_the_card_finds_what_the_original_finds(s0, folder, monkeypatch):
    card = (folder / "README.md").read_text()
    _, code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert code == detector_recipe(SAM3_LITETEXT, 16, ".", own_tokenizer=True)
    text = recipe(SAM3_LITETEXT, 16, ".", own_tokenizer=True).split('prompts = ["a dog"]\n\n')[1]
    assert text.split("# For the detector")[0] in code  # one text half in both
    ((old,),) = [re.findall(r"text_embeds=text_embeds,  # before transformers 5.9: (.*)", code)]
    if Version(transformers.__version__) < Version("5.9"):
        code = code.replace("text_embeds=text_embeds,", f"text_embeds={old},")
    picture = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    give_roi_align(transformers.Sam3LiteTextModel)
    if importlib.util.find_spec("PIL") is None:
        image = SimpleNamespace(open=None)
        monkeypatch.setitem(sys.modules, "PIL", SimpleNamespace(Image=image))
        monkeypatch.setitem(sys.modules, "PIL.Image", image)
    import PIL.Image

    monkeypatch.setattr(PIL.Image, "open", lambda name: SimpleNamespace(convert=lambda mode: picture))
    monkeypatch.chdir(folder)
    names = run(code)
    state = state_of("s0")
    size = names["model"].config.image_size
    heads = dict.fromkeys(
        ("geometry", "encoder", "mask"), names["model"].config.detr_decoder_config.num_attention_heads
    )
    detector = load_detector(state, heads, 16, size)
    with torch.inference_mode():
        wanted = detector(prepare(torch.from_numpy(picture).permute(2, 0, 1), size), torch.tensor([padded(DOG, 16, 0)]))
    scores = wanted["pred_logits"][0, :, 0].sigmoid() * wanted["presence_logit_dec"][0].sigmoid()
    close = {"rtol": 1e-5, "atol": 2e-5}
    torch.testing.assert_close(names["scores"], scores, **close)
    torch.testing.assert_close(names["found"].pred_boxes, wanted["pred_boxes_xyxy"], **close)
    torch.testing.assert_close(names["found"].pred_masks, wanted["pred_masks"], **close)
    kept = int((scores > 0.5).sum())
    assert names["masks"].shape == (kept, 150, 200) and names["boxes"].shape == (kept, 4)


def test_without_a_tokenizer_in_the_folder_the_recipe_takes_clips(s0, folder, clip, tmp_path):
    bare = convert(s0, tmp_path / "bare", *TF, "--component", "all")
    code = as_used(s0, "--converted", bare)["behaviour"]["recipe"]["code"]
    assert 'AutoTokenizer.from_pretrained("openai/clip-vit-base-patch32")' in code
    (clip / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    names = run(code.replace("openai/clip-vit-base-patch32", str(clip)))
    assert names["tokenizer"].pad_token_id == END  # which makes no difference to it
    assert names["input_ids"].tolist() == [padded(DOG, 16, 0)]


def test_a_prompt_that_spells_a_special_token_is_where_the_recipe_ends(s0):
    used = as_used(s0, "--prompt", "dog <end_of_text> cat")["behaviour"]
    assert used["recipe"]["verdict"] == "differs"


# ---- the vocabulary ---------------------------------------------------------------------------------


def test_the_vocabulary_read_out_of_the_tokenizer_is_clips():
    ours, theirs = clip_vocabulary(), clip_files()
    assert json.loads(ours["vocab.json"]) == json.loads(theirs["vocab.json"])
    assert ours["merges.txt"] == theirs["merges.txt"]


# ---- what cannot be run -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--candidate", "packed"], "--candidate transformers"),
        (["--seed", "1"], "cannot be combined with --seed, --batch"),
        (["--batch", "2"], "cannot be combined with --seed, --batch"),
        (["--length", "32"], "cannot be combined with --seed, --batch"),
        (["--self-test"], "--self-test"),
    ],
)
def test_options_that_do_not_go_with_it(options, said, s0):
    done = sam3lite("parity", "--checkpoint", s0, "--as-used", *options)
    assert done.code == 2 and said in done.err and "Traceback" not in done.err


def test_a_packed_folder_is_not_called_by_the_library(s0, tmp_path):
    packed = convert(s0, tmp_path / "packed")
    done = sam3lite("parity", "--checkpoint", s0, "--as-used", "--converted", packed)
    assert done.code == 2 and "does not exist for the layout packed" in done.err
    assert "Convert with --layout transformers and give that folder" in done.err


def test_without_transformers_the_extra_is_named(s0, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    done = sam3lite("parity", "--checkpoint", s0, "--as-used", "--json")
    assert done.code == 2 and done.json["error"]["code"] == "no_transformers"
    assert "sam3lite-convert[transformers,prompts]" in done.json["error"]["message"]


def test_without_the_original_tokenizer_the_extra_is_named(s0, monkeypatch):
    monkeypatch.setitem(sys.modules, "instant_clip_tokenizer", None)
    done = sam3lite("parity", "--checkpoint", s0, "--as-used", "--json")
    assert done.code == 2 and done.json["error"]["code"] == "no_tokenizer"


def test_a_tokenizer_that_is_none_is_a_clear_error(s0, folder, tmp_path):
    bad = tmp_path / "bad"
    shutil.copytree(folder, bad)
    (bad / "tokenizer.json").write_text("[1, 2]")
    done = sam3lite("parity", "--checkpoint", s0, "--as-used", "--converted", bad)
    assert done.code == 2 and "the tokenizer of" in done.err and "Traceback" not in done.err


@pytest.fixture
def own(folder, tmp_path) -> Path:
    """A folder of somebody else's: without the file that newer versions of the library no longer write."""
    copy = tmp_path / "own"
    shutil.copytree(folder, copy)
    (copy / "special_tokens_map.json").unlink()
    return copy


def settings(folder: Path, **changed: Any) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def test_a_folder_that_lacks_a_file_of_the_tokenizer_is_still_used_with_its_own(s0, own):
    used = as_used(s0, "--converted", own, "--prompt", "a dog")["behaviour"]
    assert "the tokenizer of own, padding id 0" in used["tokenizer"]
    assert f"AutoTokenizer.from_pretrained({json.dumps(str(own))})" in used["recipe"]["code"]


def test_a_folder_never_runs_code(s0, own, tmp_path, monkeypatch):
    (own / "tk.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass T: pass\n")
    settings(own, auto_map={"AutoTokenizer": ["tk.T", None]}, tokenizer_class="T")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\ny\n"))
    done = sam3lite("parity", "--checkpoint", s0, "--as-used", "--converted", own, "--json")
    assert not (tmp_path / "ran").exists()
    assert done.code == 2 and "the tokenizer of" in done.json["error"]["message"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"pad_token": "[PAD]"}, "it makes the id 49,408, but the model's vocabulary ends at 49,407"),
        ({"model_max_length": "x"}, "ids of 'dog': the library failed: "),
        ({"pad_token": None}, "it has no padding id"),
    ],
)
def test_a_tokenizer_that_misbehaves_is_a_clear_error(changed, said, s0, own):
    settings(own, **changed)
    done = sam3lite("parity", "--checkpoint", s0, "--as-used", "--converted", own, "--prompt", "dog", "--json")
    assert done.code == 2 and said in done.json["error"]["message"] and "Traceback" not in done.err


def test_a_prompt_that_is_no_text_is_a_clear_error(s0):
    done = sam3lite("parity", "--checkpoint", s0, "--as-used", "--prompt", "a\udc80b", "--json")
    assert done.code == 2 and done.json["error"]["code"] == "no_tokenizer"
    assert "\\udc80" in done.json["error"]["message"]


def test_where_the_recipe_cannot_be_exact_it_says_why(s0):
    record = as_used(s0, "--prompt", "dog <end_of_text> cat", "--prompt", "a dog")
    used = record["behaviour"]
    (note,) = used["notes"]
    assert "differ from the original's for 1 prompts, such as 'dog <end_of_text> cat'" in note
    assert used["recipe"]["verdict"] == "differs"
    assert used["remedy"] == "It still differs when called as in the recipe."
    assert used["recipe"]["prompts"] == 1 or (used["recipe"]["prompts"] == 2 and rounding(record))


def test_a_folder_of_the_text_encoder_alone_is_called_as_the_detector_calls_it(s0, tmp_path):
    text = convert(s0, tmp_path / "text", *TF, "--component", "text")
    record = as_used(s0, "--converted", text)
    used = record["behaviour"]
    assert used["verdict"] == "differs" and used["recipe"]["verdict"] in right(record)
    assert 'Sam3LiteTextModel.from_pretrained("FOLDER-OF-THE-DETECTOR"' in used["recipe"]["code"]


def test_a_tokenizer_that_pads_on_the_left_is_compared_word_by_word(s0, folder, tmp_path):
    left = tmp_path / "left"
    shutil.copytree(folder, left)
    path = left / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": "left"}))
    used = as_used(s0, "--converted", left, "--prompt", "a dog")["behaviour"]
    (prompt,) = used["prompts"]
    assert prompt["as_used"] == [0] * 28 + DOG and prompt["valid"] == {"original": 4, "as_used": 4}
    assert used["together"]["tokens_without_counterpart"] == 0
    assert used["notes"][1:] == ["for 1 prompts the processor's ids are not what these causes together would give"]
    assert "does not pad on the right" in used["notes"][0] and used["recipe"]["verdict"] == "differs"
    # Worked out by hand: the same words at the end of 32, with what stands before them masked.
    model = reference("s0")
    mask = torch.zeros(32)
    mask[:28] = float("-inf")
    model.encoder.causal_mask = lambda x: mask  # type: ignore[method-assign]
    with torch.inference_mode():
        theirs = model.projector(model.encoder(torch.tensor([prompt["as_used"]]), return_all_tokens=True))[0]
    (ours,) = features("s0", [padded(DOG, 16, 0)])
    expected = relative([ours], [theirs[28:].double().numpy()], [(4, 4)])
    assert used["together"]["relative_l2"] == pytest.approx(expected, rel=1e-4)


# ---- a table with more rows than are called ---------------------------------------------------------


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Path:
    """A checkpoint with 77 rows, called with 16; read only."""
    return write(tmp_path_factory.mktemp("old"), old_state(**SMALL), OLD_NAME)


@pytest.fixture(scope="module")
def published(old, folder, tmp_path_factory) -> Path:
    """It as other tools convert it: with all rows, and no receipt; read only."""
    place = convert(old, tmp_path_factory.mktemp("published") / "out", *TF, "--context", 77)
    (place / "conversion.json").unlink()
    for file in folder.glob("*token*"):
        shutil.copy(file, place)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(folder / name, place)
    return place


def called_with(rows: int) -> TextStudentEncoder:
    """The original with its table of 77 rows, cut as it cuts it."""
    start = ENCODER.removesuffix("encoder.")
    weights = {k.removeprefix(start): t for k, t in old_state(**SMALL).items() if k.startswith(start)}
    cfg = {"dim": 64, "n_transformer_layers": 4, "n_heads_per_layer": 1, "context_length": 77, "model_name": "mct"}
    model = load_reference(cfg, weights)
    model.set_context_length(rows)
    return model


def projected(model: TextStudentEncoder, ids: Sequence[int]) -> np.ndarray:
    with torch.inference_mode():
        tokens = model.encoder(torch.tensor([list(ids)]), return_all_tokens=True)
        return model.projector(tokens)[0].double().numpy()


def test_rows_that_are_not_called_are_a_cause_of_their_own(old, published):
    prompts = ["a dog", LONG]
    used = as_used(old, "--converted", published, *prompt_options(prompts), code=1)["behaviour"]
    assert used["context"] == 16
    by_name = {c["name"]: c for c in used["causes"]}
    assert list(by_name)[:4] == ["text_cleaning", "truncation", "table_rows", "sequence_length"]
    assert "has 77 rows" in by_name["table_rows"]["words"] and "the first 16 alone" in by_name["table_rows"]["words"]
    ids, sizes = [padded(DOG, 16, 0), CUT], [len(DOG), len(CUT)]
    same = [(n, n) for n in sizes]
    right_rows, all_rows = called_with(16), called_with(77)
    ours = [projected(right_rows, row) for row in ids]
    theirs = [projected(all_rows, row) for row in ids]
    assert by_name["table_rows"]["relative_l2"] == pytest.approx(relative(ours, theirs, same), rel=1e-4)
    assert by_name["table_rows"]["relative_l2"] > 0.01 and by_name["table_rows"]["prompts"] == 2
    # Every other cause alone is that of a folder with the rows that are called.
    longer = [projected(right_rows, padded(row[:n], 32, 0)) for row, n in zip(ids, sizes, strict=True)]
    assert by_name["sequence_length"]["relative_l2"] == pytest.approx(relative(ours, longer, same), rel=1e-4)


def test_the_recipe_cuts_the_table_of_such_a_folder_and_is_the_originals(old, published):
    record = as_used(old, "--converted", published, code=1)
    used = record["behaviour"]
    assert used["recipe"]["verdict"] in ("exact", "within_tolerance") and used["recipe"]["max_abs_diff"] <= ROUNDING
    assert used["remedy"].startswith("The tensors are the original's, but the original reads only the first 16 rows")
    names = run(with_prompts(used["recipe"]["code"], ["a dog"]))
    assert names["model"].config.text_config.max_position_embeddings == 77
    assert names["input_ids"].tolist() == [padded(DOG, 16, 0)]
    found = names["text_embeds"].pooler_output[0].double().numpy()
    assert np.abs(found - projected(called_with(16), padded(DOG, 16, 0))).max() <= ROUNDING


def test_a_conversion_to_the_called_rows_has_no_such_cause(old, tmp_path):
    place = convert(old, tmp_path / "out", *TF)
    for record in (as_used(old, "--converted", place), as_used(old)):
        used = record["behaviour"]
        assert "table_rows" in [c["name"] for c in used["absent"]] and used["context"] == 16
        assert "position_embedding.data" not in used["recipe"]["code"]
        assert used["recipe"]["verdict"] in right(record)


def test_rows_that_are_not_the_originals_are_a_fault_of_the_weights_and_not_of_the_call(old, published, tmp_path):
    bad = tmp_path / "bad"
    shutil.copytree(published, bad)
    key = TEXT_POSITIONS["transformers"]
    edit(bad, {key: tensors(bad)[key].flip(2)})
    used = as_used(old, "--converted", bad, code=1)["behaviour"]
    assert "table_rows" in [c["name"] for c in used["absent"]]
    assert used["remedy"].startswith("Fix the weights first")
