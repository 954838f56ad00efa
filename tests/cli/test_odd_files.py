"""Every command, with a file of an odd kind in the place of each that it reads, or where it writes: it ends in time,
with one message and a documented code, takes no memory to speak of, and what lies there is as it was."""

from __future__ import annotations

import errno
import functools
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.folders import convert, sam3lite, tiny_architecture, tiny_state, write
from support.hub_files import clip_files
from support.odd_files import KINDS, greatest_memory, in_time, looks, put
from support.original_checkout import STAND_IN
from support.repeats import ALL

from sam3lite_convert.plan import synthetic
from sam3lite_convert.plan.tables import builtin_directory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="its devices and /proc")

_PROOF = ("conversion.json", "README.md")
MEMORY = 700 << 20  # bytes that a trial may add to the greatest memory of the process
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CACHED = "hub/models--a--b"


class Case(NamedTuple):
    """A file and the command that meets it. ``file``: in the workspace. ``writes``: whether the command may change what
    lies in the workspace when it succeeds."""

    file: str
    words: tuple[str, ...]
    writes: bool = False


def case(file: str, words: str, writes: bool = False) -> Case:
    return Case(file, tuple(words.split()), writes)


LIBRARY = "--layout transformers"
VERIFY = [case(f"{folder}/{name}", f"verify {folder} --checkpoint s0.pt") for folder, names in {
    "packed": ("config.json", "conversion.json", "model.safetensors", "README.md", "fingerprint.json", "LICENSE",
               "model.safetensors.index.json", "adapter_config.json"),
    "transformers": ("config.json", "conversion.json", "processor_config.json", "tokenizer.json",
                     "tokenizer_config.json", "merges.txt", "vocab.json", "preprocessor_config.json"),
    "sharded": ("model.safetensors.index.json", "model-00001-of-00003.safetensors", "config.json"),
    "text": ("model.onnx", "config.json", "tokenizer.json"),
} .items() for name in names]  # fmt: skip
SOURCES = [
    case("s0.pt", "inspect s0.pt"),
    case("s0.safetensors", "inspect s0.safetensors"),
    case("packed/config.json", "inspect packed"),
    case("packed/config.json", "diff packed s0.pt"),
    case("packed/conversion.json", "diff packed s0.pt"),
    case("s0.pt", "convert s0.pt --output out", True),
    case("s0.safetensors", "convert s0.safetensors --output out"),
    case("sharded/model.safetensors.index.json", "inspect sharded"),
    case("sharded/model-00002-of-00003.safetensors", "convert sharded --output out"),
    case("s0.pt", "explain s0.pt detector.backbone.x"),
    case("s0.pt", "diff s0.pt s0.safetensors"),
    case("packed/config.json", "restore packed --output restored.pt", True),
    case("packed/conversion.json", "restore packed --output restored.pt", True),
    case("transformers/config.json", "parity --checkpoint transformers"),
]
OUTPUTS = [
    case("packed/config.json", "convert s0.pt --output packed", True),
    case("packed/conversion.json", "convert s0.pt --output packed", True),
    case("packed/README.md", "convert s0.pt --output packed", True),
    case("packed/fingerprint.json", "convert s0.pt --output packed", True),
    case("packed/model.safetensors", "convert s0.pt --output packed", True),
    case("packed/notes.txt", "convert s0.pt --output packed --overwrite", True),
    case("packed/conversion.json", "convert s0.pt --output packed --dtype float16 --overwrite", True),
    case(
        "transformers/tokenizer.json",
        "convert s0.pt --output transformers --layout transformers --tokenizer clip",
        True,
    ),
    case("transformers/processor_config.json", "convert s0.pt --output transformers --layout transformers", True),
    case("out", "convert s0.pt --output out", True),
    case("out", "convert s0.pt --output out --overwrite", True),
    case(".out.partial-abcdefgh", "convert s0.pt --output out", True),
    case(".out.old-abcdefgh", "convert s0.pt --output out", True),
    case(".restored.pt.partial-abcdefgh", "restore packed --output restored.pt", True),
    case("restored.pt", "restore packed --output restored.pt", True),
    case("restored.pt", "restore packed --output restored.pt --overwrite", True),
    case("text/model.onnx", "export onnx text", True),
    case("text/conversion.json", "export onnx text", True),
    case("text/config.json", "export onnx text", True),
    case("text/model.safetensors", "export onnx text", True),
    case("reference.safetensors", "record --checkpoint text.pt --output reference.safetensors", True),
    case("reference.npz", "record --checkpoint text.pt --output reference.npz", True),
    case("reference.json", "record --checkpoint text.pt --output reference.json --compact", True),
    case("hooks.py", "record --script hooks.py", True),
    case("report.html", "verify packed --checkpoint s0.pt --report report.html", True),
    case("saved.safetensors", "parity --checkpoint text.pt --save-activations saved.safetensors", True),
]
BESIDE = [
    case("clip/tokenizer.json", "convert s0.pt --output out --layout transformers --tokenizer clip", True),
    case("clip/vocab.json", "convert s0.pt --output out --layout transformers --tokenizer clip", True),
    case("clip/merges.txt", "convert s0.pt --output out --layout transformers --tokenizer clip", True),
    case("mine/spellings.ini", "convert s0.pt --dry-run --mapping mine"),
    case("mine/layout-mine.ini", "convert s0.pt --dry-run --mapping mine --layout mine"),
    case("mine/targets-text-packed.ini", "verify packed --checkpoint s0.pt --mapping mine"),
    case("prompts.txt", "parity --checkpoint text.pt --prompts-file prompts.txt"),
    case("prompts.txt", "record --checkpoint text.pt --output out.npz --prompts-file prompts.txt", True),
    case("ids.json", "judge port.npz --checkpoint text.pt --ids ids.json"),
    case("ids.npy", "judge port.npz --checkpoint text.pt --ids ids.npy"),
    case("port.npz", "judge port.npz --checkpoint text.pt"),
    case("port.safetensors", "judge port.safetensors --checkpoint text.pt"),
    case("port/layers.0.npy", "judge port --checkpoint text.pt --ids ids.npy"),
    case("port.json", "judge port.json --checkpoint text.pt"),
    case("port.pt", "judge port.pt --checkpoint text.pt"),
    case("saved.safetensors", "parity --judge saved.safetensors"),
    case("fingerprint.json", "judge port.npz --fingerprint fingerprint.json"),
    case("picture.png", "parity --component detector --checkpoint s0.pt --image picture.png"),
    case("picture.npy", "parity --component detector --checkpoint s0.pt --image picture.npy"),
    case("picture.ppm", "parity --component detector --checkpoint s0.pt --image picture.ppm"),
    case("packed/config.json", "parity --checkpoint s0.pt --converted packed"),
    case("packed/conversion.json", "parity --checkpoint s0.pt --converted packed"),
    case("packed/model.safetensors", "parity --checkpoint s0.pt --converted packed"),
    case("text/model.onnx", "parity --checkpoint text.pt --converted text --candidate onnx"),
    case("text/model.safetensors", "parity --checkpoint text.pt --converted text --candidate onnx"),
    case("checkout/.git/HEAD", "parity --checkpoint text.pt --original-repo checkout"),
    case("checkout/.git/packed-refs", "parity --checkpoint text.pt --original-repo checkout"),
    case("checkout/.git/refs/heads/main", "parity --checkpoint text.pt --original-repo checkout"),
    case("checkout/sam3/sam3/model/text_encoder_student.py", "parity --checkpoint text.pt --original-repo checkout"),
    case("checkout/sam3/sam3/backbones/mobile_clip.py", "parity --checkpoint text.pt --original-repo checkout"),
    case("checkout/sam3/setup.py", "parity --checkpoint text.pt --original-repo checkout"),
    case(f"{CACHED}/refs/main", "inspect s0.safetensors --repo-id a/b --cache-dir hub"),
    case(f"{CACHED}/snapshots/{COMMIT}/x.safetensors", "inspect x.safetensors --repo-id a/b --cache-dir hub"),
    case(f"{CACHED}/snapshots/{COMMIT}/model.safetensors.index.json", "inspect hf://a/b --cache-dir hub"),
    case(f"{CACHED}/snapshots/{COMMIT}/config.json", "verify a/b --checkpoint s0.pt --cache-dir hub"),
]
CASES = VERIFY + SOURCES + OUTPUTS + BESIDE


