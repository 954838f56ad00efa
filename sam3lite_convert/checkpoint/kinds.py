"""Kinds of file that are not plain checkpoints, told by their first bytes, their folder or the objects in them.

One row a kind: what it is, and what to do next. Kinds that the names of the tensors tell are in ``plan/kinds.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from sam3lite_convert.errors import CannotRun, Sam3LiteError, UnsoundPlan, Untrusted

WEIGHTS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
GATHER = "Make one file of the folder with the script in it: python zero_to_fp32.py . checkpoint.pt"
_UNPACK = "Unpack it and give the file inside"
_DOWNLOAD = "Download the file itself"


class Kind(NamedTuple):
    """What a file is, in words, and what to do.

    ``code``: the error's. ``sound``: whether the file is what it is meant to be, only no checkpoint that is read here.
    """

    what: str
    do: str
    code: str = "unsupported_kind"
    sound: bool = True

    def refusal(self) -> Sam3LiteError:
        """The error: UnsoundPlan for a kind that is not supported, Untrusted for a file that is damaged."""
        fault = UnsoundPlan if self.sound else Untrusted
        return fault(f"this is {self.what}. {self.do}.", self.code, {"kind": self.what})


def _damaged(what: str, do: str) -> Kind:
    return Kind(what, do, "not_a_checkpoint", False)


_GIVE_TORCH = "Give the PyTorch checkpoint that it was made from"
_ONNX = Kind("an ONNX graph", "Give the PyTorch checkpoint that it was exported from")
_TENSORFLOW = Kind("a TensorFlow file", _GIVE_TORCH)
_COREML = Kind("a CoreML model", _GIVE_TORCH)
_OPENVINO = Kind("an OpenVINO graph", _GIVE_TORCH)
_FLAX = Kind("a MessagePack file, as Flax writes", _GIVE_TORCH)
_HDF5 = Kind("an HDF5 file, as Keras writes", "Give the PyTorch checkpoint")
_GGML = Kind("a ggml file of llama.cpp", "Give the checkpoint that it was made from")
_PICTURE = Kind("a picture", "Give the checkpoint")
# What it would do is not known, as it is not read.
_PICKLE = _damaged(
    "a pickle that torch.save did not write; it was not loaded",
    "Load it where it was written and save its dict of tensors with torch.save",
)
_HEADS: tuple[tuple[bytes, Kind], ...] = (
    (b"\x1f\x8b", Kind("a gzip archive", f"{_UNPACK}: gunzip FILE (tar -xzf FILE, if it is a .tar.gz)")),
    (b"BZh", Kind("a bzip2 archive", f"{_UNPACK}: bunzip2 FILE")),
    (b"\xfd7zXZ\x00", Kind("an xz archive", f"{_UNPACK}: unxz FILE")),
    (b"]\x00\x00", Kind("an lzma archive", f"{_UNPACK}: unlzma FILE")),
    (b"\x28\xb5\x2f\xfd", Kind("a zstd archive", f"{_UNPACK}: unzstd FILE")),
    (b"\x04\x22\x4d\x18", Kind("an lz4 archive", f"{_UNPACK}: unlz4 FILE")),
    (b"\x1f\x9d", Kind("an archive of compress (.Z)", f"{_UNPACK}: uncompress FILE")),
    (b"7z\xbc\xaf\x27\x1c", Kind("a 7z archive", f"{_UNPACK}: 7z x FILE")),
    (b"Rar!", Kind("a RAR archive", f"{_UNPACK}: unrar x FILE")),
    (b"PK\x05\x06", _damaged("an empty zip archive", f"{_DOWNLOAD} again, or save it again")),
    (b"GGUF", Kind("a GGUF file of llama.cpp", "Give the checkpoint that it was made from")),
    (b"lmgg", _GGML), (b"tjgg", _GGML), (b"algg", _GGML), (b"fmgg", _GGML),
    (b"\x89HDF\r\n\x1a\n", _HDF5),
    (b"\x93NUMPY", Kind(
        "a numpy array", "Save the state dict of tensors with torch.save or safetensors.torch.save_file")),
    (b"ftrt", Kind("a TensorRT engine", _GIVE_TORCH)),
    (b"ptrt", Kind("a TensorRT engine", _GIVE_TORCH)),
    (b"RKNN", Kind("an RKNN model", _GIVE_TORCH)),
    (b"7767517", Kind("an ncnn graph", _GIVE_TORCH)),
    (b"PAR1", Kind("a Parquet table, not a checkpoint", "Give the checkpoint")),
    (b"ARROW1", Kind("an Arrow table, not a checkpoint", "Give the checkpoint")),
    (b"SQLite format 3", Kind("an SQLite database, not a checkpoint", "Give the checkpoint")),
    (b"MATLAB 5.0", Kind("a MATLAB file", _GIVE_TORCH)),
    (b"%PDF", Kind("a PDF document", "Give the checkpoint")),
    (b"\x89PNG", _PICTURE), (b"\xff\xd8\xff", _PICTURE), (b"GIF8", _PICTURE),
    (b"\x7fELF", Kind("a program", "Give the checkpoint")),
    (b"MZ\x90\x00", Kind("a program", "Give the checkpoint")),
    # Protocols 2 to 5, and the text form of protocol 0.
    *((bytes([0x80, protocol]), _PICKLE) for protocol in (2, 3, 4, 5)),
    (b"(dp0", _PICKLE), (b"(lp0", _PICKLE), (b"ccopy_reg\n", _PICKLE), (b"ccollections\n", _PICKLE),
)  # fmt: skip
_LATER: tuple[tuple[int, bytes, Kind], ...] = (  # bytes at another place
    (4, b"TFL3", Kind("a TensorFlow Lite model", _GIVE_TORCH)),
    (4, b"ET12", Kind("an ExecuTorch program", _GIVE_TORCH)),
    (257, b"ustar", Kind("a tar archive", f"{_UNPACK}: tar -xf FILE")),
)
_UNFINISHED = _damaged("an unfinished download", f"{_DOWNLOAD} again, or wait until it is complete")
_ENDINGS: tuple[tuple[str, Kind], ...] = (  # of names, for files whose bytes tell nothing
    (r"\.onnx(?:_data|\.data)?", _ONNX),
    (r"\.(?:pb|pbtxt|index|meta)|\.data-\d{5}-of-\d{5}", _TENSORFLOW),
    (r"\.mlmodel", _COREML),
    (r"\.(?:engine|plan|trt)", Kind("a TensorRT engine", _GIVE_TORCH)),
    (r"\.msgpack", _FLAX),
    (r"\.mnn", Kind("an MNN model", _GIVE_TORCH)),
    (r"\.(?:incomplete|crdownload|part|partial|download|aria2|!qB)", _UNFINISHED),
    (
        r"\.(?:a[a-z]|\d{3})",
        _damaged("a piece of a file that was split", "Join the pieces in their order: cat NAME.* > NAME"),
    ),
    (r"\.torrent", Kind("a torrent, not the file that it stands for", _DOWNLOAD)),
)
_LFS = _damaged("a Git LFS pointer, not the weights", "Download them with 'git lfs pull'")
_XET = _damaged("a Xet pointer, not the weights", "Download them with 'hf download' or 'git xet'")
_WEB_PAGE = _damaged("a web page, not a checkpoint", f"{_DOWNLOAD}: use the link that leads to it, not to its page")
_ERROR = _damaged(
    "the error message of a server, saved in place of the file", f"{_DOWNLOAD} again, logged in if it asks for that"
)
_ERRORS = (
    b"<?xml", b"<error", b"entry not found", b"access denied", b"access to model", b"repository not found",
    b"not found", b"invalid username", b"invalid credentials", b"unauthorized", b"forbidden", b"404", b"403",
    b"internal server error", b"bad gateway", b"too many requests",
)  # fmt: skip
_JSON = Kind("a JSON file, not a checkpoint", "Give the file of weights that it stands beside")


def kind_of_bytes(head: bytes) -> Kind | None:
    """The kind that the first 512 bytes of a file tell; None if none does."""
    for start, kind in _HEADS:
        if head.startswith(start):
            return kind
    for place, mark, kind in _LATER:
        if head[place:].startswith(mark):
            return kind
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return _LFS
    if text.startswith(b"# xet version"):
        return _XET
    if text.startswith((b"<!doctype", b"<html")):
        return _WEB_PAGE
    if text.startswith(b"<?xml") and b"<net " in text:
        return _OPENVINO
    if text.startswith(_ERRORS):
        return _ERROR
    if re.match(rb'\{\s*"(?:error|message|detail|errors|status|statuscode|code)"\s*:', text):
        return _ERROR
    if re.match(rb'(?:\{\s*"|\[\s*[\[{"])', text) and _is_text(head):
        return _JSON
    if text.startswith(b"model_checkpoint_path:"):
        return _TENSORFLOW
    if re.match(rb"\x08[\x00-\x1f].{0,60}[\x12\x3a].(?:pytorch|tf2onnx|onnx|sk|sam3lite)", head, re.DOTALL):
        return _ONNX
    if re.match(rb"[\x81-\x8f][\xa1-\xbf][a-z_]{2}", head):
        return _FLAX
    return None


def _is_text(head: bytes) -> bool:
    return all(32 <= b < 127 or b in b"\t\r\n" or b >= 0xC2 for b in head)


def kind_of_name(name: str) -> Kind | None:
    """The kind that the end of a file's name tells, for a file whose bytes tell none."""
    return next((kind for ending, kind in _ENDINGS if re.search(f"(?:{ending})$", name)), None)


