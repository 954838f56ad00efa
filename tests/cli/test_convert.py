"""Conversion of small checkpoints: every tensor against torch, and a folder that is whole or not there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.folders import (
    ENCODER,
    LAYOUTS,
    POSITIONS,
    PROJECTION,
    QKV,
    TEXT_POSITIONS,
    TRACKER_KEYS,
    TRUNK,
    assert_equal_states,
    config,
    convert,
    environment,
    flip_bit,
    oracle,
    overwrite_bytes,
    picture,
    python,
    raw,
    receipt,
    record_offset,
    sam3lite,
    same,
    snapshot,
    spoil_all_data,
    tensors,
    tiny_state,
    write,
)

from sam3lite_convert.convert import safetensors_writer
from sam3lite_convert.convert import write as conversion

FILES = ["README.md", "config.json", "conversion.json", "fingerprint.json", "model.safetensors"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A checkpoint file that no test changes."""
    return write(tmp_path_factory.mktemp("tiny"), tiny_state())


@pytest.fixture(scope="module")
def converted(tiny, tmp_path_factory):
    """layout -> a folder that no test changes."""
    root = tmp_path_factory.mktemp("converted")
    return {layout: convert(tiny, root / layout, "--layout", layout) for layout in LAYOUTS}


@pytest.fixture
def earlier(converted, tmp_path):
    """A good folder from an earlier run, in a place of its own."""
    return shutil.copytree(converted["packed"], tmp_path / "place" / "folder")


def refused(code, *arguments):
    done = sam3lite("convert", *arguments)
    assert done.code == code, done
    assert "Traceback" not in done.err
    return done.err


# ---- every tensor -----------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_tensor_of_the_whole_structure_is_what_torch_makes_of_its_source(
    layout, small_file, small_state, tmp_path
):
    found = tensors(convert(small_file, tmp_path / "out", "--layout", layout))
    wanted = oracle(layout, small_state)
    assert len(wanted) == {"packed": 1188, "transformers": 1204}[layout]
    assert_equal_states(found, wanted)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_keys_of_every_kind_by_hand(layout, tiny, converted):
    source = torch.load(tiny, weights_only=True)["model"]
    found = tensors(converted[layout])

    def check(target, wanted):
        assert same(found[target], wanted), target

    check("vision_encoder.backbone.embeddings.position_embeddings", source[TRUNK + "pos_embed"][:, 1:])
    qkv = source[TRUNK + "blocks.3.attn.qkv.bias"]
    for part, rows in zip("qkv", torch.chunk(qkv, 3), strict=True):
        check(f"vision_encoder.backbone.layers.3.attention.{part}_proj.bias", rows)
    in_proj = source["detector.transformer.decoder.layers.1.ca_text.in_proj_weight"]
    for part, rows in zip("qkv", torch.chunk(in_proj, 3), strict=True):
        check(f"detr_decoder.layers.1.text_cross_attn.{part}_proj.weight", rows)
    decoder = "detector.transformer.decoder.layers.0."
    check("detr_decoder.layers.0.vision_cross_attn_layer_norm.weight", source[decoder + "norm1.weight"])
    check("detr_decoder.layers.0.text_cross_attn_layer_norm.weight", source[decoder + "catext_norm.weight"])
    check("detr_decoder.layers.0.self_attn_layer_norm.weight", source[decoder + "norm2.weight"])
    check("detr_decoder.layers.0.mlp_layer_norm.weight", source[decoder + "norm3.weight"])
    check(
        "vision_encoder.neck.fpn_layers.0.scale_layers.2.weight",
        source["detector.backbone.vision_backbone.convs.0.dconv_2x2_1.weight"],
    )
    check(
        "geometry_encoder.boxes_pool_project.weight",
        source["detector.geometry_encoder.boxes_pool_project.weight"],
    )
    check("text_projection.weight", source["detector.backbone.language_backbone.projector.weight"])
    if layout == "packed":
        check("text_encoder.projection", source[PROJECTION])
        check("text_encoder.layers.1.attention.in_proj_weight", source[QKV])
    else:
        check("text_encoder.projection.weight", source[PROJECTION].T)
        for part, rows in zip("qkv", torch.chunk(source[QKV], 3), strict=True):
            check(f"text_encoder.layers.1.self_attn.{part}_proj.weight", rows)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_receipt_alone_is_enough_to_redo_the_conversion(layout, tiny, converted):
    source = torch.load(tiny, weights_only=True)["model"]
    folder = converted[layout]
    said = receipt(folder)["tensors"]
    found = tensors(folder)
    assert sorted(said) == sorted(found)
    for key, entry in said.items():
        tensor = source[entry["source"]]
        if entry["operation"] == "split":
            tensor = torch.chunk(tensor, 3)["qkv".index(entry["part"])]
        elif entry["operation"] == "transpose":
            tensor = tensor.T
        elif entry["operation"] == "drop_class_row":
            tensor = tensor[:, 1:]
        else:
            assert entry["operation"] == "keep"
        assert (list(tensor.shape), str(tensor.dtype)) == (entry["shape"], "torch." + entry["dtype"])
        assert same(found[key], tensor), key


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_receipt_accounts_for_every_source_tensor(layout, tiny, converted):
    source = torch.load(tiny, weights_only=True)["model"]
    said = receipt(converted[layout])
    counts = said["counts"]
    mapped = {entry["source"] for entry in said["tensors"].values()}
    assert mapped | said["dropped"].keys() == source.keys()
    assert not mapped & said["dropped"].keys()
    assert counts["source"] == len(source) == counts["mapped"] + counts["dropped"]
    assert (counts["mapped"], counts["dropped"]) == (len(mapped), len(said["dropped"]))
    assert counts["target"] == len(said["tensors"])
    for word, count in (("sam2_convs", 22), ("points", 6), ("freqs_cis", 8), ("tracker", TRACKER_KEYS)):
        assert sum(word in reason for reason in said["dropped"].values()) == count