@functools.cache
def taps() -> dict[str, torch.Tensor]:
    ids = torch.tensor([[49406, 320, 49407, *[0] * 13]])
    made = {f"layers.{i}": torch.ones(1, 16, 128) for i in range(6)}
    return made | {"input_ids": ids}


# What lies in the workspace, by name, each made when it is needed of others that are.
PARTS: dict[str, Callable[[Path], object]] = {}


def part(name: str) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    def keep(make: Callable[[Path], object]) -> Callable[[Path], object]:
        PARTS[name] = make
        return make

    return keep


PARTS["s0.pt"] = lambda home: write(home, tiny_state(), "s0.pt")
PARTS["s0.safetensors"] = lambda home: save_file(
    {k: v.contiguous() for k, v in tiny_state().items()}, home / "s0.safetensors"
)
PARTS["text.pt"] = lambda home: write(home, synthetic.state_dict(tiny_architecture(), text_only=True), "text.pt")
PARTS["packed"] = lambda home: convert(need(home, "s0.pt"), home / "packed")
PARTS["transformers"] = lambda home: convert(
    need(home, "s0.pt"), home / "transformers", *LIBRARY.split(), "--tokenizer", need(home, "clip")
)
PARTS["text"] = lambda home: convert(
    need(home, "text.pt"), home / "text", "--component", "text", "--onnx", "--tokenizer", need(home, "clip")
)
PARTS["port.npz"] = lambda home: np.savez(home / "port.npz", **{k: v.numpy() for k, v in taps().items()})
PARTS["port.safetensors"] = lambda home: save_file(taps(), home / "port.safetensors")
PARTS["port.pt"] = lambda home: torch.save(taps(), home / "port.pt")
PARTS["ids.npy"] = lambda home: np.save(home / "ids.npy", taps()["input_ids"].numpy())
PARTS["ids.json"] = lambda home: (home / "ids.json").write_text(str(taps()["input_ids"].tolist()))
PARTS["prompts.txt"] = lambda home: (home / "prompts.txt").write_text("a dog\na red bus\n")
PARTS["picture.npy"] = lambda home: np.save(home / "picture.npy", np.zeros((8, 8, 3), np.uint8))
PARTS["picture.ppm"] = lambda home: (home / "picture.ppm").write_bytes(b"P6 8 8 255 " + bytes(192))
for form, compact in {"safetensors": (), "npz": (), "json": ("--compact",)}.items():
    PARTS[f"reference.{form}"] = functools.partial(
        lambda home, form, compact: sam3lite(
            "record", "--checkpoint", need(home, "text.pt"), "--output", home / f"reference.{form}", *compact
        ),
        form=form,
        compact=compact,
    )