def kind_of_zip(names: Iterable[str]) -> Kind | None:
    """The kind of a zip archive in which ``torch.save`` left no ``data.pkl``, or which holds a program too."""
    names = list(names)
    parts = {name.split("/", 1)[-1] for name in names} | set(names)
    if "constants.pkl" in parts:
        do = "It holds a program; save the module's state_dict() with torch.save instead"
        return Kind("a TorchScript archive", do)
    if any(part.startswith(("serialized_exported_program", "models/", "data/weights/")) for part in parts):
        return Kind(
            "a program exported by torch.export (.pt2)", "Save the module's state_dict() with torch.save instead"
        )
    if any(name.endswith(".npy") for name in names):
        do = "Save the arrays as tensors with safetensors.torch.save_file"
        return Kind("an archive of numpy arrays (.npz)", do)
    if "config.json" in parts and any(name.endswith(".weights.h5") for name in names):
        return Kind("a Keras archive", _GIVE_TORCH)
    inside = [n for n in names if n.endswith((*WEIGHTS, ".tar")) and "__MACOSX" not in n]
    if inside:
        return Kind(f"a zip archive with {inside[0][:200]} inside", f"{_UNPACK}: unzip FILE")
    if any(name.endswith(".mlmodel") for name in names):
        return _COREML
    if any(name.endswith((".onnx", ".h5", ".gguf", ".pb", ".pkl")) for name in names):
        first = next(name for name in names if name.endswith((".onnx", ".h5", ".gguf", ".pb", ".pkl")))
        return Kind(f"a zip archive with {first[:200]} inside, which is not read either", _GIVE_TORCH)
    return None