def test_the_receipt_names_the_source_the_tool_and_the_model(tiny, converted):
    said = receipt(converted["transformers"])
    assert said["source"]["name"] == "tiny.pt"
    assert said["source"]["size"] == tiny.stat().st_size
    assert said["source"]["sha256"] == hashlib.sha256(tiny.read_bytes()).hexdigest()
    assert (said["layout"], said["component"], said["dtype"]) == ("transformers", "all", "float32")
    assert said["tool"]["name"] == "sam3lite-convert"
    assert len(said["tool"]["mappings_sha256"]) == 64
    wanted = {
        "variant": "custom", "model_name": "mct", "hidden_size": 128, "num_hidden_layers": 6,
        "num_attention_heads": 2, "context_length": 16, "vocab_size": 512, "projection_dim": 128, "output_dim": 32,
        "causal_masking": False,
    }  # fmt: skip
    assert wanted.items() <= said["architecture"].items()


# ---- the files --------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_safe_open_reads_the_file_as_a_torch_one(layout, converted):
    with safe_open(converted[layout] / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert len(list(file.keys())) == receipt(converted[layout])["counts"]["target"]


def test_every_tensor_lies_at_a_multiple_of_its_element_size(tiny, tmp_path):
    state = tiny_state() | {PROJECTION: tiny_state()[PROJECTION].half()}
    folder = convert(write(tmp_path, state), tmp_path / "out")
    data = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert (8 + length) % 8 == 0
    with safe_open(folder / "model.safetensors", "np") as file:
        for key in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(key)
            begin = re.search(
                rf'"{re.escape(key)}":\{{[^}}]*"data_offsets":\[(\d+),', data[8 : 8 + length].decode()
            ).group(1)
            assert int(begin) % tensor.itemsize == 0, key


def test_files_and_folder_can_be_read_by_others(tiny, tmp_path):
    before = os.umask(0o022)
    try:
        folder = convert(tiny, tmp_path / "new" / "out")
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert {p.name: oct(stat.S_IMODE(p.stat().st_mode)) for p in folder.iterdir()} == dict.fromkeys(FILES, "0o644")


@pytest.mark.parametrize("options", [("--layout", "transformers"), ("--dtype", "float16", "--max-shard-size", "2MB")])
def test_the_same_input_gives_the_same_bytes(options, tiny, tmp_path):
    first = snapshot(convert(tiny, tmp_path / "a", *options))
    time.sleep(0.01)
    second = snapshot(convert(tiny, tmp_path / "deep" / "b", *options))
    assert first == second


def test_a_process_of_its_own_gives_the_same_bytes_too(tiny, converted, tmp_path):
    done = python("-m", "sam3lite_convert", "convert", "--checkpoint", tiny, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert snapshot(tmp_path / "out") == snapshot(converted["packed"])


def test_the_default_output_is_named_after_the_file_and_the_options(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for options, name in (
        ([], "tiny-packed"),
        (["--layout", "transformers", "--component", "text"], "tiny-transformers-text"),
        (["--component", "text", "--dtype", "bfloat16"], "tiny-packed-text-bfloat16"),
        (["--component", "text", "--dtype", "float32"], "tiny-packed-text"),
    ):
        shutil.rmtree("converted", ignore_errors=True)
        done = sam3lite("convert", "--checkpoint", tiny, *options)
        assert done.code == 0, done
        assert [p.name for p in Path("converted").iterdir()] == [name]
        assert f"sam3lite verify converted/{name}" in done.out


def test_shards_keep_to_their_size_and_the_index_finds_every_tensor(tiny, converted, tmp_path):
    folder = convert(tiny, tmp_path / "out", "--max-shard-size", "300kB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 5
    assert [p.name for p in shards] == [
        f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)
    ]
    total = 0
    for shard in shards:
        with safe_open(shard, "pt") as file:
            sizes = {k: file.get_tensor(k).nbytes for k in file.keys()}  # noqa: SIM118
        assert sum(sizes.values()) <= 300_000 or len(sizes) == 1
        assert all(index["weight_map"][k] == shard.name for k in sizes)
        total += sum(sizes.values())
    assert index["metadata"]["total_size"] == total
    assert_equal_states(tensors(folder), tensors(converted["packed"]))
    assert sorted(receipt(folder)["files"]) == [p.name for p in shards]


@pytest.mark.parametrize("size", ["0", "-1MB", "many", "5XB", ""])
def test_a_shard_size_that_is_none_is_refused(size, tiny, tmp_path):
    refused(2, "--checkpoint", tiny, "--output", tmp_path / "out", "--max-shard-size", size)
    assert not (tmp_path / "out").exists()


# ---- the text encoder alone ---------------------------------------------------------------


def test_the_text_encoder_alone_packed_keeps_its_prefixes(tiny, converted, tmp_path):
    folder = convert(tiny, tmp_path / "out", "--component", "text")
    wanted = {k: t for k, t in tensors(converted["packed"]).items() if k.startswith("text_")}
    assert {k.partition(".")[0] for k in wanted} == {"text_encoder", "text_projection"}
    assert_equal_states(tensors(folder), wanted)
    said = receipt(folder)
    assert said["component"] == "text"
    assert said["counts"]["source"] == said["counts"]["mapped"] + said["counts"]["dropped"] == len(tiny_state())


def test_the_text_encoder_alone_for_transformers_has_no_prefix_and_its_projection_beside_it(tiny, converted, tmp_path):
    folder = convert(tiny, tmp_path / "out", "--component", "text", "--layout", "transformers")
    whole = tensors(converted["transformers"])
    with safe_open(folder / "model.safetensors", "pt") as file:
        model = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    with safe_open(folder / "text_projection.safetensors", "pt") as file:
        beside = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    start = "text_encoder."
    assert_equal_states(model, {k.removeprefix(start): t for k, t in whole.items() if k.startswith(start)})
    assert_equal_states(beside, {k: t for k, t in whole.items() if k.startswith("text_projection.")})
    assert sorted(p.name for p in folder.iterdir()) == sorted([*FILES, "text_projection.safetensors"])


# ---- dtypes -------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_cast_is_torchs_and_integers_stay(dtype, layout, tiny, tmp_path):
    folder = convert(tiny, tmp_path / "out", "--dtype", dtype, "--layout", layout)
    wanted = {
        k: t.to(getattr(torch, dtype)) if t.is_floating_point() else t for k, t in oracle(layout, tiny_state()).items()
    }
    assert sum(t.dtype == torch.int64 for t in wanted.values()) == 8
    assert_equal_states(tensors(folder), wanted)
    assert config(folder)["dtype"] == receipt(folder)["dtype"] == dtype


def odd_values():
    return torch.tensor([1e6, -1e6, 65504.0, 65520.0, 1e-8, 0.0, -0.0, 1.5, 1 / 3, float("inf"), float("nan")])


def test_what_a_cast_loses_is_counted(tmp_path):
    state = tiny_state()
    key = ENCODER + "final_layer_norm.weight"
    state[key] = torch.cat([odd_values(), torch.ones(128 - 11)])
    path = write(tmp_path, state)
    refused = sam3lite("convert", "--checkpoint", path, "--output", tmp_path / "out", "--dtype", "float16")
    assert refused.code == 1 and "text_encoder.final_layer_norm.weight: 3, largest 1e+06" in refused.err
    assert "--allow-overflow" in refused.err and not (tmp_path / "out").exists()
    folder = convert(path, tmp_path / "out", "--dtype", "float16", "--allow-overflow")
    lost = receipt(folder)["lost"]["cast"]
    floats = {k: t for k, t in oracle("packed", state).items() if t.is_floating_point()}
    back = {k: t.half().float() for k, t in floats.items()}
    assert lost["dtype"] == "float16"
    assert lost["tensors"] == len(floats)
    assert lost["overflowed_values"] == 3
    error = max(float((t - back[k])[back[k].isfinite()].double().abs().max()) for k, t in floats.items())
    assert lost["max_abs_error"] == error
    assert lost["overflows"] == {"text_encoder.final_layer_norm.weight": {"values": 3, "largest": 1e6}}
    assert any(
        "out of range for float16 and now infinite: " in n and "final_layer_norm.weight: 3," in n
        for n in receipt(folder)["notes"]
    )


def test_infinity_and_nan_survive_a_cast_and_are_not_counted_as_changed(tmp_path):
    state = {k: torch.ones_like(t) for k, t in tiny_state().items()}
    state[ENCODER + "final_layer_norm.weight"] = torch.tensor([float("inf"), float("-inf"), float("nan")] + [1.0] * 125)
    folder = convert(write(tmp_path, state), tmp_path / "out", "--dtype", "float16")
    assert same(
        tensors(folder)["text_encoder.final_layer_norm.weight"], state[ENCODER + "final_layer_norm.weight"].half()
    )
    assert receipt(folder)["lost"]["cast"]["changed_values"] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_source_of_another_precision_keeps_it(dtype, tmp_path):
    state = {k: t.to(dtype) if t.is_floating_point() else t for k, t in tiny_state().items()}
    folder = convert(write(tmp_path, state), tmp_path / "out", "--layout", "transformers")
    assert_equal_states(tensors(folder), oracle("transformers", state))
    assert config(folder)["dtype"] == str(dtype).removeprefix("torch.")
    assert "cast" not in receipt(folder)["lost"]


@pytest.mark.parametrize("options", [[], ["--dtype", "float32"]])
def test_a_source_of_mixed_precision(options, tmp_path):
    state = tiny_state()
    for n, (key, tensor) in enumerate(state.items()):
        if tensor.is_floating_point():
            state[key] = tensor.to((torch.float32, torch.float16, torch.bfloat16)[n % 3])
    folder = convert(write(tmp_path, state), tmp_path / "out", *options)
    wanted = oracle("packed", state)
    if options:
        wanted = {k: t.float() if t.is_floating_point() else t for k, t in wanted.items()}
    assert_equal_states(tensors(folder), wanted)
    assert config(folder)["dtype"] == "float32"


def test_a_dtype_that_is_not_offered_is_a_usage_error(tiny, tmp_path):
    refused(2, "--checkpoint", tiny, "--output", tmp_path / "out", "--dtype", "int8")


# ---- the position table -------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_shorter_context_is_a_slice(layout, tmp_path):
    state = tiny_state()
    state[POSITIONS] = torch.randn(1, 1, 77, 128, generator=torch.Generator().manual_seed(1))
    folder = convert(write(tmp_path, state), tmp_path / "out", "--layout", layout, "--context", 16)
    found = tensors(folder)
    assert same(found[TEXT_POSITIONS[layout]], state[POSITIONS][:, :, :16])
    assert config(folder)["text_config"]["max_position_embeddings"] == 16
    said = receipt(folder)
    assert said["architecture"]["context_length"] == 16
    assert said["lost"]["positions"]["rows"] == 61


@pytest.mark.parametrize("context", [17, 0, -1, "x"])
def test_a_context_that_the_table_does_not_have_is_refused(context, tiny, tmp_path):
    refused(2, "--checkpoint", tiny, "--output", tmp_path / "out", "--context", context)
    assert not (tmp_path / "out").exists()


def test_a_position_table_without_class_row_is_left_as_it_is(tmp_path):
    state = tiny_state()
    state[TRUNK + "pos_embed"] = state[TRUNK + "pos_embed"][:, 1:].clone()
    folder = convert(write(tmp_path, state), tmp_path / "out")
    assert same(tensors(folder)["vision_encoder.backbone.embeddings.position_embeddings"], state[TRUNK + "pos_embed"])
    assert "class_row" not in receipt(folder)["lost"]


# ---- how the source may hold its tensors ----------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_that_are_not_contiguous(layout, tmp_path):
    state = tiny_state()
    shared = torch.randn(4, 3 * 128, 128, generator=torch.Generator().manual_seed(2))
    replaced = {
        QKV: tiny_state()[QKV].t().contiguous().t(),
        PROJECTION: tiny_state()[PROJECTION].t().contiguous().t(),
        TRUNK + "pos_embed": tiny_state()[TRUNK + "pos_embed"].transpose(1, 2).contiguous().transpose(1, 2),
        POSITIONS: torch.randn(1, 1, 32, 128)[:, :, ::2],
        # Two of one storage, one of them in the middle and one with a step.
        ENCODER + "transformer.2.pre_norm_mha.1.qkv_proj.weight": shared[2],
        ENCODER + "transformer.3.pre_norm_mha.1.out_proj.weight": shared[0, ::3],
    }
    assert sum(not t.is_contiguous() for t in replaced.values()) == 5
    state |= replaced
    folder = convert(write(tmp_path, state), tmp_path / "out", "--layout", layout)
    assert_equal_states(tensors(folder), oracle(layout, state))
    cast = convert(write(tmp_path, state), tmp_path / "cast", "--layout", layout, "--dtype", "float16")
    assert same(tensors(cast)[TEXT_POSITIONS[layout]], state[POSITIONS].half())


def test_parameters_and_an_ordered_dict_are_read_like_tensors(tiny, converted, tmp_path):
    from collections import OrderedDict

    state = OrderedDict(
        (k, torch.nn.Parameter(t, requires_grad=t.is_floating_point()) if t.is_floating_point() else t)
        for k, t in tiny_state().items()
    )
    state._metadata = OrderedDict(version=1)
    folder = convert(write(tmp_path, state), tmp_path / "out")
    assert model_bytes(folder) == model_bytes(converted["packed"])


def model_bytes(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def respelled(change):
    return {change(k): t for k, t in tiny_state().items()}


def february(twins: bool) -> dict[str, torch.Tensor]:
    """As code of February 2026 saved it: torch's own attention, and each text tensor under two names."""
    out = {}
    for key, tensor in tiny_state().items():
        name = re.sub(r"mha\.1\.qkv_proj\.(\w+)$", r"mha.1.attn.in_proj_\1", key)
        name = re.sub(r"mha\.1\.out_proj\.(\w+)$", r"mha.1.attn.out_proj.\1", name)
        out[name] = tensor
        if twins and "language_backbone." in name:
            out[name.replace("language_backbone.", "language_backbone.tensor_runner.")] = tensor.clone()
    return out


SPELLINGS = {
    "bare": (None, tiny_state),
    "state_dict": ("state_dict", tiny_state),
    "no prefix": ("model", lambda: respelled(lambda k: k.removeprefix("detector."))),
    "module in front": ("model", lambda: respelled(lambda k: "module." + k)),
    "sam3_model in front": ("model", lambda: respelled(lambda k: "sam3_model." + k)),
    "sam3_model instead": (
        "model",
        lambda: respelled(lambda k: k if k.startswith("tracker") else "sam3_model." + k.removeprefix("detector.")),
    ),
    "module instead": (
        None,
        lambda: respelled(lambda k: k if k.startswith("tracker") else "module." + k.removeprefix("detector.")),
    ),
    "student trunk": ("model", lambda: respelled(lambda k: k.replace(".trunk.", ".trunk.student_trunk."))),
    "february": ("model", lambda: february(False)),
    "february twins": ("model", lambda: february(True)),
    "tensor runner alone": (
        "model",
        lambda: respelled(lambda k: k.replace("language_backbone.", "language_backbone.tensor_runner.")),
    ),
    "another order": ("model", lambda: dict(reversed(tiny_state().items()))),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_gives_the_same_model_file(spelling, converted, tmp_path):
    wrapper, make = SPELLINGS[spelling]
    folder = convert(write(tmp_path, make(), wrapper=wrapper), tmp_path / "out", "--layout", "transformers")
    assert model_bytes(folder) == model_bytes(converted["transformers"])


def test_entries_beside_the_state_dict_are_left_unread(converted, tmp_path):
    beside = {"model": tiny_state(), "meta": {"epoch": 3, "name": "x"}, "optimizer": {"step": torch.tensor(1)}}
    folder = convert(write(tmp_path, beside, wrapper=None), tmp_path / "out")
    assert model_bytes(folder) == model_bytes(converted["packed"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_bare_text_student_is_the_text_encoder_of_the_whole_file(layout, tiny, tmp_path):
    start = "detector.backbone.language_backbone."
    student = {k.removeprefix(start): t for k, t in tiny_state().items() if k.startswith(start)}
    options = ("--component", "text", "--layout", layout)
    folder = convert(write(tmp_path, student, "student.pt", None), tmp_path / "student", *options)
    assert model_bytes(folder) == model_bytes(convert(tiny, tmp_path / "whole", *options))


def test_a_bare_text_student_is_no_whole_detector(tmp_path):
    start = "detector.backbone.language_backbone."
    student = {k.removeprefix(start): t for k, t in tiny_state().items() if k.startswith(start)}
    message = refused(3, "--checkpoint", write(tmp_path, student), "--output", tmp_path / "out")
    assert "--component text" in message


def test_a_file_of_torch_before_1_6_gives_the_same_model_file(converted, tmp_path):
    path = tmp_path / "old.pt"
    torch.save({"model": tiny_state()}, path, _use_new_zipfile_serialization=False)
    folder = convert(path, tmp_path / "out", "--layout", "transformers")
    assert model_bytes(folder) == model_bytes(converted["transformers"])
    assert any("before 1.6" in n for n in receipt(folder)["notes"])


def test_a_safetensors_input_gives_the_same_model_file(converted, tmp_path):
    save_file({k: t.clone() for k, t in tiny_state().items()}, tmp_path / "tiny.safetensors")
    folder = convert(tmp_path / "tiny.safetensors", tmp_path / "out", "--layout", "transformers")
    assert model_bytes(folder) == model_bytes(converted["transformers"])


# ---- twins ----------------------------------------------------------------------------------


def test_equal_twins_are_one_tensor_and_counted(tmp_path):
    state = february(True)
    text = sum("language_backbone." in k for k in tiny_state())
    said = receipt(convert(write(tmp_path, state), tmp_path / "out"))
    twins = [k for k, reason in said["dropped"].items() if reason.startswith("second name of ")]
    assert len(twins) == text
    assert said["lost"]["dropped"]["by_kind"]["twin"] == text
    assert said["counts"]["source"] == len(state) == said["counts"]["mapped"] + said["counts"]["dropped"]


def test_twins_that_share_their_storage_are_equal(tmp_path):
    state = february(False)
    for key in [k for k in state if "language_backbone." in k]:
        state[key.replace("language_backbone.", "language_backbone.tensor_runner.")] = state[key]
    convert(write(tmp_path, state), tmp_path / "out")


@pytest.mark.parametrize("component", ["all", "text"])
def test_twins_that_differ_by_one_bit_contradict_each_other(component, tmp_path):
    state = february(True)
    first = ENCODER + "transformer.2.pre_norm_ffn.1.bias"
    second = first.replace("language_backbone.", "language_backbone.tensor_runner.")
    state[second] = flip_bit(state[second], 7)
    path = write(tmp_path, state)
    message = refused(4, "--checkpoint", path, "--output", tmp_path / "out", "--component", component)
    assert first in message and second in message
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.pt"]


@pytest.mark.parametrize("change", [torch.Tensor.half, lambda t: t[:-1].clone()])
def test_twins_of_another_shape_or_dtype_contradict_each_other(change, tmp_path):
    state = february(True)
    first = ENCODER + "transformer.2.pre_norm_ffn.1.bias"
    second = first.replace("language_backbone.", "language_backbone.tensor_runner.")
    state[second] = change(state[second])
    message = refused(4, "--checkpoint", write(tmp_path, state), "--output", tmp_path / "out")
    assert first in message and second in message


# ---- damaged sources ------------------------------------------------------------------------


@pytest.mark.parametrize("key", [TRUNK + "blocks.2.mlp.fc1.weight", "tracker.maskmem_tpos_enc"])
def test_one_flipped_byte_of_the_source_is_noticed(key, earlier, tmp_path):
    state = tiny_state()
    if key not in state:
        key = next(k for k, t in state.items() if k.startswith("tracker.") and t.numel() > 60)
    path = write(tmp_path, state)
    offset = record_offset(path, raw(state[key]))
    overwrite_bytes(path, offset + 5, bytes([path.read_bytes()[offset + 5] ^ 1]))
    before = snapshot(tmp_path)
    assert "damaged" in refused(4, "--checkpoint", path, "--output", tmp_path / "out")
    refused(4, "--checkpoint", path, "--output", earlier, "--overwrite")
    assert snapshot(tmp_path) == before


def test_a_file_without_checksums_converts_with_a_note(converted, tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = write(tmp_path, tiny_state())
    finally:
        torch.serialization.set_crc32_options(before)
    folder = convert(path, tmp_path / "out")
    assert model_bytes(folder) == model_bytes(converted["packed"])
    assert any("checksum" in n for n in receipt(folder)["notes"])


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.01])
def test_a_truncated_source_leaves_the_earlier_folder(keep, tiny, earlier, tmp_path):
    path = tmp_path / "cut.pt"
    path.write_bytes(tiny.read_bytes()[: int(tiny.stat().st_size * keep)])
    before = snapshot(tmp_path)
    refused(4, "--checkpoint", path, "--output", earlier, "--overwrite")
    assert snapshot(tmp_path) == before


# ---- where the output goes ------------------------------------------------------------------


def test_an_existing_folder_is_kept(tiny, earlier):
    before = snapshot(earlier.parent)
    message = refused(2, "--checkpoint", tiny, "--output", earlier, "--layout", "transformers")
    assert f"{earlier} exists and was not changed: " in message and "--overwrite" in message
    assert snapshot(earlier.parent) == before


def test_overwrite_replaces_a_converted_folder(tiny, converted, earlier):
    (earlier / "model-00001-of-00002.safetensors").write_bytes(b"of an older run")
    convert(tiny, earlier, "--layout", "transformers", "--overwrite")
    assert snapshot(earlier) == snapshot(converted["transformers"])
    assert [p.name for p in earlier.parent.iterdir()] == ["folder"]


def test_an_empty_folder_is_taken_without_asking(tiny, converted, tmp_path):
    (tmp_path / "out").mkdir()
    assert snapshot(convert(tiny, tmp_path / "out")) == snapshot(converted["packed"])


def test_overwrite_leaves_a_folder_with_other_files_alone(tiny, earlier):
    (earlier / "thesis.tex").write_text("years of work")
    before = snapshot(earlier.parent)
    assert "thesis.tex" in refused(2, "--checkpoint", tiny, "--output", earlier, "--overwrite")
    assert snapshot(earlier.parent) == before


def test_overwrite_leaves_a_folder_with_folders_alone(tiny, earlier):
    (earlier / "config.json").unlink()
    (earlier / "config.json").mkdir()
    (earlier / "config.json" / "thesis.tex").write_text("years of work")
    before = snapshot(earlier.parent)
    refused(2, "--checkpoint", tiny, "--output", earlier, "--overwrite")
    assert snapshot(earlier.parent) == before


def test_overwrite_does_not_replace_the_folder_that_holds_the_input(tmp_path):
    save_file({k: t.clone() for k, t in tiny_state().items()}, tmp_path / "model.safetensors")
    before = snapshot(tmp_path)
    message = refused(2, "--checkpoint", tmp_path / "model.safetensors", "--output", tmp_path, "--overwrite")
    assert "model.safetensors" in message
    assert snapshot(tmp_path) == before


def test_the_output_is_a_file(tiny, tmp_path):
    (tmp_path / "out").write_text("mine")
    for option in ([], ["--overwrite"]):
        assert "is a file" in refused(2, "--checkpoint", tiny, "--output", tmp_path / "out", *option)
    assert (tmp_path / "out").read_text() == "mine"


def test_the_parent_of_the_output_is_a_file(tiny, tmp_path):
    (tmp_path / "file").write_text("mine")
    refused(2, "--checkpoint", tiny, "--output", tmp_path / "file" / "out")
    assert snapshot(tmp_path).keys() == {"file"}


def test_parents_of_the_output_are_made(tiny, tmp_path):
    convert(tiny, tmp_path / "a" / "b" / "out")
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["out"]


def test_a_parent_without_permission(tiny, tmp_path, monkeypatch):
    def denied(path, *rest):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "mkdir", denied)
    assert "Permission denied" in refused(2, "--checkpoint", tiny, "--output", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_noticed_before_the_first_byte(tiny, earlier, monkeypatch):
    before = snapshot(earlier.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(total=10, used=9, free=1_000_000))
    for place in (earlier, earlier.parent / "new"):
        message = refused(2, "--checkpoint", tiny, "--output", place, "--overwrite")
        assert "space" in message
    assert snapshot(earlier.parent) == before


# ---- faults midway --------------------------------------------------------------------------


def fail_after_half_a_shard(fault):
    def write_shard(folder, shard, *rest):
        (folder / shard.name).write_bytes(b"half of it")
        raise fault

    return write_shard


FAULTS = {
    "no space": (OSError(errno.ENOSPC, "No space left on device"), 2),
    "disk error": (OSError(errno.EIO, "Input/output error"), 2),
    "interrupt": (KeyboardInterrupt(), 130),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_midway_leaves_the_earlier_folder_and_nothing_else(name, tiny, earlier, monkeypatch):
    fault, code = FAULTS[name]
    before = snapshot(earlier.parent)
    monkeypatch.setattr(conversion, "write_shard", fail_after_half_a_shard(fault))
    refused(code, "--checkpoint", tiny, "--output", earlier, "--overwrite")
    refused(code, "--checkpoint", tiny, "--output", earlier.parent / "new")
    assert snapshot(earlier.parent) == before
    assert [p.name for p in earlier.parent.iterdir()] == ["folder"]


@pytest.mark.parametrize("fault", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", [1, 2])
def test_a_fault_while_the_folders_change_places_brings_the_earlier_one_back(call, fault, tiny, earlier, monkeypatch):
    before = snapshot(earlier.parent)
    rename, calls = os.rename, []

    def failing(a, b):
        calls.append(a)
        if len(calls) == call:
            raise fault
        rename(a, b)

    monkeypatch.setattr(safetensors_writer.os, "rename", failing)
    refused(
        130 if isinstance(fault, KeyboardInterrupt) else 2, "--checkpoint", tiny, "--output", earlier, "--overwrite"
    )
    assert snapshot(earlier.parent) == before
    assert [p.name for p in earlier.parent.iterdir()] == ["folder"]


SLOW = """
import pathlib, sys, time
from sam3lite_convert.cli import app
from sam3lite_convert.convert import safetensors_writer
real, marker = safetensors_writer.write_piece, pathlib.Path(sys.argv.pop())
def slow(*arguments):
    real(*arguments)
    marker.touch()
    time.sleep(0.2)
safetensors_writer.write_piece = slow
app.main()
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_midway_leaves_the_earlier_folder_and_nothing_else(name, tiny, earlier, tmp_path):
    before = snapshot(earlier.parent)
    arguments = ["convert", "--checkpoint", tiny, "--output", earlier, "--overwrite", tmp_path / "started"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *map(str, arguments)],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        # A shell that started the tests in its background has them ignore SIGINT, and a child inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        for _ in range(600):
            if (tmp_path / "started").exists():
                break
            time.sleep(0.05)
        assert any(p.name.startswith(".folder.partial") for p in earlier.parent.iterdir())
        process.send_signal(getattr(signal, name))
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode not in (0, 1, 3, 4)
    assert "Traceback" not in said
    assert snapshot(earlier.parent) == before
    assert [p.name for p in earlier.parent.iterdir()] == ["folder"]


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_an_interrupted_run_says_so(option, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "write_shard", fail_after_half_a_shard(KeyboardInterrupt()))
    done = sam3lite("convert", "--checkpoint", tiny, "--output", tmp_path / "out", *option)
    said = done.json["error"]["message"] if option else done.err
    assert "interrupted" in said


def test_leftovers_of_a_killed_run_go_with_the_next_and_are_pointed_out_by_a_dry_one(tiny, tmp_path):
    (tmp_path / ".out.partial-12345").mkdir()
    done = sam3lite("convert", "--checkpoint", tiny, "--output", tmp_path / "out", "--dry-run")
    assert done.code == 0 and ".out.partial-12345" in done.out + done.err
    assert (tmp_path / ".out.partial-12345").exists()
    done = sam3lite("convert", "--checkpoint", tiny, "--output", tmp_path / "out")
    assert done.code == 0 and not (tmp_path / ".out.partial-12345").exists()


# ---- dry run ----------------------------------------------------------------------------------


def test_a_dry_run_shows_the_plan_and_writes_nothing(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = sam3lite("convert", "--checkpoint", tiny, "--dry-run", "--json")
    assert done.code == 0
    assert done.json["dry_run"] is True
    assert done.json["counts"]["source"] == len(tiny_state())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["inspect", "dry run", "explain"])
def test_planning_reads_no_tensor_data(command, tiny, tmp_path):
    path = shutil.copyfile(tiny, tmp_path / "tiny.pt")
    arguments = {
        "inspect": ["inspect", "tiny.pt", "--json"],
        "dry run": ["convert", "--checkpoint", "tiny.pt", "--dry-run", "--json"],
        "explain": ["explain", "tiny.pt", QKV, "--json"],
    }[command]
    good = python("-m", "sam3lite_convert", *arguments, cwd=tmp_path)
    spoil_all_data(path)
    spoilt = python("-m", "sam3lite_convert", *arguments, cwd=tmp_path)
    assert good.returncode == spoilt.returncode == 0
    assert good.stdout == spoilt.stdout


def test_a_dry_run_beside_an_existing_folder_is_no_fault(tiny, earlier):
    before = snapshot(earlier.parent)
    assert sam3lite("convert", "--checkpoint", tiny, "--output", earlier, "--dry-run").code == 0
    assert snapshot(earlier.parent) == before


def test_a_dry_run_of_an_unsound_plan_fails_like_the_real_one(tmp_path):
    path = write(tmp_path, tiny_state() | {"detector.something.new": torch.ones(1)})
    assert "detector.something.new" in refused(3, "--checkpoint", path, "--dry-run")


# ---- unsound plans ------------------------------------------------------------------------------


def test_an_unsound_plan_lists_every_fault_and_writes_nothing(earlier, tmp_path):
    state = tiny_state()
    state["detector.transformer.decoder.layers.0.norm4.weight"] = torch.ones(32)
    del state["detector.dot_prod_scoring.hs_proj.bias"]
    state[TRUNK + "ln_pre.weight"] = torch.ones(5)
    path = write(tmp_path, state)
    before = snapshot(tmp_path)
    message = refused(3, "--checkpoint", path, "--output", earlier, "--overwrite")
    assert "detector.transformer.decoder.layers.0.norm4.weight" in message
    assert "detector.dot_prod_scoring.hs_proj.bias" in message
    assert TRUNK + "ln_pre.weight" in message
    assert snapshot(tmp_path) == before


# ---- the model card -------------------------------------------------------------------------------


CARDS = [("--layout", "packed"), ("--layout", "transformers"), ("--layout", "transformers", "--component", "text")]


@pytest.mark.parametrize("options", CARDS)
def test_the_loading_example_of_the_card_runs_in_the_folder(options, tiny, tmp_path, monkeypatch):
    folder = convert(tiny, tmp_path / "out", *options)
    card = (folder / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(folder)
    picture(folder)
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert "tensors" in names or "model" in names
    assert hashlib.sha256(tiny.read_bytes()).hexdigest() in card


def test_values_can_be_read_with_numpy_alone(converted):
    with safe_open(converted["packed"] / "model.safetensors", "np") as file:
        assert np.array_equal(file.get_tensor("text_encoder.projection"), tiny_state()[PROJECTION].numpy())
