"""Every input that fuzzing kept, read once more; see tests/fuzz."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.folders import python

FUZZ = Path(__file__).parents[1] / "fuzz"
sys.path.insert(0, str(FUZZ))

import reader  # noqa: E402

from sam3lite_convert.checkpoint import torch_zip  # noqa: E402
from sam3lite_convert.errors import Sam3LiteError  # noqa: E402

CORPUS = sorted((FUZZ / "corpus").iterdir())


def test_nothing_in_the_corpus_breaks_the_reader(tmp_path):
    for seed in CORPUS:
        reader.write(tmp_path / "file", seed.read_bytes())
        reader.check(tmp_path / "file")
    assert len(CORPUS) >= 50


def is_read(seed: Path, path: Path) -> bool:
    """Whether a seed is a sound file; writes it to ``path``."""
    reader.write(path, seed.read_bytes())
    try:
        reader.read_checkpoint(path)
    except Sam3LiteError:
        return False
    return True


def test_the_corpus_has_good_files_of_every_kind(tmp_path):
    read = {reader.KINDS[s.read_bytes()[0] % 4] for s in CORPUS if is_read(s, tmp_path / "file")}
    assert read == set(reader.KINDS)


def test_the_check_sees_a_tensor_outside_its_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    next(s for s in CORPUS if is_read(s, path) and path.read_bytes().startswith(b"PK"))
    locate = torch_zip.locate

    def shifted(*arguments):
        return {k: replace(t, offset=t.offset + 10_000) for k, t in locate(*arguments).items()}

    monkeypatch.setattr(torch_zip, "locate", shifted)
    with pytest.raises(AssertionError):
        reader.check(path)


@pytest.mark.parametrize("act", ["import os; os.system('true')", "import antigravity", "eval('1')"])
def test_the_watch_sees_what_is_run(act):
    code = f"import sys; sys.path.insert(0, {str(FUZZ)!r}); import reader; reader.forbid(); {act}"
    done = python("-c", code)
    assert done.returncode and "Executed" in done.stderr