def kind_of_folder(path: Path) -> Kind | None:
    """The kind of a folder that was given in place of a checkpoint file; None if it is an ordinary one."""
    has = {each.name for each in path.iterdir()} if path.is_dir() else set()
    if ".metadata" in has or any(name.endswith(".distcp") for name in has):
        return Kind(
            "a sharded checkpoint of torch.distributed.checkpoint (DCP)",
            "Make one file of it: "
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} checkpoint.pt",
        )
    if (
        any(re.fullmatch(r"(?:bf16_)?(?:zero_pp_rank|mp_rank)_.*\.pt", name) for name in has)
        or "zero_to_fp32.py" in has
    ):
        return Kind(
            "a checkpoint folder of DeepSpeed",
            f"{GATHER}; or give mp_rank_00_model_states.pt, if the run did not use ZeRO-3",
        )
    if "data.pkl" in has or any((path / name / "data.pkl").is_file() for name in list(has)[:20]):
        inner = path if "data.pkl" in has else next(path / n for n in has if (path / n / "data.pkl").is_file())
        return Kind(
            "a checkpoint that was unzipped",
            f"Zip it again, without compression: cd {inner.parent} && zip -0 -r checkpoint.pt {inner.name}",
        )
    if "adapter_config.json" in has:
        return ADAPTER
    return next((kind for names, kind in _FOLDERS if any(re.fullmatch(names, name) for name in has)), None)


