"""``sam3lite diff``: what is equal, what changed and how much, what is only in one; torch's figures are the truth."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support import families
from support.checkpoints import write_shards
from support.folders import (
    POSITIONS,
    QKV,
    Outcome,
    State,
    convert,
    edit,
    flip_bit,
    overwrite_bytes,
    raw,
    record_offset,
    sam3lite,
    tensors,
    tiny_state,
    write,
)
from support.hub_files import OLD, publish
from support.hub_server import HubServer

import sam3lite_convert as s3
from sam3lite_convert.records.diff import DiffCounts

TRUNK = "detector.backbone.vision_backbone.trunk."
SAM2 = "detector.backbone.vision_backbone.sam2_convs."
DECODER = "detector.transformer.decoder."
ROTARY = TRUNK + "blocks.0.attn.freqs_cis"
WORDS = "detector.backbone.language_backbone.encoder.embedding_layer.weight"


@functools.cache
def part() -> State:
    """The part of a checkpoint that most tests need, since each compares it several times."""
    starts = (
        DECODER, "detector.segmentation_head.", "tracker.", "detector.transformer.encoder.layers.1.", WORDS, POSITIONS,
        "detector.backbone.language_backbone.encoder.transformer.0.", QKV, TRUNK + "pos_embed", SAM2,
    )  # fmt: skip
    trunk = (".attn.qkv.weight", ".attn.freqs_cis", ".norm1.bias")
    return {k: t for k, t in tiny_state().items() if k.startswith(starts) or (TRUNK in k and k.endswith(trunk))}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("base"), part())


@pytest.fixture
def tuned(tmp_path: Path) -> Callable[..., Path]:
    """``tuned({key: tensor or None}, wrapper="model")``: the checkpoint with these tensors replaced or taken away."""

    def make(changes: dict[str, torch.Tensor | None], name: str = "tuned.pt", wrapper: str | None = "model") -> Path:
        state = {k: t for k, t in (part() | changes).items() if t is not None}
        return write(tmp_path, state, name, wrapper)

    return make


def diff(a: object, b: object, *options: object, code: int = 0) -> Any:
    done = sam3lite("diff", a, b, "--json", *options)
    assert done.code == code, done
    return done.json


def shown(a: object, b: object, *options: object) -> str:
    done: Outcome = sam3lite("diff", a, b, *options)
    assert done.code == 0, done
    return done.out


def noisy(key: str, scale: float = 0.01) -> torch.Tensor:
    tensor = part()[key]
    noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(key)))
    return tensor + scale * noise


def canonical(key: str) -> str:
    return key.removeprefix("detector.")


def relative_l2(changes: State, start: str = "") -> float:
    """Of all floating and complex tensors of a part of the model, as of one vector."""
    squares = whole = 0.0
    for key, tensor in part().items():
        if key.startswith(start) and not key.endswith("num_batches_tracked"):
            wide = tensor.to(torch.complex128)
            squares += float((changes.get(key, tensor).to(torch.complex128) - wide).norm()) ** 2
            whole += float(wide.norm()) ** 2
    return (squares / whole) ** 0.5


# ---- equal


def test_a_file_is_equal_to_itself(base: Path) -> None:
    record = diff(base, base, "--exit-code")
    count = len(part())
    assert (record["verdict"], record["touched"], record["tensors"], record["only_in"]) == ("equal", "", [], [])
    assert record["counts"]["equal"] == record["counts"]["a"] == record["counts"]["b"] == count
    assert record["summary"] == f"{count} tensors equal, 0 changed"
    digest = hashlib.sha256(base.read_bytes()).hexdigest()
    assert record["sha256_a"] == record["sha256_b"] == digest
    assert {c["relative_l2"] for c in record["components"].values()} == {0.0}


def test_other_spellings_formats_and_shards_are_equal(base: Path, tmp_path: Path) -> None:
    state = part()
    bare = write(tmp_path, {"module." + canonical(k): t for k, t in state.items()}, "bare.pt", wrapper=None)
    real = {k: t.clone() for k, t in state.items()}
    save_file(real, tmp_path / "same.safetensors")
    shards = write_shards(tmp_path / "shards", real)
    strided = {k: t.T.contiguous().T if t.ndim == 2 else t for k, t in state.items()}
    for other in (bare, tmp_path / "same.safetensors", shards, shards.parent, write(tmp_path, strided, "strided.pt")):
        assert diff(base, other)["verdict"] == "equal", other


# ---- changed


def test_what_changed_is_named_and_measured(base: Path, tuned: Callable[..., Path]) -> None:
    keys = [*[k for k in part() if k.startswith(DECODER + "layers.")][:7], ROTARY, QKV]
    changes: State = {k: noisy(k) for k in keys if k != ROTARY} | {ROTARY: part()[ROTARY] * 1.5}
    record = diff(base, tuned(changes))
    assert record["verdict"] == "changed"
    assert record["counts"]["changed"] == 9 and record["counts"]["equal"] == len(part()) - 9
    found = {t["name"]: t for t in record["tensors"]}
    assert set(found) == set(map(canonical, keys))
    for key, tensor in changes.items():
        x, y = (t.to(torch.complex128).flatten() for t in (part()[key], tensor))
        one = found[canonical(key)]
        assert (one["keys_a"], one["status"]) == ([key], "changed")
        assert one["changed_values"] == int((x != y).sum())
        assert one["relative_l2"] == pytest.approx(float((y - x).norm() / x.norm()), rel=1e-9)
        assert one["max_abs_diff"] == pytest.approx(float(torch.view_as_real(y - x).abs().max()), rel=1e-9)
    ordered = [t["relative_l2"] for t in record["tensors"]]
    assert ordered == sorted(ordered, reverse=True)
    components = record["components"]
    assert components["tracker"]["relative_l2"] == 0.0
    for name, start in (("detr_decoder", DECODER), ("vision_encoder", "detector.backbone.vision_backbone.")):
        assert components[name]["relative_l2"] == pytest.approx(relative_l2(changes, start), rel=1e-9)
    decoder = components["detr_decoder"]
    worst = max((k for k in keys if k.startswith(DECODER)), key=lambda k: found[canonical(k)]["relative_l2"])
    assert decoder["largest"] == canonical(worst)
    assert decoder["largest_relative_l2"] == found[canonical(worst)]["relative_l2"]
    layers = {layer["name"]: layer for layer in decoder["layers"]}
    for n in (0, 1):
        own = relative_l2(changes, f"{DECODER}layers.{n}.")
        assert layers[f"layers.{n}"]["relative_l2"] == pytest.approx(own, rel=1e-9)


def test_a_merged_lora_shows_as_rows_of_q_and_v(base: Path, tuned: Callable[..., Path]) -> None:
    changes: State = {}
    for n in (2, 3, 4, 5):
        key = f"{TRUNK}blocks.{n}.attn.qkv.weight"
        noise = (noisy(key) - part()[key]).chunk(3)
        changes[key] = part()[key] + torch.cat([noise[0], torch.zeros_like(noise[1]), noise[2]])
    path = tuned(changes)
    record = diff(base, path)
    assert [t["parts"] for t in record["tensors"]] == [["q", "v"]] * 4
    runs = record["components"]["vision_encoder"]["runs"]
    assert [(r["name"], r["layers"], r["changed"], r["what"]) for r in runs] == [
        ("trunk.blocks.{0,1} (2)", 2, 0, ""),
        ("trunk.blocks.{2..5} (4)", 4, 4, "attn.qkv.weight (rows of q, v)"),
        ("trunk.blocks.{6,7} (2)", 2, 0, ""),
        ("everything else", runs[3]["layers"], 0, ""),
    ]
    counted = sum(r["tensors"] for r in runs)
    assert counted == sum(k.startswith("detector.backbone.vision_backbone.") for k in part())
    assert record["touched"].startswith("changed: vision encoder (blocks 2..5 of 8); equal: text encoder, ")
    out = shown(base, path)
    assert "only rows of q and v" in out and "trunk.blocks.{2..5} (4)" in out
    # A fused tensor that changed in all of its rows names none.
    key = TRUNK + "blocks.0.attn.qkv.weight"
    one = diff(base, tuned({key: noisy(key)}))
    assert one["tensors"][0]["parts"] is None
    assert one["touched"].startswith("changed: vision encoder (block 0, of 8); equal: ")


def test_every_component_with_a_split_rule_tells_its_thirds(base: Path, tuned: Callable[..., Path]) -> None:
    keys = [
        QKV,
        DECODER + "layers.0.self_attn.in_proj_bias",
        "detector.transformer.encoder.layers.1.self_attn.in_proj_weight",
    ]
    changes = {}
    for n, key in enumerate(keys):
        thirds = list(part()[key].chunk(3))
        thirds[n] = thirds[n] + 1
        changes[key] = torch.cat(thirds)
    found = {t["name"]: t["parts"] for t in diff(base, tuned(changes))["tensors"]}
    assert found == {canonical(key): ["qkv"[n]] for n, key in enumerate(keys)}


def test_what_a_fine_tune_touched_in_a_sentence(base: Path, tuned: Callable[..., Path]) -> None:
    state = part()
    head = [k for k in state if k.startswith("detector.segmentation_head.")]
    layers = [k for k in state if k.startswith(DECODER + "layers.")]
    tracker = [k for k in state if k.startswith("tracker.")]
    record = diff(base, tuned({k: noisy(k) for k in head + layers} | dict.fromkeys(tracker)))
    assert record["touched"] == (
        "changed: DETR decoder (all 2 layers), mask decoder (all of it); equal: text encoder, vision encoder, DETR "
        "encoder; only in A: tracker"
    )
    everything = {k: noisy(k) for k in state if state[k].is_floating_point()}
    everything[ROTARY] = state[ROTARY] * 2
    for n in range(1, 8):
        key = f"{TRUNK}blocks.{n}.attn.freqs_cis"
        everything[key] = state[key] * 2
    assert diff(base, tuned(everything))["touched"] == "changed: every component, all of it"


def test_rows_of_a_table_that_changed_are_counted(base: Path, tuned: Callable[..., Path]) -> None:
    table = part()[WORDS].clone()
    table[[3, 300]] += 1
    (one,) = diff(base, tuned({WORDS: table}))["tensors"]
    assert (one["rows"], one["changed_rows"], one["changed_values"]) == (512, 2, 2 * table.shape[1])
    assert "in 2 of 512 rows" in one["words"]


def test_counters_are_counted_apart(base: Path, tuned: Callable[..., Path]) -> None:
    counters = [k for k in part() if k.endswith("num_batches_tracked")]
    path = tuned({k: part()[k] + 5 for k in counters})
    record = diff(base, path)
    counts = record["counts"]
    assert (counts["integers_changed"], counts["changed"], len(counters)) == (len(counters), 0, 4)
    assert "4 counters (num_batches_tracked) changed" in record["summary"]
    assert record["components"]["text_encoder"]["relative_l2"] == 0.0 and record["touched"] == ""
    assert {(t["status"], t["max_abs_diff"]) for t in record["tensors"]} == {("integers_changed", 5.0)}


def test_a_reference_of_zeros_is_said(tmp_path: Path) -> None:
    key = canonical(DECODER + "norm.bias")
    for name, value in (("a.pt", 0.0), ("b.pt", 0.5)):
        write(tmp_path, {key: torch.full((4,), value), canonical(QKV): torch.ones(6, 2)}, name)
    record = diff(tmp_path / "a.pt", tmp_path / "b.pt")
    (one,) = record["tensors"]
    assert one["relative_l2"] is None and one["words"].startswith("A is zero, max abs diff 5.00e-01")
    assert record["components"]["detr_decoder"]["relative_l2"] is None
    assert "inf" in shown(tmp_path / "a.pt", tmp_path / "b.pt")


def test_nan_on_both_sides_is_equal_and_said(base: Path, tuned: Callable[..., Path]) -> None:
    spoilt = part()[QKV].clone()
    spoilt[0, :3] = float("nan")
    a, b = tuned({QKV: spoilt}, "a.pt"), tuned({QKV: spoilt.clone()}, "b.pt")
    record = diff(a, b)
    assert record["verdict"] == "equal"
    assert any("same places on both sides" in n and f"{canonical(QKV)}: 3 NaN" in n for n in record["notes"])
    (one,) = diff(base, b)["tensors"]
    assert one["not_finite_b"] == {"nan": 3, "infinite": 0} and "3 NaN and 0 infinite in B" in one["words"]
    # Values that are lost come before any change of size.
    key = DECODER + "norm.weight"
    assert diff(base, tuned({QKV: spoilt, key: noisy(key, 9.0)}))["tensors"][0]["name"] == canonical(QKV)


# ---- shapes and dtypes


def test_a_cut_table_is_said_to_be_one(base: Path, tuned: Callable[..., Path]) -> None:
    table = part()[POSITIONS]
    rows, pos = table.shape[2], TRUNK + "pos_embed"
    path = tuned({POSITIONS: table[:, :, :5].clone(), pos: part()[pos][:, 1:].clone()})
    record = diff(base, path)
    assert (record["verdict"], record["counts"]["cut"]) == ("shared_equal", 2)
    words = {t["name"]: t["words"] for t in record["tensors"]}
    assert words[canonical(POSITIONS)].endswith(f"the first 5 of {rows} rows are equal")
    assert words[canonical(pos)].endswith("the last 16 of 17 rows are equal")
    assert "2 equal in the rows that both hold" in record["summary"]
    changed = table[:, :, :5].clone()
    changed[0, 0, 4, 0] += 1
    other = diff(base, tuned({POSITIONS: changed}))
    assert (other["verdict"], other["counts"]["reshaped"], other["counts"]["cut"]) == ("changed", 1, 0)
    assert "text encoder (encoder.positional_embedding.pos_embed.pos_embed)" in other["touched"]
    (one,) = other["tensors"]
    assert f"the first 5 of {rows} rows: relative L2" in one["words"] and (one["changed_rows"], one["rows"]) == (1, 5)
    x, y = table[0, 0, :5].double(), changed[0, 0].double()
    assert one["relative_l2"] == pytest.approx(float((y - x).norm() / x.norm()), rel=1e-9)
    half = diff(base, tuned({POSITIONS: table[:, :, :5].half()}))["tensors"][0]
    assert half["status"] == "cut"
    assert half["words"].endswith(f"the first 5 of {rows} rows are equal after the cast to float16")
    found = diff(base, tuned({POSITIONS: table[..., :5].clone()}))
    other_shape = found["tensors"][0]
    assert (other_shape["status"], other_shape["relative_l2"]) == ("reshaped", None)
    runs = found["components"]["text_encoder"]["runs"]
    assert [run["what"].endswith("(another shape, not compared)") for run in runs if run["changed"]] == [True]


def test_a_cast_is_said_apart(base: Path, tuned: Callable[..., Path]) -> None:
    half = {k: t.half() for k, t in part().items() if t.is_floating_point()}
    path = tuned(half, "half.pt")
    record = diff(base, path, "--exit-code", code=1)
    assert record["verdict"] == "equal_up_to_cast" and record["counts"]["equal_up_to_cast"] == len(half)
    assert record["tensors"][0]["words"] == "float32 in A, float16 in B: equal after the cast to float16"
    assert f"{len(half)} equal up to the cast to float16" in record["summary"]
    assert {t["cast"] for t in record["tensors"]} == {"float16"}
    whole, start = relative_l2(half, DECODER), "detr_decoder"
    assert record["components"][start]["relative_l2"] == pytest.approx(whole, rel=1e-9)
    key = DECODER + "norm.weight"
    record = diff(base, tuned(half | {key: half[key] * 1.1}))
    assert (record["verdict"], record["counts"]["changed"]) == ("changed", 1)
    assert record["tensors"][0]["name"] == canonical(key)
    assert record["tensors"][0]["words"].startswith("float32 in A, float16 in B; relative L2 ")


# ---- only in one


def test_what_only_one_holds_is_told_by_kind(base: Path, tuned: Callable[..., Path]) -> None:
    state = part()
    gone = [k for k in state if k.startswith("tracker.") or "sam2_convs" in k or k == DECODER + "norm.bias"]
    new = {"detector.adapter.down.weight": torch.ones(2), "detector.adapter.up.weight": torch.ones(2)}
    path = tuned({**dict.fromkeys(gone), **new})
    record = diff(base, path)
    assert record["verdict"] == "shared_equal"
    kinds = {(k["side"], k["component"], k["kind"]): k["tensors"] for k in record["only_in"]}
    assert kinds == {
        ("a", "tracker", "tracker"): sum(k.startswith("tracker.") for k in state),
        ("a", "vision_encoder", "sam2_convs"): sum("sam2_convs" in k for k in state),
        ("a", "detr_decoder", "norm"): 1,
        ("b", "other", "adapter.down"): 1,
        ("b", "other", "adapter.up"): 1,
    }
    assert record["summary"].endswith(f", {len(gone)} only in A, 2 only in B")
    turned = diff(path, base)
    assert (turned["counts"]["only_in_a"], turned["counts"]["only_in_b"]) == (2, len(gone))


# ---- folders in the names of a layout


def test_a_converted_folder_is_compared_under_the_originals_names(tmp_path: Path) -> None:
    """A change in q_proj of the folder is one of the rows of q; what no conversion keeps is only in the original."""
    whole = write(tmp_path, tiny_state())
    made = {layout: convert(whole, tmp_path / layout, "--layout", layout) for layout in ("transformers", "packed")}
    record = diff(whole, made["transformers"])
    (one,) = record["tensors"]
    assert (one["name"], one["status"]) == (canonical(TRUNK + "pos_embed"), "cut")
    assert one["words"] == "the last 16 of 17 rows, all that B holds, are equal"
    counts = record["counts"]
    assert (record["verdict"], counts["equal"], counts["only_in_b"]) == ("shared_equal", counts["b"] - 1, 0)
    kinds = {kind["kind"] for kind in record["only_in"]}
    assert kinds == {"freqs_cis", "sam2_convs", "points projectors", "tracker"}
    assert diff(made["transformers"], made["packed"])["verdict"] == "equal"  # neither holds the class row
    queries = "text_encoder.layers.1.self_attn.q_proj.weight"
    positions = "vision_encoder.backbone.embeddings.position_embeddings"
    held = tensors(made["transformers"])
    edit(made["transformers"], {queries: held[queries] + 1, positions: held[positions] * 1.5})
    found = {t["name"]: t for t in diff(made["packed"], made["transformers"])["tensors"]}
    changed = found.pop(canonical(QKV))
    assert changed["parts"] == ["q"] and changed["max_abs_diff"] == pytest.approx(1, rel=1e-6)
    assert changed["keys_b"] == [queries.replace("q_proj", f"{n}_proj") for n in "qkv"]
    assert set(found) == {canonical(TRUNK + "pos_embed")}
    (one, two) = diff(whole, made["transformers"])["tensors"]
    assert (one["name"], two["name"]) == (canonical(QKV), canonical(TRUNK + "pos_embed"))
    assert two["words"].startswith("the last 16 of 17 rows, all that B holds: relative L2 5.00e-01")
    assert two["status"] == "changed" and two["relative_l2"] == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "called", "equal", "alone"),
    [
        ("teacher", "SAM3 detector", 1170, {"text_encoder": (111, 295)}),
        (
            "s0-3.1",
            "SAM3.1, with the text encoder of SAM3-LiteText",
            946,
            {"vision_encoder": (26, 36), "tracker": (309, 457)},
        ),
        (
            "student-3.1",
            "EfficientSAM3 with an image student (TinyViT) and SAM3.1, with the text encoder of SAM3-LiteText",
            526,
            {"vision_encoder": (446, 336), "tracker": (309, 457)},
        ),
    ],
)
def test_relatives_are_compared_where_they_are_alike(
    kind: str, called: str, equal: int, alone: dict[str, tuple[int, int]], tmp_path: Path
) -> None:
    a, b = (families.write(tmp_path / f"{name}.pt", name) for name in ("s0", kind))
    record = diff(a, b)
    one, other = (set(map(canonical, families.shapes(name))) for name in ("s0", kind))
    assert (record["counts"]["equal"], len(one & other)) == (equal, equal)
    assert (record["counts"]["only_in_a"], record["counts"]["only_in_b"]) == (len(one - other), len(other - one))
    found = {n: (c["only_in_a"], c["only_in_b"]) for n, c in record["components"].items() if c["only_in_a"]}
    assert found == alone
    assert (record["kind_a"], record["kind_b"]) == ("SAM3-LiteText detector", called)


def test_files_with_nothing_in_common_say_so(tmp_path: Path) -> None:
    a, b = write(tmp_path, {"x.weight": torch.ones(2)}, "a.pt"), write(tmp_path, {"y.weight": torch.ones(2)}, "b.pt")
    record = diff(a, b)
    assert record["verdict"] == "nothing_shared"
    assert record["kind_a"] == record["kind_b"] == "not a checkpoint of this family"
    assert record["summary"] == "no tensor is in both: 1 tensor in A, 1 tensor in B"


# ---- which weights of a file


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A trainer's file: the weights, and their average under a prefix of its own."""
    state = {k: t for k, t in part().items() if k.startswith(DECODER)}
    average = {"net_g." + k: t * 1.5 for k, t in state.items()}
    torch.save({"model": state, "ema": average, "epoch": 3}, tmp_path / "two.pt")
    return tmp_path / "two.pt"


