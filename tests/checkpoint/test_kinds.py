"""Kinds of file that are no plain checkpoint: each is named in one sentence, with what to do and its exit code."""

from __future__ import annotations

import argparse
import bz2
import gzip
import io
import json
import lzma
import pickle
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.checkpoints import quantised, tensors
from support.folders import TRUNK, convert, sam3lite, tiny_state, write

from sam3lite_convert.checkpoint.reader import read_checkpoint

KEY = TRUNK + "blocks.0.mlp.fc1.weight"


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def in_bytes(content: object) -> bytes:
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


def numpys(save) -> bytes:
    out = io.BytesIO()
    save(out, np.ones(2))
    return out.getvalue()


def zipped(path: Path, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def tarred(path: Path) -> Path:
    data = in_bytes(tensors())
    with tarfile.open(path, "w") as archive:
        entry = tarfile.TarInfo("a.pt")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return path


def exported(path: Path) -> Path:
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),)), path)
    return path


class Device:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __reduce__(self):
        arguments = (self.tensor, self.tensor.dtype, "hpu:0", False)
        return (torch._utils._rebuild_device_tensor_from_cpu_tensor, arguments)


def nested() -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.strided)


def with_key(value: object) -> dict[str, object]:
    return {"model": {**tensors(), "odd": value}}


def floats(change) -> dict[str, torch.Tensor]:
    return {k: change(t) if t.is_floating_point() else t for k, t in tiny_state().items()}


def int8_with_scales() -> dict[str, torch.Tensor]:
    state = tiny_state()
    for key in [k for k, t in state.items() if t.ndim == 2 and t.is_floating_point()]:
        state[key + "_scale"] = torch.ones(())
        state[key] = state[key].to(torch.int8)
    return state


