"""Shared helpers: the key lists, fake checkpoints made of names and shapes, and edited tables."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from hub_server import TOKEN, HubServer

from sam3lite_convert import synthetic
from sam3lite_convert.errors import Sam3LiteError
from sam3lite_convert.plan import Options, Plan, make_plan
from sam3lite_convert.stored import Checkpoint, StoredTensor, contiguous_stride
from sam3lite_convert.tables import Mappings, builtin_directory, load_mappings

# The client reads its surroundings when it is imported: no test, and no process that a test starts,
# reaches another hub than this one, uses somebody's token, or writes into their cache.
HUB = HubServer().start()
atexit.register(HUB.stop)
_HOME = tempfile.mkdtemp(prefix="hub-home-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
# There are as many workers as cores; more threads only get in their way, unless they are what is tested.
_threads = os.environ.get("SAM3LITE_TEST_THREADS") or ("1" if "PYTEST_XDIST_WORKER" in os.environ else None)
if _threads:
    torch.set_num_threads(int(_threads))
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = _threads
os.environ |= {
    "HF_ENDPOINT": HUB.url,
    "HF_HOME": _HOME,
    "HF_HUB_DISABLE_XET": "1",  # the storage protocol that the test hub does not speak
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
for _name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
    os.environ.pop(_name, None)

DATA = Path(__file__).parent / "data"
MODELS = ("s0", "s1", "l")
LAYOUTS = ("packed", "transformers")
TEXT = "detector.backbone.language_backbone."
VISION = "detector.backbone.vision_backbone."

Rows = dict[str, tuple[str, tuple[int, ...]]]  # key -> (dtype, shape)


@functools.cache
def key_list(name: str) -> Rows:
    """A key list of tests/data: key, dtype and shape of every tensor."""
    rows = {}
    for line in (DATA / f"{name}.tsv").read_text().splitlines():
        key, dtype, sides = line.split("\t")
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


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The hub, empty, with nothing in the client's cache; the working directory is the test's own."""
    HUB.reset()
    shutil.rmtree(Path(_HOME) / "hub", ignore_errors=True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    yield HUB
    errors = list(HUB.errors)
    HUB.reset()  # to the tests that know of no hub, there is nothing on it
    assert errors == []


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A folder with CLIP's vocabulary and merges."""
    from hub_files import clip_files

    folder = tmp_path / "clip"
    folder.mkdir()
    for name, data in clip_files().items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="session")
def mappings() -> Mappings:
    return shipped_tables()


@pytest.fixture(scope="session")
def small_state() -> dict[str, torch.Tensor]:
    """A whole released-style checkpoint in small; read only."""
    return synthetic.state_dict()


@pytest.fixture(scope="session")
def small_file(small_state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "small.pt"
    torch.save({"model": small_state}, path)
    return path


@pytest.fixture(scope="session")
def small_rows(small_state: dict[str, torch.Tensor]) -> Rows:
    return rows_of(small_state)


@pytest.fixture
def edited_tables(tmp_path: Path) -> Callable[..., Path]:
    """``edited_tables("detector.ini", (old, new), ...)``: a folder with that one table, edited."""

    def make(table: str, *edits: tuple[str, str]) -> Path:
        folder = tmp_path / "mappings"
        folder.mkdir(exist_ok=True)
        target = folder / table
        if not target.exists():
            shutil.copyfile(builtin_directory() / table, target)
        text = target.read_text(encoding="utf-8")
        for old, new in edits:
            assert old in text, old
            text = text.replace(old, new, 1)
        target.write_text(text, encoding="utf-8")
        return folder

    return make