@part("clip")
def _clip(home: Path) -> None:
    (home / "clip").mkdir()
    for name, data in clip_files().items():
        (home / "clip" / name).write_bytes(data)


@part("sharded")
def _sharded(home: Path) -> None:
    size = (need(home, "packed") / "model.safetensors").stat().st_size
    convert(need(home, "s0.pt"), home / "sharded", "--max-shard-size", size // 2 - (1 << 16))


@part("port")
def _port(home: Path) -> None:
    (home / "port").mkdir()
    for name, value in taps().items():
        np.save(home / "port" / f"{name}.npy", value.numpy())


@part("checkout")
def _checkout(home: Path) -> None:
    shutil.copytree(STAND_IN, home / "checkout", ignore=shutil.ignore_patterns("__pycache__"))
    git = home / "checkout" / ".git"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "packed-refs").write_text(f"{COMMIT} refs/heads/other\n")
    (git / "refs" / "heads" / "main").write_text(COMMIT + "\n")


@part("mine")
def _mine(home: Path) -> None:
    (home / "mine").mkdir()
    for table in builtin_directory().glob("*.ini"):
        shutil.copy(table, home / "mine")
    shutil.copy(builtin_directory() / "layout-packed.ini", home / "mine" / "layout-mine.ini")


@part("hub")
def _hub(home: Path) -> None:
    snapshot = home / CACHED / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (home / CACHED / "refs").mkdir()
    (home / CACHED / "refs" / "main").write_text(COMMIT)
    need(home, "s0.safetensors")
    for name in ("s0.safetensors", "x.safetensors"):
        shutil.copy(home / "s0.safetensors", snapshot / name)
    shutil.copy(need(home, "packed") / "config.json", snapshot)


