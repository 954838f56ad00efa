"""sam3lite judge: a port that runs elsewhere, from what it computed, in whatever file it lies."""

from __future__ import annotations

import functools
import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.folders import ROUNDING, convert, sam3lite, tiny_architecture, write, write_safetensors
from support.goldens import activations

import sam3lite_convert as s3
from original_ref import load_reference
from sam3lite_convert.parity.original import reference_cfg
from sam3lite_convert.plan import synthetic

TEXT = "detector.backbone.language_backbone."
TAPS = ["embeddings", *(f"layers.{i}" for i in range(6)), "final_layer_norm", "projected", "pooled"]
SWAPPED = "encoder.transformer.3.pre_norm_mha.1.qkv_proj."
IDS = torch.tensor([[510, 320, 511, *[0] * 13], [510, 7, 99, 320, 4, 511, *[0] * 10], [510, *range(1, 15), 511]])
Side = dict[str, torch.Tensor]


@functools.cache
def state() -> Side:
    return synthetic.state_dict(tiny_architecture(), text_only=True)


@functools.cache
def weights() -> Side:
    return {k.removeprefix(TEXT): t for k, t in state().items()}


def port(ids: torch.Tensor = IDS, dtype: torch.dtype = torch.float32, **changed: torch.Tensor) -> Side:
    """What a right port computes; ``changed``: weights (dots written as __) in place of its own."""
    changes = {name.replace("__", "."): tensor for name, tensor in changed.items()}
    held = {k: t.to(dtype) if t.is_floating_point() else t for k, t in (weights() | changes).items()}
    made = activations(load_reference(reference_cfg(tiny_architecture(), 16), held), ids)
    return {tap: made[tap] for tap in TAPS}


@functools.cache
def good() -> Side:
    return port()


@functools.cache
def bad() -> Side:
    """q and k are swapped in layer 3."""
    thirds = {SWAPPED + leaf: weights()[SWAPPED + leaf].chunk(3) for leaf in ("weight", "bias")}
    return port(**{name.replace(".", "__"): torch.cat([k, q, v]) for name, (q, k, v) in thirds.items()})


@pytest.fixture(scope="module")
def s0(tmp_path_factory):
    return write_safetensors(tmp_path_factory.mktemp("judge"), state())


def saved(folder: Path, side: Side, ids: torch.Tensor | None = IDS, name: str = "mine.safetensors") -> Path:
    held = side if ids is None else {"input_ids": ids, **side}
    save_file({k: t.clone().contiguous() for k, t in held.items()}, folder / name)
    return folder / name


def judge(file: Path, checkpoint: Path, *options: object, code: int = 0) -> Any:
    done = sam3lite("judge", file, "--checkpoint", checkpoint, "--json", *options)
    assert (done.code, done.err) == (code, ""), done
    return done.json


def refused(code: int, *words: object) -> str:
    done = sam3lite("judge", *words)
    assert (done.code, done.out) == (code, ""), done
    assert done.err.startswith("error: ") and "Traceback" not in done.err
    return done.err


def column(record: Any, field: str) -> dict[str, Any]:
    return {tap["name"]: tap[field] for tap in record["layers"]}


# ---- what it says -------------------------------------------------------------------------------


def test_a_file_of_plain_save_file_is_judged(s0, tmp_path):
    record = judge(saved(tmp_path, good()), s0, "--name", "my port")
    assert (record["verdict"], record["first_divergence"], record["max_abs_diff"]) == ("exact", None, 0.0)
    assert [tap["name"] for tap in record["layers"]] == TAPS
    assert (record["candidate"], record["candidate_encoder"], record["attention"]) == ("my port", "my port", "unknown")
    assert record["inputs"]["ids"] == IDS.tolist() and record["inputs"]["what"] == "the ids of the file"
    # No isolated activation was given, so that nothing is said of one.
    assert set(column(record, "isolated_max_abs_diff").values()) == {None}
    assert record["port"]["isolated"] == 0 and record["notes"] == []


def test_without_a_checkpoint_it_says_how_to_give_one(s0, tmp_path):
    file = saved(tmp_path, good())
    for words in (["judge", file], ["parity", "--judge", file]):
        done = sam3lite(*words)
        assert done.code == 2 and f"sam3lite judge {file} CHECKPOINT" in done.err
    (tmp_path / "folder").mkdir()
    assert "CHECKPOINT" in refused(2, tmp_path / "folder")


def test_a_fault_is_named_and_what_follows_is_unknown(s0, tmp_path):
    record = judge(saved(tmp_path, bad()), s0, code=1)
    assert (record["verdict"], record["first_divergence"], record["place"]) == ("differs", "layers.3", "layers.3")
    assert record["also_diverging"] == record["unseen"] == []
    words = column(record, "status")
    assert [words[tap] for tap in TAPS[:4]] == ["equal"] * 4
    assert [words[tap] for tap in TAPS[4:]] == ["diverges", *["unknown"] * 5]
    assert column(record, "diverges") == {tap: tap == "layers.3" for tap in TAPS}
    assert record["diagnosis"]["cause"] == "q and k are swapped"
    assert any(t["source"].endswith(SWAPPED + "weight") for t in record["diagnosis"]["tensors"])
    assert record["candidate_encoder"] == "mine.safetensors"