Z = torch.zeros
# name -> (what makes the file, exit code, what is said)
KINDS = {
    "lfs": (lambda p: p.write_bytes(b"\xef\xbb\xbfversion https://git-lfs.github.com/spec/v1"), 4, "LFS.*git lfs pull"),
    "page": (lambda p: p.write_bytes(b"\n<!DOCTYPE html><html>"), 4, "web page.*Download"),
    "error": (lambda p: p.write_bytes(b'{"error":"Access to model x is restricted."}'), 4, "error message of a server"),
    "xml": (lambda p: p.write_bytes(b'<?xml version="1.0"?><Error><Code>AccessDenied'), 4, "error message of a server"),
    "gzip": (lambda p: p.write_bytes(gzip.compress(in_bytes(tensors()))), 3, "gzip archive.*gunzip"),
    "tar": (tarred, 3, "tar archive.*tar -xf"),
    "7z": (lambda p: p.write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(40)), 3, "7z archive"),
    "zip": (lambda p: zipped(p, **{"sub/ok.pt": in_bytes(tensors())}), 3, "zip archive with sub/ok.pt inside.*unzip"),
    "npz": (lambda p: p.write_bytes(numpys(np.savez)), 3, "numpy arrays"),
    "npy": (lambda p: p.write_bytes(numpys(np.save)), 3, "a numpy array"),
    "gguf": (lambda p: p.write_bytes(b"GGUF" + bytes(100)), 3, "GGUF"),
    "onnx": (lambda p: p.write_bytes(b"\x08\x07\x12\x07pytorch" + bytes(50)), 3, "ONNX"),
    "hdf5": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100)), 3, "HDF5"),
    "exported": (exported, 3, "torch.export.*state_dict"),
    "optimizer": (lambda p: saved(p, {"state": {0: {"step": Z(1)}}, "param_groups": []}), 3, "optimizer"),
    "scheduler": (lambda p: saved(p, {"last_epoch": 3, "_last_lr": [1e-4]}), 3, "scheduler"),
    "generators": (lambda p: saved(p, {"python": (3, (1,)), "cpu": torch.get_rng_state()}), 3, "random generators"),
    "numpy": (lambda p: saved(p, {k: v.numpy() for k, v in tensors().items()}), 3, "numpy array.*from_numpy"),
    "sparse": (lambda p: saved(p, with_key(torch.eye(3).to_sparse())), 3, r"odd is a sparse tensor.*to_dense\(\)"),
    "csr": (lambda p: saved(p, with_key(torch.eye(3).to_sparse_csr())), 3, r"odd is a sparse tensor.*to_dense\(\)"),
    "quantised": (lambda p: saved(p, with_key(quantised())), 3, r"odd is a quantised tensor.*dequantize\(\)"),
    "meta": (lambda p: saved(p, with_key(torch.empty(3, device="meta"))), 3, "odd is a tensor on the meta device"),
    "nested": (lambda p: saved(p, with_key(nested())), 3, "odd is a nested tensor.*to_padded_tensor"),
    "device": (lambda p: saved(p, with_key(Device(torch.ones(2)))), 3, r"odd is a tensor of another device.*cpu\(\)"),
    "flat": (lambda p: saved(p, {"_fsdp_wrapped_module._flat_param": Z(9)}), 3, "FSDP.*FULL_STATE_DICT"),
    "zero3": (lambda p: saved(p, {"model": floats(lambda t: torch.empty(0))}), 3, "ZeRO-3.*zero_to_fp32"),
    "lora": (lambda p: saved(p, tiny_state() | {KEY[:-6] + "lora_A.weight": Z(4)}), 3, "LoRA.*not merged"),
    "adapter": (lambda p: saved(p, {f"a.{n}.lora_A.weight": Z(4) for n in range(9)}), 3, "adapter alone"),
    "int8": (lambda p: saved(p, {"model": int8_with_scales()}), 3, "quantised checkpoint.*int8.*scales"),
    "complex": (lambda p: saved(p, floats(lambda t: t.to(torch.complex64))), 3, "checkpoint of complex64.*real parts"),
    "uint16": (lambda p: saved(p, floats(lambda t: t.half().view(torch.uint16))), 3, "quantised.*tensors of uint16"),
    "mobileclip": (lambda p: saved(p, {"text_encoder.embedding_layer.weight": Z(4, 4)}), 3, "MobileCLIP checkpoint"),
    "sam2": (lambda p: saved(p, {"memory_attention.layers.0.norm1.weight": Z(4)}), 3, "SAM 2"),
    "sam1": (lambda p: saved(p, {"mask_decoder.iou_token.weight": Z(1, 4)}), 3, "SAM 1"),
    "facebook": (lambda p: saved(p, {"detector_model.vision_encoder.a": Z(4)}), 3, "part of a model in the names"),
    "mlx": (lambda p: save_file({"a": Z(2)}, p, metadata={"format": "mlx"}), 3, "MLX"),
}  # fmt: skip


def names(*keys: str, dtype: torch.dtype = torch.float32) -> Callable[[Path], Path]:
    return lambda p: saved(p, {key: Z(4, 4).to(dtype) for key in keys})


def beside(**values: torch.Tensor) -> Callable[[Path], Path]:
    """A checkpoint in which these tensors stand in the place of one weight."""
    state = {k: t for k, t in tiny_state().items() if k != KEY}
    return lambda p: saved(p, state | {KEY[:-6] + k: t for k, t in values.items()})


def in_bytes_of(data: bytes) -> Callable[[Path], int]:
    return lambda p: p.write_bytes(data)


