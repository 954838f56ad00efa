"""The proof: it holds for every folder that is right, and names the fault of every one that is not."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.folders import (
    ENCODER,
    LAYOUTS,
    POSITIONS,
    QKV,
    TEXT_POSITIONS,
    TRACKER_KEYS,
    TRUNK,
    assert_proven,
    config,
    convert,
    edit,
    edit_config,
    flip_bit,
    overwrite_bytes,
    raw,
    record_offset,
    sam3lite,
    tensors,
    tiny_architecture,
    tiny_state,
    verify,
    write,
)

from sam3lite_convert.checkpoint.reader import read_checkpoint
from sam3lite_convert.convert.folder import read_folder
from sam3lite_convert.plan import synthetic
from sam3lite_convert.plan.plan import Options, make_plan
from sam3lite_convert.plan.tables import load_mappings
from sam3lite_convert.verify import verify as verify_module
from sam3lite_convert.verify.config_check import check_config
from sam3lite_convert.verify.recognise import recognise

VIT = "vision_encoder.backbone.layers."
TEXT_LAYER = "text_encoder.layers."
TOKENS = "text_encoder.embeddings.token_embedding.weight"


@pytest.fixture(scope="module")
def good(tiny, tmp_path_factory):
    """layout -> a folder that no test changes."""
    root = tmp_path_factory.mktemp("good")
    return {layout: convert(tiny, root / layout, "--layout", layout) for layout in LAYOUTS}


@pytest.fixture(scope="module")
def foreign(good, tmp_path_factory):
    """What transformers writes after loading our folder: no receipt, another order of keys, another header."""
    folder = tmp_path_factory.mktemp("foreign") / "out"
    transformers.Sam3LiteTextModel.from_pretrained(good["transformers"]).save_pretrained(folder)
    return folder


@pytest.fixture
def bad(foreign, tmp_path):
    """A folder of another tool, in the transformers layout, for a test to spoil."""
    return shutil.copytree(foreign, tmp_path / "bad")


@pytest.fixture
def packed(good, tmp_path):
    folder = shutil.copytree(good["packed"], tmp_path / "packed")
    (folder / "conversion.json").unlink()
    return folder


def faults(folder, checkpoint, *options):
    """key -> what verify says of it; the verdict and the exit code are those of a mismatch."""
    done = verify(folder, checkpoint, *options)
    record = done.json
    assert (record.get("verdict"), done.code) == ("mismatch", 1), done
    assert not record["missing"] and not record["unexpected"], done
    return {m["key"]: m["why"] for m in record["mismatched"]}


# ---- folders that are right ------------------------------------------------------------------

OPTIONS = [
    *[(layout, "--component", c) for layout in LAYOUTS for c in ("all", "text")],
    *[(layout, "--component", "all", "--dtype", "float16") for layout in LAYOUTS],
    *[(layout, "--component", "text", "--dtype", "bfloat16") for layout in LAYOUTS],
    *[(layout, "--context", "9", "--max-shard-size", "1MB") for layout in LAYOUTS],
    ("transformers", "--component", "text", "--context", "3", "--dtype", "bfloat16", "--max-shard-size", "200kB"),
]


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_our_own_folders_are_proven(options, tiny, tmp_path):
    layout, *rest = options
    folder = convert(tiny, tmp_path / "out", "--layout", layout, *rest)
    record = assert_proven(folder, tiny)
    count = len(tensors(folder))
    assert record["checked"] == count
    assert (record["layout"], record["component"]) == (layout, "text" if "text" in rest else "all")
    if "--dtype" in rest:
        assert rest[rest.index("--dtype") + 1] in record["up_to"]
        assert "cast" in record["lost"]
    else:
        assert record["up_to"] is None


def test_the_proof_says_what_was_lost(tiny, good):
    lost = assert_proven(good["packed"], tiny)["lost"]
    assert sorted(lost) == ["class_row", "dropped"]
    assert lost["dropped"]["tensors"] == 22 + 6 + 8 + TRACKER_KEYS
    assert sorted(lost["dropped"]["by_kind"].values()) == sorted([22, 6, 8, TRACKER_KEYS])
    words = ("sam2_convs", "points_", "freqs_cis", "tracker.")
    gone = [t for k, t in tiny_state().items() if any(w in k for w in words)]
    assert lost["dropped"]["bytes"] == sum(t.nbytes for t in gone)
    assert lost["class_row"] == {"tensor": TRUNK + "pos_embed", "rows": 1, "bytes": 128 * 4}


def test_the_proof_counts_what_a_cast_rounded(tiny, tmp_path):
    folder = convert(tiny, tmp_path / "out", "--component", "text", "--dtype", "float16")
    lost = assert_proven(folder, tiny)["lost"]["cast"]
    texts = [t for k, t in tiny_state().items() if "language_backbone" in k and t.is_floating_point()]
    assert lost["tensors"] == len(texts)
    assert lost["changed_values"] == sum(int((t != t.half().float()).sum()) for t in texts)
    assert lost == json.loads((folder / "conversion.json").read_text())["lost"]["cast"]


def test_a_cut_position_table_is_among_what_was_lost(tiny, tmp_path):
    folder = convert(tiny, tmp_path / "out", "--context", 10)
    assert assert_proven(folder, tiny)["lost"]["positions"]["rows"] == 6


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_source_of_mixed_precision_is_proven(dtype, tmp_path):
    """Most tensors need no cast here, and those that do must be compared after it."""
    narrow = getattr(torch, dtype)
    wide = {torch.float16: torch.float32, torch.float32: torch.float16}[narrow]
    state = {k: t.to(narrow) if t.is_floating_point() else t for k, t in tiny_state().items()}
    state[QKV] = state[QKV].to(wide)
    path = write(tmp_path, state)
    assert_proven(convert(path, tmp_path / "as it is"), path)
    assert_proven(convert(path, tmp_path / "cast", "--dtype", dtype), path)


def test_a_cast_that_overflows_and_values_that_are_not_finite_are_proven(tmp_path):
    state = tiny_state()
    state[ENCODER + "final_layer_norm.weight"] = torch.tensor([1e6, float("inf"), float("nan"), -0.0] * 32)
    path = write(tmp_path, state)
    for dtype in ("float16", "bfloat16"):
        assert_proven(convert(path, tmp_path / dtype, "--dtype", dtype, "--allow-overflow"), path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_cast_that_overflows_is_named_and_not_proven_unless_it_was_allowed(layout, tmp_path):
    state = tiny_state()
    norm = torch.ones(128)
    norm[3], norm[5], norm[7] = 1e6, -7e4, float("inf")  # two of them are finite, and beyond float16
    state[ENCODER + "final_layer_norm.weight"] = norm
    path = write(tmp_path, state)
    key = "text_encoder.final_layer_norm.weight"
    folder = convert(path, tmp_path / "out", "--dtype", "float16", "--allow-overflow", "--layout", layout)
    allowed = assert_proven(folder, path)
    assert allowed["up_to"] == "the cast to float16, which made 2 values infinite"
    assert "bit" not in allowed["summary"] and "2 values infinite" in allowed["summary"]
    (folder / "conversion.json").unlink()  # another tool's cast has no receipt that says it was meant
    found = faults(folder, path)
    assert found.keys() == {key}
    assert "2 values became infinite by the cast to float16, the largest of them 1e+06" in found[key]
    done = verify(folder, path).json
    for record in (allowed, done):
        (finding,) = record["findings"]
        assert (finding["code"], finding["keys"]) == ("V-CAST-OVERFLOW", [key])
    assert "equal to the bit" not in done["summary"]
    assert done["lost"]["cast"]["overflows"] == {key: {"values": 2, "largest": 1e6}}
    out = sam3lite("verify", folder, "--checkpoint", path).out
    assert "V-CAST-OVERFLOW" in out and key in out and "2 values became infinite" in out


def test_a_receipt_of_another_overflow_allows_nothing(tmp_path):
    state = tiny_state()
    state[ENCODER + "final_layer_norm.weight"] = torch.full((128,), 1e6)
    path = write(tmp_path, state)
    folder = convert(path, tmp_path / "out", "--dtype", "float16", "--allow-overflow")
    said = json.loads((folder / "conversion.json").read_text())
    said["lost"]["cast"]["overflows"] = {TOKENS: {"values": 128, "largest": 1e6}}
    (folder / "conversion.json").write_text(json.dumps(said))
    assert faults(folder, path).keys() == {"text_encoder.final_layer_norm.weight"}


def test_a_causal_folder_is_proven_by_its_receipt_or_by_the_option(tmp_path):
    path = write(tmp_path, synthetic.state_dict(tiny_architecture(model_name="base", transformer_layers=2)))
    folder = convert(path, tmp_path / "out", "--causal")
    assert_proven(folder, path)
    (folder / "conversion.json").unlink()
    assert_proven(folder, path, "--causal")
    assert "config.json: text_config.causal_masking" in faults(folder, path)


def test_twins_in_the_source_are_no_fault(tmp_path):
    state = tiny_state()
    for key in [k for k in state if k.startswith(ENCODER)]:
        state[key.replace("language_backbone.", "language_backbone.tensor_runner.")] = state[key].clone()
    path = write(tmp_path, state)
    record = assert_proven(convert(path, tmp_path / "out"), path)
    assert record["lost"]["dropped"]["by_kind"]["twin"] == sum(k.startswith(ENCODER) for k in tiny_state())


# ---- folders of another tool -------------------------------------------------------------------


def test_a_folder_that_transformers_wrote_is_proven(foreign, tiny):
    record = assert_proven(foreign, tiny)
    assert any("conversion.json" in n for n in record["notes"])
    assert record["layout"] == "transformers"


def test_a_sharded_half_precision_folder_that_transformers_wrote_is_proven(good, tiny, tmp_path):
    model = transformers.Sam3LiteTextModel.from_pretrained(good["transformers"], dtype=torch.float16)
    model.save_pretrained(tmp_path / "out", max_shard_size="1MB")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    record = assert_proven(tmp_path / "out", tiny)
    assert "float16" in record["up_to"]


def test_a_text_encoder_that_transformers_wrote_is_told_that_its_projection_is_missing(tiny, tmp_path):
    ours = convert(tiny, tmp_path / "ours", "--layout", "transformers", "--component", "text")
    transformers.Sam3LiteTextTextModel.from_pretrained(ours).save_pretrained(tmp_path / "out")
    record = verify(tmp_path / "out", tiny).json
    assert record["missing"] == ["text_projection.bias", "text_projection.weight"] or sorted(record["missing"]) == [
        "text_projection.bias",
        "text_projection.weight",
    ]
    assert record["mismatched"] == record["unexpected"] == []
    shutil.copy(ours / "text_projection.safetensors", tmp_path / "out")
    assert_proven(tmp_path / "out", tiny)


@pytest.mark.parametrize("change", ["absent", "differs"])
def test_batch_norm_counters_are_only_a_note(change, bad, tiny):
    counters = [k for k in tensors(bad) if k.endswith("num_batches_tracked")]
    assert len(counters) == 8
    edit(bad, dict.fromkeys(counters, None if change == "absent" else torch.tensor(7)))
    notes = assert_proven(bad, tiny)["notes"]
    assert sum("num_batches_tracked" in n for n in notes) == 8


def test_a_receipt_of_another_file_is_a_note_and_the_tensors_decide(good, tiny, tmp_path):
    same_weights = write(tmp_path, tiny_state(), "renamed.pt", wrapper="state_dict")
    record = assert_proven(good["packed"], same_weights)
    assert any("another source" in n for n in record["notes"])


# ---- faults of single tensors --------------------------------------------------------------------


def test_an_untransposed_pooled_projection_is_named(bad, tiny):
    key = "text_encoder.projection.weight"
    edit(bad, {key: tensors(bad)[key].T})
    found = faults(bad, tiny)
    assert found.keys() == {key}
    assert "untransposed" in found[key]


def test_a_transposed_pooled_projection_in_the_packed_layout_is_named(packed, tiny):
    key = "text_encoder.projection"
    edit(packed, {key: tensors(packed)[key].T})
    found = faults(packed, tiny)
    assert found.keys() == {key}
    assert "transpose" in found[key]


@pytest.mark.parametrize("module", [TEXT_LAYER + "2.self_attn.", VIT + "5.attention."])
@pytest.mark.parametrize("parts", ["qk", "kv"])
def test_swapped_attention_projections_are_named(parts, module, bad, tiny):
    a, b = (f"{module}{p}_proj." for p in parts)
    held = tensors(bad)
    edit(bad, {x + leaf: held[y + leaf] for x, y in ((a, b), (b, a)) for leaf in ("weight", "bias")})
    found = faults(bad, tiny)
    assert found.keys() == {x + leaf for x in (a, b) for leaf in ("weight", "bias")}
    assert f"{parts[0]} and {parts[1]} are swapped" in found[a + "weight"]
    assert f"{parts[1]} and {parts[0]} are swapped" in found[b + "bias"]


@pytest.mark.parametrize("order", ["qvk", "kqv", "vkq"])
def test_another_order_of_the_rows_of_in_proj_is_named(order, packed, tiny):
    held = tensors(packed)
    keys = [f"{TEXT_LAYER}1.attention.in_proj_{leaf}" for leaf in ("weight", "bias")]
    for key in keys:
        parts = dict(zip("qkv", held[key].chunk(3), strict=True))
        edit(packed, {key: torch.cat([parts[p] for p in order])})
    found = faults(packed, tiny)
    assert found.keys() == set(keys)
    for why in found.values():
        assert ", ".join(order) in why


@pytest.mark.parametrize("heads", [2, 128])
def test_rows_of_in_proj_interleaved_by_head_are_named(heads, packed, tiny):
    # (heads, 3, head_dim), as some ports lay them out, in place of (3, heads, head_dim).
    held = tensors(packed)
    keys = [f"{TEXT_LAYER}1.attention.in_proj_{leaf}" for leaf in ("weight", "bias")]
    for key in keys:
        edit(packed, {key: held[key].reshape(3, heads, -1).transpose(0, 1).reshape(held[key].shape)})
    found = faults(packed, tiny)
    assert found.keys() == set(keys)
    for why in found.values():
        assert ("row by row" if heads == 128 else "2 heads") in why


def test_q_k_and_v_split_as_if_interleaved_are_named(bad, tiny):
    fused = tiny_state()[QKV].reshape(2, 3, -1)
    wrong = {p: fused[:, n].reshape(128, 128) for n, p in enumerate("qkv")}
    edit(bad, {f"{TEXT_LAYER}1.self_attn.{p}_proj.weight": t for p, t in wrong.items()})
    found = faults(bad, tiny)
    assert found.keys() == {f"{TEXT_LAYER}1.self_attn.{p}_proj.weight" for p in "qkv"}
    assert all("2 heads" in why for why in found.values())


def test_a_folder_that_kept_only_some_text_tensors_is_still_of_its_layout(bad, tiny):
    held = tensors(bad)
    kept = ("text_encoder.final_layer_norm.", "text_encoder.layers.1.self_attn.q_", "text_encoder.layers.1.layer_norm")
    edit(bad, {k: None for k in held if not k.startswith(kept)})
    done = verify(bad, tiny)
    assert done.code == 1
    assert done.json["layout"] == "transformers" and not done.json["unexpected"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_flipped_bit_is_named_with_its_place(layout, bad, packed, tiny):
    folder = {"packed": packed, "transformers": bad}[layout]
    key = VIT + "7.mlp.fc2.weight"
    tensor = tensors(folder)[key]
    edit(folder, {key: flip_bit(tensor, 3 * tensor.shape[1] + 4)})
    found = faults(folder, tiny)
    assert found.keys() == {key}
    assert "one bit" in found[key] and "[3, 4]" in found[key]


@pytest.mark.parametrize(("start", "a", "b"), [(TEXT_LAYER, 3, 4), (VIT, 3, 4), ("detr_decoder.layers.", 0, 1)])
def test_exchanged_layers_are_named(start, a, b, bad, tiny):
    held = tensors(bad)
    a, b = f"{start}{a}.", f"{start}{b}."
    changes = {x + k.removeprefix(y): t for x, y in ((a, b), (b, a)) for k, t in held.items() if k.startswith(y)}
    edit(bad, changes)
    found = faults(bad, tiny)
    assert found.keys() == changes.keys()
    for key, why in found.items():
        other = b + key.removeprefix(a) if key.startswith(a) else a + key.removeprefix(b)
        assert f"swapped with {other}" in why


SQUARE = [VIT + "2.attention.o_proj", TEXT_LAYER + "1.self_attn.q_proj", "detr_encoder.layers.0.self_attn.k_proj"]


@pytest.mark.parametrize("module", SQUARE)
def test_a_transposed_square_matrix_is_named(module, bad, tiny):
    key = module + ".weight"
    edit(bad, {key: tensors(bad)[key].T})
    found = faults(bad, tiny)
    assert found.keys() == {key}
    assert "transposed" in found[key] and "untransposed" not in found[key]


def test_a_tensor_of_another_text_layer_is_named(bad, tiny):
    key, other = TEXT_LAYER + "2.mlp.fc1.weight", TEXT_LAYER + "3.mlp.fc1.weight"
    edit(bad, {key: tensors(bad)[other]})
    found = faults(bad, tiny)
    assert found.keys() == {key}
    assert other in found[key] and "transformer.3.pre_norm_ffn.1.weight" in found[key]


@pytest.mark.parametrize("kind", ["pool", "pos_enc"])
def test_a_dropped_points_projector_in_the_place_of_the_boxes_is_named(kind, tmp_path):
    state = tiny_state()
    points = f"detector.geometry_encoder.points_{kind}_project.bias"
    boxes = f"geometry_encoder.boxes_{kind}_project.bias"
    path = write(tmp_path, state)
    folder = convert(path, tmp_path / "out", "--layout", "transformers")
    edit(folder, {boxes: state[points]})
    found = faults(folder, path)
    assert found.keys() == {boxes}
    assert points in found[boxes]


FILLS = {
    "NaN": (lambda t: torch.full_like(t, float("nan")), "NaN"),
    "zeros": (torch.zeros_like, "0 everywhere"),
    "ones": (torch.ones_like, "1 everywhere"),
    "float16": (lambda t: t.half().float(), "float16"),
    "bfloat16": (lambda t: t.bfloat16().float(), "bfloat16"),
    "scaled": (lambda t: t * 128**0.5, "sqrt(128)"),
    "scaled down": (lambda t: t * 128**-0.5, "1/sqrt(128)"),
    "doubled": (lambda t: t * 2, "times 2"),
    "noise": (lambda t: t + 1e-3 * torch.randn(t.shape), "elements differ"),
}


@pytest.mark.parametrize("fill", FILLS)
def test_other_values_are_named(fill, bad, tiny):
    change, word = FILLS[fill]
    edit(bad, {TOKENS: change(tensors(bad)[TOKENS])})
    found = faults(bad, tiny)
    assert found.keys() == {TOKENS}
    assert word in found[TOKENS]


def test_a_partly_nan_tensor_is_a_mismatch(bad, tiny):
    tensor = tensors(bad)[TOKENS].clone()
    tensor[5] = float("nan")
    edit(bad, {TOKENS: tensor})
    assert "128 of 65,536 elements differ" in faults(bad, tiny)[TOKENS]


def test_minus_zero_is_not_zero(tmp_path):
    state = tiny_state()
    state[ENCODER + "final_layer_norm.bias"] = torch.zeros(128)
    path = write(tmp_path, state)
    folder = convert(path, tmp_path / "out")
    edit(folder, {"text_encoder.final_layer_norm.bias": -torch.zeros(128)})
    assert "text_encoder.final_layer_norm.bias" in faults(folder, path)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=st.data())
def test_whatever_bit_is_flipped_is_found_where_it_is(data, bad, foreign, tiny):
    shutil.copyfile(foreign / "model.safetensors", bad / "model.safetensors")
    held = {k: t for k, t in tensors(bad).items() if t.is_floating_point()}
    key = data.draw(st.sampled_from(sorted(held)))
    element = data.draw(st.integers(0, held[key].numel() - 1))
    edit(bad, {key: flip_bit(held[key], element, data.draw(st.integers(0, 31)))})
    assert faults(bad, tiny).keys() == {key}


# ---- tensors that are not there, or not what they should be ---------------------------------------


def test_a_missing_tensor_is_listed(bad, tiny):
    key = "detr_decoder.presence_head.layer3.bias"
    edit(bad, {key: None})
    done = verify(bad, tiny)
    assert (done.code, done.json["verdict"]) == (1, "mismatch")
    assert (done.json["missing"], done.json["unexpected"], done.json["mismatched"]) == ([key], [], [])


def test_an_unexpected_tensor_is_listed(bad, tiny):
    edit(bad, {"text_encoder.embeddings.position_ids": torch.arange(16)})
    done = verify(bad, tiny)
    assert (done.code, done.json["verdict"]) == (1, "mismatch")
    assert done.json["unexpected"] == ["text_encoder.embeddings.position_ids"]
    assert done.json["missing"] == done.json["mismatched"] == []


def test_a_misnamed_tensor_is_missing_and_unexpected(bad, tiny):
    key = "text_projection.weight"
    edit(bad, {key: None, "text_project.weight": tensors(bad)[key]})
    record = verify(bad, tiny).json
    assert (record["missing"], record["unexpected"]) == ([key], ["text_project.weight"])


def test_a_class_row_that_was_kept_is_named(bad, tiny):
    key = "vision_encoder.backbone.embeddings.position_embeddings"
    edit(bad, {key: tiny_state()[TRUNK + "pos_embed"]})
    found = faults(bad, tiny)
    assert found.keys() == {key}
    assert "class position was kept" in found[key] and "1x17x128" in found[key]


def test_a_dropped_last_row_in_place_of_the_class_row_is_named(bad, tiny):
    key = "vision_encoder.backbone.embeddings.position_embeddings"
    edit(bad, {key: tiny_state()[TRUNK + "pos_embed"][:, :-1]})
    assert "last row" in faults(bad, tiny)[key]


STRETCHES = {
    "stretched bilinearly": {"mode": "bilinear"},
    "corners aligned": {"mode": "bilinear", "align_corners": True},
    "bicubically": {"mode": "bicubic"},
}


@pytest.mark.parametrize("length", [32, 77])
@pytest.mark.parametrize("how", STRETCHES)
def test_a_stretched_position_table_is_named(how, length, bad, tiny):
    key = TEXT_POSITIONS["transformers"]
    stretched = torch.nn.functional.interpolate(tensors(bad)[key], size=(length, 128), **STRETCHES[how])
    edit(bad, {key: stretched})
    edit_config(bad, "text_config", "max_position_embeddings", value=length)
    found = faults(bad, tiny)
    assert how in found[key] and f"{length} rows" in found[key] and "first 16" in found[key]


def test_a_position_table_of_gigabytes_is_told_by_its_shape(bad, tiny):
    key = TEXT_POSITIONS["transformers"]
    folder = read_folder(bad)
    plan = recognise(folder, read_checkpoint(tiny), load_mappings())
    _, found = folder.tensors[key]
    endless = replace(found, shape=(*found.shape[:2], 1 << 30, found.shape[3]))
    # There is no file, so that reading would fail.
    cause = verify_module._fault(None, plan.mapped[key], None, endless, None, None)
    assert cause.code != "V-ROWS" and "1x1x1073741824x128" in cause.why


@pytest.mark.parametrize(("length", "stock"), [(77, "at 32 stretches them"), (32, "at 32 reads all of them")])
def test_a_table_with_more_rows_that_begins_with_the_sources_is_not_said_to_be_stretched(length, stock, bad, tiny):
    key = TEXT_POSITIONS["transformers"]
    torch.manual_seed(0)
    edit(bad, {key: torch.cat([tensors(bad)[key], torch.randn(1, 1, length - 16, 128)], 2)})
    why = faults(bad, tiny)[key]
    assert f"{length} rows, the first 16 are the source's; the stock call {stock}" in why


def test_a_table_of_other_rows_is_said_to_be_of_others(bad, tiny):
    key = TEXT_POSITIONS["transformers"]
    torch.manual_seed(0)
    edit(bad, {key: torch.randn(1, 1, 77, 128)})
    assert "the first 16 are not the source's; nor is it a stretch" in faults(bad, tiny)[key]


def test_a_table_that_was_cut_to_one_row_is_judged(bad, tiny, tmp_path):
    key = TEXT_POSITIONS["transformers"]
    edit(bad, {key: tensors(bad)[key][:, :, :1]})
    edit_config(bad, "text_config", "max_position_embeddings", value=1)
    assert "1 row of 16" in faults(bad, tiny)[key]
    # Asked for, and so stated in the receipt, it is what the folder should hold.
    assert_proven(convert(tiny, tmp_path / "out", "--context", 1), tiny)


@pytest.mark.parametrize("shape", [(1,), (1, 1), (8,)])
def test_a_counter_of_another_shape_is_a_mismatch(shape, bad, tiny):
    """torch and transformers stop where a shape differs; only the number of batches is read by nobody."""
    key = next(k for k in tensors(bad) if k.endswith("num_batches_tracked"))
    edit(bad, {key: torch.full(shape, 1000)})
    found = faults(bad, tiny)
    assert found.keys() == {key}


def test_unsplit_attention_rows_are_named(bad, tiny):
    key = TEXT_LAYER + "1.self_attn.q_proj.weight"
    edit(bad, {key: tiny_state()[QKV]})
    assert "not split" in faults(bad, tiny)[key]


def test_a_transposed_matrix_that_is_not_square_is_named(bad, tiny):
    key = TEXT_LAYER + "1.mlp.fc1.weight"
    edit(bad, {key: tensors(bad)[key].T})
    assert "transposed" in faults(bad, tiny)[key]


def test_one_tensor_of_another_dtype_is_named(bad, tiny):
    edit(bad, {TOKENS: tensors(bad)[TOKENS].half()})
    found = faults(bad, tiny)
    assert found.keys() == {TOKENS}
    assert "float16" in found[TOKENS]


# ---- config.json --------------------------------------------------------------------------------

EPS = ("vision_config", "backbone_config", "layer_norm_eps")
CONFIG_FAULTS = [
    (EPS, 1e-6, "1e-06"),
    (EPS, None, "left out"),
    (("text_config", "layer_norm_eps"), 1e-6, "1e-06"),
    (("text_config", "num_attention_heads"), 4, "4"),
    (("text_config", "num_attention_heads"), None, "8"),
    (("text_config", "num_hidden_layers"), 4, "4"),
    (("text_config", "hidden_size"), None, "512"),
    (("text_config", "max_position_embeddings"), None, "77"),
    (("text_config", "use_repmixer_blocks"), False, "False"),
    (("text_config", "hidden_act"), "quick_gelu", "quick_gelu"),
    (("vision_config", "backbone_config", "num_attention_heads"), 1, "1"),
    (("vision_config", "backbone_config", "global_attn_indexes"), [3], "[3]"),
    (("vision_config", "backbone_config", "window_size"), 8, "8"),
    (("detr_decoder_config", "num_queries"), None, "200"),
    (("geometry_encoder_config",), None, "left out"),
    (("model_type",), "sam3", "sam3"),
    (("dtype",), "bfloat16", "bfloat16"),
    (("architectures",), ["Sam3Model"], "Sam3LiteTextModel"),
    (("quantization_config",), {"quant_method": "bitsandbytes"}, "bitsandbytes"),
    (("vision_config", "backbone_config", "rope_theta"), 500.0, "500"),
    (("vision_config", "backbone_config", "rope_parameters"), {"rope_type": "default"}, "default"),
    (("vision_config", "backbone_config", "rope_parameters"), {"rope_theta": 1e6}, "10000"),
    (("vision_config", "backbone_config", "layer_scale_init_value"), 0.1, "0.1"),
    (("detr_encoder_config", "hidden_act"), "gelu", "gelu"),
]


@pytest.fixture(scope="module")
def planned(tiny):
    return make_plan(read_checkpoint(tiny), load_mappings(), Options("transformers"))


@pytest.mark.parametrize(("path", "value", "word"), CONFIG_FAULTS, ids=str)
def test_a_config_that_does_not_fit_the_weights_is_named(path, value, word, bad, planned):
    edit_config(bad, *path, value=value)
    found = check_config(planned, config(bad)).faults
    assert found and all(fault.path.startswith(".".join(path)) for fault in found), found
    assert any(word in fault.why for fault in found), found


@pytest.mark.parametrize("path", [EPS, ("text_config", "num_attention_heads"), ("geometry_encoder_config",)], ids=str)
def test_a_field_that_is_left_out_is_a_mismatch(path, bad, tiny):
    edit_config(bad, *path)
    found = faults(bad, tiny)
    assert found and all(key.startswith("config.json: " + ".".join(path)) for key in found), found


def test_the_eps_of_the_vit_is_named_with_what_the_original_has(bad, tiny):
    edit_config(bad, *EPS, value=1e-6)
    (why,) = faults(bad, tiny).values()
    assert "ViT" in why and "1e-05" in why


def test_the_old_name_of_the_dtype_will_do(bad, tiny):
    edit_config(bad, "dtype")
    edit_config(bad, "torch_dtype", value="float32")
    assert_proven(bad, tiny)


def test_fields_without_effect_are_passed_over(bad, tiny):
    edit_config(bad, "transformers_version", value="9.9")
    edit_config(bad, "text_config", "bos_token_id", value=49406)
    edit_config(bad, "detr_decoder_config", "dropout", value=0.1)
    assert not any("not checked" in note for note in verify(bad, tiny).json["notes"])
    assert_proven(bad, tiny)


def test_a_field_that_nobody_knows_is_named_as_not_judged(bad, tiny):
    edit_config(bad, "text_config", "rotary_text", value=True)
    done = verify(bad, tiny)
    assert done.json["verdict"] == "proven"
    assert any("not checked: text_config.rotary_text" in note for note in done.json["notes"])


def test_what_the_library_itself_writes_is_proven(bad, tiny):
    transformers = pytest.importorskip("transformers")
    transformers.AutoConfig.from_pretrained(bad).save_pretrained(bad)
    done = verify(bad, tiny)
    assert done.json["verdict"] == "proven", done.json["mismatched"]
    assert not any("not checked" in note for note in done.json["notes"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_missing_config_is_named(layout, bad, packed, tiny):
    folder = {"packed": packed, "transformers": bad}[layout]
    (folder / "config.json").unlink()
    found = faults(folder, tiny)
    assert found.keys() == {"config.json"}
    assert "missing" in found["config.json"]


def test_a_packed_folder_with_a_transformers_config_is_named(packed, good, tiny):
    shutil.copy(good["transformers"] / "config.json", packed)
    found = faults(packed, tiny)
    assert any(k.startswith("config.json") for k in found)
    assert any("random" in why for why in found.values())


@pytest.mark.parametrize("field", ["num_attention_heads", "layer_norm_eps", "max_position_embeddings"])
def test_the_packed_config_is_checked_too(field, packed, tiny):
    edit_config(packed, "text_config", field, value=3)
    assert faults(packed, tiny).keys() == {"config.json: text_config." + field}


def test_a_config_that_is_no_json_is_not_trusted(bad, tiny):
    (bad / "config.json").write_text("{")
    done = verify(bad, tiny)
    assert done.code == 4
    assert "config.json" in done.json["error"]["message"]


# ---- words -----------------------------------------------------------------------------------------


def test_the_words_of_the_document_are_those_of_the_terminal(tiny, tmp_path):
    folder = convert(tiny, tmp_path / "out", "--layout", "transformers", "--dtype", "float16", "--context", "8")
    record, said = assert_proven(folder, tiny), sam3lite("verify", folder, "--checkpoint", tiny).out.splitlines()
    assert "bit for bit" not in record["summary"] and "to the bit" not in record["summary"]
    assert said[-1] == f"proven: {record['summary']}" and record["summary"].endswith("up to the cast to float16")
    lost = [line.removeprefix("not in the folder: ") for line in said if line.startswith("not in the folder: ")]
    assert lost == record["lost_words"] and len(lost) == len(record["lost"]) == 4
    for word in (f"{len(tiny_state()) - record_counts(folder)} dropped", TRUNK + "pos_embed", "last 8 rows", "rounded"):
        assert sum(word in line for line in lost) == 1, word
    edit(folder, {"text_projection.bias": None, "extra": torch.zeros(1)})
    record = verify(folder, tiny).json
    assert "text encoder: 1 missing; " in record["summary"] and "other: 1 unexpected" in record["summary"]
    said = sam3lite("verify", folder, "--checkpoint", tiny).out.splitlines()
    assert said[0] == record["summary"]
    assert said[-2].startswith("mismatch: 2 findings; ") and "sam3lite explain V-MISSING" in said[-1]


def record_counts(folder):
    """How many source tensors the receipt says are mapped."""
    return json.loads((folder / "conversion.json").read_text())["counts"]["mapped"]


# ---- receipts and indexes -------------------------------------------------------------------------


def test_a_receipt_that_says_something_else_is_a_mismatch(good, tiny, tmp_path):
    folder = shutil.copytree(good["packed"], tmp_path / "out")
    said = json.loads((folder / "conversion.json").read_text())
    said["tensors"]["text_projection.weight"]["source"] = "detector.something.else"
    (folder / "conversion.json").write_text(json.dumps(said))
    assert faults(folder, tiny).keys() == {"conversion.json: tensors"}


def test_a_folder_whose_model_file_no_loader_finds_is_a_mismatch(good, tiny, tmp_path):
    folder = shutil.copytree(good["packed"], tmp_path / "out")
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    assert verify(folder, tiny).code == 1


def test_an_index_that_misleads_loaders_is_a_mismatch(tiny, tmp_path):
    folder = convert(tiny, tmp_path / "out", "--max-shard-size", "3MB")
    index = folder / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    first, *others = sorted(set(whole["weight_map"].values()))
    key = next(k for k, v in whole["weight_map"].items() if v == first)
    for change in ({key: others[0]}, {key: None}):
        weights = {k: v for k, v in (whole["weight_map"] | change).items() if v}
        index.write_text(json.dumps(whole | {"weight_map": weights}))
        assert faults(folder, tiny).keys() == {key}
    index.unlink()
    record = verify(folder, tiny).json
    assert [m["key"] for m in record["mismatched"]] == ["model.safetensors.index.json"]
    assert set(record["missing"]) == {k for k in whole["weight_map"] if not k.endswith("num_batches_tracked")}


def test_a_missing_shard_is_a_mismatch(tiny, tmp_path):
    folder = convert(tiny, tmp_path / "out", "--max-shard-size", "3MB")
    sorted(folder.glob("*.safetensors"))[-1].unlink()
    done = verify(folder, tiny)
    assert done.code == 1
    assert done.json["missing"]


# ---- wholly wrong folders ---------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["packed", pytest.param("transformers", marks=pytest.mark.stress)])
def test_a_folder_of_another_checkpoint_is_told_so_quickly(layout, good, tmp_path):
    other = write(
        tmp_path,
        {k: t.roll(1, 0) if t.dim() else t for k, t in synthetic.state_dict(tiny_architecture(), seed=5).items()},
    )
    start = time.process_time()
    record = verify(good[layout], other)
    assert time.process_time() - start < 20
    assert record.code == 1
    assert len(record.json["mismatched"]) > 300


def test_a_folder_of_a_checkpoint_of_another_size_is_a_mismatch(good, tmp_path):
    other = write(tmp_path, synthetic.state_dict(tiny_architecture(text_hidden=192, text_heads=3)))
    done = verify(good["packed"], other)
    assert done.code == 1
    assert done.json["mismatched"]


def test_a_folder_of_more_layers_than_the_checkpoint_has(good, tmp_path):
    other = write(tmp_path, synthetic.state_dict(tiny_architecture(transformer_layers=3)))
    done = verify(good["transformers"], other)
    assert done.code == 1
    assert any(".layers.5." in k for k in done.json["unexpected"])


@pytest.mark.parametrize("keep", [100, 5000, 0.5, -1])
def test_a_truncated_folder_file_is_not_trusted(keep, bad, tiny):
    file = bad / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    done = verify(bad, tiny)
    assert done.code == 4
    assert "model.safetensors" in done.json["error"]["message"]


def test_a_folder_file_that_is_no_safetensors_is_not_trusted(bad, tiny):
    (bad / "model.safetensors").write_text("<html>404</html>")
    assert verify(bad, tiny).code == 4


def test_a_damaged_source_is_not_trusted(bad, tmp_path):
    state = tiny_state()
    path = write(tmp_path, state)
    overwrite_bytes(path, record_offset(path, raw(state[POSITIONS])), b"\1\2\3")
    done = verify(bad, path)
    assert done.code == 4
    assert "damaged" in done.json["error"]["message"]


def test_twins_that_differ_in_the_source_are_not_trusted(bad, tmp_path):
    state = tiny_state()
    twin = QKV.replace("language_backbone.", "language_backbone.tensor_runner.")
    state[twin] = flip_bit(state[QKV], 3)
    done = verify(bad, write(tmp_path, state))
    assert done.code == 4
    assert QKV in done.json["error"]["message"] and twin in done.json["error"]["message"]


def test_there_is_nothing_to_verify(tiny, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for place in ("empty", "file", "nowhere"):
        assert verify(tmp_path / place, tiny).code == 2
    (tmp_path / "empty" / "training_args.bin").write_bytes(b"x")
    assert verify(tmp_path / "empty", tiny).code == 2
    (tmp_path / "empty" / "pytorch_model.bin").write_bytes(b"x")
    assert verify(tmp_path / "empty", tiny).code == 4


def test_a_missing_folder_and_one_around_converted_folders_get_the_whole_commands(tiny, tmp_path):
    for name in ("my-packed", "my-transformers", "else"):
        (tmp_path / "converted" / name).mkdir(parents=True)
        if name != "else":
            (tmp_path / "converted" / name / "conversion.json").write_text("{}")
    asked = f"{tmp_path}/converted/"
    done = sam3lite("verify", f"{asked}my-paked", tiny)
    assert done.code == 2 and f"my-paked: no such folder. Did you mean {asked}my-packed?\n" in done.err
    assert done.err.splitlines()[-1] == f"  sam3lite verify {asked}my-packed {tiny}"
    for words in (["verify", asked, str(tiny)], ["parity", str(tiny), f"--converted={asked}", "--seed", "1"]):
        done = sam3lite(*words)
        assert done.code == 2 and f"{asked}my-packed, {asked}my-transformers\n" in done.err
        commands = [" ".join(words).replace(asked, asked + name) for name in ("my-packed", "my-transformers")]
        assert done.err.splitlines()[-2:] == [f"  sam3lite {command}" for command in commands]
    assert "Did you mean" not in sam3lite("verify", f"{asked}other", tiny).err


def test_a_folder_of_another_model_is_said_to_be_of_no_layout(tiny, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    from safetensors.torch import save_file

    save_file({"bert.embeddings.weight": torch.ones(3)}, tmp_path / "out" / "model.safetensors")
    done = verify(tmp_path / "out", tiny)
    assert done.code == 2
    assert "layout" in done.json["error"]["message"]


# ---- what people see -------------------------------------------------------------------------------


def test_the_text_output_names_verdict_and_fault(bad, good, tiny):
    fine = sam3lite("verify", good["packed"], "--checkpoint", tiny)
    assert fine.code == 0
    assert "proven" in fine.out
    key = "text_encoder.projection.weight"
    edit(bad, {key: tensors(bad)[key].T})
    wrong = sam3lite("verify", bad, "--checkpoint", tiny)
    assert wrong.code == 1
    assert "mismatch" in wrong.out and key in wrong.out and "untransposed" in wrong.out


def test_verifying_changes_nothing(bad, tiny):
    from support.folders import snapshot

    before = snapshot(bad)
    verify(bad, tiny)
    assert snapshot(bad) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn], ids=str)
def test_a_folder_that_was_converted_from_a_cast_copy_is_proven_up_to_the_cast(tmp_path, tiny, dtype):
    """Its fingerprint is that of the cast weights."""
    cast = {key: t.to(dtype) if t.is_floating_point() else t for key, t in tiny_state().items()}
    (tmp_path / "cast").mkdir()
    copy = write(tmp_path / "cast", cast)
    out = convert(copy, tmp_path / "out")
    record = sam3lite("verify", out, "--checkpoint", tiny, "--json").json
    assert (record["verdict"], record["findings"]) == ("proven", [])
    fingerprint = json.loads((out / "fingerprint.json").read_text())
    fingerprint["taps"][2]["values"][0] *= 1.01
    (out / "fingerprint.json").write_text(json.dumps(fingerprint))
    record = sam3lite("verify", out, "--checkpoint", tiny, "--json").json
    assert [finding["code"] for finding in record["findings"]] == ["V-FINGERPRINT"]
