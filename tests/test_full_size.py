"""One released-size checkpoint, 2.2 GB and more: every tensor against the reference conversion's hashes.

Which one: SAM3LITE_FULL_SIZE = s0 (the default), s1 or l.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import source_rows
from folders import DATA, environment
from safetensors import safe_open

pytestmark = pytest.mark.full_size

VARIANT = os.environ.get("SAM3LITE_FULL_SIZE", "s0")
LIMIT_MB = 450

# Runs the command line and prints the peak of its resident memory, in kilobytes.
MEASURED = """
import resource, subprocess, sys
code = subprocess.call([sys.executable, "-m", "sam3lite_convert", *sys.argv[1:]])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def draw(key: str, dtype: str, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """The recipe of the reference hashes: PCG64 seeded with crc32(key), a scale by the key's last name."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()) + seed))
    leaf = key.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return torch.tensor(1000, dtype=torch.int64)
    if dtype == "complex64":
        return torch.from_numpy(np.exp(2j * np.pi * rng.random(shape, dtype=np.float32)).astype(np.complex64))
    if leaf == "running_var":
        return torch.from_numpy(np.float32(0.5) + rng.random(shape, dtype=np.float32))
    values = rng.standard_normal(shape, dtype=np.float32)
    if leaf == "running_mean" or key.endswith("pos_embed.pos_embed"):
        values *= np.float32(0.1)
    elif leaf == "layer_scale":
        values *= np.float32(0.3)
    elif leaf == "bias" or leaf.endswith("_bias"):
        values *= np.float32(0.05)
    elif key.endswith("embedding_layer.weight"):
        values *= np.float32(0.5)
    elif len(shape) == 1:
        values = np.float32(1) + np.float32(0.1) * values
    else:
        values *= np.float32((np.prod(shape) / shape[0]) ** -0.5)
    return torch.from_numpy(values).to(getattr(torch, dtype))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("full") / f"{VARIANT}.pt"
    torch.save({"model": {k: draw(k, d, s) for k, (d, s) in source_rows(VARIANT).items()}}, path)
    yield path
    path.unlink()


def measured(*arguments: object) -> tuple[dict, float]:
    """Run a command with --json: its record, and the peak of its resident memory in MB."""
    command = [sys.executable, "-c", MEASURED, *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=600)
    assert done.returncode == 0, done.stderr + done.stdout[-2000:]
    return json.loads(done.stdout), int(done.stderr.split()[-1]) / 1024


def reference(layout: str) -> dict[str, tuple[str, str, str]]:
    lines = (DATA / f"converted_{layout}_{VARIANT}.tsv").read_text().splitlines()
    return {key: (dtype, shape, sha256) for key, dtype, shape, sha256 in (line.split("\t") for line in lines)}


def described(file: Path) -> dict[str, tuple[str, str, str]]:
    out = {}
    with safe_open(file, "np") as held:
        for key in held.keys():  # noqa: SIM118
            tensor = held.get_tensor(key)
            sha256 = hashlib.sha256(tensor.tobytes()).hexdigest()[:16]
            out[key] = (str(tensor.dtype), "x".join(map(str, tensor.shape)) or "scalar", sha256)
    return out


@pytest.mark.parametrize("layout", ["packed", "transformers"])
def test_a_released_size_checkpoint_becomes_what_the_reference_conversion_makes(layout, checkpoint, tmp_path):
    folder = tmp_path / "out"
    record, peak = measured("convert", "--checkpoint", checkpoint, "--output", folder, "--layout", layout)
    try:
        blocks = {"s0": 912, "s1": 952, "l": 952}[VARIANT]
        targets = {"s0": (1188, 1204), "s1": (1228, 1276), "l": (1228, 1276)}[VARIANT][layout == "transformers"]
        counts = {"source": blocks + 369, "mapped": blocks, "dropped": 369, "target": targets}
        assert record["counts"] == counts
        found, wanted = described(folder / "model.safetensors"), reference(layout)
        assert {k for k in found if k not in wanted} == {k for k in found if k.endswith("num_batches_tracked")}
        assert {k: v for k, v in found.items() if k in wanted} == wanted
        assert len(found) == targets
        assert peak <= LIMIT_MB
        proof, verifying = measured("verify", folder, "--checkpoint", checkpoint)
        assert proof["verdict"] == "proven"
        assert proof["checked"] == targets
        assert verifying <= LIMIT_MB
    finally:
        (folder / "model.safetensors").unlink()


def test_inspecting_a_released_size_checkpoint_is_cheap(checkpoint):
    record, peak = measured("inspect", checkpoint)
    millions = {"s0": 42.54, "s1": 63.53, "l": 123.80}[VARIANT]
    assert round(record["components"]["text_encoder"]["parameters"] / 1e6, 2) == millions
    assert peak <= 300
