"""What lies on the test hub: scaled-down checkpoints under the released names, and CLIP's vocabulary."""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from support.folders import Outcome, tiny_state
from support.hub_server import HubServer

REPO = "Simon7108528/EfficientSAM3"
TOKENIZER = "openai/clip-vit-base-patch32"
PINNED = "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268"
CARD = b"---\nlicense: other\nlicense_name: some-license\nlicense_link: LICENSE\n---\n# Checkpoints\n"
OLD = {
    alias: f"sam3_litetext/efficient_sam3_image_encoder_mobileclip{name}_ctx16.pt"
    for alias, name in {"s0": "_s0", "s1": "_s1", "l": "2_l"}.items()
}
NEW = {
    f"{alias}{suffix}": f"sam3_litetext/sam3_litetext_mobileclip{name}_ctx{context}.pt"
    for context, suffix in ((16, ""), (32, "-32"))
    for alias, name in {"s0": "_s0", "s1": "_s1", "l": "2_l"}.items()
}
SAM31 = {
    f"{alias}-3.1{suffix}": f"sam3p1_litetext/sam3p1_litetext_mobileclip{name}_ctx{context}.pt"
    for context, suffix in ((16, ""), (32, "-32"))
    for alias, name in {"s0": "_s0", "s1": "_s1", "l": "2_l"}.items()
}


def checkpoint(folder: Path, name: str, **more: torch.Tensor) -> Path:
    """A checkpoint of 7 MB that differs from those of other names in one tensor."""
    path = folder / f"{name}.pt"
    if more:
        _save(path, more)
    else:
        path.write_bytes(_saved(name))
    return path


def _save(path: Path, more: Mapping[str, torch.Tensor]) -> None:
    state = tiny_state() | {f"tracker.{key}": value for key, value in more.items()}
    key = "detector.backbone.language_backbone.projector.bias"
    state[key] = state[key] + float(int(hashlib.sha256(path.stem.encode()).hexdigest()[:4], 16))
    torch.save({"model": state}, path)


@functools.lru_cache(maxsize=3)  # two hundred tests publish those of three names
def _saved(name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.pt"
        _save(path, {})
        return path.read_bytes()


def publish(hub: HubServer, folder: Path, names: Mapping[str, str], **files: Any) -> dict[str, Path]:
    """Put a checkpoint under each of these names into the repository; returns the files by alias."""
    made = {alias: checkpoint(folder, alias) for alias in names}
    content: dict[str, bytes | Path] = {names[alias]: path for alias, path in made.items()}
    hub.add_repo(REPO, {"README.md": CARD, **content, **files})
    return made


@functools.cache
def clip_merges() -> tuple[str, ...]:
    """CLIP's merges, as the tokenizer package that the extra ``prompts`` installs holds them; of that there is no
    build for Python 3.13, where the tests that need them are skipped."""
    pytest.importorskip("instant_clip_tokenizer")
    spec = find_spec("instant_clip_tokenizer")
    assert spec is not None and spec.submodule_search_locations
    (library,) = Path(spec.submodule_search_locations[0]).glob("*.so")
    data = library.read_bytes()
    start = data.index(b"#version: 0.2\n")
    lines = data[start : start + 2_000_000].split(b"\n")[1 : 49408 - 2 * 256 - 2 + 1]
    return tuple(line.decode() for line in lines)


@functools.cache
def clip_files() -> dict[str, bytes]:
    """``vocab.json`` and ``merges.txt`` of CLIP's tokenizer."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    symbols = [chr(b) for b in printable] + [chr(256 + n) for n in range(len(others))]
    tokens = [*symbols, *(s + "</w>" for s in symbols), *("".join(m.split()) for m in clip_merges())]
    vocabulary = {token: n for n, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    merges = "\n".join(["#version: 0.2", *clip_merges(), ""])
    return {"vocab.json": json.dumps(vocabulary).encode(), "merges.txt": merges.encode()}


S0 = OLD["s0"]
STEM = "efficient_sam3_image_encoder_mobileclip_s0_ctx16"
FOLDER = Path("converted") / f"{STEM}-packed"


def downloads(hub: HubServer) -> int:
    """Bytes of checkpoints that were sent."""
    return hub.sent("/cdn/")


def blobs() -> list[Path]:
    place = Path(constants.HF_HUB_CACHE) / ("models--" + REPO.replace("/", "--")) / "blobs"
    return sorted(p for p in place.glob("*") if p.stat().st_size > 1_000_000)


def one_line(done: Outcome, code: int) -> str:
    """What a failed run says: one message, no traceback, nothing on stdout."""
    assert done.code == code, done
    lines = [line for line in done.err.splitlines() if not line.startswith("note:")]
    assert lines[0].startswith("error: ") and "Traceback" not in done.err
    assert not [line for line in lines[1:] if line.startswith("error")]
    return done.err