def need(home: Path, name: str) -> Path:
    """A part of the workspace, made where it is not there yet."""
    if name in PARTS and not (home / name).exists():
        PARTS[name](home)
    return home / name


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where what the commands need is made, all of it right."""
    return tmp_path_factory.mktemp("workspace")


def attempt(case: Case, kind: str, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """One trial; returns how the command ended."""
    place = tmp_path / "w"
    place.mkdir()
    for name in {case.file.partition("/")[0], *case.words}:
        if need(workspace, name).is_dir():
            shutil.copytree(workspace / name, place / name, copy_function=os.link)
        elif (workspace / name).exists():
            os.link(workspace / name, place / name)
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if kind != "itself":
        put(kind, place / case.file)
    before, memory = looks(place), greatest_memory()
    with in_time():
        done = sam3lite(*case.words, "--json")
    after = looks(place)
    shutil.rmtree(place)
    assert done.code in (0, 1, 2, 3, 4), done
    assert "Traceback" not in done.err and len(done.err) < 8000
    if done.code >= 2:
        error = done.json["error"]
        assert error["message"].strip() and len(error["message"]) < 4000 and error["code"] != "internal"
        assert done.err.count("\n") <= 8, done.err
    if done.code < 2 and case.words[0] == "verify":  # which says in the receipt that it was proven, and in its card
        before, after = ({n: v for n, v in x.items() if not n.endswith(_PROOF)} for x in (before, after))
    if done.code >= 2 or not case.writes:
        assert after == before
    else:  # only what the command is to write may have changed; nothing else went
        goes = {name for name in before if name not in after and "partial-" not in name and ".old-" not in name}
        kept = {name for name in goes if not name.startswith((case.words[-1], "packed", "transformers", "text"))}
        assert not kept, kept
    assert greatest_memory() - memory < MEMORY
    return done


def named(each: tuple[Case, str]) -> str:
    return f"{each[1]} as {each[0].file} of {' '.join(each[0].words)}"


FEW = (
    (VERIFY[0], "pipe"), (BESIDE[3], "pipe"), (BESIDE[6], "a long line"), (OUTPUTS[11], "pipe"), (OUTPUTS[15], "pipe"),
)  # fmt: skip


@pytest.mark.parametrize("trial", FEW, ids=map(named, FEW))
def test_an_odd_file_is_held(trial, workspace, tmp_path, monkeypatch):
    attempt(*trial, workspace, tmp_path, monkeypatch)


def failing(monkeypatch: pytest.MonkeyPatch, path: Path, number: int) -> list[str]:
    """Every opening of a file fails from now on; returns the list of those that failed."""
    real, failed = os.open, list[str]()

    def opened(name: Any, *arguments: Any, **named: Any) -> int:
        if os.path.realpath(os.fsdecode(name)) == str(path):
            failed.append(str(name))
            raise OSError(number, os.strerror(number), str(name))
        return real(name, *arguments, **named)

    monkeypatch.setattr(os, "open", opened)
    return failed


def test_a_config_that_may_not_be_read_cannot_run(workspace, tmp_path, monkeypatch):
    for name in ("s0.pt", "packed"):
        need(workspace, name)
    shutil.copytree(workspace / "packed", tmp_path / "packed")
    failed = failing(monkeypatch, (tmp_path / "packed" / "config.json").resolve(), errno.EACCES)
    done = sam3lite("verify", tmp_path / "packed", "--checkpoint", workspace / "s0.pt", "--json")
    assert done.code == 2 and done.json["error"]["code"] == "no_permission" and failed
    assert done.json["error"]["message"].endswith("packed/config.json: permission denied")


# All of them take more than half an hour; the stress tests take other kinds for each file.
SHARE = 1 if ALL else 11
NUMBERS = (errno.EACCES, errno.EIO, errno.ENOENT, errno.ESTALE)
NAMES = {f"{case.file} of {' '.join(case.words)}": case for case in CASES}


@pytest.mark.stress
@pytest.mark.parametrize("name", NAMES)
def test_every_odd_file_is_held(name, workspace, tmp_path, monkeypatch):
    number = list(NAMES).index(name)
    for kind in list(KINDS)[number % SHARE :: SHARE]:
        attempt(NAMES[name], kind, workspace, tmp_path, monkeypatch)


@pytest.mark.stress
@pytest.mark.parametrize("name", [name for name, case in NAMES.items() if case in VERIFY + SOURCES + BESIDE])
def test_a_file_that_cannot_be_opened_is_held(name, workspace, tmp_path, monkeypatch):
    """Unreadable, broken, or gone between the look at it and the opening."""
    number = list(NAMES).index(name)
    for error in NUMBERS if SHARE == 1 else (NUMBERS[number % len(NUMBERS)],):
        with monkeypatch.context() as patch:
            failing(patch, (tmp_path / "w" / NAMES[name].file).resolve(), error)
            attempt(NAMES[name], "itself", workspace, tmp_path, patch)
