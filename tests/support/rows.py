"""The key lists of tests/data, and fake checkpoints made of names and shapes."""

from __future__ import annotations

import functools
import gzip
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from sam3lite_convert.checkpoint.index import Checkpoint, StoredTensor, contiguous_stride
from sam3lite_convert.errors import Sam3LiteError
from sam3lite_convert.plan.plan import Options, Plan, make_plan
from sam3lite_convert.plan.tables import Mappings, load_mappings

DATA = Path(__file__).parent.parent / "data"
MODELS = ("s0", "s1", "l")
LAYOUTS = ("packed", "transformers")
TEXT = "detector.backbone.language_backbone."
VISION = "detector.backbone.vision_backbone."

Rows = dict[str, tuple[str, tuple[int, ...]]]  # key -> (dtype, shape)


def table(name: str) -> list[list[str]]:
    """The rows of a table of tests/data, by its name without an ending; long ones are stored compressed."""
    plain = DATA / f"{name}.tsv"
    text = plain.read_text() if plain.is_file() else gzip.decompress((DATA / f"{name}.tsv.gz").read_bytes()).decode()
    return [line.split("\t") for line in text.splitlines()]


@functools.cache
def key_list(name: str) -> Rows:
    """A key list of tests/data: key, dtype and shape of every tensor."""
    rows = {}
    for key, dtype, sides in table(name):
        rows[key] = (dtype, () if sides == "scalar" else tuple(int(n) for n in sides.split("x")))
    return rows


def source_rows(model: str) -> Rows:
    return key_list(f"{model}_ctx16")


def target_rows(layout: str, model: str) -> Rows:
    return key_list(f"target_{layout}_{model}")


def rows_of(tensors: Mapping[str, torch.Tensor]) -> Rows:
    return {k: (str(t.dtype).removeprefix("torch."), tuple(t.shape)) for k, t in tensors.items()}


def fake(rows: Rows) -> Checkpoint:
    """A checkpoint that has names, dtypes and shapes, and no file behind it."""
    tensors = {k: StoredTensor(k, d, s, 0, contiguous_stride(s)) for k, (d, s) in rows.items()}
    return Checkpoint(Path("fake.pt"), 0, "zip", "model", tensors)


@functools.cache
def shipped_tables() -> Mappings:
    return load_mappings()


def plan_of(rows: Rows, mappings: Mappings | None = None, **options: object) -> Plan:
    return make_plan(fake(rows), mappings or shipped_tables(), Options(**options))  # type: ignore[arg-type]


def faults_of(error: Sam3LiteError) -> set[tuple[str, str]]:
    """(kind, key) of every fault of an unsound plan."""
    return {(f["kind"], f["key"]) for f in error.details["faults"]}


def reshaped(rows: Rows, key: str, shape: Iterable[int]) -> Rows:
    return rows | {key: (rows[key][0], tuple(shape))}


def without(rows: Rows, *parts: str) -> Rows:
    """The rows whose key contains none of the parts."""
    return {k: v for k, v in rows.items() if not any(p in k for p in parts)}


def rewrite_zip(path: Path, replace: Mapping[str, bytes | None]) -> Path:
    """Replace members (by the name behind the root folder) of a torch zip; None removes one."""
    with zipfile.ZipFile(path) as old:
        members = [(i.filename, old.read(i)) for i in old.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for name, data in members:
            kept = replace.get(name.partition("/")[2], data)
            if kept is not None:
                new.writestr(name, kept)
    return path


def read_member(path: Path, member: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        (name,) = [n for n in archive.namelist() if n.partition("/")[2] == member]
        return archive.read(name)