_FOLDERS: tuple[tuple[str, Kind], ...] = (
    (r"saved_model\.pb|.*\.data-\d{5}-of-\d{5}", Kind("a folder of TensorFlow", _GIVE_TORCH)),
    (r"_CHECKPOINT_METADATA|manifest\.ocdbt", Kind("a checkpoint folder of Orbax (JAX)", _GIVE_TORCH)),
    (r"Manifest\.json", Kind("a CoreML package", _GIVE_TORCH)),
    (r"openvino_.*\.xml", Kind("a folder of OpenVINO", _GIVE_TORCH)),
    (
        r"model_index\.json",
        Kind("a pipeline of the diffusers library, not SAM3-LiteText", "Give a checkpoint: sam3lite inspect s0"),
    ),
    (
        r"latest_checkpointed_iteration\.txt|iter_\d+",
        Kind("a checkpoint folder of Megatron", "Save the model's state_dict() as one file where it was written"),
    ),
    (
        r"pytorch_model_fsdp_\d+",
        Kind(
            "a checkpoint folder of accelerate, sharded by FSDP",
            "Make one file of it: accelerate merge-weights FOLDER/pytorch_model_fsdp_0 OUTPUT",
        ),
    ),
)
MERGE = "Merge it into the weights (merge_and_unload() of peft) and save that state dict"
ADAPTER = Kind("a LoRA adapter alone, without the weights it belongs to", f"Load it over its base model. {MERGE}")
_TENSORS: tuple[tuple[str, Kind], ...] = (
    (r"torch\.distributed\..*DTensor", Kind("a distributed tensor (DTensor)", "save .full_tensor() of it")),
    (r"torch\._lazy_view", Kind(
        "a lazily negated or conjugated tensor", "save .resolve_neg().resolve_conj() of it")),
    (r"torch\._utils\._rebuild_sparse\w*", Kind("a sparse tensor", "save .to_dense() of it")),
    (r"torch\._utils\._rebuild_qtensor|torch\.Q\w+Storage|torch\.q\w+", Kind(
        "a quantised tensor", "save .dequantize() of it, or better the weights before they were quantised")),
    (r"torch\._utils\._rebuild_meta_tensor\w*", Kind(
        "a tensor on the meta device, which has no values", "load the weights with load_state_dict(..., assign=True)")),
    (r"torch\._utils\._rebuild_nested\w*", Kind("a nested tensor", "save .to_padded_tensor(0.0) of it")),
    (r"torch\._utils\._rebuild_device_tensor\w*", Kind(
        "a tensor of another device, saved by way of numpy or the CPU", "save .cpu() of it")),
    (r"(?:torchao|bitsandbytes|quanto|optimum\.quanto|compressed_tensors)\..*", Kind(
        "a quantised tensor of another library", "save .dequantize() of it, or better the weights before that")),
    (r"numpy\.(?:_?core\.)?multiarray\._reconstruct|numpy\.ndarray|numpy\._?core\.numeric\._frombuffer", Kind(
        "a numpy array", "save torch.from_numpy(...) of it")),
    (r"torch\._(?:utils|tensor)\._rebuild_wrapper_subclass|torch\.\w+\..*Tensor", Kind(
        "a tensor of a class of its own", "save a plain copy of it (.detach().clone() as torch.Tensor)")),
)  # fmt: skip
_ARGUMENTS = Kind("a file of training arguments, without weights", "Give the checkpoint beside it", "no_state_dict")
_ROOTS: tuple[tuple[str, Kind], ...] = ((r".*(?:TrainingArguments|DictConfig)|argparse\.Namespace", _ARGUMENTS),)


