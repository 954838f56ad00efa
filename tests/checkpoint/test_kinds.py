"""Kinds of file that are no plain checkpoint: each is named in one sentence, with what to do and its exit code."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.checkpoints import tensors
from support.folders import TRUNK, convert, sam3lite, tiny_state, write

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


def quantised() -> torch.Tensor:
    with pytest.warns(UserWarning):
        return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


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
    "facebook": (lambda p: saved(p, {"detector_model.vision_encoder.a": Z(4)}), 3, "facebook/sam3"),
    "mlx": (lambda p: save_file({"a": Z(2)}, p, metadata={"format": "mlx"}), 3, "MLX"),
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
    "transformers": ({"config.json": b"{}", "model.safetensors": b""}, "transformers.*sam3lite verify"),
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


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_one_file_of_a_sharded_folder_is_named_as_its_folder(name, tmp_path):
    for file in (".metadata", "__0_0.distcp"):
        (tmp_path / file).write_bytes(b"PK")
    done = sam3lite("inspect", tmp_path / name)
    assert done.code == 3 and "DCP" in done.err


def test_what_this_tool_wrote_is_no_source(tmp_path):
    text = {k: t for k, t in tiny_state().items() if "language_backbone" in k}
    folder = convert(write(tmp_path, text), tmp_path / "out", "--component", "text")
    for source, says in ((folder, "this tool wrote"), (folder / "model.safetensors", "converted checkpoint")):
        done = sam3lite("convert", "--checkpoint", source, "--output", tmp_path / "again")
        assert done.code == 3 and says in done.err and "sam3lite verify" in done.err
    assert json.loads(sam3lite("inspect", folder / "model.safetensors", "--json").out)["kind"].startswith("a converted")


def test_an_expanded_tensor_may_be_dropped_and_not_converted(tmp_path):
    dropped = {"tracker.pos": torch.ones(1).expand(7)}
    convert(write(tmp_path, tiny_state() | dropped), tmp_path / "out")
    bias = KEY.removesuffix("weight") + "bias"
    kept = {bias: torch.ones(1).expand(len(tiny_state()[bias]))}
    done = sam3lite("convert", "--checkpoint", write(tmp_path, tiny_state() | kept), "--output", tmp_path / "b")
    assert done.code == 3 and f"{bias} is an overlapping view" in done.err
