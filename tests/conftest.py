"""Shared fixtures: the hub, small checkpoints, and edited tables."""

from __future__ import annotations

import gc
import os
import shutil
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support.hub_server import TOKEN, HubServer
from support.repeats import leave_to_stress, without_rare
from support.rows import Rows, rows_of, shipped_tables
from support.surroundings import HOME, HUB

from sam3lite_convert.hub import requests
from sam3lite_convert.plan import synthetic
from sam3lite_convert.plan.tables import Mappings, builtin_directory
from sam3lite_convert.workers import Worker

# The collector would look through all that torch and the tests hold every few thousand objects: a tenth of the time.
gc.set_threshold(20_000, 20, 20)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    leave_to_stress(items)
    kept = without_rare(items)
    chosen = set(kept)
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = kept


def pytest_collection_finish() -> None:
    """What is loaded by now stays to the end: the collector need not look through it again."""
    gc.collect()
    gc.freeze()


_fsync, _fstat = os.fsync, os.fstat


def _no_wait(handle: int) -> None:
    _fstat(handle)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Nothing that the suite writes has to outlive a loss of power: only `-m stress` and full size wait for the disk.
    A handle that is not open is still an error."""
    waits = item.get_closest_marker("stress") or item.get_closest_marker("full_size")
    os.fsync = _fsync if waits else _no_wait


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The hub, empty, with nothing in the client's cache; the working directory is the test's own."""
    # A run that failed may have left a thread that is still fetching: its requests belong to no later test.
    for thread in threading.enumerate():
        if isinstance(thread, Worker):
            thread.join(30)
    HUB.reset()
    shutil.rmtree(Path(HOME) / "hub", ignore_errors=True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # The pauses before a retry double from a second on; how long they are is said in notes, which tests read.
    monkeypatch.setattr(requests, "time", types.SimpleNamespace(sleep=lambda seconds: time.sleep(seconds / 20)))
    monkeypatch.chdir(tmp_path)
    yield HUB
    errors = list(HUB.errors)
    HUB.reset()  # to the tests that know of no hub, there is nothing on it
    assert errors == []


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A folder with CLIP's vocabulary and merges."""
    from support.hub_files import clip_files

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