def test_two_entries_of_one_file(two: Path) -> None:
    options = ("--state-dict-key-a", "model", "--state-dict-key-b", "ema", "--strip-prefix-b", "net_g.")
    record = diff(two, two, *options)
    count = sum(k.startswith(DECODER) for k in part())
    assert (record["counts"]["changed"], record["counts"]["a"]) == (count, count)
    assert record["components"]["detr_decoder"]["relative_l2"] == pytest.approx(0.5, rel=1e-6)
    assert (record["a"]["wrapper"], record["b"]["wrapper"]) == ("model", "ema")
    assert "--state-dict-key ema" in record["b"]["option"]


def test_what_is_stated_of_both_holds_of_both_unless_one_has_its_own(two: Path) -> None:
    assert diff(two, two, "--state-dict-key", "model")["verdict"] == "equal"
    both = ("--state-dict-key", "ema", "--strip-prefix", "net_g.")
    assert diff(two, two, *both)["verdict"] == "equal"
    assert sam3lite("diff", two, two, *both, "--state-dict-key-a", "model").code == 2  # which has no such prefix
    refused = sam3lite("diff", two, two)
    assert refused.code == 3 and "--state-dict-key model" in refused.err


def test_several_copies_in_one_dict_are_not_merged(tmp_path: Path) -> None:
    state = {canonical(k): t for k, t in part().items() if k.startswith(DECODER)}
    path = write(tmp_path, {"ema." + k: t + 1 for k, t in state.items()} | {"model." + k: t for k, t in state.items()})
    refused = sam3lite("diff", path, path)
    assert refused.code == 3 and "--strip-prefix ema." in refused.err
    record = diff(path, path, "--strip-prefix-a", "ema.", "--strip-prefix-b", "model.")
    assert record["counts"]["changed"] == len(state)
    assert any(n.startswith(f"A: {len(state)} keys left out") for n in record["notes"])


