"""The recipe for full-size weights: the same bits anywhere, from the keys alone, without sharing a file."""

from __future__ import annotations

import zlib

import numpy as np
import torch


def draw(key: str, dtype: str, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """PCG64 seeded with crc32(key), a scale by the key's last name."""
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