def test_the_text_names_the_port_and_shows_no_number_that_is_not_known(s0, tmp_path):
    done = sam3lite("judge", saved(tmp_path, bad()), s0, "--name", "my port")
    assert done.code == 1
    said = " ".join(done.out.split())
    assert "candidate my port, from " in said and "10 of 10 taps, float32" in said
    assert "Sam3LiteText" not in done.out and "converted" not in done.out
    rows = {
        line.split()[0]: line.split() for line in done.out.splitlines() if line.split()[:1] and line.split()[0] in TAPS
    }
    assert {tap: row[2] for tap, row in rows.items()} == dict.fromkeys(TAPS, "-")
    assert rows["layers.3"][-1] == "DIVERGES" and rows["layers.4"][-1] == "unknown"
    for part in (
        "first divergence: layers.3\n",
        "likely cause: q and k are swapped\n",
        "Next: correct this in your port",
    ):
        assert part in done.out
    assert "qkv_proj" not in done.out and len(done.out.splitlines()) <= 24
    assert "  pre_norm_mha.1.qkv_proj.weight\n" in sam3lite("judge", saved(tmp_path, bad()), s0, "--verbose").out
    assert "pack" not in done.out  # the rules of our layouts made nothing of this port


def test_outputs_that_both_read_what_agrees_are_both_wrong_by_themselves(s0, tmp_path):
    wrong = good() | {tap: good()[tap] + 1 for tap in ("projected", "pooled")}
    record = judge(saved(tmp_path, wrong), s0, code=1)
    assert (record["first_divergence"], record["also_diverging"]) == ("projected", ["pooled"])


def test_isolated_activations_tell_what_was_carried(s0, tmp_path):
    alone = {f"isolated.{tap}": good()[tap] for tap in TAPS} | {"isolated.layers.3": bad()["layers.3"]}
    record = judge(saved(tmp_path, {f"candidate.{tap}": t for tap, t in bad().items()} | alone), s0, code=1)
    assert (record["first_divergence"], record["port"]["isolated"]) == ("layers.3", 10)
    words = column(record, "status")
    assert [words[tap] for tap in TAPS[4:]] == ["diverges", *["carried"] * 5]
    assert column(record, "isolated_max_abs_diff")["layers.4"] == 0.0
    # Of another candidate: they cannot be this one's.
    record = judge(saved(tmp_path, bad() | {f"isolated.{tap}": good()[tap] for tap in TAPS}), s0, code=1)
    assert record["port"]["isolated"] == 0 and column(record, "status")["layers.4"] == "unknown"
    assert any("do not belong to this candidate" in note for note in record["notes"])
    # Some of them: what is known is said, and nothing else.
    some = {"isolated.layers.3": bad()["layers.3"], "isolated.layers.4": good()["layers.4"]}
    words = column(judge(saved(tmp_path, bad() | some), s0, code=1), "status")
    assert [words[tap] for tap in TAPS[4:7]] == ["diverges", "carried", "unknown"]


# ---- some of the taps ---------------------------------------------------------------------------


def only(side: Side, *taps: str) -> Side:
    return {tap: side[tap] for tap in taps}