def test_two_names_of_one_tensor(base: Path, tuned: Callable[..., Path]) -> None:
    key = DECODER + "norm.weight"
    second = "module." + key
    record = diff(base, tuned({second: part()[key].clone()}))
    assert record["verdict"] == "equal" and "B: 1 tensor under two names, equal to the bit" in record["notes"]
    refused = sam3lite("diff", base, tuned({second: flip_bit(part()[key])}))
    assert refused.code == 4 and second in refused.err and "contradicts itself" in refused.err


def test_a_damaged_file_is_no_changed_one(base: Path, tuned: Callable[..., Path]) -> None:
    path = tuned({}, "damaged.pt")
    overwrite_bytes(path, record_offset(path, raw(part()[QKV])) + 5, b"\xff")
    refused = sam3lite("diff", base, path)
    assert refused.code == 4 and "damaged.pt is damaged" in refused.err


# ---- the command


def test_the_exit_code_tells_a_difference_only_if_asked(base: Path, tuned: Callable[..., Path]) -> None:
    path = tuned({QKV: noisy(QKV)})
    for options, code in (((), 0), (("--exit-code",), 1)):
        done = sam3lite("diff", base, path, *options)
        assert done.code == code and "1 changed" in done.out
    assert sam3lite("diff", base, base, "--exit-code").code == 0
    assert sam3lite("diff", base, "nowhere.pt").code == 2