# Told by their first bytes.
BYTES = {
    "onnx of another tool": (b"\x08\x0a\x12\x0fskl2onnx\x1a\x051.0", 3, "ONNX"),
    "ggml": (b"lmgg" + bytes(90), 3, "ggml"),
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(90), 3, "TensorFlow Lite"),
    "tensorflow": (b'model_checkpoint_path: "model.ckpt-100"\n', 3, "TensorFlow"),
    "flax": (b"\x82\xa6params\x81\xa5dense\x81\xa6kernel\xc7", 3, "Flax"),
    "openvino": (b'<?xml version="1.0"?>\n<net name="Model0" version="11">', 3, "OpenVINO"),
    "tensorrt": (b"ptrt" + bytes(90), 3, "TensorRT"),
    "executorch": (b"\x14\0\0\0ET12" + bytes(90), 3, "ExecuTorch"),
    "xz": (lzma.compress(b"x"), 3, "xz archive.*unxz"),
    "bzip2": (bz2.compress(b"x"), 3, "bzip2 archive.*bunzip2"),
    "lzma": (lzma.compress(b"x", format=lzma.FORMAT_ALONE), 3, "lzma archive"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(90), 3, "zstd archive"),
    "lz4": (b"\x04\x22\x4d\x18" + bytes(90), 3, "lz4 archive"),
    "rar": (b"Rar!\x1a\x07\x01\0" + bytes(90), 3, "RAR archive"),
    "empty zip": (b"PK\x05\x06" + bytes(18), 4, "empty zip archive"),
    "xet": (b"# xet version 0\nfilesize = 2200\n", 4, "Xet pointer.*hf download"),
    "message": (b'{\n "message": "Not Found", "status": 404}', 4, "error message of a server"),
    "credentials": (b"Invalid credentials in Authorization header", 4, "error message of a server"),
    "json": (b'{"architectures": ["Sam3Model"]}', 3, "JSON file.*weights"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(90), 3, "a picture"),
    "pickle 2": (pickle.dumps({"a": 1}, protocol=2), 4, "pickle that torch.save did not write"),
    "pickle 5": (pickle.dumps({"a": 1}, protocol=5), 4, "pickle that torch.save did not write"),
    "pickle 0": (pickle.dumps({"a": 1}, protocol=0), 4, "pickle that torch.save did not write"),
    "empty": (b"", 4, "is empty.*done again"),
    "zeros": (bytes(900), 4, "zeros.*done again"),
}
OPTIMIZER = {"state": {0: {"step": torch.ones(()), "exp_avg": torch.ones(3)}}, "param_groups": []}
KINDS |= {
    **{name: (in_bytes_of(data), code, says) for name, (data, code, says) in BYTES.items()},
    "keras": (lambda p: zipped(p, **{"config.json": b"{}", "model.weights.h5": b""}), 3, "Keras"),
    "zip of pth.tar": (lambda p: zipped(p, **{"b.pth.tar": b""}), 3, "zip archive with b.pth.tar inside"),
    "zip of onnx": (lambda p: zipped(p, **{"model.onnx": b""}), 3, "zip archive with model.onnx inside"),
    "optimizer alone": (lambda p: saved(p, {"optimizer": OPTIMIZER, "epoch": 1}), 3, "state of an optimizer"),
    "optimizers": (lambda p: saved(p, {"optimizer_states": [OPTIMIZER]}), 3, "state of an optimizer"),
    "rank": (lambda p: saved(p, {"optimizer_state_dict": {"zero_stage": 2, "fp32": [Z(9)]}}), 3, "rank of DeepSpeed"),
    "shadow": (lambda p: saved(p, {"decay": 0.9, "shadow_params": [Z(3)]}), 3, r"EMA without their names.*copy_to"),
    "arguments": (lambda p: saved(p, argparse.Namespace(lr=1)), 3, "training arguments"),
    "hyperparameters": (lambda p: saved(p, {"lr": 1e-4}), 3, r"no state dict.*model\.state_dict\(\)"),
    "numbered flat": (names("flat_param_0"), 3, "FSDP with flat parameters"),
    "scale_weight": (
        lambda p: saved(p, floats(lambda t: t.to(torch.float8_e4m3fn)) | {KEY[:-6] + "scale_weight": Z(1)}), 3,
        "quantised checkpoint.*float8_e4m3fn, 1 scale"),
    "gptq": (names("a.qweight", "a.qzeros", "a.scales", dtype=torch.int32), 3, "quantised checkpoint.*int32"),
    "fake quantised": (
        lambda p: saved(p, tiny_state() | {KEY + "_fake_quant.scale": Z(1)}), 3, "quantisation-aware training"),
    "weight norm": (beside(weight_g=Z(4, 1), weight_v=Z(4, 4)), 3, "weight_norm.*remove_weight_norm"),
    "pruned": (beside(weight_orig=Z(4, 4), weight_mask=Z(4, 4)), 3, "prune.*prune\\.remove"),
    "parametrised": (beside(**{"parametrizations.weight.original": Z(4, 4)}), 3, "remove_parametrizations"),
    "kohya": (names("lora_te_x.lora_down.weight", "lora_te_x.lora_up.weight", "lora_te_x.alpha"), 3, "adapter alone"),
    "loha": (names("lora_unet_x.hada_w1_a", "lora_unet_x.hada_w1_b"), 3, "LoHa.*not the weights"),
    "loha in its model": (
        lambda p: saved(p, tiny_state() | {KEY[:-6] + "hada_w1_a": Z(4)}), 3, "adapter .* that is not merged"),
    "ia3": (names("base_model.model.a.ia3_l"), 3, "IA3.*not the weights"),
    "difference": (lambda p: saved(p, {k[:-6] + "diff": t for k, t in tiny_state().items()}), 3, "difference of two"),
    "openai clip": (names("visual.class_embedding", "transformer.resblocks.0.ln_1.weight"), 3, "a CLIP checkpoint"),
    "open clip": (names("module.text.transformer.resblocks.0.ln_1.weight"), 3, "a CLIP checkpoint"),
    "transformers clip": (names("text_model.embeddings.token_embedding.weight"), 3, "a CLIP checkpoint"),
    "dinov3": (names("storage_tokens", "blocks.0.attn.qkv.weight"), 3, "a DINO checkpoint"),
    "perception": (names("visual.attn_pool.probe", "visual.conv1.weight"), 3, "Perception Encoder"),
    "mobilesam": (names("image_encoder.layers.0.a", "mask_decoder.iou_token.weight"), 3, "MobileSAM"),
    "efficientsam": (names("mask_decoder.output_upscaling_layers.0.weight", "prompt_encoder.x"), 3, "EfficientSAM"),
    "diffusion": (names("model.diffusion_model.input_blocks.0.0.weight"), 3, "diffusion model"),
    "unet": (names("down_blocks.0.resnets.0.conv1.weight"), 3, "diffusion model"),
    "language model": (names("model.embed_tokens.weight", "lm_head.weight"), 3, "language model"),
    "part": (names("detector.segmentation_head.a.weight"), 3, "part of a SAM3 detector without its text encoder"),
    "flax names": (lambda p: save_file({"a.kernel": Z(2)}, p, metadata={"format": "flax"}), 3, "Flax"),
    "no tensors": (lambda p: save_file({}, p), 3, "without tensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_is_named_with_what_to_do(name, tmp_path):
    make, code, says = KINDS[name]
    path = tmp_path / "file.pt"
    make(path)
    done = sam3lite("convert", "--checkpoint", path, "--output", tmp_path / "out")
    assert done.code == code, done
    assert re.search(says, done.err), done.err
    assert done.err.count("\n") <= 3 and len(done.err) < 800
    assert not re.search(r"_rebuild|Opaque|Record|multiarray|prefix", done.err)
    assert not (tmp_path / "out").exists()


FOLDERS = {
    "dcp": ({".metadata": b"", "__0_0.distcp": b""}, "DCP.*format_utils dcp_to_torch"),
    "deepspeed": ({"mp_rank_00_model_states.pt": b""}, "DeepSpeed.*zero_to_fp32"),
    "unzipped": ({"archive/data.pkl": b"", "archive/version": b"3"}, "unzipped.*zip -0 -r checkpoint.pt archive"),
    "savedmodel": ({"saved_model.pb": b"", "variables/variables.index": b""}, "folder of TensorFlow"),
    "openvino": ({"openvino_model.xml": b"", "openvino_model.bin": b""}, "folder of OpenVINO"),
    "orbax": ({"_CHECKPOINT_METADATA": b"", "manifest.ocdbt": b""}, "Orbax"),
    "mlpackage": ({"Manifest.json": b"", "Data/x": b""}, "CoreML"),
    "megatron": ({"latest_checkpointed_iteration.txt": b"1"}, "Megatron"),
    "accelerate": ({"pytorch_model_fsdp_0/__0_0.distcp": b""}, "accelerate.*merge-weights"),
    "diffusers": ({"model_index.json": b"{}"}, "diffusers"),
    "adapter": ({"adapter_config.json": b"{}", "adapter_model.safetensors": b""}, "LoRA adapter alone"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_named_with_the_command_that_is_meant(name, tmp_path):
    files, says = FOLDERS[name]
    for file, data in files.items():
        (tmp_path / "it" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "it" / file).write_bytes(data)
    done = sam3lite("convert", "--checkpoint", tmp_path / "it")
    assert done.code == 3 and re.search(says, done.err), done


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [("a.onnx", 3, "ONNX"), ("a.pb", 3, "TensorFlow"), ("m.ckpt.index", 3, "TensorFlow"), ("a.engine", 3, "TensorRT"),
     ("m.data-00000-of-00001", 3, "TensorFlow"), ("a.mlmodel", 3, "CoreML"), ("a.pt.aria2", 4, "unfinished download"),
     ("a.torrent", 3, "torrent"), ("a.pt.ab", 4, "piece of a file.*cat")],
)  # fmt: skip
def test_a_file_whose_bytes_tell_nothing_is_told_by_its_name(name, code, says, tmp_path):
    (tmp_path / name).write_bytes(bytes(range(1, 200)))
    done = sam3lite("inspect", tmp_path / name)
    assert done.code == code and re.search(says, done.err), done
    # A sound checkpoint is one by any name.
    saved(tmp_path / name, tiny_state())
    assert sam3lite("inspect", tmp_path / name).code == 0


def test_another_model_is_told_with_its_first_keys(tmp_path):
    path = names("layer1.0.conv1.weight", "fc.weight")(tmp_path / "a.pt")
    done = sam3lite("convert", path)
    assert done.code == 3 and done.err.count("\n") == 1
    assert re.search("no SAM3-LiteText checkpoint.*layer1.0.conv1.weight.*--strip-prefix.*inspect s0", done.err)


@pytest.mark.parametrize("length", [0x5D, 0x088B1F, 0x685A42])  # as an lzma, gzip and bzip2 archive begins
def test_a_safetensors_file_is_one_whatever_the_length_of_its_header_looks_like(length, tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode().ljust(length)
    (tmp_path / "a.safetensors").write_bytes(length.to_bytes(8, "little") + header + bytes(4))
    assert list(read_checkpoint(tmp_path / "a.safetensors").tensors) == ["a"]


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_one_file_of_a_sharded_folder_is_named_as_its_folder(name, tmp_path):
    for file in (".metadata", "__0_0.distcp"):
        (tmp_path / file).write_bytes(b"PK")
    done = sam3lite("inspect", tmp_path / name)
    assert done.code == 3 and "DCP" in done.err


def test_an_expanded_tensor_may_be_dropped_and_not_converted(tmp_path):
    dropped = {"tracker.pos": torch.ones(1).expand(7)}
    convert(write(tmp_path, tiny_state() | dropped), tmp_path / "out")
    bias = KEY.removesuffix("weight") + "bias"
    kept = {bias: torch.ones(1).expand(len(tiny_state()[bias]))}
    done = sam3lite("convert", "--checkpoint", write(tmp_path, tiny_state() | kept), "--output", tmp_path / "b")
    assert done.code == 3 and f"{bias} is an overlapping view" in done.err
