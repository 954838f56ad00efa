"""Small checkpoints of every format, and what torch reads in them."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from safetensors.torch import save_file

from sam3lite_convert.checkpoint.reader import read_checkpoint
from sam3lite_convert.errors import CannotRun, UnsoundPlan, Untrusted


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "a.weight": torch.randn(3, 4),
        "a.bias": torch.randn(4),
        "b.weight": torch.randn(2, 3, 5),
        "n": torch.tensor(7),
    }


def quantised() -> torch.Tensor:
    """A tensor of torch's own quantised kind; torch warns of it once in a process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


def stored_bytes(path, tensor) -> bytes:
    """The bytes of one indexed tensor, in C order, gathered by its offset and stride."""
    dtype = getattr(torch, tensor.dtype)
    raw = bytearray(tensor.span * dtype.itemsize)
    with open(path, "rb") as file:
        file.seek(tensor.offset)
        assert file.readinto(raw) == len(raw)
    if not raw:
        return b""
    return as_bytes(torch.frombuffer(raw, dtype=dtype).as_strided(tensor.shape, tensor.stride))


def as_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def assert_index_is(path, truth) -> None:
    index = read_checkpoint(path).tensors
    assert list(index) == list(truth)
    for key, tensor in truth.items():
        entry = index[key]
        assert (entry.key, entry.dtype, entry.shape) == (
            key,
            str(tensor.dtype).removeprefix("torch."),
            tuple(tensor.shape),
        )
        assert entry.nbytes == tensor.numel() * tensor.element_size()
        assert entry.contiguous == tensor.is_contiguous()
        assert stored_bytes(path, entry) == as_bytes(tensor), key


def assert_reads_as_torch(path, wrapper=None, weights_only=True) -> None:
    truth = torch.load(path, weights_only=weights_only, map_location="cpu")
    assert_index_is(path, truth[wrapper] if wrapper else truth)
    assert read_checkpoint(path).wrapper == wrapper


def saved(tmp_path, content, legacy=False, **kwargs):
    path = tmp_path / "file.pt"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy, **kwargs)
    return path


either_format = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


def refused(path, kind=Untrusted):
    with pytest.raises(kind) as fault:
        read_checkpoint(path)
    assert fault.value.exit_code == {Untrusted: 4, UnsoundPlan: 3, CannotRun: 2}[kind]
    assert path.name in fault.value.message
    return fault.value


def write_shards(folder, state, kind="safetensors", legacy=False):
    """Two shards of a state dict, ``safetensors`` or ``bin``, named as the usual tools name them; their index."""
    folder.mkdir(exist_ok=True)
    stem, keys = {"safetensors": "model", "bin": "pytorch_model"}[kind], list(state)
    names = [f"{stem}-0000{n}-of-00002.{kind}" for n in (1, 2)]
    half = len(keys) // 2
    for name, part in zip(names, (keys[:half], keys[half:]), strict=True):
        content = {key: state[key].clone().contiguous() for key in part}
        if kind == "safetensors":
            save_file(content, folder / name)
        else:
            torch.save(content, folder / name, _use_new_zipfile_serialization=not legacy)
    places = {key: names[i >= half] for i, key in enumerate(keys)}
    index = folder / f"{stem}.{kind}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index
