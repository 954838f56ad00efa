"""A checkout full of traps: none of its files runs but those that are listed beforehand."""

from __future__ import annotations

import os
import py_compile
import shutil
import sys
from pathlib import Path

import pytest
from support.goldens import golden
from support.original_checkout import CLIP, OUTER, STAND_IN, STUDENT, TOKENIZER, edit

from sam3lite_convert.errors import CannotRun
from sam3lite_convert.parity.checkout.original_repo import open_original

SPRUNG = "open({!r}, 'a').write(__file__ + '\\n')\n"
# What Python, Git, pip, pytest or an import would run.
TRAPS = (
    "setup.py",
    "conftest.py",
    "sitecustomize.py",
    "usercustomize.py",
    "torch.py",
    "numpy.py",
    "typing_extensions.py",
    "clip.py",
    "__main__.py",
    OUTER,
    "sam3/sam3/__init__.py",
    "sam3/sam3/model/__init__.py",
    "sam3/sam3/backbones/__init__.py",
    "sam3/sam3/model/torch.py",
    "sam3/sam3/model/beside.py",
    "sam3/sam3/backbones/beside.py",
    "sam3/sam3/model_builder.py",
    "tests/test_x.py",
    TOKENIZER,
)


@pytest.fixture
def trapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The checkout, which is also the current folder and on the search path, and the file that traps write."""
    checkout, sprung = tmp_path / "checkout", tmp_path / "sprung"
    shutil.copytree(STAND_IN, checkout, ignore=shutil.ignore_patterns("__pycache__"))
    for name in TRAPS:
        file = checkout / name
        file.parent.mkdir(parents=True, exist_ok=True)
        there = file.read_text() if file.exists() else ""
        # A future import has to stay first.
        file.write_text(there + "\n" + SPRUNG.format(str(sprung)))
    (checkout / "x.pth").write_text(f"import os; open({str(sprung)!r}, 'a')\n")
    (checkout / "setup.cfg").write_text("[metadata]\nname = x\n")
    hook = f"#!/bin/sh\necho hook >> {sprung}\n"
    for name in (".git/hooks/post-checkout", ".git/hooks/fsmonitor-watchman"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(hook)
        (checkout / name).chmod(0o755)
    (checkout / ".git/HEAD").write_text("0123456789abcdef0123456789abcdef01234567\n")
    (checkout / ".git/config").write_text(f"[core]\n\tfsmonitor = {checkout}/.git/hooks/fsmonitor-watchman\n")
    for name in (STUDENT, CLIP):  # bytecode of something else in the place of the source's
        evil = tmp_path / "evil.py"
        evil.write_text(SPRUNG.format(str(sprung)))
        cached = checkout / name
        cached = cached.parent / "__pycache__" / f"{cached.stem}.{sys.implementation.cache_tag}.pyc"
        cached.parent.mkdir(exist_ok=True)
        py_compile.compile(str(evil), str(cached), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    monkeypatch.chdir(checkout)
    monkeypatch.syspath_prepend(str(checkout))
    monkeypatch.syspath_prepend("")
    return checkout, sprung


def test_no_trap_is_sprung(trapped):
    checkout, sprung = trapped
    listed: list[str] = []
    before = set(sys.modules)

    def told(files):
        assert not sprung.exists()
        assert not any("original_repo:" in name for name in sys.modules)
        listed.extend(str(file.path) for file in files)

    repo = open_original(checkout, told)
    of = golden("tiny_mct")
    repo.build(of.cfg, of.cfg["context_length"], 256, of.weights())
    assert not sprung.exists(), sprung.read_text()
    assert listed == [STUDENT, CLIP] == [str(file) for file in repo.files]
    assert repo.commit == "0123456789abcdef0123456789abcdef01234567"
    assert not any(str(checkout) in str(getattr(sys.modules[n], "__file__", "")) for n in set(sys.modules) - before)


@pytest.mark.parametrize(
    "way",
    [
        "import importlib\nimportlib.import_module('sam3.sam3.model.beside')\n",
        "import importlib\nimportlib.import_module('clip')\n",
        "import importlib\nimportlib.import_module('x')\n",
        "import importlib.util\nimportlib.util.find_spec('clip').loader.load_module()\n",
        "import builtins\nbuiltins.__import__('conftest')\n",
        "exec('import usercustomize')\n",
    ],
)
def test_an_import_past_ours_finds_nothing_of_the_checkout(trapped, way):
    checkout, sprung = trapped
    (checkout / "x").mkdir()
    (checkout / "x" / "__init__.py").write_text(SPRUNG.format(str(sprung)))
    file = checkout / STUDENT
    file.write_text(file.read_text() + way)
    try:
        open_original(checkout)
    except CannotRun as fault:
        assert "\n" not in fault.message
    assert not sprung.exists(), sprung.read_text()


def test_what_runs_is_what_was_listed_even_if_the_file_changes(trapped):
    checkout, sprung = trapped

    def told(files):
        for file in files:
            (checkout / file.path).write_text(SPRUNG.format(str(sprung)))

    open_original(checkout, told)
    assert not sprung.exists()


def test_a_file_that_only_running_tells_of_is_refused(trapped):
    """A class whose module no import at a place that can be read beforehand leads to."""
    checkout, sprung = trapped
    beside = checkout / "sam3/sam3/backbones/beside.py"
    beside.write_text("from torch import nn\nclass Late(nn.Module):\n    pass\n" + SPRUNG.format(str(sprung)))
    edit(
        checkout,
        STUDENT,
        ("super().__init__()", "super().__init__()\n        self.late = getattr(backbones.beside, 'Late')()"),
    )
    file = checkout / STUDENT
    file.write_text("import sam3.backbones as backbones\n" + file.read_text())
    listed: list[str] = []
    repo = None
    try:
        repo = open_original(checkout, lambda files: listed.extend(str(f.path) for f in files))
        of = golden("tiny_mct")
        repo.build(of.cfg, of.cfg["context_length"], 256, of.weights())
    except CannotRun as fault:
        assert "beside.py would have to run too" in fault.message
        assert not sprung.exists()
    else:
        pytest.fail("it was built")
    assert "sam3/sam3/backbones/beside.py" not in listed


def test_a_link_out_of_the_checkout_is_listed_as_it_is(trapped, tmp_path):
    checkout, sprung = trapped
    outside = tmp_path / "outside.py"
    outside.write_bytes((checkout / CLIP).read_bytes())
    (checkout / CLIP).unlink()
    os.symlink(outside, checkout / CLIP)
    listed: list[str] = []
    open_original(checkout, lambda files: listed.extend(str(f.path) for f in files))
    assert listed == [STUDENT, CLIP]
    assert not sprung.exists()