def test_the_summary_is_short_and_all_is_listed_if_asked(
    base: Path, tuned: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [k for k in part() if k.startswith(DECODER + "layers.")][:30]
    path = tuned({k: noisy(k) for k in keys})
    out = shown(base, path)
    assert sum(f"\n{canonical(k)}\n" in out for k in keys) == 1
    assert "... and 29 more; --all lists them" in out and len(out.splitlines()) <= 24, out
    every = shown(base, path, "--all")
    assert all(f"\n{canonical(k)}\n" in every for k in keys) and "more; --all" not in every
    monkeypatch.setenv("COLUMNS", "80")  # into a pipe, lines are whole
    tables = shown(base, path, "--all").partition("\n\n")[2].splitlines()[2:]
    assert len(tables) > 50 and all(len(line) <= 80 for line in tables), every


def test_a_file_on_the_hub(hub: HubServer, tmp_path: Path) -> None:
    publish(hub, tmp_path, {"s0": OLD["s0"]})
    record = diff(write(tmp_path, tiny_state()), "s0")
    (one,) = record["tensors"]  # the one that the files of the test hub differ in
    assert one["name"] == "backbone.language_backbone.projector.bias"
    assert record["b"]["source"]["file"] == OLD["s0"]


def test_a_conversion_to_the_originals_names_is_equal(tmp_path: Path) -> None:
    whole = write(tmp_path, tiny_state())
    folder = convert(whole, tmp_path / "out", "--layout", "original")
    record = diff(whole, folder)
    assert record["verdict"] == "shared_equal" and record["counts"]["only_in_b"] == 0
    assert record["counts"]["equal"] == record["counts"]["b"]


def test_the_library_compares_the_same(two: Path) -> None:
    first = s3.open_checkpoint(two, state_dict_key="model")
    second = s3.open_checkpoint(two, state_dict_key="ema", strip_prefix=["net_g."])
    document = s3.diff_checkpoints(first, second)
    assert (document.verdict, document.counts.equal) == ("changed", 0)
    assert s3.diff_checkpoints(first, first).verdict == "equal"


def test_counts_add_up() -> None:
    with pytest.raises(ValueError, match="3 tensors of A are not 1 that both hold \\+ 1"):
        DiffCounts(a=3, b=1, equal=1, only_in_a=1)


def test_in_markdown_it_is_short_and_names_stay_text(base: Path, tuned: Callable[..., Path]) -> None:
    path = tuned({QKV: noisy(QKV)})
    odd = path.replace(path.with_name("a<b>|c.pt"))
    done = sam3lite("diff", base, odd, "--markdown")
    assert done.code == 0 and done.out.startswith("### diff: changed\n")
    assert "<b>" not in done.out.replace("`", "\0").split("\0")[0] and r"a<b>\|c.pt" in done.out
    rows = [line for line in done.out.splitlines() if line.startswith("|")]
    assert sum(" | 1 | " in row for row in rows) == 1
    assert any(re.match(r"\| DETR decoder \| [\d,]+ \| [01] \| ", row) for row in rows)
    heads = next(row for row in rows if row.startswith("| component"))
    assert all(row.count("|") == heads.count("|") for row in rows[rows.index(heads) :])
    both = sam3lite("diff", base, odd, "--markdown", "--json")
    assert (both.code, both.json["error"]["message"]) == (2, "--json and --markdown exclude each other")
