"""A checkpoint of each kind and its folders, made once for all tests of sam3lite parity."""

from __future__ import annotations

import shutil

import pytest
from support.folders import LAYOUTS, convert, tiny_state, write_safetensors
from support.parity_runs import KINDS, parity, state_of, swap


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("parity")


@pytest.fixture(scope="session")
def sources(root):
    """kind -> a checkpoint of its text encoder; read only."""
    for kind in KINDS:
        (root / kind).mkdir()
    return {kind: write_safetensors(root / kind, state_of(kind)) for kind in KINDS}


@pytest.fixture(scope="session")
def s0(sources):
    return sources["s0"]


@pytest.fixture(scope="session")
def detector(root):
    """A checkpoint of a whole detector."""
    return write_safetensors(root, tiny_state())


@pytest.fixture(scope="session")
def good(s0, root):
    """layout -> the text encoder alone, converted; read only."""
    return {
        layout: convert(s0, root / f"good-{layout}", "--layout", layout, "--component", "text") for layout in LAYOUTS
    }


@pytest.fixture
def bad(good, tmp_path):
    """layout -> a copy for a test to spoil."""
    return lambda layout: shutil.copytree(good[layout], tmp_path / f"bad-{layout}")


@pytest.fixture(scope="session")
def saved(s0, good, root):
    """(a file, its run's record), of a folder whose q and k are swapped; read only."""
    folder = shutil.copytree(good["transformers"], root / "swapped")
    swap(folder)
    file = root / "saved.st"
    record = parity(s0, "--converted", folder, "--seed", 1, "--batch", 2, "--save-activations", file, code=1)
    assert record["saved_activations"] == str(file)
    return file, record
