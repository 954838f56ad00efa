"""Shared helpers: a tiny checkpoint, the command line as a function, folders as tensors, the oracle."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import typer
from safetensors.torch import load, save_file
from support.schemas import check_document
from torch.nn import functional

from original_ref.blocks import MultiHeadAttention
from sam3lite_convert.cli import app
from sam3lite_convert.parity.inputs import BATCH
from sam3lite_convert.plan import synthetic

DATA = Path(__file__).parent.parent / "data"
ROOT = Path(__file__).parents[2]
LAYOUTS = ("packed", "transformers")
ENCODER = "detector.backbone.language_backbone.encoder."
TRUNK = "detector.backbone.vision_backbone.trunk."
PROJECTION = ENCODER + "projection_layer"
POSITIONS = ENCODER + "positional_embedding.pos_embed.pos_embed"
QKV = ENCODER + "transformer.1.pre_norm_mha.1.qkv_proj.weight"
TEXT_POSITIONS = {
    "packed": "text_encoder.position_embedding.position_embedding",
    "transformers": "text_encoder.embeddings.position_embedding.position_embedding",
}

State = dict[str, torch.Tensor]

# The tensors are tiny: a pool of threads only waits for itself, where it is not what is tested.
torch.set_num_threads(int(os.environ.get("SAM3LITE_TEST_THREADS") or 1))


def tiny_architecture(**sizes: Any) -> synthetic.Architecture:
    """The structure of a released model with fewer layers, two text heads and a short vocabulary."""
    small = {"vit_layers": 8, "vocab": 512, "text_hidden": 128, "text_heads": 2, "projection_dim": 128}
    return with_layers(synthetic.small_architecture(**(small | sizes)), geometry=1, detr_encoder=2, detr_decoder=2)


def with_layers(architecture: synthetic.Architecture, **counts: int) -> synthetic.Architecture:
    """The same model with so many layers in its geometry encoder, DETR encoder or DETR decoder."""
    blocks = {f"{name}_layers": tuple(range(n)) for name, n in counts.items()}
    return dataclasses.replace(architecture, blocks=architecture.blocks | blocks)


TRACKER_KEYS = 12  # of the 309 that a released file holds and that are dropped


@functools.cache
def _tiny_state() -> State:
    state = synthetic.state_dict(tiny_architecture())
    tracker = [k for k in state if k.startswith("tracker.")]
    return {k: t for k, t in state.items() if k not in tracker[TRACKER_KEYS:]}


def tiny_state() -> State:
    """A checkpoint of 7 MB. Its tensors are shared between the tests: replace them, never change them."""
    return dict(_tiny_state())


OLD_NAME = "efficient_sam3_image_encoder_mobileclip_s0_ctx16.pt"  # of February to June 2026: 77 rows, called with 16


def old_state(rows: int = 77, **sizes: Any) -> State:
    """A checkpoint as the files of the old names were: its position table has more rows than it is called with."""
    return synthetic.state_dict(tiny_architecture(context=rows, **sizes))


def write(folder: Path, state: Any, name: str = "tiny.pt", wrapper: str | None = "model") -> Path:
    path = folder / name
    torch.save({wrapper: state} if wrapper else state, path)
    return path


def write_safetensors(folder: Path, state: State) -> Path:
    """The same as a safetensors file, which is read faster."""
    save_file({k: t.clone().contiguous() for k, t in state.items()}, folder / "tiny.safetensors")
    return folder / "tiny.safetensors"


# ---- the command line -----------------------------------------------------------------


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


_uncached_command = typer.main.get_command
_command = functools.cache(_uncached_command)  # typer makes the command line anew for every call


def sam3lite(*arguments: object) -> Outcome:
    """Run the command line in this process, which is made once for all tests."""
    out, err = io.StringIO(), io.StringIO()
    before = signal.getsignal(signal.SIGTERM)
    typer.main.get_command = _command
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = app.run([str(a) for a in arguments])
    finally:
        typer.main.get_command = _uncached_command
        signal.signal(signal.SIGTERM, before)
    if "--json" in map(str, arguments) and out.getvalue():
        check_document([str(a) for a in arguments], json.loads(out.getvalue()))
    return Outcome(code, out.getvalue(), err.getvalue())


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def python(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment(), **options)


def convert(checkpoint: Path, folder: Path, *options: object) -> Path:
    """Convert, and fail the test if that fails."""
    done = sam3lite("convert", "--checkpoint", checkpoint, "--output", folder, *options)
    assert done.code == 0, done
    return folder


def verify(folder: Path, checkpoint: Path, *options: object) -> Outcome:
    return sam3lite("verify", folder, "--checkpoint", checkpoint, "--json", *options)


def assert_proven(folder: Path, checkpoint: Path, *options: object) -> Any:
    done = verify(folder, checkpoint, *options)
    record = done.json
    assert record.get("verdict") == "proven", done.out
    assert done.code == 0
    assert record["mismatched"] == record["missing"] == record["unexpected"] == []
    return record


# ---- rounding -------------------------------------------------------------------------

ROUNDING = 1e-5  # above every error of rounding in a tiny encoder, and far below every fault
HEAD = 64  # the width of a head, of a tiny encoder as of a released one


@functools.cache
def library_rounds_alike(rows: int, length: int, width: int) -> bool:
    """Whether attention with a product each for q, k and v, as transformers writes it, has here the last bits of
    the original's, which makes them in one. A processor's kernels may add in another order for another shape."""
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(0)
        original, x = MultiHeadAttention(width, width // HEAD), torch.randn(rows, length, width)
        fused = original.qkv_proj
        parts = zip(fused.weight.chunk(3), fused.bias.chunk(3), strict=True)
        q, k, v = (functional.linear(x, *part).view(rows, length, -1, HEAD).transpose(1, 2) for part in parts)
        weights = functional.softmax(q @ k.mT * HEAD**-0.5, -1)
        mixed = (weights @ v).transpose(1, 2).reshape(rows, length, width)
        return torch.equal(original.out_proj(mixed), original(x))


def right_verdicts(layout: str, shape: Sequence[int]) -> set[str]:
    """The verdicts that a right conversion may get, by its layout and the shape of its embeddings: the packed layout
    computes as the original does, the library's layout within rounding where this processor rounds otherwise."""
    rows, length, width = shape
    batches = {min(rows, BATCH), rows % BATCH or BATCH}
    if layout == "packed" or all(library_rounds_alike(n, length, width) for n in batches):
        return {"exact"}
    return {"exact", "within_tolerance"}


