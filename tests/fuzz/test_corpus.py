"""Every input that fuzzing kept, read once more; see tests/fuzz."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.folders import python

FUZZ = Path(__file__).parent
sys.path.insert(0, str(FUZZ))

import targets  # noqa: E402
from targets import activations, checkpoints, folders, tables  # noqa: E402

from sam3lite_convert.checkpoint import torch_zip  # noqa: E402
from sam3lite_convert.errors import Sam3LiteError  # noqa: E402
from sam3lite_convert.parity import port_files  # noqa: E402

EVERY = {"checkpoints": 1, "tables": 6, "activations": 2}  # of so many the suite reads one; of folders none


def corpus(name: str) -> list[Path]:
    return sorted((FUZZ / "corpus" / name).iterdir())


@pytest.mark.parametrize("name", EVERY)
def test_nothing_in_a_corpus_breaks_a_reader(name, tmp_path):
    target = targets.load(name)
    for seed in corpus(name)[:: EVERY[name]]:
        target.write(tmp_path, seed.read_bytes())
        target.check(tmp_path)


@pytest.mark.stress
@pytest.mark.parametrize("name", [name for name in targets.NAMES if EVERY.get(name) != 1])
def test_nothing_in_the_rest_of_a_corpus_breaks_a_reader(name, tmp_path):
    target = targets.load(name)
    for seed in corpus(name):
        target.write(tmp_path, seed.read_bytes())
        target.check(tmp_path)


@pytest.mark.parametrize("name", targets.NAMES)
def test_a_corpus_is_there_and_small(name):
    sizes = [seed.stat().st_size for seed in corpus(name)]
    assert len(sizes) >= 40
    assert sum(sizes) < 100_000 or name == "checkpoints"


def is_read(seed: Path, folder: Path) -> bool:
    """Whether a seed is a sound checkpoint; writes it into a folder."""
    checkpoints.write(folder, seed.read_bytes())
    try:
        checkpoints.read_checkpoint(folder / checkpoints.NAME)
    except Sam3LiteError:
        return False
    return True


def test_the_corpus_has_good_files_of_every_kind(tmp_path):
    kinds = checkpoints.KINDS
    read = {kinds[s.read_bytes()[0] % len(kinds)] for s in corpus("checkpoints") if is_read(s, tmp_path)}
    assert read == set(kinds)


def test_the_check_sees_a_tensor_outside_its_file(tmp_path, monkeypatch):
    path = tmp_path / checkpoints.NAME
    next(s for s in corpus("checkpoints") if is_read(s, tmp_path) and path.read_bytes().startswith(b"PK"))
    locate = torch_zip.locate

    def shifted(*arguments):
        return {k: replace(t, offset=t.offset + 10_000) for k, t in locate(*arguments).items()}

    monkeypatch.setattr(torch_zip, "locate", shifted)
    with pytest.raises(AssertionError):
        checkpoints.check(tmp_path)


def test_the_check_sees_a_rule_that_does_not_lead_back(tmp_path, monkeypatch):
    tables.write(tmp_path, b"\5")
    tables.check(tmp_path)
    monkeypatch.setattr(tables.Rule, "sources", lambda rule, target: ())
    with pytest.raises(AssertionError):
        tables.check(tmp_path)


def test_the_check_sees_an_error_of_a_reader_of_activations(tmp_path, monkeypatch):
    activations.write(tmp_path, bytes([activations.KINDS.index("ids.json")]) + b"[[1]]")
    activations.check(tmp_path)
    monkeypatch.setattr(port_files, "_json", lambda path: int("x"))
    with pytest.raises(ValueError, match="invalid literal"):
        activations.check(tmp_path)


@pytest.mark.stress
def test_the_check_sees_a_tensor_outside_a_folders_file(tmp_path, monkeypatch):
    folders.write(tmp_path, b"")
    folders.check(tmp_path)
    read_folder = folders.read_folder

    def shifted(path):
        found = read_folder(path)
        moved = {key: (where, replace(t, offset=1 << 40)) for key, (where, t) in found.tensors.items()}
        return replace(found, tensors=moved)

    monkeypatch.setattr(folders, "read_folder", shifted)
    with pytest.raises(AssertionError):
        folders.check(tmp_path)


@pytest.mark.parametrize("act", ["import os; os.system('true')", "import antigravity", "eval('1')"])
def test_the_watch_sees_what_is_run(act):
    code = f"import sys; sys.path.insert(0, {str(FUZZ)!r}); import watch\nwith watch.forbidden():\n    {act}"
    done = python("-c", code)
    assert done.returncode and "Executed" in done.stderr