def refuse_tensor(key: str, name: str, count: int) -> UnsoundPlan | None:
    """The error for an object of this class in the place of a tensor; None if it is not known to be a tensor.

    ``count``: how many entries of the state dict are of this class.
    """
    for pattern, kind in _TENSORS:
        if re.fullmatch(pattern, name):
            more = f" (and {count - 1:,} more)" * (count > 1)
            return UnsoundPlan(
                f"{key[:200]}{more} is {kind.what}; only plain tensors are read. Where it was written, {kind.do}.",
                "not_a_plain_tensor",
                {"kind": kind.what},
            )
    return None


def kind_of_large_pickle(head: bytes) -> Kind | None:
    """The kind of a file whose pickle is too large for an index, from its first bytes."""
    if b"_rebuild_device_tensor" in head:
        do = "Where it was written, save {k: v.cpu() for k, v in state_dict.items()}"
        return Kind("a checkpoint of another device, whose values lie in the pickle itself", do)
    if b"multiarray" in head or b"numpy" in head:
        do = "Where it was written, save {k: torch.from_numpy(v) for k, v in arrays.items()}"
        return Kind("a dict of numpy arrays, whose values lie in the pickle itself", do)
    return None


def kind_of_object(name: str) -> Kind | None:
    """The kind of a file whose only object is of this class."""
    return next((kind for pattern, kind in _ROOTS if re.fullmatch(pattern, name)), None)


_OF_A_RANK = Kind(
    "the part of an optimizer that one rank of DeepSpeed ZeRO holds",
    GATHER,
    "no_state_dict",
)


_SHADOW = Kind(
    "the averaged weights of an EMA without their names (shadow_params)",
    "Where it was written, copy them into the model (ema.copy_to(model.parameters())) and save model.state_dict()",
    "no_state_dict",
)


def kind_of_tree(tree: Mapping[object, object]) -> Kind | None:
    """The kind of a file whose dict holds no tensors under names."""
    keys = {key for key in tree if isinstance(key, str)}
    if keys & {"zero_stage", "partition_count", "fp32_flat_groups", "single_partition_of_fp32_groups"}:
        return _OF_A_RANK
    if "shadow_params" in keys:
        return _SHADOW
    give = "Give the checkpoint with the model's weights beside it"
    if {"state", "param_groups"} <= keys:
        return Kind("the state of an optimizer, without weights", give, "no_state_dict")
    if keys & {"last_epoch", "_last_lr", "base_lrs", "_step_count"}:
        return Kind("the state of a learning rate scheduler, without weights", give, "no_state_dict")
    if keys & {"python", "numpy", "cpu", "cuda", "random_states"} and not keys & {"model", "state_dict"}:
        return Kind("the state of random generators, without weights", give, "no_state_dict")
    if {"scale", "growth_factor"} <= keys or {"scale", "growth_interval"} <= keys:
        return Kind("the state of a gradient scaler, without weights", give, "no_state_dict")
    return None


def scattered(count: int) -> Kind:
    """The kind of a file that holds its tensors in so many dicts within dicts."""
    what = f"a tree of dicts, {count:,} of them with tensors, in which the parts of a tensor's name are keys"
    return Kind(what, "Where it was written, save the flat model.state_dict()", "no_state_dict")


def nameless(count: int) -> Kind:
    """The kind of a file that holds tensors without names."""
    what = f"a file of {count:,} tensor{'s' * (count > 1)} without names (in a list, or under keys that are not text)"
    return Kind(what, "Where it was written, save model.state_dict()", "no_state_dict")


def refusal_of(kind: Kind, where: Path | str) -> Sam3LiteError:
    """The error for a file or folder of this kind, with its name."""
    fault = kind.refusal()
    fault.message = f"{where}: {fault.message}"
    return fault


def refuse_folder(path: Path) -> Sam3LiteError:
    """The error for a folder that was given in place of a checkpoint file."""
    if kind := kind_of_folder(path):
        return refusal_of(kind, path)
    return CannotRun(f"{path} is a folder, not a checkpoint file", "not_a_file")