def right(record: Any) -> set[str]:
    """The same by the record of a run."""
    return right_verdicts(record["candidate"], record["layers"][0]["shape"])


def rounding(record: Any) -> float:
    """How far a right tap may be off: nothing, or what the library's order of sums does to it."""
    return 0.0 if right(record) == {"exact"} else ROUNDING


# ---- folders --------------------------------------------------------------------------


def tensors(folder: Path) -> State:
    """Every tensor of a folder, through the safetensors library."""
    out: State = {}
    for file in sorted(folder.glob("*.safetensors")):
        part = load(file.read_bytes())  # no view of a file that a test may write over
        assert not out.keys() & part.keys()
        out |= part
    return out


def picture(folder: Path) -> None:
    """Put a small ``picture.jpg`` there, which the card of a detector opens."""
    from PIL import Image

    Image.new("RGB", (30, 20), "olive").save(folder / "picture.jpg")


def edit(folder: Path, changes: dict[str, torch.Tensor | None]) -> None:
    """Replace, add or (with None) take away tensors of model.safetensors."""
    state = load((folder / "model.safetensors").read_bytes())  # no view of the file that is written over
    for key, tensor in changes.items():
        if tensor is None:
            del state[key]
        else:
            state[key] = tensor.clone().contiguous()
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def edit_config(folder: Path, *path: str, value: Any = None) -> None:
    """Set one field of config.json, or take it out where ``value`` is None."""
    config = json.loads((folder / "config.json").read_text())
    section = config
    for name in path[:-1]:
        section = section[name]
    section.pop(path[-1], None)
    if value is not None:
        section[path[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))


def receipt(folder: Path) -> Any:
    return json.loads((folder / "conversion.json").read_text())


def config(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text())


def snapshot(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too, with the hash of its bytes."""
    files = (p for p in sorted(folder.rglob("*")) if not p.is_dir())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to the bit, NaN and the sign of zero included."""
    return a.dtype == b.dtype and a.shape == b.shape and raw(a) == raw(b)


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def flip_bit(tensor: torch.Tensor, element: int = 0, bit: int = 0) -> torch.Tensor:
    """A copy that differs in one bit of one element."""
    copy = tensor.clone().contiguous()
    width = copy.element_size()
    copy.view(-1).view(torch.uint8)[element * width + bit // 8] ^= 1 << (bit % 8)
    return copy


def record_offset(checkpoint: Path, data: bytes) -> int:
    """Where in a torch zip the storage with these bytes begins."""
    whole = checkpoint.read_bytes()
    assert whole.count(data) == 1
    return whole.index(data)


def overwrite_bytes(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def spoil_all_data(checkpoint: Path) -> None:
    """Fill every tensor record of a torch zip with garbage, and leave the rest as it is."""
    with zipfile.ZipFile(checkpoint) as archive:
        entries = [e for e in archive.infolist() if "/data/" in e.filename]
    with open(checkpoint, "r+b") as file:
        for entry in entries:
            file.seek(entry.header_offset + 26)
            lengths = file.read(4)
            start = entry.header_offset + 30 + int.from_bytes(lengths[:2], "little")
            file.seek(start + int.from_bytes(lengths[2:], "little"))
            file.write(b"\xa5" * entry.file_size)


# ---- the oracle -----------------------------------------------------------------------


@functools.cache
def oracle_rows(layout: str) -> dict[str, tuple[str, str]]:
    """Target key -> (what is taken, source key), found once by matching the hashes of a full-size
    checkpoint's tensors, chunks and transposes with those of the reference conversion."""
    lines = (DATA / f"oracle_{layout}_s0.tsv").read_text().splitlines()
    return {target: (taken, source) for target, taken, source in (line.split("\t") for line in lines)}


# Counters of BatchNorm all hold the same number, so a hash cannot tell them apart: they go with their running_mean.
_COUNTER, _SIBLING = "num_batches_tracked", "running_mean"


def oracle(layout: str, state: State) -> State:
    """What the converted folder must hold, made with torch alone from a state dict of S0's structure."""
    out = {}
    for target, (taken, source) in oracle_rows(layout).items():
        if source not in state:
            continue  # a checkpoint with fewer layers
        tensor = state[source]
        if taken in "qkv":
            tensor = torch.chunk(tensor, 3)["qkv".index(taken)]
        elif taken == "transposed":
            tensor = tensor.T
        elif taken == "without first row":
            tensor = tensor[:, 1:]
        else:
            assert taken == "whole"
        out[target] = tensor
        if target.endswith(_SIBLING):
            out[target.replace(_SIBLING, _COUNTER)] = state[source.replace(_SIBLING, _COUNTER)]
    return out


def assert_equal_states(found: State, wanted: State) -> None:
    assert sorted(found) == sorted(wanted)
    different = [k for k in wanted if not same(found[k], wanted[k])]
    assert not different