@pytest.mark.parametrize(
    ("taps", "verdict"),
    [
        (["projected"], "exact"),
        (["layers.1", "projected", "pooled"], "exact"),
        (["embeddings"], "within_tolerance"),
        (["pooled"], "within_tolerance"),
        (TAPS[:-2], "within_tolerance"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_exact_is_said_only_where_what_the_detector_receives_was_given(taps, verdict, s0, tmp_path):
    record = judge(saved(tmp_path, only(good(), *taps)), s0)
    assert (record["verdict"], record["max_abs_diff"]) == (verdict, 0.0)
    said = {1: f"only {taps[0]} was compared (1 of 10 taps)", 3: "only layers.1, projected and pooled were compared"}
    assert record["summary"].startswith(said.get(len(taps), "only 8 of 10 taps were compared"))
    missing = "the other" if "projected" in taps else "projected, which the detector receives, and "
    assert f"; not compared: {missing}" in record["summary"]
    assert record["not_given"] == [tap for tap in TAPS if tap not in taps]


def test_between_two_taps_no_layer_is_blamed_but_the_one_whose_fault_it_is(s0, tmp_path):
    file = saved(tmp_path, only(bad(), "embeddings", "layers.1", "layers.4", "projected"))
    record = judge(file, s0, code=1)
    assert (record["first_divergence"], record["unseen"]) == ("layers.4", ["layers.2", "layers.3"])
    assert record["place"] == "between layers.1 and layers.4"
    assert not any(column(record, "diverges").values()) and column(record, "status")["layers.4"] == "unknown"
    assert record["diagnosis"]["cause"] == "in layers.3: q and k are swapped"
    assert {fit["key"].partition(":")[0] for fit in record["diagnosis"]["fits"]} == {"layers.3"}
    out = sam3lite("judge", file, s0).out
    assert "first divergence: between layers.1 and layers.4\n" in out and "DIVERGES" not in out


def test_where_nothing_before_was_given_the_place_is_the_whole_way(s0, tmp_path, monkeypatch):
    file = saved(tmp_path, only(bad(), "projected", "pooled"))
    record = judge(file, s0, code=1)
    assert record["place"] == "at or before projected" and record["unseen"] == TAPS[:-2]
    assert record["diagnosis"]["cause"] == "in layers.3: q and k are swapped"
    # A longer gap is not searched, and no layer is blamed.
    monkeypatch.setattr("sam3lite_convert.parity.port._SEARCHED", 8)
    record = judge(file, s0, code=1)
    assert record["diagnosis"]["fits"] == record["diagnosis"]["tensors"] == []
    assert "give those taps too" in record["diagnosis"]["cause"]


def test_a_fault_that_is_not_known_is_not_invented_in_a_gap(s0, tmp_path):
    odd = {tap: value + (0.3 if n > 2 else 0) for n, (tap, value) in enumerate(good().items())}
    record = judge(saved(tmp_path, only(odd, "embeddings", "layers.3")), s0, code=1)
    assert record["place"] == "between embeddings and layers.3"
    assert record["diagnosis"]["cause"].startswith(
        "not found: the fault was made in layers.0, layers.1, layers.2 or layers.3;"
    )


# ---- formats ------------------------------------------------------------------------------------


def as_npz(folder: Path) -> Path:
    np.savez(folder / "mine.npz", ids=IDS.numpy(), **{tap: value.numpy() for tap, value in bad().items()})
    return folder / "mine.npz"


def as_compressed_npz(folder: Path) -> Path:
    named = {f"candidate/{tap.replace('.', '/')}": value.numpy().astype(">f4") for tap, value in bad().items()}
    np.savez_compressed(folder / "mine.npz", input_ids=IDS.numpy().astype("u2"), **named)
    return folder / "mine.npz"


def as_folder(folder: Path, separator: str = "_") -> Path:
    for name, value in {"input_ids": IDS, **bad()}.items():
        array = np.asfortranarray(value.numpy()) if name == "layers.1" else value.numpy()
        np.save(folder / f"{name.replace('.', separator)}.npy", array)
    return folder


def as_prefixed_safetensors(folder: Path) -> Path:
    return saved(folder, {f"candidate.{tap}": value for tap, value in bad().items()}, name="mine.st")


FORMATS = {
    "npz": as_npz,
    "compressed npz, big-endian": as_compressed_npz,
    "folder of npy": as_folder,
    "folder of npy, dots": functools.partial(as_folder, separator="."),
    "folder of npy, dashes": functools.partial(as_folder, separator="-"),
    "safetensors with candidate.": as_prefixed_safetensors,
}


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_same_verdict(form, s0, tmp_path):
    (tmp_path / "files").mkdir()
    record = judge(FORMATS[form](tmp_path / "files"), s0, code=1)
    plain = judge(saved(tmp_path, bad()), s0, code=1)
    for field in ("verdict", "layers", "max_abs_diff", "diagnosis", "values"):
        assert record[field] == plain[field], field
    assert record["inputs"]["ids"] == IDS.tolist() and record["notes"] == []


def test_the_library_takes_arrays_tensors_and_files(s0, tmp_path):
    mixed = {tap: value if n % 2 else value.numpy() for n, (tap, value) in enumerate(bad().items())}
    side = s3.judge_activations(mixed, s0, ids=IDS, name="my port")
    assert (side.judgement.first_divergence, side.diagnosis.cause) == ("layers.3", "q and k are swapped")
    assert (side.sides.candidate_encoder, side.judged, side.port.file) == ("my port", None, None)
    assert s3.judge_activations({**good(), "input_ids": IDS}, s0).judgement.verdict == "exact"
    file = saved(tmp_path, good())
    for path in (file, str(file)):
        side = s3.judge_activations(path, s0)
        assert (side.judgement.verdict, side.sides.candidate_encoder) == ("exact", "mine.safetensors")
    with pytest.raises(s3.CannotRun, match=r"layers\.0 is not an array"):
        s3.judge_activations({"layers.0": "text"}, s0, ids=IDS)


def test_parity_with_judge_and_a_checkpoint_does_the_same(s0, tmp_path):
    file = saved(tmp_path, bad())
    done = sam3lite("parity", "--checkpoint", s0, "--judge", file, "--name", "my port", "--json")
    assert (done.code, done.json) == (1, judge(file, s0, "--name", "my port", code=1))
    assert "need --judge" in sam3lite("parity", s0, "--name", "my port").err


# ---- dumps of transformers' model debugger ------------------------------------------------------


@pytest.fixture(scope="module")
def dumps(s0, tmp_path_factory):
    """Folders that the debugger of transformers wrote of a right conversion, and one of it with q and k swapped."""
    transformers = pytest.importorskip("transformers")
    debugging = pytest.importorskip("transformers.model_debugging_utils")
    root = tmp_path_factory.mktemp("dumps")
    model = transformers.Sam3LiteTextTextModel.from_pretrained(
        convert(s0, root / "folder", "--layout", "transformers", "--component", "text"), attn_implementation="eager"
    ).eval()
    kinds = {"whole": (False, False), "printed": (False, True), "pruned": (True, False), "masked": (False, False)}
    for kind, (prune, printed) in {**kinds, "swapped": (False, False)}.items():
        named = {"attention_mask": (IDS != 0).long()} if kind == "masked" else {}
        if kind == "swapped":
            attention = model.layers[3].self_attn
            attention.q_proj, attention.k_proj = attention.k_proj, attention.q_proj
        with debugging.model_addition_debugger_context(model, str(root / kind), prune, printed), torch.no_grad():
            model(input_ids=IDS, **named) if named else model(IDS)
    return root


def test_a_dump_of_the_model_debugger_is_judged(dumps, s0):
    record = judge(dumps / "whole", s0)
    # That model has no projector, so that what the detector receives is not known.
    assert (record["verdict"], record["not_given"]) == ("within_tolerance", ["projected"])
    assert record["max_abs_diff"] < ROUNDING
    assert record["inputs"]["ids"] == IDS.tolist()
    assert record["port"]["format"] == "a dump of transformers' model debugger, of Sam3LiteTextTextModel"
    (tree,) = (dumps / "whole").glob("*_FULL_TENSORS.json")
    assert judge(tree, s0)["layers"] == record["layers"]
    record = judge(dumps / "swapped", s0, code=1)
    assert (record["first_divergence"], record["diagnosis"]["cause"]) == ("layers.3", "q and k are swapped")


def test_a_pruned_dump_is_judged_as_far_as_it_goes(dumps, s0):
    record = judge(dumps / "pruned", s0)
    assert record["not_given"] == ["layers.0", "layers.1", "layers.2", "layers.3", "projected"]
    assert any("do_prune_layers=False" in note for note in record["notes"])


def test_a_dump_of_a_call_with_a_mask_says_so(dumps, s0):
    record = judge(dumps / "masked", s0, code=1)
    assert record["inputs"]["ids"] == IDS.tolist() and record["first_divergence"] == "layers.1"
    assert any("with an attention mask" in note for note in record["notes"])
    assert record["diagnosis"]["cause"] == "padding is masked; the original attends to it"
    assert not any("mask" in note for note in judge(dumps / "whole", s0)["notes"])


def test_a_dump_without_values_says_how_to_make_one(dumps, s0, tmp_path):
    (summary,) = (dumps / "whole").glob("*_SUMMARY.json")
    for file in (summary, dumps / "printed"):
        assert "use_repr=False" in refused(2, file, s0)
    (tmp_path / summary.name).write_bytes(summary.read_bytes())
    assert "summary" in refused(2, tmp_path, s0)
    (tmp_path / summary.name).unlink()
    (tree,) = (dumps / "whole").glob("*_FULL_TENSORS.json")
    (tmp_path / tree.name).write_bytes(tree.read_bytes())
    assert "keep the whole folder" in refused(2, tmp_path, s0)
    (tmp_path / tree.name).write_text(tree.read_text().replace("./Sam3", "../Sam3"))
    assert "does not lie beside it" in refused(4, tmp_path, s0)


@pytest.mark.parametrize("text", ["[1, 2", "{}", "[]", '{"module_path": "a", "children": [{"module_path": "a.b"}]}'])
def test_json_that_is_no_dump(text, s0, tmp_path):
    (tmp_path / "x.json").write_text(text)
    assert "x.json" in (message := refused(4 if text == "[1, 2" else 2, tmp_path / "x.json", s0)) or "dump" in message


# ---- shapes and dtypes --------------------------------------------------------------------------


def moved(side: Side) -> Side:
    return {tap: value.transpose(0, 1) if value.dim() == 3 else value for tap, value in side.items()}


def test_sequence_first_is_read_and_said(s0, tmp_path):
    record = judge(saved(tmp_path, moved(good())), s0)
    assert record["verdict"] == "exact" and "read as (sequence, batch, width)" in record["notes"][0]
    assert judge(saved(tmp_path, moved(bad())), s0, code=1)["diagnosis"]["cause"] == "q and k are swapped"


def test_where_both_orders_fit_the_shape_none_is_guessed(s0, tmp_path):
    ids = torch.randint(1, 500, (16, 16), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[:, 9] = 510, 511
    square = port(ids)
    assert judge(saved(tmp_path, square, ids), s0)["verdict"] == "exact"
    record = judge(saved(tmp_path, moved(square), ids), s0, code=1)
    assert record["verdict"] == "differs"
    assert any("judge a batch of another size" in note for note in record["notes"])


def test_a_batch_of_one_may_be_left_out(s0, tmp_path):
    side = {tap: value[0] for tap, value in port(IDS[:1]).items()}
    record = judge(saved(tmp_path, side, IDS[0]), s0)
    assert record["verdict"] == "exact" and record["inputs"]["shape"] == [1, 16]
    assert any("shape (16, 128) was read as (1, 16, 128)" in note for note in record["notes"])
    extra = {tap: value[None] for tap, value in good().items()}
    assert judge(saved(tmp_path, extra), s0)["verdict"] == "exact"


@pytest.mark.parametrize("shape", [(3, 16, 64), (3, 128, 16), (48, 128), (1, 16, 128), (3, 15, 128)])
def test_another_shape_is_refused_and_both_are_told(shape, s0, tmp_path):
    message = refused(2, saved(tmp_path, {"layers.2": torch.zeros(shape)}), s0)
    assert f"layers.2 is {shape}" in message and "(3, 16, 128)" in message


def test_a_tap_of_another_shape_fails_and_the_others_are_compared(s0, tmp_path):
    odd = {"layers_2" if tap == "layers.2" else tap: value for tap, value in good().items()}
    odd["layers_2"] = odd["layers_2"][:, :8]
    record = judge(saved(tmp_path, odd), s0, code=1)
    tap = {"name": "layers.2", "called": "layers_2", "shape": [3, 8, 128], "reference_shape": [3, 16, 128]}
    assert (record["verdict"], record["misshapen"], record["not_given"]) == ("differs", [tap], ["layers.2"])
    assert set(column(record, "status").values()) == {"equal"} and record["first_divergence"] is None
    said = "layers.2 (layers_2 of the port) is (3, 8, 128); the original's is (3, 16, 128); the other taps: exact, "
    assert record["summary"].startswith(said + "only 9 of 10 taps were compared: 0.0")
    # A fault behind it is found all the same.
    faulty = bad() | {"layers.1": bad()["layers.1"][:, :8]}
    record = judge(saved(tmp_path, faulty), s0, code=1)
    assert (record["place"], record["diagnosis"]["cause"]) == ("layers.3", "q and k are swapped")
    # Without ids a tap without positions fits any input: that is no evidence that the default input was the port's.
    some = {"pooled": port(DUMMY)["pooled"], "layers.2": good()["layers.2"]}
    assert sam3lite("judge", saved(tmp_path, some, None), s0, "--json").json["error"]["code"] == "no_ids"


def test_the_name_that_the_port_has_for_a_tap_stands_beside_ours(s0, tmp_path):
    own = {tap.replace(".", "_"): value for tap, value in bad().items()}
    file = saved(tmp_path, own)
    assert judge(file, s0, code=1)["port"]["names"] == {f"layers.{i}": f"layers_{i}" for i in range(6)}
    assert "first divergence: layers.3, which the port calls layers_3\n" in sam3lite("judge", file, s0).out


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_held_against_the_original_in_half_precision(dtype, s0, tmp_path):
    name = str(dtype).removeprefix("torch.")
    record = judge(saved(tmp_path, port(dtype=dtype)), s0)
    assert (record["verdict"], record["dtype"], record["port"]["reference_dtype"]) == ("exact", name, name)
    # One that computes in float32 and stores halves rounds otherwise, and passes; one with a fault does not.
    rounded = {tap: value.to(dtype) for tap, value in good().items()}
    record = judge(saved(tmp_path, rounded), s0)
    assert record["verdict"] == "within_tolerance" and record["max_abs_diff"] > 0
    assert any("half precision hides" in note for note in record["notes"])
    record = judge(saved(tmp_path, rounded | {"layers.3": rounded["layers.3"] * 1.5}), s0, code=1)
    assert record["first_divergence"] == "layers.3"


def test_float64_is_compared_with_the_original_in_float32(s0, tmp_path):
    record = judge(saved(tmp_path, port(dtype=torch.float64)), s0)
    assert record["verdict"] == "within_tolerance" and 0 < record["max_abs_diff"] < 1e-4
    assert (record["dtype"], record["port"]["reference_dtype"]) == ("float64", "float32")
    assert "the port's values are float64; the original ran in float32" in record["notes"]


def test_dtypes_may_be_mixed_and_the_coarsest_counts(s0, tmp_path):
    half = port(dtype=torch.bfloat16)
    mixed = half | {tap: half[tap].float() for tap in TAPS[-3:]}
    record = judge(saved(tmp_path, mixed), s0)
    assert record["port"]["dtypes"] == {"bfloat16": 7, "float32": 3}
    assert (record["verdict"], record["port"]["reference_dtype"]) == ("exact", "bfloat16")
    assert "the original in bfloat16" in record["summary"] and "both sides" not in record["summary"]
    assert any("every tap is held to the rounding of bfloat16" in note for note in record["notes"])


def test_integers_and_nan_are_no_right_activations(s0, tmp_path):
    assert "layers.0 is int64" in refused(2, saved(tmp_path, {"layers.0": torch.ones(3, 16, 128).long()}), s0)
    broken = good() | {"layers.2": torch.full_like(good()["layers.2"], torch.nan)}
    record = judge(saved(tmp_path, broken), s0, code=1)
    assert (record["verdict"], record["first_divergence"]) == ("differs", "layers.2")
    one = good()["layers.2"].clone()
    one[0, 3, 5] = torch.nan
    path = saved(tmp_path, good() | {"layers.2": one})
    assert judge(path, s0, code=1)["diagnosis"]["cause"].startswith("layers.2 holds 1 value that is NaN or infinite")
    page = tmp_path / "page.html"
    shown = sam3lite("judge", path, "--checkpoint", s0, "--report", page).out
    assert "smallest tolerance" not in shown and "Smallest tolerance" not in page.read_text()


def test_a_header_whose_length_begins_as_a_pickle_does_is_no_pickle(s0, tmp_path):
    for blanks in range(0, 256, 8):  # the length of the header is a multiple of 8
        path = tmp_path / "mine.safetensors"
        save_file({**good(), "input_ids": IDS}, path, {"note": "x" * blanks})
        if path.read_bytes()[0] == 0x80:
            break
    else:
        pytest.fail("no header of such a length")
    assert judge(path, s0)["verdict"] == "exact"


def test_a_damaged_npz_is_called_one(s0, tmp_path):
    (tmp_path / "mine.npz").write_bytes(b"<html>")
    assert "is not a .npz" in refused(4, tmp_path / "mine.npz", s0)


# ---- ids ----------------------------------------------------------------------------------------

DUMMY = torch.tensor([[510, 320, 511, *[0] * 13]])


def test_without_ids_the_default_input_is_taken_and_said(s0, tmp_path):
    record = judge(saved(tmp_path, port(DUMMY), None), s0)
    assert record["verdict"] == "exact" and record["inputs"]["ids"] == DUMMY.tolist()
    assert "no ids were given" in record["notes"][0] and "--ids FILE" in record["notes"][0]
    other = judge(saved(tmp_path, port(IDS[1:2]), None), s0, code=1)
    assert "this verdict says nothing" in other["notes"][0]


def test_without_ids_another_shape_than_the_default_inputs_is_refused(s0, tmp_path):
    done = sam3lite("judge", saved(tmp_path, good(), None), s0, "--json")
    assert (done.code, done.json["error"]["code"]) == (2, "no_ids")
    assert "--ids FILE" in done.json["error"]["message"]


def test_ids_may_come_in_a_file_of_their_own(s0, tmp_path):
    file = saved(tmp_path, good(), None)
    np.save(tmp_path / "ids.npy", IDS.numpy().astype("i4"))
    (tmp_path / "rows.json").write_text(json.dumps(IDS.tolist()))
    (tmp_path / "object.json").write_text(json.dumps({"ids": IDS.tolist()}))
    np.savez(tmp_path / "ids.npz", input_ids=IDS.numpy())
    save_file({"input_ids": IDS}, tmp_path / "ids.safetensors")
    for name in ("ids.npy", "rows.json", "object.json", "ids.npz", "ids.safetensors"):
        record = judge(file, s0, "--ids", tmp_path / name)
        assert (record["verdict"], record["inputs"]["what"]) == ("exact", f"the ids of {tmp_path / name}")
    for text in ("{}", "null", '[["a"]]', "[[1], [2, 3]]", "[[0.5]]"):
        (tmp_path / "bad.json").write_text(text)
        assert "ids" in refused(2, file, s0, "--ids", tmp_path / "bad.json")
    assert "nowhere" in refused(2, file, s0, "--ids", tmp_path / "nowhere.npy")


def test_two_sets_of_ids_have_to_be_the_same(s0, tmp_path):
    np.save(tmp_path / "ids.npy", IDS.numpy())
    assert judge(saved(tmp_path, good()), s0, "--ids", tmp_path / "ids.npy")["verdict"] == "exact"
    other = IDS.clone()
    other[1, 2] += 1
    assert "other ids" in refused(2, saved(tmp_path, good(), other), s0, "--ids", tmp_path / "ids.npy")
    assert "from 0 to 511" in refused(2, saved(tmp_path, good(), IDS + 1), s0)


# ---- files that are not to be trusted -----------------------------------------------------------


class Hostile:
    def __reduce__(self):
        return (Path("hostile-ran").touch, ())


def objects(folder: Path, how: str) -> Path:
    array = np.array([Hostile()], dtype=object)
    if how == "npz":
        np.savez(folder / "x.npz", **{"layers.0": array})
        return folder / "x.npz"
    np.save(folder / "layers.0.npy", array)
    return folder


@pytest.mark.parametrize("how", ["npz", "folder"])
def test_arrays_of_python_objects_are_refused_unread(how, s0, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refused(4, objects(tmp_path, how), s0)
    assert "pickle" in message and message.count("\n") == 1
    assert not Path("hostile-ran").exists()


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_pickles_are_refused_unread(how, s0, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if how == "torch":
        file = write(tmp_path, {"layers.0": Hostile()}, "x.pt")
    else:
        file = tmp_path / "x.pkl"
        file.write_bytes(pickle.dumps(Hostile()))
    assert "could run code" in refused(2, file, s0)
    assert not Path("hostile-ran").exists()


def promising(shape: str, data: bytes = b"") -> bytes:
    """A .npy array whose header promises this shape."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


DAMAGED = {
    "cut": lambda data: data[:-100],
    "nothing but a magic": lambda data: data[:8],
    "another header": lambda data: data[:10] + b"[" + data[11:],
    "a header without an end": lambda data: data[:10] + b"(" + data[10:100].replace(b"}", b"(") + data[101:],
    "more than it promises": lambda data: data + bytes(4),
    "a great promise": lambda data: promising("(1000000, 1000000, 1000)"),
    "a negative promise": lambda data: promising("(-1, 4)"),
    "a version of the future": lambda data: data[:6] + b"\x09" + data[7:],
    "empty": lambda data: b"",
    "a call for a header": lambda data: promising("__import__('os').getcwd()"),
}


@pytest.mark.parametrize("case", DAMAGED)
@pytest.mark.parametrize("how", ["npz", "folder"])
def test_damaged_arrays_are_not_trusted(case, how, s0, tmp_path):
    stream = io.BytesIO()
    np.save(stream, good()["layers.0"].numpy())
    data = DAMAGED[case](stream.getvalue())
    place = tmp_path / "x"
    if how == "npz":
        place = tmp_path / "x.npz"
        with zipfile.ZipFile(place, "w") as archive:
            archive.writestr("layers.0.npy", data)
    else:
        place.mkdir()
        (place / "layers_0.npy").write_bytes(data)
    message = refused(4, place, s0)
    assert "layers" in message and message.count("\n") == 1


@pytest.mark.parametrize("how", ["cut", "a bit", "compressed"])
def test_a_damaged_npz_is_not_trusted(how, s0, tmp_path):
    data = bytearray((as_compressed_npz if how == "compressed" else as_npz)(tmp_path).read_bytes())
    if how == "cut":
        del data[-200:]
    elif how == "a bit":
        data[len(data) // 2] ^= 1
    else:
        data[len(data) // 2 : len(data) // 2 + 40] = bytes(range(40))
    (tmp_path / "x.npz").write_bytes(data)
    assert "x.npz" in refused(4, tmp_path / "x.npz", s0)


def test_what_holds_no_activations_says_what_it_holds(s0, tmp_path):
    for given, said in (({"x": torch.ones(1)}, "hold none at a tap: they are x"), ({}, "there are none")):
        with pytest.raises(s3.CannotRun, match=said):
            s3.judge_activations(given, s0, ids=IDS)
    assert "tiny.safetensors is not a file of activations: it holds detector." in refused(2, s0, s0)
    assert "no such file" in refused(2, tmp_path / "nowhere.npz", s0)
    assert "no .npy files" in refused(2, tmp_path, s0)
    np.save(tmp_path / "layers_0.npy", np.zeros(3))
    assert "a folder of .npy files" in refused(2, tmp_path / "layers_0.npy", s0)
    (tmp_path / "text.safetensors").write_text("precious, and no safetensors")
    assert "text.safetensors" in refused(4, tmp_path / "text.safetensors", s0)


def test_padding_with_another_id_than_the_originals_is_told(s0, tmp_path):
    ids = torch.tensor([[510, 320, 511] + [511] * 13])
    record = judge(saved(tmp_path, port(ids), ids), s0)
    assert record["verdict"] == "exact" and any(
        "padded with id 511; the original pads with 0" in n for n in record["notes"]
    )
    assert not any("padded" in n for n in judge(saved(tmp_path, good()), s0)["notes"])


def test_names_that_are_no_taps_are_told_and_double_ones_refused(s0, tmp_path):
    record = judge(saved(tmp_path, good() | {"attention.0": torch.zeros(3), "logits": torch.zeros(2)}), s0)
    assert record["verdict"] == "exact"
    assert record["notes"] == ["not taps, and so not read: attention.0, logits"]
    misspelt = {
        "layer.0": good()["layers.0"],
        "text_encoder.layers.3": good()["layers.3"],
        "projected": good()["projected"],
    }
    (note,) = [n for n in judge(saved(tmp_path, misspelt), s0)["notes"] if n.startswith("not taps")]
    assert "layer.0 (did you mean layers.0?)" in note and "text_encoder.layers.3 (did you mean layers.3?)" in note
    assert "layers.9; the taps of this encoder are embeddings" in refused(
        2, saved(tmp_path, good() | {"layers.9": good()["layers.1"]}), s0
    )
    twice = good() | {"candidate.layers.1": good()["layers.1"]}
    assert "are both layers.1" in refused(4, saved(tmp_path, twice), s0)


# ---- activations that parity saved --------------------------------------------------------------


@pytest.fixture(scope="module")
def replaced(s0, tmp_path_factory):
    """A file of parity --save-activations, with a port's tensors in the place of the candidate's."""
    from safetensors import safe_open

    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("replaced")
    ran = sam3lite("parity", s0, "--candidate", "transformers", "--save-activations", folder / "a.st", "--json")
    assert ran.code == 0 and "Sam3LiteTextTextModel" in ran.json["candidate_encoder"]
    with safe_open(folder / "a.st", "pt") as held:
        about = held.metadata()
    mine = {f"candidate.{tap}": value.contiguous() for tap, value in port(DUMMY).items()}
    mine["candidate.layers.2"] = mine["candidate.layers.2"] + 1
    save_file(load_file(folder / "a.st") | mine, folder / "mine.st", about)
    return folder / "mine.st"


def test_foreign_tensors_are_never_called_our_model(replaced, tmp_path):
    page = tmp_path / "r.html"
    done = sam3lite("parity", "--judge", replaced, "--report", page)
    assert done.code == 1 and "candidate  mine.st, from" in done.out
    assert "Sam3LiteText" not in done.out + page.read_text()
    named = sam3lite("parity", "--judge", replaced, "--name", "my port", "--json").json
    assert (named["candidate"], named["candidate_encoder"], named["attention"]) == ("my port", "my port", "unknown")
    alone = sam3lite("judge", replaced, "--json")
    assert (alone.code, alone.json["candidate"]) == (1, "mine.st")


def test_with_a_checkpoint_the_files_own_reference_is_not_used(replaced, s0, tmp_path):
    held = load_file(replaced)
    held |= {name: tensor + 1 for name, tensor in held.items() if name.startswith(("reference.", "candidate."))}
    save_file(held, tmp_path / "both.st")
    record = judge(tmp_path / "both.st", s0, code=1)
    assert (record["verdict"], record["first_divergence"]) == ("differs", "embeddings")


# ---- the page -----------------------------------------------------------------------------------


def test_the_page_of_a_port_says_what_it_is(s0, tmp_path):
    page = tmp_path / "r.html"
    file = saved(tmp_path, only(bad(), "layers.1", "layers.4"))
    done = sam3lite("judge", file, s0, "--name", "my <port>", "--report", page)
    text = page.read_text()
    assert done.code == 1 and f"Report: {page}" in done.err
    for part in (
        "my &lt;port&gt;",
        "which ran elsewhere",
        "2 of 10 given",
        "between layers.1 and layers.4",
        "Where it differs",
        "sam3lite judge",
    ):
        assert part in text, part
    body = text.partition("</style>")[2]
    for part in ("Sam3LiteText", "converted", "m-isolated", "Behaviour"):
        assert part not in body, part


def test_the_verdict_in_markdown_is_short_and_names_stay_text(s0, tmp_path):
    file = saved(tmp_path, bad())
    done = sam3lite("judge", file, s0, "--name", "my <b>|port", "--markdown")
    assert done.code == 1 and done.out.startswith("### judge: differs\n\nmax abs diff ")
    assert "| port | `my <b>\\|port` |" in done.out and "| first divergence | `layers.3` |" in done.out
    assert "- likely cause: q and k are swapped\n" in done.out and "- Next: correct this" in done.out
    both = sam3lite("judge", file, s0, "--markdown", "--json")
    assert (both.code, both.json["error"]["message"]) == (2, "--json and --markdown exclude each other")


def test_a_checkpoint_in_the_place_of_a_fingerprint_is_called_one(s0, tmp_path):
    file = saved(tmp_path, good())
    said = refused(2, file, "--fingerprint", s0)
    assert f"{s0} is a checkpoint, not a fingerprint" in said and f"sam3lite judge FILE {s0}" in said
    assert "holds activations, not a fingerprint" in refused(2, file, "--fingerprint", file)
